//! What speaks against trusting the ranks of this model on these examples, and what to do about it, in plain sentences.

use gelora_id::{NearCopies, scale};
use gelora_lora::ranks::Policy;

use super::{Layer, Stability, State};

/// What is known of a measurement.
pub struct Facts<'a> {
    pub states: &'a [State],
    pub layers: &'a [Layer],
    pub policy: &'a Policy,
    pub stability: Option<&'a Stability>,
    /// The model, as it was named.
    pub model: String,
    /// Examples measured.
    pub samples: usize,
    /// Examples that the data has.
    pub examples: usize,
    pub near_copies: NearCopies,
}

/// Every warning that applies.
pub fn warnings(facts: &Facts<'_>) -> Vec<String> {
    let follows = matches!(facts.policy, Policy::Gelora { .. } | Policy::Shuffled { .. } | Policy::Budget { .. });
    let found = [
        near_copies(facts),
        no_growth(facts).filter(|_| follows),
        noise(facts),
        no_plateau(facts),
        facts.stability.filter(|s| !s.enough).map(|s| s.verdict.clone()),
    ];
    found.into_iter().flatten().collect()
}

fn near_copies(facts: &Facts<'_>) -> Option<String> {
    if facts.near_copies == NearCopies::Keep {
        return Some(
            "Near copies were not looked for (--near-copies keep): a few per cent of them change a dimension by half."
                .into(),
        );
    }
    let states = facts.states;
    let affected = states.iter().filter(|s| s.estimate.near_copies > 0).count();
    let worst = states.iter().max_by_key(|s| s.estimate.near_copies).filter(|_| affected > 0)?;
    let estimate = &worst.estimate;
    let with = match estimate.id_with_near_copies {
        Some(with) => format!("{:.1} without them and {with:.1} with them", estimate.id),
        None => format!("{:.1} without them and cannot be estimated with them", estimate.id),
    };
    Some(format!(
        "Near copies of other examples were left out in {affected} of {} states, most in {}: {} of {} points, whose dimension is {with}. If \
         they are meant to count, --near-copies keep measures them too.",
        states.len(),
        worst.name,
        estimate.near_copies,
        estimate.n + estimate.near_copies,
    ))
}

fn no_growth(facts: &Facts<'_>) -> Option<String> {
    let layers = facts.layers;
    let grows = layers.iter().filter(|l| l.delta > 0.0).count();
    (2 * grows <= layers.len()).then(|| {
        let how_many = if grows == 0 { "no layer".to_owned() } else { format!("only {grows} of {} steps", layers.len()) };
        format!(
            "The dimension of {} grows in {how_many}: where it falls, the published rule gives the least rank. To spend more there, \
             --budget-rank R spreads the parameters of a uniform rank R, and --min-rank R sets a floor; the table of policies shows what each would do.",
            facts.model
        )
    })
}

fn noise(facts: &Facts<'_>) -> Option<String> {
    let layers = facts.layers;
    let noisy = layers.iter().filter(|l| l.interval[0] <= 0.0 && l.interval[1] >= 0.0);
    let unsure: Vec<String> = noisy.map(Layer::name).collect();
    (!unsure.is_empty()).then(|| {
        let advice = if facts.samples < facts.examples {
            format!("More of the {} examples (--samples, now {}) narrow the intervals.", facts.examples, facts.samples)
        } else {
            format!("All {} examples were measured: more data would narrow the intervals, and --policy gelora-upper takes their upper ends.", facts.samples)
        };
        format!(
            "In {} of {} steps the growth is within the noise (its interval holds 0): {}. There the rank is noise too. {advice}",
            unsure.len(),
            layers.len(),
            unsure.join(", ")
        )
    })
}

fn no_plateau(facts: &Facts<'_>) -> Option<String> {
    let states = facts.states;
    if states.iter().all(|s| s.decimation.len() < scale::SHORTEST) {
        return Some(format!(
            "{} examples are too few to tell whether the dimension depends on their number: that takes about 250.",
            facts.samples
        ));
    }
    let flat = |s: &&State| s.is_constant() || s.plateau.is_some();
    let without: Vec<&State> = states.iter().filter(|s| !flat(s)).collect();
    let moves = |s: &State| scale::drift(&s.decimation).unwrap_or(1.0);
    let worst = without.iter().max_by(|a, b| moves(a).total_cmp(&moves(b)))?;
    let (first, last) = (worst.decimation.first()?, worst.decimation.last()?);
    let advice = if without.len() < states.len() {
        "--scale plateau takes all growths at the scale of most plateaus."
    } else {
        "Compare dimensions of one number of examples only, and look at --stability before relying on a rank."
    };
    Some(format!(
        "{} of {} states have no plateau: their dimension depends on the number of points, most in {} ({:.1} from {} points, {:.1} from {}). {advice}",
        without.len(),
        states.len(),
        worst.name,
        first.id,
        first.scale,
        last.id,
        last.scale
    ))
}

#[cfg(test)]
mod tests {
    use gelora_id::Estimate;

    use super::*;

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
        }
    }

    fn said(states: &[State], layers: &[Layer], samples: usize, near_copies: NearCopies) -> String {
        let policy = Policy::default();
        let (model, examples, stability) = ("org/a-decoder".into(), 3000, None);
        let facts = Facts { states, layers, policy: &policy, stability, model, samples, examples, near_copies };
        warnings(&facts).join("\n")
    }

    #[test]
    fn warnings_speak_of_this_model_and_say_what_to_do() {
        let (states, layers) = ([state("embeddings", 0), state("after layer 0", 85)], [layer(0, -1.0), layer(1, -9.0)]);
        let text = said(&states, &layers, 2127, NearCopies::Drop);
        assert!(text.contains("of org/a-decoder grows in no layer") && text.contains("--budget-rank R"), "{text}");
        assert!(!text.contains("sentence encoders"), "{text}");
        assert!(text.contains("in 1 of 2 states, most in after layer 0: 85 of 2127 points"), "{text}");
        assert!(text.contains("17.8 without them and 12.0 with them") && text.contains("--near-copies keep"), "{text}");
        assert!(
            text.contains("In 1 of 2 steps") && text.contains("More of the 3000 examples (--samples, now 2127)"),
            "{text}"
        );
        let all = said(&states[..1], &layers, 3000, NearCopies::Drop);
        assert!(all.contains("All 3000 examples were measured") && !all.contains("Near copies"), "{all}");
        assert!(said(&states, &layers, 3000, NearCopies::Keep).contains("Near copies were not looked for"));
    }
}
