//! Directions of a mean that replicate: how many singular directions of a gradient are there in all of the data.
//!
//! G_1 .. G_M (K, C) are the mean gradients of M disjoint parts of the rows, of which G is the mean. Fold c has the
//! singular directions u_i, v_i of the mean of the other parts, and in its own part the value u_i^T G_c v_i. A
//! direction that is noise in the other parts has the mean 0 in part c. With x_ci these values, c_i their mean over the
//! folds, and sigma the root mean square of c_i over the second half of all i, the directions that replicate are those
//! with
//!
//! ```text
//! c_i > 4 sigma                                                    signal
//! n = (sum_i c_i)^2 / sum_i c_i^2                                  their effective number
//! ```
//!
//! where both squares are estimated without the noise of the folds, by products of different folds: (s^2 - sum_c
//! s_c^2) / (M (M - 1)) with s_c = sum_i x_ci and s their sum, and the same for each i. The interval is n +- t se with
//! the jackknife's standard error over folds and the quantile of Student's t with M - 1 degrees of freedom. It is one
//! of the directions that were found: weaker ones may be there, so n is a lower bound. The noise is that of the second
//! half of all directions, so no more than min(K, C) / 2 can be found.

use gelora_kernels::Tensor;
use nalgebra::{DMatrix, DMatrixView, SymmetricEigen};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::{Error, Result};

/// Values this many times the noise replicate.
const SIGNAL: f64 = 4.0;

/// The directions of a gradient that replicate.
#[derive(Clone, Debug, PartialEq)]
pub struct Directions {
    /// c_i of the directions that replicate, in descending order; none if there is only noise.
    pub values: Vec<f64>,
    /// Their effective number n; 0 if there is only noise.
    pub number: f64,
    /// Interval of n.
    pub interval: [f64; 2],
    /// Share of the squared norm of G that replicates, the mean of <G_a, G_b> over pairs of parts divided by |G|^2,
    /// at least 0.
    pub share: f64,
}

/// Finds the directions that replicate. Each part holds G_c (K, C) row-major; `confidence` is that of the interval.
///
/// # Errors
/// If there are fewer than three parts, their lengths are not K C, a value is not finite, or the confidence is not
/// between 0 and 1.
pub fn replicated(parts: &[Vec<f32>], k: usize, c: usize, confidence: f64) -> Result<Directions> {
    let problem = |problem: String| Err(Error::Ranks { problem });
    if !(confidence > 0.0 && confidence < 1.0) {
        return problem(format!("the confidence must be between 0 and 1, got {confidence}"));
    }
    if parts.len() < 3 {
        return problem(format!("directions replicate over at least 3 parts, got {}", parts.len()));
    }
    if let Some(part) = parts.iter().find(|part| part.len() != k * c) {
        return problem(format!("a part of {k} x {c} values is needed, got {}", part.len()));
    }
    if parts.iter().flatten().any(|value| !value.is_finite()) {
        return problem("a gradient is not finite".into());
    }
    // nalgebra stores columns: the transpose (C, K) of a row-major G_c.
    let parts: Vec<DMatrix<f64>> =
        parts.iter().map(|part| DMatrix::from_iterator(c, k, part.iter().map(|v| f64::from(*v)))).collect();
    let total = parts.iter().fold(DMatrix::zeros(c, k), |sum, part| sum + part);
    let folds: Vec<Vec<f64>> = parts.iter().map(|part| held_out(part, &((&total) - part))).collect();
    let m = parts.len();
    let mean: Vec<f64> = (0..k.min(c)).map(|i| folds.iter().map(|fold| fold[i]).sum::<f64>() / m as f64).collect();
    let tail = &mean[mean.len() / 2..];
    let noise = (tail.iter().map(|value| value * value).sum::<f64>() / tail.len().max(1) as f64).sqrt();
    let signal: Vec<usize> = (0..mean.len()).filter(|i| mean[*i] > SIGNAL * noise).collect();
    let chosen: Vec<Vec<f64>> = folds.iter().map(|fold| signal.iter().map(|i| fold[*i]).collect()).collect();
    let mut values: Vec<f64> = signal.iter().map(|i| mean[*i]).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    let share = {
        let norm: f64 = total.norm_squared();
        let own: f64 = parts.iter().map(DMatrix::norm_squared).sum();
        let pairs = (norm - own) / (m * (m - 1)) as f64;
        if norm > 0.0 { (pairs / (norm / (m * m) as f64)).clamp(0.0, 1.0) } else { 0.0 }
    };
    let number = effective_number(&chosen.iter().collect::<Vec<_>>(), signal.len());
    let without = |fold: usize| {
        let others: Vec<&Vec<f64>> = chosen.iter().enumerate().filter(|(f, _)| *f != fold).map(|(_, x)| x).collect();
        effective_number(&others, signal.len())
    };
    let jackknife: Vec<f64> = (0..m).map(without).collect();
    let center = jackknife.iter().sum::<f64>() / m as f64;
    let spread: f64 = jackknife.iter().map(|value| (value - center) * (value - center)).sum();
    let quantile =
        StudentsT::new(0.0, 1.0, (m - 1) as f64).map_or(f64::NAN, |t| t.inverse_cdf((1.0 + confidence) / 2.0));
    let error = quantile * (spread * (m - 1) as f64 / m as f64).sqrt();
    Ok(Directions { values, number, interval: [(number - error).max(0.0), number + error], share })
}

/// An orthonormal basis Q (C_out, k) of the columns of a sketch (C_out, k) with C_out >= k.
///
/// # Errors
/// If a device fails.
pub fn basis(sketch: &Tensor) -> Result<Tensor> {
    let (rows, cols) = (sketch.rows(), sketch.cols());
    let values = sketch.to_vec()?.into_iter().map(f64::from);
    let q = DMatrix::from_row_iterator(rows, cols, values).qr().q();
    let values = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))).map(|at| q[at] as f32).collect();
    Ok(Tensor::from_vec(values, [rows, cols])?)
}

/// u_i^T G_c v_i for all i, with the singular directions of the other parts. Both matrices are transposed (C, K).
fn held_out(part: &DMatrix<f64>, others: &DMatrix<f64>) -> Vec<f64> {
    let (c, k) = others.shape();
    // Eigenvectors of the smaller Gram matrix, in descending order of the eigenvalues.
    let wide = k <= c;
    let gram = if wide { others.tr_mul(others) } else { others * others.transpose() };
    let eigen = SymmetricEigen::new(gram);
    let mut order: Vec<usize> = (0..k.min(c)).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let vectors = DMatrix::from_fn(k.min(c), k.min(c), |row, col| eigen.eigenvectors[(row, order[col])]);
    // With u of one side, the other side is G^T u / s; the value is then (G^T u) . (G_c^T u) / s.
    let (ours, theirs) = match wide {
        true => (part * &vectors, others * &vectors),
        false => (part.tr_mul(&vectors), others.tr_mul(&vectors)),
    };
    let value = |i: usize| {
        let (ours, theirs): (DMatrixView<'_, f64>, DMatrixView<'_, f64>) = (ours.columns(i, 1), theirs.columns(i, 1));
        let length = theirs.norm();
        if length > 0.0 { ours.dot(&theirs) / length } else { 0.0 }
    };
    (0..k.min(c)).map(value).collect()
}

/// n of the values of some folds, by products of different folds.
fn effective_number(folds: &[&Vec<f64>], directions: usize) -> f64 {
    let pairs = |of: &dyn Fn(&[f64]) -> f64| {
        let all: Vec<f64> = folds.iter().map(|fold| of(fold)).collect();
        let sum: f64 = all.iter().sum();
        sum * sum - all.iter().map(|value| value * value).sum::<f64>()
    };
    let numerator = pairs(&|fold| fold.iter().sum());
    let denominator: f64 = (0..directions).map(|i| pairs(&|fold| fold[i])).sum();
    // At least one direction, and no more than were found: noise moves both squares.
    if directions == 0 || denominator <= 0.0 {
        return directions.min(1) as f64;
    }
    (numerator / denominator).clamp(1.0, directions as f64)
}

#[cfg(test)]
mod tests {
    use gelora_kernels::random::Stream;

    use super::*;

    /// The mean gradients of parts of a linear model y = W x whose target is (W + D) x + noise, with x of unit variance
    /// and D of the given rank and equal singular values of 1: R^T X / rows, with the residuals R = X D^T + noise.
    fn planted(rank: usize, size: usize, rows: usize, noise: f64, seed: u64) -> Vec<Vec<f32>> {
        let mut stream = Stream::new(seed);
        let mut basis = |n: usize| {
            let random = DMatrix::from_fn(size, n, |_, _| stream.normal());
            random.qr().q()
        };
        let (u, v) = (basis(rank), basis(rank));
        let parts = 8;
        let part = |_| {
            let x = DMatrix::from_fn(rows / parts, size, |_, _| stream.normal());
            let residual =
                (&x * &v) * u.transpose() + DMatrix::from_fn(rows / parts, size, |_, _| noise * stream.normal());
            // (C, K) in columns is (K, C) in rows.
            let gradient = x.tr_mul(&residual) / (rows / parts) as f64;
            gradient.iter().map(|value| *value as f32).collect()
        };
        (0..parts).map(part).collect()
    }

    #[test]
    fn the_number_of_a_planted_update_is_found() {
        for (rank, noise) in [(1, 0.3), (2, 0.3), (2, 1.0), (4, 1.0), (8, 0.3), (8, 1.0)] {
            let found: Vec<Directions> =
                (0..6).map(|seed| replicated(&planted(rank, 64, 1000, noise, seed), 64, 64, 0.9).unwrap()).collect();
            for found in &found {
                assert!((found.number / rank as f64 - 1.0).abs() < 0.1, "rank {rank}, noise {noise}: {found:?}");
                assert!(found.interval[0] <= found.number && found.number <= found.interval[1], "{found:?}");
            }
        }
    }

    /// Where every direction is above the noise, the interval holds the number about as often as it says: nine times in
    /// ten. The number of the sample's own gradient scatters, so this is one of the expected gradient.
    #[test]
    fn the_interval_covers_as_it_says() {
        let covers = |seed| {
            let found = replicated(&planted(2, 48, 1000, 0.5, 100 + seed), 48, 48, 0.9).unwrap();
            // n of the expectation over rows, for equal singular values.
            found.interval[0] - 1e-3 <= 2.0 && 2.0 <= found.interval[1] + 1e-3
        };
        let covered = (0..40u64).filter(|seed| covers(*seed)).count();
        assert!((32..=40).contains(&covered), "{covered} of 40");
    }

    #[test]
    fn noise_alone_has_no_direction() {
        let mut stream = Stream::new(3);
        let mut found = 0;
        for _ in 0..10 {
            let parts: Vec<Vec<f32>> = (0..8).map(|_| (0..32 * 48).map(|_| stream.normal() as f32).collect()).collect();
            let directions = replicated(&parts, 32, 48, 0.9).unwrap();
            found += directions.values.len();
            assert!(directions.share < 0.2, "{directions:?}");
        }
        assert!(found <= 3, "{found} directions in ten samples of noise");
        let zeros = vec![vec![0.0; 6]; 4];
        let directions = replicated(&zeros, 2, 3, 0.9).unwrap();
        assert_eq!((directions.values.len(), directions.number, directions.share), (0, 0.0, 0.0));
    }

    #[test]
    fn tall_and_wide_gradients_have_the_same_directions() {
        let parts = planted(3, 40, 800, 0.3, 1);
        let transpose = |part: &Vec<f32>| -> Vec<f32> {
            (0..40).flat_map(|col| (0..20).map(move |row| (row, col))).map(|(row, col)| part[row * 40 + col]).collect()
        };
        let cut: Vec<Vec<f32>> = parts.iter().map(|part| part[..20 * 40].to_vec()).collect();
        let tall: Vec<Vec<f32>> = cut.iter().map(transpose).collect();
        let (wide, tall) = (replicated(&cut, 20, 40, 0.9).unwrap(), replicated(&tall, 40, 20, 0.9).unwrap());
        assert_eq!(wide.values.len(), tall.values.len());
        approx::assert_relative_eq!(wide.number, tall.number, max_relative = 1e-8);
        approx::assert_relative_eq!(wide.share, tall.share, max_relative = 1e-10);
    }

    #[test]
    fn bad_parts_are_named() {
        let fails = |parts: &[Vec<f32>]| replicated(parts, 2, 2, 0.9).unwrap_err().to_string();
        assert!(fails(&[vec![0.0; 4], vec![0.0; 4]]).contains("at least 3 parts, got 2"));
        assert!(fails(&[vec![0.0; 4], vec![0.0; 4], vec![0.0; 3]]).contains("2 x 2 values is needed, got 3"));
        assert!(fails(&[vec![0.0; 4], vec![0.0; 4], vec![f32::NAN; 4]]).contains("not finite"));
    }
}
