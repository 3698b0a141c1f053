//! `gelora eval`: metrics on labelled data, and predictions row by row.

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_kernels::Device;
use gelora_lora::{Adapter, files};
use gelora_model::{CausalLm, Classifier, Config, Task};
use serde_json::{Map, Value, json};

use super::learner::{CAUSAL_LM, lm_rows, perplexity};
use super::train::{LM_MAX_LENGTH, is_lm};
use super::{
    adapter_info, check_base, check_classes, check_not_input, load_classifier, open_device, open_tokenizer,
    read_adapter,
};
use crate::args::{EvalArgs, SplitArg, TaskArg};
use crate::data::{self, Dataset, LabelSet, Split, Targets};
use crate::metrics;
use crate::tokenize::Tokenizer;
use crate::ui::{self, Progress, TableStyle};

/// Logits of each row.
pub type Logits = Vec<Vec<f32>>;

pub fn run(args: &EvalArgs) -> Result<()> {
    let device = open_device(args.compute.device)?;
    let adapter = args.adapter.as_deref().map(|folder| read_adapter(folder, &args.model.path)).transpose()?;
    if let (Some(adapter), Some(folder)) = (&adapter, &args.adapter) {
        check_base(adapter, folder, &args.model);
    }
    let mut dataset = data::read(&args.data.data, wanted_split(args)?, &(&args.data).into())?;
    let is_lm = args.task == TaskArg::CausalLm
        || match &adapter {
            Some(adapter) => adapter.config.task_type.as_deref() == Some(CAUSAL_LM),
            None => {
                let config = Config::load(&args.model.path)?;
                args.predictions.is_none() && without_head(args, &config)? && is_lm(args.task, &config, &dataset)
            }
        };
    if is_lm {
        return language_model(args, &device, adapter, &dataset);
    }
    dataset.take_texts();
    let mut classifier = load_classifier(&args.model.path, args.adapter.as_deref())?;
    check_classes(&classifier);
    classifier.compute_in(args.compute.dtype.into())?;
    classifier.move_to(&device)?;
    if let Some(path) = &args.predictions {
        check_not_input(path, "--predictions", &[&args.model.path, &dataset.path])?;
    }
    // Without any label there is nothing to measure, but predictions can be made; one missing label is an error.
    let unlabelled = dataset.labelled() == 0 && args.predictions.is_some();
    let targets = if unlabelled { None } else { Some(label_set(&classifier).targets(&dataset)?) };
    let config = classifier.transformer().config();
    let tokenizer = open_tokenizer(&args.model.path, max_length(args)?, config)?;
    let logits = predict(&classifier, &tokenizer, &dataset, args.batch_size, args.output.quiet)?;
    if let Some(path) = &args.predictions {
        write_predictions(path, &classifier, &dataset, &logits)?;
    }
    let scores = targets.map(|targets| score(&classifier, &logits, &targets)).unwrap_or_default();
    if unlabelled && !args.output.json {
        ui::note(args.output.quiet, format!("{}: no labels, so no metrics", dataset.path.display()));
        return Ok(());
    }
    show(args, &scores, logits.len(), &dataset)
}

/// Whether nothing says that the model is a classifier.
fn without_head(args: &EvalArgs, config: &Config) -> Result<bool> {
    let labels = adapter_info(&args.model.path)?.and_then(|info| info.labels);
    Ok(config.causal && labels.is_none() && (config.labels.is_empty() || config.is_language_model))
}

/// Loss and perplexity.
fn language_model(args: &EvalArgs, device: &Device, adapter: Option<Adapter>, dataset: &Dataset) -> Result<()> {
    if args.predictions.is_some() {
        bail!("--predictions: a language model has none to write; expected a classifier");
    }
    let mut lm = match adapter {
        Some(adapter) => CausalLm::with_adapter(&args.model.path, adapter)?,
        None => CausalLm::load(&args.model.path)?,
    };
    lm.remarks().iter().for_each(ui::warn);
    lm.compute_in(args.compute.dtype.into())?;
    lm.move_to(device)?;
    let max_length = max_length(args)?.or(Some(LM_MAX_LENGTH));
    let tokenizer = open_tokenizer(&args.model.path, max_length, lm.transformer().config())?;
    let rows = lm_rows(&tokenizer, dataset)?;
    if rows.is_empty() {
        bail!("{}: every answer is cut off at --max-length {}", dataset.path.display(), tokenizer.max_length());
    }
    let scores = perplexity(&lm, &rows, args.batch_size, args.output.quiet)?;
    show(args, &scores, rows.len(), dataset)
}

/// The option, or what the adapter or merged model was trained with.
fn max_length(args: &EvalArgs) -> Result<Option<usize>> {
    if args.data.max_length.is_some() {
        return Ok(args.data.max_length);
    }
    Ok(adapter_info(args.adapter.as_ref().unwrap_or(&args.model.path))?.map(|info| info.max_length))
}

/// The metrics, on standard output.
fn show(args: &EvalArgs, scores: &[(&'static str, f64)], rows: usize, dataset: &Dataset) -> Result<()> {
    if args.output.json {
        let mut json: Map<String, Value> = scores.iter().map(|(name, v)| (name.to_string(), json!(v))).collect();
        json.insert("rows".into(), json!(rows));
        json.insert("data".into(), json!(dataset.path.display().to_string()));
        return Ok(ui::result(ui::with_warnings(Value::Object(json)).to_string())?);
    }
    let shown: Vec<Vec<String>> = scores.iter().map(|(name, v)| vec![name.to_string(), format!("{v:.4}")]).collect();
    ui::result(ui::table(&["metric", "value"], &shown, TableStyle::of_stdout()))?;
    ui::result(format!("{} rows of {}", ui::count(rows as u64), dataset.path.display()))?;
    Ok(())
}

/// The split of a folder that is evaluated.
fn wanted_split(args: &EvalArgs) -> Result<Option<Split>> {
    let splits = data::splits(&args.data.data)?;
    if splits.is_empty() {
        return Ok(None);
    }
    Ok(Some(match args.split {
        Some(SplitArg::Train) => Split::Train,
        Some(SplitArg::Validation) => Split::Validation,
        Some(SplitArg::Test) => Split::Test,
        None => match splits.iter().map(|s| s.0).find(|s| *s != Split::Train) {
            Some(split) => split,
            None => bail!("{}: only a train split; say so with --split train", args.data.data.display()),
        },
    }))
}

/// The classifier's labels, to turn a dataset's into targets.
pub fn label_set(classifier: &Classifier) -> LabelSet {
    match classifier.task() {
        Task::Classification { labels } => LabelSet::Classes(labels.clone()),
        Task::Regression => LabelSet::Scores,
    }
}

/// Logits of every example, in order.
pub fn predict(
    classifier: &Classifier,
    tokenizer: &Tokenizer,
    dataset: &Dataset,
    batch_size: usize,
    quiet: bool,
) -> Result<Logits> {
    let progress = Progress::new(quiet, "eval", dataset.examples.len() as u64);
    let mut all = Vec::with_capacity(dataset.examples.len());
    for chunk in dataset.examples.chunks(batch_size) {
        let encoded = tokenizer.encode_all(chunk);
        let encoded = encoded.with_context(|| dataset.place(all.len() + tokenizer.first_bad(chunk).unwrap_or(0)))?;
        let logits = classifier.logits(&super::batch(&encoded)?)?;
        all.extend(logits.to_vec()?.chunks(logits.cols()).map(<[f32]>::to_vec));
        progress.inc(chunk.len() as u64);
    }
    progress.finish();
    Ok(all)
}

/// The metrics of the task.
pub fn score(classifier: &Classifier, logits: &Logits, targets: &Targets) -> Vec<(&'static str, f64)> {
    match targets {
        Targets::Classes(gold) => {
            let predicted: Vec<usize> = logits.iter().map(|row| largest(row)).collect();
            metrics::classification(&predicted, gold, classifier.task().outputs())
        }
        Targets::Scores(gold) => {
            let predicted: Vec<f64> = logits.iter().map(|row| f64::from(row[0])).collect();
            metrics::regression(&predicted, gold)
        }
    }
}

fn largest(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn write_predictions(path: &Path, classifier: &Classifier, dataset: &Dataset, logits: &Logits) -> Result<()> {
    let written = files::write_with(path, |file| {
        for (row, (logits, example)) in logits.iter().zip(&dataset.examples).enumerate() {
            let label = example.label.as_ref().map_or(Value::Null, label_json);
            let line = match classifier.task() {
                Task::Classification { labels } => {
                    let predicted = class_json(&labels[largest(logits)]);
                    json!({"row": row, "logits": logits, "label": label, "predicted": predicted})
                }
                Task::Regression => json!({"row": row, "score": logits[0], "label": label}),
            };
            writeln!(file, "{line}")?;
        }
        Ok(())
    });
    Ok(written?)
}

fn label_json(label: &data::Label) -> Value {
    match label {
        data::Label::Score(score) => json!(score),
        data::Label::Class(name) => class_json(name),
    }
}

/// A class whose name is an integer is written as one, as data files have it.
fn class_json(name: &str) -> Value {
    match name.parse::<i64>() {
        Ok(n) if n.to_string() == name => json!(n),
        _ => json!(name),
    }
}
