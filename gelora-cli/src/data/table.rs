//! What every format is read into: named columns, rows of cells, and the line each row starts on.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Label;

/// One value of a row, before it is known what it is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Absent, null, or a parquet NaN.
    Null,
    /// A string from a format that has types.
    Text(String),
    /// A cell of CSV or TSV, which may be text or a number.
    Untyped(String),
    /// An integer.
    Integer(i128),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A list or an object.
    Nested(serde_json::Value),
}

impl Cell {
    /// What the cell holds, for messages.
    fn kind(&self) -> &'static str {
        match self {
            Cell::Null => "nothing",
            Cell::Text(_) | Cell::Untyped(_) => "a string",
            Cell::Integer(_) => "an integer",
            Cell::Float(_) => "a number",
            Cell::Bool(_) => "a truth value",
            Cell::Nested(serde_json::Value::Array(_)) => "a list",
            Cell::Nested(_) => "an object",
        }
    }

    /// The text in a text column.
    pub fn into_text(self, column: &str, at: &dyn Fn() -> String) -> Result<String> {
        match self {
            Cell::Text(text) | Cell::Untyped(text) => Ok(text),
            Cell::Null => bail!("{}: no \"{column}\", but every row needs its text", at()),
            other => bail!("{}: \"{column}\" holds {}, expected a string", at(), other.kind()),
        }
    }

    /// The text in a pair's second column, which a row may do without.
    pub fn into_optional_text(self, column: &str, at: &dyn Fn() -> String) -> Result<Option<String>> {
        match self {
            Cell::Null => Ok(None),
            Cell::Untyped(text) if text.is_empty() => Ok(None),
            cell => cell.into_text(column, at).map(Some),
        }
    }

    /// The label in a label column, or none if the cell is empty. `scores` makes a score of every number.
    pub fn into_label(self, column: &str, scores: bool, at: &dyn Fn() -> String) -> Result<Option<Label>> {
        Ok(Some(match self {
            Cell::Null => return Ok(None),
            Cell::Text(text) | Cell::Untyped(text) if text.trim().is_empty() => return Ok(None),
            Cell::Text(text) => Label::Class(text),
            Cell::Untyped(text) => {
                let text = text.trim();
                // Without types, a decimal point is what tells a score from a class number.
                match text.parse::<f64>() {
                    Ok(score) if score.is_finite() && (scores || text.contains('.')) => Label::Score(score),
                    _ => Label::Class(text.to_owned()),
                }
            }
            Cell::Integer(number) if scores => Label::Score(number as f64),
            Cell::Integer(number) => Label::Class(number.to_string()),
            Cell::Float(number) if number.is_finite() => Label::Score(number),
            Cell::Float(number) => bail!("{}: \"{column}\" is {number}, expected a finite number", at()),
            Cell::Bool(truth) => Label::Class(truth.to_string()),
            Cell::Nested(serde_json::Value::Array(mut list)) if list.len() == 1 => {
                return Cell::from(list.remove(0)).into_label(column, scores, at);
            }
            other => bail!("{}: \"{column}\" holds {}, expected a string or a number", at(), other.kind()),
        }))
    }
}

impl From<serde_json::Value> for Cell {
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value;
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

/// The cells of one row, one for each kept column.
#[derive(Clone, Debug)]
pub struct Row(pub Vec<Cell>);

impl Row {
    /// Moves a cell out; a row too short for the column has nothing there.
    pub fn take(&mut self, column: usize) -> Cell {
        self.0.get_mut(column).map_or(Cell::Null, |cell| std::mem::replace(cell, Cell::Null))
    }
}

/// A file's contents. Cells are kept only of columns that could matter; all columns are named, for messages.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Every column of the file (of JSON, by name).
    pub columns: Vec<String>,
    /// The columns that the rows' cells belong to.
    pub kept: Vec<String>,
    /// The rows, in file order.
    pub rows: Vec<Row>,
    /// The 1-based line on which each row starts; empty for a format without lines.
    pub lines: Vec<usize>,
}

impl Table {
    /// The first value in a kept column that is not null.
    pub fn first_value(&self, column: usize) -> Option<&Cell> {
        self.rows.iter().filter_map(|row| row.0.get(column)).find(|cell| **cell != Cell::Null)
    }
}

/// `data/train.jsonl: row 3 (line 4)` for the 0-based index 2.
pub fn place(path: &Path, lines: &[usize], index: usize) -> String {
    match lines.get(index) {
        Some(line) => format!("{}: row {} (line {line})", path.display(), index + 1),
        None => format!("{}: row {}", path.display(), index + 1),
    }
}

/// The ending of a file name in lower case, without the dot; empty if there is none.
pub fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The whole of a text file, without a byte order mark.
///
/// # Errors
/// If it cannot be read, has no text, or is not UTF-8 (naming the line).
pub fn read_text(path: &Path) -> Result<String> {
    let shown = path.display();
    let mut bytes = std::fs::read(path).with_context(|| format!("{shown}: cannot be read"))?;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid].iter().filter(|b| **b == b'\n').count();
        anyhow::anyhow!("{shown}: line {line} is not valid UTF-8; save the file in the encoding UTF-8")
    })?;
    if text.trim().is_empty() {
        bail!("{shown}: the file is empty");
    }
    Ok(text)
}
