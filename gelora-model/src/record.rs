//! Records of a run: one for each step, and metrics.

use serde::Serialize;

/// Metrics with their names, in display order.
pub type Metrics = Vec<(&'static str, f64)>;

/// The record of an optimizer step. Serialized, it is one line of metrics.jsonl.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepRecord {
    /// Number of finished steps.
    pub step: usize,
    /// Number of finished epochs.
    pub epoch: f64,
    /// Mean loss of the step's rows, before the parameters change.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Milliseconds since the end of the previous step.
    pub ms: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Number of tokens in the step.
    #[serde(skip)]
    pub tokens: usize,
}
