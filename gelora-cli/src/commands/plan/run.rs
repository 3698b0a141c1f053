//! The plan: the model on a planned device, rehearsed steps, and what is printed of them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Error, Result, bail};
use gelora_kernels::{DType, Device, DeviceKind, plan};
use gelora_lora::ranks::check_rank;
use gelora_model::gguf::is_gguf;
use gelora_model::measure::{ModuleRank, TargetModules};
use gelora_model::plan::{Largest, Peak, Planner, stored_dtype};
use gelora_model::train::{Length, Rehearsal};
use gelora_model::{
    CausalLm, Classifier, Config, Granularity, LM_MAX_LENGTH, Task, TaskModel, TokenRows, Tokens, TrainOptions,
    checkpoint,
};
use serde_json::{Value, json};

use crate::args::{PlanArgs, TaskArg};
use crate::ui;

const GIB: f64 = (1_u64 << 30) as f64;
/// Memory in GiB that is planned for if the machine has no such device.
const USUAL_MEMORY: f64 = 24.0;
/// Tokens of an example in a classification or regression, as in training.
const MAX_LENGTH: usize = 128;
/// Tokens of a step, and classes of a head, at most.
const MOST_TOKENS: usize = 1 << 19;
const MOST_CLASSES: usize = 100_000;
/// Bytes that the driver of a GPU takes for a process before its first tensor, a round number above what CUDA took on
/// an H100.
const DRIVER: u64 = 600 << 20;
/// Bytes of the process on the CPU besides the model, and of its tokenizer for each entry of the vocabulary: of an
/// encoder, and of a decoder, whose tokenizer usually has merges. Round numbers near what trainings took.
const PROCESS: u64 = 30 << 20;
const VOCABULARY_ENTRY: [u64; 2] = [500, 1000];

/// The device that is planned for.
#[derive(Clone, Copy)]
struct Target {
    kind: DeviceKind,
    /// Bytes of its memory.
    memory: u64,
    /// Bytes besides tensors: the driver of a GPU, or the process on the CPU.
    besides: u64,
}

impl Target {
    /// The peak in memory: pages of a GPU with its driver, or the process on the CPU.
    fn in_memory(&self, peak: Peak) -> u64 {
        self.besides + if self.kind == DeviceKind::Cpu { peak.tensors } else { peak.reserved }
    }
}

/// The plan of a training. Pairs are without and with activation checkpointing.
struct Plan<'a> {
    args: &'a PlanArgs,
    target: Target,
    /// Type of the weights, if it is not that of the files.
    stored: Option<DType>,
    /// Tokens of a row.
    tokens: usize,
    weights: u64,
    between_steps: u64,
    parameters: usize,
    /// Parameters of the adapters and the head.
    trained: usize,
    modules: usize,
    /// Bytes of activations for a token.
    per_token: [Option<f64>; 2],
    peaks: [Option<Peak>; 2],
    largest: [Largest; 2],
}

pub fn run(args: &PlanArgs) -> Result<()> {
    let kind = args.compute.device.kind().unwrap_or_else(|| Device::auto().kind());
    let memory = args.memory.map_or_else(|| memory_of_machine(kind), |gib| (gib * GIB) as u64);
    let config = Config::load(&args.model.path)?;
    let is_lm = match args.task {
        TaskArg::CausalLm => true,
        TaskArg::Auto => config.causal,
        TaskArg::Classification | TaskArg::MultiLabel | TaskArg::Regression => false,
    };
    let usual = if is_lm { LM_MAX_LENGTH } else { MAX_LENGTH };
    let tokens = args.max_length.unwrap_or(usual.min(config.max_positions));
    if tokens > config.max_positions {
        bail!("--max-length {tokens}: the model has {} positions", config.max_positions);
    }
    if args.batch_size.checked_mul(tokens).is_none_or(|all| all > MOST_TOKENS) {
        bail!("--batch-size {}: rows of {tokens} tokens; expected at most {MOST_TOKENS} tokens", args.batch_size);
    }
    if !(2..=MOST_CLASSES).contains(&args.classes) {
        bail!("--classes {}: expected 2 to {MOST_CLASSES}", args.classes);
    }
    let device = plan::open(kind, memory)?;
    let (mut model, stored) = load(args, is_lm)?;
    model.compute_in(args.compute.dtype.into())?;
    model.move_to(&device)?;
    let besides = match kind {
        DeviceKind::Cpu => PROCESS + VOCABULARY_ENTRY[usize::from(config.causal)] * config.vocabulary as u64,
        _ => DRIVER,
    };
    let plan = Plan::of(args, &mut model, stored, tokens, Target { kind, memory, besides })?;
    let printed = if args.output.json { ui::with_warnings(plan.as_json()).to_string() } else { plan.as_text() };
    Ok(ui::result(printed)?)
}

/// Bytes of memory of the best device of a kind on this machine.
fn memory_of_machine(kind: DeviceKind) -> u64 {
    let found = Device::list().into_iter().filter(|info| info.kind == kind).find_map(|info| info.memory);
    found.unwrap_or((USUAL_MEMORY * GIB) as u64)
}

/// Returns the model with its own weights, if they are there and no other type is asked for, and else with planned
/// ones, and the type of the planned ones.
fn load(args: &PlanArgs, is_lm: bool) -> Result<(TaskModel, Option<DType>)> {
    let path: &Path = &args.model.path;
    let has_weights = is_gguf(path) || checkpoint::FILES.iter().any(|file| path.join(file).exists());
    let labels = (0..args.classes).map(|class| class.to_string()).collect();
    let task = match args.task {
        TaskArg::Regression => Task::Regression,
        TaskArg::MultiLabel => Task::MultiLabel { labels },
        _ => Task::Classification { labels },
    };
    if args.weights.is_none() && has_weights {
        let model = if is_lm { CausalLm::load(path)?.into() } else { Classifier::new(path, task, 0)?.into() };
        return Ok((model, None));
    }
    let stored = args.weights.map_or_else(|| stored_dtype(path), |stored| Ok(stored.into()))?;
    let model =
        if is_lm { CausalLm::planned(path, stored)?.into() } else { Classifier::planned(path, stored, task)?.into() };
    Ok((model, Some(stored)))
}

/// Returns the ranks of the modules that are adapted.
fn ranks(args: &PlanArgs, model: &TaskModel) -> Result<BTreeMap<String, ModuleRank>> {
    let (infos, layers) = (model.transformer().linear_infos(), model.transformer().config().layers);
    let targets = TargetModules::new(&infos, layers, Granularity::Block, &args.targets.target_modules)
        .context("--target-modules")?;
    let module = ModuleRank { rank: args.rank, alpha: args.targets.alpha().of(args.rank) };
    let modules = targets.modules.into_iter();
    modules
        .map(|(info, _)| {
            check_rank(&info.name, args.rank, info.c_in, info.c_out)?;
            Ok((info.name.clone(), module.clone()))
        })
        .collect()
}

impl<'a> Plan<'a> {
    fn of(
        args: &'a PlanArgs,
        model: &mut TaskModel,
        stored: Option<DType>,
        tokens: usize,
        target: Target,
    ) -> Result<Self> {
        let ranks = ranks(args, model)?;
        let modules = ranks.len();
        let row = vec![Tokens::of_ids(vec![0; tokens])];
        let rows = match (&*model, args.task) {
            (TaskModel::CausalLm(_), _) => TokenRows::new(row),
            (_, TaskArg::Regression) => TokenRows::with_scores(row, vec![0.0]),
            (_, TaskArg::MultiLabel) => TokenRows::with_sets(row, vec![vec![0]]),
            _ => TokenRows::with_classes(row, vec![0]),
        };
        let options = TrainOptions {
            ranks,
            lora_dropout: args.lora_dropout,
            dora: args.dora,
            length: Length::Steps(1),
            warmup: 0.0,
            ..TrainOptions::default()
        };
        let mut planner = Planner::new(model, &rows, options, tokens)?;
        let mut both = |checkpoint_activations| {
            let step = Rehearsal { rows: args.batch_size, tokens, accumulate: args.accumulate, checkpoint_activations };
            let whole = Rehearsal { accumulate: 1, ..step };
            let fits = |peak| target.in_memory(peak) <= target.memory;
            Ok::<_, Error>((planner.bytes_per_token(whole)?, planner.peak(step)?, planner.largest(whole, fits)?))
        };
        let (kept, recomputed) = (both(false)?, both(true)?);
        Ok(Self {
            args,
            target,
            stored,
            tokens,
            weights: planner.weights(),
            between_steps: planner.between_steps()?,
            parameters: planner.parameters(),
            trained: planner.trained(),
            modules,
            per_token: [kept.0, recomputed.0],
            peaks: [kept.1, recomputed.1],
            largest: [kept.2, recomputed.2],
        })
    }

    fn as_json(&self) -> Value {
        let one = |index: usize| {
            json!({
                "activation_bytes_per_token": self.per_token[index],
                "peak_tensor_bytes": self.peaks[index].map(|peak| peak.tensors),
                "peak_bytes": self.peaks[index].map(|peak| self.target.in_memory(peak)),
                "largest_batch": self.largest[index].rows,
                "larger_batches_may_fit": self.largest[index].is_limit,
            })
        };
        json!({
            "device": self.target.kind.to_string(),
            "memory_bytes": self.target.memory,
            "stored": self.stored.map(|dtype| dtype.to_string()),
            "weights_bytes": self.weights,
            "modules": self.modules,
            "parameters": self.parameters,
            "adapter_bytes": 4 * self.trained,
            "gradient_bytes": 4 * self.trained,
            "optimizer_bytes": 8 * self.trained,
            "between_steps_bytes": self.between_steps,
            "besides_tensors_bytes": self.target.besides,
            "batch_size": self.args.batch_size,
            "max_length": self.tokens,
            "activations": one(0),
            "checkpoint_activations": one(1),
        })
    }

    fn as_text(&self) -> String {
        let Target { kind, memory, besides } = self.target;
        let stored = self.stored.map_or("as in the files".to_owned(), |dtype| dtype.to_string());
        let per_token =
            self.per_token.map(|bytes| bytes.map_or("not known".to_owned(), |bytes| in_units(bytes as u64)));
        let peaks = self.peaks.map(|peak| match peak {
            Some(peak) => in_units(self.target.in_memory(peak)),
            None => "more than the device can allocate".to_owned(),
        });
        let largest = self.largest.map(|Largest { rows, is_limit }| match rows {
            0 => "not one row".to_owned(),
            rows => format!(
                "{}{} rows ({} tokens)",
                if is_limit { "at least " } else { "" },
                ui::count(rows as u64),
                ui::count((rows * self.tokens) as u64)
            ),
        });
        let trained = self.trained as u64;
        let (rows, tokens) = (ui::count(self.args.batch_size as u64), self.tokens);
        let parameters = format!(
            "{} ({} parameters: rank {} in {} modules{})",
            in_units(4 * trained),
            ui::count(trained),
            self.args.rank,
            self.modules,
            if self.trained > self.parameters { ", and the head" } else { "" },
        );
        let lines = [
            ("device", format!("{kind} with {:.1} GiB", memory as f64 / GIB)),
            ("weights", format!("{} ({stored})", in_units(self.weights))),
            ("adapters", parameters),
            ("gradients", in_units(4 * trained)),
            ("optimizer", in_units(8 * trained)),
            (if kind == DeviceKind::Cpu { "program" } else { "driver" }, format!("about {}", in_units(besides))),
            ("activations", format!("{} a token; {} with --checkpoint-activations", per_token[0], per_token[1])),
            (
                "a step",
                format!(
                    "{} at its peak, for {rows} rows of {tokens} tokens; {} with --checkpoint-activations",
                    peaks[0], peaks[1]
                ),
            ),
            ("largest", format!("{}; {} with --checkpoint-activations", largest[0], largest[1])),
        ];
        lines.map(|(name, text)| format!("{name:<12} {text}")).join("\n")
    }
}

/// A number of bytes in the largest unit below it.
fn in_units(bytes: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let unit = units.into_iter().find(|(size, _)| bytes as f64 >= *size);
    unit.map_or_else(|| format!("{bytes} bytes"), |(size, unit)| format!("{:.1} {unit}", bytes as f64 / size))
}
