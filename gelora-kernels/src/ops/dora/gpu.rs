//! One unit for each norm and each element. The gradient of the magnitudes is summed in two stages, in a fixed order.

use cubecl::prelude::*;

use super::LEAST_NORM;
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::{Result, Tensor};

/// Rows that one unit sums of the gradient of the magnitudes.
const PART: usize = 256;

#[cube(launch)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn norms_kernel(
    squares: &Array<f32>,
    products: &Array<f32>,
    gram: &Array<f32>,
    b: &Array<f32>,
    norms: &mut Array<f32>,
    r: usize,
    s: f32,
    least: f32,
) {
    let row = ABSOLUTE_POS;
    if row < norms.len() {
        let c_out = norms.len();
        let mut square = squares[row];
        for k in 0..r {
            // 2 s P_ki + s^2 G_k B_i
            let mut inner = 0.0f32;
            for l in 0..r {
                inner += gram[k * r + l] * b[row * r + l];
            }
            square += b[row * r + k] * s * (2.0f32 * products[k * c_out + row] + s * inner);
        }
        norms[row] = least;
        if square > least * least {
            norms[row] = square.sqrt();
        }
    }
}

#[cube(launch)]
fn forward_kernel(
    z: &Array<f32>,
    magnitude: &Array<f32>,
    norms: &Array<f32>,
    bias: &Array<f32>,
    y: &mut Array<f32>,
    c_out: usize,
    #[comptime] has_bias: bool,
) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        let column = i % c_out;
        let mut value = magnitude[column] / norms[column] * z[i];
        if comptime!(has_bias) {
            value += bias[column];
        }
        y[i] = value;
    }
}

/// parts[part, column] = sum over the rows of a part of dy z.
#[cube(launch)]
fn parts_kernel(dy: &Array<f32>, z: &Array<f32>, parts: &mut Array<f32>, c_out: usize, rows: usize) {
    let i = ABSOLUTE_POS;
    if i < parts.len() {
        let first = i / c_out * PART;
        let column = i % c_out;
        let mut sum = 0.0f32;
        for row in 0..PART {
            if first + row < rows {
                sum += dy[(first + row) * c_out + column] * z[(first + row) * c_out + column];
            }
        }
        parts[i] = sum;
    }
}

#[cube(launch)]
fn sum_kernel(parts: &Array<f32>, norms: &Array<f32>, dm: &mut Array<f32>, count: usize) {
    let column = ABSOLUTE_POS;
    if column < dm.len() {
        let mut sum = 0.0f32;
        for part in 0..count {
            sum += parts[part * dm.len() + column];
        }
        dm[column] = sum / norms[column];
    }
}

pub(crate) fn norms<R: Backend>(
    gpu: &Gpu<R>,
    squares: &Tensor,
    products: &Tensor,
    gram: &Tensor,
    b: &Tensor,
    s: f32,
) -> Result<Tensor> {
    const OP: &str = "dora.norms";
    let norms = gpu.output(squares.shape())?;
    norms_kernel::launch::<R>(
        gpu.client(),
        elementwise(norms.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        squares.gpu(OP)?.arg(),
        products.gpu(OP)?.arg(),
        gram.gpu(OP)?.arg(),
        b.gpu(OP)?.arg(),
        norms.gpu(OP)?.arg(),
        b.cols(),
        s,
        LEAST_NORM,
    );
    Ok(norms)
}

pub(crate) fn forward<R: Backend>(
    gpu: &Gpu<R>,
    z: &Tensor,
    magnitude: &Tensor,
    norms: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    const OP: &str = "dora";
    let y = gpu.output(z.shape())?;
    forward_kernel::launch::<R>(
        gpu.client(),
        elementwise(y.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        z.gpu(OP)?.arg(),
        magnitude.gpu(OP)?.arg(),
        norms.gpu(OP)?.arg(),
        bias.unwrap_or(magnitude).gpu(OP)?.arg(),
        y.gpu(OP)?.arg(),
        z.cols(),
        bias.is_some(),
    );
    Ok(y)
}

pub(crate) fn backward<R: Backend>(
    gpu: &Gpu<R>,
    dy: &Tensor,
    z: &Tensor,
    magnitude: &Tensor,
    norms: &Tensor,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "dora.backward";
    let dz = forward(gpu, dy, magnitude, norms, None)?;
    let (rows, c_out) = (z.rows(), z.cols());
    let count = rows.div_ceil(PART).max(1);
    let (parts, dm) = (gpu.scratch(count * c_out)?, gpu.output([c_out])?);
    parts_kernel::launch::<R>(
        gpu.client(),
        elementwise(parts.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        dy.gpu(OP)?.arg(),
        z.gpu(OP)?.arg(),
        parts.arg(),
        c_out,
        rows,
    );
    sum_kernel::launch::<R>(
        gpu.client(),
        elementwise(c_out),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        parts.arg(),
        norms.gpu(OP)?.arg(),
        dm.gpu(OP)?.arg(),
        count,
    );
    Ok((dz, dm))
}
