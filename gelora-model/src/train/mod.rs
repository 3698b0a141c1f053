//! Training: optimizer steps over rows, evaluation, checkpoints.
//!
//! One step on a batch, with lr_t the learning rate of the [`Schedule`]:
//!
//! ```text
//! loss, g = (weighted) mean over the rows of the batch, backward through every adapter and the head
//! g       = g min(1, clip / |g|)
//! theta   = AdamW(theta, g, lr_t)
//! ```
//!
//! The batch of a step may be cut into parts ([`TrainOptions::accumulate`]), which several processes share
//! ([`TrainOptions::processes`]). Their gradients are added in the order of the parts, so the result does not depend on
//! the number of processes.
//!
//! With LoRA+ ([`TrainOptions::lora_plus`]), B has a multiple of lr_t. With AdaLoRA ([`TrainOptions::adalora`]), the
//! loss has a penalty, and ranks are given up after the step.

mod best;
mod checkpoint;
mod loader;
mod options;
mod parts;
mod rehearsal;
mod sampler;
mod schedule;
mod state;
mod steps;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use gelora_kernels::Tensor;
use gelora_kernels::ops::adamw::AdamW;
use gelora_kernels::ops::loss::CrossEntropy;
use gelora_lora::{Adapter, AdapterConfig, LoraLayer};

use self::best::Watch;
use self::parts::{Layout, Share};
use self::sampler::Sampler;
use crate::adalora::RankAllocator;
use crate::distributed::bytes_of;
use crate::event::{Reply, Report, report};
use crate::measure::{ModuleRank, adapter_config};
use crate::optim::Optimizer;
use crate::record::Metrics;
use crate::{AdapterTask, Error, Event, Result, Rows, TaskModel};

pub use self::best::Keep;
pub use self::schedule::{Interval, Schedule};
pub use crate::adalora::AdaLora;
pub use crate::record::{Best, StepRecord};
pub use options::{Checkpoints, Init, Length, TrainOptions};
pub use rehearsal::Rehearsal;

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
    /// Gives up ranks, with AdaLoRA.
    allocator: Option<RankAllocator>,
    /// Compares evaluations, if something depends on that.
    watch: Option<Watch>,
    /// The complete checkpoints of this training, the oldest first.
    written: Vec<PathBuf>,
    /// Time at which the last step finished.
    finished: Option<Instant>,
    /// Names and shapes of the gradients, if several processes gather them.
    layout: Option<Layout>,
    /// Whether another process, or this one, is asked to stop.
    stops: bool,
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
    /// Returns an error if an option is out of range or does not fit the task, there are no rows, the labels do not fit
    /// the model's task, the ranks name a module that the model lacks, PiSSA is asked for and a weight is quantized, or
    /// AdaLoRA has no steps to give up ranks in.
    pub fn new(model: &'a mut TaskModel, rows: &'a dyn Rows, options: TrainOptions) -> Result<Self> {
        check(model, rows, &options)?;
        let head_alone = options.ranks.is_empty() && model.adapter_task() == AdapterTask::SequenceClassification;
        let adapters = match head_alone {
            true => AdapterConfig::default(),
            false => adapter_config(model.transformer(), &ranks_at_start(model, &options), model.adapter_task())?,
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
        let config = if options.adalora.is_some() { config.with_adalora() } else { config };
        let parameters = if head_alone { 0 } else { model.add_adapters(&config, options.seed)? };
        set_factors(model, &options.factors)?;
        Self::assemble(model, rows, options, config, parameters)
    }

    /// Trains on the adapters and the head that the model was loaded with. `config` is that of the adapters; ranks,
    /// scaling and method are its own, and the dropout is that of the options.
    ///
    /// # Errors
    /// Returns an error if the options ask for ranks or a method, are out of range or do not fit the task, there are no
    /// rows, the labels do not fit the model's task, or the config is not that of the model's adapters.
    pub fn on_adapter(
        model: &'a mut TaskModel,
        config: AdapterConfig,
        rows: &'a dyn Rows,
        options: TrainOptions,
    ) -> Result<Self> {
        check(model, rows, &options)?;
        let begins = options.init != Init::Lora || !options.factors.is_empty();
        let is_method = options.rslora || options.dora || options.adalora.is_some();
        if !options.ranks.is_empty() || begins || is_method {
            let problem =
                "ranks, rslora, dora, adalora and init are those of the adapter that the training begins with";
            return Err(Error::Value(problem.into()));
        }
        let mut saved = config.modules_to_save.clone().unwrap_or_default();
        if model.adapter_task() == AdapterTask::SequenceClassification {
            let head = model.transformer().head_modules();
            saved.extend(head.into_iter().filter(|module| !saved.contains(module)).collect::<Vec<_>>());
        }
        let config = AdapterConfig {
            task_type: Some(model.adapter_task().name().into()),
            base_model_name_or_path: Some(model.transformer().name().to_owned()),
            modules_to_save: Some(saved).filter(|saved| !saved.is_empty()),
            lora_dropout: options.lora_dropout as f32,
            inference_mode: true,
            ..config
        };
        model.set_dropout(config.lora_dropout);
        let adapter = model.adapter(config.clone());
        adapter.check()?;
        let parameters = adapter.layers.values().map(LoraLayer::parameters).sum();
        Self::assemble(model, rows, options, config, parameters)
    }

    fn assemble(
        model: &'a mut TaskModel,
        rows: &'a dyn Rows,
        options: TrainOptions,
        config: AdapterConfig,
        parameters: usize,
    ) -> Result<Self> {
        let weights = options.class_weights.iter().map(|weight| *weight as f32).collect();
        model.set_loss(CrossEntropy { weights, smoothing: options.label_smoothing as f32 })?;
        let watch = Watch::new(options.metric.as_deref(), options.keep, options.patience, model.head_task())?;
        let sampler = match options.group_by_length {
            true => Sampler::grouped(rows.lengths(), options.batch_size, options.seed),
            false => Sampler::shuffled(rows.len(), options.batch_size, options.seed),
        };
        let allocator = match &options.adalora {
            Some(_) if parameters == 0 => {
                return Err(Error::Value("AdaLoRA gives up ranks of adapters; expected ranks".into()));
            }
            Some(adalora) => {
                let start = model.transformer().adapters().values().map(LoraLayer::rank).sum();
                let keep = options.ranks.values().map(|module| module.rank).sum();
                Some(RankAllocator::new(adalora.clone(), options.steps(rows.len()), start, keep)?)
            }
            None => None,
        };
        Ok(Self {
            model,
            rows,
            allocator,
            held_out: None,
            stop: None,
            options,
            config,
            sampler,
            parameters,
            watch,
            written: Vec::new(),
            finished: None,
            layout: None,
            stops: false,
        })
    }

    /// Sets rows that are evaluated as often as [`TrainOptions::eval_every`] says, and at the end.
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

    /// Number of parameters of the adapters; with AdaLoRA, of those at the start.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// The adapters and the head that are kept: those of the best evaluation so far with [`Keep::Best`], else the
    /// current ones.
    pub fn adapter(&self) -> Adapter {
        let best = self.watch.as_ref().and_then(Watch::kept);
        best.map_or_else(|| self.current(), |(adapter, _)| adapter.clone())
    }

    /// The parts that this process computes.
    fn share(&self) -> Share {
        Share { processes: self.options.processes.clone(), accumulate: self.options.accumulate }
    }

    /// Returns an error if the parameters differ between the processes after `step` steps.
    fn check_same_parameters(&mut self, step: usize) -> Result<()> {
        let processes = self.options.processes.clone();
        if processes.is_alone() {
            return Ok(());
        }
        let mut bytes = (step as u64).to_le_bytes().to_vec();
        for (name, tensor) in self.model.parameters_mut() {
            bytes.extend(name.as_bytes());
            bytes.extend(bytes_of(&tensor.to_vec()?));
        }
        processes.check_same(&format!("step {step}: the adapter"), Some(&bytes))
    }

    fn current(&self) -> Adapter {
        self.model.adapter(self.config.clone())
    }

    /// The model after the last step.
    pub fn model(&self) -> &TaskModel {
        self.model
    }

    /// Trains to the end. Returns the metrics of the adapter that is kept, if there are held-out rows.
    ///
    /// # Errors
    /// Returns an error if evaluations are to be compared and there are no held-out rows, a row cannot be tokenized, a
    /// gradient is not finite, a checkpoint cannot be written, is damaged or does not fit, the device fails, the flag
    /// of [`with_stop`](Self::with_stop) is set, or `progress` returns an error.
    pub fn run<R: Reply>(&mut self, progress: &mut impl FnMut(Event<'_>) -> R) -> Result<Option<Metrics>> {
        let report: &mut Report<'_> = &mut report(progress);
        if self.held_out.is_none() && (self.watch.is_some() || self.options.eval_every.is_some()) {
            let problem = "eval_every, metric, keep and patience need rows to evaluate on (with_held_out)";
            return Err(Error::Value(problem.into()));
        }
        let settings = AdamW { weight_decay: self.options.weight_decay as f32, ..AdamW::default() };
        let clip = self.options.clip;
        let mut optimizer = Optimizer::new(settings, (clip > 0.0).then_some(clip));
        optimizer.lora_plus = Some(self.options.lora_plus).filter(|ratio| *ratio != 1.0);
        let first = match self.options.checkpoints.clone() {
            Some(checkpoints) if checkpoints.resume => self.restore(&checkpoints, &mut optimizer, report)?,
            // The first checkpoint of this training replaces that of an earlier one.
            _ => 0,
        };
        self.check_same_parameters(first)?;
        let (total, rows, sampler) = (self.steps(), self.rows, self.sampler.clone());
        // The loss of a language model is a mean over the tokens of all rows, so each process needs them all.
        let share = Some(self.share()).filter(|_| self.model.head_task().is_some());
        thread::scope(|scope| {
            let batches = loader::start(rows, &sampler, scope, first..total, share);
            self.run_steps(first..total, &batches, &mut optimizer, report)
        })
    }
}

/// Sets A of these modules.
fn set_factors(model: &mut TaskModel, factors: &BTreeMap<String, Tensor>) -> Result<()> {
    let device = model.transformer().device().clone();
    let mut parameters: BTreeMap<String, &mut Tensor> = model.parameters_mut().into_iter().collect();
    for (module, factor) in factors {
        let Some(a) = parameters.get_mut(&format!("{module}.lora_A.weight")) else {
            return Err(Error::Value(format!("factors has A of {module}, which has no adapter")));
        };
        if a.shape() != factor.shape() {
            let (got, expected) = (factor.shape(), a.shape());
            return Err(Error::Value(format!("factors: A of {module} is {got:?}; expected {expected:?}")));
        }
        **a = factor.to_device(&device)?;
    }
    Ok(())
}

/// The ranks that the adapters begin with.
fn ranks_at_start(model: &TaskModel, options: &TrainOptions) -> BTreeMap<String, ModuleRank> {
    let Some(adalora) = &options.adalora else { return options.ranks.clone() };
    let infos = model.transformer().linear_infos();
    let most: BTreeMap<&str, usize> = infos.iter().map(|info| (&info.name[..], info.c_in.min(info.c_out))).collect();
    adalora.at_start(&options.ranks, |name| most.get(name).copied().unwrap_or(usize::MAX))
}

/// Checks the options, and that the rows fit the model.
fn check(model: &TaskModel, rows: &dyn Rows, options: &TrainOptions) -> Result<()> {
    if rows.is_empty() {
        return Err(Error::Value("there are no rows to train on".into()));
    }
    options.validate(rows.len())?;
    model.check_labels(rows.labels(), rows.len())
}
