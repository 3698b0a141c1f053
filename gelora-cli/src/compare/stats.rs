//! Statistics of paired differences, d_i = score of an arm - score of the reference, one for each seed i = 1 .. n.
//!
//! | function | what it gives |
//! |---|---|
//! | [`bootstrap_interval`] | interval of the mean difference, BCa bootstrap |
//! | [`wilcoxon`] | p-value of "no difference", signed-rank test, exact up to n = 50 |
//! | [`holm`] | p-values of several arms, adjusted |
//! | [`least_detectable`] | the least mean difference that n seeds would have shown |
//! | [`quantile`] | of sorted values |

use gelora_kernels::random::Stream;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// Resamples of the bootstrap.
const RESAMPLES: usize = 9_999;
/// Differences up to this number have the exact null distribution of the signed-rank test.
const EXACT: usize = 50;
/// Two-sided level of [`least_detectable`], for all arms together.
const LEVEL: f64 = 0.05;
/// Power of [`least_detectable`].
const POWER: f64 = 0.8;
/// Smaller differences count as none: a run differs by up to 1e-5 from the same run on another device.
const SAME: f64 = 2e-5;
/// Differences are rounded to a multiple of this before they are ranked: two differences of k / n that are the same
/// number may differ in their last bits.
const GRAIN: f64 = 1e-12;

/// The mean; 0 without values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation with n - 1 degrees of freedom; None of fewer than two values.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let center = mean(values);
    let squares: f64 = values.iter().map(|value| (value - center).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// BCa (bias-corrected and accelerated) bootstrap interval of the mean; None of fewer than two differences.
///
/// With m* the sorted means of the resamples, m the mean, and m_(i) the mean without difference i:
///
/// ```text
/// z0      = Phi^-1(share of m* below m, ties counted half)                  bias
/// a       = sum (mean m_() - m_(i))^3 / (6 (sum (mean m_() - m_(i))^2)^1.5) acceleration
/// q(z)    = Phi(z0 + (z0 + z) / (1 - a (z0 + z)))
/// interval = [m* at q(z_{alpha/2}), m* at q(z_{1-alpha/2})]
/// ```
///
/// The resamples depend on the number of differences alone, so the same differences have the same interval.
///
/// Source: Efron, "Better bootstrap confidence intervals" (1987); SciPy's `bootstrap(method="BCa")`.
pub fn bootstrap_interval(differences: &[f64], confidence: f64) -> Option<[f64; 2]> {
    let n = differences.len();
    if n < 2 {
        return None;
    }
    let center = mean(differences);
    if differences.iter().all(|d| *d == differences[0]) {
        return Some([center; 2]);
    }
    let mut stream = Stream::at(n as u64, &[0x626f_6f74]); // "boot"
    let mut means: Vec<f64> =
        (0..RESAMPLES).map(|_| (0..n).map(|_| differences[stream.below(n)]).sum::<f64>() / n as f64).collect();
    means.sort_unstable_by(f64::total_cmp);

    // Bias: where the mean lies among the means of resamples.
    let below = means.iter().filter(|m| **m < center).count() as f64;
    let tied = means.iter().filter(|m| **m == center).count() as f64;
    let normal = Normal::standard();
    let share = ((below + 0.5 * tied) / RESAMPLES as f64).clamp(0.5 / RESAMPLES as f64, 1.0 - 0.5 / RESAMPLES as f64);
    let bias = normal.inverse_cdf(share);

    // Acceleration: the skewness of the jackknife. The mean without d_i is center + (center - d_i) / (n - 1).
    let influence: Vec<f64> = differences.iter().map(|d| (d - center) / (n - 1) as f64).collect();
    let squares: f64 = influence.iter().map(|u| u * u).sum();
    let cubes: f64 = influence.iter().map(|u| u.powi(3)).sum();
    let acceleration = cubes / (6.0 * squares.powf(1.5));

    let end = |probability: f64| {
        let z = bias + normal.inverse_cdf(probability);
        quantile(&means, normal.cdf(bias + z / (1.0 - acceleration * z)))
    };
    let tail = 0.5 * (1.0 - confidence);
    Some([end(tail), end(1.0 - tail)])
}

/// The value at a share of the way through sorted values, by linear interpolation.
///
/// # Panics
/// If there is no value.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (place - low as f64) * (sorted[high] - sorted[low])
}

/// Two-sided p-value of the Wilcoxon signed-rank test that the differences are symmetric around 0.
///
/// ```text
/// R_i = rank of |d_i| among the differences that are not 0, ties sharing the mean of their ranks
/// T   = sum of R_i over d_i > 0
/// p   = min(1, 2 min(P(T* <= T), P(T* >= T)))
/// ```
///
/// Zeros, and differences below 2e-5, are left out, as SciPy's default `zero_method="wilcox"` does with zeros. Up to 50
/// differences T* runs over all 2^n signs of the R_i, which is SciPy's `method="exact"` without ties, and with ties its
/// `PermutationMethod` over all signs. With more, T* is normal, with the variance corrected for ties and no correction
/// for continuity, as `method="asymptotic"` has it. p is 1 where every difference is 0.
///
/// Source: Wilcoxon, "Individual comparisons by ranking methods" (1945); SciPy's `wilcoxon`.
pub fn wilcoxon(differences: &[f64]) -> f64 {
    let rounded = differences.iter().filter(|d| d.abs() >= SAME).map(|d| (d / GRAIN).round());
    let mut nonzero: Vec<f64> = rounded.filter(|d| *d != 0.0).collect();
    nonzero.sort_unstable_by(|a, b| a.abs().total_cmp(&b.abs()));
    let n = nonzero.len();
    if n == 0 {
        return 1.0;
    }

    // Twice the ranks are whole numbers. Ties at places first .. first + k (from 0) share the mean rank first + (k + 1)
    // / 2.
    let (mut doubled, mut ties) = (Vec::with_capacity(n), 0.0);
    for tied in nonzero.chunk_by(|a, b| a.abs() == b.abs()) {
        let (first, k) = (doubled.len(), tied.len());
        doubled.extend(std::iter::repeat_n(2 * first + k + 1, k));
        ties += (k * k * k - k) as f64;
    }
    let positive: usize = doubled.iter().zip(&nonzero).filter(|(_, d)| **d > 0.0).map(|(rank, _)| rank).sum();

    if n > EXACT {
        let size = n as f64;
        let expected = size * (size + 1.0) / 4.0;
        let variance = (size * (size + 1.0) * (2.0 * size + 1.0) - 0.5 * ties) / 24.0;
        let z = (0.5 * positive as f64 - expected) / variance.sqrt();
        return (2.0 * Normal::standard().sf(z.abs())).min(1.0);
    }
    // ways[t]: number of choices of signs with 2 T* = t. Each rank is added to T* or not.
    let total: usize = doubled.iter().sum();
    let mut ways = vec![0.0_f64; total + 1];
    ways[0] = 1.0;
    for rank in doubled {
        for t in (rank..=total).rev() {
            ways[t] += ways[t - rank];
        }
    }
    let lower: f64 = ways[..=positive].iter().sum();
    let upper: f64 = ways[positive..].iter().sum();
    (2.0 * lower.min(upper) / 2f64.powi(n as i32)).min(1.0)
}

/// p-values adjusted for their number by Holm's procedure: the k-th smallest of m is multiplied by m - k + 1, and none
/// is below one that was smaller before.
///
/// Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let (mut adjusted, mut greatest) = (vec![0.0; p_values.len()], 0.0_f64);
    for (k, index) in order.into_iter().enumerate() {
        greatest = greatest.max(p_values[index] * (p_values.len() - k) as f64).min(1.0);
        adjusted[index] = greatest;
    }
    adjusted
}

/// The least true mean difference that a two-sided paired t-test at 5 %, divided by the number m of arms (Bonferroni),
/// finds in four of five studies of n seeds, where differences are normal and scatter by the standard deviation s:
///
/// ```text
/// (t_{n-1, 1 - 0.025 / m} + t_{n-1, 0.8}) s / sqrt(n)
/// ```
///
/// None of fewer than two seeds.
pub fn least_detectable(standard_deviation: f64, n: usize, arms: usize) -> Option<f64> {
    let t = StudentsT::new(0.0, 1.0, n.checked_sub(1).filter(|freedom| *freedom > 0)? as f64).ok()?;
    let quantiles = t.inverse_cdf(1.0 - 0.5 * LEVEL / arms.max(1) as f64) + t.inverse_cdf(POWER);
    Some(quantiles * standard_deviation / (n as f64).sqrt())
}

/// The least p-value that n seeds can give, adjusted for the number of arms: every difference has the same sign.
pub fn least_p(n: usize, arms: usize) -> f64 {
    (arms as f64 * 2f64.powi(1 - n.min(1000) as i32)).min(1.0)
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    /// Without ties.
    const A: [f64; 10] = [0.012, -0.007, 0.021, 0.004, 0.015, -0.002, 0.009, 0.018, -0.011, 0.026];
    /// Ties and zeros: accuracies over 408 rows.
    const B: [f64; 10] = [3.0, 0.0, -1.0, 3.0, 7.0, 1.0, -2.0, 5.0, 0.0, 4.0];

    fn b() -> [f64; 10] {
        B.map(|right| right / 408.0)
    }

    /// scipy.stats.wilcoxon(d) of SciPy 1.17.1.
    #[test]
    fn wilcoxon_agrees_with_scipy() {
        assert_relative_eq!(wilcoxon(&A), 0.064453125);
        assert_relative_eq!(wilcoxon(&b()), 0.0703125);
        let c: Vec<f64> = (1..=30).map(|i| (f64::from(i * i).sin() * 0.3e6 + 0.1e6).round() / 1e6).collect();
        assert_relative_eq!(wilcoxon(&c), 0.28008678182959557, epsilon = 1e-12);
        // 70 differences with ties and zeros: the normal approximation.
        let e: Vec<f64> = (0..70).map(|i| f64::from(i * 7 % 11 - 4) / 8.0).collect();
        assert_relative_eq!(wilcoxon(&e), 0.013722202501732042, epsilon = 1e-12);
    }

    #[test]
    fn wilcoxon_by_hand() {
        // All of one sign: 2 of 2^n choices of signs are as far out.
        assert_eq!(wilcoxon(&[0.1, 0.2, 0.3]), 0.25);
        assert_eq!(wilcoxon(&[-0.1, -0.1, -0.1, 0.0]), 0.25);
        assert_eq!(wilcoxon(&[1.0, -1.0]), 1.0);
        assert_eq!(wilcoxon(&[0.0; 10]), 1.0);
        // Four of one sign; the others are the same run on another device.
        assert_eq!(wilcoxon(&[0.006, 0.032, 0.043, 0.057, -8e-7, 1e-5]), 0.125);
        assert_eq!(wilcoxon(&[]), 1.0);
        // 0.1 + 0.2 and 0.3 are the same difference.
        assert_eq!(wilcoxon(&[0.1 + 0.2, -0.3]), 1.0);
    }

    /// scipy.stats.bootstrap((d,), numpy.mean, method="BCa", n_resamples=1_000_000) of SciPy 1.17.1. Both draw their
    /// own resamples.
    #[test]
    fn intervals_agree_with_scipy() {
        let skewed = [0.0, 0.001, 0.0005, 0.08, 0.002, 0.0, 0.001, 0.06];
        let cases: [(&[f64], [f64; 2]); 3] = [
            (&A, [0.0008, 0.0153]),
            (&b(), [0.000980392156862745, 0.009313725490196077]),
            (&skewed, [0.00075, 0.0476875]),
        ];
        for (differences, wanted) in cases {
            let interval = bootstrap_interval(differences, 0.95).unwrap();
            let tolerance = 0.03 * (wanted[1] - wanted[0]);
            assert_relative_eq!(interval[0], wanted[0], epsilon = tolerance);
            assert_relative_eq!(interval[1], wanted[1], epsilon = tolerance);
            assert_eq!(bootstrap_interval(differences, 0.95).unwrap(), interval);
        }
        assert_eq!(bootstrap_interval(&[0.5; 4], 0.95), Some([0.5; 2]));
        assert_eq!(bootstrap_interval(&[0.5], 0.95), None);
    }

    /// The rate at which an interval of ten normal differences holds their mean, over 1,000 draws: a BCa interval of so
    /// few is known to be a little narrow.
    #[test]
    fn intervals_cover_nearly_as_they_say() {
        let mut stream = Stream::new(5);
        let covers = (0..1000).filter(|_| {
            let differences: Vec<f64> = (0..10).map(|_| stream.normal()).collect();
            let [low, high] = bootstrap_interval(&differences, 0.95).unwrap();
            low <= 0.0 && high >= 0.0
        });
        let share = covers.count() as f64 / 1000.0;
        assert!((0.86..0.96).contains(&share), "{share}");
    }

    /// (t.ppf(0.975, 9) + t.ppf(0.8, 9)) * d.std(ddof=1) / sqrt(10) of SciPy 1.17.1, and with 1 - 0.025 / 6.
    #[test]
    fn least_detectable_agrees_with_scipy() {
        let least = |d: &[f64]| least_detectable(standard_deviation(d).unwrap(), d.len(), 1).unwrap();
        assert_relative_eq!(standard_deviation(&A).unwrap(), 0.012285944995988075, epsilon = 1e-15);
        assert_relative_eq!(least(&A), 0.012220998235082705, epsilon = 1e-12);
        assert_relative_eq!(least(&b()), 0.006990891418421616, epsilon = 1e-12);
        assert_relative_eq!(least_detectable(1.0, 10, 6).unwrap(), 1.3432113649056854, epsilon = 1e-9);
        assert_eq!(least_detectable(1.0, 1, 1), None);
        assert_eq!(standard_deviation(&[1.0]), None);
    }

    #[test]
    fn holm_by_hand() {
        // 0.01 x 4, 0.02 x 3, 0.03 x 2 (the same), and 0.5.
        let adjusted = holm(&[0.5, 0.01, 0.03, 0.02]);
        for (got, wanted) in adjusted.iter().zip([0.5, 0.04, 0.06, 0.06]) {
            assert_relative_eq!(got, &wanted, epsilon = 1e-15);
        }
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
        assert_eq!(least_p(10, 6), 6.0 / 512.0);
        assert_eq!(least_p(5, 6), 6.0 / 16.0);
    }
}
