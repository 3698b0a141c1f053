//! Options of `gelora plan`.

use clap::{Args, ValueEnum};
use gelora_kernels::{DType, Rounding};

use super::parse::{at_least_one, positive, share};
use super::{ComputeArgs, ModelArgs, OutputArgs, TargetArgs, TaskArg};

/// Type in which matrices are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoredArg {
    F32,
    Bf16,
    F16,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_1")]
    Q4_1,
    #[value(name = "q5_0")]
    Q5_0,
    #[value(name = "q5_1")]
    Q5_1,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "q5_k")]
    Q5K,
    #[value(name = "q6_k")]
    Q6K,
    /// 4 bits of bitsandbytes; embeddings and head in bf16
    Nf4,
}

impl From<StoredArg> for DType {
    fn from(stored: StoredArg) -> Self {
        match stored {
            StoredArg::F32 => DType::F32,
            StoredArg::Bf16 => DType::Bf16,
            StoredArg::F16 => DType::F16,
            StoredArg::Q4_0 => DType::Q4_0,
            StoredArg::Q4_1 => DType::Q4_1,
            StoredArg::Q5_0 => DType::Q5_0,
            StoredArg::Q5_1 => DType::Q5_1,
            StoredArg::Q8_0 => DType::Q8_0,
            StoredArg::Q4K => DType::Q4K,
            StoredArg::Q5K => DType::Q5K,
            StoredArg::Q6K => DType::Q6K,
            StoredArg::Nf4 => DType::Nf4(Rounding::Bf16),
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Type in which the weights are stored [default: that of the files; without files, that of config.json]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub weights: Option<StoredArg>,
    /// Task to train. auto: a language model if the model is a decoder, else classification
    #[arg(long, value_enum, default_value_t = TaskArg::Auto)]
    pub task: TaskArg,
    /// Number of classes of a classification
    #[arg(long, default_value_t = 2, value_name = "K", value_parser = at_least_one)]
    pub classes: usize,
    /// Rank of every adapted module
    #[arg(long, default_value_t = 8, value_name = "R", value_parser = at_least_one)]
    pub rank: usize,
    #[command(flatten)]
    pub targets: TargetArgs,
    /// DoRA: a magnitude for every output of an adapted module too
    #[arg(long)]
    pub dora: bool,
    /// Dropout probability on the input of matrix A
    #[arg(long, default_value_t = 0.0, value_name = "P", value_parser = share)]
    pub lora_dropout: f64,
    /// Number of examples in one optimizer step
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub batch_size: usize,
    /// Number of parts that the examples of a step are run in
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    pub accumulate: usize,
    /// Number of tokens of every example [default: 128, for a language model 512]
    #[arg(long, value_name = "TOKENS", visible_alias = "max-seq-length", value_parser = at_least_one)]
    pub max_length: Option<usize>,
    /// Memory of the device in GiB [default: that of this machine's device, or else 24]
    #[arg(long, value_name = "GIB", value_parser = positive)]
    pub memory: Option<f64>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
