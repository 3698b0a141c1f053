//! Reader of `.parquet` files, through the record API. Only the wanted columns are decoded, one page at a time.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use parquet::basic::{ConvertedType, Repetition, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::TreeBuilder;
use parquet::record::{Field, Row as Record};
use parquet::schema::types::{SchemaDescriptor, Type};
use serde_json::Value;

use super::table::{Cell, Column, Kind, Row, Schema, Sink, place};
use crate::contained::contained;
use crate::ui::Progress;

/// Number of rows from which on a file shows progress.
const LARGE: u64 = 200_000;

/// Finds the columns, and the kinds of text columns from the first rows.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn schema(path: &Path) -> Result<Schema> {
    contained(path, || {
        let reader = open(path)?;
        let metadata = reader.metadata().file_metadata();
        let mut columns: Vec<Column> = metadata.schema().get_fields().iter().map(|field| column(field)).collect();
        let texts: Vec<usize> = (0..columns.len()).filter(|i| columns[*i].kind == Some(Kind::Text)).collect();
        let names: Vec<String> = texts.iter().map(|i| columns[*i].name.clone()).collect();
        let mut remaining = Column::MAX_EXAMINED;
        // Errors of these rows are reported when the rows are read.
        let examined = for_each_row(path, &reader, &names, &mut |row| {
            let cells = row.map(|row| row.0).unwrap_or_default();
            texts.iter().zip(&cells).for_each(|(i, cell)| columns[*i].look_at(cell));
            remaining -= 1;
            if remaining == 0 { Err(anyhow!("enough")) } else { Ok(()) }
        });
        drop(examined);
        Ok(Schema { columns, is_empty: metadata.num_rows() == 0, ..Schema::default() })
    })
}

/// Reads the cells of the wanted columns, row by row.
///
/// # Errors
/// Returns an error if the file cannot be read. Returns the errors of the sink.
pub fn rows(path: &Path, columns: &[String], label: Option<&str>, sink: &mut Sink<'_>) -> Result<()> {
    contained(path, || {
        let reader = open(path)?;
        let total = reader.metadata().file_metadata().num_rows().max(0) as u64;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let progress =
            label.filter(|_| total >= LARGE).map(|label| Progress::new(false, format!("{label} {name}"), total));
        let read = for_each_row(path, &reader, columns, &mut |row| {
            if let Some(progress) = &progress {
                progress.inc(1);
            }
            sink(0, row)
        });
        if let Some(progress) = progress {
            progress.finish();
        }
        read
    })
}

fn broken(path: &Path, error: &ParquetError) -> anyhow::Error {
    anyhow!("{}: not a readable parquet file: {}", path.display(), first_line(&error.to_string()))
}

fn open(path: &Path) -> Result<SerializedFileReader<File>> {
    let display = path.display();
    let file = File::open(path).with_context(|| format!("{display}: cannot be read"))?;
    if file.metadata().is_ok_and(|m| m.len() == 0) {
        anyhow::bail!("{display}: the file is empty");
    }
    SerializedFileReader::new(file).map_err(|error| broken(path, &error))
}

/// Returns a column with the kind that its type shows.
fn column(field: &Type) -> Column {
    let info = field.get_basic_info();
    let repeated = info.has_repetition() && info.repetition() == Repetition::REPEATED;
    let kind = match info.converted_type() {
        ConvertedType::LIST => Kind::List,
        _ if repeated => Kind::List,
        _ if !field.is_primitive() => Kind::Object,
        _ => match field.get_physical_type() {
            Physical::BOOLEAN => Kind::Bool,
            Physical::BYTE_ARRAY => Kind::Text,
            _ => Kind::Number,
        },
    };
    Column::of_kind(field.name(), kind)
}

/// Passes the cells of the wanted columns to the sink, row by row.
fn for_each_row(
    path: &Path,
    reader: &SerializedFileReader<File>,
    columns: &[String],
    sink: &mut dyn FnMut(Result<Row>) -> Result<()>,
) -> Result<()> {
    let schema = reader.metadata().file_metadata().schema();
    let field_of = |name: &String| schema.get_fields().iter().find(|field| field.name() == name).cloned();
    // Order of the file, which is the order of the decoded cells.
    let mut fields: Vec<_> = columns.iter().filter_map(field_of).collect();
    fields.sort_by_key(|field| schema.get_fields().iter().position(|other| other.name() == field.name()));
    if fields.is_empty() {
        return Ok(());
    }
    let position_of = |name: &String| fields.iter().position(|field| field.name() == name);
    let positions: Vec<usize> = columns.iter().filter_map(position_of).collect();
    let wanted = Type::group_type_builder(schema.name()).with_fields(fields).build();
    let wanted = Arc::new(SchemaDescriptor::new(Arc::new(wanted.map_err(|error| broken(path, &error))?)));
    let mut number = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(|error| broken(path, &error))?;
        let records = TreeBuilder::new().as_iter(wanted.clone(), &*group).map_err(|error| broken(path, &error))?;
        for record in records {
            number += 1;
            let place = || place(path, number, 0);
            let record = record.map_err(|e| anyhow!("{}: {}", place(), first_line(&e.to_string())))?;
            let cells = record
                .into_columns()
                .into_iter()
                .map(|(name, field)| cell(field).ok_or_else(|| anyhow!("{}: \"{name}\" is not valid UTF-8", place())));
            let row = cells.collect::<Result<Vec<_>>>().map(|mut cells| {
                let take =
                    |place: &usize| cells.get_mut(*place).map_or(Cell::Null, |c| std::mem::replace(c, Cell::Null));
                Row(positions.iter().map(take).collect())
            });
            sink(row)?;
        }
    }
    Ok(())
}

/// Returns the first line of a message, shortened: the crate prints all bytes of an invalid string.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// Converts a field to a cell. Returns None if a string is not UTF-8.
fn cell(field: Field) -> Option<Cell> {
    Some(match field {
        Field::Null => Cell::Null,
        Field::Bool(truth) => Cell::Bool(truth),
        Field::Byte(n) => Cell::Integer(n.into()),
        Field::Short(n) => Cell::Integer(n.into()),
        Field::Int(n) => Cell::Integer(n.into()),
        Field::Long(n) => Cell::Integer(n.into()),
        Field::UByte(n) => Cell::Integer(n.into()),
        Field::UShort(n) => Cell::Integer(n.into()),
        Field::UInt(n) => Cell::Integer(n.into()),
        Field::ULong(n) => Cell::Integer(n.into()),
        Field::Float16(x) => float(x.to_f64()),
        // 0.1f32 means 0.1: take its shortest decimal, not its exact value.
        Field::Float(x) => float(x.to_string().parse().unwrap_or(f64::from(x))),
        Field::Double(x) => float(x),
        Field::Str(text) => Cell::Text(text),
        Field::Bytes(bytes) => Cell::Text(std::str::from_utf8(bytes.data()).ok()?.to_owned()),
        Field::Group(_) | Field::ListInternal(_) | Field::MapInternal(_) => Cell::Nested(nested(field)?),
        other => Cell::Text(other.to_string()),
    })
}

/// Converts a number to a cell. Data frames write a missing number as NaN.
fn float(x: f64) -> Cell {
    if x.is_nan() { Cell::Null } else { Cell::Float(x) }
}

/// Converts lists and groups to JSON, from which lists of messages are read.
fn nested(field: Field) -> Option<Value> {
    Some(match field {
        Field::Group(record) => object(record)?,
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(|e| nested(e.clone())).collect::<Option<_>>()?)
        }
        other => match cell(other)? {
            Cell::Text(text) | Cell::Untyped(text) => Value::String(text),
            Cell::Integer(n) => {
                i64::try_from(n).map(Value::from).or_else(|_| u64::try_from(n).map(Value::from)).ok()?
            }
            Cell::Float(x) => Value::from(x),
            Cell::Bool(truth) => Value::Bool(truth),
            Cell::Null | Cell::Nested(_) => Value::Null,
        },
    })
}

fn object(record: Record) -> Option<Value> {
    let entries = record.into_columns().into_iter().map(|(name, field)| Some((name, nested(field)?)));
    Some(Value::Object(entries.collect::<Option<_>>()?))
}
