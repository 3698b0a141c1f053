//! Intrinsic dimension (ID) of a cloud of points, with its uncertainty.
//!
//! The ID is the number of coordinates that the points need locally, however many columns they are written in. Eight
//! [`Estimator`]s read it off the distances to the nearest neighbours. The default is TwoNN: r1 < r2 are a point's distances to
//! its two nearest neighbours, and mu = r2 / r1 tells the dimension. If the density is constant over a point's two nearest
//! neighbours, mu is Pareto(d) distributed, F(mu) = 1 - mu^-d, so ln mu is exponential with rate d, whatever the density
//! is. The others stand in a module each: [`two_nn_trimmed`], [`two_nn_bayes`], [`gride`], [`mle`], [`corr_dim`],
//! [`local_pca`].
//!
//! Rows that are almost the same as another count once: [`near_copies`] says how they are found.
//!
//! [`scale`] tells how the ID depends on the scale, [`Summary`] how two IDs of the same examples differ, and [`manifolds`] has
//! clouds to try estimators on.
//!
//! Source: E. Facco, M. d'Errico, A. Rodriguez, A. Laio, "Estimating the intrinsic dimension of datasets by a minimal
//! neighborhood information", Scientific Reports 7, 12140 (2017), equations 1 to 5.
//!
//! ```
//! use gelora_id::{Estimator, Neighbourhood, Options, estimate};
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
//! // One neighbour search serves several estimators.
//! let neighbourhood = Neighbourhood::of(&points)?;
//! let mle = neighbourhood.estimate(&Options { estimator: Estimator::TwoNnMle, ..Options::default() })?;
//! assert_eq!((mle.estimator.as_str(), mle.n, mle.duplicates), ("two-nn-mle", 500, 0));
//! # Ok::<(), gelora_id::Error>(())
//! ```
//!
//! Units: the ID has none; distances may be in any unit, since only their ratios count.
//!
//! What the interval covers: the spread of the estimate over draws of the points. It does not cover the bias, which grows with
//! the dimension; docs/intrinsic-dimension.md has both, measured.

pub mod corr_dim;
mod error;
mod estimator;
pub mod gride;
pub mod local_pca;
pub mod manifolds;
pub mod mle;
pub mod near_copies;
mod neighbourhood;
mod ratios;
pub mod scale;
mod summary;
pub mod two_nn_bayes;
pub mod two_nn_fit;
pub mod two_nn_mle;
pub mod two_nn_trimmed;

pub use error::{Error, Result};
pub use estimator::Estimator;
pub use near_copies::NearCopies;
pub use neighbourhood::{GROUPS, Neighbourhood};
pub use ratios::{Ratios, ratios};
pub use summary::{Growth, Summary};

use gelora_kernels::Tensor;
use serde::{Deserialize, Serialize};

/// How to estimate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Which estimator. By default the linear fit, as published.
    pub estimator: Estimator,
    /// The probability with which the interval is to hold the ID, strictly between 0 and 1.
    pub confidence: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { estimator: Estimator::default(), confidence: 0.95 }
    }
}

/// An intrinsic dimension and how sure it is. The JSON has exactly these fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The name of the [`Estimator`].
    pub estimator: String,
    /// The intrinsic dimension.
    pub id: f64,
    /// The interval that holds the ID with the probability `confidence` under the estimator's model.
    pub interval: [f64; 2],
    /// See [`Options::confidence`].
    pub confidence: f64,
    /// Number of points used, N.
    pub n: usize,
    /// Number of points left out: further copies of a row if the points were given, points with r1 = 0 if the distances
    /// were (see [`Neighbourhood`]).
    pub duplicates: usize,
    /// Number of points left out as near copies of one that stays (see [`near_copies`]).
    #[serde(default)]
    pub near_copies: usize,
    /// The intrinsic dimension with the near copies, where there are any and it can be estimated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_with_near_copies: Option<f64>,
}

/// The intrinsic dimension of the rows of a matrix (n, D), on any device.
///
/// Identical rows count once, and so do near copies ([`near_copies`]); see [`Neighbourhood::keeping`] to keep those.
///
/// # Errors
/// If the matrix has fewer than 3 distinct rows, or only one; if a value is not finite; if every ratio of distances is 1;
/// if an option is out of range; if the device fails.
pub fn estimate(points: &Tensor, options: &Options) -> Result<Estimate> {
    check_confidence(options)?; // before the search, which may take a while
    Neighbourhood::for_estimators(points, &[options.estimator])?.estimate(options)
}

/// The intrinsic dimension from every point's distances r1 <= r2 to its nearest and second nearest neighbour.
///
/// Points with r1 = 0 are left out and counted. Near copies are not looked for: that takes more neighbours.
///
/// # Errors
/// If the lengths differ; if r2 < r1 or a distance is negative or not finite; if fewer than 3 points have r1 > 0; if every
/// ratio is 1; if an option is out of range.
pub fn estimate_from_neighbours(r1: &[f64], r2: &[f64], options: &Options) -> Result<Estimate> {
    check_confidence(options)?;
    let ratios = ratios(r1, r2)?;
    let (id, interval) = of_ratios(&ratios, options)?;
    Ok(Estimate {
        estimator: options.estimator.to_string(),
        id,
        interval,
        confidence: options.confidence,
        n: ratios.ln_mu().len(),
        duplicates: ratios.dropped(),
        near_copies: 0,
        id_with_near_copies: None,
    })
}

/// ID and interval of an estimator that needs r1 and r2 only.
fn of_ratios(ratios: &Ratios, options: &Options) -> Result<(f64, [f64; 2])> {
    let confidence = options.confidence;
    match options.estimator {
        Estimator::TwoNnFit { discard } => two_nn_fit::estimate(ratios, discard, confidence),
        Estimator::TwoNnMle => two_nn_mle::estimate(ratios, confidence),
        Estimator::TwoNnTrimmed { discard } => two_nn_trimmed::estimate(ratios, discard, confidence),
        Estimator::TwoNnBayes { shape, rate } => two_nn_bayes::estimate(ratios, shape, rate, confidence),
        other => {
            let (estimator, needed) = (other.to_string(), other.neighbours());
            Err(Error::Neighbours { estimator, needed, points: ratios.ln_mu().len(), k: 2 })
        }
    }
}

fn check_confidence(options: &Options) -> Result<()> {
    let got = options.confidence;
    if got > 0.0 && got < 1.0 {
        return Ok(());
    }
    Err(Error::Option { name: "confidence", expected: "strictly between 0 and 1", got })
}
