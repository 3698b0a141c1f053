//! Training losses and their gradients. A loss is the mean over the B rows of a batch.
//!
//! - cross entropy: `-1/B sum_b ln softmax(logits_b)[label_b]`; d_logits = (softmax - one-hot) / B.
//! - cross entropy with weights w of the classes and label smoothing e, as torch's `CrossEntropyLoss`: row b has the
//!   targets `t_bj = w_j ((1 - e) [j = label_b] + e / K)`; loss = -1/W sum_b sum_j t_bj ln softmax(logits_b)_j with
//!   W = sum_b w_label_b; d_logits_bj = (softmax_bj sum_i t_bi - t_bj) / W.
//! - binary cross entropy, as torch's `BCEWithLogitsLoss`: every logit is a decision of its own, with a target t from 0
//!   to 1; loss = 1/(B K) sum_bk (ln(1 + e^x_bk) - t_bk x_bk); d_logits = (1 / (1 + e^-x) - t) / (B K).
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
    let (b, k) = check_classes(OP, logits, labels)?;
    let _span = profile::span(OP, 0.0, 8.0 * (b * k) as f64);
    on_device!(logits.device(), cpu::cross_entropy(logits, labels), gpu => gpu::cross_entropy(gpu, logits, labels))
}

/// Weights of the classes and label smoothing of [`weighted_cross_entropy`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CrossEntropy {
    /// The weight of each class, above 0; if empty, all weights are 1.
    pub weights: Vec<f32>,
    /// Share e of every target that is spread evenly over all classes, at least 0 and below 1.
    pub smoothing: f32,
}

impl CrossEntropy {
    /// Whether this is the cross entropy without weights and smoothing.
    pub fn is_plain(&self) -> bool {
        self.weights.is_empty() && self.smoothing == 0.0
    }

    /// W, by which the sum of the losses of rows with these labels is divided. A label that has no weight counts 1.
    pub fn total(&self, labels: impl IntoIterator<Item = usize>) -> f64 {
        let weight = |label: usize| self.weights.get(label).map_or(1.0, |weight| f64::from(*weight));
        labels.into_iter().map(weight).sum()
    }

    /// Checks the settings for K classes.
    ///
    /// # Errors
    /// If there are weights, but not K; if a weight is not above 0 or not finite; or if the smoothing is out of range.
    pub fn check(&self, k: usize) -> Result<()> {
        const OP: &str = "loss.weighted_cross_entropy";
        let weights = self.weights.len();
        check::value(OP, weights == 0 || weights == k, || format!("{k} classes need as many weights, got {weights}"))?;
        let bad = self.weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0));
        check::value(OP, bad.is_none(), || format!("weights must be above 0 and finite, got {bad:?}"))?;
        check::value(OP, (0.0..1.0).contains(&self.smoothing), || {
            format!("label smoothing must be at least 0 and below 1, got {}", self.smoothing)
        })
    }
}

/// (loss, d_logits), as [`cross_entropy`] with weights of the classes and label smoothing. Plain settings give the bits
/// of [`cross_entropy`].
///
/// # Errors
/// As [`cross_entropy`] and [`CrossEntropy::check`].
///
/// ```
/// use gelora_kernels::Tensor;
/// use gelora_kernels::ops::loss::{CrossEntropy, weighted_cross_entropy};
///
/// // Both rows have the loss ln 2, whatever their weights are.
/// let logits = Tensor::from_vec(vec![0.0; 4], [2, 2])?;
/// let settings = CrossEntropy { weights: vec![1.0, 3.0], smoothing: 0.0 };
/// let (loss, d_logits) = weighted_cross_entropy(&logits, &[0, 1], &settings)?;
/// assert!((loss.item()? - 2f32.ln()).abs() < 1e-6);
/// assert_eq!(d_logits.to_vec()?, [-0.125, 0.125, 0.375, -0.375]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn weighted_cross_entropy(logits: &Tensor, labels: &[usize], settings: &CrossEntropy) -> Result<(Tensor, Tensor)> {
    const OP: &str = "loss.weighted_cross_entropy";
    if settings.is_plain() {
        return cross_entropy(logits, labels);
    }
    let (b, k) = check_classes(OP, logits, labels)?;
    settings.check(k)?;
    let _span = profile::span(OP, 0.0, 8.0 * (b * k) as f64);
    let spread = Spread::new(settings, labels, k);
    on_device!(
        logits.device(),
        cpu::weighted(logits, labels, &spread),
        gpu => gpu::weighted(gpu, logits, labels, &spread)
    )
}

/// The targets of rows: `t_bj = w_j (keep [j = label_b] + off)`.
struct Spread {
    /// w (K).
    weights: Vec<f32>,
    /// 1 - e.
    keep: f64,
    /// e / K.
    off: f64,
    /// off sum_j w_j: the part of a row's targets that is the same in all rows.
    all: f64,
    /// W.
    total: f64,
}

impl Spread {
    fn new(settings: &CrossEntropy, labels: &[usize], k: usize) -> Self {
        let weights = if settings.weights.is_empty() { vec![1.0; k] } else { settings.weights.clone() };
        let off = f64::from(settings.smoothing) / k as f64;
        let all = off * weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
        Self {
            keep: 1.0 - f64::from(settings.smoothing),
            off,
            all,
            total: settings.total(labels.iter().copied()),
            weights,
        }
    }
}

/// B and K of logits; an error if a label does not fit them.
fn check_classes(op: &'static str, logits: &Tensor, labels: &[usize]) -> Result<(usize, usize)> {
    let (b, k) = check::matrix(op, "logits", logits)?;
    check::f32(op, "logits", logits)?;
    check::value(op, labels.len() == b, || format!("{b} rows of logits need as many labels, got {}", labels.len()))?;
    check::value(op, labels.iter().all(|l| *l < k), || {
        format!("labels must be below {k}, got {:?}", labels.iter().max())
    })?;
    Ok((b, k))
}

/// (loss, d_logits): logits (B, K), a target from 0 to 1 for each logit, row by row; loss (1), d_logits (B, K).
///
/// # Errors
/// If the number of targets differs from B K, a target is below 0 or above 1, or logits are not f32.
///
/// ```
/// use gelora_kernels::{Tensor, ops::loss};
///
/// let logits = Tensor::from_vec(vec![0.0, 0.0], [1, 2])?;
/// let (loss, d_logits) = loss::binary_cross_entropy(&logits, &[1.0, 0.0])?;
/// assert!((loss.item()? - 2f32.ln()).abs() < 1e-6);
/// assert_eq!(d_logits.to_vec()?, [-0.25, 0.25]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn binary_cross_entropy(logits: &Tensor, targets: &[f32]) -> Result<(Tensor, Tensor)> {
    const OP: &str = "loss.binary_cross_entropy";
    let (b, k) = check::matrix(OP, "logits", logits)?;
    check::f32(OP, "logits", logits)?;
    check::value(OP, targets.len() == b * k, || {
        format!("{b} x {k} logits need as many targets, got {}", targets.len())
    })?;
    let bad = targets.iter().find(|target| !(0.0..=1.0).contains(*target));
    check::value(OP, bad.is_none(), || format!("targets must be from 0 to 1, got {bad:?}"))?;
    let _span = profile::span(OP, 0.0, 12.0 * (b * k) as f64);
    on_device!(
        logits.device(),
        cpu::binary_cross_entropy(logits, targets),
        gpu => gpu::binary_cross_entropy(gpu, logits, targets)
    )
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
