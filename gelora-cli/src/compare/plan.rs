//! The runs of a study, in the order in which they are made, and the rows of each.
//!
//! ```text
//! choose   every arm x every rate x the first seeds, trained on 80 % of the seed's rows, scored on the other 20 %
//! final    every arm at its chosen rate x every seed, trained on all of the seed's rows, scored on the held-out rows
//! ```
//!
//! A seed draws the rows, the part that is cut from them, the sample that is measured, the batches and the fresh head,
//! the same for every arm: runs of one seed are pairs.

use anyhow::{Context, Result, bail};
use gelora_kernels::random::Stream;

use super::arms::Arm;
use super::results::{Key, Part};

/// The share of the training rows that a learning rate is chosen on.
const CHOOSE_SHARE: f64 = 0.2;

/// A run that is to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub part: Part,
    pub arm: Arm,
    pub lr: f64,
    pub seed: u64,
}

impl Run {
    pub fn key(&self) -> Key {
        Key::new(self.part, self.arm.name(), self.lr, self.seed)
    }
}

/// What is compared.
#[derive(Clone, Debug)]
pub struct Plan {
    pub arms: Vec<Arm>,
    /// Learning rates, ascending.
    pub rates: Vec<f64>,
    /// Seeds 0 .. seeds - 1.
    pub seeds: u64,
    /// Seeds 0 .. choose_seeds - 1 choose the rate.
    pub choose_seeds: u64,
}

impl Plan {
    /// The runs that the rate of every arm is chosen from: none if there is only one rate. Those of one seed come
    /// together, so that a study that was stopped has whole seeds.
    pub fn choosing(&self) -> Vec<Run> {
        if self.rates.len() < 2 {
            return Vec::new();
        }
        let of_arm = |seed, arm: Arm| self.rates.iter().map(move |&lr| Run { part: Part::Choose, arm, lr, seed });
        let of_seed = |seed| self.arms.iter().flat_map(move |&arm| of_arm(seed, arm));
        (0..self.choose_seeds).flat_map(of_seed).collect()
    }

    /// The runs that count, of the arms that have a rate.
    pub fn finals(&self, rate_of: impl Fn(Arm) -> Option<f64>) -> Vec<Run> {
        let chosen: Vec<(Arm, f64)> = self.arms.iter().filter_map(|&arm| Some((arm, rate_of(arm)?))).collect();
        let of_seed = |seed| chosen.iter().map(move |&(arm, lr)| Run { part: Part::Final, arm, lr, seed });
        (0..self.seeds).flat_map(of_seed).collect()
    }

    /// Number of all runs.
    pub fn len(&self) -> usize {
        self.choosing().len() + self.arms.len() * self.seeds as usize
    }
}

/// Learning rates from `LOW..HIGH:N`, N rates with equal ratios, or from a list `A,B,C`; ascending.
///
/// # Errors
/// If the text is neither, a rate is not above 0, or one is listed twice.
pub fn rates(text: &str) -> Result<Vec<f64>> {
    let expected =
        || format!("--lrs {text}: expected a range with a number of rates (1e-4..3e-2:6) or a list (3e-4,1e-3)");
    let rate = |text: &str| {
        let rate: f64 =
            text.trim().parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0).with_context(expected)?;
        anyhow::Ok(rate)
    };
    let mut rates = match text.split_once("..") {
        None => text.split(',').map(rate).collect::<Result<Vec<f64>>>()?,
        Some((low, rest)) => {
            let (high, number) = rest.split_once(':').with_context(expected)?;
            let (low, high) = (rate(low)?, rate(high)?);
            let number: i32 = number.trim().parse().ok().filter(|n| (2..=100).contains(n)).with_context(expected)?;
            let at = |k: i32| low * (high / low).powf(f64::from(k) / f64::from(number - 1));
            (0..number).map(|k| three_digits(at(k))).collect()
        }
    };
    rates.sort_unstable_by(f64::total_cmp);
    if rates.windows(2).any(|pair| pair[0] == pair[1]) {
        bail!("--lrs {text}: a rate is given twice");
    }
    Ok(rates)
}

/// A rate with three digits, so that it is the same number in a file, on the command line and here.
fn three_digits(rate: f64) -> f64 {
    format!("{rate:.2e}").parse().unwrap_or(rate)
}

/// The training rows of a seed: all `n`, or `wanted` of them, in random order.
pub fn rows_of_seed(n: usize, wanted: Option<usize>, seed: u64) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..n).collect();
    Stream::at(seed, &[0x726f_7773]).shuffle(&mut rows); // "rows"
    rows.truncate(wanted.unwrap_or(n));
    rows
}

/// The rows of a seed, cut into those that are trained on and those that a learning rate is chosen on.
pub fn cut(mut rows: Vec<usize>) -> (Vec<usize>, Vec<usize>) {
    // The order is random already.
    let scored = ((rows.len() as f64 * CHOOSE_SHARE).round() as usize).max(1);
    let choose = rows.split_off(rows.len() - scored.min(rows.len()));
    (rows, choose)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_a_range_or_a_list() {
        assert_eq!(rates("1e-4..3e-2:6").unwrap(), [1e-4, 3.13e-4, 9.79e-4, 3.06e-3, 9.59e-3, 3e-2]);
        assert_eq!(rates("3e-3, 1e-4").unwrap(), [1e-4, 3e-3]);
        assert_eq!(rates("1e-3").unwrap(), [1e-3]);
        for wrong in ["", "1e-4..1e-2", "1e-4..1e-2:1", "0,1e-3", "-1..1:3", "x", "1e-3,1e-3"] {
            let error = rates(wrong).unwrap_err().to_string();
            assert!(error.contains(&format!("--lrs {wrong}")), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_seed_draws_its_rows_and_cuts_a_fifth() {
        let rows = rows_of_seed(1000, Some(100), 3);
        assert_eq!(rows, rows_of_seed(1000, Some(100), 3));
        assert_ne!(rows, rows_of_seed(1000, Some(100), 4));
        let (train, choose) = cut(rows.clone());
        assert_eq!((train.len(), choose.len()), (80, 20));
        let mut all = [train, choose].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 100);
        assert_eq!(rows_of_seed(7, None, 0).len(), 7);
        assert_eq!(rows_of_seed(7, Some(9), 0).len(), 7);
    }

    #[test]
    fn runs_of_a_seed_come_together() {
        let plan = Plan { arms: vec![Arm::Uniform, Arm::Gelora], rates: vec![1e-3, 1e-2], seeds: 3, choose_seeds: 2 };
        let choosing = plan.choosing();
        assert_eq!(choosing.len(), 8);
        assert!(choosing[..4].iter().all(|run| run.seed == 0));
        let finals = plan.finals(|arm| (arm == Arm::Gelora).then_some(1e-2));
        assert_eq!(
            finals.iter().map(|run| (run.arm, run.seed)).collect::<Vec<_>>(),
            [0, 1, 2].map(|s| (Arm::Gelora, s))
        );
        assert_eq!(plan.len(), 14);
        assert!(Plan { rates: vec![1e-3], ..plan }.choosing().is_empty());
    }
}
