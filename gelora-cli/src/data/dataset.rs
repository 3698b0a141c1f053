//! The rows of a file, or of the files of one split.

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
    /// The file that was read, or the folder of the files.
    pub path: PathBuf,
    /// The rows; at least one.
    pub examples: Vec<Example>,
    /// Which columns they came from.
    pub columns: Columns,
    /// The rows are paragraphs that make up one text as they stand.
    pub running: bool,
    /// How many rows the files have.
    pub read: usize,
    /// Rows that are no examples.
    pub left_out: Vec<LeftOut>,
    /// What the user should know of how the files were read.
    pub notes: Vec<String>,
    /// The files, each with the number of examples and of rows before it.
    files: Vec<(PathBuf, usize, usize)>,
    /// The 1-based number of each example's row, counted through all files.
    rows: Vec<u32>,
    /// The line on which each row starts; 0 in a format without lines.
    lines: Vec<u32>,
}

/// Rows that were not used, for one reason.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeftOut {
    /// How many.
    pub rows: usize,
    /// The reason, in words.
    pub why: String,
}

impl Dataset {
    /// Without rows.
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

    /// The rows of this file come next.
    pub fn begin(&mut self, file: &Path) {
        self.files.push((file.to_owned(), self.examples.len(), self.read));
    }

    /// Adds the row that was read last, which starts on this line.
    pub fn push(&mut self, example: Example, line: usize) {
        self.examples.push(example);
        self.rows.push(self.read.try_into().unwrap_or(u32::MAX));
        self.lines.push(line.try_into().unwrap_or(u32::MAX));
    }

    /// Notes that rows were left out, if there were any.
    pub fn leave_out(&mut self, rows: usize, why: String) {
        if rows > 0 {
            self.left_out.push(LeftOut { rows, why });
        }
    }

    /// The files that were read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(file, _, _)| file.as_path())
    }

    /// The 1-based number of an example's row, counted through all files.
    pub fn row(&self, index: usize) -> usize {
        self.rows.get(index).map_or(index + 1, |row| *row as usize)
    }

    /// Where an example is, for messages: `train.jsonl: row 3 (line 4)`, both counted from 1. The index is 0-based.
    pub fn place(&self, index: usize) -> String {
        let line = self.lines.get(index).map_or(0, |line| *line as usize);
        match self.files.iter().rev().find(|(_, examples, _)| *examples <= index) {
            Some((file, _, rows)) => place(file, self.row(index) - rows, line),
            None => place(&self.path, self.row(index), line),
        }
    }

    /// A hash of the texts and their order.
    pub fn fingerprint(&self) -> [u32; 2] {
        fingerprint::of(self.examples.iter().flat_map(Example::parts))
    }

    /// Whether rows have answers, of their own, in a conversation or as the second text of a pair.
    pub fn has_answers(&self) -> bool {
        self.columns.pair_is_answer || self.examples.iter().any(|e| e.answer.is_some() || chat::is_answered(&e.chat))
    }

    /// Takes conversations for what the user said last in them, as everything but a language model does.
    pub fn take_texts(&mut self) {
        self.examples.iter_mut().for_each(|example| example.chat = Vec::new());
    }

    /// Takes the rows as a language model learns them: the second text of a pair may be the answer to the first.
    ///
    /// # Errors
    /// If there are two texts of which none is an answer, or conversations in which nobody answers.
    pub fn take_answers(&mut self) -> Result<()> {
        let (shown, all) = (self.path.display().to_string(), columns::list(&self.columns.all));
        if let Some(pair) = self.columns.pair.take() {
            if !self.columns.pair_is_answer {
                bail!(
                    "{shown}: \"{}\" and \"{pair}\" are a pair of texts, but a language model learns one text, or an answer; \
                     the columns are {all}: name one with --text-column (and what is answered with --answer-column)",
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
            bail!("{shown}: no conversation in \"{}\" has an answer of the assistant", self.columns.text);
        }
        Ok(())
    }

    /// Removes examples; how many.
    fn remove(&mut self, is_out: impl Fn(&Example) -> bool) -> usize {
        let out: Vec<bool> = self.examples.iter().map(is_out).collect();
        let before = self.examples.len();
        let kept = |index: &mut usize| {
            *index += 1;
            !out[*index - 1]
        };
        for file in &mut self.files {
            file.1 -= out[..file.1].iter().filter(|out| **out).count();
        }
        let (mut a, mut b, mut c) = (0, 0, 0);
        self.examples.retain(|_| kept(&mut a));
        self.rows.retain(|_| kept(&mut b));
        self.lines.retain(|_| kept(&mut c));
        before - self.examples.len()
    }

    /// Takes labels that are all -1 for none, as the test splits of GLUE have them.
    pub fn without_placeholders(&mut self) {
        let is_placeholder = |label: &Label| match label {
            Label::Class(name) => &**name == "-1",
            Label::Score(score) => *score == -1.0,
            Label::Several(_) => false,
        };
        if self.labelled() > 0 && self.examples.iter().all(|e| e.label.as_ref().is_some_and(is_placeholder)) {
            self.examples.iter_mut().for_each(|example| example.label = None);
            let column = self.columns.label.as_deref().unwrap_or_default();
            self.notes.push(format!("{}: every \"{column}\" is -1, which stands for no label", self.path.display()));
        }
    }

    /// How many rows carry a label.
    pub fn labelled(&self) -> usize {
        self.examples.iter().filter(|e| e.label.is_some()).count()
    }
}
