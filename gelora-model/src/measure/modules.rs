//! Ranks of single modules, for the policies that measure modules instead of dimensions.

use std::collections::BTreeMap;

use gelora_lora::ranks::{Alpha, Policy, StepRank};
use serde::{Deserialize, Serialize};

use super::steps::{ModuleRank, PolicyOutcome, TargetModules};
use crate::{Error, LinearInfo, Result};

/// The number of directions of a gradient that replicate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectionCount {
    /// The effective number n.
    pub number: f64,
    /// Interval of n.
    pub interval: [f64; 2],
}

impl DirectionCount {
    /// Returns the sum over modules. The ends of the intervals are added too, so the interval of the sum supposes that
    /// the modules err together: their gradients come from the same rows.
    pub(super) fn sum(counts: impl IntoIterator<Item = Self>) -> Option<Self> {
        counts.into_iter().reduce(|a, b| Self {
            number: a.number + b.number,
            interval: [a.interval[0] + b.interval[0], a.interval[1] + b.interval[1]],
        })
    }

    /// Whether the interval is wider than the number itself.
    pub(super) fn is_uncertain(&self) -> bool {
        self.number > 0.0 && self.interval[1] - self.interval[0] > self.number
    }
}

/// Rank and alpha of one module, with what was measured of the module alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MeasuredModule {
    /// Rank and alpha.
    #[serde(flatten)]
    pub rank: ModuleRank,
    /// Directions of the module's gradient that replicate, if they were measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub directions: Option<DirectionCount>,
}

impl MeasuredModule {
    /// A module with its rank, and its directions if they were measured.
    pub fn new(rank: ModuleRank, directions: Option<DirectionCount>) -> Self {
        Self { rank, directions }
    }
}

/// Ranks of single modules by one of the policies that give them ([`Policy::ranks_modules`]).
#[derive(Clone, Debug)]
pub struct ModuleRanks {
    /// The policy.
    pub policy: Policy,
    /// Every module by its full name.
    pub modules: BTreeMap<String, MeasuredModule>,
    /// The ranks by each policy that the same measurement serves, the chosen one among them.
    pub policies: Vec<(Policy, BTreeMap<String, ModuleRank>)>,
}

/// Ranks of all steps and modules.
pub(super) struct Assigned {
    /// Rank and alpha of every step: of all its modules, or the mean of their ranks, rounded.
    pub steps: Vec<StepRank>,
    /// Mean rank of every step's modules, if these have ranks of their own.
    pub means: Option<Vec<f64>>,
    pub modules: BTreeMap<String, MeasuredModule>,
}

impl TargetModules<'_> {
    /// Gives all modules of a step its rank.
    pub(super) fn assigned_to_steps(&self, steps: Vec<StepRank>) -> Assigned {
        let ranks = self.ranks_of_modules(&steps).into_iter();
        let modules = ranks.map(|(name, rank)| (name, MeasuredModule::new(rank, None))).collect();
        Assigned { steps, means: None, modules }
    }

    /// Gives single modules their ranks.
    pub(super) fn assigned_to_modules(&self, found: &ModuleRanks, alpha: Alpha) -> Assigned {
        let means = self.mean_ranks(|name| found.modules.get(name).map_or(0, |module| module.rank.rank));
        let step = |mean: &f64| {
            let rank = mean.round() as usize;
            StepRank { rank, alpha: alpha.of(rank) }
        };
        Assigned { steps: means.iter().map(step).collect(), means: Some(means), modules: found.modules.clone() }
    }

    /// Number of parameters of adapters with these ranks.
    pub(super) fn parameters(&self, modules: &BTreeMap<String, MeasuredModule>) -> usize {
        let of_module = |(info, _): &(&LinearInfo, usize)| {
            modules.get(&info.name).map_or(0, |module| (info.c_in + info.c_out).saturating_mul(module.rank.rank))
        };
        self.modules.iter().map(of_module).fold(0, usize::saturating_add)
    }

    /// Returns the mean of `rank` over the modules of every step, 0 for a step without modules.
    pub fn mean_ranks(&self, rank: impl Fn(&str) -> usize) -> Vec<f64> {
        let mut sums = vec![(0_usize, 0_usize); self.steps];
        for (info, step) in &self.modules {
            sums[*step].0 += rank(&info.name);
            sums[*step].1 += 1;
        }
        sums.into_iter().map(|(sum, count)| sum as f64 / count.max(1) as f64).collect()
    }

    /// Returns the directions of every step: the sum over its modules.
    pub(super) fn directions_of_steps(&self, found: &BTreeMap<String, MeasuredModule>) -> Vec<Option<DirectionCount>> {
        let of_step = |step: usize| {
            let modules = self.modules.iter().filter(move |(_, of)| *of == step);
            DirectionCount::sum(modules.filter_map(|(info, _)| found.get(&info.name)?.directions))
        };
        (0..self.steps).map(of_step).collect()
    }

    /// Returns the ranks of single modules in the form of a policy for steps.
    pub(super) fn outcome_of_modules(&self, policy: &Policy, ranks: &BTreeMap<String, ModuleRank>) -> PolicyOutcome {
        let rank = |name: &str| ranks.get(name).map_or(0, |module| module.rank);
        let means = self.mean_ranks(rank);
        PolicyOutcome {
            policy: policy.clone(),
            ranks: means.iter().map(|mean| mean.round() as usize).collect(),
            mean_ranks: Some(means),
            parameters: self.modules.iter().map(|(info, _)| (info.c_in + info.c_out) * rank(&info.name)).sum(),
        }
    }

    /// Checks that ranks of single modules are those of the policy, and of these modules.
    pub(super) fn check(&self, found: Option<&ModuleRanks>, policy: &Policy) -> Result<()> {
        let problem = match found {
            None if policy.ranks_modules() => {
                format!("the policy {} needs ranks of single modules, which were not measured", policy.name())
            }
            None => return Ok(()),
            Some(found) if found.policy != *policy => {
                format!("ranks of single modules by {:?}; expected those by {policy:?}", found.policy)
            }
            Some(found) => match self.modules.iter().find(|(info, _)| !found.modules.contains_key(&info.name)) {
                Some((info, _)) => format!("{}: no rank of this module was measured", info.name),
                None => return Ok(()),
            },
        };
        Err(Error::Value(problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Granularity;

    #[test]
    fn steps_have_the_means_and_sums_of_their_modules() -> Result<()> {
        let info = |name: &str, layer| LinearInfo {
            name: name.into(),
            layer: Some(layer),
            attention: true,
            c_in: 8,
            c_out: 4,
        };
        let infos = [info("0.q", 0), info("0.v", 0), info("1.q", 1)];
        let targets = TargetModules::new(&infos, 3, Granularity::Block, &[])?;
        let module = |rank: usize, number: f64| {
            let directions = DirectionCount { number, interval: [number - 0.5, number + 1.0] };
            MeasuredModule::new(ModuleRank { rank, alpha: 2.0 * rank as f64 }, Some(directions))
        };
        let modules: BTreeMap<String, MeasuredModule> =
            [("0.q", module(4, 3.0)), ("0.v", module(1, 0.0)), ("1.q", module(2, 1.0))]
                .into_iter()
                .map(|(name, module)| (name.to_owned(), module))
                .collect();
        let policy = Policy::Gradient { parameters: 90 };
        let ranks: BTreeMap<String, ModuleRank> =
            modules.iter().map(|(name, module)| (name.clone(), module.rank.clone())).collect();
        let outcome = targets.outcome_of_modules(&policy, &ranks);
        assert_eq!((outcome.mean_ranks, outcome.ranks), (Some(vec![2.5, 2.0, 0.0]), vec![3, 2, 0]));
        assert_eq!(outcome.parameters, 12 * 7);
        let mut found = ModuleRanks { policy: policy.clone(), modules, policies: Vec::new() };
        let of_steps = targets.directions_of_steps(&found.modules);
        let first = DirectionCount { number: 3.0, interval: [2.0, 5.0] };
        assert_eq!((of_steps[0], of_steps[2]), (Some(first), None));
        assert!(!first.is_uncertain() && DirectionCount { number: 2.9, ..first }.is_uncertain());

        targets.check(Some(&found), &policy)?;
        let fails = |found: Option<&ModuleRanks>, policy: &Policy| {
            targets.check(found, policy).expect_err("not what was measured").to_string()
        };
        assert!(fails(None, &policy).contains("gradient needs ranks of single modules"));
        assert!(fails(Some(&found), &Policy::Signal { parameters: 90 }).contains("expected those by Signal"));
        found.modules.remove("1.q");
        assert!(fails(Some(&found), &policy).starts_with("1.q: no rank"));
        targets.check(None, &Policy::default())
    }

    #[test]
    fn a_module_of_an_older_file_has_no_directions() -> serde_json::Result<()> {
        let old: MeasuredModule = serde_json::from_str(r#"{"rank":3,"alpha":6.0}"#)?;
        assert_eq!(old, MeasuredModule::new(ModuleRank { rank: 3, alpha: 6.0 }, None));
        assert_eq!(serde_json::to_string(&old)?, r#"{"rank":3,"alpha":6.0}"#);
        let directions = DirectionCount { number: 1.5, interval: [1.0, 2.0] };
        let new = MeasuredModule { directions: Some(directions), ..old };
        let json = r#"{"rank":3,"alpha":6.0,"directions":{"number":1.5,"interval":[1.0,2.0]}}"#;
        assert_eq!(serde_json::to_string(&new)?, json);
        // Training reads ranks and alphas alone.
        assert_eq!(serde_json::from_str::<ModuleRank>(json)?, new.rank);
        Ok(())
    }
}
