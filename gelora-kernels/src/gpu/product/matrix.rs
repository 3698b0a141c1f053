//! The kernel of [`Product`](super::Product) on matrix units: products of bf16, summed in f32.
//!
//! Both operands are in bf16 and padded to whole vectors of 16 bytes (see [`super::pack`]), so asynchronous copies move
//! a tile from global to shared memory without passing registers. Shared memory holds a few stages of 64 steps of the
//! shared dimension: while the planes multiply one stage, the copies of the next stages are in progress. A plane
//! computes 64 x 64 or 32 x 32 outputs from fragments of 16 x 16 and 16 x 8 values (`ldmatrix`, `mma.m16n8k16`).
//!
//! The adapter's product adds steps to the same loop, before those of the base product, with operands in the same
//! layouts. Its left operand, elsewhere f32, arrives as three numbers of 8 bits side by side along the shared
//! dimension, so it is not rounded. Its right operand is rounded.
//!
//! Accumulation: f32 on matrix units, in ascending order of the steps, the adapter's before the base's. Matrix units
//! truncate their sums, so an error grows with the number of steps.
use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::barrier::{Barrier, copy_async};
use cubecl::prelude::*;
use half::bf16;

use super::Layout;
use super::shape::{DEPTH, LINE, PLANE, SIDE, Shape, WIDTH};
use crate::gpu::mask::{Mask, factor};

/// The comptime settings of [`matrix_kernel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatrixPlan {
    /// The sizes of a cube.
    pub(crate) shape: Shape,
    /// Layout of both right operands.
    pub(crate) right: Layout,
    /// Whether an adapter is added.
    pub(crate) adapter: bool,
    /// Whether dropout applies to the adapter's term.
    pub(crate) dropped: bool,
    /// Whether a bias is added to every row.
    pub(crate) biased: bool,
    /// Values of a vector of the output: 2 if rows divide into pairs, else 1.
    pub(crate) vector: usize,
}

/// The sizes of a launch. A pitch is the number of vectors from one row of a matrix to the next.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct MatrixExtent {
    /// Output rows.
    pub(crate) rows: usize,
    /// Output columns.
    pub(crate) cols: usize,
    /// Stages of the base product.
    pub(crate) steps: usize,
    /// Stages of the adapter's product.
    pub(crate) adapter_steps: usize,
    /// Pitch of the left operand.
    pub(crate) left_pitch: usize,
    /// Pitch of the right operand.
    pub(crate) right_pitch: usize,
    /// Pitch of the adapter's left operand.
    pub(crate) adapter_left_pitch: usize,
    /// Pitch of the adapter's right operand.
    pub(crate) adapter_right_pitch: usize,
}

/// out (rows, cols) = left right + mask adapter_left adapter_right + bias.
///
/// `left` is (rows, steps * 64) and `adapter_left` (rows, adapter_steps * 64). The right operands are (cols, steps *
/// 64) in the layout of rows, and (steps * 64, cols padded to vectors) in that of columns. Values beyond the product's
/// own steps are 0 on the left and finite on the right.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
#[allow(clippy::collapsible_if)] // one condition is comptime, the other is not
pub(crate) fn matrix_kernel<N: Size, NO: Size>(
    left: &Array<Vector<bf16, N>>,
    right: &Array<Vector<bf16, N>>,
    adapter_left: &Array<Vector<bf16, N>>,
    adapter_right: &Array<Vector<bf16, N>>,
    bias: &Array<f32>,
    out: &mut Array<Vector<f32, NO>>,
    mask: &Mask,
    extent: &MatrixExtent,
    #[comptime] plan: MatrixPlan,
) {
    let shape = comptime!(plan.shape);
    let (stages, plane_side) = comptime!((shape.stages, shape.plane));
    let mut left_staged = SharedMemory::<Vector<bf16, N>>::new_aligned(comptime!(stages * shape.left_stage()), 16usize);
    let mut right_staged =
        SharedMemory::<Vector<bf16, N>>::new_aligned(comptime!(stages * shape.right_stage()), 16usize);
    // The barrier of a stage completes a phase when the copies of all units have arrived.
    let mut arrived = Sequence::<Shared<Barrier>>::new();
    #[unroll]
    for _ in 0..stages {
        arrived.push(Barrier::shared(comptime!(shape.units() as u32).runtime(), UNIT_POS == 0));
    }
    sync_cube();

    let plane = UNIT_POS as usize / comptime!(PLANE);
    let lane = UNIT_POS as usize % comptime!(PLANE);
    let plane_row = plane / comptime!(shape.cols / plane_side) * plane_side;
    let plane_col = plane % comptime!(shape.cols / plane_side) * plane_side;
    let row = CUBE_POS_Y as usize * comptime!(shape.rows);
    let col = CUBE_POS_X as usize * comptime!(shape.cols);
    let steps = extent.adapter_steps + extent.steps;

    let down = comptime!(plane_side / SIDE);
    let across = comptime!(plane_side / 8);
    let mut sums = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    #[unroll]
    for _ in 0..comptime!(down * across) {
        let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
        sum[0] = Vector::new(0.0f32);
        sum[1] = Vector::new(0.0f32);
        sums.push(sum);
    }

    // The copies of the first stages start before the loop.
    let ahead = comptime!(stages - 1).runtime();
    for step in 0..steps.min(ahead) {
        copy_stage::<N>(
            left,
            right,
            adapter_left,
            adapter_right,
            &mut left_staged,
            &mut right_staged,
            extent,
            row,
            col,
            step,
            step,
            plan,
        );
        announce(&arrived, step, stages);
    }
    let mut stage = 0usize;
    let mut phase = 0u32;
    for step in 0..steps {
        wait_for(&arrived, stage, phase, stages);
        // All planes are done with the stage before, which the next copies overwrite.
        sync_cube();
        let next = step + comptime!(stages - 1);
        if next < steps {
            let next_stage = select(stage == 0, comptime!(stages - 1), stage - 1);
            copy_stage::<N>(
                left,
                right,
                adapter_left,
                adapter_right,
                &mut left_staged,
                &mut right_staged,
                extent,
                row,
                col,
                next,
                next_stage,
                plan,
            );
            announce(&arrived, next_stage, stages);
        }
        multiply_stage::<N>(
            &mut sums,
            &left_staged,
            &right_staged,
            plane_row,
            plane_col,
            lane,
            stage,
            shape,
            plan.right,
        );
        // The sums so far are the adapter's: the mask applies to them.
        if comptime!(plan.dropped) {
            if step + 1 == extent.adapter_steps {
                drop_out(&mut sums, mask, row + plane_row, col + plane_col, extent.cols, lane, plane_side);
            }
        }
        stage += 1;
        if stage == stages {
            stage = 0;
            phase = 1 - phase;
        }
    }

    // Of each 16 x 8 sums, a unit holds the columns 2 (lane % 4) and the next, in the rows lane / 4 and lane / 4 + 8.
    #[unroll]
    for i in 0..down {
        #[unroll]
        for j in 0..across {
            let sum = sums.index(comptime!(i * across + j));
            let out_col = col + plane_col + comptime!(j * 8) + lane % 4 * 2;
            #[unroll]
            for half in 0..2usize {
                let out_row = row + plane_row + comptime!(i * SIDE + half * 8) + lane / 4;
                let pair = sum[half];
                if out_row < extent.rows {
                    #[unroll]
                    for part in 0..comptime!(2 / plan.vector) {
                        let first = out_col + part;
                        if first < extent.cols {
                            let mut value = Vector::<f32, NO>::empty();
                            #[unroll]
                            for e in 0..comptime!(plan.vector) {
                                value[e] = pair[comptime!(part + e)];
                                if comptime!(plan.biased) {
                                    value[e] += bias[first + e];
                                }
                            }
                            out[(out_row * extent.cols + first) / comptime!(plan.vector)] = value;
                        }
                    }
                }
            }
        }
    }
}

/// Announces this unit's copies to the barrier of a stage.
#[cube]
fn announce(arrived: &Sequence<Shared<Barrier>>, stage: usize, #[comptime] stages: usize) {
    #[unroll]
    for own in 0..stages {
        if own == stage {
            let barrier = arrived.index(own);
            barrier.commit_copy_async();
            barrier.arrive();
        }
    }
}

/// Waits until the copies of all units to a stage have arrived.
#[cube]
fn wait_for(arrived: &Sequence<Shared<Barrier>>, stage: usize, phase: u32, #[comptime] stages: usize) {
    #[unroll]
    for own in 0..stages {
        if own == stage {
            arrived.index(own).wait_parity(phase);
        }
    }
}

/// Starts the copies of one stage of both operands, of the adapter's product or of the base product.
#[cube]
#[allow(clippy::too_many_arguments)] // as the kernel
fn copy_stage<N: Size>(
    left: &Array<Vector<bf16, N>>,
    right: &Array<Vector<bf16, N>>,
    adapter_left: &Array<Vector<bf16, N>>,
    adapter_right: &Array<Vector<bf16, N>>,
    left_staged: &mut SharedMemory<Vector<bf16, N>>,
    right_staged: &mut SharedMemory<Vector<bf16, N>>,
    extent: &MatrixExtent,
    row: usize,
    col: usize,
    step: usize,
    stage: usize,
    #[comptime] plan: MatrixPlan,
) {
    let shape = comptime!(plan.shape);
    let left_first = stage * comptime!(shape.left_stage());
    let right_first = stage * comptime!(shape.right_stage());
    let (rows, cols) = (extent.rows, extent.cols);
    if comptime!(plan.adapter) {
        if step < extent.adapter_steps {
            let (left_pitch, right_pitch) = (extent.adapter_left_pitch, extent.adapter_right_pitch);
            copy::<N>(
                adapter_left,
                left_staged,
                left_first,
                row,
                rows,
                step,
                left_pitch,
                shape.rows,
                shape,
                Layout::Rows,
            );
            copy::<N>(
                adapter_right,
                right_staged,
                right_first,
                col,
                cols,
                step,
                right_pitch,
                shape.cols,
                shape,
                plan.right,
            );
        } else {
            let base_step = step - extent.adapter_steps;
            let (left_pitch, right_pitch) = (extent.left_pitch, extent.right_pitch);
            copy::<N>(left, left_staged, left_first, row, rows, base_step, left_pitch, shape.rows, shape, Layout::Rows);
            copy::<N>(
                right,
                right_staged,
                right_first,
                col,
                cols,
                base_step,
                right_pitch,
                shape.cols,
                shape,
                plan.right,
            );
        }
    } else {
        let (left_pitch, right_pitch) = (extent.left_pitch, extent.right_pitch);
        copy::<N>(left, left_staged, left_first, row, rows, step, left_pitch, shape.rows, shape, Layout::Rows);
        copy::<N>(right, right_staged, right_first, col, cols, step, right_pitch, shape.cols, shape, plan.right);
    }
}

/// Starts the copies of `DEPTH` steps of `tile` lines from line `first` on, into shared memory from vector `to` on.
/// Lines beyond the last repeat it; their products are never stored.
#[cube]
#[allow(clippy::too_many_arguments)] // as the kernel
fn copy<N: Size>(
    from: &Array<Vector<bf16, N>>,
    staged: &mut SharedMemory<Vector<bf16, N>>,
    to: usize,
    first: usize,
    lines: usize,
    step: usize,
    pitch: usize,
    #[comptime] tile: usize,
    #[comptime] shape: Shape,
    #[comptime] layout: Layout,
) {
    let unit = UNIT_POS as usize;
    #[unroll]
    for turn in 0..comptime!(tile * DEPTH / WIDTH / shape.units()) {
        let share = unit + comptime!(turn * shape.units());
        if comptime!(layout == Layout::Rows) {
            let line = share / comptime!(DEPTH / WIDTH);
            let vector = share % comptime!(DEPTH / WIDTH);
            let source = (first + line).min(lines - 1) * pitch + step * comptime!(DEPTH / WIDTH) + vector;
            let target = to + line * comptime!(LINE) + vector;
            copy_async(&from.slice(source, source + 1), &mut staged.slice_mut(target, target + 1), 8u32);
        } else {
            let depth = share / comptime!(tile / WIDTH);
            let vector = share % comptime!(tile / WIDTH);
            let source = (step * comptime!(DEPTH) + depth) * pitch + (first / comptime!(WIDTH) + vector).min(pitch - 1);
            let target = to + depth * comptime!(tile / WIDTH + 1) + vector;
            copy_async(&from.slice(source, source + 1), &mut staged.slice_mut(target, target + 1), 8u32);
        }
    }
}

/// Adds the products of one stage to a plane's sums.
#[cube]
#[allow(clippy::too_many_arguments)] // as the kernel
fn multiply_stage<N: Size>(
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    left_staged: &SharedMemory<Vector<bf16, N>>,
    right_staged: &SharedMemory<Vector<bf16, N>>,
    plane_row: usize,
    plane_col: usize,
    lane: usize,
    stage: usize,
    #[comptime] shape: Shape,
    #[comptime] right: Layout,
) {
    let multiplication = MmaDefinition::<bf16, bf16, f32>::new(SIDE, 8usize, SIDE);
    let left_first = stage * comptime!(shape.left_stage());
    let right_first = stage * comptime!(shape.right_stage());
    let down = comptime!(shape.plane / SIDE);
    let pairs = comptime!(shape.plane / SIDE);
    #[unroll]
    for k in 0..comptime!(DEPTH / SIDE) {
        // Four 8 x 8 matrices at a time. Eight lanes give the rows of each.
        let mut left_fragments = Sequence::<Array<Vector<bf16, Const<2>>>>::new();
        #[unroll]
        for i in 0..down {
            let line = plane_row + comptime!(i * SIDE) + lane % 16;
            let place = left_first + line * comptime!(LINE) + comptime!(k * 2) + lane / 16;
            left_fragments.push(multiplication.load_matrix::<_, Const<2>>(
                &left_staged.slice(place, place + 1),
                MatrixIdent::A,
                4usize,
                false,
            ));
        }
        let mut right_fragments = Sequence::<Array<Vector<bf16, Const<2>>>>::new();
        #[unroll]
        for j in 0..pairs {
            if comptime!(right == Layout::Rows) {
                let line = plane_col + comptime!(j * SIDE) + lane / 16 * 8 + lane % 8;
                let place = right_first + line * comptime!(LINE) + comptime!(k * 2) + lane / 8 % 2;
                let four = multiplication.load_matrix::<_, Const<2>>(
                    &right_staged.slice(place, place + 1),
                    MatrixIdent::B,
                    4usize,
                    false,
                );
                split(&four, &mut right_fragments);
            } else {
                let depth = comptime!(k * SIDE) + lane % 16;
                let vector = plane_col / comptime!(WIDTH) + comptime!(j * 2) + lane / 16;
                let place = right_first + depth * comptime!(shape.cols / WIDTH + 1) + vector;
                let four = multiplication.load_matrix::<_, Const<2>>(
                    &right_staged.slice(place, place + 1),
                    MatrixIdent::B,
                    4usize,
                    true,
                );
                split(&four, &mut right_fragments);
            }
        }
        #[unroll]
        for i in 0..down {
            #[unroll]
            for j in 0..comptime!(2 * pairs) {
                multiplication.execute_inplace(
                    left_fragments.index(i),
                    right_fragments.index(j),
                    sums.index_mut(comptime!(i * 2 * pairs + j)),
                );
            }
        }
    }
}

/// Splits four matrices of 8 x 8 into the fragments of two adjacent groups of 8 columns.
#[cube]
fn split(four: &Array<Vector<bf16, Const<2>>>, fragments: &mut Sequence<Array<Vector<bf16, Const<2>>>>) {
    #[unroll]
    for column in 0..2usize {
        let mut fragment = Array::<Vector<bf16, Const<2>>>::new(2usize);
        fragment[0] = four[comptime!(2 * column)];
        fragment[1] = four[comptime!(2 * column + 1)];
        fragments.push(fragment);
    }
}

/// Multiplies a plane's sums by the mask. The sums begin at (`row`, `col`) of the output.
#[cube]
#[allow(clippy::too_many_arguments)] // as the kernel
fn drop_out(
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    mask: &Mask,
    row: usize,
    col: usize,
    cols: usize,
    lane: usize,
    #[comptime] plane_side: usize,
) {
    let across = comptime!(plane_side / 8);
    #[unroll]
    for i in 0..comptime!(plane_side / SIDE) {
        #[unroll]
        for j in 0..across {
            let sum = sums.index_mut(comptime!(i * across + j));
            #[unroll]
            for half in 0..2usize {
                let index =
                    (row + comptime!(i * SIDE + half * 8) + lane / 4) * cols + col + comptime!(j * 8) + lane % 4 * 2;
                let mut pair = sum[half];
                pair[0] = pair[0] * factor(mask, index as u32);
                pair[1] = pair[1] * factor(mask, index as u32 + 1);
                sum[half] = pair;
            }
        }
    }
}
