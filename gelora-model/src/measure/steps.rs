//! From growths to the rank of every module, under one policy or all.

use std::collections::BTreeMap;

use gelora_id::Growth;
use gelora_lora::ranks::{self, Limits, Policy, Step, StepRank};
use serde::{Deserialize, Serialize};

use crate::{Error, Granularity, LinearInfo, Result};

/// Rank and alpha of one module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleRank {
    /// Rank r.
    pub rank: usize,
    /// alpha; the product B A is scaled by alpha / r.
    pub alpha: f64,
}

/// What a policy would do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Outcome {
    /// The policy with its settings.
    #[serde(flatten)]
    pub policy: Policy,
    /// The rank of every step.
    pub ranks: Vec<usize>,
    /// Parameters of all adapters together.
    pub parameters: usize,
}

/// The modules that are adapted, each with the index of the step that it belongs to.
#[derive(Clone, Debug)]
pub struct Targets<'a> {
    /// Each module with the index of its step.
    pub modules: Vec<(&'a LinearInfo, usize)>,
    steps: usize,
}

impl<'a> Targets<'a> {
    /// The modules of a model with these linear modules that `wanted` names: ends of names, or "all-linear"; without a
    /// name the four projections of attention.
    ///
    /// # Errors
    /// If a name fits no module.
    pub fn new(infos: &'a [LinearInfo], layers: usize, granularity: Granularity, wanted: &[String]) -> Result<Self> {
        let all = wanted.iter().any(|t| t == "all-linear");
        let is_target = |info: &LinearInfo| {
            if wanted.is_empty() { info.attention } else { all || wanted.iter().any(|t| names(t, &info.name)) }
        };
        if let Some(unknown) = wanted.iter().find(|t| *t != "all-linear" && !infos.iter().any(|i| names(t, &i.name))) {
            let known: Vec<&str> = infos.iter().filter(|i| i.layer == Some(0)).map(|i| i.name.as_str()).collect();
            return Err(Error::Value(format!(
                "no linear module is called {unknown}; those of the first layer are {}",
                known.join(", ")
            )));
        }
        let in_blocks = infos.iter().filter(|i| is_target(i));
        let modules = in_blocks.filter_map(|i| Some((i, granularity.step_of(i.layer?, i.attention)))).collect();
        Ok(Self { modules, steps: layers * granularity.steps_per_block() })
    }

    /// The steps with their growths, the cost of one rank and the largest rank.
    pub(crate) fn steps(&self, growths: &[Growth]) -> Vec<Step> {
        let step = |(s, growth): (usize, &Growth)| {
            let own = || self.modules.iter().filter(move |(_, step)| *step == s).map(|(info, _)| info);
            let cost = own().map(|i| i.c_in + i.c_out).sum();
            let most = own().map(|i| i.c_in.min(i.c_out)).min().unwrap_or(usize::MAX);
            Step { delta: growth.delta, upper: growth.upper, cost, most }
        };
        growths.iter().enumerate().map(step).collect()
    }

    /// The steps as they would be if no dimension grew.
    pub(crate) fn flat(&self) -> Vec<Step> {
        self.steps(&vec![Growth { delta: 0.0, error: 0.0, interval: [0.0; 2], upper: 0.0 }; self.steps])
    }

    /// Rank and alpha of every module, from those of the steps.
    pub(crate) fn of_modules(&self, ranks: &[StepRank]) -> BTreeMap<String, ModuleRank> {
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

/// The ranks that a policy gives these steps.
pub(crate) fn outcome(steps: &[Step], policy: &Policy, limits: &Limits) -> Result<Outcome> {
    let ranks: Vec<usize> = ranks::assign(steps, policy, 1.0, limits)?.iter().map(|s| s.rank).collect();
    let parameters = ranks::parameters(steps, ranks.iter().copied());
    Ok(Outcome { policy: policy.clone(), ranks, parameters })
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
        let all = ["all-linear".to_owned()];
        let halves = Targets::new(&infos, 2, Granularity::Sublayer, &all)?;
        assert_eq!(
            halves.flat().iter().map(|s| (s.cost, s.most)).collect::<Vec<_>>(),
            [(16, 8), (40, 8), (16, 8), (40, 8)]
        );
        let ranks = [1, 2, 3, 4].map(|rank| StepRank { rank, alpha: 2.0 * rank as f64 });
        assert_eq!(halves.of_modules(&ranks)["layer.1.up"], ModuleRank { rank: 4, alpha: 8.0 });
        let blocks = Targets::new(&infos, 2, Granularity::Block, &all)?;
        assert_eq!(blocks.flat().iter().map(|s| s.cost).collect::<Vec<_>>(), [56, 56]);
        assert_eq!(blocks.of_modules(&ranks[..2])["layer.1.up"].rank, 2);
        Ok(())
    }
}
