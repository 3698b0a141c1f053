//! Options of the command line, a file for each command.

mod eval;
mod generate;
mod hub;
mod id;
mod merge;
mod parse;
mod policy;
mod rank;
mod train;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gelora_kernels::{DType, DeviceKind};

use parse::delimiter;

pub use eval::{EvalArgs, SplitArg};
pub use generate::GenerateArgs;
pub use hub::DataHubArgs;
pub use id::IdArgs;
pub use merge::{ExportArgs, MergeArgs};
pub use policy::measure_options;
pub use rank::{GranularityArg, MeasureArgs, PolicyArg, PoolArg, RankArgs, ScaleArg, TargetArgs};
pub use train::TrainArgs;

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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
