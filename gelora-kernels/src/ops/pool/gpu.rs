//! One unit for each output value. In backward kernels, a row finds its sequence, or whether it was chosen, by
//! bisection.

use cubecl::prelude::*;

use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::{Offsets, Result, Tensor};

/// Rows in one partial sum of a mean.
const BLOCK: usize = 256;

#[cube(launch)]
fn mean_kernel(x: &Array<f32>, starts: &Array<u32>, y: &mut Array<f32>, c: usize) {
    if ABSOLUTE_POS < y.len() {
        let sequence = ABSOLUTE_POS / c;
        let start = starts[sequence] as usize;
        let end = starts[sequence + 1] as usize;
        let mut sum = 0.0f32;
        // Partial sums of blocks of rows lose fewer digits than one long sum.
        for block in range_stepped(start, end, BLOCK) {
            let mut part = 0.0f32;
            for row in block..(block + BLOCK).min(end) {
                part += x[row * c + ABSOLUTE_POS % c];
            }
            sum += part;
        }
        y[ABSOLUTE_POS] = sum / f32::cast_from((end - start) as u32);
    }
}

#[cube(launch)]
fn mean_backward_kernel(dy: &Array<f32>, starts: &Array<u32>, dx: &mut Array<f32>, c: usize, sequences: usize) {
    if ABSOLUTE_POS < dx.len() {
        let sequence = last_not_above(starts, sequences, (ABSOLUTE_POS / c) as u32);
        let len = starts[sequence + 1] - starts[sequence];
        dx[ABSOLUTE_POS] = dy[sequence * c + ABSOLUTE_POS % c] / f32::cast_from(len);
    }
}

#[cube(launch)]
fn rows_kernel(x: &Array<f32>, rows: &Array<u32>, y: &mut Array<f32>, c: usize) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = x[rows[ABSOLUTE_POS / c] as usize * c + ABSOLUTE_POS % c];
    }
}

#[cube(launch)]
fn rows_backward_kernel(dy: &Array<f32>, rows: &Array<u32>, dx: &mut Array<f32>, c: usize, chosen: usize) {
    if ABSOLUTE_POS < dx.len() {
        let row = (ABSOLUTE_POS / c) as u32;
        let index = last_not_above(rows, chosen, row);
        let mut value = 0.0f32;
        if rows[index] == row {
            value = dy[index * c + ABSOLUTE_POS % c];
        }
        dx[ABSOLUTE_POS] = value;
    }
}

/// The index of the last of `count` ascending values that is not above `limit`; 0 if all are above it.
#[cube]
fn last_not_above(values: &Array<u32>, count: usize, limit: u32) -> usize {
    let mut first = 0usize.runtime();
    let mut end = count;
    while end - first > 1 {
        let middle = (first + end) / 2;
        if values[middle] <= limit {
            first = middle;
        } else {
            end = middle;
        }
    }
    first
}

pub(crate) fn mean<R: Backend>(gpu: &Gpu<R>, x: &Tensor, sequences: &Offsets) -> Result<Tensor> {
    const OP: &str = "pool.mean";
    let y = gpu.output([sequences.sequences(), x.cols()])?;
    mean_kernel::launch::<R>(
        gpu.client(),
        elementwise(y.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        x.gpu(OP)?.arg(),
        sequences.starts_on_gpu(gpu)?.arg(),
        y.gpu(OP)?.arg(),
        x.cols(),
    );
    Ok(y)
}

pub(crate) fn mean_backward<R: Backend>(gpu: &Gpu<R>, dy: &Tensor, sequences: &Offsets) -> Result<Tensor> {
    const OP: &str = "pool.mean_backward";
    let dx = gpu.output([sequences.tokens(), dy.cols()])?;
    mean_backward_kernel::launch::<R>(
        gpu.client(),
        elementwise(dx.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        dy.gpu(OP)?.arg(),
        sequences.starts_on_gpu(gpu)?.arg(),
        dx.gpu(OP)?.arg(),
        dy.cols(),
        sequences.sequences(),
    );
    Ok(dx)
}

pub(crate) fn rows<R: Backend>(gpu: &Gpu<R>, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    const OP: &str = "pool.rows";
    let y = gpu.output([rows.len(), x.cols()])?;
    rows_kernel::launch::<R>(
        gpu.client(),
        elementwise(y.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        x.gpu(OP)?.arg(),
        gpu.upload_indices(rows).arg(),
        y.gpu(OP)?.arg(),
        x.cols(),
    );
    Ok(y)
}

pub(crate) fn rows_backward<R: Backend>(gpu: &Gpu<R>, dy: &Tensor, rows: &[usize], n: usize) -> Result<Tensor> {
    const OP: &str = "pool.rows_backward";
    let dx = gpu.output([n, dy.cols()])?;
    rows_backward_kernel::launch::<R>(
        gpu.client(),
        elementwise(dx.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        dy.gpu(OP)?.arg(),
        gpu.upload_indices(rows).arg(),
        dx.gpu(OP)?.arg(),
        dy.cols(),
        rows.len(),
    );
    Ok(dx)
}
