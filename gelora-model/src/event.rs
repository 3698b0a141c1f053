//! What a long run reports while it goes on.

use std::fmt;
use std::path::Path;

use crate::record::{Metrics, StepRecord};
use crate::{Error, Result};

/// A part of a run whose progress is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// The forward pass that takes hidden states; its units are examples.
    HiddenStates,
    /// The intrinsic dimension of each hidden state; its units are states.
    Dimensions,
    /// Ranks of resamples; its units are resamples.
    Stability,
    /// Training; its units are optimizer steps.
    Training,
    /// The forward pass over evaluation data; its units are examples.
    Evaluation,
}

impl Work {
    /// A short name for a progress bar.
    pub fn name(self) -> &'static str {
        match self {
            Self::HiddenStates => "hidden states",
            Self::Dimensions => "intrinsic dimension",
            Self::Stability => "stability",
            Self::Training => "train",
            Self::Evaluation => "eval",
        }
    }
}

/// One report of a run. The callback that receives it may return nothing, or a `Result` whose error ends the run.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A part of the run begins.
    Began {
        /// The part.
        work: Work,
        /// Number of units that it consists of.
        units: usize,
    },
    /// More units of the current part are done.
    Advanced {
        /// Their number.
        units: usize,
    },
    /// The current part is over.
    Finished {
        /// The part.
        work: Work,
    },
    /// The hidden states came out of the cache, so the model did not run.
    CacheHit,
    /// Something went wrong that does not affect the result.
    Remark(&'a str),
    /// Training begins at this step, counted from 0; steps before it were restored from a checkpoint.
    Training {
        /// The first step that runs.
        first: usize,
        /// Steps of the whole training.
        total: usize,
    },
    /// An optimizer step is done.
    Step(&'a StepRecord),
    /// The held-out rows were evaluated.
    Evaluated {
        /// Steps done.
        step: usize,
        /// The metrics.
        metrics: &'a Metrics,
    },
    /// A checkpoint is about to be written; records of all steps before it should be on disk first.
    Checkpoint {
        /// Steps done.
        step: usize,
        /// The folder of the checkpoint.
        folder: &'a Path,
    },
    /// Everything that follows a step (evaluation, checkpoint) is done.
    StepEnded,
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Began { work, units } => write!(f, "{}: 0 of {units}", work.name()),
            Self::Advanced { units } => write!(f, "{units} more"),
            Self::Finished { work } => write!(f, "{}: done", work.name()),
            Self::CacheHit => f.write_str("hidden states: from the cache"),
            Self::Remark(text) => f.write_str(text),
            Self::Training { first, total } => write!(f, "training: steps {} to {total}", first + 1),
            Self::Step(record) => write!(f, "step {}: loss {:.4}", record.step, record.loss),
            Self::Evaluated { step, metrics } => {
                write!(f, "step {step}:")?;
                metrics.iter().try_for_each(|(name, value)| write!(f, " {name} {value:.4}"))
            }
            Self::Checkpoint { step, folder } => write!(f, "step {step}: checkpoint in {}", folder.display()),
            Self::StepEnded => Ok(()),
        }
    }
}

/// What a progress callback may return: nothing, or a `Result` whose error ends the run as [`Error::Stopped`].
pub trait Reply {
    /// The reply as a result.
    ///
    /// # Errors
    /// If the callback wants the run to end.
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

/// A progress callback as the modules of this crate pass it on.
pub(crate) type Report<'a> = dyn FnMut(Event<'_>) -> Result<()> + 'a;

/// The callback of a caller, with its reply turned into a result.
pub(crate) fn report<R: Reply>(progress: &mut impl FnMut(Event<'_>) -> R) -> impl FnMut(Event<'_>) -> Result<()> {
    move |event| progress(event).into_result()
}
