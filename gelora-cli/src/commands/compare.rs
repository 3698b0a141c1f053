//! `gelora compare`: flags to a study, its runs, and what they show.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_kernels::{Device, DeviceKind};
use gelora_lora::ranks::{Alpha, Step};
use gelora_model::measure::{Scale, TargetModules};
use gelora_model::{Config, LM_MAX_LENGTH, MeasureOptions, Transformer};
use serde_json::{Value, json};

use super::alike::hash_of_model;
use super::rows::{check_answers, encode_all, lm_rows};
use super::{aim, check_max_length, is_lm, open_device, open_tokenizer, read_options, task, train};
use crate::args::{CompareArgs, measure_options};
use crate::compare::arms::{Arm, RankSettings};
use crate::compare::plan::{self, Plan};
use crate::compare::results::{OF_OTHERS, RESULTS_NAME, Results, STUDY_NAME, Study};
use crate::compare::run::{Bench, Examples};
use crate::compare::table::{Comparison, Metric, chosen_rate, finished};
use crate::compare::{Execution, mechanism, run_all, run_mechanism};
use crate::data::{self, Dataset, LabelSet, Split, Targets};
use crate::launch::Group;
use crate::output::OutDir;
use crate::report;
use crate::tokenize::Tokenizer;
use crate::ui::{self, TableStyle};
use crate::understood::{Understood, Use};
use crate::{distinct, fingerprint};

const REPORT_NAME: &str = "report.html";
const MECHANISM_NAME: &str = "mechanism.jsonl";
const TABLE_NAME: &str = "compare.json";
/// Training rows of a seed at least.
const FEWEST_ROWS: usize = 10;

pub fn run(args: &CompareArgs, group: &Group) -> Result<()> {
    let (plan, reference) = (plan(args)?, reference(args)?);
    let (processes, first) = (&group.processes, group.processes.is_first());
    let files = [RESULTS_NAME, OF_OTHERS, STUDY_NAME, TABLE_NAME, MECHANISM_NAME, REPORT_NAME];
    let out = OutDir::prepare(&args.out, &files, "--out")?;
    let results_file = out.file(RESULTS_NAME);
    if first && args.resume && results_file.metadata().map_or(0, |file| file.len()) == 0 {
        bail!("{}: holds no finished run, so there is nothing to go on with (--resume)", results_file.display());
    }
    let data = Prepared::read(args)?;
    let metric = task::metric(args.metric.as_deref(), data.labels.as_ref())?;
    let metric = Metric { name: metric.name.to_owned(), lower_is_better: metric.lower_is_better };
    if data.labels.is_none() && plan.arms.contains(&Arm::Head) {
        bail!("--arms: the arm head trains a task head alone, and a language model has none");
    }
    let model = Transformer::load(&args.model.path)?;
    let measuring = MeasureOptions {
        cache: None, // the time of a measurement is part of the result
        scale: Scale::All,
        ..measure_options(&args.measure, &args.targets, args.batch_size, 0)
    };
    let flat = steps(&model, &measuring)?;
    let study = Study::new(settings(args, &data, &measuring)?);

    let updates_file = out.file(MECHANISM_NAME);
    let mut trained = Ok(());
    // A file of another study is an error before anything is trained.
    mechanism::read(&updates_file, study.id())?;
    if args.mechanism.is_some() && !plan.arms.contains(&Arm::Uniform) {
        bail!("--mechanism: trains at the rate of the arm uniform, which is not among --arms");
    }
    let results = if args.table {
        let mut results = Results::read(&results_file, &study)?;
        args.join.iter().try_for_each(|path| results.join(path, &study))?;
        results
    } else {
        processes.check_same("the study", Some(study.id().as_bytes()))?;
        out.create()?;
        let mut results = Results::open_shared(&results_file, &args.join, &study, processes)?;
        if first {
            out.write_json(STUDY_NAME, study.settings())?;
        }
        let device = open_device(args.compute.device)?;
        let jobs = args.jobs.unwrap_or_else(|| usual_jobs(&device));
        let task = data.labels.as_ref().map(task::model_task);
        let ranks = RankSettings {
            budget_rank: args.budget_rank,
            rounding: measuring.rounding,
            limits: measuring.limits,
            alpha: measuring.alpha,
        };
        let bench = Bench {
            study: study.id(),
            model: &args.model.path,
            device,
            dtype: args.compute.dtype.into(),
            task,
            train: data.train,
            held_out: data.held_out,
            train_rows: args.train_rows,
            samples: args.measure.samples,
            measuring,
            ranks,
            flat,
            epochs: args.epochs,
            steps: args.steps,
            batch_size: args.batch_size,
        };
        let finished = finished(&results, &plan, &metric);
        ui::note(args.output.quiet, format!("{} runs, {finished} of them finished", plan.len()));
        let execution = Execution { jobs, quiet: args.output.quiet, processes: processes.clone() };
        run_all(&bench, &plan, &metric, &mut results, &execution)?;
        if !first {
            results.close(processes);
            return Ok(());
        }
        if let Some(rank) = args.mechanism {
            let lr = chosen_rate(&results, &plan, Arm::Uniform, &metric);
            trained = lr
                .context("--mechanism: every rate of the arm uniform diverged")
                .and_then(|lr| run_mechanism(&bench, &updates_file, args.choose_seeds.max(1), lr, rank, &execution));
        }
        results
    };
    if !first {
        return Ok(());
    }
    let mut comparison = Comparison::new(study.id(), &results, &plan, &metric, reference);
    comparison.updates = mechanism::alike(mechanism::read(&updates_file, study.id())?, args.mechanism);
    comparison.correlations = mechanism::correlations(&comparison.updates);
    // The table does not depend on the updates of a high rank.
    show(args, &out, &comparison)?;
    trained
}

fn plan(args: &CompareArgs) -> Result<Plan> {
    if args.seeds < 2 {
        bail!("--seeds {}: differences are paired by seed; expected at least 2", args.seeds);
    }
    let rates = plan::rates(&args.lrs)?;
    if args.choose_seeds < 1 && rates.len() > 1 {
        bail!("--choose-seeds 0: nothing would choose among the rates of --lrs; expected at least 1, or one rate");
    }
    Ok(Plan { arms: Arm::parse(&args.arms)?, rates, seeds: args.seeds, choose_seeds: args.choose_seeds })
}

fn reference(args: &CompareArgs) -> Result<Arm> {
    let arms = Arm::parse(&args.arms)?;
    let found = arms.iter().copied().find(|arm| arm.name() == args.reference);
    found.with_context(|| {
        format!("--reference {}: is not among the arms {}; expected one of them", args.reference, args.arms.join(", "))
    })
}

/// The steps through the model as they would be if no dimension grew.
fn steps(model: &Transformer, measuring: &MeasureOptions) -> Result<Vec<Step>> {
    let (infos, layers) = (model.linear_infos(), model.config().layers);
    let targets = TargetModules::new(&infos, layers, measuring.granularity, &measuring.target_modules);
    Ok(targets.context("--target-modules")?.steps_without_growth())
}

/// Jobs where nobody says how many: one for each core, so that none waits for another, but not more than eight, which
/// memory may not hold.
fn usual_jobs(device: &Device) -> usize {
    if device.kind() == DeviceKind::Cpu { rayon::current_num_threads().min(8) } else { 1 }
}

/// Rows to train on and to score.
struct Prepared {
    train: Examples,
    held_out: Examples,
    /// None for a language model.
    labels: Option<LabelSet>,
    /// What the rows are, for the settings of the study.
    settings: [(&'static str, Value); 5],
}

impl Prepared {
    fn read(args: &CompareArgs) -> Result<Self> {
        let options = read_options(&args.data, aim(args.task), &args.output);
        let mut dataset = data::read(&args.data.data, Some(Split::Train), &options)?;
        let held_out = train::held_out(args.eval_data.as_deref(), &args.data.data, &options)?;
        let mut held_out = held_out.with_context(|| {
            format!("{}: has no validation split to score on; name a file with --eval-data", args.data.data.display())
        })?;
        let config = Config::load(&args.model.path)?;
        check_max_length(args.data.max_length, &config)?;
        let is_lm = is_lm(args.task, &config, &dataset);
        for data in [&mut dataset, &mut held_out] {
            if is_lm {
                data.take_answers()?;
            } else {
                data.take_texts();
            }
        }
        let labels = if is_lm { None } else { Some(train::label_set(args.task, &dataset)?) };
        let max_length = args.data.max_length.or(is_lm.then_some(LM_MAX_LENGTH));
        let tokenizer = open_tokenizer(&args.model.path, max_length, &config)?;
        let of = |data: &Dataset| Self::examples(data, labels.as_ref(), &tokenizer, args.output.quiet);
        let (train, held_out_rows) = (of(&dataset)?, of(&held_out)?);
        distinct::check(&dataset, distinct::count(&dataset))?;
        let rows = args.train_rows.unwrap_or(train.tokens.len());
        if rows < FEWEST_ROWS || train.tokens.len() < rows {
            let (shown, there) = (dataset.path.display(), train.tokens.len());
            bail!(
                "{shown}: {there} training rows, of which {rows} are wanted; expected at least {FEWEST_ROWS}, \
                 and no more than there are"
            );
        }
        let print =
            |data: &Dataset, examples: &Examples| json!([data.fingerprint(), of_targets(examples.targets.as_ref())]);
        let settings = [
            ("data", print(&dataset, &train)),
            ("eval-data", print(&held_out, &held_out_rows)),
            ("tokenizer", json!(tokenizer.fingerprint())),
            ("max-length", json!(tokenizer.max_length())),
            ("task", json!(labels.as_ref().map_or("language model".into(), |labels| format!("{labels:?}")))),
        ];
        Ok(Self { train, held_out: held_out_rows, labels, settings })
    }

    fn examples(data: &Dataset, labels: Option<&LabelSet>, tokenizer: &Tokenizer, quiet: bool) -> Result<Examples> {
        let Some(labels) = labels else {
            let tokens = lm_rows(tokenizer, data)?;
            Understood::of(data, &Use::Lm(&tokens), tokenizer)?.say(quiet);
            check_answers(&tokens, tokenizer, data)?;
            return Ok(Examples { tokens, targets: None });
        };
        Understood::of(data, &Use::Labels(labels), tokenizer)?.say(quiet);
        let targets = Some(labels.targets(data)?);
        let tokens = encode_all(tokenizer, data)?;
        Ok(Examples { tokens, targets })
    }
}

fn of_targets(targets: Option<&Targets>) -> [u32; 2] {
    match targets {
        None => [0, 0],
        Some(Targets::Classes(classes)) => fingerprint::of_numbers(classes.iter().map(|class| *class as u64)),
        Some(Targets::Sets(sets)) => fingerprint::of_sets(sets),
        Some(Targets::Scores(scores)) => fingerprint::of_numbers(scores.iter().map(|score| score.to_bits())),
    }
}

/// Everything that must be the same in all runs of a study.
fn settings(args: &CompareArgs, data: &Prepared, measuring: &MeasureOptions) -> Result<BTreeMap<String, Value>> {
    let limits = measuring.limits;
    let own = [
        ("model", json!(of_model(&args.model.path)?)),
        ("dtype", json!(format!("{:?}", args.compute.dtype).to_lowercase())),
        ("steps", json!(args.steps)),
        ("epochs", json!(args.epochs)),
        ("batch-size", json!(args.batch_size)),
        ("budget-rank", json!(args.budget_rank)),
        ("train-rows", json!(args.train_rows)),
        ("target-modules", json!(args.targets.target_modules)),
        match measuring.alpha {
            Alpha::Ratio(ratio) => ("alpha-ratio", json!(ratio)),
            Alpha::Fixed(alpha) => ("alpha", json!(alpha)),
        },
        ("samples", json!(args.measure.samples)),
        ("pool", json!(measuring.pool.name())),
        ("estimator", json!(measuring.estimator.to_string())),
        ("near-copies", json!(measuring.near_copies.to_string())),
        ("granularity", json!(measuring.granularity.name())),
        ("confidence", json!(measuring.confidence)),
        ("rounding", json!(measuring.rounding)),
        ("rank-limits", json!([Some(limits.min), args.measure.max_rank, Some(limits.multiple)])),
    ];
    Ok(own.into_iter().chain(data.settings.clone()).map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A hash of the model's weights and config.
fn of_model(model: &Path) -> Result<String> {
    Ok(blake3::Hash::from(hash_of_model(model)?).to_hex()[..16].to_owned())
}

fn show(args: &CompareArgs, out: &OutDir, comparison: &Comparison) -> Result<()> {
    if !args.table || out.path().is_dir() {
        out.write_json(TABLE_NAME, comparison)?;
        out.write(REPORT_NAME, report::compare::html(comparison, &args.model.name, &args.data.data).as_bytes())?;
    }
    if args.output.json {
        let json = serde_json::to_value(comparison)?;
        return Ok(ui::result(ui::with_warnings(json).to_string())?);
    }
    ui::result(comparison.text(TableStyle::of_stdout()))?;
    if !comparison.updates.is_empty() {
        let text = mechanism::text(&comparison.correlations, &comparison.updates, TableStyle::of_stdout());
        ui::result(format!("\n{text}"))?;
    }
    ui::note(
        args.output.quiet,
        format!(
            "written: {}/{{{RESULTS_NAME}, {STUDY_NAME}, {TABLE_NAME}, {REPORT_NAME}{}}}",
            args.out.display(),
            if comparison.updates.is_empty() { String::new() } else { format!(", {MECHANISM_NAME}") }
        ),
    );
    Ok(())
}
