//! Which column holds the text, the pair's second text and the label.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::table::{Cell, Table};

/// Names of two-text columns, first found first taken.
const PAIRS: [(&str, &str); 10] = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("question", "passage"),
    ("question", "answer"),
    ("query", "passage"),
];
const TEXTS: [&str; 5] = ["text", "sentence", "content", "review", "sentence1"];
/// Columns with what is asked, and with what is to be answered.
const INSTRUCTION: &str = "instruction";
const CONTEXTS: [&str; 2] = ["input", "context"];
const PROMPT: &str = "prompt";
const ANSWERS: [&str; 4] = ["output", "completion", "response", "answer"];
/// Lists of `{"role": ..., "content": ...}`; the text is the last one of the user.
const CHATS: [&str; 3] = ["messages", "conversations", "input"];
const LABELS: [&str; 5] = ["label", "labels", "class", "category", "ideal"];
/// Label columns in which every number is a score, integers too.
const SCORES: [&str; 2] = ["score", "similarity"];

/// Column names given on the command line; each overrides what would be recognised.
#[derive(Clone, Debug, Default)]
pub struct ColumnFlags {
    /// `--text-column`
    pub text: Option<String>,
    /// `--pair-column`
    pub pair: Option<String>,
    /// `--label-column`
    pub label: Option<String>,
}

/// The columns that were found.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// The text, or the first text of a pair.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The label.
    pub label: Option<String>,
    /// True for a column named score or similarity, whose integers are scores as well.
    pub label_is_score: bool,
    /// Every column of the file (of JSON, by name).
    pub all: Vec<String>,
}

/// Indices into [`Table::kept`] with the names that belong to them.
pub struct Found {
    pub names: Columns,
    pub text: usize,
    pub pair: Option<usize>,
    pub label: Option<usize>,
    /// The text column holds lists of messages.
    pub chat: bool,
    /// What a language model is to answer to the text.
    pub answer: Option<usize>,
    /// The text is an instruction, for which there is a form; this is what it is about.
    pub instruction: Option<Option<usize>>,
}

/// Whether a column could be one of those looked for, so that its cells must be kept.
pub fn may_matter(name: &str, flags: &ColumnFlags) -> bool {
    let named = |flag: &Option<String>| flag.as_deref() == Some(name);
    let usual = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(name));
    named(&flags.text)
        || named(&flags.pair)
        || named(&flags.label)
        || usual(&TEXTS)
        || usual(&[INSTRUCTION, PROMPT])
        || usual(&CONTEXTS)
        || usual(&ANSWERS)
        || usual(&CHATS)
        || usual(&LABELS)
        || usual(&SCORES)
        || PAIRS.iter().any(|(a, b)| usual(&[a, b]))
}

/// Finds the columns of a table.
///
/// # Errors
/// If a column named by a flag is not there, or no text column is recognised: both list the columns that are.
pub fn resolve(path: &Path, table: &Table, flags: &ColumnFlags) -> Result<Found> {
    let find = |name: &str| table.kept.iter().position(|c| c.eq_ignore_ascii_case(name));
    let flagged = |name: &Option<String>, flag: &str| -> Result<Option<usize>> {
        let Some(name) = name else { return Ok(None) };
        let index = table.kept.iter().position(|c| c == name);
        index.map(Some).ok_or_else(|| {
            anyhow!("{}: no column \"{name}\" ({flag}); the columns are {}", path.display(), list(&table.columns))
        })
    };
    if flags.text.is_none() && flags.pair.is_none() {
        let asked = find(INSTRUCTION).map(|text| (text, true)).or_else(|| find(PROMPT).map(|text| (text, false)));
        let answer = ANSWERS.iter().find_map(|name| find(name));
        if let Some(((text, is_instruction), answer)) = asked.zip(answer) {
            let name = |index: usize| table.kept[index].clone();
            let (pair, label) = (None, None);
            let names = Columns { text: name(text), pair, label, label_is_score: false, all: table.columns.clone() };
            let context = CONTEXTS.iter().find_map(|name| find(name));
            let instruction = is_instruction.then_some(context);
            return Ok(Found { names, text, pair: None, label: None, chat: false, answer: Some(answer), instruction });
        }
    }
    let text = flagged(&flags.text, "--text-column")?;
    let pair = flagged(&flags.pair, "--pair-column")?;
    let label = flagged(&flags.label, "--label-column")?;
    let is_chat = |index: usize| matches!(table.first_value(index), Some(Cell::Nested(Value::Array(_))));
    let usual_pair = || PAIRS.iter().find_map(|(a, b)| Some((find(a)?, find(b)?)));
    let usual_text = || {
        let chat = || CHATS.iter().filter_map(|name| find(name)).find(|index| is_chat(*index));
        TEXTS.iter().find_map(|name| find(name)).or_else(chat)
    };
    let (text, pair) = match (text, pair) {
        (Some(text), pair) => (Some(text), pair),
        (None, Some(second)) => {
            let first = usual_pair().and_then(|(a, b)| (b == second).then_some(a));
            (first.or_else(usual_text).filter(|first| *first != second), Some(second))
        }
        (None, None) => match usual_pair() {
            Some((a, b)) => (Some(a), Some(b)),
            None => (usual_text(), None),
        },
    };
    let Some(text) = text else {
        bail!(
            "{}: no text column recognised; the columns are {}: name one with --text-column (and a second text with \
             --pair-column)",
            path.display(),
            list(&table.columns)
        );
    };
    let score = || SCORES.iter().find_map(|name| find(name));
    let label = label.or_else(|| LABELS.iter().find_map(|name| find(name))).or_else(score);
    let label_is_score = label.is_some_and(|index| SCORES.iter().any(|s| s.eq_ignore_ascii_case(&table.kept[index])));
    if pair == Some(text) || label == Some(text) || (label.is_some() && label == pair) {
        bail!("{}: one column cannot be two of text, pair and label", path.display());
    }
    let name = |index: usize| table.kept[index].clone();
    let names = Columns {
        text: name(text),
        pair: pair.map(name),
        label: label.map(name),
        label_is_score,
        all: table.columns.clone(),
    };
    Ok(Found { names, text, pair, label, chat: is_chat(text), answer: None, instruction: None })
}

/// Column names for a message, shortened: a file without a header has a row of text there.
pub fn list(columns: &[String]) -> String {
    const SHOWN: usize = 20;
    const LONGEST: usize = 40;
    let mut shown: Vec<String> = columns.iter().take(SHOWN).map(|c| shorten(c, LONGEST)).collect();
    if columns.len() > SHOWN {
        shown.push(format!("{} more", columns.len() - SHOWN));
    }
    shown.join(", ")
}

fn shorten(name: &str, longest: usize) -> String {
    if name.chars().count() <= longest {
        return name.to_owned();
    }
    name.chars().take(longest).chain("...".chars()).collect()
}
