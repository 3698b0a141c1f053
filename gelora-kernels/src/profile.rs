//! Where time goes, operator by operator.
//!
//! Off by default, when a span costs one atomic load. Operators open a span for every call; a program that wants its own
//! work in the same table (tokenising, reading) opens spans too. Nested spans are counted in both, so a table adds up only
//! over spans that do not contain each other.
//!
//! ```
//! use gelora_kernels::{DType, Tensor, ops, profile};
//!
//! profile::start();
//! let x = Tensor::from_vec(vec![1.0; 6], [2, 3])?;
//! let w = ops::linear::Weight::new(x.clone(), DType::F32)?;
//! ops::linear::forward(&x, &w, None)?;
//! let table = profile::stop();
//! assert_eq!((table[0].op, table[0].calls, table[0].flops), ("linear", 1, 24.0));
//! # Ok::<(), gelora_kernels::Error>(())
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ON: AtomicBool = AtomicBool::new(false);
static MOST_MEMORY: AtomicU64 = AtomicU64::new(0);
static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// The calls of one operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The operator, as in `room` or `room.function`.
    pub op: &'static str,
    /// Number of calls.
    pub calls: u64,
    /// Wall-clock time of all calls together.
    pub time: Duration,
    /// Floating-point operations of all calls together; 0 where nobody counts them.
    pub flops: f64,
    /// Bytes that all calls together must at least read and write.
    pub bytes: f64,
}

/// One call in progress; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<(&'static str, Instant, f64, f64)>);

/// Forgets what was counted and begins to count.
pub fn start() {
    entries().clear();
    MOST_MEMORY.store(0, Ordering::Relaxed);
    ON.store(true, Ordering::Relaxed);
}

/// Stops counting and returns what was counted, the longest first.
pub fn stop() -> Vec<Entry> {
    ON.store(false, Ordering::Relaxed);
    let mut all = std::mem::take(&mut *entries());
    all.sort_by_key(|entry| std::cmp::Reverse(entry.time));
    all
}

/// Notes the memory that a GPU operator has in use at its peak; it is asked for only while counting.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn memory(in_use: impl FnOnce() -> crate::Result<u64>) -> crate::Result<()> {
    if ON.load(Ordering::Relaxed) {
        MOST_MEMORY.fetch_max(in_use()?, Ordering::Relaxed);
    }
    Ok(())
}

/// The most bytes that an operator with working memory of its own had in use on a GPU since [`start`]; 0 if there was none.
pub fn most_memory() -> u64 {
    MOST_MEMORY.load(Ordering::Relaxed)
}

/// Begins a call of so many floating-point operations, which must at least read and write so many bytes.
pub fn span(op: &'static str, flops: f64, bytes: f64) -> Span {
    Span(ON.load(Ordering::Relaxed).then(|| (op, Instant::now(), flops, bytes)))
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some((op, began, flops, bytes)) = self.0.take() else { return };
        let time = began.elapsed();
        let mut all = entries();
        match all.iter_mut().find(|e| e.op == op) {
            Some(e) => {
                e.calls += 1;
                e.time += time;
                e.flops += flops;
                e.bytes += bytes;
            }
            None => all.push(Entry { op, calls: 1, time, flops, bytes }),
        }
    }
}

/// A panic while the lock is held leaves counts that are whole.
fn entries() -> std::sync::MutexGuard<'static, Vec<Entry>> {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}
