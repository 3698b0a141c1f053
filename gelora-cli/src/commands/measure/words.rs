//! What speaks against trusting the ranks, in plain sentences.

use gelora_id::scale;
use gelora_lora::ranks::Policy;

use super::{Layer, Stability, State};

/// The share of points with a near-duplicate from which it is worth a word.
const MANY: f64 = 0.01;

/// Every warning that applies.
pub fn warnings(states: &[State], layers: &[Layer], policy: &Policy, stability: Option<&Stability>) -> Vec<String> {
    let follows = matches!(policy, Policy::Gelora { .. } | Policy::Shuffled { .. } | Policy::Budget { .. });
    let found = [
        no_growth(layers).filter(|_| follows),
        noise(layers),
        near_duplicates(states),
        no_plateau(states),
        stability.map(|s| s.verdict.clone()).filter(|verdict| !verdict.contains("were enough")),
    ];
    found.into_iter().flatten().collect()
}

fn no_growth(layers: &[Layer]) -> Option<String> {
    let grows = layers.iter().filter(|l| l.delta > 0.0).count();
    (2 * grows <= layers.len()).then(|| {
        let how_many = if grows == 0 { "no layer".to_owned() } else { format!("only {grows} of {} steps", layers.len()) };
        format!(
            "The dimension grows in {how_many}, as in many sentence encoders: where it falls, the published rule gives the least rank. The table of policies shows what the others would do."
        )
    })
}

fn noise(layers: &[Layer]) -> Option<String> {
    let noisy = layers.iter().filter(|l| l.interval[0] <= 0.0 && l.interval[1] >= 0.0);
    let unsure: Vec<String> = noisy.map(Layer::name).collect();
    (!unsure.is_empty()).then(|| {
        format!(
            "In {} of {} steps the growth is within the noise (its interval holds 0): {}. There the rank is noise too; more --samples narrow the intervals.",
            unsure.len(),
            layers.len(),
            unsure.join(", ")
        )
    })
}

fn near_duplicates(states: &[State]) -> Option<String> {
    let share = |s: &&State| s.near_duplicates as f64 / s.estimate.n.max(1) as f64;
    let worst = states.iter().max_by(|a, b| share(a).total_cmp(&share(b))).filter(|s| share(s) > MANY)?;
    Some(format!(
        "{} of {} points of {} have a near-duplicate: estimators that use every ratio (two-nn-mle, two-nn-bayes, mle) are dominated by them.",
        worst.near_duplicates, worst.estimate.n, worst.name
    ))
}

fn no_plateau(states: &[State]) -> Option<String> {
    if states.iter().all(|s| s.decimation.len() < scale::SHORTEST) {
        return Some("There are too few examples to tell whether the dimension depends on their number.".into());
    }
    let flat = |s: &&State| s.is_constant() || s.plateau.is_some();
    let without: Vec<&State> = states.iter().filter(|s| !flat(s)).collect();
    let moves = |s: &State| scale::drift(&s.decimation).unwrap_or(1.0);
    let worst = without.iter().max_by(|a, b| moves(a).total_cmp(&moves(b)))?;
    let (first, last) = (worst.decimation.first()?, worst.decimation.last()?);
    Some(format!(
        "{} of {} states have no plateau: their dimension depends on the number of points, most in {} ({:.1} from {} points, {:.1} from {}). Compare dimensions of one n only, and take them as of this scale.",
        without.len(),
        states.len(),
        worst.name,
        first.id,
        first.scale,
        last.id,
        last.scale
    ))
}
