//! Tensors on a GPU: between host and device, and as outputs of kernels.

use super::{Storage, Tensor};
use crate::device::on_device;
use crate::gpu::{Backend, Coming, Gpu, GpuBuffer, Lifetime};
use crate::{Device, Error, Result};

impl Tensor {
    /// The tensor whose values are in `buffer`.
    pub(crate) fn from_gpu(shape: Vec<usize>, device: Device, buffer: GpuBuffer) -> Self {
        Self { shape, device, storage: Storage::Gpu(buffer) }
    }

    /// The memory of a GPU tensor, to be read.
    pub(crate) fn gpu(&self, op: &'static str) -> Result<&GpuBuffer> {
        match &self.storage {
            Storage::Gpu(buffer) => Ok(buffer),
            _ => Err(Error::MixedDevices { op, left: "cpu".into(), right: "gpu".into() }),
        }
    }

    /// The memory of a GPU tensor, to be written. Copies the memory first if another tensor shares it.
    pub(crate) fn gpu_mut(&mut self, op: &'static str) -> Result<&GpuBuffer> {
        if self.gpu(op)?.is_shared() {
            let copied =
                on_device!(&self.device, return Err(not_on_gpu()), gpu => gpu.copy(self.gpu(op)?, self.len()))?;
            self.storage = Storage::Gpu(copied);
        }
        self.gpu(op)
    }

    /// A copy of a CPU tensor on a GPU.
    pub(super) fn upload(&self, device: &Device, lifetime: Lifetime) -> Result<Self> {
        on_device!(device, Ok(self.clone()), gpu => {
            let buffer = gpu.upload(self.dtype(), self.len(), self.bytes()?, lifetime)?;
            if self.is_mapped() {
                buffer.is_mapped();
            }
            Ok(Self::from_gpu(self.shape.clone(), device.clone(), buffer))
        })
    }

    /// The values of a buffer on this tensor's device, widened to f32.
    pub(super) fn read_buffer(&self, buffer: &GpuBuffer) -> Result<Vec<f32>> {
        on_device!(&self.device, Err(not_on_gpu()), gpu => gpu.read(buffer))
    }

    /// The guard values before and behind a buffer on this tensor's device.
    #[cfg(any(test, feature = "verify"))]
    pub(super) fn read_guards(&self, buffer: &GpuBuffer) -> Result<[Vec<f32>; 2]> {
        on_device!(&self.device, Err(not_on_gpu()), gpu => gpu.guards(buffer))
    }
}

impl<R: Backend> Gpu<R> {
    /// An f32 output tensor, all of which a kernel must write. In a guarded run the tensor is filled with NaN and
    /// fenced with guard values.
    pub(crate) fn output(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
        let shape = shape.into();
        let buffer = self.output_buffer(shape.iter().product())?;
        Ok(Tensor::from_gpu(shape, R::device(self.clone()), buffer))
    }

    /// Queues a copy of f32 tensors to the host.
    pub(crate) fn begin_to_read(&self, tensors: &[&Tensor]) -> Result<Coming> {
        self.begin_to_read_buffers(tensors.iter().map(|tensor| tensor.gpu("read")).collect::<Result<_>>()?)
    }
}

fn not_on_gpu() -> Error {
    Error::MixedDevices { op: "read", left: "cpu".into(), right: "gpu".into() }
}
