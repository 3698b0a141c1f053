//! Turns cells into examples, and counts the rows that are left out.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::columns::Columns;
use super::table::{Row, place};
use super::{Dataset, Example, Label, LeftOut, ReadOptions, conversation, instruction};
use crate::fingerprint;

/// Outcome of a row.
enum Outcome {
    Example(Box<Example>),
    /// The row has nothing to learn.
    EmptyAnswer,
}

/// Builds the examples from the rows of one file after another.
pub struct Builder<'o> {
    options: &'o ReadOptions,
    pub data: Dataset,
    /// Number of rows read from the current file.
    row: usize,
    empty_answers: usize,
    skipped: usize,
    first_skipped: Option<String>,
    duplicates: usize,
    /// Hashes of the examples so far.
    seen: HashSet<[u32; 4]>,
    /// Unused keys of turns.
    ignored_keys: BTreeSet<String>,
    /// Names of classes. Each is kept in memory once.
    classes: HashSet<Arc<str>>,
}

/// Maximum number of class names that are shared.
const MAX_SHARED_CLASSES: usize = 1000;

impl<'o> Builder<'o> {
    pub fn new(options: &'o ReadOptions, data: Dataset) -> Self {
        Self {
            options,
            data,
            row: 0,
            empty_answers: 0,
            skipped: 0,
            first_skipped: None,
            duplicates: 0,
            seen: HashSet::new(),
            ignored_keys: BTreeSet::new(),
            classes: HashSet::new(),
        }
    }

    /// Begins the rows of the next file.
    pub fn begin(&mut self, file: &Path) {
        self.data.begin(file);
        self.row = 0;
    }

    /// Adds one row.
    ///
    /// # Errors
    /// Returns an error if the row is broken, or if its cells do not fit the roles of their columns, unless bad rows
    /// are skipped.
    pub fn push(&mut self, file: &Path, columns: &Columns, line: usize, row: Result<Row>) -> Result<()> {
        self.row += 1;
        self.data.read += 1;
        let outcome = row.and_then(|row| self.example(file, columns, line, row));
        match outcome {
            Ok(Outcome::EmptyAnswer) => self.empty_answers += 1,
            Ok(Outcome::Example(example)) if self.options.dedup && !self.seen.insert(hash(&example, self.options)) => {
                self.duplicates += 1;
            }
            Ok(Outcome::Example(example)) => self.data.push(*example, line),
            Err(error) if self.options.skip_bad_rows => {
                self.skipped += 1;
                self.first_skipped.get_or_insert(format!("{error:#}"));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn example(&mut self, file: &Path, columns: &Columns, line: usize, mut row: Row) -> Result<Outcome> {
        let number = self.row;
        let place = || place(file, number, line);
        // Cells come in the order of `Columns::used`: the text first.
        let mut next = 0;
        let mut cell = || {
            next += 1;
            row.take(next - 1)
        };
        let mut chat = Vec::new();
        let text = if columns.is_chat {
            chat = conversation::messages(cell(), &columns.text, &mut self.ignored_keys, &place)?;
            conversation::last_of_user(&chat, &columns.text, &place)?
        } else {
            cell().into_text(&columns.text, &place)?
        };
        if text.trim().is_empty() {
            bail!("{}: the text in \"{}\" is empty", place(), columns.text);
        }
        let mut optional = |name: &Option<String>| match name {
            Some(name) => cell().into_optional_text(name, &place),
            None => Ok(None),
        };
        let pair = optional(&columns.pair)?;
        let about = optional(&columns.about)?;
        let system = optional(&columns.system)?;
        if let Some(name) = &columns.system {
            chat = conversation::with_system(chat, system, name, &place)?;
        }
        let answer = match &columns.answer {
            Some(name) => Some(cell().into_text(name, &place)?),
            None => None,
        };
        let mut label = match (&columns.label, &columns.separator) {
            (Some(name), Some(separator)) => cell().into_labels(name, separator, &place)?,
            (Some(name), None) => cell().into_label(name, columns.label_is_score, &place)?,
            (None, _) => None,
        };
        if !columns.classes.is_empty() {
            let flags = columns.classes.iter().map(|name| cell().into_flag(name, &place));
            let flags: Vec<Option<bool>> = flags.collect::<Result<_>>()?;
            label = classes_of(&columns.classes, &flags, &place)?;
        }
        if let Some(Label::Class(name)) = &mut label {
            match self.classes.get(&*name) {
                Some(known) => *name = known.clone(),
                None if self.classes.len() < MAX_SHARED_CLASSES => {
                    self.classes.insert(name.clone());
                }
                None => {}
            }
        }
        if answer.as_ref().is_some_and(|answer| answer.trim().is_empty()) {
            return Ok(Outcome::EmptyAnswer);
        }
        let text = if columns.is_instruction { instruction(&text, about.as_deref()) } else { text };
        Ok(Outcome::Example(Box::new(Example { text, pair, label, answer, chat })))
    }

    /// Returns the rows that were left out so far, and the remark on keys that are not used.
    pub fn remarks(&self) -> (Option<LeftOut>, Option<String>) {
        let first = self.first_skipped.as_ref().map(|first| format!(", the first: {first}")).unwrap_or_default();
        let why = format!("bad (--skip-bad-rows{first})");
        let left_out = (self.skipped > 0).then_some(LeftOut { rows: self.skipped, why });
        let keys: Vec<&str> = self.ignored_keys.iter().map(String::as_str).collect();
        let unused = || format!("not used in the messages of \"{}\": {}", self.data.columns.text, keys.join(", "));
        (left_out, (!keys.is_empty()).then(unused))
    }

    /// Returns the dataset with the counts of the rows that were left out.
    ///
    /// # Errors
    /// Returns an error if no row is left.
    pub fn finish(self) -> Result<Dataset> {
        let (left_out, unused_keys) = self.remarks();
        let mut data = self.data;
        let answer = data.columns.answer.as_deref().unwrap_or_default();
        data.leave_out(self.empty_answers, format!("the answer in \"{answer}\" is empty"));
        data.left_out.extend(left_out);
        data.leave_out(self.duplicates, "the same as an earlier row (--dedup)".into());
        if data.examples.is_empty() {
            let why = data.left_out.first().map_or(String::new(), |left_out| format!(" is left: {}", left_out.why));
            bail!("{}: no row{why}", data.path.display());
        }
        data.notes.extend(unused_keys);
        data.without_placeholders();
        data.examples.shrink_to_fit();
        Ok(data)
    }
}

/// Returns the classes whose columns are true. A row whose cells are all empty has no label.
fn classes_of(names: &[String], flags: &[Option<bool>], place: &dyn Fn() -> String) -> Result<Option<Label>> {
    let mut set = Vec::new();
    for (name, flag) in names.iter().zip(flags) {
        match flag {
            Some(true) => set.push(name.as_str().into()),
            Some(false) => {}
            None if flags.iter().all(Option::is_none) => return Ok(None),
            None => bail!("{}: no \"{name}\", expected 0 or 1", place()),
        }
    }
    Ok(Some(Label::Several(set)))
}

/// Returns a hash of the texts and the label of an example, or of its texts only.
fn hash(example: &Example, options: &ReadOptions) -> [u32; 4] {
    let texts: Vec<Option<&[u8]>> = example.parts().collect();
    let label = example.label.as_ref().filter(|_| !options.labels_do_not_matter).map(|label| match label {
        Label::Class(name) => name.to_string(),
        Label::Score(score) => score.to_string(),
        Label::Several(list) => {
            let mut values: Vec<String> = list.iter().map(ToString::to_string).collect();
            // The order of names does not matter, but that of a vector does.
            if list.iter().all(serde_json::Value::is_string) {
                values.sort_unstable();
            }
            values.join(",")
        }
    });
    let parts = |salt: &'static [u8]| {
        let label = label.as_deref().map(str::as_bytes);
        fingerprint::of([Some(salt), label].into_iter().chain(texts.iter().copied()))
    };
    let ([a, b], [c, d]) = (parts(b"1"), parts(b"2"));
    [a, b, c, d]
}
