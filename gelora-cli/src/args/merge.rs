//! Options of `gelora merge` and `gelora export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gelora_kernels::DType;
use gelora_model::gguf::StoredType;

use super::{ModelArgs, OutputArgs, TaskArg};

#[derive(Clone, Debug, Args)]
pub struct MergeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Adapter folder, from `gelora train` or PEFT, or a .gguf file with an adapter
    #[arg(long, value_name = "DIR_OR_GGUF")]
    pub adapter: PathBuf,
    /// Folder for the merged model
    #[arg(long, value_name = "DIR", required_unless_present = "gguf")]
    pub out: Option<PathBuf>,
    /// File for the merged model, with its tokenizer
    #[arg(long, value_name = "FILE.gguf")]
    pub gguf: Option<PathBuf>,
    /// Task of a classifier's head, where its files do not say whether classes exclude each other
    #[arg(long, value_enum, default_value_t = TaskArg::Auto)]
    pub task: TaskArg,
    /// Type of all tensors in --out: f32, f16 or bf16; as-is keeps the base model's [default: as-is]
    #[arg(long, value_enum, value_name = "TYPE", requires = "out")]
    pub dtype: Option<MergedTypeArg>,
    #[command(flatten)]
    pub stored: GgufArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Type of the tensors of a merged model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MergedTypeArg {
    F32,
    F16,
    Bf16,
    AsIs,
}

impl MergedTypeArg {
    /// Returns the type, or none to keep the base model's.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::Bf16 => Some(DType::Bf16),
            Self::AsIs => None,
        }
    }
}

/// Option for the storage of a model in a .gguf file.
#[derive(Clone, Debug, Args)]
pub struct GgufArgs {
    /// Type of the matrices in --gguf: f32, f16, bf16 or q8_0 [default: f16]
    #[arg(long, value_enum, value_name = "TYPE", requires = "gguf")]
    pub gguf_type: Option<StoredArg>,
}

impl GgufArgs {
    /// Returns the type that the option names, f16 by default.
    pub fn stored(&self) -> StoredType {
        match self.gguf_type {
            Some(StoredArg::F32) => StoredType::F32,
            Some(StoredArg::F16) => StoredType::F16,
            Some(StoredArg::Bf16) => StoredType::Bf16,
            Some(StoredArg::Q8_0) => StoredType::Q8_0,
            None => StoredType::default(),
        }
    }
}

/// [`StoredType`] as a command-line value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoredArg {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Adapter folder, from `gelora train` or PEFT [default: write the model itself, with its tokenizer]
    #[arg(long, value_name = "DIR", conflicts_with = "gguf_type")]
    pub adapter: Option<PathBuf>,
    /// File for the adapter (always f32) or for the model
    #[arg(long, value_name = "FILE.gguf")]
    pub gguf: PathBuf,
    #[command(flatten)]
    pub stored: GgufArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
