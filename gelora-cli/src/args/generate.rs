//! Options of `gelora generate`.

use std::path::PathBuf;

use clap::Args;

use super::parse::{at_least_one, not_negative, positive_share};
use super::{ComputeArgs, ModelArgs, OutputArgs, ProfileArgs};

#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Text to continue [default: standard input]
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["instruction", "message"])]
    pub prompt: Option<String>,
    /// Message of the user, written with the model's chat template
    #[arg(long, value_name = "TEXT", conflicts_with = "instruction")]
    pub message: Option<String>,
    /// System message that precedes --message
    #[arg(long, value_name = "TEXT", requires = "message")]
    pub system: Option<String>,
    /// Instruction, written in the form of instruction rows in training
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// Input that the instruction refers to
    #[arg(long, value_name = "TEXT", requires = "instruction")]
    pub input: Option<String>,
    /// Adapter folder, from `gelora train` or PEFT, or a .gguf file with an adapter
    #[arg(long, value_name = "DIR_OR_GGUF")]
    pub adapter: Option<PathBuf>,
    /// Maximum number of tokens [default: 128, or the number of positions that the model has left]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_tokens: Option<usize>,
    /// Sampling temperature; 0 takes the most probable token, values below 1 favor probable tokens
    #[arg(long, default_value_t = 0.0, value_name = "T", value_parser = not_negative)]
    pub temperature: f64,
    /// Sample among the fewest tokens whose probabilities add up to this share
    #[arg(long, default_value_t = 1.0, value_name = "P", value_parser = positive_share)]
    pub top_p: f64,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
