//! What rank each module needs, measured on gradients instead of dimensions.
//!
//! The gradient of the loss with respect to a frozen weight, G = dL/dW (C_out, C_in), is what a training first follows.
//! Of its singular directions only those matter that are in all of the data: [`gelora_lora::directions`] finds them by
//! comparing parts of the rows. G is never formed. With a LoRA layer of rank 2 k beside the weight:
//!
//! ```text
//! A random, B = 0           dL/dB = G A^T      of the rows with an even and with an odd part: two bases Q (C_out, k)
//! A = 0, B = [Q_0, Q_1]     dL/dA = B^T G      the projections of G on them, for each part of the rows
//! ```
//!
//! In both passes the model computes what the frozen model computes. Where a size of the weight is at most 2 k, the
//! result is exact; else it is the randomized range finder without power iterations. A classifier's fresh head is
//! trained alone first: the gradient below a random head says nothing.
//!
//! [`module_ranks`] turns this, or a training that is cut, into the ranks of a policy.
//!
//! Source of the range finder: Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), section 4.1.

mod modules;

use std::collections::BTreeMap;

use gelora_kernels::random::Stream;
use gelora_kernels::{Device, Tensor};
use gelora_lora::directions::{self, Directions};
use gelora_lora::ranks::spectra::Spectrum;
use rayon::prelude::*;

use crate::event::{Reply, Report, report};
use crate::measure::{ModuleRank, TargetModules, adapter_config};
use crate::train::Length;
use crate::{
    Error, Event, Grads, Granularity, LinearInfo, Mode, Result, Rows, TaskModel, Tokens, TrainOptions, Trainer, Work,
};

pub use modules::{module_ranks, ranks};

/// Options of [`gradient_needs`].
#[derive(Clone, Debug)]
pub struct GradientOptions {
    /// The modules to measure, as in [`MeasureOptions::target_modules`](crate::MeasureOptions::target_modules).
    pub target_modules: Vec<String>,
    /// Width k of the bases. No more than half as many directions of a module can be found.
    pub width: usize,
    /// Number of parts of the rows, at least 3.
    pub parts: usize,
    /// Confidence of the intervals.
    pub confidence: f64,
    /// Number of epochs in which a classifier's head is trained alone first; 0 for a model whose head is trained.
    pub head_epochs: f64,
    /// Learning rate of the head.
    pub head_lr: f64,
    /// Number of rows in one forward and backward pass.
    pub batch_size: usize,
    /// Seed of the sketches, the parts, and the training of the head.
    pub seed: u64,
}

impl Default for GradientOptions {
    fn default() -> Self {
        Self {
            target_modules: Vec::new(),
            width: 64,
            parts: 8,
            confidence: 0.9,
            head_epochs: 3.0,
            head_lr: 1e-2,
            batch_size: 32,
            seed: 0,
        }
    }
}

/// What was found for one module.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Need {
    /// Full name of the module.
    pub module: String,
    /// Directions of its gradient that replicate.
    pub directions: Directions,
    /// Parameters per rank: C_in + C_out.
    pub cost: usize,
    /// The smaller of C_in and C_out.
    pub most: usize,
}

impl Need {
    /// The need of a module with these sizes.
    pub fn new(module: String, directions: Directions, c_in: usize, c_out: usize) -> Self {
        Self { module, directions, cost: c_in + c_out, most: c_in.min(c_out) }
    }

    /// The squared values of the directions that replicate: the gains of [`gelora_lora::ranks::spectra::greedy`].
    pub fn spectrum(&self) -> Spectrum {
        let gains = self.directions.values.iter().map(|value| value * value).collect();
        Spectrum { gains, cost: self.cost, most: self.most }
    }
}

/// Measures the gradient of every target module on labeled rows, or on those of a language model. The model is used up:
/// its head is trained, and it has adapters afterwards.
///
/// # Errors
/// Returns an error if an option is out of range or names no module of the model, there are fewer rows than parts, the
/// labels do not fit the model's task, the training of the head diverges, the device fails, or `progress` returns an
/// error.
pub fn gradient_needs<R: Reply>(
    mut model: TaskModel,
    rows: &dyn Rows,
    options: &GradientOptions,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<Vec<Need>> {
    let report: &mut Report<'_> = &mut report(progress);
    if options.parts < 3 || rows.len() < options.parts {
        let problem =
            format!("{} rows in {} parts; expected 3 parts or more, each of a row", rows.len(), options.parts);
        return Err(Error::Value(problem));
    }
    if options.width < 2 {
        return Err(Error::Value(format!("a sketch of width {}; expected 2 or more", options.width)));
    }
    model.check_labels(rows.labels(), rows.len())?;
    if model.head_task().is_some() && options.head_epochs > 0.0 {
        let head = TrainOptions {
            lr: options.head_lr,
            length: Length::Epochs(options.head_epochs),
            accumulate: TrainOptions::default().batch_size.div_ceil(options.batch_size.max(1)),
            seed: options.seed,
            ..TrainOptions::default()
        };
        report(Event::Remark("training the head alone: the gradient below a random head says nothing"))?;
        Trainer::new(&mut model, rows, head)?.run(&mut |event: Event<'_>| report(event))?;
    }
    let modules = add_sketches(&mut model, options)?;
    let parts = parts(rows.len(), options.parts, options.seed);
    let batch = options.batch_size.max(1);
    report(Event::Began { work: Work::Gradients, units: 2 * rows.len() })?;

    // The ranges of the gradients of the even and of the odd parts.
    let mut bases = Vec::new();
    for first in [0, 1] {
        let mut grads = Grads::new();
        for part in parts.iter().skip(first).step_by(2) {
            mean_gradient(&model, rows, part, batch, &mut grads, report)?;
        }
        let basis = |module: &Module| module.basis(gradient(&grads, &module.name, "lora_B")?);
        bases.push(modules.par_iter().map(basis).collect::<Result<Vec<_>>>()?);
    }
    let (odd, even) = (bases.pop().unwrap_or_default(), bases.pop().unwrap_or_default());
    let joined = modules.iter().zip(&even).zip(&odd);
    let joined = joined.map(|((module, even), odd)| Ok((module.name.clone(), module.joined(even, odd)?)));
    set_factors(&mut model, joined.collect::<Result<_>>()?)?;

    // The projections of the gradient of every part.
    let mut projections: Vec<Grads> = Vec::new();
    for part in &parts {
        let mut grads = Grads::new();
        mean_gradient(&model, rows, part, batch, &mut grads, report)?;
        grads.retain(|name, _| name.ends_with(".lora_A.weight"));
        let on_cpu = grads.into_iter().map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)));
        projections.push(on_cpu.collect::<Result<_>>()?);
    }
    report(Event::Finished { work: Work::Gradients })?;
    let need = |module: &Module| {
        let parts: Vec<Vec<f32>> = projections
            .iter()
            .map(|grads| Ok(gradient(grads, &module.name, "lora_A")?.to_vec()?))
            .collect::<Result<_>>()?;
        let k = module.width();
        // Rows of B^T G: those of the even basis come first. An exact module has one basis for both.
        let seen = |first: usize| -> Vec<Vec<f32>> {
            parts.iter().map(|part| part[first * module.c_in..][..k * module.c_in].to_vec()).collect()
        };
        // A fold sees the basis that its own part is not in.
        let (of_even, of_odd) = if module.is_exact { (seen(0), seen(0)) } else { (seen(k), seen(0)) };
        let directions = directions::replicated(&of_even, &of_odd, k, module.c_in, options.confidence)?;
        Ok(Need::new(module.name.clone(), directions, module.c_in, module.c_out))
    };
    modules.par_iter().map(need).collect()
}

/// A module that is measured.
struct Module {
    name: String,
    c_in: usize,
    c_out: usize,
    /// Rank of the LoRA layer.
    rank: usize,
    /// Whether B is the identity, so that dL/dA is G itself.
    is_exact: bool,
}

impl Module {
    fn new(info: &LinearInfo, width: usize) -> Self {
        let rank = (2 * width).min(info.c_in).min(info.c_out);
        Self { name: info.name.clone(), c_in: info.c_in, c_out: info.c_out, rank, is_exact: rank == info.c_out }
    }

    /// Number of columns of a basis.
    fn width(&self) -> usize {
        if self.is_exact { self.c_out } else { self.rank / 2 }
    }

    /// The basis of a sketch (C_out, R).
    fn basis(&self, sketch: &Tensor) -> Result<Vec<f32>> {
        match self.is_exact {
            true => Ok(Vec::new()),
            false => Ok(directions::basis(sketch, self.width())?.to_vec()?),
        }
    }

    /// B (C_out, R): both bases, or the identity.
    fn joined(&self, even: &[f32], odd: &[f32]) -> Result<Tensor> {
        let (k, rank) = (self.width(), self.rank);
        let mut b = vec![0.0; self.c_out * rank];
        for (row, values) in b.chunks_mut(rank).enumerate() {
            if self.is_exact {
                values[row] = 1.0;
            } else {
                values[..k].copy_from_slice(&even[row * k..][..k]);
                values[k..2 * k].copy_from_slice(&odd[row * k..][..k]);
            }
        }
        Ok(Tensor::from_vec(b, [self.c_out, rank])?)
    }
}

/// Adds a LoRA layer to every target module, with a random A, B = 0 and the scaling 1.
fn add_sketches(model: &mut TaskModel, options: &GradientOptions) -> Result<Vec<Module>> {
    let transformer = model.transformer();
    let infos = transformer.linear_infos();
    let targets = TargetModules::new(&infos, transformer.config().layers, Granularity::Block, &options.target_modules)?;
    let modules: Vec<Module> = targets.modules.iter().map(|(info, _)| Module::new(info, options.width)).collect();
    let ranks =
        modules.iter().map(|module| (module.name.clone(), ModuleRank { rank: module.rank, alpha: module.rank as f64 }));
    let config = adapter_config(transformer, &ranks.collect(), model.adapter_task())?;
    model.add_adapters(&config, options.seed)?;
    Ok(modules)
}

/// Disjoint random parts of about the same size.
fn parts(rows: usize, parts: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows).collect();
    Stream::at(seed, &[0x7061_7274]).shuffle(&mut order); // "part"
    (0..parts).map(|part| order.iter().skip(part).step_by(parts).copied().collect()).collect()
}

/// Adds the gradient of the mean loss of some rows.
fn mean_gradient(
    model: &TaskModel,
    rows: &dyn Rows,
    part: &[usize],
    batch: usize,
    grads: &mut Grads,
    report: &mut Report<'_>,
) -> Result<()> {
    let (tokens, labels): (Vec<Tokens>, _) = (rows.tokens(part)?, rows.labels());
    let whole = model.weight((part, &tokens), labels);
    for (indices, tokens) in part.chunks(batch).zip(tokens.chunks(batch)) {
        let share = (model.weight((indices, tokens), labels) / whole) as f32;
        model.backward((indices, tokens), labels, &Mode::inference(), share, grads)?;
        report(Event::Advanced { units: indices.len() })?;
    }
    Ok(())
}

fn gradient<'a>(grads: &'a Grads, module: &str, factor: &str) -> Result<&'a Tensor> {
    let missing = || Error::Value(format!("{module} has no gradient"));
    grads.get(&format!("{module}.{factor}.weight")).ok_or_else(missing)
}

/// Sets A = 0 and B to the basis of its module.
fn set_factors(model: &mut TaskModel, mut bases: BTreeMap<String, Tensor>) -> Result<()> {
    let device = model.transformer().device().clone();
    for (name, tensor) in model.parameters_mut() {
        if name.ends_with(".lora_A.weight") {
            *tensor = Tensor::zeros(tensor.shape(), &device)?;
        } else if let Some(basis) = name.strip_suffix(".lora_B.weight").and_then(|module| bases.remove(module)) {
            *tensor = basis.to_device(&device)?;
        }
    }
    Ok(())
}
