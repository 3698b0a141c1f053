use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of this crate. Each variant names the file, key, tensor or argument that is wrong, and the expected value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file of the model folder has wrong content.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The problem, and the expected content.
        problem: String,
    },
    /// An argument is out of range.
    #[error("{0}")]
    Value(String),
    /// Reading or writing tensors or an adapter failed.
    #[error(transparent)]
    Lora(#[from] gelora_lora::Error),
    /// The dimension of a hidden state cannot be estimated.
    #[error("hidden state {state}")]
    State {
        /// Index and name of the state.
        state: String,
        /// The problem with its points.
        source: gelora_id::Error,
    },
    /// Estimating a dimension failed.
    #[error(transparent)]
    Id(#[from] gelora_id::Error),
    /// The option [`Scale::Plateau`](crate::measure::Scale::Plateau) was chosen, but no state has a plateau.
    #[error("the dimension of no state has a plateau")]
    NoPlateau,
    /// A gradient is not finite.
    #[error("step {step}: the gradient is not finite; a lower learning rate may help")]
    Diverged {
        /// The optimizer step, counted from 1.
        step: u64,
    },
    /// Rows of training or evaluation data could not be read or tokenized.
    #[error(transparent)]
    Rows(Box<dyn std::error::Error + Send + Sync>),
    /// The progress callback ended the run.
    #[error(transparent)]
    Stopped(Box<dyn std::error::Error + Send + Sync>),
    /// The flag of [`Trainer::with_stop`](crate::Trainer::with_stop) ended the training.
    #[error("stopped after step {step} of {steps}")]
    Interrupted {
        /// Number of finished steps.
        step: usize,
        /// Number of steps of the whole training.
        steps: usize,
    },
    /// Another process does not answer, or differs from this one.
    #[error("{0}")]
    Process(String),
    /// An operator failed.
    #[error(transparent)]
    Kernel(#[from] gelora_kernels::Error),
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn state(index: usize, name: &str, source: gelora_id::Error) -> Self {
        Self::State { state: format!("{index} ({name})"), source }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File { path: path.to_path_buf(), problem: problem.into() }
    }
}
