//! Options of `gelora eval`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::parse::at_least_one;
use super::{ComputeArgs, DataArgs, ModelArgs, OutputArgs, TaskArg};

#[derive(Clone, Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Adapter folder, from `gelora train` or PEFT, or a .gguf file with an adapter
    #[arg(long, value_name = "DIR_OR_GGUF")]
    pub adapter: Option<PathBuf>,
    /// Task to evaluate; auto takes the task of the adapter, or without an adapter the one that fits the data: labels,
    /// answers or text
    #[arg(long, value_enum, default_value_t = TaskArg::Auto)]
    pub task: TaskArg,
    /// Split to evaluate if --data is a folder [default: validation, else test]
    #[arg(long, value_enum)]
    pub split: Option<SplitArg>,
    /// Write one JSON object per row: row number, logits (or score), label and prediction
    #[arg(long, value_name = "FILE.jsonl")]
    pub predictions: Option<PathBuf>,
    /// Number of examples in one forward pass
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
