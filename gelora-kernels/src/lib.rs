//! Devices, tensors and the operators that LoRA fine-tuning needs.
//!
//! Every operator is a room under [`ops`] furnished alike: the formula and the public functions (`mod.rs`), a naive
//! reference (`reference.rs`), a fast CPU path (`cpu.rs`), CubeCL kernels (`gpu.rs`) and the cases that all of them
//! are checked on (`cases.rs`, run by [`verify`]).
//!
//! Shape letters, used in all documentation: B batch (sequences), T tokens of one sequence, N rows (all tokens of a
//! batch, or points), C channels, H heads, D head size or point dimension, V vocabulary, R rank. Matrices are dense and
//! row-major.
//!
//! A batch of sequences is stored without padding: its tokens stand one after the other as the N rows of a matrix and
//! [`Offsets`] says where each sequence begins. No operator ever computes on padding, so padding cannot change a result.
//!
//! Features: `wgpu` and `cuda` add GPU devices through CubeCL. With neither, CubeCL is not compiled.
//!
//! ```
//! use gelora_kernels::{DType, Tensor, ops};
//!
//! let x = Tensor::from_vec(vec![1.0, 2.0, 3.0, 4.0], [2, 2])?;
//! let w = Tensor::from_vec(vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0], [3, 2])?;
//! let w = ops::linear::Weight::new(w, DType::F32)?;
//! let y = ops::linear::forward(&x, &w, None)?; // y = x W^T
//! assert_eq!(y.to_vec()?, [1.0, 2.0, 3.0, 3.0, 4.0, 7.0]);
//! # Ok::<(), gelora_kernels::Error>(())
//! ```

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
mod offsets;
pub mod ops;
pub mod peak;
mod pending;
pub mod profile;
mod quantised;
pub mod random;
pub mod recycle;
mod tensor;
pub mod verify;

/// Compiling for CUDA on machines without a GPU.
#[cfg(feature = "cuda-compile")]
pub mod cuda_compile {
    pub use crate::gpu::cuda_compile::{ARCHITECTURES, Compiled, Resources, compiled};
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

/// Keeps compiled CUDA kernels in a folder, in one of its own for each build of this crate and each architecture, so that a
/// later run need not compile them again; None, the default, keeps none. Call it before a device is opened. A folder that
/// cannot be written to is not used.
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
#[cfg(feature = "wgpu")]
pub use device::WgpuDevice;
pub use device::{Device, DeviceInfo, DeviceKind};
pub use dtype::{DType, Rounding};
pub use error::{Error, Result};
pub use offsets::Offsets;
pub use pending::Pending;
pub use tensor::Tensor;
