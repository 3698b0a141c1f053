//! The commands, one file each, and the functions that they share.

mod adapters;
mod alike;
mod aside;
mod chosen_ranks;
pub mod compare;
pub mod devices;
mod dry_run;
mod eva;
pub mod eval;
pub mod export;
pub mod generate;
pub mod id;
mod init_adapter;
mod log;
mod loss;
mod measuring;
pub mod merge;
mod pages;
pub mod plan;
pub mod predict;
pub mod rank;
mod rate;
mod records;
mod rows;
mod screen;
mod task;
pub mod train;

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_kernels::Device;
use gelora_model::{Config, Task, is_language_model};
use serde::{Deserialize, Serialize};

pub use adapters::{FEATURES, check_base, hash_of_adapter, load_classifier, read_adapter};

/// PEFT's task type of causal language models.
pub const CAUSAL_LM: &str = "CAUSAL_LM";

use crate::args::{DataArgs, DeviceArg, OutputArgs, TaskArg};
use crate::cache;
use crate::data::{Aim, ColumnFlags, Dataset, Form, ReadOptions};
use crate::tokenize::{DEFAULT_MAX_LENGTH, Tokenizer};
use crate::ui;

/// Opens the device that the option names.
pub fn open_device(arg: DeviceArg) -> Result<Device> {
    gelora_kernels::keep_compiled_kernels(cache::of_kernels());
    match arg.kind() {
        None => Ok(Device::auto()),
        Some(kind) => Ok(Device::open(kind)?),
    }
}

/// Returns an error if `max_length` exceeds the model's number of positions.
pub fn check_max_length(max_length: Option<usize>, config: &Config) -> Result<()> {
    match max_length {
        Some(length) if length > config.max_positions => {
            bail!("--max-length {length}: the model has {} positions; expected at most as many", config.max_positions)
        }
        _ => Ok(()),
    }
}

/// Opens the tokenizer of a model. The length limit is `max_length` or its default, and never above the model's number
/// of positions.
pub fn open_tokenizer(model: &Path, max_length: Option<usize>, config: &Config) -> Result<Tokenizer> {
    let vocabulary = config.vocabulary;
    let length = max_length.unwrap_or(DEFAULT_MAX_LENGTH).min(config.max_positions);
    let tokenizer = Tokenizer::open(model)?.with_max_length(length).context("--max-length")?;
    let tokenizer = tokenizer.with_end(config.eos.first().copied()).with_vocabulary(vocabulary);
    let tokens = tokenizer.model_size();
    if tokens > vocabulary {
        bail!("{}: the tokenizer has {tokens} tokens, but the model's vocab_size is {vocabulary}", model.display());
    }
    let plain = tokenizer.plain_from(vocabulary);
    if let Some(first) = plain.first() {
        let (model, others) = (model.display(), plain.len() - 1);
        ui::warn(format!(
            "{model}: the tokenizer has the token {first:?} and {others} more that the model has no embedding of \
             (vocab_size is {vocabulary}); a text with one is an error"
        ));
    }
    Ok(tokenizer)
}

/// Returns the options for reading data, from the flags and the `aim` of the rows.
pub fn read_options(args: &DataArgs, aim: Aim, output: &OutputArgs) -> ReadOptions {
    let args = args.clone();
    ReadOptions {
        columns: ColumnFlags {
            text: args.text_column,
            pair: args.pair_column,
            answer: args.answer_column,
            label: args.label_column,
            classes: args.label_columns,
            separator: args.label_separator,
            aim,
        },
        delimiter: args.delimiter,
        skip_bad_rows: args.skip_bad_rows,
        dedup: args.dedup,
        labels_do_not_matter: false,
        show_progress: !output.quiet,
    }
}

/// Returns the aim of the rows that a task needs.
pub fn aim(task: TaskArg) -> Aim {
    match task {
        TaskArg::Auto => Aim::Any,
        TaskArg::Classification | TaskArg::MultiLabel | TaskArg::Regression => Aim::Labels,
        TaskArg::CausalLm => Aim::Answers,
    }
}

/// Returns true if the task is language modeling: as the flag says, or as the model and the data suggest.
pub fn is_lm(task: TaskArg, config: &Config, dataset: &Dataset) -> bool {
    match task {
        TaskArg::CausalLm => true,
        TaskArg::Auto => is_language_model(config, dataset.labeled() > 0, dataset.has_answers()),
        TaskArg::Classification | TaskArg::MultiLabel | TaskArg::Regression => false,
    }
}

/// Returns an error if `output` would overwrite one of `inputs`.
pub fn check_not_input(output: &Path, option: &str, inputs: &[&Path]) -> Result<()> {
    let Ok(output) = output.canonicalize() else { return Ok(()) }; // the file does not exist yet
    for input in inputs.iter().filter_map(|i| i.canonicalize().ok()) {
        if output == input || (input.is_dir() && output.starts_with(&input)) {
            bail!("{}: {option} would overwrite what is read; expected another place", output.display());
        }
    }
    Ok(())
}

/// Contents of gelora.json: what the files of PEFT and transformers do not say about an adapter or a merged model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdapterInfo {
    /// Names of the classes in the order of the logits; none for regression.
    pub labels: Option<Vec<String>>,
    /// What the head predicts, as in config.json of transformers; files of older versions lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem_type: Option<String>,
    /// Form of the labels that the training had, if a row may be of several classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_form: Option<Form>,
    /// Maximum number of tokens of one example in training.
    pub max_length: usize,
    /// Version of gelora that wrote the file.
    pub version: String,
}

impl AdapterInfo {
    /// The task of the classes; None for regression.
    pub fn task(self) -> Option<Task> {
        Some(Task::of_classes(self.labels?, self.problem_type.as_deref()))
    }
}

/// File name of [`AdapterInfo`].
pub const INFO_NAME: &str = "gelora.json";

/// Reads gelora.json of a folder. Returns None if the folder has none.
pub fn adapter_info(folder: &Path) -> Result<Option<AdapterInfo>> {
    let path = folder.join(INFO_NAME);
    if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
}

/// Reads a JSON file into a type.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
}
