//! Rows of a stream, such as standard input, in batches as they come. Memory holds one batch.
//!
//! The columns are found in the rows of the first batch. A later row with a column that would have changed the choice
//! is an error, since rows before it were read without it.

use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use super::columns::{self, Columns};
use super::examples::Builder;
use super::json::{self, Seen, Values};
use super::source::{Source, utf8};
use super::table::{Cell, Row, Schema};
use super::{Dataset, LeftOut, ReadOptions};

/// Format of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFormat {
    /// Objects, as in .jsonl and .json files.
    Json,
    /// A text in each line.
    Text,
}

/// Rows of a stream.
pub struct RowStream<'o> {
    /// What stands for the path in messages.
    name: PathBuf,
    options: &'o ReadOptions,
    rows: Rows,
    builder: Builder<'o>,
    columns: Option<Columns>,
    /// Remarks that the caller has not taken yet.
    notes: Vec<String>,
    /// An error that comes after the rows before it.
    failed: Option<anyhow::Error>,
}

/// The source of rows.
enum Rows {
    Json(JsonRows),
    Text(Source),
    /// Nothing is left.
    End,
}

struct JsonRows {
    values: Values,
    /// Rows that were read to find the columns: the line and the bytes of each.
    ahead: VecDeque<(usize, Vec<u8>)>,
    /// The columns so far.
    seen: Seen,
    /// Whether a column that earlier rows lack was remarked on.
    is_remarked: bool,
}

/// Number of different columns up to which rows are searched for new ones.
const MAX_COLUMNS: usize = 1000;

impl<'o> RowStream<'o> {
    /// Opens a stream, which may be compressed with gzip and encoded in UTF-16. An empty stream has no rows.
    ///
    /// # Errors
    /// Returns an error if the stream cannot be read, or an option does not apply to its format.
    pub fn open(
        name: &Path,
        input: impl Read + 'static,
        format: StreamFormat,
        options: &'o ReadOptions,
    ) -> Result<Self> {
        if format == StreamFormat::Text && (options.columns.text.is_some() || options.columns.pair.is_some()) {
            bail!("{}: lines of text have no columns, so --text-column and --pair-column do not apply", name.display());
        }
        let mut source = Source::of_stream(name, input)?;
        let rows = match format {
            StreamFormat::Text => Rows::Text(source),
            StreamFormat::Json if source.skip_space()?.is_none() => Rows::End,
            StreamFormat::Json => {
                let values = Values::open(source)?;
                Rows::Json(JsonRows { values, ahead: VecDeque::new(), seen: Seen::default(), is_remarked: false })
            }
        };
        let mut builder = Builder::new(options, Dataset::new(name.to_owned()));
        builder.begin(name);
        Ok(Self { name: name.to_owned(), options, rows, builder, columns: None, notes: Vec::new(), failed: None })
    }

    /// Returns the next rows: `size`, or fewer at the end and before a bad row. None at the end.
    ///
    /// # Errors
    /// Returns an error if the stream cannot be read, its columns are not recognized, or a row is bad, unless bad rows
    /// are skipped. Rows before a bad one come first.
    pub fn next_batch(&mut self, size: usize) -> Result<Option<Dataset>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.columns.is_none() {
            let columns = self.find_columns(size)?;
            self.builder.data.columns = columns.clone();
            self.columns = Some(columns);
        }
        while self.builder.data.examples.len() < size {
            match self.read_row() {
                Ok(true) => {}
                Ok(false) => {
                    self.rows = Rows::End;
                    break;
                }
                Err(error) => {
                    self.rows = Rows::End;
                    self.failed = Some(error);
                    break;
                }
            }
        }
        let batch = self.builder.data.take_examples();
        match (batch.examples.is_empty(), self.failed.take_if(|_| batch.examples.is_empty())) {
            (true, Some(error)) => Err(error),
            (true, None) => Ok(None),
            (false, _) => Ok(Some(batch)),
        }
    }

    /// Returns the columns. None before the first batch.
    pub fn columns(&self) -> Option<&Columns> {
        self.columns.as_ref()
    }

    /// Returns the remarks since the last call.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Returns the rows that were left out so far.
    pub fn left_out(&self) -> Option<LeftOut> {
        self.builder.remarks().0
    }

    /// Finds the columns in the first rows.
    fn find_columns(&mut self, size: usize) -> Result<Columns> {
        let Rows::Json(rows) = &mut self.rows else {
            let text = "text".to_owned();
            return Ok(Columns { all: vec![text.clone()], text, ..Columns::default() });
        };
        let (mut seen, mut wrong) = (Seen::default(), None);
        while rows.ahead.len() < size {
            let mut bytes = Vec::new();
            match rows.values.next(&mut bytes) {
                Ok(None) => break,
                Ok(Some(line)) => {
                    if let Err(error) = json::look_at(&self.name, &bytes, line, rows.ahead.len() + 1, &mut seen) {
                        wrong.get_or_insert(error);
                    }
                    rows.ahead.push_back((line, bytes));
                }
                // The rows before the break are read first.
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        if seen.columns.is_empty()
            && let Some(error) = wrong.or(self.failed.take())
        {
            return Err(error);
        }
        let schema = Schema { columns: seen.columns.clone(), ..Schema::default() };
        let columns = columns::resolve(&self.name, &schema, &self.options.columns)?;
        rows.seen = seen;
        self.notes.extend(columns.remark().map(|remark| format!("{}: {remark}", self.name.display())));
        Ok(columns)
    }

    /// Reads a row. Returns false at the end.
    fn read_row(&mut self) -> Result<bool> {
        let Some(columns) = &self.columns else { return Ok(false) };
        let (name, number) = (&self.name, self.builder.data.read + 1);
        let mut bytes = Vec::new();
        let (line, row) = match &mut self.rows {
            Rows::End => return Ok(false),
            Rows::Text(source) => {
                let line = source.line();
                if !source.read_line(&mut bytes)? {
                    return Ok(false);
                }
                let text = utf8(name, bytes.strip_suffix(b"\r").unwrap_or(&bytes), line);
                (line, text.map(|text| Row(vec![Cell::Text(text.to_owned())])))
            }
            Rows::Json(rows) => {
                let line = match rows.ahead.pop_front() {
                    Some((line, first)) => {
                        bytes = first;
                        line
                    }
                    None if self.failed.is_some() => return Ok(false),
                    None => match rows.values.next(&mut bytes)? {
                        Some(line) => {
                            self.notes.extend(rows.new_column(name, (&bytes, line, number), columns, self.options)?);
                            line
                        }
                        None => return Ok(false),
                    },
                };
                (line, json::cells(name, &bytes, line, number, &columns.wanted()))
            }
        };
        self.builder.push(name, columns, line, row)?;
        Ok(true)
    }
}

impl JsonRows {
    /// Looks for columns that earlier rows lack. Returns a remark on the first one.
    ///
    /// # Errors
    /// Returns an error if the rows would be read otherwise with it.
    fn new_column(
        &mut self,
        name: &Path,
        (bytes, line, row): (&[u8], usize, usize),
        columns: &Columns,
        options: &ReadOptions,
    ) -> Result<Option<String>> {
        let seen = &mut self.seen;
        let before = seen.columns.len();
        if before > MAX_COLUMNS {
            return Ok(None);
        }
        // A broken row is reported when its cells are read.
        if json::look_at(name, bytes, line, row, seen).is_err() || seen.columns.len() == before {
            return Ok(None);
        }
        let found = seen.columns[before].name.clone();
        let schema = Schema { columns: seen.columns.clone(), ..Schema::default() };
        let place = super::table::place(name, row, line);
        let now = columns::resolve(name, &schema, &options.columns)?;
        if !now.same_roles(columns) {
            return Err(anyhow!(
                "{place}: brings the column \"{found}\", with which the rows are {} and not {}; put such a row first, \
                 or name the columns with --text-column and --pair-column",
                now.wanted().join(", "),
                columns.wanted().join(", ")
            ));
        }
        let is_first = !std::mem::replace(&mut self.is_remarked, true);
        let remark =
            || format!("{place}: the column \"{found}\", which earlier rows lack, is not used, nor are later ones");
        Ok(is_first.then(remark))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::data::{Aim, ColumnFlags};

    fn options(skip_bad_rows: bool) -> ReadOptions {
        let columns = ColumnFlags { aim: Aim::Texts, ..ColumnFlags::default() };
        ReadOptions { columns, skip_bad_rows, ..ReadOptions::default() }
    }

    /// Returns the places and texts of every batch, and the error that ended the stream, with the remarks before it.
    fn read(text: &str, format: StreamFormat, skip: bool, size: usize) -> (Vec<Vec<(usize, String)>>, Vec<String>) {
        let (options, input) = (options(skip), Cursor::new(text.as_bytes().to_vec()));
        let mut stream = RowStream::open(Path::new("in"), input, format, &options).unwrap();
        let mut batches = Vec::new();
        let mut said = Vec::new();
        loop {
            let batch = stream.next_batch(size);
            said.extend(stream.take_notes());
            match batch {
                Ok(Some(batch)) => {
                    let rows = batch.examples.iter().enumerate().map(|(i, e)| (batch.row(i), e.text.clone()));
                    batches.push(rows.collect());
                }
                Ok(None) => break,
                Err(error) => {
                    said.push(format!("{error:#}"));
                    assert!(stream.next_batch(size).unwrap().is_none(), "nothing follows an error");
                    break;
                }
            }
        }
        said.extend(stream.left_out().map(|left_out| left_out.why));
        (batches, said)
    }

    #[test]
    fn rows_come_in_batches_and_keep_their_numbers() {
        let text = "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n{\"text\": \"c\"}";
        let (batches, said) = read(text, StreamFormat::Json, false, 2);
        assert_eq!(batches, [vec![(1, "a".into()), (2, "b".into())], vec![(3, "c".into())]]);
        assert!(said.is_empty(), "{said:?}");
        assert_eq!(read("[{\"text\": \"a\"}, {\"text\": \"b\"}]", StreamFormat::Json, false, 9).0[0].len(), 2);
        assert_eq!(read(" a b\r\nc\n", StreamFormat::Text, false, 9).0, [vec![(1, " a b".into()), (2, "c".into())]]);
        assert!(read("", StreamFormat::Json, false, 9).0.is_empty());
        assert!(read(" \n", StreamFormat::Json, false, 9).0.is_empty());
    }

    #[test]
    fn rows_before_a_bad_one_come_first() {
        let text = "{\"text\": \"a\"}\n{\"text\": 3}\n{\"text\": \"c\"}\n";
        for size in [1, 2, 9] {
            let (batches, said) = read(text, StreamFormat::Json, false, size);
            assert_eq!(batches, [vec![(1, "a".into())]], "{size}");
            assert_eq!(said.len(), 1);
            assert!(said[0].starts_with("in: row 2 (line 2)"), "{said:?}");
            let (batches, said) = read(text, StreamFormat::Json, true, size);
            assert_eq!(batches.concat(), [(1, "a".into()), (3, "c".into())]);
            assert!(said[0].contains("in: row 2 (line 2)"), "{said:?}");
        }
        let (batches, said) = read("a\n\nc\n", StreamFormat::Text, false, 9);
        assert_eq!((batches.concat().len(), said[0].contains("row 2")), (1, true), "{said:?}");
        // A list that is not closed ends after its rows.
        let (batches, said) = read("[{\"text\": \"a\"}, {\"text\": \"b\"}", StreamFormat::Json, false, 9);
        assert_eq!(batches.concat().len(), 2);
        assert!(said[0].contains("closing bracket"), "{said:?}");
    }

    #[test]
    fn labels_are_not_read_and_late_columns_are_told() {
        let text =
            "{\"text\": \"a\", \"label\": {\"x\": 1}}\n{\"text\": \"b\", \"note\": 1}\n{\"text\": \"c\", \"id\": 2}";
        let (batches, said) = read(text, StreamFormat::Json, false, 1);
        assert_eq!(batches.concat().len(), 3);
        assert!(said[0].contains("labels in \"label\" are not used"), "{said:?}");
        assert!(said[1].starts_with("in: row 2 (line 2): the column \"note\""), "{said:?}");
        assert_eq!(said.len(), 2);
        // A pair that begins late would have been read without its second text.
        let text = "{\"sentence1\": \"a\"}\n{\"sentence1\": \"b\", \"sentence2\": \"c\"}\n";
        let (batches, said) = read(text, StreamFormat::Json, false, 1);
        assert_eq!(batches.concat().len(), 1);
        assert!(said[0].contains("row 2") && said[0].contains("sentence2"), "{said:?}");
        assert_eq!(read(text, StreamFormat::Json, false, 2).0.concat().len(), 2);
    }
}
