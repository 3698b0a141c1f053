//! One kernel for the three products. A cube computes a block of one head's output with 8 x 8 units, and each unit 4 x
//! 4 sums. Sums run in ascending order.

use cubecl::prelude::*;

use super::Sizes;
use crate::gpu::{Backend, Gpu, MAX_CUBES};
use crate::{Result, Tensor};

/// Units of a cube along each side.
const SIDE: usize = 8;
const UNITS: usize = SIDE * SIDE;
/// Rows and columns of outputs in one unit, SIDE apart.
const OWN: usize = 4;
const BLOCK: usize = SIDE * OWN;
/// Steps of the sum that are in shared memory at a time.
const DEPTH: usize = 16;

/// Distances of the heads, lines and steps of an operand in memory. A line is a row or a column of the output.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Strides {
    head: usize,
    line: usize,
    step: usize,
}

/// Copies the lines from `first` on and the steps from `step` on into shared memory. Values beyond the operand become
/// 0.
#[cube]
fn stage(
    source: &Array<f32>,
    staged: &mut SharedMemory<f32>,
    first: usize,
    lines: usize,
    step: usize,
    steps: usize,
    head: usize,
    strides: &Strides,
) {
    for copied in range_stepped(UNIT_POS as usize, comptime!(BLOCK * DEPTH), comptime!(UNITS)) {
        let mut line = copied / comptime!(DEPTH);
        let mut k = copied % comptime!(DEPTH);
        if strides.line < strides.step {
            line = copied % comptime!(BLOCK);
            k = copied / comptime!(BLOCK);
        }
        let mut value = 0.0f32;
        if first + line < lines && step + k < steps {
            value = source[head * strides.head + (first + line) * strides.line + (step + k) * strides.step];
        }
        staged[k * comptime!(BLOCK + 1) + line] = value;
    }
}

/// out_h (rows, cols) = left_h right_h. The lines of `right` are the output's columns.
#[cube(launch)]
fn head_product_kernel(
    left: &Array<f32>,
    right: &Array<f32>,
    out: &mut Array<f32>,
    left_strides: &Strides,
    right_strides: &Strides,
    rows: usize,
    cols: usize,
    steps: usize,
    heads: usize,
) {
    let mut left_staged = SharedMemory::<f32>::new(comptime!(DEPTH * (BLOCK + 1)));
    let mut right_staged = SharedMemory::<f32>::new(comptime!(DEPTH * (BLOCK + 1)));
    let unit_y = UNIT_POS as usize / comptime!(SIDE);
    let unit_x = UNIT_POS as usize % comptime!(SIDE);
    let col = CUBE_POS_X as usize * comptime!(BLOCK);
    let head = CUBE_POS_Z as usize;
    for row_block in range_stepped(CUBE_POS_Y as usize, rows.div_ceil(comptime!(BLOCK)), CUBE_COUNT_Y as usize) {
        let row = row_block * comptime!(BLOCK);
        let mut sums = Array::<f32>::new(comptime!(OWN * OWN));
        #[unroll]
        for i in 0..comptime!(OWN * OWN) {
            sums[i] = 0.0f32;
        }
        for step in range_stepped(0, steps, comptime!(DEPTH)) {
            stage(left, &mut left_staged, row, rows, step, steps, head, left_strides);
            stage(right, &mut right_staged, col, cols, step, steps, head, right_strides);
            sync_cube();
            for k in 0..comptime!(DEPTH) {
                let mut column = Array::<f32>::new(comptime!(OWN));
                #[unroll]
                for i in 0..comptime!(OWN) {
                    column[i] = left_staged[k * comptime!(BLOCK + 1) + unit_y + comptime!(i * SIDE)];
                }
                #[unroll]
                for j in 0..comptime!(OWN) {
                    let other = right_staged[k * comptime!(BLOCK + 1) + unit_x + comptime!(j * SIDE)];
                    #[unroll]
                    for i in 0..comptime!(OWN) {
                        sums[comptime!(i * OWN + j)] += column[i] * other;
                    }
                }
            }
            // The next step overwrites what slower units still read.
            sync_cube();
        }
        #[unroll]
        for i in 0..comptime!(OWN) {
            let y = row + unit_y + comptime!(i * SIDE);
            #[unroll]
            for j in 0..comptime!(OWN) {
                let x = col + unit_x + comptime!(j * SIDE);
                if y < rows && x < cols {
                    out[(y * heads + head) * cols + x] = sums[comptime!(i * OWN + j)];
                }
            }
        }
    }
}

/// A factor: a tensor and its strides (head, line, step).
type Factor<'a> = (&'a Tensor, [usize; 3]);

fn product<R: Backend>(
    gpu: &Gpu<R>,
    op: &'static str,
    heads: usize,
    left: Factor<'_>,
    right: Factor<'_>,
    [rows, cols, steps]: [usize; 3],
) -> Result<Tensor> {
    let out = gpu.output([rows, heads * cols])?;
    let row_blocks = rows.div_ceil(BLOCK).min(MAX_CUBES as usize);
    let strides = |[head, line, step]: [usize; 3]| StridesLaunch::new(head, line, step);
    head_product_kernel::launch::<R>(
        gpu.client(),
        CubeCount::Static(cols.div_ceil(BLOCK) as u32, row_blocks as u32, heads as u32),
        CubeDim::new_1d(UNITS as u32),
        left.0.gpu(op)?.arg(),
        right.0.gpu(op)?.arg(),
        out.gpu(op)?.arg(),
        strides(left.1),
        strides(right.1),
        rows,
        cols,
        steps,
        heads,
    );
    Ok(out)
}

pub(crate) fn forward<R: Backend>(gpu: &Gpu<R>, s: Sizes, x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let strides = [s.d, s.heads * s.d, 1];
    product(gpu, "head_product", s.heads, (x, strides), (table, strides), [s.n, s.r, s.d])
}

pub(crate) fn backward_input<R: Backend>(gpu: &Gpu<R>, s: Sizes, dy: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (left, right) = ((dy, [s.r, s.heads * s.r, 1]), (table, [s.d, 1, s.heads * s.d]));
    product(gpu, "head_product.backward_input", s.heads, left, right, [s.n, s.d, s.r])
}

pub(crate) fn backward_table<R: Backend>(gpu: &Gpu<R>, s: Sizes, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (left, right) = ((dy, [s.r, 1, s.heads * s.r]), (x, [s.d, 1, s.heads * s.d]));
    product(gpu, "head_product.backward_table", s.heads, left, right, [s.r, s.d, s.n])
}
