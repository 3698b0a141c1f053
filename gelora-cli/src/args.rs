//! What can be typed. What it means is in `commands`.

mod hub;
mod others;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gelora_id::{Estimator, NearCopies};
use gelora_kernels::{DType, DeviceKind};
use gelora_lora::ranks::{Rounding, Server};

pub use hub::DataHubArgs;
pub use others::{EvalArgs, ExportArgs, GenerateArgs, IdArgs, MergeArgs, SplitArg};

/// Measure the rank of every LoRA matrix from your own data, then train the adapter.
#[derive(Debug, Parser)]
#[command(name = "gelora", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure the intrinsic dimension of every hidden state and set the ranks from it
    Rank(RankArgs),
    /// Train a LoRA adapter and a task head; writes a folder that PEFT loads
    Train(Box<TrainArgs>),
    /// Measure a model, with or without an adapter, on labelled data
    Eval(EvalArgs),
    /// Let a language model go on from a prompt
    Generate(GenerateArgs),
    /// Merge an adapter into its base model; writes a folder that transformers loads, or a .gguf file
    Merge(MergeArgs),
    /// Write an adapter, or a model, as a .gguf file for llama.cpp and Ollama
    Export(ExportArgs),
    /// Intrinsic dimension of any points (.npy, .npz, .safetensors, .csv, .tsv, .parquet)
    Id(IdArgs),
    /// List the devices that this build can use
    Devices(OutputArgs),
}

/// How to talk to the user.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// Print results as JSON on stdout
    #[arg(long)]
    pub json: bool,
    /// No progress and no remarks
    #[arg(long, short)]
    pub quiet: bool,
}

/// Whether to say where the time goes.
#[derive(Clone, Debug, Default, Args)]
pub struct ProfileArgs {
    /// Show the time of every phase and operator at the end, or write it with that of every step to FILE.json
    #[arg(long, value_name = "FILE.json", num_args = 0..=1, require_equals = true)]
    pub profile: Option<Option<PathBuf>>,
}

/// Which model.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Folder of a Hugging Face model (config.json, weights, tokenizer), a .gguf file, or an id on the hub: org/name,
    /// org/name/FILE.gguf
    #[arg(value_name = "MODEL")]
    pub name: PathBuf,
    /// Branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// Where its files are.
    #[arg(skip)]
    pub path: PathBuf,
}

/// Where the texts are.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// Data file (.jsonl, .json, .csv, .tsv, .parquet, .txt), a folder with train, validation or test files, or the id of a data
    /// set on the hub: org/name, org/name/FILE
    #[arg(long, value_name = "DATA")]
    pub data: PathBuf,
    #[command(flatten)]
    pub hub: DataHubArgs,
    /// Column with the text [default: recognised by usual names: text, sentence, sentence1, ...]
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// Column with the second text of a pair [default: recognised by usual names]
    #[arg(long, value_name = "NAME")]
    pub pair_column: Option<String>,
    /// Column with what a language model is to answer to the text [default: recognised by usual names: output, completion, ...]
    #[arg(long, value_name = "NAME")]
    pub answer_column: Option<String>,
    /// Column with the label or score [default: recognised by usual names]
    #[arg(long, value_name = "NAME")]
    pub label_column: Option<String>,
    /// What separates the cells of a .csv or .tsv file: one character, or tab [default: recognised from the header]
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    pub delimiter: Option<u8>,
    /// Leave out rows that are broken (not valid, without a text, with another number of cells) and say how many, instead of
    /// stopping
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Leave out rows that are the same as an earlier one and say how many
    #[arg(long)]
    pub dedup: bool,
    /// Tokens of one example or block at most, special tokens included [default: 128, for a language model 512, or what the
    /// adapter was trained with]
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// CUDA, else a hardware GPU through wgpu, else the CPU
    Auto,
    Cpu,
    Wgpu,
    Cuda,
}

impl DeviceArg {
    pub fn kind(self) -> Option<DeviceKind> {
        match self {
            DeviceArg::Auto => None,
            DeviceArg::Cpu => Some(DeviceKind::Cpu),
            DeviceArg::Wgpu => Some(DeviceKind::Wgpu),
            DeviceArg::Cuda => Some(DeviceKind::Cuda),
        }
    }
}

/// What the model computes its products in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DTypeArg {
    /// Full precision
    F32,
    /// Factors rounded to bf16, sums in f32: about twice as fast where the CPU has AVX-512 BF16, else the same as f32
    Bf16,
}

impl From<DTypeArg> for DType {
    fn from(d: DTypeArg) -> Self {
        match d {
            DTypeArg::F32 => DType::F32,
            DTypeArg::Bf16 => DType::Bf16,
        }
    }
}

/// What the model runs on.
#[derive(Clone, Copy, Debug, Args)]
pub struct ComputeArgs {
    /// Type that the model's matrix products are computed in
    #[arg(long, value_enum, default_value_t = DTypeArg::F32)]
    pub dtype: DTypeArg,
    /// Device of the model; auto takes a GPU if there is one in hardware
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
}

/// How the tokens of an example become one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PoolArg {
    /// The mean over all tokens
    Mean,
    /// The last token
    Last,
    /// The first token ([CLS] in BERT)
    First,
    /// One token of each example, drawn at random from the seed
    Token,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyArg {
    /// The published rule: max(round(growth), 0) + 1
    Gelora,
    /// The rule on the upper confidence bound of the growth
    GeloraUpper,
    /// A budget (--budget or --budget-rank) spent in proportion to the published rule's ranks, never below them
    Budget,
    /// The same rank everywhere (--rank)
    #[value(alias = "fixed")]
    Uniform,
    /// A control: the same number of parameters, or --budget, handed out at random
    Random,
    /// A control: the published rule's ranks, dealt to the wrong layers
    Shuffled,
}

/// How many points growths are measured at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScaleArg {
    /// All examples
    All,
    /// The finest scale that lies in the plateau of most states, averaged over draws
    Plateau,
}

/// Where hidden states are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GranularityArg {
    /// Before the first block and after each
    Block,
    /// Also between attention and MLP, so that the two have ranks of their own
    Sublayer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoundingArg {
    Ceil,
    Nearest,
    Floor,
}

impl From<RoundingArg> for Rounding {
    fn from(r: RoundingArg) -> Self {
        match r {
            RoundingArg::Ceil => Rounding::Ceil,
            RoundingArg::Nearest => Rounding::Nearest,
            RoundingArg::Floor => Rounding::Floor,
        }
    }
}

/// How ranks are measured: shared by `rank`, and by `train` when it measures them itself.
#[derive(Clone, Debug, Args)]
pub struct MeasureArgs {
    /// Examples to measure on, drawn at random from the seed; all if there are fewer
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = at_least_three)]
    pub samples: usize,
    /// How the tokens of an example become one point
    #[arg(long, value_enum, default_value_t = PoolArg::Mean)]
    pub pool: PoolArg,
    /// Estimator of the intrinsic dimension, as of `gelora id`
    #[arg(long, default_value_t = Estimator::default())]
    pub estimator: Estimator,
    /// What becomes of examples that are almost the same as another, which is seen from their points: drop (one of each group
    /// stays) or keep
    #[arg(long, default_value_t = NearCopies::Drop, value_name = "drop|keep")]
    pub near_copies: NearCopies,
    /// Where hidden states are taken
    #[arg(long, value_enum, default_value_t = GranularityArg::Block)]
    pub granularity: GranularityArg,
    /// Confidence of the intervals, and of the bound of --policy gelora-upper
    #[arg(long, default_value_t = 0.95, value_name = "P", value_parser = inside_unit)]
    pub confidence: f64,
    /// Rounding of the growth of the dimension
    #[arg(long, value_enum, default_value_t = RoundingArg::Ceil)]
    pub rounding: RoundingArg,
    /// The least rank
    #[arg(long, default_value_t = 1, value_name = "R", value_parser = at_least_one)]
    pub min_rank: usize,
    /// The greatest rank
    #[arg(long, value_name = "R", value_parser = at_least_one)]
    pub max_rank: Option<usize>,
    /// Round ranks up to a multiple of this
    #[arg(long, default_value_t = 1, value_name = "M", value_parser = at_least_one)]
    pub rank_multiple: usize,
}

/// Which modules get adapters, and how strong.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// Modules to adapt: ends of their names, or all-linear [default: query, key, value and output of attention]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub target_modules: Vec<String>,
    /// alpha / rank, the same in every layer
    #[arg(long, default_value_t = 2.0, value_name = "C", value_parser = positive)]
    pub alpha_ratio: f64,
}

#[derive(Clone, Debug, Args)]
pub struct RankArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub measure: MeasureArgs,
    #[command(flatten)]
    pub targets: TargetArgs,
    /// How dimensions become ranks [default: gelora, or uniform if --rank, budget if a budget is given]
    #[arg(long, value_enum)]
    pub policy: Option<PolicyArg>,
    /// The rank of the policy uniform
    #[arg(long, value_name = "R", value_parser = at_least_one)]
    pub rank: Option<usize>,
    /// Parameters of all adapters together, for the policies budget and random
    #[arg(long, value_name = "PARAMETERS", value_parser = at_least_one)]
    pub budget: Option<usize>,
    /// The same as the parameters of one rank everywhere
    #[arg(long, value_name = "R", conflicts_with = "budget", value_parser = at_least_one)]
    pub budget_rank: Option<usize>,
    /// The number of points that growths are measured at
    #[arg(long, value_enum, default_value_t = ScaleArg::All)]
    pub scale: ScaleArg,
    /// Repeat on S random halves and S quarters of the examples, and show how the ranks move
    #[arg(long, default_value_t = 0, value_name = "S")]
    pub stability: usize,
    /// Say what rank a server must be started with for this adapter: vllm
    #[arg(long, value_name = "SERVER")]
    pub serve: Option<Server>,
    /// Run the model even if it was run on the same texts before. Pooled states are kept in the folder GELORA_CACHE, or in the
    /// user's cache folder, 4 GiB at most
    #[arg(long)]
    pub no_cache: bool,
    /// Also write the pooled points, layer_0 .. layer_L of shape (n, D) each
    #[arg(long, value_name = "FILE.safetensors")]
    pub points: Option<PathBuf>,
    /// Examples in one pass through the model
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub batch_size: usize,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Folder for ranks.json, report.html, adapter_config.json and id_profile.svg
    #[arg(long, default_value = "gelora-ranks", value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskArg {
    /// A language model if there are answers, or no labels and a decoder; regression if the labels are numbers with a decimal
    /// point, else classification
    Auto,
    Classification,
    Regression,
    /// A language model: answers (prompt and completion; instruction, input and output), or text in blocks
    CausalLm,
}

/// Options of the measurement, which say nothing where ranks are given.
const MEASURING: [&str; 9] =
    ["samples", "pool", "estimator", "granularity", "confidence", "rounding", "min_rank", "max_rank", "rank_multiple"];

#[derive(Clone, Debug, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Data to evaluate on after each epoch [default: the validation split, if --data is a folder that has one]
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<PathBuf>,
    /// What is learnt
    #[arg(long, value_enum, default_value_t = TaskArg::Auto)]
    pub task: TaskArg,
    /// Ranks from `gelora rank` [default, without --rank: measured first, on the training data]
    #[arg(long, value_name = "ranks.json", conflicts_with_all = ["rank", "target_modules", "alpha_ratio"])]
    #[arg(conflicts_with_all = MEASURING)]
    pub ranks: Option<PathBuf>,
    /// One rank for every module
    #[arg(long, value_name = "R", value_parser = at_least_one, conflicts_with_all = MEASURING)]
    pub rank: Option<usize>,
    #[command(flatten)]
    pub measure: MeasureArgs,
    #[command(flatten)]
    pub targets: TargetArgs,
    /// alpha / sqrt(rank) instead of alpha / rank
    #[arg(long)]
    pub rslora: bool,
    /// Dropout before A
    #[arg(long, default_value_t = 0.0, value_name = "P", value_parser = share)]
    pub lora_dropout: f64,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3, value_parser = positive)]
    pub lr: f64,
    /// Passes over the training data, which set the number of steps: rows / batch size x epochs, rounded up
    #[arg(long, default_value_t = 3.0, value_parser = positive)]
    pub epochs: f64,
    /// Steps, instead of --epochs
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub steps: Option<usize>,
    /// Examples of one optimiser step
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub batch_size: usize,
    /// Parts that a step's examples are run in, to save memory
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    pub accumulate: usize,
    /// Keep the input of each block alone for the backward pass and compute the rest again: less memory, a third more time
    #[arg(long)]
    pub checkpoint_activations: bool,
    /// Make batches of rows of similar length (in characters), as group_by_length of transformers does. Batches are never
    /// padded here, so this saves no time, and steps differ more in time and memory
    #[arg(long)]
    pub group_by_length: bool,
    /// Share of the steps over which the learning rate rises
    #[arg(long, default_value_t = 0.06, value_name = "SHARE", value_parser = share)]
    pub warmup: f64,
    /// Decoupled weight decay
    #[arg(long, default_value_t = 0.01, value_parser = not_negative)]
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 for no clipping
    #[arg(long, default_value_t = 1.0, value_name = "NORM", value_parser = not_negative)]
    pub clip: f64,
    /// Steps between checkpoints [default: an epoch]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub checkpoint_every: Option<usize>,
    /// Go on from the checkpoint in --out
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Folder for the adapter
    #[arg(long, default_value = "gelora-adapter", value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n >= 1).ok_or("expected an integer of at least 1".into())
}

fn at_least_three(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n >= 3).ok_or("expected an integer of at least 3".into())
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        _ if text == "tab" || text == "\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !b"\"\r\n".contains(byte) => Ok(*byte),
        _ => Err("expected one ASCII character, or tab".into()),
    }
}

fn number(text: &str, holds: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    text.parse().ok().filter(|v: &f64| v.is_finite() && holds(*v)).ok_or(format!("expected a number {expected}"))
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, |v| v > 0.0, "above 0")
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |v| v >= 0.0, "of at least 0")
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |v| (0.0..1.0).contains(&v), "of at least 0 and below 1")
}

fn positive_share(text: &str) -> Result<f64, String> {
    number(text, |v| v > 0.0 && v <= 1.0, "above 0 and at most 1")
}

fn inside_unit(text: &str) -> Result<f64, String> {
    number(text, |v| v > 0.0 && v < 1.0, "above 0 and below 1")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
