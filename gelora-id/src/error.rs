/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate. Rows, columns and points are counted from 0.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The points are not a matrix.
    #[error("points must be a matrix (n, D), got the shape {got:?}")]
    Shape {
        /// The shape that came.
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
    /// All rows are the same: there is no distance to measure.
    #[error("all {points} points are identical: they have no intrinsic dimension")]
    Identical {
        /// Number of points.
        points: usize,
    },
    /// Two neighbours and the point itself make three.
    #[error("at least 3 distinct points are needed, got {distinct} among {points}")]
    TooFew {
        /// Number of distinct points, or of points with r1 > 0.
        distinct: usize,
        /// Number of points given.
        points: usize,
    },
    /// Not every point has both distances.
    #[error("r1 and r2 must be of one length, got {r1} and {r2} distances")]
    Lengths {
        /// Number of nearest distances.
        r1: usize,
        /// Number of second nearest distances.
        r2: usize,
    },
    /// The two distances of a point are not those of its nearest and second nearest neighbour.
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
    /// Every point has two neighbours equally far away, as on a regular grid: the estimate would be infinite.
    #[error("r2 / r1 is 1 for all {n} points used, as on a regular grid: no finite intrinsic dimension fits")]
    AllRatiosOne {
        /// Number of ratios that the estimator used.
        n: usize,
    },
    /// The discarded fraction leaves less than a line needs.
    #[error("{estimator} needs at least 2 ratios: discarding the largest {discard} of {n} keeps {kept}")]
    KeptTooFew {
        /// Its name.
        estimator: &'static str,
        /// Number of ratios kept.
        kept: usize,
        /// Number of ratios.
        n: usize,
        /// The fraction to discard.
        discard: f64,
    },
    /// An estimator needs more neighbours than there are.
    #[error("{estimator} needs {needed} neighbours of every point; of {points} distinct points {k} each are known")]
    Neighbours {
        /// Its name.
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
        /// What came.
        got: f64,
    },
    /// No estimator has this name.
    #[error("unknown estimator {got:?}; known are {}", crate::Estimator::names().join(", "))]
    UnknownEstimator {
        /// What came.
        got: String,
    },
    /// What becomes of near copies is "drop" or "keep".
    #[error("near copies: expected drop or keep, got {got:?}")]
    UnknownNearCopies {
        /// What came.
        got: String,
    },
    /// A mark is needed for every row.
    #[error("expected a mark for each of {rows} rows, got {marks}")]
    Marks {
        /// Number of rows.
        rows: usize,
        /// Number of marks.
        marks: usize,
    },
    /// There is no such row.
    #[error("row {row} of a matrix of {rows} rows (counted from 0)")]
    Row {
        /// The row asked for.
        row: usize,
        /// Number of rows.
        rows: usize,
    },
    /// The neighbour search failed.
    #[error(transparent)]
    Kernels(#[from] gelora_kernels::Error),
}
