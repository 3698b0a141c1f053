//! `.csv` and `.tsv` with a header line.
//!
//! CSV quotes as in RFC 4180. TSV has no quotes (IANA text/tab-separated-values): in the files that circulate a quote
//! is part of the text, and reading it as CSV does would run rows together without a word.

use std::path::Path;

use anyhow::{Context, Result, bail};
use csv::{ReaderBuilder, StringRecord};

use super::table::{Cell, Row, Table, read_text};

/// Put behind the file as a row of its own: if it comes back inside another row, a quote was never closed.
const SENTINEL: &str = "\u{1}end\u{1}";

/// Reads a file of delimited cells.
pub fn read(path: &Path, delimiter: u8, keep: &dyn Fn(&str) -> bool) -> Result<Table> {
    let shown = path.display();
    let mut text = read_text(path)?;
    text.push('\n');
    text.push_str(SENTINEL);
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(delimiter != b'\t')
        .has_headers(false)
        .flexible(true) // so that a ragged row gets our message
        .from_reader(text.as_bytes());
    let mut record = StringRecord::new();
    let mut next = |record: &mut StringRecord| -> Result<Option<usize>> {
        let more = reader.read_record(record).with_context(|| format!("{shown}: cannot be read"))?;
        let end = record.len() == 1 && record.get(0) == Some(SENTINEL);
        Ok((more && !end).then(|| record.position().map_or(0, |p| p.line() as usize + blank_lines(&text, p.byte()))))
    };

    next(&mut record)?;
    unclosed(path, &record, 1)?;
    let columns: Vec<String> = record.iter().map(|name| name.trim().to_owned()).collect();
    let mut indices = Vec::new();
    for (i, name) in columns.iter().enumerate().filter(|(_, name)| keep(name)) {
        if columns[..i].contains(name) {
            bail!("{shown}: two columns are named \"{name}\"");
        }
        indices.push(i);
    }
    let kept = indices.iter().map(|i| columns[*i].clone()).collect();
    let mut table = Table { columns, kept, ..Table::default() };
    while let Some(line) = next(&mut record)? {
        unclosed(path, &record, line)?;
        if record.len() != table.columns.len() {
            bail!(
                "{shown}: row {} (line {line}) has {} cells, but the header has {}",
                table.rows.len() + 1,
                record.len(),
                table.columns.len()
            );
        }
        let cell = |i: &usize| record.get(*i).map_or(Cell::Null, |text| Cell::Untyped(text.to_owned()));
        table.rows.push(Row(indices.iter().map(cell).collect()));
        table.lines.push(line);
    }
    Ok(table)
}

/// The reader skips blank lines, but counts a row's position from before them.
fn blank_lines(text: &str, position: u64) -> usize {
    let blank =
        text.as_bytes()[(position as usize).min(text.len())..].iter().take_while(|b| matches!(b, b'\n' | b'\r'));
    blank.filter(|b| **b == b'\n').count()
}

fn unclosed(path: &Path, record: &StringRecord, line: usize) -> Result<()> {
    if record.iter().next_back().is_some_and(|cell| cell.ends_with(SENTINEL)) {
        bail!("{}: a quote in the row that starts on line {line} is never closed", path.display());
    }
    Ok(())
}
