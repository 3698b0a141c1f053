//! Nearest neighbours with a matrix product as a shortlist and f64 sums as the answer.
//!
//! 1. The mean is subtracted in f64 and the result scaled by a power of two into [-1, 1] and rounded to f32: x'. With
//!    n_i = |x'_i|^2 the squared distance is n_i + n_j - 2 x'_i . x'_j, up to rounding.
//! 2. Blocks of x' X'^T are taken by GEMM, and each row keeps the m = k + [`SPARE`] columns with the least lower bound
//!    l_ij = n_j (1 - c u) - 2 x'_i . x'_j.
//! 3. The distances to those m are recomputed in f64 from the original values, and the k least are the answer,
//! 4. provided the k-th is below l_i + n_i (1 - c u), l_i being the largest bound kept: no other column can be nearer.
//!    A row that does not prove itself (a cluster of more than m points nearer together than rounding tells) is done
//!    exactly over all columns.
//!
//! The constant, with u = 2^-24 and any order of summation: the inner product is within gamma_D |x'_i| |x'_j| <=
//! gamma_D (n_i + n_j) / 2, gamma_D = D u / (1 - D u) (Higham 2002, 3.5), and counts twice; n_j is rounded once, the
//! subtraction once (at most 2 u (n_i + n_j)); x' differs from the scaled difference to the mean by u relative per
//! value, which moves a squared distance by at most 2 u (|x_i| + |x_j|)^2 <= 4 u (n_i + n_j). Together less than
//! (1.1 D + 16) u (n_i + n_j) for D up to a million, and values that underflow add less than [`UNDERFLOW`] D.

use multiversion::multiversion;
use rayon::prelude::*;

use super::Neighbours;
use super::cpu::sum_of_squares;
use crate::cpu::{View, gemm_serial};
use crate::{Error, Result};

/// Candidates beyond k that a row keeps, so that the k-th distance is well below the last candidate's bound.
const SPARE: usize = 6;

/// Rows of one task and columns of one product: x', one tile of X' and the product stay in a core's L2 cache.
const BLOCK_ROWS: usize = 256;
const BLOCK_COLS: usize = 512;

/// Per dimension, what f32 values below 2^-126 in a cloud of extent 1 can move a squared distance by, with room.
const UNDERFLOW: f64 = 1e-36;

/// A value of a point.
pub trait Coordinate: Copy + Sync + Into<f64> {
    /// Squared distances from `x` to the rows `columns` of `points`.
    fn squared_distances(x: &[Self], points: &[Self], columns: &[u32], out: &mut [f64]);
}

macro_rules! coordinate {
    ($type:ty, $name:ident) => {
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
        fn $name(x: &[$type], points: &[$type], columns: &[u32], out: &mut [f64]) {
            for (&j, d) in columns.iter().zip(out) {
                *d = sum_of_squares::<f64>(x, &points[j as usize * x.len()..][..x.len()]);
            }
        }

        impl Coordinate for $type {
            fn squared_distances(x: &[Self], points: &[Self], columns: &[u32], out: &mut [f64]) {
                $name(x, points, columns, out);
            }
        }
    };
}

coordinate!(f32, squared_distances_f32);
coordinate!(f64, squared_distances_f64);

/// The points around their mean, scaled into [-1, 1].
struct Cloud {
    /// x' (N, D).
    points: Vec<f32>,
    /// n_i (1 - c u).
    norms: Vec<f64>,
    /// The same rounded to f32.
    lower: Vec<f32>,
    /// What scales a squared distance of the original points to one of x'.
    scale: f64,
}

pub fn nearest<T: Coordinate>(op: &'static str, values: &[T], n: usize, dim: usize, k: usize) -> Result<Neighbours> {
    let cloud = Cloud::new(op, values, n, dim)?;
    let m = (k + SPARE).min(n - 1);
    let rows = n.div_ceil(4 * rayon::current_num_threads()).clamp(16, BLOCK_ROWS);
    let (mut indices, mut distances) = (vec![0; n * k], vec![0.0; n * k]);
    indices.par_chunks_mut(rows * k).zip(distances.par_chunks_mut(rows * k)).enumerate().for_each(
        |(block, (indices, distances))| {
            let first = block * rows;
            let rows = indices.len() / k;
            let shortlist = Shortlist::new(&cloud, n, dim, first, rows, m);
            for i in 0..rows {
                let row = first + i;
                let found = shortlist.resolve(i, k, &cloud, values, row, n, dim);
                for (slot, (d, j)) in found.into_iter().take(k).enumerate() {
                    indices[i * k + slot] = j;
                    distances[i * k + slot] = d.sqrt();
                }
            }
        },
    );
    Ok(Neighbours { k, indices, distances })
}

/// The mean of the rows, in f64.
///
/// # Errors
/// If a value is not finite, or so large that its square is not.
pub fn mean<T: Coordinate>(op: &'static str, values: &[T], n: usize, dim: usize) -> Result<Vec<f64>> {
    let mut mean = vec![0.0; dim];
    for (row, values) in values.chunks_exact(dim).enumerate() {
        let mut squarable = true;
        for (sum, &v) in mean.iter_mut().zip(values) {
            let v: f64 = v.into();
            *sum += v;
            squarable &= v.abs() < 1e150;
        }
        if !squarable {
            let finite = values.iter().all(|&v| v.into().is_finite());
            let wrong = if finite { "too large to be squared in f64" } else { "not finite" };
            return Err(Error::Value { op, message: format!("row {row} of the points has a value that is {wrong}") });
        }
    }
    mean.iter_mut().for_each(|sum| *sum /= n as f64);
    Ok(mean)
}

impl Cloud {
    fn new<T: Coordinate>(op: &'static str, values: &[T], n: usize, dim: usize) -> Result<Self> {
        let mean = mean(op, values, n, dim)?;
        let extent = |row: &[T]| row.iter().zip(&mean).fold(0.0_f64, |m, (&v, mean)| m.max((v.into() - mean).abs()));
        let extent = values.par_chunks(dim).map(extent).reduce(|| 0.0, f64::max);
        // A power of two, so that scaling does not round; twice the exponent stays in range.
        let unit = if extent > 0.0 { 2f64.powi(-(extent.log2().ceil().clamp(-500.0, 500.0) as i32)) } else { 1.0 };
        let shrink = 1.0 - (1.1 * dim as f64 + 16.0) * 2f64.powi(-24);
        let mut points = vec![0.0; n * dim];
        let norms: Vec<f64> = points
            .par_chunks_mut(dim)
            .zip(values.par_chunks(dim))
            .map(|(point, values)| {
                let mut norm = 0.0;
                for ((p, &v), mean) in point.iter_mut().zip(values).zip(&mean) {
                    *p = ((v.into() - mean) * unit) as f32;
                    norm += f64::from(*p) * f64::from(*p);
                }
                norm * shrink
            })
            .collect();
        let lower = norms.iter().map(|&v| v as f32).collect();
        Ok(Self { points, norms, lower, scale: unit * unit })
    }
}

/// For each row of a block, the m columns with the least lower bound, in ascending order.
struct Shortlist {
    m: usize,
    bounds: Vec<f32>,
    columns: Vec<u32>,
}

impl Shortlist {
    fn new(cloud: &Cloud, n: usize, dim: usize, first: usize, rows: usize, m: usize) -> Self {
        let mut list = Self { m, bounds: vec![f32::INFINITY; rows * m], columns: vec![0; rows * m] };
        let x = View::new(&cloud.points[first * dim..], rows, dim);
        let mut products = vec![0.0; rows * BLOCK_COLS.min(n)];
        for start in (0..n).step_by(BLOCK_COLS) {
            let cols = BLOCK_COLS.min(n - start);
            let products = &mut products[..rows * cols];
            gemm_serial(products, cols, 0.0, -2.0, x, View::new(&cloud.points[start * dim..], cols, dim).t());
            let lower = &cloud.lower[start..start + cols];
            for (i, products) in products.chunks_exact(cols).enumerate() {
                let kept = i * m..(i + 1) * m;
                keep_least(products, lower, start, first + i, &mut list.bounds[kept.clone()], &mut list.columns[kept]);
            }
        }
        list
    }

    /// The k nearest of row `row`, which is the i-th of the block: (squared distance, column), ascending.
    #[allow(clippy::too_many_arguments)] // sizes
    fn resolve<T: Coordinate>(
        &self,
        i: usize,
        k: usize,
        cloud: &Cloud,
        values: &[T],
        row: usize,
        n: usize,
        dim: usize,
    ) -> Vec<(f64, u32)> {
        let columns = &self.columns[i * self.m..][..self.m];
        let x = &values[row * dim..][..dim];
        let mut exact = vec![0.0; self.m];
        T::squared_distances(x, values, columns, &mut exact);
        let mut found: Vec<(f64, u32)> = exact.into_iter().zip(columns.iter().copied()).collect();
        found.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let others_from = f64::from(self.bounds[(i + 1) * self.m - 1]) + cloud.norms[row] - UNDERFLOW * dim as f64;
        // Strictly below: at equality another column might tie with a lower index.
        if self.m == n - 1 || found[k - 1].0 * cloud.scale < others_from {
            return found;
        }
        all_columns(x, values, row, n, k)
    }
}

/// The k nearest rows of `values` to `x`, exactly, over all rows but `row`.
fn all_columns<T: Coordinate>(x: &[T], values: &[T], row: usize, n: usize, k: usize) -> Vec<(f64, u32)> {
    let mut found: Vec<(f64, u32)> = Vec::with_capacity(k + 1);
    let mut exact = [0.0; 64];
    for start in (0..n).step_by(exact.len()) {
        let columns: Vec<u32> = (start..n.min(start + exact.len())).map(|j| j as u32).collect();
        T::squared_distances(x, values, &columns, &mut exact);
        for (&d, j) in exact.iter().zip(columns) {
            if j as usize == row || found.len() == k && d >= found[k - 1].0 {
                continue;
            }
            // Columns come in ascending order, so behind equals keeps the lower index first.
            let at = found.partition_point(|f| f.0 <= d);
            found.insert(at, (d, j));
            found.truncate(k);
        }
    }
    found
}

/// Merges the bounds `products + lower` of the columns from `start` into a row's sorted list, leaving out column `own`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
fn keep_least(products: &[f32], lower: &[f32], start: usize, own: usize, bounds: &mut [f32], columns: &mut [u32]) {
    // Nearly all columns are too far; whole vectors of them are passed over by their least bound.
    const GROUP: usize = 16;
    const RUN: usize = 8 * GROUP;
    let last = bounds.len() - 1;
    for (run, (products, lower)) in products.chunks(RUN).zip(lower.chunks(RUN)).enumerate() {
        if least(products, lower) >= bounds[last] {
            continue;
        }
        for (group, (products, lower)) in products.chunks(GROUP).zip(lower.chunks(GROUP)).enumerate() {
            if least(products, lower) >= bounds[last] {
                continue;
            }
            for (j, (p, l)) in products.iter().zip(lower).enumerate() {
                let (bound, column) = (p + l, start + run * RUN + group * GROUP + j);
                if bound < bounds[last] && column != own {
                    let mut at = last;
                    while at > 0 && bounds[at - 1] > bound {
                        (bounds[at], columns[at]) = (bounds[at - 1], columns[at - 1]);
                        at -= 1;
                    }
                    (bounds[at], columns[at]) = (bound, column as u32);
                }
            }
        }
    }
}

/// The least of `products + lower`.
#[inline(always)]
fn least(products: &[f32], lower: &[f32]) -> f32 {
    let mut lanes = [f32::INFINITY; 16];
    let (p, p_rest) = products.as_chunks::<16>();
    let (l, l_rest) = lower.as_chunks::<16>();
    for (p, l) in p.iter().zip(l) {
        for i in 0..16 {
            let bound = p[i] + l[i];
            lanes[i] = if bound < lanes[i] { bound } else { lanes[i] };
        }
    }
    for (i, (p, l)) in p_rest.iter().zip(l_rest).enumerate() {
        lanes[i] = lanes[i].min(p + l);
    }
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i + width] < lanes[i] { lanes[i + width] } else { lanes[i] };
        }
        width /= 2;
    }
    lanes[0]
}
