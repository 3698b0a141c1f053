//! Turns labels as written into targets: class indices or scores.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, anyhow, bail};

use super::{Dataset, Label, columns};

/// Task that the labels define.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Prediction of one class.
    Classification,
    /// Prediction of one number.
    Regression,
}

/// Set of possible labels.
#[derive(Clone, Debug, PartialEq)]
pub enum LabelSet {
    /// The classes, at least two, in the order of their indices: numeric order if all are integers, else order of
    /// names.
    Classes(Vec<String>),
    /// All finite numbers.
    Scores,
}

/// Targets of a dataset, row by row.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Indices into [`LabelSet::Classes`].
    Classes(Vec<usize>),
    /// Scores.
    Scores(Vec<f64>),
}

/// Returns the label set of the datasets together (usually of the training split only).
///
/// Without a `task`, labels are scores if any of them is a [`Label::Score`], else classes.
///
/// # Errors
/// Returns an error if a row has no label, if there is only one class, or if a label is no number where scores are
/// needed.
pub fn labels(datasets: &[&Dataset], task: Option<Task>) -> Result<LabelSet> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    let mut first_score: Option<(&Dataset, usize, f64)> = None;
    let mut first_other: Option<(&Dataset, usize, &str)> = None;
    for data in datasets {
        for row in 0..data.examples.len() {
            let label = required(data, row)?;
            match label {
                Label::Score(score) if first_score.is_none() => first_score = Some((data, row, *score)),
                Label::Class(name) if first_other.is_none() && label.score().is_none() => {
                    first_other = Some((data, row, name));
                }
                _ => {}
            }
            // Names of scores are not needed, and there may be as many as rows.
            let name = match label {
                Label::Score(_) if task != Some(Task::Classification) => continue,
                label => label.class_name(),
            };
            if !names.contains(&*name) {
                names.insert(name.into_owned());
            }
        }
    }
    let task = task.unwrap_or(if first_score.is_some() { Task::Regression } else { Task::Classification });
    match (task, first_other) {
        (Task::Classification, _) => classes(datasets, names),
        (Task::Regression, None) => Ok(LabelSet::Scores),
        (Task::Regression, Some((data, row, name))) => match first_score {
            Some((scored, score_row, score)) => bail!(
                "{}: the label \"{name}\" is not a number, but {score} is (row {} of {}); say what they are with \
                 --task",
                data.place(row),
                score_row + 1,
                scored.path.display()
            ),
            None => bail!("{}: the label \"{name}\" is not a number, as regression needs", data.place(row)),
        },
    }
}

/// Returns the classes in their order.
fn classes(datasets: &[&Dataset], names: BTreeSet<String>) -> Result<LabelSet> {
    let mut names: Vec<String> = names.into_iter().collect();
    let numbers: Option<Vec<i128>> = names.iter().map(|name| name.parse().ok()).collect();
    if numbers.is_some() {
        names.sort_by_key(|name| name.parse::<i128>().unwrap_or_default());
    }
    match names.as_slice() {
        [] => bail!("no rows, so no labels"),
        [only] => {
            let files: Vec<String> = datasets.iter().map(|d| d.path.display().to_string()).collect();
            bail!("{}: every row has the label \"{only}\", but classification needs two classes", files.join(", "))
        }
        _ => Ok(LabelSet::Classes(names)),
    }
}

/// Returns the label of a row, or an error if it has none.
fn required(data: &Dataset, row: usize) -> Result<&Label> {
    let label = data.examples[row].label.as_ref();
    if let Some(Label::Several(list)) = label {
        bail!(
            "{}: \"{}\" holds a list of {} labels; several labels a row (multi-label) are not supported, expected one",
            data.place(row),
            data.columns.label.as_deref().unwrap_or_default(),
            list.len()
        );
    }
    label.ok_or_else(|| match &data.columns.label {
        Some(column) => anyhow!("{}: no label in \"{column}\"", data.place(row)),
        None => anyhow!(
            "{}: no label column recognized; the columns are {}: name one with --label-column",
            data.path.display(),
            columns::list(&data.columns.all)
        ),
    })
}

/// Returns the number of rows of each class, in the order of the set. Returns None if labels are scores, missing or not
/// in the set.
pub fn counts(data: &Dataset, set: &LabelSet) -> Option<Vec<(String, usize)>> {
    let (LabelSet::Classes(names), Ok(Targets::Classes(targets))) = (set, set.targets(data)) else { return None };
    let mut counts: Vec<(String, usize)> = names.iter().map(|name| (name.clone(), 0)).collect();
    targets.into_iter().for_each(|class| counts[class].1 += 1);
    Some(counts)
}

impl LabelSet {
    /// Returns the targets of a dataset.
    ///
    /// # Errors
    /// Returns an error if a row has no label, if its class is not in the set, or if its label is not a number where
    /// scores are needed.
    pub fn targets(&self, data: &Dataset) -> Result<Targets> {
        let rows = 0..data.examples.len();
        match self {
            LabelSet::Classes(names) => {
                let index: HashMap<&str, usize> = names.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
                // A model from another program may spell its truth values differently.
                let truth = |name: &str| {
                    let is_truth = ["true", "false"].contains(&name);
                    names.iter().position(|other| is_truth && other.eq_ignore_ascii_case(name))
                };
                let class = |row| {
                    let name = required(data, row)?.class_name();
                    index.get(&*name).copied().or_else(|| truth(&name)).ok_or_else(|| {
                        anyhow!(
                            "{}: the label \"{name}\" is not among those trained on: {}",
                            data.place(row),
                            columns::list(names)
                        )
                    })
                };
                rows.map(class).collect::<Result<_>>().map(Targets::Classes)
            }
            LabelSet::Scores => {
                let score = |row| {
                    let label = required(data, row)?;
                    label.score().ok_or_else(|| {
                        anyhow!("{}: the label \"{}\" is not a number", data.place(row), label.class_name())
                    })
                };
                rows.map(score).collect::<Result<_>>().map(Targets::Scores)
            }
        }
    }
}
