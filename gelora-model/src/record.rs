//! What runs leave behind: a record for each step, and metrics.

use serde::Serialize;

/// Metrics by name, in the order in which they are shown.
pub type Metrics = Vec<(&'static str, f64)>;

/// The record of an optimizer step. Serialized, it is a line of metrics.jsonl.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepRecord {
    /// Steps done.
    pub step: usize,
    /// Passes over the rows done.
    pub epoch: f64,
    /// Mean loss of the step's rows, before the step.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Milliseconds since the end of the step before.
    pub ms: f64,
    /// Tokens a second.
    pub tokens_per_s: f64,
    /// Tokens of the step.
    #[serde(skip)]
    pub tokens: usize,
}
