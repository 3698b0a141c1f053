//! Rows of any number of classes.
//!
//! The label of a row is a list of names or numbers of classes, or of one value for each class: 0 and 1, or false and
//! true. It is the second if all lists have one length, which is at least two, and hold nothing else.

use std::borrow::Cow;
use std::collections::BTreeSet;

use anyhow::{Result, bail};
use serde_json::Value;

use super::classes::{Index, any, in_order};
use super::{Dataset, Label};

/// Returns whether a row has a list of labels.
pub fn has_several(data: &Dataset) -> bool {
    data.examples.iter().any(|example| matches!(example.label, Some(Label::Several(_))))
}

/// Returns the names of the classes of the datasets together.
///
/// # Errors
/// Returns an error if a row has no label or a list of something else, or if there are fewer than two classes.
pub fn names(datasets: &[&Dataset]) -> Result<Vec<String>> {
    let names = match datasets.iter().find(|data| !data.columns.classes.is_empty()) {
        Some(data) => data.columns.classes.clone(),
        None => written(datasets)?,
    };
    if names.len() < 2 {
        let files: Vec<String> = datasets.iter().map(|data| data.path.display().to_string()).collect();
        let only = names.first().map_or(String::new(), |name| format!(", \"{name}\""));
        let classes = if names.is_empty() { "no class" } else { "one class" };
        bail!("{}: the rows have {classes}{only}, but multi-label classification needs two", files.join(", "));
    }
    Ok(names)
}

/// Returns the names of the classes that the rows have.
fn written(datasets: &[&Dataset]) -> Result<Vec<String>> {
    let lengths: BTreeSet<Option<usize>> = datasets.iter().map(|data| flags(data)).collect();
    if let (1, Some(Some(length))) = (lengths.len(), lengths.first()) {
        return Ok((0..*length).map(|class| class.to_string()).collect());
    }
    let mut names = BTreeSet::new();
    for data in datasets {
        for row in 0..data.examples.len() {
            for name in of_row(data, row)? {
                if !names.contains(&*name) {
                    names.insert(name.into_owned());
                }
            }
        }
    }
    Ok(in_order(names))
}

/// Returns the indices of the classes of every row, in rising order.
///
/// # Errors
/// Returns an error if a row has no label or a list of something else, or if a class is not among `names`.
pub fn targets(data: &Dataset, names: &[String]) -> Result<Vec<Vec<usize>>> {
    let are_numbers = || names.iter().enumerate().all(|(class, name)| *name == class.to_string());
    if flags(data) == Some(names.len()) && are_numbers() {
        let set = |label: &Label| match label {
            Label::Several(list) => (0..list.len()).filter(|class| flag(&list[*class]) == Some(true)).collect(),
            _ => Vec::new(),
        };
        return (0..data.examples.len()).map(|row| any(data, row).map(set)).collect();
    }
    let index = Index::new(names);
    let set = |row| {
        let classes = of_row(data, row)?.into_iter().map(|name| index.class(&name, data, row));
        let set: BTreeSet<usize> = classes.collect::<Result<_>>()?;
        Ok(set.into_iter().collect())
    };
    (0..data.examples.len()).map(set).collect()
}

/// Returns the names of the classes of a row.
fn of_row(data: &Dataset, row: usize) -> Result<Vec<Cow<'_, str>>> {
    let list = match any(data, row)? {
        Label::Several(list) => list,
        one => return Ok(vec![one.class_name()]),
    };
    let name = |value: &'_ Value| match value {
        Value::String(name) => Some(name.trim().to_owned()),
        Value::Number(number) => Some(match number.as_f64() {
            Some(number) if number.fract() == 0.0 && number.abs() < 1e15 => format!("{number:.0}"),
            _ => number.to_string(),
        }),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    };
    let names = list.iter().map(|value| match name(value) {
        Some(name) if !name.is_empty() => Ok(Cow::Owned(name)),
        _ => bail!(
            "{}: the list in {} holds {value}, expected names or numbers of classes",
            data.place(row),
            data.columns.labels()
        ),
    });
    names.collect()
}

/// Returns the number of classes if every row has one value for each class.
fn flags(data: &Dataset) -> Option<usize> {
    let length = |label: &Option<Label>| match label {
        Some(Label::Several(list)) if list.iter().all(|value| flag(value).is_some()) => Some(list.len()),
        _ => None,
    };
    let first = length(&data.examples.first()?.label)?;
    let is_same = data.examples.iter().all(|example| length(&example.label) == Some(first));
    (is_same && first >= 2 && data.columns.separator.is_none() && data.columns.classes.is_empty()).then_some(first)
}

/// Returns the truth that a value stands for.
fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::Number(number) if number.as_f64() == Some(1.0) => Some(true),
        Value::Number(number) if number.as_f64() == Some(0.0) => Some(false),
        _ => None,
    }
}
