//! The directions in which the inputs of every module vary, for adapters that begin along them ([`gelora_lora::eva`]).
//!
//! Every target module sees its inputs x (N, C_in) in forward passes of the frozen model. Up to [`WHOLE`] channels, their
//! covariance S is summed whole, in one pass. With more, three passes find its range and its values in the range:
//!
//! ```text
//! Q_1 = basis of S G, G (C_in, k) random
//! Q_2 = basis of S Q_1
//! T   = Q_2^T S Q_2
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
use crate::{Batch, Error, Event, LinearInfo, Result, Rows, TaskModel, Tokens, Work};

/// The most channels whose covariance is summed whole.
const WHOLE: usize = 1024;
/// Columns of the random matrix beside twice the wanted directions.
const SPARE: usize = 16;

/// Options of [`explained_inputs`].
#[derive(Clone, Debug)]
pub struct EvaOptions {
    /// Directions of a module, as a multiple of its rank, at least 1.
    pub rho: f64,
    /// Number of rows, drawn at random from the seed; all rows if there are fewer.
    pub rows: usize,
    /// Number of tokens after which no further rows are taken.
    pub tokens: usize,
    /// Number of rows in one forward pass.
    pub batch_size: usize,
    /// Seed of the draw.
    pub seed: u64,
}

impl Default for EvaOptions {
    /// PEFT's rho.
    fn default() -> Self {
        Self { rho: 2.0, rows: 1000, tokens: 65_536, batch_size: 32, seed: 0 }
    }
}

/// The ranks and values that adapters begin with.
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
    /// If a module has no rank, or a device fails.
    pub fn by_explained_variance(
        ranks: &BTreeMap<String, ModuleRank>,
        explained: &[(String, Explained)],
    ) -> Result<Self> {
        let total = ranks.values().map(|module| module.rank).sum();
        let ratios: Vec<&[f64]> = explained.iter().map(|(_, module)| &module.ratios[..]).collect();
        let mut start = Self::default();
        for ((name, explained), rank) in explained.iter().zip(redistributed(total, &ratios)) {
            let module =
                ranks.get(name).ok_or_else(|| Error::Value(format!("{name} was measured, but has no rank")))?;
            if rank > 0 {
                let alpha = module.alpha / module.rank as f64 * rank as f64;
                start.ranks.insert(name.clone(), ModuleRank { rank, alpha });
                start.factors.insert(name.clone(), explained.first(rank)?.directions);
            }
        }
        Ok(start)
    }
}

/// Measures the inputs of the modules that have a rank, on rows that need no labels. Modules are returned in the order
/// of the model, each with at most rho times its rank directions; modules with the same inputs have as many as the one
/// with the highest rank.
///
/// # Errors
/// Returns an error if there is no row, a module is not in the model, rho is below 1, the inputs of a module do not vary,
/// the device fails, or `progress` returns an error.
pub fn explained_inputs<R: Reply>(
    model: &mut TaskModel,
    rows: &dyn Rows,
    ranks: &BTreeMap<String, ModuleRank>,
    options: &EvaOptions,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<Vec<(String, Explained)>> {
    let report: &mut Report<'_> = &mut report(progress);
    if rows.is_empty() {
        return Err(Error::Value("there are no rows whose inputs could be measured".into()));
    }
    if !(options.rho.is_finite() && options.rho >= 1.0) {
        return Err(Error::Value(format!("rho is {}; expected 1 or more", options.rho)));
    }
    let infos: Vec<LinearInfo> =
        model.transformer().linear_infos().into_iter().filter(|info| ranks.contains_key(&info.name)).collect();
    if let Some(unknown) = ranks.keys().find(|name| !infos.iter().any(|info| info.name == **name)) {
        return Err(Error::Value(format!("the model has no linear module {unknown}")));
    }
    let mut chosen = sample(rows.len(), options.rows, options.seed);
    let batch = options.batch_size.max(1);
    let passes = if infos.iter().any(|info| info.c_in > WHOLE) { 3 } else { 1 };
    report(Event::Began { work: Work::Inputs, units: passes * chosen.len() })?;
    // One batch tells which modules have the same inputs.
    let counts = ranks.iter().map(|(name, module)| (name.clone(), most(module.rank, options.rho))).collect();
    let grouping = Arc::new(Grouping::new(counts));
    let tokens = rows.tokens(&chosen[..batch.min(chosen.len())])?;
    watched(model, grouping.clone(), |model| forward(model, &tokens))?;
    let found = grouping.lock().finish()?;
    let members = found.group_of.clone();
    // The first module of each group is watched from here on.
    let sums = Arc::new(Sums::new(found, options.seed));
    for pass in 0..passes {
        if pass > 0 {
            sums.lock().end_pass()?;
        }
        let mut seen = 0;
        for (index, part) in chosen.clone().chunks(batch).enumerate() {
            let tokens = rows.tokens(part)?;
            sums.lock().begin_batch(&tokens, model.head_task().is_none());
            watched(model, sums.clone(), |model| forward(model, &tokens))?;
            sums.lock().failure.take().map_or(Ok(()), Err)?;
            report(Event::Advanced { units: part.len() })?;
            seen += tokens.iter().map(|row| row.ids.len()).sum::<usize>();
            if seen >= options.tokens {
                chosen.truncate((index + 1) * batch);
                break;
            }
        }
    }
    report(Event::Finished { work: Work::Inputs })?;
    let groups = &sums.lock().groups;
    let explained: Vec<Explained> = groups.par_iter().map(Group::explained).collect::<Result<_>>()?;
    let of_module = |info: &LinearInfo| {
        let group = members.get(&info.name).copied().unwrap_or_default();
        Ok((info.name.clone(), explained[group].first(info.c_in.min(info.c_out))?))
    };
    infos.iter().map(of_module).collect()
}

/// Runs the model while a probe sees the inputs of its modules.
fn watched(model: &mut TaskModel, probe: Arc<dyn Probe>, run: impl FnOnce(&TaskModel) -> Result<()>) -> Result<()> {
    model.transformer_mut().watch_inputs(Some(&probe));
    let ran = run(model);
    model.transformer_mut().watch_inputs(None);
    ran
}

/// One forward pass.
fn forward(model: &TaskModel, tokens: &[Tokens]) -> Result<()> {
    model.transformer().last_state(&Batch::of_tokens(tokens)?).map(drop)
}

/// Finds modules with the same inputs.
struct Grouping(Mutex<Same>);

struct Same {
    /// Wanted directions of every module.
    counts: BTreeMap<String, usize>,
    found: Found,
    /// The inputs of the module before, and its group.
    last: Option<(Vec<f32>, usize)>,
    failure: Option<Error>,
}

/// Modules with the same inputs.
#[derive(Clone, Default)]
struct Found {
    /// Number of channels and wanted directions of each group.
    groups: Vec<(usize, usize)>,
    group_of: BTreeMap<String, usize>,
    /// The first module of each group.
    first: BTreeMap<String, usize>,
}

impl fmt::Debug for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grouping").finish_non_exhaustive()
    }
}

impl Grouping {
    fn new(counts: BTreeMap<String, usize>) -> Self {
        Self(Mutex::new(Same { counts, found: Found::default(), last: None, failure: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Same> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for Grouping {
    fn wants(&self, module: &str) -> bool {
        self.lock().counts.contains_key(module)
    }

    fn see(&self, module: &str, x: &Tensor) {
        let same = &mut *self.lock();
        if same.failure.is_none() {
            same.failure = same.add(module, x).err();
        }
    }
}

impl Same {
    fn add(&mut self, module: &str, x: &Tensor) -> Result<()> {
        let (values, count) = (x.to_vec()?, self.counts.get(module).copied().unwrap_or_default());
        let found = &mut self.found;
        if let Some((_, group)) = self.last.as_ref().filter(|(last, _)| *last == values) {
            found.group_of.insert(module.to_owned(), *group);
            found.groups[*group].1 = found.groups[*group].1.max(count);
            return Ok(());
        }
        let group = found.groups.len();
        found.groups.push((x.cols(), count));
        found.group_of.insert(module.to_owned(), group);
        found.first.insert(module.to_owned(), group);
        self.last = Some((values, group));
        Ok(())
    }

    fn finish(&mut self) -> Result<Found> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        match self.counts.keys().find(|module| !self.found.group_of.contains_key(*module)) {
            Some(module) => Err(Error::Value(format!("{module} has no inputs in a forward pass"))),
            None => Ok(self.found.clone()),
        }
    }
}

/// Sums over the inputs of modules.
struct Sums(Mutex<Seen>);

struct Seen {
    /// The first module of each group.
    first: BTreeMap<String, usize>,
    groups: Vec<Group>,
    /// Whether the inputs at each token of the batch count.
    chosen: Vec<bool>,
    failure: Option<Error>,
}

impl fmt::Debug for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sums").finish_non_exhaustive()
    }
}

impl Sums {
    fn new(found: Found, seed: u64) -> Self {
        let groups = found.groups.into_iter().map(|(c_in, count)| Group::new(c_in, count, seed)).collect();
        Self(Mutex::new(Seen { first: found.first, groups, chosen: Vec::new(), failure: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for Sums {
    fn wants(&self, module: &str) -> bool {
        self.lock().first.contains_key(module)
    }

    fn see(&self, module: &str, x: &Tensor) {
        let seen = &mut *self.lock();
        if seen.failure.is_none() {
            seen.failure = seen.add(module, x).err();
        }
    }
}

impl Seen {
    fn begin_batch(&mut self, tokens: &[Tokens], is_lm: bool) {
        self.chosen = tokens.iter().flat_map(|row| row.targets.iter().map(|target| *target || !is_lm)).collect();
    }

    fn add(&mut self, module: &str, x: &Tensor) -> Result<()> {
        if x.rows() != self.chosen.len() {
            let (rows, tokens) = (x.rows(), self.chosen.len());
            return Err(Error::Value(format!("{module} has {rows} inputs for {tokens} tokens")));
        }
        match self.first.get(module) {
            Some(group) => self.groups[*group].add(&x.to_vec()?, &self.chosen),
            None => Ok(()),
        }
    }

    fn end_pass(&mut self) -> Result<()> {
        self.groups.par_iter_mut().try_for_each(Group::end_pass)
    }
}

/// Sums over the inputs of modules that have the same.
struct Group {
    c_in: usize,
    /// Wanted directions.
    count: usize,
    seed: u64,
    /// Passes that have ended.
    pass: usize,
    /// Number of inputs.
    n: usize,
    /// What is subtracted from every input: the mean of the first batch in the first pass, then that of all inputs. Sums
    /// of squares lose fewer digits.
    shift: Vec<f32>,
    /// Sum of the shifted inputs of the first pass.
    sum: Vec<f64>,
    /// Sum of the squares of their values.
    squares: f64,
    moment: Moment,
}

/// Sums of products of shifted inputs.
enum Moment {
    /// No input was seen.
    Nothing,
    /// sum of x x^T (C, C).
    Whole(Vec<f64>),
    /// G^T (k, C), and the sum of x (x^T G), transposed (k, C).
    Range(Tensor, Vec<f64>),
    /// Q^T (k, C), and the sum of (Q^T x) (Q^T x)^T (k, k).
    Within(Tensor, Vec<f64>),
}

impl Group {
    fn new(c_in: usize, count: usize, seed: u64) -> Self {
        let (sum, moment) = (vec![0.0; c_in], Moment::Nothing);
        Self { c_in, count, seed, pass: 0, n: 0, shift: Vec::new(), sum, squares: 0.0, moment }
    }

    fn add(&mut self, values: &[f32], chosen: &[bool]) -> Result<()> {
        let c = self.c_in;
        let rows = || values.chunks(c).zip(chosen).filter(|(_, chosen)| **chosen).map(|(row, _)| row);
        let n = rows().count();
        if n == 0 || (self.pass > 0 && matches!(self.moment, Moment::Whole(_))) {
            return Ok(());
        }
        if let Moment::Nothing = self.moment {
            let mut sum = vec![0.0_f64; c];
            rows().for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x)));
            self.shift = sum.iter().map(|sum| (sum / n as f64) as f32).collect();
            self.moment = match c > WHOLE {
                true => {
                    let k = (2 * self.count + SPARE).min(c);
                    let mut stream = Stream::at(self.seed, &[0x0065_7661, c as u64]); // "eva"
                    let random = (0..k * c).map(|_| stream.normal() as f32).collect();
                    Moment::Range(Tensor::from_vec(random, [k, c])?, vec![0.0; k * c])
                }
                false => Moment::Whole(vec![0.0; c * c]),
            };
        }
        let mut x = Vec::with_capacity(n * c);
        rows().for_each(|row| x.extend(row.iter().zip(&self.shift).map(|(x, shift)| x - shift)));
        if self.pass == 0 {
            self.n += n;
            for row in x.chunks(c) {
                self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            self.squares += x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        }
        let x = Tensor::from_vec(x, [n, c])?;
        let frozen = |tensor: Tensor| Weight::new(tensor, DType::F32);
        match &mut self.moment {
            Moment::Nothing => Ok(()),
            Moment::Whole(sum) => {
                let across = transpose(&x)?;
                add_to(sum, &linear::forward(&across, &frozen(across.clone())?, None)?)
            }
            Moment::Range(columns, sum) => {
                let along = linear::forward(&x, &frozen(columns.clone())?, None)?; // x G (n, k)
                add_to(sum, &linear::forward(&transpose(&along)?, &frozen(transpose(&x)?)?, None)?)
            }
            Moment::Within(basis, sum) => {
                let across = transpose(&linear::forward(&x, &frozen(basis.clone())?, None)?)?;
                add_to(sum, &linear::forward(&across, &frozen(across.clone())?, None)?)
            }
        }
    }

    /// Goes on to the next pass with a basis of the range, if the covariance is not summed whole.
    fn end_pass(&mut self) -> Result<()> {
        let (c, n) = (self.c_in, self.n as f64);
        if let Moment::Range(columns, sum) = &mut self.moment {
            let k = columns.rows();
            if self.pass == 0 {
                // Without the mean: Y - n m (m^T G).
                for (row, column) in sum.chunks_mut(c).zip(columns.to_vec()?.chunks(c)) {
                    let dot: f64 = self.sum.iter().zip(column).map(|(sum, g)| sum * f64::from(*g)).sum();
                    row.iter_mut().zip(&self.sum).for_each(|(value, sum)| *value -= dot / n * sum);
                }
                self.shift.iter_mut().zip(&self.sum).for_each(|(shift, sum)| *shift += (sum / n) as f32);
            }
            let scale = sum.iter().fold(f64::MIN_POSITIVE, |most, value| most.max(value.abs()));
            let values = (0..c * k).map(|i| (sum[i % k * c + i / k] / scale) as f32).collect();
            let basis = transpose(&directions::basis(&Tensor::from_vec(values, [c, k])?, k)?)?; // Q^T (k, C)
            self.moment = match self.pass {
                0 => Moment::Range(basis, vec![0.0; k * c]),
                _ => Moment::Within(basis, vec![0.0; k * k]),
            };
        }
        self.pass += 1;
        Ok(())
    }

    fn explained(&self) -> Result<Explained> {
        let (c, n) = (self.c_in, self.n as f64);
        let whole = self.squares - self.sum.iter().map(|sum| sum * sum).sum::<f64>() / n.max(1.0);
        match &self.moment {
            Moment::Within(basis, sum) => Ok(Explained::of_covariance(sum, self.count, whole, Some(basis))?),
            Moment::Whole(sum) => {
                let centered = sum.iter().enumerate().map(|(i, value)| value - self.sum[i / c] * self.sum[i % c] / n);
                Ok(Explained::of_covariance(&centered.collect::<Vec<_>>(), self.count, whole, None)?)
            }
            Moment::Range(..) | Moment::Nothing => {
                Err(Error::Value("the inputs of a module were not seen in every pass".into()))
            }
        }
    }
}

fn add_to(sum: &mut [f64], part: &Tensor) -> Result<()> {
    sum.iter_mut().zip(part.as_slice()?).for_each(|(sum, part)| *sum += f64::from(*part));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs whose variances fall as 1 / k^2, and a large mean.
    fn inputs(n: usize, c: usize, seed: u64) -> Vec<f32> {
        let mut stream = Stream::new(seed);
        (0..n * c).map(|i| (20.0 + stream.normal() * 10.0 / (1.0 + (i % c) as f64)) as f32).collect()
    }

    fn explained(c: usize, count: usize) -> Result<Explained> {
        let mut group = Group::new(c, count, 1);
        for pass in 0..3 {
            if pass > 0 {
                group.end_pass()?;
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
                assert!((got / want - 1.0).abs() < 1e-3, "{c}: {got} {want}");
            }
            let (got, want) = (got.directions.to_vec()?, want.directions.to_vec()?);
            for (k, (got, want)) in got.chunks(c).zip(want.chunks(c)).enumerate() {
                let dot: f32 = got.iter().zip(want).map(|(a, b)| a * b).sum();
                assert!((dot.abs() - 1.0).abs() < 1e-3, "{c}, direction {k}: {dot}");
            }
        }
        Ok(())
    }

    #[test]
    fn ranks_go_where_variance_is_explained() -> Result<()> {
        let module = |name: &str, ratios: &[f64]| -> Result<(String, Explained)> {
            let directions = Tensor::from_vec((0..3 * ratios.len()).map(|i| i as f32).collect(), [ratios.len(), 3])?;
            Ok((name.to_owned(), Explained { directions, ratios: ratios.to_vec() }))
        };
        // In the order of the model; of equal ratios the first counts.
        let explained = [module("c", &[0.5, 0.4, 0.3])?, module("b", &[0.3, 0.1])?, module("a", &[0.05])?];
        let ranks = ["a", "b", "c"].map(|name| (name.to_owned(), ModuleRank { rank: 1, alpha: 2.0 })).into();
        let start = Start::by_explained_variance(&ranks, &explained)?;
        let found: Vec<(&str, usize, f64)> =
            start.ranks.iter().map(|(name, module)| (&name[..], module.rank, module.alpha)).collect();
        assert_eq!(found, [("c", 3, 6.0)]);
        assert_eq!(start.factors["c"].shape(), [3, 3]);
        let other = [module("d", &[0.5])?];
        let error = Start::by_explained_variance(&ranks, &other).unwrap_err().to_string();
        assert!(error.contains("d was measured, but has no rank"), "{error}");
        Ok(())
    }

    #[test]
    fn modules_with_the_same_inputs_are_one_group_with_the_most_directions() -> Result<()> {
        let counts = [("q", 2), ("k", 6), ("o", 3), ("u", 1)].map(|(name, count)| (name.to_owned(), count)).into();
        let grouping = Grouping::new(counts);
        let tensor = |value: f32| Tensor::from_vec(vec![value; 8], [2, 4]);
        for (module, value) in [("q", 1.0), ("k", 1.0), ("o", 2.0)] {
            grouping.see(module, &tensor(value)?);
        }
        let error = grouping.lock().finish().err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("u has no inputs in a forward pass"));
        grouping.see("u", &tensor(1.0)?);
        let found = grouping.lock().finish()?;
        assert_eq!(found.groups, [(4, 6), (4, 3), (4, 1)]);
        assert_eq!((found.group_of["k"], found.first.len()), (0, 3));
        Ok(())
    }
}
