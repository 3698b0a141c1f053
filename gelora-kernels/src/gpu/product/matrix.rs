//! The kernel of [`Product`](super::Product) on matrix units: products of bf16, summed in f32.
//!
//! A cube of 8 planes computes 128 x 128 outputs, each plane 32 x 64 of them as 2 x 4 fragments. Operands are rounded to bf16
//! on their way into shared memory; while the planes multiply what is there, the units fetch the next 32 steps.
//!
//! An adapter's product comes first, by the same fragments. Its left operand (xa, or dxa), which is f32 everywhere else, is
//! taken apart into three numbers of 8 bits each, whose products are summed: it is not rounded, its right operand is.

use cubecl::prelude::*;
use cubecl::{cmma, cmma::MatrixIdent, cmma::MatrixLayout};
use half::bf16;

use super::Lines;
use super::block::{Block, Extent, Four, Plan, Side, fetch, fetched_fours};
use crate::ops::dropout::gpu::Mask;

/// Rows and columns of a fragment.
const SIDE: usize = 16;
/// Values between the ends of staged lines, so that lines begin in different banks and on 16 bytes.
const GAP: usize = 8;
/// Fragments of a plane, one above the other and side by side.
const DOWN: usize = 2;
const ACROSS: usize = 4;
/// Planes side by side.
const PLANES_ACROSS: usize = 2;
const PLANES: usize = 8;
/// Numbers of 8 bits that make an f32.
const PARTS: usize = 3;

/// The sizes of a cube.
pub const BLOCK: Block = Block { rows: 128, cols: 128, depth: 32, unit_rows: 8, unit_cols: 8 };

/// Bytes of shared memory.
pub const SHARED: usize = 2 * 2 * BLOCK.rows * (BLOCK.depth + GAP) + 4 * PLANES * SIDE * SIDE;

/// Values between lines that lie so in shared memory.
const fn pitch(lie: Lines) -> usize {
    match lie {
        Lines::AreRows => BLOCK.depth + GAP,
        Lines::AreColumns => BLOCK.cols + GAP,
    }
}

/// As [`super::block::product_kernel`], without dropout and parts; `adapter_scale` multiplies the adapter's left operand.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
pub fn matrix_kernel<W: Float, NL: Size, NR: Size, NAL: Size, NAR: Size>(
    left: &Array<Vector<f32, NL>>,
    right: &Array<Vector<W, NR>>,
    adapter_left: &Array<Vector<f32, NAL>>,
    adapter_right: &Array<Vector<f32, NAR>>,
    bias: &Array<f32>,
    out: &mut Array<f32>,
    mask: &Mask,
    extent: &Extent,
    adapter_scale: f32,
    #[comptime] plan: Plan,
) {
    let mut left_staged = SharedMemory::<bf16>::new(comptime!(BLOCK.rows * (BLOCK.depth + GAP)));
    let mut right_staged = SharedMemory::<bf16>::new(comptime!(BLOCK.cols * (BLOCK.depth + GAP)));
    let mut outgoing = SharedMemory::<f32>::new(comptime!(PLANES * SIDE * SIDE));
    let plane = UNIT_POS as usize / PLANE_DIM as usize;
    let lane = UNIT_POS as usize % PLANE_DIM as usize;
    let plane_row = plane / PLANES_ACROSS * comptime!(DOWN * SIDE);
    let plane_col = plane % PLANES_ACROSS * comptime!(ACROSS * SIDE);
    let col = CUBE_POS_X as usize * comptime!(BLOCK.cols);
    let (rows, cols) = (extent.rows, extent.cols);
    for row_block in range_stepped(CUBE_POS_Y as usize, rows.div_ceil(BLOCK.rows), CUBE_COUNT_Y as usize) {
        let row = row_block * comptime!(BLOCK.rows);
        let mut sums = Sequence::<cmma::Matrix<f32>>::new();
        #[unroll]
        for _ in 0..comptime!(DOWN * ACROSS) {
            sums.push(cmma::Matrix::<f32>::from_value(
                MatrixIdent::Accumulator,
                SIDE,
                SIDE,
                SIDE,
                MatrixLayout::Undefined,
                0.0f32,
            ));
        }
        if comptime!(plan.adapter.is_some()) {
            let addend = comptime!(plan.adapter.unwrap());
            #[unroll]
            for part in 0..PARTS {
                accumulate::<f32, NAL, f32, NAR>(
                    &sums,
                    adapter_left,
                    adapter_right,
                    &mut left_staged,
                    &mut right_staged,
                    mask,
                    row,
                    rows,
                    col,
                    cols,
                    extent.rank,
                    adapter_scale,
                    plane_row,
                    plane_col,
                    part,
                    addend.sum.left,
                    addend.sum.right,
                );
            }
        }
        accumulate::<f32, NL, W, NR>(
            &sums,
            left,
            right,
            &mut left_staged,
            &mut right_staged,
            mask,
            row,
            rows,
            col,
            cols,
            extent.depth,
            1.0f32,
            plane_row,
            plane_col,
            0usize,
            plan.sum.left,
            plan.sum.right,
        );
        #[unroll]
        for i in 0..DOWN {
            #[unroll]
            for j in 0..ACROSS {
                let first = plane * comptime!(SIDE * SIDE);
                cmma::store(
                    &mut outgoing.slice_mut(first, first + comptime!(SIDE * SIDE)),
                    sums.index(comptime!(i * ACROSS + j)),
                    SIDE as u32,
                    MatrixLayout::RowMajor,
                );
                sync_cube();
                for at in range_stepped(lane, comptime!(SIDE * SIDE), PLANE_DIM as usize) {
                    let at_row = row + plane_row + comptime!(i * SIDE) + at / SIDE;
                    let at_col = col + plane_col + comptime!(j * SIDE) + at % SIDE;
                    if at_row < rows && at_col < cols {
                        let mut value = outgoing[first + at];
                        if comptime!(plan.biased) {
                            value += bias[at_col];
                        }
                        out[at_row * cols + at_col] = value;
                    }
                }
                sync_cube();
            }
        }
    }
}

/// Adds the products of `depth` steps, with the left operand times `scale` and, of that, the 8 bits that `part` means.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn accumulate<L: Float, NL: Size, R: Float, NR: Size>(
    sums: &Sequence<cmma::Matrix<f32>>,
    left: &Array<Vector<L, NL>>,
    right: &Array<Vector<R, NR>>,
    left_staged: &mut SharedMemory<bf16>,
    right_staged: &mut SharedMemory<bf16>,
    mask: &Mask,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    depth: usize,
    scale: f32,
    plane_row: usize,
    plane_col: usize,
    #[comptime] part: usize,
    #[comptime] left_side: Side,
    #[comptime] right_side: Side,
) {
    let mut left_next = Array::<Four>::new(comptime!(fetched_fours(BLOCK, BLOCK.rows)));
    let mut right_next = Array::<Four>::new(comptime!(fetched_fours(BLOCK, BLOCK.cols)));
    fetch::<L, NL>(left, &mut left_next, mask, row, rows, 0, depth, depth, BLOCK.rows, BLOCK, left_side);
    fetch::<R, NR>(right, &mut right_next, mask, col, cols, 0, depth, depth, BLOCK.cols, BLOCK, right_side);
    for step in range_stepped(0, depth, comptime!(BLOCK.depth)) {
        stage(&left_next, left_staged, scale, part, left_side.lines);
        stage(&right_next, right_staged, 1.0f32, 0usize, right_side.lines);
        sync_cube();
        let next = step + comptime!(BLOCK.depth);
        if next < depth {
            fetch::<L, NL>(left, &mut left_next, mask, row, rows, next, depth, depth, BLOCK.rows, BLOCK, left_side);
            fetch::<R, NR>(right, &mut right_next, mask, col, cols, next, depth, depth, BLOCK.cols, BLOCK, right_side);
        }
        // A small rank fills the first 16 steps alone.
        #[unroll]
        for half in 0..comptime!(BLOCK.depth / SIDE) {
            if step + comptime!(half * SIDE) < depth {
                multiply(
                    sums,
                    left_staged,
                    right_staged,
                    plane_row,
                    plane_col,
                    comptime!(half * SIDE),
                    left_side.lines,
                    right_side.lines,
                );
            }
        }
        // The next step overwrites what slower planes still read.
        sync_cube();
    }
}

/// Adds 16 staged steps from step `k`.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn multiply(
    sums: &Sequence<cmma::Matrix<f32>>,
    left_staged: &SharedMemory<bf16>,
    right_staged: &SharedMemory<bf16>,
    plane_row: usize,
    plane_col: usize,
    #[comptime] k: usize,
    #[comptime] left_lines: Lines,
    #[comptime] right_lines: Lines,
) {
    let left_pitch = comptime!(pitch(left_lines));
    let right_pitch = comptime!(pitch(right_lines));
    let left_end = comptime!(BLOCK.rows * (BLOCK.depth + GAP));
    let right_end = comptime!(BLOCK.cols * (BLOCK.depth + GAP));
    let mut across = Sequence::<cmma::Matrix<bf16>>::new();
    #[unroll]
    for j in 0..ACROSS {
        let line = plane_col + comptime!(j * SIDE);
        // B is (steps, columns): its columns are staged lines, or its rows are.
        if comptime!(right_lines == Lines::AreRows) {
            let first = line * right_pitch + k;
            across.push(cmma::Matrix::<bf16>::from_slice(
                MatrixIdent::B,
                SIDE,
                SIDE,
                SIDE,
                MatrixLayout::ColMajor,
                &right_staged.slice(first, right_end),
                comptime!(right_pitch as u32).runtime(),
            ));
        } else {
            let first = k * right_pitch + line;
            across.push(cmma::Matrix::<bf16>::from_slice(
                MatrixIdent::B,
                SIDE,
                SIDE,
                SIDE,
                MatrixLayout::RowMajor,
                &right_staged.slice(first, right_end),
                comptime!(right_pitch as u32).runtime(),
            ));
        }
    }
    #[unroll]
    for i in 0..DOWN {
        let first = (plane_row + comptime!(i * SIDE)) * left_pitch + k;
        let down = cmma::Matrix::<bf16>::from_slice(
            MatrixIdent::A,
            SIDE,
            SIDE,
            SIDE,
            MatrixLayout::RowMajor,
            &left_staged.slice(first, left_end),
            comptime!(left_pitch as u32).runtime(),
        );
        #[unroll]
        for j in 0..ACROSS {
            let sum = sums.index(comptime!(i * ACROSS + j));
            cmma::execute::<bf16, bf16, f32, f32>(&down, across.index(j), sum, sum);
        }
    }
}

/// Rounds what was fetched to bf16 and puts it into shared memory.
#[cube]
fn stage(
    fetched: &Array<Four>,
    staged: &mut SharedMemory<bf16>,
    scale: f32,
    #[comptime] part: usize,
    #[comptime] lie: Lines,
) {
    #[unroll]
    for i in 0..comptime!(fetched_fours(BLOCK, BLOCK.rows)) {
        let share = UNIT_POS as usize + comptime!(i * BLOCK.units());
        let mut at =
            share / comptime!(BLOCK.depth / 4) * comptime!(pitch(lie)) + share % comptime!(BLOCK.depth / 4) * 4;
        if comptime!(lie == Lines::AreColumns) {
            at = share / comptime!(BLOCK.rows / 4) * comptime!(pitch(lie)) + share % comptime!(BLOCK.rows / 4) * 4;
        }
        let four = fetched[i];
        #[unroll]
        for e in 0..4usize {
            let mut rest = four[e] * scale;
            #[unroll]
            for _ in 0..part {
                rest -= f32::cast_from(bf16::cast_from(rest));
            }
            staged[at + e] = bf16::cast_from(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_planes_cover_the_block_and_the_shares_fit() {
        assert_eq!(PLANES / PLANES_ACROSS * DOWN * SIDE, BLOCK.rows);
        assert_eq!(PLANES_ACROSS * ACROSS * SIDE, BLOCK.cols);
        assert_eq!(BLOCK.units(), 32 * PLANES);
        assert_eq!(fetched_fours(BLOCK, BLOCK.rows) * BLOCK.units() * 4, BLOCK.rows * BLOCK.depth);
        // Either lie of a staged operand fits.
        assert!(BLOCK.depth * pitch(Lines::AreColumns) <= BLOCK.cols * pitch(Lines::AreRows));
        const { assert!(SHARED <= 48 << 10) };
    }
}
