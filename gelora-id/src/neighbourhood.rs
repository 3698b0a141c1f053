use std::borrow::Cow;
use std::collections::HashSet;

use gelora_kernels::random::Stream;
use gelora_kernels::{DType, Device, DeviceKind, Tensor, ops::pairwise};

use crate::{Error, Estimate, Estimator, Options, Result, Summary, corr_dim, gride, local_pca, mle, ratios};
use crate::{two_nn_bayes, two_nn_fit, two_nn_mle, two_nn_trimmed};

/// Parts that the points are divided into at random for the jackknife, each left out once.
pub const GROUPS: usize = 40;

/// Neighbours that are kept beyond those an estimator asks for, so that every point still has enough of them when a group
/// of the jackknife is left out.
const SPARE: usize = 6;

/// The most neighbours that the search on a GPU finds; more are searched for on the CPU.
const MOST_ON_GPU: usize = 16;

/// Every point's nearest neighbours: one search, from which any estimator can work that needs no more of them.
#[derive(Clone, Debug)]
pub struct Neighbourhood {
    /// The distinct points, (N, D).
    points: Tensor,
    /// (N): the group of each point, which depends on its row among the given points only.
    groups: Vec<u8>,
    k: usize,
    /// (N, k)
    distances: Vec<f64>,
    /// (N, k)
    indices: Vec<u32>,
    duplicates: usize,
    inflation: f64,
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
        Self::with_neighbours(points, estimators.iter().map(Estimator::neighbours).max().unwrap_or(2))
    }

    /// At least `k` nearest neighbours of every distinct row of a matrix (n, D), on any device. Distances are Euclidean, the
    /// root of sum (x - y)^2, in f64 on the CPU and in f32 on a GPU, which finds up to 16 neighbours; more are found on
    /// the CPU. Fewer than `k` are kept if there are fewer points.
    ///
    /// Of identical rows (bit by bit, -0.0 being 0.0) one copy stays; the others are left out and counted. Were all
    /// copies left out instead, that place would be missing from the cloud and its neighbours would seem lonelier; were
    /// they left in, a point beside a pair would find r1 = r2. After this r1 = 0 occurs only if a difference
    /// underflows when squared: below about 1e-162 on the CPU, 1e-22 on a GPU. Such a point is left out and counted
    /// by [`Neighbourhood::estimate`].
    ///
    /// # Errors
    /// If `points` is not a matrix, has a value that is not finite, has fewer than 3 distinct rows or only one, or if the
    /// device fails.
    pub fn with_neighbours(points: &Tensor, k: usize) -> Result<Self> {
        let &[n, columns] = points.shape() else {
            return Err(Error::Shape { got: points.shape().to_vec() });
        };
        let values = points.to_vec_f64()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite { row: at / columns, column: at % columns, value: values[at] });
        }
        let rows = distinct_rows(&values, columns);
        match rows.len() {
            1 if n > 1 => return Err(Error::Identical { points: n }),
            distinct if distinct < 3 => return Err(Error::TooFew { distinct, points: n }),
            _ => {}
        }
        let searchable = matches!(points.dtype(), DType::F32 | DType::F64);
        let mut distinct = if rows.len() == n && searchable {
            Cow::Borrowed(points)
        } else {
            Cow::Owned(take_rows(points, &values, &rows)?)
        };
        drop(values);
        let mut k = (k.max(2) + SPARE).min(rows.len() - 1);
        if distinct.device().kind() != DeviceKind::Cpu {
            if k > MOST_ON_GPU && k - SPARE <= MOST_ON_GPU {
                k = MOST_ON_GPU;
            } else if k > MOST_ON_GPU {
                distinct = Cow::Owned(distinct.to_device(&Device::Cpu)?);
            }
        }
        let pairwise::Neighbours { distances, indices, .. } = pairwise::nearest(&distinct, k)?;
        let groups = groups(n);
        let mut cloud = Self {
            points: distinct.into_owned(),
            groups: rows.iter().map(|&row| groups[row]).collect(),
            k,
            distances,
            indices,
            duplicates: n - rows.len(),
            inflation: 1.0,
        };
        cloud.inflation = inflation(&cloud.column(0), &cloud.column(1), |i| cloud.indices_of(i)[0]);
        Ok(cloud)
    }

    /// Number of distinct points, N.
    #[expect(clippy::len_without_is_empty, reason = "there are always at least 3")]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Neighbours of each point that are known.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The distinct points, (N, D).
    pub fn points(&self) -> &Tensor {
        &self.points
    }

    /// Number of points that were left out as further copies of one that was kept.
    pub fn duplicates(&self) -> usize {
        self.duplicates
    }

    /// Number of points with a near-duplicate: those whose ln mu is above ln(100 N) / d, with d of `two-nn-trimmed`. In a cloud
    /// without near-duplicates one in a hundred such clouds would have a single such point. Their ratios dominate estimators that
    /// use all of them. 0 where there is no d.
    pub fn near_duplicates(&self) -> usize {
        let of = |ratios: crate::Ratios| -> Result<usize> {
            let d = two_nn_trimmed::id(&ratios, two_nn_trimmed::DISCARD)?;
            let far = (100.0 * self.len() as f64).ln() / d;
            Ok(ratios.ln_mu().iter().filter(|x| **x > far).count() + ratios.dropped())
        };
        ratios(&self.column(0), &self.column(1)).and_then(of).unwrap_or(0)
    }

    /// How many times larger the variance of a mean of ln mu is than if the points were independent, from 1 to 2: mutual
    /// nearest neighbours share r1 (see [`Neighbourhood::estimate`]).
    pub fn inflation(&self) -> f64 {
        self.inflation
    }

    /// The distances of a point to its neighbours, ascending.
    pub fn distances_of(&self, point: usize) -> &[f64] {
        &self.distances[point * self.k..][..self.k]
    }

    /// The neighbours of a point, nearest first, as rows of [`Neighbourhood::points`].
    pub fn indices_of(&self, point: usize) -> &[u32] {
        &self.indices[point * self.k..][..self.k]
    }

    /// Every point's distance to its neighbour of an order, counted from 0.
    pub fn column(&self, order: usize) -> Vec<f64> {
        self.distances.iter().skip(order).step_by(self.k).copied().collect()
    }

    pub(crate) fn group_of(&self, point: usize) -> u8 {
        self.groups[point]
    }

    /// The intrinsic dimension.
    ///
    /// Intervals of the TwoNN estimators are those of their formulas, which suppose independent ratios, widened. Points that
    /// are each other's nearest neighbour share r1, so their ratios rise and fall together; most points have such a
    /// partner. With x_i = ln mu_i, c_i = x_i - mean(x) and M the points whose nearest neighbour j(i) has them as
    /// its own, the variance of the mean is larger by f = 1 + sum over M of c_i c_j(i) / sum of c_i^2, and both ends of
    /// the interval move away from the ID by sqrt(f) on the log scale. Measured against 300 simulated clouds, f was 1.73
    /// where the variance was 1.73 times the independent one (D = 2), and 1.62 for 1.62 (D = 5).
    ///
    /// Intervals of the other estimators are those of the jackknife: see [`Neighbourhood::replicates`].
    ///
    /// # Errors
    /// If an option is out of range or asks for more neighbours than are known; if fewer than 3 points have r1 > 0; if
    /// every ratio is 1.
    pub fn estimate(&self, options: &Options) -> Result<Estimate> {
        crate::check_confidence(options)?;
        let Options { estimator, confidence } = *options;
        if let Some((id, interval, n)) = self.two_nn(options)? {
            let interval = interval.map(|end| id * (end / id).powf(self.inflation.sqrt()));
            let duplicates = self.duplicates + self.len() - n;
            return Ok(Estimate { estimator: estimator.to_string(), id, interval, confidence, n, duplicates });
        }
        let all = self.replicates(&estimator)?;
        let (id, interval) = (all.value, all.interval(confidence));
        let (n, duplicates) = (self.len(), self.duplicates);
        Ok(Estimate { estimator: estimator.to_string(), id, interval, confidence, n, duplicates })
    }

    /// ID, interval by the formula and number of ratios of an estimator of the TwoNN family, None for others.
    fn two_nn(&self, options: &Options) -> Result<Option<(f64, [f64; 2], usize)>> {
        if options.estimator.neighbours() > 2 || !options.estimator.is_two_nn() {
            return Ok(None);
        }
        let ratios = ratios(&self.column(0), &self.column(1))?;
        let (id, interval) = crate::of_ratios(&ratios, options)?;
        Ok(Some((id, interval, ratios.ln_mu().len())))
    }

    /// The estimate, and the [`GROUPS`] estimates that leave out one random group of points each, which tell how far it would
    /// scatter over other draws of the data: a delete-group jackknife. The group of a point depends on its row among the
    /// given points and on nothing else, so replicates of two clouds of the same examples go together, one by one.
    ///
    /// Of the TwoNN estimators the group's ratios are left out, while its points stay as neighbours, and the error is widened
    /// for shared distances as in [`Neighbourhood::estimate`]. Of the others the group's points are gone also as neighbours.
    /// That takes account of every dependence, and on average never understates the error (Efron and Stein 1981); it
    /// overstates it by up to half.
    ///
    /// Where so few points are left that there is no estimate, the replicate is missing; of fewer than two replicates the error
    /// is infinite.
    ///
    /// # Errors
    /// As [`Neighbourhood::estimate`].
    pub fn replicates(&self, estimator: &Estimator) -> Result<Summary> {
        estimator.check()?;
        let needed = estimator.neighbours();
        if needed > self.k {
            return Err(Error::Neighbours { estimator: estimator.to_string(), needed, points: self.len(), k: self.k });
        }
        let of_lists = |statistic: &dyn Fn(&[f64]) -> Result<f64>| -> Result<Summary> {
            let value = statistic(&self.lists(needed, None))?;
            let without = self.present().into_iter().filter_map(|g| statistic(&self.lists(needed, Some(g))).ok());
            Ok(Summary { value, without: without.collect(), widening: 1.0 })
        };
        let of_ratios = |estimator| -> Result<Summary> {
            let id = |gone: Option<u8>| {
                let stay = (0..self.len()).filter(|i| Some(self.groups[*i]) != gone).map(|i| self.distances_of(i));
                let (r1, r2): (Vec<f64>, Vec<f64>) = stay.map(|r| (r[0], r[1])).unzip();
                let ratios = ratios(&r1, &r2)?;
                match estimator {
                    Estimator::TwoNnFit { discard } => two_nn_fit::id(&ratios, discard),
                    Estimator::TwoNnTrimmed { discard } => two_nn_trimmed::id(&ratios, discard),
                    Estimator::TwoNnBayes { shape, rate } => two_nn_bayes::id(&ratios, shape, rate),
                    _ => two_nn_mle::id(&ratios),
                }
            };
            let without = self.present().into_iter().filter_map(|g| id(Some(g)).ok()).collect();
            Ok(Summary { value: id(None)?, without, widening: self.inflation.sqrt() })
        };
        match *estimator {
            Estimator::Gride { order } => of_lists(&|lists| gride::id(lists, order)),
            Estimator::Mle { k } => of_lists(&|lists| mle::id(lists, k)),
            Estimator::CorrDim { inner, outer } => corr_dim::replicates(self, inner, outer),
            Estimator::LocalPca { k, threshold } => local_pca::replicates(self, k, threshold),
            two_nn => of_ratios(two_nn),
        }
    }

    /// The groups that some point belongs to.
    pub(crate) fn present(&self) -> Vec<u8> {
        (0..GROUPS as u8).filter(|g| self.groups.contains(g)).collect()
    }

    /// The distances of every point to its `needed` nearest neighbours, (n, needed), as if a group were not there. A point
    /// of which fewer are known is left out.
    fn lists(&self, needed: usize, without: Option<u8>) -> Vec<f64> {
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

/// f of [`Neighbourhood::estimate`]; `nearest` gives every point's nearest neighbour.
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

/// The first row of each kind, ascending.
fn distinct_rows(values: &[f64], columns: usize) -> Vec<usize> {
    let bits: Vec<u64> = values.iter().map(|v| (v + 0.0).to_bits()).collect(); // -0.0 + 0.0 is 0.0
    let mut seen = HashSet::with_capacity(values.len() / columns);
    bits.chunks_exact(columns).enumerate().filter(|(_, row)| seen.insert(*row)).map(|(i, _)| i).collect()
}

/// Some of the rows as a matrix in a type and on the device that can be searched: f64 stays f64, all else is f32.
fn take_rows(points: &Tensor, values: &[f64], rows: &[usize]) -> Result<Tensor> {
    let columns = points.cols();
    let taken = rows.iter().flat_map(|&row| &values[row * columns..][..columns]).copied();
    let shape = [rows.len(), columns];
    Ok(match points.dtype() {
        DType::F64 => Tensor::from_f64(taken.collect(), shape)?,
        _ => Tensor::from_vec(taken.map(|v| v as f32).collect(), shape)?.to_device(points.device())?,
    })
}

#[cfg(test)]
mod tests;
