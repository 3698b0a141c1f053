//! Directions of a mean that replicate: how many singular directions of a gradient are there in all of the data.
//!
//! G_1 .. G_M (C_out, C_in) are the mean gradients of M disjoint parts of the rows. Fold c has the singular directions
//! u_i, v_i of the mean of the other parts, in descending order of the singular values s_ci, and in its own part the
//! value x_ci = u_i^T G_c v_i ([`of_fold`]). A direction that is noise in the other parts has the mean 0 in part c.
//! With x_i and s_i the means over the folds, se_i the standard error of x_i over the folds, and sigma the root mean
//! square of x_i over the second half of the i that were looked at, the directions that replicate ([`replicated`]) are
//! those of the first half with
//!
//! ```text
//! x_i > 4 sigma   and   x_i > 5 se_i                               signal
//! c_i = (x_i + s_i) / 2                                            their singular values
//! n = (sum_i c_i)^2 / sum_i c_i^2                                  their effective number
//! ```
//!
//! The second bound holds where the noise of the first directions is larger than that of the last; it is high because
//! folds share parts.
//!
//! Noise N turns a direction with the singular value s, so that x_i falls short of s by (|N v|^2 + |u^T N|^2) / 2s (the
//! parts of N v and u^T N outside the other directions), and adds to it, so that s_i exceeds s by the same: in c_i both
//! cancel, up to higher orders of N, whatever the covariance of N. White noise of any size leaves no bias in a square
//! matrix. Noise along the direction itself moves x_i and s_i alike, with the standard error se_i; its squares are
//! subtracted from both squares of n. The interval is n +- t se with the jackknife's standard error over the x_ci of
//! the folds and the quantile of Student's t with M - 1 degrees of freedom. n counts only directions that were found:
//! weaker ones may be there, and no more than half of those looked at can be found. The interval is one for the
//! directions that were found: it does not tell of the choice among them, and is a point where there is one.
//!
//! If G is known only by its projection Q^T G on a [`basis`], Q must come from the other parts of a fold alone: the
//! noise of part c would count as signal.

use gelora_kernels::Tensor;
use gelora_kernels::random::Stream;
use nalgebra::{DMatrix, SymmetricEigen};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::{Error, Result};

/// A direction that replicates is this many times as large as the noise of the last directions, ...
const OF_NOISE: f64 = 4.0;
/// ... and as its own standard error.
const OF_ERROR: f64 = 5.0;

/// The directions of a gradient that replicate.
#[derive(Clone, Debug, PartialEq)]
pub struct Directions {
    /// Singular values c_i of the directions that replicate, in descending order; none if there is only noise.
    pub values: Vec<f64>,
    /// Their effective number n; 0 if there is only noise.
    pub number: f64,
    /// Interval of n.
    pub interval: [f64; 2],
    /// (sum s)^2 / sum s^2 of all s_i that were looked at: what n would be if noise counted.
    pub with_noise: f64,
}

/// What a fold shows of its directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Singular value s_ci of the mean of the other parts.
    pub singular: f64,
    /// x_ci, the value of the direction in the fold's own part.
    pub held_out: f64,
}

/// The first `width` directions of a fold: those of `others`, the mean of the other parts, seen in `part`. Both are
/// (rows, cols), row-major: G whole, or Q^T G.
///
/// # Errors
/// If a length is not rows cols, or a value is not finite.
pub fn of_fold(part: &[f32], others: &[f32], [rows, cols]: [usize; 2], width: usize) -> Result<Vec<Seen>> {
    let problem = |problem: String| Err(Error::Ranks { problem });
    if let Some(matrix) = [part, others].into_iter().find(|matrix| matrix.len() != rows * cols) {
        return problem(format!("a gradient of {rows} x {cols} values is needed, got {}", matrix.len()));
    }
    if part.iter().chain(others).any(|value| !value.is_finite()) {
        return problem("a gradient is not finite".into());
    }
    // nalgebra stores columns: the transpose of a row-major matrix.
    let across = |values: &[f32]| DMatrix::from_iterator(cols, rows, values.iter().map(|value| f64::from(*value)));
    let (part, others) = (across(part), across(others));
    Ok(if rows <= cols {
        held_out(&part, &others, width)
    } else {
        held_out(&part.transpose(), &others.transpose(), width)
    })
}

/// Finds the directions that replicate, by what each fold shows. `confidence` is that of the interval.
///
/// # Errors
/// If there are fewer than three folds, folds of different lengths, or a confidence that is not between 0 and 1.
pub fn replicated(folds: &[Vec<Seen>], confidence: f64) -> Result<Directions> {
    let problem = |problem: String| Err(Error::Ranks { problem });
    if !(confidence > 0.0 && confidence < 1.0) {
        return problem(format!("the confidence must be between 0 and 1, got {confidence}"));
    }
    let m = folds.len();
    if m < 3 {
        return problem(format!("directions replicate over at least 3 parts, got {m}"));
    }
    let width = folds[0].len();
    if let Some(fold) = folds.iter().find(|fold| fold.len() != width) {
        return problem(format!("folds of {width} and {} directions", fold.len()));
    }
    let mean_of = |i: usize, of: fn(&Seen) -> f64| folds.iter().map(|fold| of(&fold[i])).sum::<f64>() / m as f64;
    let mean: Vec<f64> = (0..width).map(|i| mean_of(i, |seen| seen.held_out)).collect();
    let half = mean.len() / 2;
    let tail = &mean[half..];
    let noise = (tail.iter().map(|value| value * value).sum::<f64>() / tail.len().max(1) as f64).sqrt();
    // How much the mean changes without a fold.
    let influence = |i: usize, fold: usize| (mean[i] - folds[fold][i].held_out) / (m - 1) as f64;
    let error_of = |i: usize| jackknife_error((0..m).map(|fold| influence(i, fold)));
    let is_signal = |i: &usize| mean[*i] > OF_NOISE * noise && mean[*i] > OF_ERROR * error_of(*i);
    let signal: Vec<usize> = (0..half).filter(is_signal).collect();
    let singular: Vec<f64> = (0..width).map(|i| mean_of(i, |seen| seen.singular)).collect();
    let with_noise = effective_number(&singular, 0.0, 0.0);
    if signal.is_empty() {
        return Ok(Directions { values: Vec::new(), number: 0.0, interval: [0.0; 2], with_noise });
    }
    let values: Vec<f64> = signal.iter().map(|i| 0.5 * (mean[*i] + singular[*i])).collect();
    let noise_of_sum = jackknife_error((0..m).map(|fold| signal.iter().map(|i| influence(*i, fold)).sum())).powi(2);
    let noise_of_each: f64 = signal.iter().map(|i| error_of(*i).powi(2)).sum();
    // Every c_i is above half of x_i, which is above OF_ERROR of its errors, with or without a fold: both squares are
    // above 0.
    let number = effective_number(&values, noise_of_sum, noise_of_each);
    let without = |fold: usize| {
        let moved: Vec<f64> = signal.iter().zip(&values).map(|(i, value)| value + influence(*i, fold)).collect();
        effective_number(&moved, noise_of_sum, noise_of_each) - number
    };
    let quantile =
        StudentsT::new(0.0, 1.0, (m - 1) as f64).map_or(f64::NAN, |t| t.inverse_cdf((1.0 + confidence) / 2.0));
    let error = quantile * jackknife_error((0..m).map(without));
    // At least one direction, and no more than were found.
    let [low, number, high] = [number - error, number, number + error].map(|n| n.clamp(1.0, signal.len() as f64));
    let mut values = values;
    values.sort_by(|a, b| b.total_cmp(a));
    Ok(Directions { values, number, interval: [low, high], with_noise })
}

/// ((sum v)^2 - a) / (sum v^2 - b), with the squares a and b that noise adds; 0 without values.
fn effective_number(values: &[f64], noise_of_sum: f64, noise_of_each: f64) -> f64 {
    let squares = values.iter().map(|value| value * value).sum::<f64>() - noise_of_each;
    if squares > 0.0 { (values.iter().sum::<f64>().powi(2) - noise_of_sum) / squares } else { 0.0 }
}

/// The jackknife's standard error of an estimate, by its changes without each of the folds.
fn jackknife_error(changes: impl Iterator<Item = f64> + Clone) -> f64 {
    let m = changes.clone().count() as f64;
    let center = changes.clone().sum::<f64>() / m;
    ((m - 1.0) / m * changes.map(|change| (change - center).powi(2)).sum::<f64>()).sqrt()
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

/// The first `width` singular directions of the other parts. Both matrices (C, K) have K <= C.
fn held_out(part: &DMatrix<f64>, others: &DMatrix<f64>, width: usize) -> Vec<Seen> {
    let u = leading(others.tr_mul(others), width);
    // v_i is G u_i / s_i; the value is then (G u_i) . (G_c u_i) / s_i.
    let (ours, theirs) = (part * &u, others * &u);
    let seen = |i: usize| {
        let singular = theirs.column(i).norm();
        let product = ours.column(i).dot(&theirs.column(i));
        Seen { singular, held_out: if singular > 0.0 { product / singular } else { 0.0 } }
    };
    (0..u.ncols()).map(seen).collect()
}

/// The first `count` eigenvectors of a symmetric matrix (K, K) without negative eigenvalues, in descending order.
///
/// Of a large matrix only a subspace of twice as many columns is decomposed, after power iterations: many times faster,
/// and as good but for the last directions, which are noise.
fn leading(matrix: DMatrix<f64>, count: usize) -> DMatrix<f64> {
    const ITERATIONS: usize = 4;
    let k = matrix.nrows();
    let sorted = |matrix: DMatrix<f64>| {
        let eigen = SymmetricEigen::new(matrix);
        let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
        order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
        order.truncate(count);
        eigen.eigenvectors.select_columns(&order)
    };
    if k <= 2 * count {
        return sorted(matrix);
    }
    let mut stream = Stream::at(k as u64, &[0x6c65_6164]); // "lead"
    let mut q = DMatrix::from_fn(k, 2 * count, |_, _| stream.normal());
    for _ in 0..ITERATIONS {
        q = (&matrix * q).qr().q();
    }
    let within = q.tr_mul(&(&matrix * &q));
    q * sorted(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: usize = 8;

    /// The mean gradients of parts of a linear model y = W x whose target is (W + D) x + noise: R^T X / rows, with the
    /// residuals R = X D^T + noise. D has the given rank and equal singular values of 1. The variances of the inputs
    /// and of the noise fall as i^(-2 decay).
    fn planted(rank: usize, size: usize, noise: f64, decay: f64, seed: u64) -> Vec<DMatrix<f64>> {
        planted_values(&vec![1.0; rank], size, noise, decay, seed)
    }

    /// U (size, rank) and V with the singular values in its columns: D^T = U V^T is the expected gradient.
    fn factors(values: &[f64], size: usize, stream: &mut Stream) -> [DMatrix<f64>; 2] {
        let mut basis = || DMatrix::from_fn(size, values.len(), |_, _| stream.normal()).qr().q();
        let (u, mut v) = (basis(), basis());
        v.column_iter_mut().zip(values).for_each(|(mut column, value)| column *= *value);
        [u, v]
    }

    /// The same for any singular values of D.
    fn planted_values(values: &[f64], size: usize, noise: f64, decay: f64, seed: u64) -> Vec<DMatrix<f64>> {
        let mut stream = Stream::new(seed);
        let [u, v] = factors(values, size, &mut stream);
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

    /// The directions by the values of each fold, seen through the bases of the other parts if there are any.
    fn found(
        parts: &[DMatrix<f64>],
        width: usize,
        basis: impl Fn(&DMatrix<f64>) -> Option<DMatrix<f64>>,
    ) -> Directions {
        let total = parts.iter().skip(1).fold(parts[0].clone(), |sum, part| sum + part);
        let fold = |part: &DMatrix<f64>| {
            let others = (&total - part) / (parts.len() - 1) as f64;
            let (part, others) = match basis(&others) {
                Some(q) => (q.tr_mul(part), q.tr_mul(&others)),
                None => (part.clone(), others),
            };
            of_fold(&rows_of(&part), &rows_of(&others), part.shape().into(), width).unwrap()
        };
        replicated(&parts.iter().map(fold).collect::<Vec<_>>(), 0.9).unwrap()
    }

    fn whole(parts: &[DMatrix<f64>]) -> Directions {
        found(parts, usize::MAX / 2, |_| None)
    }

    /// The directions by sketches of 2 k columns, as a model gives them but for its power iteration.
    fn sketched(parts: &[DMatrix<f64>], k: usize, seed: u64) -> Directions {
        let mut stream = Stream::new(seed);
        let rows = parts[0].nrows();
        let random = DMatrix::from_fn(parts[0].ncols(), 2 * k, |_, _| stream.normal());
        found(parts, k, |others| {
            let sketch = Tensor::from_vec(rows_of(&(others * &random)), [rows, 2 * k]).unwrap();
            let q = basis(&sketch, k).unwrap().to_vec().unwrap();
            Some(DMatrix::from_row_iterator(rows, k, q.into_iter().map(f64::from)))
        })
    }

    #[test]
    fn the_number_of_a_planted_update_is_found() {
        for (rank, noise) in [(1, 0.3), (2, 0.3), (2, 1.0), (4, 1.0), (8, 0.3), (8, 1.0)] {
            for seed in 0..4 {
                // Of 48 directions that are looked at, as in a model.
                let found = found(&planted(rank, 64, noise, 0.0, seed), 48, |_| None);
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

    /// Singular values, size and noise of planted updates; the interval of the last one is known to be too narrow,
    /// because its weakest direction is barely above the noise.
    const KINDS: [(&[f64], usize, f64); 6] = [
        (&[1.0, 0.8, 0.6], 48, 0.5),
        (&[1.0, 0.5], 48, 0.5),
        (&[1.0; 4], 48, 0.5),
        (&[1.0, 0.9, 0.8, 0.7, 0.6, 0.5], 64, 0.3),
        (&[1.0, 0.8, 0.6], 128, 0.3),
        (&[1.0, 0.7, 0.5, 0.4], 128, 0.5),
    ];

    fn number_of(values: &[f64]) -> f64 {
        values.iter().sum::<f64>().powi(2) / values.iter().map(|value| value * value).sum::<f64>()
    }

    /// The interval holds the number of the expected gradient about as often as it says, nine times in ten.
    #[test]
    #[allow(clippy::print_stdout)] // how many are worth seeing
    fn the_interval_covers_as_it_says() {
        for (kind, (values, size, noise)) in KINDS.into_iter().enumerate() {
            let want = number_of(values);
            let covers = |seed: &u64| {
                let [low, high] = whole(&planted_values(values, size, noise, 0.0, 100 + seed)).interval;
                // Where all values are the same, the number is the end of its range.
                low - 1e-3 <= want && want <= high + 1e-3
            };
            let covered = (0..40).filter(covers).count();
            println!("{values:?}, size {size}, noise {noise}: {covered} of 40");
            let least = if kind + 1 < KINDS.len() { 32 } else { 28 };
            assert!((least..=40).contains(&covered), "{values:?}, size {size}, noise {noise}: {covered} of 40");
        }
    }

    /// Noise turns the weaker directions the most, so that their values in other rows fall short by more.
    #[test]
    fn the_number_is_not_biased_by_noise() {
        for (values, size, noise) in KINDS {
            let number = |seed: u64| whole(&planted_values(values, size, noise, 0.0, 200 + seed)).number;
            let mean = (0..20).map(number).sum::<f64>() / 20.0;
            let ratio = mean / number_of(values);
            assert!((ratio - 1.0).abs() < 0.02, "{values:?}, size {size}, noise {noise}: {ratio}");
        }
        // A matrix that is not square, where the noise does not cancel as well.
        let values = [1.0, 0.7, 0.5];
        let wide = |seed: u64| -> f64 {
            let parts = planted_values(&values, 128, 0.5, 0.0, 300 + seed);
            // The first rows: another gradient, whose own singular values are known.
            let [u, v] = factors(&values, 128, &mut Stream::new(300 + seed));
            let expected = u.rows(0, 32) * v.transpose();
            let want: Vec<f64> = expected.singular_values().iter().copied().filter(|value| *value > 0.05).collect();
            let parts: Vec<DMatrix<f64>> = parts.into_iter().map(|part| part.rows(0, 32).into_owned()).collect();
            let found = whole(&parts);
            // Of those that were found.
            found.number / number_of(&want[..found.values.len().min(want.len())])
        };
        let mean = (0..20).map(wide).sum::<f64>() / 20.0;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
    }

    /// Neither noise of one size nor noise whose first directions are the largest replicates, and neither does the
    /// noise that a sketch was made from.
    #[test]
    #[allow(clippy::print_stdout)] // how many are worth seeing
    fn noise_alone_has_hardly_any_direction() {
        for decay in [0.0, 0.5, 1.0] {
            let parts = |seed| planted(0, 64, 1.0, decay, 10 + seed);
            let found: usize = (0..8).map(|seed| whole(&parts(seed)).values.len()).sum();
            println!("decay {decay}: {found} directions in eight samples");
            assert!(found <= 5, "{found} directions in eight samples of noise, decay {decay}");
            let found: usize = (0..4).map(|seed| sketched(&parts(seed), 16, seed).values.len()).sum();
            println!("decay {decay}: {found} directions in four sketches");
            assert!(found <= 3, "{found} directions in four sketches of noise, decay {decay}");
        }
        let zeros = of_fold(&[0.0; 6], &[0.0; 6], [2, 3], 2).unwrap();
        let directions = replicated(&vec![zeros; 4], 0.9).unwrap();
        assert_eq!((directions.values.len(), directions.number, directions.with_noise), (0, 0.0, 0.0));
        // Noise has about as many directions as were looked at.
        let noise = found(&planted(0, 64, 1.0, 0.0, 10), 24, |_| None).with_noise;
        assert!((20.0..24.0).contains(&noise), "{noise}");
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
    fn the_leading_directions_of_a_large_matrix_are_found_within_a_subspace() {
        let parts = planted(8, 200, 0.3, 0.5, 3);
        let (few, all) = (found(&parts, 24, |_| None), found(&parts, 100, |_| None));
        assert!(few.values.len() >= 8, "{few:?}");
        for (few, all) in few.values.iter().zip(&all.values) {
            approx::assert_relative_eq!(few, all, max_relative = 1e-3);
        }
    }

    #[test]
    fn bad_parts_are_named() {
        let fold = |part: &[f32]| of_fold(part, &[1.0; 4], [2, 2], 2).map_err(|error| error.to_string());
        assert!(fold(&[0.0; 3]).unwrap_err().contains("2 x 2 values is needed, got 3"));
        assert!(fold(&[f32::NAN; 4]).unwrap_err().contains("not finite"));
        let zeros = |directions| vec![Seen { singular: 0.0, held_out: 0.0 }; directions];
        let fails = |folds: &[Vec<Seen>]| replicated(folds, 0.9).unwrap_err().to_string();
        assert!(fails(&[zeros(4), zeros(4)]).contains("at least 3 parts, got 2"));
        assert!(fails(&[zeros(4), zeros(4), zeros(3)]).contains("folds of 4 and 3 directions"));
    }
}
