//! Every point's nearest neighbors: the search, and what it leaves out.

use std::collections::HashSet;

use gelora_kernels::random::Stream;
use gelora_kernels::{DType, Device, DeviceKind, Tensor, ops::pairwise};

use crate::{Error, GROUPS, NearCopies, Result, near_copies};

/// Number of neighbors kept beyond those that an estimator asks for, so that every point still has enough neighbors
/// when the jackknife leaves out a group.
const SPARE: usize = 6;

/// The most neighbors that the search on a GPU finds. More are searched for on the CPU.
const MOST_ON_GPU: usize = 16;

/// The most searches in a row. Each leaves out the near copies that the one before found: the new lists are complete
/// again, and may show more copies.
const SEARCHES: usize = 4;

/// The nearest neighbors of every point. One search serves every estimator that needs no more neighbors.
#[derive(Clone, Debug)]
pub struct Neighborhood {
    /// The points used, (N, D).
    points: Tensor,
    /// (N): the row of each point in the given matrix, ascending.
    rows: Vec<u32>,
    /// Number of rows given.
    given: usize,
    /// (N): the jackknife group of each point. It depends only on the point's row in the given matrix.
    groups: Vec<u8>,
    /// Number of neighbors of each point.
    k: usize,
    /// (N, k): distances to the neighbors, ascending.
    distances: Vec<f64>,
    /// (N, k): rows of the neighbors in `points`.
    indices: Vec<u32>,
    duplicates: usize,
    inflation: f64,
    /// (given): marks the rows left out as near copies, and rows identical to those. Empty if there are none.
    near_copy_marks: Vec<bool>,
    /// The same cloud with its near copies, if there were any.
    with_near_copies: Option<Box<Neighborhood>>,
}

impl Neighborhood {
    /// The neighbors that the default estimator needs. See [`Neighborhood::with_neighbors`].
    ///
    /// # Errors
    /// As [`Neighborhood::with_neighbors`].
    pub fn of(points: &Tensor) -> Result<Self> {
        Self::with_neighbors(points, 2)
    }

    /// At least `k` nearest neighbors of every distinct row of a matrix (n, D), on any device.
    ///
    /// Distances are Euclidean, sqrt(sum (x - y)^2), in f64 on the CPU and in f32 on a GPU. A GPU finds up to 16
    /// neighbors; more are found on the CPU. If there are fewer than k + 1 points, fewer neighbors are kept.
    ///
    /// Of identical rows (the same bits; -0.0 counts as 0.0) the first stays; the others are left out and counted.
    /// Leaving out all of them would remove that place from the cloud, and its neighbors would seem lonelier. Leaving
    /// all of them in would give r1 = r2 to every point beside a pair. After this, r1 = 0 occurs only if the square of
    /// a difference underflows: below about 1e-162 on the CPU, 1e-22 on a GPU. [`Neighborhood::estimate`] leaves out
    /// and counts such a point.
    ///
    /// Of near copies the first row stays, too ([`near_copies`] defines them). [`Neighborhood::keeping`] can keep all
    /// of them, and [`Neighborhood::with_near_copies`] is the cloud that still has them.
    ///
    /// # Errors
    /// If `points` is not a matrix, has a value that is not finite, has fewer than 3 distinct rows or only one, or if
    /// the device fails.
    pub fn with_neighbors(points: &Tensor, k: usize) -> Result<Self> {
        Self::keeping(points, k, NearCopies::Drop)
    }

    /// [`Neighborhood::with_neighbors`] with the choice to drop or keep near copies.
    ///
    /// # Errors
    /// As [`Neighborhood::with_neighbors`].
    pub fn keeping(points: &Tensor, k: usize, near_copies: NearCopies) -> Result<Self> {
        let n = matrix(points)?.0;
        let wanted = match near_copies {
            NearCopies::Drop => near_copies::SEARCHED,
            NearCopies::Keep => 0,
        };
        let all = Self::search(points, k, wanted, &vec![false; n])?;
        if near_copies == NearCopies::Keep {
            return Ok(all);
        }
        let mut gone = vec![false; n];
        let mut clean: Option<Self> = None;
        for _ in 0..SEARCHES {
            let cloud = clean.as_ref().unwrap_or(&all);
            let found = near_copies::find(&cloud.distances, &cloud.indices, cloud.k);
            let copies: Vec<u32> =
                cloud.rows.iter().zip(found).filter(|(_, gone)| *gone).map(|(row, _)| *row).collect();
            if copies.is_empty() || cloud.len() - copies.len() < 3 {
                break;
            }
            copies.iter().for_each(|&row| gone[row as usize] = true);
            // Else a row identical to a near copy would take its place.
            mark_identical(points, &mut gone)?;
            clean = Some(Self::search(points, k, wanted, &gone)?);
        }
        Ok(match clean {
            None => all,
            Some(clean) => {
                let duplicates = all.duplicates;
                Self { duplicates, near_copy_marks: gone, with_near_copies: Some(Box::new(all)), ..clean }
            }
        })
    }

    /// The neighbors of the rows that `gone` (n) does not mark. Near copies are not looked for. The jackknife group of
    /// a point depends only on its row in the given matrix, so replicates of clouds of the same examples can be paired
    /// whichever rows are marked.
    ///
    /// # Errors
    /// If the length of `gone` is not the number of rows; else as [`Neighborhood::with_neighbors`], for the rows that
    /// stay.
    pub fn without(points: &Tensor, k: usize, gone: &[bool]) -> Result<Self> {
        Self::search(points, k, 0, gone)
    }

    /// Finds at least `k` neighbors, and `wanted` neighbors if the device can find so many.
    fn search(points: &Tensor, k: usize, wanted: usize, gone: &[bool]) -> Result<Self> {
        let (n, columns) = matrix(points)?;
        if gone.len() != n {
            return Err(Error::Marks { rows: n, marks: gone.len() });
        }
        let values = points.to_vec_f64()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite { row: at / columns, column: at % columns, value: values[at] });
        }
        let rows = distinct_rows(&values, columns, gone);
        let staying = gone.iter().filter(|gone| !**gone).count();
        match rows.len() {
            1 if staying > 1 => return Err(Error::Identical { points: n }),
            distinct if distinct < 3 => return Err(Error::TooFew { distinct, points: n }),
            _ => {}
        }
        let searchable = matches!(points.dtype(), DType::F32 | DType::F64);
        let mut distinct =
            if rows.len() == n && searchable { points.clone() } else { take_rows(points, &values, &rows)? };
        drop(values);
        let needed = k.max(2);
        let mut k = (needed + SPARE).max(wanted).min(rows.len() - 1);
        if distinct.device().kind() != DeviceKind::Cpu && k > MOST_ON_GPU {
            if needed <= MOST_ON_GPU {
                k = MOST_ON_GPU;
            } else {
                distinct = distinct.to_device(&Device::Cpu)?;
            }
        }
        let found = pairwise::nearest(&distinct, k)?;
        let groups = groups(n);
        let mut cloud = Self {
            points: distinct,
            groups: rows.iter().map(|&row| groups[row as usize]).collect(),
            duplicates: staying - rows.len(),
            rows,
            given: n,
            k,
            distances: found.distances,
            indices: found.indices,
            inflation: 1.0,
            near_copy_marks: Vec::new(),
            with_near_copies: None,
        };
        cloud.inflation = inflation(&cloud.order(0), &cloud.order(1), |i| cloud.indices_of(i)[0]);
        Ok(cloud)
    }

    /// Number of points used, N: distinct, and without the near copies that were left out.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there are always at least 3")]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Number of known neighbors of each point.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// The points used, (N, D).
    #[must_use]
    pub fn points(&self) -> &Tensor {
        &self.points
    }

    /// Number of rows left out because an identical row stays.
    #[must_use]
    pub fn duplicates(&self) -> usize {
        self.duplicates
    }

    /// Number of points left out as near copies of a point that stays (see [`near_copies`]).
    #[must_use]
    pub fn near_copies(&self) -> usize {
        self.with_near_copies.as_ref().map_or(0, |all| all.len() - self.len())
    }

    /// The same cloud with its near copies; None if none were left out.
    #[must_use]
    pub fn with_near_copies(&self) -> Option<&Neighborhood> {
        self.with_near_copies.as_deref()
    }

    /// (n): marks the given rows that were left out as near copies, and rows identical to those. It is the argument
    /// `gone` of [`Neighborhood::without`].
    #[must_use]
    pub fn near_copy_marks(&self) -> Vec<bool> {
        if self.near_copy_marks.is_empty() { vec![false; self.given] } else { self.near_copy_marks.clone() }
    }

    /// Number of rows given.
    #[must_use]
    pub fn given(&self) -> usize {
        self.given
    }

    /// The row of each point in the given matrix, ascending.
    #[must_use]
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The factor, from 1 to 2, by which the variance of a mean of ln mu exceeds that of independent points: mutual
    /// nearest neighbors share r1 (see [`Neighborhood::estimate`]).
    #[must_use]
    pub fn inflation(&self) -> f64 {
        self.inflation
    }

    /// The distances of a point to its neighbors, ascending.
    ///
    /// # Panics
    /// If there is no such point.
    pub fn distances_of(&self, point: usize) -> &[f64] {
        &self.distances[point * self.k..][..self.k]
    }

    /// The neighbors of a point, nearest first, as rows of [`Neighborhood::points`].
    ///
    /// # Panics
    /// If there is no such point.
    pub fn indices_of(&self, point: usize) -> &[u32] {
        &self.indices[point * self.k..][..self.k]
    }

    /// The distance of every point to its neighbor of an order, counted from 0. None if `order` is not below
    /// [`Neighborhood::k`].
    #[must_use]
    pub fn column(&self, order: usize) -> Option<Vec<f64>> {
        (order < self.k).then(|| self.order(order))
    }

    /// [`Neighborhood::column`] of an order that is known.
    fn order(&self, order: usize) -> Vec<f64> {
        self.distances.iter().skip(order).step_by(self.k).copied().collect()
    }

    pub(crate) fn group_of(&self, point: usize) -> u8 {
        self.groups[point]
    }

    /// The groups that have at least one point.
    pub(crate) fn present(&self) -> Vec<u8> {
        (0..GROUPS as u8).filter(|g| self.groups.contains(g)).collect()
    }

    /// The distances of every point to its `needed` nearest neighbors, (n, needed), as if the group `without` were not
    /// there. A point with fewer known neighbors is left out.
    pub(crate) fn lists(&self, needed: usize, without: Option<u8>) -> Vec<f64> {
        let mut lists = Vec::with_capacity(self.len() * needed);
        for i in 0..self.len() {
            let Some(gone) = without else {
                lists.extend(&self.distances_of(i)[..needed]);
                continue;
            };
            if self.groups[i] == gone {
                continue;
            }
            let start = lists.len();
            let there = self.indices_of(i).iter().zip(self.distances_of(i));
            lists.extend(there.filter(|(j, _)| self.groups[**j as usize] != gone).take(needed).map(|(_, r)| r));
            if lists.len() - start < needed {
                lists.truncate(start);
            }
        }
        lists
    }
}

/// The factor f of [`Neighborhood::estimate`]. `nearest` gives the nearest neighbor of every point.
fn inflation(r1: &[f64], r2: &[f64], nearest: impl Fn(usize) -> u32) -> f64 {
    let x: Vec<f64> = r1.iter().zip(r2).map(|(r1, r2)| if *r1 > 0.0 { (r2 / r1).ln() } else { 0.0 }).collect();
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance: f64 = x.iter().map(|x| (x - mean).powi(2)).sum();
    let shared: f64 = (0..x.len())
        .map(|i| (i, nearest(i) as usize))
        .filter(|&(i, j)| nearest(j) as usize == i)
        .map(|(i, j)| (x[i] - mean) * (x[j] - mean))
        .sum();
    if variance > 0.0 { (1.0 + shared / variance).clamp(1.0, 2.0) } else { 1.0 }
}

/// A random group for each of n rows. Group sizes differ by at most 1, and the same n always gives the same groups.
fn groups(n: usize) -> Vec<u8> {
    let mut groups: Vec<u8> = (0..n).map(|i| (i % GROUPS) as u8).collect();
    Stream::at(0, &[0x6772_6f75, n as u64]).shuffle(&mut groups); // "grou"
    groups
}

/// The median; for an even number of values the mean of the two in the middle. NaN for none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n => 0.5 * (values[(n - 1) / 2] + values[n / 2]),
    }
}

/// n and D of a matrix.
fn matrix(points: &Tensor) -> Result<(usize, usize)> {
    match *points.shape() {
        [n, columns] => Ok((n, columns)),
        _ => Err(Error::Shape { got: points.shape().to_vec() }),
    }
}

/// The first of each set of identical rows, ascending, among the rows that are not gone.
fn distinct_rows(values: &[f64], columns: usize, gone: &[bool]) -> Vec<u32> {
    let bits = as_bits(values);
    let mut seen = HashSet::with_capacity(values.len() / columns);
    let rows = bits.chunks_exact(columns).enumerate().filter(|(row, _)| !gone[*row]);
    rows.filter(|(_, bits)| seen.insert(*bits)).map(|(row, _)| row as u32).collect()
}

/// Bits that are equal where the values are equal.
fn as_bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|v| (v + 0.0).to_bits()).collect() // -0.0 + 0.0 is 0.0
}

/// Marks every row that is identical to a marked one.
fn mark_identical(points: &Tensor, marks: &mut [bool]) -> Result<()> {
    let bits = as_bits(&points.to_vec_f64()?);
    let rows = || bits.chunks_exact(points.cols()).enumerate();
    let marked: HashSet<&[u64]> = rows().filter(|(row, _)| marks[*row]).map(|(_, bits)| bits).collect();
    rows().filter(|(_, bits)| marked.contains(bits)).for_each(|(row, _)| marks[row] = true);
    Ok(())
}

/// Some of the rows as a matrix that can be searched: f64 stays f64, every other type becomes f32.
fn take_rows(points: &Tensor, values: &[f64], rows: &[u32]) -> Result<Tensor> {
    let columns = points.cols();
    let taken = rows.iter().flat_map(|&row| &values[row as usize * columns..][..columns]).copied();
    let shape = [rows.len(), columns];
    Ok(match points.dtype() {
        DType::F64 => Tensor::from_f64(taken.collect(), shape)?,
        _ => Tensor::from_vec(taken.map(|v| v as f32).collect(), shape)?.to_device(points.device())?,
    })
}

#[cfg(test)]
mod tests;
