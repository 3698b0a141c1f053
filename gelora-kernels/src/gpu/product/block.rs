//! The comptime settings of the f32 kernel of [`Product`](super::Product), and the sizes of its blocks.

use cubecl::prelude::*;

use super::Layout;
use crate::quantized::planes::Packing;

/// The comptime sizes of a block. All are multiples of 4, and the units divide `rows * depth / 4` and `cols * depth /
/// 4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Block {
    /// Output rows of a cube.
    pub(crate) rows: usize,
    /// Output columns of a cube.
    pub(crate) cols: usize,
    /// Steps of the shared dimension in each half of the shared memory.
    pub(crate) depth: usize,
    /// Output rows of a unit.
    pub(crate) unit_rows: usize,
    /// Output columns of a unit.
    pub(crate) unit_cols: usize,
}

impl Block {
    /// 64 sums in a unit: 4 multiplications for every value read from shared memory. Takes 18 KiB of shared memory.
    pub(crate) const LARGE: Self = Self { rows: 128, cols: 128, depth: 8, unit_rows: 8, unit_cols: 8 };
    /// For outputs that [`Block::LARGE`] would split into too few cubes. Takes 17 KiB.
    pub(crate) const SQUARE: Self = Self { rows: 64, cols: 64, depth: 16, unit_rows: 4, unit_cols: 4 };
    /// For few columns: x A^T, dY B and dB. The left operand is read once, so a unit fetches 8 fours of it at a time to
    /// keep memory busy. Takes 21 KiB.
    pub(crate) const FEW_COLS: Self = Self { rows: 64, cols: 16, depth: 32, unit_rows: 4, unit_cols: 4 };
    /// For few rows: dA.
    pub(crate) const FEW_ROWS: Self = Self { rows: 16, cols: 64, depth: 32, unit_rows: 4, unit_cols: 4 };

    /// Units side by side.
    pub(crate) const fn units_x(&self) -> usize {
        self.cols / self.unit_cols
    }

    /// Units one above the other.
    pub(crate) const fn units_y(&self) -> usize {
        self.rows / self.unit_rows
    }

    /// Units of a cube.
    pub(crate) const fn units(&self) -> usize {
        self.units_x() * self.units_y()
    }

    /// Bytes of shared memory.
    pub(crate) const fn shared(&self) -> usize {
        2 * 16 * (staged_fours(self.rows, self.depth) + staged_fours(self.cols, self.depth))
    }
}

/// The comptime settings of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Side {
    /// Its layout in memory.
    pub(crate) layout: Layout,
    /// Values of a vector in memory: 4 if the rows of the matrix divide into fours, else 1.
    pub(crate) vector: usize,
    /// The packing of its values, if it is quantized. Memory then holds words, one to a vector, and no dropout applies.
    pub(crate) packing: Option<Packing>,
    /// Whether dropout applies to it.
    pub(crate) dropped: bool,
}

/// The comptime settings of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sum {
    /// The block.
    pub(crate) block: Block,
    /// The operand whose lines are the output's rows.
    pub(crate) left: Side,
    /// The operand whose lines are the output's columns.
    pub(crate) right: Side,
}

/// The comptime settings of the adapter's product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Addend {
    /// Its operands.
    pub(crate) sum: Sum,
    /// Whether dropout applies to its output.
    pub(crate) dropped: bool,
}

/// The comptime settings of [`product_kernel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    /// The base product.
    pub(crate) sum: Sum,
    /// The adapter's product.
    pub(crate) adapter: Option<Addend>,
    /// Whether a bias is added to every row.
    pub(crate) biased: bool,
    /// Values of a vector of the output.
    pub(crate) vector: usize,
}

/// The sizes of a launch.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Extent {
    /// Output rows.
    pub(crate) rows: usize,
    /// Output columns.
    pub(crate) cols: usize,
    /// Steps of the base product.
    pub(crate) depth: usize,
    /// Steps of the base product in each part.
    pub(crate) part: usize,
    /// Steps of the adapter's product.
    pub(crate) rank: usize,
}

/// The distance of a unit's line `i` from its first line.
pub(super) const fn offset(i: usize, units: usize) -> usize {
    i / 4 * 4 * units + i % 4
}

/// Number of fours that each unit reads of `lines` lines.
pub(super) const fn fetched_fours(block: Block, lines: usize) -> usize {
    lines * block.depth / 4 / block.units()
}

/// Number of fours of shared memory for `lines` lines. One four after every 4 lines stays empty, so that units which
/// read the same place in adjacent groups of lines access different banks.
pub(super) const fn staged_fours(lines: usize, depth: usize) -> usize {
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
