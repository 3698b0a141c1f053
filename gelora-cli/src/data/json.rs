//! `.jsonl`: one object a line, blank lines skipped. `.json`: a list of objects, or the same as `.jsonl`.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Map, Value};

use super::table::{Cell, Row, Table, read_text};

/// Reads one object a line.
pub fn read_lines(path: &Path, keep: &dyn Fn(&str) -> bool) -> Result<Table> {
    lines(path, &read_text(path)?, keep)
}

/// Reads a list of objects, or one object a line.
pub fn read(path: &Path, keep: &dyn Fn(&str) -> bool) -> Result<Table> {
    let text = read_text(path)?;
    if text.trim_start().starts_with('[') { list(path, &text, keep) } else { lines(path, &text, keep) }
}

fn lines(path: &Path, text: &str, keep: &dyn Fn(&str) -> bool) -> Result<Table> {
    let mut rows = Rows::new(path, keep);
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(line) {
            Ok(value) => rows.push(value, i + 1)?,
            Err(error) => bail!("{}: line {} is not valid JSON: {}", path.display(), i + 1, cause(&error)),
        }
    }
    Ok(rows.table)
}

/// A list is taken apart here rather than by serde, so that each object's line is known.
fn list(path: &Path, text: &str, keep: &dyn Fn(&str) -> bool) -> Result<Table> {
    let mut rows = Rows::new(path, keep);
    let (mut position, mut line) = (0, 1);
    let mut advance = |to: usize, position: &mut usize| {
        line += text[*position..to].matches('\n').count();
        *position = to;
        line
    };
    let next = |from: usize| from + (text[from..].len() - text[from..].trim_start().len());
    let mut at = next(0) + 1; // past the bracket
    loop {
        at = next(at);
        let start = advance(at, &mut position);
        if text[at..].starts_with(']') && rows.table.rows.is_empty() {
            at += 1;
            break;
        }
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => rows.push(value, start)?,
            Some(Err(error)) => {
                let line = start + error.line().saturating_sub(1);
                bail!("{}: line {line} is not valid JSON: {}", path.display(), cause(&error));
            }
            None => bail!("{}: line {start} ends a list that has no closing bracket", path.display()),
        }
        at = next(at + values.byte_offset());
        let line = advance(at, &mut position);
        match text[at..].chars().next() {
            Some(',') => at += 1,
            Some(']') => {
                at += 1;
                break;
            }
            _ => bail!("{}: line {line} is not valid JSON: expected `,` or `]` after an object", path.display()),
        }
    }
    at = next(at);
    if at < text.len() {
        let line = advance(at, &mut position);
        bail!("{}: line {line} is not valid JSON: text after the end of the list", path.display());
    }
    Ok(rows.table)
}

/// serde's message, its position cut down to the column: the line is told by the caller.
fn cause(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.rfind(" at line ").map_or(message.as_str(), |end| &message[..end]);
    format!("{what} (column {})", error.column())
}

/// Collects objects whose keys may differ from row to row into one table.
struct Rows<'a> {
    path: &'a Path,
    keep: &'a dyn Fn(&str) -> bool,
    table: Table,
    /// For each key, its index among the kept columns, if it is kept.
    seen: HashMap<String, Option<usize>>,
}

impl<'a> Rows<'a> {
    fn new(path: &'a Path, keep: &'a dyn Fn(&str) -> bool) -> Self {
        Self { path, keep, table: Table::default(), seen: HashMap::new() }
    }

    fn push(&mut self, value: Value, line: usize) -> Result<()> {
        let Value::Object(object) = value else {
            bail!(
                "{}: row {} (line {line}) is not an object like {{\"text\": \"...\", \"label\": ...}}",
                self.path.display(),
                self.table.rows.len() + 1
            );
        };
        let row = self.row(object);
        self.table.rows.push(row);
        self.table.lines.push(line);
        Ok(())
    }

    fn row(&mut self, object: Map<String, Value>) -> Row {
        let mut cells = vec![Cell::Null; self.table.kept.len()];
        for (key, value) in object {
            let kept = match self.seen.get(&key) {
                Some(kept) => *kept,
                None => self.add_column(key),
            };
            if let Some(index) = kept {
                cells.resize(cells.len().max(index + 1), Cell::Null);
                cells[index] = Cell::from(value);
            }
        }
        Row(cells)
    }

    fn add_column(&mut self, key: String) -> Option<usize> {
        let kept = (self.keep)(&key).then_some(self.table.kept.len());
        if kept.is_some() {
            self.table.kept.push(key.clone());
        }
        self.table.columns.push(key.clone());
        self.seen.insert(key, kept);
        kept
    }
}
