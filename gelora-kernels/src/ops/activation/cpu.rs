use super::Activation;
use crate::cpu::{for_row_blocks, math, vectorised};
use crate::{Result, Tensor};

pub fn forward(f: Activation, x: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::output(x.shape())?;
    let x = x.as_slice()?;
    for_row_blocks(y.as_mut_slice()?, 1, |at, y| {
        let x = &x[at..at + y.len()];
        match f {
            Activation::Gelu => gelu(x, y),
            Activation::GeluTanh => gelu_tanh(x, y),
            Activation::Relu => x.iter().zip(y).for_each(|(x, y)| *y = x.max(0.0)),
            Activation::Tanh => tanh(x, y),
        }
    });
    Ok(y)
}

pub fn backward(f: Activation, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut dx = Tensor::output(x.shape())?;
    let (dy, x) = (dy.as_slice()?, x.as_slice()?);
    for_row_blocks(dx.as_mut_slice()?, 1, |at, dx| {
        let (dy, x) = (&dy[at..at + dx.len()], &x[at..at + dx.len()]);
        match f {
            Activation::Gelu => gelu_backward(dy, x, dx),
            Activation::GeluTanh => gelu_tanh_backward(dy, x, dx),
            Activation::Relu => {
                dx.iter_mut().zip(dy).zip(x).for_each(|((dx, dy), x)| *dx = if *x > 0.0 { *dy } else { 0.0 });
            }
            Activation::Tanh => tanh_backward(dy, x, dx),
        }
    });
    Ok(dx)
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

vectorised! {
    fn gelu(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = 0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

vectorised! {
    fn gelu_backward(dy: &[f32], x: &[f32], dx: &mut [f32]) {
        const INV_SQRT_TAU: f32 = 0.398_942_3;
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            let density = INV_SQRT_TAU * math::exp(-0.5 * x * x);
            *dx = dy * (0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density);
        }
    }
}

vectorised! {
    fn gelu_tanh(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = 0.5 * x * (1.0 + math::tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)));
        }
    }
}

vectorised! {
    fn gelu_tanh_backward(dy: &[f32], x: &[f32], dx: &mut [f32]) {
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            let t = math::tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
            let slope = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
            *dx = dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope);
        }
    }
}

vectorised! {
    fn tanh(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = math::tanh(*x);
        }
    }
}

vectorised! {
    fn tanh_backward(dy: &[f32], x: &[f32], dx: &mut [f32]) {
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            let t = math::tanh(*x);
            *dx = dy * (1.0 - t * t);
        }
    }
}
