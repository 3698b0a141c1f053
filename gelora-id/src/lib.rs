//! Intrinsic dimension (ID) of a cloud of points, with its uncertainty.
//!
//! The ID is the number of coordinates that the points need locally, however many columns they are written in. Eight
//! [`Estimator`]s estimate it from the distances to the nearest neighbors. The default is TwoNN: r1 < r2 are the
//! distances of a point to its two nearest neighbors. If the density is constant over both, mu = r2 / r1 has a
//! Pareto(d) distribution, F(mu) = 1 - mu^-d, whatever the density is; ln mu is then exponential with rate d.
//! [`estimators`] has a module for each estimator.
//!
//! - [`estimate()`]: the ID of a matrix, by one estimator.
//! - [`Neighborhood`]: one neighbor search for several estimators.
//! - [`near_copies`]: rows that are almost the same as another count once.
//! - [`scale`]: how the ID depends on the scale.
//! - [`Jackknife`]: how the IDs of two clouds of the same examples differ.
//! - [`manifolds`]: clouds to try estimators on.
//!
//! Source: E. Facco, M. d'Errico, A. Rodriguez, A. Laio, "Estimating the intrinsic dimension of datasets by a minimal
//! neighborhood information", Scientific Reports 7, 12140 (2017), equations 1 to 5.
//!
//! ```
//! use gelora_id::estimators::two_nn_mle::TwoNnMle;
//! use gelora_id::{Neighborhood, Options, estimate};
//! use gelora_kernels::{Tensor, random::Stream};
//!
//! // 500 points of a plane, written in three columns.
//! let mut random = Stream::new(7);
//! let rows = (0..500).flat_map(|_| {
//!     let (x, y) = (random.uniform(), random.uniform());
//!     [x, y, 2.0 * x - y]
//! });
//! let points = Tensor::from_f64(rows.collect(), [500, 3])?;
//!
//! let plane = estimate(&points, &Options::default())?;
//! assert!((1.8..2.2).contains(&plane.id), "{plane:?}");
//! assert!(plane.interval[0] < plane.id && plane.id < plane.interval[1]);
//!
//! // One neighbor search serves several estimators.
//! let neighborhood = Neighborhood::of(&points)?;
//! let mle = neighborhood.estimate(&Options::of(TwoNnMle))?;
//! assert_eq!((mle.estimator.as_str(), mle.n, mle.duplicates), ("two-nn-mle", 500, 0));
//! # Ok::<(), gelora_id::Error>(())
//! ```
//!
//! Units: the ID has none. Distances may be in any unit, since only their ratios count.
//!
//! The interval covers the spread of the estimate over draws of the points. It does not cover the bias, which grows
//! with the dimension. docs/intrinsic-dimension.md has measurements of both.

#![forbid(unsafe_code)]
#![warn(missing_debug_implementations, unreachable_pub)]

mod error;
mod estimate;
pub mod estimators;
mod jackknife;
pub mod manifolds;
pub mod near_copies;
mod neighborhood;
mod ratios;
pub mod scale;

pub use error::{Error, Result};
pub use estimate::{Estimate, Options, estimate, estimate_from_neighbors};
pub use estimators::Estimator;
pub use jackknife::{GROUPS, Growth, Jackknife};
pub use near_copies::NearCopies;
pub use neighborhood::Neighborhood;
pub use ratios::{Ratios, ratios};

// The types in the signatures of this crate.
#[doc(no_inline)]
pub use gelora_kernels::{Device, Tensor};
