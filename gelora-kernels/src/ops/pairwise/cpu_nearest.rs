//! Nearest neighbors: a matrix product shortlists candidates, and f64 sums decide among them.
//!
//! 1. The mean is subtracted in f64, and the result is scaled by a power of two into [-1, 1] and rounded to f32: x'.
//!    With n_i = |x'_i|^2 the squared distance is n_i + n_j - 2 x'_i . x'_j, up to rounding.
//! 2. GEMM computes square tiles of X' X'^T, those on and above the diagonal only. Up to c n_i on either side, a
//!    product p bounds the squared distance (less n_i) from below by l_ij = n_j (1 - c) - 2 p and from above by l_ij +
//!    2 c n_j. A row keeps its k least upper bounds. A column whose lower bound is above all of them cannot be among
//!    the k nearest; every other column becomes a candidate. A tile serves its rows and, transposed, its columns. The
//!    lists of a block of rows are locked while a tile is merged. The order of the tiles may change which columns are
//!    candidates for a while, but never the result.
//! 3. The distances to the candidates are recomputed in f64 from the original values. The k least are the result.
//! 4. If the CPU has products of bf16, step 2 uses them, at twice the speed of f32. Rows with too many candidates
//!    (their neighbors are closer together than bf16 can resolve) repeat steps 2 and 3 in f32, against all columns.
//! 5. A row that still has too many candidates (a cluster that f32 cannot resolve) is computed exactly over all
//!    columns.
//!
//! The constant c in f32, with u = 2^-24 and any order of summation: the inner product is within gamma_D |x'_i| |x'_j|
//! <= gamma_D (n_i + n_j) / 2, gamma_D = D u / (1 - D u) (Higham 2002, 3.5), and counts twice. n_j is rounded once, and
//! so are the three sums of a bound (at most 8 u (n_i + n_j)). x' differs from the scaled difference to the mean by u
//! relative per value, which moves a squared distance by at most 2 u (|x_i| + |x_j|)^2 <= 4 u (n_i + n_j). The sum is
//! less than c = (1.1 D + 24) u times (n_i + n_j) for D up to a million. Values that underflow add less than
//! [`UNDERFLOW`] D.
//!
//! In bf16, x' is rounded to b. Let e be the largest |x'_i - b_i| / |x'_i|, as measured. b_i . b_j differs from
//! x'_i . x'_j by at most (2 e + e^2) |x'_i| |x'_j|, so c grows by 2 e + e^2, and the sums by a factor of (1 + e)^2.
//! Products of bf16 are exact in f32.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::Neighbors;
use super::cpu::sum_of_squares;
use super::cpu_shortlist::{Shortlist, keep_for_columns, keep_for_rows};
use crate::cpu::{self, Level, Packed, Rows, Scratch, View, ViewMut, level, math, panel_width, vectorized};
use crate::{Error, Result};

/// The most rows and columns of a tile: two blocks of x' and the product stay near a core's L2 cache.
const BLOCK: usize = 192;

/// The most that f32 values below 2^-126 can move a squared distance in a cloud of extent 1, per dimension, with a
/// margin.
const UNDERFLOW: f64 = 1e-36;

/// The coordinate type of points.
pub(crate) trait Coordinate: Copy + Sync + Into<f64> {
    /// Squared distances from `x` to the rows `columns` of `points`.
    fn squared_distances(x: &[Self], points: &[Self], columns: &[u32], out: &mut [f64]);
    /// Adds a row to the sums. Returns false if a value cannot be squared in f64.
    fn add(row: &[Self], sums: &mut [f64]) -> bool;
    /// The largest difference to the mean.
    fn extent(row: &[Self], mean: &[f64]) -> f64;
    /// Writes (row - mean) unit. Returns its squared norm.
    fn center(row: &[Self], mean: &[f64], unit: f64, out: &mut [f32]) -> f64;
}

/// Lanes of sums in f64.
const LANES: usize = 16;

macro_rules! coordinate {
    ($type:ty) => {
        impl Coordinate for $type {
            vectorized! {
                fn squared_distances(x: &[$type], points: &[$type], columns: &[u32], out: &mut [f64]) {
                    for (&j, d) in columns.iter().zip(out) {
                        *d = sum_of_squares::<f64>(x, &points[j as usize * x.len()..][..x.len()]);
                    }
                }
            }

            vectorized! {
                fn add(row: &[$type], sums: &mut [f64]) -> bool {
                    let mut small = 1u32;
                    for (sum, &v) in sums.iter_mut().zip(row) {
                        let v = f64::from(v);
                        *sum += v;
                        // The comparison is false for NaN.
                        small &= u32::from(v.abs() < 1e150);
                    }
                    small == 1
                }
            }

            vectorized! {
                fn extent(row: &[$type], mean: &[f64]) -> f64 {
                    let mut lanes = [0.0f64; LANES];
                    for (row, mean) in row.chunks(LANES).zip(mean.chunks(LANES)) {
                        for ((lane, &v), mean) in lanes.iter_mut().zip(row).zip(mean) {
                            let d = (f64::from(v) - mean).abs();
                            *lane = if d > *lane { d } else { *lane };
                        }
                    }
                    lanes.into_iter().fold(0.0, f64::max)
                }
            }

            vectorized! {
                fn center(row: &[$type], mean: &[f64], unit: f64, out: &mut [f32]) -> f64 {
                    let mut lanes = [0.0f64; LANES];
                    for ((row, mean), out) in row.chunks(LANES).zip(mean.chunks(LANES)).zip(out.chunks_mut(LANES)) {
                        for (((lane, &v), mean), out) in lanes.iter_mut().zip(row).zip(mean).zip(out) {
                            *out = ((f64::from(v) - mean) * unit) as f32;
                            *lane += f64::from(*out) * f64::from(*out);
                        }
                    }
                    lanes.iter().sum()
                }
            }
        }
    };
}

coordinate!(f32);
coordinate!(f64);

/// The points minus their mean, scaled into [-1, 1].
struct Cloud {
    /// x' (N, D).
    points: Vec<f32>,
    /// n_i.
    norms: Vec<f64>,
    n: usize,
    dim: usize,
}

/// The norms, with margins for the rounding of products.
struct Bounds {
    /// n_i (1 - c) - underflow.
    lower: Vec<f32>,
    /// 2 (c n_i + underflow): the width of a bound.
    width: Vec<f32>,
}

pub(crate) fn nearest<T: Coordinate>(
    op: &'static str,
    values: &[T],
    n: usize,
    dim: usize,
    k: usize,
) -> Result<Neighbors> {
    // Steps 1 and 2: the shortlists.
    let cloud = Cloud::new(op, values, n, dim)?;
    let rounded = level() == Level::Avx512Bf16;
    let bounds = cloud.bounds(if rounded { cloud.rounding_to_bf16() } else { 0.0 });
    let block = block_size(n);
    let lists = among_all(&cloud, &bounds, rounded, k, block);
    // Step 3: exact distances. `open` has the rows with too many candidates.
    let (mut indices, mut distances) = (vec![0; n * k], vec![0.0; n * k]);
    let mut open: Vec<usize> = indices
        .par_chunks_mut(k)
        .zip(distances.par_chunks_mut(k))
        .enumerate()
        .filter_map(|(row, (indices, distances))| {
            let list = &lists[row / block];
            match resolve(list, row % block, row, values, dim) {
                Some(found) => write(&found, indices, distances),
                None => return Some(row),
            }
            None
        })
        .collect();
    drop(lists);
    // Step 4: open rows again, in f32.
    if rounded && !open.is_empty() {
        let bounds = cloud.bounds(0.0);
        let (lists, block) = shortlists_of_rows(&cloud, &bounds, &open, k);
        let found: Vec<_> = open
            .par_iter()
            .enumerate()
            .map(|(i, &row)| resolve(&lists[i / block], i % block, row, values, dim))
            .collect();
        let mut still_open = Vec::new();
        for (&row, found) in open.iter().zip(found) {
            match found {
                Some(found) => write(&found, &mut indices[row * k..][..k], &mut distances[row * k..][..k]),
                None => still_open.push(row),
            }
        }
        open = still_open;
    }
    // Step 5: rows that are still open.
    let exact: Vec<_> =
        open.par_iter().map(|&row| all_columns(&values[row * dim..][..dim], values, row, n, k)).collect();
    for (row, found) in open.into_iter().zip(exact) {
        write(&found, &mut indices[row * k..][..k], &mut distances[row * k..][..k]);
    }
    Ok(Neighbors { k, indices, distances })
}

/// Writes the first k of `found`, pairs of (squared distance, column).
fn write(found: &[(f64, u32)], indices: &mut [u32], distances: &mut [f64]) {
    for ((index, distance), (d, j)) in indices.iter_mut().zip(distances).zip(found) {
        (*index, *distance) = (*j, d.sqrt());
    }
}

/// Rows of a block: whole panels, and enough tiles for every thread.
fn block_size(n: usize) -> usize {
    let tiles_across = (8.0 * rayon::current_num_threads() as f64).sqrt().ceil() as usize;
    let width = panel_width();
    n.div_ceil(tiles_across).min(BLOCK).div_ceil(width) * width
}

/// Rows in one partial sum of the mean, for any number of threads.
const MEAN_ROWS: usize = 256;

/// The mean of the rows, in f64.
///
/// # Errors
/// If a value is not finite, or its square is not.
pub(crate) fn mean<T: Coordinate>(op: &'static str, values: &[T], n: usize, dim: usize) -> Result<Vec<f64>> {
    let sum = |rows: &[T]| {
        let mut sums = vec![0.0; dim];
        let bad = rows.chunks_exact(dim).position(|row| !T::add(row, &mut sums));
        (sums, bad)
    };
    let parts: Vec<_> = values.par_chunks(MEAN_ROWS * dim).map(sum).collect();
    if let Some((part, row)) = parts.iter().enumerate().find_map(|(part, (_, bad))| Some((part, (*bad)?))) {
        let row = part * MEAN_ROWS + row;
        let finite = values[row * dim..][..dim].iter().all(|&v| v.into().is_finite());
        let wrong = if finite { "too large to be squared in f64" } else { "not finite" };
        return Err(Error::Value { op, message: format!("row {row} of the points has a value that is {wrong}") });
    }
    let mut mean = vec![0.0; dim];
    for (sums, _) in &parts {
        mean.iter_mut().zip(sums).for_each(|(mean, sum)| *mean += sum);
    }
    mean.iter_mut().for_each(|sum| *sum /= n as f64);
    Ok(mean)
}

impl Cloud {
    fn new<T: Coordinate>(op: &'static str, values: &[T], n: usize, dim: usize) -> Result<Self> {
        let mean = mean(op, values, n, dim)?;
        let extent = values.par_chunks(dim).map(|row| T::extent(row, &mean)).reduce(|| 0.0, f64::max);
        // A power of two does not round. The clamp keeps its square in range.
        let unit = if extent > 0.0 { 2f64.powi(-(extent.log2().ceil().clamp(-500.0, 500.0) as i32)) } else { 1.0 };
        let mut points = vec![0.0; n * dim];
        let norms: Vec<f64> = points
            .par_chunks_mut(dim)
            .zip(values.par_chunks(dim))
            .map(|(point, values)| T::center(values, &mean, unit, point))
            .collect();
        Ok(Self { points, norms, n, dim })
    }

    /// e: the largest |x' - b| / |x'| of all points, where b is x' in bf16.
    fn rounding_to_bf16(&self) -> f64 {
        let ratio = |(x, &norm): (&[f32], &f64)| if norm > 0.0 { rounding_error(x) / norm } else { 0.0 };
        let largest = self.points.par_chunks(self.dim).zip(&self.norms).map(ratio).reduce(|| 0.0, f64::max);
        // A margin for the rounding of the ratio.
        largest.sqrt() * (1.0 + 1e-6)
    }

    /// Bounds for products of factors that were rounded by `e` relative to their norm.
    fn bounds(&self, e: f64) -> Bounds {
        let c = (1.1 * self.dim as f64 + 24.0) * 2f64.powi(-24) * (1.0 + e) * (1.0 + e) + 2.0 * e + e * e;
        let underflow = UNDERFLOW * self.dim as f64;
        let lower = self.norms.iter().map(|norm| (norm * (1.0 - c) - underflow) as f32).collect();
        let width = self.norms.iter().map(|norm| (2.0 * (c * norm + underflow)) as f32).collect();
        Bounds { lower, width }
    }
}

/// One shortlist for each block of rows.
type Lists = Vec<Mutex<Shortlist>>;

/// Empty shortlists of rows with these widths.
fn empty_lists(width: &[f32], block: usize, k: usize) -> Lists {
    width.chunks(block).enumerate().map(|(b, width)| Mutex::new(Shortlist::new(b * block, width, k))).collect()
}

/// The shortlists without their locks. A panic ends the whole search, so poisoning is ignored.
fn unlocked(lists: Lists) -> Vec<Shortlist> {
    lists.into_iter().map(|list| list.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// The shortlists of all rows, one for each block of rows.
fn among_all(cloud: &Cloud, bounds: &Bounds, bf16: bool, k: usize, block: usize) -> Vec<Shortlist> {
    let n = cloud.n;
    let left = Rows::new(&cloud.points, cloud.dim, bf16);
    let right = left.as_columns();
    let block_rows = |b: usize| b * block..n.min((b + 1) * block);
    let lists = empty_lists(&bounds.width, block, k);
    let blocks = lists.len();
    // Tiles go along diagonals, so that tiles in progress at the same time rarely share a block.
    let tiles: Vec<(usize, usize)> = (0..blocks).flat_map(|d| (0..blocks - d).map(move |b| (b, b + d))).collect();
    tiles.into_par_iter().for_each(|(i, j)| {
        let (rows, columns) = (block_rows(i), block_rows(j));
        let mut products = Scratch::new(rows.len() * columns.len());
        let tile = ViewMut::new(&mut products, rows.len(), columns.len());
        cpu::block(tile, -2.0, &left, rows.clone(), &right, columns.clone());
        let mut list = lists[i].lock().unwrap_or_else(PoisonError::into_inner);
        keep_for_rows(
            &products,
            &bounds.lower[columns.clone()],
            &bounds.width[columns.clone()],
            columns.start,
            &mut list,
        );
        drop(list);
        if i != j {
            let mut list = lists[j].lock().unwrap_or_else(PoisonError::into_inner);
            keep_for_columns(
                &products,
                &bounds.lower[rows.clone()],
                &bounds.width[rows.clone()],
                rows.start,
                &mut list,
            );
        }
    });
    unlocked(lists)
}

/// The shortlists in f32 of the rows `wanted`, one for each block of them, and the size of a block.
fn shortlists_of_rows(cloud: &Cloud, bounds: &Bounds, wanted: &[usize], k: usize) -> (Vec<Shortlist>, usize) {
    let (n, dim) = (cloud.n, cloud.dim);
    let mut chosen = Scratch::new(wanted.len() * dim);
    for (to, &row) in chosen.chunks_exact_mut(dim).zip(wanted) {
        to.copy_from_slice(&cloud.points[row * dim..][..dim]);
    }
    let right = Packed::f32(View::new(&chosen, wanted.len(), dim).t());
    let left = Rows::new(&cloud.points, dim, false);
    let (block, high) = (panel_width() * BLOCK.div_ceil(panel_width()), n.div_ceil(4).min(BLOCK));
    let width: Vec<f32> = wanted.iter().map(|&row| bounds.width[row]).collect();
    let lists = empty_lists(&width, block, k);
    let tiles: Vec<(usize, usize)> =
        (0..lists.len()).flat_map(|j| (0..n).step_by(high).map(move |first| (first, j))).collect();
    tiles.into_par_iter().for_each(|(first, j)| {
        let rows = first..n.min(first + high);
        let columns = j * block..wanted.len().min((j + 1) * block);
        let mut products = Scratch::new(rows.len() * columns.len());
        let tile = ViewMut::new(&mut products, rows.len(), columns.len());
        cpu::block(tile, -2.0, &left, rows.clone(), &right, columns.clone());
        // A row is not its own neighbor.
        for (column, row) in wanted[columns.clone()].iter().enumerate().filter(|(_, row)| rows.contains(*row)) {
            products[(row - first) * columns.len() + column] = f32::INFINITY;
        }
        let mut list = lists[j].lock().unwrap_or_else(PoisonError::into_inner);
        keep_for_columns(&products, &bounds.lower[rows.clone()], &bounds.width[rows.clone()], first, &mut list);
    });
    (unlocked(lists), block)
}

/// The candidates of a row, which is row `i` of its shortlist, as pairs (squared distance, column) in ascending order;
/// None if there were too many.
fn resolve<T: Coordinate>(list: &Shortlist, i: usize, row: usize, values: &[T], dim: usize) -> Option<Vec<(f64, u32)>> {
    let columns: Vec<u32> = list.candidates(i)?.collect();
    let mut exact = vec![0.0; columns.len()];
    T::squared_distances(&values[row * dim..][..dim], values, &columns, &mut exact);
    let mut found: Vec<(f64, u32)> = exact.into_iter().zip(columns).collect();
    found.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    Some(found)
}

/// The k rows of `values` nearest to `x`, computed exactly over all rows but `row`.
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
            // Columns come in ascending order, so inserting behind equals keeps the lower index first.
            let place = found.partition_point(|f| f.0 <= d);
            found.insert(place, (d, j));
            found.truncate(k);
        }
    }
    found
}

vectorized! {
    /// |x - b|^2, where b is x in bf16.
    fn rounding_error(x: &[f32]) -> f64 {
        let error = |x: &f32| f64::from(x - f32::from_bits(u32::from(math::to_bf16(*x)) << 16));
        let (chunks, rest) = x.as_chunks::<16>();
        let mut lanes = [0.0; 16];
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += error(x) * error(x);
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|x| error(x) * error(x)).sum::<f64>()
    }
}
