//! `.jsonl`: one object a line, blank lines skipped. `.json`: a list of objects, or the same as `.jsonl`.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Deserializer, Value};

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
        if !line.trim().is_empty() {
            rows.push(line, i + 1)?;
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
        let mut values = Deserializer::from_str(&text[at..]).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => rows.push(&text[at..at + values.byte_offset()], start)?,
            Some(Err(error)) => return Err(rows.invalid(&error, start)),
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

    /// Adds the object that this text, which starts on this line, consists of.
    fn push(&mut self, text: &str, line: usize) -> Result<()> {
        let mut values = Deserializer::from_str(text);
        if !text.trim_start().starts_with('{') {
            Value::deserialize(&mut values).and_then(|_| values.end()).map_err(|e| self.invalid(&e, line))?;
            bail!(
                "{}: row {} (line {line}) is not an object like {{\"text\": \"...\", \"label\": ...}}",
                self.path.display(),
                self.table.rows.len() + 1
            );
        }
        let row = values.deserialize_map(RowVisitor(self)).and_then(|row| values.end().map(|()| row));
        self.table.rows.push(row.map_err(|error| self.invalid(&error, line))?);
        self.table.lines.push(line);
        Ok(())
    }

    fn invalid(&self, error: &serde_json::Error, first_line: usize) -> anyhow::Error {
        let line = first_line + error.line().saturating_sub(1);
        anyhow!("{}: line {line} is not valid JSON: {}", self.path.display(), cause(error))
    }

    /// The index of a key among the kept columns, if it is kept.
    fn column(&mut self, key: &str) -> Option<usize> {
        if let Some(kept) = self.seen.get(key) {
            return *kept;
        }
        let kept = (self.keep)(key).then_some(self.table.kept.len());
        if kept.is_some() {
            self.table.kept.push(key.to_owned());
        }
        self.table.columns.push(key.to_owned());
        self.seen.insert(key.to_owned(), kept);
        kept
    }
}

/// Reads the cells of an object, passing over what is not kept.
struct RowVisitor<'a, 'b>(&'a mut Rows<'b>);

impl<'de> Visitor<'de> for RowVisitor<'_, '_> {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
        let mut cells = vec![Cell::Null; self.0.table.kept.len()];
        while let Some(column) = map.next_key_seed(Key(self.0))? {
            match column {
                Some(index) => {
                    cells.resize(cells.len().max(index + 1), Cell::Null);
                    cells[index] = map.next_value()?;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Row(cells))
    }
}

/// Reads a key as the index of its column.
struct Key<'a, 'b>(&'a mut Rows<'b>);

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Option<usize>, E> {
        Ok(self.0.column(key))
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CellVisitor)
    }
}

struct CellVisitor;

impl<'de> Visitor<'de> for CellVisitor {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Cell, E> {
        Ok(Cell::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Cell, E> {
        Ok(Cell::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Cell, E> {
        Ok(Cell::Integer(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Cell, E> {
        Ok(Cell::Integer(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Cell, E> {
        Ok(Cell::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cell, E> {
        Ok(Cell::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Cell, A::Error> {
        Value::deserialize(SeqAccessDeserializer::new(list)).map(Cell::Nested)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Cell, A::Error> {
        Value::deserialize(MapAccessDeserializer::new(object)).map(Cell::Nested)
    }
}
