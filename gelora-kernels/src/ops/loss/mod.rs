//! Training losses with their gradients, each the mean over the B rows of a batch.
//!
//! - cross entropy: `-1/B sum_b ln softmax(logits_b)[label_b]`; d_logits = (softmax - one-hot) / B.
//! - squared error: 1/B sum_b (prediction_b - target_b)^2; d_prediction = 2 (prediction - target) / B.
//!
//! logits (B, K), prediction (B, 1); the loss is in nats, or in squared units of the target. Sums are in f64 on the
//! CPU, but for those of up to 1024 exponentials in f32; on a GPU in f32, within a row as over rows in one partial sum a unit, which are added as a tree.

pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
pub mod reference;

use super::check;
use crate::device::on_device;
use crate::{Result, Tensor, profile};

/// (loss as one value, d_logits (B, K)): logits (B, K), a label below K for each row.
///
/// # Errors
/// If the number of labels differs from B, a label is not below K, or logits are not f32.
pub fn cross_entropy(logits: &Tensor, labels: &[usize]) -> Result<(Tensor, Tensor)> {
    const OP: &str = "cross_entropy";
    let (b, k) = check::matrix(OP, "logits", logits)?;
    check::f32(OP, "logits", logits)?;
    check::value(OP, labels.len() == b, || format!("{b} rows of logits need as many labels, got {}", labels.len()))?;
    check::value(OP, labels.iter().all(|l| *l < k), || {
        format!("labels must be below {k}, got {:?}", labels.iter().max())
    })?;
    let _span = profile::span(OP, 0.0, 8.0 * (b * k) as f64);
    on_device!(logits.device(), cpu::cross_entropy(logits, labels), gpu => gpu::cross_entropy(gpu, logits, labels))
}

/// (loss as one value, d_prediction (B, 1)): prediction (B, 1), a finite target for each row.
///
/// # Errors
/// If the number of targets differs from B, a target is not finite, or the prediction is not f32.
pub fn squared_error(prediction: &Tensor, targets: &[f32]) -> Result<(Tensor, Tensor)> {
    const OP: &str = "squared_error";
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
