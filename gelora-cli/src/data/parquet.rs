//! `.parquet`, through the record API. Only columns that may matter are decoded.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::TreeBuilder;
use parquet::record::{Field, Row as Record};
use parquet::schema::types::{SchemaDescriptor, Type};
use serde_json::Value;

use super::table::{Cell, Row, Table, place};
use crate::contained::contained;

/// Reads the columns of a parquet file that may matter.
pub fn read(path: &Path, keep: &dyn Fn(&str) -> bool) -> Result<Table> {
    contained(path, || columns(path, keep))
}

fn columns(path: &Path, keep: &dyn Fn(&str) -> bool) -> Result<Table> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("{shown}: cannot be read"))?;
    if file.metadata().is_ok_and(|m| m.len() == 0) {
        anyhow::bail!("{shown}: the file is empty");
    }
    let broken = |error: parquet::errors::ParquetError| anyhow!("{shown}: not a readable parquet file: {error}");
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let schema = reader.metadata().file_metadata().schema();
    let columns: Vec<String> = schema.get_fields().iter().map(|f| f.name().to_owned()).collect();
    let fields: Vec<_> = schema.get_fields().iter().filter(|f| keep(f.name())).cloned().collect();
    let kept: Vec<String> = fields.iter().map(|f| f.name().to_owned()).collect();
    let mut table = Table { columns, kept, ..Table::default() };
    if fields.is_empty() {
        // Nothing to decode; the rows are counted so that the complaint is about the columns.
        let count = reader.metadata().file_metadata().num_rows().clamp(0, 1) as usize;
        table.rows = vec![Row(Vec::new()); count];
        return Ok(table);
    }
    let wanted = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(broken)?;
    let wanted = Arc::new(SchemaDescriptor::new(Arc::new(wanted)));
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(broken)?;
        for record in TreeBuilder::new().as_iter(wanted.clone(), &*group).map_err(broken)? {
            let at = || place(path, &[], table.rows.len());
            let record = record.map_err(|e| anyhow!("{}: {}", at(), first_line(&e.to_string())))?;
            let cells = record
                .into_columns()
                .into_iter()
                .map(|(name, field)| cell(field).ok_or_else(|| anyhow!("{}: \"{name}\" is not valid UTF-8", at())));
            let row = Row(cells.collect::<Result<_>>()?);
            table.rows.push(row);
        }
    }
    Ok(table)
}

/// The crate prints the bytes of a bad string: a line's worth is enough.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// None if a string is not UTF-8.
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
        // 0.1f32 is meant as 0.1: its shortest decimal, not its exact value.
        Field::Float(x) => float(x.to_string().parse().unwrap_or(f64::from(x))),
        Field::Double(x) => float(x),
        Field::Str(text) => Cell::Text(text),
        Field::Bytes(bytes) => Cell::Text(std::str::from_utf8(bytes.data()).ok()?.to_owned()),
        Field::Group(_) | Field::ListInternal(_) | Field::MapInternal(_) => Cell::Nested(nested(field)?),
        other => Cell::Text(other.to_string()),
    })
}

/// Data frames write a missing number as NaN.
fn float(x: f64) -> Cell {
    if x.is_nan() { Cell::Null } else { Cell::Float(x) }
}

/// Lists and groups as JSON, which is what lists of messages are read from.
fn nested(field: Field) -> Option<Value> {
    Some(match field {
        Field::Group(record) => object(record)?,
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(|e| nested(e.clone())).collect::<Option<_>>()?)
        }
        other => match cell(other)? {
            Cell::Text(text) | Cell::Untyped(text) => Value::String(text),
            Cell::Integer(n) => i64::try_from(n).map_or(Value::Null, Value::from),
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
