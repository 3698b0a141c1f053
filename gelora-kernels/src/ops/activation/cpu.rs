//! Loops over values, compiled for each nonlinearity and each level of vector instructions.

use rayon::prelude::*;

use super::Activation;
use crate::cpu::{for_row_blocks, math, rows_per_task, vectorized};
use crate::{Result, Tensor};

/// Runs an expression with `$type` bound to the type of the nonlinearity, so that a loop is compiled for each one.
macro_rules! by_activation {
    ($f:expr, $type:ident => $run:expr) => {
        match $f {
            Activation::Gelu => {
                type $type = Gelu;
                $run
            }
            Activation::GeluTanh => {
                type $type = GeluTanh;
                $run
            }
            Activation::Silu => {
                type $type = Silu;
                $run
            }
            Activation::Relu => {
                type $type = Relu;
                $run
            }
            Activation::Tanh => {
                type $type = Tanh;
                $run
            }
        }
    };
}

pub(crate) fn forward(f: Activation, x: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::output(x.shape())?;
    let x = x.as_slice()?;
    for_row_blocks(y.as_mut_slice()?, 1, |first, y| forward_block(f, &x[first..first + y.len()], y));
    Ok(y)
}

pub(crate) fn backward(f: Activation, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut dx = Tensor::output(x.shape())?;
    let (dy, x) = (dy.as_slice()?, x.as_slice()?);
    for_row_blocks(dx.as_mut_slice()?, 1, |first, dx| {
        let block = first..first + dx.len();
        backward_block(f, &dy[block.clone()], &x[block], dx);
    });
    Ok(dx)
}

pub(crate) fn gated(f: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::output(gate.shape())?;
    let (gate, up) = (gate.as_slice()?, up.as_slice()?);
    for_row_blocks(y.as_mut_slice()?, 1, |first, y| {
        let block = first..first + y.len();
        gated_block(f, &gate[block.clone()], &up[block], y);
    });
    Ok(y)
}

pub(crate) fn gated_backward(f: Activation, dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    let (mut d_gate, mut d_up) = (Tensor::output(gate.shape())?, Tensor::output(gate.shape())?);
    let (dy, gate, up) = (dy.as_slice()?, gate.as_slice()?, up.as_slice()?);
    let len = rows_per_task(dy.len(), 1);
    let blocks = d_gate.as_mut_slice()?.par_chunks_mut(len).zip(d_up.as_mut_slice()?.par_chunks_mut(len));
    blocks.enumerate().for_each(|(i, (d_gate, d_up))| {
        let block = i * len..i * len + d_up.len();
        gated_backward_block(f, &dy[block.clone()], &gate[block.clone()], &up[block], d_gate, d_up);
    });
    Ok((d_gate, d_up))
}

vectorized! {
    /// y = f(x).
    fn forward_block(f: Activation, x: &[f32], y: &mut [f32]) {
        by_activation!(f, F => for (y, x) in y.iter_mut().zip(x) {
            *y = F::value(*x);
        });
    }
}

vectorized! {
    /// dx = dy f'(x).
    fn backward_block(f: Activation, dy: &[f32], x: &[f32], dx: &mut [f32]) {
        by_activation!(f, F => for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = dy * F::derivative(*x);
        });
    }
}

vectorized! {
    /// y = f(gate) up.
    fn gated_block(f: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
        by_activation!(f, F => for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = F::value(*gate) * up;
        });
    }
}

vectorized! {
    /// d_gate = dy up f'(gate), d_up = dy f(gate).
    fn gated_backward_block(
        f: Activation,
        dy: &[f32],
        gate: &[f32],
        up: &[f32],
        d_gate: &mut [f32],
        d_up: &mut [f32],
    ) {
        let values = dy.iter().zip(gate).zip(up);
        by_activation!(f, F =>
            for ((d_gate, d_up), ((dy, gate), up)) in d_gate.iter_mut().zip(d_up).zip(values) {
                *d_gate = dy * up * F::derivative(*gate);
                *d_up = dy * F::value(*gate);
            }
        );
    }
}

/// f and f', inlined into the loops.
trait Nonlinearity {
    fn value(x: f32) -> f32;
    fn derivative(x: f32) -> f32;
}

struct Gelu;

impl Nonlinearity for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }

    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        const INV_SQRT_TAU: f32 = 0.398_942_3;
        let density = INV_SQRT_TAU * math::exp(-0.5 * x * x);
        0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
    }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The factor of x^3 in the tanh approximation of GELU.
const CUBIC: f32 = 0.044_715;

struct GeluTanh;

impl Nonlinearity for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + math::tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)))
    }

    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let t = math::tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
        let slope = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope
    }
}

struct Silu;

/// 1 / (1 + e^-x), from e^-|x|, which cannot overflow.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let e = math::exp(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

impl Nonlinearity for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let s = sigmoid(x);
        s * (1.0 + x * (1.0 - s))
    }
}

struct Relu;

impl Nonlinearity for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x.max(0.0)
    }

    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

struct Tanh;

impl Nonlinearity for Tanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        math::tanh(x)
    }

    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let t = math::tanh(x);
        1.0 - t * t
    }
}
