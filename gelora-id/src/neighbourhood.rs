mod replicates;

use std::collections::HashSet;

use gelora_kernels::random::Stream;
use gelora_kernels::{DType, Device, DeviceKind, Tensor, ops::pairwise};

use crate::{Error, Estimate, Estimator, NearCopies, Options, Result, near_copies, ratios};
use replicates::inflation;

/// Parts that the points are divided into at random for the jackknife, each left out once.
pub const GROUPS: usize = 40;

/// Neighbours that are kept beyond those an estimator asks for, so that every point still has enough of them when a
/// group of the jackknife is left out.
const SPARE: usize = 6;

/// The most neighbours that the search on a GPU finds; more are searched for on the CPU.
const MOST_ON_GPU: usize = 16;

/// Searches for near copies that follow one another: with copies gone the lists are complete again, and may show more.
const SEARCHES: usize = 4;

/// Every point's nearest neighbours: one search, from which any estimator can work that needs no more of them.
#[derive(Clone, Debug)]
pub struct Neighbourhood {
    /// The points used, (N, D).
    points: Tensor,
    /// (N): the row of each point among the given ones, ascending.
    rows: Vec<u32>,
    /// Number of rows given.
    given: usize,
    /// (N): the group of each point, which depends on its row among the given points only.
    groups: Vec<u8>,
    k: usize,
    /// (N, k)
    distances: Vec<f64>,
    /// (N, k)
    indices: Vec<u32>,
    duplicates: usize,
    inflation: f64,
    /// (given): the rows that were left out as near copies, with rows identical to them; empty if there are none.
    near_copy_marks: Vec<bool>,
    /// The same points with near copies, if there were any.
    with_near_copies: Option<Box<Neighbourhood>>,
}

impl Neighbourhood {
    /// The neighbours that the default estimator needs: see [`Neighbourhood::with_neighbours`].
    ///
    /// # Errors
    /// As [`Neighbourhood::with_neighbours`].
    pub fn of(points: &Tensor) -> Result<Self> {
        Self::with_neighbours(points, 2)
    }

    /// The neighbours that these estimators need.
    ///
    /// # Errors
    /// As [`Neighbourhood::with_neighbours`].
    pub fn for_estimators(points: &Tensor, estimators: &[Estimator]) -> Result<Self> {
        Self::with_neighbours(points, needed_by(estimators))
    }

    /// At least `k` nearest neighbours of every distinct row of a matrix (n, D), on any device. Distances are
    /// Euclidean, the root of sum (x - y)^2, in f64 on the CPU and in f32 on a GPU, which finds up to 16 neighbours;
    /// more are found on the CPU. Fewer than `k` are kept if there are fewer points.
    ///
    /// Of identical rows (bit by bit, -0.0 being 0.0) one copy stays; the others are left out and counted. Were all
    /// copies left out instead, that place would be missing from the cloud and its neighbours would seem lonelier; were
    /// they left in, a point beside a pair would find r1 = r2. After this r1 = 0 occurs only if a difference
    /// underflows when squared: below about 1e-162 on the CPU, 1e-22 on a GPU. Such a point is left out and counted
    /// by [`Neighbourhood::estimate`].
    ///
    /// Of near copies too the first row stays ([`near_copies`] says what they are); [`Neighbourhood::keeping`] keeps
    /// them, and [`Neighbourhood::with_near_copies`] is the cloud with them.
    ///
    /// # Errors
    /// If `points` is not a matrix, has a value that is not finite, has fewer than 3 distinct rows or only one, or if
    /// the device fails.
    pub fn with_neighbours(points: &Tensor, k: usize) -> Result<Self> {
        Self::keeping(points, k, NearCopies::Drop)
    }

    /// [`Neighbourhood::with_neighbours`] with a choice of what becomes of near copies.
    ///
    /// # Errors
    /// As [`Neighbourhood::with_neighbours`].
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
            // A further copy of such a row would take its place.
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

    /// The neighbours of the rows that are not marked in `gone`, (n); near copies are not looked for. A group of the
    /// jackknife depends on a row's place among the given ones, so that clouds of the same examples go together
    /// whatever is marked.
    ///
    /// # Errors
    /// If `gone` has another length than the matrix has rows; else as [`Neighbourhood::with_neighbours`], for the
    /// rows that stay.
    pub fn without(points: &Tensor, k: usize, gone: &[bool]) -> Result<Self> {
        Self::search(points, k, 0, gone)
    }

    /// `wanted` neighbours are searched for if that costs no change of the device, and at least `k`.
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
        let pairwise::Neighbors { distances, indices, .. } = pairwise::nearest(&distinct, k)?;
        let groups = groups(n);
        let mut cloud = Self {
            points: distinct,
            groups: rows.iter().map(|&row| groups[row as usize]).collect(),
            duplicates: staying - rows.len(),
            rows,
            given: n,
            k,
            distances,
            indices,
            inflation: 1.0,
            near_copy_marks: Vec::new(),
            with_near_copies: None,
        };
        cloud.inflation = inflation(&cloud.order(0), &cloud.order(1), |i| cloud.indices_of(i)[0]);
        Ok(cloud)
    }

    /// Number of points used, N: distinct, and without near copies where those were left out.
    #[expect(clippy::len_without_is_empty, reason = "there are always at least 3")]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Neighbours of each point that are known.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The points used, (N, D).
    pub fn points(&self) -> &Tensor {
        &self.points
    }

    /// Number of points that were left out as further copies of one that was kept.
    pub fn duplicates(&self) -> usize {
        self.duplicates
    }

    /// Number of points that were left out as near copies of one that was kept (see [`near_copies`]).
    pub fn near_copies(&self) -> usize {
        self.with_near_copies.as_ref().map_or(0, |all| all.len() - self.len())
    }

    /// The same cloud with its near copies; None if none were left out.
    pub fn with_near_copies(&self) -> Option<&Neighbourhood> {
        self.with_near_copies.as_deref()
    }

    /// (n): whether each of the given rows was left out as a near copy, or is identical to one that was: what
    /// [`Neighbourhood::without`] takes.
    pub fn near_copy_marks(&self) -> Vec<bool> {
        if self.near_copy_marks.is_empty() { vec![false; self.given] } else { self.near_copy_marks.clone() }
    }

    /// Number of rows given.
    pub fn given(&self) -> usize {
        self.given
    }

    /// The row of each point among the given ones, ascending.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// How many times larger the variance of a mean of ln mu is than if the points were independent, from 1 to 2:
    /// mutual nearest neighbours share r1 (see [`Neighbourhood::estimate`]).
    pub fn inflation(&self) -> f64 {
        self.inflation
    }

    /// The distances of a point to its neighbours, ascending.
    ///
    /// # Panics
    /// If there is no such point.
    pub fn distances_of(&self, point: usize) -> &[f64] {
        &self.distances[point * self.k..][..self.k]
    }

    /// The neighbours of a point, nearest first, as rows of [`Neighbourhood::points`].
    ///
    /// # Panics
    /// If there is no such point.
    pub fn indices_of(&self, point: usize) -> &[u32] {
        &self.indices[point * self.k..][..self.k]
    }

    /// Every point's distance to its neighbour of an order, counted from 0; None if so many are not known.
    pub fn column(&self, order: usize) -> Option<Vec<f64>> {
        (order < self.k).then(|| self.order(order))
    }

    /// [`Neighbourhood::column`] of an order that is known.
    fn order(&self, order: usize) -> Vec<f64> {
        self.distances.iter().skip(order).step_by(self.k).copied().collect()
    }

    pub(crate) fn group_of(&self, point: usize) -> u8 {
        self.groups[point]
    }

    /// The intrinsic dimension.
    ///
    /// Intervals of the TwoNN estimators are those of their formulas, which suppose independent ratios, widened.
    /// Points that are each other's nearest neighbour share r1, so their ratios rise and fall together; most points
    /// have such a partner. With x_i = ln mu_i, c_i = x_i - mean(x) and M the points whose nearest neighbour j(i) has
    /// them as its own, the variance of the mean is larger by f = 1 + sum over M of c_i c_j(i) / sum of c_i^2, and
    /// both ends of the interval move away from the ID by sqrt(f) on the log scale. Measured against 300 simulated
    /// clouds, f was 1.73 where the variance was 1.73 times the independent one (D = 2), and 1.62 for 1.62 (D = 5).
    ///
    /// Intervals of the other estimators are those of the jackknife: see [`Neighbourhood::replicates`].
    ///
    /// # Errors
    /// If an option is out of range or asks for more neighbours than are known; if fewer than 3 points have r1 > 0; if
    /// every ratio is 1.
    pub fn estimate(&self, options: &Options) -> Result<Estimate> {
        let estimate = self.estimate_alone(options)?;
        // Near copies may leave nothing to estimate from, which is no reason to have no estimate without them.
        let with = self.with_near_copies.as_ref().and_then(|all| all.estimate_alone(options).ok());
        Ok(Estimate { id_with_near_copies: with.map(|with| with.id), ..estimate })
    }

    /// [`Neighbourhood::estimate`] without the one of the cloud with near copies.
    pub(crate) fn estimate_alone(&self, options: &Options) -> Result<Estimate> {
        crate::check_confidence(options)?;
        let Options { estimator, confidence } = *options;
        let as_estimate = |id, interval, n| Estimate {
            estimator: estimator.to_string(),
            id,
            interval,
            confidence,
            n,
            duplicates: self.duplicates + self.len() - n,
            near_copies: self.near_copies(),
            id_with_near_copies: None,
        };
        if let Some((id, interval, n)) = self.two_nn(options)? {
            let interval = interval.map(|end| id * (end / id).powf(self.inflation.sqrt()));
            return Ok(as_estimate(id, interval, n));
        }
        let all = self.replicates(&estimator)?;
        let (id, interval) = (all.value, all.interval(confidence));
        Ok(as_estimate(id, interval, self.len()))
    }

    /// ID, interval by the formula and number of ratios of an estimator of the TwoNN family, None for others.
    fn two_nn(&self, options: &Options) -> Result<Option<(f64, [f64; 2], usize)>> {
        if options.estimator.neighbours() > 2 || !options.estimator.is_two_nn() {
            return Ok(None);
        }
        let ratios = ratios(&self.order(0), &self.order(1))?;
        let (id, interval) = crate::of_ratios(&ratios, options)?;
        Ok(Some((id, interval, ratios.ln_mu().len())))
    }
}

/// A group for each of n rows: as equal in size as can be, at random, always the same for the same n.
fn groups(n: usize) -> Vec<u8> {
    let mut groups: Vec<u8> = (0..n).map(|i| (i % GROUPS) as u8).collect();
    Stream::at(0, &[0x6772_6f75, n as u64]).shuffle(&mut groups); // "grou"
    groups
}

/// The median; of an even number of values the mean of the two in the middle. NaN of none.
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

/// The most neighbours that one of these estimators needs.
fn needed_by(estimators: &[Estimator]) -> usize {
    estimators.iter().map(Estimator::neighbours).max().unwrap_or(2)
}

/// The first row of each kind, ascending, among those that are not gone.
fn distinct_rows(values: &[f64], columns: usize, gone: &[bool]) -> Vec<u32> {
    let bits = as_bits(values);
    let mut seen = HashSet::with_capacity(values.len() / columns);
    let rows = bits.chunks_exact(columns).enumerate().filter(|(row, _)| !gone[*row]);
    rows.filter(|(_, bits)| seen.insert(*bits)).map(|(row, _)| row as u32).collect()
}

/// Bits that are equal where values are.
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

/// Some of the rows as a matrix in a type and on the device that can be searched: f64 stays f64, all else is f32.
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
