//! Estimates that leave out a group of points each, and how much shared distances widen an interval.

use super::{GROUPS, Neighbourhood};
use crate::{Error, Estimator, Result, Summary, corr_dim, gride, local_pca, mle, ratios};
use crate::{two_nn_bayes, two_nn_fit, two_nn_mle, two_nn_trimmed};

impl Neighbourhood {
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

/// f of [`Neighbourhood::estimate`]; `nearest` gives every point's nearest neighbour.
pub(super) fn inflation(r1: &[f64], r2: &[f64], nearest: impl Fn(usize) -> u32) -> f64 {
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
