//! TwoNN with a Gamma prior on the dimension.
//!
//! ln mu is exponential with rate d. Its conjugate prior is Gamma(a, b), with shape a and rate b. With S the sum of all
//! N values of ln mu, the posterior is Gamma(a + N, b + S), and
//!
//! ```text
//! d = (a + N) / (b + S)                               (its mean)
//! q(p / 2) / (b + S) <= d <= q(1 - p / 2) / (b + S)   (its central credible interval, q of Gamma(a + N, 1))
//! ```
//!
//! The default, a = 2 and b = 5, is that of DADApy: a prior mean of 0.4 with the weight of two points, which lowers the
//! estimate of small clouds of high dimension. With a = 1 and b near 0 the estimate is nearly that of the likelihood
//! alone.
//!
//! The posterior assumes independent ratios; [`crate::Neighborhood::estimate`] widens the interval.
//!
//! Source: DADApy (Glielmo et al., Patterns 3, 2022), `compute_id_2NN_wprior`; any text on conjugate priors.

use super::two_nn_mle::gamma_quantiles;
use super::{Method, TwoNn};
use crate::{Error, Jackknife, Neighborhood, Ratios, Result};

/// `two-nn-bayes`: the posterior mean under a Gamma prior.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TwoNnBayes {
    /// Shape of the prior, above 0.
    pub shape: f64,
    /// Rate of the prior, above 0.
    pub rate: f64,
}

impl TwoNnBayes {
    /// The prior of DADApy.
    pub const DEFAULT: Self = Self { shape: 2.0, rate: 5.0 };
}

impl Method for TwoNnBayes {
    fn name(&self) -> &'static str {
        "two-nn-bayes"
    }

    fn jackknife(&self, cloud: &Neighborhood) -> Result<Jackknife> {
        cloud.jackknife_of_ratios(self)
    }

    fn two_nn(&self) -> Option<&dyn TwoNn> {
        Some(self)
    }
}

impl TwoNn for TwoNnBayes {
    fn id(&self, ratios: &Ratios) -> Result<f64> {
        posterior(ratios, self.shape, self.rate).map(|(shape, rate)| shape / rate)
    }

    fn id_and_interval(&self, ratios: &Ratios, confidence: f64) -> Result<(f64, [f64; 2])> {
        estimate(ratios, self.shape, self.rate, confidence)
    }
}

/// The posterior mean and the credible interval.
///
/// # Errors
/// If every ratio is 1; if `shape` or `rate` is not positive and finite or the confidence not in (0, 1).
fn estimate(ratios: &Ratios, shape: f64, rate: f64, confidence: f64) -> Result<(f64, [f64; 2])> {
    let (shape, rate) = posterior(ratios, shape, rate)?;
    Ok((shape / rate, gamma_quantiles(shape, confidence)?.map(|q| q / rate)))
}

fn posterior(ratios: &Ratios, shape: f64, rate: f64) -> Result<(f64, f64)> {
    for (name, got) in [("shape", shape), ("rate", rate)] {
        if !(got > 0.0 && got < f64::INFINITY) {
            return Err(Error::Option { name, expected: "positive and finite", got });
        }
    }
    let n = ratios.ln_mu().len();
    Ok((shape + n as f64, rate + ratios.smallest(n)?.iter().sum::<f64>()))
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::ratios;

    #[test]
    fn small_numbers_by_hand() -> Result<()> {
        // S = 5 ln 2, N = 4.
        let all = ratios(&[1.0; 4], &[2.0, 4.0, 2.0, 2.0])?;
        let (id, [low, high]) = estimate(&all, 2.0, 5.0, 0.95)?;
        assert_relative_eq!(id, 6.0 / (5.0 + 5.0 * 2f64.ln()), max_relative = 1e-14);
        // scipy.stats.gamma.ppf([0.025, 0.975], 6) = 2.2018942, 11.668332
        assert_relative_eq!(low * (5.0 + 5.0 * 2f64.ln()), 2.2018942, max_relative = 1e-6);
        assert_relative_eq!(high * (5.0 + 5.0 * 2f64.ln()), 11.668332, max_relative = 1e-6);
        for (shape, rate) in [(0.0, 1.0), (1.0, -1.0), (f64::NAN, 1.0), (1.0, f64::INFINITY)] {
            assert!(estimate(&all, shape, rate, 0.95).unwrap_err().to_string().contains("positive and finite"));
        }
        Ok(())
    }
}
