//! A CUDA device that only compiles, for machines without a GPU or its driver.
//!
//! A launch translates the kernel into CUDA C++ with CubeCL's own compiler, and NVRTC and ptxas compile that for one
//! architecture. Nothing runs, and values read back are zero. Launchers do not know which device they launch on, so
//! running the cases of verify on this device compiles every kernel that they launch, with all settings.

mod nvrtc;
mod server;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cubecl::ir::TargetProperties;
use cubecl::prelude::*;
use cubecl::zspace::{Shape, Strides};
use cubecl_common::device::DeviceId;
use cubecl_cuda::{CudaCompiler, CudaRuntime};

use super::{Gpu, failure, settings};
use crate::{DeviceKind, Error, Result};
use server::CompileServer;

/// The architectures that kernels are compiled for, as compute capabilities times ten.
pub const ARCHITECTURES: [u32; 2] = [80, 90];

/// One kernel instance, compiled for one architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// The kernel's name.
    pub kernel: String,
    /// A hash of the settings that the instance was made with, as hexadecimal digits. It is the same in every build.
    pub instance: String,
    /// The architecture, such as 90 for sm_90.
    pub architecture: u32,
    /// What it was compiled to, at least one, or the first error.
    pub variants: Result<Vec<Variant>, String>,
}

/// Machine code of an instance. Two variants have the same statements in another order ([`try_orders`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// The resources that ptxas reports.
    pub resources: Resources,
    /// A cubin file.
    pub binary: Arc<[u8]>,
}

/// The resources that a kernel takes of a multiprocessor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of shared memory per block.
    pub shared: u32,
    /// Bytes that a thread spills to memory because it runs out of registers.
    pub spills: u32,
}

/// All instances launched so far, by kernel, architecture and instance.
type Outcomes = BTreeMap<(String, u32, String), Result<Vec<Variant>, String>>;

static OUTCOMES: Mutex<Outcomes> = Mutex::new(BTreeMap::new());

fn outcomes() -> MutexGuard<'static, Outcomes> {
    OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All kernel instances launched so far, by name and architecture.
pub fn compiled() -> Vec<Compiled> {
    let one = |((kernel, architecture, instance), variants): (&(String, u32, String), &Result<_, _>)| Compiled {
        kernel: kernel.clone(),
        instance: instance.clone(),
        architecture: *architecture,
        variants: Clone::clone(variants),
    };
    outcomes().iter().map(one).collect()
}

/// How often CubeCL's compiler is asked for an instance.
static ORDERS: AtomicUsize = AtomicUsize::new(1);

/// From now on, asks CubeCL's compiler `count` times for each instance, and compiles every source that it gives. CubeCL
/// 0.10 orders independent statements by hash maps with random seeds, so a second source may differ from the first.
pub fn try_orders(count: usize) {
    ORDERS.store(count.max(1), Ordering::Relaxed);
}

/// The runtime of compiling devices.
#[derive(Clone, Debug)]
pub(crate) struct CompileRuntime;

/// One architecture of [`ARCHITECTURES`].
#[derive(Clone, Debug, Default)]
pub(crate) struct CompileDevice(usize);

impl cubecl_common::device::Device for CompileDevice {
    fn from_id(id: DeviceId) -> Self {
        Self(id.index_id as usize)
    }

    fn to_id(&self) -> DeviceId {
        DeviceId { type_id: 0, index_id: self.0 as u16 }
    }
}

impl Runtime for CompileRuntime {
    type Compiler = CudaCompiler;
    type Server = CompileServer;
    type Device = CompileDevice;

    fn client(device: &Self::Device) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_: &ComputeClient<Self>) -> &'static str {
        "cuda-compile"
    }

    fn require_array_lengths() -> bool {
        CudaRuntime::require_array_lengths()
    }

    fn max_cube_count() -> (u32, u32, u32) {
        CudaRuntime::max_cube_count()
    }

    fn can_read_tensor(shape: &Shape, strides: &Strides) -> bool {
        CudaRuntime::can_read_tensor(shape, strides)
    }

    fn target_properties() -> TargetProperties {
        CudaRuntime::target_properties()
    }

    fn enumerate_devices(_: u16, _: &()) -> Vec<DeviceId> {
        (0..ARCHITECTURES.len() as u16).map(|index_id| DeviceId { type_id: 0, index_id }).collect()
    }
}

/// Opens the compiling device of an architecture.
///
/// # Errors
/// If NVRTC or CUDA's headers are not found. The message names the places searched.
pub(crate) fn open(architecture: u32) -> Result<Gpu<CompileRuntime>> {
    let failed = |reason| Error::Device { kind: DeviceKind::CudaCompile, reason };
    nvrtc::shared().as_ref().map_err(|reason| failed(reason.clone()))?;
    let Some(index) = ARCHITECTURES.iter().position(|a| *a == architecture) else {
        return Err(failed(format!("no sm_{architecture}; expected one of {ARCHITECTURES:?}")));
    };
    static OPENED: [OnceLock<Gpu<CompileRuntime>>; ARCHITECTURES.len()] = [const { OnceLock::new() }; 2];
    failure::watch();
    settings::set(None);
    let open = || Gpu::new(CompileRuntime::client(&CompileDevice(index)), format!("NVRTC for sm_{architecture}"));
    Ok(OPENED[index].get_or_init(open).clone())
}
