use std::fmt;
use std::str::FromStr;

use crate::{Error, corr_dim, gride, local_pca, mle, two_nn_bayes, two_nn_fit, two_nn_trimmed};

/// The estimators, by the names that [`fmt::Display`] prints and [`FromStr`] reads.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Estimator {
    /// `two-nn-fit`: the line through the empirical distribution of mu, as published. See [`two_nn_fit`].
    TwoNnFit {
        /// The fraction of largest ratios left out, 0 <= discard < 1.
        discard: f64,
    },
    /// `two-nn-mle`: maximum likelihood over all ratios, with an exact interval. See [`crate::two_nn_mle`].
    TwoNnMle,
    /// `two-nn-trimmed`: maximum likelihood with the largest ratios censored. See [`two_nn_trimmed`].
    TwoNnTrimmed {
        /// The fraction of largest ratios of which only the least is used, 0 <= discard < 1.
        discard: f64,
    },
    /// `two-nn-bayes`: the posterior mean under a Gamma prior. See [`two_nn_bayes`].
    TwoNnBayes {
        /// Shape of the prior, above 0.
        shape: f64,
        /// Rate of the prior, above 0.
        rate: f64,
    },
    /// `gride`: ratios of the distances to the neighbours of orders n1 and 2 n1. See [`gride`].
    Gride {
        /// n1, at least 1.
        order: usize,
    },
    /// `mle`: Levina and Bickel's likelihood over k neighbours. See [`mle`].
    Mle {
        /// Neighbours, at least 2.
        k: usize,
    },
    /// `corr-dim`: the correlation dimension between two radii. See [`corr_dim`].
    CorrDim {
        /// Order of the neighbour that gives the inner radius, at least 1.
        inner: usize,
        /// Order of the neighbour that gives the outer radius, above the inner.
        outer: usize,
    },
    /// `local-pca`: eigenvalues of the covariance of neighbourhoods. See [`local_pca`].
    LocalPca {
        /// Neighbours, at least 2.
        k: usize,
        /// The share of the largest eigenvalue that counts as a dimension, strictly between 0 and 1.
        threshold: f64,
    },
}

impl Estimator {
    /// Every estimator with its default options.
    pub const ALL: [Estimator; 8] = [
        Estimator::TwoNnFit { discard: two_nn_fit::DISCARD },
        Estimator::TwoNnTrimmed { discard: two_nn_trimmed::DISCARD },
        Estimator::TwoNnMle,
        Estimator::TwoNnBayes { shape: two_nn_bayes::SHAPE, rate: two_nn_bayes::RATE },
        Estimator::Gride { order: gride::ORDER },
        Estimator::Mle { k: mle::K },
        Estimator::CorrDim { inner: corr_dim::ORDERS[0], outer: corr_dim::ORDERS[1] },
        Estimator::LocalPca { k: local_pca::K, threshold: local_pca::THRESHOLD },
    ];

    /// Their names.
    pub fn names() -> [&'static str; 8] {
        Self::ALL.map(|e| e.name())
    }

    /// Neighbours of every point that it needs.
    pub fn neighbours(&self) -> usize {
        match *self {
            Estimator::Gride { order } => 2 * order.max(1),
            Estimator::Mle { k } | Estimator::LocalPca { k, .. } => k.max(2),
            Estimator::CorrDim { inner, outer } => inner.max(outer).max(2),
            _ => 2,
        }
    }

    /// That its numbers of neighbours make sense; what else is wrong with its options the estimate itself says.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let (name, least, got) = match *self {
            Estimator::Gride { order } => ("the order of gride", 1, order),
            Estimator::Mle { k } => ("k of mle", 2, k),
            Estimator::LocalPca { k, .. } => ("k of local-pca", 2, k),
            Estimator::CorrDim { inner, .. } => ("the inner order of corr-dim", 1, inner),
            _ => return Ok(()),
        };
        let expected = if least == 1 { "at least 1" } else { "at least 2" };
        if got >= least { Ok(()) } else { Err(Error::Option { name, expected, got: got as f64 }) }
    }

    /// Whether it needs nothing but r1 and r2 of every point.
    pub fn is_two_nn(&self) -> bool {
        use Estimator::{TwoNnBayes, TwoNnFit, TwoNnMle, TwoNnTrimmed};
        matches!(self, TwoNnFit { .. } | TwoNnMle | TwoNnTrimmed { .. } | TwoNnBayes { .. })
    }

    fn name(&self) -> &'static str {
        match self {
            Estimator::TwoNnFit { .. } => "two-nn-fit",
            Estimator::TwoNnMle => "two-nn-mle",
            Estimator::TwoNnTrimmed { .. } => "two-nn-trimmed",
            Estimator::TwoNnBayes { .. } => "two-nn-bayes",
            Estimator::Gride { .. } => "gride",
            Estimator::Mle { .. } => "mle",
            Estimator::CorrDim { .. } => "corr-dim",
            Estimator::LocalPca { .. } => "local-pca",
        }
    }
}

impl Default for Estimator {
    fn default() -> Self {
        Estimator::TwoNnFit { discard: two_nn_fit::DISCARD }
    }
}

impl fmt::Display for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Estimator {
    type Err = Error;

    /// The estimator of a name, with its default options.
    fn from_str(s: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|e| e.name() == s).ok_or_else(|| Error::UnknownEstimator { got: s.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() -> Result<(), Error> {
        for estimator in Estimator::ALL {
            assert_eq!(estimator.to_string().parse::<Estimator>()?, estimator);
        }
        let error = "danco".parse::<Estimator>().unwrap_err().to_string();
        assert!(error.contains("two-nn-fit") && error.contains("local-pca") && error.contains("\"danco\""), "{error}");
        Ok(())
    }
}
