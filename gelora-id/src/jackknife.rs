//! The delete-group jackknife: errors of estimates and of growths.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Number of groups that the points are divided into at random for the jackknife. Each is left out once.
pub const GROUPS: usize = 40;

/// An estimate, and the estimates that leave out one group of points each: the delete-group jackknife.
///
/// With g groups and v_j the estimate without group j, the standard error is
///
/// ```text
/// se^2 = (g - 1) / g  sum_j (v_j - mean v)^2
/// ```
///
/// and (value - truth) / se is taken to follow Student's t distribution with g - 1 degrees of freedom.
///
/// Source: B. Efron, C. Stein, "The jackknife estimate of variance", Annals of Statistics 9 (1981); for blocks of
/// points, J. Shao, C. F. J. Wu, "A general theory for jackknife variance estimation", Annals of Statistics 17 (1989).
#[derive(Clone, Debug, PartialEq)]
pub struct Jackknife {
    /// The estimate from all points.
    pub value: f64,
    /// The estimates that leave out one group each.
    pub without: Vec<f64>,
    /// Factor on the standard error. It is above 1 where points share distances (TwoNN) or neighbors (local PCA) and
    /// so are worth fewer independent points; else it is 1.
    pub widening: f64,
}

/// The growth of the dimension from one cloud to another of the same examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// The second dimension minus the first.
    pub delta: f64,
    /// Its standard error.
    pub error: f64,
    /// The interval that holds the growth with the requested confidence.
    pub interval: [f64; 2],
    /// The one-sided upper bound of the growth at the requested confidence.
    pub upper: f64,
}

impl Jackknife {
    /// The standard error of the logarithm of the estimate.
    #[must_use]
    pub fn log_error(&self) -> f64 {
        self.widening * error(self.without.iter().map(|v| v.ln()))
    }

    /// The interval at a confidence strictly between 0 and 1, symmetric on the log scale.
    #[must_use]
    pub fn interval(&self, confidence: f64) -> [f64; 2] {
        let spread = (quantile(0.5 + confidence / 2.0, self.without.len()) * self.log_error()).exp();
        [self.value / spread, self.value * spread]
    }

    /// The growth from this cloud to the next. Both clouds leave out the same examples in each replicate, so shared
    /// scatter drops out of the error: it is smaller than that of two independent estimates.
    #[must_use]
    pub fn growth(&self, next: &Jackknife, confidence: f64) -> Growth {
        let delta = next.value - self.value;
        let (a, b) = (&self.without, &next.without);
        let error = if a.len() == b.len() {
            self.widening.max(next.widening) * error(b.iter().zip(a).map(|(b, a)| b - a))
        } else {
            // One of the two clouds has so few points that a group is empty: add the errors as if independent.
            let plain = |s: &Jackknife| s.widening * error(s.without.iter().copied());
            plain(self).hypot(plain(next))
        };
        let groups = a.len().max(b.len());
        let wide = quantile(0.5 + confidence / 2.0, groups) * error;
        let upper = delta + (quantile(confidence, groups) * error).max(0.0);
        Growth { delta, error, interval: [delta - wide, delta + wide], upper }
    }

    /// The mean of estimates from disjoint draws of the same examples. Their errors are independent, so the error of
    /// the mean is smaller by the square root of their number. Returns None for an empty slice, or if the numbers of
    /// replicates differ.
    #[must_use]
    pub fn mean(draws: &[Jackknife]) -> Option<Self> {
        let first = draws.first()?;
        let n = draws.len() as f64;
        let of = |value: &dyn Fn(&Jackknife) -> f64| draws.iter().map(value).sum::<f64>() / n;
        let even = draws.iter().all(|d| d.without.len() == first.without.len());
        even.then(|| Self {
            value: of(&|d| d.value),
            without: (0..first.without.len()).map(|g| of(&|d| d.without[g])).collect(),
            widening: first.widening,
        })
    }

    /// The estimate of a cloud that is a single point: the dimension 0 without error.
    #[must_use]
    pub fn of_a_point() -> Self {
        Self { value: 0.0, without: vec![0.0; GROUPS], widening: 1.0 }
    }
}

/// The standard error of the jackknife; infinite for fewer than two replicates.
fn error(without: impl Iterator<Item = f64>) -> f64 {
    let all: Vec<f64> = without.collect();
    if all.len() < 2 {
        return f64::INFINITY;
    }
    let g = all.len() as f64;
    let mean = all.iter().sum::<f64>() / g;
    ((g - 1.0) / g * all.iter().map(|v| (v - mean).powi(2)).sum::<f64>()).sqrt()
}

/// The quantile of Student's t distribution for a number of groups.
fn quantile(probability: f64, groups: usize) -> f64 {
    let freedom = groups.saturating_sub(1).max(1) as f64;
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::NAN, |t| t.inverse_cdf(probability))
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use gelora_kernels::random::Stream;

    use super::*;

    #[test]
    fn of_a_mean_it_is_the_standard_error() {
        // Of a mean of g values the jackknife is exactly s / sqrt(g).
        let x = [3.0, 5.0, 4.0, 9.0];
        let without: Vec<f64> = x.iter().map(|left_out| (21.0 - left_out) / 3.0).collect();
        let s2 = x.iter().map(|v| (v - 5.25f64).powi(2)).sum::<f64>() / 3.0;
        assert_relative_eq!(error(without.into_iter()), (s2 / 4.0).sqrt(), max_relative = 1e-12);
    }

    #[test]
    fn a_mean_of_draws_is_surer() {
        let mut random = Stream::new(6);
        let mut draw =
            || Jackknife { value: 9.0, without: (0..40).map(|_| 9.0 + random.normal()).collect(), widening: 1.0 };
        let draws: Vec<Jackknife> = (0..8).map(|_| draw()).collect();
        let mean = Jackknife::mean(&draws).unwrap();
        let alone = draws.iter().map(Jackknife::log_error).sum::<f64>() / 8.0;
        assert_eq!(mean.value, 9.0);
        assert_relative_eq!(mean.log_error(), alone / 8f64.sqrt(), max_relative = 0.4);
        assert!(Jackknife::mean(&[]).is_none());
        let alone = Jackknife { value: 3.0, without: vec![3.0], widening: 1.0 };
        assert_eq!(alone.interval(0.9), [0.0, f64::INFINITY], "one replicate says nothing");
    }

    #[test]
    fn shared_scatter_drops_out_of_the_growth() {
        let mut random = Stream::new(4);
        let shared: Vec<f64> = (0..40).map(|_| random.normal()).collect();
        let cloud =
            |value: f64| Jackknife { value, without: shared.iter().map(|s| value + s).collect(), widening: 1.0 };
        let growth = cloud(10.0).growth(&cloud(12.5), 0.9);
        assert_relative_eq!(growth.delta, 2.5);
        assert!(growth.error < 1e-12 && growth.upper - 2.5 < 1e-9);
        let from_point = Jackknife::of_a_point().growth(&cloud(12.5), 0.9);
        assert!(from_point.error > 0.5 && from_point.interval[0] < 12.5 && from_point.upper < from_point.interval[1]);
    }
}
