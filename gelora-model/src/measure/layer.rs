//! A step from one hidden state to the next.

use gelora_id::Growth;
use gelora_lora::ranks::StepRank;
use serde::{Deserialize, Serialize};

use super::modules::DirectionCount;
use crate::Granularity;

/// A step from one hidden state to the next: a block, or the attention or MLP part of one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Layer {
    /// Index of the block, counted from 0.
    pub layer: usize,
    /// "attention" or "mlp", if each part of a block is a separate step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Growth of the dimension, d_{s+1} - d_s.
    pub delta: f64,
    /// Standard error of the growth, by a jackknife over the examples.
    pub error: f64,
    /// Confidence interval of the growth.
    pub interval: [f64; 2],
    /// One-sided upper confidence bound of the growth.
    pub upper: f64,
    /// Rank of the modules in this step; if each has a rank of its own, their mean, rounded.
    pub rank: usize,
    /// Alpha of that rank.
    pub alpha: f64,
    /// Mean rank of the modules in this step, if each has a rank of its own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mean_rank: Option<f64>,
    /// Directions of the gradients that replicate, if they were measured: the sum over the modules in this step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub directions: Option<DirectionCount>,
}

impl Layer {
    /// Name of the step, such as "layer 3" or "layer 3 attention".
    pub fn name(&self) -> String {
        match &self.part {
            None => format!("layer {}", self.layer),
            Some(part) => format!("layer {} {part}", self.layer),
        }
    }

    /// Mean rank of the modules in this step.
    pub fn mean_rank(&self) -> f64 {
        self.mean_rank.unwrap_or(self.rank as f64)
    }
}

impl Layer {
    pub(super) fn new(step: usize, granularity: Granularity, rank: &StepRank, growth: &Growth) -> Self {
        let parts = granularity.steps_per_block();
        let part = (parts > 1).then(|| if step.is_multiple_of(2) { "attention" } else { "mlp" }.to_owned());
        let &Growth { delta, error, interval, upper } = growth;
        let &StepRank { rank, alpha } = rank;
        let (layer, mean_rank, directions) = (step / parts, None, None);
        Self { layer, part, delta, error, interval, upper, rank, alpha, mean_rank, directions }
    }
}
