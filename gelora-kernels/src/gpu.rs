//! Memory on a GPU through CubeCL, and what the launchers of every room share.
//!
//! `Gpu<R>` is an open device of one runtime. It appears behind [`Device`]; the runtime parameter goes no further than the
//! private launch functions of the rooms. Operations are queued: a launch returns at once, and an error of a kernel
//! surfaces where values are next read.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda-compile")]
pub mod cuda_compile;
mod failure;
pub mod math;
mod peak;
pub mod product;
pub mod quantised;
mod reading;
pub mod rows;
pub mod tile;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "cuda")]
pub use cuda::{list as list_cuda, open as open_cuda};
#[cfg(feature = "wgpu")]
pub use wgpu::{list as list_wgpu, open as open_wgpu};

pub use reading::{Coming, wait_for};

use std::fmt;
use std::sync::Arc;

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubecl::server::{Handle, IoError, ServerError};
use half::{bf16, f16};

use crate::device::on_device;
use crate::verify::{GUARD, GUARD_LEN, guards_are_on};
use crate::{DType, Device, DeviceKind, Error, Offsets, Result, Tensor};

/// Cubes in one dimension of a launch: what every backend takes.
pub const MAX_CUBES: u32 = 65_535;

/// Units of a cube that works on elements one by one.
pub const ELEMENTWISE_UNITS: u32 = 256;

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
            // No GPU stores another type: uploading it is an error.
            _ => {
                type $type = f32;
                $run
            }
        }
    };
}
pub(crate) use by_dtype;

/// A runtime that [`Device`] has a variant for.
pub trait Backend: Runtime {
    /// The kind of its devices.
    const KIND: DeviceKind;

    /// The device that this handle stands for.
    fn device(gpu: Gpu<Self>) -> Device;
}

/// An open GPU. Cheap to clone.
pub struct Gpu<R: Runtime> {
    /// A device is opened once and never closed; reads that are under way may then borrow its queue for as long as they like.
    client: &'static ComputeClient<R>,
    name: Arc<str>,
}

impl<R: Runtime> Clone for Gpu<R> {
    fn clone(&self) -> Self {
        Self { client: self.client, name: self.name.clone() }
    }
}

impl<R: Runtime> fmt::Debug for Gpu<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gpu").field(&self.name).finish()
    }
}

/// Memory of one tensor on a GPU, with `guard` f32 values before and behind it.
#[derive(Clone, Debug)]
pub struct GpuBuffer {
    /// Begins at the first element. Under guards it ends behind the last guard, so that a kernel which overruns its
    /// output writes there rather than being stopped by a bounds check.
    handle: Handle,
    len: usize,
    guard: usize,
    /// The element type.
    pub dtype: DType,
    /// One reference for each tensor that shares the memory.
    owners: Arc<()>,
}

impl GpuBuffer {
    /// The buffer as an argument of a launch: of words of 32 bits, if it is quantised.
    pub fn arg<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: the handle was allocated for as many elements of this type, and nothing shrinks it.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), quantised::words(self.dtype, self.len)) }
    }

    /// Whether another tensor has the same memory, so that it must be copied before it is written to.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.owners) > 1
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    fn new(handle: Handle, len: usize, guard: usize, dtype: DType) -> Self {
        Self { handle, len, guard, dtype, owners: Arc::new(()) }
    }

    fn size(&self) -> u64 {
        match self.dtype.is_quantised() {
            true => 4 * quantised::words(self.dtype, self.len) as u64,
            false => self.dtype.bytes(self.len) as u64,
        }
    }
}

#[cube(launch)]
fn copy_kernel(from: &Array<f32>, to: &mut Array<f32>) {
    if ABSOLUTE_POS < to.len() {
        to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
    }
}

impl<R: Backend> Gpu<R> {
    /// A device that was just opened.
    fn new(client: ComputeClient<R>, name: impl Into<Arc<str>>) -> Self {
        Self { client: Box::leak(Box::new(client)), name: name.into() }
    }

    /// The name the driver gives.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The queue that kernels are launched on.
    pub fn client(&self) -> &ComputeClient<R> {
        self.client
    }

    /// An f32 output, all of which a kernel writes. Under [`crate::verify::guarded`] it is filled with NaN and fenced.
    pub fn output(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
        let shape = shape.into();
        let len = shape.iter().product();
        self.check_len(len)?;
        let guard = if guards_are_on() { GUARD_LEN } else { 0 };
        let handle = if guard > 0 {
            let mut data = vec![GUARD; len + 2 * guard];
            data[guard..guard + len].fill(f32::NAN);
            self.client.create_from_slice(bytemuck::cast_slice(&data)).offset_start((4 * guard) as u64)
        } else {
            self.client.empty(4 * len)
        };
        Ok(Tensor::from_gpu(shape, R::device(self.clone()), GpuBuffer::new(handle, len, guard, DType::F32)))
    }

    /// A copy of an f32 tensor in memory of its own.
    fn copy(&self, from: &Tensor) -> Result<Tensor> {
        let to = self.output(from.shape())?;
        copy_kernel::launch::<R>(
            self.client(),
            elementwise(from.len()),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            from.gpu("copy")?.arg(),
            to.gpu("copy")?.arg(),
        );
        Ok(to)
    }

    /// Values that a kernel reads as u32, such as token ids.
    pub fn upload_u32(&self, values: &[u32]) -> GpuBuffer {
        let handle = self.client.create_from_slice(bytemuck::cast_slice(values));
        GpuBuffer::new(handle, values.len(), 0, DType::F32)
    }

    /// Indices into a tensor, which has at most 2^32 elements, as u32.
    pub fn upload_indices(&self, indices: &[usize]) -> GpuBuffer {
        let indices: Vec<u32> = indices.iter().map(|&i| i as u32).collect();
        self.upload_u32(&indices)
    }

    /// Values that are given with a call and are no tensor, such as targets.
    pub fn upload_f32(&self, values: &[f32]) -> GpuBuffer {
        let handle = self.client.create_from_slice(bytemuck::cast_slice(values));
        GpuBuffer::new(handle, values.len(), 0, DType::F32)
    }

    /// Where each sequence begins and, last, the number of rows, as u32; uploaded once for each batch.
    pub fn starts(&self, sequences: &Offsets) -> Result<GpuBuffer> {
        self.check_len(sequences.tokens())?;
        Ok(sequences.on_gpu(R::KIND, 0, || {
            let starts: Vec<u32> = sequences.starts().iter().map(|&start| start as u32).collect();
            self.upload_u32(&starts)
        }))
    }

    /// Waits for everything launched before.
    pub fn wait(&self) -> Result<()> {
        cubecl::future::block_on(self.client().sync()).map_err(|e| Self::error(&e))
    }

    /// Bytes held, in use or kept for later.
    pub fn memory_held(&self) -> Result<u64> {
        Ok(self.client.memory_usage().map_err(|e| Self::error(&e))?.bytes_reserved)
    }

    /// The longest [`Gpu::scratch`].
    pub fn max_scratch(&self) -> usize {
        (self.client.properties().memory.max_page_size / 4) as usize
    }

    /// Memory for `len` 32-bit values that stay inside an operator.
    pub fn scratch(&self, len: usize) -> Result<GpuBuffer> {
        self.check_len(len)?;
        Ok(GpuBuffer::new(self.client.empty(4 * len), len, 0, DType::F32))
    }

    /// Memory for `len` values of bf16 that stay inside an operator.
    pub fn scratch_bf16(&self, len: usize) -> Result<GpuBuffer> {
        self.check_len(len.div_ceil(2))?;
        Ok(GpuBuffer::new(self.client.empty(2 * len), len, 0, DType::Bf16))
    }

    /// The bytes of a buffer, after everything queued before.
    pub fn read_bytes(&self, buffer: &GpuBuffer) -> Result<Vec<u8>> {
        self.read_handle(self.handle_of(buffer), buffer.size())
    }

    fn read(&self, buffer: &GpuBuffer) -> Result<Vec<f32>> {
        if buffer.dtype.is_quantised() {
            return self.read_quantised(buffer);
        }
        let bytes = self.read_bytes(buffer)?;
        Ok(match buffer.dtype {
            DType::Bf16 => bytemuck::pod_collect_to_vec::<u8, bf16>(&bytes).into_iter().map(bf16::to_f32).collect(),
            DType::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(&bytes).into_iter().map(f16::to_f32).collect(),
            _ => bytemuck::pod_collect_to_vec(&bytes),
        })
    }

    fn guards(&self, buffer: &GpuBuffer) -> Result<[Vec<f32>; 2]> {
        if buffer.guard == 0 {
            return Ok([Vec::new(), Vec::new()]);
        }
        let mut whole = buffer.handle.clone();
        whole.offset_start = None;
        let size = whole.size();
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&self.read_handle(whole, size)?);
        let behind = buffer.guard + buffer.len;
        Ok([values[..buffer.guard].to_vec(), values[behind..behind + buffer.guard].to_vec()])
    }

    fn upload(&self, tensor: &Tensor) -> Result<Tensor> {
        let dtype = tensor.dtype();
        let unsupported = |what| Err(Error::Unsupported { op: "upload", device: R::KIND, what });
        // Asked, not tried: a kernel on a type that the device lacks can fail without a word.
        let has = |kind| self.client.properties().supports_type(ElemType::Float(kind));
        match dtype {
            DType::F64 => return unsupported("f64; for points, see pairwise::centred"),
            DType::Bf16 if !has(FloatKind::BF16) => return unsupported("bf16 storage"),
            DType::F16 if !has(FloatKind::F16) => return unsupported("f16 storage"),
            quantised if quantised.is_quantised() => return self.upload_quantised(tensor),
            _ => {}
        }
        self.check_len(tensor.len())?;
        let handle = self.client.create_from_slice(tensor.bytes()?);
        let buffer = GpuBuffer::new(handle, tensor.len(), 0, dtype);
        Ok(Tensor::from_gpu(tensor.shape().to_vec(), R::device(self.clone()), buffer))
    }

    /// Of values of four bytes or less.
    fn check_len(&self, len: usize) -> Result<()> {
        self.check_words(len, len)
    }

    /// Of so many values in so many words.
    fn check_words(&self, len: usize, words: usize) -> Result<()> {
        // Kernels index by u32, and a tile may reach past the last element.
        if len > u32::MAX as usize - (1 << 20) {
            return Err(Error::Unsupported {
                op: "tensor",
                device: R::KIND,
                what: "tensors of more than 2^32 elements",
            });
        }
        let needed = 4 * words as u64;
        // Beyond it CubeCL panics in a thread of its own, and the kernel silently does not run.
        if needed > self.client.properties().memory.max_page_size {
            return Err(Error::OutOfMemory { device: R::KIND, needed });
        }
        Ok(())
    }

    fn error(e: &ServerError) -> Error {
        let causes = match e {
            ServerError::ServerUnhealthy { errors, .. } => &errors[..],
            one => std::slice::from_ref(one),
        };
        for cause in causes {
            if let ServerError::Io(IoError::BufferTooBig { size, .. }) = cause {
                return Error::OutOfMemory { device: R::KIND, needed: *size };
            }
        }
        // What follows the first cause is a list of CubeCL's own functions.
        let text = causes.first().unwrap_or(e).to_string();
        let message = text.split("Backtrace").next().unwrap_or_default().trim_end().to_string();
        Error::Runtime { device: R::KIND, message }
    }
}

/// A CPU tensor's data on a device.
///
/// # Errors
/// If the device lacks the element type.
pub fn upload(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    on_device!(device, Ok(tensor.clone()), gpu => gpu.upload(tensor))
}

/// A copy of a tensor in memory of its own, on its device.
///
/// # Errors
/// If the device fails.
pub fn copy(tensor: &Tensor) -> Result<Tensor> {
    on_device!(tensor.device(), Ok(tensor.clone()), gpu => gpu.copy(tensor))
}

/// The values of a buffer, widened to f32.
///
/// # Errors
/// If a kernel before failed, or the device does.
pub fn read(device: &Device, buffer: &GpuBuffer) -> Result<Vec<f32>> {
    on_device!(device, Err(not_there()), gpu => gpu.read(buffer))
}

/// What now stands before and behind a buffer.
///
/// # Errors
/// As [`read`].
pub fn guards(device: &Device, buffer: &GpuBuffer) -> Result<[Vec<f32>; 2]> {
    on_device!(device, Err(not_there()), gpu => gpu.guards(buffer))
}

fn not_there() -> Error {
    Error::MixedDevices { op: "read", left: "cpu".into(), right: "gpu".into() }
}

/// The launch size for kernels with one unit an element, in cubes of [`ELEMENTWISE_UNITS`].
pub fn elementwise(len: usize) -> CubeCount {
    cubes(len.div_ceil(ELEMENTWISE_UNITS as usize))
}

/// The launch size for `n` cubes that find their work by their linear position; more than `n` may run.
pub fn cubes(n: usize) -> CubeCount {
    let n = n.max(1).min(u32::MAX as usize) as u32;
    let rows = n.div_ceil(MAX_CUBES);
    CubeCount::Static(n.div_ceil(rows), rows, 1)
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;

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
        let Ok(Device::Wgpu(gpu)) = Device::open(DeviceKind::Wgpu) else { return Ok(None) };
        let t = crate::verify::guarded(|| gpu.output([5]))?;
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
        let Ok(device) = Device::open(DeviceKind::Wgpu) else { return Ok(()) };
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
        let Ok(Device::Wgpu(gpu)) = Device::open(DeviceKind::Wgpu) else { return };
        let len = gpu.client().properties().memory.max_page_size as usize / 4 + 1;
        match gpu.output([len]).map(|_| ()) {
            Err(Error::OutOfMemory { needed, .. }) => assert_eq!(needed, 4 * len as u64),
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
