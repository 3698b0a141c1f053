//! The errors of this crate.

use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate. Each variant names the file, option, pattern or module, what was
/// expected and what was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A file could not be written. A previous file is unchanged.
    #[error("{}: cannot be written; nothing was changed: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A file is not JSON of the expected form.
    #[error("{}: not a PEFT LoRA config: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A file is damaged, or is not what its name says.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// One tensor of a file cannot be used.
    #[error("{}: tensor {tensor}: {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An option of the adapter's config has a value that is invalid or not supported.
    #[error("adapter config: {option} is {got}; expected {expected}")]
    Option {
        /// The key in adapter_config.json.
        option: String,
        /// The values that can be used.
        expected: String,
        /// The value it has, as JSON.
        got: String,
    },
    /// A regular expression of the adapter config is invalid, or needs too many steps on a module's name.
    #[error("adapter config: {option} has the pattern {pattern:?}: {problem}")]
    Pattern {
        /// The key in adapter_config.json.
        option: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A module's adapter does not fit the module, the config, or itself.
    #[error("module {module}: {problem}")]
    Module {
        /// The module's full name.
        module: String,
        /// What was expected and what was given.
        problem: String,
    },
    /// Ranks cannot be assigned.
    #[error("ranks: {problem}")]
    Ranks {
        /// What was expected and what was given.
        problem: String,
    },
    /// An operation on tensors failed.
    #[error(transparent)]
    Kernel(#[from] gelora_kernels::Error),
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File { path: path.to_path_buf(), problem: problem.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_path_buf(), tensor: tensor.into(), problem: problem.into() }
    }

    pub(crate) fn option(option: &str, expected: &str, got: impl ToString) -> Self {
        Self::Option { option: option.into(), expected: expected.into(), got: got.to_string() }
    }

    pub(crate) fn module(module: &str, problem: impl Into<String>) -> Self {
        Self::Module { module: module.into(), problem: problem.into() }
    }
}
