//! Ranks of single modules by the policies that measure modules: from the directions of their gradients or of their
//! inputs, or from what a cut leaves of a trained adapter.

use std::collections::BTreeMap;

use gelora_lora::eva::Explained;
use gelora_lora::ranks::spectra::{self, Spectrum};
use gelora_lora::ranks::{self, Alpha, Limits, Policy};
use gelora_lora::{LoraLayer, cut};

use super::{GradientOptions, Need, gradient_needs};
use crate::eva::{EvaOptions, explained_inputs};
use crate::event::{Reply, Report, report};
use crate::measure::{DirectionCount, MeasuredModule, ModuleRank, ModuleRanks, TargetModules};
use crate::train::Length;
use crate::{Error, Event, MeasureOptions, Result, Rows, TaskModel, TrainOptions, Trainer};

/// Number of epochs of the training that is cut.
const EPOCHS: f64 = 3.0;

/// Returns rank and alpha of every module for a budget of parameters: in proportion to the numbers of directions, at
/// least 1 ([`Policy::Gradient`]), or where the most energy is ([`Policy::Signal`]).
///
/// # Errors
/// Returns an error for another policy, or if the budget does not hold the least rank of every module.
pub fn ranks(needs: &[Need], policy: &Policy, limits: &Limits, alpha: Alpha) -> Result<BTreeMap<String, ModuleRank>> {
    let spectra: Vec<Spectrum> = needs.iter().map(Need::spectrum).collect();
    let ranks = match *policy {
        Policy::Gradient { parameters } => {
            // A direction that was not found may still be there.
            let numbers: Vec<f64> = needs.iter().map(|need| need.directions.number.max(1.0)).collect();
            spectra::proportional(&spectra, &numbers, parameters, limits)?
        }
        Policy::Signal { parameters } => spectra::greedy(&spectra, parameters, limits)?,
        ref other => {
            let problem = format!("the policy {} does not follow directions of gradients", other.name());
            return Err(Error::Value(problem));
        }
    };
    let module = |(need, rank): (&Need, usize)| (need.module.clone(), ModuleRank { rank, alpha: alpha.of(rank) });
    Ok(needs.iter().zip(ranks).map(module).collect())
}

/// Measures the ranks of single modules on labeled rows, or on those of a language model, by the policy of the options:
/// gradient, signal, eva (which needs no labels) or prune. The model is used up.
///
/// prune trains with the default [`TrainOptions`] for three epochs. A step has the default number of rows, in parts of
/// no more than [`MeasureOptions::batch_size`]. Each part draws its own dropout masks, so a batch size below the
/// default gives somewhat other ranks.
///
/// # Errors
/// Returns the errors of [`gradient_needs`] and of [`Trainer`], and an error if the policy gives ranks to steps, or the
/// budget does not hold the least rank of every module.
pub fn module_ranks<R: Reply>(
    model: TaskModel,
    rows: &dyn Rows,
    options: &MeasureOptions,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<ModuleRanks> {
    let report: &mut Report<'_> = &mut report(progress);
    let policy = options.checked_policy(model.transformer())?;
    match policy {
        Policy::Gradient { parameters } | Policy::Signal { parameters } => {
            from_gradients(model, rows, &policy, parameters, options, report)
        }
        Policy::Prune { parameters, trained_rank } => {
            let ranks = pruned(model, rows, trained_rank, parameters, options, report)?;
            let modules = ranks.iter().map(|(name, rank)| (name.clone(), MeasuredModule::new(rank.clone(), None)));
            Ok(ModuleRanks { modules: modules.collect(), policies: vec![(policy.clone(), ranks)], policy })
        }
        Policy::Eva { parameters, most } => {
            let ranks = by_explained_variance(model, rows, most, parameters, options, report)?;
            let modules = ranks.iter().map(|(name, rank)| (name.clone(), MeasuredModule::new(rank.clone(), None)));
            Ok(ModuleRanks { modules: modules.collect(), policies: vec![(policy.clone(), ranks)], policy })
        }
        other => Err(Error::Value(format!("the policy {} gives no ranks to single modules", other.name()))),
    }
}

/// Both policies on gradients follow from one measurement.
fn from_gradients(
    model: TaskModel,
    rows: &dyn Rows,
    policy: &Policy,
    parameters: usize,
    options: &MeasureOptions,
    report: &mut Report<'_>,
) -> Result<ModuleRanks> {
    let measuring = GradientOptions {
        target_modules: options.target_modules.clone(),
        confidence: options.confidence,
        batch_size: options.batch_size,
        seed: options.seed,
        ..GradientOptions::default()
    };
    let needs = gradient_needs(model, rows, &measuring, &mut |event: Event<'_>| report(event))?;
    let policies: Vec<(Policy, BTreeMap<String, ModuleRank>)> =
        [Policy::Gradient { parameters }, Policy::Signal { parameters }]
            .into_iter()
            .map(|policy| Ok((policy.clone(), ranks(&needs, &policy, &options.limits, options.alpha)?)))
            .collect::<Result<_>>()?;
    let chosen = policies.iter().find(|(of, _)| of == policy).map(|(_, ranks)| ranks);
    let module = |need: &Need| {
        let rank = chosen?.get(&need.module)?.clone();
        let directions = DirectionCount { number: need.directions.number, interval: need.directions.interval };
        Some((need.module.clone(), MeasuredModule::new(rank, Some(directions))))
    };
    Ok(ModuleRanks { policy: policy.clone(), modules: needs.iter().filter_map(module).collect(), policies })
}

/// Spends the budget on the directions that explain the most variance of the modules' inputs, at most `most` of each.
fn by_explained_variance(
    mut model: TaskModel,
    rows: &dyn Rows,
    most: usize,
    parameters: usize,
    options: &MeasureOptions,
    report: &mut Report<'_>,
) -> Result<BTreeMap<String, ModuleRank>> {
    let (infos, layers) = (model.transformer().linear_infos(), model.transformer().config().layers);
    let targets = TargetModules::new(&infos, layers, options.granularity, &options.target_modules)?;
    let wanted = targets.modules.iter().map(|(info, _)| (info.name.clone(), ModuleRank { rank: most, alpha: 1.0 }));
    let measuring = EvaOptions {
        rho: 1.0,
        rows: rows.len(),
        batch_size: options.batch_size,
        seed: options.seed,
        ..EvaOptions::default()
    };
    let progress = &mut |event: Event<'_>| report(event);
    let explained = explained_inputs(&mut model, rows, &wanted.collect(), &measuring, progress)?;
    let spectrum = |(name, explained): &(String, Explained)| {
        let info = infos.iter().find(|info| info.name == *name);
        let (c_in, c_out) = info.map_or((1, 1), |info| (info.c_in, info.c_out));
        // A direction counts by its ratio alone, not by its price.
        let gains = explained.ratios.iter().map(|ratio| ratio * (c_in + c_out) as f64).collect();
        Spectrum { gains, cost: c_in + c_out, most: c_in.min(c_out) }
    };
    let spectra: Vec<Spectrum> = explained.iter().map(spectrum).collect();
    let ranks = spectra::greedy(&spectra, parameters, &options.limits)?;
    let module = |((name, _), rank): (&(String, Explained), usize)| {
        (name.clone(), ModuleRank { rank, alpha: options.alpha.of(rank) })
    };
    Ok(explained.iter().zip(ranks).map(module).collect())
}

/// Trains a uniform rank, and returns the ranks that a cut to the budget leaves.
fn pruned(
    mut model: TaskModel,
    rows: &dyn Rows,
    trained_rank: usize,
    parameters: usize,
    options: &MeasureOptions,
    report: &mut Report<'_>,
) -> Result<BTreeMap<String, ModuleRank>> {
    let (infos, layers) = (model.transformer().linear_infos(), model.transformer().config().layers);
    let targets = TargetModules::new(&infos, layers, options.granularity, &options.target_modules)?;
    let uniform = Policy::Uniform { rank: trained_rank };
    let uniform = ranks::assign(&targets.steps_without_growth(), &uniform, options.alpha, &options.limits)?;
    let defaults = TrainOptions::default();
    let training = TrainOptions {
        ranks: targets.ranks_of_modules(&uniform),
        length: Length::Epochs(EPOCHS),
        accumulate: defaults.batch_size.div_ceil(options.batch_size.max(1)),
        seed: options.seed,
        ..defaults
    };
    report(Event::Remark(&format!("training the uniform rank {trained_rank}, which is then cut to the budget")))?;
    let mut trainer = Trainer::new(&mut model, rows, training)?;
    trainer.run(&mut |event: Event<'_>| report(event))?;
    let cut = cut::to_budget(&trainer.adapter().layers, parameters, &options.limits)?;
    let module = |(name, layer): (String, LoraLayer)| {
        let rank = layer.rank();
        (name, ModuleRank { rank, alpha: options.alpha.of(rank) })
    };
    Ok(cut.into_iter().map(module).collect())
}

#[cfg(test)]
mod tests {
    use gelora_lora::directions::Directions;

    use super::*;

    #[test]
    fn ranks_follow_the_directions() -> Result<()> {
        let need = |module: &str, values: &[f64], number: f64| {
            let directions = Directions { values: values.to_vec(), number, interval: [number; 2], with_noise: number };
            Need::new(module.to_owned(), directions, 50, 50)
        };
        let needs = [need("a", &[3.0, 2.9], 2.0), need("b", &[1.0], 1.0), need("c", &[], 0.0)];
        let of = |policy: &Policy, limits: &Limits| -> Result<Vec<(usize, f64)>> {
            let ranks = ranks(&needs, policy, limits, Alpha::default())?;
            Ok(ranks.values().map(|module| (module.rank, module.alpha)).collect())
        };
        // Eight ranks of 100 parameters. Where no direction was found, there may be one.
        let any = Limits::default();
        assert_eq!(of(&Policy::Gradient { parameters: 800 }, &any)?, [(4, 8.0), (2, 4.0), (2, 4.0)]);
        assert_eq!(of(&Policy::Signal { parameters: 400 }, &any)?, [(2, 4.0), (1, 2.0), (1, 2.0)]);
        let even = Limits { multiple: 2, ..any };
        assert_eq!(of(&Policy::Gradient { parameters: 1000 }, &even)?, [(4, 8.0), (4, 8.0), (2, 4.0)]);
        let error = of(&Policy::Signal { parameters: 299 }, &any).expect_err("too small").to_string();
        assert!(error.contains("take 300 parameters, but the budget is 299"), "{error}");
        assert!(of(&Policy::default(), &any).expect_err("of steps").to_string().contains("gelora"));
        Ok(())
    }
}
