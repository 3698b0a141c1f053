//! The loop of `gelora train`: steps, the log, checkpoints.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{LineWriter, Write};
use std::ops::Range;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use gelora_kernels::ops::adamw::AdamW;
use gelora_kernels::{DType, DeviceKind, Pending, Tensor};
use gelora_lora::{Adapter, AdapterConfig};
use gelora_model::optim::{Optimizer, finite_norm, linear_schedule};
use gelora_model::{Grads, Pass};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::learner::Learner;
use super::prefetch::{Rows, Source};
use super::read_json;
use crate::args::TrainArgs;
use crate::data::Targets;
use crate::fingerprint;
use crate::output::OutDir;
use crate::profile;
use crate::ui::{self, Progress};

/// Folder of the latest checkpoint inside OUT, and its file that is written last.
pub const CHECKPOINT: &str = "checkpoint";
const STATE: &str = "state.json";
/// The log: a line a step, and one an evaluation.
pub const LOG: &str = "metrics.jsonl";

/// What is measured on held-out data, if there is any.
type Scores = Option<Vec<(&'static str, f64)>>;

/// What training needs, read and checked.
pub struct Trainer<'a> {
    pub args: &'a TrainArgs,
    pub out: &'a OutDir,
    pub config: AdapterConfig,
    pub learner: Learner,
    pub source: &'a Source,
    /// When the last step was finished.
    pub finished: Option<Instant>,
}

/// A step that was launched; on a GPU it may still run.
struct Running {
    step: usize,
    lr: f64,
    /// Shares of the rows of its parts.
    shares: Vec<f64>,
    /// The norm of the gradients, and the loss of each part.
    values: Pending,
    tokens: usize,
    began: Instant,
}

/// Where a checkpoint was taken, and what must be the same to go on from it.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: usize,
    /// Folder inside the checkpoint with adapter and optimiser of this step.
    files: String,
    /// Everything that the result depends on.
    settings: BTreeMap<String, Value>,
}

impl Trainer<'_> {
    /// Steps of the whole training.
    pub fn total(&self) -> usize {
        let per_epoch = self.source.len() as f64 / self.args.batch_size as f64;
        self.args.steps.unwrap_or_else(|| ((per_epoch * self.args.epochs).ceil() as usize).max(1))
    }

    /// Trains to the end; calls `evaluate` after each epoch and at the end, for the numbers that go into the log.
    pub fn run(&mut self, mut evaluate: impl FnMut(&Learner) -> Result<Scores>) -> Result<Scores> {
        let args = self.args;
        let settings = AdamW { weight_decay: args.weight_decay as f32, ..AdamW::default() };
        let mut optimizer = Optimizer::new(settings, (args.clip > 0.0).then_some(args.clip));
        let first = if args.resume {
            self.restore(&mut optimizer)?
        } else {
            // A checkpoint of an earlier training must not be taken for one of this.
            let _ = fs::remove_dir_all(self.out.file(CHECKPOINT));
            0
        };
        let (total, source) = (self.total(), self.source);
        thread::scope(|scope| {
            let batches = source.start(scope, first..total);
            self.steps(first..total, &batches, &mut optimizer, &mut evaluate)
        })
    }

    /// Trains these steps on the rows that come in.
    fn steps(
        &mut self,
        steps: Range<usize>,
        batches: &Receiver<Result<Rows>>,
        optimizer: &mut Optimizer,
        evaluate: &mut dyn FnMut(&Learner) -> Result<Scores>,
    ) -> Result<Scores> {
        let (args, total, epoch) = (self.args, steps.end, self.source.order.steps());
        let mut log = self.open_log(steps.start)?;
        let progress = Progress::new(args.output.quiet, "train", steps.len() as u64);
        let (mut last_scores, mut running) = (None, None);
        let on_cpu = self.learner.transformer().device().kind() == DeviceKind::Cpu;
        for step in steps {
            let rows = batches.recv().context("the rows of the next step")??;
            let before = running.replace(self.step(&rows, step, optimizer)?);
            let (end, epoch_ends) = (step + 1 == total, (step + 1) % epoch == 0);
            let checkpoint = !end && (step + 1) % args.checkpoint_every.unwrap_or(epoch) == 0;
            // A GPU computes this step while the host reads the loss of the one before and prepares the next.
            let now = if on_cpu || end || epoch_ends || checkpoint { running.take() } else { None };
            for done in before.into_iter().chain(now) {
                let loss = self.finish(done, epoch, &mut log)?;
                progress.message(format!("loss {loss:.4}"));
                progress.inc(1);
            }
            if end || epoch_ends {
                last_scores = evaluate(&self.learner)?;
                if let Some(scores) = &last_scores {
                    let named: serde_json::Map<_, _> = scores.iter().map(|(n, v)| (n.to_string(), json!(v))).collect();
                    writeln!(log, "{}", json!({"step": step + 1, "eval": named}))?;
                    let text: Vec<String> = scores.iter().map(|(n, v)| format!("{n} {v:.4}")).collect();
                    ui::note(args.output.quiet, format!("step {}: {}", step + 1, text.join(", ")));
                }
            }
            if checkpoint {
                log.flush().with_context(|| self.out.file(LOG).display().to_string())?;
                self.checkpoint(step + 1, optimizer)?;
            }
            profile::skip();
        }
        log.flush().with_context(|| self.out.file(LOG).display().to_string())?;
        progress.finish();
        Ok(last_scores)
    }

    /// One optimiser step on these rows.
    fn step(&mut self, rows: &Rows, step: usize, optimizer: &mut Optimizer) -> Result<Running> {
        let (args, total, began) = (self.args, self.total(), Instant::now());
        let lr = args.lr * linear_schedule(step, total, args.warmup * total as f64);
        let (mut grads, mut shares, mut losses, mut tokens) = (Grads::new(), Vec::new(), Vec::new(), 0);
        let size = rows.indices.len().div_ceil(args.accumulate);
        for (part, (indices, encoded)) in rows.indices.chunks(size).zip(rows.tokens.chunks(size)).enumerate() {
            let share = self.learner.weight(encoded) as f64 / self.learner.weight(&rows.tokens) as f64;
            let batch = super::batch(encoded)?;
            tokens += batch.ids().len();
            let pass = Pass::training(args.seed, (step * args.accumulate + part) as u64);
            let pass = if args.checkpoint_activations { pass.recomputing() } else { pass };
            shares.push(share);
            losses.push(self.learner.backward((indices, encoded), &batch, &pass, share as f32, &mut grads)?);
        }
        let norm = optimizer.step(self.learner.parameters_mut(), &grads, lr as f32)?;
        let wanted: Vec<&Tensor> = [&norm].into_iter().chain(&losses).collect();
        Ok(Running { step, lr, shares, values: Pending::read(&wanted)?, tokens, began })
    }

    /// Waits for a step and logs it; its mean loss.
    fn finish(&mut self, done: Running, steps_an_epoch: usize, log: &mut impl Write) -> Result<f64> {
        let Running { step, lr, shares, values, tokens, began } = done;
        let mut values = values.wait()?.into_iter().flatten();
        let norm = finite_norm(values.next().unwrap_or(f32::NAN), step as u64 + 1)?;
        let loss: f64 = shares.iter().zip(values).map(|(share, of_part)| share * f64::from(of_part)).sum();
        let now = Instant::now();
        let seconds = now.duration_since(self.finished.map_or(began, |before| before.max(began))).as_secs_f64();
        self.finished = Some(now);
        let line = json!({"step": step + 1, "epoch": (step + 1) as f64 / steps_an_epoch as f64, "loss": loss, "lr": lr,
            "grad_norm": norm, "ms": seconds * 1e3, "tokens_per_s": (tokens as f64 / seconds).round()});
        writeln!(log, "{line}").with_context(|| self.out.file(LOG).display().to_string())?;
        profile::step(tokens);
        Ok(loss)
    }

    /// The trained adapter and head.
    pub fn adapter(&self) -> Adapter {
        self.learner.adapter(self.config.clone())
    }

    /// A new folder of files, then the state that names it, then away with the old: at no time is there no checkpoint.
    fn checkpoint(&self, step: usize, optimizer: &Optimizer) -> Result<()> {
        let folder = self.out.file(CHECKPOINT);
        let files = format!("step-{step}");
        let path = folder.join(&files);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        self.adapter().write(&path)?;
        optimizer.save(&path.join("optimizer.safetensors"))?;
        crate::output::write_json(&folder.join(STATE), &self.state(step, files.clone())?)?;
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())?.flatten() {
            if entry.path().is_dir() && entry.file_name() != *files {
                // An old checkpoint that stays costs space, nothing else.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    fn state(&self, step: usize, files: String) -> Result<State> {
        let a = self.args;
        let Source { dataset, tokenizer, .. } = self.source;
        let labels = match &self.learner {
            Learner::Classifier(_, Targets::Classes(all)) => {
                fingerprint::of_numbers(all.iter().map(|class| *class as u64))
            }
            Learner::Classifier(_, Targets::Scores(all)) => {
                fingerprint::of_numbers(all.iter().map(|score| score.to_bits()))
            }
            Learner::Lm(_) => [0, 0],
        };
        let settings = json!({
            "model": a.model.name, "adapter": serde_json::to_value(&self.config)?, "steps": self.total(),
            "task": self.learner.task(), "data": dataset.fingerprint(), "labels": labels,
            "tokenizer": tokenizer.fingerprint(), "max-length": tokenizer.max_length(), "seed": a.seed,
            "group-by-length": a.group_by_length, "batch-size": a.batch_size, "accumulate": a.accumulate, "lr": a.lr,
            "warmup": a.warmup, "weight-decay": a.weight_decay, "clip": a.clip,
            "dtype": DType::from(a.compute.dtype).to_string(),
        });
        Ok(State { step, files, settings: serde_json::from_value(settings)? })
    }

    fn restore(&mut self, optimizer: &mut Optimizer) -> Result<usize> {
        let folder = self.out.file(CHECKPOINT);
        let path = folder.join(STATE);
        if !path.is_file() {
            bail!("--resume: {} is missing; there is no checkpoint to go on from", path.display());
        }
        let state: State = read_json(&path)?;
        let expected = self.state(state.step, state.files.clone())?.settings;
        if let Some((name, now)) = expected.iter().find(|(name, now)| state.settings.get(*name) != Some(*now)) {
            let then = state.settings.get(name).unwrap_or(&Value::Null);
            let shown = path.display();
            bail!("--resume: {shown} is of a training with another {name} ({then}; now it is {now})");
        }
        let files = folder.join(&state.files);
        let device = self.learner.transformer().device().clone();
        self.learner.reload(&self.args.model.path, Adapter::read(&files)?)?;
        self.learner.prepare(self.args.compute.dtype.into(), &device)?;
        optimizer.restore(&files.join("optimizer.safetensors"), state.step as u64, &device)?;
        ui::note(self.args.output.quiet, format!("going on from step {} of {}", state.step, self.total()));
        Ok(state.step)
    }

    /// The log, cut back to the lines of steps that are not run again.
    fn open_log(&self, first: usize) -> Result<LineWriter<File>> {
        let path = self.out.file(LOG);
        let mut kept = String::new();
        if first > 0 && path.is_file() {
            for line in fs::read_to_string(&path).with_context(|| path.display().to_string())?.lines() {
                let step = serde_json::from_str(line).ok().and_then(|v: Value| v["step"].as_u64());
                if step.is_some_and(|s| s as usize <= first) {
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
        }
        gelora_lora::files::write_atomic(&path, kept.as_bytes())?;
        let file = File::options().append(true).open(&path).with_context(|| path.display().to_string())?;
        Ok(LineWriter::new(file))
    }
}
