//! Memory of a device: outputs, scratch memory of operators, and uploads from the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubecl::server::{Handle, IoError};
use cubecl::stream_id::StreamId;

use super::inject::{self, Fault};
use super::tally::Purpose;
use super::{Backend, ELEMENTWISE_UNITS, Gpu, GpuBuffer, copy_kernel, elementwise};
use crate::guard::{GUARD, GUARD_LEN, guards_are_on};
use crate::{DType, DeviceKind, Error, Result};

/// The most bytes of pending uploads. CubeCL keeps a copy of every upload until a kernel is launched.
const IN_FLIGHT: u64 = 256 << 20;

/// Weights of at least this many bytes get an allocation of their own. Smaller weights share pages, of which they waste
/// little.
const OWN_ALLOCATION: usize = 1 << 20;

/// How long a tensor stays on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// For a while: the memory comes from CubeCL's pools, which round sizes up.
    Passing,
    /// Until the process ends: the memory has exactly the size of the tensor.
    Process,
}

/// Bytes uploaded since the last flush.
static UPLOADED: AtomicU64 = AtomicU64::new(0);

impl<R: Backend> Gpu<R> {
    /// Memory for `len` f32 values, all of which a kernel must write. In a guarded run the memory is filled with NaN
    /// and fenced with guard values.
    pub(crate) fn output_buffer(&self, len: usize) -> Result<GpuBuffer> {
        self.check_len(len)?;
        let guard = if guards_are_on() { GUARD_LEN } else { 0 };
        let handle = if guard > 0 {
            let mut data = vec![GUARD; len + 2 * guard];
            data[guard..guard + len].fill(f32::NAN);
            self.client.create_from_slice(bytemuck::cast_slice(&data)).offset_start((4 * guard) as u64)
        } else {
            match inject::next() {
                None => self.client.empty(4 * len),
                Some(fault) => self.fail(fault, 4 * len as u64),
            }
        };
        Ok(self.buffer(handle, len, guard, DType::F32, Purpose::Output))
    }

    /// The buffer of memory that was just allocated.
    pub(super) fn buffer(&self, handle: Handle, len: usize, guard: usize, dtype: DType, purpose: Purpose) -> GpuBuffer {
        let alive = Arc::new(self.tally().buffer(handle.size_in_used(), purpose));
        if R::KIND == DeviceKind::Plan {
            // The thread of the plan frees and allocates in the order of the program, so that plans are reproducible.
            let _: Result<(), _> = self.client.exclusive(|| ());
        }
        GpuBuffer::new(handle, len, guard, dtype, alive)
    }

    /// The memory of an output after an injected fault in CubeCL's thread. It was never allocated.
    fn fail(&self, fault: Fault, size: u64) -> Handle {
        let failed = self.client.exclusive(move || match fault {
            Fault::OutOfMemory => {
                let too_big = IoError::BufferTooBig { size, backtrace: Default::default() };
                std::panic::panic_any(format!("called `Result::unwrap()` on an `Err` value: {too_big:?}"));
            }
            Fault::Panic => std::panic::panic_any(format!("injected by {}", inject::VARIABLE)),
        });
        let _: Result<(), _> = failed; // that it failed is known from the hook
        match fault {
            Fault::OutOfMemory => Handle::new(StreamId::current(), size),
            Fault::Panic => self.client.empty(size as usize),
        }
    }

    /// Scratch memory of an operator, for `len` 32-bit values.
    pub(crate) fn scratch(&self, len: usize) -> Result<GpuBuffer> {
        self.check_len(len)?;
        Ok(self.buffer(self.client.empty(4 * len), len, 0, DType::F32, Purpose::Scratch))
    }

    /// Scratch memory of an operator, for `len` values of bf16.
    pub(crate) fn scratch_bf16(&self, len: usize) -> Result<GpuBuffer> {
        self.check_len(len.div_ceil(2))?;
        Ok(self.buffer(self.client.empty(2 * len), len, 0, DType::Bf16, Purpose::Scratch))
    }

    /// The most values of one [`Gpu::scratch`].
    pub(crate) fn max_scratch(&self) -> usize {
        (self.client.properties().memory.max_page_size / 4) as usize
    }

    /// Uploads values that a kernel reads as u32, such as token ids.
    pub(crate) fn upload_u32(&self, values: &[u32]) -> GpuBuffer {
        let handle = self.client.create_from_slice(bytemuck::cast_slice(values));
        self.buffer(handle, values.len(), 0, DType::F32, Purpose::Upload)
    }

    /// Uploads indices into a tensor as u32; a tensor has at most 2^32 elements.
    pub(crate) fn upload_indices(&self, indices: &[usize]) -> GpuBuffer {
        let indices: Vec<u32> = indices.iter().map(|&i| i as u32).collect();
        self.upload_u32(&indices)
    }

    /// Uploads f32 values that are an argument of a call and not a tensor, such as targets.
    pub(crate) fn upload_f32(&self, values: &[f32]) -> GpuBuffer {
        let handle = self.client.create_from_slice(bytemuck::cast_slice(values));
        self.buffer(handle, values.len(), 0, DType::F32, Purpose::Upload)
    }

    /// Memory with the values of a CPU tensor: `len` values of a type, from their bytes.
    pub(crate) fn upload(&self, dtype: DType, len: usize, bytes: &[u8], lifetime: Lifetime) -> Result<GpuBuffer> {
        let unsupported = |what| Err(Error::Unsupported { op: "upload", device: R::KIND, what });
        // A kernel on a type that the device lacks can fail silently, so the type is checked here.
        let has = |kind| self.client.properties().supports_type(ElemType::Float(kind));
        match dtype {
            DType::F64 => return unsupported("f64; for points, see pairwise::centered"),
            DType::Bf16 if !has(FloatKind::BF16) => return unsupported("bf16 storage"),
            DType::F16 if !has(FloatKind::F16) => return unsupported("f16 storage"),
            quantized if quantized.is_quantized() => return self.upload_quantized(dtype, len, bytes, lifetime),
            _ => {}
        }
        self.check_len(len)?;
        Ok(self.buffer(self.take(bytes, lifetime)?, len, 0, dtype, Purpose::Upload))
    }

    /// Uploads the bytes of a tensor.
    pub(super) fn take(&self, bytes: &[u8], lifetime: Lifetime) -> Result<Handle> {
        self.take_sized(bytes.len(), lifetime, || self.client.create_from_slice(bytes))
    }

    /// Uploads `size` bytes with `create`. A plan allocates them only.
    pub(super) fn take_sized(
        &self,
        size: usize,
        lifetime: Lifetime,
        create: impl Fn() -> Handle + Sync,
    ) -> Result<Handle> {
        let create = || if R::KIND == DeviceKind::Plan { self.client.empty(size) } else { create() };
        let handle = if lifetime == Lifetime::Process && size >= OWN_ALLOCATION {
            self.client.memory_persistent_allocation((), |()| create()).map_err(|e| self.error(&e))?
        } else {
            create()
        };
        let size = size as u64;
        if UPLOADED.fetch_add(size, Ordering::Relaxed) + size >= IN_FLIGHT {
            UPLOADED.store(0, Ordering::Relaxed);
            self.flush()?;
        }
        Ok(handle)
    }

    /// Submits all queued work to the driver.
    fn flush(&self) -> Result<()> {
        // wgpu does not submit a queue of uploads alone, so a small kernel is launched.
        let [from, to] = [self.scratch(1)?, self.scratch(1)?];
        let units = CubeDim::new_1d(ELEMENTWISE_UNITS);
        copy_kernel::launch::<R>(self.client(), elementwise(1), units, from.arg(), to.arg());
        self.ask(|client| client.flush())
    }

    /// Bytes of live tensors and buffers, without memory that is kept for later.
    pub(crate) fn memory_in_use(&self) -> Result<u64> {
        Ok(self.ask(|client| client.memory_usage())?.bytes_in_use)
    }

    /// Bytes of the device's memory that CubeCL holds for this thread, for buffers that live and for later ones.
    pub(crate) fn memory_reserved(&self) -> Result<u64> {
        Ok(self.ask(|client| client.memory_usage())?.bytes_reserved)
    }

    /// Checks the size of a buffer of `len` values of four bytes or less.
    pub(crate) fn check_len(&self, len: usize) -> Result<()> {
        self.check_words(len, len)
    }

    /// Checks the size of a buffer of `len` values in `words` 32-bit words.
    pub(super) fn check_words(&self, len: usize, words: usize) -> Result<()> {
        // Kernels index by u32, and a tile may reach beyond the last element.
        if len > u32::MAX as usize - (1 << 20) {
            return Err(Error::Unsupported {
                op: "tensor",
                device: R::KIND,
                what: "tensors of more than 2^32 elements",
            });
        }
        let needed = 4 * words as u64;
        // CubeCL would panic in a thread of its own.
        let most = self.client.properties().memory.max_page_size;
        if needed > most {
            return Err(Error::TooLarge { device: R::KIND, needed, most });
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::device::WgpuDevice;
    use crate::verify::random;
    use crate::{Device, Tensor};

    /// The device, and what its pools and allocations take for this thread.
    fn device() -> Option<(Device, impl Fn() -> Result<u64>)> {
        let device = crate::verify::wgpu()?;
        let Device::Wgpu(WgpuDevice(gpu)) = device.clone() else { return None };
        Some((device, move || gpu.memory_reserved()))
    }

    #[test]
    fn a_weight_takes_what_it_needs_and_no_more() -> Result<()> {
        let Some((device, reserved)) = device() else { return Ok(()) };
        let (weight, before) = (random([3, 1 << 18], 1), reserved()?);
        let kept = weight.to_device_for_good(&device)?;
        assert_eq!(reserved()? - before, 3 << 20);
        assert_eq!(kept.to_vec()?, weight.to_vec()?);
        // What others have comes in pages.
        let before = reserved()?;
        let passing = random([5, 1 << 18], 2).to_device(&device)?;
        assert!(reserved()? - before > 5 << 20);
        assert_eq!(passing.to_vec()?, random([5, 1 << 18], 2).to_vec()?);
        Ok(())
    }

    #[test]
    fn memory_in_use_is_that_of_tensors_that_are_alive() -> Result<()> {
        let Some((device, _)) = device() else { return Ok(()) };
        let in_use = || device.memory_in_use().map(Option::unwrap_or_default);
        let before = in_use()?;
        let Device::Wgpu(WgpuDevice(gpu)) = &device else { return Ok(()) };
        let counted = gpu.tally().live();
        let tensor = random([1 << 16], 1).to_device(&device)?;
        assert_eq!(in_use()? - before, 4 << 16);
        assert_eq!(gpu.tally().live() - counted, 4 << 16, "the host counts what CubeCL does");
        drop(tensor);
        assert_eq!((in_use()?, gpu.tally().live()), (before, counted));
        Ok(())
    }

    #[test]
    fn uploads_are_handed_over_when_there_are_many() -> Result<()> {
        let Some((device, _)) = device() else { return Ok(()) };
        UPLOADED.store(IN_FLIGHT - 4, Ordering::Relaxed);
        let tensor = Tensor::from_vec(vec![1.0, 2.0], [2])?.to_device(&device)?;
        assert!(UPLOADED.load(Ordering::Relaxed) < IN_FLIGHT / 2);
        assert_eq!(tensor.to_vec()?, [1.0, 2.0]);
        Ok(())
    }
}
