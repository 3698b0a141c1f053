//! GPUs through CubeCL: an open device, and code shared by the launchers of all operators.
//!
//! `Gpu<R>` is an open device of one runtime R. [`Device`] hides it; the runtime parameter appears only in private
//! launch functions. Operations are queued: a launch returns at once, and the error of a kernel appears when values are
//! next read.

mod buffer;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda-compile")]
pub(crate) mod cuda_compile;
mod failure;
mod inject;
pub(crate) mod mask;
pub(crate) mod math;
mod memory;
mod peak;
pub(crate) mod plan;
pub(crate) mod product;
pub(crate) mod quantized;
mod reading;
pub(crate) mod rows;
mod settings;
pub(crate) mod tally;
pub(crate) mod tile;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "cuda")]
pub(crate) use cuda::{list as list_cuda, open as open_cuda};
#[cfg(feature = "wgpu")]
pub(crate) use wgpu::{list as list_wgpu, open as open_wgpu};

pub(crate) use buffer::GpuBuffer;
#[cfg(feature = "cuda-compile")]
pub use failure::forget as forget_failures;
#[cfg(all(any(test, feature = "verify"), not(feature = "cuda-compile")))]
pub(crate) use failure::forget as forget_failures;
pub(crate) use memory::Lifetime;
pub(crate) use reading::{Coming, wait_for};
pub(crate) use settings::keep_compiled_kernels;

use std::fmt;
use std::sync::Arc;

use cubecl::prelude::*;
use cubecl::server::{IoError, ServerError};
use half::{bf16, f16};

use self::failure::Failure;
use self::tally::Tally;
use crate::{DType, Device, DeviceKind, Error, Result};

/// Four adjacent f32 values.
pub(crate) type Four = Vector<f32, Const<4>>;

/// The most cubes in one dimension of a launch on any backend.
pub(crate) const MAX_CUBES: u32 = 65_535;

/// Units of a cube in kernels with one unit for each element.
pub(crate) const ELEMENTWISE_UNITS: u32 = 256;

/// Runs an expression with `$type` bound to the type in which a GPU stores values of `$dtype`.
macro_rules! by_dtype {
    ($dtype:expr, $type:ident => $run:expr) => {
        match $dtype {
            $crate::DType::Bf16 => {
                type $type = half::bf16;
                $run
            }
            $crate::DType::F16 => {
                type $type = half::f16;
                $run
            }
            // No GPU stores another type; uploading it is an error.
            _ => {
                type $type = f32;
                $run
            }
        }
    };
}
pub(crate) use by_dtype;

/// A runtime that [`Device`] has a variant for.
pub(crate) trait Backend: Runtime {
    /// The kind of its devices.
    const KIND: DeviceKind;

    /// The [`Device`] of an open GPU.
    fn device(gpu: Gpu<Self>) -> Device;
}

/// An open GPU. Clones are cheap and mean the same device.
pub(crate) struct Gpu<R: Runtime> {
    /// Never freed: a device is opened once and never closed, so pending reads may borrow its queue.
    client: &'static ComputeClient<R>,
    name: Arc<str>,
    tally: &'static Tally,
}

impl<R: Runtime> Clone for Gpu<R> {
    fn clone(&self) -> Self {
        Self { client: self.client, name: self.name.clone(), tally: self.tally }
    }
}

impl<R: Runtime> fmt::Debug for Gpu<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gpu").field(&self.name).finish()
    }
}

/// to = from.
#[cube(launch)]
fn copy_kernel(from: &Array<f32>, to: &mut Array<f32>) {
    if ABSOLUTE_POS < to.len() {
        to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
    }
}

impl<R: Backend> Gpu<R> {
    /// The handle of a device that was just opened.
    fn new(client: ComputeClient<R>, name: impl Into<Arc<str>>) -> Self {
        Self::with_tally(client, name, Tally::new(R::KIND, false))
    }

    /// The handle of a device that was just opened, with a count of its own.
    fn with_tally(client: ComputeClient<R>, name: impl Into<Arc<str>>, tally: &'static Tally) -> Self {
        Self { client: Box::leak(Box::new(client)), name: name.into(), tally }
    }

    /// The count of live bytes.
    pub(crate) fn tally(&self) -> &'static Tally {
        self.tally
    }

    /// The name that the driver gives.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The queue that kernels are launched on.
    pub(crate) fn client(&self) -> &ComputeClient<R> {
        self.client
    }

    /// A copy of the first `len` f32 values of a buffer, in new memory.
    pub(crate) fn copy(&self, from: &GpuBuffer, len: usize) -> Result<GpuBuffer> {
        let to = self.output_buffer(len)?;
        copy_kernel::launch::<R>(
            self.client(),
            elementwise(len),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            from.arg(),
            to.arg(),
        );
        Ok(to)
    }

    /// Waits until all launched work is done.
    pub(crate) fn wait(&self) -> Result<()> {
        self.ask(|client| cubecl::future::block_on(client.sync()))
    }

    /// Runs a query in CubeCL's thread. If the device has failed, the failure is the answer, whatever the thread
    /// returns.
    fn ask<T>(&self, question: impl FnOnce(&'static ComputeClient<R>) -> Result<T, ServerError>) -> Result<T> {
        let answer = failure::answer(|| question(self.client));
        match self.failure() {
            Some(error) => Err(error),
            None => answer.ok_or_else(|| reading::silent(R::KIND))?.map_err(|e| self.error(&e)),
        }
    }

    /// The error of the device's first failure, if it has failed.
    fn failure(&self) -> Option<Error> {
        Some(match failure::of(R::KIND)? {
            Failure::OutOfMemory { needed, in_use } => {
                Error::OutOfMemory { device: R::KIND, needed, in_use: in_use.or_else(|| Some(self.tally.live())) }
            }
            Failure::Other(message) => Error::Runtime { device: R::KIND, message },
        })
    }

    fn out_of_memory(&self, needed: Option<u64>) -> Error {
        Error::OutOfMemory { device: R::KIND, needed, in_use: Some(self.tally.live()) }
    }

    /// The bytes of a buffer, once all work queued before is done.
    pub(crate) fn read_bytes(&self, buffer: &GpuBuffer) -> Result<Vec<u8>> {
        self.read_handle(self.handle_of(buffer), buffer.size())
    }

    /// The values of a buffer, widened to f32, after everything queued before.
    pub(crate) fn read(&self, buffer: &GpuBuffer) -> Result<Vec<f32>> {
        if buffer.dtype.is_quantized() {
            return self.read_quantized(buffer);
        }
        let bytes = self.read_bytes(buffer)?;
        Ok(match buffer.dtype {
            DType::Bf16 => bytemuck::pod_collect_to_vec::<u8, bf16>(&bytes).into_iter().map(bf16::to_f32).collect(),
            DType::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(&bytes).into_iter().map(f16::to_f32).collect(),
            _ => bytemuck::pod_collect_to_vec(&bytes),
        })
    }

    /// The guard values before and behind a buffer; none if it is not guarded.
    #[cfg(any(test, feature = "verify"))]
    pub(crate) fn guards(&self, buffer: &GpuBuffer) -> Result<[Vec<f32>; 2]> {
        if buffer.guard == 0 {
            return Ok([Vec::new(), Vec::new()]);
        }
        let mut whole = buffer.handle.clone();
        whole.offset_start = None;
        let size = whole.size();
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&self.read_handle(whole, size)?);
        let behind = buffer.guard + buffer.len();
        Ok([values[..buffer.guard].to_vec(), values[behind..behind + buffer.guard].to_vec()])
    }

    /// The error of this crate for an error of CubeCL.
    fn error(&self, e: &ServerError) -> Error {
        let causes = match e {
            ServerError::ServerUnhealthy { errors, .. } => &errors[..],
            one => std::slice::from_ref(one),
        };
        for cause in causes {
            if let ServerError::Io(IoError::BufferTooBig { size, .. }) = cause {
                return self.out_of_memory(Some(*size));
            }
        }
        // The rest of the message is a list of CubeCL's own functions.
        let message = failure::one_line(&causes.first().unwrap_or(e).to_string());
        Error::Runtime { device: R::KIND, message }
    }
}

/// The number of cubes for `len` elements, one unit each, in cubes of [`ELEMENTWISE_UNITS`].
pub(crate) fn elementwise(len: usize) -> CubeCount {
    cubes(len.div_ceil(ELEMENTWISE_UNITS as usize))
}

/// At least `n` cubes, in two dimensions, for kernels that find their work by their linear position.
pub(crate) fn cubes(n: usize) -> CubeCount {
    let n = n.max(1).min(u32::MAX as usize) as u32;
    let rows = n.div_ceil(MAX_CUBES);
    CubeCount::Static(n.div_ceil(rows), rows, 1)
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::device::WgpuDevice;

    /// Writes `out[at]` without asking whether it is there.
    #[cube(launch)]
    fn write_at(out: &mut Array<f32>, at: u32) {
        if ABSOLUTE_POS == 0 {
            for i in 0..out.len() {
                out[i] = 0.0;
            }
            out[at as usize] = 1.0;
        }
    }

    fn guards_hold_after_writing_at(at: u32) -> Result<Option<bool>> {
        let Some(Device::Wgpu(WgpuDevice(gpu))) = crate::verify::wgpu() else { return Ok(None) };
        let t = crate::guard::guarded(|| gpu.output([5]))?;
        write_at::launch(gpu.client(), cubes(1), CubeDim::new_1d(32), t.gpu("test")?.arg(), at);
        assert_eq!(t.to_vec()?.len(), 5);
        t.guards_hold().map(Some)
    }

    #[test]
    fn a_stray_write_is_noticed() -> Result<()> {
        assert_ne!(guards_hold_after_writing_at(4)?, Some(false));
        assert_ne!(guards_hold_after_writing_at(5)?, Some(true));
        assert_ne!(guards_hold_after_writing_at(260)?, Some(true));
        Ok(())
    }

    #[test]
    fn tensors_make_the_round_trip() -> Result<()> {
        let Some(device) = crate::verify::wgpu() else { return Ok(()) };
        for len in [1, 3, 64, 257] {
            let t = crate::verify::random([len], 1);
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                let t = t.to_dtype(dtype)?;
                match t.to_device(&device) {
                    Ok(there) => {
                        assert_eq!((there.dtype(), there.shape()), (dtype, t.shape()));
                        assert_eq!(there.to_device(&Device::Cpu)?.to_vec()?, t.to_vec()?);
                    }
                    Err(e) => assert!(matches!(e, Error::Unsupported { .. }) && dtype != DType::F32, "{e}"),
                }
            }
        }
        Ok(())
    }

    #[test]
    fn more_than_the_device_can_hold_is_an_error_that_says_how_much() {
        let Some(Device::Wgpu(WgpuDevice(gpu))) = crate::verify::wgpu() else { return };
        let len = gpu.client().properties().memory.max_page_size as usize / 4 + 1;
        match gpu.output([len]).map(|_| ()) {
            Err(Error::TooLarge { needed, most, .. }) => {
                assert_eq!((needed, most), (4 * len as u64, 4 * (len as u64 - 1)))
            }
            Err(Error::Unsupported { .. }) => assert!(len > 1 << 31), // beyond what kernels can index
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn launches_are_folded_into_two_dimensions() {
        assert!(matches!(cubes(7), CubeCount::Static(7, 1, 1)));
        assert!(matches!(cubes(65_536), CubeCount::Static(32_768, 2, 1)));
        let CubeCount::Static(x, y, _) = cubes(1_000_003) else { panic!("static") };
        assert!(x <= MAX_CUBES && x * y >= 1_000_003 && x * y < 1_000_003 + y);
    }
}
