//! Tests whether other data of the same kind would give the same ranks.
//!
//! Halves and quarters of the measured examples are drawn at random, and ranks are computed again from each. Estimates
//! from random halves scatter as much as estimates from independent samples of size n, because the scatter of a half
//! around the whole equals that of the whole around the truth. Estimates from quarters show the effect of having fewer
//! examples. The number of examples is called enough only if all of these hold: the ranks from halves and from quarters
//! are within one of the measured ranks, every state has a plateau, and the ranks at the other scale are within one
//! too.

use gelora_id::Jackknife;
use gelora_kernels::Tensor;
use gelora_kernels::random::Stream;
use gelora_lora::ranks::Policy;
use serde::{Deserialize, Serialize};

use super::options::MeasureOptions;
use super::states::{State, growths, summaries};
use super::steps::{TargetModules, outcome};
use crate::event::Report;
use crate::{Event, Result, Work};

/// Smallest number of points in a resample.
const LEAST: usize = 30;
/// Share of the resamples that must be within one of the measured rank for a layer to be called stable.
const STABLE: f64 = 0.9;

/// Ranks measured again on resamples.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stability {
    /// Number of resamples of each size.
    pub resamples: usize,
    /// Results for halves and for quarters.
    pub sizes: Vec<ResampledRanks>,
    /// Ranks at the scale that was not used: the scale of the plateaus, or all examples.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub other_scale: Option<OtherScale>,
    /// Whether n examples were enough.
    #[serde(default)]
    pub enough: bool,
    /// The same in words, with the reasons against it.
    pub verdict: String,
}

/// Ranks at another scale.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OtherScale {
    /// Number of points.
    pub scale: usize,
    /// The rank of every step.
    pub ranks: Vec<usize>,
}

/// Ranks of the resamples of one size.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResampledRanks {
    /// Number of examples in a resample.
    pub n: usize,
    /// For every step, the rank in each resample.
    pub ranks: Vec<Vec<usize>>,
}

/// Inputs of the measurement that is repeated on each resample.
pub(super) struct Resampling<'a> {
    pub points: &'a [Tensor],
    /// For each state, the marks of examples that are near copies.
    pub near_copies: &'a [Vec<bool>],
    pub targets: &'a TargetModules<'a>,
    pub policy: &'a Policy,
    pub options: &'a MeasureOptions,
}

/// The measured ranks, with which the resamples are compared.
pub(super) struct Reference<'a> {
    /// The rank of every step.
    pub ranks: &'a [usize],
    /// Names of the steps.
    pub names: &'a [String],
    pub states: &'a [State],
    /// Number of points at which the ranks were measured.
    pub scale: usize,
    /// Another number of points, with the replicates of every state at that number.
    pub other: Option<(usize, Vec<Jackknife>)>,
}

impl Resampling<'_> {
    /// Computes the ranks of `resamples` halves and as many quarters, and compares them with the measured ranks.
    pub(super) fn run(
        &self,
        resamples: usize,
        reference: &Reference<'_>,
        report: &mut Report<'_>,
    ) -> Result<Stability> {
        let n = self.points.first().map_or(0, Tensor::rows);
        let sizes: Vec<usize> = [n / 2, n / 4].into_iter().filter(|size| *size >= LEAST).collect();
        report(Event::Began { work: Work::Stability, units: resamples * sizes.len() })?;
        let mut found = Vec::new();
        for size in sizes {
            let mut ranks = vec![Vec::new(); reference.ranks.len()];
            for draw in 0..resamples {
                let mut rows: Vec<usize> = (0..n).collect();
                // Draw `size` rows without replacement, in ascending order.
                let key = [0x7374_6162, size as u64, draw as u64]; // "stab"
                Stream::at(self.options.seed, &key).shuffle(&mut rows);
                rows.truncate(size);
                rows.sort_unstable();
                let summaries = summaries(self.points, self.near_copies, &rows, &self.options.estimator)?;
                let drawn = self.ranks_of(&summaries)?;
                ranks.iter_mut().zip(drawn).for_each(|(ranks, rank)| ranks.push(rank));
                report(Event::Advanced { units: 1 })?;
            }
            found.push(ResampledRanks { n: size, ranks });
        }
        report(Event::Finished { work: Work::Stability })?;
        let other = reference.other.as_ref();
        let other_scale = match other {
            Some((scale, replicates)) => Some(OtherScale { scale: *scale, ranks: self.ranks_of(replicates)? }),
            None => None,
        };
        let (enough, verdict) = verdict(&found, n, reference, other_scale.as_ref());
        Ok(Stability { resamples, sizes: found, other_scale, enough, verdict })
    }

    /// Returns the rank of every step, given the replicates of every state.
    fn ranks_of(&self, summaries: &[Jackknife]) -> Result<Vec<usize>> {
        let steps = self.targets.steps(&growths(summaries, self.options.confidence));
        // The published rule is a lower bound. If it exceeds the budget on this resample, the bound is the budget.
        let policy = match self.policy {
            Policy::Budget { parameters, rounding } => {
                let least = outcome(&steps, &Policy::Gelora { rounding: *rounding }, &self.options.limits)?.parameters;
                Policy::Budget { parameters: least.max(*parameters), rounding: *rounding }
            }
            other => other.clone(),
        };
        Ok(outcome(&steps, &policy, &self.options.limits)?.ranks)
    }
}

/// Returns whether n examples were enough, and a sentence with the reasons.
fn verdict(
    sizes: &[ResampledRanks],
    n: usize,
    reference: &Reference<'_>,
    other: Option<&OtherScale>,
) -> (bool, String) {
    let mut against = Vec::new();
    for (part, size) in ["halves", "quarters"].into_iter().zip([0, 1]) {
        match sizes.get(size) {
            Some(resampled) => against.extend(moves(resampled, part, reference)),
            None => against.push(format!("{n} are too few to draw {part} from")),
        }
    }
    let without = reference.states.iter().filter(|s| !s.is_constant() && s.plateau.is_none()).count();
    if without > 0 {
        against.push(format!(
            "the dimension of {without} of {} states has no plateau, so it depends on the number of examples",
            reference.states.len()
        ));
    }
    if let Some(other) = other {
        let differs = |s: &usize| other.ranks[*s].abs_diff(reference.ranks[*s]) > 1;
        let all: Vec<usize> = (0..reference.ranks.len()).filter(differs).collect();
        if !all.is_empty() {
            let change = |s: &usize| {
                format!("{} would be {} and not {}", reference.names[*s], other.ranks[*s], reference.ranks[*s])
            };
            against.push(format!(
                "at the scale of {} points instead of {} the ranks differ: {}",
                other.scale,
                reference.scale,
                listed(&all, change)
            ));
        }
    }
    if !against.is_empty() {
        return (false, format!("{n} examples were not enough: {}.", against.join("; ")));
    }
    let resamples = sizes.first().and_then(|s| s.ranks.first()).map_or(0, Vec::len);
    let least = sizes.iter().flat_map(|size| shares(size, reference.ranks)).fold(1.0, f64::min) * resamples as f64;
    let other = other.map_or(String::new(), |other| format!(", and so did {} points", other.scale));
    let sentence = format!(
        "{n} examples were enough: every state has a plateau, and in every layer at least {} of {resamples} halves and \
         of as many quarters gave the same rank, give or take one{other}.",
        least.round()
    );
    (true, sentence)
}

/// For every step, the share of resamples whose rank is within one of the measured rank.
fn shares(size: &ResampledRanks, reference: &[usize]) -> Vec<f64> {
    let near = |(ranks, reference): (&Vec<usize>, &usize)| {
        ranks.iter().filter(|rank| rank.abs_diff(*reference) <= 1).count() as f64 / ranks.len().max(1) as f64
    };
    size.ranks.iter().zip(reference).map(near).collect()
}

/// Describes the steps whose rank moves by more than one over resamples of a size, or None if no rank does.
fn moves(size: &ResampledRanks, part: &str, reference: &Reference<'_>) -> Option<String> {
    let shares = shares(size, reference.ranks);
    let unsure: Vec<usize> = (0..shares.len()).filter(|s| shares[*s] < STABLE).collect();
    let spread = |s: &usize| {
        let (low, high) = (size.ranks[*s].iter().min().unwrap_or(&0), size.ranks[*s].iter().max().unwrap_or(&0));
        format!("{} ({low} to {high}, given {})", reference.names[*s], reference.ranks[*s])
    };
    (!unsure.is_empty()).then(|| {
        let (some, all) = (unsure.len(), reference.ranks.len());
        format!(
            "over {part} of them the ranks of {some} of {all} layers move by more than one: {}",
            listed(&unsure, spread)
        )
    })
}

/// Describes the first four steps and counts the rest.
fn listed(steps: &[usize], describe: impl Fn(&usize) -> String) -> String {
    let listed: Vec<String> = steps.iter().take(4).map(describe).collect();
    let more = if steps.len() > 4 { format!(" and {} more", steps.len() - 4) } else { String::new() };
    format!("{}{more}", listed.join(", "))
}

#[cfg(test)]
mod tests {
    use gelora_id::Estimate;
    use gelora_id::scale::Plateau;

    use super::*;

    fn state(plateau: bool) -> State {
        let estimate = Estimate {
            estimator: "two-nn-fit".into(),
            id: 5.0,
            interval: [4.0, 6.0],
            confidence: 0.95,
            n: 200,
            duplicates: 0,
            near_copies: 0,
            id_with_near_copies: None,
        };
        let plateau = plateau.then_some(Plateau { id: 5.0, interval: [4.0, 6.0], scales: [200, 50] });
        State { name: "a state".into(), estimate, decimation: Vec::new(), gride: Vec::new(), plateau }
    }

    #[test]
    fn examples_are_enough_only_if_every_condition_holds() {
        let names = ["layer 0".to_owned(), "layer 1".to_owned()];
        let calm = [vec![3, 4, 2, 3, 3, 3, 3, 3, 3, 9], vec![7; 10]];
        let wild = [vec![3; 10], vec![7, 7, 7, 7, 7, 7, 7, 7, 2, 12]];
        let verdict_of =
            |halves: &[Vec<usize>; 2], quarters: &[Vec<usize>; 2], flat: bool, other: Option<[usize; 2]>| {
                let sizes =
                    [(100, halves), (50, quarters)].map(|(n, ranks)| ResampledRanks { n, ranks: ranks.to_vec() });
                let states = [state(true), state(flat)];
                let reference = Reference { ranks: &[3, 7], names: &names, states: &states, scale: 200, other: None };
                let other = other.map(|ranks| OtherScale { scale: 50, ranks: ranks.to_vec() });
                verdict(&sizes, 200, &reference, other.as_ref())
            };
        let (enough, sentence) = verdict_of(&calm, &calm, true, Some([4, 6]));
        assert!(
            enough && sentence.starts_with("200 examples were enough") && sentence.contains("at least 9 of 10"),
            "{sentence}"
        );
        assert!(sentence.contains("so did 50 points") && verdict_of(&calm, &calm, true, None).0);
        for (case, words) in [
            (verdict_of(&wild, &calm, true, None), &["over halves", "1 of 2 layers", "layer 1 (2 to 12, given 7)"][..]),
            (verdict_of(&calm, &wild, true, None), &["over quarters", "layer 1 (2 to 12, given 7)"]),
            (verdict_of(&calm, &calm, false, None), &["1 of 2 states has no plateau"]),
            (
                verdict_of(&calm, &calm, true, Some([5, 7])),
                &["scale of 50 points instead of 200", "layer 0 would be 5 and not 3"],
            ),
        ] {
            assert!(!case.0 && case.1.starts_with("200 examples were not enough"), "{}", case.1);
            words.iter().for_each(|word| assert!(case.1.contains(word), "{word}: {}", case.1));
        }
        let reference = Reference { ranks: &[3, 7], names: &names, states: &[], scale: 40, other: None };
        let (enough, sentence) = verdict(&[], 40, &reference, None);
        assert!(!enough && sentence.contains("too few to draw halves"), "{sentence}");
    }
}
