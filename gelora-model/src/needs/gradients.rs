//! The gradients of frozen weights, G_c of each of M parts of the rows, by LoRA backward passes.
//!
//! In every pass one factor of a LoRA layer is 0, so the model computes what the frozen model computes, and the
//! gradient of that factor is a product of G and the other one.
//!
//! ```text
//! whole        B = I:                    dL/dA = G_c       or, with fewer inputs than outputs, A = I: dL/dB = G_c
//!
//! sketched     A random:                 dL/dB = G_c A^T   the basis Q_c (C_out, k) of the other parts' sum
//!              B = [Q_0 .. Q_(M-1)]:     dL/dA = B^T G_c   A_c: orthonormal rows that span Q_c^T G of the other parts
//!              A = [A_0 .. A_(M-1)]:     dL/dB = G_c A^T   Q_c again, turned to the largest directions
//!              B = [Q_0 .. Q_(M-1)]:     dL/dA = B^T G_c   Q_c^T G_c, and Q_c^T G of the other parts
//! ```
//!
//! Part c is in none of what belongs to fold c: its noise would count as signal.
//!
//! Source of the sketches: Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), sections 4.1 and
//! 4.5.

use std::collections::{BTreeMap, BTreeSet};

use gelora_kernels::Tensor;
use gelora_kernels::random::Stream;
use gelora_lora::directions::{self, Directions};
use rayon::prelude::*;

use super::GradientOptions;
use crate::event::Report;
use crate::measure::{ModuleRank, TargetModules, adapter_config};
use crate::{Error, Event, Grads, Granularity, LinearInfo, Mode, Result, Rows, TaskModel, Tokens, Work};

/// The directions of every target module that replicate. The model has LoRA layers afterwards.
pub fn directions(
    model: &mut TaskModel,
    rows: &dyn Rows,
    options: &GradientOptions,
    report: &mut Report<'_>,
) -> Result<Vec<(LinearInfo, Directions)>> {
    let modules = add_adapters(model, options)?;
    let parts = parts(rows.len(), options.parts, options.seed);
    let sketches = if modules.iter().any(|module| module.form == Form::Sketched) { Read::SKETCHES } else { &[] };
    let passes = sketches.len() + 1;
    report(Event::Began { work: Work::Gradients, units: passes * rows.len() })?;
    let mut pass = |model: &TaskModel, read: Read| -> Result<Vec<Seen>> {
        let mut seen: Vec<Seen> = modules.iter().map(|_| Seen::default()).collect();
        for (fold, part) in parts.iter().enumerate() {
            let mut grads = Grads::new();
            mean_gradient(model, rows, part, options.batch_size.max(1), &mut grads, report)?;
            for (module, seen) in modules.iter().zip(&mut seen).filter(|(module, _)| module.is_read(read)) {
                let values = module.gradient(&grads, read)?;
                seen.parts.push(module.of_fold(&values, read, fold));
                seen.sum.resize(values.len(), 0.0);
                seen.sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
        Ok(seen)
    };
    let is_sketched = |module: &&Module| module.form == Form::Sketched;
    set_factors(
        model,
        modules.iter().filter(|module| !is_sketched(module)).map(Module::identity).collect::<Result<_>>()?,
    )?;
    for &read in sketches {
        let seen = pass(model, read)?;
        let next = modules.par_iter().zip(seen).filter(|(module, _)| is_sketched(module));
        let next = next.map(|(module, seen)| module.next(&seen, read)).collect::<Result<_>>()?;
        set_factors(model, next)?;
    }
    let seen = pass(model, Read::Projections)?;
    report(Event::Finished { work: Work::Gradients })?;
    let found = |(module, seen): (Module, Seen)| {
        let size = [module.rows(), module.info.c_in];
        let values = |(fold, part): (usize, &Vec<f32>)| {
            let mut others = module.others(&seen, Read::Projections, fold);
            others.iter_mut().for_each(|sum| *sum /= (options.parts - 1) as f32);
            directions::of_fold(part, &others, size, options.width)
        };
        let folds = seen.parts.par_iter().enumerate().map(values).collect::<gelora_lora::Result<Vec<_>>>()?;
        Ok((module.info, directions::replicated(&folds, options.confidence)?))
    };
    modules.into_par_iter().zip(seen).map(found).collect()
}

/// What is read of a pass.
#[derive(Clone, Copy, PartialEq)]
enum Read {
    /// G A^T of the first 2 k rows of A: (C_out, 2 k), the same for every fold.
    Sketches,
    /// B^T G of the k columns of B that are the fold's: (k, C_in); G itself (C_out, C_in) where it is seen whole.
    Projections,
    /// G A^T of the k rows of A that are the fold's: (C_out, k).
    Ranges,
}

impl Read {
    /// What comes before the last pass, if a module is sketched.
    const SKETCHES: &[Self] = &[Self::Sketches, Self::Projections, Self::Ranges];
}

/// What a pass shows of a module's gradient.
#[derive(Default)]
struct Seen {
    /// The gradient of the factor that is 0, summed over the parts.
    sum: Vec<f32>,
    /// What each fold looks at, of its own part.
    parts: Vec<Vec<f32>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Sketched,
    /// Whole, with B = I.
    ByOutputs,
    /// Whole, with A = I.
    ByInputs,
}

/// A factor of a LoRA layer, by its name; the other one becomes 0.
type Factor = (String, Tensor);

/// A module that is measured.
struct Module {
    info: LinearInfo,
    /// Columns of the basis of a fold.
    k: usize,
    /// Rank of the LoRA layer.
    rank: usize,
    form: Form,
}

impl Module {
    fn new(info: &LinearInfo, options: &GradientOptions) -> Self {
        let (least, columns) = (info.c_in.min(info.c_out), options.parts * options.columns);
        let (form, rank) = match least > options.whole.max(columns) {
            true => (Form::Sketched, columns),
            false if info.c_out <= info.c_in => (Form::ByOutputs, least),
            false => (Form::ByInputs, least),
        };
        Self { info: info.clone(), k: options.columns, rank, form }
    }

    /// Number of rows of what a fold sees in the last pass.
    fn rows(&self) -> usize {
        if self.form == Form::Sketched { self.k } else { self.info.c_out }
    }

    /// Whether a pass shows anything of the module.
    fn is_read(&self, read: Read) -> bool {
        self.form == Form::Sketched || read == Read::Projections
    }

    fn a(&self) -> String {
        format!("{}.lora_A.weight", self.info.name)
    }

    fn b(&self) -> String {
        format!("{}.lora_B.weight", self.info.name)
    }

    /// The gradient of the factor that is 0: A (R, C_in) or B (C_out, R).
    fn gradient(&self, grads: &Grads, read: Read) -> Result<Vec<f32>> {
        let is_of_a = match self.form {
            Form::Sketched => read == Read::Projections,
            Form::ByOutputs => true,
            Form::ByInputs => false,
        };
        let name = if is_of_a { self.a() } else { self.b() };
        let gradient = grads.get(&name).ok_or_else(|| Error::Value(format!("{name} has no gradient")))?;
        Ok(gradient.to_vec()?)
    }

    /// The values of a gradient that a fold looks at.
    fn of_fold(&self, gradient: &[f32], read: Read, fold: usize) -> Vec<f32> {
        let (k, c_in) = (self.k, self.info.c_in);
        let columns = |first: usize, count: usize| {
            gradient.chunks(self.rank).flat_map(|row| &row[first..first + count]).copied().collect()
        };
        match (self.form, read) {
            (Form::ByOutputs | Form::ByInputs, _) => gradient.to_vec(),
            (Form::Sketched, Read::Sketches) => columns(0, 2 * k),
            (Form::Sketched, Read::Projections) => gradient[fold * k * c_in..][..k * c_in].to_vec(),
            (Form::Sketched, Read::Ranges) => columns(fold * k, k),
        }
    }

    /// What a fold sees of the sum of the other parts.
    fn others(&self, seen: &Seen, read: Read, fold: usize) -> Vec<f32> {
        let mut others = self.of_fold(&seen.sum, read, fold);
        others.iter_mut().zip(&seen.parts[fold]).for_each(|(sum, part)| *sum -= part);
        others
    }

    /// The factor with which the other one's gradient is G.
    fn identity(&self) -> Result<Factor> {
        let n = self.rank;
        let identity = (0..n * n).map(|i| f32::from(u8::from(i % (n + 1) == 0))).collect();
        let name = if self.form == Form::ByInputs { self.a() } else { self.b() };
        Ok((name, Tensor::from_vec(identity, [n, n])?))
    }

    /// The factor of the pass after this one, of a module that is sketched.
    fn next(&self, seen: &Seen, read: Read) -> Result<Factor> {
        let (k, rank, c_in, c_out) = (self.k, self.rank, self.info.c_in, self.info.c_out);
        let folds = 0..seen.parts.len();
        if read == Read::Projections {
            let mut a = vec![0.0; rank * c_in];
            for (block, fold) in a.chunks_mut(k * c_in).zip(folds) {
                let others = self.others(seen, read, fold); // (k, C_in)
                let across = (0..c_in * k).map(|i| others[i % k * c_in + i / k]).collect();
                let basis = directions::basis(&Tensor::from_vec(across, [c_in, k])?, k)?.to_vec()?; // (C_in, k)
                block.iter_mut().enumerate().for_each(|(i, value)| *value = basis[i % c_in * k + i / c_in]);
            }
            return Ok((self.a(), Tensor::from_vec(a, [rank, c_in])?));
        }
        let mut b = vec![0.0; c_out * rank];
        for fold in folds {
            let others = self.others(seen, read, fold); // (C_out, k) or (C_out, 2 k)
            let columns = others.len() / c_out;
            let basis = directions::basis(&Tensor::from_vec(others, [c_out, columns])?, k)?.to_vec()?;
            for (row, values) in b.chunks_mut(rank).zip(basis.chunks(k)) {
                row[fold * k..][..k].copy_from_slice(values);
            }
        }
        Ok((self.b(), Tensor::from_vec(b, [c_out, rank])?))
    }
}

/// Adds a LoRA layer to every target module, with a random A, B = 0 and the scaling 1.
fn add_adapters(model: &mut TaskModel, options: &GradientOptions) -> Result<Vec<Module>> {
    let transformer = model.transformer();
    let infos = transformer.linear_infos();
    let targets = TargetModules::new(&infos, transformer.config().layers, Granularity::Block, &options.target_modules)?;
    let modules: Vec<Module> = targets.modules.iter().map(|(info, _)| Module::new(info, options)).collect();
    let rank =
        |module: &Module| (module.info.name.clone(), ModuleRank { rank: module.rank, alpha: module.rank as f64 });
    let config = adapter_config(transformer, &modules.iter().map(rank).collect(), model.adapter_task())?;
    model.add_adapters(&config, options.seed)?;
    Ok(modules)
}

/// Sets these factors, and the other ones of their modules to 0.
fn set_factors(model: &mut TaskModel, factors: Vec<Factor>) -> Result<()> {
    let device = model.transformer().device().clone();
    let other = |name: &str| match name.strip_suffix(".lora_A.weight") {
        Some(module) => format!("{module}.lora_B.weight"),
        None => name.replace(".lora_B.weight", ".lora_A.weight"),
    };
    let mut factors: BTreeMap<String, Tensor> = factors.into_iter().collect();
    let zeros: BTreeSet<String> = factors.keys().map(|name| other(name)).collect();
    for (name, tensor) in model.parameters_mut() {
        if let Some(factor) = factors.remove(&name) {
            *tensor = factor.to_device(&device)?;
        } else if zeros.contains(&name) {
            *tensor = Tensor::zeros(tensor.shape(), &device)?;
        }
    }
    Ok(())
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
