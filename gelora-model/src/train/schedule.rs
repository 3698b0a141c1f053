//! What happens at which step: the learning rate and the evaluations.

use std::f64::consts::PI;
use std::fmt;

use crate::optim::linear_schedule;

/// How the learning rate goes on after the warm-up.
///
/// Source: transformers, `get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup` (half a cycle) and
/// `get_constant_schedule_with_warmup`. The warm-up is one step ahead of theirs, so that no step has the rate 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schedule {
    /// It falls linearly to 0.
    #[default]
    Linear,
    /// It falls to 0 as half a cosine.
    Cosine,
    /// It stays.
    Constant,
}

impl Schedule {
    /// The name on the command line and in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::Constant => "constant",
        }
    }

    /// Factor of the learning rate at `step`, counted from 0, of `total` steps, of which `warmup` are the warm-up:
    /// min((step + 1) / warmup, f) with
    ///
    /// ```text
    /// linear:    f = (total - step) / (total - warmup)
    /// cosine:    f = (1 + cos(pi p)) / 2,  p = max(0, step - warmup) / (total - warmup)
    /// constant:  f = 1
    /// ```
    pub fn factor(self, step: usize, total: usize, warmup: f64) -> f64 {
        let rising = (step as f64 + 1.0) / warmup.max(1.0);
        match self {
            Self::Linear => linear_schedule(step, total, warmup),
            Self::Cosine => {
                let progress = (step as f64 - warmup) / (total as f64 - warmup).max(1.0);
                rising.min(0.5 * (1.0 + (PI * progress.clamp(0.0, 1.0)).cos()))
            }
            Self::Constant => rising.min(1.0),
        }
    }
}

/// Number of steps of a warm-up: a share of the steps if it is below 1, else a number of steps.
pub(super) fn warmup_steps(warmup: f64, total: usize) -> f64 {
    if warmup < 1.0 { warmup * total as f64 } else { warmup }
}

/// Distance between two evaluations.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Interval {
    /// Number of optimizer steps.
    Steps(usize),
    /// Number of epochs, usually a share of one. Evaluation k follows the first step at which k such shares are
    /// complete.
    Epochs(f64),
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steps(steps) => write!(f, "{steps} steps"),
            Self::Epochs(share) => write!(f, "{share} epochs"),
        }
    }
}

impl Interval {
    /// Whether an evaluation follows `step`, counted from 1, where an epoch has `epoch` steps.
    pub(super) fn is_due(self, step: usize, epoch: usize) -> bool {
        match self {
            Self::Steps(steps) => step.is_multiple_of(steps),
            Self::Epochs(share) => {
                // Rounding must not move an evaluation off the last step of its share.
                let complete = |step: usize| (step as f64 / (share * epoch as f64) + 1e-9).floor();
                complete(step) > complete(step - 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    /// transformers' formulas for 10 steps, of which 4 are the warm-up: get_cosine_schedule_with_warmup gives
    /// (1 + cos(pi (step - 4) / 6)) / 2 from step 4 on.
    #[test]
    fn factors_by_hand() {
        let factors = |schedule: Schedule| (0..10).map(|step| schedule.factor(step, 10, 4.0)).collect::<Vec<_>>();
        let rise = [0.25, 0.5, 0.75, 1.0];
        let sixths = |f: fn(f64) -> f64| (0..6).map(move |k| f(f64::from(k) / 6.0));
        let expected = |fall: Vec<f64>| rise.into_iter().chain(fall).collect::<Vec<_>>();
        assert_eq!(factors(Schedule::Constant), expected(vec![1.0; 6]));
        for (got, want) in [
            (factors(Schedule::Linear), expected(sixths(|p| 1.0 - p).collect())),
            (factors(Schedule::Cosine), expected(sixths(|p| 0.5 + 0.5 * (PI * p).cos()).collect())),
        ] {
            got.into_iter().zip(want).for_each(|(got, want)| assert_relative_eq!(got, want, epsilon = 1e-15));
        }
        assert_relative_eq!(Schedule::Cosine.factor(7, 10, 4.0), 0.5, epsilon = 1e-15);
        assert_eq!(Schedule::Linear.factor(3, 100, 6.0), linear_schedule(3, 100, 6.0));
        // Without a warm-up the first step has the full rate; a warm-up of all steps never falls.
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            assert_eq!(schedule.factor(0, 10, 0.0), 1.0);
            assert_eq!(schedule.factor(9, 10, 10.0), 1.0);
            assert!((0..10).all(|step| schedule.factor(step, 10, 2.5) > 0.0));
        }
    }

    #[test]
    fn a_warmup_below_1_is_a_share() {
        assert_eq!([0.0, 0.25, 1.0, 30.0].map(|warmup| warmup_steps(warmup, 80)), [0.0, 20.0, 1.0, 30.0]);
    }

    #[test]
    fn evaluations_of_shares_end_with_the_epoch() {
        let due = |interval: Interval, epoch: usize| -> Vec<usize> {
            (1..=2 * epoch).filter(|step| interval.is_due(*step, epoch)).collect()
        };
        assert_eq!(due(Interval::Steps(5), 6), [5, 10]);
        assert_eq!(due(Interval::Epochs(1.0), 6), [6, 12]);
        assert_eq!(due(Interval::Epochs(0.25), 6), [2, 3, 5, 6, 8, 9, 11, 12]);
        assert_eq!(due(Interval::Epochs(0.1), 30), (1..=20).map(|k| 3 * k).collect::<Vec<_>>());
        assert_eq!(due(Interval::Epochs(1.5), 6), [9]);
        // More evaluations than steps: one after each.
        assert_eq!(due(Interval::Epochs(0.01), 2), [1, 2, 3, 4]);
    }
}
