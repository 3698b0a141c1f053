//! The CPU: its level of vector instructions and its peak rates. Inside the crate: matrix products, and tasks of rows
//! for threads.

mod codes;
mod gemm;
mod level;
mod macro_kernel;
pub(crate) mod math;
mod micro_kernel;
mod packed;
pub mod peak;
mod scratch;
mod simd;
pub(crate) mod team;
mod view;

pub(crate) use codes::Codes;
pub(crate) use gemm::{LowRank, Mask, Rows, block, gemm, gemm_packed, gemm_serial, panel_width, product};
pub(crate) use level::vectorized;
pub use level::{Level, VARIABLE, level};
pub(crate) use micro_kernel::Init;
pub(crate) use packed::Packed;
pub(crate) use scratch::Scratch;
pub(crate) use simd::{Portable, Vector, by_vector};
pub(crate) use view::{View, ViewMut};

use rayon::prelude::*;

/// The fewest values of a task: with fewer, starting the task would cost more than its work.
const GRAIN: usize = 16 * 1024;

/// As [`for_row_blocks`], for rows that cost as much as `work` values each, on the [`team`]: for regions that follow
/// each other within microseconds.
pub(crate) fn for_rows_of_token(out: &mut [f32], cols: usize, work: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_task(out.len() / cols, work);
    team::for_chunks(out, rows * cols, |i, block| f(i * rows, block));
}

/// Calls `f(first_row, rows)` on blocks of whole rows of `out`, in parallel.
pub(crate) fn for_row_blocks(out: &mut [f32], cols: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_task(out.len() / cols, cols);
    if out.len() <= rows * cols {
        return f(0, out);
    }
    out.par_chunks_mut(rows * cols).enumerate().for_each(|(i, block)| f(i * rows, block));
}

/// Number of rows that cost `work` values each in one task.
pub(crate) fn rows_per_task(rows: usize, work: usize) -> usize {
    let even = rows.div_ceil(rayon::current_num_threads() * 4);
    even.max(GRAIN.div_ceil(work.max(1))).clamp(1, rows.max(1))
}

/// A description of the CPU: number of threads, and the level of vector instructions in use.
pub fn describe() -> String {
    format!("{} threads, {}", rayon::current_num_threads(), level())
}

/// Bytes of memory of this machine, if `/proc/meminfo` tells.
pub(crate) fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim();
    Some(kib.parse::<u64>().ok()? * 1024)
}
