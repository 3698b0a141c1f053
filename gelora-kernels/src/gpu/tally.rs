//! Bytes of the live buffers of a device. The host counts them when it makes and drops buffers, so the count follows
//! the program and not CubeCL's thread, which allocates later.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::DeviceKind;
use crate::recycle::{Block, Pool, SMALLEST};

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An output of an operator.
    Output,
    /// Memory inside one operator.
    Scratch,
    /// Values of the host: a weight, a parameter, token ids.
    Upload,
}

/// The count of one device.
pub(crate) struct Tally {
    live: AtomicU64,
    peak: AtomicU64,
    /// The pool of large outputs, if the device plans the memory of the CPU.
    pool: Option<Mutex<CpuPool>>,
}

/// A buffer of the planned pool: its length, and the values at its start that have been written. Memory that was never
/// written takes no pages.
#[derive(Debug)]
pub(crate) struct Length {
    len: usize,
    written: usize,
}

impl Block for Length {
    fn fresh(len: usize) -> Self {
        Self { len, written: 0 }
    }

    fn len(&self) -> usize {
        self.len
    }
}

struct CpuPool {
    pool: Pool<Length>,
    /// Written values of the buffers that are lent.
    lent: usize,
}

impl CpuPool {
    /// Bytes of all lent and kept buffers that have been written.
    fn bytes(&self) -> u64 {
        let kept: usize = self.pool.kept().iter().map(|block| block.written).sum();
        ((self.lent + kept) * size_of::<f32>()) as u64
    }
}

/// The counts of all opened devices.
static ALL: Mutex<Vec<(DeviceKind, &Tally)>> = Mutex::new(Vec::new());

/// Bytes of the live buffers of a kind of device; None if no such device is open.
pub(crate) fn live(kind: DeviceKind) -> Option<u64> {
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().rev().find(|(of, _)| *of == kind).map(|(_, tally)| tally.live())
}

impl Tally {
    /// The count of a device that was just opened. It is never freed, as the device is never closed.
    pub(crate) fn new(kind: DeviceKind, plans_cpu: bool) -> &'static Self {
        let pool = plans_cpu.then(|| Mutex::new(CpuPool { pool: Pool::new(), lent: 0 }));
        let tally: &'static Self = Box::leak(Box::new(Self { live: 0.into(), peak: 0.into(), pool }));
        ALL.lock().unwrap_or_else(PoisonError::into_inner).push((kind, tally));
        tally
    }

    /// Bytes of the live buffers.
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// The largest count since the last [`Tally::reset_peak`].
    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Sets the peak to the current count, and forgets buffers that a planned pool keeps.
    pub(crate) fn reset_peak(&self) {
        if let Some(mut planned) = self.pool() {
            let before = planned.bytes();
            planned.pool.clear();
            self.change(before, planned.bytes());
        }
        self.peak.store(self.live(), Ordering::Relaxed);
    }

    /// Whether the device plans the memory of the CPU.
    pub(crate) fn plans_cpu(&self) -> bool {
        self.pool.is_some()
    }

    fn pool(&self) -> Option<MutexGuard<'_, CpuPool>> {
        // Nothing panics while the lock is held.
        Some(self.pool.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, before: u64, after: u64) {
        let live = match after >= before {
            true => self.live.fetch_add(after - before, Ordering::Relaxed) + (after - before),
            false => self.live.fetch_sub(before - after, Ordering::Relaxed) - (before - after),
        };
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    /// Counts bytes until the returned value is dropped.
    pub(crate) fn alive(&'static self, bytes: u64) -> Alive {
        self.change(0, bytes);
        Alive { tally: self, bytes: bytes.into(), mapped: false.into(), block: None }
    }

    /// Counts the bytes of a buffer. The CPU has no scratch buffers of kernels, and its pool lends large outputs.
    pub(crate) fn buffer(&'static self, bytes: u64, purpose: Purpose) -> Alive {
        let len = (bytes as usize).div_ceil(size_of::<f32>());
        match (self.pool(), purpose) {
            (Some(mut planned), Purpose::Output) if len >= SMALLEST => {
                let before = planned.bytes();
                let mut block = planned.pool.take(len);
                block.written = block.written.max(len);
                planned.lent += block.written;
                self.change(before, planned.bytes());
                Alive { tally: self, bytes: 0.into(), mapped: false.into(), block: Some(block) }
            }
            (Some(_), Purpose::Scratch) => self.alive(0),
            _ => self.alive(bytes),
        }
    }
}

/// Bytes that a [`Tally`] counts. They are subtracted when this is dropped.
pub(crate) struct Alive {
    tally: &'static Tally,
    bytes: AtomicU64,
    /// Whether the bytes are a mapped file's.
    mapped: AtomicBool,
    block: Option<Length>,
}

impl Alive {
    /// Marks the bytes as those of a mapped file.
    pub(crate) fn is_mapped(&self) {
        self.mapped.store(true, Ordering::Relaxed);
    }

    /// Counts this many bytes of a mapped file, which are read; the system may take the others back.
    pub(crate) fn touch(&self, bytes: u64) {
        if self.mapped.load(Ordering::Relaxed) {
            self.tally.change(self.bytes.swap(bytes, Ordering::Relaxed), bytes);
        }
    }

    /// Stops counting the bytes of a mapped file, whose memory the system takes back.
    pub(crate) fn set_aside(&self) {
        if self.mapped.load(Ordering::Relaxed) {
            self.tally.change(self.bytes.swap(0, Ordering::Relaxed), 0);
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if let (Some(block), Some(mut planned)) = (self.block.take(), self.tally.pool()) {
            let before = planned.bytes();
            planned.lent -= block.written;
            planned.pool.give_back(block);
            self.tally.change(before, planned.bytes());
        }
        self.tally.change(*self.bytes.get_mut(), 0);
    }
}

impl fmt::Debug for Alive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {} at most", self.live(), self.peak())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_that_of_buffers_that_live_together() {
        let tally = Tally::new(DeviceKind::Plan, false);
        let (a, b) = (tally.buffer(100, Purpose::Output), tally.buffer(50, Purpose::Scratch));
        drop(a);
        let c = tally.buffer(20, Purpose::Upload);
        c.set_aside();
        assert_eq!((tally.live(), tally.peak()), (70, 150));
        c.is_mapped();
        c.set_aside();
        assert_eq!(tally.live(), 50);
        [8, 5].into_iter().for_each(|bytes| c.touch(bytes));
        assert_eq!((tally.live(), tally.peak()), (55, 150));
        drop((b, c));
        tally.reset_peak();
        assert_eq!((tally.live(), tally.peak()), (0, 0));
    }

    #[test]
    fn a_plan_of_the_cpu_counts_what_its_pool_keeps() {
        let tally = Tally::new(DeviceKind::Plan, true);
        let bytes = |len: usize| (len * size_of::<f32>()) as u64;
        let (large, small) = (SMALLEST * 5, SMALLEST / 2);
        let all = [bytes(large), bytes(large)].map(|bytes| tally.buffer(bytes, Purpose::Output));
        let others = (tally.buffer(bytes(small), Purpose::Output), tally.buffer(1000, Purpose::Scratch));
        assert_eq!(tally.live(), bytes(2 * large + small));
        drop((all, others));
        assert_eq!(tally.live(), bytes(2 * large), "the pool keeps large buffers");
        let again = tally.buffer(bytes(large - 1), Purpose::Output);
        assert_eq!((tally.live(), tally.peak()), (bytes(2 * large), bytes(2 * large + small)));
        drop(again);
        tally.reset_peak();
        assert_eq!(tally.peak(), 0);
    }
}
