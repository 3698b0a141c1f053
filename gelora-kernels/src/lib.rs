//! Devices, tensors and the operators of LoRA fine-tuning, on CPUs and GPUs.
//!
//! - A [`Device`] is the CPU, a GPU through wgpu (Vulkan, Metal, DirectX) or an NVIDIA GPU through CUDA.
//! - A [`Tensor`] is a dense row-major array on one device.
//! - The operators are functions on tensors, one module each in [`ops`]: the fused LoRA product, attention, norms,
//!   losses, AdamW, nearest neighbors and others, with backward passes.
//!
//! ```
//! use gelora_kernels::ops::{linear::Weight, lora_linear::LoraLinear};
//! use gelora_kernels::{DType, Device, Tensor};
//!
//! let device = Device::Cpu; // or Device::auto()
//! let tensor = |values: &[f32], shape: [usize; 2]| Tensor::from_vec(values.to_vec(), shape)?.to_device(&device);
//! // A frozen weight W (C_out, C_in) with an adapter of rank 1: A (1, C_in), B (C_out, 1).
//! let weight = Weight::new(tensor(&[1.0, 0.0, 0.0, 1.0], [2, 2])?, DType::F32)?;
//! let (a, b) = (tensor(&[1.0, 1.0], [1, 2])?, tensor(&[0.5, -0.5], [2, 1])?);
//! let layer = LoraLinear { weight: &weight, bias: None, a: &a, b: &b, scaling: 2.0, dropout: None };
//!
//! // y = x W^T + s x A^T B^T, and the gradients of x, A and B for dy = 1.
//! let x = tensor(&[3.0, 4.0], [1, 2])?;
//! let (y, saved) = layer.forward(&x)?;
//! assert_eq!(y.to_vec()?, [10.0, -3.0]);
//! let gradients = layer.backward(&x, &tensor(&[1.0, 1.0], [1, 2])?, saved)?;
//! assert_eq!(gradients.db.to_vec()?, [14.0, 14.0]);
//! # Ok::<(), gelora_kernels::Error>(())
//! ```
//!
//! # Conventions
//!
//! Shape letters in all documentation: B batch (sequences), T tokens of one sequence, N rows (all tokens of a batch, or
//! points), C channels, H heads, D head size or point dimension, V vocabulary, R rank. Matrices are dense and
//! row-major.
//!
//! A batch of sequences has no padding. The tokens of all sequences are the N rows of a matrix, one sequence after the
//! other, and [`Offsets`] has the row at which each sequence begins. No operator computes on padding, so padding cannot
//! change a result.
//!
//! A result has the same bits in every run on one device: there are no float atomics, and a CPU result does not depend
//! on the number of threads. It may depend on the vector instructions in use ([`cpu::level`]).
//!
//! A wrong argument is an [`Error`] that names the operator and the argument. Operators on a GPU are queued, so a
//! failure of the device is the error of a later call that reads values.
//!
//! # Features
//!
//! - `wgpu`, `cuda`: GPU devices through CubeCL. Without them, CubeCL is not compiled.
//! - `verify`: the module `verify`, with a reference in f64 for every operator and cases that compare the two on a
//!   device.
//! - `nccl`: the module `nccl`, which gathers bytes from the GPUs of several processes.
//! - `cuda-compile`: a device that compiles all kernels for CUDA and runs none.

#![warn(unreachable_pub, missing_debug_implementations)]

mod buffer;
pub mod cpu;
mod device;
mod dropout;
mod dtype;
mod error;
pub mod four_bit;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
mod guard;
#[cfg(feature = "nccl")]
pub mod nccl;
mod offsets;
pub mod ops;
pub mod peak;
mod pending;
pub mod profile;
mod quantized;
pub mod random;
pub mod recycle;
mod tensor;
#[cfg(any(test, feature = "verify"))]
pub mod verify;

/// A compiler for CUDA kernels, for machines without a GPU.
#[cfg(feature = "cuda-compile")]
pub mod cuda_compile {
    pub use crate::gpu::cuda_compile::{ARCHITECTURES, Compiled, Resources, Variant, compiled, try_orders};
    pub use crate::gpu::forget_failures;
    use crate::gpu::{self, Backend};
    use crate::{Device, Result};

    /// Opens the compiler for one of the [`ARCHITECTURES`].
    ///
    /// # Errors
    /// If NVRTC or CUDA's headers are not found; the message says where they are looked for.
    pub fn open(architecture: u32) -> Result<Device> {
        gpu::cuda_compile::open(architecture).map(Backend::device)
    }
}

/// Plans of memory: a [`Device`] that counts what a program would hold and computes nothing.
///
/// Operators on such a device ask for the same buffers as on a real one. A plan of a GPU has the pages of CubeCL's
/// memory management; a plan of the CPU has mapped weights, packed layouts and recycled outputs instead.
///
/// ```
/// # #[cfg(any(feature = "wgpu", feature = "cuda"))] {
/// use gelora_kernels::{DeviceKind, Tensor, plan};
///
/// let device = plan::open(DeviceKind::Cuda, 24 << 30)?; // a card of 24 GiB
/// let x = Tensor::zeros([1024, 1024], &device)?;
/// assert_eq!(plan::held(&device)?.tensors, 4 << 20);
/// # drop(x);
/// # }
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub mod plan {
    use crate::device::PlanDevice;
    use crate::gpu::{self, Backend};
    use crate::{Device, DeviceKind, Error, Result};

    /// Bytes that a planned program holds.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct Held {
        /// Live tensors and buffers now.
        pub tensors: u64,
        /// The most of them at one time, since [`forget_peak`].
        pub most_tensors: u64,
        /// The most bytes of pages at one time, since [`forget_peak`]: what a GPU's driver sees. Without a meaning for
        /// the CPU.
        pub most_reserved: u64,
    }

    /// Opens a plan of a device with `memory` bytes of memory. Two calls with the same arguments give the same device.
    ///
    /// # Errors
    /// If `kind` is neither the CPU, wgpu nor CUDA, or the memory is below 1 MiB.
    pub fn open(kind: DeviceKind, memory: u64) -> Result<Device> {
        gpu::plan::open(kind, memory, || of_this_machine(kind)).map(Backend::device)
    }

    /// The properties of this machine's GPU of a kind, if it has one.
    fn of_this_machine(kind: DeviceKind) -> Option<cubecl::ir::DeviceProperties> {
        match Device::open(kind) {
            #[cfg(feature = "wgpu")]
            Ok(Device::Wgpu(crate::device::WgpuDevice(gpu))) => Some(gpu.client().properties().clone()),
            #[cfg(feature = "cuda")]
            Ok(Device::Cuda(crate::device::CudaDevice(gpu))) => Some(gpu.client().properties().clone()),
            _ => None,
        }
    }

    /// What the program holds on a planned device.
    ///
    /// # Errors
    /// If the device is not planned.
    pub fn held(device: &Device) -> Result<Held> {
        let gpu = of(device)?;
        Ok(Held { tensors: gpu.tally().live(), most_tensors: gpu.tally().peak(), most_reserved: gpu.most_reserved() })
    }

    /// Frees all memory that no tensor uses, and begins to look for the peak anew.
    ///
    /// # Errors
    /// If the device is not planned.
    pub fn forget_peak(device: &Device) -> Result<()> {
        of(device)?.forget_peak()
    }

    fn of(device: &Device) -> Result<&gpu::Gpu<gpu::plan::PlanRuntime>> {
        match device {
            Device::Plan(PlanDevice(gpu)) => Ok(gpu),
            other => {
                let message = format!("expected a planned device, got {}", other.kind());
                Err(Error::Value { op: "plan", message })
            }
        }
    }
}

/// Sets the folder that keeps compiled CUDA kernels, so that a later run need not compile them again. None, the
/// default, keeps none. Each build of this crate and each architecture has a subfolder. Call it before a device is
/// opened. A folder that cannot be written to is not used.
pub fn keep_compiled_kernels(folder: Option<std::path::PathBuf>) {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    gpu::keep_compiled_kernels(folder);
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    drop(folder);
}

pub use buffer::{Bytes, SharedBytes};
#[cfg(feature = "cuda-compile")]
pub use device::CudaCompileDevice;
#[cfg(feature = "cuda")]
pub use device::CudaDevice;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use device::PlanDevice;
#[cfg(feature = "wgpu")]
pub use device::WgpuDevice;
pub use device::{Device, DeviceInfo, DeviceKind};
pub use dtype::{DType, Rounding};
pub use error::{Error, Result};
pub use offsets::Offsets;
pub use pending::Pending;
pub use tensor::Tensor;
