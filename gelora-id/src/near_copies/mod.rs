//! Near copies: rows that are almost the same as another, found from the distances alone.
//!
//! A cloud with a smooth density has few points whose nearest neighbor is much nearer than the others. Two texts that
//! share all but a word make such a pair, and no estimator of a dimension survives many of them: 8 % near-identical
//! rows lower the estimate for 2,000 points of a 20-dimensional cube by 98 %. This module finds near copies; of each
//! group one row stays.
//!
//! # The score of a group
//!
//! R_1 <= .. <= R_16 are the distances of a point to its neighbors. In a Poisson process of dimension d the normalized
//! spacings l ln(R_(l+1) / R_l) are independent and exponential with rate d. A point and its j nearest neighbors are
//! suspected if R_j is small against R_m, m = j + 4: given R_m, (R_j / R_m)^d is the j-th smallest of m - 1 uniform
//! numbers. The local dimension d has a Gamma distribution with shape n0 and mean d0, and integrating over it gives
//!
//! ```text
//! T = ln(R_m / R_j),   b = m - j
//! p = sum_(i < b) (-1)^i C(b - 1, i) / ((j + i) Beta(j, b)) (1 + (j + i) T d0 / n0)^-n0
//! ```
//!
//! With j = 1, m = 2 and d known this is mu^-d of TwoNN. d0 is measured around the point, from the spacings of the
//! orders 2 to 6 of its 12 nearest neighbors beyond the group (`score`), so each part of a cloud is judged by its own
//! dimension. n0 = 8 + 200 / d0^2. The distribution is so wide because the dimension may depend on the scale: two
//! points on one sheet of a folded surface are nearer than the dimension of the neighborhood suggests. In low dimension
//! it is narrower, since no sheet has less than one dimension.
//!
//! If the dimension changes with the scale everywhere, all p-values shift and not only those of copies. T is multiplied
//! by the factor, 0.4 to 1, with which a third of the points with p > 0.4 have p > 0.8 for j = 1.
//!
//! # The decision
//!
//! Only closed groups count: all j + 1 points have the same j + 1 points as their nearest. Under the smooth cloud at
//! most N t c points lie in closed groups of order j with p <= t, where c is the share of groups that are closed
//! (`excess`). The count exceeds it significantly if Chernoff's bound on the Poisson tail, for whole groups, is below
//! 0.01 / (10 orders x 40 levels of t). **The false-positive rate is therefore at most 1 % a cloud**: of a hundred
//! clouds without near copies one loses a point.
//!
//! Where there is an excess, the local false discovery rate (Efron 2001) of a group is expected / counted at its p,
//! made monotone. A group is left out
//!
//! - if its local false discovery rate is at most 5 %, or
//! - where the excess is 3 % of the points or more, with the probability 1 - rate: as many chance pairs stay as there
//!   should be. The rate is then computed with n0 = 100 + 200 / d0^2, the likely null distribution instead of the safe
//!   one. A hash of the rows decides which groups stay, so the same cloud always loses the same rows.
//!
//! Copies hide each other and blur the prior, so the most significant order goes first and the rest is scored again,
//! until nothing is found. Of a group the first row stays.
//!
//! # Limits
//!
//! Groups have 2 to 11 rows; a larger group is a dense region like any other. Copies at a distance at which chance
//! pairs are common are not found: at 0.3 of the usual distance those are 9 % of the points in 2 dimensions, and 0.2 %
//! in 5. A cloud of fewer than 20 points is left alone. The rate holds for clouds that are locally uniform. A cloud in
//! clumps of a few points each loses points, and so does a curve or surface that is sampled so thinly that its turns
//! are as near as its points. docs/intrinsic-dimension.md has the measurements.
//!
//! Source: the spacings are Rényi's (1953), as in [`crate::estimators::two_nn_fit`]; B. Efron, R. Tibshirani, J.
//! Storey, V. Tusher, "Empirical Bayes analysis of a microarray experiment", JASA 96 (2001). The test is ours.

mod excess;
mod score;

use std::fmt;
use std::str::FromStr;

use gelora_kernels::random::Stream;
use rayon::prelude::*;

use crate::Error;
use excess::{Finding, Scan};
use score::{Lists, Prior};

/// The dimension below which near copies and chance pairs cannot be told apart well.
///
/// Where near copies were left out of a cloud of lower dimension, its estimate may be off by more than 5 %.
pub const RELIABLE_FROM: f64 = 3.0;

/// Neighbors that a point is judged by.
const REACH: usize = 16;
/// Neighbors to search for, so that [`REACH`] are left when copies go.
pub(crate) const SEARCHED: usize = 24;
/// The largest j: a group has up to j + 1 rows.
const ORDERS: usize = 10;
/// The fewest points that are judged.
const FEWEST: usize = 20;
/// Rounds at most; each leaves out the copies of one order.
const ROUNDS: usize = 40;

/// What becomes of near copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NearCopies {
    /// One row of each group stays, the others are left out and counted.
    #[default]
    Drop,
    /// They are not looked for: every distinct row counts.
    Keep,
}

impl fmt::Display for NearCopies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NearCopies::Drop => "drop",
            NearCopies::Keep => "keep",
        })
    }
}

impl FromStr for NearCopies {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "drop" => Ok(NearCopies::Drop),
            "keep" => Ok(NearCopies::Keep),
            _ => Err(Error::UnknownNearCopies { got: s.to_string() }),
        }
    }
}

/// Marks the rows to leave out, from every point's k nearest neighbors: distances and indices, (n, k) each.
pub(crate) fn find(distances: &[f64], indices: &[u32], k: usize) -> Vec<bool> {
    let n = distances.len() / k.max(1);
    let mut gone = vec![false; n];
    // The orders that an excess was proved of: what is left of it goes without another proof.
    let mut proved = [false; ORDERS + 1];
    let mut material = false;
    for round in 0..ROUNDS {
        let lists = Lists::new(distances, indices, k, &gone, REACH);
        if lists.len() < FEWEST {
            break;
        }
        let Some(prior) = Prior::fit(&lists) else { break };
        let scan = Scan::new(&lists, &proved);
        let safe = |material| scan.most_significant(&prior, prior.centered(&lists).min(1.0), material);
        // How many of many groups stay depends on the null distribution, which then has to be right and not only safe.
        let found = match prior.likely() {
            None => safe(material),
            Some(likely) => {
                let all = || scan.most_significant(&likely, likely.centered(&lists).min(1.0), material);
                match material {
                    true => all(),
                    false => safe(false).map(|sure| all().filter(|all| all.material).unwrap_or(sure)),
                }
            }
        };
        let Some(found) = found else { break };
        material |= found.material;
        proved[found.order] = true;
        if !leave_out(&found, round, &mut gone) {
            break;
        }
    }
    gone
}

/// A value for each of n points, on all cores where that is worth waking them.
fn for_each_point<T: Send>(n: usize, value: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    const WORTH_IT: usize = 4096;
    if n < WORTH_IT { (0..n).map(value).collect() } else { (0..n).into_par_iter().map(value).collect() }
}

/// The median of sorted values, of which there is at least one.
fn middle(sorted: &[f64]) -> f64 {
    0.5 * (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2])
}

/// Leaves out all rows but the first of the groups that chance does not keep. False if it keeps all.
fn leave_out(found: &Finding, round: usize, gone: &mut [bool]) -> bool {
    let mut any = false;
    for (group, stays) in &found.groups {
        let path = [0x6e65_6172, round as u64, u64::from(group[0]), u64::from(group[1])]; // "near"
        if Stream::at(0, &path).uniform() >= *stays {
            group[1..].iter().for_each(|&row| gone[row as usize] = true);
            any = true;
        }
    }
    any
}

#[cfg(test)]
mod tests;
