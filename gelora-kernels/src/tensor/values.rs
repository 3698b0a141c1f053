//! The values of a tensor: borrowed, copied or widened.

use std::borrow::Cow;
use std::sync::Arc;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use super::{Storage, Tensor};
use crate::buffer::Buffer;
use crate::cpu::{for_row_blocks, vectorized};
#[cfg(any(test, feature = "verify"))]
use crate::guard;
use crate::quantized::decode;
use crate::{Device, Error, Result};

impl Tensor {
    /// The values of an f32 CPU tensor.
    ///
    /// # Errors
    /// If the tensor is on another device or has another type.
    pub fn as_slice(&self) -> Result<&[f32]> {
        match &self.storage {
            Storage::F32(b) => Ok(b.as_slice()),
            _ => Err(self.not_f32_on_cpu()),
        }
    }

    /// The values of an f32 CPU tensor, to be written. Copies them first if another tensor shares them.
    ///
    /// # Errors
    /// If the tensor is on another device or has another type.
    pub fn as_mut_slice(&mut self) -> Result<&mut [f32]> {
        if !matches!(self.storage, Storage::F32(_)) {
            return Err(self.not_f32_on_cpu());
        }
        match &mut self.storage {
            Storage::F32(b) => Ok(Arc::make_mut(b).as_mut_slice()),
            _ => unreachable!("checked above"),
        }
    }

    /// The values of an f64 CPU tensor; None for other tensors.
    pub fn as_f64(&self) -> Option<&[f64]> {
        match &self.storage {
            Storage::F64(b) => Some(b.as_slice()),
            _ => None,
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
            Storage::Quantized(..) => {
                let mut values = vec![0.0; self.len()];
                self.decode_rows(&mut values)?;
                Cow::Owned(values)
            }
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(_) => return Err(self.not_f32_on_cpu()),
        })
    }

    /// A copy of the values as f32, from any device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        match &self.storage {
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(buffer) => self.read_buffer(buffer),
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

    /// The value of a tensor with one element.
    ///
    /// # Errors
    /// If the tensor has more than one element, or the device fails.
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

    /// The raw bytes of a CPU tensor in its own type, in this machine's byte order.
    ///
    /// # Errors
    /// If the tensor is on another device.
    pub fn bytes(&self) -> Result<&[u8]> {
        Ok(match &self.storage {
            Storage::F32(b) => bytemuck::cast_slice(b.as_slice()),
            Storage::Bf16(b) => bytemuck::cast_slice(b.as_slice()),
            Storage::F16(b) => bytemuck::cast_slice(b.as_slice()),
            Storage::F64(b) => bytemuck::cast_slice(b.as_slice()),
            Storage::Quantized(_, owner, range) => &owner.bytes()[range.clone()],
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(_) => return Err(self.not_f32_on_cpu()),
        })
    }

    /// Appends rows to an f32 CPU tensor (N, C).
    pub(crate) fn append(&mut self, rows: &[f32]) -> Result<()> {
        let more = rows.len() / self.cols();
        match &mut self.storage {
            Storage::F32(b) => Buffer::append(b, rows),
            _ => return Err(self.not_f32_on_cpu()),
        }
        self.shape[0] += more;
        Ok(())
    }

    /// Announces that the values will not be read for a while. Values in a mapped file then give their memory back.
    pub(crate) fn set_aside(&self) {
        match &self.storage {
            Storage::F32(b) => b.set_aside(),
            Storage::Bf16(b) => b.set_aside(),
            Storage::F16(b) => b.set_aside(),
            _ => {}
        }
    }

    /// Whether the values are those of an owner that may give their memory back.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn is_mapped(&self) -> bool {
        match &self.storage {
            Storage::F32(b) => b.is_mapped(),
            Storage::Bf16(b) => b.is_mapped(),
            Storage::F16(b) => b.is_mapped(),
            _ => false,
        }
    }

    /// Writes `out.len()` values as f32, from the value with index `first` on: values of a CPU tensor in half
    /// precision, or whole blocks of a quantized one.
    pub(crate) fn widen(&self, first: usize, out: &mut [f32]) -> Result<()> {
        match &self.storage {
            Storage::F16(b) => b.as_slice()[first..][..out.len()].convert_to_f32_slice(out),
            Storage::Bf16(b) => widen_bf16(&b.as_slice()[first..][..out.len()], out),
            Storage::Quantized(dtype, owner, range) => {
                let (begin, size) = (dtype.bytes(first), dtype.bytes(out.len()));
                decode(*dtype, &owner.bytes()[range.clone()][begin..][..size], out);
            }
            _ => return Err(self.not_f32_on_cpu()),
        }
        Ok(())
    }

    /// Writes all values of a quantized CPU tensor as f32.
    pub(crate) fn decode_rows(&self, out: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        for_row_blocks(out, cols, |first, rows| self.widen(first * cols, rows).expect("whole rows"));
        Ok(())
    }

    /// False if a guard value beside the tensor's memory was overwritten; see [`crate::verify::guarded`].
    #[cfg(any(test, feature = "verify"))]
    pub(crate) fn guards_hold(&self) -> Result<bool> {
        let intact = |values: &[f32]| values.iter().all(|v| v.to_bits() == guard::GUARD.to_bits());
        match &self.storage {
            Storage::F32(b) => Ok(b.guards().into_iter().all(intact)),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Storage::Gpu(buffer) => Ok(self.read_guards(buffer)?.iter().all(|g| intact(g))),
            _ => Ok(true),
        }
    }

    /// The error of a method for f32 CPU tensors on any other tensor.
    pub(super) fn not_f32_on_cpu(&self) -> Error {
        match self.device {
            Device::Cpu => Error::DType { op: "tensor", name: "data", expected: "f32", got: self.dtype() },
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => Error::Unsupported { op: "as_slice", device: self.device.kind(), what: "read the data with to_vec" },
        }
    }
}

vectorized! {
    /// Widens bf16 values to f32.
    fn widen_bf16(values: &[bf16], out: &mut [f32]) {
        for (out, v) in out.iter_mut().zip(values) {
            *out = f32::from_bits(u32::from(v.to_bits()) << 16);
        }
    }
}
