//! The memory budget of the packed layouts of all weights. A model whose layouts would not fit runs slower instead of
//! running out of memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A number of bytes to share out.
#[derive(Debug)]
pub(crate) struct Budget {
    most: u64,
    taken: AtomicU64,
}

/// Bytes taken from a budget until the share is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    /// A budget of `most` bytes.
    pub(crate) fn of(most: u64) -> Arc<Self> {
        Arc::new(Self { most, taken: AtomicU64::new(0) })
    }

    /// Half of the machine's memory, shared by all weights; no limit if the system does not tell its memory.
    pub(crate) fn of_machine() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Budget>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(|| Self::of(crate::cpu::memory().map_or(u64::MAX, |bytes| bytes / 2))))
    }

    /// A share of `bytes` bytes; None if fewer are left.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let rest = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.most);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).ok()?;
        Some(Share { budget: Arc::clone(self), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::of(10);
        let (first, second) = (budget.take(6).expect("left"), budget.take(4).expect("left"));
        assert!(budget.take(1).is_none());
        drop(first);
        assert!(budget.take(7).is_none() && budget.take(6).is_some());
        drop(second);
        assert!(budget.take(10).is_some() && budget.take(u64::MAX).is_none());
    }
}
