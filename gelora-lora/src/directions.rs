//! Directions of a mean that replicate: how many singular directions of a gradient are there in all of the data.
//!
//! G_1 .. G_M (K, C) are the mean gradients of M disjoint parts of the rows. Fold c has the singular directions u_i,
//! v_i of the mean of the other parts, in descending order of the singular values, and in its own part the value x_ci =
//! u_i^T G_c v_i. A direction that is noise in the other parts has the mean 0 in part c. With c_i the mean of x_ci over
//! the folds, se_i its standard error over the folds, and sigma the root mean square of c_i over the second half of all
//! i, the directions that replicate are those of the first half with
//!
//! ```text
//! c_i > 4 sigma   and   c_i > 5 se_i                               signal
//! n = (sum_i c_i)^2 / sum_i c_i^2                                  their effective number
//! ```
//!
//! The second bound holds where the noise of the first directions is larger than that of the last; it is high because
//! folds share parts. Both squares are estimated without the noise of the folds, by products of different folds: (s^2 -
//! sum_c s_c^2) / (M (M - 1)) with s_c = sum_i x_ci and s their sum, and the same for each i. The interval is n +- t se
//! with the jackknife's standard error over folds and the quantile of Student's t with M - 1 degrees of freedom. n
//! counts only directions that were found: weaker ones may be there, and no more than min(K, C) / 2 can be found.
//!
//! If G is known only by its projection Q^T G on a [`basis`], Q must not come from part c: the noise of that part would
//! count as signal. The folds with an even number therefore have another basis than the others.

use gelora_kernels::Tensor;
use nalgebra::{DMatrix, DMatrixView, SymmetricEigen};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::{Error, Result};

/// A direction that replicates is this many times as large as the noise of the last directions, ...
const OF_NOISE: f64 = 4.0;
/// ... and as its own standard error.
const OF_ERROR: f64 = 5.0;

/// The directions of a gradient that replicate.
#[derive(Clone, Debug, PartialEq)]
pub struct Directions {
    /// c_i of the directions that replicate, in descending order; none if there is only noise.
    pub values: Vec<f64>,
    /// Their effective number n; 0 if there is only noise.
    pub number: f64,
    /// Interval of n.
    pub interval: [f64; 2],
}

/// Finds the directions that replicate. `of_even` and `of_odd` hold all parts, each (K, C) row-major, as the folds with
/// an even and with an odd number see them: the same twice, or the projections on two bases. `confidence` is that of
/// the interval.
///
/// # Errors
/// If there are fewer than three parts, their lengths are not K C, a value is not finite, or the confidence is not
/// between 0 and 1.
pub fn replicated(
    of_even: &[Vec<f32>],
    of_odd: &[Vec<f32>],
    k: usize,
    c: usize,
    confidence: f64,
) -> Result<Directions> {
    let problem = |problem: String| Err(Error::Ranks { problem });
    if !(confidence > 0.0 && confidence < 1.0) {
        return problem(format!("the confidence must be between 0 and 1, got {confidence}"));
    }
    let m = of_even.len();
    if m < 3 || of_odd.len() != m {
        return problem(format!("directions replicate over at least 3 parts, got {m} and {}", of_odd.len()));
    }
    if let Some(part) = of_even.iter().chain(of_odd).find(|part| part.len() != k * c) {
        return problem(format!("a part of {k} x {c} values is needed, got {}", part.len()));
    }
    if of_even.iter().chain(of_odd).flatten().any(|value| !value.is_finite()) {
        return problem("a gradient is not finite".into());
    }
    // nalgebra stores columns: the transpose (C, K) of a row-major G_c.
    let seen = |parts: &[Vec<f32>]| -> Vec<DMatrix<f64>> {
        parts.iter().map(|part| DMatrix::from_iterator(c, k, part.iter().map(|v| f64::from(*v)))).collect()
    };
    let folds_of = |parts: Vec<DMatrix<f64>>, first: usize| -> Vec<(usize, Vec<f64>)> {
        let total = parts.iter().fold(DMatrix::zeros(c, k), |sum, part| sum + part);
        (first..m).step_by(2).map(|fold| (fold, held_out(&parts[fold], &(&total - &parts[fold])))).collect()
    };
    let mut folds = [folds_of(seen(of_even), 0), folds_of(seen(of_odd), 1)].concat();
    folds.sort_by_key(|(fold, _)| *fold);
    let folds: Vec<Vec<f64>> = folds.into_iter().map(|(_, values)| values).collect();

    let mean: Vec<f64> = (0..k.min(c)).map(|i| folds.iter().map(|fold| fold[i]).sum::<f64>() / m as f64).collect();
    let half = mean.len() / 2;
    let tail = &mean[half..];
    let noise = (tail.iter().map(|value| value * value).sum::<f64>() / tail.len().max(1) as f64).sqrt();
    let error_of = |i: usize| {
        let squares: f64 = folds.iter().map(|fold| (fold[i] - mean[i]) * (fold[i] - mean[i])).sum();
        (squares / (m * (m - 1)) as f64).sqrt()
    };
    let is_signal = |i: &usize| mean[*i] > OF_NOISE * noise && mean[*i] > OF_ERROR * error_of(*i);
    let signal: Vec<usize> = (0..half).filter(is_signal).collect();
    let chosen: Vec<Vec<f64>> = folds.iter().map(|fold| signal.iter().map(|i| fold[*i]).collect()).collect();
    let mut values: Vec<f64> = signal.iter().map(|i| mean[*i]).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    if values.is_empty() {
        return Ok(Directions { values, number: 0.0, interval: [0.0; 2] });
    }
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
    // At least one direction, and no more than were found.
    let number = number.clamp(1.0, signal.len() as f64);
    Ok(Directions { values, number, interval: [(number - error).max(0.0), number + error] })
}

/// The first `k` left singular vectors Q (C_out, k) of a sketch (C_out, n) with n >= k. If the sketch is of a lower
/// rank, the other columns are 0.
///
/// # Errors
/// If a device fails.
pub fn basis(sketch: &Tensor, k: usize) -> Result<Tensor> {
    let (rows, cols) = (sketch.rows(), sketch.cols());
    let sketch = DMatrix::from_row_iterator(rows, cols, sketch.to_vec()?.into_iter().map(f64::from));
    let eigen = SymmetricEigen::new(sketch.tr_mul(&sketch));
    let mut order: Vec<usize> = (0..cols).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let mut q = vec![0.0_f32; rows * k];
    for (column, index) in order.into_iter().take(k).enumerate() {
        let image = &sketch * eigen.eigenvectors.column(index);
        let length = image.norm();
        // Below this the eigenvalue is rounding.
        if length > 1e-7 * sketch.norm() {
            image.iter().enumerate().for_each(|(row, value)| q[row * k + column] = (value / length) as f32);
        }
    }
    Ok(Tensor::from_vec(q, [rows, k])?)
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
    if denominator > 0.0 { numerator / denominator } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use gelora_kernels::random::Stream;

    use super::*;

    const PARTS: usize = 8;

    /// The mean gradients of parts of a linear model y = W x whose target is (W + D) x + noise: R^T X / rows, with the
    /// residuals R = X D^T + noise. D has the given rank and equal singular values of 1. The variances of the inputs
    /// and of the noise fall as i^(-2 decay).
    fn planted(rank: usize, size: usize, noise: f64, decay: f64, seed: u64) -> Vec<DMatrix<f64>> {
        let mut stream = Stream::new(seed);
        let mut basis = |n: usize| DMatrix::from_fn(size, n, |_, _| stream.normal()).qr().q();
        let (u, v) = (basis(rank), basis(rank));
        let rows = 1000 / PARTS;
        let scale = |i: usize| ((i + 1) as f64).powf(-decay);
        let part = |_| {
            let x = DMatrix::from_fn(rows, size, |_, i| scale(i) * stream.normal());
            let residual =
                (&x * &v) * u.transpose() + DMatrix::from_fn(rows, size, |_, i| noise * scale(i) * stream.normal());
            residual.tr_mul(&x) / rows as f64
        };
        (0..PARTS).map(part).collect()
    }

    fn rows_of(matrix: &DMatrix<f64>) -> Vec<f32> {
        matrix.transpose().iter().map(|value| *value as f32).collect()
    }

    fn whole(parts: &[DMatrix<f64>]) -> Directions {
        let seen: Vec<Vec<f32>> = parts.iter().map(rows_of).collect();
        replicated(&seen, &seen, parts[0].nrows(), parts[0].ncols(), 0.9).unwrap()
    }

    /// The directions by sketches of width 2 k, as a model gives them.
    fn sketched(parts: &[DMatrix<f64>], k: usize, seed: u64) -> Directions {
        let mut stream = Stream::new(seed);
        let (rows, cols) = parts[0].shape();
        let random = DMatrix::from_fn(cols, 2 * k, |_, _| stream.normal());
        let of = |first: usize| {
            let sum = parts.iter().skip(first).step_by(2).fold(DMatrix::zeros(rows, cols), |sum, part| sum + part);
            let sketch = Tensor::from_vec(rows_of(&(sum * &random)), [rows, 2 * k]).unwrap();
            let q = basis(&sketch, k).unwrap().to_vec().unwrap();
            let q = DMatrix::from_row_iterator(rows, k, q.into_iter().map(f64::from));
            parts.iter().map(|part| rows_of(&q.tr_mul(part))).collect::<Vec<_>>()
        };
        // Even folds see the basis of the odd parts.
        replicated(&of(1), &of(0), k, cols, 0.9).unwrap()
    }

    #[test]
    fn the_number_of_a_planted_update_is_found() {
        for (rank, noise) in [(1, 0.3), (2, 0.3), (2, 1.0), (4, 1.0), (8, 0.3), (8, 1.0)] {
            for seed in 0..4 {
                let found = whole(&planted(rank, 64, noise, 0.0, seed));
                assert!((found.number / rank as f64 - 1.0).abs() < 0.1, "rank {rank}, noise {noise}: {found:?}");
                assert!(found.interval[0] <= found.number && found.number <= found.interval[1], "{found:?}");
            }
        }
    }

    #[test]
    fn sketches_find_what_the_whole_gradient_shows() {
        for (rank, noise) in [(1, 0.3), (2, 0.3), (4, 0.3)] {
            for seed in 0..3 {
                let parts = planted(rank, 96, noise, 0.0, seed);
                let (whole, sketched) = (whole(&parts), sketched(&parts, 24, seed));
                let ratio = sketched.number / whole.number;
                assert!((ratio - 1.0).abs() < 0.02, "rank {rank}: {sketched:?} beside {whole:?}");
            }
        }
    }

    /// Where every direction is above the noise, the interval holds the number about as often as it says: nine times in
    /// ten. The number of the sample's own gradient scatters, so this is one of the expected gradient.
    #[test]
    fn the_interval_covers_as_it_says() {
        let covers = |seed| {
            let found = whole(&planted(2, 48, 0.5, 0.0, 100 + seed));
            found.interval[0] - 1e-3 <= 2.0 && 2.0 <= found.interval[1] + 1e-3
        };
        let covered = (0..40_u64).filter(|seed| covers(*seed)).count();
        assert!((32..=40).contains(&covered), "{covered} of 40");
    }

    /// Neither noise of one size nor noise whose first directions are the largest replicates, and neither does the
    /// noise that a sketch was made from.
    #[test]
    fn noise_alone_has_no_direction() {
        for decay in [0.0, 0.5, 1.0] {
            let parts = |seed| planted(0, 64, 1.0, decay, 10 + seed);
            let found: usize = (0..8).map(|seed| whole(&parts(seed)).values.len()).sum();
            assert!(found <= 5, "{found} directions in eight samples of noise, decay {decay}");
            let found: usize = (0..4).map(|seed| sketched(&parts(seed), 16, seed).values.len()).sum();
            assert!(found <= 3, "{found} directions in four sketches of noise, decay {decay}");
        }
        let zeros = vec![vec![0.0; 6]; 4];
        let directions = replicated(&zeros, &zeros, 2, 3, 0.9).unwrap();
        assert_eq!((directions.values.len(), directions.number), (0, 0.0));
    }

    #[test]
    fn tall_and_wide_gradients_have_the_same_directions() {
        let wide: Vec<DMatrix<f64>> =
            planted(3, 40, 0.3, 0.0, 1).into_iter().map(|part| part.rows(0, 20).into_owned()).collect();
        let tall: Vec<DMatrix<f64>> = wide.iter().map(DMatrix::transpose).collect();
        let (wide, tall) = (whole(&wide), whole(&tall));
        assert_eq!(wide.values.len(), tall.values.len());
        approx::assert_relative_eq!(wide.number, tall.number, max_relative = 1e-6);
    }

    #[test]
    fn a_basis_is_orthonormal_and_spans_the_sketch() {
        let sketch = Tensor::from_vec(vec![3.0, 0.0, 0.0, 0.0, 4.0, 0.0], [3, 2]).unwrap();
        let found: Vec<f32> = basis(&sketch, 1).unwrap().to_vec().unwrap().into_iter().map(f32::abs).collect();
        // One column of length 5.
        assert_eq!(found, [0.6, 0.0, 0.8]);
        let zero = Tensor::from_vec(vec![0.0; 6], [3, 2]).unwrap();
        assert_eq!(basis(&zero, 2).unwrap().to_vec().unwrap(), [0.0; 6]);
    }

    #[test]
    fn bad_parts_are_named() {
        let fails = |parts: &[Vec<f32>]| replicated(parts, parts, 2, 2, 0.9).unwrap_err().to_string();
        assert!(fails(&[vec![0.0; 4], vec![0.0; 4]]).contains("at least 3 parts, got 2"));
        assert!(fails(&[vec![0.0; 4], vec![0.0; 4], vec![0.0; 3]]).contains("2 x 2 values is needed, got 3"));
        assert!(fails(&[vec![0.0; 4], vec![0.0; 4], vec![f32::NAN; 4]]).contains("not finite"));
    }
}
