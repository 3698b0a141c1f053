//! From growths to the rank of every module, under one policy or all.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use gelora_id::Growth;
use gelora_lora::ranks::{self, Limits, Policy, Step, StepRank};
use gelora_model::{Granularity, LinearInfo};
use serde::{Deserialize, Serialize};

use crate::args::{MeasureArgs, PolicyArg, RankArgs, TargetArgs};

/// The uniform rank that policies are compared at when none is asked for: PEFT's default.
const USUAL_RANK: usize = 8;

/// Rank and alpha of one module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleRank {
    pub rank: usize,
    pub alpha: f64,
}

/// What a policy would do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The policy with its settings.
    #[serde(flatten)]
    pub policy: Policy,
    /// The rank of every step.
    pub ranks: Vec<usize>,
    /// Parameters of all adapters together.
    pub parameters: usize,
}

/// The modules that are adapted, each with the step that it belongs to.
pub struct Targets<'a> {
    pub modules: Vec<(&'a LinearInfo, usize)>,
    steps: usize,
}

impl<'a> Targets<'a> {
    /// The modules that --target-modules means.
    pub fn new(infos: &'a [LinearInfo], layers: usize, granularity: Granularity, args: &TargetArgs) -> Result<Self> {
        let wanted = &args.target_modules;
        let all = wanted.iter().any(|t| t == "all-linear");
        let is_target = |info: &LinearInfo| {
            if wanted.is_empty() { info.attention } else { all || wanted.iter().any(|t| names(t, &info.name)) }
        };
        if let Some(unknown) = wanted.iter().find(|t| *t != "all-linear" && !infos.iter().any(|i| names(t, &i.name))) {
            let known: Vec<&str> = infos.iter().filter(|i| i.layer == Some(0)).map(|i| i.name.as_str()).collect();
            bail!(
                "--target-modules: no linear module is called {unknown}; those of the first layer are {}",
                known.join(", ")
            );
        }
        let in_blocks = infos.iter().filter(|i| is_target(i));
        let modules = in_blocks.filter_map(|i| Some((i, granularity.step_of(i.layer?, i.attention)))).collect();
        Ok(Self { modules, steps: layers * granularity.steps_per_block() })
    }

    /// What every step costs and bears, with its growth.
    pub fn steps(&self, growths: &[Growth]) -> Vec<Step> {
        let step = |(s, growth): (usize, &Growth)| {
            let own = || self.modules.iter().filter(move |(_, step)| *step == s).map(|(info, _)| info);
            let cost = own().map(|i| i.c_in + i.c_out).sum();
            let most = own().map(|i| i.c_in.min(i.c_out)).min().unwrap_or(usize::MAX);
            Step { delta: growth.delta, upper: growth.upper, cost, most }
        };
        growths.iter().enumerate().map(step).collect()
    }

    /// The same before anything is measured: as if nothing grew.
    pub fn flat(&self) -> Vec<Step> {
        self.steps(&vec![Growth { delta: 0.0, error: 0.0, interval: [0.0; 2], upper: 0.0 }; self.steps])
    }

    /// Rank and alpha of every module from those of the steps.
    pub fn of_modules(&self, ranks: &[StepRank]) -> BTreeMap<String, ModuleRank> {
        let of = |(info, step): &(&LinearInfo, usize)| {
            let StepRank { rank, alpha } = ranks[*step];
            (info.name.clone(), ModuleRank { rank, alpha })
        };
        self.modules.iter().map(of).collect()
    }
}

fn names(target: &str, module: &str) -> bool {
    module == target || module.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
}

/// The limits that the options mean.
pub fn limits(args: &MeasureArgs) -> Limits {
    Limits { min: args.min_rank, max: args.max_rank.unwrap_or(usize::MAX), multiple: args.rank_multiple }
}

/// The policy that the options mean. A control without a budget of its own gets that of the published rule.
pub fn chosen(args: &RankArgs, steps: &[Step]) -> Result<Policy> {
    let rounding = args.measure.rounding.into();
    let policy = args.policy.unwrap_or(match (args.rank, args.budget.or(args.budget_rank)) {
        (Some(_), None) => PolicyArg::Uniform,
        (None, Some(_)) => PolicyArg::Budget,
        _ => PolicyArg::Gelora,
    });
    let takes_budget = matches!(policy, PolicyArg::Budget | PolicyArg::Random);
    if args.rank.is_some() && policy != PolicyArg::Uniform {
        bail!("--rank is the rank of --policy uniform; expected only one of the two");
    }
    if let (false, Some(_)) = (takes_budget, args.budget.or(args.budget_rank)) {
        bail!("--budget and --budget-rank are for --policy budget and random");
    }
    let budget = args.budget.or_else(|| args.budget_rank.map(|rank| ranks::uniform_parameters(steps, rank)));
    let gelora = Policy::Gelora { rounding };
    Ok(match (policy, budget) {
        (PolicyArg::Gelora, _) => gelora,
        (PolicyArg::GeloraUpper, _) => Policy::GeloraUpper { rounding },
        (PolicyArg::Budget, Some(parameters)) => Policy::Budget { parameters, rounding },
        (PolicyArg::Budget, None) => bail!("--policy budget needs --budget PARAMETERS or --budget-rank R"),
        (PolicyArg::Uniform, _) => match args.rank {
            Some(rank) => Policy::Uniform { rank },
            None => bail!("--policy uniform needs --rank R"),
        },
        (PolicyArg::Random, Some(parameters)) => Policy::Random { parameters, seed: args.seed },
        (PolicyArg::Random, None) => {
            let parameters = outcome(steps, &gelora, &limits(&args.measure))?.parameters;
            Policy::Random { parameters, seed: args.seed }
        }
        (PolicyArg::Shuffled, _) => Policy::Shuffled { seed: args.seed, rounding },
    })
}

/// What a policy does with these growths.
pub fn outcome(steps: &[Step], policy: &Policy, limits: &Limits) -> Result<Outcome> {
    let ranks: Vec<usize> = ranks::assign(steps, policy, 1.0, limits)?.iter().map(|s| s.rank).collect();
    let parameters = ranks::parameters(steps, ranks.iter().copied());
    Ok(Outcome { policy: policy.clone(), ranks, parameters })
}

/// What the other policies would do: those that the limits allow.
pub fn compare(steps: &[Step], chosen: &Policy, args: &RankArgs) -> Vec<Outcome> {
    let (rounding, seed, limits) = (args.measure.rounding.into(), args.seed, limits(&args.measure));
    let most = steps.iter().filter(|s| s.cost > 0).map(|s| s.most).min().unwrap_or(USUAL_RANK);
    let rank = args.rank.or(args.budget_rank).unwrap_or(USUAL_RANK).min(most);
    let parameters = args.budget.unwrap_or_else(|| ranks::uniform_parameters(steps, rank));
    let all = [
        Policy::Gelora { rounding },
        Policy::GeloraUpper { rounding },
        Policy::Budget { parameters, rounding },
        Policy::Uniform { rank },
        Policy::Random { parameters, seed },
        Policy::Shuffled { seed, rounding },
    ];
    let as_chosen = |policy: Policy| if policy.name() == chosen.name() { chosen.clone() } else { policy };
    all.into_iter().filter_map(|policy| outcome(steps, &as_chosen(policy), &limits).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_end_of_a_name_from_a_dot_on() {
        assert!(names("query", "encoder.layer.1.attention.self.query"));
        assert!(names("attention.output.dense", "encoder.layer.1.attention.output.dense"));
        assert!(!names("output.dense", "encoder.layer.1.attention.soutput.dense"));
        assert!(!names("uery", "encoder.query"));
    }

    #[test]
    fn halves_of_a_block_have_costs_of_their_own() -> Result<()> {
        let info = |name: &str, layer, attention, c_in, c_out| LinearInfo {
            name: name.into(),
            layer: Some(layer),
            attention,
            c_in,
            c_out,
        };
        let infos = [
            info("layer.0.query", 0, true, 8, 8),
            info("layer.0.up", 0, false, 8, 32),
            info("layer.1.query", 1, true, 8, 8),
            info("layer.1.up", 1, false, 8, 32),
        ];
        let args = TargetArgs { target_modules: vec!["all-linear".into()], alpha_ratio: 2.0 };
        let halves = Targets::new(&infos, 2, Granularity::Sublayer, &args)?;
        assert_eq!(
            halves.flat().iter().map(|s| (s.cost, s.most)).collect::<Vec<_>>(),
            [(16, 8), (40, 8), (16, 8), (40, 8)]
        );
        let ranks = [1, 2, 3, 4].map(|rank| StepRank { rank, alpha: 2.0 * rank as f64 });
        assert_eq!(halves.of_modules(&ranks)["layer.1.up"], ModuleRank { rank: 4, alpha: 8.0 });
        let blocks = Targets::new(&infos, 2, Granularity::Block, &args)?;
        assert_eq!(blocks.flat().iter().map(|s| s.cost).collect::<Vec<_>>(), [56, 56]);
        assert_eq!(blocks.of_modules(&ranks[..2])["layer.1.up"].rank, 2);
        Ok(())
    }
}
