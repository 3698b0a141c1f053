//! Warnings about measured ranks, in plain sentences.

use std::collections::BTreeMap;
use std::fmt;

use gelora_id::{near_copies, scale};
use gelora_lora::ranks::Policy;
use serde::{Deserialize, Serialize};

use super::layer::Layer;
use super::modules::{DirectionCount, MeasuredModule};
use super::stability::Stability;
use super::states::State;

/// A reason not to trust the ranks. It is serialized as its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[non_exhaustive]
pub struct Warning {
    /// Subject of the warning, for programs that add their own advice.
    pub kind: WarningKind,
    /// The warning in plain sentences.
    pub text: String,
}

/// The subject of a [`Warning`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WarningKind {
    /// No search for near copies was made.
    NearCopiesKept,
    /// Near copies were left out.
    NearCopiesDropped,
    /// Near copies were left out of states of so low a dimension that chance makes pairs as near.
    NearCopiesUncertain,
    /// The dimension grows in few steps, or in none.
    NoGrowth,
    /// The interval of a growth contains 0.
    Noise,
    /// The examples are too few for finding a plateau.
    TooFewForPlateau,
    /// Some states have no plateau.
    NoPlateau,
    /// No state has a plateau.
    NoPlateauAtAll,
    /// No direction of the gradient replicates in some modules, or in none.
    NoDirections,
    /// The directions of the gradients give all modules the same rank.
    Level,
    /// The number of directions in a layer has a wide interval.
    UncertainDirections,
    /// The resamples show that there were too few examples.
    NotEnough,
    /// The warning was read from a file, which stores only its text.
    Unknown,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<String> for Warning {
    fn from(text: String) -> Self {
        Self { kind: WarningKind::Unknown, text }
    }
}

impl From<Warning> for String {
    fn from(warning: Warning) -> Self {
        warning.text
    }
}

/// The measurement on which warnings are based.
pub(super) struct Facts<'a> {
    pub states: &'a [State],
    pub layers: &'a [Layer],
    pub modules: &'a BTreeMap<String, MeasuredModule>,
    pub policy: &'a Policy,
    pub stability: Option<&'a Stability>,
    /// Name of the model.
    pub model: &'a str,
    /// Number of measured examples.
    pub samples: usize,
    pub keeps_near_copies: bool,
}

/// Returns every warning that applies.
pub(super) fn warnings(facts: &Facts<'_>) -> Vec<Warning> {
    let not_enough = facts.stability.filter(|s| !s.enough);
    let found = [
        dropped_near_copies(facts),
        uncertain_near_copies(facts),
        no_growth(facts).filter(|_| facts.policy.follows_growth()),
        noise(facts).filter(|_| !facts.policy.ranks_modules()),
        no_plateau(facts),
        no_directions(facts),
        level(facts),
        uncertain_directions(facts),
        not_enough.map(|s| (WarningKind::NotEnough, s.verdict.clone())),
    ];
    found.into_iter().flatten().map(|(kind, text)| Warning { kind, text }).collect()
}

fn dropped_near_copies(facts: &Facts<'_>) -> Option<(WarningKind, String)> {
    if facts.keeps_near_copies {
        let text = "Near copies were not looked for: a few per cent of them change a dimension by half.";
        return Some((WarningKind::NearCopiesKept, text.into()));
    }
    let states = facts.states;
    let affected = states.iter().filter(|s| s.estimate.near_copies > 0).count();
    let worst = states.iter().max_by_key(|s| s.estimate.near_copies).filter(|_| affected > 0)?;
    let estimate = &worst.estimate;
    let with = match estimate.id_with_near_copies {
        Some(with) => format!("{:.1} without them and {with:.1} with them", estimate.id),
        None => format!("{:.1} without them and cannot be estimated with them", estimate.id),
    };
    let text = format!(
        "Near copies of other examples were left out in {affected} of {} states, most in {}: {} of {} points, whose \
         dimension is {with}.",
        states.len(),
        worst.name,
        estimate.near_copies,
        estimate.n + estimate.near_copies,
    );
    Some((WarningKind::NearCopiesDropped, text))
}

fn uncertain_near_copies(facts: &Facts<'_>) -> Option<(WarningKind, String)> {
    let uncertain = facts.states.iter().filter(|s| s.estimate.near_copies_are_uncertain());
    let names: Vec<&str> = uncertain.map(|s| s.name.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    let text = format!(
        "Near copies were left out at a dimension below {}, where chance makes pairs that are as near: {}. The \
         dimension there may be off by more than 5 %.",
        near_copies::RELIABLE_FROM,
        names.join(", ")
    );
    Some((WarningKind::NearCopiesUncertain, text))
}

fn no_growth(facts: &Facts<'_>) -> Option<(WarningKind, String)> {
    let steps = facts.layers.len();
    let grows = facts.layers.iter().filter(|l| l.delta > 0.0).count();
    if 2 * grows > steps {
        return None;
    }
    let how_many = if grows == 0 { "no layer".to_owned() } else { format!("only {grows} of {steps} steps") };
    let text = format!(
        "The dimension of {} grows in {how_many}: where it falls, the published rule gives the least rank.",
        facts.model
    );
    Some((WarningKind::NoGrowth, text))
}

fn noise(facts: &Facts<'_>) -> Option<(WarningKind, String)> {
    let noisy = facts.layers.iter().filter(|l| l.interval[0] <= 0.0 && l.interval[1] >= 0.0);
    let names: Vec<String> = noisy.map(Layer::name).collect();
    if names.is_empty() {
        return None;
    }
    let text = format!(
        "In {} of {} steps the growth is within the noise (its interval holds 0): {}. There the rank is noise too.",
        names.len(),
        facts.layers.len(),
        names.join(", ")
    );
    Some((WarningKind::Noise, text))
}

fn no_plateau(facts: &Facts<'_>) -> Option<(WarningKind, String)> {
    let states = facts.states;
    if states.iter().all(|s| s.decimation.len() < scale::SHORTEST) {
        let text = format!(
            "{} examples are too few to tell whether the dimension depends on their number: that takes about 250.",
            facts.samples
        );
        return Some((WarningKind::TooFewForPlateau, text));
    }
    let is_flat = |s: &&State| s.is_constant() || s.plateau.is_some();
    let without: Vec<&State> = states.iter().filter(|s| !is_flat(s)).collect();
    let drift = |s: &State| scale::drift(&s.decimation).unwrap_or(1.0);
    let worst = without.iter().max_by(|a, b| drift(a).total_cmp(&drift(b)))?;
    let (first, last) = (worst.decimation.first()?, worst.decimation.last()?);
    let text = format!(
        "{} of {} states have no plateau: their dimension depends on the number of points, most in {} ({:.1} from {} \
         points, {:.1} from {}).",
        without.len(),
        states.len(),
        worst.name,
        first.id,
        first.scale,
        last.id,
        last.scale
    );
    let some = without.len() < states.len();
    Some((if some { WarningKind::NoPlateau } else { WarningKind::NoPlateauAtAll }, text))
}

fn no_directions(facts: &Facts<'_>) -> Option<(WarningKind, String)> {
    let measured = facts.modules.iter().filter(|(_, module)| module.directions.is_some());
    let without = |module: &MeasuredModule| module.directions.is_some_and(|directions| directions.number <= 0.0);
    let names: Vec<&str> =
        measured.clone().filter(|(_, module)| without(module)).map(|(name, _)| name.as_str()).collect();
    let all = measured.count();
    let text = match names.len() {
        0 => return None,
        none if none == all => format!(
            "No direction of the gradient replicates in any of {all} modules, so the gradients of {} examples tell no \
             module from another.",
            facts.samples
        ),
        some => format!(
            "In {some} of {all} modules no direction of the gradient replicates: {}. Their rank is not measured.",
            first_names(&names)
        ),
    };
    Some((WarningKind::NoDirections, text))
}

fn level(facts: &Facts<'_>) -> Option<(WarningKind, String)> {
    let mut ranks = facts.modules.values().map(|module| module.rank.rank);
    let first = ranks.next().filter(|_| matches!(facts.policy, Policy::Signal { .. }))?;
    let text = format!("Every module has the rank {first}: by this budget, directions tell no module from another.");
    ranks.all(|rank| rank == first).then_some((WarningKind::Level, text))
}

fn uncertain_directions(facts: &Facts<'_>) -> Option<(WarningKind, String)> {
    let directions = |layer: &Layer| layer.directions.filter(DirectionCount::is_uncertain);
    let describe = |layer: &Layer| {
        let DirectionCount { number, interval: [low, high] } = directions(layer)?;
        Some(format!("{} ({number:.1}, {low:.1} to {high:.1})", layer.name()))
    };
    let names: Vec<String> = facts.layers.iter().filter_map(describe).collect();
    if names.is_empty() {
        return None;
    }
    let text = format!(
        "In {} of {} layers the interval of the number of directions is wider than the number: {}.",
        names.len(),
        facts.layers.len(),
        first_names(&names)
    );
    Some((WarningKind::UncertainDirections, text))
}

/// Returns the first four names and the number of the others.
fn first_names<S: AsRef<str>>(names: &[S]) -> String {
    let first: Vec<&str> = names.iter().take(4).map(AsRef::as_ref).collect();
    let more = if names.len() > 4 { format!(" and {} more", names.len() - 4) } else { String::new() };
    format!("{}{more}", first.join(", "))
}

#[cfg(test)]
mod tests {
    use gelora_id::Estimate;

    use super::*;
    use crate::measure::ModuleRank;

    fn state(name: &str, near_copies: usize) -> State {
        let estimate = Estimate {
            estimator: "two-nn-fit".into(),
            id: 17.8,
            interval: [16.0, 19.0],
            confidence: 0.95,
            n: 2042,
            duplicates: 0,
            near_copies,
            id_with_near_copies: (near_copies > 0).then_some(12.0),
        };
        State { name: name.into(), estimate, decimation: Vec::new(), gride: Vec::new(), plateau: None }
    }

    fn layer(layer: usize, delta: f64) -> Layer {
        Layer {
            layer,
            part: None,
            delta,
            error: 1.0,
            interval: [delta - 2.0, delta + 2.0],
            upper: 0.0,
            rank: 1,
            alpha: 2.0,
            mean_rank: None,
            directions: None,
        }
    }

    fn texts(states: &[State], layers: &[Layer], samples: usize, keeps_near_copies: bool) -> String {
        let (policy, model, stability) = (&Policy::default(), "org/a-decoder", None);
        let modules = &BTreeMap::new();
        let facts = Facts { states, layers, modules, policy, stability, model, samples, keeps_near_copies };
        warnings(&facts).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn warnings_name_the_model_and_the_numbers() {
        let (states, layers) = ([state("embeddings", 0), state("after layer 0", 85)], [layer(0, -1.0), layer(1, -9.0)]);
        let text = texts(&states, &layers, 2127, false);
        assert!(text.contains("of org/a-decoder grows in no layer"), "{text}");
        assert!(text.contains("in 1 of 2 states, most in after layer 0: 85 of 2127 points"), "{text}");
        assert!(text.contains("17.8 without them and 12.0 with them") && text.contains("In 1 of 2 steps"), "{text}");
        assert!(!text.contains("--"), "a library knows no options of a program: {text}");
        assert!(!texts(&states[..1], &layers, 3000, false).contains("Near copies"));
        assert!(!text.contains("chance makes pairs"), "{text}");
        let [mut low, mut without] = [state("after layer 1", 9), state("after layer 2", 0)];
        (low.estimate.id, without.estimate.id) = (2.9, 2.9);
        let text = texts(&[states[1].clone(), low, without], &layers, 2127, false);
        assert!(text.contains("below 3, where chance makes pairs that are as near: after layer 1. The"), "{text}");
        assert!(texts(&states, &layers, 3000, true).contains("Near copies were not looked for"));
    }

    #[test]
    fn modules_without_directions_and_wide_intervals_are_named() {
        let module = |number: f64| {
            let directions = DirectionCount { number, interval: [number; 2] };
            MeasuredModule::new(ModuleRank { rank: 1, alpha: 2.0 }, Some(directions))
        };
        let of = |numbers: &[f64], width: f64| {
            let modules = numbers.iter().enumerate().map(|(m, number)| (format!("m{m}"), module(*number))).collect();
            let directions = DirectionCount { number: 4.0, interval: [4.0 - width / 2.0, 4.0 + width / 2.0] };
            let layers = [Layer { directions: Some(directions), ..layer(0, -1.0) }, layer(1, -1.0)];
            let facts = Facts {
                states: &[],
                layers: &layers,
                modules: &modules,
                policy: &Policy::Gradient { parameters: 9 },
                stability: None,
                model: "a model",
                samples: 500,
                keeps_near_copies: false,
            };
            let of_modules =
                |w: &Warning| matches!(w.kind, WarningKind::NoDirections | WarningKind::UncertainDirections);
            let found = warnings(&facts);
            assert!(!found.iter().any(|w| matches!(w.kind, WarningKind::Noise | WarningKind::NoGrowth)), "{found:?}");
            found.into_iter().filter(of_modules).map(|warning| warning.text).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(of(&[1.0, 2.0], 4.0), "");
        let some = of(&[0.0, 1.0, 0.0, 0.0, 0.0, 0.0], 4.0);
        assert!(some.contains("In 5 of 6 modules") && some.contains("m0, m2, m3, m4 and 1 more"), "{some}");
        assert!(of(&[0.0, 0.0], 4.0).contains("any of 2 modules, so the gradients of 500 examples"));
        assert!(!some.contains("tell no module from another"), "{some}");
        let wide = of(&[1.0], 4.2);
        assert!(wide.contains("In 1 of 2 layers") && wide.contains("layer 0 (4.0, 1.9 to 6.1)"), "{wide}");
    }

    #[test]
    fn equal_ranks_from_directions_are_a_warning() {
        let of = |ranks: &[usize], policy: Policy| {
            let module = |rank| MeasuredModule::new(ModuleRank { rank, alpha: 2.0 }, None);
            let modules = ranks.iter().enumerate().map(|(m, rank)| (format!("m{m}"), module(*rank))).collect();
            let (policy, model) = (&policy, "a model");
            let facts = Facts {
                states: &[],
                layers: &[],
                modules: &modules,
                policy,
                stability: None,
                model,
                samples: 500,
                keeps_near_copies: false,
            };
            warnings(&facts).iter().any(|warning| warning.kind == WarningKind::Level)
        };
        assert!(of(&[4, 4], Policy::Signal { parameters: 9 }));
        assert!(!of(&[4, 5], Policy::Signal { parameters: 9 }));
        assert!(!of(&[4, 4], Policy::Gradient { parameters: 9 }));
    }
}
