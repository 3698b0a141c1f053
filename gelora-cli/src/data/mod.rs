//! Data files: rows of text, or of two texts, each with a label or a score.
//!
//! [`read`] turns a file, or one split of a folder, into a [`Dataset`]; [`labels`] then says which classes there are and
//! turns the labels as written into targets. Every complaint names the file and the row (and the line, in a text format).
//!
//! One file per format (`json`, `delimited`, `parquet`) makes a `Table` of cells; `columns` finds out which columns
//! hold what; only then do cells become examples. Formats know nothing about labels, labels nothing about formats.

mod columns;
mod conversation;
mod delimited;
mod folder;
mod json;
mod labels;
mod parquet;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use columns::{ColumnFlags, Columns};
pub use folder::splits;
pub use labels::{LabelSet, Targets, Task, labels};

use crate::chat::{self, Message};
use crate::fingerprint;
use table::Table;

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
    /// What a language model is to answer to the text.
    pub answer: Option<String>,
    /// The conversation, whose answers a language model is to learn; the text is what the user said last in it. Empty in other
    /// rows.
    pub chat: Vec<Message>,
}

/// A label as the file has it; [`labels`] decides whether it is a class or a score.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// A string, an integer or a truth value, as written.
    Class(String),
    /// A number with a decimal point, or any number of a score column. Finite.
    Score(f64),
}

/// A part of a data folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// What the adapter is trained on.
    Train,
    /// What is measured while training.
    Validation,
    /// What is measured at the end.
    Test,
}

impl Split {
    /// The name that files of this split have.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
}

/// The rows of one file, in its order.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The file that was read.
    pub path: PathBuf,
    /// The rows; at least one.
    pub examples: Vec<Example>,
    /// Which columns they came from.
    pub columns: Columns,
    /// The rows are paragraphs that make up one text as they stand.
    pub running: bool,
    /// The line on which each row starts; empty for a format without lines.
    lines: Vec<usize>,
}

impl Dataset {
    /// Where a row is, for messages: `train.jsonl: row 3 (line 4)`. The index is 0-based, the message is 1-based.
    pub fn place(&self, index: usize) -> String {
        table::place(&self.path, &self.lines, index)
    }

    /// A hash of the texts and their order.
    pub fn fingerprint(&self) -> [u32; 2] {
        let of = |text: &'_ Option<String>| text.as_deref().map(str::as_bytes).map(<[u8]>::to_vec);
        let texts: Vec<Option<Vec<u8>>> = self
            .examples
            .iter()
            .flat_map(|e| {
                [Some(e.text.clone().into_bytes()), of(&e.pair)]
                    .into_iter()
                    .chain(e.answer.is_some().then(|| of(&e.answer)))
                    .chain(
                        e.chat.iter().flat_map(|m| [&m.role, &m.content]).map(|part| Some(part.clone().into_bytes())),
                    )
            })
            .collect();
        fingerprint::of(texts.iter().map(Option::as_deref))
    }

    /// Whether rows have answers, of their own or in a conversation.
    pub fn has_answers(&self) -> bool {
        self.examples.iter().any(|e| e.answer.is_some() || chat::is_answered(&e.chat))
    }

    /// Takes conversations for what the user said last in them, as everything but a language model does.
    pub fn take_texts(&mut self) {
        self.examples.iter_mut().for_each(|example| example.chat = Vec::new());
    }

    /// How many rows carry a label.
    pub fn labelled(&self) -> usize {
        self.examples.iter().filter(|e| e.label.is_some()).count()
    }
}

/// Reads a data file, or one split of a data folder.
///
/// A folder has files named train, validation (or dev, valid, val) and test. `wanted` picks one of them: without it the
/// train split is read, or the only one there is. For a path that is itself a file, `wanted` plays no part.
///
/// Labels may be missing: [`labels`] complains about that where they are needed.
///
/// # Errors
/// If the file is missing, empty, in no known format or broken; if its columns are not recognised; if a row has no text.
pub fn read(path: &Path, wanted: Option<Split>, flags: &ColumnFlags) -> Result<Dataset> {
    let path = folder::locate(path, wanted)?;
    let keep = |name: &str| columns::may_matter(name, flags);
    let table = match table::extension(&path).as_str() {
        "jsonl" => json::read_lines(&path, &keep)?,
        "json" => json::read(&path, &keep)?,
        "csv" => delimited::read(&path, b',', &keep)?,
        "tsv" => delimited::read(&path, b'\t', &keep)?,
        "parquet" => parquet::read(&path, &keep)?,
        "txt" => return paragraphs(path),
        _ => bail!("{}: not a data file: its name must end in {}", path.display(), formats()),
    };
    dataset(path, table, flags)
}

/// A text, cut after its blank lines.
fn paragraphs(path: PathBuf) -> Result<Dataset> {
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (mut examples, mut lines, mut begun) = (Vec::<Example>::new(), Vec::new(), false);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let blank = line.trim().is_empty();
        match examples.last_mut() {
            Some(last) if blank || begun || last.text.trim().is_empty() => last.text.push_str(line),
            _ => {
                examples.push(Example { text: line.to_owned(), ..Example::default() });
                lines.push(i + 1);
            }
        }
        begun = !blank;
    }
    if text.trim().is_empty() {
        bail!("{}: the file has no text", path.display());
    }
    let columns =
        Columns { text: "text".into(), pair: None, label: None, label_is_score: false, all: vec!["text".into()] };
    Ok(Dataset { path, examples, columns, running: true, lines })
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

fn dataset(path: PathBuf, mut table: Table, flags: &ColumnFlags) -> Result<Dataset> {
    if table.rows.is_empty() {
        bail!("{}: the file has no rows", path.display());
    }
    let found = columns::resolve(&path, &table, flags)?;
    let lines = std::mem::take(&mut table.lines);
    let mut examples = Vec::with_capacity(table.rows.len());
    for (i, mut row) in table.rows.into_iter().enumerate() {
        let at = || table::place(&path, &lines, i);
        let (mut chat, column) = (Vec::new(), &found.names.text);
        let text = if found.chat {
            chat = conversation::messages(row.take(found.text), column, &at)?;
            conversation::last_of_user(&chat, column, &at)?
        } else {
            row.take(found.text).into_text(column, &at)?
        };
        if text.trim().is_empty() {
            bail!("{}: the text in \"{}\" is empty", at(), found.names.text);
        }
        let pair = match (found.pair, &found.names.pair) {
            (Some(index), Some(name)) => row.take(index).into_optional_text(name, &at)?,
            _ => None,
        };
        let label = match (found.label, &found.names.label) {
            (Some(index), Some(name)) => row.take(index).into_label(name, found.names.label_is_score, &at)?,
            _ => None,
        };
        let answer = match found.answer {
            Some(index) => Some(row.take(index).into_text("answer", &at)?),
            None => None,
        };
        let text = match found.instruction {
            None => text,
            Some(None) => instruction(&text, None),
            Some(Some(about)) => instruction(&text, row.take(about).into_optional_text("input", &at)?.as_deref()),
        };
        examples.push(Example { text, pair, label, answer, chat });
    }
    Ok(Dataset { path, examples, columns: found.names, running: false, lines })
}

#[cfg(test)]
mod tests;
