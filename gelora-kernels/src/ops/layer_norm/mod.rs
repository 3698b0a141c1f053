//! Layer normalisation, with the residual sum that precedes it in a transformer.
//!
//! h = x + residual; mean and variance over the C channels of a row (variance divided by C);
//! rstd = 1 / sqrt(variance + eps); normalized = (h - mean) rstd; y = normalized gamma + beta.
//!
//! Backward, with g = dy gamma: dh = rstd (g - mean(g) - normalized mean(g normalized)); it is the gradient of x and of
//! the residual alike. gamma and beta are frozen in LoRA training and get no gradient.
//!
//! x, residual, y (N, C); gamma, beta (C); rstd (N). Accumulation: two passes over a row (mean, then variance of the
//! differences) in 16 interleaved f32 partial sums.
//!
//! Source: Ba, Kiros, Hinton, arXiv 1607.06450.

pub(crate) mod cases;
mod cpu;
pub mod reference;

use super::check;
use crate::{Result, Tensor, profile};

const OP: &str = "layer_norm";

/// What [`backward`] needs.
#[derive(Debug)]
pub struct Saved {
    /// (h - mean) rstd, (N, C).
    pub normalized: Tensor,
    /// 1 / sqrt(variance + eps), (N).
    pub rstd: Tensor,
}

/// y = layer norm of x + residual: x, residual (N, C), gamma, beta (C).
///
/// # Errors
/// If shapes, types or devices do not fit together, or eps is negative.
pub fn forward(x: &Tensor, residual: Option<&Tensor>, gamma: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    check_arguments(OP, x, residual, gamma, beta, eps)?;
    let _span = forward_span(x, residual, false);
    Ok(cpu::forward(x, residual, gamma, beta, eps, false)?.0)
}

/// As [`forward`], with what [`backward`] needs.
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
    check_arguments(OP, x, residual, gamma, beta, eps)?;
    let _span = forward_span(x, residual, true);
    let (y, normalized, rstd) = cpu::forward(x, residual, gamma, beta, eps, true)?;
    Ok((y, Saved { normalized, rstd }))
}

/// dh, the gradient of x and of the residual: dy (N, C), gamma (C); dh (N, C).
///
/// # Errors
/// If shapes, types or devices do not fit together.
pub fn backward(dy: &Tensor, gamma: &Tensor, saved: Saved) -> Result<Tensor> {
    const OP: &str = "layer_norm.backward";
    check::shape(OP, "dy", dy, saved.normalized.shape())?;
    check::shape(OP, "gamma", gamma, &[dy.cols()])?;
    check::f32(OP, "dy", dy)?;
    check::same_device(OP, &[dy, gamma, &saved.normalized])?;
    check::cpu_only(OP, dy)?;
    let _span = profile::span(OP, 8.0 * dy.len() as f64, 12.0 * dy.len() as f64);
    cpu::backward(dy, gamma, &saved)
}

/// A value of h takes eight operations: one for the mean, three for the variance, four to normalise and scale it.
fn forward_span(x: &Tensor, residual: Option<&Tensor>, saving: bool) -> profile::Span {
    let (residual, saved) = (f64::from(u8::from(residual.is_some())), f64::from(u8::from(saving)));
    let len = x.len() as f64;
    profile::span(OP, (8.0 + residual) * len, 4.0 * (2.0 + residual + saved) * len)
}

fn check_arguments(
    op: &'static str,
    x: &Tensor,
    residual: Option<&Tensor>,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
) -> Result<()> {
    let (_, c) = check::matrix(op, "x", x)?;
    check::f32(op, "x", x)?;
    check::shape(op, "gamma", gamma, &[c])?;
    check::shape(op, "beta", beta, &[c])?;
    check::same_device(op, &[x, gamma, beta])?;
    if let Some(residual) = residual {
        check::shape(op, "residual", residual, x.shape())?;
        check::f32(op, "residual", residual)?;
        check::same_device(op, &[x, residual])?;
    }
    check::value(op, eps >= 0.0, || format!("eps must be at least 0, got {eps}"))?;
    check::cpu_only(op, x)
}
