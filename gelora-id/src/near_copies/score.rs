//! The p-value of a group, and the local dimension that it depends on.

use super::{REACH, for_each_point};

/// First and last order of the spacings that measure the dimension of a place.
const SPACINGS: [usize; 2] = [2, 6];
/// Number of neighbors whose spacings are pooled.
const POOLED: usize = 12;
/// Standard deviation of the logarithm of a pooled dimension that is due to sampling alone.
const SAMPLING: f64 = 0.2;
/// The largest shift of the logarithm of a pooled dimension toward that of the whole cloud.
const LARGEST_SHIFT: f64 = 1.5 * SAMPLING;
/// For the test whether there are near copies: n0 in high dimension, and m - j.
const SAFE: (f64, usize) = (8.0, 4);
/// The same for the number of chance groups among many copies.
const LIKELY: (f64, usize) = (100.0, 8);
/// Logarithm of a distance of 0.
const LN_ZERO: f64 = -690.0;

/// The neighbors that remain of every remaining point.
pub(super) struct Lists {
    /// The remaining points, as rows of the search.
    pub(super) rows: Vec<u32>,
    /// Where a row stands in `rows`.
    place: Vec<u32>,
    /// Up to `reach` neighbors of each remaining point, nearest first, as rows of the search.
    neighbors: Vec<Vec<u32>>,
    /// Logarithms of their distances.
    ln_distances: Vec<Vec<f64>>,
    /// The neighbors of a complete list.
    complete: usize,
}

impl Lists {
    /// What remains of (n, k) lists without the rows that are gone.
    pub(super) fn new(distances: &[f64], indices: &[u32], k: usize, gone: &[bool], reach: usize) -> Self {
        let rows: Vec<u32> = (0..gone.len() as u32).filter(|&row| !gone[row as usize]).collect();
        let mut place = vec![u32::MAX; gone.len()];
        rows.iter().enumerate().for_each(|(at, &row)| place[row as usize] = at as u32);
        let list = |at: usize| -> (Vec<u32>, Vec<f64>) {
            let start = rows[at] as usize * k;
            let both = indices[start..start + k].iter().zip(&distances[start..start + k]);
            let stay = both.filter(|(j, _)| !gone[**j as usize]).take(reach);
            stay.map(|(&j, &r)| (j, r.ln().max(LN_ZERO))).unzip()
        };
        let (neighbors, ln_distances) = for_each_point(rows.len(), list).into_iter().unzip();
        let complete = reach.min(rows.len().saturating_sub(1));
        Self { rows, place, neighbors, ln_distances, complete }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The neighbors of a remaining point, as rows of the search.
    pub(super) fn neighbors(&self, at: usize) -> &[u32] {
        &self.neighbors[at]
    }

    /// Where a row stands among the remaining points.
    pub(super) fn place(&self, row: u32) -> usize {
        self.place[row as usize] as usize
    }

    /// sum over the orders from `from` up to, not including, `to` of l ln(R_(l+1) / R_l), orders counted from 1.
    fn spacings(&self, at: usize, from: usize, to: usize) -> f64 {
        let ln_r = &self.ln_distances[at];
        (from..to).map(|l| l as f64 * (ln_r[l] - ln_r[l - 1])).sum()
    }
}

/// The local dimension at every point, as a Gamma distribution.
#[derive(Clone, Debug)]
pub(super) struct Prior {
    /// Of each point the sum of its spacings of the orders [`SPACINGS`]; NaN where fewer neighbors are known.
    sums: Vec<f64>,
    /// Of each point the mean dimension, without the spacings of the point and its nearest neighbor.
    around: Vec<f64>,
    /// Logarithm of the median dimension of the cloud.
    ln_center: f64,
    /// Standard deviation of the logarithm of the dimension over the cloud.
    deviation: f64,
    /// The share of a deviation from the center that is taken to be sampling error.
    shrinkage: f64,
    /// See [`Prior::degrees`].
    base: f64,
    /// m - j: the gap of a group ends at the m-th neighbor.
    width: usize,
}

impl Prior {
    /// Measures the dimension at every point.
    ///
    /// The spacings of a point, of the orders 2 to 6, have a Gamma distribution with 5 degrees and the rate d. The
    /// dimension around a point is that of the median sum of its 12 nearest neighbors, which copies among them move
    /// little. It is shrunk toward the median of the cloud by the share of the variance over the cloud that sampling
    /// explains, but never by more than 1.5 standard deviations of the sampling error (limited translation): a part of
    /// the cloud with another dimension keeps its own.
    ///
    /// None where lists are too short or distances are tied, as on a grid.
    pub(super) fn fit(lists: &Lists) -> Option<Self> {
        let [first, last] = SPACINGS;
        if lists.complete <= last + 2 {
            return None;
        }
        let sum = |at: usize| match lists.ln_distances[at].len() > last {
            true => lists.spacings(at, first, last + 1),
            false => f64::NAN,
        };
        let sums = for_each_point(lists.len(), sum);
        if sums.iter().filter(|s| **s <= 1e-9).count() * 5 > sums.len() {
            return None;
        }
        let mut prior = Self {
            sums,
            around: Vec::new(),
            ln_center: 0.0,
            deviation: 0.0,
            shrinkage: 0.0,
            base: SAFE.0,
            width: SAFE.1,
        };
        let pooled = for_each_point(lists.len(), |at| prior.pooled(lists, at, 1));
        let mut logarithms: Vec<f64> = pooled.iter().map(|d| d.ln()).filter(|d| d.is_finite()).collect();
        logarithms.sort_unstable_by(f64::total_cmp);
        // The central 80 % of a normal distribution are 2.563 standard deviations wide.
        prior.deviation = (quantile(&logarithms, 0.9)? - quantile(&logarithms, 0.1)?) / 2.563;
        prior.ln_center = quantile(&logarithms, 0.5)?;
        prior.shrinkage = (SAMPLING / prior.deviation).powi(2).min(1.0);
        prior.around = pooled.into_iter().map(|d| prior.shrunk(d)).collect();
        Some(prior)
    }

    /// The dimension around a point from the neighbors beyond its group of `order` + 1 rows.
    fn pooled(&self, lists: &Lists, at: usize, order: usize) -> f64 {
        let around = lists.neighbors(at).get(order..).unwrap_or_default().iter().take(POOLED);
        let mut sums: Vec<f64> = around.map(|&row| self.sums[lists.place(row)]).filter(|s| !s.is_nan()).collect();
        if sums.is_empty() {
            return f64::NAN;
        }
        sums.sort_unstable_by(f64::total_cmp);
        // The median of Gamma(k, rate d) is about (k - 1/3) / d.
        let degrees = (SPACINGS[1] + 1 - SPACINGS[0]) as f64;
        (degrees - 1.0 / 3.0) / super::middle(&sums).max(1e-9)
    }

    /// A pooled dimension without the part of its deviation that is taken to be sampling error.
    fn shrunk(&self, d: f64) -> f64 {
        let shift = self.shrinkage * (d.ln() - self.ln_center);
        (d.ln() - shift.clamp(-LARGEST_SHIFT, LARGEST_SHIFT)).exp()
    }

    /// The same local dimensions with less doubt: for how many groups are likely to be chance, where the safe answer
    /// to whether any are copies is known. None if the dimension varies over the cloud by more than sampling explains.
    pub(super) fn likely(&self) -> Option<Self> {
        let even = self.deviation < LARGEST_SHIFT;
        even.then(|| Self { base: LIKELY.0, width: LIKELY.1, ..self.clone() })
    }

    /// n0: how sure a local dimension d is, as a number of spacings.
    ///
    /// A folded surface has pairs of points on one sheet, where the dimension is lower than that of the neighborhood,
    /// so the tail of p must be heavy. The lower d is, the less room there is for that: no sheet has less than one
    /// dimension.
    fn degrees(&self, d: f64) -> f64 {
        self.base + 200.0 / (d * d)
    }

    /// A dimension that few places are below: the lowest tenth.
    pub(super) fn low_dimension(&self) -> f64 {
        let mut all: Vec<f64> = self.around.iter().copied().filter(|d| d.is_finite()).collect();
        all.sort_unstable_by(f64::total_cmp);
        quantile(&all, 0.1).unwrap_or(1.0)
    }

    /// ln p of a point and its `order` nearest neighbors; None where too few neighbors are known. `factor` stretches
    /// the gaps (see [`Prior::centered`]).
    pub(super) fn ln_p(&self, lists: &Lists, at: usize, order: usize, factor: f64) -> Option<f64> {
        let ln_r = &lists.ln_distances[at];
        let m = (order + self.width).min(ln_r.len());
        if m < order + 3 {
            return None;
        }
        let d = if order == 1 { self.around[at] } else { self.shrunk(self.pooled(lists, at, order)) };
        if !d.is_finite() {
            return None;
        }
        let gap = factor * (ln_r[m - 1] - ln_r[order - 1]);
        let n = self.degrees(d);
        let rate = n / d;
        let ln_term = |power: usize| -n * (power as f64 * gap / rate).ln_1p();
        let (first, width) = (ln_term(order), m - order);
        let mut sum = 0.0;
        // C(width - 1, i) and 1 / Beta(order, width) = width C(m - 1, width), by recursion.
        let mut binomial = 1.0;
        for i in 0..width {
            let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
            sum += sign * binomial / (order + i) as f64 * (ln_term(order + i) - first).exp();
            binomial *= (width - 1 - i) as f64 / (i + 1) as f64;
        }
        let inverse_beta = (1..=width).fold(width as f64, |product, i| product * (order - 1 + i) as f64 / i as f64);
        Some((first + (sum * inverse_beta).max(1e-12).ln()).min(0.0))
    }

    /// The factor on the gaps, from 0.4 to 1.25, with which a third of the points with p > 0.4 have p > 0.8 for their
    /// nearest neighbor, as uniform p-values have. Curvature, noise and boundaries change the dimension with the scale.
    /// Copies have small p-values and do not count here.
    pub(super) fn centered(&self, lists: &Lists) -> f64 {
        let [mut low, mut high] = [0.4, 1.25];
        for _ in 0..12 {
            let factor = 0.5 * (low + high);
            let ln_p = for_each_point(lists.len(), |at| self.ln_p(lists, at, 1, factor).unwrap_or(f64::MIN));
            let above = |p: f64| ln_p.iter().filter(|ln_p| **ln_p > p.ln()).count();
            if 3 * above(0.8) < above(0.4) { high = factor } else { low = factor }
        }
        0.5 * (low + high)
    }
}

/// A quantile of sorted values; None of none.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    sorted.get(((q * sorted.len() as f64) as usize).min(sorted.len().saturating_sub(1))).copied()
}

const _: () = assert!(SPACINGS[1] + 2 < REACH);

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use gelora_kernels::random::Stream;

    use super::*;

    /// Lists of n points in 40 places of n / 40 points each: in each place a Poisson process of its own dimension.
    fn poisson(n: usize, dimension: impl Fn(usize) -> f64, seed: u64) -> Lists {
        let mut random = Stream::new(seed);
        let (size, mut distances, mut indices) = (n / 40, Vec::new(), Vec::new());
        for i in 0..n {
            let (place, mut volume) = (i / size, 0.0);
            for l in 1..=REACH {
                volume -= (1.0 - random.uniform()).ln();
                distances.push(f64::powf(volume, 1.0 / dimension(place)));
                indices.push((place * size + (i + l) % size) as u32);
            }
        }
        Lists::new(&distances, &indices, REACH, &vec![false; n], REACH)
    }

    #[test]
    fn every_place_has_its_dimension() {
        let same = Prior::fit(&poisson(4000, |_| 7.0, 1)).unwrap();
        assert!(same.around.iter().all(|d| (4.0..12.0).contains(d)), "{:?}", same.around);
        let lists = poisson(4000, |place| if place < 4 { 2.0 } else { 20.0 }, 2);
        let mixed = Prior::fit(&lists).unwrap();
        let middle = |places: &[f64]| {
            let mut all = places.to_vec();
            all.sort_by(f64::total_cmp);
            super::super::middle(&all)
        };
        let (low, high) = (middle(&mixed.around[..400]), middle(&mixed.around[400..]));
        assert!((1.7..3.0).contains(&low) && (18.0..22.0).contains(&high), "{low} {high}");
        assert!((2.0..20.0).contains(&mixed.low_dimension()));
        let grid = Lists::new(&[1.0; 640], &[0; 640], REACH, &[false; 40], REACH);
        assert!(Prior::fit(&grid).is_none());
    }

    #[test]
    fn p_values_are_uniform_or_larger_in_a_poisson_process() {
        for (d, order) in [(1.0, 1), (2.0, 1), (5.0, 1), (5.0, 2), (5.0, 9), (20.0, 1), (20.0, 4)] {
            let lists = poisson(8000, |_| d, 3 + order as u64);
            let prior = Prior::fit(&lists).unwrap();
            for t in [0.5, 0.1, 0.02, 0.004] {
                let below = (0..lists.len()).filter(|&at| prior.ln_p(&lists, at, order, 1.0).unwrap() < f64::ln(t));
                let share = below.count() as f64 / lists.len() as f64;
                assert!(share / t < 1.25, "d {d}, order {order}: {share} below {t}");
            }
        }
    }

    #[test]
    fn a_pair_in_a_known_dimension_is_judged_by_its_ratio() {
        // With m = 5 of 5, p is the probability that the smallest of 4 uniform numbers is below v = (R_1 / R_5)^d.
        let list: [f64; 9] = [0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let lists = Lists::new(&list.repeat(10), &[1, 2, 3, 4, 5, 6, 7, 8, 9].repeat(10), 9, &[false; 10], 9);
        let d = 0.01; // so low that the distribution of d is a point
        let prior = Prior {
            sums: vec![1.0; 10],
            around: vec![d; 10],
            ln_center: 0.0,
            deviation: 0.0,
            shrinkage: 0.0,
            base: SAFE.0,
            width: SAFE.1,
        };
        let v = 0.1f64.powf(d);
        let want = 1.0 - (1.0 - v).powi(4);
        assert_relative_eq!(prior.ln_p(&lists, 0, 1, 1.0).unwrap().exp(), want, max_relative = 1e-3);
        assert!(prior.ln_p(&lists, 0, 7, 1.0).is_none());
    }
}
