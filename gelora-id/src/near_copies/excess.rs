//! Whether there are more closed groups than a smooth cloud has, and which of them are chance.

use super::score::{Lists, Prior};
use super::{ORDERS, for_each_point};

/// The false-positive rate of a cloud.
const ALPHA: f64 = 0.01;
/// Levels of the p-value that are tested: 1/2, 1/4, .. 2^-40.
const LEVELS: usize = 40;
/// Bins of -log2 p; the last one holds everything beyond.
const BINS: usize = 61;
/// Excess as a factor, below which it is not looked at.
const FACTOR: f64 = 1.2;
/// The same, and the tail probability, where an excess of this order was proved before.
const AGAIN: [f64; 2] = [1.02, 0.3];
/// The share of all points from which an excess is thinned and not only its sure part left out.
const MATERIAL: f64 = 0.03;
/// The local false discovery rate of the sure part.
const SURE: f64 = 0.05;

/// An excess of groups.
pub(super) struct Finding {
    /// j: groups of j + 1 rows.
    pub(super) order: usize,
    /// Logarithm of the tail probability.
    ln_tail: f64,
    /// Whether the excess is [`MATERIAL`].
    pub(super) material: bool,
    /// Rows of each group, ascending, and the probability that it is chance and stays.
    pub(super) groups: Vec<(Vec<u32>, f64)>,
}

/// The closed groups of a cloud.
pub(super) struct Scan<'a> {
    lists: &'a Lists,
    proved: &'a [bool],
    /// Of each order the closed groups, each once.
    closed: Vec<Vec<Vec<u32>>>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(lists: &'a Lists, proved: &'a [bool]) -> Self {
        let closed = (1..=ORDERS).map(|order| closed_groups(lists, order)).collect();
        Self { lists, proved, closed }
    }

    /// The order with the most significant excess of groups that are to be left out.
    pub(super) fn most_significant(&self, prior: &Prior, factor: f64, material: bool) -> Option<Finding> {
        let found = (1..=ORDERS).filter_map(|order| self.excess(prior, order, factor, material));
        found.min_by(|a, b| a.ln_tail.total_cmp(&b.ln_tail))
    }

    fn excess(&self, prior: &Prior, order: usize, factor: f64, material: bool) -> Option<Finding> {
        let groups = &self.closed[order - 1];
        if groups.is_empty() {
            return None;
        }
        let bin = |row: &u32| {
            let ln_p = prior.ln_p(self.lists, self.lists.place(*row), order, factor).unwrap_or(0.0);
            ((-ln_p / std::f64::consts::LN_2) as usize).min(BINS - 1)
        };
        let bins: Vec<Vec<usize>> = for_each_point(groups.len(), |g| groups[g].iter().map(bin).collect());
        let mut counted = [0.0; BINS];
        bins.iter().flatten().for_each(|&bin| counted[bin] += 1.0);
        let n = self.lists.len() as f64;
        let dimension = prior.low_dimension();
        let expected: [f64; BINS] =
            std::array::from_fn(|bin| n * 0.5f64.powi(bin as i32 + 1) * closed_share(order, dimension, bin));
        let (least, tail) = match self.proved[order] {
            true => (AGAIN[0], AGAIN[1].ln()),
            false => (FACTOR, (ALPHA / (ORDERS * LEVELS) as f64).ln()),
        };
        // The points of a group stand or fall together, so it is groups that are Poisson distributed.
        let size = (order + 1) as f64;
        let mut first = None;
        let mut ln_tail = 0.0f64;
        for level in 1..=LEVELS {
            let [c, e] = [&counted, &expected].map(|bins| bins[level..].iter().sum::<f64>());
            let ln = ln_poisson_tail(c / size, e / size);
            if c > least * e && ln < tail {
                first = first.or(Some((level, c - e)));
                ln_tail = ln_tail.min(ln);
            }
        }
        let (level, more) = first?;
        let material = material || more >= MATERIAL * n;
        let chance = chance_rates(&counted, &expected, level);
        let stays = |bins: &Vec<usize>| {
            let rate = bins.iter().map(|&bin| chance[bin]).sum::<f64>() / bins.len() as f64;
            match (material, rate <= SURE) {
                (true, _) => rate,
                (false, true) => 0.0,
                (false, false) => 1.0,
            }
        };
        let groups: Vec<_> = groups.iter().zip(&bins).map(|(group, bins)| (group.clone(), stays(bins))).collect();
        groups.iter().any(|(_, stays)| *stays < 1.0).then_some(Finding { order, ln_tail, material, groups })
    }
}

/// The groups of `order` + 1 points of which each has all the others as its nearest neighbors.
fn closed_groups(lists: &Lists, order: usize) -> Vec<Vec<u32>> {
    let group = |at: usize| -> Option<Vec<u32>> {
        let mut rows = lists.neighbors(at).get(..order)?.to_vec();
        rows.push(lists.rows[at]);
        rows.sort_unstable();
        Some(rows)
    };
    let groups = for_each_point(lists.len(), group);
    let closed = |at: &usize| {
        let Some(own) = &groups[*at] else { return false };
        // Each group once: as that of its first row.
        own[0] == lists.rows[*at] && own[1..].iter().all(|&row| groups[lists.place(row)].as_ref() == Some(own))
    };
    (0..lists.len()).filter(closed).filter_map(|at| groups[at].clone()).collect()
}

/// Shares of closed groups among all at -log2 p of 0 to 1, 1 to 2, .. for the orders 1 to 4, of a Poisson process in
/// the plane.
const PLANE: [[f64; 10]; 4] = [
    [0.37, 0.80, 0.91, 0.97, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    [0.05, 0.19, 0.38, 0.54, 0.69, 0.75, 0.86, 0.86, 0.89, 0.90],
    [0.01, 0.03, 0.08, 0.15, 0.24, 0.35, 0.46, 0.55, 0.57, 0.72],
    [0.002, 0.005, 0.01, 0.02, 0.05, 0.09, 0.13, 0.22, 0.30, 0.50],
];

/// An upper bound on the share of closed groups of a Poisson process.
///
/// A group is closed if the gap around it is wide enough, so what counts is the gap's logarithm, which is -log2 p /
/// (j d): the table of the plane is stretched by d / 2, and by j / 4 beyond order 4. Pairs do not depend on d.
/// Simulated for d = 1, 2, 3, 5, 8, 20 and orders up to 10, the share was at most 1.4 times this on a line, and below
/// it from the plane on.
fn closed_share(order: usize, dimension: f64, bin: usize) -> f64 {
    let table = &PLANE[order.min(4) - 1];
    let stretch = if order == 1 { 1.0 } else { dimension.max(1.0) / 2.0 * (order as f64 / 4.0).max(1.0) };
    let at = bin as f64 / stretch;
    let below = at as usize;
    match table.get(below + 1) {
        Some(next) => table[below] + (at - below as f64) * (next - table[below]),
        None => 1.0,
    }
}

/// Chernoff's bound on the logarithm of P(X >= counted) for X of Poisson(expected).
fn ln_poisson_tail(counted: f64, expected: f64) -> f64 {
    if counted <= expected {
        return 0.0;
    }
    counted - expected - counted * (counted / expected).ln()
}

/// expected / counted in every bin from `level` on, at most 1, and falling with p: neighboring bins that are out of
/// order are pooled. 1 in the bins before.
fn chance_rates(counted: &[f64; BINS], expected: &[f64; BINS], level: usize) -> [f64; BINS] {
    // From the smallest p on: counted, expected and number of bins.
    let mut pools: Vec<(f64, f64, usize)> = Vec::new();
    for bin in (level..BINS).rev() {
        let mut pool = (counted[bin], expected[bin], 1);
        while let Some(&(c, e, bins)) = pools.last().filter(|(c, e, _)| pool.0 * e >= c * pool.1) {
            pools.pop();
            pool = (pool.0 + c, pool.1 + e, pool.2 + bins);
        }
        pools.push(pool);
    }
    let mut rates = [1.0; BINS];
    let mut bin = BINS;
    for (c, e, bins) in pools {
        rates[bin - bins..bin].fill(if c > e { e / c } else { 1.0 });
        bin -= bins;
    }
    rates
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    #[test]
    fn the_bound_is_above_the_tail() {
        // scipy.stats.poisson.logsf(c - 1, e)
        for (c, e, exact) in [(10.0, 2.0, -9.976), (182.0, 125.0, -13.771), (40.0, 0.2, -174.893)] {
            let bound = ln_poisson_tail(c, e);
            assert!(exact < bound && bound < 0.7 * exact, "{c} {e}: {bound}");
        }
        assert_eq!(ln_poisson_tail(3.0, 4.0), 0.0);
    }

    #[test]
    fn rates_fall_with_p() {
        let (mut counted, mut expected) = ([0.0; BINS], [0.0; BINS]);
        for (bin, expected) in expected.iter_mut().enumerate() {
            *expected = 100.0 * 0.5f64.powi(bin as i32 + 1);
        }
        // Bin 3 expects 6.25 and bin 4 3.125; 2 is before the level.
        (counted[2], counted[3], counted[4]) = (90.0, 10.0, 25.0);
        let rates = chance_rates(&counted, &expected, 3);
        assert_eq!(rates[2], 1.0);
        assert_relative_eq!(rates[3], 0.625);
        // Empty bins beyond are pooled with bin 4: 3.125 + 3.125 expected there.
        assert_relative_eq!(rates[4], 6.25 / 25.0, max_relative = 1e-9);
        assert_eq!(rates[4], rates[20]);
        assert!(rates.windows(2).all(|pair| pair[1] <= pair[0]));
    }

    #[test]
    fn shares_grow_with_the_gap_and_fall_with_the_dimension() {
        assert_relative_eq!(closed_share(2, 2.0, 3), 0.54);
        assert_relative_eq!(closed_share(2, 4.0, 3), 0.5 * (0.19 + 0.38));
        assert!(closed_share(9, 2.0, 5) < closed_share(4, 2.0, 5));
        assert_eq!(closed_share(1, 20.0, 30), 1.0);
    }
}
