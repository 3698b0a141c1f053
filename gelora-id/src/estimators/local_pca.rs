//! Local principal component analysis, with the rule of Fukunaga and Olsen.
//!
//! l_1 >= l_2 >= .. are the eigenvalues of the covariance of a point's k nearest neighbors, without the point itself.
//! The estimate counts the eigenvalues above a share of the largest:
//!
//! ```text
//! d_i = #{ j : l_j > threshold l_1 }
//! d   = mean over i of d_i
//! ```
//!
//! The eigenvalues are computed from the Gram matrix (k, k) of the centered neighbors, whose size does not depend on D.
//! The count cannot exceed k - 1, so k must be well above the dimension.
//!
//! Interval: neighborhoods overlap, so the N counts are worth only m independent ones. m is found by packing: a pass
//! over the points takes each point whose neighborhood has no point in common with those taken before. The error of the
//! jackknife, which treats all N counts as independent, is multiplied by sqrt(N / m). That errs on the wide side.
//!
//! Source: K. Fukunaga, D. Olsen, "An algorithm for finding intrinsic dimensionality of data", IEEE Transactions on
//! Computers C-20 (1971). It agrees with the mean of `lPCA(ver="FO")` of scikit-dimension over neighborhoods.

use nalgebra::DMatrix;
use rayon::prelude::*;

use super::{Method, at_least};
use crate::{Error, Jackknife, Neighborhood, Result};

/// `local-pca`: eigenvalues of the covariance of neighborhoods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalPca {
    /// Number of neighbors, at least 2.
    pub k: usize,
    /// The share of the largest eigenvalue above which an eigenvalue counts, strictly between 0 and 1.
    pub threshold: f64,
}

impl LocalPca {
    /// 50 neighbors, and the threshold of scikit-dimension (`alphaFO`).
    pub const DEFAULT: Self = Self { k: 50, threshold: 0.05 };
}

impl Method for LocalPca {
    fn name(&self) -> &'static str {
        "local-pca"
    }

    fn neighbors(&self) -> usize {
        self.k.max(2)
    }

    fn check(&self) -> Result<()> {
        at_least(2, "k of local-pca", self.k)
    }

    fn jackknife(&self, cloud: &Neighborhood) -> Result<Jackknife> {
        jackknife(cloud, self.k, self.threshold)
    }
}

/// The ID, and the IDs without the counts of one group of points each.
fn jackknife(cloud: &Neighborhood, k: usize, threshold: f64) -> Result<Jackknife> {
    if !(threshold > 0.0 && threshold < 1.0) {
        return Err(Error::Option { name: "threshold", expected: "strictly between 0 and 1", got: threshold });
    }
    let (values, dim) = (cloud.points().to_vec_f64()?, cloud.points().cols());
    let count = |i: usize| {
        let rows: Vec<&[f64]> = cloud.indices_of(i)[..k].iter().map(|&j| &values[j as usize * dim..][..dim]).collect();
        eigenvalues_above(&rows, threshold) as f64
    };
    let counts: Vec<f64> = (0..cloud.len()).into_par_iter().map(count).collect();
    let mean = |gone: Option<u8>| {
        let stay = counts.iter().enumerate().filter(|(i, _)| Some(cloud.group_of(*i)) != gone);
        let (sum, n) = stay.fold((0.0, 0.0), |(sum, n), (_, count)| (sum + count, n + 1.0));
        sum / n
    };
    let without = cloud.present().into_iter().map(|g| mean(Some(g))).collect();
    let widening = (cloud.len() as f64 / disjoint(cloud, k) as f64).sqrt();
    Ok(Jackknife { value: mean(None), without, widening })
}

/// The number of eigenvalues of the rows' covariance above a share of the largest.
fn eigenvalues_above(rows: &[&[f64]], threshold: f64) -> usize {
    let (k, dim) = (rows.len(), rows[0].len());
    let mut centred = DMatrix::zeros(dim, k);
    for c in 0..dim {
        let mean = rows.iter().map(|row| row[c]).sum::<f64>() / k as f64;
        for (j, row) in rows.iter().enumerate() {
            centred[(c, j)] = row[c] - mean;
        }
    }
    let eigenvalues = centred.tr_mul(&centred).symmetric_eigenvalues();
    let largest = eigenvalues.max();
    eigenvalues.iter().filter(|l| **l > threshold * largest).count()
}

/// Number of neighborhoods without a common point that one pass over the points finds.
fn disjoint(cloud: &Neighborhood, k: usize) -> usize {
    let mut taken = vec![false; cloud.len()];
    let mut found = 0;
    for i in 0..cloud.len() {
        let own = &cloud.indices_of(i)[..k];
        if own.iter().all(|&j| !taken[j as usize]) {
            own.iter().for_each(|&j| taken[j as usize] = true);
            found += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_patch_has_its_dimension() {
        // A grid in a plane of three columns: two equal eigenvalues and one of 0.
        let rows: Vec<[f64; 3]> =
            (0..25).map(|i| (f64::from(i % 5), f64::from(i / 5))).map(|(x, y)| [x, y, x + y]).collect();
        let rows: Vec<&[f64]> = rows.iter().map(|r| &r[..]).collect();
        assert_eq!(eigenvalues_above(&rows, 0.05), 2);
        // Variances 1 : 0.04 with a threshold below and above.
        let thin: Vec<[f64; 2]> = (0..10).map(|i| [f64::from(i % 5), 0.2 * f64::from(i / 5) * 2.0]).collect();
        let thin: Vec<&[f64]> = thin.iter().map(|r| &r[..]).collect();
        assert_eq!((eigenvalues_above(&thin, 0.01), eigenvalues_above(&thin, 0.05)), (2, 1));
    }
}
