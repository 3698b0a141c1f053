//! Options of `gelora generate`.

use std::path::PathBuf;

use clap::Args;

use super::parse::{at_least_one, not_empty, not_negative, positive, positive_share};
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
    /// Maximum number of tokens [default: as generation_config.json says, else 128, or the number of positions that the
    /// model has left]
    #[arg(long, value_name = "N", value_parser = at_least_one, visible_alias = "max-new-tokens")]
    pub max_tokens: Option<usize>,
    /// Sampling temperature; 0 takes the most probable token, values below 1 favor probable tokens [default: as
    /// generation_config.json says, else 0]
    #[arg(long, value_name = "T", value_parser = not_negative)]
    pub temperature: Option<f64>,
    /// Sample among the K most probable tokens; 0 for all [default: as generation_config.json says, else 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Sample among the fewest tokens whose probabilities add up to this share [default: as generation_config.json
    /// says, else 1]
    #[arg(long, value_name = "P", value_parser = positive_share)]
    pub top_p: Option<f64>,
    /// Make tokens that occurred less probable: their logits are divided by this number, or multiplied below 0
    /// [default: as generation_config.json says, else 1]
    #[arg(long, value_name = "PENALTY", value_parser = positive)]
    pub repetition_penalty: Option<f64>,
    /// Text that ends the generation, and is not printed. May be given several times
    #[arg(long, value_name = "TEXT", value_parser = not_empty)]
    pub stop: Vec<String>,
    /// Go on after tokens that end a text
    #[arg(long)]
    pub ignore_eos: bool,
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
