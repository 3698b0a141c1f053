//! Records of a run: one for each step, and metrics.

use std::fmt;

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
    /// What AdaLoRA adds to the loss; None without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub penalty: Option<f64>,
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

/// The best evaluation of a finished training. Serialized, it stands in metrics.jsonl and in the JSON of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Best {
    /// Name of the metric by which evaluations were compared.
    pub metric: &'static str,
    /// Its best value.
    pub value: f64,
    /// Number of steps before the best evaluation. Of equal ones it is the first.
    pub step: usize,
    /// Whether the adapter of this step is kept; otherwise that of the last step.
    pub kept: bool,
    /// Number of steps that the training took.
    pub last_step: usize,
    /// Whether the training ended early, after this many evaluations that were not better.
    pub stopped_early: Option<usize>,
}

impl fmt::Display for Best {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { metric, value, step, last_step, .. } = self;
        if let Some(evaluations) = self.stopped_early {
            write!(f, "stopped early after step {last_step}: {evaluations} evaluations without a better {metric}; ")?;
        }
        let kept = if self.kept { *step } else { *last_step };
        write!(f, "the best {metric} was {value:.4} at step {step}; the adapter is that of step {kept}")
    }
}
