//! Options of `gelora predict`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::parse::{at_least_one, delimiter};
use super::{ComputeArgs, DataHubArgs, ModelArgs, OutputArgs, SplitArg, TaskArg};

/// Value of `--data` that stands for standard input.
pub const STDIN: &str = "-";

#[derive(Clone, Debug, Args)]
pub struct PredictArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Rows to predict: a data file (.jsonl, .json, .csv, .tsv, .parquet, .txt), a folder with train, validation or
    /// test files, an id of a dataset on the hub, or - for standard input
    #[arg(long, value_name = "DATA")]
    pub data: PathBuf,
    #[command(flatten)]
    pub hub: DataHubArgs,
    /// Adapter folder, from `gelora train` or PEFT, or a .gguf file with an adapter
    #[arg(long, value_name = "DIR_OR_GGUF")]
    pub adapter: Option<PathBuf>,
    /// Task of the head, where its files do not say whether classes exclude each other
    #[arg(long, value_enum, default_value_t = TaskArg::Auto)]
    pub task: TaskArg,
    /// Split to predict if --data is a folder [default: validation, else test]
    #[arg(long, value_enum)]
    pub split: Option<SplitArg>,
    /// Format of standard input [default: jsonl]
    #[arg(long, value_enum)]
    pub input: Option<InputArg>,
    /// Format of the predictions
    #[arg(long, value_enum, default_value_t = FormatArg::Jsonl)]
    pub format: FormatArg,
    /// File for the predictions [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Repeat the texts of a row beside its prediction
    #[arg(long)]
    pub with_input: bool,
    /// Column with the text [default: recognized by usual names: text, sentence, sentence1, ...]
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// Column with the second text of a pair [default: recognized by usual names]
    #[arg(long, value_name = "NAME")]
    pub pair_column: Option<String>,
    /// Separator between the cells of a .csv or .tsv file: one character, or tab [default: recognized from the header]
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    pub delimiter: Option<u8>,
    /// Leave out broken rows (invalid, without a text, or with a wrong number of cells) and report their number,
    /// instead of stopping
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Maximum number of tokens of a row, special tokens included [default: the length that the adapter was trained
    /// with, else 128]
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Number of rows in one forward pass. Rows of standard input are answered when as many have been read, or at its
    /// end
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub batch_size: usize,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl PredictArgs {
    /// Returns whether the rows come from standard input.
    pub fn reads_stdin(&self) -> bool {
        self.data == Path::new(STDIN)
    }
}

/// Format of standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InputArg {
    /// One JSON object in each line
    Jsonl,
    /// A text in each line
    Text,
}

/// Format of predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// One JSON object for each row
    Jsonl,
    /// A header, and a line for each row
    Csv,
}
