//! Turns tokens into ranks: pooled hidden states, their intrinsic dimensions, and the rank of every module.
//!
//! With x_s (n, C) the pooled hidden states s = 0 .. L of n examples and d_s the intrinsic dimension of x_s:
//!
//! ```text
//! delta_s = d_{s+1} - d_s                      growth of the dimension across step s
//! r_s     = policy(delta_s)                    e.g. max(ceil(delta_s), 0) + 1 in the published rule
//! ```
//!
//! [`measure`] performs both steps. [`pooled_states`] and [`measure_points`] perform one step each, for callers that
//! keep the points. [`measure_points_with`] takes the ranks of single modules from another measurement.
//!
//! Source: "GeLoRA: geometric adaptive ranks for efficient LoRA fine-tuning" (arXiv 2412.09250).

mod cache;
mod layer;
mod modules;
mod options;
mod policy;
mod pooled;
mod ranks;
mod stability;
mod states;
mod steps;
mod warnings;

use gelora_id::{Jackknife, NearCopies};
use gelora_kernels::Tensor;
use gelora_lora::ranks::{self as rule, Alpha, Policy};

use crate::event::{Reply, Report, report};
use crate::{Error, Event, Result, Tokens, Transformer, Work};

pub use cache::Cache;
pub use layer::Layer;
pub use modules::{DirectionCount, MeasuredModule, ModuleRanks};
pub use options::{MeasureOptions, Pool, Scale};
pub use policy::{Budget, PolicyChoice};
pub use pooled::{pooled_states, sample, state_names};
pub use ranks::{PolicyUsed, Ranks, adapter_config};
pub use stability::{OtherScale, ResampledRanks, Stability};
pub use states::{State, constant_estimate};
pub use steps::{ModuleRank, PolicyOutcome, TargetModules};
pub use warnings::{Warning, WarningKind};

/// Measures, on examples, the rank of each module that a model's adapter should have.
///
/// `progress` receives every [`Event`]. It returns nothing, or a `Result` whose error ends the measurement.
///
/// # Errors
/// Returns an error if an option is out of range or names no module of the model, there are fewer than 3 distinct
/// examples, a token is outside the model's tables, the device fails, or `progress` returns an error.
pub fn measure<R: Reply>(
    model: &Transformer,
    examples: &[Tokens],
    options: &MeasureOptions,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<Ranks> {
    let report: &mut Report<'_> = &mut report(progress);
    check(model, None, options)?;
    check_example_count(examples.len())?;
    let points = pooled::pooled(model, examples, options, report)?;
    ranks_from_points(model, points, None, options, report)
}

/// Computes ranks from pooled hidden states, the second step of [`measure`]. `points` holds one matrix (n, C) for each
/// state, as [`pooled_states`] returned them for the same model and options.
///
/// # Errors
/// Returns the errors of [`measure`], and an error if the number of states differs from the model's.
pub fn measure_points<R: Reply>(
    model: &Transformer,
    points: Vec<Tensor>,
    options: &MeasureOptions,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<Ranks> {
    measure_points_with(model, points, None, options, progress)
}

/// Computes dimensions as [`measure_points`] does, and takes the ranks from `modules` if the policy is one that gives
/// ranks to single modules.
///
/// # Errors
/// Returns the errors of [`measure_points`], and an error if the policy needs `modules` and there are none, or they are
/// those of another policy or lack a module.
pub fn measure_points_with<R: Reply>(
    model: &Transformer,
    points: Vec<Tensor>,
    modules: Option<&ModuleRanks>,
    options: &MeasureOptions,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<Ranks> {
    check(model, modules, options)?;
    let expected = state_names(model.config().layers, options.granularity).len();
    if points.len() != expected {
        let problem = format!("the model has {expected} hidden states, got points of {}", points.len());
        return Err(Error::Value(problem));
    }
    check_example_count(points[0].rows())?;
    ranks_from_points(model, points, modules, options, &mut report(progress))
}

/// Checks the options, and that there are ranks of single modules if the policy needs them.
fn check(model: &Transformer, modules: Option<&ModuleRanks>, options: &MeasureOptions) -> Result<()> {
    let policy = options.checked_policy(model)?;
    let infos = model.linear_infos();
    let layers = model.config().layers;
    TargetModules::new(&infos, layers, options.granularity, &options.target_modules)?.check(modules, &policy)
}

fn check_example_count(examples: usize) -> Result<()> {
    match examples {
        0..3 => Err(Error::Value(format!("{examples} rows; two nearest neighbors need at least 3"))),
        _ => Ok(()),
    }
}

fn ranks_from_points(
    model: &Transformer,
    points: Vec<Tensor>,
    modules: Option<&ModuleRanks>,
    options: &MeasureOptions,
    report: &mut Report<'_>,
) -> Result<Ranks> {
    let (layers, granularity, confidence) = (model.config().layers, options.granularity, options.confidence);
    let infos = model.linear_infos();
    let targets = TargetModules::new(&infos, layers, granularity, &options.target_modules)?;
    let points: Vec<Tensor> =
        points.into_iter().map(|state| state.to_device(model.device())).collect::<Result<_, _>>()?;
    let n = points[0].rows();

    // The dimension of every state, estimated from all examples, and the scale at which growths are measured.
    let names = state_names(layers, granularity);
    let measured = states::measure(&points, names, &options.estimation(), report)?;
    let curves: Vec<_> = measured.states.iter().map(|s| s.decimation.clone()).collect();
    let plateau_scale = gelora_id::scale::common(&curves);
    let at_plateau = options.policy == PolicyChoice::Plateau || options.scale == Scale::Plateau;
    let scale = if at_plateau { plateau_scale.ok_or(Error::NoPlateau)? } else { n };
    let replicates_at = |scale: usize| match scale < n {
        true => states::at_scale(&points, &measured.near_copies, scale, &options.estimation()),
        false => Ok(measured.summaries.clone()),
    };
    let replicates: Vec<Jackknife> = replicates_at(scale)?;
    report(Event::Finished { work: Work::Dimensions })?;

    // The growth of the dimension across every step, and the rank of the step.
    let growths = states::growths(&replicates, confidence);
    let steps = targets.steps(&growths);
    let policy = options.policy.resolve(&steps, &options.assignment())?;
    let assigned = match modules {
        Some(found) => targets.assigned_to_modules(found, options.alpha),
        None => targets.assigned_to_steps(rule::assign(&steps, &policy, options.alpha, &options.limits)?),
    };
    let layer = |(s, (rank, growth))| Layer::new(s, granularity, rank, growth);
    let mut layers: Vec<Layer> = assigned.steps.iter().zip(&growths).enumerate().map(layer).collect();
    for (layer, mean) in layers.iter_mut().zip(assigned.means.iter().flatten()) {
        layer.mean_rank = Some(*mean);
    }
    for (layer, directions) in layers.iter_mut().zip(targets.directions_of_steps(&assigned.modules)) {
        layer.directions = directions;
    }
    let rank_of_steps: Vec<usize> = layers.iter().map(|l| l.rank).collect();
    let step_names: Vec<String> = layers.iter().map(Layer::name).collect();

    let stability = match options.resamples {
        0 => None,
        resamples => {
            // The scale that was not used for the ranks: the scale of the plateaus, or all examples.
            let other_scale = if scale < n { Some(n) } else { plateau_scale.filter(|scale| *scale < n) };
            let other = other_scale.map(|scale| Ok::<_, Error>((scale, replicates_at(scale)?))).transpose()?;
            let near_copies = &measured.near_copies[..];
            let resampling =
                stability::Resampling { points: &points, near_copies, targets: &targets, policy: &policy, options };
            let reference = stability::Reference {
                ranks: &rank_of_steps,
                names: &step_names,
                states: &measured.states,
                scale,
                other,
            };
            Some(resampling.run(resamples, &reference, report)?)
        }
    };
    let warnings = warnings::warnings(&warnings::Facts {
        states: &measured.states,
        layers: &layers,
        modules: &assigned.modules,
        policy: &policy,
        stability: stability.as_ref(),
        model: model.name(),
        samples: n,
        keeps_near_copies: options.near_copies == NearCopies::Keep,
    });
    // The plateau policy has a scale of its own; the policies beside it are shown at the scale of the options.
    let steps_of_others = match policy {
        Policy::Plateau { .. } if options.scale == Scale::All => {
            targets.steps(&states::growths(&measured.summaries, confidence))
        }
        _ => steps.clone(),
    };
    let mut policies = policy::compare(&steps_of_others, &policy, options.policy, &options.assignment());
    if let Policy::Plateau { .. } = policy {
        policies.insert(0, steps::outcome(&steps, &policy, &options.limits)?);
    }
    if let Some(found) = modules {
        policies.extend(found.policies.iter().map(|(policy, ranks)| targets.outcome_of_modules(policy, ranks)));
    }
    Ok(Ranks {
        model: model.name().to_owned(),
        pool: options.pool,
        samples: n,
        dtype: model.dtype().to_string(),
        seed: options.seed,
        granularity,
        scale,
        warnings,
        near_copies: options.near_copies.to_string(),
        policies,
        parameters: targets.parameters(&assigned.modules),
        policy: PolicyUsed {
            policy,
            min_rank: options.limits.min,
            max_rank: Some(options.limits.max).filter(|max| *max < usize::MAX),
            rank_multiple: options.limits.multiple,
            alpha_ratio: if let Alpha::Ratio(ratio) = options.alpha { Some(ratio) } else { None },
            alpha: if let Alpha::Fixed(alpha) = options.alpha { Some(alpha) } else { None },
            confidence,
        },
        states: measured.states,
        layers,
        modules: assigned.modules,
        stability,
    })
}
