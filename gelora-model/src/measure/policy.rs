//! The policy that turns measurements into ranks, and the comparison with all other policies.

use gelora_lora::ranks::{self, Limits, Policy, Rounding, Step};
use gelora_lora::{cut, eva};

use super::steps::{PolicyOutcome, outcome};
use crate::Result;

/// The uniform rank used for comparing policies if the user asked for none: PEFT's default.
const USUAL_RANK: usize = 8;

/// Inputs of the ranks other than growths and policy.
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
    /// This number of parameters.
    Parameters(usize),
    /// The number of parameters that a uniform rank would need.
    UniformRank(usize),
}

impl Budget {
    /// The number of parameters, given the costs of the steps.
    fn parameters(self, steps: &[Step]) -> usize {
        match self {
            Self::Parameters(parameters) => parameters,
            Self::UniformRank(rank) => ranks::uniform_parameters(steps, rank),
        }
    }

    /// The largest uniform rank that the budget holds, at least 1.
    fn rank(self, steps: &[Step]) -> usize {
        match self {
            Self::Parameters(parameters) => (parameters / ranks::uniform_parameters(steps, 1).max(1)).max(1),
            Self::UniformRank(rank) => rank,
        }
    }
}

/// Choice of a policy. It becomes a [`Policy`] when the budget is known in parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyChoice {
    /// The published rule, max(round(growth), 0) + 1.
    #[default]
    Gelora,
    /// The published rule, applied to the upper confidence bound of the growth.
    GeloraUpper,
    /// The published rule on growths at the scale of the common plateau, whatever
    /// [`MeasureOptions::scale`](super::MeasureOptions::scale) says. That scale then holds for the policies that this
    /// one is compared with.
    Plateau,
    /// Distributes a budget in proportion to the published rule's ranks, never below them.
    Budget(Budget),
    /// The same rank for all modules.
    Uniform(usize),
    /// A control: distributes a budget at random. Without a budget, uses as many parameters as the published rule.
    Random(Option<Budget>),
    /// A control: the published rule's ranks, assigned to the wrong layers.
    Shuffled,
    /// Distributes a budget over single modules, in proportion to the directions of their gradients that replicate.
    Gradient(Budget),
    /// Distributes a budget over single modules, to the directions with the most replicated energy a parameter.
    Signal(Budget),
    /// Distributes a budget over single modules, to the directions that explain the most variance of their inputs.
    Eva(Budget),
    /// The ranks that are left if four times the rank of the budget is trained and cut to the budget.
    Prune(Budget),
}

impl PolicyChoice {
    /// Returns the policy for these steps.
    pub(super) fn resolve(self, steps: &[Step], assignment: &Assignment) -> Result<Policy> {
        let &Assignment { rounding, seed, ref limits } = assignment;
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
            Self::Plateau => Policy::Plateau { rounding },
            Self::Gradient(budget) => Policy::Gradient { parameters: budget.parameters(steps) },
            Self::Signal(budget) => Policy::Signal { parameters: budget.parameters(steps) },
            Self::Eva(budget) => {
                Policy::Eva { parameters: budget.parameters(steps), most: eva::most(budget.rank(steps), eva::RHO) }
            }
            Self::Prune(budget) => Policy::Prune {
                parameters: budget.parameters(steps),
                trained_rank: cut::trained_rank(steps, budget.rank(steps), limits),
            },
        })
    }

    /// Whether the policy gives ranks to single modules, from what is measured of each.
    pub fn ranks_modules(self) -> bool {
        self.needs_labels() || matches!(self, Self::Eva(_))
    }

    /// Whether the policy needs labeled rows, or those of a language model.
    pub fn needs_labels(self) -> bool {
        matches!(self, Self::Gradient(_) | Self::Signal(_) | Self::Prune(_))
    }

    /// The budget that the user asked for, if any.
    pub(super) fn budget(self) -> Option<Budget> {
        match self {
            Self::Budget(budget)
            | Self::Gradient(budget)
            | Self::Signal(budget)
            | Self::Eva(budget)
            | Self::Prune(budget) => Some(budget),
            Self::Random(budget) => budget,
            _ => None,
        }
    }

    /// The uniform rank that the user asked for, if any. Other policies are compared at this rank.
    pub(super) fn uniform_rank(self) -> Option<usize> {
        match (self, self.budget()) {
            (Self::Uniform(rank), _) | (_, Some(Budget::UniformRank(rank))) => Some(rank),
            _ => None,
        }
    }
}

/// Returns the ranks that each policy for steps would assign. Policies that violate the limits are left out.
pub(super) fn compare(
    steps: &[Step],
    chosen: &Policy,
    choice: PolicyChoice,
    assignment: &Assignment,
) -> Vec<PolicyOutcome> {
    let &Assignment { rounding, seed, ref limits } = assignment;
    let max_rank = steps.iter().filter(|s| s.cost > 0).map(|s| s.most).min().unwrap_or(USUAL_RANK);
    let rank = choice.uniform_rank().unwrap_or(USUAL_RANK).min(max_rank);
    let parameters = match choice.budget() {
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
