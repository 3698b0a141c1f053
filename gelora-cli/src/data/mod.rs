//! Data files: rows of text, or of two texts, each with a label or a score.
//!
//! [`read`] turns a file, or one split of a folder, into a [`Dataset`]; [`labels`] then says which classes there are and
//! turns the labels as written into targets. Every complaint names the file and the row (and the line, in a text format).
//!
//! A format (`json`, `delimited`, `parquet`) tells the `Schema` of a file and, in a second pass, hands on the cells of the
//! columns that `columns` chose, row by row, so that nothing else is ever held; `examples` makes examples of them. Formats know
//! nothing about labels, labels nothing about formats.

mod columns;
mod conversation;
mod dataset;
mod delimited;
mod examples;
mod folder;
mod json;
mod labels;
mod paragraphs;
mod parquet;
mod source;
mod table;

use std::path::Path;

use anyhow::{Result, bail};

pub use columns::{Aim, ColumnFlags, list};
pub use dataset::{Dataset, LeftOut};
pub use folder::{Split, splits};
pub use labels::{Label, LabelSet, Targets, Task, counts, labels};

use crate::chat::Message;
use examples::Builder;
use table::Schema;

/// File endings that [`read`] knows.
pub const FORMATS: [&str; 6] = ["jsonl", "json", "csv", "tsv", "parquet", "txt"];

/// One row: a text or a pair of texts, and what is known about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// The text, or the first text of a pair. Never blank.
    pub text: String,
    /// The second text of a pair; none in a row whose second text is null, absent or an empty CSV cell.
    pub pair: Option<String>,
    /// The label, if the row has one.
    pub label: Option<Label>,
    /// What a language model is to answer to the text. Never blank.
    pub answer: Option<String>,
    /// The conversation, whose answers a language model is to learn; the text is what the user said last in it. Empty in other
    /// rows.
    pub chat: Vec<Message>,
}

impl Example {
    /// Everything that tokens are made of, for hashes.
    pub fn parts(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let turns = self.chat.iter().flat_map(|m| [&m.role, &m.content]).map(|part| Some(part.as_bytes()));
        let answer = self.answer.iter().map(|answer| Some(answer.as_bytes()));
        [Some(self.text.as_bytes()), self.pair.as_deref().map(str::as_bytes)].into_iter().chain(answer).chain(turns)
    }
}

/// How a data file is read.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Names of columns, and what the rows are for.
    pub columns: ColumnFlags,
    /// What separates the cells of .csv and .tsv; recognised without.
    pub delimiter: Option<u8>,
    /// Bad rows are left out and counted, instead of ending the reading.
    pub skip_bad_rows: bool,
    /// Rows that are the same as an earlier one are left out and counted.
    pub dedup: bool,
    /// Rows with the same texts are the same, whatever their labels.
    pub labels_do_not_matter: bool,
    /// Progress of large files is shown.
    pub show_progress: bool,
}

/// Reads a data file, or one split of a data folder.
///
/// A folder has files named train, validation (or dev, valid, val) and test, or several of each (`train-00000-of-00002`).
/// `wanted` picks one split: without it the train split is read, or the only one there is. For a path that is itself a file,
/// `wanted` plays no part.
///
/// Labels may be missing: [`labels`] complains about that where they are needed.
///
/// # Errors
/// If the file is missing, empty, in no known format or broken; if its columns are not recognised; if a row has no text.
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
            let (shown, other) = (file.display(), found.files[0].display());
            let (here, there) = (columns.wanted().join(", "), builder.data.columns.wanted().join(", "));
            bail!("{shown}: its columns are {here}, but those of {other} are {there}");
        }
        builder.data.notes.extend(schema.notes);
        builder.begin(file);
        let wanted = columns.wanted();
        let sink = &mut |line, row| builder.push(file, &columns, line, row);
        match table::extension(file).as_str() {
            "parquet" => parquet::rows(file, &wanted, label, sink)?,
            "csv" | "tsv" => delimited::rows(file, schema.delimiter, &wanted, label, sink)?,
            _ => json::rows(file, &wanted, label, sink)?,
        }
    }
    builder.finish()
}

/// Checks that no option was given that means nothing for this kind of file.
fn check_options(file: &Path, options: &ReadOptions) -> Result<()> {
    let ColumnFlags { text, pair, answer, label, .. } = &options.columns;
    let (ending, shown) = (table::extension(file), file.display());
    if options.delimiter.is_some() && !["csv", "tsv"].contains(&ending.as_str()) {
        bail!("--delimiter: {shown} has no separated cells; expected a .csv or .tsv file");
    }
    if ending == "txt" {
        let given = [
            ("--text-column", text.is_some()),
            ("--pair-column", pair.is_some()),
            ("--answer-column", answer.is_some()),
            ("--label-column", label.is_some()),
            ("--dedup", options.dedup),
        ];
        if let Some((option, _)) = given.into_iter().find(|(_, given)| *given) {
            bail!("{option}: {shown} is one running text, without columns or rows");
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

/// What a language model reads of an instruction and what it is about.
pub fn instruction(instruction: &str, about: Option<&str>) -> String {
    match about.filter(|text| !text.trim().is_empty()) {
        Some(about) => format!("### Instruction:\n{instruction}\n\n### Input:\n{about}\n\n### Response:\n"),
        None => format!("### Instruction:\n{instruction}\n\n### Response:\n"),
    }
}

/// `.jsonl, .json, .csv, .tsv, .parquet or .txt`
fn formats() -> String {
    let dotted: Vec<String> = FORMATS.iter().map(|f| format!(".{f}")).collect();
    format!("{} or {}", dotted[..dotted.len() - 1].join(", "), dotted[dotted.len() - 1])
}

#[cfg(test)]
mod tests;
