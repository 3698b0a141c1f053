//! Options of the command line. Each command has a file in `args/`.

mod compare;
mod eval;
mod evaluation;
mod generate;
mod hub;
mod id;
mod merge;
mod parse;
mod plan;
mod policy;
mod predict;
mod rank;
mod train;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gelora_kernels::{DType, DeviceKind};

use parse::{at_least_one, delimiter, not_empty, positive, trimmed};

pub use compare::CompareArgs;
pub use eval::{EvalArgs, SplitArg};
pub use evaluation::{ClassWeights, EvaluationArgs, LossArgs};
pub use generate::GenerateArgs;
pub use hub::DataHubArgs;
pub use id::IdArgs;
pub use merge::{ExportArgs, MergeArgs, MergedTypeArg};
pub use plan::PlanArgs;
pub use policy::measure_options;
pub use predict::{FormatArg, InputArg, PredictArgs};
pub use rank::{GranularityArg, MeasureArgs, PolicyArg, PolicyArgs, PoolArg, RankArgs, ScaleArg, TargetArgs};
pub use train::{InitArg, Rate, ResumeArg, TrainArgs};

/// Measure the rank of every LoRA matrix from your own data, then train the adapter.
#[derive(Debug, Parser)]
#[command(name = "gelora", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// File with options of the command, by their long names (lr = 0.001), and the MODEL as model. An option of the
    /// command line wins over the file
    #[arg(long, global = true, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Number of CPU threads [default: the number of CPUs]
    #[arg(long, global = true, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Of several processes (mpirun, srun), end all if one does not answer for this time
    #[arg(long, global = true, default_value_t = 1800.0, value_name = "SECONDS", value_parser = positive)]
    #[arg(hide_short_help = true)]
    pub dist_timeout: f64,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure the intrinsic dimension of every hidden state and set the ranks from it
    Rank(Box<RankArgs>),
    /// Train a LoRA adapter and a task head; writes a folder that PEFT loads
    Train(Box<TrainArgs>),
    /// Say what memory a training would take, and which batch fits; needs config.json alone
    Plan(Box<PlanArgs>),
    /// Compare several ways to train, at several learning rates, on several seeds
    Compare(Box<CompareArgs>),
    /// Evaluate a model, with or without an adapter, on labeled data
    Eval(EvalArgs),
    /// Predict the class or the score of rows without labels, from a file or from standard input
    Predict(PredictArgs),
    /// Continue a prompt with a language model
    Generate(GenerateArgs),
    /// Merge an adapter into its base model; writes a folder that transformers loads, or a .gguf file
    Merge(MergeArgs),
    /// Write an adapter or a model as a .gguf file for llama.cpp and Ollama
    Export(ExportArgs),
    /// Estimate the intrinsic dimension of any points (.npy, .npz, .safetensors, .csv, .tsv, .parquet)
    Id(IdArgs),
    /// List the devices that this build can use
    Devices(OutputArgs),
}

impl Command {
    /// Name of a command that only one process can run.
    pub fn of_one_process(&self) -> Option<&'static str> {
        match self {
            Self::Rank(_) | Self::Train(_) | Self::Compare(_) | Self::Eval(_) | Self::Predict(_) => None,
            Self::Plan(_) => Some("plan"),
            Self::Generate(_) => Some("generate"),
            Self::Merge(_) => Some("merge"),
            Self::Export(_) => Some("export"),
            Self::Id(_) => Some("id"),
            Self::Devices(_) => Some("devices"),
        }
    }
}

/// Options of the output that every command has.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// Print results as JSON on stdout
    #[arg(long)]
    pub json: bool,
    /// Print no progress and no remarks
    #[arg(long, short)]
    pub quiet: bool,
}

/// Option that turns on the time profile.
#[derive(Clone, Debug, Default, Args)]
pub struct ProfileArgs {
    /// Print the time of every phase and operator at the end, or write it, together with the time of every step, to
    /// FILE.json
    #[arg(long, value_name = "FILE.json", num_args = 0..=1, require_equals = true)]
    pub profile: Option<Option<PathBuf>>,
}

/// The option that names the model.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Folder of a Hugging Face model (config.json, weights, tokenizer), a .gguf file, or an id on the hub: org/name,
    /// org/name/FILE.gguf
    #[arg(value_name = "MODEL")]
    pub name: PathBuf,
    /// Branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// Local path of the model, set when the name is resolved.
    #[arg(skip)]
    pub path: PathBuf,
}

/// Options that name the data and its columns.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// Data file (.jsonl, .json, .csv, .tsv, .parquet, .txt), folder with train, validation or test files, or id of a
    /// dataset on the hub: org/name, org/name/FILE
    #[arg(long, value_name = "DATA")]
    pub data: PathBuf,
    /// The data as typed, set when `data` becomes the local path of a dataset on the hub.
    #[arg(skip)]
    pub id: Option<PathBuf>,
    #[command(flatten)]
    pub hub: DataHubArgs,
    /// Column with the text [default: recognized by usual names: text, sentence, sentence1, ...]
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// Column with the second text of a pair [default: recognized by usual names]
    #[arg(long, value_name = "NAME")]
    pub pair_column: Option<String>,
    /// Column with the answer that a language model learns [default: recognized by usual names: output, completion,
    /// ...]
    #[arg(long, value_name = "NAME")]
    pub answer_column: Option<String>,
    /// Column with the label or score [default: recognized by usual names]
    #[arg(long, value_name = "NAME")]
    pub label_column: Option<String>,
    /// Columns of 0 and 1 (or false and true), one for each class, if a row may be of several classes
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "label_column", value_parser = trimmed)]
    pub label_columns: Vec<String>,
    /// Separator between the labels of a row that may be of several classes, in a cell of text: "a|b" with |
    #[arg(long, value_name = "TEXT", conflicts_with = "label_columns", value_parser = not_empty)]
    pub label_separator: Option<String>,
    /// Separator between the cells of a .csv or .tsv file: one character, or tab [default: recognized from the header]
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    pub delimiter: Option<u8>,
    /// Leave out broken rows (invalid, without a text, or with a wrong number of cells) and report their number,
    /// instead of stopping
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Leave out rows that repeat an earlier row, and report their number
    #[arg(long)]
    pub dedup: bool,
    /// Maximum number of tokens of one example or block, special tokens included [default: 128, for a language model
    /// 512, or the length that the adapter was trained with]
    #[arg(long, value_name = "TOKENS", visible_alias = "max-seq-length")]
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

/// Dtype of the model's matrix products.
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

/// Options of the model's dtype and device.
#[derive(Clone, Copy, Debug, Args)]
pub struct ComputeArgs {
    /// Dtype of the model's matrix products
    #[arg(long, value_enum, default_value_t = DTypeArg::F32)]
    pub dtype: DTypeArg,
    /// Device of the model; auto takes a hardware GPU if there is one
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskArg {
    /// Language model if the data has answers, or has no labels and the model is a decoder; multi-label if a row has a
    /// list of labels; regression if the labels have a decimal point; else classification
    Auto,
    Classification,
    /// Classes that do not exclude each other: a row may be of none, one or several
    MultiLabel,
    Regression,
    /// Language model, trained on answers (prompt and completion; instruction, input and output) or on blocks of text
    CausalLm,
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
