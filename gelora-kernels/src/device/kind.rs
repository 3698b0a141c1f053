//! Names of devices, and what is known of one before it is opened.

use std::fmt;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The host CPU, with threads and SIMD.
    Cpu,
    /// A GPU through Vulkan, Metal, DirectX or WebGPU.
    Wgpu,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// A compiler for CUDA that runs nothing: kernels are compiled, and values read back are zero.
    CudaCompile,
    /// A device that counts memory and computes nothing; see [`Device::Plan`](crate::Device).
    Plan,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Wgpu => "wgpu",
            DeviceKind::Cuda => "cuda",
            DeviceKind::CudaCompile => "cuda-compile",
            DeviceKind::Plan => "plan",
        })
    }
}

/// One entry of [`Device::list`](crate::Device::list).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The kind of the device.
    pub kind: DeviceKind,
    /// The name that the driver gives.
    pub name: String,
    /// Whether the device is a GPU in hardware: false for the CPU and for software rasterizers.
    pub hardware_gpu: bool,
    /// Bytes of memory, where the driver tells.
    pub memory: Option<u64>,
    /// Features that kernels can use, such as f16 storage.
    pub features: Vec<String>,
    /// Whether [`Device::open`](crate::Device::open) would open the device; the error says why not.
    pub status: Result<(), String>,
}

impl DeviceInfo {
    /// The entry for a kind without any device.
    pub(crate) fn none(kind: DeviceKind, why: String) -> Self {
        Self { kind, name: "-".into(), hardware_gpu: false, memory: None, features: Vec::new(), status: Err(why) }
    }

    /// The entry for a kind that this build does not support.
    #[cfg(not(all(feature = "wgpu", feature = "cuda")))]
    pub(crate) fn not_built(kind: DeviceKind) -> Self {
        Self::none(kind, format!("this build has no {kind} support; build with --features {kind}"))
    }
}
