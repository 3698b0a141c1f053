//! Memory of one tensor on a GPU.

use std::sync::Arc;

use cubecl::prelude::*;
use cubecl::server::Handle;

use super::tally::Alive;
use crate::DType;
use crate::quantized::planes;

/// Memory of one tensor on a GPU, with `guard` f32 values before and behind the tensor's own values.
#[derive(Clone, Debug)]
pub(crate) struct GpuBuffer {
    /// Begins at the first element. In a guarded buffer it ends behind the last guard, so that a kernel which overruns
    /// its output writes into the guards and is not stopped by a bounds check.
    pub(super) handle: Handle,
    len: usize,
    #[cfg_attr(not(any(test, feature = "verify")), allow(dead_code, reason = "only verify reads it"))]
    pub(super) guard: usize,
    /// The element type.
    pub(crate) dtype: DType,
    /// One reference for each tensor that shares the memory.
    owners: Arc<()>,
    /// Counts the bytes of the allocation as long as one of its parts lives.
    pub(super) alive: Arc<Alive>,
}

impl GpuBuffer {
    /// A buffer that no other tensor shares yet.
    pub(super) fn new(handle: Handle, len: usize, guard: usize, dtype: DType, alive: Arc<Alive>) -> Self {
        Self { handle, len, guard, dtype, owners: Arc::new(()), alive }
    }

    /// The buffer as a launch argument. A quantized buffer is an array of 32-bit words.
    pub(crate) fn arg<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: the handle was allocated for that many elements of this type, and nothing shrinks it.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), planes::words(self.dtype, self.len)) }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Number of bytes that the elements take.
    pub(super) fn size(&self) -> u64 {
        match self.dtype.is_quantized() {
            true => 4 * planes::words(self.dtype, self.len) as u64,
            false => self.dtype.bytes(self.len) as u64,
        }
    }

    /// Marks the values as those of a mapped file, for a plan of the CPU.
    pub(crate) fn is_mapped(&self) {
        self.alive.is_mapped();
    }

    /// Counts the pages of a mapped file that reading `rows` rows of the values brings into memory.
    pub(crate) fn touch(&self, rows: usize) {
        // Linux maps 16 pages around one that is read.
        const AROUND: u64 = 64 << 10;
        self.alive.touch(self.size().min(rows as u64 * AROUND));
    }

    /// Stops counting values of a mapped file, which the CPU no longer reads.
    pub(crate) fn set_aside(&self) {
        self.alive.set_aside();
    }

    /// Whether another tensor shares the memory. A shared buffer must be copied before it is written.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.owners) > 1
    }

    /// Whether `self` and `other` are the only two owners of one memory.
    pub(crate) fn is_only_other(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.owners, &other.owners) && Arc::strong_count(&self.owners) == 2
    }

    /// `len` elements from element `start` on, as the buffer of another tensor. Both buffers see what is written to
    /// either.
    pub(crate) fn part(&self, start: usize, len: usize) -> Self {
        let bytes = |elements: usize| self.dtype.bytes(elements) as u64;
        let handle = self.handle.clone().offset_start(bytes(start)).offset_end(bytes(self.len - start - len));
        Self::new(handle, len, 0, self.dtype, Arc::clone(&self.alive))
    }
}
