//! Reader of `.csv` and `.tsv` files: a row of numbers per point, with or without a header.
//!
//! The first row is the header if none of its cells is a number, or if it holds the names of all requested columns
//! beside cells that are numbers. A first row with a stray word is therefore an error and not a header that hides a
//! point. CSV has quotes as in RFC 4180, TSV has no quotes.

use std::path::Path;

use anyhow::{Context, Result, bail};
use csv::{ReaderBuilder, StringRecord, Trim};
use gelora_kernels::Tensor;

use super::{is_row_number, listed};

/// Reads the requested columns, or all columns except row numbers. A column of row numbers that is left out is reported
/// in `notes`.
pub fn read(path: &Path, delimiter: u8, columns: &[String], notes: &mut Vec<String>) -> Result<(Tensor, Vec<String>)> {
    let display = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("{display}: cannot be read"))?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes); // a byte order mark
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(delimiter != b'\t')
        .has_headers(false)
        .flexible(true) // rows of unequal length are reported below
        .trim(Trim::All)
        .from_reader(text);
    let mut record = StringRecord::new();
    let mut more = reader.read_record(&mut record).with_context(|| format!("{display}: cannot be read"))?;
    if !more {
        bail!("{display}: the file is empty");
    }
    let first = record.clone();
    let header = is_header(&first, columns).then_some(&first);
    let mut indices = indices(path, &first, header, columns)?;
    if let Some(header) = header.filter(|_| columns.is_empty()) {
        let (numbers, points): (Vec<usize>, Vec<usize>) =
            indices.iter().partition(|&&i| is_row_number(header.get(i).unwrap_or_default()));
        if !numbers.is_empty() && !points.is_empty() {
            let names = listed(numbers.iter().map(|&i| format!("\"{}\"", header.get(i).unwrap_or_default())));
            notes.push(format!("not in the points: the row number {names} (--columns takes it)"));
            indices = points;
        }
    }
    if header.is_some() {
        more = reader.read_record(&mut record).with_context(|| format!("{display}: cannot be read"))?;
    }
    let mut values = Vec::new();
    let mut row = 0;
    while more {
        row += 1;
        let place = || format!("{display}: row {row} (line {})", line(text, &record));
        if record.len() != first.len() {
            let whose = if header.is_some() { "the header" } else { "the first row" };
            bail!("{} has {} cells, but {whose} has {}", place(), record.len(), first.len());
        }
        for &i in &indices {
            let cell = record.get(i).unwrap_or_default();
            let Ok(value) = cell.parse::<f64>() else {
                bail!("{}, {}: expected a number, got \"{cell}\"", place(), column(i, header));
            };
            values.push(value);
        }
        more = reader.read_record(&mut record).with_context(|| format!("{display}: cannot be read"))?;
    }
    if row == 0 {
        bail!("{display}: has a header, but no rows");
    }
    let names = indices.iter().map(|&i| column(i, header)).collect();
    Ok((Tensor::from_f64(values, [row, indices.len()]).with_context(|| display.to_string())?, names))
}

fn is_header(first: &StringRecord, columns: &[String]) -> bool {
    let numbers = first.iter().filter(|cell| cell.parse::<f64>().is_ok()).count();
    let names_all = || !columns.is_empty() && columns.iter().all(|name| first.iter().any(|cell| cell == name));
    numbers == 0 || (numbers < first.len() && names_all())
}

/// Returns the indices of the requested columns, given by name, or by number from 1 if there is no header.
fn indices(path: &Path, first: &StringRecord, header: Option<&StringRecord>, columns: &[String]) -> Result<Vec<usize>> {
    let display = path.display();
    if columns.is_empty() {
        return Ok((0..first.len()).collect());
    }
    let index = |name: &String| match header {
        None => match name.parse::<usize>() {
            Ok(number) if (1..=first.len()).contains(&number) => Ok(number - 1),
            _ => bail!("{display}: has no header, so columns are numbers from 1 to {}, not \"{name}\"", first.len()),
        },
        Some(header) => {
            let mut found = (0..header.len()).filter(|&i| header.get(i) == Some(name.as_str()));
            match (found.next(), found.next()) {
                (Some(i), None) => Ok(i),
                (None, _) => {
                    bail!("{display}: has no column \"{name}\"; it has {}", listed(header.iter().map(str::to_owned)))
                }
                _ => bail!("{display}: two columns are named \"{name}\""),
            }
        }
    };
    columns.iter().map(index).collect()
}

/// Returns the line on which a record begins. The position of a record is that of the reader before it skipped empty
/// lines.
fn line(text: &[u8], record: &StringRecord) -> usize {
    let from = record.position().map_or(0, |p| p.byte() as usize);
    let empty = text.iter().skip(from).take_while(|b| matches!(b, b'\r' | b'\n')).count();
    1 + text.iter().take(from + empty).filter(|&&b| b == b'\n').count()
}

fn column(i: usize, header: Option<&StringRecord>) -> String {
    match header.and_then(|header| header.get(i)) {
        Some(name) => format!("column {} \"{name}\"", i + 1),
        None => format!("column {}", i + 1),
    }
}
