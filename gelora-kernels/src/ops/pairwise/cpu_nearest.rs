//! Nearest neighbours with a matrix product as a shortlist and f64 sums as the answer.
//!
//! 1. The mean is subtracted in f64 and the result scaled by a power of two into [-1, 1] and rounded to f32: x'. With
//!    n_i = |x'_i|^2 the squared distance is n_i + n_j - 2 x'_i . x'_j, up to rounding.
//! 2. Square tiles of X' X'^T are taken by GEMM, those on and above the diagonal only, and each row keeps the
//!    m = k + [`SPARE`] columns with the least lower bound l_ij = n_j (1 - c u) - 2 x'_i . x'_j. A tile serves its rows
//!    and, read the other way, its columns; the lists of a block of rows are locked while a tile is merged. The order of
//!    tiles may change which of equal bounds end a list, never the result: step 4 proves it.
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

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::Neighbours;
use super::cpu::sum_of_squares;
use crate::cpu::{Onto, View, gemm_serial, vectorised};
use crate::{Error, Result};

/// Candidates beyond k that a row keeps, so that the k-th distance is well below the last candidate's bound.
const SPARE: usize = 6;

/// Rows and columns of a tile, at most: two blocks of x' and the product stay near a core's L2 cache.
const BLOCK: usize = 512;

/// Per dimension, what f32 values below 2^-126 in a cloud of extent 1 can move a squared distance by, with room.
const UNDERFLOW: f64 = 1e-36;

/// A value of a point.
pub trait Coordinate: Copy + Sync + Into<f64> {
    /// Squared distances from `x` to the rows `columns` of `points`.
    fn squared_distances(x: &[Self], points: &[Self], columns: &[u32], out: &mut [f64]);
}

macro_rules! coordinate {
    ($type:ty, $name:ident) => {
        vectorised! {
            fn $name(x: &[$type], points: &[$type], columns: &[u32], out: &mut [f64]) {
                for (&j, d) in columns.iter().zip(out) {
                    *d = sum_of_squares::<f64>(x, &points[j as usize * x.len()..][..x.len()]);
                }
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
    // Tiles enough that every thread has several.
    let block = n.div_ceil((8.0 * rayon::current_num_threads() as f64).sqrt().ceil() as usize).clamp(16, BLOCK);
    let lists = shortlists(&cloud, n, dim, m, block);
    let (mut indices, mut distances) = (vec![0; n * k], vec![0.0; n * k]);
    indices.par_chunks_mut(k).zip(distances.par_chunks_mut(k)).enumerate().for_each(|(row, (indices, distances))| {
        let list = &lists[row / block];
        let found = resolve(list, row, k, &cloud, values, n, dim);
        for (slot, (d, j)) in found.into_iter().take(k).enumerate() {
            indices[slot] = j;
            distances[slot] = d.sqrt();
        }
    });
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
    /// The first row of the block.
    first: usize,
    m: usize,
    bounds: Vec<f32>,
    columns: Vec<u32>,
    /// The largest bound of each row: what a column must be below.
    last: Vec<f32>,
}

impl Shortlist {
    fn new(first: usize, rows: usize, m: usize) -> Self {
        let last = vec![f32::INFINITY; rows];
        Self { first, m, bounds: vec![f32::INFINITY; rows * m], columns: vec![0; rows * m], last }
    }

    #[inline(always)]
    fn insert(&mut self, i: usize, bound: f32, column: usize) {
        let (bounds, columns) = (&mut self.bounds[i * self.m..][..self.m], &mut self.columns[i * self.m..][..self.m]);
        let mut at = self.m - 1;
        while at > 0 && bounds[at - 1] > bound {
            (bounds[at], columns[at]) = (bounds[at - 1], columns[at - 1]);
            at -= 1;
        }
        (bounds[at], columns[at]) = (bound, column as u32);
        self.last[i] = bounds[self.m - 1];
    }
}

/// The shortlists of all rows, a block of rows each.
fn shortlists(cloud: &Cloud, n: usize, dim: usize, m: usize, block: usize) -> Vec<Shortlist> {
    let rows_of = |b: usize| block.min(n - b * block);
    let view = |b: usize| View::new(&cloud.points[b * block * dim..], rows_of(b), dim);
    let lower = |b: usize| &cloud.lower[b * block..][..rows_of(b)];
    let blocks = n.div_ceil(block);
    let lists: Vec<_> = (0..blocks).map(|b| Mutex::new(Shortlist::new(b * block, rows_of(b), m))).collect();
    // Along diagonals, so that tiles in work at the same time rarely share a block.
    let tiles: Vec<(usize, usize)> = (0..blocks).flat_map(|d| (0..blocks - d).map(move |b| (b, b + d))).collect();
    tiles.into_par_iter().for_each_init(
        || vec![0.0; block * block],
        |products, (left, right)| {
            let cols = rows_of(right);
            let products = &mut products[..rows_of(left) * cols];
            gemm_serial(products, cols, Onto::Nothing, -2.0, view(left), view(right).t());
            // A panic elsewhere leaves no list half-written that anyone would read: it ends the whole search.
            let mut list = lists[left].lock().unwrap_or_else(PoisonError::into_inner);
            keep_for_rows(products, lower(right), right * block, &mut list);
            drop(list);
            if left != right {
                let mut list = lists[right].lock().unwrap_or_else(PoisonError::into_inner);
                keep_for_columns(products, lower(left), left * block, &mut list);
            }
        },
    );
    lists.into_iter().map(|list| list.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// The k nearest of a row of the list's block: (squared distance, column), ascending.
fn resolve<T: Coordinate>(
    list: &Shortlist,
    row: usize,
    k: usize,
    cloud: &Cloud,
    values: &[T],
    n: usize,
    dim: usize,
) -> Vec<(f64, u32)> {
    let i = row - list.first;
    let columns = &list.columns[i * list.m..][..list.m];
    let x = &values[row * dim..][..dim];
    let mut exact = vec![0.0; list.m];
    T::squared_distances(x, values, columns, &mut exact);
    let mut found: Vec<(f64, u32)> = exact.into_iter().zip(columns.iter().copied()).collect();
    found.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let others_from = f64::from(list.last[i]) + cloud.norms[row] - UNDERFLOW * dim as f64;
    // Strictly below: at equality another column might tie with a lower index.
    if list.m == n - 1 || found[k - 1].0 * cloud.scale < others_from {
        return found;
    }
    all_columns(x, values, row, n, k)
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

/// Nearly all columns are too far: whole runs and then groups of them are passed over by vector comparisons.
const GROUP: usize = 16;
const RUN: usize = 8 * GROUP;

vectorised! {
    /// Merges a tile into the lists of its rows: the bound of row i and column j is `products[i][j] + lower[j]`.
    fn keep_for_rows(products: &[f32], lower: &[f32], first_column: usize, list: &mut Shortlist) {
        let cols = lower.len();
        for (i, products) in products.chunks_exact(cols).enumerate() {
            let (own, mut last) = (list.first + i, list.last[i]);
            for run in (0..cols).step_by(RUN) {
                let end = cols.min(run + RUN);
                let lower_run = &lower[run..end];
                if !any_below(&products[run..end], |l, p| p + lower_run[l] < last) {
                    continue;
                }
                for group in (run..end).step_by(GROUP) {
                    let end = end.min(group + GROUP);
                    let lower_group = &lower[group..end];
                    if !any_below(&products[group..end], |l, p| p + lower_group[l] < last) {
                        continue;
                    }
                    for j in group..end {
                        let bound = products[j] + lower[j];
                        if bound < last && first_column + j != own {
                            list.insert(i, bound, first_column + j);
                            last = list.last[i];
                        }
                    }
                }
            }
        }
    }
}

vectorised! {
    /// Merges a tile into the lists of its columns: the bound of column j and row i is `products[i][j] + lower[i]`.
    fn keep_for_columns(products: &[f32], lower: &[f32], first_row: usize, list: &mut Shortlist) {
        let cols = list.last.len();
        for (i, (products, &lower)) in products.chunks_exact(cols).zip(lower).enumerate() {
            // Each column has a list of its own, so that hits do not come in runs.
            for group in (0..cols).step_by(GROUP) {
                let end = cols.min(group + GROUP);
                let (products, last) = (&products[group..end], &list.last[group..end]);
                if !any_below(products, |l, p| p + lower < last[l]) {
                    continue;
                }
                for (j, p) in (group..end).zip(products) {
                    let bound = p + lower;
                    if bound < list.last[j] {
                        list.insert(j, bound, first_row + i);
                    }
                }
            }
        }
    }
}

/// Whether `below(l, value)` holds for any value, its position being l. Without a branch in the loop, so that it becomes
/// vector code.
#[inline(always)]
fn any_below(values: &[f32], below: impl Fn(usize, f32) -> bool) -> bool {
    let mut any = 0u32;
    for (l, &value) in values.iter().enumerate() {
        any |= u32::from(below(l, value));
    }
    any != 0
}
