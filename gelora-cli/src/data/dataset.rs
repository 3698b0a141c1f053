//! Rows of a file, or of the files of one split.

use std::mem::take;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::columns::{self, Columns};
use super::table::place;
use super::{Example, Label};
use crate::chat;
use crate::fingerprint;

/// Rows in the order of their files.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The file, or the folder of the files.
    pub path: PathBuf,
    /// The rows that are used; at least one.
    pub examples: Vec<Example>,
    /// Columns of the files.
    pub columns: Columns,
    /// True if the rows are consecutive paragraphs of one text.
    pub running: bool,
    /// Number of rows in the files.
    pub read: usize,
    /// Rows that are not used.
    pub left_out: Vec<LeftOut>,
    /// Remarks on how the files were read.
    pub notes: Vec<String>,
    /// The files, each with the number of examples and the number of rows before it.
    files: Vec<(PathBuf, usize, usize)>,
    /// 1-based row number of each example, counted through all files.
    rows: Vec<u32>,
    /// Line on which each row starts; 0 in a format without lines.
    lines: Vec<u32>,
}

/// Rows that were not used, for one reason.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeftOut {
    /// Number of rows.
    pub rows: usize,
    /// Reason in words.
    pub why: String,
}

impl Dataset {
    /// Returns a dataset without rows.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            examples: Vec::new(),
            columns: Columns::default(),
            running: false,
            read: 0,
            left_out: Vec::new(),
            notes: Vec::new(),
            files: Vec::new(),
            rows: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Begins the rows of the next file.
    pub fn begin(&mut self, file: &Path) {
        self.files.push((file.to_owned(), self.examples.len(), self.read));
    }

    /// Adds the row that was read last, which starts on `line`.
    pub fn push(&mut self, example: Example, line: usize) {
        self.examples.push(example);
        self.rows.push(self.read.try_into().unwrap_or(u32::MAX));
        self.lines.push(line.try_into().unwrap_or(u32::MAX));
    }

    /// Moves the examples out, with their places. Later rows are counted on.
    pub fn take_examples(&mut self) -> Self {
        let (examples, rows, lines) = (take(&mut self.examples), take(&mut self.rows), take(&mut self.lines));
        Self { examples, rows, lines, ..self.clone() }
    }

    /// Records rows that were left out, if there are any.
    pub fn leave_out(&mut self, rows: usize, why: String) {
        if rows > 0 {
            self.left_out.push(LeftOut { rows, why });
        }
    }

    /// Returns the files that were read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(file, _, _)| file.as_path())
    }

    /// Returns the 1-based row number of an example, counted through all files.
    pub fn row(&self, index: usize) -> usize {
        self.rows.get(index).map_or(index + 1, |row| *row as usize)
    }

    /// Returns the place of an example for messages: `train.jsonl: row 3 (line 4)`, both counted from 1. `index` is
    /// 0-based.
    pub fn place(&self, index: usize) -> String {
        let line = self.lines.get(index).map_or(0, |line| *line as usize);
        match self.files.iter().rev().find(|(_, examples, _)| *examples <= index) {
            Some((file, _, rows)) => place(file, self.row(index) - rows, line),
            None => place(&self.path, self.row(index), line),
        }
    }

    /// Returns a hash of the texts in their order.
    pub fn fingerprint(&self) -> [u32; 2] {
        fingerprint::of(self.examples.iter().flat_map(Example::parts))
    }

    /// Returns true if rows have answers: in an answer column, in a conversation, or as the second text of a pair.
    pub fn has_answers(&self) -> bool {
        self.columns.pair_is_answer || self.examples.iter().any(|e| e.answer.is_some() || chat::is_answered(&e.chat))
    }

    /// Drops conversations and keeps the last message of the user as the text. Every task except a language model uses
    /// this.
    pub fn take_texts(&mut self) {
        self.examples.iter_mut().for_each(|example| example.chat = Vec::new());
    }

    /// Turns the rows into rows of a language model: the second text of a pair may become the answer to the first.
    ///
    /// # Errors
    /// Returns an error if rows have two texts and neither is an answer, or if conversations have no answer.
    pub fn take_answers(&mut self) -> Result<()> {
        let (path, all) = (self.path.display().to_string(), columns::list(&self.columns.all));
        if let Some(pair) = self.columns.pair.take() {
            if !self.columns.pair_is_answer {
                bail!(
                    "{path}: \"{}\" and \"{pair}\" are a pair of texts, but a language model learns one text, or an \
                     answer; the columns are {all}: name one with --text-column (and its answer with \
                     --answer-column)",
                    self.columns.text
                );
            }
            for i in 0..self.examples.len() {
                match self.examples[i].pair.take() {
                    Some(answer) => self.examples[i].answer = Some(answer),
                    None => bail!("{}: no \"{pair}\", but every row needs its text", self.place(i)),
                }
            }
            self.columns.answer = Some(pair.clone());
            self.columns.pair_is_answer = false;
            let is_empty = |e: &Example| e.answer.as_ref().is_some_and(|answer| answer.trim().is_empty());
            let empty = self.remove(is_empty);
            self.leave_out(empty, format!("the answer in \"{pair}\" is empty"));
        }
        if self.columns.is_chat && !self.has_answers() {
            bail!("{path}: no conversation in \"{}\" has an answer of the assistant", self.columns.text);
        }
        Ok(())
    }

    /// Removes examples. Returns their number.
    fn remove(&mut self, is_removed: impl Fn(&Example) -> bool) -> usize {
        let removed: Vec<bool> = self.examples.iter().map(is_removed).collect();
        let before = self.examples.len();
        let kept = |index: &mut usize| {
            *index += 1;
            !removed[*index - 1]
        };
        for file in &mut self.files {
            file.1 -= removed[..file.1].iter().filter(|removed| **removed).count();
        }
        let (mut a, mut b, mut c) = (0, 0, 0);
        self.examples.retain(|_| kept(&mut a));
        self.rows.retain(|_| kept(&mut b));
        self.lines.retain(|_| kept(&mut c));
        before - self.examples.len()
    }

    /// Drops labels that are all -1, the placeholder of the test splits of GLUE.
    pub fn without_placeholders(&mut self) {
        let is_placeholder = |label: &Label| match label {
            Label::Class(name) => &**name == "-1",
            Label::Score(score) => *score == -1.0,
            // With a separator, a row without labels cannot be told from a row of no class; if all are empty, they are
            // rows without labels.
            Label::Several(list) => list.is_empty() && self.columns.separator.is_some(),
        };
        let is_empty = self.columns.separator.is_some();
        if self.labeled() > 0 && self.examples.iter().all(|e| e.label.as_ref().is_some_and(is_placeholder)) {
            self.examples.iter_mut().for_each(|example| example.label = None);
            let column = self.columns.labels();
            let value = if is_empty { "empty" } else { "-1" };
            self.notes.push(format!("{}: every {column} is {value}, which stands for no label", self.path.display()));
        }
    }

    /// Returns the number of rows with a label.
    pub fn labeled(&self) -> usize {
        self.examples.iter().filter(|e| e.label.is_some()).count()
    }
}
