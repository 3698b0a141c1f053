//! Tensors moved to another device or converted to another element type.

use half::{bf16, f16};

use super::Tensor;
use crate::{DType, Device, Error, Result};

impl Tensor {
    /// The tensor on a device. Shares the values if they are on this device already.
    ///
    /// # Errors
    /// If the device fails or lacks the element type.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.moved(device, false)
    }

    /// As [`Tensor::to_device`], for a weight that stays on the device until the process ends. On a GPU such a tensor
    /// takes exactly the memory that it needs; memory of other tensors comes from pools, which round sizes up.
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
                host.upload(device, lifetime)
            }
        }
    }

    /// A CPU tensor in another element type, its values rounded to nearest.
    ///
    /// # Errors
    /// If the tensor is on another device, or the type is quantized.
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
}
