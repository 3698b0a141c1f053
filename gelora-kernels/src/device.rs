//! The device enum, and dispatch over it.

mod kind;

use std::str::FromStr;

#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::gpu::{self, Backend, Gpu};
use crate::{Error, Result, cpu};
pub use kind::{DeviceInfo, DeviceKind};

/// Runs one expression for the CPU and another for any GPU. The GPU expression is compiled once for each runtime, with
/// `$gpu` bound to the open [`Gpu`](crate::gpu::Gpu).
macro_rules! on_device {
    ($device:expr, $cpu:expr, $gpu:ident => $on_gpu:expr) => {
        match $device {
            $crate::Device::Cpu => $cpu,
            #[cfg(feature = "wgpu")]
            $crate::Device::Wgpu($crate::device::WgpuDevice($gpu)) => $on_gpu,
            #[cfg(feature = "cuda")]
            $crate::Device::Cuda($crate::device::CudaDevice($gpu)) => $on_gpu,
            #[cfg(feature = "cuda-compile")]
            $crate::Device::CudaCompile($crate::device::CudaCompileDevice($gpu)) => $on_gpu,
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            $crate::Device::Plan($crate::device::PlanDevice($gpu)) => $on_gpu,
        }
    };
}
pub(crate) use on_device;

impl FromStr for DeviceKind {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "cpu" => Ok(DeviceKind::Cpu),
            "wgpu" => Ok(DeviceKind::Wgpu),
            "cuda" => Ok(DeviceKind::Cuda),
            "cuda-compile" => Ok(DeviceKind::CudaCompile),
            _ => Err(Error::Value { op: "device", message: format!("expected cpu, wgpu or cuda, got {s:?}") }),
        }
    }
}

/// The place where a tensor's values are and where operators compute. Clones are cheap and mean the same device.
///
/// ```
/// use gelora_kernels::{Device, DeviceKind, Tensor};
///
/// let device = Device::auto(); // CUDA, else a hardware GPU through wgpu, else the CPU
/// let x = Tensor::from_vec(vec![1.0, 2.0], [2])?.to_device(&device)?;
/// assert!(x.device().same(&device));
/// assert_eq!(Device::open(DeviceKind::Cpu)?.name(), Device::Cpu.name());
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// The host CPU.
    Cpu,
    /// A GPU through wgpu.
    #[cfg(feature = "wgpu")]
    Wgpu(WgpuDevice),
    /// An NVIDIA GPU through CUDA.
    #[cfg(feature = "cuda")]
    Cuda(CudaDevice),
    /// A compiler for one CUDA architecture. Nothing runs, and values read back are zero.
    #[cfg(feature = "cuda-compile")]
    CudaCompile(CudaCompileDevice),
    /// Counts memory and computes nothing; see [`crate::plan`]. Values read back are zero.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    Plan(PlanDevice),
}

/// An open wgpu adapter; [`Device::open`] makes it.
#[cfg(feature = "wgpu")]
#[derive(Clone, Debug)]
pub struct WgpuDevice(pub(crate) Gpu<cubecl_wgpu::WgpuRuntime>);

/// An open CUDA device; [`Device::open`] makes it.
#[cfg(feature = "cuda")]
#[derive(Clone, Debug)]
pub struct CudaDevice(pub(crate) Gpu<cubecl_cuda::CudaRuntime>);

/// A compiler for one CUDA architecture.
#[cfg(feature = "cuda-compile")]
#[derive(Clone, Debug)]
pub struct CudaCompileDevice(pub(crate) Gpu<gpu::cuda_compile::CompileRuntime>);

/// A device whose memory is planned; [`crate::plan::open`] makes it.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[derive(Clone, Debug)]
pub struct PlanDevice(pub(crate) Gpu<gpu::plan::PlanRuntime>);

#[cfg(any(feature = "wgpu", feature = "cuda"))]
impl Backend for gpu::plan::PlanRuntime {
    const KIND: DeviceKind = DeviceKind::Plan;

    fn device(gpu: Gpu<Self>) -> Device {
        Device::Plan(PlanDevice(gpu))
    }
}

#[cfg(feature = "wgpu")]
impl Backend for cubecl_wgpu::WgpuRuntime {
    const KIND: DeviceKind = DeviceKind::Wgpu;

    fn device(gpu: Gpu<Self>) -> Device {
        Device::Wgpu(WgpuDevice(gpu))
    }
}

#[cfg(feature = "cuda")]
impl Backend for cubecl_cuda::CudaRuntime {
    const KIND: DeviceKind = DeviceKind::Cuda;

    fn device(gpu: Gpu<Self>) -> Device {
        Device::Cuda(CudaDevice(gpu))
    }
}

#[cfg(feature = "cuda-compile")]
impl Backend for gpu::cuda_compile::CompileRuntime {
    const KIND: DeviceKind = DeviceKind::CudaCompile;

    fn device(gpu: Gpu<Self>) -> Device {
        Device::CudaCompile(CudaCompileDevice(gpu))
    }
}

impl Device {
    /// Opens the first device of a kind. For wgpu, that is a hardware adapter if there is one, else a software adapter.
    ///
    /// # Errors
    /// If the crate was built without the feature of that kind, or the machine has no such device. The message says
    /// what is missing. A missing driver is an error too, never a panic.
    pub fn open(kind: DeviceKind) -> Result<Self> {
        match kind {
            DeviceKind::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "wgpu")]
            DeviceKind::Wgpu => gpu::open_wgpu().map(Backend::device),
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => gpu::open_cuda().map(Backend::device),
            #[cfg(feature = "cuda-compile")]
            DeviceKind::CudaCompile => gpu::cuda_compile::open(90).map(Backend::device),
            #[allow(unreachable_patterns)] // reachable only without the features
            _ => Err(Error::Device {
                kind,
                reason: format!("this build has no {kind} support; build with --features {kind}"),
            }),
        }
    }

    /// The best device of the machine: CUDA, else a hardware adapter of wgpu, else the CPU. Never a software
    /// rasterizer.
    pub fn auto() -> Self {
        for info in Self::list() {
            if info.hardware_gpu
                && info.status.is_ok()
                && let Ok(device) = Self::open(info.kind)
            {
                return device;
            }
        }
        Device::Cpu
    }

    /// All devices that this build can see: CUDA first, then wgpu, then the CPU. A kind without a device has one entry
    /// that says why.
    #[allow(clippy::vec_init_then_push)] // the features decide what is pushed
    pub fn list() -> Vec<DeviceInfo> {
        let mut all = Vec::new();
        #[cfg(feature = "cuda")]
        all.extend(gpu::list_cuda());
        #[cfg(not(feature = "cuda"))]
        all.push(DeviceInfo::not_built(DeviceKind::Cuda));
        #[cfg(feature = "wgpu")]
        all.extend(gpu::list_wgpu());
        #[cfg(not(feature = "wgpu"))]
        all.push(DeviceInfo::not_built(DeviceKind::Wgpu));
        all.push(DeviceInfo {
            kind: DeviceKind::Cpu,
            name: cpu::describe(),
            hardware_gpu: false,
            memory: cpu::memory(),
            features: vec!["f32 and bf16 products".into()],
            status: Ok(()),
        });
        all
    }

    /// Waits until all launched work is done. Operators on a GPU return once their work is queued; operators on the CPU
    /// return when they are done.
    ///
    /// # Errors
    /// If a kernel or the device failed.
    pub fn wait(&self) -> Result<()> {
        on_device!(self, Ok(()), gpu => gpu.wait())
    }

    /// Whether the device has instructions for products of bf16: AVX-512 BF16 on a CPU, matrix units on a GPU. Without
    /// them, a weight that asks for products in bf16 is multiplied in f32.
    pub fn multiplies_bf16(&self) -> bool {
        on_device!(self, cpu::level() == cpu::Level::Avx512Bf16, gpu => gpu.has_bf16_matrix_units())
    }

    /// Bytes of this process's live tensors on a GPU, without memory that is kept for later tensors. None on the CPU.
    ///
    /// # Errors
    /// If the device does not answer.
    pub fn memory_in_use(&self) -> Result<Option<u64>> {
        on_device!(self, Ok(None), gpu => gpu.memory_in_use().map(Some))
    }

    /// Bytes of a GPU's memory that this thread holds, for live tensors and for later ones. None on the CPU.
    ///
    /// # Errors
    /// If the device does not answer.
    pub fn memory_reserved(&self) -> Result<Option<u64>> {
        on_device!(self, Ok(None), gpu => gpu.memory_reserved().map(Some))
    }

    /// The most bytes of live tensors and buffers on a GPU at one time, since the device was opened or
    /// [`Device::reset_peak_memory`]. The count follows the program, which may be ahead of the device. None on the CPU.
    pub fn peak_memory(&self) -> Option<u64> {
        on_device!(self, None, gpu => Some(gpu.tally().peak()))
    }

    /// Sets the peak to what is alive now.
    pub fn reset_peak_memory(&self) {
        on_device!(self, (), gpu => gpu.tally().reset_peak());
    }

    /// The kind of this device.
    pub fn kind(&self) -> DeviceKind {
        match self {
            Device::Cpu => DeviceKind::Cpu,
            #[cfg(feature = "wgpu")]
            Device::Wgpu(_) => DeviceKind::Wgpu,
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => DeviceKind::Cuda,
            #[cfg(feature = "cuda-compile")]
            Device::CudaCompile(_) => DeviceKind::CudaCompile,
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Device::Plan(_) => DeviceKind::Plan,
        }
    }

    /// The name that the driver gives; for the CPU, the number of threads and the vector instructions.
    pub fn name(&self) -> String {
        on_device!(self, cpu::describe(), gpu => gpu.name().to_string())
    }

    /// Whether two handles mean the same device. At most one device of a kind is open.
    pub fn same(&self, other: &Device) -> bool {
        let is_named = matches!(self.kind(), DeviceKind::CudaCompile | DeviceKind::Plan);
        self.kind() == other.kind() && (!is_named || self.name() == other.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_parse_and_print() -> Result<()> {
        for kind in [DeviceKind::Cpu, DeviceKind::Wgpu, DeviceKind::Cuda] {
            assert_eq!(kind.to_string().parse::<DeviceKind>()?, kind);
        }
        assert!("tpu".parse::<DeviceKind>().unwrap_err().to_string().contains("cpu, wgpu or cuda"));
        Ok(())
    }

    #[test]
    fn opening_never_panics_and_listing_has_the_cpu() {
        for kind in [DeviceKind::Cpu, DeviceKind::Wgpu, DeviceKind::Cuda] {
            if let Err(e) = Device::open(kind) {
                assert!(e.to_string().contains(&kind.to_string()), "{e}");
            }
        }
        assert!(Device::list().iter().any(|d| d.kind == DeviceKind::Cpu && d.status.is_ok()));
    }
}
