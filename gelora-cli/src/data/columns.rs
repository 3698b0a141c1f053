//! Which column holds the text, the pair's second text, the answer and the label.

use std::path::Path;

use anyhow::{Result, anyhow, bail};

use super::table::{Kind, Schema};

/// Names of two-text columns, first found first taken.
const PAIRS: [(&str, &str); 11] = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("question", "passage"),
    ("question", "answer"),
    ("query", "answer"),
    ("query", "passage"),
];
const TEXTS: [&str; 5] = ["text", "sentence", "content", "review", "sentence1"];
/// Columns with what is asked, and with what is to be answered.
const INSTRUCTION: &str = "instruction";
const CONTEXTS: [&str; 2] = ["input", "context"];
const PROMPT: &str = "prompt";
const ANSWERS: [&str; 4] = ["output", "completion", "response", "answer"];
/// Columns with what is asked, where a label would make the answer a second text.
const QUESTIONS: [&str; 3] = ["question", "query", "input"];
/// Lists of `{"role": ..., "content": ...}`; the text is the last one of the user.
const CHATS: [&str; 4] = ["messages", "conversations", "conversation", "input"];
/// What is said before a conversation.
const SYSTEMS: [&str; 3] = ["system", "system_prompt", "system_message"];
const LABELS: [&str; 5] = ["label", "labels", "class", "category", "ideal"];
/// Label columns in which every number is a score, integers too.
const SCORES: [&str; 2] = ["score", "similarity"];

/// What rows are read for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aim {
    /// Whatever they are fit for.
    #[default]
    Any,
    /// Classification or regression.
    Labels,
    /// A language model.
    Answers,
}

/// Column names given on the command line; each overrides what would be recognised.
#[derive(Clone, Debug, Default)]
pub struct ColumnFlags {
    /// `--text-column`
    pub text: Option<String>,
    /// `--pair-column`
    pub pair: Option<String>,
    /// `--answer-column`
    pub answer: Option<String>,
    /// `--label-column`
    pub label: Option<String>,
    /// What the rows are for.
    pub aim: Aim,
}

/// The columns that were found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// The text, or the first text of a pair.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// What a language model is to answer to the text.
    pub answer: Option<String>,
    /// What an instruction is about.
    pub about: Option<String>,
    /// What is said before a conversation.
    pub system: Option<String>,
    /// The label.
    pub label: Option<String>,
    /// True for a column named score or similarity, whose integers are scores as well.
    pub label_is_score: bool,
    /// The text is a list of messages.
    pub is_chat: bool,
    /// The text is an instruction, for which there is a form.
    pub is_instruction: bool,
    /// To a language model the second text of the pair is the answer to the first.
    pub pair_is_answer: bool,
    /// Every column of the file (of JSON, every key).
    pub all: Vec<String>,
    /// Columns that are not used although they hold texts or lists.
    pub unused_texts: Vec<String>,
}

impl Columns {
    /// What each column that is used is used for.
    pub fn used(&self) -> Vec<(&'static str, &str)> {
        let about = if self.is_instruction { "input" } else { "context" };
        let optional = [
            ("pair", &self.pair),
            (about, &self.about),
            ("system", &self.system),
            ("answer", &self.answer),
            ("label", &self.label),
        ];
        let optional = optional.into_iter().filter_map(|(role, name)| Some((role, name.as_deref()?)));
        let text = match (self.is_chat, self.is_instruction) {
            (true, _) => "conversation",
            (_, true) => "instruction",
            _ => "text",
        };
        std::iter::once((text, self.text.as_str())).chain(optional).collect()
    }

    /// The columns that are not used.
    pub fn ignored(&self) -> Vec<&str> {
        let used = self.used();
        self.all.iter().map(String::as_str).filter(|name| !used.iter().any(|(_, used)| used == name)).collect()
    }

    /// The columns that are used, in no order.
    pub fn wanted(&self) -> Vec<String> {
        self.used().into_iter().map(|(_, name)| name.to_owned()).collect()
    }

    /// Another file's columns are used for the same.
    pub fn same_roles(&self, other: &Self) -> bool {
        self.used() == other.used()
    }
}

/// Whether a column's name is one of those looked for.
pub fn is_known(name: &str, flags: &ColumnFlags) -> bool {
    let named = |flag: &Option<String>| flag.as_deref() == Some(name);
    let usual = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(name));
    [&flags.text, &flags.pair, &flags.answer, &flags.label].into_iter().any(named)
        || [&TEXTS[..], &[INSTRUCTION, PROMPT], &CONTEXTS, &ANSWERS, &QUESTIONS, &CHATS, &SYSTEMS, &LABELS, &SCORES]
            .into_iter()
            .any(usual)
        || PAIRS.iter().any(|(a, b)| usual(&[a, b]))
}

/// Finds the columns of a table.
///
/// # Errors
/// If a column named by a flag is not there, or no text column is recognised: both list the columns that are.
pub fn resolve(path: &Path, schema: &Schema, flags: &ColumnFlags) -> Result<Columns> {
    let finder = Finder { path, schema, flags };
    let mut found = match finder.with_answers()? {
        Some(found) => found,
        None => finder.with_texts()?,
    };
    found.all = schema.names();
    let used = found.used();
    for (i, (_, name)) in used.iter().enumerate() {
        if used[..i].iter().any(|(_, other)| other == name) {
            bail!("{}: one column (\"{name}\") cannot be two of text, pair, answer and label", path.display());
        }
    }
    let holds_text = |name: &&str| {
        let column = schema.columns.iter().find(|column| column.name == **name);
        column.is_some_and(|c| c.has_words || matches!(c.kind, Some(Kind::List | Kind::Object)))
    };
    found.unused_texts = found.ignored().into_iter().filter(holds_text).map(str::to_owned).collect();
    Ok(found)
}

struct Finder<'a> {
    path: &'a Path,
    schema: &'a Schema,
    flags: &'a ColumnFlags,
}

impl Finder<'_> {
    /// The column of a usual name.
    fn find(&self, name: &str) -> Option<String> {
        self.schema.columns.iter().map(|column| &column.name).find(|c| c.eq_ignore_ascii_case(name)).cloned()
    }

    fn first(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.find(name))
    }

    /// The column that a flag names.
    fn flagged(&self, name: &Option<String>, flag: &str) -> Result<Option<String>> {
        let Some(name) = name else { return Ok(None) };
        if self.schema.columns.iter().any(|column| column.name == *name) {
            return Ok(Some(name.clone()));
        }
        let (shown, all) = (self.path.display(), list(&self.schema.names()));
        Err(anyhow!("{shown}: no column \"{name}\" ({flag}); the columns are {all}"))
    }

    fn is(&self, name: &str, kinds: &[Kind]) -> bool {
        let column = self.schema.columns.iter().find(|column| column.name == name);
        column.and_then(|column| column.kind).is_some_and(|kind| kinds.contains(&kind))
    }

    /// Texts, or nothing at all that could tell.
    fn may_be_text(&self, name: &str) -> bool {
        !self.is(name, &[Kind::Number, Kind::Bool, Kind::List, Kind::Object])
    }

    fn label(&self) -> Result<Option<String>> {
        let label = self.flagged(&self.flags.label, "--label-column")?;
        Ok(label.or_else(|| self.first(&LABELS)).or_else(|| self.first(&SCORES)))
    }

    /// Something asked with its answer, if that is what the rows are and what they are for.
    fn with_answers(&self) -> Result<Option<Columns>> {
        let ColumnFlags { text, pair, answer, label, aim } = self.flags;
        if *aim == Aim::Answers && label.is_some() {
            bail!("--label-column: a language model learns no labels");
        }
        let text = self.flagged(text, "--text-column")?;
        if let Some(answer) = self.flagged(answer, "--answer-column")? {
            if pair.is_some() || label.is_some() || *aim == Aim::Labels {
                bail!("--answer-column: is of a language model, which has no --pair-column, --label-column or classes");
            }
            let asked = || self.first(&[INSTRUCTION, PROMPT]).or_else(|| self.first(&QUESTIONS));
            let usual = || asked().or_else(|| self.first(&TEXTS)).filter(|name| *name != answer);
            let Some(text) = text.or_else(usual) else { return Err(self.no_text()) };
            return Ok(Some(Columns { text, answer: Some(answer), ..Columns::default() }));
        }
        if text.is_some() || pair.is_some() || label.is_some() || *aim == Aim::Labels {
            return Ok(None);
        }
        let Some(answer) = self.first(&ANSWERS) else { return Ok(None) };
        if let Some(text) = self.find(INSTRUCTION) {
            let about = CONTEXTS.iter().filter_map(|name| self.find(name)).find(|name| self.may_be_text(name));
            return Ok(Some(Columns { text, about, answer: Some(answer), is_instruction: true, ..Columns::default() }));
        }
        if let Some(text) = self.find(PROMPT) {
            return Ok(Some(Columns { text, answer: Some(answer), ..Columns::default() }));
        }
        // A question with a label is one of a pair.
        let is_asked = self.label()?.is_none() || *aim == Aim::Answers;
        let question = QUESTIONS.iter().filter_map(|name| self.find(name)).find(|name| self.may_be_text(name));
        let Some(text) = question.filter(|_| is_asked && self.may_be_text(&answer)) else { return Ok(None) };
        if *aim == Aim::Any && self.usual_pair().is_some() {
            return Ok(None);
        }
        Ok(Some(Columns { text, answer: Some(answer), ..Columns::default() }))
    }

    fn usual_pair(&self) -> Option<(String, String)> {
        let pair = PAIRS.iter().filter_map(|(a, b)| Some((self.find(a)?, self.find(b)?)));
        pair.into_iter().find(|(a, b)| self.may_be_text(a) && self.may_be_text(b))
    }

    /// A text, or two, and perhaps a label.
    fn with_texts(&self) -> Result<Columns> {
        let is_chat = |name: &String| self.is(name, &[Kind::List]);
        let usual_text = || {
            let chat = || CHATS.iter().filter_map(|name| self.find(name)).find(is_chat);
            self.first(&TEXTS).or_else(chat)
        };
        let text = self.flagged(&self.flags.text, "--text-column")?;
        let pair = self.flagged(&self.flags.pair, "--pair-column")?;
        let of_labels = self.flags.aim == Aim::Labels || self.flags.label.is_some();
        // Where labels are asked for outright, what is asked is the text.
        let asked = || self.first(&[INSTRUCTION, PROMPT]).filter(|_| of_labels);
        let (text, pair) = match (text, pair) {
            (Some(text), pair) => (Some(text), pair),
            (None, Some(second)) => {
                let first = self.usual_pair().and_then(|(a, b)| (b == second).then_some(a));
                (first.or_else(usual_text).or_else(asked).filter(|first| *first != second), Some(second))
            }
            (None, None) => match self.usual_pair() {
                Some((a, b)) => (Some(a), Some(b)),
                None => (usual_text().or_else(asked), None),
            },
        };
        let Some(text) = text else { return Err(self.no_text()) };
        let label = self.label()?;
        let label_is_score = label.as_ref().is_some_and(|name| SCORES.iter().any(|s| s.eq_ignore_ascii_case(name)));
        let is_chat = is_chat(&text);
        let system = if is_chat { self.first(&SYSTEMS) } else { None };
        let is_pair_of = |(a, b): (&str, &str)| {
            let is = |name: &String, usual: &str| name.eq_ignore_ascii_case(usual);
            is(&text, a) && pair.as_ref().is_some_and(|pair| is(pair, b))
        };
        let pair_is_answer = [("question", "answer"), ("query", "answer")].into_iter().any(is_pair_of);
        let columns =
            Columns { text, pair, system, label, label_is_score, is_chat, pair_is_answer, ..Columns::default() };
        Ok(columns)
    }

    fn no_text(&self) -> anyhow::Error {
        anyhow!(
            "{}: no text column recognised; the columns are {}: name one with --text-column (and a second text with \
             --pair-column, or what is to be answered with --answer-column)",
            self.path.display(),
            list(&self.schema.names())
        )
    }
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
