//! Time, operations and bytes of each operator.
//!
//! Profiling is off by default; a span then costs one atomic load. Every call of an operator opens a span. A program
//! that wants its own work in the same table, such as tokenizing or reading, opens spans with [`span`]. Time in nested
//! spans counts for both spans, so times add up only over spans that do not contain each other.
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

/// The calls of one operator, summed.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The operator: `module` or `module.function`, such as `linear.backward_input`.
    pub op: &'static str,
    /// Number of calls.
    pub calls: u64,
    /// Wall-clock time of all calls.
    pub time: Duration,
    /// Floating-point operations of all calls; 0 where they are not counted.
    pub flops: f64,
    /// Bytes that all calls must read and write at least.
    pub bytes: f64,
}

/// One call in progress. The call ends when the span is dropped.
#[derive(Debug)]
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<(&'static str, Instant, f64, f64)>);

/// Discards all entries and turns profiling on.
pub fn start() {
    entries().clear();
    MOST_MEMORY.store(0, Ordering::Relaxed);
    ON.store(true, Ordering::Relaxed);
}

/// Turns profiling off and returns the entries, sorted by time, longest first.
pub fn stop() -> Vec<Entry> {
    ON.store(false, Ordering::Relaxed);
    let mut all = std::mem::take(&mut *entries());
    all.sort_by_key(|entry| std::cmp::Reverse(entry.time));
    all
}

/// Records the memory in use on a GPU at the peak of an operator. `in_use` is called only while profiling is on.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn memory(in_use: impl FnOnce() -> crate::Result<u64>) -> crate::Result<()> {
    if ON.load(Ordering::Relaxed) {
        MOST_MEMORY.fetch_max(in_use()?, Ordering::Relaxed);
    }
    Ok(())
}

/// The most bytes in use on a GPU since [`start`], at the peaks of operators with working memory; 0 if none ran.
pub fn most_memory() -> u64 {
    MOST_MEMORY.load(Ordering::Relaxed)
}

/// Begins a call of `flops` floating-point operations that must read and write `bytes` bytes at least.
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

/// The entries. They stay consistent if a thread panics while it holds the lock, so poisoning is ignored.
fn entries() -> std::sync::MutexGuard<'static, Vec<Entry>> {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}
