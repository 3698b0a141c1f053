//! Options of `gelora generate`.

use std::path::PathBuf;

use clap::Args;

use super::parse::{at_least_one, not_negative, positive_share};
use super::{ComputeArgs, ModelArgs, OutputArgs};

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
