//! What the commands take that neither measure ranks nor train: eval, generate, merge, export, id.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gelora_id::{Estimator, NearCopies};
use gelora_model::gguf::StoredType;

use super::{
    ComputeArgs, DataArgs, DeviceArg, ModelArgs, OutputArgs, TaskArg, at_least_one, inside_unit, not_negative,
    positive_share,
};

#[derive(Clone, Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Adapter folder, from `gelora train` or PEFT, or a .gguf file with an adapter
    #[arg(long, value_name = "DIR_OR_GGUF")]
    pub adapter: Option<PathBuf>,
    /// What is measured; auto is what the adapter was trained for, or without one what the data has: labels, answers or text
    #[arg(long, value_enum, default_value_t = TaskArg::Auto)]
    pub task: TaskArg,
    /// Split to evaluate on if --data is a folder [default: validation, else test]
    #[arg(long, value_enum)]
    pub split: Option<SplitArg>,
    /// Write one JSON object a row: its number, logits (or score), label and prediction
    #[arg(long, value_name = "FILE.jsonl")]
    pub predictions: Option<PathBuf>,
    /// Examples in one pass through the model
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub batch_size: usize,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    Train,
    Validation,
    Test,
}

#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Text to go on from [default: standard input]
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["instruction", "message"])]
    pub prompt: Option<String>,
    /// A message, in the form that the model's chat template gives it
    #[arg(long, value_name = "TEXT", conflicts_with = "instruction")]
    pub message: Option<String>,
    /// What the model is told before the message
    #[arg(long, value_name = "TEXT", requires = "message")]
    pub system: Option<String>,
    /// An instruction, in the form in which instruction rows are trained
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// What the instruction is about
    #[arg(long, value_name = "TEXT", requires = "instruction")]
    pub input: Option<String>,
    /// Adapter folder, from `gelora train` or PEFT, or a .gguf file with an adapter
    #[arg(long, value_name = "DIR_OR_GGUF")]
    pub adapter: Option<PathBuf>,
    /// Tokens at most [default: 128, or as many as the model has positions for]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_tokens: Option<usize>,
    /// 0 takes the most probable token; above 0 tokens are drawn, below 1 the probable ones more often than they are
    #[arg(long, default_value_t = 0.0, value_name = "T", value_parser = not_negative)]
    pub temperature: f64,
    /// Draw among the fewest tokens whose probabilities together reach this share
    #[arg(long, default_value_t = 1.0, value_name = "P", value_parser = positive_share)]
    pub top_p: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

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
    #[command(flatten)]
    pub stored: GgufArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How a model is stored in a .gguf file.
#[derive(Clone, Debug, Args)]
pub struct GgufArgs {
    /// Type of the matrices in --gguf: f32, f16, bf16 or q8_0 [default: f16]
    #[arg(long, value_enum, value_name = "TYPE", requires = "gguf")]
    pub gguf_type: Option<StoredArg>,
}

impl GgufArgs {
    /// The type that is meant.
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

/// [`StoredType`] as it is typed.
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
    /// Adapter folder, from `gelora train` or PEFT [default: the model itself is written, with its tokenizer]
    #[arg(long, value_name = "DIR", conflicts_with = "gguf_type")]
    pub adapter: Option<PathBuf>,
    /// File for the adapter (always f32) or the model
    #[arg(long, value_name = "FILE.gguf")]
    pub gguf: PathBuf,
    #[command(flatten)]
    pub stored: GgufArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Debug, Args)]
pub struct IdArgs {
    /// File with an (n, D) matrix of points, or several
    pub points: PathBuf,
    /// The one matrix to take from a file with several
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// Columns to take from a table [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub columns: Vec<String>,
    /// Estimators: two-nn-fit, two-nn-trimmed, two-nn-mle, two-nn-bayes, gride, mle, corr-dim, local-pca
    #[arg(long, value_delimiter = ',', default_value = "two-nn-fit", value_name = "NAME,...")]
    pub estimator: Vec<Estimator>,
    /// What becomes of points that are almost the same as another: drop (one of each group stays) or keep
    #[arg(long, default_value_t = NearCopies::Drop, value_name = "drop|keep")]
    pub near_copies: NearCopies,
    /// Confidence of the intervals
    #[arg(long, default_value_t = 0.95, value_name = "P", value_parser = inside_unit)]
    pub confidence: f64,
    /// Device of the neighbour search
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    #[command(flatten)]
    pub output: OutputArgs,
}
