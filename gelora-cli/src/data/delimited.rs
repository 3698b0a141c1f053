//! Readers of `.csv` and `.tsv` files with a header line.
//!
//! CSV has quotes as in RFC 4180. TSV has no quotes (IANA text/tab-separated-values): in common files a quote is part
//! of the text, and reading it as a CSV quote would silently join rows. The delimiter may differ from the one that the
//! file name suggests; the header shows it.

use std::path::Path;

use anyhow::{Result, bail};

use super::source::{Source, utf8};
use super::table::{Cell, Column, Row, Schema, Sink, extension};

/// Delimiters of common files.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// Finds the columns. `delimiter` is the user's choice. `is_known` returns true for known column names.
///
/// # Errors
/// Returns an error if the file is empty or cannot be read, or if a quote in its header is never closed.
pub fn schema(path: &Path, delimiter: Option<u8>, is_known: &dyn Fn(&str) -> bool) -> Result<Schema> {
    let usual = if extension(path) == "tsv" { b'\t' } else { b',' };
    let mut notes = Vec::new();
    let delimiter = match delimiter {
        Some(delimiter) => delimiter,
        None => {
            let found = recognize_delimiter(path, usual, is_known)?;
            if found != usual {
                notes.push(format!("{}: cells are separated by {}", path.display(), delimiter_name(found)));
            }
            found
        }
    };
    let mut records = Records::open(path, delimiter, None)?;
    let Some(header) = records.header()? else { bail!("{}: the file is empty", path.display()) };
    let mut columns: Vec<Column> = header.iter().map(|name| Column::new(name)).collect();
    let mut is_empty = true;
    for _ in 0..EXAMINED_ROWS {
        if records.next()?.is_none() {
            break;
        }
        is_empty = false;
        for (column, cell) in columns.iter_mut().zip(records.cells()) {
            column.look_at(&Cell::Untyped(String::from_utf8_lossy(cell).into_owned()));
        }
    }
    Ok(Schema { columns, is_empty, delimiter, notes })
}

/// Number of rows that are examined for the kinds of columns.
const EXAMINED_ROWS: usize = 20;

/// Reads the cells of the wanted columns, row by row.
///
/// # Errors
/// Returns an error if the file cannot be read, two of the columns have the same name, or a quote is never closed.
/// Returns the errors of the sink.
pub fn rows(path: &Path, delimiter: u8, wanted: &[String], label: Option<&str>, sink: &mut Sink<'_>) -> Result<()> {
    let display = path.display();
    let mut records = Records::open(path, delimiter, label)?;
    let columns = records.header()?.unwrap_or_default();
    let mut indices = Vec::new();
    for name in wanted {
        let mut found = columns.iter().enumerate().filter(|(_, column)| *column == name).map(|(i, _)| i);
        match (found.next(), found.next()) {
            (Some(index), None) => indices.push(index),
            (_, Some(_)) => bail!("{display}: two columns are named \"{name}\""),
            (None, _) => bail!("{display}: no column \"{name}\" in the header"),
        }
    }
    let mut row = 0;
    while let Some(line) = records.next()? {
        row += 1;
        let found = records.ends.len();
        if found != columns.len() {
            let (width, separator) = (columns.len(), delimiter_name(delimiter));
            let wrong = anyhow::anyhow!(
                "{display}: row {row} (line {line}) has {found} cells, but the header has {width} (separated by \
                 {separator})"
            );
            sink(line, Err(wrong))?;
            continue;
        }
        let cell = |i: &usize| utf8(path, records.cell(*i), line).map(|text| Cell::Untyped(text.to_owned()));
        sink(line, indices.iter().map(cell).collect::<Result<_>>().map(Row))?;
    }
    Ok(())
}

/// Returns the delimiter of the header: the one that yields the most known column names, or else the usual one if it
/// separates any names.
fn recognize_delimiter(path: &Path, usual: u8, is_known: &dyn Fn(&str) -> bool) -> Result<u8> {
    let mut source = Source::open(path, None)?;
    let mut line = Vec::new();
    source.skip_space()?;
    // A quoted name may span several lines.
    while source.read_line(&mut line)? && line.iter().filter(|byte| **byte == b'"').count() % 2 == 1 {
        line.push(b'\n');
    }
    if let Some(delimiter) = declared_delimiter(&line) {
        return Ok(delimiter);
    }
    let worth = |delimiter: u8| -> (usize, bool, usize, bool) {
        let mut records = Records::new(Source::from_bytes(path, line.clone()), delimiter);
        let header = records.header().ok().flatten().unwrap_or_default();
        let is_usual = delimiter == usual;
        (header.iter().filter(|name| is_known(name)).count(), is_usual && header.len() > 1, header.len(), is_usual)
    };
    Ok(DELIMITERS.into_iter().max_by_key(|delimiter| worth(*delimiter)).unwrap_or(usual))
}

/// Returns the delimiter declared by a line `sep=;`, with which files of Excel may begin.
fn declared_delimiter(line: &[u8]) -> Option<u8> {
    match line.trim_ascii_end() {
        [b's', b'e', b'p', b'=', delimiter] => Some(*delimiter),
        _ => None,
    }
}

/// Returns the name of a delimiter for messages.
fn delimiter_name(delimiter: u8) -> String {
    if delimiter == b'\t' { "tabs".into() } else { format!("\"{}\"", char::from(delimiter)) }
}

/// Rows of a file, without blank lines.
struct Records {
    source: Source,
    delimiter: u8,
    quotes: bool,
    /// Cells of the row, concatenated, and the end of each.
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// State of the parser.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// At the beginning of a cell.
    CellStart,
    Plain,
    Quoted,
    /// After a quote, which ends the cell unless another quote follows.
    QuoteSeen,
}

impl Records {
    fn open(path: &Path, delimiter: u8, label: Option<&str>) -> Result<Self> {
        Ok(Self::new(Source::open(path, label)?, delimiter))
    }

    fn new(source: Source, delimiter: u8) -> Self {
        let quotes = delimiter != b'\t' || extension(source.path()) != "tsv";
        Self { source, delimiter, quotes, bytes: Vec::new(), ends: Vec::new() }
    }

    /// Returns the names in the header, or None if the file is empty.
    fn header(&mut self) -> Result<Option<Vec<String>>> {
        let mut line = self.next()?;
        if line.is_some() && declared_delimiter(&self.bytes).is_some() || self.bytes == b"sep=" {
            line = self.next()?;
        }
        let Some(line) = line else { return Ok(None) };
        let name = |cell| Ok(utf8(self.source.path(), cell, line)?.trim().to_owned());
        let names: Vec<String> = self.cells().map(name).collect::<Result<_>>()?;
        Ok((!names.iter().all(String::is_empty)).then_some(names))
    }

    fn cell(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }

    fn cells(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends.len()).map(|index| self.cell(index))
    }

    /// Reads the next row. Returns the line on which it starts, or None at the end.
    fn next(&mut self) -> Result<Option<usize>> {
        self.bytes.clear();
        self.ends.clear();
        while self.source.peek()?.is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            self.source.next()?;
        }
        if self.source.peek()?.is_none() {
            return Ok(None);
        }
        let line = self.source.line();
        let mut state = State::CellStart;
        loop {
            let byte = self.source.next()?;
            state = match (state, byte) {
                (State::Quoted, None) => {
                    let display = self.source.path().display();
                    bail!("{display}: a quote in the row that starts on line {line} is never closed")
                }
                (State::Quoted, Some(b'"')) => State::QuoteSeen,
                (State::QuoteSeen, Some(b'"')) => {
                    self.bytes.push(b'"');
                    State::Quoted
                }
                (State::Quoted, Some(byte)) => {
                    self.bytes.push(byte);
                    State::Quoted
                }
                (_, None | Some(b'\n' | b'\r')) => {
                    self.ends.push(self.bytes.len());
                    return Ok(Some(line));
                }
                (_, Some(byte)) if byte == self.delimiter => {
                    self.ends.push(self.bytes.len());
                    State::CellStart
                }
                (State::CellStart, Some(b'"')) if self.quotes => State::Quoted,
                (_, Some(byte)) => {
                    self.bytes.push(byte);
                    State::Plain
                }
            };
        }
    }
}
