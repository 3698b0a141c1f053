//! Intrinsic dimensions to ranks.
//!
//! With d_l the intrinsic dimension of hidden state l (l = 0..=L for L layers), layer l turns state l into state l + 1:
//!
//! ```text
//! delta_l = d_{l+1} - d_l
//! r_l     = max(round(delta_l), 0) + 1        (GeLoRA; round is up, unless asked otherwise)
//! alpha_l = c r_l                             (so that alpha / r is the same in every layer)
//! ```
//!
//! Source: "GeLoRA: geometric adaptive ranks for efficient LoRA fine-tuning" (arXiv 2412.09250). The rounding and c are
//! not published in what could be read, so both are options: this is GeLoRA as reconstructed.

use serde::{Deserialize, Serialize};

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

/// How ranks follow from intrinsic dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// r_l = max(round(d_{l+1} - d_l), 0) + 1.
    Gelora {
        /// How the difference is rounded.
        #[serde(default)]
        rounding: Rounding,
    },
    /// The same rank in every layer, whatever the dimensions: the usual LoRA, to compare with.
    Fixed {
        /// That rank.
        rank: usize,
    },
}

impl Default for Policy {
    fn default() -> Self {
        Policy::Gelora { rounding: Rounding::default() }
    }
}

/// The c of alpha = c r when nothing else is asked for.
pub const ALPHA_RATIO: f64 = 2.0;

/// The least and the greatest rank that a policy may give; others are moved to the nearer of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// The least rank, at least 1.
    pub min: usize,
    /// The greatest rank. `usize::MAX` (no limit) is left out of JSON.
    #[serde(skip_serializing_if = "is_unlimited")]
    pub max: usize,
}

fn is_unlimited(max: &usize) -> bool {
    *max == usize::MAX
}

impl Default for Limits {
    fn default() -> Self {
        Self { min: 1, max: usize::MAX }
    }
}

/// The rank of one layer, and what it came from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerRank {
    /// The layer, from 0.
    pub layer: usize,
    /// d_{l+1} - d_l.
    pub delta: f64,
    /// r_l.
    pub rank: usize,
    /// alpha_l = c r_l.
    pub alpha: f64,
}

/// The rank of every layer from the intrinsic dimensions of the L + 1 hidden states (the formula is at the head of this
/// module). The ranks do not know the size of the weights: see [`check_rank`].
///
/// # Errors
/// For fewer than two dimensions, one that is not finite, a rank of 0 in the policy or the limits, limits out of order, or
/// an alpha ratio that is not positive and finite.
///
/// ```
/// use gelora_lora::ranks::{self, Limits, Policy};
///
/// let layers = ranks::assign(&[5.0, 7.4, 6.9, 6.9], &Policy::default(), 2.0, Limits::default())?;
/// assert_eq!(layers.iter().map(|l| l.rank).collect::<Vec<_>>(), [4, 1, 1]); // ceil(2.4) + 1, 0 + 1, 0 + 1
/// assert_eq!(layers[0].alpha, 8.0);
/// # Ok::<(), gelora_lora::Error>(())
/// ```
pub fn assign(ids: &[f64], policy: &Policy, alpha_ratio: f64, limits: Limits) -> Result<Vec<LayerRank>> {
    let check = |holds: bool, problem: &dyn Fn() -> String| {
        if holds { Ok(()) } else { Err(Error::Ranks { problem: problem() }) }
    };
    check(ids.len() >= 2, &|| {
        format!("expected a dimension before and after each layer (2 or more), got {}", ids.len())
    })?;
    if let Some((state, id)) = ids.iter().enumerate().find(|(_, id)| !id.is_finite()) {
        return Err(Error::Ranks { problem: format!("the intrinsic dimension of state {state} is {id}") });
    }
    check(alpha_ratio.is_finite() && alpha_ratio > 0.0, &|| {
        format!("the alpha ratio must be positive and finite, got {alpha_ratio}")
    })?;
    check(1 <= limits.min && limits.min <= limits.max, &|| {
        format!("limits must satisfy 1 <= min <= max, got min {} and max {}", limits.min, limits.max)
    })?;
    check(*policy != Policy::Fixed { rank: 0 }, &|| "the fixed rank must be at least 1, got 0".into())?;

    let layer_rank = |(layer, pair): (usize, &[f64])| {
        let delta = pair[1] - pair[0];
        let rank = match *policy {
            // `as` saturates, so that a huge difference meets `limits.max` and not an overflow.
            Policy::Gelora { rounding } => (round(delta, rounding).max(0.0) as usize).saturating_add(1),
            Policy::Fixed { rank } => rank,
        };
        let rank = rank.clamp(limits.min, limits.max);
        LayerRank { layer, delta, rank, alpha: alpha_ratio * rank as f64 }
    };
    Ok(ids.windows(2).enumerate().map(layer_rank).collect())
}

fn round(delta: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Ceil => delta.ceil(),
        Rounding::Nearest => delta.round(),
        Rounding::Floor => delta.floor(),
    }
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranks(ids: &[f64], rounding: Rounding) -> Vec<usize> {
        let layers = assign(ids, &Policy::Gelora { rounding }, ALPHA_RATIO, Limits::default()).unwrap();
        layers.iter().map(|l| l.rank).collect()
    }

    #[test]
    fn rounding_by_hand() {
        let ids = [4.0, 6.5, 6.5, 5.0, 5.4];
        assert_eq!(ranks(&ids, Rounding::Ceil), [4, 1, 1, 2]);
        assert_eq!(ranks(&ids, Rounding::Nearest), [4, 1, 1, 1]);
        assert_eq!(ranks(&ids, Rounding::Floor), [3, 1, 1, 1]);
    }

    #[test]
    fn wrong_input_is_an_error() {
        let gelora = Policy::default();
        let fails = |ids: &[f64], policy: &Policy, ratio, min, max| {
            assign(ids, policy, ratio, Limits { min, max }).unwrap_err().to_string()
        };
        assert!(fails(&[], &gelora, 2.0, 1, 8).contains("got 0"));
        assert!(fails(&[3.0], &gelora, 2.0, 1, 8).contains("got 1"));
        assert!(fails(&[3.0, f64::NAN], &gelora, 2.0, 1, 8).contains("state 1 is NaN"));
        assert!(fails(&[f64::INFINITY, 1.0], &gelora, 2.0, 1, 8).contains("state 0 is inf"));
        assert!(fails(&[1.0, 2.0], &Policy::Fixed { rank: 0 }, 2.0, 1, 8).contains("at least 1"));
        assert!(fails(&[1.0, 2.0], &gelora, 2.0, 0, 8).contains("min 0"));
        assert!(fails(&[1.0, 2.0], &gelora, 2.0, 9, 8).contains("min 9 and max 8"));
        assert!(fails(&[1.0, 2.0], &gelora, 0.0, 1, 8).contains("alpha ratio"));
        assert!(check_rank("q", 5, 4, 8).unwrap_err().to_string().starts_with("module q: the rank must be 1 to 4"));
        assert!(check_rank("q", 0, 4, 8).is_err() && check_rank("q", 4, 4, 8).is_ok());
    }

    #[test]
    fn json_names_are_fixed() {
        let json = |policy: &Policy| serde_json::to_string(policy).unwrap();
        assert_eq!(json(&Policy::default()), r#"{"name":"gelora","rounding":"ceil"}"#);
        assert_eq!(json(&Policy::Fixed { rank: 8 }), r#"{"name":"fixed","rank":8}"#);
        assert_eq!(serde_json::from_str::<Policy>(r#"{"name":"gelora"}"#).unwrap(), Policy::default());
        assert_eq!(serde_json::to_string(&Limits::default()).unwrap(), r#"{"min":1}"#);
        assert_eq!(serde_json::from_str::<Limits>(r#"{"min":1}"#).unwrap(), Limits::default());
    }

    proptest! {
        #[test]
        fn gelora_ranks(ids in prop::collection::vec(-1e3..1e3f64, 2..20), shift in -10.0..10.0f64, ratio in 0.1..10.0f64) {
            let limits = Limits { min: 1, max: 64 };
            let layers = assign(&ids, &Policy::default(), ratio, limits).unwrap();
            prop_assert_eq!(layers.len(), ids.len() - 1);
            for (l, pair) in layers.iter().zip(ids.windows(2)) {
                prop_assert!((1..=64).contains(&l.rank));
                // One more than the bound d_{l+1} - d_l, rounded up.
                let excess = l.rank as f64 - (pair[1] - pair[0]).max(0.0);
                prop_assert!(l.rank == 64 || (1.0..=2.0).contains(&excess), "{l:?}");
                prop_assert_eq!(l.alpha, ratio * l.rank as f64);
            }
            // Only differences matter. A multiple of 1/1024 adds exactly, so rounding cannot hide a mistake.
            let (grid, shift) = (|x: f64| (x * 1024.0).round() / 1024.0, (shift * 1024.0).round() / 1024.0);
            let ids: Vec<f64> = ids.into_iter().map(grid).collect();
            let shifted: Vec<f64> = ids.iter().map(|d| d + shift).collect();
            prop_assert_eq!(ranks(&ids, Rounding::Ceil), ranks(&shifted, Rounding::Ceil));
        }

        #[test]
        fn ceil_nearest_floor_in_order(ids in prop::collection::vec(0.0..50.0f64, 2..20)) {
            let (up, near, down) = (ranks(&ids, Rounding::Ceil), ranks(&ids, Rounding::Nearest), ranks(&ids, Rounding::Floor));
            for ((up, near), down) in up.into_iter().zip(near).zip(down) {
                prop_assert!(down <= near && near <= up && up <= down + 1);
            }
        }

        #[test]
        fn any_finite_ids_give_ranks_in_the_limits(ids in prop::collection::vec(prop::num::f64::NORMAL, 2..6), min in 1..9usize) {
            let limits = Limits { min, max: min + 3 };
            for l in assign(&ids, &Policy::default(), 1.0, limits).unwrap() {
                prop_assert!((min..=min + 3).contains(&l.rank));
            }
        }
    }
}
