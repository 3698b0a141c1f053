//! Policies: how growths of the dimension become ranks.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use gelora_kernels::random::Stream;
use serde::{Deserialize, Serialize};

use super::{Limits, Step, parameters, require};
use crate::{Error, Result};

/// How a growth of the dimension is rounded to an integer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rounding {
    /// Up: the rank is never below the bound.
    #[default]
    Ceil,
    /// To the nearest, halves away from zero.
    Nearest,
    /// Down.
    Floor,
}

/// The rule by which ranks follow from what was measured: the growth of the dimension over a step, or what single
/// modules need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// The published rule: r = max(round(delta), 0) + 1.
    Gelora {
        /// How the growth is rounded.
        #[serde(default)]
        rounding: Rounding,
    },
    /// The same rule on the upper confidence bound of the growth, r = max(round(upper), 0) + 1. With that confidence
    /// the rank is not below the growth.
    GeloraUpper {
        /// How the bound is rounded.
        #[serde(default)]
        rounding: Rounding,
    },
    /// The published rule on growths that were measured at the scale of the common plateau.
    Plateau {
        /// How the growth is rounded.
        #[serde(default)]
        rounding: Rounding,
    },
    /// A budget of parameters, spent in proportion to the published rule. Every step starts from its rank n under
    /// `gelora`. While the budget allows, the step with the smallest r / n gets the next rank; of several the one with
    /// the largest n, then the one with the largest growth. No step ends below n.
    Budget {
        /// The most parameters that all adapters may have together.
        parameters: usize,
        /// How the growth is rounded.
        #[serde(default)]
        rounding: Rounding,
    },
    /// The same rank in every step, whatever the dimensions: plain LoRA, for comparison.
    #[serde(alias = "fixed")]
    Uniform {
        /// The rank of every step.
        rank: usize,
    },
    /// A control: a budget of parameters spent at random, one rank at a time, on any step that the budget allows.
    Random {
        /// The most parameters that all adapters may have together.
        parameters: usize,
        /// Seed of the draw.
        seed: u64,
    },
    /// A control: the ranks of `gelora`, randomly permuted over the steps.
    Shuffled {
        /// Seed of the permutation.
        seed: u64,
        /// How the growth is rounded.
        #[serde(default)]
        rounding: Rounding,
    },
    /// A budget of parameters over single modules, spent in proportion to the number of directions of each module's
    /// gradient that replicate: [`proportional`](super::spectra::proportional).
    Gradient {
        /// The most parameters that all adapters may have together.
        parameters: usize,
    },
    /// A budget of parameters over single modules, spent on the directions with the most replicated energy a parameter:
    /// [`greedy`](super::spectra::greedy).
    Signal {
        /// The most parameters that all adapters may have together.
        parameters: usize,
    },
    /// A budget of parameters over single modules, spent on the directions that explain the most variance of the
    /// modules' inputs: see [`eva`](crate::eva).
    Eva {
        /// The most parameters that all adapters may have together.
        parameters: usize,
        /// The most directions of a module.
        most: usize,
    },
    /// A budget of parameters over single modules: the ranks that are left of a trained uniform rank when it is cut by
    /// the singular values of its updates. See [`cut`](crate::cut).
    Prune {
        /// The most parameters that all adapters may have together.
        parameters: usize,
        /// The uniform rank that is trained.
        trained_rank: usize,
    },
}

impl Default for Policy {
    fn default() -> Self {
        Policy::Gelora { rounding: Rounding::default() }
    }
}

impl Policy {
    /// The name in JSON and on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Policy::Gelora { .. } => "gelora",
            Policy::GeloraUpper { .. } => "gelora-upper",
            Policy::Plateau { .. } => "plateau",
            Policy::Budget { .. } => "budget",
            Policy::Uniform { .. } => "uniform",
            Policy::Random { .. } => "random",
            Policy::Shuffled { .. } => "shuffled",
            Policy::Gradient { .. } => "gradient",
            Policy::Signal { .. } => "signal",
            Policy::Eva { .. } => "eva",
            Policy::Prune { .. } => "prune",
        }
    }

    /// The policy in a sentence.
    pub fn description(&self) -> &'static str {
        match self {
            Policy::Gelora { .. } => {
                "The published rule: the growth, rounded, plus one; the least rank where the dimension falls."
            }
            Policy::GeloraUpper { .. } => {
                "The rule on the upper bound of the growth: valid at the confidence of the intervals."
            }
            Policy::Plateau { .. } => "The published rule on growths at the scale of the common plateau.",
            Policy::Budget { .. } => {
                "A budget, spent in proportion to the published rule's ranks and never below them."
            }
            Policy::Uniform { .. } => "One rank everywhere, whatever the data: the usual LoRA.",
            Policy::Random { .. } => "A control: parameters assigned at random.",
            Policy::Shuffled { .. } => "A control: the published rule's ranks, assigned to the wrong layers.",
            Policy::Gradient { .. } => {
                "A budget, spent in proportion to the number of gradient directions of each module that replicate."
            }
            Policy::Signal { .. } => {
                "A budget, spent on the gradient directions with the most replicated energy a parameter."
            }
            Policy::Eva { .. } => {
                "A budget, spent on the directions that explain the most variance of each module's inputs."
            }
            Policy::Prune { .. } => {
                "A budget: the ranks left of a higher uniform rank, trained and cut by the singular values of its \
                 updates."
            }
        }
    }

    /// Whether the policy gives ranks to single modules, from what was measured of each, rather than to steps.
    pub fn ranks_modules(&self) -> bool {
        matches!(self, Policy::Gradient { .. } | Policy::Signal { .. } | Policy::Eva { .. } | Policy::Prune { .. })
    }

    /// Whether the ranks follow the measured growths, rather than their upper bounds or nothing measured.
    pub fn follows_growth(&self) -> bool {
        match self {
            Policy::Gelora { .. } | Policy::Plateau { .. } | Policy::Shuffled { .. } | Policy::Budget { .. } => true,
            Policy::GeloraUpper { .. }
            | Policy::Uniform { .. }
            | Policy::Random { .. }
            | Policy::Gradient { .. }
            | Policy::Signal { .. }
            | Policy::Eva { .. }
            | Policy::Prune { .. } => false,
        }
    }

    /// The rank of every step, inside the limits.
    pub(super) fn ranks(&self, steps: &[Step], limits: &Limits) -> Result<Vec<usize>> {
        let rule = |growth: f64, step: &Step, rounding| limits.fit(one_more(growth, rounding), step.most);
        let gelora = |rounding| steps.iter().map(|step| rule(step.delta, step, rounding)).collect::<Vec<_>>();
        Ok(match *self {
            Policy::Gelora { rounding } | Policy::Plateau { rounding } => gelora(rounding),
            Policy::GeloraUpper { rounding } => steps.iter().map(|step| rule(step.upper, step, rounding)).collect(),
            Policy::Budget { parameters, rounding } => spend(steps, gelora(rounding), parameters, limits)?,
            Policy::Uniform { rank } => {
                require(rank >= 1, || "the uniform rank must be at least 1, got 0".into())?;
                let most = steps.iter().filter(|s| s.cost > 0).map(|s| s.most).min().unwrap_or(usize::MAX);
                require(rank <= most, || {
                    format!("the uniform rank must be 1 to {most}, the least size of an adapted module, got {rank}")
                })?;
                steps.iter().map(|step| limits.fit(rank, step.most)).collect()
            }
            Policy::Random { parameters, seed } => scatter(steps, parameters, seed, limits)?,
            Policy::Shuffled { seed, rounding } => {
                let mut ranks = gelora(rounding);
                // The rank of a step without modules has no effect, so only steps with modules are permuted.
                let bearing: Vec<usize> = (0..steps.len()).filter(|s| steps[*s].cost > 0).collect();
                let mut hand: Vec<usize> = bearing.iter().map(|s| ranks[*s]).collect();
                Stream::at(seed, &[0x6465_616c]).shuffle(&mut hand); // "deal"
                for (s, rank) in bearing.into_iter().zip(hand) {
                    ranks[s] = limits.fit(rank, steps[s].most);
                }
                ranks
            }
            Policy::Gradient { .. } | Policy::Signal { .. } | Policy::Eva { .. } | Policy::Prune { .. } => {
                let problem = format!("the policy {} gives ranks to single modules, and not to steps", self.name());
                return Err(Error::Ranks { problem });
            }
        })
    }
}

/// max(round(growth), 0) + 1. `as` saturates, so a huge growth is clamped by the limits and does not overflow.
fn one_more(growth: f64, rounding: Rounding) -> usize {
    let whole = match rounding {
        Rounding::Ceil => growth.ceil(),
        Rounding::Nearest => growth.round(),
        Rounding::Floor => growth.floor(),
    };
    (whole.max(0.0) as usize).saturating_add(1)
}

/// The next larger rank that a step may have, and the parameters that it adds.
fn next(step: &Step, rank: usize, limits: &Limits) -> Option<(usize, usize)> {
    let next = limits.fit(rank + 1, step.most);
    (next > rank && step.cost > 0).then(|| (next, step.cost * (next - rank)))
}

/// Spends the part of the budget above the needed ranks, in proportion to them.
fn spend(steps: &[Step], needed: Vec<usize>, budget: usize, limits: &Limits) -> Result<Vec<usize>> {
    let least = parameters(steps, needed.iter().copied());
    let Some(mut left) = budget.checked_sub(least) else {
        return Err(Error::Ranks {
            problem: format!("the bound on the ranks takes {least} parameters, but the budget is {budget}"),
        });
    };
    // The step with the smallest r / n comes first. Of several it is the one with the largest n, which one more rank
    // moves least out of proportion, then the one with the largest growth. Positive f64 are ordered as their bits.
    let turn = |s: usize, rank: usize| {
        let share = (rank as f64 / needed[s] as f64).to_bits();
        Reverse((share, Reverse((needed[s], ordered(steps[s].delta))), s, rank))
    };
    let mut turns: BinaryHeap<_> = needed.iter().enumerate().map(|(s, &rank)| turn(s, rank)).collect();
    let mut ranks = needed.clone();
    while let Some(Reverse((_, _, s, rank))) = turns.pop() {
        // A step that is too expensive now stays too expensive, since the budget only shrinks.
        if let Some((more, price)) = next(&steps[s], rank, limits).filter(|(_, price)| *price <= left) {
            left -= price;
            ranks[s] = more;
            turns.push(turn(s, more));
        }
    }
    Ok(ranks)
}

/// An integer with the order of the float, that of [`f64::total_cmp`].
fn ordered(value: f64) -> i64 {
    let bits = value.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

/// Spends a budget at random, starting from the smallest ranks.
fn scatter(steps: &[Step], budget: usize, seed: u64, limits: &Limits) -> Result<Vec<usize>> {
    let mut ranks: Vec<usize> = steps.iter().map(|step| limits.fit(1, step.most)).collect();
    let least = parameters(steps, ranks.iter().copied());
    let Some(mut left) = budget.checked_sub(least) else {
        return Err(Error::Ranks {
            problem: format!("the least ranks take {least} parameters, but the budget is {budget}"),
        });
    };
    let mut random = Stream::at(seed, &[0x7363_6174]); // "scat"
    let mut open: Vec<usize> = (0..steps.len()).collect();
    while !open.is_empty() {
        let at = random.below(open.len());
        let s = open[at];
        match next(&steps[s], ranks[s], limits).filter(|(_, price)| *price <= left) {
            Some((more, price)) => {
                left -= price;
                ranks[s] = more;
            }
            None => {
                open.remove(at);
            }
        }
    }
    Ok(ranks)
}
