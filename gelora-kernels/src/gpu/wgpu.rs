//! Finding and opening a wgpu adapter.
//!
//! CubeCL panics when the adapter it is told to open is not there, so adapters are looked for first, with the same backend
//! and in the same order.

use std::panic::catch_unwind;
use std::sync::OnceLock;

use cubecl::prelude::*;
use cubecl_wgpu::{AutoGraphicsApi, GraphicsApi, WgpuDevice, WgpuRuntime};
use wgpu::{AdapterInfo, DeviceType, Instance, InstanceDescriptor};

use super::{Backend, Gpu};
use crate::{Device, DeviceInfo, DeviceKind, Error, Result};

impl Backend for WgpuRuntime {
    const KIND: DeviceKind = DeviceKind::Wgpu;

    fn device(gpu: Gpu<Self>) -> Device {
        Device::Wgpu(gpu)
    }
}

/// Every adapter, best first, with the name CubeCL knows it by.
fn adapters() -> Vec<(WgpuDevice, AdapterInfo)> {
    let instance = Instance::new(InstanceDescriptor {
        backends: AutoGraphicsApi::backend().into(),
        ..InstanceDescriptor::new_without_display_handle()
    });
    let found = cubecl::future::block_on(instance.enumerate_adapters(AutoGraphicsApi::backend().into()));
    let mut all: Vec<(WgpuDevice, AdapterInfo)> = Vec::new();
    for adapter in found {
        let info = adapter.get_info();
        let index = all.iter().filter(|(_, other)| other.device_type == info.device_type).count();
        let device = match info.device_type {
            DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(index),
            DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(index),
            DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(index),
            DeviceType::Cpu => WgpuDevice::Cpu,
            DeviceType::Other => WgpuDevice::DefaultDevice,
        };
        all.push((device, info));
    }
    all.sort_by_key(|(_, info)| match info.device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    });
    all
}

fn missing() -> String {
    format!(
        "no {:?} adapter found; install a GPU driver (on Linux with its Vulkan ICD and libvulkan1), or Mesa's lavapipe for \
         a software one",
        AutoGraphicsApi::backend()
    )
}

/// The best adapter, opened once.
pub fn open() -> Result<Device> {
    static OPENED: OnceLock<Result<Device>> = OnceLock::new();
    OPENED.get_or_init(open_best).clone()
}

fn open_best() -> Result<Device> {
    let failed = |reason| Error::Device { kind: DeviceKind::Wgpu, reason };
    let Some((device, info)) = adapters().into_iter().next() else { return Err(failed(missing())) };
    // An adapter can be listed and still refuse; CubeCL unwraps that.
    let client = catch_unwind(|| WgpuRuntime::client(&device)).map_err(|_| {
        failed(format!("the adapter {} ({:?}) was found but could not be opened", info.name, info.backend))
    })?;
    Ok(Device::Wgpu(Gpu { client, name: info.name.into() }))
}

/// Every adapter; if there is none, one entry that says so.
pub fn list() -> Vec<DeviceInfo> {
    let kind = DeviceKind::Wgpu;
    let all: Vec<DeviceInfo> = adapters()
        .into_iter()
        .map(|(_, info)| DeviceInfo {
            kind,
            hardware_gpu: info.device_type != DeviceType::Cpu,
            name: info.name,
            status: Ok(()),
        })
        .collect();
    if all.is_empty() {
        return vec![DeviceInfo { kind, name: "-".into(), hardware_gpu: false, status: Err(missing()) }];
    }
    all
}
