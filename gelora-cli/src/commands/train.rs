//! `gelora train`: options to a [`Trainer`], and the folder it leaves.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use gelora_lora::CONFIG_NAME;
use gelora_lora::ranks::check_rank;
use gelora_model::{CausalLm, Classifier, Config, Task as ModelTask, Transformer};
use serde::Deserialize;
use serde_json::{Value, json};

use super::learner::{Learner, lm_rows, perplexity};
use super::measure::{self, ModuleRank, Targets};
use super::order::Order;
use super::prefetch::Source;
use super::trainer::{CHECKPOINT, LOG, Trainer};
use super::understood::{Understood, Use};
use super::{
    AdapterInfo, INFO_NAME, aim, check_max_length, distinct, eval, open_device, open_tokenizer, rank, read_json,
    read_options,
};
use crate::args::{DataArgs, ProfileArgs, RankArgs, ScaleArg, TaskArg, TrainArgs};
use crate::data::{self, Dataset, Example, LabelSet, ReadOptions, Split, Task};
use crate::output::OutDir;
use crate::profile::mark;
use crate::tokenize::Encoded;
use crate::ui;

/// Tokens of a row or block at most in training of a language model.
pub const LM_MAX_LENGTH: usize = 512;

const FILES: [&str; 6] = [CONFIG_NAME, "adapter_model.safetensors", INFO_NAME, LOG, rank::RANKS_NAME, CHECKPOINT];

pub fn run(args: &TrainArgs) -> Result<()> {
    let device = open_device(args.compute.device)?;
    let options = read_options(&args.data, aim(args.task), &args.output);
    let mut dataset = data::read(&args.data.data, Some(Split::Train), &options)?;
    let mut held_out = held_out(args, &options)?;
    mark("data read");
    let config = Config::load(&args.model.path)?;
    check_max_length(args.data.max_length, &config)?;
    let is_lm = is_lm(args.task, &config, &dataset);
    for data in [Some(&mut dataset), held_out.as_mut()].into_iter().flatten() {
        if is_lm {
            data.take_answers()?;
        } else {
            data.take_texts();
        }
    }
    let out = OutDir::prepare(&args.out, &FILES, "--out")?;
    if out.file("adapter_model.safetensors").is_file() && !out.file(LOG).is_file() {
        bail!("{}: holds an adapter that gelora did not train; choose another folder with --out", args.out.display());
    }
    let label_set = if is_lm { None } else { Some(label_set(args, &dataset)?) };
    let held_out_targets = match (&held_out, &label_set) {
        (Some(data), Some(labels)) => Some(labels.targets(data)?),
        _ => None,
    };
    let max_length = args.data.max_length.or(is_lm.then_some(LM_MAX_LENGTH));
    let tokenizer = open_tokenizer(&args.model.path, max_length, &config)?;
    mark("tokenizer loaded");
    let rows_of = |data: &Dataset| if is_lm { lm_rows(&tokenizer, data).map(Some) } else { Ok(None) };
    let made = rows_of(&dataset)?;
    let held_out_rows = held_out.as_ref().map(rows_of).transpose()?.flatten().unwrap_or_default();
    let understand = |data: &Dataset, rows: Option<&[Encoded]>| {
        let used = match (&label_set, rows) {
            (Some(labels), _) => Use::Labels(labels),
            (None, Some(rows)) => Use::Lm(rows),
            (None, None) => Use::Texts,
        };
        Understood::of(data, &used, &tokenizer)
    };
    let understood = understand(&dataset, made.as_deref())?;
    understood.say(args.output.quiet);
    let held_out_understood = held_out.as_ref().map(|data| understand(data, Some(&held_out_rows))).transpose()?;
    if let Some(held_out) = &held_out_understood {
        held_out.say(args.output.quiet);
    }
    if made.as_ref().map_or(dataset.examples.len(), Vec::len) == 0 {
        bail!("{}: every answer is cut off at --max-length {}", dataset.path.display(), tokenizer.max_length());
    }
    if args.rank.is_none() && args.ranks.is_none() {
        distinct::check(&dataset, understood.distinct)?;
    }
    mark("data tokenised");
    let mut learner = match &label_set {
        None => Learner::Lm(Box::new(CausalLm::load(&args.model.path)?)),
        Some(labels) => {
            let classifier = Classifier::new(&args.model.path, model_task(labels), args.seed)?;
            Learner::Classifier(Box::new(classifier), labels.targets(&dataset)?)
        }
    };
    learner.prepare(args.compute.dtype.into(), &device)?;
    mark("model loaded");
    let data = DataArgs { max_length, ..args.data.clone() };
    let modules = module_ranks(args, data, learner.transformer(), &dataset, &out)?;
    let mut config = learner.task_of(measure::peft_config(learner.transformer(), &args.model.name, &modules)?);
    config.lora_dropout = args.lora_dropout as f32;
    config.use_rslora = args.rslora;
    config.inference_mode = true;
    let parameters = learner.add_adapters(&config, args.seed)?;
    mark("adapters added");

    let max_length = tokenizer.max_length();
    let order = order(args, &dataset, made.as_deref());
    let source = Source { order, dataset, tokenizer, made };
    let mut trainer = Trainer { args, out: &out, config, learner, source: &source, finished: None };
    ui::note(
        args.output.quiet,
        format!(
            "{} {}, {} steps, {} adapter parameters in {} modules",
            ui::count(source.len() as u64),
            if is_lm && !source.dataset.has_answers() { "blocks" } else { "rows" },
            ui::count(trainer.total() as u64),
            ui::count(parameters as u64),
            modules.len()
        ),
    );
    out.create()?;
    let scores = trainer.run(|learner| match (learner, held_out.as_ref().zip(held_out_targets.as_ref())) {
        (Learner::Classifier(classifier, _), Some((data, targets))) => {
            let logits = eval::predict(classifier, &source.tokenizer, data, args.batch_size, true)?;
            Ok(Some(eval::score(classifier, &logits, targets)))
        }
        (Learner::Lm(lm), _) if !held_out_rows.is_empty() => {
            Ok(Some(perplexity(lm, &held_out_rows, args.batch_size, true)?))
        }
        _ => Ok(None),
    })?;

    let positive = label_set.as_ref().and_then(eval::positive_class).map(str::to_owned);
    let labels = match label_set {
        Some(LabelSet::Classes(labels)) => Some(labels),
        Some(LabelSet::Scores) | None => None,
    };
    trainer.adapter().write(out.path())?;
    let version = env!("CARGO_PKG_VERSION").into();
    out.write_json(INFO_NAME, &AdapterInfo { labels, max_length, version })?;
    // The adapter is whole now; the checkpoint has done its duty.
    let _ = std::fs::remove_dir_all(out.file(CHECKPOINT));
    let mut result = json!({"out": args.out, "parameters": parameters, "dataset": understood});
    if let Some(held_out) = held_out_understood {
        result["eval_dataset"] = json!(held_out);
    }
    report(args, scores, positive.as_deref(), result)
}

/// Whether a language model is learnt or measured.
pub fn is_lm(task: TaskArg, config: &Config, dataset: &Dataset) -> bool {
    match task {
        TaskArg::CausalLm => true,
        TaskArg::Auto => dataset.labelled() == 0 && (config.causal || dataset.has_answers()),
        TaskArg::Classification | TaskArg::Regression => false,
    }
}

fn label_set(args: &TrainArgs, dataset: &Dataset) -> Result<LabelSet> {
    let task = match args.task {
        TaskArg::Auto | TaskArg::CausalLm => None,
        TaskArg::Classification => Some(Task::Classification),
        TaskArg::Regression => Some(Task::Regression),
    };
    data::labels(&[dataset], task)
}

fn order(args: &TrainArgs, dataset: &Dataset, made: Option<&[Encoded]>) -> Order {
    if !args.group_by_length {
        let rows = made.map_or(dataset.examples.len(), <[_]>::len);
        return Order::shuffled(rows, args.batch_size, args.seed);
    }
    if let Some(made) = made {
        return Order::grouped(made.iter().map(|row| row.ids.len()).collect(), args.batch_size, args.seed);
    }
    let characters = |text: &String| text.chars().count();
    let length = |e: &Example| characters(&e.text) + e.pair.as_ref().map_or(0, characters);
    Order::grouped(dataset.examples.iter().map(length).collect(), args.batch_size, args.seed)
}

/// The data to evaluate on: --eval-data, or the validation split of a folder.
fn held_out(args: &TrainArgs, options: &ReadOptions) -> Result<Option<Dataset>> {
    if let Some(path) = &args.eval_data {
        return Ok(Some(data::read(path, Some(Split::Validation), options)?));
    }
    let splits = data::splits(&args.data.data)?;
    if splits.iter().any(|part| part.split == Split::Validation) {
        return Ok(Some(data::read(&args.data.data, Some(Split::Validation), options)?));
    }
    Ok(None)
}

fn model_task(labels: &LabelSet) -> ModelTask {
    match labels {
        LabelSet::Classes(labels) => ModelTask::Classification { labels: labels.clone() },
        LabelSet::Scores => ModelTask::Regression,
    }
}

/// What training needs of a ranks.json.
#[derive(Deserialize)]
struct RanksFile {
    modules: BTreeMap<String, ModuleRank>,
}

/// Rank and alpha of every module: one for all, from a file, or measured now.
fn module_ranks(
    args: &TrainArgs,
    data: DataArgs,
    encoder: &Transformer,
    dataset: &Dataset,
    out: &OutDir,
) -> Result<BTreeMap<String, ModuleRank>> {
    let infos = encoder.linear_infos();
    if let Some(rank) = args.rank {
        let alpha = args.targets.alpha_ratio * rank as f64;
        let layers = encoder.config().layers;
        let targets = Targets::new(&infos, layers, args.measure.granularity.into(), &args.targets)?;
        return targets
            .modules
            .into_iter()
            .map(|(info, _)| {
                check_rank(&info.name, rank, info.c_in, info.c_out)?;
                Ok((info.name.clone(), ModuleRank { rank, alpha }))
            })
            .collect();
    }
    let Some(path) = &args.ranks else {
        let measured = out.file(rank::RANKS_NAME);
        if args.resume && measured.is_file() {
            return Ok(read_json::<RanksFile>(&measured)?.modules);
        }
        let ranks = measure::ranks(&rank_args(args, data), encoder, dataset)?;
        out.write_json(rank::RANKS_NAME, &ranks)?;
        ui::note(args.output.quiet, rank::table(&ranks));
        ui::note(args.output.quiet, rank::summary(&ranks));
        return Ok(ranks.modules);
    };
    // The folder of `gelora rank` stands for the file in it.
    let path = &if path.is_dir() { path.join(rank::RANKS_NAME) } else { path.clone() };
    let ranks: RanksFile = read_json(path).context("--ranks expects a ranks.json from `gelora rank`")?;
    for (name, module) in &ranks.modules {
        let Some(info) = infos.iter().find(|i| i.name == *name) else {
            bail!(
                "{}: module {name} is not in {}; the ranks are of another model",
                path.display(),
                args.model.name.display()
            );
        };
        check_rank(name, module.rank, info.c_in, info.c_out)?;
    }
    Ok(ranks.modules)
}

/// What `gelora rank` would be asked, when `train` measures by itself.
fn rank_args(args: &TrainArgs, data: DataArgs) -> RankArgs {
    RankArgs {
        model: args.model.clone(),
        data,
        measure: args.measure.clone(),
        targets: args.targets.clone(),
        policy: None,
        rank: None,
        budget: None,
        budget_rank: None,
        stability: 0,
        scale: ScaleArg::All,
        serve: None,
        no_cache: false,
        points: None,
        batch_size: args.batch_size,
        compute: args.compute,
        seed: args.seed,
        out: PathBuf::new(),
        profile: ProfileArgs::default(),
        output: args.output.clone(),
    }
}

fn report(
    args: &TrainArgs,
    scores: Option<Vec<(&'static str, f64)>>,
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
        let shown = |(name, value): &(&'static str, f64)| format!("{} {value:.4}", eval::metric_name(name, positive));
        let text: Vec<String> = scores.iter().flatten().map(shown).collect();
        let held_out = if text.is_empty() { String::new() } else { format!("; held-out {}", text.join(", ")) };
        ui::result(format!("the adapter is in {}{held_out}", args.out.display()))?;
    }
    Ok(())
}
