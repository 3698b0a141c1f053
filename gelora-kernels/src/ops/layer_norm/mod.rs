//! Layer normalization, with the residual sum that precedes it in a transformer.
//!
//! h = x + residual; mean and variance over the C channels of a row (variance divided by C);
//! rstd = 1 / sqrt(variance + eps); normalized = (h - mean) rstd; y = normalized gamma + beta.
//!
//! Backward, with g = dy gamma: dh = rstd (g - mean(g) - normalized mean(g normalized)). dh is the gradient of x and of
//! the residual. If h itself is used further on, as in a pre-norm block, its gradient from there is added to dh. gamma
//! and beta are frozen in LoRA training and get no gradient.
//!
//! x, residual, h, y (N, C); gamma, beta (C), of any storage type; mean, rstd (N). Accumulation: two passes over a row
//! (the mean, then the variance of the differences). CPU: 16 interleaved f32 partial sums. GPU: one partial sum for
//! each unit, added as a tree.
//!
//! Source: Ba, Kiros, Hinton, arXiv 1607.06450.

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

const OP: &str = "layer_norm";

/// Values of the forward pass that [`backward`] needs.
#[derive(Debug)]
pub struct Saved {
    /// x + residual, (N, C); x itself without a residual.
    pub h: Tensor,
    /// The mean of each row of h, (N).
    pub mean: Tensor,
    /// 1 / sqrt(variance + eps), (N).
    pub rstd: Tensor,
}

/// y = layer norm of x + residual: x, residual (N, C), gamma, beta (C).
///
/// # Errors
/// If shapes, types or devices do not fit together, or eps is negative; on a GPU, if C is above 16384.
///
/// ```
/// use gelora_kernels::{Tensor, ops::layer_norm};
///
/// let x = Tensor::from_vec(vec![1.0, 3.0], [1, 2])?;
/// let (gamma, beta) = (Tensor::from_vec(vec![1.0, 1.0], [2])?, Tensor::from_vec(vec![0.0, 5.0], [2])?);
/// let y = layer_norm::forward(&x, None, &gamma, &beta, 0.0)?;
/// assert_eq!(y.to_vec()?, [-1.0, 6.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn forward(x: &Tensor, residual: Option<&Tensor>, gamma: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    Ok(run_forward(OP, Norm { gamma, beta: Some(beta), eps, centered: true }, x, residual, false)?.y)
}

/// As [`forward`], and returns the values that [`backward`] needs.
///
/// # Errors
/// As [`forward`].
pub fn forward_saving(
    x: &Tensor,
    residual: Option<&Tensor>,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
) -> Result<(Tensor, Saved)> {
    let norm = Norm { gamma, beta: Some(beta), eps, centered: true };
    let Normalized { y, h, mean, rstd } = run_forward(OP, norm, x, residual, true)?;
    Ok((y, Saved { h, mean, rstd }))
}

/// dh, the gradient of x and of the residual: dy (N, C), gamma (C); dh (N, C).
///
/// # Errors
/// If shapes, types or devices do not fit together; on a GPU, if C is above 16384.
pub fn backward(dy: &Tensor, gamma: &Tensor, saved: Saved) -> Result<Tensor> {
    run_backward("layer_norm.backward", dy, None, gamma, &saved.h, Some(&saved.mean), &saved.rstd)
}

/// As [`backward`], if h was used beside y: adds `d_h` (N, C), the gradient of h from there.
///
/// # Errors
/// As [`backward`].
pub fn backward_onto(d_h: &Tensor, dy: &Tensor, gamma: &Tensor, saved: Saved) -> Result<Tensor> {
    run_backward("layer_norm.backward", dy, Some(d_h), gamma, &saved.h, Some(&saved.mean), &saved.rstd)
}

/// A norm of rows, shared with [`super::rms_norm`]. Without `centered`, no mean is subtracted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm<'a> {
    pub gamma: &'a Tensor,
    pub beta: Option<&'a Tensor>,
    pub eps: f32,
    pub centered: bool,
}

/// The result of a norm. h is x if there is no residual or the sum was not kept; the mean is unspecified if none was
/// subtracted.
#[derive(Debug)]
pub(super) struct Normalized {
    pub y: Tensor,
    pub h: Tensor,
    pub mean: Tensor,
    pub rstd: Tensor,
}

/// Checks the arguments and computes a norm. The profile counts eight operations a value: one for the mean, three for
/// the variance, four to normalize and scale. Without mean and beta it counts four.
pub(super) fn run_forward(
    op: &'static str,
    norm: Norm<'_>,
    x: &Tensor,
    residual: Option<&Tensor>,
    keep_sum: bool,
) -> Result<Normalized> {
    let (_, c) = check::matrix(op, "x", x)?;
    check::f32(op, "x", x)?;
    for (name, t) in [("gamma", Some(norm.gamma)), ("beta", norm.beta)] {
        if let Some(t) = t {
            check::shape(op, name, t, &[c])?;
            check::same_device(op, &[x, t])?;
        }
    }
    if let Some(residual) = residual {
        check::shape(op, "residual", residual, x.shape())?;
        check::f32(op, "residual", residual)?;
        check::same_device(op, &[x, residual])?;
    }
    check::value(op, norm.eps >= 0.0, || format!("eps must be at least 0, got {}", norm.eps))?;
    let (len, per_value) = (x.len() as f64, if norm.centered { 8.0 } else { 4.0 });
    let (sum, kept) = (f64::from(u8::from(residual.is_some())), f64::from(u8::from(residual.is_some() && keep_sum)));
    let _span = profile::span(op, (per_value + sum) * len, 4.0 * (2.0 + sum + kept) * len);
    on_device!(
        x.device(),
        cpu::forward(norm, x, residual, keep_sum),
        gpu => gpu::forward(gpu, op, norm, x, residual, keep_sum)
    )
}

/// Checks the arguments and computes dh. Without `mean`, the norm is not centered.
pub(super) fn run_backward(
    op: &'static str,
    dy: &Tensor,
    d_h: Option<&Tensor>,
    gamma: &Tensor,
    h: &Tensor,
    mean: Option<&Tensor>,
    rstd: &Tensor,
) -> Result<Tensor> {
    let (n, c) = check::matrix(op, "h", h)?;
    check::shape(op, "gamma", gamma, &[c])?;
    check::same_device(op, &[h, gamma])?;
    let (matrix, column) = ([n, c], [n]);
    let wanted: [(_, _, &[usize]); 5] = [
        ("h", Some(h), &matrix),
        ("dy", Some(dy), &matrix),
        ("d_h", d_h, &matrix),
        ("mean", mean, &column),
        ("rstd", Some(rstd), &column),
    ];
    for (name, t, shape) in wanted {
        if let Some(t) = t {
            check::shape(op, name, t, shape)?;
            check::f32(op, name, t)?;
            check::same_device(op, &[h, t])?;
        }
    }
    let (len, added) = (dy.len() as f64, f64::from(u8::from(d_h.is_some())));
    let per_value = if mean.is_some() { 10.0 } else { 7.0 };
    let _span = profile::span(op, (per_value + added) * len, 4.0 * (3.0 + added) * len);
    on_device!(
        dy.device(),
        cpu::backward(dy, d_h, gamma, h, mean, rstd),
        gpu => gpu::backward(gpu, op, dy, d_h, gamma, h, mean, rstd)
    )
}
