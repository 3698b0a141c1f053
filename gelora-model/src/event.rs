//! Progress reports of long runs.

use std::fmt;
use std::path::Path;

use crate::record::{Best, Metrics, StepRecord};
use crate::{Error, Result};

/// A part of a run whose progress is counted in units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// The forward pass that computes hidden states; a unit is an example.
    HiddenStates,
    /// The estimate of each hidden state's intrinsic dimension; a unit is a state.
    Dimensions,
    /// The ranks of resamples; a unit is a resample.
    Stability,
    /// The gradients of the frozen model; a unit is an example.
    Gradients,
    /// The inputs of the frozen model's modules; a unit is an example.
    Inputs,
    /// Training; a unit is an optimizer step.
    Training,
    /// The forward pass over evaluation data; a unit is an example.
    Evaluation,
}

impl Work {
    /// Short name for a progress bar.
    pub fn name(self) -> &'static str {
        match self {
            Self::HiddenStates => "hidden states",
            Self::Dimensions => "intrinsic dimension",
            Self::Stability => "stability",
            Self::Gradients => "gradients",
            Self::Inputs => "inputs",
            Self::Training => "train",
            Self::Evaluation => "eval",
        }
    }
}

/// A progress report. The callback that receives it returns nothing, or a `Result` whose error ends the run.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A part of the run begins.
    Began {
        /// The part.
        work: Work,
        /// Number of units in the part.
        units: usize,
    },
    /// More units of the current part are done.
    Advanced {
        /// Number of units.
        units: usize,
    },
    /// The current part is finished.
    Finished {
        /// The part.
        work: Work,
    },
    /// The hidden states came from the cache, so the model did not run.
    CacheHit,
    /// A problem that does not affect the result.
    Remark(&'a str),
    /// A problem that the user should know of, which the run survives.
    Warning(&'a str),
    /// Training begins at step `first`, counted from 0. Earlier steps were restored from a checkpoint.
    Training {
        /// The first step that runs.
        first: usize,
        /// Number of steps of the whole training run.
        total: usize,
    },
    /// An optimizer step is done.
    Step(&'a StepRecord),
    /// The held-out rows were evaluated.
    Evaluated {
        /// Number of finished steps.
        step: usize,
        /// The metrics.
        metrics: &'a Metrics,
        /// Logits of every row, in order, if the model is a classifier.
        logits: &'a [Vec<f32>],
    },
    /// The training is over, and its evaluations were compared.
    Best(&'a Best),
    /// A checkpoint is about to be written. Records of all earlier steps should be on disk first.
    Checkpoint {
        /// Number of finished steps.
        step: usize,
        /// The folder of the checkpoint.
        folder: &'a Path,
    },
    /// All work after a step (evaluation, checkpoint) is finished.
    StepEnded,
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Began { work, units } => write!(f, "{}: 0 of {units}", work.name()),
            Self::Advanced { units } => write!(f, "{units} more"),
            Self::Finished { work } => write!(f, "{}: done", work.name()),
            Self::CacheHit => f.write_str("hidden states: from the cache"),
            Self::Remark(text) | Self::Warning(text) => f.write_str(text),
            Self::Training { first, total } => write!(f, "training: steps {} to {total}", first + 1),
            Self::Step(record) => write!(f, "step {}: loss {:.4}", record.step, record.loss),
            Self::Evaluated { step, metrics, .. } => {
                write!(f, "step {step}:")?;
                metrics.iter().try_for_each(|(name, value)| write!(f, " {name} {value:.4}"))
            }
            Self::Best(best) => best.fmt(f),
            Self::Checkpoint { step, folder } => write!(f, "step {step}: checkpoint in {}", folder.display()),
            Self::StepEnded => Ok(()),
        }
    }
}

/// Return type of a progress callback: nothing, or a `Result` whose error ends the run as [`Error::Stopped`].
pub trait Reply {
    /// Converts the reply to a result.
    ///
    /// # Errors
    /// Returns an error if the callback asked to end the run.
    fn into_result(self) -> Result<()>;
}

impl Reply for () {
    fn into_result(self) -> Result<()> {
        Ok(())
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> Reply for Result<(), E> {
    fn into_result(self) -> Result<()> {
        self.map_err(|error| Error::Stopped(error.into()))
    }
}

/// A progress callback in the form that the modules of this crate share.
pub(crate) type Report<'a> = dyn FnMut(Event<'_>) -> Result<()> + 'a;

/// Wraps the caller's callback so that its reply becomes a result.
pub(crate) fn report<R: Reply>(progress: &mut impl FnMut(Event<'_>) -> R) -> impl FnMut(Event<'_>) -> Result<()> {
    move |event| progress(event).into_result()
}
