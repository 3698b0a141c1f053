use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Runs one expression on the CPU and another on any GPU, where it is compiled for each runtime with `$gpu` bound to the
/// open device.
macro_rules! on_device {
    ($device:expr, $cpu:expr, $gpu:ident => $on_gpu:expr) => {
        match $device {
            $crate::Device::Cpu => $cpu,
            #[cfg(feature = "wgpu")]
            $crate::Device::Wgpu($gpu) => $on_gpu,
            #[cfg(feature = "cuda")]
            $crate::Device::Cuda($gpu) => $on_gpu,
            #[cfg(feature = "cuda-compile")]
            $crate::Device::CudaCompile($gpu) => $on_gpu,
        }
    };
}
pub(crate) use on_device;

/// Which kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// The host, with rayon and SIMD.
    Cpu,
    /// A GPU through Vulkan, Metal, DirectX or WebGPU.
    Wgpu,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// No GPU: kernels are compiled for CUDA and not run.
    CudaCompile,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Wgpu => "wgpu",
            DeviceKind::Cuda => "cuda",
            DeviceKind::CudaCompile => "cuda-compile",
        })
    }
}

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

/// Where tensors live and operators run. Cheap to clone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// The host.
    Cpu,
    /// A GPU through wgpu.
    #[cfg(feature = "wgpu")]
    Wgpu(crate::gpu::Gpu<cubecl_wgpu::WgpuRuntime>),
    /// An NVIDIA GPU through CUDA.
    #[cfg(feature = "cuda")]
    Cuda(crate::gpu::Gpu<cubecl_cuda::CudaRuntime>),
    /// One architecture that kernels are compiled for; nothing runs, and what is read back is zero.
    #[cfg(feature = "cuda-compile")]
    CudaCompile(crate::gpu::Gpu<crate::gpu::cuda_compile::CompileRuntime>),
}

/// What [`Device::list`] found about one device.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its kind.
    pub kind: DeviceKind,
    /// The name the driver gives.
    pub name: String,
    /// Whether it is a GPU in hardware (a software rasteriser is not; the CPU is not).
    pub hardware_gpu: bool,
    /// Its memory in bytes, where the driver tells.
    pub memory: Option<u64>,
    /// What kernels can make use of, such as f16 storage.
    pub features: Vec<String>,
    /// Whether [`Device::open`] would open it, or why not.
    pub status: Result<(), String>,
}

impl Device {
    /// Opens the first device of a kind: for wgpu, a hardware adapter if there is one, else a software one.
    ///
    /// # Errors
    /// If the crate was built without the feature, or the machine has no such device; the message says what is missing.
    /// Never panics for want of a driver.
    pub fn open(kind: DeviceKind) -> Result<Self> {
        match kind {
            DeviceKind::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "wgpu")]
            DeviceKind::Wgpu => crate::gpu::open_wgpu(),
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => crate::gpu::open_cuda(),
            #[cfg(feature = "cuda-compile")]
            DeviceKind::CudaCompile => crate::gpu::cuda_compile::open(90),
            #[allow(unreachable_patterns)] // reachable only without the features
            _ => Err(Error::Device {
                kind,
                reason: format!("this build has no {kind} support; build with --features {kind}"),
            }),
        }
    }

    /// The best device at hand: CUDA, else a hardware wgpu adapter, else the CPU. Never a software rasteriser.
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

    /// Every device that this build can see, CUDA first, then wgpu, then the CPU; also kinds of which there is none, with
    /// the reason.
    #[allow(clippy::vec_init_then_push)] // which pushes there are depends on the features
    pub fn list() -> Vec<DeviceInfo> {
        let mut all = Vec::new();
        #[cfg(feature = "cuda")]
        all.extend(crate::gpu::list_cuda());
        #[cfg(not(feature = "cuda"))]
        all.push(DeviceInfo::not_built(DeviceKind::Cuda));
        #[cfg(feature = "wgpu")]
        all.extend(crate::gpu::list_wgpu());
        #[cfg(not(feature = "wgpu"))]
        all.push(DeviceInfo::not_built(DeviceKind::Wgpu));
        all.push(DeviceInfo {
            kind: DeviceKind::Cpu,
            name: crate::cpu::describe(),
            hardware_gpu: false,
            memory: crate::cpu::memory(),
            features: vec!["f32 and bf16 products".into()],
            status: Ok(()),
        });
        all
    }

    /// Waits until everything launched before is done: operators on a GPU return when they are queued. On the CPU they return
    /// when they are done.
    ///
    /// # Errors
    /// If a kernel failed, or the device did.
    pub fn wait(&self) -> Result<()> {
        on_device!(self, Ok(()), gpu => gpu.wait())
    }

    /// Whether products of bf16 have instructions of their own here: AVX-512 BF16 on a CPU, matrix units on a GPU. Where they
    /// have none, a weight that computes in bf16 computes in f32.
    pub fn multiplies_bf16(&self) -> bool {
        on_device!(self, crate::cpu::level() == crate::cpu::Level::Avx512Bf16, gpu => gpu.has_bf16_matrix_units())
    }

    /// Bytes of this process's tensors on a GPU, without what is kept for later ones; None on the CPU.
    ///
    /// # Errors
    /// If the device does not answer.
    pub fn memory_in_use(&self) -> Result<Option<u64>> {
        on_device!(self, Ok(None), gpu => gpu.memory_in_use().map(Some))
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
        }
    }

    /// The name the driver gives.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu => crate::cpu::describe(),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(gpu) => gpu.name().to_string(),
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => gpu.name().to_string(),
            #[cfg(feature = "cuda-compile")]
            Device::CudaCompile(gpu) => gpu.name().to_string(),
        }
    }

    /// Whether two handles mean the same device. One device of a kind is open at a time.
    pub fn same(&self, other: &Device) -> bool {
        self.kind() == other.kind() && (self.kind() != DeviceKind::CudaCompile || self.name() == other.name())
    }
}

impl DeviceInfo {
    /// A kind of which there is no device.
    pub(crate) fn none(kind: DeviceKind, why: String) -> Self {
        Self { kind, name: "-".into(), hardware_gpu: false, memory: None, features: Vec::new(), status: Err(why) }
    }

    #[cfg(not(all(feature = "wgpu", feature = "cuda")))]
    fn not_built(kind: DeviceKind) -> Self {
        Self::none(kind, format!("this build has no {kind} support; build with --features {kind}"))
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
