//! `gelora rank`: measures the ranks, and writes them with the measurements that they come from.

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_lora::{CONFIG_NAME, files};
use gelora_model::measure::{Ranks, TargetModules, adapter_config, measure_points, pooled_states, sample};
use gelora_model::{AdapterTask, LM_MAX_LENGTH, MeasureOptions, Transformer, is_language_model};

use super::alike;
use super::rows::encode_rows;
use super::screen::Screen;
use super::{check_max_length, check_not_input, open_device, open_tokenizer, read_options};
use crate::args::RankArgs;
use crate::data::{self, Aim, Dataset, ReadOptions};
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
    let read_options_without_labels =
        ReadOptions { labels_do_not_matter: true, ..read_options(&args.data, Aim::Any, &args.output) };
    let mut dataset = data::read(&args.data.data, None, &read_options_without_labels)?;
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
    let understood = understood(&dataset, &tokenizer, is_lm)?;
    understood.say(args.output.quiet);
    distinct::check(&dataset, understood.distinct)?;
    mark("tokenizer loaded");
    if let Some(path) = &args.points {
        check_not_input(path, "--points", &[&args.model.path, &dataset.path])?;
    }
    alike::check_inputs(group, &args.model.path, [&dataset], &tokenizer, &device)?;
    let all_options = format!("{:?} {:?} {:?} {:?}", args.policy, args.measure, args.targets, args.compute);
    group.processes.check_same("the options of the command line", Some(all_options.as_bytes()))?;
    let ranks = measure_ranks(
        &model,
        &dataset,
        &tokenizer,
        args.measure.samples,
        &options,
        args.points.as_deref(),
        args.output.quiet,
    )?;
    // The first process has the ranks.
    let Some(ranks) = ranks else { return Ok(()) };
    // Write ranks.json, the PEFT config, the picture and the report.
    let serve = args.serve.map(|server| Serve::new(server, &ranks)).transpose()?;
    let data = dataset.path.display().to_string();
    let ranks = RanksFile { data, dataset: Some(understood), ranks, serve };

    out.write_json(RANKS_NAME, &ranks)?;
    let task = if is_lm { AdapterTask::CausalLm } else { AdapterTask::SequenceClassification };
    adapter_config(&model, &ranks.modules, task)?.write(&out.file(CONFIG_NAME))?;
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

/// Measures ranks on a sample of the data, as `train` does too. Writes the points to `points_file` if it is given.
/// Several processes share the forward pass; the first one estimates the dimensions, and the others return None.
pub fn measure_ranks(
    model: &Transformer,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    samples: usize,
    options: &MeasureOptions,
    points_file: Option<&Path>,
    quiet: bool,
) -> Result<Option<Ranks>> {
    let (infos, layers) = (model.linear_infos(), model.config().layers);
    TargetModules::new(&infos, layers, options.granularity, &options.target_modules).context("--target-modules")?;
    let rows = sample(dataset.examples.len(), samples, options.seed);
    if rows.len() < 3 {
        bail!("{}: {} rows; two nearest neighbors need at least 3", dataset.path.display(), rows.len());
    }
    let tokens = encode_rows(tokenizer, dataset, &rows)?;
    mark("tokenized");
    let mut screen = Screen::new(quiet);
    let mut progress = |event: gelora_model::Event<'_>| screen.show(event);
    // Run the model, then estimate dimensions and assign ranks.
    let points = pooled_states(model, &tokens, options, &mut progress)?;
    if !options.processes.is_first() {
        return Ok(None);
    }
    if let Some(path) = points_file {
        files::write_tensors(path, points.iter().enumerate().map(|(s, t)| (format!("layer_{s}"), t)))?;
    }
    let mut ranks = match measure_points(model, points, options, &mut progress) {
        Err(gelora_model::Error::NoPlateau) => {
            bail!("--scale plateau: the dimension of no state has a plateau; --scale all takes all examples")
        }
        other => other?,
    };
    mark("stability");
    text::advise(&mut ranks, dataset.examples.len());
    Ok(Some(ranks))
}

/// Returns the account of the data, with the task that the labels suggest.
fn understood(dataset: &Dataset, tokenizer: &Tokenizer, is_lm: bool) -> Result<Understood> {
    let labels = if is_lm { None } else { data::labels(&[dataset], None).ok() };
    let used = labels.as_ref().map_or(Use::Texts, Use::Labels);
    let mut understood = Understood::of(dataset, &used, tokenizer)?;
    if is_lm {
        understood.task = "language model".into();
    }
    Ok(understood)
}
