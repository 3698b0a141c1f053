//! Memory of large CPU outputs, kept when a tensor is dropped and reused as it is.
//!
//! A training step needs the same buffers as the step before. Memory from the system would cost zeroing and page faults
//! each time. Instead, an output takes the smallest kept buffer of one to two times its length, and the operator
//! overwrites the stale values. Lengths are rounded up to four sizes per octave, so that a batch with a few more tokens
//! still fits. Kept and lent buffers together stay below 5/4 of the peak of lent buffers, and kept buffers below 1 GiB;
//! the buffer that was kept longest is freed first.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The length of the smallest buffer that is kept, in values: 64 KiB.
pub(crate) const SMALLEST: usize = 16 * 1024;
/// The largest total length of kept buffers, in values: 1 GiB.
const MOST: usize = 1 << 28;

static POOL: Mutex<Pool<Vec<f32>>> = Mutex::new(Pool::new());

/// A buffer of a pool: memory, or the length of memory that is only planned.
pub(crate) trait Block {
    /// A new buffer of `len` values.
    fn fresh(len: usize) -> Self;

    /// Number of values.
    fn len(&self) -> usize;
}

impl Block for Vec<f32> {
    fn fresh(len: usize) -> Self {
        vec![0.0; len]
    }

    fn len(&self) -> usize {
        self.len()
    }
}

/// Kept buffers, and counts. Lengths are in values.
pub(crate) struct Pool<B> {
    /// Kept buffers, the longest unused first.
    kept: Vec<B>,
    kept_len: usize,
    lent_len: usize,
    most_lent: usize,
    fresh: u64,
    reused: u64,
}

/// Counts of large buffers since the process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Number of buffers allocated by the system.
    pub fresh: u64,
    /// Number of buffers reused.
    pub reused: u64,
    /// Bytes kept now.
    pub kept_bytes: usize,
}

/// The counts so far.
pub fn stats() -> Stats {
    let pool = pool();
    Stats { fresh: pool.fresh, reused: pool.reused, kept_bytes: pool.kept_len * size_of::<f32>() }
}

/// Frees all kept buffers.
pub fn clear() {
    pool().clear();
}

/// A buffer of at least `len` unspecified values. [`give_back`] returns it.
pub(crate) fn take(len: usize) -> Vec<f32> {
    pool().take(len)
}

/// Returns a buffer that [`take`] lent.
pub(crate) fn give_back(values: Vec<f32>) {
    pool().give_back(values);
}

/// The pool. Nothing panics while the lock is held, so poisoning is ignored.
fn pool() -> MutexGuard<'static, Pool<Vec<f32>>> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Block> Pool<B> {
    pub(crate) const fn new() -> Self {
        Self { kept: Vec::new(), kept_len: 0, lent_len: 0, most_lent: 0, fresh: 0, reused: 0 }
    }

    /// A buffer of at least `len` values.
    pub(crate) fn take(&mut self, len: usize) -> B {
        let fits = |values: &B| (len..=2 * len).contains(&values.len());
        // Of equally long buffers, the one used last: it may still be in a cache.
        let kept = self.kept.iter().enumerate().rev().filter(|(_, v)| fits(v)).min_by_key(|(_, v)| v.len());
        let values = match kept.map(|(i, _)| i) {
            Some(i) => {
                let values = self.kept.remove(i);
                self.kept_len -= values.len();
                self.reused += 1;
                values
            }
            None => {
                self.fresh += 1;
                B::fresh(rounded(len))
            }
        };
        self.lent_len += values.len();
        self.most_lent = self.most_lent.max(self.lent_len);
        self.trim();
        values
    }

    /// Returns a buffer that [`Pool::take`] lent.
    pub(crate) fn give_back(&mut self, values: B) {
        self.lent_len -= values.len();
        self.kept_len += values.len();
        self.kept.push(values);
        self.trim();
    }

    /// Frees all kept buffers.
    pub(crate) fn clear(&mut self) {
        self.kept = Vec::new();
        self.kept_len = 0;
        self.most_lent = self.lent_len;
    }

    /// The kept buffers.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn kept(&self) -> &[B] {
        &self.kept
    }

    /// Frees buffers until kept and lent buffers are within the limits.
    fn trim(&mut self) {
        let most = (self.most_lent + self.most_lent / 4 - self.lent_len).min(MOST);
        while self.kept_len > most {
            self.kept_len -= self.kept.remove(0).len();
        }
    }
}

/// `len` rounded up to the next of four sizes per octave.
fn rounded(len: usize) -> usize {
    len.next_multiple_of((len.next_power_of_two() / 8).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_at_most_a_quarter_larger() {
        for len in [1, 2, 5, 9, 1000, 16_384, 16_385, 100_000, (1 << 20) + 1] {
            let size = rounded(len);
            assert!(len <= size && size <= len + len / 4 + 1, "{len}: {size}");
            assert_eq!(rounded(size), size);
        }
    }

    #[test]
    fn what_is_kept_fits_and_is_bounded() {
        let mut pool = Pool::<Vec<f32>>::new();
        let (a, b) = (pool.take(1000), pool.take(3000));
        let sizes = (a.len(), b.len());
        pool.give_back(a);
        pool.give_back(b);
        assert_eq!((pool.take(900).len(), pool.fresh, pool.reused), (sizes.0, 2, 1));
        assert_eq!((pool.take(1400).len(), pool.fresh), (rounded(1400), 3), "twice the length at most");
        assert_eq!(pool.kept, Vec::<Vec<f32>>::new(), "too much was kept");
        let c = pool.take(sizes.1);
        pool.give_back(c);
        assert_eq!((pool.take(1600).len(), pool.fresh, pool.reused), (sizes.1, 4, 2));
        let all: Vec<Vec<f32>> = (0..50).map(|_| pool.take(5000)).collect();
        all.into_iter().for_each(|v| pool.give_back(v));
        let lent = pool.lent_len;
        for len in 1..200 {
            let values = pool.take(len * 100);
            pool.give_back(values);
            assert_eq!(pool.lent_len, lent);
            assert_eq!(pool.kept_len, pool.kept.iter().map(Vec::len).sum::<usize>());
            assert!(pool.kept_len + pool.lent_len <= pool.most_lent + pool.most_lent / 4);
        }
    }
}
