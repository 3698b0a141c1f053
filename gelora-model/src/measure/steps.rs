//! Assigns a rank to every module, given the growths.

use std::collections::BTreeMap;

use gelora_id::Growth;
use gelora_lora::ranks::spectra::Spectrum;
use gelora_lora::ranks::{self, Limits, Policy, Step, StepRank};
use serde::{Deserialize, Serialize};

use crate::{Error, Granularity, LinearInfo, Result};

/// Rank and alpha of one module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleRank {
    /// The rank r.
    pub rank: usize,
    /// alpha. The product B A is multiplied by alpha / r.
    pub alpha: f64,
}

/// The ranks that a policy would assign.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PolicyOutcome {
    /// The policy with its settings.
    #[serde(flatten)]
    pub policy: Policy,
    /// The rank of every step; if modules have ranks of their own, the mean over those of the step, rounded.
    pub ranks: Vec<usize>,
    /// The mean rank of every step's modules, if these have ranks of their own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mean_ranks: Option<Vec<f64>>,
    /// Number of parameters of all adapters together. Some policies have a field `parameters` too, their budget.
    #[serde(rename = "adapter_parameters")]
    pub parameters: usize,
}

/// The modules to adapt, each with the index of the step that contains it.
#[derive(Clone, Debug)]
pub struct TargetModules<'a> {
    /// Each module with the index of its step.
    pub modules: Vec<(&'a LinearInfo, usize)>,
    pub(super) steps: usize,
}

impl<'a> TargetModules<'a> {
    /// Selects the linear modules whose names end with one of `wanted`. "all-linear" selects all of them, and an empty
    /// `wanted` selects the four projections of attention.
    ///
    /// # Errors
    /// Returns an error if an entry of `wanted` matches no module.
    pub fn new(infos: &'a [LinearInfo], layers: usize, granularity: Granularity, wanted: &[String]) -> Result<Self> {
        let all = wanted.iter().any(|t| t == "all-linear");
        let is_target = |info: &LinearInfo| {
            if wanted.is_empty() { info.attention } else { all || wanted.iter().any(|t| is_named(t, &info.name)) }
        };
        if let Some(unknown) = wanted.iter().find(|t| *t != "all-linear" && !infos.iter().any(|i| is_named(t, &i.name)))
        {
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

    /// Returns the steps with their growths, the parameters that one rank costs, and the largest rank.
    pub(crate) fn steps(&self, growths: &[Growth]) -> Vec<Step> {
        let step = |(s, growth): (usize, &Growth)| {
            let modules = || self.modules.iter().filter(move |(_, step)| *step == s).map(|(info, _)| info);
            let cost = modules().map(|i| i.c_in + i.c_out).sum();
            let most = modules().map(|i| i.c_in.min(i.c_out)).min().unwrap_or(usize::MAX);
            Step { delta: growth.delta, upper: growth.upper, cost, most }
        };
        growths.iter().enumerate().map(step).collect()
    }

    /// Returns the steps as they would be if no dimension grew.
    pub fn steps_without_growth(&self) -> Vec<Step> {
        self.steps(&vec![Growth { delta: 0.0, error: 0.0, interval: [0.0; 2], upper: 0.0 }; self.steps])
    }

    /// Returns every module as one that gains nothing from its ranks: what a check of a budget needs.
    pub(super) fn spectra(&self) -> Vec<Spectrum> {
        let spectrum = |(info, _): &(&LinearInfo, usize)| Spectrum {
            gains: Vec::new(),
            cost: info.c_in + info.c_out,
            most: info.c_in.min(info.c_out),
        };
        self.modules.iter().map(spectrum).collect()
    }

    /// Returns rank and alpha of every module, given those of the steps.
    pub fn ranks_of_modules(&self, ranks: &[StepRank]) -> BTreeMap<String, ModuleRank> {
        let rank_of_module = |(info, step): &(&LinearInfo, usize)| {
            let StepRank { rank, alpha } = ranks[*step];
            (info.name.clone(), ModuleRank { rank, alpha })
        };
        self.modules.iter().map(rank_of_module).collect()
    }
}

fn is_named(target: &str, module: &str) -> bool {
    module == target || module.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
}

/// Returns the ranks that a policy assigns to these steps.
pub(crate) fn outcome(steps: &[Step], policy: &Policy, limits: &Limits) -> Result<PolicyOutcome> {
    let ranks: Vec<usize> = ranks::assign(steps, policy, 1.0, limits)?.iter().map(|s| s.rank).collect();
    let parameters = ranks::parameters(steps, ranks.iter().copied());
    Ok(PolicyOutcome { policy: policy.clone(), ranks, mean_ranks: None, parameters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_matches_the_end_of_a_name_after_a_dot() {
        assert!(is_named("query", "encoder.layer.1.attention.self.query"));
        assert!(is_named("attention.output.dense", "encoder.layer.1.attention.output.dense"));
        assert!(!is_named("output.dense", "encoder.layer.1.attention.soutput.dense"));
        assert!(!is_named("uery", "encoder.query"));
    }

    #[test]
    fn attention_and_mlp_steps_have_separate_costs() -> Result<()> {
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
        let sublayers = TargetModules::new(&infos, 2, Granularity::Sublayer, &all)?;
        assert_eq!(
            sublayers.steps_without_growth().iter().map(|s| (s.cost, s.most)).collect::<Vec<_>>(),
            [(16, 8), (40, 8), (16, 8), (40, 8)]
        );
        let ranks = [1, 2, 3, 4].map(|rank| StepRank { rank, alpha: 2.0 * rank as f64 });
        assert_eq!(sublayers.ranks_of_modules(&ranks)["layer.1.up"], ModuleRank { rank: 4, alpha: 8.0 });
        let blocks = TargetModules::new(&infos, 2, Granularity::Block, &all)?;
        assert_eq!(blocks.steps_without_growth().iter().map(|s| s.cost).collect::<Vec<_>>(), [56, 56]);
        assert_eq!(blocks.ranks_of_modules(&ranks[..2])["layer.1.up"].rank, 2);
        Ok(())
    }
}
