//! The errors of this crate.

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate. Rows, columns and points are counted from 0.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The points are not a matrix.
    #[error("points must be a matrix (n, D), got the shape {got:?}")]
    Shape {
        /// The shape that was given.
        got: Vec<usize>,
    },
    /// A coordinate is NaN or infinite.
    #[error("points must be finite, got {value} in row {row}, column {column} (counted from 0)")]
    NotFinite {
        /// The first such row.
        row: usize,
        /// Its first such column.
        column: usize,
        /// The value there.
        value: f64,
    },
    /// All rows are the same, so there is no distance to measure.
    #[error("all {points} points are identical: they have no intrinsic dimension")]
    Identical {
        /// Number of points.
        points: usize,
    },
    /// There are fewer than three points: a point and its two neighbors.
    #[error("at least 3 distinct points are needed, got {distinct} among {points}")]
    TooFew {
        /// Number of distinct points, or of points with r1 > 0.
        distinct: usize,
        /// Number of points given.
        points: usize,
    },
    /// The numbers of distances r1 and r2 differ.
    #[error("r1 and r2 must be of one length, got {r1} and {r2} distances")]
    Lengths {
        /// Number of nearest distances.
        r1: usize,
        /// Number of second nearest distances.
        r2: usize,
    },
    /// The two distances of a point cannot be those to its nearest and second nearest neighbor.
    #[error(
        "distances must be finite with 0 <= r1 <= r2, got r1 = {r1} and r2 = {r2} at point {index} (counted from 0)"
    )]
    Distances {
        /// The first such point.
        index: usize,
        /// Its nearest distance.
        r1: f64,
        /// Its second nearest distance.
        r2: f64,
    },
    /// Every point has two neighbors at the same distance, as on a regular grid: the estimate would be infinite.
    #[error("r2 / r1 is 1 for all {n} points used, as on a regular grid: no finite intrinsic dimension fits")]
    AllRatiosOne {
        /// Number of ratios that the estimator used.
        n: usize,
    },
    /// The discarded fraction leaves fewer ratios than the estimator needs.
    #[error("{estimator} needs at least 2 ratios: discarding the largest {discard} of {n} keeps {kept}")]
    KeptTooFew {
        /// The name of the estimator.
        estimator: &'static str,
        /// Number of ratios kept.
        kept: usize,
        /// Number of ratios.
        n: usize,
        /// The fraction to discard.
        discard: f64,
    },
    /// An estimator needs more neighbors than are known.
    #[error("{estimator} needs {needed} neighbors of every point; of {points} distinct points {k} each are known")]
    Neighbors {
        /// The name of the estimator.
        estimator: String,
        /// How many it needs.
        needed: usize,
        /// Number of distinct points.
        points: usize,
        /// How many are known.
        k: usize,
    },
    /// An option is out of range.
    #[error("{name} must be {expected}, got {got}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its range, as text.
        expected: &'static str,
        /// What was given.
        got: f64,
    },
    /// No estimator has this name.
    #[error("unknown estimator {got:?}; known are {known}")]
    UnknownEstimator {
        /// What was given.
        got: String,
        /// The names of all estimators.
        known: String,
    },
    /// The choice for near copies is neither "drop" nor "keep".
    #[error("near copies: expected drop or keep, got {got:?}")]
    UnknownNearCopies {
        /// What was given.
        got: String,
    },
    /// The number of marks is not the number of rows.
    #[error("expected a mark for each of {rows} rows, got {marks}")]
    Marks {
        /// Number of rows.
        rows: usize,
        /// Number of marks.
        marks: usize,
    },
    /// The matrix has no such row.
    #[error("row {row} of a matrix of {rows} rows (counted from 0)")]
    Row {
        /// The row asked for.
        row: usize,
        /// Number of rows.
        rows: usize,
    },
    /// The neighbor search failed.
    #[error(transparent)]
    Kernels(#[from] gelora_kernels::Error),
}
