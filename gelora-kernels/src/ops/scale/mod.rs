//! Multiplication by a number: y = c x, or x *= c.
//!
//! x has any shape. Each value is one f32 multiplication.

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

/// y = c x.
///
/// # Errors
/// If x is not f32.
pub fn forward(c: f32, x: &Tensor) -> Result<Tensor> {
    const OP: &str = "scale";
    check::f32(OP, "x", x)?;
    let _span = profile::span(OP, x.len() as f64, 8.0 * x.len() as f64);
    on_device!(x.device(), cpu::forward(c, x), gpu => gpu::forward(gpu, c, x))
}

/// x *= c.
///
/// # Errors
/// If x is not f32.
pub fn in_place(c: f32, x: &mut Tensor) -> Result<()> {
    const OP: &str = "scale.in_place";
    check::f32(OP, "x", x)?;
    let _span = profile::span(OP, x.len() as f64, 8.0 * x.len() as f64);
    on_device!(x.device().clone(), cpu::in_place(c, x), gpu => gpu::in_place(&gpu, c, x))
}
