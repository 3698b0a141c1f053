use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate. Each variant names the file, key, tensor or argument and what was
/// expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the model folder is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what was expected.
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
        /// What is wrong with its points.
        source: gelora_id::Error,
    },
    /// Estimating a dimension failed.
    #[error(transparent)]
    Id(#[from] gelora_id::Error),
    /// Growths were to be measured at the scale of a plateau, and there is none.
    #[error("the dimension of no state has a plateau")]
    NoPlateau,
    /// Rows of training or evaluation data cannot be had.
    #[error(transparent)]
    Rows(Box<dyn std::error::Error + Send + Sync>),
    /// The progress callback ended the run.
    #[error(transparent)]
    Stopped(Box<dyn std::error::Error + Send + Sync>),
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
