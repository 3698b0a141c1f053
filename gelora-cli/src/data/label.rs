//! Label of one row, as the file has it.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

/// A label as the file has it. [`labels`](super::labels()) decides whether it is a class or a score.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// A string, an integer or a truth value, as written.
    Class(Arc<str>),
    /// A number with a decimal point, or any number of a score column. It is finite.
    Score(f64),
    /// A list of labels for one row, of any number but one: a list of one is its only value, unless labels are known to
    /// be lists (`--label-columns`, `--label-separator`).
    Several(Vec<Value>),
}

impl Label {
    /// Returns the label as a number, if it is one.
    pub fn score(&self) -> Option<f64> {
        match self {
            Label::Score(score) => Some(*score),
            Label::Class(name) => name.trim().parse().ok().filter(|score: &f64| score.is_finite()),
            Label::Several(_) => None,
        }
    }

    /// Returns the class that the label names; 1.0 is the class 1.
    pub fn class_name(&self) -> Cow<'_, str> {
        match self {
            Label::Class(name) => Cow::Borrowed(name),
            Label::Score(score) => Cow::Owned(score.to_string()),
            Label::Several(list) => Cow::Owned(Value::from(list.clone()).to_string()),
        }
    }
}
