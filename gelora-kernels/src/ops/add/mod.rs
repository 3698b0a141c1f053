//! Elementwise sums: y = x + z, and acc += x for gradients and residual paths.
//!
//! All tensors of a call have the same shape, of any rank. Each value is one f32 addition.

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

/// y = x + z.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn forward(x: &Tensor, z: &Tensor) -> Result<Tensor> {
    const OP: &str = "add";
    check_pair(OP, x, z)?;
    let _span = profile::span(OP, x.len() as f64, 12.0 * x.len() as f64);
    on_device!(x.device(), cpu::forward(x, z), gpu => gpu::forward(gpu, x, z))
}

/// acc += x, in place.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn accumulate(acc: &mut Tensor, x: &Tensor) -> Result<()> {
    const OP: &str = "add.accumulate";
    check_pair(OP, acc, x)?;
    let _span = profile::span(OP, x.len() as f64, 12.0 * x.len() as f64);
    on_device!(x.device(), cpu::accumulate(acc, x), gpu => gpu::accumulate(gpu, acc, x))
}

/// Checks that both tensors are f32, of one shape and on one device.
fn check_pair(op: &'static str, x: &Tensor, z: &Tensor) -> Result<()> {
    check::shape(op, "z", z, x.shape())?;
    check::f32(op, "x", x)?;
    check::f32(op, "z", z)?;
    check::same_device(op, &[x, z])
}
