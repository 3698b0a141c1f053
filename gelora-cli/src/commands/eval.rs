//! `gelora eval`: metrics on labeled data, and predictions row by row.

use std::path::Path;

use anyhow::{Result, bail};
use gelora_kernels::Device;
use gelora_lora::{Adapter, files};
use gelora_model::evaluate::{Evaluation, evaluate_shared, predicted_class, predicted_set};
use gelora_model::{CausalLm, Classifier, Config, Event, LM_MAX_LENGTH, Rows, Task, TaskModel, TokenRows};
use serde_json::{Map, Value, json};

use super::rows::{TextRows, check_answers, lm_rows};
use super::screen::Screen;
use super::{
    CAUSAL_LM, adapter_info, alike, check_base, check_max_length, check_not_input, is_lm, load_classifier, open_device,
    open_tokenizer, read_adapter, read_options,
};
use crate::args::{EvalArgs, ModelArgs, SplitArg, TaskArg};
use crate::data::{self, Aim, Dataset, Form, LabelSet, Sets, Split, Targets};
use crate::launch::Group;
use crate::ui::{self, TableStyle};
use crate::understood::{Understood, Use};

pub fn run(args: &EvalArgs, group: &Group) -> Result<()> {
    let device = open_device(args.compute.device)?;
    let adapter = args.adapter.as_deref().map(|folder| read_adapter(folder, &args.model.path)).transpose()?;
    if let (Some(adapter), Some(folder)) = (&adapter, &args.adapter) {
        check_base(adapter, folder, &args.model);
    }
    // The adapter's task, or else the data, decides how rows are read.
    let task_type = adapter.as_ref().map(|adapter| adapter.config.task_type.as_deref());
    let aim = aim_of(args, task_type)?;
    let options = read_options(&args.data, aim, &args.output);
    let mut dataset = data::read(&args.data.data, split_to_evaluate(&args.data.data, args.split)?, &options)?;
    let is_lm = args.task == TaskArg::CausalLm
        || match task_type {
            Some(task_type) => task_type == Some(CAUSAL_LM),
            None => {
                let config = Config::load(&args.model.path)?;
                args.predictions.is_none() && has_no_head(&args.model, &config)? && is_lm(args.task, &config, &dataset)
            }
        };
    if is_lm {
        dataset.take_answers()?;
        return language_model(args, &device, adapter, &dataset, group);
    }
    dataset.take_texts();
    // Load the classifier, and check that options and head agree.
    let mut classifier = load_classifier(&args.model.path, args.adapter.as_deref())?;
    decide_task(args.task, &mut classifier, args.adapter.as_ref().unwrap_or(&args.model.name))?;
    classifier.compute_in(args.compute.dtype.into())?;
    classifier.move_to(&device)?;
    if let Some(path) = &args.predictions {
        let mut inputs: Vec<&Path> = vec![&args.model.path];
        inputs.extend(dataset.files());
        check_not_input(path, "--predictions", &inputs)?;
    }
    // Data without any label gives predictions but no metrics. One missing label among others is an error.
    let unlabeled = dataset.labeled() == 0 && args.predictions.is_some();
    let info = adapter_info(args.adapter.as_deref().unwrap_or(&args.model.path))?;
    let labels = label_set(&classifier, info.and_then(|info| info.label_form));
    if dataset.labeled() == 0 && args.predictions.is_none() && dataset.columns.has_labels() {
        let column = dataset.columns.labels();
        let path = dataset.path.display();
        bail!("{path}: no row has a label in {column}; --predictions FILE.jsonl writes predictions without a score");
    }
    let targets = if unlabeled { None } else { Some(labels.targets(&dataset)?) };
    // Tokenize, and print the account of the data.
    let config = classifier.transformer().config();
    check_max_length(args.data.max_length, config)?;
    let max_length = trained_length(args.data.max_length, args.adapter.as_deref(), &args.model)?;
    let tokenizer = open_tokenizer(&args.model.path, max_length, config)?;
    let used = if unlabeled { Use::Texts } else { Use::Labels(&labels) };
    let understood = Understood::of(&dataset, &used, &tokenizer)?;
    understood.say(args.output.quiet);
    let model = (&*args.model.path, args.adapter.as_deref());
    let options = (args.batch_size, args.compute);
    alike::check_model_on_rows(group, model, &dataset, &tokenizer, &device, options)?;
    // Evaluate, then write predictions and metrics.
    let task = classifier.task().clone();
    let rows = TextRows { dataset: &dataset, tokenizer: &tokenizer, targets, parallel: true };
    let Evaluation { metrics, logits, .. } = evaluate_with_bar(&classifier.into(), &rows, args, group)?;
    if let Some(path) = args.predictions.as_ref().filter(|_| group.processes.is_first()) {
        write_predictions(path, &task, &dataset, rows.targets.as_ref(), &logits)?;
    }
    if unlabeled && !args.output.json {
        ui::note(args.output.quiet, format!("{}: no labels, so no metrics", dataset.path.display()));
        return Ok(());
    }
    show(args, &metrics, logits.len(), &understood, Some(&labels))
}

/// Returns the roles that the rows are read for: labels, answers, or any.
///
/// # Errors
/// Returns an error if the requested task is not the adapter's.
fn aim_of(args: &EvalArgs, task_type: Option<Option<&str>>) -> Result<Aim> {
    let adapter_aim = match task_type.flatten() {
        Some(CAUSAL_LM) => Some(Aim::Answers),
        Some("SEQ_CLS") => Some(Aim::Labels),
        _ => None,
    };
    let requested = super::aim(args.task);
    if let (Some(adapter_aim), Some(folder)) = (adapter_aim, &args.adapter)
        && requested != Aim::Any
        && requested != adapter_aim
    {
        let (task, adapter_task) = (task_name(args.task), task_type.flatten().unwrap_or_default());
        bail!("--task {task}: the adapter in {} is of another task ({adapter_task})", folder.display());
    }
    Ok(if requested == Aim::Any { adapter_aim.unwrap_or(Aim::Any) } else { requested })
}

/// Decides whether classes exclude each other, if the files of the model do not say so.
///
/// # Errors
/// Returns an error if the model's head does not perform the requested task.
pub fn decide_task(requested: TaskArg, classifier: &mut Classifier, from: &Path) -> Result<()> {
    if let (false, Some(labels)) = (classifier.is_task_known(), classifier.task().labels()) {
        let labels = labels.to_vec();
        match requested {
            TaskArg::Classification => classifier.set_task(Task::Classification { labels })?,
            TaskArg::MultiLabel => classifier.set_task(Task::MultiLabel { labels })?,
            _ => {}
        }
    }
    let (of_head, name) = match classifier.task() {
        Task::Classification { .. } => (TaskArg::Classification, "classification"),
        Task::MultiLabel { .. } => (TaskArg::MultiLabel, "multi-label classification"),
        Task::Regression => (TaskArg::Regression, "regression"),
    };
    if requested != TaskArg::Auto && requested != of_head {
        bail!("--task {}: the head of {} is one of {name}", task_name(requested), from.display());
    }
    Ok(())
}

fn task_name(task: TaskArg) -> &'static str {
    match task {
        TaskArg::Auto => "auto",
        TaskArg::Classification => "classification",
        TaskArg::MultiLabel => "multi-label",
        TaskArg::Regression => "regression",
        TaskArg::CausalLm => "causal-lm",
    }
}

/// Returns true if the model has no classification head: neither its config nor gelora.json names classes.
pub fn has_no_head(model: &ModelArgs, config: &Config) -> Result<bool> {
    let labels = adapter_info(&model.path)?.and_then(|info| info.labels);
    Ok(config.causal && labels.is_none() && (config.labels.is_empty() || config.is_language_model))
}

/// Evaluates a language model: loss and perplexity.
fn language_model(
    args: &EvalArgs,
    device: &Device,
    adapter: Option<Adapter>,
    dataset: &Dataset,
    group: &Group,
) -> Result<()> {
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
    check_max_length(args.data.max_length, lm.transformer().config())?;
    let max_length = trained_length(args.data.max_length, args.adapter.as_deref(), &args.model)?;
    let max_length = max_length.or(Some(LM_MAX_LENGTH));
    let tokenizer = open_tokenizer(&args.model.path, max_length, lm.transformer().config())?;
    let rows = lm_rows(&tokenizer, dataset)?;
    let understood = Understood::of(dataset, &Use::Lm(&rows), &tokenizer)?;
    understood.say(args.output.quiet);
    check_answers(&rows, &tokenizer, dataset)?;
    let model = (&*args.model.path, args.adapter.as_deref());
    let options = (args.batch_size, args.compute);
    alike::check_model_on_rows(group, model, dataset, &tokenizer, device, options)?;
    let rows = TokenRows::new(rows);
    let metrics = evaluate_with_bar(&lm.into(), &rows, args, group)?.metrics;
    show(args, &metrics, rows.len(), &understood, None)
}

/// Evaluates a model with a progress bar.
fn evaluate_with_bar(model: &TaskModel, rows: &dyn Rows, args: &EvalArgs, group: &Group) -> Result<Evaluation> {
    let (mut screen, processes) = (Screen::new(args.output.quiet), &group.processes);
    Ok(evaluate_shared(model, rows, args.batch_size, processes, &mut |event: Event<'_>| screen.show(event))?)
}

/// Returns `max_length`, or else the length that the adapter or merged model was trained with.
pub fn trained_length(max_length: Option<usize>, adapter: Option<&Path>, model: &ModelArgs) -> Result<Option<usize>> {
    if max_length.is_some() {
        return Ok(max_length);
    }
    Ok(adapter_info(adapter.unwrap_or(&model.path))?.map(|info| info.max_length))
}

/// Prints the metrics to standard output.
fn show(
    args: &EvalArgs,
    scores: &[(&'static str, f64)],
    rows: usize,
    understood: &Understood,
    labels: Option<&LabelSet>,
) -> Result<()> {
    let positive = labels.and_then(positive_class);
    if args.output.json {
        let mut json: Map<String, Value> = scores.iter().map(|(name, v)| (name.to_string(), json!(v))).collect();
        if let Some(class) = positive.filter(|_| json.contains_key("f1")) {
            json.insert("f1_class".into(), json!(class));
        }
        json.insert("rows".into(), json!(rows));
        json.insert("data".into(), json!(understood.data));
        json.insert("dataset".into(), json!(understood));
        return Ok(ui::result(ui::with_warnings(Value::Object(json)).to_string())?);
    }
    let row = |(name, value): &(&'static str, f64)| vec![metric_name(name, positive), format!("{value:.4}")];
    let rows_of_table: Vec<Vec<String>> = scores.iter().map(row).collect();
    ui::result(ui::table(&["metric", "value"], &rows_of_table, TableStyle::of_stdout()))?;
    ui::result(format!("{} rows of {}", ui::count(rows as u64), understood.data))?;
    Ok(())
}

/// Returns the class that F1 is computed for: the second of two.
pub fn positive_class(labels: &LabelSet) -> Option<&str> {
    match labels {
        LabelSet::Classes(names) if names.len() == 2 => Some(&names[1]),
        _ => None,
    }
}

/// Returns the name of a metric for display.
pub fn metric_name(name: &str, positive: Option<&str>) -> String {
    match positive {
        Some(class) if name == "f1" => format!("f1 of \"{class}\""),
        _ => name.to_owned(),
    }
}

/// Returns the split of a folder to evaluate: `split`, or else the one for validation or testing.
///
/// # Errors
/// Returns an error if there is only a train split, or `split` is given for a file.
pub fn split_to_evaluate(data: &Path, split: Option<SplitArg>) -> Result<Option<Split>> {
    let splits = data::splits(data)?;
    if splits.is_empty() {
        if split.is_some() {
            bail!("--split: {} is a file; a split is one of a folder", data.display());
        }
        return Ok(None);
    }
    Ok(Some(match split {
        Some(split) => split.into(),
        None => match splits.iter().map(|part| part.split).find(|s| *s != Split::Train) {
            Some(split) => split,
            None => bail!("{}: only a train split; say so with --split train", data.display()),
        },
    }))
}

/// Returns the classifier's labels, which turn a dataset's labels into targets. `form` is that of the labels of its
/// training, if a row may be of several classes.
pub fn label_set(classifier: &Classifier, form: Option<Form>) -> LabelSet {
    match classifier.task() {
        Task::Classification { labels } => LabelSet::Classes(labels.clone()),
        Task::MultiLabel { labels } => LabelSet::Sets(Sets { names: labels.clone(), form }),
        Task::Regression => LabelSet::Scores,
    }
}

fn write_predictions(
    path: &Path,
    task: &Task,
    dataset: &Dataset,
    targets: Option<&Targets>,
    logits: &[Vec<f32>],
) -> Result<()> {
    let written = files::write_with(path, |file| {
        for (row, (logits, example)) in logits.iter().zip(&dataset.examples).enumerate() {
            let label = example.label.as_ref().map_or(Value::Null, label_json);
            let (index, row) = (row, dataset.row(row));
            let line = match task {
                Task::Classification { labels } => {
                    let predicted = class_json(&labels[predicted_class(logits)]);
                    json!({"row": row, "logits": logits, "label": label, "predicted": predicted})
                }
                Task::MultiLabel { labels } => {
                    let named = |set: &[usize]| set.iter().map(|class| class_json(&labels[*class])).collect::<Value>();
                    let label = match targets {
                        Some(Targets::Sets(sets)) => named(&sets[index]),
                        _ => Value::Null,
                    };
                    json!({"row": row, "logits": logits, "label": label, "predicted": named(&predicted_set(logits))})
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
        data::Label::Several(list) => json!(list),
    }
}

/// Returns a class name as JSON: an integer if the name is one, as in data files, else a string.
pub fn class_json(name: &str) -> Value {
    match name.parse::<i64>() {
        Ok(n) if n.to_string() == name => json!(n),
        _ => json!(name),
    }
}
