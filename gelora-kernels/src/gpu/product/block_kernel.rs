//! The f32 kernel of [`Product`](super::Product). One cube computes a block of outputs, `depth` steps of the shared
//! dimension at a time.
//!
//! Values move in fours. While a cube multiplies the values in one half of its shared memory, its units fetch the next
//! steps from global memory into registers. Then they store these in the other half and synchronize, once for every
//! `depth` steps.
//!
//! The rows and columns of a unit are groups of 4 adjacent ones: one group in every 4 `units_y()` rows and 4
//! `units_x()` columns of the block, so that adjacent units store adjacent fours.

use cubecl::prelude::*;

use super::Layout;
use super::block::{Block, Extent, Plan, Side, Sum, fetched_fours, offset, staged_fours};
use crate::gpu::Four;
use crate::gpu::mask::{Mask, factor};
use crate::gpu::quantized::decode;

/// The block of a cube: its first row and column, and the sizes of the output.
#[derive(CubeType, Clone, Copy)]
struct Place {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

/// The steps `from..to` of a shared dimension of `depth` steps.
#[derive(CubeType, Clone, Copy)]
struct Steps {
    from: usize,
    to: usize,
    depth: usize,
}

/// out (parts, rows, cols) = scale left right + mask adapter_scale adapter_left adapter_right + bias. Each part sums
/// its own steps of the base product.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
#[allow(clippy::collapsible_if)] // one condition is comptime, the other is not
pub(crate) fn product_kernel<W: Numeric, NL: Size, NR: Size, NAL: Size, NAR: Size, NO: Size>(
    left: &Array<Vector<f32, NL>>,
    right: &Array<Vector<W, NR>>,
    adapter_left: &Array<Vector<f32, NAL>>,
    adapter_right: &Array<Vector<f32, NAR>>,
    bias: &Array<f32>,
    out: &mut Array<Vector<f32, NO>>,
    mask: &Mask,
    extent: &Extent,
    scale: f32,
    adapter_scale: f32,
    #[comptime] plan: Plan,
) {
    let block = comptime!(plan.sum.block);
    let mut left_staged = SharedMemory::<Four>::new(comptime!(2 * staged_fours(block.rows, block.depth)));
    let mut right_staged = SharedMemory::<Four>::new(comptime!(2 * staged_fours(block.cols, block.depth)));
    let unit_row = UNIT_POS as usize / comptime!(block.units_x()) * 4;
    let unit_col = UNIT_POS as usize % comptime!(block.units_x()) * 4;
    let (rows, cols) = (extent.rows, extent.cols);
    let col = CUBE_POS_X as usize * comptime!(block.cols);
    let from = CUBE_POS_Z as usize * extent.part;
    let to = (from + extent.part).min(extent.depth);
    let steps = Steps { from, to, depth: extent.depth };
    let adapter_steps = Steps { from: 0usize, to: extent.rank, depth: extent.rank };
    for row_block in range_stepped(CUBE_POS_Y as usize, rows.div_ceil(block.rows), CUBE_COUNT_Y as usize) {
        let row = row_block * comptime!(block.rows);
        let place = Place { row, rows, col, cols };
        let mut sums = Array::<f32>::new(comptime!(block.unit_rows * block.unit_cols));
        #[unroll]
        for own in 0..comptime!(block.unit_rows * block.unit_cols) {
            sums[own] = 0.0f32;
        }
        // The adapter's terms: sums = mask adapter_scale adapter_left adapter_right.
        if comptime!(plan.adapter.is_some()) {
            let addend = comptime!(plan.adapter.unwrap());
            accumulate::<f32, NAL, f32, NAR>(
                &mut sums,
                adapter_left,
                adapter_right,
                &mut left_staged,
                &mut right_staged,
                mask,
                &place,
                &adapter_steps,
                addend.sum,
            );
            #[unroll]
            for i in 0..comptime!(block.unit_rows) {
                #[unroll]
                for j in 0..comptime!(block.unit_cols) {
                    let own = comptime!(i * block.unit_cols + j);
                    sums[own] = sums[own] * adapter_scale;
                    if comptime!(addend.dropped) {
                        let out_row = row + unit_row + comptime!(offset(i, block.units_y()));
                        let out_col = col + unit_col + comptime!(offset(j, block.units_x()));
                        sums[own] = sums[own] * factor(mask, (out_row * cols + out_col) as u32);
                    }
                }
            }
        }
        // The base's terms: sums += left right.
        accumulate::<f32, NL, W, NR>(
            &mut sums,
            left,
            right,
            &mut left_staged,
            &mut right_staged,
            mask,
            &place,
            &steps,
            plan.sum,
        );
        // out = scale sums + bias, in vectors of the output.
        let first = CUBE_POS_Z as usize * rows;
        #[unroll]
        for i in 0..comptime!(block.unit_rows) {
            let out_row = row + unit_row + comptime!(offset(i, block.units_y()));
            #[unroll]
            for group in 0..comptime!(block.unit_cols / 4) {
                let out_col = col + unit_col + comptime!(offset(4 * group, block.units_x()));
                let mut four = Four::new(0.0f32);
                #[unroll]
                for j in 0..4usize {
                    let mut value = scale * sums[comptime!(i * block.unit_cols + 4 * group + j)];
                    if comptime!(plan.biased) {
                        if out_col + j < cols {
                            value += bias[out_col + j];
                        }
                    }
                    four[j] = value;
                }
                let index = (first + out_row) * cols + out_col;
                if comptime!(plan.vector == 4) {
                    if out_row < rows && out_col < cols {
                        out[index / 4] = Vector::cast_from(four);
                    }
                } else {
                    #[unroll]
                    for j in 0..4usize {
                        if out_row < rows && out_col + j < cols {
                            out[index + j] = Vector::cast_from(four[j]);
                        }
                    }
                }
            }
        }
    }
}

/// Adds to `sums` the product of a block, over some steps of the shared dimension. Lines beyond the operands count as
/// 0. All units of a cube must call it.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn accumulate<L: Numeric, NL: Size, R: Numeric, NR: Size>(
    sums: &mut Array<f32>,
    left: &Array<Vector<L, NL>>,
    right: &Array<Vector<R, NR>>,
    left_staged: &mut SharedMemory<Four>,
    right_staged: &mut SharedMemory<Four>,
    mask: &Mask,
    place: &Place,
    steps: &Steps,
    #[comptime] sum: Sum,
) {
    let block = comptime!(sum.block);
    let left_half = comptime!(staged_fours(block.rows, block.depth));
    let right_half = comptime!(staged_fours(block.cols, block.depth));
    let mut left_next = Array::<Four>::new(comptime!(fetched_fours(block, block.rows)));
    let mut right_next = Array::<Four>::new(comptime!(fetched_fours(block, block.cols)));
    fetch::<L, NL>(left, &mut left_next, mask, place.row, place.rows, steps.from, steps, block.rows, block, sum.left);
    fetch::<R, NR>(
        right,
        &mut right_next,
        mask,
        place.col,
        place.cols,
        steps.from,
        steps,
        block.cols,
        block,
        sum.right,
    );
    stage(&left_next, left_staged, 0, block.rows, block, sum.left.layout);
    stage(&right_next, right_staged, 0, block.cols, block, sum.right.layout);
    sync_cube();
    let mut half = 0usize;
    for step in range_stepped(steps.from, steps.to, comptime!(block.depth)) {
        let next = step + comptime!(block.depth);
        if next < steps.to {
            fetch::<L, NL>(left, &mut left_next, mask, place.row, place.rows, next, steps, block.rows, block, sum.left);
            fetch::<R, NR>(
                right,
                &mut right_next,
                mask,
                place.col,
                place.cols,
                next,
                steps,
                block.cols,
                block,
                sum.right,
            );
        }
        multiply(sums, left_staged, right_staged, half * left_half, half * right_half, sum);
        half = 1 - half;
        if next < steps.to {
            stage(&left_next, left_staged, half * left_half, block.rows, block, sum.left.layout);
            stage(&right_next, right_staged, half * right_half, block.cols, block, sum.right.layout);
        }
        // The first units at the next step wait here for units that still read the half to be written.
        sync_cube();
    }
}

/// Adds the product of the staged steps to the sums of this unit, in ascending order.
#[cube]
fn multiply(
    sums: &mut Array<f32>,
    left_staged: &SharedMemory<Four>,
    right_staged: &SharedMemory<Four>,
    left_from: usize,
    right_from: usize,
    #[comptime] sum: Sum,
) {
    let block = comptime!(sum.block);
    let unit_y = UNIT_POS as usize / comptime!(block.units_x());
    let unit_x = UNIT_POS as usize % comptime!(block.units_x());
    // Not unrolled, because drivers take seconds to compile a longer body.
    for k4 in 0..comptime!(block.depth / 4) {
        let mut rows = Array::<f32>::new(comptime!(4 * block.unit_rows));
        let mut cols = Array::<f32>::new(comptime!(4 * block.unit_cols));
        take(left_staged, &mut rows, left_from, unit_y, k4, block.rows, block.unit_rows, block, sum.left.layout);
        take(right_staged, &mut cols, right_from, unit_x, k4, block.cols, block.unit_cols, block, sum.right.layout);
        #[unroll]
        for k in 0..4usize {
            #[unroll]
            for i in 0..comptime!(block.unit_rows) {
                #[unroll]
                for j in 0..comptime!(block.unit_cols) {
                    let own = comptime!(i * block.unit_cols + j);
                    sums[own] += rows[comptime!(k * block.unit_rows + i)] * cols[comptime!(k * block.unit_cols + j)];
                }
            }
        }
    }
}

/// Reads this unit's share of `lines` lines from line `first` on and the steps from `step` on. Values beyond the
/// operand are 0.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn fetch<E: Numeric, N: Size>(
    source: &Array<Vector<E, N>>,
    fetched: &mut Array<Four>,
    mask: &Mask,
    first: usize,
    end: usize,
    step: usize,
    steps: &Steps,
    #[comptime] lines: usize,
    #[comptime] block: Block,
    #[comptime] side: Side,
) {
    let (to, depth) = (steps.to, steps.depth);
    #[unroll]
    for i in 0..comptime!(fetched_fours(block, lines)) {
        let share = UNIT_POS as usize + comptime!(i * block.units());
        let mut four = Four::new(0.0f32);
        // `index` is the index of the first value. The four values run along the rows of the matrix, from `along` to at
        // most `limit`.
        let mut line = first + share / comptime!(block.depth / 4);
        let mut k = step + share % comptime!(block.depth / 4) * 4;
        let mut index = line * depth + k;
        let mut limit = to;
        let mut along = k;
        if comptime!(side.layout == Layout::Columns) {
            line = first + share % comptime!(lines / 4) * 4;
            k = step + share / comptime!(lines / 4);
            index = k * end + line;
            limit = end;
            along = line;
        }
        if line < end && k < to {
            if comptime!(side.packing.is_some()) {
                let packing = comptime!(side.packing.unwrap());
                four = decode::<E, N>(source, index, end * depth, packing);
            } else if comptime!(side.vector == 4) {
                four = Vector::cast_from(source[index / 4]);
                if comptime!(side.dropped) {
                    #[unroll]
                    for e in 0..4usize {
                        four[e] = four[e] * factor(mask, (index + e) as u32);
                    }
                }
            } else {
                #[unroll]
                for e in 0..4usize {
                    if along + e < limit {
                        let mut value = f32::cast_from(source[index + e]);
                        if comptime!(side.dropped) {
                            value *= factor(mask, (index + e) as u32);
                        }
                        four[e] = value;
                    }
                }
            }
        }
        fetched[i] = four;
    }
}

/// Stores the values that [`fetch`] read in shared memory.
#[cube]
fn stage(
    fetched: &Array<Four>,
    staged: &mut SharedMemory<Four>,
    from: usize,
    #[comptime] lines: usize,
    #[comptime] block: Block,
    #[comptime] layout: Layout,
) {
    #[unroll]
    for i in 0..comptime!(fetched_fours(block, lines)) {
        let share = UNIT_POS as usize + comptime!(i * block.units());
        if comptime!(layout == Layout::Rows) {
            // Line after line, with gaps; see `staged_fours`.
            staged[from + share + share / comptime!(block.depth)] = fetched[i];
        } else {
            // Step after step.
            staged[from + share] = fetched[i];
        }
    }
}

/// Reads the values of one unit's lines at 4 steps from shared memory, step after step.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn take(
    staged: &SharedMemory<Four>,
    values: &mut Array<f32>,
    from: usize,
    unit: usize,
    k4: usize,
    #[comptime] lines: usize,
    #[comptime] unit_lines: usize,
    #[comptime] block: Block,
    #[comptime] layout: Layout,
) {
    let units = comptime!(lines / unit_lines);
    if comptime!(layout == Layout::Rows) {
        #[unroll]
        for i in 0..unit_lines {
            let group = unit + comptime!(i / 4 * units);
            let four = staged[from + group * comptime!(block.depth + 1) + comptime!(i % 4 * (block.depth / 4)) + k4];
            #[unroll]
            for k in 0..4usize {
                values[comptime!(k * unit_lines + i)] = four[k];
            }
        }
    } else {
        #[unroll]
        for k in 0..4usize {
            #[unroll]
            for group in 0..comptime!(unit_lines / 4) {
                let four = staged[from + (4 * k4 + k) * comptime!(lines / 4) + comptime!(group * units) + unit];
                #[unroll]
                for e in 0..4usize {
                    values[comptime!(k * unit_lines + 4 * group + e)] = four[e];
                }
            }
        }
    }
}
