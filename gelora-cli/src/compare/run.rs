//! One run of a study: its rows, the measurement behind its ranks, the training, and the score.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use gelora_kernels::{DType, Device};
use gelora_lora::cut::Update;
use gelora_lora::eva::Explained;
use gelora_lora::ranks::{Step, uniform_parameters};
use gelora_lora::{Adapter, LoraLayer, cut};
use gelora_model::eva::{EvaOptions, Start, explained_inputs};
use gelora_model::measure::{ModuleRank, Scale, TargetModules, adapter_config, measure_points, pooled_states, sample};
use gelora_model::needs::{GradientOptions, Need, gradient_needs};
use gelora_model::train::{AdaLora, Length};
use gelora_model::{
    AdapterTask, CausalLm, Classifier, Error, Event, LinearInfo, MeasureOptions, Rows, Task, TaskModel, TokenRows,
    Tokens, TrainOptions, Trainer, Transformer, evaluate,
};

use super::arms::{Arm, Needs, RankSettings, Ranks};
use super::mechanism::{ModuleUpdate, Updates};
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

/// What was measured on the training rows of a seed. What was not asked for is None.
#[derive(Clone, Default)]
pub struct Measured {
    all: Option<Growths>,
    plateau: Option<Growths>,
    /// Directions of the gradients, and the seconds that they took.
    gradient: Option<(Vec<Need>, f64)>,
    /// Directions of the inputs of every module, and the seconds that they took.
    inputs: Option<(Vec<(String, Explained)>, f64)>,
    /// Whether the plateau was asked for and there is none; its growths are those of all rows then.
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

    /// Measures on a sample of the training rows of a seed.
    ///
    /// # Errors
    /// If there are too few distinct rows, or the device fails.
    pub fn measure(&self, part: Part, seed: u64, needs: &[Needs]) -> Result<Measured> {
        let (rows, _) = self.rows(part, seed);
        let drawn: Vec<usize> = sample(rows.len(), self.samples, seed).into_iter().map(|row| rows[row]).collect();
        let mut measured = match needs.iter().any(|need| matches!(need, Needs::Growths | Needs::PlateauGrowths)) {
            true => self.measure_growths(&drawn, seed, needs.contains(&Needs::PlateauGrowths))?,
            false => Measured::default(),
        };
        if needs.contains(&Needs::Gradient) {
            let options = GradientOptions {
                target_modules: self.measuring.target_modules.clone(),
                batch_size: self.batch_size,
                seed,
                ..GradientOptions::default()
            };
            let (model, rows, started) = (self.load(seed)?, token_rows(&[(&self.train, &drawn)]), Instant::now());
            let needs = gradient_needs(model, &rows, &options, &mut |_: Event<'_>| ());
            let samples = self.samples;
            let needs = needs.map_err(anyhow::Error::from);
            let needs = needs.with_context(|| format!("gradients of seed {seed} (--samples {samples})"))?;
            measured.gradient = Some((needs, started.elapsed().as_secs_f64()));
        }
        if needs.contains(&Needs::Inputs) {
            let options = EvaOptions { batch_size: self.batch_size, seed, ..EvaOptions::default() };
            let (mut model, rows, started) = (self.load(seed)?, token_rows(&[(&self.train, &drawn)]), Instant::now());
            let (infos, layers) = (model.transformer().linear_infos(), model.transformer().config().layers);
            let &MeasureOptions { granularity, ref target_modules, .. } = &self.measuring;
            let targets = TargetModules::new(&infos, layers, granularity, target_modules)?;
            let Ranks::Steps(ranks) = Arm::Eva.ranks(&self.flat, None, &self.ranks, seed)? else {
                bail!("arm {}: its budget is one of steps", Arm::Eva.name());
            };
            let ranks = targets.ranks_of_modules(&ranks);
            let explained = explained_inputs(&mut model, &rows, &ranks, &options, &mut |_: Event<'_>| ());
            let explained = explained.map_err(anyhow::Error::from).with_context(|| format!("inputs of seed {seed}"))?;
            measured.inputs = Some((explained, started.elapsed().as_secs_f64()));
        }
        Ok(measured)
    }

    /// Measures the growths of the dimension on these training rows.
    fn measure_growths(&self, rows: &[usize], seed: u64, with_plateau: bool) -> Result<Measured> {
        let tokens: Vec<Tokens> = rows.iter().map(|&row| self.train.tokens[row].clone()).collect();
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
        Ok(Measured { all: Some(all), plateau, lacks_plateau, ..Measured::default() })
    }

    /// The ranks of a run, and the seconds of the measurement behind them.
    ///
    /// # Errors
    /// As [`Arm::ranks`].
    pub fn ranks(&self, arm: Arm, seed: u64, measured: Option<&Measured>) -> Result<(Ranks, f64)> {
        let of = |growths: Option<&Growths>, needs: Option<&(Vec<Need>, f64)>| {
            let steps = growths.map_or(&self.flat, |growths| &growths.steps);
            let seconds = growths.map(|growths| growths.seconds).or(needs.map(|(_, seconds)| *seconds));
            let ranks = arm.ranks(steps, needs.map(|(needs, _)| &needs[..]), &self.ranks, seed)?;
            Ok((ranks, seconds.unwrap_or(0.0)))
        };
        match arm.needs() {
            Needs::Nothing => of(None, None),
            Needs::Growths => of(measured.and_then(|measured| measured.all.as_ref()), None),
            Needs::PlateauGrowths => of(measured.and_then(|measured| measured.plateau.as_ref()), None),
            Needs::Gradient => of(None, measured.and_then(|measured| measured.gradient.as_ref())),
            // The budget; the directions are chosen module by module.
            Needs::Inputs => {
                let seconds = measured.and_then(|measured| measured.inputs.as_ref()).map(|(_, seconds)| *seconds);
                Ok((arm.ranks(&self.flat, None, &self.ranks, seed)?, seconds.unwrap_or(0.0)))
            }
        }
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
        if run.arm.needs() == Needs::Gradient && measured.is_none_or(|measured| measured.gradient.is_none()) {
            bail!("arm {}, seed {}: its gradients were not measured", run.arm.name(), run.seed);
        }
        let (ranks, measure_seconds) = self.ranks(run.arm, run.seed, measured)?;
        let (infos, layers) = (model.transformer().linear_infos(), model.transformer().config().layers);
        let &MeasureOptions { granularity, ref target_modules, .. } = &self.measuring;
        let targets = TargetModules::new(&infos, layers, granularity, target_modules)?;
        let modules = match ranks {
            Ranks::None => BTreeMap::new(),
            Ranks::Steps(ranks) => targets.ranks_of_modules(&ranks),
            Ranks::Modules(ranks) => ranks,
        };
        let Start { ranks: modules, factors } = match run.arm {
            Arm::Eva => {
                let explained = measured.and_then(|measured| measured.inputs.as_ref());
                let (explained, _) =
                    explained.with_context(|| format!("seed {}: no inputs were measured", run.seed))?;
                Start::by_explained_variance(&modules, explained)?
            }
            _ => Start { ranks: modules, factors: BTreeMap::new() },
        };
        let mut ranks = targets.mean_ranks(|name| modules.get(name).map_or(0, |module| module.rank));
        let options = TrainOptions {
            ranks: modules,
            factors,
            rslora: run.arm.is_rslora(),
            lora_plus: run.arm.lora_plus(),
            init: run.arm.init(),
            dora: run.arm == Arm::Dora,
            adalora: (run.arm == Arm::AdaLora).then(AdaLora::default),
            lr: run.lr,
            // The same number of steps for every arm, also for one that has more rows.
            length: Length::Steps(self.steps_on(rows.len())),
            batch_size: self.batch_size,
            seed,
            ..TrainOptions::default()
        };
        let mut trainer = Trainer::new(&mut model, &train_rows, options)?;
        let (mut parameters, mut losses, started) = (trainer.parameters(), Vec::new(), Instant::now());
        let trained = trainer.run(&mut |event: Event<'_>| {
            if let Event::Step(record) = event {
                losses.push(record.loss);
            }
        });
        let train_seconds = started.elapsed().as_secs_f64();
        let mut cut = None;
        if run.arm == Arm::AdaLora && trained.is_ok() {
            let adapter = trainer.adapter().folded()?;
            ranks = targets.mean_ranks(|name| adapter.layers.get(name).map_or(0, LoraLayer::rank));
            parameters = adapter.layers.values().map(LoraLayer::parameters).sum();
        }
        if run.arm.is_cut() && trained.is_ok() {
            let (adapter, model) = self.cut(&trainer.adapter())?;
            ranks = targets.mean_ranks(|name| adapter.layers.get(name).map_or(0, LoraLayer::rank));
            parameters = adapter.layers.values().map(LoraLayer::parameters).sum();
            cut = Some(model);
        }
        let metrics = match trained {
            Err(Error::Diverged { .. }) => BTreeMap::new(),
            Err(error) => return Err(error.into()),
            Ok(_) => {
                let model = cut.as_ref().unwrap_or(trainer.model());
                let evaluation = evaluate(model, &scored_rows, self.batch_size, &mut |_: Event<'_>| ())?;
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

    /// Trains a uniform rank, or the largest that a module allows, and decomposes its updates.
    ///
    /// # Errors
    /// If the model cannot be loaded, the training diverges, or the device fails.
    pub fn updates(&self, seed: u64, lr: f64, rank: usize, measured: &Measured) -> Result<Updates> {
        let (rows, _) = self.rows(Part::Final, seed);
        let train_rows = token_rows(&[(&self.train, &rows)]);
        let mut model = self.load(seed)?;
        let (infos, layers) = (model.transformer().linear_infos(), model.transformer().config().layers);
        let &MeasureOptions { granularity, ref target_modules, .. } = &self.measuring;
        let targets = TargetModules::new(&infos, layers, granularity, target_modules)?;
        let module = |(info, _): &(&LinearInfo, usize)| {
            let rank = rank.min(info.c_in).min(info.c_out);
            (info.name.clone(), ModuleRank { rank, alpha: self.ranks.alpha.of(rank) })
        };
        let options = TrainOptions {
            ranks: targets.modules.iter().map(module).collect(),
            lr,
            length: Length::Steps(self.steps_on(rows.len())),
            batch_size: self.batch_size,
            seed,
            ..TrainOptions::default()
        };
        let mut trainer = Trainer::new(&mut model, &train_rows, options)?;
        trainer.run(&mut |_: Event<'_>| ()).map_err(anyhow::Error::from).with_context(|| format!("seed {seed}"))?;
        let adapter = trainer.adapter();
        let growths = measured.all.as_ref().map(|growths| &growths.steps[..]).unwrap_or_default();
        let needs = measured.gradient.as_ref().map(|(needs, _)| &needs[..]).unwrap_or_default();
        let mut modules = Vec::new();
        for (info, step) in &targets.modules {
            let need = needs.iter().find(|need| need.module == info.name);
            let need = need.with_context(|| format!("{}: its gradient was not measured", info.name))?;
            let update = Update::of(&adapter.layers[&info.name])?;
            modules.push(ModuleUpdate {
                module: info.name.clone(),
                growth: growths.get(*step).map_or(0.0, |step| step.delta),
                directions: need.directions.number,
                interval: need.directions.interval,
                with_noise: need.directions.with_noise,
                effective: update.effective_rank(),
                stable: update.stable_rank(),
                energy: update.energy_rank(0.9),
            });
        }
        Ok(Updates { study: self.study.to_owned(), seed, lr, rank, modules })
    }

    /// An adapter that is cut to the budget, and the model with it.
    fn cut(&self, adapter: &Adapter) -> Result<(Adapter, TaskModel)> {
        let budget = uniform_parameters(&self.flat, self.ranks.budget_rank);
        let layers = cut::to_budget(&adapter.layers, budget, &self.ranks.limits)
            .with_context(|| format!("--budget-rank {}: arm {}", self.ranks.budget_rank, Arm::Prune.name()))?;
        let rank = |(name, layer): (&String, &LoraLayer)| {
            let rank = layer.rank();
            (name.clone(), ModuleRank { rank, alpha: f64::from(layer.scaling) * rank as f64 })
        };
        let transformer = Transformer::load(self.model)?;
        let task = match &self.task {
            Some(_) => AdapterTask::SequenceClassification,
            None => AdapterTask::CausalLm,
        };
        let config = adapter_config(&transformer, &layers.iter().map(rank).collect(), task)?;
        let cut = Adapter { config, layers, saved: adapter.saved.clone() };
        let mut model: TaskModel = match &self.task {
            Some(task) => Classifier::with_adapter(self.model, cut.clone(), Some(task.clone()))?.into(),
            None => CausalLm::with_adapter(self.model, cut.clone())?.into(),
        };
        model.compute_in(self.dtype)?;
        model.move_to(&self.device)?;
        Ok((cut, model))
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
