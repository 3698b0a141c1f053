//! Turns labels as written into targets: class indices, sets of class indices, or scores.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow, bail};

use super::classes::{Index, any, in_order};
use super::sets::{self, Form, Sets};
use super::{Dataset, Label};

/// Task that the labels define.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Prediction of one class.
    Classification,
    /// Prediction of any number of classes.
    MultiLabel,
    /// Prediction of one number.
    Regression,
}

/// Set of possible labels.
#[derive(Clone, Debug, PartialEq)]
pub enum LabelSet {
    /// The classes, at least two, in the order of their indices: numeric order if all are integers, else order of
    /// names.
    Classes(Vec<String>),
    /// Classes of which a row has any number.
    Sets(Sets),
    /// All finite numbers.
    Scores,
}

/// Targets of a dataset, row by row.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Indices into [`LabelSet::Classes`].
    Classes(Vec<usize>),
    /// For each row, the indices of its classes in [`LabelSet::Sets`], in rising order.
    Sets(Vec<Vec<usize>>),
    /// Scores.
    Scores(Vec<f64>),
}

/// Returns the label set of the datasets together (usually of the training split only).
///
/// Without a `task`, a row has any number of classes if any label is a [`Label::Several`]; else labels are scores if
/// any of them is a [`Label::Score`], else classes.
///
/// # Errors
/// Returns an error if a row has no label, if there is only one class, if a row has several labels where one is needed,
/// or if a label is no number where scores are needed.
pub fn labels(datasets: &[&Dataset], task: Option<Task>) -> Result<LabelSet> {
    let has_several = || datasets.iter().any(|data| sets::has_several(data));
    if task == Some(Task::MultiLabel) || (task.is_none() && has_several()) {
        return Sets::of(datasets).map(LabelSet::Sets);
    }
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
    let is_regression = match task {
        Some(task) => task == Task::Regression,
        None => first_score.is_some(),
    };
    match (is_regression, first_other) {
        (false, _) => classes(datasets, names),
        (true, None) => Ok(LabelSet::Scores),
        (true, Some((data, row, name))) => match first_score {
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
    let names = in_order(names);
    match names.as_slice() {
        [] => bail!("no rows, so no labels"),
        [only] => {
            let files: Vec<String> = datasets.iter().map(|d| d.path.display().to_string()).collect();
            bail!("{}: every row has the label \"{only}\", but classification needs two classes", files.join(", "))
        }
        _ => Ok(LabelSet::Classes(names)),
    }
}

/// Returns the one label of a row, or an error if it has none or a list.
fn required(data: &Dataset, row: usize) -> Result<&Label> {
    let label = any(data, row)?;
    if let Label::Several(list) = label {
        bail!(
            "{}: {} holds a list of {} labels, expected one label; a model for rows of several classes is trained with \
             --task multi-label",
            data.place(row),
            data.columns.labels(),
            list.len()
        );
    }
    Ok(label)
}

/// Returns the number of rows of each class, in the order of the set. Returns None if labels are scores, missing or not
/// in the set.
pub fn counts(data: &Dataset, set: &LabelSet) -> Option<Vec<(String, usize)>> {
    let targets = match set.targets(data).ok()? {
        Targets::Classes(classes) => classes,
        Targets::Sets(sets) => sets.concat(),
        Targets::Scores(_) => return None,
    };
    let mut counts: Vec<(String, usize)> = set.names().iter().map(|name| (name.clone(), 0)).collect();
    targets.into_iter().for_each(|class| counts[class].1 += 1);
    Some(counts)
}

impl LabelSet {
    /// Returns the names of the classes; none for scores.
    pub fn names(&self) -> &[String] {
        match self {
            LabelSet::Classes(names) | LabelSet::Sets(Sets { names, .. }) => names,
            LabelSet::Scores => &[],
        }
    }

    /// Returns the form of the labels, if a row may be of several classes and it is known.
    pub fn form(&self) -> Option<Form> {
        match self {
            LabelSet::Sets(sets) => sets.form,
            LabelSet::Classes(_) | LabelSet::Scores => None,
        }
    }

    /// Returns the targets of a dataset.
    ///
    /// # Errors
    /// Returns an error if a row has no label, if its class is not in the set, or if its label is not a number where
    /// scores are needed.
    pub fn targets(&self, data: &Dataset) -> Result<Targets> {
        let rows = 0..data.examples.len();
        match self {
            LabelSet::Classes(names) => {
                let index = Index::new(names);
                let class = |row| index.class(&required(data, row)?.class_name(), data, row);
                rows.map(class).collect::<Result<_>>().map(Targets::Classes)
            }
            LabelSet::Sets(sets) => sets.targets(data).map(Targets::Sets),
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
