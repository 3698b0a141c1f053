//! The p-value of a group, and the prior of the local dimension.

use statrs::function::gamma::digamma;

use super::{REACH, for_each_point};

/// The spacings from this order on tell the dimension of a place; those before may be of copies.
const FIRST: usize = 4;
/// The largest n0: a prior as sure as 400 spacings is as good as a known dimension.
const SUREST: f64 = 400.0;
/// The largest m.
const FURTHEST: usize = 13;
/// m - j where there is room for it.
const WIDTH: usize = 8;
/// Logarithm of a distance of 0.
const LN_ZERO: f64 = -690.0;

/// The neighbors that remain of every remaining point.
pub(super) struct Lists {
    /// The remaining points, as rows of the search.
    pub rows: Vec<u32>,
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
    pub fn new(distances: &[f64], indices: &[u32], k: usize, gone: &[bool], reach: usize) -> Self {
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

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The neighbors of a remaining point, as rows of the search.
    pub fn neighbors(&self, at: usize) -> &[u32] {
        &self.neighbors[at]
    }

    /// Where a row stands among the remaining points.
    pub fn place(&self, row: u32) -> usize {
        self.place[row as usize] as usize
    }

    /// sum over the orders from `from` up to, not including, `to` of l ln(R_(l+1) / R_l), orders counted from 1.
    fn spacings(&self, at: usize, from: usize, to: usize) -> f64 {
        let ln_r = &self.ln_distances[at];
        (from..to).map(|l| l as f64 * (ln_r[l] - ln_r[l - 1])).sum()
    }
}

/// Gamma(n0, beta): the distribution of the local dimension over the cloud.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prior {
    pub n0: f64,
    pub beta: f64,
}

impl Prior {
    /// Fits the prior by moments of the logarithm.
    ///
    /// A and B are sums of disjoint sets of a point's spacings, orders 4 to 9 and 10 to 15. Given the local dimension
    /// they are independent, so Cov(ln A, ln B) = Var(ln d) = trigamma(n0). With C = A + B of n spacings the mean of
    /// ln C is digamma(n) - digamma(n0) + ln beta. Both are taken robustly, from the shortest interval that holds 40
    /// % of the points, as copies are among the neighbors: Cov = (Var(ln A + ln B) - Var(ln A - ln B)) / 4.
    ///
    /// None where lists are too short or distances are tied, as on a grid.
    pub fn fit(lists: &Lists) -> Option<Self> {
        let (last, middle) = (lists.complete, (FIRST + lists.complete).div_ceil(2));
        if last < FIRST + 6 {
            return None;
        }
        let full: Vec<usize> = (0..lists.len()).filter(|&at| lists.ln_distances[at].len() >= last).collect();
        let of = |from, to| -> Vec<f64> { full.iter().map(|&at| lists.spacings(at, from, to)).collect() };
        let (near, far) = (of(FIRST, middle), of(middle, last));
        let tied = |sums: &[f64]| sums.iter().filter(|s| **s <= 1e-9).count() * 5 > sums.len();
        if full.len() < 10 || tied(&near) || tied(&far) {
            return None;
        }
        let ln = |combined: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            near.iter().zip(&far).map(|(a, b)| combined(a.max(1e-300), b.max(1e-300))).collect()
        };
        let sum = shortest_interval(ln(&|a, b| a.ln() + b.ln())).1;
        let difference = shortest_interval(ln(&|a, b| a.ln() - b.ln())).1;
        let center = shortest_interval(ln(&|a, b| (a + b).ln())).0;
        let n0 = inverse_trigamma((sum.powi(2) - difference.powi(2)) / 4.0);
        let beta = (center - digamma((last - FIRST) as f64) + digamma(n0)).exp();
        (beta.is_finite() && beta > 0.0).then_some(Self { n0, beta })
    }

    /// A dimension that few places are below: 1.5 standard deviations under the mean, on the log scale.
    pub fn low_dimension(&self) -> f64 {
        self.n0 / self.beta * (-1.5 * trigamma(self.n0).sqrt()).exp()
    }

    /// ln p of a point and its `order` nearest neighbors; None where too few neighbors are known. `factor` stretches
    /// the gaps (see [`Prior::centered`]).
    pub fn ln_p(&self, lists: &Lists, at: usize, order: usize, factor: f64) -> Option<f64> {
        let ln_r = &lists.ln_distances[at];
        let m = (order + WIDTH).min(FURTHEST).max(order + 3).min(ln_r.len());
        if m < order + 3 {
            return None;
        }
        let gap = factor * (ln_r[m - 1] - ln_r[order - 1]);
        let rate = lists.spacings(at, m, ln_r.len()) + self.beta;
        let n = (ln_r.len() - m) as f64 + self.n0;
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

    /// The factor on the gaps, from 0.4 to 1.25, with which 30 % of the points have p > 0.7 for their nearest
    /// neighbor. Curvature, noise and boundaries make the dimension at the 16th neighbor another than that at the
    /// first.
    pub fn centered(&self, lists: &Lists) -> f64 {
        const BULK: f64 = 0.7;
        let [mut low, mut high] = [0.4, 1.25];
        for _ in 0..12 {
            let factor = 0.5 * (low + high);
            let p = |at| self.ln_p(lists, at, 1, factor).unwrap_or(0.0);
            let above = for_each_point(lists.len(), |at| p(at) > BULK.ln()).into_iter().filter(|above| *above).count();
            if (above as f64) < (1.0 - BULK) * lists.len() as f64 { high = factor } else { low = factor }
        }
        0.5 * (low + high)
    }
}

/// Middle of the shortest interval that holds 40 % of the values, and the standard deviation of a normal distribution
/// whose central 40 % are as wide.
fn shortest_interval(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    let inside = (values.len() * 2) / 5;
    let starts = 0..values.len() - inside;
    let width = |start: usize| values[start + inside] - values[start];
    let start = starts.min_by(|a, b| width(*a).total_cmp(&width(*b))).unwrap_or(0);
    // The central 40 % of a standard normal distribution lie within 0.5244 of its mean.
    (0.5 * (values[start] + values[start + inside]), width(start) / 1.0488)
}

/// The second derivative of ln Gamma: recursion up to 6, then the asymptotic series.
fn trigamma(mut x: f64) -> f64 {
    let mut sum = 0.0;
    while x < 6.0 {
        sum += 1.0 / (x * x);
        x += 1.0;
    }
    let y = 1.0 / (x * x);
    sum + 1.0 / x + y * (0.5 + (1.0 / 6.0 - y * (1.0 / 30.0 - y / 42.0)) / x)
}

/// The x from 0.05 to [`SUREST`] with this trigamma, or the nearer end.
fn inverse_trigamma(value: f64) -> f64 {
    let [mut low, mut high] = [0.05, SUREST];
    if value <= trigamma(high) || !value.is_finite() {
        return high;
    }
    for _ in 0..60 {
        let x = 0.5 * (low + high);
        if trigamma(x) > value { low = x } else { high = x }
    }
    0.5 * (low + high)
}

const _: () = assert!(FURTHEST <= REACH && FIRST < REACH);

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use gelora_kernels::random::Stream;

    use super::*;

    /// Lists of a Poisson process whose local dimension is drawn from a Gamma distribution (Marsaglia and Tsang need
    /// no more than sums of exponentials here: n0 is whole).
    fn poisson(n: usize, n0: usize, mean: f64, seed: u64) -> Lists {
        let mut random = Stream::new(seed);
        let mut exponential = || -(1.0 - random.uniform()).ln();
        let (mut distances, mut indices) = (Vec::new(), Vec::new());
        for i in 0..n {
            let d = if n0 == 0 { mean } else { (0..n0).map(|_| exponential()).sum::<f64>() * mean / n0 as f64 };
            let mut volume = 0.0;
            for l in 1..=REACH {
                volume += exponential();
                distances.push(f64::powf(volume, 1.0 / d));
                indices.push(((i + l) % n) as u32);
            }
        }
        Lists::new(&distances, &indices, REACH, &vec![false; n], REACH)
    }

    #[test]
    fn trigamma_is_that_of_scipy() {
        // scipy.special.polygamma(1, x)
        for (x, want) in [(0.5, 4.934802200544679), (1.0, 1.6449340668482266), (12.0, 0.086_901_872_871_768_4)] {
            assert_relative_eq!(trigamma(x), want, max_relative = 1e-7);
            assert_relative_eq!(inverse_trigamma(want), x, max_relative = 1e-6);
        }
        assert_eq!((inverse_trigamma(-1.0), inverse_trigamma(0.0)), (SUREST, SUREST));
    }

    #[test]
    fn the_prior_finds_how_much_the_dimension_varies() {
        let same = Prior::fit(&poisson(4000, 0, 7.0, 1)).unwrap();
        assert!(same.n0 > 100.0 && (6.5..7.5).contains(&(same.n0 / same.beta)), "{same:?}");
        let varied = Prior::fit(&poisson(4000, 10, 7.0, 2)).unwrap();
        assert!((6.0..17.0).contains(&varied.n0) && (6.0..8.0).contains(&(varied.n0 / varied.beta)), "{varied:?}");
        let grid = Lists::new(&[1.0; 640], &[0; 640], REACH, &[false; 40], REACH);
        assert!(Prior::fit(&grid).is_none());
    }

    #[test]
    fn p_values_are_uniform_or_larger_in_a_poisson_process() {
        for (n0, order) in [(0, 1), (0, 2), (0, 9), (10, 1), (10, 4)] {
            let lists = poisson(8000, n0, 5.0, 3 + order as u64);
            let prior = Prior::fit(&lists).unwrap();
            for t in [0.5, 0.1, 0.02] {
                let below = (0..lists.len()).filter(|&at| prior.ln_p(&lists, at, order, 1.0).unwrap() < f64::ln(t));
                let share = below.count() as f64 / lists.len() as f64;
                // The mode of ln C, which the prior is centered at, is above its mean: p-values err on the large side.
                assert!((0.4..1.2).contains(&(share / t)), "n0 {n0}, order {order}: {share} below {t}");
            }
        }
    }

    #[test]
    fn a_pair_in_a_known_dimension_is_judged_by_its_ratio() {
        // Order 1 against the second of two: with a sure prior p is (R_1 / R_2)^d. With m = 4 of 4 it is 1 - (1 - v)^3.
        let list: [f64; 4] = [0.1, 1.0, 1.0, 1.0];
        let lists = Lists::new(&list.repeat(5), &[1, 2, 3, 4].repeat(5), 4, &[false; 5], 4);
        let prior = Prior { n0: 1e9, beta: 1e9 / 3.0 };
        let v = 0.1f64.powi(3);
        let want = 1.0 - (1.0 - v).powi(3);
        assert_relative_eq!(prior.ln_p(&lists, 0, 1, 1.0).unwrap().exp(), want, max_relative = 1e-6);
        assert!(prior.ln_p(&lists, 0, 2, 1.0).is_none());
    }
}
