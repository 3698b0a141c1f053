//! Root mean square normalization, with the residual sum that precedes it in a transformer.
//!
//! h = x + residual; rstd = 1 / sqrt(mean of h^2 over the C channels of a row + eps); y = h rstd gamma. Gemma scales by
//! 1 + weight; its gamma is the stored weight plus 1.
//!
//! Pre-norm blocks need h too, because the next sum is added to it. So forward returns both y and h, and backward takes
//! the gradient of h beside the gradient of y. With g = dy gamma: dh = rstd (g - h rstd mean(g h rstd)) + d_h. dh is
//! the gradient of x and of the residual. gamma is frozen in LoRA training and gets no gradient.
//!
//! x, residual, h, y (N, C); gamma (C), of any storage type; rstd (N). Code and accumulation are those of
//! [`super::layer_norm`] without the mean.
//!
//!
//! Source: Zhang and Sennrich, arXiv 1910.07467.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::layer_norm::{Norm, Normalized, run_backward, run_forward};
use crate::{Result, Tensor};

const OP: &str = "rms_norm";

/// Values of the forward pass that [`backward`] needs.
#[derive(Debug)]
pub struct Saved {
    /// x + residual, (N, C); x itself without a residual.
    pub h: Tensor,
    /// 1 / sqrt(mean of h^2 + eps), (N).
    pub rstd: Tensor,
}

/// (y, h) = (RMS norm of x + residual, x + residual): x, residual (N, C), gamma (C). Without a residual h shares the
/// memory of x.
///
/// # Errors
/// If shapes, types or devices do not fit together, or eps is negative; on a GPU, if C is above 16384.
///
/// ```
/// use gelora_kernels::{Tensor, ops::rms_norm};
///
/// let x = Tensor::from_vec(vec![1.0, 2.0], [1, 2])?;
/// let residual = Tensor::from_vec(vec![2.0, 2.0], [1, 2])?;
/// let gamma = Tensor::from_vec(vec![1.0, 10.0], [2])?;
/// let (y, h) = rms_norm::forward(&x, Some(&residual), &gamma, 0.0)?;
/// assert_eq!(h.to_vec()?, [3.0, 4.0]);
/// let rms = 12.5_f32.sqrt();
/// assert!((y.to_vec()?[1] - 40.0 / rms).abs() < 1e-5);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn forward(x: &Tensor, residual: Option<&Tensor>, gamma: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let (y, saved) = forward_saving(x, residual, gamma, eps)?;
    Ok((y, saved.h))
}

/// y as in [`forward`], and the values that [`backward`] needs. [`Saved::h`] is h.
///
/// # Errors
/// As [`forward`].
pub fn forward_saving(x: &Tensor, residual: Option<&Tensor>, gamma: &Tensor, eps: f32) -> Result<(Tensor, Saved)> {
    let norm = Norm { gamma, beta: None, eps, centered: false };
    let Normalized { y, h, rstd, .. } = run_forward(OP, norm, x, residual, true)?;
    Ok((y, Saved { h, rstd }))
}

/// dh, the gradient of x and of the residual, from the gradient of y and, if h was used further on, the gradient of h:
/// dy, d_h (N, C), gamma (C); dh (N, C).
///
/// # Errors
/// If shapes, types or devices do not fit together; on a GPU, if C is above 16384.
pub fn backward(dy: &Tensor, d_h: Option<&Tensor>, gamma: &Tensor, saved: Saved) -> Result<Tensor> {
    run_backward("rms_norm.backward", dy, d_h, gamma, &saved.h, None, &saved.rstd)
}
