//! TwoNN by maximum likelihood.
//!
//! ln mu is exponential with rate d. With S the sum of ln mu over all N points, the likelihood is d^N exp(-d S), which
//! is largest at N / S. The mean of N / S is d N / (N - 1), so the unbiased estimate is
//!
//! ```text
//! d = (N - 1) / S
//! ```
//!
//! S has a Gamma distribution with shape N and rate d: d S ~ Gamma(N, 1), and 2 d S ~ chi^2 with 2 N degrees of
//! freedom. With q(p) the quantiles of Gamma(N, 1), the interval at confidence 1 - a is exact:
//!
//! ```text
//! q(a / 2) / S <= d <= q(1 - a / 2) / S
//! ```
//!
//! It assumes independent ratios. Mutual nearest neighbors share r1, so real estimates scatter more;
//! [`crate::Neighborhood::estimate`] widens the interval for that.
//!
//! Source: F. Denti, D. Doimo, A. Laio, A. Mira, "The generalized ratios intrinsic dimension estimator", Scientific
//! Reports 12, 20005 (2022), the section on TWO-NN. It agrees with `ml` of DADApy and with `mle` of scikit-dimension
//! with nothing discarded.

use statrs::distribution::{ContinuousCDF, Gamma};

use super::{Method, TwoNn};
use crate::{Error, Jackknife, Neighborhood, Ratios, Result};

/// `two-nn-mle`: maximum likelihood over all ratios, with an exact interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TwoNnMle;

impl TwoNnMle {
    /// It has no options.
    pub const DEFAULT: Self = Self;
}

impl Method for TwoNnMle {
    fn name(&self) -> &'static str {
        "two-nn-mle"
    }

    fn jackknife(&self, cloud: &Neighborhood) -> Result<Jackknife> {
        cloud.jackknife_of_ratios(self)
    }

    fn two_nn(&self) -> Option<&dyn TwoNn> {
        Some(self)
    }
}

impl TwoNn for TwoNnMle {
    fn id(&self, ratios: &Ratios) -> Result<f64> {
        id(ratios)
    }

    fn id_and_interval(&self, ratios: &Ratios, confidence: f64) -> Result<(f64, [f64; 2])> {
        estimate(ratios, confidence)
    }
}

/// The ID and its interval.
///
/// # Errors
/// If every ratio is 1, or the confidence is not between 0 and 1.
pub(super) fn estimate(ratios: &Ratios, confidence: f64) -> Result<(f64, [f64; 2])> {
    let n = ratios.ln_mu().len();
    let sum: f64 = ratios.smallest(n)?.iter().sum();
    let [low, high] = gamma_quantiles(n as f64, confidence)?;
    Ok(((n - 1) as f64 / sum, [low / sum, high / sum]))
}

/// The ID alone.
pub(super) fn id(ratios: &Ratios) -> Result<f64> {
    let n = ratios.ln_mu().len();
    Ok((n - 1) as f64 / ratios.smallest(n)?.iter().sum::<f64>())
}

/// The central interval of Gamma(shape, 1) that holds a probability.
pub(super) fn gamma_quantiles(shape: f64, confidence: f64) -> Result<[f64; 2]> {
    let wrong = Error::Option { name: "confidence", expected: "strictly between 0 and 1", got: confidence };
    let tail = (1.0 - confidence) / 2.0;
    match Gamma::new(shape, 1.0) {
        Ok(gamma) if tail > 0.0 && tail < 0.5 => Ok([gamma.inverse_cdf(tail), gamma.inverse_cdf(1.0 - tail)]),
        _ => Err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::ratios;

    #[test]
    fn small_numbers_by_hand() -> Result<()> {
        // ln mu = ln 2 three times and ln 4: S = 5 ln 2.
        let (id, interval) = estimate(&ratios(&[1.0; 4], &[2.0, 4.0, 2.0, 2.0])?, 0.95)?;
        assert_relative_eq!(id, 3.0 / (5.0 * 2f64.ln()), max_relative = 1e-14);
        // scipy.stats.gamma.ppf([0.025, 0.975], 4) = 1.0898654, 8.7672731
        assert_relative_eq!(interval[0], 1.0898653 / (5.0 * 2f64.ln()), max_relative = 1e-6);
        assert_relative_eq!(interval[1], 8.7672730 / (5.0 * 2f64.ln()), max_relative = 1e-6);
        Ok(())
    }

    #[test]
    fn quantiles_agree_with_scipy() -> Result<()> {
        // scipy 1.x: gamma.ppf([(1 - c) / 2, (1 + c) / 2], n)
        for (n, confidence, low, high) in SCIPY {
            let [l, h] = gamma_quantiles(n, confidence)?;
            assert_relative_eq!(l, low, max_relative = 1e-8);
            assert_relative_eq!(h, high, max_relative = 1e-8);
        }
        Ok(())
    }

    const SCIPY: [(f64, f64, f64, f64); 6] = [
        (3.0, 0.95, 0.618672122896, 7.224687667724),
        (4.0, 0.95, 1.089865373626, 8.767273069742),
        (100.0, 0.9, 84.139277218314, 116.997134446162),
        (1_000.0, 0.99, 920.424046163359, 1083.332150195779),
        (10_000.0, 0.95, 9804.952467260184, 10196.941824999883),
        (1_000_000.0, 0.95, 998_040.983_340_294, 1_001_960.910_965_45),
    ];

    #[test]
    fn confidence_is_checked() -> Result<()> {
        let ratios = ratios(&[1.0; 3], &[2.0; 3])?;
        for confidence in [0.0, 1.0, -0.5, 95.0, f64::NAN] {
            let error = estimate(&ratios, confidence).unwrap_err().to_string();
            assert!(error.contains("strictly between 0 and 1"), "{error}");
        }
        Ok(())
    }
}
