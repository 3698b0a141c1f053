//! Reader of `.parquet` files, through the record API: numeric columns side by side, or a column of lists of equal
//! length.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use gelora_kernels::Tensor;
use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use super::{Values, is_row_number, listed};

/// Reads the requested columns in their order, or else the only column of lists, or else every numeric column except
/// row numbers. A list becomes as many columns as it has elements. Columns that are left out are reported in `notes`.
pub fn read(path: &Path, columns: &[String], notes: &mut Vec<String>) -> Result<(Tensor, Vec<String>)> {
    let display = path.display();
    let file = File::open(path).with_context(|| format!("{display}: cannot be read"))?;
    let broken = |error: parquet::errors::ParquetError| anyhow!("{display}: not a readable parquet file: {error}");
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let schema = reader.metadata().file_metadata().schema();
    let chosen = choose(path, schema, columns, notes)?;
    let names = chosen.iter().map(|&i| schema.get_fields()[i].name().to_owned()).collect();
    let fields = chosen.iter().map(|&i| schema.get_fields()[i].clone()).collect();
    let projection = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(broken)?;

    let mut values = Vec::new();
    let (mut rows, mut width, mut single) = (0, 0, true);
    for record in reader.get_row_iter(Some(projection)).map_err(broken)? {
        rows += 1;
        let record = record.map_err(|e| anyhow!("{display}: row {rows}: {e}"))?;
        let before = values.len();
        for (name, field) in record.get_column_iter() {
            push(&mut values, &mut single, field)
                .map_err(|got| anyhow!("{display}: row {rows}, column \"{name}\": expected a number, got {got}"))?;
        }
        let got = values.len() - before;
        if rows == 1 {
            width = got;
        } else if got != width {
            bail!("{display}: row {rows} has {got} values, but row 1 has {width}");
        }
    }
    if rows == 0 || width == 0 {
        bail!("{display}: holds {rows} rows of {width} values");
    }
    let values = match single {
        true => Values::F32(values.into_iter().map(|v| v as f32).collect()),
        false => Values::F64(values),
    };
    Ok((values.into_matrix([rows, width]).with_context(|| display.to_string())?, names))
}

/// Returns the indices of the columns to read.
fn choose(path: &Path, schema: &Type, columns: &[String], notes: &mut Vec<String>) -> Result<Vec<usize>> {
    let fields = schema.get_fields();
    let all = || listed(fields.iter().map(|f| f.name().to_owned()));
    if !columns.is_empty() {
        let index = |name: &String| {
            let found = fields.iter().position(|f| f.name() == name);
            found.with_context(|| format!("{}: has no column \"{name}\"; it has {}", path.display(), all()))
        };
        return columns.iter().map(index).collect();
    }
    let numeric: Vec<usize> = (0..fields.len()).filter(|&i| is_number(&fields[i])).collect();
    let lists: Vec<usize> = (0..fields.len()).filter(|&i| is_list(&fields[i])).collect();
    let named = |indices: &[usize]| listed(indices.iter().map(|&i| fields[i].name().to_owned()));
    match (numeric.as_slice(), lists.as_slice()) {
        ([], []) => bail!("{}: no column holds numbers or lists of numbers; it has {}", path.display(), all()),
        (_, [only]) => {
            if !numeric.is_empty() {
                let (lists, others) = (named(&lists), named(&numeric));
                notes.push(format!(
                    "the points are the lists in {lists}; not in them: {others} (--columns takes others)"
                ));
            }
            Ok(vec![*only])
        }
        (_, []) => {
            let (numbers, points): (Vec<usize>, Vec<usize>) =
                numeric.iter().partition(|&&i| is_row_number(fields[i].name()));
            if !numbers.is_empty() && !points.is_empty() {
                notes.push(format!("not in the points: the row number {} (--columns takes it)", named(&numbers)));
                return Ok(points);
            }
            Ok(numeric)
        }
        _ => bail!("{}: has several columns of lists, choose one with --columns: {}", path.display(), all()),
    }
}

/// Returns true for integers and floats. Dates, times and decimals are stored as integers but are not numbers here.
fn is_number(field: &Type) -> bool {
    let info = field.get_basic_info();
    if !field.is_primitive() || info.has_repetition() && info.repetition() == Repetition::REPEATED {
        return false;
    }
    use ConvertedType as C;
    let plain = matches!(
        info.converted_type(),
        C::NONE | C::INT_8 | C::INT_16 | C::INT_32 | C::INT_64 | C::UINT_8 | C::UINT_16 | C::UINT_32 | C::UINT_64
    );
    match (field.get_physical_type(), info.logical_type_ref()) {
        (Physical::FLOAT | Physical::DOUBLE, _) => true,
        (Physical::INT32 | Physical::INT64, None | Some(LogicalType::Integer { .. })) => plain,
        (Physical::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Float16)) => true,
        _ => false,
    }
}

/// Returns true for lists of any type except text.
fn is_list(field: &Type) -> bool {
    let info = field.get_basic_info();
    let repeated = info.has_repetition() && info.repetition() == Repetition::REPEATED;
    let mut element = field;
    while let Some(inside) = (!element.is_primitive()).then(|| element.get_fields().first()).flatten() {
        element = inside;
    }
    let holds_text = element.is_primitive() && element.get_physical_type() == Physical::BYTE_ARRAY;
    (info.converted_type() == ConvertedType::LIST || repeated) && !holds_text
}

/// Appends the numbers of a cell. Returns a description of the cell if it is not a number. `single` stays true while
/// all values fit in f32.
fn push(values: &mut Vec<f64>, single: &mut bool, field: &Field) -> Result<(), String> {
    let is_single = matches!(field, Field::Float16(_) | Field::Float(_) | Field::ListInternal(_));
    *single &= is_single;
    values.push(match field {
        Field::Byte(n) => f64::from(*n),
        Field::Short(n) => f64::from(*n),
        Field::Int(n) => f64::from(*n),
        Field::Long(n) => *n as f64,
        Field::UByte(n) => f64::from(*n),
        Field::UShort(n) => f64::from(*n),
        Field::UInt(n) => f64::from(*n),
        Field::ULong(n) => *n as f64,
        Field::Float16(x) => x.to_f64(),
        Field::Float(x) => f64::from(*x),
        Field::Double(x) => *x,
        Field::ListInternal(list) => return list.elements().iter().try_for_each(|e| push(values, single, e)),
        Field::Null => return Err("null".to_owned()),
        other => return Err(other.to_string().chars().take(60).collect()),
    });
    Ok(())
}
