//! Sums over a shared dimension, tile by tile: the inner loops of kernels that combine rows with rows.
//!
//! One cube computes a block of `rows` x `cols` outputs. It copies `depth` steps of both operands into shared memory,
//! and each unit adds their products to the `unit_rows` x `unit_cols` outputs in its registers.
//!
//! Accumulation: f32, one sum for each output, in ascending order of the shared dimension.

use cubecl::prelude::*;

use crate::gpu::mask::{Mask, factor};

/// The comptime sizes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    /// Output rows of a cube.
    pub(crate) rows: usize,
    /// Output columns of a cube.
    pub(crate) cols: usize,
    /// Steps of the shared dimension that are in shared memory at a time.
    pub(crate) depth: usize,
    /// Adjacent output rows of a unit.
    pub(crate) unit_rows: usize,
    /// Output columns of a unit, `cols / unit_cols` apart.
    pub(crate) unit_cols: usize,
}

impl Tile {
    /// For outputs that are large in both dimensions: 8 KiB of shared memory, 16 sums in registers.
    pub(crate) const SQUARE: Self = Self { rows: 64, cols: 64, depth: 16, unit_rows: 4, unit_cols: 4 };

    /// Units side by side.
    pub(crate) const fn units_x(&self) -> usize {
        self.cols / self.unit_cols
    }

    /// Units of a cube.
    pub(crate) const fn units(&self) -> usize {
        self.units_x() * (self.rows / self.unit_rows)
    }

    /// The units of a launch.
    pub(crate) fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(self.units() as u32)
    }
}

/// Memory layout of an operand. A line of the operand is a row or a column of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Layout {
    /// Lines are rows of the matrix: (lines, shared).
    Rows,
    /// Lines are columns of the matrix: (shared, lines).
    Columns,
}

/// The comptime settings of [`accumulate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sum {
    /// The block.
    pub(crate) tile: Tile,
    /// Memory layout of the left operand.
    pub(crate) left: Layout,
    /// Memory layout of the right operand.
    pub(crate) right: Layout,
    /// Whether dropout applies to the left operand.
    pub(crate) drop_left: bool,
    /// Whether dropout applies to the right operand.
    pub(crate) drop_right: bool,
    /// Whether to sum (left - right)^2 in place of left right.
    pub(crate) squared_difference: bool,
}

impl Sum {
    /// A sum of products without dropout.
    pub(crate) const fn products(tile: Tile, left: Layout, right: Layout) -> Self {
        Self { tile, left, right, drop_left: false, drop_right: false, squared_difference: false }
    }
}

/// Shared memory for `lines` lines of an operand, step after step. One value of padding in each step keeps writes by
/// column off one bank.
#[cube]
pub(crate) fn staging(#[comptime] lines: usize, #[comptime] tile: Tile) -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(tile.depth * (lines + 1)))
}

/// (row, column) of a unit's first output in its block.
#[cube]
pub(crate) fn unit_origin(#[comptime] tile: Tile) -> (usize, usize) {
    let unit = UNIT_POS as usize;
    let units_x = comptime!(tile.units_x());
    ((unit / units_x) * comptime!(tile.unit_rows), unit % units_x)
}

/// Zero sums for the outputs of a unit, row by row.
#[cube]
pub(crate) fn zeros(#[comptime] tile: Tile) -> Array<f32> {
    let count = comptime!(tile.unit_rows * tile.unit_cols);
    let mut sums = Array::<f32>::new(count);
    #[unroll]
    for i in 0..count {
        sums[i] = 0.0f32;
    }
    sums
}

/// The lines of an operand that a block reads, from line `first` on. Lines from `end` on count as 0. `pitch` is the
/// distance of the operand's rows in memory.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Lines {
    pub(crate) first: usize,
    pub(crate) end: usize,
    pub(crate) pitch: usize,
}

/// Adds to `sums` the block of these lines, over the steps `from..to` of the shared dimension. All units of a cube must
/// call it.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
pub(crate) fn accumulate<L: Float, Q: Float>(
    sums: &mut Array<f32>,
    left: &Array<L>,
    right: &Array<Q>,
    left_staged: &mut SharedMemory<f32>,
    right_staged: &mut SharedMemory<f32>,
    mask: &Mask,
    left_lines: &Lines,
    right_lines: &Lines,
    from: usize,
    to: usize,
    #[comptime] sum: Sum,
) {
    let tile = comptime!(sum.tile);
    let (unit_row, unit_col) = unit_origin(tile);
    let left_width = comptime!(tile.rows + 1);
    let right_width = comptime!(tile.cols + 1);
    for step in range_stepped(from, to, comptime!(tile.depth)) {
        stage::<L>(left, left_staged, mask, left_lines, step, to, tile.rows, tile, sum.left, sum.drop_left);
        stage::<Q>(right, right_staged, mask, right_lines, step, to, tile.cols, tile, sum.right, sum.drop_right);
        sync_cube();
        for k in 0..comptime!(tile.depth) {
            let mut column = Array::<f32>::new(comptime!(tile.unit_rows));
            #[unroll]
            for i in 0..comptime!(tile.unit_rows) {
                column[i] = left_staged[k * left_width + unit_row + i];
            }
            #[unroll]
            for j in 0..comptime!(tile.unit_cols) {
                let other = right_staged[k * right_width + unit_col + comptime!(j * tile.units_x())];
                #[unroll]
                for i in 0..comptime!(tile.unit_rows) {
                    let own = comptime!(i * tile.unit_cols + j);
                    if comptime!(sum.squared_difference) {
                        let difference = column[i] - other;
                        sums[own] += difference * difference;
                    } else {
                        sums[own] += column[i] * other;
                    }
                }
            }
        }
        // The next step overwrites what slower units still read.
        sync_cube();
    }
}

/// Copies `count` lines and the steps from `step` on into shared memory. Values beyond the operand become 0.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn stage<E: Float>(
    source: &Array<E>,
    staged: &mut SharedMemory<f32>,
    mask: &Mask,
    lines: &Lines,
    step: usize,
    to: usize,
    #[comptime] count: usize,
    #[comptime] tile: Tile,
    #[comptime] layout: Layout,
    #[comptime] dropped: bool,
) {
    let depth = comptime!(tile.depth);
    for copied in range_stepped(UNIT_POS as usize, comptime!(count * depth), comptime!(tile.units())) {
        let mut line = copied / depth;
        let mut k = copied % depth;
        if comptime!(layout == Layout::Columns) {
            line = copied % count;
            k = copied / count;
        }
        let mut value = 0.0f32;
        if lines.first + line < lines.end && step + k < to {
            let mut index = (lines.first + line) * lines.pitch + step + k;
            if comptime!(layout == Layout::Columns) {
                index = (step + k) * lines.pitch + lines.first + line;
            }
            value = f32::cast_from(source[index]);
            if comptime!(dropped) {
                value *= factor(mask, index as u32);
            }
        }
        staged[k * comptime!(count + 1) + line] = value;
    }
}
