//! The AdamW step, and the global norm that gradients are clipped by.
//!
//! With g the gradient times a factor (clipping) and t counting from 1:
//! m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
//! p = p (1 - lr weight_decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps).
//!
//! Norm: sqrt of the sum of squares of all gradients, summed in f64 in order. All of one parameter have one shape, f32.
//!
//! Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with the decay scaled by lr as PyTorch does.

pub(crate) mod cases;
mod cpu;
pub mod reference;

use super::check;
use crate::{Result, Tensor, profile};

/// Settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// The running moments of one parameter.
#[derive(Clone, Debug)]
pub struct Moments {
    /// First moment.
    pub m: Tensor,
    /// Second moment.
    pub v: Tensor,
}

impl Moments {
    /// Zero moments for a parameter.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn zeros(parameter: &Tensor) -> Result<Self> {
        let zeros = || Tensor::zeros(parameter.shape(), parameter.device());
        Ok(Self { m: zeros()?, v: zeros()? })
    }
}

/// One step in place: the gradient is multiplied by `gradient_scale` first; `t` counts steps from 1.
///
/// # Errors
/// If shapes, types or devices differ, or t is 0.
pub fn step(
    settings: &AdamW,
    t: u64,
    parameter: &mut Tensor,
    gradient: &Tensor,
    gradient_scale: f32,
    moments: &mut Moments,
) -> Result<()> {
    const OP: &str = "adamw";
    check::value(OP, t > 0, || "t counts from 1, got 0".into())?;
    for (name, other) in [("gradient", gradient), ("m", &moments.m), ("v", &moments.v)] {
        check::shape(OP, name, other, parameter.shape())?;
        check::f32(OP, name, other)?;
        check::same_device(OP, &[parameter, other])?;
    }
    check::f32(OP, "parameter", parameter)?;
    check::cpu_only(OP, parameter)?;
    let len = parameter.len() as f64;
    let _span = profile::span(OP, 14.0 * len, 28.0 * len);
    cpu::step(settings, t, parameter, gradient, gradient_scale, moments)
}

/// The Euclidean norm of all values of all tensors.
///
/// # Errors
/// If a tensor is not f32.
pub fn global_norm<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    const OP: &str = "global_norm";
    let tensors: Vec<&Tensor> = tensors.into_iter().collect();
    let len = tensors.iter().map(|t| t.len()).sum::<usize>() as f64;
    let _span = profile::span(OP, 2.0 * len, 4.0 * len);
    let mut sum = 0.0;
    for t in tensors {
        check::f32(OP, "tensor", t)?;
        check::cpu_only(OP, t)?;
        sum += cpu::sum_of_squares(t.as_slice()?);
    }
    Ok(sum.sqrt())
}
