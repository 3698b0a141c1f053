//! The loss of a training: weights of the classes.

use anyhow::{Result, bail};
use gelora_model::Labels;

use crate::args::{ClassWeights, LossArgs};
use crate::data::LabelSet;
use crate::ui;

/// Returns the weight of each class, in the order of the label set; none if all are 1.
///
/// # Errors
/// Returns an error if an option of the loss is given and the task is not classification, a name is not among the
/// classes, or no row has a class that is to be balanced.
pub fn loss_weights(args: &LossArgs, labels: Option<&LabelSet>, rows: Labels<'_>, quiet: bool) -> Result<Vec<f64>> {
    let (Some(LabelSet::Classes(names)), Labels::Classes(rows)) = (labels, rows) else {
        let task = match labels {
            Some(LabelSet::Sets(_)) => "multi-label classification",
            Some(_) => "regression",
            None => "a language model",
        };
        if args.class_weights.is_some() {
            bail!("--class-weights: the task is {task}; expected classes that exclude each other");
        }
        if args.label_smoothing > 0.0 {
            bail!("--label-smoothing: the task is {task}; expected classes that exclude each other");
        }
        return Ok(Vec::new());
    };
    let Some(weights) = &args.class_weights else { return Ok(Vec::new()) };
    let weights = class_weights(weights, names, rows)?;
    let shown = names.iter().zip(&weights).map(|(name, weight)| format!("{name} {weight:.4}"));
    ui::note(quiet, format!("class weights: {}", shown.collect::<Vec<_>>().join(", ")));
    Ok(weights)
}

fn class_weights(weights: &ClassWeights, names: &[String], rows: &[usize]) -> Result<Vec<f64>> {
    match weights {
        ClassWeights::Balanced => {
            let mut counts = vec![0usize; names.len()];
            rows.iter().for_each(|class| counts[*class] += 1);
            if let Some(class) = counts.iter().position(|count| *count == 0) {
                bail!("--class-weights balanced: no training row has the label \"{}\"", names[class]);
            }
            let weight = |count: &usize| rows.len() as f64 / (names.len() * count) as f64;
            Ok(counts.iter().map(weight).collect())
        }
        ClassWeights::Given(given) => {
            let mut weights = vec![1.0; names.len()];
            for (label, weight) in given {
                let Some(class) = names.iter().position(|name| name == label) else {
                    bail!("--class-weights: \"{label}\" is not a class; expected some of {}", names.join(", "));
                };
                weights[class] = *weight;
            }
            Ok(weights)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_weights_are_those_of_scikit_learn() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let of = |weights: &ClassWeights, rows: &[usize]| class_weights(weights, &names, rows);
        // compute_class_weight("balanced"): 6 / (3 x (3, 2, 1)).
        let balanced = of(&ClassWeights::Balanced, &[0, 1, 0, 2, 1, 0]).expect("every class has rows");
        assert_eq!(balanced, [6.0 / 9.0, 1.0, 2.0]);
        assert!(of(&ClassWeights::Balanced, &[0, 1]).expect_err("no c").to_string().contains("label \"c\""));
        let given = ClassWeights::Given(vec![("c".into(), 3.0)]);
        assert_eq!(of(&given, &[0]).expect("it is known"), [1.0, 1.0, 3.0]);
        let unknown = ClassWeights::Given(vec![("d".into(), 3.0)]);
        assert!(of(&unknown, &[0]).expect_err("no d").to_string().contains("some of a, b, c"));
    }

    #[test]
    fn other_tasks_have_no_class_weights() {
        let args = |class_weights, label_smoothing| LossArgs { class_weights, label_smoothing };
        let fails = |args: &LossArgs, labels: Option<&LabelSet>| {
            loss_weights(args, labels, Labels::None, true).expect_err("no classes").to_string()
        };
        let balanced = args(Some(ClassWeights::Balanced), 0.0);
        assert!(fails(&balanced, Some(&LabelSet::Scores)).contains("--class-weights: the task is regression"));
        assert!(fails(&args(None, 0.1), None).contains("--label-smoothing: the task is a language model"));
        assert!(loss_weights(&args(None, 0.0), None, Labels::None, true).expect("plain").is_empty());
    }
}
