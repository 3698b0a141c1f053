//! Elementwise nonlinearities, y = f(x) with dx = dy f'(x), and gated ones, y = f(gate) up with d_gate = dy up f'(gate)
//! and d_up = dy f(gate). A gate with SiLU is SwiGLU; with GELU or its approximation it is GeGLU (Shazeer, arXiv
//! 2002.05202).
//!
//! - GELU: x Phi(x) with the normal distribution function Phi (Hendrycks and Gimpel, arXiv 1606.08415);
//!   GELU-tanh: its approximation x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
//! - SiLU: x / (1 + e^-x) (Elfwing, Uchibe, Doya, arXiv 1702.03118).
//! - ReLU: max(x, 0); its derivative at 0 is 0.
//! - tanh.
//!
//! All tensors of a call have the same shape, of any rank. Every value is computed alone in f32; nothing is
//! accumulated.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::check;
use crate::device::on_device;
use crate::{Result, Tensor, profile};

/// A nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// GELU with the exact normal distribution function.
    Gelu,
    /// GELU's tanh approximation.
    GeluTanh,
    /// x times the logistic function.
    Silu,
    /// max(x, 0).
    Relu,
    /// The hyperbolic tangent.
    Tanh,
}

/// y = f(x), x of any shape.
///
/// # Errors
/// If x is not f32.
///
/// ```
/// use gelora_kernels::Tensor;
/// use gelora_kernels::ops::activation::{Activation, backward, forward};
///
/// let x = Tensor::from_vec(vec![-2.0, 3.0], [2])?;
/// assert_eq!(forward(Activation::Relu, &x)?.to_vec()?, [0.0, 3.0]);
/// let dy = Tensor::from_vec(vec![10.0, 10.0], [2])?;
/// assert_eq!(backward(Activation::Relu, &dy, &x)?.to_vec()?, [0.0, 10.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn forward(f: Activation, x: &Tensor) -> Result<Tensor> {
    const OP: &str = "activation";
    check::f32(OP, "x", x)?;
    let _span = profile::span(OP, 0.0, 8.0 * x.len() as f64);
    on_device!(x.device(), cpu::forward(f, x), gpu => gpu::forward(gpu, f, x))
}

/// dx = dy f'(x): dy and x of one shape.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn backward(f: Activation, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    const OP: &str = "activation.backward";
    check_like(OP, x, &[("x", x), ("dy", dy)])?;
    let _span = profile::span(OP, 0.0, 12.0 * x.len() as f64);
    on_device!(x.device(), cpu::backward(f, dy, x), gpu => gpu::backward(gpu, f, dy, x))
}

/// y = f(gate) up: gate and up of one shape.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn gated(f: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    const OP: &str = "activation.gated";
    check_like(OP, gate, &[("gate", gate), ("up", up)])?;
    let _span = profile::span(OP, 0.0, 12.0 * gate.len() as f64);
    on_device!(gate.device(), cpu::gated(f, gate, up), gpu => gpu::gated(gpu, f, gate, up))
}

/// (d_gate, d_up) = (dy up f'(gate), dy f(gate)): dy, gate and up of one shape.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn gated_backward(f: Activation, dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    const OP: &str = "activation.gated_backward";
    check_like(OP, gate, &[("gate", gate), ("up", up), ("dy", dy)])?;
    let _span = profile::span(OP, 0.0, 20.0 * gate.len() as f64);
    on_device!(
        gate.device(),
        cpu::gated_backward(f, dy, gate, up),
        gpu => gpu::gated_backward(gpu, f, dy, gate, up)
    )
}

/// Checks that all tensors are f32, of one shape and on one device.
fn check_like(op: &'static str, first: &Tensor, all: &[(&'static str, &Tensor)]) -> Result<()> {
    for (name, t) in all {
        check::shape(op, name, t, first.shape())?;
        check::f32(op, name, t)?;
        check::same_device(op, &[first, t])?;
    }
    Ok(())
}
