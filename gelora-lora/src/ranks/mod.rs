//! Ranks from intrinsic dimensions.
//!
//! d_s is the intrinsic dimension of hidden state s. Step s of the model (a block or a sublayer) turns state s into
//! state s + 1. The growth of the dimension is a lower bound on the rank r_s that the step needs:
//!
//! ```text
//! delta_s = d_{s+1} - d_s
//! r_s    >= max(delta_s, 0)
//! ```
//!
//! A [`Policy`] turns growths into ranks, and [`Limits`] round them up and clamp them. alpha_s = c r_s, so alpha / r is
//! the same in every module.
//!
//! Source: "GeLoRA: geometric adaptive ranks for efficient LoRA fine-tuning" (arXiv 2412.09250). The
//! published text gives neither the rounding nor c, so both are options: this is GeLoRA as reconstructed. `eva` is
//! of arXiv 2410.07170, `uniform` is plain LoRA; all other policies are ours. `gradient`, `signal`, `eva` and `prune`
//! give ranks to single modules, from [`spectra`].

mod policy;
mod serve;
pub mod spectra;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub use policy::{Policy, Rounding};
pub use serve::{Server, max_lora_rank};

/// How alpha follows from the rank of a module. LoRA scales a module by alpha / rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Alpha {
    /// alpha = ratio * rank: the same scale everywhere.
    Ratio(f64),
    /// The same alpha everywhere, as PEFT's `lora_alpha` is: a module of a lower rank has a larger scale.
    Fixed(f64),
}

impl Alpha {
    /// Returns the alpha of a module with this rank.
    #[must_use]
    pub fn of(self, rank: usize) -> f64 {
        match self {
            Self::Ratio(ratio) => ratio * rank as f64,
            Self::Fixed(alpha) => alpha,
        }
    }
}

impl Default for Alpha {
    fn default() -> Self {
        Self::Ratio(ALPHA_RATIO)
    }
}

/// A number is a ratio.
impl From<f64> for Alpha {
    fn from(ratio: f64) -> Self {
        Self::Ratio(ratio)
    }
}

/// The default c of alpha = c r.
pub const ALPHA_RATIO: f64 = 2.0;

/// One step through the model, whose adapted modules share a rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Growth of the dimension, d_{s+1} - d_s.
    pub delta: f64,
    /// The one-sided upper bound of the growth, at a confidence that the caller chooses.
    pub upper: f64,
    /// Parameters per rank: the sum of C_in + C_out over the adapted modules; 0 if there are none.
    pub cost: usize,
    /// The largest useful rank: the smallest of C_in and C_out over the adapted modules.
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

/// Bounds on ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// The smallest rank, at least 1.
    pub min: usize,
    /// The largest rank. `usize::MAX` (no limit) is left out of JSON.
    #[serde(skip_serializing_if = "is_unlimited")]
    pub max: usize,
    /// Ranks are rounded up to a multiple of this, as hardware or a server may prefer. 1 is left out of JSON.
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
    /// The allowed rank for `rank`: rounded up to the multiple, not below `min`, not above `max` or `most`.
    pub(crate) fn fit(&self, rank: usize, most: usize) -> usize {
        let highest = self.max.min(most);
        let up = rank.max(self.min).checked_next_multiple_of(self.multiple).unwrap_or(usize::MAX);
        // The largest allowed multiple, or the largest rank if no multiple is allowed.
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
/// A rank never exceeds [`Step::most`]: above it B A costs more without expressing more. A uniform rank above it is an
/// error.
///
/// # Errors
/// If there are no steps; if a growth is not finite; if an option of the policy or the limits is out of range; if the
/// budget is below the parameters of the lower bound; if alpha is not positive and finite; or if the policy gives ranks
/// to single modules ([`Policy::ranks_modules`]).
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
pub fn assign(steps: &[Step], policy: &Policy, alpha: impl Into<Alpha>, limits: &Limits) -> Result<Vec<StepRank>> {
    let alpha = alpha.into();
    require(!steps.is_empty(), || "expected at least one step, got none".into())?;
    for (s, step) in steps.iter().enumerate() {
        require(step.delta.is_finite() && !step.upper.is_nan(), || {
            format!("the growth of step {s} is {} with the upper bound {}", step.delta, step.upper)
        })?;
    }
    let (Alpha::Ratio(value) | Alpha::Fixed(value)) = alpha;
    require(value.is_finite() && value > 0.0, || {
        let name = if matches!(alpha, Alpha::Ratio(_)) { "the alpha ratio" } else { "alpha" };
        format!("{name} must be positive and finite, got {value}")
    })?;
    limits.check()?;
    let ranks = policy.ranks(steps, limits)?;
    Ok(ranks.into_iter().map(|rank| StepRank { rank, alpha: alpha.of(rank) }).collect())
}

/// Number of parameters of all adapters with these ranks.
#[must_use]
pub fn parameters(steps: &[Step], ranks: impl IntoIterator<Item = usize>) -> usize {
    steps.iter().zip(ranks).map(|(step, rank)| step.cost.saturating_mul(rank)).fold(0, usize::saturating_add)
}

/// Number of parameters of all adapters with the same rank in every step: a budget for comparisons.
#[must_use]
pub fn uniform_parameters(steps: &[Step], rank: usize) -> usize {
    parameters(steps, std::iter::repeat_n(rank, steps.len()))
}

/// Checks the rank of a module with C_in inputs and C_out outputs: 1 <= rank <= min(C_in, C_out). A larger rank costs
/// more without expressing more. (PEFT loads such adapters, and so does this crate.)
///
/// # Errors
/// If the rank is out of this range. The error names the module.
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
