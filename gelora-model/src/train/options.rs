//! Options of a training.

use std::collections::BTreeMap;
use std::path::PathBuf;

use gelora_kernels::Tensor;
use serde_json::Value;

use super::best::Keep;
use super::schedule::{Interval, Schedule, warmup_steps};
use crate::adalora::AdaLora;
use crate::distributed::Processes;
use crate::measure::ModuleRank;
use crate::{Error, Result};

/// Options of a [`Trainer`](super::Trainer).
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Rank and alpha of each adapted module, by its full name: [`Ranks::modules`](crate::measure::Ranks::modules).
    /// If empty, a classifier's head is trained alone.
    pub ranks: BTreeMap<String, ModuleRank>,
    /// Dropout probability before A, at least 0 and below 1.
    pub lora_dropout: f64,
    /// Whether B A is scaled by alpha / sqrt(r) instead of alpha / r.
    pub rslora: bool,
    /// Whether every output of an adapted module has a trained magnitude (DoRA). Dropout is on the input of A alone;
    /// PEFT drops the input of (m / n - 1) W too.
    pub dora: bool,
    /// LoRA+: how many times as high the learning rate of B is as that of A, as
    /// [`Optimizer::lora_plus`](crate::optim::Optimizer::lora_plus) says. 1 is plain AdamW.
    pub lora_plus: f64,
    /// AdaLoRA: the adapters begin with more ranks than [`ranks`](Self::ranks) and give up the least important. If
    /// None, ranks stay.
    pub adalora: Option<AdaLora>,
    /// Peak learning rate.
    pub lr: f64,
    /// Length of the training.
    pub length: Length,
    /// Number of rows in one optimizer step.
    pub batch_size: usize,
    /// Number of micro-batches into which a step is split, to save memory or to share them between processes. Those of
    /// one process run one after the other.
    pub accumulate: usize,
    /// Whether the forward pass keeps only the input of each block and the backward pass computes the rest again.
    pub checkpoint_activations: bool,
    /// Whether batches contain rows of similar length.
    pub group_by_length: bool,
    /// How the learning rate goes on after the warm-up.
    pub schedule: Schedule,
    /// Steps during which the learning rate rises: below 1 a share of all steps, else a whole number of steps.
    pub warmup: f64,
    /// Values of the adapters before the first step.
    pub init: Init,
    /// A before the first step of single modules, (R, C_in): those of [`crate::eva`]. Other modules begin as
    /// [`init`](Self::init) says.
    pub factors: BTreeMap<String, Tensor>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global norm of the gradient. 0 disables clipping.
    pub clip: f64,
    /// Weight of each class in the loss, above 0; if empty, all weights are 1. The loss of a step is the weighted mean
    /// over its rows: see [`gelora_kernels::ops::loss`].
    pub class_weights: Vec<f64>,
    /// Share of every target that is spread evenly over all classes, at least 0 and below 1.
    pub label_smoothing: f64,
    /// Distance between evaluations of held-out rows. If None, they are evaluated after each epoch. They are evaluated
    /// at the end in any case.
    pub eval_every: Option<Interval>,
    /// Name of the metric by which evaluations are compared. If None, it is the first of
    /// [`metrics`](crate::evaluate::metrics()).
    pub metric: Option<String>,
    /// The adapter that the training ends with.
    pub keep: Keep,
    /// Ends the training after this many evaluations in a row that are not better than the best one.
    pub patience: Option<usize>,
    /// Seed of all random choices.
    pub seed: u64,
    /// Where and when checkpoints are written. If None, there are no checkpoints.
    pub checkpoints: Option<Checkpoints>,
    /// The processes that train together. Their number divides [`accumulate`](Self::accumulate); the result does not
    /// depend on it. The first process writes the checkpoints, which all of them read to resume.
    pub processes: Processes,
}

/// Values of the adapters before the first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Init {
    /// A is random and B is 0.
    #[default]
    Lora,
    /// PiSSA: A and B are the leading singular triplets of the weight, which the frozen weight then lacks. See
    /// [`gelora_lora::LoraLayer::pissa`].
    Pissa,
}

impl Init {
    /// The name on the command line and in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Pissa => "pissa",
        }
    }
}

/// Length of a training.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Length {
    /// Number of epochs. The number of steps is rows / batch size x epochs, rounded up.
    Epochs(f64),
    /// Number of optimizer steps.
    Steps(usize),
}

/// Where and when checkpoints are written.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    /// The folder.
    pub folder: PathBuf,
    /// Number of steps between checkpoints. If None, a checkpoint is written after each epoch.
    pub every: Option<usize>,
    /// Number of checkpoints that stay: the last ones. At least 1.
    pub keep: usize,
    /// Whether training resumes from the newest checkpoint in the folder that is whole.
    pub resume: bool,
    /// Other inputs of the result beside these options and the model, such as a hash of the dataset. Training does not
    /// resume from a checkpoint whose settings differ.
    pub settings: BTreeMap<String, Value>,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { folder: PathBuf::new(), every: None, keep: 1, resume: false, settings: BTreeMap::new() }
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            ranks: BTreeMap::new(),
            lora_dropout: 0.0,
            rslora: false,
            dora: false,
            lora_plus: 1.0,
            adalora: None,
            lr: 1e-3,
            length: Length::Epochs(3.0),
            batch_size: 32,
            accumulate: 1,
            checkpoint_activations: false,
            group_by_length: false,
            schedule: Schedule::Linear,
            warmup: 0.06,
            init: Init::Lora,
            factors: BTreeMap::new(),
            weight_decay: 0.01,
            clip: 1.0,
            class_weights: Vec::new(),
            label_smoothing: 0.0,
            eval_every: None,
            metric: None,
            keep: Keep::Last,
            patience: None,
            seed: 0,
            checkpoints: None,
            processes: Processes::default(),
        }
    }
}

impl TrainOptions {
    /// Number of optimizer steps for a dataset of this many rows.
    pub(super) fn steps(&self, rows: usize) -> usize {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => ((rows as f64 / self.batch_size as f64 * epochs).ceil() as usize).max(1),
        }
    }

    /// Checks the options, and that they fit a training on this many rows.
    ///
    /// # Errors
    /// Returns an error if an option is out of range, the warm-up is longer than the training, or AdaLoRA has no steps
    /// to give up ranks in.
    pub fn validate(&self, rows: usize) -> Result<()> {
        self.check()?;
        let (warmup, steps) = (self.warmup, self.steps(rows));
        if warmup_steps(warmup, steps) > steps as f64 {
            return Err(Error::Value(format!("warmup of {warmup} steps: the training has {steps}; expected no more")));
        }
        self.adalora.as_ref().map_or(Ok(()), |adalora| adalora.schedule(steps).map(drop))
    }

    /// These options for a training of so many steps, with shares of it instead of whole numbers of steps.
    #[must_use]
    pub fn for_steps(self, steps: usize, rows: usize) -> Self {
        let whole = self.steps(rows) as f64;
        let share = |value: f64| if value < 1.0 { value } else { (value / whole).min(1.0 - f64::EPSILON) };
        let adalora = self.adalora.map(|adalora| AdaLora {
            t_init: share(adalora.t_init),
            t_final: share(adalora.t_final),
            ..adalora
        });
        Self { length: Length::Steps(steps), warmup: share(self.warmup), adalora, ..self }
    }

    pub(super) fn check(&self) -> Result<()> {
        let is_share = |value: f64| (0.0..1.0).contains(&value);
        let is_length = match self.length {
            Length::Epochs(epochs) => epochs.is_finite() && epochs > 0.0,
            Length::Steps(steps) => steps > 0,
        };
        let is_warmup = is_share(self.warmup) || (self.warmup >= 1.0 && self.warmup.fract() == 0.0);
        let is_interval = self.eval_every.is_none_or(|every| match every {
            Interval::Steps(steps) => steps > 0,
            Interval::Epochs(epochs) => epochs.is_finite() && epochs > 0.0,
        });
        let is_weight = |weight: &f64| weight.is_finite() && *weight > 0.0;
        let wrong = [
            ("lora_dropout is not from 0 to below 1", !is_share(self.lora_dropout)),
            ("lr is not above 0", !(self.lr.is_finite() && self.lr > 0.0)),
            ("lora_plus is not above 0", !(self.lora_plus.is_finite() && self.lora_plus > 0.0)),
            ("PiSSA and DoRA exclude each other: their result is no plain LoRA", self.dora && self.init == Init::Pissa),
            (
                "AdaLoRA excludes DoRA, EVA, PiSSA and rsLoRA: it has a form, a start and a scaling of its own",
                self.adalora.is_some()
                    && (self.dora || self.rslora || self.init == Init::Pissa || !self.factors.is_empty()),
            ),
            (
                "PiSSA and EVA exclude each other: both say how A begins",
                self.init == Init::Pissa && !self.factors.is_empty(),
            ),
            ("length is not above 0", !is_length),
            ("batch_size is 0", self.batch_size == 0),
            ("accumulate is 0", self.accumulate == 0),
            ("warmup is neither from 0 to below 1 nor a whole number of steps", !is_warmup),
            ("weight_decay is below 0", !(self.weight_decay.is_finite() && self.weight_decay >= 0.0)),
            ("a class weight is not above 0", !self.class_weights.iter().all(is_weight)),
            ("label_smoothing is not from 0 to below 1", !is_share(self.label_smoothing)),
            ("eval_every is not above 0", !is_interval),
            ("patience is 0", self.patience == Some(0)),
            ("clip is below 0", !(self.clip.is_finite() && self.clip >= 0.0)),
        ];
        let wrong = wrong.into_iter().find(|(_, is_wrong)| *is_wrong).map(|(problem, _)| problem);
        match wrong.or(self.adalora.as_ref().and_then(AdaLora::problem)) {
            Some(problem) => Err(Error::Value(problem.into())),
            None => self.processes.check_parts(self.accumulate),
        }
    }
}
