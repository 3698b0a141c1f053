//! TwoNN by maximum likelihood with the largest ratios censored.
//!
//! x_(1) <= .. <= x_(N) are the sorted ln mu. The k = int(N (1 - discard)) smallest are used as they are; of the others
//! only the fact that they are at least x_(k) is used. A pair of near-identical points, whose ln mu may be as large as
//! hundreds of others together, then counts as one large ratio. With x exponential of rate d the likelihood is d^k
//! exp(-d S), where
//!
//! ```text
//! S = sum_(i <= k) x_(i) + (N - k) x_(k)
//! d = (k - 1) / S
//! ```
//!
//! Dropping the largest ratios instead would leave a truncated distribution and make d too large: by a third if a tenth
//! is dropped.
//!
//! By Rényi's representation x_(i) - x_(i-1) = Z_i / (d (N - i + 1)), so S is a sum of k independent exponentials of
//! rate d: d S ~ Gamma(k, 1). So (k - 1) / S is unbiased, and with q(p) the quantiles of Gamma(k, 1) the interval at
//! confidence 1 - a is exact:
//!
//! ```text
//! q(a / 2) / S <= d <= q(1 - a / 2) / S
//! ```
//!
//! It assumes independent ratios. Mutual nearest neighbors share r1, so real estimates scatter more;
//! [`crate::Neighborhood::estimate`] widens the interval for that.
//!
//! Source: B. Epstein, M. Sobel, "Life testing", Journal of the American Statistical Association 48 (1953), for the
//! likelihood of the k smallest of N exponentials.

use super::two_nn_mle::gamma_quantiles;
use super::{Method, TwoNn};
use crate::{Error, Jackknife, Neighborhood, Ratios, Result};

/// `two-nn-trimmed`: maximum likelihood with the largest ratios censored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TwoNnTrimmed {
    /// The fraction of largest ratios of which only the least is used, 0 <= discard < 1.
    pub discard: f64,
}

impl TwoNnTrimmed {
    /// The fraction of the linear fit.
    pub const DEFAULT: Self = Self { discard: 0.1 };
}

impl Method for TwoNnTrimmed {
    fn name(&self) -> &'static str {
        "two-nn-trimmed"
    }

    fn jackknife(&self, cloud: &Neighborhood) -> Result<Jackknife> {
        cloud.jackknife_of_ratios(self)
    }

    fn two_nn(&self) -> Option<&dyn TwoNn> {
        Some(self)
    }
}

impl TwoNn for TwoNnTrimmed {
    fn id(&self, ratios: &Ratios) -> Result<f64> {
        id(ratios, self.discard)
    }

    fn id_and_interval(&self, ratios: &Ratios, confidence: f64) -> Result<(f64, [f64; 2])> {
        estimate(ratios, self.discard, confidence)
    }
}

/// The ID and its interval.
///
/// # Errors
/// If every used ratio is 1; if fewer than 2 are used; if `discard` is not in [0, 1) or the confidence not in (0, 1).
fn estimate(ratios: &Ratios, discard: f64, confidence: f64) -> Result<(f64, [f64; 2])> {
    let (kept, sum) = sufficient(ratios, discard)?;
    let [low, high] = gamma_quantiles(kept as f64, confidence)?;
    Ok(((kept - 1) as f64 / sum, [low / sum, high / sum]))
}

/// The ID alone.
fn id(ratios: &Ratios, discard: f64) -> Result<f64> {
    let (kept, sum) = sufficient(ratios, discard)?;
    Ok((kept - 1) as f64 / sum)
}

/// (k, S).
fn sufficient(ratios: &Ratios, discard: f64) -> Result<(usize, f64)> {
    if !(0.0..1.0).contains(&discard) {
        return Err(Error::Option { name: "discard", expected: "at least 0 and below 1", got: discard });
    }
    let n = ratios.ln_mu().len();
    let kept = (n as f64 * (1.0 - discard)) as usize;
    if kept < 2 {
        return Err(Error::KeptTooFew { estimator: "two-nn-trimmed", kept, n, discard });
    }
    let smallest = ratios.smallest(kept)?;
    Ok((kept, smallest.iter().sum::<f64>() + (n - kept) as f64 * smallest[kept - 1]))
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use gelora_kernels::random::Stream;

    use super::*;
    use crate::ratios;

    fn of(ln_mu: &[f64]) -> Result<Ratios> {
        ratios(&vec![1.0; ln_mu.len()], &ln_mu.iter().map(|x| x.exp()).collect::<Vec<_>>())
    }

    #[test]
    fn small_numbers_by_hand() -> Result<()> {
        // k = 4 of 5: S = 1 + 2 + 3 + 4 + 1 * 4 = 14.
        let (id, _) = estimate(&of(&[2.0, 1.0, 60.0, 4.0, 3.0])?, 0.2, 0.95)?;
        assert_relative_eq!(id, 3.0 / 14.0, max_relative = 1e-12);
        // Nothing censored is the plain likelihood.
        let all = of(&[2.0, 1.0, 6.0])?;
        assert_eq!(estimate(&all, 0.0, 0.9)?, super::super::two_nn_mle::estimate(&all, 0.9)?);
        Ok(())
    }

    #[test]
    fn the_interval_is_exact_and_the_estimate_unbiased() -> Result<()> {
        let (n, d, draws) = (60, 7.0, 6000);
        let mut random = Stream::new(12);
        let (mut covered, mut sum) = (0, 0.0);
        for _ in 0..draws {
            let x: Vec<f64> = (0..n).map(|_| -(1.0 - random.uniform()).ln() / d).collect();
            let (id, [low, high]) = estimate(&of(&x)?, TwoNnTrimmed::DEFAULT.discard, 0.9)?;
            covered += usize::from(low <= d && d <= high);
            sum += id;
        }
        let coverage = covered as f64 / draws as f64;
        assert!((coverage - 0.9).abs() < 0.012, "{coverage}");
        assert_relative_eq!(sum / draws as f64, d, max_relative = 0.006);
        Ok(())
    }

    #[test]
    fn a_huge_ratio_is_one_of_many() -> Result<()> {
        let mut random = Stream::new(3);
        let mut x: Vec<f64> = (0..500).map(|_| -(1.0 - random.uniform()).ln() / 10.0).collect();
        let before = id(&of(&x)?, TwoNnTrimmed::DEFAULT.discard)?;
        for x in x.iter_mut().take(5) {
            *x = 14.0;
        }
        assert_relative_eq!(id(&of(&x)?, TwoNnTrimmed::DEFAULT.discard)?, before, max_relative = 0.05);
        let plain = super::super::two_nn_mle::id(&of(&x)?)?;
        assert!(plain < 0.5 * before, "{plain} {before}");
        Ok(())
    }

    #[test]
    fn options_are_checked() -> Result<()> {
        let all = of(&[1.0, 2.0, 3.0])?;
        assert!(id(&all, 1.0).unwrap_err().to_string().contains("discard must be"));
        assert!(id(&all, 0.5).unwrap_err().to_string().contains("two-nn-trimmed needs at least 2"));
        Ok(())
    }
}
