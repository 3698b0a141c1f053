//! One run of a study: its rows, the measurement behind its ranks, the training, and the score.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use gelora_kernels::{DType, Device};
use gelora_lora::ranks::{Step, StepRank};
use gelora_model::measure::{Scale, TargetModules, measure_points, pooled_states, sample};
use gelora_model::train::Length;
use gelora_model::{
    CausalLm, Classifier, Error, Event, MeasureOptions, Rows, Task, TaskModel, TokenRows, Tokens, TrainOptions,
    Trainer, Transformer, evaluate,
};

use super::arms::{Arm, Needs, RankSettings};
use super::plan::{Run, cut, rows_of_seed};
use super::results::{Part, RunResult};
use crate::data::Targets;

/// Tokenized rows with what they should give; a language model has no targets.
pub struct Examples {
    pub tokens: Vec<Tokens>,
    pub targets: Option<Targets>,
}

/// What all runs of a study share.
pub struct Bench<'a> {
    pub study: &'a str,
    pub model: &'a Path,
    pub device: Device,
    pub dtype: DType,
    /// None for a language model.
    pub task: Option<Task>,
    pub train: Examples,
    pub held_out: Examples,
    /// Training rows of a seed; None for all.
    pub train_rows: Option<usize>,
    /// Rows that are measured at most.
    pub samples: usize,
    /// Options of the measurement but its seed and scale.
    pub measuring: MeasureOptions,
    pub ranks: RankSettings,
    /// The steps through the model, without growths.
    pub flat: Vec<Step>,
    pub epochs: f64,
    pub steps: Option<usize>,
    pub batch_size: usize,
}

/// Steps through the model with the growth of the dimension over each.
#[derive(Clone)]
pub struct Growths {
    steps: Vec<Step>,
    seconds: f64,
}

/// What was measured on the training rows of a seed.
#[derive(Clone)]
pub struct Measured {
    all: Growths,
    /// None if it was not asked for.
    plateau: Option<Growths>,
    /// Whether it was asked for and there is no plateau; its growths are those of all rows then.
    pub lacks_plateau: bool,
}

impl Bench<'_> {
    /// The training rows of a run, and the rows that it is scored on.
    fn rows(&self, part: Part, seed: u64) -> (Vec<usize>, Vec<usize>) {
        let rows = rows_of_seed(self.train.tokens.len(), self.train_rows, seed);
        match part {
            Part::Choose => cut(rows),
            Part::Final => (rows, (0..self.held_out.tokens.len()).collect()),
        }
    }

    /// Measures the growths of the dimension on a sample of the training rows of a seed.
    ///
    /// # Errors
    /// If there are too few distinct rows, or the device fails.
    pub fn measure(&self, part: Part, seed: u64, with_plateau: bool) -> Result<Measured> {
        let (rows, _) = self.rows(part, seed);
        let drawn = sample(rows.len(), self.samples, seed);
        let tokens: Vec<Tokens> = drawn.into_iter().map(|row| self.train.tokens[rows[row]].clone()).collect();
        let mut model = Transformer::load(self.model)?;
        model.compute_in(self.dtype)?;
        model.move_to(&self.device)?;
        let mut options = MeasureOptions { seed, ..self.measuring.clone() };

        let started = Instant::now();
        let silent = &mut |_: Event<'_>| ();
        let points = pooled_states(&model, &tokens, &options, silent)?;
        let forward = started.elapsed().as_secs_f64();
        let mut growths = |scale: Scale| {
            options.scale = scale;
            let started = Instant::now();
            let ranks = measure_points(&model, points.clone(), &options, silent)?;
            let mut steps = self.flat.clone();
            for (step, layer) in steps.iter_mut().zip(&ranks.layers) {
                (step.delta, step.upper) = (layer.delta, layer.upper);
            }
            Ok(Growths { steps, seconds: forward + started.elapsed().as_secs_f64() })
        };
        let all = growths(Scale::All).map_err(anyhow::Error::from).with_context(|| format!("seed {seed}"))?;
        let at_plateau = with_plateau.then(|| growths(Scale::Plateau));
        let lacks_plateau = matches!(at_plateau, Some(Err(Error::NoPlateau)));
        let plateau = match at_plateau {
            Some(Err(Error::NoPlateau)) => Some(all.clone()),
            other => other.transpose()?,
        };
        Ok(Measured { all, plateau, lacks_plateau })
    }

    /// Rank and alpha of every step in a run, and the seconds of the measurement behind them.
    ///
    /// # Errors
    /// As [`Arm::ranks`].
    pub fn ranks(&self, arm: Arm, seed: u64, measured: Option<&Measured>) -> Result<(Option<Vec<StepRank>>, f64)> {
        let growths = match arm.needs() {
            Needs::Nothing => None,
            Needs::Growths => measured.map(|measured| &measured.all),
            Needs::PlateauGrowths => measured.and_then(|measured| measured.plateau.as_ref()),
        };
        let steps = growths.map_or(&self.flat, |growths| &growths.steps);
        Ok((arm.ranks(steps, &self.ranks, seed)?, growths.map_or(0.0, |growths| growths.seconds)))
    }

    /// Trains and scores. A training that diverges is a result without metrics.
    ///
    /// # Errors
    /// If the ranks cannot be given, the model not be loaded, or the device fails.
    pub fn run(&self, run: &Run, measured: Option<&Measured>) -> Result<RunResult> {
        let (rows, scored) = self.rows(run.part, run.seed);
        let scored_of = if run.part == Part::Choose { &self.train } else { &self.held_out };
        let scored_rows = token_rows(&[(scored_of, &scored)]);
        let mut parts = vec![(&self.train, &rows[..])];
        if run.arm == Arm::Leaked {
            parts.push((scored_of, &scored));
        }
        let train_rows = token_rows(&parts);

        let seed = run.arm.training_seed(run.seed);
        let mut model = self.load(seed)?;
        let (step_ranks, measure_seconds) = self.ranks(run.arm, run.seed, measured)?;
        let modules = match &step_ranks {
            None => BTreeMap::new(),
            Some(ranks) => {
                let (infos, layers) = (model.transformer().linear_infos(), model.transformer().config().layers);
                let &MeasureOptions { granularity, ref target_modules, .. } = &self.measuring;
                TargetModules::new(&infos, layers, granularity, target_modules)?.ranks_of_modules(ranks)
            }
        };
        let ranks = step_ranks.map_or(vec![0; self.flat.len()], |ranks| ranks.iter().map(|step| step.rank).collect());
        let options = TrainOptions {
            ranks: modules,
            rslora: run.arm.is_rslora(),
            lora_plus: run.arm.lora_plus(),
            init: run.arm.init(),
            dora: run.arm == Arm::Dora,
            lr: run.lr,
            // The same number of steps for every arm, also for one that has more rows.
            length: Length::Steps(self.steps_on(rows.len())),
            batch_size: self.batch_size,
            seed,
            ..TrainOptions::default()
        };
        let mut trainer = Trainer::new(&mut model, &train_rows, options)?;
        let (parameters, mut losses, started) = (trainer.parameters(), Vec::new(), Instant::now());
        let trained = trainer.run(&mut |event: Event<'_>| {
            if let Event::Step(record) = event {
                losses.push(record.loss);
            }
        });
        let train_seconds = started.elapsed().as_secs_f64();
        let metrics = match trained {
            Err(Error::Diverged { .. }) => BTreeMap::new(),
            Err(error) => return Err(error.into()),
            Ok(_) => {
                let evaluation = evaluate(trainer.model(), &scored_rows, self.batch_size, &mut |_: Event<'_>| ())?;
                let finite = evaluation.metrics.into_iter().filter(|(_, value)| value.is_finite());
                finite.map(|(name, value)| (name.to_owned(), value)).collect()
            }
        };
        let last_pass = &losses[losses.len().saturating_sub(train_rows.len().div_ceil(self.batch_size))..];
        let train_loss = last_pass.iter().sum::<f64>() / last_pass.len() as f64;
        Ok(RunResult {
            study: self.study.to_owned(),
            part: run.part,
            arm: run.arm.name().to_owned(),
            lr: run.lr,
            seed: run.seed,
            ranks,
            parameters,
            train_loss: Some(train_loss).filter(|loss| loss.is_finite() && !metrics.is_empty()),
            metrics,
            train_seconds,
            measure_seconds,
        })
    }

    /// Optimizer steps of a training on so many rows.
    fn steps_on(&self, rows: usize) -> usize {
        let of_epochs = (rows as f64 / self.batch_size as f64 * self.epochs).ceil() as usize;
        self.steps.unwrap_or(of_epochs.max(1))
    }

    /// The base model with a fresh head, or with its vocabulary.
    fn load(&self, seed: u64) -> Result<TaskModel> {
        let mut model: TaskModel = match &self.task {
            Some(task) => Classifier::new(self.model, task.clone(), seed)?.into(),
            None => CausalLm::load(self.model)?.into(),
        };
        model.compute_in(self.dtype)?;
        model.move_to(&self.device)?;
        Ok(model)
    }
}

/// The chosen rows of some examples, one after the other.
fn token_rows(parts: &[(&Examples, &[usize])]) -> TokenRows {
    fn gather<'a, T: Clone + 'a>(parts: &[(&'a Examples, &[usize])], of: impl Fn(&'a Examples) -> &'a [T]) -> Vec<T> {
        parts.iter().flat_map(|(examples, rows)| rows.iter().map(|&row| of(examples)[row].clone())).collect()
    }
    let tokens = gather(parts, |examples| &examples.tokens);
    match parts.first().and_then(|(examples, _)| examples.targets.as_ref()) {
        None => TokenRows::new(tokens),
        Some(Targets::Classes(_)) => {
            let classes = gather(parts, |examples| match &examples.targets {
                Some(Targets::Classes(classes)) => classes,
                _ => &[],
            });
            TokenRows::with_classes(tokens, classes)
        }
        Some(Targets::Sets(_)) => {
            let sets = gather(parts, |examples| match &examples.targets {
                Some(Targets::Sets(sets)) => sets,
                _ => &[],
            });
            TokenRows::with_sets(tokens, sets)
        }
        Some(Targets::Scores(_)) => {
            let scores = gather(parts, |examples| match &examples.targets {
                Some(Targets::Scores(scores)) => scores,
                _ => &[],
            });
            TokenRows::with_scores(tokens, scores)
        }
    }
}
