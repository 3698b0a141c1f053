use std::fmt;
use std::str::FromStr;

use crate::{Error, two_nn_fit};

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
}

impl Default for Estimator {
    fn default() -> Self {
        Estimator::TwoNnFit { discard: two_nn_fit::DISCARD }
    }
}

impl fmt::Display for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Estimator::TwoNnFit { .. } => "two-nn-fit",
            Estimator::TwoNnMle => "two-nn-mle",
        })
    }
}

impl FromStr for Estimator {
    type Err = Error;

    /// The estimator of a name, with its default options.
    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "two-nn-fit" => Ok(Estimator::default()),
            "two-nn-mle" => Ok(Estimator::TwoNnMle),
            _ => Err(Error::UnknownEstimator { got: s.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() -> Result<(), Error> {
        for estimator in [Estimator::default(), Estimator::TwoNnMle] {
            assert_eq!(estimator.to_string().parse::<Estimator>()?, estimator);
        }
        let error = "mle".parse::<Estimator>().unwrap_err().to_string();
        assert!(error.contains("two-nn-fit") && error.contains("\"mle\""), "{error}");
        Ok(())
    }
}
