//! GRIDE, the generalized ratios intrinsic dimension estimator: TwoNN at a coarser scale.
//!
//! mu = r_(n2) / r_(n1) is the ratio of the distances of a point to its neighbors of orders n1 < n2, here n2 = 2 n1. If
//! the density is constant up to the n2-th neighbor,
//!
//! ```text
//! f(mu) = d (mu^d - 1)^(n2 - n1 - 1) / (mu^(d (n2 - 1) + 1) B(n2 - n1, n1))
//! ```
//!
//! with B the beta function. With s = ln mu the derivative of the log-likelihood is
//!
//! ```text
//! l'(d) = (N - 1) / d + (n2 - n1 - 1) sum s_i / (1 - exp(-d s_i)) - (n2 - 1) sum s_i
//! ```
//!
//! with N - 1 in place of N, as for TwoNN. l' decreases in d. Its root is the estimate, found by Newton's method inside
//! a bracket to a relative 1e-12. With n1 = 1 the estimate is that of `two-nn-mle`. A larger n1 skips the noise of
//! small scales, but assumes a constant density in a larger ball.
//!
//! Source: F. Denti, D. Doimo, A. Laio, A. Mira, "The generalized ratios intrinsic dimension estimator", Scientific
//! Reports 12, 20005 (2022). It agrees with `return_id_scaling_gride` of DADApy, which also leaves out ratios far
//! beyond the 95th percentile.

use super::{Method, at_least};
use crate::{Error, Jackknife, Neighborhood, Result};

/// `gride`: ratios of the distances to the neighbors of orders n1 and 2 n1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gride {
    /// n1, at least 1.
    pub order: usize,
}

impl Gride {
    /// Twice as coarse as TwoNN.
    pub const DEFAULT: Self = Self { order: 2 };
}

impl Method for Gride {
    fn name(&self) -> &'static str {
        "gride"
    }

    fn neighbors(&self) -> usize {
        2 * self.order.max(1)
    }

    fn check(&self) -> Result<()> {
        at_least(1, "the order of gride", self.order)
    }

    fn jackknife(&self, cloud: &Neighborhood) -> Result<Jackknife> {
        cloud.jackknife_of_lists(self.neighbors(), |lists| id(lists, self.order))
    }
}

/// The ID from the distances of every point to its 2 n1 nearest neighbors, (n, 2 n1) in one list.
fn id(lists: &[f64], n1: usize) -> Result<f64> {
    let n2 = 2 * n1;
    let s: Vec<f64> =
        lists.chunks_exact(n2).filter(|r| r[n1 - 1] > 0.0).map(|r| r[n2 - 1].ln() - r[n1 - 1].ln()).collect();
    if s.len() < 3 {
        return Err(Error::TooFew { distinct: s.len(), points: lists.len() / n2 });
    }
    let (n, sum) = ((s.len() - 1) as f64, s.iter().sum::<f64>());
    if sum <= 1e-12 * n {
        return Err(Error::AllRatiosOne { n: s.len() });
    }
    let between = (n2 - n1 - 1) as f64;
    if between == 0.0 {
        return Ok(n / sum);
    }
    // l' and l'' at d.
    let slopes = |d: f64| {
        let (mut first, mut second) = (0.0, 0.0);
        for &s in &s {
            let x = d * s;
            // As s goes to 0, s / (1 - exp(-x)) goes to 1 / d, and its derivative to -1 / d^2.
            let gone = -(-x).exp_m1();
            first += if x > 1e-300 { s / gone } else { 1.0 / d };
            second -= if x > 1e-8 { s * s * (1.0 - gone) / (gone * gone) } else { 1.0 / (d * d) };
        }
        (n / d + between * first - (n2 - 1) as f64 * sum, -n / (d * d) + between * second)
    };
    // A first bracket, widened until the root is inside.
    let (mut low, mut high) = (n / sum / n2 as f64, n / sum * n2 as f64);
    while slopes(low).0 < 0.0 {
        low /= 2.0;
    }
    while slopes(high).0 > 0.0 {
        high *= 2.0;
    }
    let mut d = 0.5 * (low + high);
    for _ in 0..200 {
        let (first, second) = slopes(d);
        if first > 0.0 {
            low = d
        } else {
            high = d
        }
        let newton = d - first / second;
        let next = if low < newton && newton < high { newton } else { 0.5 * (low + high) };
        if (next - d).abs() <= 1e-12 * d {
            return Ok(next);
        }
        d = next;
    }
    Ok(d)
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use gelora_kernels::random::Stream;

    use super::*;

    /// Distances of n points to `k` neighbors in a uniform density of dimension d: the k-th power sums of
    /// exponentials.
    fn poisson(seed: u64, n: usize, k: usize, d: f64) -> Vec<f64> {
        let mut random = Stream::new(seed);
        let mut lists = Vec::new();
        for _ in 0..n {
            let mut volume = 0.0;
            for _ in 0..k {
                volume -= (1.0 - random.uniform()).ln();
                lists.push(f64::powf(volume, 1.0 / d));
            }
        }
        lists
    }

    #[test]
    fn a_poisson_process_has_its_dimension_at_every_order() -> Result<()> {
        for d in [1.0, 6.5, 40.0] {
            for n1 in [1, 2, 4, 16] {
                let got = id(&poisson(9, 4000, 2 * n1, d), n1)?;
                assert_relative_eq!(got, d, max_relative = 0.05);
            }
        }
        Ok(())
    }

    #[test]
    fn ties_have_no_finite_dimension_but_some_ties_are_fine() -> Result<()> {
        assert!(matches!(id(&[1.0; 40], 2), Err(Error::AllRatiosOne { n: 10 })));
        assert!(matches!(id(&[0.0; 40], 2), Err(Error::TooFew { .. })));
        let mut some = poisson(9, 100, 4, 3.0);
        some[1] = 1.0;
        some[3] = 1.0;
        assert!(id(&some, 2)?.is_finite());
        Ok(())
    }
}
