use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::buffer::{Buffer, SharedBytes};
use crate::cpu::{for_row_blocks, vectorised};
use crate::quantised::decode;
use crate::{DType, Device, Error, Result, verify};

/// A dense row-major array of numbers on one device. Clones share the data; writing to a shared tensor copies it first.
///
/// A tensor has at least one element: an empty one is an error where it would be made.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    device: Device,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    F32(Arc<Buffer<f32>>),
    Bf16(Arc<Buffer<bf16>>),
    F16(Arc<Buffer<f16>>),
    F64(Arc<Buffer<f64>>),
    /// Whole blocks of each row, in a quantised type.
    Quantised(DType, SharedBytes, Range<usize>),
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    Gpu(crate::gpu::GpuBuffer),
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Storage::F32(b) => b.fmt(f),
            Storage::Bf16(b) => b.fmt(f),
            Storage::F16(b) => b.fmt(f),
            Storage::F64(b) => b.fmt(f),
            Storage::Quantised(dtype, _, range) => write!(f, "{} bytes of {dtype}", range.len()),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(b) => b.fmt(f),
        }
    }
}

fn check_len(shape: &[usize], len: usize) -> Result<()> {
    let wanted = shape.iter().try_fold(1, |n: usize, d| n.checked_mul(*d)).unwrap_or(0);
    if wanted == 0 || wanted != len {
        return Err(Error::Shape {
            op: "tensor",
            name: "data",
            expected: format!("{wanted} values for the shape {shape:?}, at least one"),
            got: vec![len],
        });
    }
    Ok(())
}

/// The number of f32 values of a shape, before memory is asked for.
///
/// # Errors
/// If the shape has a zero, or so many values cannot be addressed.
fn len_of(shape: &[usize]) -> Result<usize> {
    let len = shape.iter().try_fold(1, |n: usize, d| n.checked_mul(*d));
    len.filter(|len| *len > 0 && *len <= isize::MAX as usize / size_of::<f32>()).ok_or_else(|| Error::Shape {
        op: "tensor",
        name: "data",
        expected: "at least one value, and no more than can be addressed".to_owned(),
        got: shape.to_vec(),
    })
}

impl Tensor {
    /// A CPU tensor of the values, row by row.
    ///
    /// # Errors
    /// If the number of values is not the product of the shape, or is zero.
    pub fn from_vec(data: Vec<f32>, shape: impl Into<Vec<usize>>) -> Result<Self> {
        Self::on_cpu(shape.into(), data.len(), Storage::F32(Buffer::new(data)))
    }

    /// A CPU tensor of f64 values: points for distances in full precision.
    ///
    /// # Errors
    /// As [`Tensor::from_vec`].
    pub fn from_f64(data: Vec<f64>, shape: impl Into<Vec<usize>>) -> Result<Self> {
        Self::on_cpu(shape.into(), data.len(), Storage::F64(Buffer::new(data)))
    }

    /// A CPU tensor of bf16 values.
    ///
    /// # Errors
    /// As [`Tensor::from_vec`].
    pub fn from_bf16(data: Vec<bf16>, shape: impl Into<Vec<usize>>) -> Result<Self> {
        Self::on_cpu(shape.into(), data.len(), Storage::Bf16(Buffer::new(data)))
    }

    /// A CPU tensor of f16 values.
    ///
    /// # Errors
    /// As [`Tensor::from_vec`].
    pub fn from_f16(data: Vec<f16>, shape: impl Into<Vec<usize>>) -> Result<Self> {
        Self::on_cpu(shape.into(), data.len(), Storage::F16(Buffer::new(data)))
    }

    fn on_cpu(shape: Vec<usize>, len: usize, storage: Storage) -> Result<Self> {
        check_len(&shape, len)?;
        Ok(Self { shape, device: Device::Cpu, storage })
    }

    /// An f32 tensor of zeros.
    ///
    /// # Errors
    /// If the shape has a zero or more values than can be addressed, or the device is out of memory.
    pub fn zeros(shape: impl Into<Vec<usize>>, device: &Device) -> Result<Self> {
        let shape = shape.into();
        let len = len_of(&shape)?;
        // A vector of zeros would end the process where memory does not suffice.
        let needed = (len * size_of::<f32>()) as u64;
        let reserved = Vec::<f32>::new().try_reserve_exact(len);
        reserved.map_err(|_| Error::OutOfMemory { device: Device::Cpu.kind(), needed: Some(needed), in_use: None })?;
        Self::from_vec(vec![0.0; len], shape)?.to_device(device)
    }

    /// A CPU tensor of values that lie in `owner`, at these bytes and in this machine's byte order. They are shared, not
    /// copied (unless they are not aligned for their type), and copied when the tensor is first written to.
    ///
    /// # Errors
    /// If the bytes lie outside the owner, or are not as many as the shape and the type ask for, or none.
    ///
    /// ```
    /// use gelora_kernels::{DType, Tensor};
    /// let file: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_ne_bytes()).collect();
    /// let t = Tensor::from_bytes(std::sync::Arc::new(file), 0..8, DType::F32, [2])?;
    /// assert_eq!(t.to_vec()?, [1.5, -2.0]);
    /// # Ok::<(), gelora_kernels::Error>(())
    /// ```
    pub fn from_bytes(
        owner: SharedBytes,
        range: Range<usize>,
        dtype: DType,
        shape: impl Into<Vec<usize>>,
    ) -> Result<Self> {
        let (size, there) = (owner.bytes().len(), owner.bytes().get(range.clone()).map(<[u8]>::len));
        let (of_block, size_of_block) = dtype.block();
        let Some(bytes) = there.filter(|bytes| bytes % size_of_block == 0) else {
            let message = format!("expected whole values of {dtype} among {size} bytes, got the bytes {range:?}");
            return Err(Error::Value { op: "tensor", message });
        };
        let storage = match dtype {
            DType::F32 => Storage::F32(Buffer::shared(owner, range)),
            DType::Bf16 => Storage::Bf16(Buffer::shared(owner, range)),
            DType::F16 => Storage::F16(Buffer::shared(owner, range)),
            DType::F64 => Storage::F64(Buffer::shared(owner, range)),
            _ => Storage::Quantised(dtype, owner, range),
        };
        let shape = shape.into();
        if let Some(cols) = shape.last().filter(|cols| !cols.is_multiple_of(of_block)) {
            let message = format!("rows of {dtype} are whole blocks of {of_block} values, got {cols}");
            return Err(Error::Value { op: "tensor", message });
        }
        Self::on_cpu(shape, bytes / size_of_block * of_block, storage)
    }

    /// An f32 output tensor for a CPU path, all of which the caller writes: what it holds until then are zeros or values of
    /// a dropped tensor (see [`crate::recycle`]). Under [`verify::guarded`] it is filled with NaN and fenced with guard
    /// values.
    pub(crate) fn output(shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        let len = len_of(&shape)?;
        Self::on_cpu(shape, len, Storage::F32(Buffer::output(len)))
    }

    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn from_gpu(shape: Vec<usize>, device: Device, buffer: crate::gpu::GpuBuffer) -> Self {
        Self { shape, device, storage: Storage::Gpu(buffer) }
    }

    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn gpu(&self, op: &'static str) -> Result<&crate::gpu::GpuBuffer> {
        match &self.storage {
            Storage::Gpu(buffer) => Ok(buffer),
            _ => Err(Error::MixedDevices { op, left: "cpu".into(), right: "gpu".into() }),
        }
    }

    /// The memory of a GPU tensor, to be written. Copies it first if another tensor shares it.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn gpu_mut(&mut self, op: &'static str) -> Result<&crate::gpu::GpuBuffer> {
        if self.gpu(op)?.is_shared() {
            *self = crate::gpu::copy(self)?;
        }
        self.gpu(op)
    }

    /// False if a value beside the tensor's memory was overwritten (see [`verify::guarded`]).
    pub(crate) fn guards_hold(&self) -> Result<bool> {
        let intact = |guard: &[f32]| guard.iter().all(|v| v.to_bits() == verify::GUARD.to_bits());
        match &self.storage {
            Storage::F32(b) => Ok(b.guards().into_iter().all(intact)),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(buffer) => Ok(crate::gpu::guards(&self.device, buffer)?.iter().all(|g| intact(g))),
            _ => Ok(true),
        }
    }

    /// The shape, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    #[allow(clippy::len_without_is_empty)] // a tensor is never empty
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The size of the last dimension (1 for a scalar).
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The number of rows when all but the last dimension are taken together.
    pub fn rows(&self) -> usize {
        self.len() / self.cols()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::F32(_) => DType::F32,
            Storage::Bf16(_) => DType::Bf16,
            Storage::F16(_) => DType::F16,
            Storage::F64(_) => DType::F64,
            Storage::Quantised(dtype, ..) => *dtype,
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(buffer) => buffer.dtype,
        }
    }

    /// Where the data is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same data under another shape of as many elements.
    ///
    /// # Errors
    /// If the number of elements differs.
    pub fn reshape(mut self, shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        check_len(&shape, self.len())?;
        self.shape = shape;
        Ok(self)
    }

    /// The values of an f32 CPU tensor.
    ///
    /// # Errors
    /// If the tensor is on another device or of another type.
    pub fn as_slice(&self) -> Result<&[f32]> {
        match &self.storage {
            Storage::F32(b) => Ok(b.as_slice()),
            _ => Err(self.not_f32_on_cpu()),
        }
    }

    /// The values of an f32 CPU tensor, to be written. Copies them first if another tensor shares them.
    ///
    /// # Errors
    /// If the tensor is on another device or of another type.
    pub fn as_mut_slice(&mut self) -> Result<&mut [f32]> {
        if !matches!(self.storage, Storage::F32(_)) {
            return Err(self.not_f32_on_cpu());
        }
        match &mut self.storage {
            Storage::F32(b) => Ok(Arc::make_mut(b).as_mut_slice()),
            _ => unreachable!("checked above"),
        }
    }

    /// Puts rows below those of an f32 CPU tensor (N, C).
    pub(crate) fn append(&mut self, rows: &[f32]) -> Result<()> {
        let more = rows.len() / self.cols();
        match &mut self.storage {
            Storage::F32(b) => Buffer::append(b, rows),
            _ => return Err(self.not_f32_on_cpu()),
        }
        self.shape[0] += more;
        Ok(())
    }

    fn not_f32_on_cpu(&self) -> Error {
        match self.device {
            Device::Cpu => Error::DType { op: "tensor", name: "data", expected: "f32", got: self.dtype() },
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => Error::Unsupported { op: "as_slice", device: self.device.kind(), what: "read the data with to_vec" },
        }
    }

    /// The values of a CPU tensor as f32: borrowed if they are f32, converted otherwise.
    ///
    /// # Errors
    /// If the tensor is on another device.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        Ok(match &self.storage {
            Storage::F32(b) => Cow::Borrowed(b.as_slice()),
            Storage::Bf16(_) | Storage::F16(_) => {
                let mut values = vec![0.0; self.len()];
                self.widen(0, &mut values)?;
                Cow::Owned(values)
            }
            Storage::F64(b) => Cow::Owned(b.as_slice().iter().map(|&v| v as f32).collect()),
            Storage::Quantised(..) => {
                let mut values = vec![0.0; self.len()];
                self.decode_rows(&mut values)?;
                Cow::Owned(values)
            }
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(_) => return Err(self.not_f32_on_cpu()),
        })
    }

    /// Says that the values will not be read for a while: if they are those of a mapped file, their memory is given back until
    /// then.
    pub(crate) fn set_aside(&self) {
        match &self.storage {
            Storage::F32(b) => b.set_aside(),
            Storage::Bf16(b) => b.set_aside(),
            Storage::F16(b) => b.set_aside(),
            _ => {}
        }
    }

    /// The values of a CPU tensor in half precision, or of whole blocks of a quantised one, from the one numbered `first` on, in f32.
    pub(crate) fn widen(&self, first: usize, out: &mut [f32]) -> Result<()> {
        match &self.storage {
            Storage::F16(b) => b.as_slice()[first..][..out.len()].convert_to_f32_slice(out),
            Storage::Bf16(b) => widen_bf16(&b.as_slice()[first..][..out.len()], out),
            Storage::Quantised(dtype, owner, range) => {
                let (begin, size) = (dtype.bytes(first), dtype.bytes(out.len()));
                decode(*dtype, &owner.bytes()[range.clone()][begin..][..size], out);
            }
            _ => return Err(self.not_f32_on_cpu()),
        }
        Ok(())
    }

    /// The values of a quantised tensor, in f32.
    pub(crate) fn decode_rows(&self, out: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        for_row_blocks(out, cols, |first, rows| self.widen(first * cols, rows).expect("whole rows"));
        Ok(())
    }

    /// The values of an f64 CPU tensor, or None if it is of another type.
    pub fn as_f64(&self) -> Option<&[f64]> {
        match &self.storage {
            Storage::F64(b) => Some(b.as_slice()),
            _ => None,
        }
    }

    /// A copy of the values as f32, from any device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        match &self.storage {
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(buffer) => crate::gpu::read(&self.device, buffer),
            _ => Ok(self.to_f32()?.into_owned()),
        }
    }

    /// A copy of the values as f64, from any device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_vec_f64(&self) -> Result<Vec<f64>> {
        match self.as_f64() {
            Some(values) => Ok(values.to_vec()),
            None => Ok(self.to_vec()?.into_iter().map(f64::from).collect()),
        }
    }

    /// The raw little-endian bytes of a CPU tensor in its own type.
    ///
    /// # Errors
    /// If the tensor is on another device.
    pub fn bytes(&self) -> Result<&[u8]> {
        Ok(match &self.storage {
            Storage::F32(b) => bytemuck::cast_slice(b.as_slice()),
            Storage::Bf16(b) => bytemuck::cast_slice(b.as_slice()),
            Storage::F16(b) => bytemuck::cast_slice(b.as_slice()),
            Storage::F64(b) => bytemuck::cast_slice(b.as_slice()),
            Storage::Quantised(_, owner, range) => &owner.bytes()[range.clone()],
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(_) => return Err(self.not_f32_on_cpu()),
        })
    }

    /// The tensor on a device; shares the data if it is there already.
    ///
    /// # Errors
    /// If the device fails or lacks the element type.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.moved(device, false)
    }

    /// As [`Tensor::to_device`], for a weight that stays there as long as the process: on a GPU it takes exactly the memory that
    /// it needs, where others come from pools that round sizes up.
    ///
    /// # Errors
    /// As [`Tensor::to_device`].
    pub fn to_device_for_good(&self, device: &Device) -> Result<Self> {
        self.moved(device, true)
    }

    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), allow(unused_variables))] // the CPU has no pools
    fn moved(&self, device: &Device, for_good: bool) -> Result<Self> {
        if self.device.same(device) {
            return Ok(self.clone());
        }
        match device {
            Device::Cpu => Tensor::from_vec(self.to_vec()?, self.shape.clone()),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => {
                use crate::gpu::Lifetime;
                let lifetime = if for_good { Lifetime::Process } else { Lifetime::Passing };
                let host = if self.device.same(&Device::Cpu) { self.clone() } else { self.to_device(&Device::Cpu)? };
                crate::gpu::upload(&host, device, lifetime)
            }
        }
    }

    /// The tensor with its values in another element type (rounded to nearest), on the CPU.
    ///
    /// # Errors
    /// If the tensor is on another device, or the type is quantised.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        let (values, shape) = (self.to_f32()?, self.shape.clone());
        match dtype {
            DType::F32 => Tensor::from_vec(values.into_owned(), shape),
            DType::Bf16 => Tensor::from_bf16(values.iter().map(|&v| bf16::from_f32(v)).collect(), shape),
            DType::F16 => Tensor::from_f16(values.iter().map(|&v| f16::from_f32(v)).collect(), shape),
            DType::F64 => Tensor::from_f64(values.iter().map(|&v| f64::from(v)).collect(), shape),
            other => Err(Error::DType { op: "to_dtype", name: "type", expected: "f32, bf16, f16 or f64", got: other }),
        }
    }

    /// The one value of a tensor with one element.
    ///
    /// # Errors
    /// If it has more, or the device fails.
    pub fn item(&self) -> Result<f32> {
        match self.to_vec()?[..] {
            [value] => Ok(value),
            _ => Err(Error::Shape {
                op: "item",
                name: "tensor",
                expected: "one element".into(),
                got: self.shape.clone(),
            }),
        }
    }
}

vectorised! {
    fn widen_bf16(values: &[bf16], out: &mut [f32]) {
        for (out, v) in out.iter_mut().zip(values) {
            *out = f32::from_bits(u32::from(v.to_bits()) << 16);
        }
    }
}

#[cfg(test)]
mod tests;
