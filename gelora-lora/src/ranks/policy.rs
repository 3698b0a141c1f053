//! How growths of the dimension become ranks.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use gelora_kernels::random::Stream;
use serde::{Deserialize, Serialize};

use super::{Limits, Step, parameters, require};
use crate::{Error, Result};

/// How a difference of dimensions becomes a whole number.
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

/// How ranks follow from the growth of the dimension.
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
    /// The same rule on the upper confidence bound of the growth, r = max(round(upper), 0) + 1: with that confidence the rank is not
    /// below what the growth asks for.
    GeloraUpper {
        /// How the bound is rounded.
        #[serde(default)]
        rounding: Rounding,
    },
    /// A number of parameters, spent in proportion to the need: every step starts from its rank under `gelora`, n, and while
    /// anything fits, the step with the least r / n gets more; of several the one with the greatest n, then the one with the
    /// greatest growth. No step ends below n.
    Budget {
        /// Parameters of all adapters together, at most.
        parameters: usize,
        /// How the growth is rounded.
        #[serde(default)]
        rounding: Rounding,
    },
    /// The same rank in every step, whatever the dimensions: the usual LoRA, to compare with.
    #[serde(alias = "fixed")]
    Uniform {
        /// That rank.
        rank: usize,
    },
    /// A control: a number of parameters handed out blindly, one rank at a time to any step that it still fits.
    Random {
        /// Parameters of all adapters together, at most.
        parameters: usize,
        /// Seed of the draw.
        seed: u64,
    },
    /// A control: the ranks of `gelora`, dealt to the wrong steps.
    Shuffled {
        /// Seed of the deal.
        seed: u64,
        /// How the growth is rounded.
        #[serde(default)]
        rounding: Rounding,
    },
}

impl Default for Policy {
    fn default() -> Self {
        Policy::Gelora { rounding: Rounding::default() }
    }
}

impl Policy {
    /// The name that JSON and options know it by.
    pub fn name(&self) -> &'static str {
        match self {
            Policy::Gelora { .. } => "gelora",
            Policy::GeloraUpper { .. } => "gelora-upper",
            Policy::Budget { .. } => "budget",
            Policy::Uniform { .. } => "uniform",
            Policy::Random { .. } => "random",
            Policy::Shuffled { .. } => "shuffled",
        }
    }

    /// The rank of every step, inside the limits.
    pub(super) fn ranks(&self, steps: &[Step], limits: &Limits) -> Result<Vec<usize>> {
        let rule = |growth: f64, step: &Step, rounding| limits.fit(one_more(growth, rounding), step.most);
        let gelora = |rounding| steps.iter().map(|step| rule(step.delta, step, rounding)).collect::<Vec<_>>();
        Ok(match *self {
            Policy::Gelora { rounding } => gelora(rounding),
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
                // A rank that no module bears would be lost, so steps without modules keep theirs.
                let bearing: Vec<usize> = (0..steps.len()).filter(|s| steps[*s].cost > 0).collect();
                let mut hand: Vec<usize> = bearing.iter().map(|s| ranks[*s]).collect();
                Stream::at(seed, &[0x6465_616c]).shuffle(&mut hand); // "deal"
                for (s, rank) in bearing.into_iter().zip(hand) {
                    ranks[s] = limits.fit(rank, steps[s].most);
                }
                ranks
            }
        })
    }
}

/// max(round(growth), 0) + 1. `as` saturates, so that a huge growth meets the limits and not an overflow.
fn one_more(growth: f64, rounding: Rounding) -> usize {
    let whole = match rounding {
        Rounding::Ceil => growth.ceil(),
        Rounding::Nearest => growth.round(),
        Rounding::Floor => growth.floor(),
    };
    (whole.max(0.0) as usize).saturating_add(1)
}

/// The next rank that a step may have, and the parameters it adds.
fn next(step: &Step, rank: usize, limits: &Limits) -> Option<(usize, usize)> {
    let next = limits.fit(rank + 1, step.most);
    (next > rank && step.cost > 0).then(|| (next, step.cost * (next - rank)))
}

/// Spends what a budget leaves above the ranks needed, in proportion to them.
fn spend(steps: &[Step], needed: Vec<usize>, budget: usize, limits: &Limits) -> Result<Vec<usize>> {
    let least = parameters(steps, needed.iter().copied());
    let Some(mut left) = budget.checked_sub(least) else {
        return Err(Error::Ranks {
            problem: format!("the bound on the ranks takes {least} parameters, but the budget is {budget}"),
        });
    };
    // The step with the least r / n comes first. Of equal ones it is the neediest: the one with the greatest n, which one rank
    // more moves least out of proportion, and then the one whose dimension grows most. A positive f64 is ordered as its bits.
    let turn = |s: usize, rank: usize| {
        let share = (rank as f64 / needed[s] as f64).to_bits();
        Reverse((share, Reverse((needed[s], ordered(steps[s].delta))), s, rank))
    };
    let mut turns: BinaryHeap<_> = needed.iter().enumerate().map(|(s, &rank)| turn(s, rank)).collect();
    let mut ranks = needed.clone();
    while let Some(Reverse((_, _, s, rank))) = turns.pop() {
        // A step that cannot be paid now never can: the budget only shrinks.
        if let Some((more, price)) = next(&steps[s], rank, limits).filter(|(_, price)| *price <= left) {
            left -= price;
            ranks[s] = more;
            turns.push(turn(s, more));
        }
    }
    Ok(ranks)
}

/// A whole number that is ordered as the float is: that of [`f64::total_cmp`].
fn ordered(value: f64) -> i64 {
    let bits = value.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

/// Hands out a budget at random, from the least ranks on.
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
