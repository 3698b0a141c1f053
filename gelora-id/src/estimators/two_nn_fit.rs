//! TwoNN by a line through the empirical distribution of the ratios.
//!
//! F(mu) = 1 - mu^-d, so -ln(1 - F) = d ln mu. With x_(1) <= .. <= x_(N) the sorted ln mu and F_i = i / N, keep the k =
//! int(N (1 - discard)) smallest and take the least-squares slope through the origin of y_i = -ln(1 - i / N) on x_(i):
//!
//! ```text
//! d = sum_(i <= k) x_(i) y_i / sum_(i <= k) x_(i)^2
//! ```
//!
//! F_N = 1 has no logarithm, so k is at most N - 1. i counts from 1, as in scikit-dimension 0.5 (older versions count
//! from 0) and in `base` of DADApy. Both packages round k down: scikit-dimension takes int(N * (1 - discard)), DADApy
//! int(N * mu_fraction) for a fraction given by its user. For 0.1 and 0.9 the two products are the same doubles; for
//! other fractions k can differ by 1 (N = 10: 1 - 0.9 < 0.1, so 0 and 1). This crate follows scikit-dimension.
//!
//! Source: Facco et al. 2017, algorithm "TWO-NN", steps 1 to 5. They also discard 10 %.
//!
//! # The interval
//!
//! Under the model x_(i) = E_(i) / d, where E_(1) <= .. <= E_(N) are N sorted standard exponentials. So the slope is d
//! times a number whose distribution does not depend on d, a pivot:
//!
//! ```text
//! slope = d g(E),   g(e) = sum e_i y_i / sum e_i^2   (sums over i <= k)
//! ```
//!
//! Sorted exponentials are sums of independent ones (Rényi): E_(i) = sum_(j <= i) Z_j / (N - j + 1), Z_j standard
//! exponential, each of mean 1 and variance 1. So their means are m_i = sum_(j <= i) 1 / (N - j + 1). To first order
//! around the means (delta method), with P = sum m_i y_i and S = sum m_i^2,
//!
//! ```text
//! g0      = g(m) = P / S
//! c_i     = dg / de_i at m = (y_i S - 2 m_i P) / S^2
//! sigma^2 = var g = sum_(j <= k) ( sum_(j <= i <= k) c_i / (N - j + 1) )^2
//! ```
//!
//! in O(N): m is a running sum, and the inner sum is a running sum from the other end. g is positive, so ln g is taken
//! as normal, with mean ln g0 and standard deviation sigma / g0. From ln d = ln slope - ln g, with z the standard
//! normal quantile,
//!
//! ```text
//! slope / g0 * exp(-z sigma / g0) <= d <= slope / g0 * exp(z sigma / g0)
//! ```
//!
//! The middle of the interval is therefore slope / g0 and not the slope. y_i exceeds m_i by about 1 / (2 (N - i)), so
//! the slope is too large by a factor g0, about 1 + 1.2 / N at discard 0.1, where sigma is 1.08 / sqrt(N). The
//! least-squares formula for the error of the slope does not apply: the x_(i) are strongly correlated, and it gives an
//! error tens of times too small.
//!
//! It assumes independent ratios. Mutual nearest neighbors share r1, so real estimates scatter more;
//! [`crate::Neighborhood::estimate`] widens the interval for that.
//!
//! Source of the representation: A. Rényi, "On the theory of order statistics", Acta Math. Acad. Sci. Hungar. 4 (1953).

use statrs::distribution::{ContinuousCDF, Normal};

use super::{Method, TwoNn};
use crate::{Error, Jackknife, Neighborhood, Ratios, Result};

/// `two-nn-fit`: the line through the empirical distribution of mu.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TwoNnFit {
    /// The fraction of largest ratios left out, 0 <= discard < 1.
    pub discard: f64,
}

impl TwoNnFit {
    /// The fraction of the paper.
    pub const DEFAULT: Self = Self { discard: 0.1 };
}

impl Method for TwoNnFit {
    fn name(&self) -> &'static str {
        "two-nn-fit"
    }

    fn jackknife(&self, cloud: &Neighborhood) -> Result<Jackknife> {
        cloud.jackknife_of_ratios(self)
    }

    fn two_nn(&self) -> Option<&dyn TwoNn> {
        Some(self)
    }
}

impl TwoNn for TwoNnFit {
    fn id(&self, ratios: &Ratios) -> Result<f64> {
        Ok(fit(ratios, self.discard)?.0)
    }

    fn id_and_interval(&self, ratios: &Ratios, confidence: f64) -> Result<(f64, [f64; 2])> {
        estimate(ratios, self.discard, confidence)
    }
}

/// The ID and its interval.
///
/// # Errors
/// If every kept ratio is 1; if fewer than 2 are kept; if `discard` is not in [0, 1) or the confidence not in (0, 1).
fn estimate(ratios: &Ratios, discard: f64, confidence: f64) -> Result<(f64, [f64; 2])> {
    let (slope, kept) = fit(ratios, discard)?;
    if !(confidence > 0.0 && confidence < 1.0) {
        return Err(Error::Option { name: "confidence", expected: "strictly between 0 and 1", got: confidence });
    }
    let (g0, sigma) = pivot(ratios.ln_mu().len(), kept);
    let spread = (Normal::standard().inverse_cdf(0.5 + confidence / 2.0) * sigma / g0).exp();
    Ok((slope, [slope / g0 / spread, slope / g0 * spread]))
}

/// The slope, and the number of ratios it was fitted to.
fn fit(ratios: &Ratios, discard: f64) -> Result<(f64, usize)> {
    if !(0.0..1.0).contains(&discard) {
        return Err(Error::Option { name: "discard", expected: "at least 0 and below 1", got: discard });
    }
    let n = ratios.ln_mu().len();
    let kept = ((n as f64 * (1.0 - discard)) as usize).min(n - 1);
    if kept < 2 {
        return Err(Error::KeptTooFew { estimator: "two-nn-fit", kept, n, discard });
    }
    Ok((slope(ratios.smallest(kept)?, n), kept))
}

/// -ln(1 - F_i) with F_i = i / N, for i = 1, 2, .., N.
fn minus_ln_survival(n: usize) -> impl Iterator<Item = f64> {
    (1..=n).map(move |i| -(-(i as f64 / n as f64)).ln_1p())
}

/// g: the slope through the origin of -ln(1 - i / N) on the smallest x_(i).
fn slope(x: &[f64], n: usize) -> f64 {
    let (mut xy, mut xx) = (0.0, 0.0);
    for (x, y) in x.iter().zip(minus_ln_survival(n)) {
        xy += x * y;
        xx += x * x;
    }
    xy / xx
}

/// (g0, sigma): the pivot at the mean order statistics, and its standard deviation.
fn pivot(n: usize, kept: usize) -> (f64, f64) {
    let mean: Vec<f64> = (0..kept)
        .scan(0.0, |sum, j| {
            *sum += 1.0 / (n - j) as f64;
            Some(*sum)
        })
        .collect();
    let y: Vec<f64> = minus_ln_survival(n).take(kept).collect();
    let p: f64 = mean.iter().zip(&y).map(|(m, y)| m * y).sum();
    let s: f64 = mean.iter().map(|m| m * m).sum();
    let (mut variance, mut gradient) = (0.0, 0.0);
    for j in (0..kept).rev() {
        gradient += (y[j] * s - 2.0 * mean[j] * p) / (s * s);
        variance += (gradient / (n - j) as f64).powi(2);
    }
    (p / s, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use gelora_kernels::random::Stream;

    use super::*;
    use crate::ratios;

    /// n ratios drawn from Pareto(d).
    fn pareto(random: &mut Stream, n: usize, d: f64) -> Result<Ratios> {
        let r2: Vec<f64> = (0..n).map(|_| (1.0 - random.uniform()).powf(-1.0 / d)).collect();
        ratios(&vec![1.0; n], &r2)
    }

    #[test]
    fn exact_quantiles_give_the_exact_slope() -> Result<()> {
        let n = 50;
        let r2: Vec<f64> = minus_ln_survival(n).map(|y| (y.min(9.0) / 3.5).exp()).collect();
        let (id, interval) = estimate(&ratios(&vec![1.0; n], &r2)?, TwoNnFit::DEFAULT.discard, 0.95)?;
        assert_relative_eq!(id, 3.5, max_relative = 1e-12);
        assert!(interval[0] < id && id < interval[1]);
        Ok(())
    }

    #[test]
    fn sigma_and_centre_are_those_of_simulation() -> Result<()> {
        let (n, draws) = (200, 4000);
        let mut random = Stream::at(3, &[n as u64]);
        let mut ln_g = Vec::new();
        for _ in 0..draws {
            ln_g.push(estimate(&pareto(&mut random, n, 1.0)?, TwoNnFit::DEFAULT.discard, 0.95)?.0.ln());
        }
        let mean = ln_g.iter().sum::<f64>() / draws as f64;
        let deviation = (ln_g.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / draws as f64).sqrt();
        let (g0, sigma) = pivot(n, 180);
        assert_relative_eq!(sigma / g0, deviation, max_relative = 0.05);
        assert!((mean - g0.ln()).abs() < 0.1 * deviation, "{mean} {} {deviation}", g0.ln());
        Ok(())
    }

    #[test]
    fn the_interval_covers_as_often_as_it_says() -> Result<()> {
        // Of 10 points the slope is 14 % too large: without g0 the interval would cover 92 %.
        for (n, d, confidence) in [(10, 3.0, 0.95), (40, 2.0, 0.95), (500, 7.0, 0.95), (500, 30.0, 0.8)] {
            let mut random = Stream::at(11, &[n as u64, d as u64]);
            let draws = 4000;
            let mut covered = 0;
            for _ in 0..draws {
                let (_, [low, high]) = estimate(&pareto(&mut random, n, d)?, TwoNnFit::DEFAULT.discard, confidence)?;
                covered += usize::from(low <= d && d <= high);
            }
            let coverage = covered as f64 / draws as f64;
            assert!((coverage - confidence).abs() < 0.02, "n {n}, d {d}: {coverage} for {confidence}");
        }
        Ok(())
    }

    #[test]
    fn everything_is_kept_but_the_last_when_nothing_is_discarded() -> Result<()> {
        let all = pareto(&mut Stream::new(5), 30, 4.0)?;
        assert_eq!(estimate(&all, 0.0, 0.95)?, estimate(&all, 0.01, 0.95)?);
        let id = estimate(&all, 0.0, 0.95)?.0;
        assert_relative_eq!(id, slope(&all.ln_mu()[..29], 30));
        Ok(())
    }

    #[test]
    fn options_are_checked() -> Result<()> {
        let all = pareto(&mut Stream::new(5), 3, 4.0)?;
        let message = |discard, confidence| estimate(&all, discard, confidence).unwrap_err().to_string();
        assert!(message(0.5, 0.95).contains("discarding the largest 0.5 of 3 keeps 1"));
        for discard in [-0.1, 1.0, f64::NAN] {
            assert!(message(discard, 0.95).contains("discard must be at least 0 and below 1"));
        }
        for confidence in [0.0, 1.0, f64::NAN] {
            assert!(message(0.1, confidence).contains("confidence must be"));
        }
        Ok(())
    }
}
