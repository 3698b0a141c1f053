//! Elementwise nonlinearities: y = f(x), dx = dy f'(x).
//!
//! - GELU: x Phi(x) with the normal distribution function Phi (Hendrycks and Gimpel, arXiv 1606.08415);
//!   GELU-tanh: its approximation x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
//! - ReLU: max(x, 0); its derivative at 0 is 0.
//! - tanh.
//!
//! x, y, dy, dx have one shape, any. No accumulation: every value is computed alone, in f32.

pub(crate) mod cases;
mod cpu;
pub mod reference;

use super::check;
use crate::{Result, Tensor, profile};

/// Which nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// GELU with the exact normal distribution function.
    Gelu,
    /// GELU's tanh approximation.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// The hyperbolic tangent.
    Tanh,
}

/// y = f(x), x of any shape.
///
/// # Errors
/// If x is not f32.
pub fn forward(f: Activation, x: &Tensor) -> Result<Tensor> {
    const OP: &str = "activation";
    check::f32(OP, "x", x)?;
    check::cpu_only(OP, x)?;
    let _span = profile::span(OP, 0.0, 8.0 * x.len() as f64);
    cpu::forward(f, x)
}

/// dx = dy f'(x): dy and x of one shape.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn backward(f: Activation, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    const OP: &str = "activation.backward";
    check::shape(OP, "dy", dy, x.shape())?;
    check::f32(OP, "x", x)?;
    check::f32(OP, "dy", dy)?;
    check::same_device(OP, &[dy, x])?;
    check::cpu_only(OP, x)?;
    let _span = profile::span(OP, 0.0, 12.0 * x.len() as f64);
    cpu::backward(f, dy, x)
}
