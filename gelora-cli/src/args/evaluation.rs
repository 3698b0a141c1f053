//! Options of the evaluations during a training, and of the loss.

use std::fmt;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use gelora_model::train::{Interval, Keep};

use super::parse::{at_least_one, interval, positive, share};

/// The adapter that a training ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeepArg {
    /// The adapter of the best evaluation by --metric
    Best,
    /// The adapter of the last step
    Last,
}

impl From<KeepArg> for Keep {
    fn from(keep: KeepArg) -> Self {
        match keep {
            KeepArg::Best => Self::Best,
            KeepArg::Last => Self::Last,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct EvaluationArgs {
    /// Evaluate every N optimizer steps, or every SHARE of an epoch: a number with a decimal point is a share (0.25 is
    /// four times an epoch, 2.0 every second epoch), one without is steps [default: 1.0]. The end is always evaluated
    #[arg(long, value_name = "N|SHARE", value_parser = interval)]
    pub eval_every: Option<Interval>,
    /// Metric that evaluations are compared by [default: accuracy of classes, micro_f1 of rows with
    /// several, pearson of scores, loss of a language model]
    #[arg(long, value_name = "NAME", visible_alias = "metric-for-best-model")]
    pub metric: Option<String>,
    /// Adapter to write at the end [default: last, or best with --patience]
    #[arg(long, value_enum)]
    pub keep: Option<KeepArg>,
    /// Stop after K evaluations in a row without a better value of --metric; an equal value is not better
    #[arg(long, value_name = "K", value_parser = at_least_one, visible_alias = "early-stopping-patience")]
    pub patience: Option<usize>,
}

impl EvaluationArgs {
    /// Returns the adapter to keep.
    pub fn keep(&self) -> Keep {
        match (self.keep, self.patience) {
            (Some(keep), _) => keep.into(),
            (None, Some(_)) => Keep::Best,
            (None, None) => Keep::Last,
        }
    }

    /// Returns true if the result depends on how evaluations compare.
    pub fn are_compared(&self) -> bool {
        self.metric.is_some() || self.patience.is_some() || self.keep() == Keep::Best
    }

    /// Returns the first of these options that needs evaluation data, if one is given.
    pub fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("--eval-every", self.eval_every.is_some()),
            ("--metric", self.metric.is_some()),
            ("--keep best", self.keep == Some(KeepArg::Best)),
            ("--patience", self.patience.is_some()),
        ];
        given.into_iter().find(|(_, is_given)| *is_given).map(|(option, _)| option)
    }
}

/// Weights of the classes as the command line has them.
#[derive(Clone, Debug, PartialEq)]
pub enum ClassWeights {
    /// Rows / (number of classes x rows of the class), as scikit-learn's `balanced`.
    Balanced,
    /// A weight for each of these classes, and 1 for all others.
    Given(Vec<(String, f64)>),
}

impl FromStr for ClassWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "balanced" {
            return Ok(Self::Balanced);
        }
        let mut given: Vec<(String, f64)> = Vec::new();
        for part in text.split(',') {
            let Some((label, weight)) = part.trim().rsplit_once('=') else {
                return Err(format!("{part:?}: expected balanced, or LABEL=WEIGHT for each of some classes"));
            };
            let weight = positive(weight).map_err(|expected| format!("weight of {label}: {expected}"))?;
            if given.iter().any(|(other, _)| other == label) {
                return Err(format!("{label} has two weights"));
            }
            given.push((label.to_owned(), weight));
        }
        Ok(Self::Given(given))
    }
}

impl fmt::Display for ClassWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balanced => f.write_str("balanced"),
            Self::Given(given) => {
                let all: Vec<String> = given.iter().map(|(label, weight)| format!("{label}={weight}")).collect();
                f.write_str(&all.join(","))
            }
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct LossArgs {
    /// Weight of each class in the loss: balanced (rows / (number of classes x rows of the class)), or a list; classes
    /// that are not in the list have the weight 1
    #[arg(long, value_name = "balanced|LABEL=WEIGHT,...")]
    pub class_weights: Option<ClassWeights>,
    /// Label smoothing: share of every target that is spread evenly over all classes
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    #[arg(visible_alias = "label-smoothing-factor")]
    pub label_smoothing: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_point_makes_a_share() {
        assert_eq!(interval("20"), Ok(Interval::Steps(20)));
        assert_eq!(interval("1"), Ok(Interval::Steps(1)));
        assert_eq!(interval("1.0"), Ok(Interval::Epochs(1.0)));
        assert_eq!(interval("0.25"), Ok(Interval::Epochs(0.25)));
        for text in ["0", "0.0", "-1", "-0.5", "1e-1", "often", "", "."] {
            assert!(interval(text).is_err_and(|e| e.contains("decimal point")), "{text}");
        }
    }

    #[test]
    fn weights_of_classes() {
        assert_eq!("balanced".parse(), Ok(ClassWeights::Balanced));
        let given = ClassWeights::Given(vec![("yes".into(), 2.0), ("a=b".into(), 0.5)]);
        assert_eq!("yes=2,a=b=0.5".parse(), Ok(given.clone()));
        assert_eq!(given.to_string(), "yes=2,a=b=0.5");
        for text in ["", "yes", "yes=", "yes=0", "yes=-1", "yes=inf", "yes=2,", "yes=2,yes=3"] {
            assert!(text.parse::<ClassWeights>().is_err(), "{text}");
        }
    }
}
