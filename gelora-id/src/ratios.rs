//! The ratios of distances that the TwoNN estimators use.

use crate::{Error, Result};

/// A ln mu below this is a ratio of 1 up to rounding.
const ROUNDING: f64 = 1e-12;

/// The logarithms of the ratios mu = r2 / r1 of at least three points: the input of the TwoNN estimators.
#[derive(Clone, Debug, PartialEq)]
pub struct Ratios {
    ln_mu: Vec<f64>,
    dropped: usize,
}

impl Ratios {
    /// ln(r2 / r1) of every point with r1 > 0, ascending. Never negative.
    #[must_use]
    pub fn ln_mu(&self) -> &[f64] {
        &self.ln_mu
    }

    /// Number of points left out because r1 = 0.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// The `kept` smallest ln mu. An error if all of them are 0 up to rounding.
    pub(crate) fn smallest(&self, kept: usize) -> Result<&[f64]> {
        let ln_mu = &self.ln_mu[..kept.min(self.ln_mu.len())];
        match ln_mu.last() {
            Some(&largest) if largest > ROUNDING => Ok(ln_mu),
            _ => Err(Error::AllRatiosOne { n: ln_mu.len() }),
        }
    }
}

/// ln mu = ln r2 - ln r1 from the distances of every point to its nearest and second nearest neighbor. Points with
/// r1 = 0 have a twin and therefore no ratio; they are left out.
///
/// # Errors
/// If the lengths differ; if r2 < r1 or a distance is negative or not finite; if fewer than 3 points have r1 > 0.
pub fn ratios(r1: &[f64], r2: &[f64]) -> Result<Ratios> {
    if r1.len() != r2.len() {
        return Err(Error::Lengths { r1: r1.len(), r2: r2.len() });
    }
    let mut ln_mu = Vec::with_capacity(r1.len());
    for (index, (&r1, &r2)) in r1.iter().zip(r2).enumerate() {
        if !(0.0 <= r1 && r1 <= r2 && r2 < f64::INFINITY) {
            return Err(Error::Distances { index, r1, r2 });
        }
        if r1 > 0.0 {
            ln_mu.push(r2.ln() - r1.ln()); // r2 / r1 could overflow
        }
    }
    if ln_mu.len() < 3 {
        return Err(Error::TooFew { distinct: ln_mu.len(), points: r1.len() });
    }
    let dropped = r1.len() - ln_mu.len();
    ln_mu.sort_unstable_by(f64::total_cmp);
    Ok(Ratios { ln_mu, dropped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_come_sorted_and_twins_go() -> Result<()> {
        let all = ratios(&[1.0, 0.0, 2.0, 1e-320, 0.0], &[8.0, 0.0, 4.0, 1e300, 3.0])?;
        assert_eq!((all.ln_mu().len(), all.dropped()), (3, 2));
        assert!(all.ln_mu().is_sorted() && all.ln_mu()[2].is_finite());
        approx::assert_relative_eq!(all.ln_mu()[0], 2f64.ln());
        approx::assert_relative_eq!(all.ln_mu()[1], 8f64.ln());
        Ok(())
    }

    #[test]
    fn impossible_distances_are_named() {
        let message = |r1: &[f64], r2: &[f64]| ratios(r1, r2).unwrap_err().to_string();
        assert!(message(&[1.0], &[1.0, 2.0]).contains("1 and 2"));
        assert!(message(&[1.0, 2.0, 1.0], &[2.0, 1.5, 2.0]).contains("r1 = 2 and r2 = 1.5 at point 1"));
        for (r1, r2) in [(-1.0, 1.0), (f64::NAN, 1.0), (1.0, f64::NAN), (1.0, f64::INFINITY)] {
            assert!(message(&[1.0, 1.0, r1], &[2.0, 2.0, r2]).contains("at point 2"), "{r1} {r2}");
        }
        assert!(message(&[0.0, 1.0, 1.0], &[0.0, 2.0, 2.0]).contains("got 2 among 3"));
        assert!(message(&[], &[]).contains("got 0 among 0"));
    }
}
