//! What the CPU paths share: splitting rows over threads, and matrix products.

mod gemm;
mod level;
mod macro_kernel;
pub(crate) mod math;
mod micro_kernel;
mod packed;
pub mod peak;
mod scratch;
mod simd;
mod view;

pub(crate) use gemm::{LowRank, Mask, Rows, block, gemm, gemm_packed, gemm_serial, panel_width, product};
pub(crate) use level::vectorised;
pub use level::{Level, VARIABLE, level};
pub(crate) use micro_kernel::Init;
pub(crate) use packed::Packed;
pub(crate) use scratch::Scratch;
pub(crate) use simd::{Portable, Vector, by_vector};
pub(crate) use view::{View, ViewMut};

use rayon::prelude::*;

/// Values one task should have at least, so that handing it out costs less than doing it.
const GRAIN: usize = 16 * 1024;

/// Calls `f(first_row, rows)` on blocks of whole rows of `out`, in parallel.
pub(crate) fn for_row_blocks(out: &mut [f32], cols: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_task(out.len() / cols, cols);
    if out.len() <= rows * cols {
        return f(0, out);
    }
    out.par_chunks_mut(rows * cols).enumerate().for_each(|(i, block)| f(i * rows, block));
}

/// How many rows of `cols` values make one task.
pub(crate) fn rows_per_task(rows: usize, cols: usize) -> usize {
    let even = rows.div_ceil(rayon::current_num_threads() * 4);
    even.max(GRAIN.div_ceil(cols.max(1))).clamp(1, rows.max(1))
}

/// One line on the CPU: threads and the widest vectors the code was dispatched to.
pub fn describe() -> String {
    format!("{} threads, {}", rayon::current_num_threads(), level())
}

/// Bytes of memory of this machine, where the system tells without being linked to.
pub(crate) fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim();
    Some(kib.parse::<u64>().ok()? * 1024)
}
