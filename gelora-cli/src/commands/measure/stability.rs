//! Whether other data of the same kind would have given the same ranks.
//!
//! From the measured examples, halves and quarters are drawn at random, and everything after the model is done again on each.
//! Estimates from random halves scatter among themselves as much as estimates from whole other samples of size n would (the
//! scatter of a half around the whole is that of the whole around the truth); those from quarters show what fewer
//! examples would have cost.

use anyhow::Result;
use gelora_id::Estimator;
use gelora_kernels::Tensor;
use gelora_kernels::random::Stream;
use gelora_lora::ranks::{Limits, Policy};
use serde::{Deserialize, Serialize};

use super::policies::{Targets, outcome};
use super::states::{growths, summaries};
use crate::ui::Progress;

/// The fewest points of a resample.
const LEAST: usize = 30;
/// Ranks of a layer are called stable if this share of the resamples is within one of the rank given.
const STABLE: f64 = 0.9;

/// Ranks of resamples.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stability {
    /// Resamples of each size.
    pub resamples: usize,
    /// Halves and quarters.
    pub sizes: Vec<OfSize>,
    /// Whether n was enough, in a sentence.
    pub verdict: String,
}

/// Ranks of the resamples of one size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfSize {
    /// Examples in a resample.
    pub n: usize,
    /// Of every step, the rank in each resample.
    pub ranks: Vec<Vec<usize>>,
}

/// What is repeated.
pub struct Repeat<'a> {
    pub points: &'a [Tensor],
    pub targets: &'a Targets<'a>,
    pub policy: &'a Policy,
    pub limits: Limits,
    pub estimator: Estimator,
    pub confidence: f64,
    pub seed: u64,
    pub quiet: bool,
}

impl Repeat<'_> {
    /// The ranks of `resamples` halves and as many quarters, against the ranks given.
    pub fn run(&self, resamples: usize, given: &[usize], step_names: &[String]) -> Result<Stability> {
        let n = self.points.first().map_or(0, Tensor::rows);
        let sizes: Vec<usize> = [n / 2, n / 4].into_iter().filter(|size| *size >= LEAST).collect();
        let progress = Progress::new(self.quiet, "stability", (resamples * sizes.len()) as u64);
        let mut found = Vec::new();
        for size in sizes {
            let mut ranks = vec![Vec::new(); given.len()];
            for draw in 0..resamples {
                let mut rows: Vec<usize> = (0..n).collect();
                let key = [0x7374_6162, size as u64, draw as u64]; // "stab"
                Stream::at(self.seed, &key).shuffle(&mut rows);
                rows.truncate(size);
                rows.sort_unstable();
                let summaries = summaries(self.points, &rows, &self.estimator)?;
                let steps = self.targets.steps(&growths(&summaries, self.confidence));
                // A budget that this resample's bound does not fit into is spent on the bound alone.
                let policy = match self.policy {
                    Policy::Budget { parameters, rounding } => {
                        let least = outcome(&steps, &Policy::Gelora { rounding: *rounding }, &self.limits)?.parameters;
                        Policy::Budget { parameters: least.max(*parameters), rounding: *rounding }
                    }
                    other => other.clone(),
                };
                let drawn = outcome(&steps, &policy, &self.limits)?;
                ranks.iter_mut().zip(drawn.ranks).for_each(|(ranks, rank)| ranks.push(rank));
                progress.inc(1);
            }
            found.push(OfSize { n: size, ranks });
        }
        progress.finish();
        let verdict = verdict(&found, n, given, step_names);
        Ok(Stability { resamples, sizes: found, verdict })
    }
}

/// Whether n was enough: halves show the scatter at n.
fn verdict(sizes: &[OfSize], n: usize, given: &[usize], names: &[String]) -> String {
    let Some(halves) = sizes.first() else {
        return format!("{n} examples are too few to draw halves from and tell how the ranks scatter.");
    };
    let near = |(ranks, given): (&Vec<usize>, &usize)| {
        ranks.iter().filter(|rank| rank.abs_diff(*given) <= 1).count() as f64 / ranks.len().max(1) as f64
    };
    let shares: Vec<f64> = halves.ranks.iter().zip(given).map(near).collect();
    let resamples = halves.ranks.first().map_or(0, Vec::len);
    let unsure: Vec<usize> = (0..shares.len()).filter(|s| shares[*s] < STABLE).collect();
    if unsure.is_empty() {
        return format!(
            "{n} examples were enough: in every layer at least {} of {resamples} halves of them gave the same rank, give or take one.",
            (shares.iter().copied().fold(1.0, f64::min) * resamples as f64).round()
        );
    }
    let spread = |s: &usize| {
        let (low, high) = (halves.ranks[*s].iter().min().unwrap_or(&0), halves.ranks[*s].iter().max().unwrap_or(&0));
        format!("{} ({low} to {high}, given {})", names[*s], given[*s])
    };
    let shown: Vec<String> = unsure.iter().take(4).map(spread).collect();
    let more = if unsure.len() > 4 { format!(" and {} more", unsure.len() - 4) } else { String::new() };
    format!(
        "{n} examples were not enough for {} of {} layers: over halves of them the ranks move by more than one in {}{more}. More --samples make the ranks surer.",
        unsure.len(),
        given.len(),
        shown.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_counts_halves_within_one() {
        let names = ["layer 0".to_owned(), "layer 1".to_owned()];
        let of = |ranks: [Vec<usize>; 2]| verdict(&[OfSize { n: 50, ranks: ranks.to_vec() }], 100, &[3, 7], &names);
        let calm = of([vec![3, 4, 2, 3, 3, 3, 3, 3, 3, 9], vec![7; 10]]);
        assert!(calm.starts_with("100 examples were enough: in every layer at least 9 of 10 halves"), "{calm}");
        let wild = of([vec![3; 10], vec![7, 7, 7, 7, 7, 7, 7, 7, 2, 12]]);
        assert!(wild.contains("not enough for 1 of 2 layers") && wild.contains("layer 1 (2 to 12, given 7)"), "{wild}");
        assert!(verdict(&[], 40, &[3, 7], &names).contains("too few"));
    }
}
