//! How a training runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::measure::ModuleRank;
use crate::{Error, Result};

/// Options of a [`Trainer`](super::Trainer).
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Rank and alpha of each adapted module, by its full name: [`Ranks::modules`](crate::measure::Ranks::modules).
    pub ranks: BTreeMap<String, ModuleRank>,
    /// Dropout before A, from 0 to below 1.
    pub lora_dropout: f64,
    /// Whether B A is scaled by alpha / sqrt(r) instead of alpha / r.
    pub rslora: bool,
    /// Peak learning rate.
    pub lr: f64,
    /// Length of the training.
    pub length: Length,
    /// Rows of one optimizer step.
    pub batch_size: usize,
    /// Parts that the rows of a step are run in, one after the other, to save memory.
    pub accumulate: usize,
    /// Whether the forward pass keeps the input of each block alone and the backward pass computes the rest again.
    pub checkpoint_activations: bool,
    /// Whether batches are made of rows of similar length.
    pub group_by_length: bool,
    /// Share of the steps over which the learning rate rises, from 0 to below 1.
    pub warmup: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 for no clipping.
    pub clip: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Where checkpoints are kept; None keeps none.
    pub checkpoints: Option<Checkpoints>,
}

/// Length of a training.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Length {
    /// Passes over the rows; the number of steps is rows / batch size x epochs, rounded up.
    Epochs(f64),
    /// Optimizer steps.
    Steps(usize),
}

/// Where checkpoints are kept, and when.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    /// The folder.
    pub folder: PathBuf,
    /// Steps between checkpoints; None for an epoch.
    pub every: Option<usize>,
    /// Whether training goes on from the checkpoint in the folder.
    pub resume: bool,
    /// What the result depends on beside these options and the model, such as a hash of the data: a checkpoint whose
    /// settings differ is refused.
    pub settings: BTreeMap<String, Value>,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            ranks: BTreeMap::new(),
            lora_dropout: 0.0,
            rslora: false,
            lr: 1e-3,
            length: Length::Epochs(3.0),
            batch_size: 32,
            accumulate: 1,
            checkpoint_activations: false,
            group_by_length: false,
            warmup: 0.06,
            weight_decay: 0.01,
            clip: 1.0,
            seed: 0,
            checkpoints: None,
        }
    }
}

impl TrainOptions {
    /// Optimizer steps of a training on so many rows.
    pub(super) fn steps(&self, rows: usize) -> usize {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => ((rows as f64 / self.batch_size as f64 * epochs).ceil() as usize).max(1),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let is_share = |value: f64| (0.0..1.0).contains(&value);
        let is_length = match self.length {
            Length::Epochs(epochs) => epochs.is_finite() && epochs > 0.0,
            Length::Steps(steps) => steps > 0,
        };
        let wrong = [
            ("lora_dropout is not from 0 to below 1", !is_share(self.lora_dropout)),
            ("lr is not above 0", !(self.lr.is_finite() && self.lr > 0.0)),
            ("length is not above 0", !is_length),
            ("batch_size is 0", self.batch_size == 0),
            ("accumulate is 0", self.accumulate == 0),
            ("warmup is not from 0 to below 1", !is_share(self.warmup)),
            ("weight_decay is below 0", !(self.weight_decay.is_finite() && self.weight_decay >= 0.0)),
            ("clip is below 0", !(self.clip.is_finite() && self.clip >= 0.0)),
        ];
        match wrong.into_iter().find(|(_, is_wrong)| *is_wrong) {
            Some((problem, _)) => Err(Error::Value(problem.into())),
            None => Ok(()),
        }
    }
}
