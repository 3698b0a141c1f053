//! Euclidean distances between points, and the nearest neighbors of every point.
//!
//! x (N, D), y (M, D): d_ij = sqrt(sum over c of (x_ic - y_jc)^2), in the units of the points.
//!
//! The TwoNN estimate of intrinsic dimension uses only r1 and r2, the distances of a point to its two nearest
//! neighbors. For near duplicates, or a cloud far from the origin, |x|^2 + |y|^2 - 2 x.y is a difference of nearly
//! equal numbers, and its f32 value can be all rounding. So every returned distance is a sum of (x - y)^2, accurate
//! relative to itself. The matrix product only shortlists candidates, and a bound on its rounding proves for every
//! point that no other point was nearer (see `cpu_nearest.rs` and `gpu/shortlist.rs`).
//!
//! Accumulation: [`distances`] in f32, or in f64 if a set is f64; [`nearest`] in f64 on the CPU, in f32 on a GPU. On a
//! GPU points are f32, and differences are taken before they are squared, so a cloud far from the origin loses no more
//! than its f32 points have lost. For f64 points, subtract the mean in f64 first ([`centered`]). Squares of differences
//! outside 1e-19..1e19 (f32) or 1e-150..1e150 (f64) leave the range of their type.
//!
//! Source: Facco et al., "Estimating the intrinsic dimension of datasets by a minimal neighborhood information"
//! (Scientific Reports 2017), for r1 and r2; Higham, "Accuracy and stability of numerical algorithms" (2002), section
//! 3.1, for the rounding of an inner product.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
mod cpu_nearest;
mod cpu_shortlist;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::check;
use crate::device::on_device;
use crate::{DType, Error, Result, Tensor, profile};

/// The k nearest neighbors of every point.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbors {
    /// Number of neighbors of each point.
    pub k: usize,
    /// (N, k): rows of the neighbors, nearest first; among equal squared distances the lower row first.
    pub indices: Vec<u32>,
    /// (N, k): distances, not squared.
    pub distances: Vec<f64>,
}

/// All distances between two sets of points: x (N, D), y (M, D), each f32 or f64; the result (N, M) in f32, squared if
/// `squared` is set.
///
/// # Errors
/// If shapes, types or devices do not fit together.
///
/// ```
/// use gelora_kernels::{Tensor, ops::pairwise};
///
/// let x = Tensor::from_vec(vec![0.0, 0.0, 3.0, 4.0], [2, 2])?;
/// assert_eq!(pairwise::distances(&x, &x, false)?.to_vec()?, [0.0, 5.0, 5.0, 0.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn distances(x: &Tensor, y: &Tensor, squared: bool) -> Result<Tensor> {
    const OP: &str = "pairwise.distances";
    let (n, dim) = points(OP, "x", x)?;
    let (m, _) = points(OP, "y", y)?;
    check::shape(OP, "y", y, &[m, dim])?;
    check::same_device(OP, &[x, y])?;
    let op = if squared { "pairwise.distances_squared" } else { OP };
    let _span = profile::span(op, 3.0 * (n * m * dim) as f64, 4.0 * (n * dim + m * dim + n * m) as f64);
    on_device!(x.device(), cpu::distances(x, y, n, m, dim, squared), gpu => gpu::distances(gpu, x, y, squared))
}

/// The k nearest neighbors of every point: points (N, D), f32 or f64; k from 1 to N - 1.
///
/// A point is not its own neighbor. A duplicate of it is, at distance 0. Every pair of points is multiplied once.
/// Memory is O(N (D + k)), without a matrix of all distances.
///
///
/// # Errors
/// If k is out of range (on a GPU, above 16), or a value is not finite. The message names the row.
///
/// ```
/// use gelora_kernels::{Tensor, ops::pairwise};
///
/// let points = Tensor::from_vec(vec![0.0, 1.0, 3.0], [3, 1])?;
/// let found = pairwise::nearest(&points, 2)?;
/// assert_eq!(found.indices, [1, 2, 0, 2, 1, 0]);
/// assert_eq!(found.distances, [1.0, 3.0, 1.0, 2.0, 2.0, 3.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn nearest(points: &Tensor, k: usize) -> Result<Neighbors> {
    const OP: &str = "pairwise.nearest";
    let (n, dim) = self::points(OP, "points", points)?;
    check::value(OP, (1..n).contains(&k), || {
        format!("k must be from 1 to the number of other points, got k = {k} with {n} points")
    })?;
    check::value(OP, u32::try_from(n).is_ok(), || format!("at most {} points, got {n}", u32::MAX))?;
    // The profile counts one inner product for each pair: the work of the shortlist.
    let bytes = points.dtype().bytes(n * dim) + 12 * n * k;
    let _span = profile::span(OP, 2.0 * (n * n * dim) as f64, bytes as f64);
    let on_cpu = || match points.as_f64() {
        Some(values) => cpu_nearest::nearest(OP, values, n, dim, k),
        None => cpu_nearest::nearest(OP, points.as_slice()?, n, dim, k),
    };
    on_device!(points.device(), on_cpu(), gpu => from_gpu(points, gpu::nearest(gpu, points, k)?, k))
}

/// Neighbors from the results of the kernels. If a row has fewer than k neighbors, the host looks for the reason.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn from_gpu(points: &Tensor, (squared, indices): (Vec<f32>, Vec<u32>), k: usize) -> Result<Neighbors> {
    const OP: &str = "pairwise.nearest";
    if let Some(empty) = indices.iter().position(|&j| j == u32::MAX) {
        cpu_nearest::mean(OP, &points.to_vec()?, points.rows(), points.cols())?;
        let message = format!("row {} of the points is so far from the others that the square leaves f32", empty / k);
        return Err(Error::Value { op: OP, message });
    }
    Ok(Neighbors { k, indices, distances: squared.into_iter().map(|d| f64::from(d).sqrt()).collect() })
}

/// The points minus their mean, subtracted in f64, as f32 on the CPU: the same distances, for a device without f64.
///
/// # Errors
/// If the points are not a matrix of f32 or f64, or a value is not finite. The message names the row.
pub fn centered(points: &Tensor) -> Result<Tensor> {
    const OP: &str = "pairwise.centered";
    let (n, dim) = self::points(OP, "points", points)?;
    let values = points.to_vec_f64()?;
    let mean = cpu_nearest::mean(OP, &values, n, dim)?;
    let centered = values.chunks_exact(dim).flat_map(|row| row.iter().zip(&mean).map(|(v, m)| (v - m) as f32));
    Tensor::from_vec(centered.collect(), [n, dim])
}

/// The shape (N, D) of a matrix of f32 or f64.
fn points(op: &'static str, name: &'static str, t: &Tensor) -> Result<(usize, usize)> {
    match t.dtype() {
        DType::F32 | DType::F64 => check::matrix(op, name, t),
        got => Err(Error::DType { op, name, expected: "f32 or f64", got }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::random;
    use proptest::prelude::*;

    fn matches_brute_force(values: Vec<f64>, n: usize, dim: usize, k: usize) {
        let (distances, indices) = reference::nearest(&values, dim, k);
        let found = nearest(&Tensor::from_f64(values, [n, dim]).unwrap(), k).unwrap();
        for index in 0..n * k {
            assert_eq!(found.indices[index], indices[index], "row {}, neighbor {}", index / k, index % k);
            let (got, want) = (found.distances[index], distances[index]);
            assert!((got - want).abs() <= 1e-14 * want, "row {}, neighbor {}: {got}, not {want}", index / k, index % k);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Points on a coarse grid: many duplicates, many ties, and an outlier that inflates every norm.
        #[test]
        fn nearest_is_brute_force_on_a_grid(
            n in 2usize..150, dim in 1usize..5, k in 1usize..8, seed in any::<u64>(), far in 0u32..2,
        ) {
            let mut s = crate::random::Stream::new(seed);
            let mut values: Vec<f64> = (0..n * dim).map(|_| s.below(4) as f64).collect();
            values[0] += 1e6 * f64::from(far);
            matches_brute_force(values, n, dim, k.min(n - 1));
        }

        /// Clouds of any scale, anywhere.
        #[test]
        fn nearest_is_brute_force_on_clouds(
            n in 2usize..150, dim in 1usize..40, k in 1usize..8, seed in any::<u64>(), log_spread in -40i32..40,
            offset in -1e4..1e4,
        ) {
            let mut s = crate::random::Stream::new(seed);
            let spread = 10f64.powi(log_spread);
            let values = (0..n * dim).map(|_| spread * (s.normal() + offset)).collect();
            matches_brute_force(values, n, dim, k.min(n - 1));
        }
    }

    #[test]
    fn k_and_non_finite_values_are_checked() -> Result<()> {
        let x = random([5, 3], 1);
        assert!(nearest(&x, 0).is_err() && nearest(&x, 4).is_ok());
        assert!(nearest(&x, 5).unwrap_err().to_string().contains("k = 5 with 5 points"));
        let mut x = x;
        x.as_mut_slice()?[7] = f32::NAN;
        assert!(nearest(&x, 1).unwrap_err().to_string().contains("row 2"));
        Ok(())
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn a_gpu_names_the_row_too() -> Result<()> {
        let Ok(device) = crate::Device::open(crate::DeviceKind::Wgpu) else { return Ok(()) };
        let mut x = random([70, 3], 1);
        assert!(matches!(nearest(&x.to_device(&device)?, 17), Err(Error::Unsupported { .. })));
        for (value, why) in [(f32::NAN, "not finite"), (f32::INFINITY, "not finite"), (1e30, "so far")] {
            x.as_mut_slice()?[3 * 66 + 1] = value;
            let message = nearest(&x.to_device(&device)?, 16).unwrap_err().to_string();
            assert!(message.contains("row 66") && message.contains(why), "{message}");
        }
        Ok(())
    }

    #[test]
    fn clusters_tighter_than_the_shortlist_can_tell_apart() {
        // 40 points within 1e-9 of each of 3 centers: every row needs the exact pass.
        let mut s = crate::random::Stream::new(9);
        let centers: Vec<f64> = (0..3 * 20).map(|_| s.normal()).collect();
        let values =
            (0..120).flat_map(|i| centers[i % 3 * 20..][..20].to_vec()).map(|c| c + 1e-9 * s.normal()).collect();
        matches_brute_force(values, 120, 20, 5);
    }

    #[test]
    fn centered_keeps_distances() -> Result<()> {
        let far = Tensor::from_f64(vec![1e9, 1e9 + 1.0, 1e9 + 3.0], [3, 1])?;
        let near = centered(&far)?;
        assert_eq!(nearest(&near, 2)?.indices, nearest(&far, 2)?.indices);
        assert!((near.to_vec()?.iter().sum::<f32>()).abs() < 1e-6);
        Ok(())
    }
}
