//! `gelora rank`: measures the ranks, and writes them with the measurements that they come from.

use anyhow::{Context, Result};
use gelora_lora::CONFIG_NAME;
use gelora_model::measure::adapter_config;
use gelora_model::{AdapterTask, LM_MAX_LENGTH, MeasureOptions, Transformer, is_language_model};

use super::alike;
use super::measuring::Measuring;
use super::{check_max_length, check_not_input, open_device, open_tokenizer, read_options};
use crate::args::RankArgs;
use crate::data::{self, Aim, Dataset, LabelSet, ReadOptions};
use crate::launch::Group;
use crate::output::OutDir;
use crate::profile::mark;
use crate::report::{self, RANKS_NAME, REPORT_NAME, RanksFile, Serve, text};
use crate::tokenize::Tokenizer;
use crate::understood::{Understood, Use};
use crate::{distinct, ui};

const PROFILE_NAME: &str = "id_profile.svg";

pub fn run(args: &RankArgs, group: &Group) -> Result<()> {
    let options = MeasureOptions { processes: group.processes.clone(), ..args.options()? };
    let out = OutDir::prepare(&args.out, &[RANKS_NAME, CONFIG_NAME, PROFILE_NAME, REPORT_NAME], "--out")?;
    let needs_labels = options.policy.needs_labels();
    let read_options =
        ReadOptions { labels_do_not_matter: !needs_labels, ..read_options(&args.data, Aim::Any, &args.output) };
    let mut dataset = data::read(&args.data.data, None, &read_options)?;
    mark("data read");
    // Load the model; it tells whether rows are read as a language model's.
    let mut model = Transformer::load(&args.model.path)?;
    model.set_name(args.model.name.display().to_string());
    model.compute_in(args.compute.dtype.into())?;
    let device = open_device(args.compute.device)?;
    model.move_to(&device)?;
    mark("model loaded");
    let config = model.config();
    let is_lm = config.causal && is_language_model(config, dataset.labeled() > 0, dataset.has_answers());
    if is_lm && dataset.has_answers() {
        dataset.take_answers()?;
    } else {
        dataset.take_texts();
    }
    check_max_length(args.data.max_length, config)?;
    // Measure on the tokens that the model would be trained on, so use the length limit of training.
    let max_length = args.data.max_length.or(is_lm.then_some(LM_MAX_LENGTH));
    let tokenizer = open_tokenizer(&args.model.path, max_length, config)?;
    // A policy for steps says what the labels are if it can; one for single modules needs them.
    let labels = if is_lm { None } else { Some(data::labels(&[&dataset], None)) };
    let labels = match (labels, args.policy.policy) {
        (Some(labels), Some(policy)) if needs_labels => {
            Some(labels.with_context(|| format!("--policy {} needs labels", policy.name()))?)
        }
        (labels, _) => labels.and_then(Result::ok),
    };
    let understood = understood(&dataset, labels.as_ref(), &tokenizer, is_lm)?;
    understood.say(args.output.quiet);
    distinct::check(&dataset, understood.distinct)?;
    mark("tokenizer loaded");
    if let Some(path) = &args.points {
        check_not_input(path, "--points", &[&args.model.path, &dataset.path])?;
    }
    alike::check_inputs(group, &args.model.path, [&dataset], &tokenizer, &device)?;
    let all_options = format!("{:?} {:?} {:?} {:?}", args.policy, args.measure, args.targets, args.compute);
    group.processes.check_same("the options of the command line", Some(all_options.as_bytes()))?;
    let measuring = Measuring {
        model: &model,
        dataset: &dataset,
        tokenizer: &tokenizer,
        labels: labels.as_ref(),
        samples: args.measure.samples,
        quiet: args.output.quiet,
    };
    let ranks = measuring.ranks(&options, args.points.as_deref())?;
    // The first process has the ranks.
    let Some(ranks) = ranks else { return Ok(()) };
    // Write ranks.json, the PEFT config, the picture and the report.
    let serve = args.serve.map(|server| Serve::new(server, &ranks)).transpose()?;
    let data = dataset.path.display().to_string();
    let ranks = RanksFile { data, dataset: Some(understood), ranks, serve };

    out.write_json(RANKS_NAME, &ranks)?;
    let task = if is_lm { AdapterTask::CausalLm } else { AdapterTask::SequenceClassification };
    adapter_config(&model, &ranks.module_ranks(), task)?.write(&out.file(CONFIG_NAME))?;
    out.write(PROFILE_NAME, text::profile(&ranks)?.as_bytes())?;
    out.write(REPORT_NAME, report::html(&ranks).as_bytes())?;
    // Print the tables.
    if args.output.json {
        return Ok(ui::result(serde_json::to_string(&ranks)?)?);
    }
    ui::result(text::table(&ranks))?;
    ui::result(format!("\n{}", text::policies(&ranks)))?;
    if ranks.stability.is_some() {
        ui::result(format!("\n{}", text::stability(&ranks)))?;
    }
    ui::result(format!("\n{}", text::summary(&ranks)))?;
    ui::note(
        args.output.quiet,
        format!("written: {}/{{{RANKS_NAME}, {REPORT_NAME}, {CONFIG_NAME}, {PROFILE_NAME}}}", args.out.display()),
    );
    Ok(())
}

/// Returns the account of the data, with the task that the labels suggest.
fn understood(dataset: &Dataset, labels: Option<&LabelSet>, tokenizer: &Tokenizer, is_lm: bool) -> Result<Understood> {
    let used = labels.map_or(Use::Texts, Use::Labels);
    let mut understood = Understood::of(dataset, &used, tokenizer)?;
    if is_lm {
        understood.task = "language model".into();
    }
    Ok(understood)
}
