//! An affine map with a frozen or a trained weight: y = x W^T + b.
//!
//! x (N, C_in), W (C_out, C_in), b (C_out), y (N, C_out).
//! Backward: dx = dy W; dW = dy^T x; db = sum over rows of dy.
//!
//! Accumulation: f32. CPU: in ascending order of the inner dimension, in blocks of at most 512 steps, for any number of
//! threads. For up to 8 rows and a W of fewer bits than f32: in 64 interleaved partial sums, or, if W is quantized in
//! blocks of integers, in the lanes of a vector, with the scale of a block applied to its sum. GPU: in ascending order;
//! dW and db over rows in parts whose sums are added in order.
//!
//! A [`Weight`] may ask for products in bf16. Then x, dy and W are rounded to bf16 (2^-9 relative) and summed in f32:
//! in pairs on the CPU, in the order of the matrix units on a GPU.
mod budget;
#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
pub(in crate::ops) mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;
mod weight;

pub use weight::Weight;

use super::check;
use crate::device::on_device;
use crate::{DType, Result, Tensor, profile};

/// y = x W^T + b: x (N, C_in) f32, W (C_out, C_in), b (C_out); y (N, C_out).
///
/// # Errors
/// If shapes, types or devices do not fit together.
pub fn forward(x: &Tensor, w: &Weight, b: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "linear";
    let (n, c_in, c_out) = shapes(OP, "x", x, w, 1)?;
    if let Some(b) = b {
        check::shape(OP, "b", b, &[c_out])?;
        check::f32(OP, "b", b)?;
        check::same_device(OP, &[x, b])?;
    }
    let _span = product_span(OP, n, c_in, c_out, w.tensor().dtype());
    on_device!(x.device(), cpu::forward(x, w, b, n), gpu => gpu::forward(gpu, x, w, b))
}

/// dx = dy W: dy (N, C_out) f32, W (C_out, C_in); dx (N, C_in).
///
/// # Errors
/// If shapes, types or devices do not fit together.
pub fn backward_input(dy: &Tensor, w: &Weight) -> Result<Tensor> {
    const OP: &str = "linear.backward_input";
    let (n, c_out, c_in) = shapes(OP, "dy", dy, w, 0)?;
    let _span = product_span(OP, n, c_in, c_out, w.tensor().dtype());
    on_device!(dy.device(), cpu::backward_input(dy, w, n), gpu => gpu::backward_input(gpu, dy, w))
}

/// dW = dy^T x and db = sum over rows of dy: dy (N, C_out), x (N, C_in); dW (C_out, C_in), db (C_out).
///
/// # Errors
/// If shapes, types or devices do not fit together.
pub fn backward_weight(dy: &Tensor, x: &Tensor) -> Result<(Tensor, Tensor)> {
    const OP: &str = "linear.backward_weight";
    let (n, c_in) = check::matrix(OP, "x", x)?;
    let (_, c_out) = check::matrix(OP, "dy", dy)?;
    check::shape(OP, "dy", dy, &[n, c_out])?;
    check::f32(OP, "x", x)?;
    check::f32(OP, "dy", dy)?;
    check::same_device(OP, &[dy, x])?;
    let _span = product_span(OP, n, c_in, c_out, DType::F32);
    on_device!(dy.device(), cpu::backward_weight(dy, x, n, c_in, c_out), gpu => gpu::backward_weight(gpu, dy, x))
}

/// (rows of t, columns of t, other dimension of W). The columns of t are dimension `axis` of W.
fn shapes(op: &'static str, name: &'static str, t: &Tensor, w: &Weight, axis: usize) -> Result<(usize, usize, usize)> {
    let (n, c) = check::matrix(op, name, t)?;
    let (shared, other) = if axis == 1 { (w.c_in(), w.c_out()) } else { (w.c_out(), w.c_in()) };
    check::shape(op, name, t, &[n, shared])?;
    check::f32(op, name, t)?;
    check::same_device(op, &[t, w.tensor()])?;
    Ok((n, c, other))
}

/// The profile span of a product of n rows with a matrix (C_out, C_in) stored in a type.
fn product_span(op: &'static str, n: usize, c_in: usize, c_out: usize, stored: DType) -> profile::Span {
    let bytes = 4 * n * (c_in + c_out) + stored.bytes(c_in * c_out);
    profile::span(op, 2.0 * (n * c_in * c_out) as f64, bytes as f64)
}
