//! The estimators of the intrinsic dimension, one a file.
//!
//! To add one, write its file with a type that implements the trait `Method`, and add a line to the registry below.
//! Names, parsing, the command line, tables and the tests over all estimators follow from the registry.

pub mod corr_dim;
pub mod gride;
pub mod levina_bickel;
pub mod local_pca;
pub mod two_nn_bayes;
pub mod two_nn_fit;
pub mod two_nn_mle;
pub mod two_nn_trimmed;

use std::fmt;
use std::str::FromStr;

use crate::{Error, Jackknife, Neighborhood, Ratios, Result};

/// What an estimator must say of itself.
pub(crate) trait Method {
    /// The name in JSON, on the command line and in error messages.
    fn name(&self) -> &'static str;

    /// Number of neighbors of every point that the estimator needs, at least 2.
    fn neighbors(&self) -> usize {
        2
    }

    /// Checks the options that the search depends on. The estimate itself checks the others.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The estimate from all points, and the estimates without one group of points each.
    fn jackknife(&self, cloud: &Neighborhood) -> Result<Jackknife>;

    /// The estimator as one of the TwoNN family, which needs nothing but r2 / r1 of every point.
    fn two_nn(&self) -> Option<&dyn TwoNn> {
        None
    }
}

/// An estimator of the TwoNN family.
pub(crate) trait TwoNn {
    /// The ID alone.
    fn id(&self, ratios: &Ratios) -> Result<f64>;

    /// The ID and its interval for independent ratios.
    fn id_and_interval(&self, ratios: &Ratios, confidence: f64) -> Result<(f64, [f64; 2])>;
}

/// Makes [`Estimator`] of the types that implement [`Method`].
macro_rules! estimators {
    ($($module:ident::$name:ident,)+) => {
        /// The estimators, by the names that [`fmt::Display`] prints and [`FromStr`] reads.
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Estimator {
            $(
                #[doc = concat!("See [`", stringify!($module), "`].")]
                $name($module::$name),
            )+
        }

        impl Estimator {
            /// Every estimator with its default options. The first is the default.
            pub const ALL: [Estimator; [$(stringify!($name)),+].len()] =
                [$(Estimator::$name($module::$name::DEFAULT)),+];

            pub(crate) fn method(&self) -> &dyn Method {
                match self {
                    $(Estimator::$name(method) => method,)+
                }
            }
        }

        $(
            impl Default for $module::$name {
                fn default() -> Self {
                    Self::DEFAULT
                }
            }

            impl From<$module::$name> for Estimator {
                fn from(method: $module::$name) -> Self {
                    Estimator::$name(method)
                }
            }
        )+
    };
}

// The registry: one line per estimator, in the order of tables.
estimators! {
    two_nn_fit::TwoNnFit,
    two_nn_trimmed::TwoNnTrimmed,
    two_nn_mle::TwoNnMle,
    two_nn_bayes::TwoNnBayes,
    gride::Gride,
    levina_bickel::LevinaBickel,
    corr_dim::CorrDim,
    local_pca::LocalPca,
}

impl Estimator {
    /// The names of all estimators, in the order of [`Estimator::ALL`].
    #[must_use]
    pub fn names() -> [&'static str; Self::ALL.len()] {
        Self::ALL.map(|e| e.name())
    }

    /// The name of this estimator, such as `two-nn-fit`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.method().name()
    }

    /// Number of neighbors of every point that this estimator needs.
    #[must_use]
    pub fn neighbors(&self) -> usize {
        self.method().neighbors()
    }

    /// The most neighbors that any of these estimators needs, at least 2.
    #[must_use]
    pub fn most_neighbors(estimators: &[Estimator]) -> usize {
        estimators.iter().map(Estimator::neighbors).max().unwrap_or(2)
    }

    /// Whether this estimator needs nothing but r1 and r2 of every point.
    #[must_use]
    pub fn is_two_nn(&self) -> bool {
        self.method().two_nn().is_some()
    }
}

impl Default for Estimator {
    fn default() -> Self {
        Self::ALL[0]
    }
}

impl fmt::Display for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Estimator {
    type Err = Error;

    /// The estimator with this name and the default options.
    fn from_str(s: &str) -> Result<Self, Error> {
        let known = || Self::names().join(", ");
        let found = Self::ALL.into_iter().find(|e| e.name() == s);
        found.ok_or_else(|| Error::UnknownEstimator { got: s.to_string(), known: known() })
    }
}

/// An error for an option that must be at least `least`, which is 1 or 2.
fn at_least(least: usize, name: &'static str, got: usize) -> Result<()> {
    let expected = if least == 1 { "at least 1" } else { "at least 2" };
    if got >= least { Ok(()) } else { Err(Error::Option { name, expected, got: got as f64 }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() -> Result<(), Error> {
        for estimator in Estimator::ALL {
            assert_eq!(estimator.to_string().parse::<Estimator>()?, estimator);
        }
        assert_eq!(Estimator::default().name(), "two-nn-fit");
        let error = "danco".parse::<Estimator>().unwrap_err().to_string();
        assert!(error.contains("two-nn-fit") && error.contains("local-pca") && error.contains("\"danco\""), "{error}");
        Ok(())
    }
}
