//! Intrinsic dimensions to ranks.
//!
//! With d_s the intrinsic dimension of hidden state s, step s through the model (a block, or a half of one) turns state s into state
//! s + 1, and what it must be able to change is bounded by
//!
//! ```text
//! delta_s = d_{s+1} - d_s
//! r_s    >= max(delta_s, 0)
//! ```
//!
//! A [`Policy`] says how a rank follows; `alpha_s = c r_s`, so that alpha / r is the same in every module. Ranks are then rounded up
//! and clamped by [`Limits`].
//!
//! Source: "GeLoRA: geometric adaptive ranks for efficient LoRA fine-tuning" (arXiv 2412.09250). The rounding and c are
//! not published in what could be read, so both are options: this is GeLoRA as reconstructed. All policies but `gelora` and
//! `uniform` are ours.

mod policy;
mod serve;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub use policy::{Policy, Rounding};
pub use serve::{Server, max_lora_rank};

/// The c of alpha = c r when nothing else is asked for.
pub const ALPHA_RATIO: f64 = 2.0;

/// One step through the model, whose adapted modules share a rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Growth of the dimension, d_{s+1} - d_s.
    pub delta: f64,
    /// What the growth is below with a confidence of the caller's choice (one-sided).
    pub upper: f64,
    /// Parameters of one rank: the sum of C_in + C_out over its modules; 0 if none is adapted.
    pub cost: usize,
    /// The largest rank that makes sense: the least of C_in and C_out over its modules.
    pub most: usize,
}

/// The rank of the modules of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepRank {
    /// r_s.
    pub rank: usize,
    /// alpha_s = c r_s.
    pub alpha: f64,
}

/// What a policy's ranks are fitted into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// The least rank, at least 1.
    pub min: usize,
    /// The greatest rank. `usize::MAX` (no limit) is left out of JSON.
    #[serde(skip_serializing_if = "is_unlimited")]
    pub max: usize,
    /// Ranks are rounded up to a multiple of this, which hardware and servers may like; 1 is left out of JSON.
    #[serde(skip_serializing_if = "is_one")]
    pub multiple: usize,
}

fn is_unlimited(max: &usize) -> bool {
    *max == usize::MAX
}

fn is_one(multiple: &usize) -> bool {
    *multiple == 1
}

impl Default for Limits {
    fn default() -> Self {
        Self { min: 1, max: usize::MAX, multiple: 1 }
    }
}

impl Limits {
    /// The nearest rank that a step may have: rounded up to the multiple, not below `min`, not above `max` or `most`.
    fn fit(&self, rank: usize, most: usize) -> usize {
        let highest = self.max.min(most);
        let up = rank.max(self.min).checked_next_multiple_of(self.multiple).unwrap_or(usize::MAX);
        // The greatest multiple allowed, or where there is none the greatest rank.
        let down = |rank: usize| if rank < self.multiple { rank } else { rank - rank % self.multiple };
        if up <= highest { up } else { down(highest).max(1) }
    }

    fn check(&self) -> Result<()> {
        require(1 <= self.min && self.min <= self.max, || {
            format!("limits must satisfy 1 <= min <= max, got min {} and max {}", self.min, self.max)
        })?;
        require(self.multiple >= 1, || "ranks must be rounded to a multiple of at least 1, got 0".into())
    }
}

fn require(holds: bool, problem: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Ranks { problem: problem() }) }
}

/// The growth of each step from the dimensions of the states.
///
/// # Errors
/// For fewer than two dimensions, or one that is not finite.
pub fn differences(ids: &[f64]) -> Result<Vec<f64>> {
    require(ids.len() >= 2, || {
        format!("expected a dimension before and after each step (2 or more), got {}", ids.len())
    })?;
    match ids.iter().enumerate().find(|(_, id)| !id.is_finite()) {
        Some((state, id)) => Err(Error::Ranks { problem: format!("the intrinsic dimension of state {state} is {id}") }),
        None => Ok(ids.windows(2).map(|pair| pair[1] - pair[0]).collect()),
    }
}

/// The rank and alpha of every step.
///
/// A rank never exceeds [`Step::most`], above which B A can express nothing more and only costs more; asking for a uniform
/// rank above it is an error.
///
/// # Errors
/// For no steps, a growth that is not finite, an option of the policy or the limits that is out of range, a budget that the bound does
/// not fit into, or an alpha ratio that is not positive and finite.
///
/// ```
/// use gelora_lora::ranks::{self, Limits, Policy, Step};
///
/// let growth = ranks::differences(&[5.0, 7.4, 6.9, 6.9])?;
/// let steps: Vec<_> = growth.iter().map(|&delta| Step { delta, upper: delta + 1.0, cost: 512, most: 64 }).collect();
/// let of = |policy: &Policy| -> gelora_lora::Result<Vec<usize>> {
///     Ok(ranks::assign(&steps, policy, 2.0, &Limits::default())?.iter().map(|s| s.rank).collect())
/// };
/// assert_eq!(of(&Policy::default())?, [4, 1, 1]); // ceil(2.4) + 1, 0 + 1, 0 + 1
/// assert_eq!(of(&Policy::GeloraUpper { rounding: Default::default() })?, [5, 2, 2]);
/// let parameters = ranks::uniform_parameters(&steps, 4);
/// assert_eq!(of(&Policy::Budget { parameters, rounding: Default::default() })?, [8, 2, 2]);
/// # Ok::<(), gelora_lora::Error>(())
/// ```
pub fn assign(steps: &[Step], policy: &Policy, alpha_ratio: f64, limits: &Limits) -> Result<Vec<StepRank>> {
    require(!steps.is_empty(), || "expected at least one step, got none".into())?;
    for (s, step) in steps.iter().enumerate() {
        require(step.delta.is_finite() && !step.upper.is_nan(), || {
            format!("the growth of step {s} is {} with the upper bound {}", step.delta, step.upper)
        })?;
    }
    require(alpha_ratio.is_finite() && alpha_ratio > 0.0, || {
        format!("the alpha ratio must be positive and finite, got {alpha_ratio}")
    })?;
    limits.check()?;
    let ranks = policy.ranks(steps, limits)?;
    Ok(ranks.into_iter().map(|rank| StepRank { rank, alpha: alpha_ratio * rank as f64 }).collect())
}

/// Parameters of all adapters with these ranks.
pub fn parameters(steps: &[Step], ranks: impl IntoIterator<Item = usize>) -> usize {
    steps.iter().zip(ranks).map(|(step, rank)| step.cost.saturating_mul(rank)).fold(0, usize::saturating_add)
}

/// Parameters of all adapters with one rank everywhere: a budget to compare with.
pub fn uniform_parameters(steps: &[Step], rank: usize) -> usize {
    parameters(steps, std::iter::repeat_n(rank, steps.len()))
}

/// That a rank makes sense for a module of C_in inputs and C_out outputs: 1 <= rank <= min(C_in, C_out). Above that, B A
/// can express nothing more and only costs more. (PEFT loads such adapters, and so does this crate.)
///
/// # Errors
/// Otherwise, naming the module.
pub fn check_rank(module: &str, rank: usize, c_in: usize, c_out: usize) -> Result<()> {
    let most = c_in.min(c_out);
    if (1..=most).contains(&rank) {
        return Ok(());
    }
    Err(Error::module(
        module,
        format!("the rank must be 1 to {most} for {c_in} inputs and {c_out} outputs, got {rank}"),
    ))
}

#[cfg(test)]
mod tests;
