//! Writes report.html and README.md of a finished training.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use anyhow::Result;
use gelora_lora::AdapterConfig;
use gelora_model::evaluate::Metrics;
use gelora_model::measure::ModuleRank;
use gelora_model::train::AdaLora;
use gelora_model::train::Best;
use gelora_model::{Batch, CausalLm, Event, Rows, TaskModel, Tokens, evaluate};

use super::eval;
use super::log::LOG;
use super::read_json;
use super::records::Predictions;
use crate::args::{DataArgs, TrainArgs};
use crate::card::{CARD_NAME, Card, CardData, CardTask, shell};
use crate::data::{Dataset, LabelSet};
use crate::history::History;
use crate::output::OutDir;
use crate::report::training::{HeldOut, TextRow, Training};
use crate::report::{RANKS_NAME, REPORT_NAME, RanksFile};
use crate::tokenize::Tokenizer;
use crate::understood::Understood;

/// Rows of a language model that are scored one by one, at least and at most.
const SCORED: [usize; 2] = [8, 64];
/// Rows of a language model that are shown.
const SHOWN: usize = 8;

/// A finished training.
pub struct Finished<'a> {
    pub args: &'a TrainArgs,
    pub out: &'a OutDir,
    /// None for a language model.
    pub labels: Option<&'a LabelSet>,
    pub tokenizer: &'a Tokenizer,
    pub data: (&'a Dataset, &'a Understood),
    pub held_out: Option<(&'a Dataset, &'a Understood, &'a dyn Rows)>,
    pub model: &'a TaskModel,
    pub modules: &'a BTreeMap<String, ModuleRank>,
    /// Number of parameters of the adapters.
    pub parameters: usize,
    /// Metrics of the written adapter.
    pub metrics: Option<&'a Metrics>,
    /// The config of the written adapter.
    pub config: &'a AdapterConfig,
    /// The best evaluation, if evaluations are compared.
    pub best: Option<&'a Best>,
    /// Predictions of some evaluations, among them that of the written adapter unless it was before this run.
    pub predictions: &'a [Rc<Predictions>],
}

impl Finished<'_> {
    /// Writes both files.
    ///
    /// # Errors
    /// Returns an error if metrics.jsonl or ranks.json cannot be read, a held-out row cannot be scored, or a file
    /// cannot be written.
    pub fn write(&self) -> Result<()> {
        let history = History::read(&self.out.file(LOG))?;
        let ranks = self.measured_ranks()?;
        let positive = self.labels.and_then(eval::positive_class);
        let named = |metrics: &Metrics| {
            metrics.iter().map(|(name, value)| (eval::metric_name(name, positive), *value)).collect()
        };
        let fingerprint = |dataset: &Dataset| {
            let [a, b] = dataset.fingerprint();
            format!("{a:08x}{b:08x}")
        };
        let kept = self.best.filter(|best| best.kept).map(|best| best.step);
        let step = self.metrics.and_then(|metrics| kept.or_else(|| evaluated_step(&history, metrics)));
        let (data, held_out_data) =
            (self.named(self.data.1), self.held_out.map(|(dataset, data, _)| (self.named(data), fingerprint(dataset))));
        let training = Training {
            model: self.args.model.name.display().to_string(),
            data: &data,
            fingerprint: fingerprint(self.data.0),
            held_out_data: held_out_data.as_ref().map(|(data, fingerprint)| (data, fingerprint.clone())),
            modules: self.modules,
            ranks: ranks.as_ref(),
            parameters: self.parameters,
            settings: settings(self.args, self.config, self.best, self.tokenizer),
            command: command(),
            history: &history,
            metrics: step.zip(self.metrics).map(|(step, metrics)| (step, named(metrics))),
            held_out: step.map(|step| self.held_out_rows(&history, step)).transpose()?.flatten(),
        };
        self.out.write(REPORT_NAME, training.html().as_bytes())?;
        self.out.write(CARD_NAME, self.card(&training).markdown().as_bytes())?;
        Ok(())
    }

    /// Returns the account of data with the path that was typed: an id on the hub instead of its place in the cache.
    fn named(&self, data: &Understood) -> Understood {
        let args = &self.args.data;
        let below = args.id.as_ref().and_then(|id| Some((id, Path::new(&data.data).strip_prefix(&args.data).ok()?)));
        let named = below.map(|(id, rest)| if rest == Path::new("") { id.clone() } else { id.join(rest) });
        Understood { data: named.map_or_else(|| data.data.clone(), |path| path.display().to_string()), ..data.clone() }
    }

    /// Returns the measurement behind the ranks, if there is one: of this training, or in the file of --ranks.
    fn measured_ranks(&self) -> Result<Option<RanksFile>> {
        if self.args.init_adapter.is_some() {
            return Ok(None);
        }
        let path = match (&self.args.rank, &self.args.ranks) {
            (Some(_), _) => return Ok(None),
            (None, None) => self.out.file(RANKS_NAME),
            (None, Some(path)) if path.is_dir() => path.join(RANKS_NAME),
            (None, Some(path)) => path.clone(),
        };
        // A file that was written by hand may hold the ranks alone.
        if read_json::<serde_json::Value>(&path)?.get("states").is_none() {
            return Ok(None);
        }
        read_json(&path).map(Some)
    }

    /// Returns what the adapter, evaluated after `step`, does on the held-out rows.
    fn held_out_rows(&self, history: &History, step: usize) -> Result<Option<HeldOut>> {
        let Some((dataset, _, rows)) = self.held_out else { return Ok(None) };
        // The model is that of the last step. The adapter may be that of an earlier one.
        let is_model_of_step = history.steps.last().is_none_or(|last| last.step == step);
        match (self.labels, self.model) {
            (Some(labels), _) => {
                let names = labels.names();
                let targets = labels.targets(dataset)?;
                if let Some(predictions) = self.predictions.iter().find(|predictions| predictions.step == step) {
                    return Ok(Some(HeldOut::of(dataset, names, &targets, &predictions.logits)));
                }
                // The evaluation was in a run before this one.
                if !is_model_of_step {
                    return Ok(None);
                }
                let logits = evaluate(self.model, rows, self.args.batch_size(), &mut |_: Event<'_>| ())?.logits;
                Ok(Some(HeldOut::of(dataset, names, &targets, &logits)))
            }
            (None, TaskModel::CausalLm(lm)) if is_model_of_step => {
                let trained = history.steps.len() * self.args.batch_size();
                Ok(Some(highest_losses(lm, rows, self.tokenizer, trained)?))
            }
            _ => Ok(None),
        }
    }

    fn card<'t>(&self, training: &'t Training<'t>) -> Card<'t> {
        let args = self.args;
        let (dataset, _) = self.data;
        let task = match self.labels {
            Some(LabelSet::Classes(labels)) => CardTask::Classification(labels.clone()),
            Some(LabelSet::Sets(sets)) => CardTask::MultiLabel(sets.names.clone()),
            Some(LabelSet::Scores) => CardTask::Regression,
            None if dataset.columns.is_chat => CardTask::LanguageModel { prompt: "--message" },
            None if dataset.columns.is_instruction => CardTask::LanguageModel { prompt: "--instruction" },
            None => CardTask::LanguageModel { prompt: "--prompt" },
        };
        let of_path = |path: &Path| CardData {
            path: path.to_owned(),
            eval_options: eval_options(&args.data),
            predict_options: predict_options(&args.data),
        };
        let typed = args.data.id.as_deref().unwrap_or(&args.data.data);
        let held_out = self.held_out.map(|_| of_path(args.eval_data.as_deref().unwrap_or(typed)));
        let mut train = of_path(typed);
        if args.data.data.is_dir() {
            train.predict_options.extend(["--split".to_owned(), "train".to_owned()]);
        }
        Card {
            training,
            task,
            model: args.model.name.clone(),
            revision: args.model.revision.clone(),
            is_on_hub: args.model.path != args.model.name,
            out: args.out.clone(),
            train,
            held_out,
            has_pairs: dataset.columns.pair.is_some(),
            max_length: self.tokenizer.max_length(),
        }
    }
}

/// Returns the step of the latest evaluation with these metrics. Numbers in JSON may differ in their last bit.
fn evaluated_step(history: &History, metrics: &Metrics) -> Option<usize> {
    let is_same = |logged: &[(String, Option<f64>)]| {
        metrics.iter().all(|(name, value)| {
            let logged =
                logged.iter().find(|(other, _)| other == name).map_or(f64::NAN, |(_, v)| v.unwrap_or(f64::NAN));
            (value - logged).abs() <= 1e-12 * value.abs() || (!value.is_finite() && logged.is_nan())
        })
    };
    history.evaluations.iter().rev().find(|evaluation| is_same(&evaluation.metrics)).map(|evaluation| evaluation.step)
}

/// Scores an even selection of rows one by one. Their number is bounded so that scoring takes about a hundredth of the
/// training, in which a row takes about three times as long.
fn highest_losses(lm: &CausalLm, rows: &dyn Rows, tokenizer: &Tokenizer, trained: usize) -> Result<HeldOut> {
    let [least, most] = SCORED;
    let scored = (3 * trained / 100).clamp(least, most).min(rows.len());
    let selected: Vec<usize> = (0..scored).map(|i| i * rows.len() / scored).collect();
    let mut worst = Vec::new();
    for tokens in rows.tokens(&selected)? {
        let (sum, count) = lm.loss(&Batch::of_tokens([&tokens])?, &tokens.targets)?;
        let (prompt, answer) = texts(&tokens, tokenizer);
        worst.push(TextRow { prompt, answer, loss: sum / count as f64, tokens: count });
    }
    worst.sort_by(|a, b| b.loss.total_cmp(&a.loss));
    worst.truncate(SHOWN);
    Ok(HeldOut::Texts { scored, of: rows.len(), worst })
}

/// Returns what precedes the first target of a row, and all of its targets.
fn texts(tokens: &Tokens, tokenizer: &Tokenizer) -> (String, String) {
    let first = tokens.targets.iter().position(|target| *target).unwrap_or(0);
    let targets = tokens.ids.iter().zip(&tokens.targets).filter(|(_, target)| **target).map(|(id, _)| *id);
    let text = |ids: &[u32]| tokenizer.decode(ids).unwrap_or_else(|_| format!("tokens {ids:?}"));
    (text(&tokens.ids[..first]), text(&targets.collect::<Vec<_>>()))
}

/// Returns every option of the training that the result depends on.
fn settings(
    args: &TrainArgs,
    config: &AdapterConfig,
    best: Option<&Best>,
    tokenizer: &Tokenizer,
) -> Vec<(&'static str, String)> {
    let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
    let length = match args.steps {
        Some(steps) => ("steps", steps.to_string()),
        None => ("epochs", args.epochs.to_string()),
    };
    let clip = if args.clip > 0.0 { args.clip.to_string() } else { "off".into() };
    let lora_plus = if args.lora_plus == 1.0 { "off".into() } else { args.lora_plus.to_string() };
    let value_name = |value: Option<clap::builder::PossibleValue>| value.map_or(String::new(), |v| v.get_name().into());
    let warmup =
        if args.warmup < 1.0 { ("warm-up, share of the steps", args.warmup) } else { ("warm-up steps", args.warmup) };
    let mut all = vec![
        ("peak learning rate", args.lr.to_string()),
        ("schedule after the warm-up", value_name(clap::ValueEnum::to_possible_value(&args.schedule))),
        (warmup.0, warmup.1.to_string()),
        length,
        ("batch size", args.batch_size().to_string()),
        ("micro-batches a step", args.accumulate.to_string()),
        ("optimizer", "AdamW".into()),
        ("weight decay", args.weight_decay.to_string()),
        ("largest gradient norm", clip),
        ("label smoothing", args.loss.label_smoothing.to_string()),
        ("LoRA dropout", config.lora_dropout.to_string()),
        ("rsLoRA", yes(config.use_rslora)),
        ("LoRA+ ratio", lora_plus),
        ("DoRA", yes(config.use_dora)),
        ("AdaLoRA", yes(args.adalora)),
        ("adapter kept", args.evaluation.keep().name().into()),
        ("max length", format!("{} tokens", tokenizer.max_length())),
        ("batches of similar length", yes(args.group_by_length)),
        ("dtype of frozen products", value_name(clap::ValueEnum::to_possible_value(&args.compute.dtype))),
        ("seed", args.seed.to_string()),
    ];
    if args.adalora {
        let adalora = AdaLora::from(&args.triplets);
        all.extend([
            ("AdaLoRA, ranks at the start", format!("{} times", adalora.start)),
            ("AdaLoRA, t_init", adalora.t_init.to_string()),
            ("AdaLoRA, t_final", adalora.t_final.to_string()),
            ("AdaLoRA, interval", adalora.interval.to_string()),
            ("AdaLoRA, weight of the penalty", adalora.orthogonality.to_string()),
        ]);
    }
    if let Some(weights) = &args.loss.class_weights {
        all.push(("class weights", weights.to_string()));
    }
    if let Some(folder) = &args.init_adapter {
        all.push(("trained on from", folder.display().to_string()));
    } else {
        all.push(("init", value_name(clap::ValueEnum::to_possible_value(&args.init))));
    }
    if let Some(best) = best {
        all.push(("evaluations compared by", best.metric.into()));
    }
    if let Some(every) = args.evaluation.eval_every {
        all.push(("evaluation every", every.to_string()));
    }
    if let Some(evaluations) = args.evaluation.patience {
        all.push(("patience, in evaluations", evaluations.to_string()));
    }
    all
}

/// Returns the command line of this process.
fn command() -> String {
    let arguments = std::env::args_os().skip(1).map(|argument| shell(&argument.to_string_lossy()));
    ["gelora".to_owned()].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
}

/// Returns the options of the data that `gelora eval` needs to read rows as the training did.
fn eval_options(data: &DataArgs) -> Vec<String> {
    let mut options = predict_options(data);
    for (name, value) in [("--answer-column", &data.answer_column), ("--label-column", &data.label_column)] {
        options.extend(value.iter().flat_map(|value| [name.to_owned(), value.clone()]));
    }
    if !data.label_columns.is_empty() {
        options.extend(["--label-columns".to_owned(), data.label_columns.join(",")]);
    }
    if let Some(separator) = &data.label_separator {
        options.extend(["--label-separator".to_owned(), separator.clone()]);
    }
    if data.dedup {
        options.push("--dedup".into());
    }
    options
}

/// Returns the options of the data that `gelora predict` needs to read rows as the training did.
fn predict_options(data: &DataArgs) -> Vec<String> {
    let delimiter = data.delimiter.map(|byte| if byte == b'\t' { "tab".into() } else { char::from(byte).to_string() });
    let mut options = Vec::new();
    let hub = &data.hub;
    for (name, value) in [
        ("--data-config", &hub.data_config),
        ("--data-revision", &hub.data_revision),
        ("--text-column", &data.text_column),
        ("--pair-column", &data.pair_column),
        ("--delimiter", &delimiter),
    ] {
        options.extend(value.iter().flat_map(|value| [name.to_owned(), value.clone()]));
    }
    if data.skip_bad_rows {
        options.push("--skip-bad-rows".into());
    }
    options
}
