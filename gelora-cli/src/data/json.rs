//! Readers of `.jsonl` and `.json` files: one object per row, in any layout that [`Values`] supports.

mod values;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Deserializer, Value};

use super::source::{Source, utf8};
use super::table::{Cell, Column, Row, Schema, Sink};

pub use values::Values;

/// Finds the names and kinds of all columns. Broken rows are skipped unless no row is valid.
///
/// # Errors
/// Returns an error if the file is empty, the text between its rows is invalid, or no row is an object.
pub fn schema(path: &Path, label: Option<&str>) -> Result<Schema> {
    let mut values = Values::open(Source::open(path, label)?)?;
    let (mut text, mut number, mut wrong) = (Vec::new(), 0, None);
    let mut seen = Seen::default();
    loop {
        match values.next(&mut text) {
            Ok(None) => break,
            Ok(Some(line)) => {
                number += 1;
                if let Err(error) = look_at(path, &text, line, number, &mut seen) {
                    wrong.get_or_insert(error);
                }
            }
            // A broken row may be the reason that the next one is not found, so its error comes first.
            Err(error) => return Err(wrong.unwrap_or(error)),
        }
    }
    match wrong {
        Some(error) if seen.columns.is_empty() => Err(error),
        _ => Ok(Schema { columns: seen.columns, is_empty: number == 0, ..Schema::default() }),
    }
}

/// Reads the cells of the wanted columns, row by row.
///
/// # Errors
/// Returns the errors of [`schema`] and of the sink.
pub fn rows(path: &Path, columns: &[String], label: Option<&str>, sink: &mut Sink<'_>) -> Result<()> {
    let mut values = Values::open(Source::open(path, label)?)?;
    let (mut text, mut number) = (Vec::new(), 0);
    while let Some(line) = values.next(&mut text)? {
        number += 1;
        sink(line, cells(path, &text, line, number, columns))?;
    }
    Ok(())
}

/// Records the keys of a row, and examines values of columns whose kind is not yet clear.
///
/// # Errors
/// Returns an error if the row is not an object.
pub fn look_at(path: &Path, bytes: &[u8], line: usize, row: usize, seen: &mut Seen) -> Result<()> {
    object(path, bytes, line, row, SchemaVisitor(seen))
}

/// Reads the cells of the wanted columns of a row.
///
/// # Errors
/// Returns an error if the row is not an object.
pub fn cells(path: &Path, bytes: &[u8], line: usize, row: usize, columns: &[String]) -> Result<Row> {
    object(path, bytes, line, row, RowVisitor(columns))
}

/// Reads one object.
fn object<'t, V: Visitor<'t>>(path: &Path, bytes: &'t [u8], line: usize, row: usize, visitor: V) -> Result<V::Value> {
    let text = utf8(path, bytes, line)?;
    let invalid = |error: serde_json::Error| {
        let line = line + error.line().saturating_sub(1);
        anyhow!("{}: line {line} is not valid JSON: {}", path.display(), cause(&error))
    };
    let mut values = Deserializer::from_str(text);
    if !text.trim_start().starts_with('{') {
        Value::deserialize(&mut values).and_then(|_| values.end()).map_err(invalid)?;
        bail!(
            "{}: row {row} (line {line}) is not an object like {{\"text\": \"...\", \"label\": ...}}",
            path.display()
        );
    }
    let found = values.deserialize_map(visitor).map_err(invalid)?;
    values.end().map_err(invalid)?;
    Ok(found)
}

/// Returns serde's message with the column only. The caller reports the line.
fn cause(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.rfind(" at line ").map_or(message.as_str(), |end| &message[..end]);
    format!("{what} (column {})", error.column())
}

/// Columns of the rows so far. Keys may differ between rows.
#[derive(Default)]
pub struct Seen {
    pub columns: Vec<Column>,
    indices: HashMap<String, usize>,
}

/// Records the keys of an object and examines values of columns whose kind is not yet clear.
struct SchemaVisitor<'a>(&'a mut Seen);

impl<'de> Visitor<'de> for SchemaVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(index) = map.next_key_seed(SeenKey(self.0))? {
            let column = &mut self.0.columns[index];
            if column.wants_more() {
                column.look_at(&map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Reads a key as the index of its column.
struct SeenKey<'a>(&'a mut Seen);

impl<'de> DeserializeSeed<'de> for SeenKey<'_> {
    type Value = usize;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for SeenKey<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<usize, E> {
        if let Some(index) = self.0.indices.get(key) {
            return Ok(*index);
        }
        self.0.columns.push(Column::new(key));
        self.0.indices.insert(key.to_owned(), self.0.columns.len() - 1);
        Ok(self.0.columns.len() - 1)
    }
}

/// Reads the cells of the wanted columns and skips all others.
struct RowVisitor<'a>(&'a [String]);

impl<'de> Visitor<'de> for RowVisitor<'_> {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
        let mut cells = vec![Cell::Null; self.0.len()];
        while let Some(column) = map.next_key_seed(Key(self.0))? {
            match column {
                Some(index) => cells[index] = map.next_value()?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Row(cells))
    }
}

/// Reads a key as its index among the wanted columns.
struct Key<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Option<usize>, E> {
        Ok(self.0.iter().position(|column| column == key))
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
