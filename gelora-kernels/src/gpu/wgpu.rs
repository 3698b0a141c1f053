//! The search for a wgpu adapter, and its opening.
//!
//! CubeCL panics if the adapter that it must open does not exist. So adapters are listed first, with the same backend
//! and in the same order as CubeCL lists them.

use std::sync::{Arc, OnceLock};

use cubecl::prelude::*;
use cubecl_wgpu::{AutoGraphicsApi, GraphicsApi, WgpuDevice, WgpuRuntime, init_setup};
use wgpu::{Adapter, AdapterInfo, DeviceType, Features, Instance, InstanceDescriptor};

use super::failure::{self, Failure};
use super::{Gpu, inject, settings};
use crate::{DeviceInfo, DeviceKind, Error, Result};

/// An adapter, with CubeCL's name for it.
struct Found {
    device: WgpuDevice,
    info: AdapterInfo,
    memory: Option<u64>,
    features: Vec<String>,
}

/// All adapters, best first.
fn adapters() -> Vec<Found> {
    let instance = Instance::new(InstanceDescriptor {
        backends: AutoGraphicsApi::backend().into(),
        ..InstanceDescriptor::new_without_display_handle()
    });
    let found = cubecl::future::block_on(instance.enumerate_adapters(AutoGraphicsApi::backend().into()));
    let mut all: Vec<Found> = Vec::new();
    for adapter in found {
        let info = adapter.get_info();
        let index = all.iter().filter(|other| other.info.device_type == info.device_type).count();
        let device = match info.device_type {
            DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(index),
            DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(index),
            DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(index),
            DeviceType::Cpu => WgpuDevice::Cpu,
            DeviceType::Other => WgpuDevice::DefaultDevice,
        };
        let (memory, features) = (memory(&adapter), features(&adapter));
        all.push(Found { device, info, memory, features });
    }
    all.sort_by_key(|found| match found.info.device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    });
    all
}

/// Bytes of the largest device-local heap. WebGPU does not tell; Vulkan does.
#[cfg(any(target_os = "linux", target_os = "windows"))]
fn memory(adapter: &Adapter) -> Option<u64> {
    const DEVICE_LOCAL: u32 = 1; // VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
    // SAFETY: the adapter is alive, and only its properties are read.
    let properties = unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
    };
    let heaps = &properties.memory_heaps[..properties.memory_heap_count as usize];
    heaps.iter().filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

#[cfg(not(any(target_os = "linux", target_os = "windows")))]
fn memory(_: &Adapter) -> Option<u64> {
    None
}

fn features(adapter: &Adapter) -> Vec<String> {
    let has = [(Features::SHADER_F16, "f16 storage"), (Features::SUBGROUP, "plane operations")];
    let mut all: Vec<String> = vec![format!("{:?}", adapter.get_info().backend)];
    all.extend(has.into_iter().filter(|(f, _)| adapter.features().contains(*f)).map(|(_, name)| name.to_string()));
    all
}

/// The message for a machine without an adapter.
fn missing() -> String {
    format!(
        "no {:?} adapter found; install a GPU driver (on Linux with its Vulkan ICD and libvulkan1), or Mesa's \
         lavapipe for a software one",
        AutoGraphicsApi::backend()
    )
}

/// The best adapter, opened once.
pub(crate) fn open() -> Result<Gpu<WgpuRuntime>> {
    static OPENED: OnceLock<Result<Gpu<WgpuRuntime>>> = OnceLock::new();
    OPENED.get_or_init(open_best).clone()
}

fn open_best() -> Result<Gpu<WgpuRuntime>> {
    let kind = DeviceKind::Wgpu;
    let failed = |reason| Error::Device { kind, reason };
    let Some(Found { device, info, .. }) = adapters().into_iter().next() else { return Err(failed(missing())) };
    inject::prepare(kind)?;
    failure::watch();
    settings::set(None);
    // A listed adapter can still refuse to open, and CubeCL unwraps the error.
    let client = failure::answer(|| {
        let setup = init_setup::<AutoGraphicsApi>(&device, Default::default());
        // Without these callbacks, wgpu panics in a thread of its own.
        setup.device.on_uncaptured_error(Arc::new(|e| {
            failure::record(
                Some(DeviceKind::Wgpu),
                match e {
                    wgpu::Error::OutOfMemory { .. } => Failure::OutOfMemory { needed: None, in_use: None },
                    other => Failure::Other(failure::one_line(&other.to_string())),
                },
            );
        }));
        setup.device.set_device_lost_callback(|reason, message| {
            let message = failure::one_line(&format!("the device was lost ({reason:?}): {message}"));
            failure::record(Some(DeviceKind::Wgpu), Failure::Other(message));
        });
        WgpuRuntime::client(&device)
    })
    .ok_or_else(|| {
        let why = failure::of(kind).map(|failure| format!(": {failure}")).unwrap_or_default();
        failed(format!("the adapter {} ({:?}) was found but could not be opened{why}", info.name, info.backend))
    })?;
    Ok(Gpu::new(client, info.name))
}

/// All adapters. Without any, one entry says why.
pub(crate) fn list() -> Vec<DeviceInfo> {
    let kind = DeviceKind::Wgpu;
    let all: Vec<DeviceInfo> = adapters()
        .into_iter()
        .map(|Found { info, memory, features, .. }| DeviceInfo {
            kind,
            hardware_gpu: info.device_type != DeviceType::Cpu,
            name: info.name,
            memory,
            features,
            status: Ok(()),
        })
        .collect();
    if all.is_empty() {
        return vec![DeviceInfo::none(kind, missing())];
    }
    all
}
