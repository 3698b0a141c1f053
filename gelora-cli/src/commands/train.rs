//! `gelora train`: runs a [`Trainer`] with the options of the flags, and writes the adapter folder.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail};
use gelora_lora::{CONFIG_NAME, LoraLayer};
use gelora_model::eva::Start;
use gelora_model::evaluate::{Metrics, metrics};
use gelora_model::train::{Best, Checkpoints, Keep};
use gelora_model::{
    CausalLm, Classifier, Config, Error as Failure, Event, LM_MAX_LENGTH, Labels, Rows, TaskModel, TokenRows, Tokens,
    TrainOptions, Trainer,
};
use serde_json::{Value, json};

use super::alike;
use super::aside;
use super::chosen_ranks::{module_ranks, ranks_of, shared};
use super::eva::EVA_NAME;
use super::init_adapter::InitAdapter;
use super::log::LOG;
use super::loss::loss_weights;
use super::measuring::Measuring;
use super::pages::Finished;
use super::rate::{self, RATES_NAME};
use super::records::{Predictions, Records};
use super::rows::{TextRows, lm_rows};
use super::screen::Screen;
use super::task::{metric, model_task};
use super::{
    AdapterInfo, INFO_NAME, aim, check_max_length, check_not_input, dry_run, eva, eval, is_lm, open_device,
    open_tokenizer, read_options,
};
use crate::args::{InitArg, Rate, ResumeArg, TaskArg, TrainArgs};
use crate::card::CARD_NAME;
use crate::data::{self, Dataset, LabelSet, ReadOptions, Split, Task};
use crate::launch::Group;
use crate::output::OutDir;
use crate::profile::mark;
use crate::report::{RANKS_NAME, REPORT_NAME};
use crate::signals::Signals;
use crate::tensorboard::EVENT_FILES;
use crate::tokenize::Tokenizer;
use crate::understood::{Understood, Use};
use crate::{distinct, fingerprint, ui};

/// File of options that repeats the run, for `--config`.
const REPEATING: &str = "run.toml";
/// Folder of the latest checkpoint inside OUT.
const CHECKPOINT: &str = "checkpoint";
/// Names of the files and folders that the command writes to OUT.
const FILES: [&str; 12] = [
    REPEATING,
    CONFIG_NAME,
    "adapter_model.safetensors",
    INFO_NAME,
    LOG,
    RANKS_NAME,
    RATES_NAME,
    EVA_NAME,
    CHECKPOINT,
    REPORT_NAME,
    CARD_NAME,
    EVENT_FILES,
];

/// Those that belong to a checkpoint, as long as it is not that of the training in progress.
const OF_CHECKPOINT: [&str; 6] = [REPEATING, LOG, RANKS_NAME, RATES_NAME, EVA_NAME, EVENT_FILES];

pub fn run(args: &TrainArgs, group: &Group) -> Result<()> {
    let processes = &group.processes;
    processes.check_parts(args.accumulate).map_err(|problem| anyhow!("--{problem}"))?;
    let device = open_device(args.compute.device)?;
    // Read the data, and choose between a classifier and a language model.
    let options = read_options(&args.data, aim(args.task), &args.output);
    let mut dataset = data::read(&args.data.data, Some(Split::Train), &options)?;
    let mut held_out_data = held_out(args.eval_data.as_deref(), &args.data.data, &options)?;
    check_evaluation_data(args, held_out_data.is_some())?;
    mark("data read");
    let config = Config::load(&args.model.path)?;
    check_max_length(args.data.max_length, &config)?;
    let is_lm = is_lm(args.task, &config, &dataset);
    for data in [Some(&mut dataset), held_out_data.as_mut()].into_iter().flatten() {
        if is_lm {
            data.take_answers()?;
        } else {
            data.take_texts();
        }
    }
    // Check the output folder before any expensive work.
    let out = OutDir::prepare(&args.out, &FILES, "--out")?;
    aside::check_ours(&out, &args.out)?;
    if args.init_adapter.is_some() && args.lr == Rate::Auto {
        bail!("--lr auto trains new adapters; with --init-adapter give a rate");
    }
    if let Some(folder) = &args.init_adapter {
        check_not_input(out.path(), "--out", &[folder])?;
    }
    // The first process of a run decides and writes.
    let resumes = if processes.is_first() { resume(args, &out)? } else { false };
    let resume = processes.broadcast(vec![u8::from(resumes)])? == [1];
    let writes = processes.is_first() && !args.dry_run;
    let _lock = writes.then(|| out.lock()).transpose()?;
    // Tokenize, and print the account of the data.
    let mut init =
        args.init_adapter.as_deref().map(|folder| InitAdapter::load(folder, &args.model, is_lm)).transpose()?;
    let label_set = if is_lm { None } else { Some(label_set(args.task, &dataset)?) };
    let label_set = match (label_set, &mut init, &args.init_adapter) {
        (Some(labels), Some(init), Some(folder)) => Some(init.labels(folder, labels)?),
        (labels, ..) => labels,
    };
    let max_length = args.data.max_length.or(is_lm.then_some(LM_MAX_LENGTH));
    let tokenizer = open_tokenizer(&args.model.path, max_length, &config)?;
    mark("tokenizer loaded");
    let data = Prepared::new(&dataset, label_set.as_ref(), &tokenizer, false)?;
    let held_out =
        held_out_data.as_ref().map(|data| Prepared::new(data, label_set.as_ref(), &tokenizer, true)).transpose()?;
    data.understood.say(args.output.quiet);
    if let Some(held_out) = &held_out {
        held_out.understood.say(args.output.quiet);
    }
    if data.rows.is_empty() {
        bail!("{}: every answer is cut off at --max-length {}", dataset.path.display(), tokenizer.max_length());
    }
    if args.rank.is_none() && args.ranks.is_none() && init.is_none() {
        distinct::check(&dataset, data.understood.distinct)?;
    }
    metric(args.evaluation.metric.as_deref(), label_set.as_ref())?;
    let class_weights = loss_weights(&args.loss, label_set.as_ref(), data.rows.labels(), args.output.quiet)?;
    mark("data tokenized");
    // Before any expensive work.
    args.options().validate(data.rows.len())?;
    rate::check(args.lr, data.rows.len())?;
    let read = [&dataset].into_iter().chain(&held_out_data);
    alike::check_inputs(group, &args.model.path, read, &tokenizer, &device)?;
    // Load the model, and choose the ranks of its adapters.
    let settings = settings(args, &dataset, held_out.as_ref(), &tokenizer, &*data.rows, init.as_ref());
    let all_options = format!("{settings:?} {:?} {:?} {:?} {:?}", args.options(), args.compute, args.lr, args.init);
    processes.check_same("the options of the command line", Some(all_options.as_bytes()))?;
    let ready = |mut model: TaskModel| -> Result<TaskModel> {
        model.compute_in(args.compute.dtype.into())?;
        model.move_to(&device)?;
        Ok(model)
    };
    let (mut model, config) = match init {
        Some(init) => (ready(init.model)?, Some(init.config)),
        None => (ready(load(args, label_set.as_ref(), true)?)?, None),
    };
    mark("model loaded");
    if resume && writes {
        aside::bring_back(&out, &out.file(CHECKPOINT), &OF_CHECKPOINT)?;
    } else if writes {
        aside::set_aside(&out, &out.file(CHECKPOINT), &OF_CHECKPOINT)?;
    }
    // All processes train the ranks of the first one.
    let ranks = match config {
        Some(_) => BTreeMap::new(),
        None => {
            let measuring = Measuring::of(args, model.transformer(), &dataset, &tokenizer, label_set.as_ref());
            module_ranks(args, resume, &measuring, &out, processes)?
        }
    };
    let ranks = shared(processes, Some(ranks))?;
    let Start { ranks, factors } = match args.init {
        InitArg::Eva if !args.dry_run => eva::start(args, (&out, resume), &mut model, &*data.rows, &ranks, processes)?,
        init => {
            if init == InitArg::Eva {
                ui::note(args.output.quiet, "the measurement of --init eva is not part of this dry run");
            }
            aside::forget(&out, EVA_NAME, writes && !resume)?;
            Start { ranks, factors: BTreeMap::new() }
        }
    };
    let checkpoints = Checkpoints {
        folder: out.file(CHECKPOINT),
        every: args.checkpoint_every,
        keep: args.keep_checkpoints,
        resume,
        settings,
    };
    let given_ranks = ranks.clone();
    let mut options = TrainOptions { ranks, factors, class_weights, processes: processes.clone(), ..args.options() };
    options = match args.dry_run {
        true => TrainOptions { eval_every: None, metric: None, keep: Keep::Last, patience: None, ..options },
        false => TrainOptions { checkpoints: Some(checkpoints.clone()), ..options },
    };
    let lr_is_chosen = args.lr == Rate::Auto;
    let tuned;
    let args = match args.lr {
        Rate::Auto if !args.dry_run => {
            let metric = metric(args.evaluation.metric.as_deref(), label_set.as_ref())?;
            let fresh = || ready(load(args, label_set.as_ref(), false)?);
            // One model at a time.
            drop(model);
            options.lr = rate::chosen((&out, resume, args.output.quiet), &options, &*data.rows, metric, fresh)?;
            model = fresh()?;
            tuned = TrainArgs { lr: Rate::Fixed(options.lr), ..args.clone() };
            &tuned
        }
        Rate::Auto => {
            ui::note(args.output.quiet, "the trainings of --lr auto are not part of this dry run");
            args
        }
        Rate::Fixed(_) => {
            aside::forget(&out, RATES_NAME, writes && !resume)?;
            args
        }
    };
    let mut trainer = match config {
        Some(config) => {
            options.lora_dropout = args.lora_dropout.unwrap_or(f64::from(config.lora_dropout));
            Trainer::on_adapter(&mut model, config, &*data.rows, options)?
        }
        None => Trainer::new(&mut model, &*data.rows, options)?,
    };
    let modules = if given_ranks.is_empty() { ranks_of(&trainer.adapter()) } else { given_ranks };
    if args.dry_run {
        let account = json!({"dry_run": true, "dataset": data.understood});
        return dry_run::run(trainer, modules.len(), args.output.json, account);
    }
    let held_out_rows = held_out.as_ref().map(|data| &*data.rows).filter(|rows| !rows.is_empty());
    check_evaluation_data(args, held_out_rows.is_some())?;
    let signals = Signals::handle()?;
    trainer = trainer.with_held_out(held_out_rows).with_stop(signals.stop());
    mark("adapters added");
    let (steps, parameters) = (trainer.steps(), trainer.parameters());
    ui::note(
        args.output.quiet,
        format!(
            "{} {}, {} steps, {} adapter parameters in {} modules",
            ui::count(data.rows.len() as u64),
            if is_lm && !dataset.has_answers() { "blocks" } else { "rows" },
            ui::count(steps as u64),
            ui::count(parameters as u64),
            modules.len()
        ),
    );
    let metrics = metrics(label_set.as_ref().map(model_task).as_ref());
    let records = writes.then(|| Records::new(&out, args.tensorboard, metrics));
    let Trained { scores, best, predictions } = match train(args, &mut trainer, &out, records) {
        Err(Failure::Interrupted { step, steps }) => {
            let kept = format!(
                "stopped after step {step} of {steps}; the checkpoint is in {}, and the same command with --resume \
                 continues",
                out.file(CHECKPOINT).display()
            );
            return Err(signals.interrupted(kept).into());
        }
        Err(failure) if resume => return Err(failure).context("--resume"),
        other => other?,
    };

    if !writes {
        return Ok(());
    }
    let positive = label_set.as_ref().and_then(eval::positive_class).map(str::to_owned);
    let task = label_set.as_ref().map(model_task);
    let has_vanished = !out.file(LOG).is_file();
    // AdaLoRA leaves fewer ranks than the training began with.
    let adapter = trainer.adapter().folded()?;
    let modules = if args.adalora { ranks_of(&adapter) } else { modules };
    let parameters = if args.adalora { adapter.layers.values().map(LoraLayer::parameters).sum() } else { parameters };
    adapter.write(out.path())?;
    let info = AdapterInfo {
        labels: task.as_ref().and_then(|task| task.labels()).map(<[String]>::to_vec),
        label_form: label_set.as_ref().and_then(LabelSet::form),
        problem_type: task.as_ref().map(|task| task.problem_type().to_owned()),
        max_length: tokenizer.max_length(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    out.write_json(INFO_NAME, &info)?;
    if has_vanished {
        bail!(
            "{}: vanished during the training; the adapter is written there again, but {LOG} and what else was in the \
             folder is lost",
            args.out.display()
        );
    }
    let finished = Finished {
        args,
        out: &out,
        labels: label_set.as_ref(),
        tokenizer: &tokenizer,
        data: (&dataset, &data.understood),
        held_out: held_out_data
            .as_ref()
            .zip(held_out.as_ref())
            .map(|(data, rows)| (data, &rows.understood, &*rows.rows)),
        model: trainer.model(),
        modules: &modules,
        parameters,
        metrics: scores.as_ref(),
        config: &adapter.config,
        best: best.as_ref(),
        predictions: &predictions,
    };
    finished.write()?;
    // The adapter is complete now, so the training needs no checkpoint any more.
    checkpoints.finish()?;
    let mut result = json!({"out": args.out, "parameters": parameters, "dataset": data.understood});
    if let (true, Rate::Fixed(rate)) = (lr_is_chosen, args.lr) {
        result["lr"] = json!(rate);
    }
    if let Some(best) = &best {
        result["best"] = json!(best);
    }
    if let Some(held_out) = &held_out {
        result["eval_dataset"] = json!(held_out.understood);
    }
    report(args, scores, best.as_ref(), positive.as_deref(), result)
}

/// Rows, and the account of their data.
struct Prepared<'a> {
    rows: Box<dyn Rows + 'a>,
    /// Hash of the dataset.
    fingerprint: [u32; 2],
    understood: Understood,
}

impl<'a> Prepared<'a> {
    /// Prepares the rows of a dataset. Without labels they are the rows of a language model.
    fn new(dataset: &'a Dataset, labels: Option<&LabelSet>, tokenizer: &'a Tokenizer, parallel: bool) -> Result<Self> {
        let fingerprint = dataset.fingerprint();
        let Some(labels) = labels else {
            let tokens: Vec<Tokens> = lm_rows(tokenizer, dataset)?;
            let understood = Understood::of(dataset, &Use::Lm(&tokens), tokenizer)?;
            return Ok(Self { rows: Box::new(TokenRows::new(tokens)), fingerprint, understood });
        };
        let targets = Some(labels.targets(dataset)?);
        let understood = Understood::of(dataset, &Use::Labels(labels), tokenizer)?;
        let rows = Box::new(TextRows { dataset, tokenizer, targets, parallel });
        Ok(Self { rows, fingerprint, understood })
    }
}

/// Loads the base model with a new head, or with its vocabulary for a language model. Prints what there is to say of it
/// if `speaks` is true.
fn load(args: &TrainArgs, labels: Option<&LabelSet>, speaks: bool) -> Result<TaskModel> {
    let name = args.model.name.display().to_string();
    let Some(labels) = labels else {
        let mut lm = CausalLm::load(&args.model.path)?;
        lm.remarks().iter().filter(|_| speaks).for_each(ui::warn);
        lm.set_name(name);
        return Ok(lm.into());
    };
    let mut classifier = Classifier::new(&args.model.path, model_task(labels), args.seed)?;
    classifier.set_name(name);
    Ok(classifier.into())
}

/// Returns an error if an option asks for evaluations and there are no rows to evaluate on.
fn check_evaluation_data(args: &TrainArgs, has_rows: bool) -> Result<()> {
    match args.evaluation.first_given() {
        Some(option) if !has_rows => bail!("{option}: there are no rows to evaluate on; name a file with --eval-data"),
        _ => Ok(()),
    }
}

/// Returns the settings that the result depends on besides the options of the training.
fn settings(
    args: &TrainArgs,
    dataset: &Dataset,
    held_out: Option<&Prepared<'_>>,
    tokenizer: &Tokenizer,
    rows: &dyn Rows,
    init: Option<&InitAdapter>,
) -> BTreeMap<String, Value> {
    let of_labels = |rows: &dyn Rows| match rows.labels() {
        Labels::Classes(all) => fingerprint::of_numbers(all.iter().map(|class| *class as u64)),
        Labels::Sets(all) => fingerprint::of_sets(all),
        Labels::Scores(all) => fingerprint::of_numbers(all.iter().map(|score| score.to_bits())),
        _ => [0, 0],
    };
    let measures = args.rank.is_none() && args.ranks.is_none() && init.is_none();
    // The result depends on evaluations only if they are compared.
    let held_out = held_out.filter(|_| args.evaluation.are_compared());
    let settings = [
        ("data", json!(dataset.fingerprint())),
        ("labels", json!(of_labels(rows))),
        ("eval-data", json!(held_out.map(|data| (data.fingerprint, of_labels(&*data.rows))))),
        ("tokenizer", json!(tokenizer.fingerprint())),
        ("max-length", json!(tokenizer.max_length())),
        ("init-adapter", json!(init.map(|init| &init.fingerprint))),
        (
            "measurement of ranks",
            json!(measures.then(|| format!("{:?} {:?} {:?}", args.policy, args.measure, args.targets))),
        ),
    ];
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What a training leaves beside the adapter.
struct Trained {
    /// Metrics of the held-out rows, of the adapter that is kept.
    scores: Option<Metrics>,
    /// The best evaluation, if evaluations are compared.
    best: Option<Best>,
    predictions: Vec<Rc<Predictions>>,
}

/// Trains to the end with a progress bar, records in the process that writes them, and checkpoints.
fn train(
    args: &TrainArgs,
    trainer: &mut Trainer<'_>,
    out: &OutDir,
    mut records: Option<Records>,
) -> Result<Trained, Failure> {
    let (mut screen, mut best) = (Screen::new(args.output.quiet), None);
    let total = trainer.steps();
    let trained = trainer.run(&mut |event: Event<'_>| {
        if let Event::Training { first, .. } = event {
            if first > 0 {
                ui::note(args.output.quiet, format!("resuming at step {first} of {total}"));
            }
            if records.is_some() {
                out.write(REPEATING, args.repeating.as_bytes())?;
            }
        }
        if let Event::Best(found) = event {
            best = Some(found.clone());
        }
        screen.show(event);
        records.as_mut().map_or(Ok(()), |records| records.write(event))
    });
    if let Some(records) = &mut records {
        records.flush().map_err(|error| Failure::Stopped(error.into()))?;
    }
    let predictions = records.map(Records::into_predictions).unwrap_or_default();
    Ok(Trained { scores: trained?, best, predictions })
}

/// Returns whether the training resumes. A finished adapter is kept unless it may be overwritten.
fn resume(args: &TrainArgs, out: &OutDir) -> Result<bool> {
    let has_checkpoint = Checkpoints::can_resume(&out.file(CHECKPOINT));
    let resume = match args.resume {
        None => false,
        Some(ResumeArg::Always) => true,
        Some(ResumeArg::Auto) => has_checkpoint,
    };
    if out.file(INFO_NAME).is_file() && !args.overwrite && !resume {
        bail!(
            "{}: holds a finished adapter; --overwrite replaces it, or choose another folder with --out",
            out.path().display()
        );
    }
    Ok(resume)
}

/// The classes that the rows have, or that they have scores.
pub(super) fn label_set(task: TaskArg, dataset: &Dataset) -> Result<LabelSet> {
    let task = match task {
        TaskArg::Auto | TaskArg::CausalLm => None,
        TaskArg::Classification => Some(Task::Classification),
        TaskArg::MultiLabel => Some(Task::MultiLabel),
        TaskArg::Regression => Some(Task::Regression),
    };
    data::labels(&[dataset], task)
}

/// Reads the evaluation data: --eval-data, or the validation split of the folder `data`.
pub(super) fn held_out(eval_data: Option<&Path>, data: &Path, options: &ReadOptions) -> Result<Option<Dataset>> {
    if let Some(path) = eval_data {
        return Ok(Some(data::read(path, Some(Split::Validation), options)?));
    }
    let splits = data::splits(data)?;
    if splits.iter().any(|part| part.split == Split::Validation) {
        return Ok(Some(data::read(data, Some(Split::Validation), options)?));
    }
    Ok(None)
}

fn report(
    args: &TrainArgs,
    scores: Option<Metrics>,
    best: Option<&Best>,
    positive: Option<&str>,
    mut result: Value,
) -> Result<()> {
    if args.output.json {
        let eval: serde_json::Map<_, _> =
            scores.iter().flatten().map(|(name, v)| (name.to_string(), json!(v))).collect();
        if let Some(class) = positive.filter(|_| eval.contains_key("f1")) {
            result["f1_class"] = json!(class);
        }
        result["eval"] = json!(eval);
        ui::result(ui::with_warnings(result).to_string())?;
    } else {
        let format_metric =
            |(name, value): &(&'static str, f64)| format!("{} {value:.4}", eval::metric_name(name, positive));
        let text: Vec<String> = scores.iter().flatten().map(format_metric).collect();
        let held_out = if text.is_empty() { String::new() } else { format!("; held-out {}", text.join(", ")) };
        let of_best = best.filter(|best| best.kept);
        let of_step = of_best.map_or(String::new(), |best| format!(" of step {}", best.step));
        ui::result(format!("the adapter{of_step} is in {}{held_out}", args.out.display()))?;
    }
    Ok(())
}
