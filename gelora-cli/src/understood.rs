//! Account of the data as gelora understands it. It is printed before a run and is part of the JSON of the run.

use std::collections::BTreeMap;

use anyhow::Result;
use gelora_model::Tokens;
use serde::{Deserialize, Serialize};

use crate::data::{self, Dataset, Example, Label, LabelSet, LeftOut, Targets};
use crate::distinct;
use crate::tokenize::Tokenizer;
use crate::ui;

/// Maximum number of rows whose length is measured. Of more rows every k-th is measured.
const MAX_MEASURED: usize = 20_000;
/// Share of the rows that the recommended length holds.
const RECOMMENDED_SHARE: f64 = 0.99;
/// Number of classes that are displayed.
const MAX_DISPLAYED: usize = 8;
/// Order in which columns are displayed: the order of reading, from the question to the answer.
const ROLES: [&str; 9] =
    ["text", "conversation", "instruction", "pair", "input", "context", "system", "answer", "label"];
/// Role of the columns of labels.
const LABEL: &str = "label";
/// Task of rows with any number of classes.
const MULTI_LABEL: &str = "multi-label classification";
/// Scores with at most this many different values may be classes.
const MAX_CLASS_VALUES: usize = 10;

/// Account of one data file or split.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Understood {
    /// The file or folder.
    pub data: String,
    /// Task: "classification", "multi-label classification", "regression", "language model", or "texts" if the labels
    /// are not used.
    pub task: String,
    /// Column of each role.
    pub columns: BTreeMap<String, String>,
    /// Columns that are not used.
    pub ignored_columns: Vec<String>,
    /// Number of rows of each class.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub classes: Option<BTreeMap<String, usize>>,
    /// Number of rows of no class, if a row may be of any number of classes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rows_of_no_class: Option<usize>,
    /// Smallest and largest score.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scores: Option<[f64; 2]>,
    /// Number of rows in the files.
    pub rows: usize,
    /// Number of rows that are used.
    pub kept: usize,
    /// Number of distinct texts among the used rows.
    pub distinct: usize,
    /// Rows that are not used, and the reasons.
    pub left_out: Vec<LeftOut>,
    /// Maximum number of tokens of a row.
    pub max_length: usize,
    /// Rows that are longer than that maximum.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cut: Option<Cut>,
    /// Number of blocks of the maximum length, if texts were joined to blocks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub blocks: Option<usize>,
    /// Remarks on how the files were read.
    pub notes: Vec<String>,
    /// Warnings of choices that may not be what the user meant.
    pub warnings: Vec<String>,
}

/// Rows that are longer than the maximum length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// Number of rows that are used and cut.
    pub rows: usize,
    /// Number of rows that are longer, including those that are left out for their length.
    pub longer: usize,
    /// Number of rows whose length was measured: all, or an even selection.
    pub of: usize,
    /// Length that would hold 99 % of the rows.
    pub holds_99_percent: usize,
}

/// Use of the rows.
pub enum Use<'a> {
    /// Labels: classes or scores.
    Labels(&'a LabelSet),
    /// A language model: rows with answers, or blocks of text.
    Lm(&'a [Tokens]),
    /// Texts only, without their labels.
    Texts,
}

impl Understood {
    /// Returns the account of the data for the given use.
    ///
    /// # Errors
    /// Returns an error if the tokenizer cannot work without a length limit.
    pub fn of(dataset: &Dataset, used: &Use<'_>, tokenizer: &Tokenizer) -> Result<Self> {
        let columns = &dataset.columns;
        let max_length = tokenizer.max_length();
        let (mut left_out, mut kept, mut blocks) = (dataset.left_out.clone(), dataset.examples.len(), None);
        let mut cut = None;
        match used {
            Use::Lm(rows) if !dataset.has_answers() => blocks = Some(rows.len()),
            _ => cut = Some(self::cut(dataset, tokenizer)?),
        }
        if let (Use::Lm(rows), Some(cut)) = (used, &mut cut) {
            let unanswered = kept - rows.len();
            let why = format!("no token of the answer is left at --max-length {max_length}");
            left_out.extend((unanswered > 0).then_some(LeftOut { rows: unanswered, why }));
            kept = rows.len();
            if cut.of == dataset.examples.len() {
                cut.rows = cut.rows.saturating_sub(unanswered);
            }
        }
        let (mut classes, mut rows_of_no_class, mut scores) = (None, None, None);
        let task = match used {
            Use::Labels(set @ LabelSet::Classes(_)) => {
                classes = data::counts(dataset, set).map(|counts| counts.into_iter().collect());
                "classification"
            }
            Use::Labels(set @ LabelSet::Sets(_)) => {
                classes = data::counts(dataset, set).map(|counts| counts.into_iter().collect());
                if let Ok(Targets::Sets(sets)) = set.targets(dataset) {
                    rows_of_no_class = Some(sets.iter().filter(|set| set.is_empty()).count());
                }
                MULTI_LABEL
            }
            Use::Labels(LabelSet::Scores) => {
                scores = range(dataset);
                "regression"
            }
            Use::Lm(_) => "language model",
            Use::Texts => "texts",
        };
        let ignored = columns.ignored().into_iter().map(str::to_owned);
        let (of_labels, others): (Vec<_>, Vec<_>) = columns.used().into_iter().partition(|(role, _)| *role == LABEL);
        let of_labels: Vec<&str> = of_labels.into_iter().map(|(_, name)| name).collect();
        let mut used_columns: BTreeMap<String, String> =
            others.into_iter().map(|(role, name)| (role.to_owned(), name.to_owned())).collect();
        let mut unused_labels = Vec::new();
        match used {
            Use::Labels(_) if !of_labels.is_empty() => {
                used_columns.insert(LABEL.to_owned(), of_labels.join(", "));
            }
            _ => unused_labels.extend(of_labels.into_iter().map(str::to_owned)),
        }
        let mut understood = Self {
            data: dataset.path.display().to_string(),
            task: task.to_owned(),
            columns: used_columns,
            ignored_columns: ignored.chain(unused_labels).collect(),
            classes,
            rows_of_no_class,
            scores,
            rows: dataset.read,
            kept,
            distinct: distinct::count(dataset),
            left_out,
            max_length,
            cut,
            blocks,
            notes: dataset.notes.clone(),
            warnings: Vec::new(),
        };
        understood.warn(dataset);
        Ok(understood)
    }

    fn warn(&mut self, dataset: &Dataset) {
        let unused = &dataset.columns.unused_texts;
        if !unused.is_empty() {
            self.warnings.push(format!(
                "{}: columns that hold texts are not used: {}; --text-column, --pair-column and --answer-column name \
                 the columns to use",
                self.data,
                unused.join(", ")
            ));
        }
        if self.task == "regression" && !dataset.columns.label_is_score && whole_numbers(dataset) {
            self.warnings.push(format!(
                "{}: the labels are a few whole numbers written with a decimal point; --task classification makes them \
                 classes",
                self.data
            ));
        }
        let empty = self.classes.iter().flatten().filter(|(_, rows)| **rows == 0).map(|(name, _)| name.clone());
        let empty: Vec<String> = empty.collect();
        if self.task == MULTI_LABEL && !empty.is_empty() {
            self.warnings.push(format!("{}: no row is of these classes: {}", self.data, data::list(&empty)));
        }
        if let Some(separator) = dataset.columns.separator.as_deref() {
            let has_several = |e: &Example| matches!(&e.label, Some(Label::Several(list)) if list.len() > 1);
            if self.task == MULTI_LABEL && !dataset.examples.iter().any(has_several) {
                self.warnings.push(format!(
                    "{}: no label has the separator {separator:?} (--label-separator), so every row has at most one \
                     class",
                    self.data
                ));
            }
        }
        if let Some(cut) = self.cut.as_ref().filter(|cut| cut.holds_99_percent > self.max_length) {
            let share = 100.0 * cut.longer as f64 / cut.of.max(1) as f64;
            self.warnings.push(format!(
                "{}: {share:.1} % of the rows are longer than --max-length {}; {} would hold 99 %",
                self.data, self.max_length, cut.holds_99_percent
            ));
        }
    }

    /// Writes the account to stderr.
    pub fn say(&self, quiet: bool) {
        ui::note(quiet, self.block());
    }

    /// Returns the lines of the account: task, columns and rows.
    fn block(&self) -> String {
        let mut lines = vec![format!("data: {}", self.data)];
        lines.extend(self.facts().into_iter().map(|(name, value)| format!("  {name}: {value}")));
        lines.extend(self.notes.iter().map(|note| format!("  note: {note}")));
        lines.extend(self.warnings.iter().map(|warning| format!("warning: {warning}")));
        lines.join("\n")
    }

    /// Returns task, columns and rows in words, each with its name.
    pub fn facts(&self) -> [(&'static str, String); 3] {
        let mut columns: Vec<(&String, &String)> = self.columns.iter().collect();
        columns.sort_by_key(|(role, _)| ROLES.iter().position(|known| known == role));
        let columns: Vec<String> = columns.into_iter().map(|(role, name)| format!("{role} \"{name}\"")).collect();
        let ignored = match self.ignored_columns.is_empty() {
            true => String::new(),
            false => format!("; ignored: {}", data::list(&self.ignored_columns)),
        };
        [("task", self.task()), ("columns", format!("{}{ignored}", columns.join(", "))), ("rows", self.rows())]
    }

    fn task(&self) -> String {
        if let Some(classes) = &self.classes {
            let mut names: Vec<String> = classes
                .iter()
                .take(MAX_DISPLAYED)
                .map(|(name, rows)| format!("{name} {}", ui::count(*rows as u64)))
                .collect();
            if classes.len() > MAX_DISPLAYED {
                names.push(format!("{} more", classes.len() - MAX_DISPLAYED));
            }
            let none = self
                .rows_of_no_class
                .map_or(String::new(), |rows| format!("; {} rows of none", ui::count(rows as u64)));
            return format!("{}, {} classes: {}{none}", self.task, classes.len(), names.join(", "));
        }
        match (self.scores, self.blocks) {
            (Some([low, high]), _) => format!("regression, scores from {low} to {high}"),
            (_, Some(blocks)) => {
                format!("language model, {} blocks of at most {} tokens", ui::count(blocks as u64), self.max_length)
            }
            _ => self.task.clone(),
        }
    }

    fn rows(&self) -> String {
        let count = |n: usize| ui::count(n as u64);
        let mut parts = vec![distinct::display(self.kept, self.distinct.min(self.kept))];
        if let Some(cut) = &self.cut {
            let of_measured =
                if cut.of < self.kept { format!(" of {} measured", count(cut.of)) } else { String::new() };
            parts.push(format!("{}{of_measured} cut at --max-length {}", count(cut.rows), self.max_length));
        }
        for left_out in &self.left_out {
            parts.push(format!("{} of {} left out: {}", count(left_out.rows), count(self.rows), left_out.why));
        }
        parts.join("; ")
    }
}

/// Counts the rows that are longer than the limit.
fn cut(dataset: &Dataset, tokenizer: &Tokenizer) -> Result<Cut> {
    let step = dataset.examples.len().div_ceil(MAX_MEASURED).max(1);
    let selected: Vec<&Example> = dataset.examples.iter().step_by(step).collect();
    let mut lengths: Vec<usize> = tokenizer.lengths(&selected)?.into_iter().flatten().collect();
    lengths.sort_unstable();
    let last = (RECOMMENDED_SHARE * lengths.len() as f64).ceil() as usize;
    let rows = lengths.iter().filter(|length| **length > tokenizer.max_length()).count();
    Ok(Cut {
        rows,
        longer: rows,
        of: lengths.len(),
        holds_99_percent: lengths.get(last.saturating_sub(1)).copied().unwrap_or(0),
    })
}

fn scores(dataset: &Dataset) -> impl Iterator<Item = f64> {
    dataset.examples.iter().filter_map(|e| match e.label.as_ref()? {
        Label::Score(score) => Some(*score),
        Label::Class(name) => name.trim().parse().ok(),
        Label::Several(_) => None,
    })
}

fn range(dataset: &Dataset) -> Option<[f64; 2]> {
    let fold = |pick: fn(f64, f64) -> f64| scores(dataset).reduce(pick);
    Some([fold(f64::min)?, fold(f64::max)?])
}

/// Returns true if the scores are few whole numbers, as pandas writes classes beside a missing value.
fn whole_numbers(dataset: &Dataset) -> bool {
    let mut values: Vec<f64> = Vec::new();
    for score in scores(dataset) {
        if score.fract() != 0.0 || (!values.contains(&score) && values.len() == MAX_CLASS_VALUES) {
            return false;
        }
        if !values.contains(&score) {
            values.push(score);
        }
    }
    true
}
