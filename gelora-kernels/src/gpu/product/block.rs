//! The f32 kernel of [`Product`](super::Product): one cube computes a block of outputs, `depth` steps of the shared dimension
//! at a time.
//!
//! Values travel in fours. While a cube multiplies what is in one half of its shared memory, its units fetch the next steps
//! from global memory into registers; then they put them into the other half and synchronise, once for each `depth`.
//!
//! A unit's rows and columns are groups of 4 adjacent ones, a group for every 4 `units_y()` rows and 4 `units_x()` columns of
//! the block, so that adjacent units store adjacent fours.

use cubecl::prelude::*;

use super::Lines;
use crate::gpu::Four;
use crate::gpu::mask::{Mask, factor};
use crate::gpu::quantised::decode;
use crate::quantised::planes::Packing;

/// The comptime sizes of a block. All are multiples of 4, and the units divide `rows * depth / 4` and `cols * depth / 4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Output rows of a cube.
    pub rows: usize,
    /// Output columns of a cube.
    pub cols: usize,
    /// Steps of the shared dimension in each half of the shared memory.
    pub depth: usize,
    /// Output rows of a unit.
    pub unit_rows: usize,
    /// Output columns of a unit.
    pub unit_cols: usize,
}

impl Block {
    /// 64 sums a unit: 4 multiplications for every value read from shared memory. 18 KiB of that.
    pub const LARGE: Self = Self { rows: 128, cols: 128, depth: 8, unit_rows: 8, unit_cols: 8 };
    /// For outputs of which [`Block::LARGE`] would make too few cubes. 17 KiB.
    pub const SQUARE: Self = Self { rows: 64, cols: 64, depth: 16, unit_rows: 4, unit_cols: 4 };
    /// For few columns: x A^T, dY B and dB. The left operand is read once, so a unit fetches 8 fours of it at a time to keep
    /// memory busy. 21 KiB.
    pub const FEW_COLS: Self = Self { rows: 64, cols: 16, depth: 32, unit_rows: 4, unit_cols: 4 };
    /// For few rows: dA.
    pub const FEW_ROWS: Self = Self { rows: 16, cols: 64, depth: 32, unit_rows: 4, unit_cols: 4 };

    /// Units side by side.
    pub const fn units_x(&self) -> usize {
        self.cols / self.unit_cols
    }

    /// Units one above the other.
    pub const fn units_y(&self) -> usize {
        self.rows / self.unit_rows
    }

    /// Units of a cube.
    pub const fn units(&self) -> usize {
        self.units_x() * self.units_y()
    }

    /// Bytes of shared memory.
    pub const fn shared(&self) -> usize {
        2 * 16 * (staged_fours(self.rows, self.depth) + staged_fours(self.cols, self.depth))
    }
}

/// What one operand of a sum is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Side {
    /// How it lies in memory.
    pub lines: Lines,
    /// Values to a vector in memory: 4 where the rows of the matrix divide into fours, else 1.
    pub vector: usize,
    /// How its values are packed, if it is quantised: then memory holds words, one to a vector, and no dropout applies.
    pub packing: Option<Packing>,
    /// Whether dropout applies to it.
    pub dropped: bool,
}

/// The comptime settings of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sum {
    /// The block.
    pub block: Block,
    /// The operand whose lines are the output's rows.
    pub left: Side,
    /// The operand whose lines are the output's columns.
    pub right: Side,
}

/// How the adapter's product joins the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addend {
    /// Its operands.
    pub sum: Sum,
    /// Whether dropout applies to what it gives.
    pub dropped: bool,
}

/// The comptime settings of [`product_kernel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The base product.
    pub sum: Sum,
    /// The product that is added.
    pub adapter: Option<Addend>,
    /// Whether a bias is added to every row.
    pub biased: bool,
    /// Values to a vector of the output.
    pub vector: usize,
}

/// The sizes of a launch.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Extent {
    /// Output rows.
    pub rows: usize,
    /// Output columns.
    pub cols: usize,
    /// Steps of the base product.
    pub depth: usize,
    /// Steps of the base product in each part.
    pub part: usize,
    /// Steps of the adapter's product.
    pub rank: usize,
}

/// out (parts, rows, cols) = scale * left right + mask * adapter_scale * adapter_left adapter_right + bias, each part over
/// its steps of the base product.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
#[allow(clippy::collapsible_if)] // one condition is comptime, the other is not
pub fn product_kernel<W: Numeric, NL: Size, NR: Size, NAL: Size, NAR: Size, NO: Size>(
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
    for row_block in range_stepped(CUBE_POS_Y as usize, rows.div_ceil(block.rows), CUBE_COUNT_Y as usize) {
        let row = row_block * comptime!(block.rows);
        let mut sums = Array::<f32>::new(comptime!(block.unit_rows * block.unit_cols));
        #[unroll]
        for at in 0..comptime!(block.unit_rows * block.unit_cols) {
            sums[at] = 0.0f32;
        }
        if comptime!(plan.adapter.is_some()) {
            let addend = comptime!(plan.adapter.unwrap());
            accumulate::<f32, NAL, f32, NAR>(
                &mut sums,
                adapter_left,
                adapter_right,
                &mut left_staged,
                &mut right_staged,
                mask,
                row,
                rows,
                col,
                cols,
                0,
                extent.rank,
                extent.rank,
                addend.sum,
            );
            #[unroll]
            for i in 0..comptime!(block.unit_rows) {
                #[unroll]
                for j in 0..comptime!(block.unit_cols) {
                    let at = comptime!(i * block.unit_cols + j);
                    sums[at] = sums[at] * adapter_scale;
                    if comptime!(addend.dropped) {
                        let at_row = row + unit_row + comptime!(offset(i, block.units_y()));
                        let at_col = col + unit_col + comptime!(offset(j, block.units_x()));
                        sums[at] = sums[at] * factor(mask, (at_row * cols + at_col) as u32);
                    }
                }
            }
        }
        accumulate::<f32, NL, W, NR>(
            &mut sums,
            left,
            right,
            &mut left_staged,
            &mut right_staged,
            mask,
            row,
            rows,
            col,
            cols,
            from,
            to,
            extent.depth,
            plan.sum,
        );
        let first = CUBE_POS_Z as usize * rows;
        #[unroll]
        for i in 0..comptime!(block.unit_rows) {
            let at_row = row + unit_row + comptime!(offset(i, block.units_y()));
            #[unroll]
            for group in 0..comptime!(block.unit_cols / 4) {
                let at_col = col + unit_col + comptime!(offset(4 * group, block.units_x()));
                let mut four = Four::new(0.0f32);
                #[unroll]
                for j in 0..4usize {
                    let mut value = scale * sums[comptime!(i * block.unit_cols + 4 * group + j)];
                    if comptime!(plan.biased) {
                        if at_col + j < cols {
                            value += bias[at_col + j];
                        }
                    }
                    four[j] = value;
                }
                let at = (first + at_row) * cols + at_col;
                if comptime!(plan.vector == 4) {
                    if at_row < rows && at_col < cols {
                        out[at / 4] = Vector::cast_from(four);
                    }
                } else {
                    #[unroll]
                    for j in 0..4usize {
                        if at_row < rows && at_col + j < cols {
                            out[at + j] = Vector::cast_from(four[j]);
                        }
                    }
                }
            }
        }
    }
}

/// Adds to `sums` the block whose first row and column are `row` and `col`, over the steps `from..to` of a shared dimension
/// of `depth`. Lines at or beyond `rows` and `cols` count as 0. All units of a cube must call it.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn accumulate<L: Numeric, NL: Size, R: Numeric, NR: Size>(
    sums: &mut Array<f32>,
    left: &Array<Vector<L, NL>>,
    right: &Array<Vector<R, NR>>,
    left_staged: &mut SharedMemory<Four>,
    right_staged: &mut SharedMemory<Four>,
    mask: &Mask,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    from: usize,
    to: usize,
    depth: usize,
    #[comptime] sum: Sum,
) {
    let block = comptime!(sum.block);
    let left_half = comptime!(staged_fours(block.rows, block.depth));
    let right_half = comptime!(staged_fours(block.cols, block.depth));
    let mut left_next = Array::<Four>::new(comptime!(fetched_fours(block, block.rows)));
    let mut right_next = Array::<Four>::new(comptime!(fetched_fours(block, block.cols)));
    fetch::<L, NL>(left, &mut left_next, mask, row, rows, from, to, depth, block.rows, block, sum.left);
    fetch::<R, NR>(right, &mut right_next, mask, col, cols, from, to, depth, block.cols, block, sum.right);
    stage(&left_next, left_staged, 0, block.rows, block, sum.left.lines);
    stage(&right_next, right_staged, 0, block.cols, block, sum.right.lines);
    sync_cube();
    let mut half = 0usize;
    for step in range_stepped(from, to, comptime!(block.depth)) {
        let next = step + comptime!(block.depth);
        if next < to {
            fetch::<L, NL>(left, &mut left_next, mask, row, rows, next, to, depth, block.rows, block, sum.left);
            fetch::<R, NR>(right, &mut right_next, mask, col, cols, next, to, depth, block.cols, block, sum.right);
        }
        multiply(sums, left_staged, right_staged, half * left_half, half * right_half, sum);
        half = 1 - half;
        if next < to {
            stage(&left_next, left_staged, half * left_half, block.rows, block, sum.left.lines);
            stage(&right_next, right_staged, half * right_half, block.cols, block, sum.right.lines);
        }
        // Whoever is first at the next step waits here for those who still read the half that it will write.
        sync_cube();
    }
}

/// Adds what is staged to the sums of this unit, step by step.
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
    // Not unrolled: the body is long enough, and drivers take seconds to compile more of it.
    for k4 in 0..comptime!(block.depth / 4) {
        let mut rows = Array::<f32>::new(comptime!(4 * block.unit_rows));
        let mut cols = Array::<f32>::new(comptime!(4 * block.unit_cols));
        take(left_staged, &mut rows, left_from, unit_y, k4, block.rows, block.unit_rows, block, sum.left.lines);
        take(right_staged, &mut cols, right_from, unit_x, k4, block.cols, block.unit_cols, block, sum.right.lines);
        #[unroll]
        for k in 0..4usize {
            #[unroll]
            for i in 0..comptime!(block.unit_rows) {
                #[unroll]
                for j in 0..comptime!(block.unit_cols) {
                    let at = comptime!(i * block.unit_cols + j);
                    sums[at] += rows[comptime!(k * block.unit_rows + i)] * cols[comptime!(k * block.unit_cols + j)];
                }
            }
        }
    }
}

/// Reads this unit's share of `lines` lines from line `first`, at the steps from `step`. What is beyond `end` or `to` is 0.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
pub fn fetch<E: Numeric, N: Size>(
    source: &Array<Vector<E, N>>,
    fetched: &mut Array<Four>,
    mask: &Mask,
    first: usize,
    end: usize,
    step: usize,
    to: usize,
    depth: usize,
    #[comptime] lines: usize,
    #[comptime] block: Block,
    #[comptime] side: Side,
) {
    #[unroll]
    for i in 0..comptime!(fetched_fours(block, lines)) {
        let share = UNIT_POS as usize + comptime!(i * block.units());
        let mut four = Four::new(0.0f32);
        // `at` is the first element, `inside` how many of the four there are.
        let mut line = first + share / comptime!(block.depth / 4);
        let mut k = step + share % comptime!(block.depth / 4) * 4;
        let mut at = line * depth + k;
        let mut left = to;
        let mut along = k;
        if comptime!(side.lines == Lines::AreColumns) {
            line = first + share % comptime!(lines / 4) * 4;
            k = step + share / comptime!(lines / 4);
            at = k * end + line;
            left = end;
            along = line;
        }
        if line < end && k < to {
            if comptime!(side.packing.is_some()) {
                let packing = comptime!(side.packing.unwrap());
                four = decode::<E, N>(source, at, end * depth, packing);
            } else if comptime!(side.vector == 4) {
                four = Vector::cast_from(source[at / 4]);
                if comptime!(side.dropped) {
                    #[unroll]
                    for e in 0..4usize {
                        four[e] = four[e] * factor(mask, (at + e) as u32);
                    }
                }
            } else {
                #[unroll]
                for e in 0..4usize {
                    if along + e < left {
                        let mut value = f32::cast_from(source[at + e]);
                        if comptime!(side.dropped) {
                            value *= factor(mask, (at + e) as u32);
                        }
                        four[e] = value;
                    }
                }
            }
        }
        fetched[i] = four;
    }
}

/// Puts what [`fetch`] read into shared memory.
#[cube]
fn stage(
    fetched: &Array<Four>,
    staged: &mut SharedMemory<Four>,
    from: usize,
    #[comptime] lines: usize,
    #[comptime] block: Block,
    #[comptime] lie: Lines,
) {
    #[unroll]
    for i in 0..comptime!(fetched_fours(block, lines)) {
        let share = UNIT_POS as usize + comptime!(i * block.units());
        if comptime!(lie == Lines::AreRows) {
            // Line after line; see `staged_fours` for the gaps.
            staged[from + share + share / comptime!(block.depth)] = fetched[i];
        } else {
            // Step after step.
            staged[from + share] = fetched[i];
        }
    }
}

/// The values of one unit's lines at 4 steps, step after step.
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
    #[comptime] lie: Lines,
) {
    let units = comptime!(lines / unit_lines);
    if comptime!(lie == Lines::AreRows) {
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

/// Where a unit's line `i` is, from its first.
const fn offset(i: usize, units: usize) -> usize {
    i / 4 * 4 * units + i % 4
}

/// Fours that each unit reads of `lines` lines.
pub const fn fetched_fours(block: Block, lines: usize) -> usize {
    lines * block.depth / 4 / block.units()
}

/// Fours of shared memory for `lines` lines. One after every 4 lines stays empty, so that units which read at the same place
/// of adjacent groups of lines find them in different banks.
const fn staged_fours(lines: usize, depth: usize) -> usize {
    lines * depth / 4 + lines / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_share_the_fetching_evenly() {
        for block in [Block::LARGE, Block::SQUARE, Block::FEW_COLS, Block::FEW_ROWS] {
            assert_eq!(fetched_fours(block, block.rows) * block.units() * 4, block.rows * block.depth);
            assert_eq!(fetched_fours(block, block.cols) * block.units() * 4, block.cols * block.depth);
            assert!(block.shared() <= 32 << 10, "{block:?}: {}", block.shared());
        }
    }
}
