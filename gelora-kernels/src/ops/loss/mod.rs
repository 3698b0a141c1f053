//! Training losses and their gradients. A loss is the mean over the B rows of a batch.
//!
//! - cross entropy: `-1/B sum_b ln softmax(logits_b)[label_b]`; d_logits = (softmax - one-hot) / B.
//! - squared error: 1/B sum_b (prediction_b - target_b)^2; d_prediction = 2 (prediction - target) / B.
//!
//! logits (B, K), prediction (B, 1). The loss is in nats, or in squared units of the target. Accumulation: on the CPU
//! f64, and f32 for sums of up to 1024 exponentials; on a GPU f32, one partial sum for each unit, added as a tree, both
//! within a row and over rows.

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

/// (loss, d_logits): logits (B, K), a label below K for each row; loss (1), d_logits (B, K).
///
/// # Errors
/// If the number of labels differs from B, a label is not below K, or logits are not f32.
///
/// ```
/// use gelora_kernels::{Tensor, ops::loss};
///
/// let logits = Tensor::from_vec(vec![0.0, 0.0], [1, 2])?;
/// let (loss, d_logits) = loss::cross_entropy(&logits, &[1])?;
/// assert!((loss.item()? - 2f32.ln()).abs() < 1e-6);
/// assert_eq!(d_logits.to_vec()?, [0.5, -0.5]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, labels: &[usize]) -> Result<(Tensor, Tensor)> {
    const OP: &str = "loss.cross_entropy";
    let (b, k) = check::matrix(OP, "logits", logits)?;
    check::f32(OP, "logits", logits)?;
    check::value(OP, labels.len() == b, || format!("{b} rows of logits need as many labels, got {}", labels.len()))?;
    check::value(OP, labels.iter().all(|l| *l < k), || {
        format!("labels must be below {k}, got {:?}", labels.iter().max())
    })?;
    let _span = profile::span(OP, 0.0, 8.0 * (b * k) as f64);
    on_device!(logits.device(), cpu::cross_entropy(logits, labels), gpu => gpu::cross_entropy(gpu, logits, labels))
}

/// (loss, d_prediction): prediction (B, 1), a finite target for each row; loss (1), d_prediction (B, 1).
///
/// # Errors
/// If the number of targets differs from B, a target is not finite, or the prediction is not f32.
pub fn squared_error(prediction: &Tensor, targets: &[f32]) -> Result<(Tensor, Tensor)> {
    const OP: &str = "loss.squared_error";
    check::shape(OP, "prediction", prediction, &[targets.len(), 1])?;
    check::f32(OP, "prediction", prediction)?;
    check::value(OP, targets.iter().all(|t| t.is_finite()), || "targets must be finite".into())?;
    let _span = profile::span(OP, 0.0, 12.0 * targets.len() as f64);
    on_device!(
        prediction.device(),
        cpu::squared_error(prediction, targets),
        gpu => gpu::squared_error(gpu, prediction, targets)
    )
}
