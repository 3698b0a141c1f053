//! The tensor: shape, device and values, and how one is made.

mod convert;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
mod values;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::buffer::{Buffer, SharedBytes};
use crate::{DType, Device, Error, Result};

/// A dense row-major array of numbers on one device. Clones share their values; writing to a shared tensor copies it
/// first.
///
/// A tensor has at least one element. Making an empty tensor is an error.
///
/// ```
/// use gelora_kernels::{Device, Tensor};
///
/// let mut x = Tensor::from_vec(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
/// assert_eq!((x.shape(), x.rows(), x.cols()), (&[2, 3][..], 2, 3));
/// let original = x.clone();
/// x.as_mut_slice()?[0] = 9.0;
/// assert_eq!(original.to_vec()?[0], 1.0);
/// assert!(Tensor::zeros([0, 3], &Device::Cpu).is_err());
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    device: Device,
    storage: Storage,
}

/// The values of a tensor, by element type and place.
#[derive(Clone)]
enum Storage {
    F32(Arc<Buffer<f32>>),
    Bf16(Arc<Buffer<bf16>>),
    F16(Arc<Buffer<f16>>),
    F64(Arc<Buffer<f64>>),
    /// Bytes of a quantized type: whole blocks, row after row.
    Quantized(DType, SharedBytes, Range<usize>),
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
            Storage::Quantized(dtype, _, range) => write!(f, "{} bytes of {dtype}", range.len()),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(b) => b.fmt(f),
        }
    }
}

/// Checks that `len` values fill the shape, and that there is at least one.
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

/// The number of f32 values of a shape, checked before memory is allocated for them.
///
/// # Errors
/// If the shape has a zero, or more values than can be addressed.
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
    /// A CPU tensor of f32 values in row-major order.
    ///
    /// # Errors
    /// If the number of values is zero or not the product of the shape.
    pub fn from_vec(data: Vec<f32>, shape: impl Into<Vec<usize>>) -> Result<Self> {
        Self::on_cpu(shape.into(), data.len(), Storage::F32(Buffer::new(data)))
    }

    /// A CPU tensor of f64 values: points whose distances are needed in full precision.
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

    /// An f32 tensor of zeros. The size is checked before memory is allocated.
    ///
    /// # Errors
    /// If the shape has a zero or more values than can be addressed, or the device is out of memory.
    pub fn zeros(shape: impl Into<Vec<usize>>, device: &Device) -> Result<Self> {
        let shape = shape.into();
        let len = len_of(&shape)?;
        // `vec![0.0; len]` would abort the process if memory ran out.
        let needed = (len * size_of::<f32>()) as u64;
        let reserved = Vec::<f32>::new().try_reserve_exact(len);
        reserved.map_err(|_| Error::OutOfMemory { device: Device::Cpu.kind(), needed: Some(needed), in_use: None })?;
        Self::from_vec(vec![0.0; len], shape)?.to_device(device)
    }

    /// A CPU tensor whose values are the bytes `range` of `owner`, in this machine's byte order. The tensor shares the
    /// bytes, and copies them when it is first written to. It copies them at once if they are not aligned for their
    /// type.
    ///
    /// # Errors
    /// If the bytes lie outside the owner, or their number is zero or does not fit the shape and the type.
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
        let (size, in_range) = (owner.bytes().len(), owner.bytes().get(range.clone()).map(<[u8]>::len));
        let (values_per_block, bytes_per_block) = dtype.block();
        let Some(bytes) = in_range.filter(|bytes| bytes % bytes_per_block == 0) else {
            let message = format!("expected whole values of {dtype} among {size} bytes, got the bytes {range:?}");
            return Err(Error::Value { op: "tensor", message });
        };
        let storage = match dtype {
            DType::F32 => Storage::F32(Buffer::shared(owner, range)),
            DType::Bf16 => Storage::Bf16(Buffer::shared(owner, range)),
            DType::F16 => Storage::F16(Buffer::shared(owner, range)),
            DType::F64 => Storage::F64(Buffer::shared(owner, range)),
            _ => Storage::Quantized(dtype, owner, range),
        };
        let shape = shape.into();
        if let Some(cols) = shape.last().filter(|cols| !cols.is_multiple_of(values_per_block)) {
            let message = format!("rows of {dtype} are whole blocks of {values_per_block} values, got {cols}");
            return Err(Error::Value { op: "tensor", message });
        }
        Self::on_cpu(shape, bytes / bytes_per_block * values_per_block, storage)
    }

    /// An f32 output tensor of a CPU path, which must write all values. Until then the tensor holds zeros or values of
    /// a dropped tensor (see [`crate::recycle`]). In a guarded run it is filled with NaN and fenced with guard values.
    pub(crate) fn output(shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        let len = len_of(&shape)?;
        Self::on_cpu(shape, len, Storage::F32(Buffer::output(len)))
    }

    /// The shape, outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    #[allow(clippy::len_without_is_empty)] // a tensor is never empty
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The size of the last dimension; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all dimensions but the last.
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
            Storage::Quantized(dtype, ..) => *dtype,
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(buffer) => buffer.dtype,
        }
    }

    /// The device that holds the values.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same values under another shape with as many elements.
    ///
    /// # Errors
    /// If the number of elements differs.
    pub fn reshape(mut self, shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        check_len(&shape, self.len())?;
        self.shape = shape;
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
