//! Training: optimizer steps over rows, evaluation, checkpoints.
//!
//! One step on a batch, with lr_t the learning rate of [`linear_schedule`]:
//!
//! ```text
//! loss, g = mean over the rows of the batch, backward through every adapter and the head
//! g       = g min(1, clip / |g|)
//! theta   = AdamW(theta, g, lr_t)
//! ```
//!
//! With LoRA+ ([`TrainOptions::lora_plus`]), B has a multiple of lr_t.

mod checkpoint;
mod loader;
mod options;
mod sampler;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Instant;

use gelora_kernels::ops::adamw::AdamW;
use gelora_kernels::{DeviceKind, Pending, Tensor};
use gelora_lora::{Adapter, AdapterConfig};

use self::loader::StepRows;
use self::sampler::Sampler;
use crate::evaluate::evaluated;
use crate::event::{Reply, Report, report};
use crate::measure::adapter_config;
use crate::optim::{Optimizer, finite_norm, linear_schedule};
use crate::record::Metrics;
use crate::{AdapterTask, Error, Event, Grads, Mode, Result, Rows, TaskModel, Work};

pub use crate::record::StepRecord;
pub use options::{Checkpoints, Init, Length, TrainOptions};

/// Trains the adapters of a model, and its head if it has one.
pub struct Trainer<'a> {
    model: &'a mut TaskModel,
    rows: &'a dyn Rows,
    held_out: Option<&'a dyn Rows>,
    stop: Option<&'a AtomicBool>,
    options: TrainOptions,
    config: AdapterConfig,
    sampler: Sampler,
    /// Number of parameters of the adapters.
    parameters: usize,
    /// Time at which the last step finished.
    finished: Option<Instant>,
}

/// A step that was launched. On a GPU it may still be running.
struct Running {
    step: usize,
    lr: f64,
    /// Share of each micro-batch in the step's rows.
    shares: Vec<f64>,
    /// The gradient norm, and the loss of each micro-batch.
    values: Pending,
    tokens: usize,
    began: Instant,
}

impl fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trainer").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<'a> Trainer<'a> {
    /// Adds fresh adapters of the given ranks to the model. Without ranks a classifier's head is trained alone.
    ///
    /// # Errors
    /// Returns an error if an option is out of range, there are no rows, the labels do not fit the model's task, the
    /// ranks name a module that the model lacks, or PiSSA is asked for and a weight is quantized.
    pub fn new(model: &'a mut TaskModel, rows: &'a dyn Rows, options: TrainOptions) -> Result<Self> {
        options.check()?;
        if rows.is_empty() {
            return Err(Error::Value("there are no rows to train on".into()));
        }
        model.check_labels(rows.labels(), rows.len())?;
        let head_alone = options.ranks.is_empty() && model.adapter_task() == AdapterTask::SequenceClassification;
        let adapters = match head_alone {
            true => AdapterConfig::default(),
            false => adapter_config(model.transformer(), &options.ranks, model.adapter_task())?,
        };
        let config = AdapterConfig {
            lora_dropout: options.lora_dropout as f32,
            use_rslora: options.rslora,
            use_dora: options.dora,
            inference_mode: true,
            init_lora_weights: match options.init {
                Init::Lora => gelora_lora::Init::default(),
                Init::Pissa => gelora_lora::Init::Named(Init::Pissa.name().into()),
            },
            ..adapters
        };
        let parameters = if head_alone { 0 } else { model.add_adapters(&config, options.seed)? };
        let sampler = match options.group_by_length {
            true => Sampler::grouped(rows.lengths(), options.batch_size, options.seed),
            false => Sampler::shuffled(rows.len(), options.batch_size, options.seed),
        };
        Ok(Self { model, rows, held_out: None, stop: None, options, config, sampler, parameters, finished: None })
    }

    /// Sets rows that are evaluated after each epoch and at the end.
    #[must_use]
    pub fn with_held_out(self, rows: Option<&'a dyn Rows>) -> Self {
        Self { held_out: rows, ..self }
    }

    /// Sets a flag that ends the training. After the step during which it becomes true, a checkpoint is written, and
    /// [`run`](Self::run) returns [`Error::Interrupted`].
    #[must_use]
    pub fn with_stop(self, stop: &'a AtomicBool) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// Number of steps of the whole training run.
    pub fn steps(&self) -> usize {
        self.options.steps(self.rows.len())
    }

    /// Number of parameters of the adapters.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// The current adapters and head.
    pub fn adapter(&self) -> Adapter {
        self.model.adapter(self.config.clone())
    }

    /// The model in its current state.
    pub fn model(&self) -> &TaskModel {
        self.model
    }

    /// Trains to the end. Returns the metrics of the last evaluation, if there are held-out rows.
    ///
    /// # Errors
    /// Returns an error if a row cannot be tokenized, a gradient is not finite, a checkpoint cannot be written or does
    /// not fit, the device fails, the flag of [`with_stop`](Self::with_stop) is set, or `progress` returns an error.
    pub fn run<R: Reply>(&mut self, progress: &mut impl FnMut(Event<'_>) -> R) -> Result<Option<Metrics>> {
        let report: &mut Report<'_> = &mut report(progress);
        let settings = AdamW { weight_decay: self.options.weight_decay as f32, ..AdamW::default() };
        let clip = self.options.clip;
        let mut optimizer = Optimizer::new(settings, (clip > 0.0).then_some(clip));
        optimizer.lora_plus = Some(self.options.lora_plus).filter(|ratio| *ratio != 1.0);
        let first = match self.options.checkpoints.clone() {
            Some(checkpoints) if checkpoints.resume => self.restore(&checkpoints, &mut optimizer)?,
            // The first checkpoint of this training replaces that of an earlier one.
            _ => 0,
        };
        let (total, rows, sampler) = (self.steps(), self.rows, self.sampler.clone());
        thread::scope(|scope| {
            let batches = loader::start(rows, &sampler, scope, first..total);
            self.run_steps(first..total, &batches, &mut optimizer, report)
        })
    }

    /// Runs these steps on the rows that the loader sends.
    fn run_steps(
        &mut self,
        steps: Range<usize>,
        batches: &Receiver<Result<StepRows>>,
        optimizer: &mut Optimizer,
        report: &mut Report<'_>,
    ) -> Result<Option<Metrics>> {
        let (total, epoch) = (steps.end, self.sampler.steps());
        let checkpoints = self.options.checkpoints.clone();
        report(Event::Training { first: steps.start, total })?;
        report(Event::Began { work: Work::Training, units: steps.len() })?;
        let (mut metrics, mut running) = (None, None);
        let on_cpu = self.model.transformer().device().kind() == DeviceKind::Cpu;
        for step in steps {
            let rows = batches
                .recv()
                .map_err(|_| Error::Value("the loader ended before the rows of the next step".into()))??;
            let previous = running.replace(self.launch(&rows, step, optimizer)?);
            let (is_last, ends_epoch) = (step + 1 == total, (step + 1) % epoch == 0);
            let is_stopped = !is_last && self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
            let is_due = |c: &&Checkpoints| is_stopped || (step + 1).is_multiple_of(c.every.unwrap_or(epoch));
            let checkpoint = checkpoints.as_ref().filter(|_| !is_last).filter(is_due);
            // A GPU computes this step while the host reads the loss of the previous step and prepares the next one.
            let waits_for_step = on_cpu || is_last || ends_epoch || is_stopped || checkpoint.is_some();
            let now = if waits_for_step { running.take() } else { None };
            for launched in previous.into_iter().chain(now) {
                let record = self.finish(launched)?;
                report(Event::Step(&record))?;
                report(Event::Advanced { units: 1 })?;
            }
            if let Some(rows) = self.held_out.filter(|_| is_last || ends_epoch) {
                let found = evaluated(self.model, rows, self.options.batch_size, report)?.metrics;
                report(Event::Evaluated { step: step + 1, metrics: &found })?;
                metrics = Some(found);
            }
            if let Some(checkpoint) = checkpoint {
                report(Event::Checkpoint { step: step + 1, folder: &checkpoint.folder })?;
                self.write_checkpoint(checkpoint, step + 1, optimizer)?;
            }
            report(Event::StepEnded)?;
            if is_stopped {
                report(Event::Finished { work: Work::Training })?;
                return Err(Error::Interrupted { step: step + 1, steps: total });
            }
        }
        report(Event::Finished { work: Work::Training })?;
        Ok(metrics)
    }

    /// Launches one optimizer step on these rows.
    fn launch(&mut self, rows: &StepRows, step: usize, optimizer: &mut Optimizer) -> Result<Running> {
        let (total, began) = (self.steps(), Instant::now());
        let &TrainOptions { lr, warmup, accumulate, seed, checkpoint_activations, .. } = &self.options;
        let lr = lr * linear_schedule(step, total, warmup * total as f64);
        let (mut grads, mut shares, mut losses) = (Grads::new(), Vec::new(), Vec::new());
        let tokens = rows.tokens.iter().map(|row| row.ids.len()).sum();
        let size = rows.indices.len().div_ceil(accumulate);
        // Sum the gradients of all micro-batches, each weighted by its share of the step.
        for (part, (indices, encoded)) in rows.indices.chunks(size).zip(rows.tokens.chunks(size)).enumerate() {
            let share = self.model.weight(encoded) as f64 / self.model.weight(&rows.tokens) as f64;
            let mode = Mode::training(seed, (step * accumulate + part) as u64);
            let mode = if checkpoint_activations { mode.recomputing() } else { mode };
            shares.push(share);
            let labels = self.rows.labels();
            losses.push(self.model.backward((indices, encoded), labels, &mode, share as f32, &mut grads)?);
        }
        // Clip and update. The norm and the losses stay on the device until `finish`.
        let norm = optimizer.step(self.model.parameters_mut(), &grads, lr as f32)?;
        let outputs: Vec<&Tensor> = [&norm].into_iter().chain(&losses).collect();
        Ok(Running { step, lr, shares, values: Pending::read(&outputs)?, tokens, began })
    }

    /// Waits for a step to finish. Returns its record.
    fn finish(&mut self, launched: Running) -> Result<StepRecord> {
        let Running { step, lr, shares, values, tokens, began } = launched;
        let mut values = values.wait()?.into_iter().flatten();
        let grad_norm = finite_norm(values.next().unwrap_or(f32::NAN), step as u64 + 1)?;
        let loss: f64 = shares.iter().zip(values).map(|(share, part)| share * f64::from(part)).sum();
        let now = Instant::now();
        let seconds = now.duration_since(self.finished.map_or(began, |before| before.max(began))).as_secs_f64();
        self.finished = Some(now);
        Ok(StepRecord {
            step: step + 1,
            epoch: (step + 1) as f64 / self.sampler.steps() as f64,
            loss,
            lr,
            grad_norm,
            ms: seconds * 1e3,
            tokens_per_s: (tokens as f64 / seconds).round(),
            tokens,
        })
    }
}
