//! Sums over a shared dimension, tile by tile: the inner part of every kernel that combines rows with rows.
//!
//! One cube computes a block of `rows` x `cols` outputs. It copies `depth` steps of both operands into shared memory, and
//! each unit adds their contributions to the `unit_rows` x `unit_cols` outputs that it keeps in registers.
//!
//! Accumulation: f32, one accumulator an output, in ascending order of the shared dimension.

use cubecl::prelude::*;

use crate::gpu::mask::{Mask, factor};

/// The comptime sizes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Output rows of a cube.
    pub rows: usize,
    /// Output columns of a cube.
    pub cols: usize,
    /// Steps of the shared dimension that are in shared memory at a time.
    pub depth: usize,
    /// Adjacent output rows of a unit.
    pub unit_rows: usize,
    /// Output columns of a unit, `cols / unit_cols` apart.
    pub unit_cols: usize,
}

impl Tile {
    /// For outputs that are large both ways: 8 KiB of shared memory, 16 registers of sums.
    pub const SQUARE: Self = Self { rows: 64, cols: 64, depth: 16, unit_rows: 4, unit_cols: 4 };

    /// Units side by side.
    pub const fn units_x(&self) -> usize {
        self.cols / self.unit_cols
    }

    /// Units of a cube.
    pub const fn units(&self) -> usize {
        self.units_x() * (self.rows / self.unit_rows)
    }

    /// The units of a launch.
    pub fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(self.units() as u32)
    }
}

/// How an operand lies in memory, so that adjacent units read adjacent values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lines {
    /// A line (an output's row or column) is a row of the matrix: (lines, shared).
    AreRows,
    /// A line is a column of the matrix: (shared, lines).
    AreColumns,
}

/// What is summed and how the operands lie: the comptime settings of [`accumulate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sum {
    /// The block.
    pub tile: Tile,
    /// How the operand lies that gives the output's rows.
    pub left: Lines,
    /// How the operand lies that gives the output's columns.
    pub right: Lines,
    /// Whether dropout applies to the left operand.
    pub drop_left: bool,
    /// Whether dropout applies to the right operand.
    pub drop_right: bool,
    /// Sums (left - right)^2 rather than left * right.
    pub squared_difference: bool,
}

impl Sum {
    /// A sum of products without dropout.
    pub const fn products(tile: Tile, left: Lines, right: Lines) -> Self {
        Self { tile, left, right, drop_left: false, drop_right: false, squared_difference: false }
    }
}

/// An operand's line block in shared memory, step after step; one value of padding a step keeps column-wise writes off
/// one bank.
#[cube]
pub fn staging(#[comptime] lines: usize, #[comptime] tile: Tile) -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(tile.depth * (lines + 1)))
}

/// Where the first of a unit's outputs is in its block: (row, column).
#[cube]
pub fn unit_origin(#[comptime] tile: Tile) -> (usize, usize) {
    let unit = UNIT_POS as usize;
    let units_x = comptime!(tile.units_x());
    ((unit / units_x) * comptime!(tile.unit_rows), unit % units_x)
}

/// Sums of zero for every output of a unit, row by row.
#[cube]
pub fn zeros(#[comptime] tile: Tile) -> Array<f32> {
    let count = comptime!(tile.unit_rows * tile.unit_cols);
    let mut sums = Array::<f32>::new(count);
    #[unroll]
    for i in 0..count {
        sums[i] = 0.0f32;
    }
    sums
}

/// Adds to `sums` the block whose first row and column are `row` and `col`, over the steps `from..to` of the shared
/// dimension. Lines at or beyond `rows` and `cols` count as 0. All units of a cube must call it.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
pub fn accumulate<L: Float, Q: Float>(
    sums: &mut Array<f32>,
    left: &Array<L>,
    right: &Array<Q>,
    left_staged: &mut SharedMemory<f32>,
    right_staged: &mut SharedMemory<f32>,
    mask: &Mask,
    row: usize,
    rows: usize,
    left_pitch: usize,
    col: usize,
    cols: usize,
    right_pitch: usize,
    from: usize,
    to: usize,
    #[comptime] sum: Sum,
) {
    let tile = comptime!(sum.tile);
    let (unit_row, unit_col) = unit_origin(tile);
    let left_width = comptime!(tile.rows + 1);
    let right_width = comptime!(tile.cols + 1);
    for step in range_stepped(from, to, comptime!(tile.depth)) {
        stage::<L>(left, left_staged, mask, row, rows, left_pitch, step, to, tile.rows, tile, sum.left, sum.drop_left);
        stage::<Q>(
            right,
            right_staged,
            mask,
            col,
            cols,
            right_pitch,
            step,
            to,
            tile.cols,
            tile,
            sum.right,
            sum.drop_right,
        );
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
                    let at = comptime!(i * tile.unit_cols + j);
                    if comptime!(sum.squared_difference) {
                        let difference = column[i] - other;
                        sums[at] += difference * difference;
                    } else {
                        sums[at] += column[i] * other;
                    }
                }
            }
        }
        // The next step overwrites what slower units still read.
        sync_cube();
    }
}

/// Copies `lines` lines from line `first` over the steps from `step` into shared memory.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn stage<E: Float>(
    source: &Array<E>,
    staged: &mut SharedMemory<f32>,
    mask: &Mask,
    first: usize,
    end: usize,
    pitch: usize,
    step: usize,
    to: usize,
    #[comptime] lines: usize,
    #[comptime] tile: Tile,
    #[comptime] lie: Lines,
    #[comptime] dropped: bool,
) {
    let depth = comptime!(tile.depth);
    for copied in range_stepped(UNIT_POS as usize, comptime!(lines * depth), comptime!(tile.units())) {
        let mut line = copied / depth;
        let mut k = copied % depth;
        if comptime!(lie == Lines::AreColumns) {
            line = copied % lines;
            k = copied / lines;
        }
        let mut value = 0.0f32;
        if first + line < end && step + k < to {
            let mut at = (first + line) * pitch + step + k;
            if comptime!(lie == Lines::AreColumns) {
                at = (step + k) * pitch + first + line;
            }
            value = f32::cast_from(source[at]);
            if comptime!(dropped) {
                value *= factor(mask, at as u32);
            }
        }
        staged[k * comptime!(lines + 1) + line] = value;
    }
}
