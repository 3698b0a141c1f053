//! Memory of CPU tensors.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::guard::{GUARD, GUARD_LEN, guards_are_on};
use crate::recycle;

/// Read-only bytes that tensors share without a copy.
pub type SharedBytes = Arc<dyn Bytes>;

/// An owner of bytes, such as a mapped file.
pub trait Bytes: Send + Sync {
    /// All bytes of the owner.
    fn bytes(&self) -> &[u8];

    /// Announces that the bytes of `range` will not be read for a while. An owner that can get them again may give
    /// their memory back.
    fn set_aside(&self, _range: Range<usize>) {}
}

impl Bytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// An element type of CPU tensors.
pub(crate) trait Element: bytemuck::Pod {
    /// Returns a buffer to [`recycle`], which lends f32 alone.
    fn give_back(_: Vec<Self>) {}
}

impl Element for f32 {
    fn give_back(values: Vec<f32>) {
        recycle::give_back(values);
    }
}

impl Element for bf16 {}
impl Element for f16 {}
impl Element for f64 {}

/// The values of a CPU tensor.
pub(crate) struct Buffer<T: Element>(Values<T>);

enum Values<T> {
    Owned(Vec<T>),
    /// The values, with [`GUARD_LEN`] guard values on each side.
    Guarded(Vec<T>),
    /// The first `len` values of a buffer that goes back to [`recycle`].
    Lent {
        data: Vec<T>,
        len: usize,
    },
    /// Bytes of whole values, aligned for their type.
    Shared {
        owner: SharedBytes,
        range: Range<usize>,
    },
}

impl<T: Element> Buffer<T> {
    pub(crate) fn new(data: Vec<T>) -> Arc<Self> {
        Arc::new(Self(Values::Owned(data)))
    }

    /// The bytes `range` of `owner` as values in this machine's byte order. They are shared, or copied if they are not
    /// aligned.
    pub(crate) fn shared(owner: SharedBytes, range: Range<usize>) -> Arc<Self> {
        let bytes = &owner.bytes()[range.clone()];
        match bytemuck::try_cast_slice::<u8, T>(bytes) {
            Ok(_) => Arc::new(Self(Values::Shared { owner, range })),
            Err(_) => Self::new(bytemuck::pod_collect_to_vec(bytes)),
        }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        match &self.0 {
            Values::Owned(data) => data,
            Values::Guarded(data) => &data[GUARD_LEN..data.len() - GUARD_LEN],
            Values::Lent { data, len } => &data[..*len],
            Values::Shared { owner, range } => bytemuck::cast_slice(&owner.bytes()[range.clone()]),
        }
    }

    /// Lets the owner of shared bytes give their memory back.
    pub(crate) fn set_aside(&self) {
        if let Values::Shared { owner, range } = &self.0 {
            owner.set_aside(range.clone());
        }
    }

    /// Whether the values are an owner's shared bytes.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.0, Values::Shared { .. })
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        if let Values::Shared { .. } = self.0 {
            self.0 = Values::Owned(self.as_slice().to_vec());
        }
        match &mut self.0 {
            Values::Owned(data) => data,
            Values::Guarded(data) => {
                let end = data.len() - GUARD_LEN;
                &mut data[GUARD_LEN..end]
            }
            Values::Lent { data, len } => &mut data[..*len],
            Values::Shared { .. } => unreachable!("copied above"),
        }
    }
}

impl Buffer<f32> {
    /// `len` values that the caller overwrites: zeros or stale values, or in a guarded run NaN between guards.
    pub(crate) fn output(len: usize) -> Arc<Self> {
        Arc::new(Self(if guards_are_on() {
            let mut data = vec![GUARD; len + 2 * GUARD_LEN];
            data[GUARD_LEN..][..len].fill(f32::NAN);
            Values::Guarded(data)
        } else if len >= recycle::SMALLEST {
            Values::Lent { data: recycle::take(len), len }
        } else {
            Values::Owned(vec![0.0; len])
        }))
    }

    /// Appends values: in place if no other tensor shares the buffer and it owns its memory, else in a new buffer with
    /// twice the needed capacity. Appending N rows one by one takes time proportional to N.
    pub(crate) fn append(this: &mut Arc<Self>, more: &[f32]) {
        if let Some(Self(Values::Owned(data))) = Arc::get_mut(this) {
            data.extend_from_slice(more);
            return;
        }
        let mut data = Vec::with_capacity(2 * (this.as_slice().len() + more.len()));
        data.extend_from_slice(this.as_slice());
        data.extend_from_slice(more);
        *this = Self::new(data);
    }

    /// The guard values before and after the tensor's values; none if the buffer is not guarded.
    #[cfg(any(test, feature = "verify"))]
    pub(crate) fn guards(&self) -> [&[f32]; 2] {
        match &self.0 {
            Values::Guarded(data) => [&data[..GUARD_LEN], &data[data.len() - GUARD_LEN..]],
            _ => [&[]; 2],
        }
    }
}

/// A clone has memory of its own.
impl<T: Element> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Values::Guarded(data) => Values::Guarded(data.clone()),
            _ => Values::Owned(self.as_slice().to_vec()),
        })
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Values::Lent { data, .. } = &mut self.0 {
            T::give_back(std::mem::take(data));
        }
    }
}

impl<T: Element + fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}
