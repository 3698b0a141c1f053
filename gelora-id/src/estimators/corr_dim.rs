//! The correlation dimension of Grassberger and Procaccia, between two radii.
//!
//! C(r), the fraction of pairs of points nearer than r, grows as r^d:
//!
//! ```text
//! d = ln(C(r2) / C(r1)) / ln(r2 / r1)
//! ```
//!
//! r1 and r2 are the medians over all points of the distances to the neighbors of two orders, 10 and 20 by default. All
//! pairs are counted, block by block, with O(N^2 D) work and O(N D) memory. Distances are computed in f32; a pair whose
//! distance is within rounding of a radius is computed again in f64.
//!
//! Source: P. Grassberger, I. Procaccia, "Measuring the strangeness of strange attractors", Physica D 9 (1983). It
//! agrees with `CorrInt` of scikit-dimension.

use gelora_kernels::{Tensor, ops::pairwise};

use super::{Method, at_least};
use crate::neighborhood::median;
use crate::{Error, GROUPS, Jackknife, Neighborhood, Result};

/// `corr-dim`: the correlation dimension between two radii.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CorrDim {
    /// Order of the neighbor that gives the inner radius, at least 1.
    pub inner: usize,
    /// Order of the neighbor that gives the outer radius, above the inner.
    pub outer: usize,
}

impl CorrDim {
    /// The orders of scikit-dimension.
    pub const DEFAULT: Self = Self { inner: 10, outer: 20 };
}

impl Method for CorrDim {
    fn name(&self) -> &'static str {
        "corr-dim"
    }

    fn neighbors(&self) -> usize {
        self.inner.max(self.outer).max(2)
    }

    fn check(&self) -> Result<()> {
        at_least(1, "the inner order of corr-dim", self.inner)
    }

    fn jackknife(&self, cloud: &Neighborhood) -> Result<Jackknife> {
        jackknife(cloud, self.inner, self.outer)
    }
}

/// Rows and columns of a block of distances.
const BLOCK: usize = 1024;

/// The ID, and the IDs without one group of points each, at the same radii.
fn jackknife(cloud: &Neighborhood, inner: usize, outer: usize) -> Result<Jackknife> {
    if inner >= outer {
        return Err(Error::Option {
            name: "the inner order of corr-dim",
            expected: "at least 1 and below the outer one",
            got: inner as f64,
        });
    }
    let radius = |order: usize| -> Result<f64> {
        let missing =
            || Error::Neighbors { estimator: "corr-dim".into(), needed: order, points: cloud.len(), k: cloud.k() };
        Ok(median(order.checked_sub(1).and_then(|at| cloud.column(at)).ok_or_else(missing)?))
    };
    let radii = [radius(inner)?, radius(outer)?];
    if radii[0] <= 0.0 || radii[0] == radii[1] {
        return Err(Error::AllRatiosOne { n: cloud.len() });
    }
    let counts = count(cloud, radii)?;
    let of = |pairs: [u64; 2]| (pairs[1] as f64 / pairs[0] as f64).ln() / (radii[1] / radii[0]).ln();
    let without = cloud.present().into_iter().map(|g| of([0, 1].map(|r| counts.without(r, g as usize))));
    let value = of(counts.all);
    let without: Vec<f64> = without.collect();
    if !(value.is_finite() && value > 0.0 && without.iter().all(|v| v.is_finite() && *v > 0.0)) {
        return Err(Error::AllRatiosOne { n: cloud.len() });
    }
    Ok(Jackknife { value, without, widening: 1.0 })
}

/// Numbers of pairs nearer than each of two radii: of all pairs, and of the pairs with a point in each group.
struct Counts {
    all: [u64; 2],
    touching: [[u64; GROUPS]; 2],
}

impl Counts {
    fn without(&self, radius: usize, group: usize) -> u64 {
        self.all[radius] - self.touching[radius][group]
    }
}

/// Counts every pair once.
fn count(cloud: &Neighborhood, radii: [f64; 2]) -> Result<Counts> {
    let (n, dim) = (cloud.len(), cloud.points().cols());
    let device = cloud.points().device();
    let values = cloud.points().to_vec_f64()?;
    // f32 loses least near the origin.
    let centred = pairwise::centered(cloud.points())?;
    let centred = centred.as_slice()?;
    let block = |start: usize| -> Result<Tensor> {
        let end = (start + BLOCK).min(n);
        Ok(Tensor::from_vec(centred[start * dim..end * dim].to_vec(), [end - start, dim])?.to_device(device)?)
    };
    // Bound on the rounding of a squared distance in f32: a sum of D terms, and points rounded relative to the extent.
    let extent = centred.iter().fold(0.0f64, |most, v| most.max(f64::from(v.abs())));
    let unit = f64::from(f32::EPSILON);
    let doubt = |r2: f64| unit * (dim as f64 + 8.0) * r2 + 8.0 * unit * extent * (dim as f64 * r2).sqrt();
    let squared = radii.map(|r| r * r);
    let bounds = squared.map(|r2| [(r2 - doubt(r2)) as f32, (r2 + doubt(r2)) as f32]);
    let exact = |i: usize, j: usize| -> f64 {
        let (x, y) = (&values[i * dim..][..dim], &values[j * dim..][..dim]);
        x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum()
    };
    let mut counts = Counts { all: [0; 2], touching: [[0; GROUPS]; 2] };
    for top in (0..n).step_by(BLOCK) {
        let rows = block(top)?;
        for left in (top..n).step_by(BLOCK) {
            let columns = if left == top { rows.clone() } else { block(left)? };
            let distances = pairwise::distances(&rows, &columns, true)?.to_vec()?;
            let width = columns.rows();
            for (i, row) in distances.chunks_exact(width).enumerate().map(|(i, row)| (top + i, row)) {
                for (j, &d) in row.iter().enumerate().map(|(j, d)| (left + j, d)) {
                    if d > bounds[1][1] || j <= i {
                        continue;
                    }
                    for (r, [sure, maybe]) in bounds.into_iter().enumerate() {
                        if d < sure || (d <= maybe && exact(i, j) < squared[r]) {
                            counts.all[r] += 1;
                            let (a, b) = (cloud.group_of(i) as usize, cloud.group_of(j) as usize);
                            counts.touching[r][a] += 1;
                            counts.touching[r][b] += u64::from(a != b);
                        }
                    }
                }
            }
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use gelora_kernels::random::Stream;

    use super::*;

    #[test]
    fn pairs_are_those_of_brute_force() -> Result<()> {
        let (n, dim) = (BLOCK + 70, 3);
        let mut random = Stream::new(8);
        let values: Vec<f64> = (0..n * dim).map(|_| random.normal() + 30.0).collect();
        let cloud = Neighborhood::with_neighbors(&Tensor::from_f64(values.clone(), [n, dim])?, 20)?;
        let radii = [9, 19].map(|order| median(cloud.column(order).expect("20 neighbors")));
        let (mut all, mut without_7) = ([0; 2], [0; 2]);
        for i in 0..n {
            for j in 0..i {
                let squared: f64 = (0..dim).map(|c| (values[i * dim + c] - values[j * dim + c]).powi(2)).sum();
                for r in 0..2 {
                    let near = u64::from(squared.sqrt() < radii[r]);
                    all[r] += near;
                    without_7[r] += near * u64::from(cloud.group_of(i) != 7 && cloud.group_of(j) != 7);
                }
            }
        }
        let counts = count(&cloud, radii)?;
        assert_eq!((counts.all, [0, 1].map(|r| counts.without(r, 7))), (all, without_7));
        Ok(())
    }

    #[test]
    fn orders_are_checked() -> Result<()> {
        let line = Tensor::from_f64((0..40).map(|i| f64::from(i * i)).collect(), [40, 1])?;
        let cloud = Neighborhood::with_neighbors(&line, 20)?;
        assert!(jackknife(&cloud, 20, 20).unwrap_err().to_string().contains("below the outer one"));
        Ok(())
    }
}
