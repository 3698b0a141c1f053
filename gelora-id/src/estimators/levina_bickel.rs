//! The maximum likelihood estimator of Levina and Bickel, averaged as by MacKay and Ghahramani.
//!
//! R_1 <= .. <= R_k are the distances of point i to its k nearest neighbors. For a Poisson process of constant density,
//!
//! ```text
//! 1 / d_i = 1 / (k - 1) sum_(j < k) ln(R_k / R_j)
//! 1 / d   = mean over i of 1 / d_i
//! ```
//!
//! The mean of the inverses maximizes the likelihood of all points together. The mean of d_i, as first published, is
//! biased upward, and strongly so for small k.
//!
//! Sources: E. Levina, P. Bickel, "Maximum likelihood estimation of intrinsic dimension", NIPS 17 (2004); D. MacKay, Z.
//! Ghahramani, "Comments on 'Maximum likelihood estimation of intrinsic dimension'" (2005). It agrees with
//! `MLE(comb="mle")` of scikit-dimension.

use super::{Method, at_least};
use crate::{Error, Jackknife, Neighborhood, Result};

/// `mle`: the likelihood of Levina and Bickel over k neighbors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevinaBickel {
    /// Number of neighbors, at least 2.
    pub k: usize,
}

impl LevinaBickel {
    /// The number of neighbors of scikit-dimension.
    pub const DEFAULT: Self = Self { k: 20 };
}

impl Method for LevinaBickel {
    fn name(&self) -> &'static str {
        "mle"
    }

    fn neighbors(&self) -> usize {
        self.k.max(2)
    }

    fn check(&self) -> Result<()> {
        at_least(2, "k of mle", self.k)
    }

    fn jackknife(&self, cloud: &Neighborhood) -> Result<Jackknife> {
        cloud.jackknife_of_lists(self.k, |lists| id(lists, self.k))
    }
}

/// The ID from the distances of every point to its k nearest neighbors, (n, k) in one list.
fn id(lists: &[f64], k: usize) -> Result<f64> {
    let (mut sum, mut n) = (0.0, 0usize);
    for r in lists.chunks_exact(k).filter(|r| r[0] > 0.0) {
        let furthest = r[k - 1].ln();
        sum += r[..k - 1].iter().map(|r| furthest - r.ln()).sum::<f64>();
        n += 1;
    }
    let terms = (n * (k - 1)) as f64;
    if n < 3 {
        return Err(Error::TooFew { distinct: n, points: lists.len() / k });
    }
    if sum <= 1e-12 * terms {
        return Err(Error::AllRatiosOne { n });
    }
    Ok(terms / sum)
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    #[test]
    fn small_numbers_by_hand() -> Result<()> {
        // ln(R_3 / R_1) + ln(R_3 / R_2) = ln 4 + ln 2 and ln 8 + 0 and 2 ln 2: 8 ln 2 over 6 terms. A twin is left out.
        let id = id(&[1.0, 2.0, 4.0, 1.0, 8.0, 8.0, 1.0, 1.0, 2.0, 0.0, 1.0, 2.0], 3)?;
        assert_relative_eq!(id, 6.0 / (8.0 * 2f64.ln()), max_relative = 1e-14);
        Ok(())
    }
}
