//! What rank each module needs, measured on gradients instead of dimensions.
//!
//! The gradient of the loss with respect to a frozen weight, G = dL/dW (C_out, C_in), is what a training first follows.
//! Of its singular directions only those matter that are in all of the data: [`gelora_lora::directions`] finds them by
//! comparing M parts of the rows. G is not formed where it is large. With a LoRA layer of rank M k beside the weight:
//!
//! ```text
//! A random, B = 0               dL/dB_c = G_c A^T     of each part c: with it the basis Q_c (C_out, k) of the other
//! parts A = 0, B = [Q_0 .. Q_(M-1)]   dL/dA_c = B^T G_c     Q_c^T G_c, and Q_c^T G of the other parts
//! ```
//!
//! Between the two, a power iteration turns every Q_c to the largest singular directions: Q_c^T G of the other parts,
//! with orthonormal rows, takes the place of A. In every pass the model computes what the frozen model computes. Where
//! a size of the weight is at most M k, the second pass alone gives G_c itself, with the identity as a factor. A
//! classifier's fresh head is trained alone first: the gradient below a random head says nothing.
//!
//! [`module_ranks`] turns this, or a training that is cut, into the ranks of a policy.
//!
//! Source of the range finder: Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), sections 4.1
//! and 4.5.

mod modules;

use std::collections::BTreeMap;

use gelora_kernels::Tensor;
use gelora_kernels::random::Stream;
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
    /// Number of singular directions that are looked at. No more than half as many can be found.
    pub width: usize,
    /// Number of columns k of a basis: at least `width`, and some more for the last directions. The LoRA layers have
    /// the rank M k.
    pub sketch: usize,
    /// Number of power iterations, each of two forward and backward passes over the rows.
    pub iterations: usize,
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
            width: 48,
            sketch: 64,
            iterations: 1,
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
        return Err(Error::Value(format!("{} directions to look at; expected 2 or more", options.width)));
    }
    if options.sketch < options.width {
        let problem = format!("a sketch of {} columns; expected {} or more", options.sketch, options.width);
        return Err(Error::Value(problem));
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
    let modules = add_adapters(&mut model, options)?;
    let parts = parts(rows.len(), options.parts, options.seed);
    let batch = options.batch_size.max(1);
    let is_sketched = modules.iter().any(|module| module.form == Form::Sketch);
    let passes = if is_sketched { 2 + 2 * options.iterations } else { 1 };
    report(Event::Began { work: Work::Gradients, units: passes * rows.len() })?;
    let mut pass = |model: &TaskModel, read: Read| -> Result<Vec<Vec<Fold>>> {
        let mut sums = vec![Vec::new(); modules.len()];
        let mut own = vec![Vec::new(); modules.len()];
        for (fold, part) in parts.iter().enumerate() {
            let mut grads = Grads::new();
            mean_gradient(model, rows, part, batch, &mut grads, report)?;
            for (module, (sum, own)) in modules.iter().zip(sums.iter_mut().zip(&mut own)) {
                let values = module.gradient(&grads, read)?;
                own.push(module.seen(&values, read, fold));
                match sum.is_empty() {
                    true => *sum = values,
                    false => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
                }
            }
        }
        let folds = modules.iter().zip(sums).zip(own).map(|((module, sum), own)| {
            let fold = |(fold, part): (usize, Vec<f32>)| {
                let mut others = module.seen(&sum, read, fold);
                others.iter_mut().zip(&part).for_each(|(sum, value)| *sum -= value);
                Fold { part, others }
            };
            own.into_iter().enumerate().map(fold).collect()
        });
        Ok(folds.collect())
    };
    if is_sketched {
        let bases = |folds: Vec<Vec<Fold>>, read: Read| -> Result<Vec<Factor>> {
            modules.par_iter().zip(folds).map(|(module, folds)| module.bases(&folds, read)).collect()
        };
        let folds = pass(&model, Read::Sketches)?;
        set_factors(&mut model, &modules, bases(folds, Read::Sketches)?)?;
        for _ in 0..options.iterations {
            let folds = pass(&model, Read::Projections)?;
            let turned = modules.par_iter().zip(folds).map(|(module, folds)| module.turned(&folds));
            let turned = turned.collect::<Result<_>>()?;
            set_factors(&mut model, &modules, turned)?;
            let folds = pass(&model, Read::Ranges)?;
            set_factors(&mut model, &modules, bases(folds, Read::Ranges)?)?;
        }
    } else {
        let identities = modules.iter().map(Module::identity).collect::<Result<_>>()?;
        set_factors(&mut model, &modules, identities)?;
    }
    let folds = pass(&model, Read::Projections)?;
    report(Event::Finished { work: Work::Gradients })?;
    let need = |(module, folds): (&Module, Vec<Fold>)| {
        let sizes = [module.rows(), module.c_in];
        let values = |fold: Fold| directions::of_fold(&fold.part, &fold.others, sizes, options.width);
        let values: Vec<Vec<f64>> = folds.into_par_iter().map(values).collect::<gelora_lora::Result<_>>()?;
        let directions = directions::replicated(&values, options.confidence)?;
        Ok(Need::new(module.name.clone(), directions, module.c_in, module.c_out))
    };
    modules.par_iter().zip(folds).map(need).collect()
}

/// What is read of a pass over all parts.
#[derive(Clone, Copy, PartialEq)]
enum Read {
    /// G A^T of the first 2 k rows of A: (C_out, 2 k), the same for every fold.
    Sketches,
    /// G A^T of the k rows of A that are the fold's: (C_out, k).
    Ranges,
    /// B^T G of the k columns of B that are the fold's: (k, C_in).
    Projections,
}

/// What a fold sees of the gradient of its own part, and of the sum of the others.
struct Fold {
    part: Vec<f32>,
    others: Vec<f32>,
}

/// How the gradient of a module is seen.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// Through the basis of each fold.
    Sketch,
    /// Whole, as dL/dA with B = I.
    Output,
    /// Whole, as dL/dB with A = I.
    Input,
}

/// A factor of a LoRA layer; the other one becomes 0.
enum Factor {
    A(Tensor),
    B(Tensor),
}

/// A module that is measured.
struct Module {
    name: String,
    c_in: usize,
    c_out: usize,
    /// Columns of the basis of a fold.
    k: usize,
    /// Rank of the LoRA layer.
    rank: usize,
    form: Form,
}

impl Module {
    fn new(info: &LinearInfo, options: &GradientOptions) -> Self {
        let (c_in, c_out, k) = (info.c_in, info.c_out, options.sketch);
        let sketched = options.parts * k;
        let form = match sketched < c_in.min(c_out) {
            true => Form::Sketch,
            false if c_out <= c_in => Form::Output,
            false => Form::Input,
        };
        Self { name: info.name.clone(), c_in, c_out, k, rank: sketched.min(c_in).min(c_out), form }
    }

    /// Number of rows of what a fold sees in the end.
    fn rows(&self) -> usize {
        if self.form == Form::Sketch { self.k } else { self.c_out }
    }

    /// The gradient of the factor that is 0: A (R, C_in) or B (C_out, R).
    fn gradient(&self, grads: &Grads, read: Read) -> Result<Vec<f32>> {
        let of_a = match self.form {
            Form::Sketch => read == Read::Projections,
            whole => whole == Form::Output,
        };
        let name = format!("{}.lora_{}.weight", self.name, if of_a { "A" } else { "B" });
        let gradient = grads.get(&name).ok_or_else(|| Error::Value(format!("{name} has no gradient")))?;
        Ok(gradient.to_vec()?)
    }

    /// The values of a gradient that a fold looks at.
    fn seen(&self, gradient: &[f32], read: Read, fold: usize) -> Vec<f32> {
        let (k, rank) = (self.k, self.rank);
        let columns = |first: usize, count: usize| {
            gradient.chunks(rank).flat_map(|row| &row[first..first + count]).copied().collect()
        };
        match (self.form, read) {
            (Form::Output | Form::Input, Read::Projections) => gradient.to_vec(),
            (Form::Output | Form::Input, _) => Vec::new(),
            (Form::Sketch, Read::Sketches) => columns(0, 2 * k),
            (Form::Sketch, Read::Ranges) => columns(fold * k, k),
            (Form::Sketch, Read::Projections) => gradient[fold * k * self.c_in..][..k * self.c_in].to_vec(),
        }
    }

    /// B (C_out, R): the bases of the folds, of what they see of the other parts.
    fn bases(&self, folds: &[Fold], read: Read) -> Result<Factor> {
        if self.form != Form::Sketch {
            return self.identity();
        }
        let (k, rank, seen) = (self.k, self.rank, if read == Read::Sketches { 2 * self.k } else { self.k });
        let mut b = vec![0.0; self.c_out * rank];
        for (fold, Fold { others, .. }) in folds.iter().enumerate() {
            let sketch = Tensor::from_vec(others.clone(), [self.c_out, seen])?;
            let basis = directions::basis(&sketch, k)?.to_vec()?;
            for (row, values) in b.chunks_mut(rank).zip(basis.chunks(k)) {
                row[fold * k..][..k].copy_from_slice(values);
            }
        }
        Ok(Factor::B(Tensor::from_vec(b, [self.c_out, rank])?))
    }

    /// A (R, C_in): for each fold orthonormal rows that span Q^T G of the other parts.
    fn turned(&self, folds: &[Fold]) -> Result<Factor> {
        if self.form != Form::Sketch {
            return self.identity();
        }
        let (k, c_in) = (self.k, self.c_in);
        let mut a = vec![0.0; self.rank * c_in];
        for (block, Fold { others, .. }) in a.chunks_mut(k * c_in).zip(folds) {
            let across = (0..c_in * k).map(|i| others[i % k * c_in + i / k]).collect();
            let basis = directions::basis(&Tensor::from_vec(across, [c_in, k])?, k)?.to_vec()?; // (C_in, k)
            block.iter_mut().enumerate().for_each(|(i, value)| *value = basis[i % c_in * k + i / c_in]);
        }
        Ok(Factor::A(Tensor::from_vec(a, [self.rank, c_in])?))
    }

    /// The factor with which the other one's gradient is G.
    fn identity(&self) -> Result<Factor> {
        let n = self.rank;
        let identity = (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
        let identity = Tensor::from_vec(identity, [n, n])?;
        Ok(if self.form == Form::Input { Factor::A(identity) } else { Factor::B(identity) })
    }
}

/// Adds a LoRA layer to every target module, with a random A, B = 0 and the scaling 1.
fn add_adapters(model: &mut TaskModel, options: &GradientOptions) -> Result<Vec<Module>> {
    let transformer = model.transformer();
    let infos = transformer.linear_infos();
    let targets = TargetModules::new(&infos, transformer.config().layers, Granularity::Block, &options.target_modules)?;
    let modules: Vec<Module> = targets.modules.iter().map(|(info, _)| Module::new(info, options)).collect();
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

/// Sets one factor of every module, and the other one to 0.
fn set_factors(model: &mut TaskModel, modules: &[Module], factors: Vec<Factor>) -> Result<()> {
    let device = model.transformer().device().clone();
    let named = |(module, factor): (&Module, Factor)| match factor {
        Factor::A(tensor) => (format!("{}.lora_A.weight", module.name), tensor),
        Factor::B(tensor) => (format!("{}.lora_B.weight", module.name), tensor),
    };
    let mut factors: BTreeMap<String, Tensor> = modules.iter().zip(factors).map(named).collect();
    for (name, tensor) in model.parameters_mut() {
        if name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight") {
            *tensor = match factors.remove(&name) {
                Some(factor) => factor.to_device(&device)?,
                None => Tensor::zeros(tensor.shape(), &device)?,
            };
        }
    }
    Ok(())
}
