//! The directions in which the inputs of every module vary, for adapters that begin along them ([`gelora_lora::eva`]).
//!
//! Every target module sees its inputs x (N, C_in) in forward passes of the frozen model. Up to [`WHOLE`] channels, the
//! covariance of the inputs is summed whole. With more, a first pass finds the range of the covariance and a second one
//! its values:
//!
//! ```text
//! Y = S G, G (C_in, k) random;  Q = orthonormal basis of Y       the first pass
//! T = Q^T S Q                                                    the second pass
//! ```
//!
//! Modules with the same inputs (queries, keys and values) are measured once. A language model's inputs are those at
//! the tokens that it is trained on, those of other models at all tokens.
//!
//! Source of the range finder: Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), section 4.5.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::random::Stream;
use gelora_kernels::{DType, Tensor};
use gelora_lora::directions;
use gelora_lora::eva::{Explained, most, redistributed};
use rayon::prelude::*;

use crate::event::{Reply, Report, report};
use crate::linear::transpose;
use crate::measure::{ModuleRank, sample};
use crate::probe::Probe;
use crate::{Batch, Error, Event, Result, Rows, TaskModel, Tokens, Work};

/// The most channels whose covariance is summed whole.
const WHOLE: usize = 1024;
/// Columns of the random matrix beside twice the wanted directions.
const SPARE: usize = 16;

/// Options of [`explained_inputs`].
#[derive(Clone, Debug)]
pub struct EvaOptions {
    /// How many times its rank a module may get, at least 1.
    pub rho: f64,
    /// Number of rows, drawn at random from the seed; all rows if there are fewer.
    pub rows: usize,
    /// Number of rows in one forward pass.
    pub batch_size: usize,
    /// Seed of the draw.
    pub seed: u64,
}

impl Default for EvaOptions {
    /// PEFT's rho.
    fn default() -> Self {
        Self { rho: 2.0, rows: 1000, batch_size: 32, seed: 0 }
    }
}

/// How adapters begin: their ranks, and A of every module.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Rank and alpha of every module that has a rank.
    pub ranks: BTreeMap<String, ModuleRank>,
    /// A (R, C_in) of each of these modules, on the CPU.
    pub factors: BTreeMap<String, Tensor>,
}

impl Start {
    /// Spends the sum of the ranks on the directions that explain the most variance. alpha / r of every module stays.
    ///
    /// # Errors
    /// If a module has not been measured, or rho is below 1.
    pub fn by_explained_variance(
        ranks: &BTreeMap<String, ModuleRank>,
        explained: &BTreeMap<String, Explained>,
        rho: f64,
    ) -> Result<Self> {
        let measured = |name: &String| {
            explained.get(name).ok_or_else(|| Error::Value(format!("the inputs of {name} were not measured")))
        };
        let modules: Vec<&Explained> = ranks.keys().map(measured).collect::<Result<_>>()?;
        let wanted: Vec<usize> = ranks.values().map(|module| module.rank).collect();
        let ratios: Vec<&[f64]> = modules.iter().map(|module| &module.ratios[..]).collect();
        let counts = redistributed(&wanted, &ratios, rho)?;
        let mut start = Self::default();
        for (((name, module), explained), rank) in ranks.iter().zip(modules).zip(counts) {
            if rank == 0 {
                continue;
            }
            let c_in = explained.directions.cols();
            let rows = explained.directions.to_vec()?[..rank * c_in].to_vec();
            let alpha = module.alpha / module.rank as f64 * rank as f64;
            start.ranks.insert(name.clone(), ModuleRank { rank, alpha });
            start.factors.insert(name.clone(), Tensor::from_vec(rows, [rank, c_in])?);
        }
        Ok(start)
    }
}

/// Measures the inputs of the modules that have a rank, on rows that need no labels. Of each module at most rho times
/// its rank directions are returned.
///
/// # Errors
/// Returns an error if there is no row, a module is not in the model, the device fails, or `progress` returns an error.
pub fn explained_inputs<R: Reply>(
    model: &mut TaskModel,
    rows: &dyn Rows,
    ranks: &BTreeMap<String, ModuleRank>,
    options: &EvaOptions,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<BTreeMap<String, Explained>> {
    let report: &mut Report<'_> = &mut report(progress);
    if rows.is_empty() {
        return Err(Error::Value("there are no rows whose inputs could be measured".into()));
    }
    let infos = model.transformer().linear_infos();
    if let Some(unknown) = ranks.keys().find(|name| !infos.iter().any(|info| info.name == **name)) {
        return Err(Error::Value(format!("the model has no linear module {unknown}")));
    }
    let counts = ranks.iter().map(|(name, module)| (name.clone(), most(module.rank, options.rho))).collect();
    let inputs = Arc::new(Inputs::new(counts, options.seed));
    let chosen = sample(rows.len(), options.rows, options.seed);
    let passes = if infos.iter().any(|info| ranks.contains_key(&info.name) && info.c_in > WHOLE) { 2 } else { 1 };
    report(Event::Began { work: Work::Inputs, units: passes * chosen.len() })?;
    let probe: Arc<dyn Probe> = inputs.clone();
    model.transformer_mut().watch_inputs(Some(&probe));
    let watched = (0..passes).try_for_each(|pass| -> Result<()> {
        if pass > 0 {
            inputs.lock().begin_second_pass()?;
        }
        for part in chosen.chunks(options.batch_size.max(1)) {
            forward(model, &inputs, &rows.tokens(part)?)?;
            report(Event::Advanced { units: part.len() })?;
        }
        Ok(())
    });
    model.transformer_mut().watch_inputs(None);
    watched?;
    report(Event::Finished { work: Work::Inputs })?;
    let seen = inputs.lock();
    let explained: Vec<Explained> = seen.groups.par_iter().map(Group::explained).collect::<Result<_>>()?;
    Ok(seen.group_of.iter().map(|(name, group)| (name.clone(), explained[*group].clone())).collect())
}

/// One forward pass.
fn forward(model: &TaskModel, inputs: &Inputs, tokens: &[Tokens]) -> Result<()> {
    let is_lm = model.head_task().is_none();
    let mut seen = inputs.lock();
    seen.chosen = tokens.iter().flat_map(|row| row.targets.iter().map(|target| *target || !is_lm)).collect();
    seen.last = None;
    drop(seen);
    model.transformer().last_state(&Batch::of_tokens(tokens)?)?;
    match inputs.lock().failure.take() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Sums over the inputs of modules.
struct Inputs(Mutex<Seen>);

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inputs").finish_non_exhaustive()
    }
}

impl Inputs {
    fn new(counts: BTreeMap<String, usize>, seed: u64) -> Self {
        let seen = Seen {
            counts,
            seed,
            groups: Vec::new(),
            group_of: BTreeMap::new(),
            chosen: Vec::new(),
            last: None,
            failure: None,
        };
        Self(Mutex::new(seen))
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for Inputs {
    fn wants(&self, module: &str) -> bool {
        self.lock().counts.contains_key(module)
    }

    fn see(&self, module: &str, x: &Tensor) {
        let seen = &mut *self.lock();
        if seen.failure.is_none() {
            seen.failure = seen.add(module, x).err();
        }
    }
}

struct Seen {
    /// Wanted directions of every module.
    counts: BTreeMap<String, usize>,
    seed: u64,
    groups: Vec<Group>,
    group_of: BTreeMap<String, usize>,
    /// Whether the inputs at each token of the batch count.
    chosen: Vec<bool>,
    /// The last inputs of this forward pass, and their group.
    last: Option<(Vec<f32>, usize)>,
    failure: Option<Error>,
}

impl Seen {
    fn add(&mut self, module: &str, x: &Tensor) -> Result<()> {
        let values = x.to_f32()?;
        if let Some((last, group)) = &self.last
            && **last == *values
        {
            let group = *group;
            let known = self.group_of.insert(module.to_owned(), group);
            let count = self.counts.get(module).copied().unwrap_or(0);
            self.groups[group].count = self.groups[group].count.max(count);
            return match known.is_none_or(|known| known == group) {
                true => Ok(()),
                false => Err(Error::Value(format!("{module} shares its inputs in one batch and not in another"))),
            };
        }
        let group = match self.group_of.get(module) {
            Some(group) => *group,
            None => {
                let count = self.counts.get(module).copied().unwrap_or(0);
                self.groups.push(Group::new(x.cols(), count, self.seed));
                self.group_of.insert(module.to_owned(), self.groups.len() - 1);
                self.groups.len() - 1
            }
        };
        if x.rows() != self.chosen.len() {
            let (rows, tokens) = (x.rows(), self.chosen.len());
            return Err(Error::Value(format!("{module} has {rows} inputs for {tokens} tokens")));
        }
        self.groups[group].add(&values, &self.chosen)?;
        self.last = Some((values.into_owned(), group));
        Ok(())
    }

    fn begin_second_pass(&mut self) -> Result<()> {
        self.last = None;
        self.groups.par_iter_mut().try_for_each(Group::begin_second_pass)
    }
}

/// Sums over the inputs of modules that have the same.
struct Group {
    c_in: usize,
    /// Wanted directions.
    count: usize,
    seed: u64,
    /// Number of inputs.
    n: usize,
    /// What is subtracted from every input: the mean of the first batch. Sums of squares lose fewer digits then.
    shift: Vec<f32>,
    /// Sum of the shifted inputs.
    sum: Vec<f64>,
    /// Sum of the squares of their values.
    squares: f64,
    moment: Moment,
}

/// Sums of products of shifted inputs.
enum Moment {
    /// sum of x x^T (C, C).
    Whole(Vec<f64>),
    /// G^T (k, C), and the sum of x (x^T G), transposed (k, C).
    Range(Tensor, Vec<f64>),
    /// Q^T (k, C), and the sum of (Q^T x) (Q^T x)^T (k, k), of inputs without their mean.
    Within(Tensor, Vec<f64>),
    /// Nothing more is wanted: the second pass of a covariance that is whole.
    Done(Vec<f64>),
}

impl Group {
    fn new(c_in: usize, count: usize, seed: u64) -> Self {
        let moment = Moment::Whole(Vec::new());
        Self { c_in, count, seed, n: 0, shift: Vec::new(), sum: vec![0.0; c_in], squares: 0.0, moment }
    }

    fn add(&mut self, values: &[f32], chosen: &[bool]) -> Result<()> {
        let c = self.c_in;
        let rows = || values.chunks(c).zip(chosen).filter(|(_, chosen)| **chosen).map(|(row, _)| row);
        let n = rows().count();
        if n == 0 || matches!(self.moment, Moment::Done(_)) {
            return Ok(());
        }
        if self.n == 0 {
            let mut sum = vec![0.0_f64; c];
            rows().for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x)));
            self.shift = sum.iter().map(|sum| (sum / n as f64) as f32).collect();
            self.moment = match c > WHOLE {
                true => {
                    let (k, mut stream) = (self.width(), Stream::at(self.seed, &[0x0065_7661, c as u64])); // "eva"
                    let random = (0..k * c).map(|_| stream.normal() as f32).collect();
                    Moment::Range(Tensor::from_vec(random, [k, c])?, vec![0.0; k * c])
                }
                false => Moment::Whole(vec![0.0; c * c]),
            };
        }
        let mut x = Vec::with_capacity(n * c);
        rows().for_each(|row| x.extend(row.iter().zip(&self.shift).map(|(x, shift)| x - shift)));
        if !matches!(self.moment, Moment::Within(..)) {
            self.n += n;
            for row in x.chunks(c) {
                self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            self.squares += x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        }
        let x = Tensor::from_vec(x, [n, c])?;
        let frozen = |tensor: Tensor| Weight::new(tensor, DType::F32);
        match &mut self.moment {
            Moment::Whole(sum) => {
                let across = transpose(&x)?;
                add_to(sum, &linear::forward(&across, &frozen(across.clone())?, None)?)
            }
            Moment::Range(random, sum) => {
                let along = linear::forward(&x, &frozen(random.clone())?, None)?; // x G (n, k)
                let across = transpose(&x)?;
                add_to(sum, &linear::forward(&transpose(&along)?, &frozen(across)?, None)?)
            }
            Moment::Within(basis, sum) => {
                let across = transpose(&linear::forward(&x, &frozen(basis.clone())?, None)?)?;
                add_to(sum, &linear::forward(&across, &frozen(across.clone())?, None)?)
            }
            Moment::Done(_) => Ok(()),
        }
    }

    /// Columns of the random matrix.
    fn width(&self) -> usize {
        (2 * self.count + SPARE).min(self.c_in)
    }

    /// Finds the range of the covariance, if it was not summed whole.
    fn begin_second_pass(&mut self) -> Result<()> {
        let c = self.c_in;
        self.moment = match std::mem::replace(&mut self.moment, Moment::Done(Vec::new())) {
            Moment::Whole(sum) => Moment::Done(sum),
            Moment::Range(random, mut sum) => {
                // Without the mean: Y - n m (m^T G).
                let k = random.rows();
                for (row, random) in sum.chunks_mut(c).zip(random.to_vec()?.chunks(c)) {
                    let dot: f64 = self.sum.iter().zip(random).map(|(sum, g)| sum * f64::from(*g)).sum();
                    let factor = dot / self.n as f64;
                    row.iter_mut().zip(&self.sum).for_each(|(value, sum)| *value -= factor * sum);
                }
                let scale = sum.iter().fold(0.0_f64, |most, value| most.max(value.abs())).max(f64::MIN_POSITIVE);
                let columns = (0..c * k).map(|i| (sum[i % k * c + i / k] / scale) as f32).collect();
                let basis = directions::basis(&Tensor::from_vec(columns, [c, k])?, k)?; // (C, k)
                for (shift, sum) in self.shift.iter_mut().zip(&self.sum) {
                    *shift += (sum / self.n as f64) as f32;
                }
                Moment::Within(transpose(&basis)?, vec![0.0; k * k])
            }
            other => other,
        };
        Ok(())
    }

    fn explained(&self) -> Result<Explained> {
        let n = self.n as f64;
        let whole = self.squares - self.sum.iter().map(|sum| sum * sum).sum::<f64>() / n.max(1.0);
        let (sum, basis) = match &self.moment {
            Moment::Within(basis, sum) => {
                return Ok(Explained::of_covariance(sum, self.count, whole, Some(basis))?);
            }
            Moment::Whole(sum) | Moment::Done(sum) => (sum, None),
            Moment::Range(..) => return Err(Error::Value("the inputs were seen in one pass of two".into())),
        };
        let c = self.c_in;
        let centered = sum.iter().enumerate().map(|(i, value)| value - self.sum[i / c] * self.sum[i % c] / n);
        Ok(Explained::of_covariance(&centered.collect::<Vec<_>>(), self.count, whole, basis)?)
    }
}

fn add_to(sum: &mut [f64], part: &Tensor) -> Result<()> {
    sum.iter_mut().zip(part.as_slice()?).for_each(|(sum, part)| *sum += f64::from(*part));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs with variances that fall, and a large mean.
    fn inputs(n: usize, c: usize, seed: u64) -> Vec<f32> {
        let mut stream = Stream::new(seed);
        (0..n * c).map(|i| (20.0 + stream.normal() * 10.0 / (1.0 + (i % c) as f64).powi(2)) as f32).collect()
    }

    fn explained(c: usize, count: usize) -> Result<Explained> {
        let mut group = Group::new(c, count, 1);
        for pass in 0..2 {
            if pass > 0 {
                group.begin_second_pass()?;
            }
            for seed in 0..4 {
                let chosen: Vec<bool> = (0..100).map(|i| i % 3 != 0).collect();
                group.add(&inputs(100, c, seed), &chosen)?;
            }
        }
        group.explained()
    }

    /// The covariance of the same inputs, from its definition.
    fn dense(c: usize) -> Vec<f64> {
        let all: Vec<f32> = (0..4).flat_map(|seed| inputs(100, c, seed)).collect();
        let rows: Vec<&[f32]> =
            all.chunks(c).enumerate().filter(|(i, _)| i % 100 % 3 != 0).map(|(_, row)| row).collect();
        let mean: Vec<f64> =
            (0..c).map(|j| rows.iter().map(|row| f64::from(row[j])).sum::<f64>() / rows.len() as f64).collect();
        let mut sum = vec![0.0; c * c];
        for row in rows {
            let x: Vec<f64> = row.iter().zip(&mean).map(|(x, mean)| f64::from(*x) - mean).collect();
            for (i, a) in x.iter().enumerate() {
                sum[i * c..(i + 1) * c].iter_mut().zip(&x).for_each(|(sum, b)| *sum += a * b);
            }
        }
        sum
    }

    #[test]
    fn sums_are_those_of_the_definition_whole_and_along_a_range() -> Result<()> {
        for c in [40, WHOLE + 6] {
            let (got, covariance) = (explained(c, 4)?, dense(c));
            let whole = (0..c).map(|i| covariance[i * c + i]).sum();
            let want = Explained::of_covariance(&covariance, 4, whole, None)?;
            for (got, want) in got.ratios.iter().zip(&want.ratios) {
                assert!((got / want - 1.0).abs() < 1e-4, "{c}: {got} {want}");
            }
            let (got, want) = (got.directions.to_vec()?, want.directions.to_vec()?);
            for (k, (got, want)) in got.chunks(c).zip(want.chunks(c)).enumerate() {
                let dot: f32 = got.iter().zip(want).map(|(a, b)| a * b).sum();
                assert!((dot.abs() - 1.0).abs() < 1e-4, "{c}, direction {k}: {dot}");
            }
        }
        Ok(())
    }

    #[test]
    fn ranks_go_where_variance_is_explained() -> Result<()> {
        let module = |ratios: &[f64]| -> Result<Explained> {
            let directions = Tensor::from_vec((0..3 * ratios.len()).map(|i| i as f32).collect(), [ratios.len(), 3])?;
            Ok(Explained { directions, ratios: ratios.to_vec() })
        };
        let explained = [("a", module(&[0.5, 0.4, 0.3])?), ("b", module(&[0.2, 0.1])?), ("c", module(&[0.05])?)];
        let explained = explained.map(|(name, module)| (name.to_owned(), module)).into();
        let ranks = ["a", "b", "c"].map(|name| (name.to_owned(), ModuleRank { rank: 2, alpha: 4.0 })).into();
        let start = Start::by_explained_variance(&ranks, &explained, 2.0)?;
        let found: Vec<(usize, f64)> = start.ranks.values().map(|module| (module.rank, module.alpha)).collect();
        assert_eq!(found, [(3, 6.0), (2, 4.0), (1, 2.0)]);
        assert_eq!(start.factors["b"].to_vec()?, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let tight = Start::by_explained_variance(&ranks, &explained, 1.0)?;
        assert_eq!(tight.ranks["a"].rank, 2);
        let missing = BTreeMap::from([("d".to_owned(), ModuleRank { rank: 1, alpha: 1.0 })]);
        let error = Start::by_explained_variance(&missing, &explained, 2.0).unwrap_err().to_string();
        assert!(error.contains("inputs of d"), "{error}");
        Ok(())
    }
}
