//! The directions in which the inputs of every module vary, for adapters that begin along them ([`gelora_lora::eva`]).
//!
//! Every target module sees its inputs x (N, C_in) in forward passes of the frozen model. Up to [`WHOLE`] channels,
//! their covariance S is summed whole, in one pass. With more, three passes find its range and its values in the range:
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

mod grouping;
mod sums;

use std::collections::BTreeMap;
use std::sync::Arc;

use gelora_kernels::Tensor;
use gelora_kernels::random::Stream;
use gelora_lora::eva::{Explained, RHO, most, redistributed};
use rayon::prelude::*;

use self::grouping::Grouping;
use self::sums::{Group, Sums};
use crate::event::{Reply, Report, report};
use crate::measure::{ModuleRank, sample};
use crate::probe::Probe;
use crate::{Batch, Error, Event, LinearInfo, Result, Rows, TaskModel, Tokens, Work};

/// The most channels whose covariance is summed whole.
const WHOLE: usize = 1024;

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
        Self { rho: RHO, rows: 1000, tokens: 65_536, batch_size: 32, seed: 0 }
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
/// Returns an error if there is no row, a module is not in the model, rho is below 1, the inputs of a module do not
/// vary, the device fails, or `progress` returns an error.
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
    // In random order, for the tokens may not suffice for all of them.
    Stream::at(options.seed, &[0x0069_6e70]).shuffle(&mut chosen); // "inp"
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
