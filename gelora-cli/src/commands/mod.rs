//! One file a subcommand, and what they share.

mod adapters;
pub mod devices;
pub mod eval;
pub mod export;
pub mod generate;
pub mod id;
mod log;
pub mod merge;
pub mod rank;
mod rows;
mod screen;
pub mod train;

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_kernels::Device;
use gelora_model::{Config, is_language_model};
use serde::{Deserialize, Serialize};

pub use adapters::{FEATURES, check_base, check_classes, load_classifier, read_adapter};

/// PEFT's name of language modelling.
pub const CAUSAL_LM: &str = "CAUSAL_LM";

use crate::args::{DataArgs, DeviceArg, OutputArgs, TaskArg};
use crate::cache;
use crate::data::{Aim, ColumnFlags, Dataset, ReadOptions};
use crate::tokenize::{DEFAULT_MAX_LENGTH, Tokenizer};
use crate::ui;

/// The device that an option means.
pub fn open_device(arg: DeviceArg) -> Result<Device> {
    gelora_kernels::keep_compiled_kernels(cache::of_kernels());
    match arg.kind() {
        None => Ok(Device::auto()),
        Some(kind) => Ok(Device::open(kind)?),
    }
}

/// Checks that the model has positions for the length that was asked for.
pub fn check_max_length(max_length: Option<usize>, config: &Config) -> Result<()> {
    match max_length {
        Some(length) if length > config.max_positions => {
            bail!("--max-length {length}: the model has {} positions; expected at most as many", config.max_positions)
        }
        _ => Ok(()),
    }
}

/// The tokenizer of a model, with the asked limit and never beyond the model's positions.
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
            "{model}: the tokenizer has the token {first:?} and {others} more that the model has no embedding of (vocab_size is \
             {vocabulary}); a text with one is an error"
        ));
    }
    Ok(tokenizer)
}

/// How the options say that data is read, for rows that are meant for `aim`.
pub fn read_options(args: &DataArgs, aim: Aim, output: &OutputArgs) -> ReadOptions {
    let DataArgs { text_column, pair_column, answer_column, label_column, .. } = args.clone();
    ReadOptions {
        columns: ColumnFlags { text: text_column, pair: pair_column, answer: answer_column, label: label_column, aim },
        delimiter: args.delimiter,
        skip_bad_rows: args.skip_bad_rows,
        dedup: args.dedup,
        labels_do_not_matter: false,
        show_progress: !output.quiet,
    }
}

/// What rows are read for where the task is given.
pub fn aim(task: TaskArg) -> Aim {
    match task {
        TaskArg::Auto => Aim::Any,
        TaskArg::Classification | TaskArg::Regression => Aim::Labels,
        TaskArg::CausalLm => Aim::Answers,
    }
}

/// Whether a language model is learnt or measured.
pub fn is_lm(task: TaskArg, config: &Config, dataset: &Dataset) -> bool {
    match task {
        TaskArg::CausalLm => true,
        TaskArg::Auto => is_language_model(config, dataset.labelled() > 0, dataset.has_answers()),
        TaskArg::Classification | TaskArg::Regression => false,
    }
}

/// That a result does not go where an input is read from.
pub fn check_not_input(output: &Path, option: &str, inputs: &[&Path]) -> Result<()> {
    let Ok(output) = output.canonicalize() else { return Ok(()) }; // not there yet
    for input in inputs.iter().filter_map(|i| i.canonicalize().ok()) {
        if output == input || (input.is_dir() && output.starts_with(&input)) {
            bail!("{}: {option} would overwrite what is read; expected another place", output.display());
        }
    }
    Ok(())
}

/// gelora.json: what PEFT's and transformers' files do not say about an adapter or a merged model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdapterInfo {
    /// Names of the classes in the order of the logits; none for regression.
    pub labels: Option<Vec<String>>,
    /// Tokens of one example at most, in training.
    pub max_length: usize,
    /// Version of gelora.
    pub version: String,
}

/// Its name.
pub const INFO_NAME: &str = "gelora.json";

/// gelora.json of a folder, if gelora wrote one there.
pub fn adapter_info(folder: &Path) -> Result<Option<AdapterInfo>> {
    let path = folder.join(INFO_NAME);
    if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
}

/// A JSON file of a known form.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
}
