//! The steps of a training, with what comes after each: records, evaluations, checkpoints.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use gelora_kernels::ops::adamw::Clip;
use gelora_kernels::{DeviceKind, Pending, Tensor};

use super::loader::StepRows;
use super::options::Checkpoints;
use super::parts::{self, Part};
use super::schedule::{Interval, warmup_steps};
use super::{StepRecord, TrainOptions, Trainer};
use crate::evaluate::evaluated;
use crate::event::Report;
use crate::optim::{Optimizer, finite_norm};
use crate::record::Metrics;
use crate::{Error, Event, Grads, Mode, Result, Tokens, Work};

/// A step that was launched. On a GPU it may still be running.
pub(super) struct Running {
    step: usize,
    lr: f64,
    /// Share of each micro-batch in the step's rows.
    shares: Vec<f64>,
    /// The gradient norm, the loss of each micro-batch, and penalties.
    values: Pending,
    /// What the sum of the penalties is multiplied by in the loss.
    penalty: f64,
    tokens: usize,
    began: Instant,
}

impl Trainer<'_> {
    /// Runs these steps on the rows that the loader sends.
    pub(super) fn run_steps(
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
            let mut is_last = step + 1 == total;
            let held_out = self.held_out.filter(|_| is_last || self.evaluates_after(step + 1, epoch));
            let mut is_stopped = self.stops_now();
            let is_due = |c: &&Checkpoints| (step + 1).is_multiple_of(c.every.unwrap_or(epoch));
            let is_checkpoint = checkpoints.as_ref().is_some_and(|c| is_due(&c));
            // A GPU computes this step while the host reads the loss of the previous step and prepares the next one.
            let waits_for_step = on_cpu || is_last || held_out.is_some() || is_stopped || is_checkpoint;
            let now = if waits_for_step { running.take() } else { None };
            for launched in previous.into_iter().chain(now) {
                let record = self.finish(launched)?;
                report(Event::Step(&record))?;
                report(Event::Advanced { units: 1 })?;
            }
            if let Some(rows) = held_out {
                let found = evaluated(self.model, rows, self.options.batch_size, &self.options.processes, report)?;
                report(Event::Evaluated { step: step + 1, metrics: &found.metrics, logits: &found.logits })?;
                is_last |= self.compare(step + 1, &found.metrics)?;
                is_stopped = self.stops_now();
                metrics = Some(found.metrics);
            }
            let checkpoint = checkpoints.as_ref().filter(|c| !is_last && (is_stopped || is_due(c)));
            if let Some(checkpoint) = checkpoint {
                report(Event::Checkpoint { step: step + 1, folder: &checkpoint.folder })?;
                self.write_checkpoint(checkpoint, step + 1, optimizer)?;
                if is_stopped {
                    // No process ends before the checkpoint is written.
                    self.options.processes.barrier()?;
                }
            }
            report(Event::StepEnded)?;
            if is_last {
                self.check_same_parameters(step + 1)?;
                report(Event::Finished { work: Work::Training })?;
                return self.end(step + 1, metrics, report);
            }
            if is_stopped {
                report(Event::Finished { work: Work::Training })?;
                return Err(Error::Interrupted { step: step + 1, steps: total });
            }
        }
        Err(Error::Value("a training needs at least one step".into()))
    }

    /// Whether the training stops after this step. Several processes agree on that when they gather the gradients.
    fn stops_now(&self) -> bool {
        if self.options.processes.is_alone() { self.is_asked_to_stop() } else { self.stops }
    }

    fn is_asked_to_stop(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    fn evaluates_after(&self, step: usize, epoch: usize) -> bool {
        self.options.eval_every.unwrap_or(Interval::Epochs(1.0)).is_due(step, epoch)
    }

    /// Compares an evaluation with the best one. Returns whether the training should end.
    fn compare(&mut self, step: usize, metrics: &Metrics) -> Result<bool> {
        // Before the ranks are settled there are more of them than are kept.
        if self.allocator.as_ref().is_some_and(|allocator| !allocator.is_settled(step)) {
            return Ok(false);
        }
        let Some(mut watch) = self.watch.take() else { return Ok(false) };
        let ends = watch.compare(step, metrics, || self.current());
        self.watch = Some(watch);
        ends
    }

    /// Reports which evaluation was the best. Returns the metrics of the adapter that is kept.
    fn end(&self, last: usize, metrics: Option<Metrics>, report: &mut Report<'_>) -> Result<Option<Metrics>> {
        let Some(watch) = &self.watch else { return Ok(metrics) };
        match watch.best(last) {
            Some(best) => report(Event::Best(&best))?,
            None => report(Event::Warning(&format!(
                "no evaluation has a number as {}; the adapter is that of the last step",
                watch.metric()
            )))?,
        }
        Ok(watch.kept().map(|(_, metrics)| metrics.clone()).or(metrics))
    }

    /// Launches one optimizer step on these rows.
    pub(super) fn launch(&mut self, rows: &StepRows, step: usize, optimizer: &mut Optimizer) -> Result<Running> {
        let (total, began) = (self.steps(), Instant::now());
        let &TrainOptions { lr, schedule, warmup, accumulate, seed, checkpoint_activations, .. } = &self.options;
        let lr = lr * schedule.factor(step, total, warmup_steps(warmup, total));
        let (labels, all) = (self.rows.labels(), (&rows.indices[..], &rows.tokens[..]));
        let (mut grads, mut shares, mut losses) = (Grads::new(), Vec::new(), Vec::new());
        let tokens_of = |rows: &[Tokens]| rows.iter().map(|row| row.ids.len()).sum();
        let (mut tokens, share) = (tokens_of(&rows.tokens), self.share());
        let size = share.size(rows.indices.len());
        let parts: Vec<_> = rows.indices.chunks(size).zip(rows.tokens.chunks(size)).collect();
        for part in &parts {
            shares.push(self.model.weight(*part, labels) / self.model.weight(all, labels));
        }
        // Compute the gradients of each part of this process, weighted by the part's share of the step.
        let processes = share.processes;
        let mut mine = Vec::new();
        for part in processes.share(parts.len()) {
            let mode = Mode::training(seed, (step * accumulate + part) as u64);
            let mode = if checkpoint_activations { mode.recomputing() } else { mode };
            let mut of_part = Grads::new();
            let loss = self.model.backward(parts[part], labels, &mode, shares[part] as f32, &mut of_part)?;
            match processes.is_alone() {
                true => {
                    parts::add(&mut grads, of_part)?;
                    losses.push(loss);
                }
                false => mine.push(Part { grads: of_part, loss, tokens: tokens_of(parts[part].1) }),
            }
        }
        if !processes.is_alone() {
            let (stops, device) = (self.is_asked_to_stop(), self.model.transformer().device().clone());
            let sum = parts::gathered(&processes, parts.len(), mine, stops, &mut self.layout, &device)?;
            (grads, losses, tokens) = (sum.grads, sum.losses, sum.tokens);
            self.stops |= sum.stops;
        }
        let (penalties, penalty) = match &self.allocator {
            Some(allocator) => allocator.add_penalty(self.model.parameters_mut(), &mut grads)?,
            None => (Vec::new(), 0.0),
        };
        // Clip and update. The norm and the losses stay on the device until `finish`.
        let norm = optimizer.step(self.model.parameters_mut(), &grads, lr as f32)?;
        if let Some(allocator) = &mut self.allocator {
            let max_norm = optimizer.clip.map_or(f32::INFINITY, |max| max as f32);
            allocator.after_step(step + 1, self.model.parameters_mut(), &grads, Clip { norm: &norm, max_norm })?;
        }
        let outputs: Vec<&Tensor> = [&norm].into_iter().chain(&losses).chain(&penalties).collect();
        Ok(Running { step, lr, shares, values: Pending::read(&outputs)?, penalty, tokens, began })
    }

    /// Waits for a step to finish. Returns its record.
    pub(super) fn finish(&mut self, launched: Running) -> Result<StepRecord> {
        let Running { step, lr, shares, values, penalty, tokens, began } = launched;
        let mut values = values.wait()?.into_iter().flatten();
        let grad_norm = finite_norm(values.next().unwrap_or(f32::NAN), step as u64 + 1)?;
        let loss: f64 = shares.iter().zip(values.by_ref()).map(|(share, part)| share * f64::from(part)).sum();
        let penalty = penalty * values.map(f64::from).sum::<f64>();
        let now = Instant::now();
        let seconds = now.duration_since(self.finished.map_or(began, |before| before.max(began))).as_secs_f64();
        self.finished = Some(now);
        Ok(StepRecord {
            step: step + 1,
            epoch: (step + 1) as f64 / self.sampler.steps() as f64,
            loss,
            penalty: self.allocator.is_some().then_some(penalty),
            lr,
            grad_norm,
            ms: seconds * 1e3,
            tokens_per_s: (tokens as f64 / seconds).round(),
            tokens,
        })
    }
}
