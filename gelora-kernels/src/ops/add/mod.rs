//! Elementwise sums: y = x + z, and acc += x where gradients or residual paths meet.
//!
//! All of one shape, any. One f32 addition a value.

pub(crate) mod cases;
mod cpu;
pub mod reference;

use super::check;
use crate::{Result, Tensor, profile};

/// y = x + z.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn forward(x: &Tensor, z: &Tensor) -> Result<Tensor> {
    const OP: &str = "add";
    check_pair(OP, x, z)?;
    let _span = profile::span(OP, x.len() as f64, 12.0 * x.len() as f64);
    let mut y = Tensor::output(x.shape())?;
    cpu::add(x.as_slice()?, z.as_slice()?, y.as_mut_slice()?);
    Ok(y)
}

/// acc += x, in place.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn accumulate(acc: &mut Tensor, x: &Tensor) -> Result<()> {
    const OP: &str = "add.accumulate";
    check_pair(OP, acc, x)?;
    let _span = profile::span(OP, x.len() as f64, 12.0 * x.len() as f64);
    cpu::accumulate(acc.as_mut_slice()?, x.as_slice()?);
    Ok(())
}

fn check_pair(op: &'static str, x: &Tensor, z: &Tensor) -> Result<()> {
    check::shape(op, "z", z, x.shape())?;
    check::f32(op, "x", x)?;
    check::f32(op, "z", z)?;
    check::same_device(op, &[x, z])?;
    check::cpu_only(op, x)
}
