//! Names of classes, their order, and the labels of rows.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, anyhow};

use super::{Dataset, Label, columns};

/// Finds the index of a class by its name.
pub struct Index<'a> {
    names: &'a [String],
    of_names: HashMap<&'a str, usize>,
}

impl<'a> Index<'a> {
    pub fn new(names: &'a [String]) -> Self {
        Self { names, of_names: names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect() }
    }

    /// Returns the index of a class, or an error that names the row.
    pub fn class(&self, name: &str, data: &Dataset, row: usize) -> Result<usize> {
        // A model from another program may spell its truth values differently.
        let truth = || {
            let is_truth = ["true", "false"].contains(&name);
            self.names.iter().position(|other| is_truth && other.eq_ignore_ascii_case(name))
        };
        self.of_names.get(name).copied().or_else(truth).ok_or_else(|| {
            anyhow!(
                "{}: the label \"{name}\" is not among those trained on: {}",
                data.place(row),
                columns::list(self.names)
            )
        })
    }
}

/// Returns the label or labels of a row, or an error if it has none.
pub fn any(data: &Dataset, row: usize) -> Result<&Label> {
    let label = data.examples[row].label.as_ref();
    label.ok_or_else(|| match data.columns.has_labels() {
        true => anyhow!("{}: no label in {}", data.place(row), data.columns.labels()),
        false => anyhow!(
            "{}: no label column recognized; the columns are {}: name one with --label-column, or one \
             for each class with --label-columns",
            data.path.display(),
            columns::list(&data.columns.all)
        ),
    })
}

/// Returns the classes in numeric order if all are integers, else in the order of their names.
pub fn in_order(names: BTreeSet<String>) -> Vec<String> {
    let mut names: Vec<String> = names.into_iter().collect();
    let numbers: Option<Vec<i128>> = names.iter().map(|name| name.parse().ok()).collect();
    if numbers.is_some() {
        names.sort_by_key(|name| name.parse::<i128>().unwrap_or_default());
    }
    names
}
