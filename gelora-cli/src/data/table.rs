//! Common form of all formats: a schema of named columns, and rows of cells.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::Value;

use super::Label;

/// One value of a row, before its role is known.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Absent, null, or a NaN in parquet.
    Null,
    /// A string from a typed format.
    Text(String),
    /// A cell of CSV or TSV, which may be a text or a number.
    Untyped(String),
    /// An integer.
    Integer(i128),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A list or an object.
    Nested(Value),
}

impl Cell {
    /// Returns the kind of the cell for messages.
    fn kind(&self) -> &'static str {
        match self {
            Cell::Null => "nothing",
            Cell::Text(_) | Cell::Untyped(_) => "a string",
            Cell::Integer(_) => "an integer",
            Cell::Float(_) => "a number",
            Cell::Bool(_) => "a truth value",
            Cell::Nested(Value::Array(_)) => "a list",
            Cell::Nested(_) => "an object",
        }
    }

    /// Returns the text of a text column.
    pub fn into_text(self, column: &str, place: &dyn Fn() -> String) -> Result<String> {
        match self {
            Cell::Text(text) | Cell::Untyped(text) => Ok(text),
            Cell::Null => bail!("{}: no \"{column}\", but every row needs its text", place()),
            other => bail!("{}: \"{column}\" holds {}, expected a string", place(), other.kind()),
        }
    }

    /// Returns the text of an optional text column.
    pub fn into_optional_text(self, column: &str, place: &dyn Fn() -> String) -> Result<Option<String>> {
        match self {
            Cell::Null => Ok(None),
            Cell::Untyped(text) if text.is_empty() => Ok(None),
            cell => cell.into_text(column, place).map(Some),
        }
    }

    /// Returns the label of a label column, or None if the cell is empty. With `scores` every number is a score. Truth
    /// values of every format and spelling become the classes `true` and `false`.
    pub fn into_label(self, column: &str, scores: bool, place: &dyn Fn() -> String) -> Result<Option<Label>> {
        Ok(Some(match self {
            Cell::Null => return Ok(None),
            Cell::Text(text) | Cell::Untyped(text) if text.trim().is_empty() => return Ok(None),
            // A list that a table holds as text.
            Cell::Text(text) | Cell::Untyped(text) if list(&text).is_some() => {
                let list = Cell::Nested(Value::from(list(&text).unwrap_or_default()));
                return list.into_label(column, scores, place);
            }
            Cell::Text(text) => class(&text),
            Cell::Untyped(text) => {
                let text = text.trim();
                // In an untyped format, a decimal point distinguishes a score from a class number.
                match text.parse::<f64>() {
                    Ok(score) if score.is_finite() && (scores || text.contains('.')) => Label::Score(score),
                    _ => class(text),
                }
            }
            Cell::Integer(number) if scores => Label::Score(number as f64),
            Cell::Integer(number) => Label::Class(number.to_string().into()),
            Cell::Float(number) if number.is_finite() => Label::Score(number),
            Cell::Float(number) => bail!("{}: \"{column}\" is {number}, expected a finite number", place()),
            Cell::Bool(truth) => Label::Class(truth.to_string().into()),
            Cell::Nested(Value::Array(mut list)) if list.len() == 1 => {
                return Cell::from(list.remove(0)).into_label(column, scores, place);
            }
            Cell::Nested(Value::Array(list)) => Label::Several(list),
            other => bail!("{}: \"{column}\" holds {}, expected a string or a number", place(), other.kind()),
        }))
    }
}

impl Cell {
    /// Returns the labels of a cell of text, or of a list. An empty text is a row without any class.
    pub fn into_labels(self, column: &str, separator: &str, place: &dyn Fn() -> String) -> Result<Option<Label>> {
        Ok(match self {
            Cell::Null => None,
            Cell::Text(text) | Cell::Untyped(text) => {
                let names = text.split(separator).map(str::trim).filter(|name| !name.is_empty());
                // A number stays one: vectors of 0 and 1 are recognized by their numbers.
                let value = |name: &str| name.parse::<u64>().map_or_else(|_| Value::from(name), Value::from);
                Some(Label::Several(names.map(value).collect()))
            }
            Cell::Nested(Value::Array(list)) => Some(Label::Several(list)),
            cell => cell.into_label(column, false, place)?,
        })
    }

    /// Returns whether a row is of the class that the column stands for, or None if the cell is empty.
    pub fn into_flag(self, column: &str, place: &dyn Fn() -> String) -> Result<Option<bool>> {
        let shown = match &self {
            Cell::Null => return Ok(None),
            Cell::Bool(truth) => return Ok(Some(*truth)),
            Cell::Text(text) | Cell::Untyped(text) => text.trim().to_owned(),
            Cell::Integer(number) => number.to_string(),
            Cell::Float(number) => number.to_string(),
            Cell::Nested(_) => self.kind().to_owned(),
        };
        match shown.to_ascii_lowercase().as_str() {
            "" => Ok(None),
            "0" | "0.0" | "false" => Ok(Some(false)),
            "1" | "1.0" | "true" => Ok(Some(true)),
            "-1" | "-1.0" => bail!(
                "{}: \"{column}\" holds {shown}, which is no answer; expected 0 or 1 (--skip-bad-rows leaves such rows \
                 out)",
                place()
            ),
            _ => bail!("{}: \"{column}\" holds {shown}, expected 0 or 1", place()),
        }
    }
}

/// Returns the values of a text that is a list in JSON.
fn list(text: &str) -> Option<Vec<Value>> {
    let text = text.trim();
    if text.starts_with('[') && text.ends_with(']') { serde_json::from_str(text).ok() } else { None }
}

fn class(name: &str) -> Label {
    let truth = ["true", "false"].into_iter().find(|truth| name.trim().eq_ignore_ascii_case(truth));
    Label::Class(Arc::from(truth.unwrap_or(name)))
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Cell::Null,
            Value::String(text) => Cell::Text(text),
            Value::Bool(truth) => Cell::Bool(truth),
            Value::Number(number) => match (number.as_i128(), number.as_f64()) {
                (Some(integer), _) => Cell::Integer(integer),
                (None, Some(float)) => Cell::Float(float),
                (None, None) => Cell::Text(number.to_string()),
            },
            nested @ (Value::Array(_) | Value::Object(_)) => Cell::Nested(nested),
        }
    }
}

/// The cells of one row, one for each wanted column.
#[derive(Clone, Debug)]
pub struct Row(pub Vec<Cell>);

impl Row {
    /// Moves a cell out of the row. A row that is too short yields null.
    pub fn take(&mut self, column: usize) -> Cell {
        self.0.get_mut(column).map_or(Cell::Null, |cell| std::mem::replace(cell, Cell::Null))
    }
}

/// Receives the rows of a file in order: the line on which the row starts (0 in a format without lines), and its cells
/// or its error. Reading stops if the sink returns an error.
pub type Sink<'s> = dyn FnMut(usize, Result<Row>) -> Result<()> + 's;

/// Kind of the values of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Strings. In CSV and TSV, values that are not numbers.
    Text,
    Number,
    Bool,
    List,
    Object,
}

/// A column, as far as the first rows show.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub name: String,
    /// None if every value so far is null or empty.
    pub kind: Option<Kind>,
    /// True if some string has more than one word.
    pub has_words: bool,
    /// Number of values that were examined.
    looked_at: usize,
}

impl Column {
    /// Maximum number of values of a column that are examined for a string of several words.
    pub const MAX_EXAMINED: usize = 50;

    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), kind: None, has_words: false, looked_at: 0 }
    }

    /// Returns a column of a known kind.
    pub fn of_kind(name: &str, kind: Kind) -> Self {
        Self { kind: Some(kind), ..Self::new(name) }
    }

    /// Returns true if another value may change the result.
    pub fn wants_more(&self) -> bool {
        match self.kind {
            None => true,
            Some(Kind::Text) => !self.has_words && self.looked_at < Self::MAX_EXAMINED,
            Some(_) => false,
        }
    }

    /// Updates the kind from a value.
    pub fn look_at(&mut self, cell: &Cell) {
        self.looked_at += 1;
        let kind = match cell {
            Cell::Null => None,
            Cell::Text(text) | Cell::Untyped(text) if text.trim().is_empty() => None,
            Cell::Untyped(text) if text.trim().parse::<f64>().is_ok() => Some(Kind::Number),
            Cell::Text(text) | Cell::Untyped(text) => {
                self.has_words |= text.trim().contains(char::is_whitespace);
                Some(Kind::Text)
            }
            Cell::Integer(_) | Cell::Float(_) => Some(Kind::Number),
            Cell::Bool(_) => Some(Kind::Bool),
            Cell::Nested(Value::Array(list)) => (!list.is_empty()).then_some(Kind::List),
            Cell::Nested(Value::Object(object)) => (!object.is_empty()).then_some(Kind::Object),
            Cell::Nested(_) => None,
        };
        self.kind = self.kind.or(kind);
    }
}

/// Columns of a file, before its rows are read.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    /// All columns of the file in order; in JSON, all keys.
    pub columns: Vec<Column>,
    /// True if there are no rows.
    pub is_empty: bool,
    /// Delimiter of a delimited file.
    pub delimiter: u8,
    /// Remarks on how the file is read.
    pub notes: Vec<String>,
}

impl Schema {
    /// Returns the names of the columns.
    pub fn names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }
}

/// Returns `data/train.jsonl: row 3 (line 4)`, without the line if it is 0.
pub fn place(path: &Path, row: usize, line: usize) -> String {
    match line {
        0 => format!("{}: row {row}", path.display()),
        line => format!("{}: row {row} (line {line})", path.display()),
    }
}

/// Returns the ending of a file name in lower case, without the dot and without `.gz`. Empty if there is none.
pub fn extension(path: &Path) -> String {
    let ending = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    match ending(path).as_str() {
        "gz" => ending(Path::new(path.file_stem().unwrap_or_default())),
        other => other.to_owned(),
    }
}
