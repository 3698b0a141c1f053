//! Rows of any number of classes.
//!
//! The label of a row is a list of names or numbers of classes, or a vector with one value for each class: 0 and 1, or
//! false and true. Labels are vectors if a list repeats 0 or 1, or if all lists have one length, of two or more, and
//! hold nothing else. Then every row must be one.

use std::borrow::Cow;
use std::collections::BTreeSet;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::classes::{Index, any, in_order};
use super::{Dataset, Label};

/// What the list of a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Names or numbers of classes.
    Names,
    /// 0 or 1 for each class.
    Vectors,
}

/// The classes of rows of any number of classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Sets {
    /// At least two, in numeric order if all are integers, else in the order of their names, or in that of the columns
    /// that stand for classes.
    pub names: Vec<String>,
    /// Form of the labels that the classes were found in, if it is known.
    pub form: Option<Form>,
}

/// Returns whether a row has a list of labels.
pub fn has_several(data: &Dataset) -> bool {
    data.examples.iter().any(|example| matches!(example.label, Some(Label::Several(_))))
}

impl Sets {
    /// Returns the classes of the datasets together.
    ///
    /// # Errors
    /// Returns an error if a row has no label or a list of something else, or if there are fewer than two classes.
    pub fn of(datasets: &[&Dataset]) -> Result<Self> {
        let columns = datasets.iter().find(|data| !data.columns.classes.is_empty());
        let vectors = datasets.iter().find_map(|data| vector_length(data, None));
        let (names, form) = match (columns, vectors) {
            (Some(data), _) => (data.columns.classes.clone(), Form::Names),
            (None, Some(length)) => ((0..length).map(|class| class.to_string()).collect(), Form::Vectors),
            (None, None) => (written(datasets)?, Form::Names),
        };
        if names.len() < 2 {
            let files: Vec<String> = datasets.iter().map(|data| data.path.display().to_string()).collect();
            let only = names.first().map_or(String::new(), |name| format!(", \"{name}\""));
            let classes = if names.is_empty() { "no class" } else { "one class" };
            bail!("{}: the rows have {classes}{only}, but multi-label classification needs two", files.join(", "));
        }
        Ok(Self { names, form: Some(form) })
    }

    /// Returns the indices of the classes of every row, in rising order.
    ///
    /// # Errors
    /// Returns an error if a row has no label or a list of something else, if a class is not among the names, or if the
    /// columns that stand for classes lack one.
    pub fn targets(&self, data: &Dataset) -> Result<Vec<Vec<usize>>> {
        let names = &self.names;
        let columns = &data.columns.classes;
        if let Some(missing) = names.iter().find(|name| !columns.is_empty() && !columns.contains(name)) {
            let path = data.path.display();
            bail!("{path}: the class \"{missing}\" has no column; expected --label-columns {}", names.join(","));
        }
        let rows = 0..data.examples.len();
        if vector_length(data, self.form).is_some() {
            return rows.map(|row| vector(data, row, names.len())).collect();
        }
        let index = Index::new(names);
        let set = |row| {
            let classes = of_row(data, row)?.into_iter().map(|name| index.class(&name, data, row));
            let set: BTreeSet<usize> = classes.collect::<Result<_>>()?;
            Ok(set.into_iter().collect())
        };
        rows.map(set).collect()
    }
}

/// Returns the names of the classes that the rows have.
fn written(datasets: &[&Dataset]) -> Result<Vec<String>> {
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

/// Returns the names of the classes of a row.
fn of_row(data: &Dataset, row: usize) -> Result<Vec<Cow<'_, str>>> {
    let list = match any(data, row)? {
        Label::Several(list) => list,
        one => return Ok(vec![one.class_name()]),
    };
    let name = |value: &Value| match value {
        Value::String(name) => Some(name.trim().to_owned()),
        Value::Number(number) => {
            let whole = number.as_f64().filter(|number| number.fract() == 0.0 && (0.0..1e15).contains(number));
            whole.map(|number| format!("{number:.0}"))
        }
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    };
    let names = list.iter().map(|value| match name(value) {
        Some(name) if !name.is_empty() => Ok(Cow::Owned(name)),
        _ => bail!(
            "{}: the list in {} holds {value}, expected names or numbers of classes, or 0 and 1 for each class",
            data.place(row),
            data.columns.labels()
        ),
    });
    names.collect()
}

/// Returns the length of the first vector if labels are vectors. Where `form` says that they are names, only a list
/// that repeats 0 or 1 shows that they are not.
fn vector_length(data: &Dataset, form: Option<Form>) -> Option<usize> {
    if !data.columns.classes.is_empty() {
        return None;
    }
    let lists = || {
        data.examples.iter().filter_map(|example| match &example.label {
            Some(Label::Several(list)) => Some(list),
            _ => None,
        })
    };
    let repeats = |list: &&Vec<Value>| {
        let flags = || list.iter().filter_map(flag);
        flags().filter(|flag| *flag).count() > 1 || flags().filter(|flag| !flag).count() > 1
    };
    if let Some(list) = lists().find(repeats) {
        return Some(list.len());
    }
    let length = lists().next()?.len();
    let is_vector = |list: &Vec<Value>| list.len() == length && list.iter().all(|value| flag(value).is_some());
    let are_vectors = form != Some(Form::Names)
        && length >= 2
        && lists().all(is_vector)
        && data.examples.iter().all(|example| !matches!(example.label, Some(Label::Class(_) | Label::Score(_))));
    are_vectors.then_some(length)
}

/// Returns the classes of a row whose label is a vector of this length.
fn vector(data: &Dataset, row: usize, length: usize) -> Result<Vec<usize>> {
    let wrong = |found: String| {
        anyhow!(
            "{}: {} holds {found}, but other rows have vectors; expected {length} values, 0 or 1 for each class",
            data.place(row),
            data.columns.labels()
        )
    };
    let list = match any(data, row)? {
        Label::Several(list) => list,
        one => return Err(wrong(one.class_name().into_owned())),
    };
    if list.len() != length {
        return Err(wrong(format!("a list of {}", list.len())));
    }
    let mut set = Vec::new();
    for (class, value) in list.iter().enumerate() {
        match flag(value) {
            Some(true) => set.push(class),
            Some(false) => {}
            None => return Err(wrong(value.to_string())),
        }
    }
    Ok(set)
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
