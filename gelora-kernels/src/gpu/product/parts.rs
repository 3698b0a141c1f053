//! Sums in parts: the split of a long shared dimension, and column sums.

use cubecl::prelude::*;

use super::CUBES;
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, GpuBuffer, elementwise};
use crate::{Result, Tensor};

/// The fewest steps of a part, and the most parts.
const PART: usize = 512;
const MAX_PARTS: usize = 16;
/// Rows of a column that one unit sums.
const SUMMED_ROWS: usize = 256;

/// The number of steps in each part of a shared dimension, for an output of `cubes` cubes.
pub(super) fn part(depth: usize, cubes: usize) -> usize {
    let parts = (2 * CUBES).div_ceil(cubes).clamp(1, MAX_PARTS);
    depth.div_ceil(parts).max(PART).min(depth)
}

/// out_i = sum of all parts, in order.
#[cube(launch)]
fn add_parts_kernel(parts: &Array<f32>, out: &mut Array<f32>, count: usize) {
    let len = out.len();
    if ABSOLUTE_POS < len {
        let mut sum = 0.0f32;
        for part in 0..count {
            sum += parts[part * len + ABSOLUTE_POS];
        }
        out[ABSOLUTE_POS] = sum;
    }
}

/// Adds the parts of an output.
pub(super) fn add_parts<R: Backend>(gpu: &Gpu<R>, parts: &GpuBuffer, out: &GpuBuffer, count: usize) {
    let len = out.len();
    add_parts_kernel::launch::<R>(
        gpu.client(),
        elementwise(len),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        parts.arg(),
        out.arg(),
        count,
    );
}

/// sums (parts, cols): the column sums of `SUMMED_ROWS` rows in each part.
#[cube(launch)]
fn column_sums_kernel(x: &Array<f32>, sums: &mut Array<f32>, rows: usize, cols: usize, parts: usize) {
    let part = ABSOLUTE_POS / cols;
    if part < parts {
        let from = part * comptime!(SUMMED_ROWS);
        let mut sum = 0.0f32;
        for row in from..(from + comptime!(SUMMED_ROWS)).min(rows) {
            sum += x[row * cols + ABSOLUTE_POS % cols];
        }
        sums[ABSOLUTE_POS] = sum;
    }
}

/// The column sums of a matrix: in ascending order in parts of 256 rows, then over parts in order.
pub(crate) fn column_sums<R: Backend>(gpu: &Gpu<R>, op: &'static str, x: &Tensor) -> Result<Tensor> {
    let (rows, cols) = (x.rows(), x.cols());
    let parts = rows.div_ceil(SUMMED_ROWS);
    let out = gpu.output([cols])?;
    let partial = if parts == 1 { out.gpu(op)?.clone() } else { gpu.scratch(parts * cols)? };
    column_sums_kernel::launch::<R>(
        gpu.client(),
        elementwise(parts * cols),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        x.gpu(op)?.arg(),
        partial.arg(),
        rows,
        cols,
        parts,
    );
    if parts > 1 {
        add_parts(gpu, &partial, out.gpu(op)?, parts);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sums_of_small_outputs_are_split() {
        assert_eq!((part(300, 1), part(1030, 1), part(100_000, 1)), (300, PART, 6250));
        assert_eq!(part(100_000, 2 * CUBES), 100_000);
    }
}
