//! Data files: rows of one or two texts, an instruction or a conversation, with a label, a score or an answer.
//!
//! [`read`] turns a file, or one split of a folder, into a [`Dataset`]. [`labels`] then finds the classes and turns
//! labels as written into targets. Every error names the file and the row (and the line, in a text format).
//!
//! Each format (`json`, `delimited`, `parquet`) first returns the `Schema` of a file. In a second pass it passes on the
//! cells of the columns that `columns` chose, row by row, so that nothing else is kept in memory. `examples` turns
//! cells into examples. Formats do not depend on labels, and labels do not depend on formats.

mod classes;
mod columns;
mod conversation;
mod dataset;
mod delimited;
mod examples;
mod folder;
mod json;
mod label;
mod labels;
mod paragraphs;
mod parquet;
mod sets;
mod source;
mod stream;
mod table;

use std::path::Path;

use anyhow::{Result, bail};

pub use columns::{Aim, ColumnFlags, list};
pub use dataset::{Dataset, LeftOut};
pub use folder::{Split, splits};
pub use label::Label;
pub use labels::{LabelSet, Targets, Task, counts, labels};
pub use sets::{Form, Sets};
pub use stream::{RowStream, StreamFormat};

use crate::chat::Message;
use examples::Builder;
use table::Schema;

/// File endings that [`read`] supports.
pub const FORMATS: [&str; 6] = ["jsonl", "json", "csv", "tsv", "parquet", "txt"];

/// One row: a text or a pair of texts, with its label or answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// The text, or the first text of a pair. Never blank.
    pub text: String,
    /// The second text of a pair. None if it is null, absent or an empty CSV cell.
    pub pair: Option<String>,
    /// The label, if the row has one.
    pub label: Option<Label>,
    /// The answer that a language model learns. Never blank.
    pub answer: Option<String>,
    /// The conversation, whose answers a language model learns. The text is its last message of the user. Empty in
    /// other rows.
    pub chat: Vec<Message>,
}

impl Example {
    /// Returns the strings that tokens are made from, for hashes.
    pub fn parts(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let turns = self.chat.iter().flat_map(|m| [&m.role, &m.content]).map(|part| Some(part.as_bytes()));
        let answer = self.answer.iter().map(|answer| Some(answer.as_bytes()));
        [Some(self.text.as_bytes()), self.pair.as_deref().map(str::as_bytes)].into_iter().chain(answer).chain(turns)
    }
}

/// Options for reading a data file.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Names of columns, and the use of the rows.
    pub columns: ColumnFlags,
    /// Delimiter of .csv and .tsv files. None recognizes it from the header.
    pub delimiter: Option<u8>,
    /// Leave out and count bad rows instead of returning an error.
    pub skip_bad_rows: bool,
    /// Leave out and count rows that repeat an earlier row.
    pub dedup: bool,
    /// Compare rows by their texts only, whatever their labels.
    pub labels_do_not_matter: bool,
    /// Show the progress of large files.
    pub show_progress: bool,
}

/// Reads a data file, or one split of a data folder.
///
/// A folder has files named train, validation (or dev, valid, val) and test, or several of each
/// (`train-00000-of-00002`). `wanted` selects one split. Without it the train split is read, or the only split. If the
/// path is a file, `wanted` has no effect.
///
/// Labels may be missing. [`labels`] returns an error if they are needed.
///
/// # Errors
/// Returns an error if the file is missing, empty, broken or of an unknown format, if its columns are not recognized,
/// or if a row has no text.
pub fn read(path: &Path, wanted: Option<Split>, options: &ReadOptions) -> Result<Dataset> {
    let found = folder::locate(path, wanted)?;
    let mut builder = Builder::new(options, Dataset::new(found.path));
    builder.data.notes = found.notes;
    let label = options.show_progress.then_some("reading");
    for (i, file) in found.files.iter().enumerate() {
        check_options(file, options)?;
        if table::extension(file) == "txt" {
            paragraphs::read(file, label, &mut builder.data)?;
            continue;
        }
        let schema = schema(file, options)?;
        if schema.is_empty && found.files.len() == 1 {
            bail!("{}: the file has no rows", file.display());
        }
        let columns = columns::resolve(file, &schema, &options.columns)?;
        if i == 0 {
            builder.data.columns = columns.clone();
        } else if !columns.same_roles(&builder.data.columns) {
            let (path, other) = (file.display(), found.files[0].display());
            let (here, others) = (columns.wanted().join(", "), builder.data.columns.wanted().join(", "));
            bail!("{path}: its columns are {here}, but those of {other} are {others}");
        }
        builder.data.notes.extend(schema.notes);
        builder.data.notes.extend(columns.remark().map(|remark| format!("{}: {remark}", file.display())));
        builder.begin(file);
        let wanted = columns.wanted();
        let sink = &mut |line, row| builder.push(file, &columns, line, row);
        match table::extension(file).as_str() {
            "parquet" => parquet::rows(file, &wanted, label, sink)?,
            "csv" | "tsv" => delimited::rows(file, schema.delimiter, &wanted, label, sink)?,
            "jsonl" | "json" => json::rows(file, &wanted, label, sink)?,
            other => bail!("{}: no reader of .{other} files", file.display()),
        }
    }
    builder.finish()
}

/// Returns an error if an option does not apply to this kind of file.
fn check_options(file: &Path, options: &ReadOptions) -> Result<()> {
    let ColumnFlags { text, pair, answer, .. } = &options.columns;
    let (ending, path) = (table::extension(file), file.display());
    if options.delimiter.is_some() && !["csv", "tsv"].contains(&ending.as_str()) {
        bail!("--delimiter: {path} has no separated cells; expected a .csv or .tsv file");
    }
    if ending == "txt" {
        let given = [
            ("--text-column", text.is_some()),
            ("--pair-column", pair.is_some()),
            ("--answer-column", answer.is_some()),
            ("--dedup", options.dedup),
        ];
        let given = given.into_iter().find_map(|(option, given)| given.then_some(option));
        if let Some(option) = given.or(options.columns.names_labels()) {
            bail!("{option}: {path} is one running text, without columns or rows");
        }
    }
    Ok(())
}

fn schema(path: &Path, options: &ReadOptions) -> Result<Schema> {
    match table::extension(path).as_str() {
        "jsonl" | "json" => json::schema(path, options.show_progress.then_some("columns of")),
        "csv" | "tsv" => delimited::schema(path, options.delimiter, &|name| columns::is_known(name, &options.columns)),
        "parquet" => parquet::schema(path),
        _ => bail!("{}: not a data file: its name must end in {}", path.display(), formats()),
    }
}

/// Returns the prompt of an instruction and its input, in the form of Alpaca.
pub fn instruction(instruction: &str, about: Option<&str>) -> String {
    match about.filter(|text| !text.trim().is_empty()) {
        Some(about) => format!("### Instruction:\n{instruction}\n\n### Input:\n{about}\n\n### Response:\n"),
        None => format!("### Instruction:\n{instruction}\n\n### Response:\n"),
    }
}

/// Returns `.jsonl, .json, .csv, .tsv, .parquet or .txt`.
fn formats() -> String {
    let dotted: Vec<String> = FORMATS.iter().map(|f| format!(".{f}")).collect();
    format!("{} or {}", dotted[..dotted.len() - 1].join(", "), dotted[dotted.len() - 1])
}

#[cfg(test)]
mod tests;
