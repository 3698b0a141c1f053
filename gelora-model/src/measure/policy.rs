//! Which policy turns growths into ranks, and what the others would do.

use gelora_lora::ranks::{self, Limits, Policy, Rounding, Step};

use super::steps::{Outcome, outcome};
use crate::Result;

/// The uniform rank that policies are compared at when none is asked for: PEFT's default.
const USUAL_RANK: usize = 8;

/// What ranks depend on beside growths and policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assignment {
    pub rounding: Rounding,
    pub limits: Limits,
    pub seed: u64,
}

/// A number of adapter parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Budget {
    /// So many parameters.
    Parameters(usize),
    /// As many parameters as this rank has everywhere.
    UniformRank(usize),
}

impl Budget {
    /// The number of parameters, for modules of these costs.
    fn parameters(self, steps: &[Step]) -> usize {
        match self {
            Self::Parameters(parameters) => parameters,
            Self::UniformRank(rank) => ranks::uniform_parameters(steps, rank),
        }
    }
}

/// Which policy turns growths into ranks. [`Policy`] is the same once the budget is known in parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyChoice {
    /// The published rule, max(round(growth), 0) + 1.
    #[default]
    Gelora,
    /// The published rule on the upper confidence bound of the growth.
    GeloraUpper,
    /// A budget spent in proportion to the published rule's ranks, never below them.
    Budget(Budget),
    /// The same rank everywhere.
    Uniform(usize),
    /// A control: a budget handed out at random; without one, as many parameters as the published rule takes.
    Random(Option<Budget>),
    /// A control: the published rule's ranks, dealt to the wrong layers.
    Shuffled,
}

impl PolicyChoice {
    /// The policy for these steps.
    pub(super) fn resolve(self, steps: &[Step], how: &Assignment) -> Result<Policy> {
        let &Assignment { rounding, seed, ref limits } = how;
        Ok(match self {
            Self::Gelora => Policy::Gelora { rounding },
            Self::GeloraUpper => Policy::GeloraUpper { rounding },
            Self::Budget(budget) => Policy::Budget { parameters: budget.parameters(steps), rounding },
            Self::Uniform(rank) => Policy::Uniform { rank },
            Self::Random(Some(budget)) => Policy::Random { parameters: budget.parameters(steps), seed },
            Self::Random(None) => {
                let parameters = outcome(steps, &Policy::Gelora { rounding }, limits)?.parameters;
                Policy::Random { parameters, seed }
            }
            Self::Shuffled => Policy::Shuffled { seed, rounding },
        })
    }

    /// The budget that is asked for, if any.
    pub(super) fn budget(self) -> Option<Budget> {
        match self {
            Self::Budget(budget) => Some(budget),
            Self::Random(budget) => budget,
            _ => None,
        }
    }

    /// The uniform rank that other policies are compared with, if one was asked for.
    pub(super) fn uniform_rank(self) -> Option<usize> {
        match (self, self.budget()) {
            (Self::Uniform(rank), _) | (_, Some(Budget::UniformRank(rank))) => Some(rank),
            _ => None,
        }
    }
}

/// What each policy would do; policies that the limits do not allow are left out.
pub(super) fn compare(steps: &[Step], chosen: &Policy, asked: PolicyChoice, how: &Assignment) -> Vec<Outcome> {
    let &Assignment { rounding, seed, ref limits } = how;
    let most = steps.iter().filter(|s| s.cost > 0).map(|s| s.most).min().unwrap_or(USUAL_RANK);
    let rank = asked.uniform_rank().unwrap_or(USUAL_RANK).min(most);
    let parameters = match asked.budget() {
        Some(Budget::Parameters(parameters)) => parameters,
        _ => ranks::uniform_parameters(steps, rank),
    };
    let all = [
        Policy::Gelora { rounding },
        Policy::GeloraUpper { rounding },
        Policy::Budget { parameters, rounding },
        Policy::Uniform { rank },
        Policy::Random { parameters, seed },
        Policy::Shuffled { seed, rounding },
    ];
    let as_chosen = |policy: Policy| if policy.name() == chosen.name() { chosen.clone() } else { policy };
    all.into_iter().filter_map(|policy| outcome(steps, &as_chosen(policy), limits).ok()).collect()
}
