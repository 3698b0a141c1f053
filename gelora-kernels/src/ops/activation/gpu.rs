//! One unit for each element.

use cubecl::prelude::*;

use super::Activation;
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise, math};
use crate::{Result, Tensor};

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// f(x).
#[cube]
fn value(x: f32, #[comptime] f: Activation) -> f32 {
    if comptime!(f == Activation::Gelu) {
        0.5f32 * x * (1.0f32 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2))
    } else if comptime!(f == Activation::GeluTanh) {
        0.5f32 * x * (1.0f32 + math::tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)))
    } else if comptime!(f == Activation::Silu) {
        x * math::sigmoid(x)
    } else if comptime!(f == Activation::Relu) {
        select(x > 0.0f32, x, 0.0f32)
    } else {
        math::tanh(x)
    }
}

/// f'(x).
#[cube]
fn derivative(x: f32, #[comptime] f: Activation) -> f32 {
    if comptime!(f == Activation::Gelu) {
        let density = 0.398_942_3f32 * math::exp(-0.5f32 * x * x);
        0.5f32 * (1.0f32 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
    } else if comptime!(f == Activation::GeluTanh) {
        let t = math::tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
        let slope = SQRT_2_OVER_PI * (1.0f32 + 3.0f32 * CUBIC * x * x);
        0.5f32 * (1.0f32 + t) + 0.5f32 * x * (1.0f32 - t * t) * slope
    } else if comptime!(f == Activation::Silu) {
        let s = math::sigmoid(x);
        s * (1.0f32 + x * (1.0f32 - s))
    } else if comptime!(f == Activation::Relu) {
        select(x > 0.0f32, 1.0f32, 0.0f32)
    } else {
        let t = math::tanh(x);
        1.0f32 - t * t
    }
}

#[cube(launch)]
fn forward_kernel(x: &Array<f32>, y: &mut Array<f32>, #[comptime] f: Activation) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = value(x[ABSOLUTE_POS], f);
    }
}

#[cube(launch)]
fn backward_kernel(dy: &Array<f32>, x: &Array<f32>, dx: &mut Array<f32>, #[comptime] f: Activation) {
    if ABSOLUTE_POS < dx.len() {
        dx[ABSOLUTE_POS] = dy[ABSOLUTE_POS] * derivative(x[ABSOLUTE_POS], f);
    }
}

#[cube(launch)]
fn gated_kernel(gate: &Array<f32>, up: &Array<f32>, y: &mut Array<f32>, #[comptime] f: Activation) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = value(gate[ABSOLUTE_POS], f) * up[ABSOLUTE_POS];
    }
}

#[cube(launch)]
fn gated_backward_kernel(
    dy: &Array<f32>,
    gate: &Array<f32>,
    up: &Array<f32>,
    d_gate: &mut Array<f32>,
    d_up: &mut Array<f32>,
    #[comptime] f: Activation,
) {
    if ABSOLUTE_POS < d_up.len() {
        let (dy, gate) = (dy[ABSOLUTE_POS], gate[ABSOLUTE_POS]);
        d_gate[ABSOLUTE_POS] = dy * up[ABSOLUTE_POS] * derivative(gate, f);
        d_up[ABSOLUTE_POS] = dy * value(gate, f);
    }
}

pub(crate) fn forward<R: Backend>(gpu: &Gpu<R>, f: Activation, x: &Tensor) -> Result<Tensor> {
    const OP: &str = "activation";
    let y = gpu.output(x.shape())?;
    forward_kernel::launch::<R>(
        gpu.client(),
        elementwise(x.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        x.gpu(OP)?.arg(),
        y.gpu(OP)?.arg(),
        f,
    );
    Ok(y)
}

pub(crate) fn backward<R: Backend>(gpu: &Gpu<R>, f: Activation, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    const OP: &str = "activation.backward";
    let dx = gpu.output(x.shape())?;
    backward_kernel::launch::<R>(
        gpu.client(),
        elementwise(x.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        dy.gpu(OP)?.arg(),
        x.gpu(OP)?.arg(),
        dx.gpu(OP)?.arg(),
        f,
    );
    Ok(dx)
}

pub(crate) fn gated<R: Backend>(gpu: &Gpu<R>, f: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    const OP: &str = "activation.gated";
    let y = gpu.output(gate.shape())?;
    gated_kernel::launch::<R>(
        gpu.client(),
        elementwise(gate.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        gate.gpu(OP)?.arg(),
        up.gpu(OP)?.arg(),
        y.gpu(OP)?.arg(),
        f,
    );
    Ok(y)
}

pub(crate) fn gated_backward<R: Backend>(
    gpu: &Gpu<R>,
    f: Activation,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "activation.gated_backward";
    let (d_gate, d_up) = (gpu.output(gate.shape())?, gpu.output(gate.shape())?);
    gated_backward_kernel::launch::<R>(
        gpu.client(),
        elementwise(gate.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        dy.gpu(OP)?.arg(),
        gate.gpu(OP)?.arg(),
        up.gpu(OP)?.arg(),
        d_gate.gpu(OP)?.arg(),
        d_up.gpu(OP)?.arg(),
        f,
    );
    Ok((d_gate, d_up))
}
