//! Finds the columns of the text, the second text of a pair, the answer and the label.

use std::path::Path;

use anyhow::{Result, anyhow, bail};

use super::table::{Kind, Schema};

/// Column names of text pairs. The first pair found is taken.
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
/// Column names of a single text.
const TEXTS: [&str; 5] = ["text", "sentence", "content", "review", "sentence1"];
/// Column names of instructions and prompts, of their contexts, and of their answers.
const INSTRUCTION: &str = "instruction";
const CONTEXTS: [&str; 2] = ["input", "context"];
const PROMPT: &str = "prompt";
const ANSWERS: [&str; 4] = ["output", "completion", "response", "answer"];
/// Column names of questions. If the rows have labels, an answer beside a question is the second text of a pair.
const QUESTIONS: [&str; 3] = ["question", "query", "input"];
/// Column names of conversations: lists of `{"role": ..., "content": ...}`. The text is the last message of the user.
const CHATS: [&str; 4] = ["messages", "conversations", "conversation", "input"];
/// Column names of the system message of a conversation.
const SYSTEMS: [&str; 3] = ["system", "system_prompt", "system_message"];
/// Column names of labels.
const LABELS: [&str; 5] = ["label", "labels", "class", "category", "ideal"];
/// Column names of scores. Every number in them is a score, integers too.
const SCORES: [&str; 2] = ["score", "similarity"];

/// Use that the rows are read for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aim {
    /// Any use that the columns allow.
    #[default]
    Any,
    /// Classification or regression.
    Labels,
    /// Prediction: as for labels, but the labels are not read.
    Texts,
    /// A language model.
    Answers,
}

/// Column names given on the command line. Each overrides the recognized column.
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
    /// `--label-columns`
    pub classes: Vec<String>,
    /// `--label-separator`
    pub separator: Option<String>,
    /// Use of the rows.
    pub aim: Aim,
}

impl ColumnFlags {
    /// Returns the option that says where labels are, if one does.
    pub fn names_labels(&self) -> Option<&'static str> {
        let given = [
            ("--label-column", self.label.is_some()),
            ("--label-columns", !self.classes.is_empty()),
            ("--label-separator", self.separator.is_some()),
        ];
        given.into_iter().find_map(|(option, given)| given.then_some(option))
    }
}

impl Aim {
    /// Returns whether the rows are of a classifier.
    fn is_classifier(self) -> bool {
        matches!(self, Aim::Labels | Aim::Texts)
    }
}

/// The columns of a file, by role.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// The text, or the first text of a pair.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The answer that a language model learns.
    pub answer: Option<String>,
    /// The input or context of an instruction.
    pub about: Option<String>,
    /// The system message of a conversation.
    pub system: Option<String>,
    /// The label.
    pub label: Option<String>,
    /// Columns of 0 and 1, each of one class.
    pub classes: Vec<String>,
    /// Separator of the labels in a cell of text.
    pub separator: Option<String>,
    /// True for a column named score or similarity: its integers are scores too.
    pub label_is_score: bool,
    /// True if the text is a list of messages.
    pub is_chat: bool,
    /// True if the text is an instruction, which has a form for its prompt.
    pub is_instruction: bool,
    /// True if the second text of the pair is an answer for a language model.
    pub pair_is_answer: bool,
    /// All columns of the file; in JSON, all keys.
    pub all: Vec<String>,
    /// Unused columns that hold texts or lists.
    pub unused_texts: Vec<String>,
    /// Column of labels that are not read ([`Aim::Texts`]).
    pub unused_label: Option<String>,
}

impl Columns {
    /// Returns the used columns as pairs of role and name.
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
        let classes = self.classes.iter().map(|name| ("label", name.as_str()));
        std::iter::once((text, self.text.as_str())).chain(optional).chain(classes).collect()
    }

    /// Returns the columns that are not used.
    pub fn ignored(&self) -> Vec<&str> {
        let used = self.used();
        self.all.iter().map(String::as_str).filter(|name| !used.iter().any(|(_, used)| used == name)).collect()
    }

    /// Returns the names of the used columns.
    pub fn wanted(&self) -> Vec<String> {
        self.used().into_iter().map(|(_, name)| name.to_owned()).collect()
    }

    /// Returns the columns that hold labels, for messages.
    pub fn labels(&self) -> String {
        match &self.label {
            Some(label) => format!("\"{label}\""),
            None => self.classes.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", "),
        }
    }

    /// Returns whether there is a column of labels.
    pub fn has_labels(&self) -> bool {
        self.label.is_some() || !self.classes.is_empty()
    }

    /// Returns the remark on labels that are not read, if there are any.
    pub fn remark(&self) -> Option<String> {
        let label = self.unused_label.as_ref()?;
        Some(format!("the labels in \"{label}\" are not used; `gelora eval` compares predictions with them"))
    }

    /// Returns true if both files use the same columns for the same roles.
    pub fn same_roles(&self, other: &Self) -> bool {
        self.used() == other.used()
    }
}

/// Returns true if the name is one of the known or flagged column names.
pub fn is_known(name: &str, flags: &ColumnFlags) -> bool {
    let named = |flag: &Option<String>| flag.as_deref() == Some(name);
    let usual = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(name));
    [&flags.text, &flags.pair, &flags.answer, &flags.label].into_iter().any(named)
        || flags.classes.iter().any(|class| class == name)
        || [&TEXTS[..], &[INSTRUCTION, PROMPT], &CONTEXTS, &ANSWERS, &QUESTIONS, &CHATS, &SYSTEMS, &LABELS, &SCORES]
            .into_iter()
            .any(usual)
        || PAIRS.iter().any(|(a, b)| usual(&[a, b]))
}

/// Finds the columns of a table.
///
/// # Errors
/// Returns an error if a column named by a flag does not exist, or if no text column is recognized. Both messages list
/// the columns.
pub fn resolve(path: &Path, schema: &Schema, flags: &ColumnFlags) -> Result<Columns> {
    let finder = Finder { path, schema, flags };
    let mut found = match finder.with_answers()? {
        Some(found) => found,
        None => finder.with_texts()?,
    };
    found.all = schema.names();
    let used = found.used();
    for (i, (role, name)) in used.iter().enumerate() {
        let is_again = |(other_role, other): &&(&str, &str)| other == name && other_role == role;
        if used[..i].iter().any(|other| is_again(&other)) {
            bail!("--label-columns: \"{name}\" is given twice");
        }
        if used[..i].iter().any(|(_, other)| other == name) {
            bail!("{}: one column (\"{name}\") cannot be two of text, pair, answer and label", path.display());
        }
    }
    let holds_text = |name: &&str| {
        let column = schema.columns.iter().find(|column| column.name == **name);
        column.is_some_and(|c| c.has_words || matches!(c.kind, Some(Kind::List | Kind::Object)))
    };
    let unused = found.ignored().into_iter().filter(|name| found.unused_label.as_deref() != Some(name));
    found.unused_texts = unused.filter(holds_text).map(str::to_owned).collect();
    Ok(found)
}

struct Finder<'a> {
    path: &'a Path,
    schema: &'a Schema,
    flags: &'a ColumnFlags,
}

impl Finder<'_> {
    /// Returns the column with the given name, regardless of case.
    fn find(&self, name: &str) -> Option<String> {
        self.schema.columns.iter().map(|column| &column.name).find(|c| c.eq_ignore_ascii_case(name)).cloned()
    }

    /// Returns the first column with one of the given names.
    fn first(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.find(name))
    }

    /// Returns the column that a flag names.
    fn flagged(&self, name: &Option<String>, flag: &str) -> Result<Option<String>> {
        let Some(name) = name else { return Ok(None) };
        if self.schema.columns.iter().any(|column| column.name == *name) {
            return Ok(Some(name.clone()));
        }
        let (path, all) = (self.path.display(), list(&self.schema.names()));
        Err(anyhow!("{path}: no column \"{name}\" ({flag}); the columns are {all}"))
    }

    /// Returns true if the column holds values of one of these kinds.
    fn is(&self, name: &str, kinds: &[Kind]) -> bool {
        let column = self.schema.columns.iter().find(|column| column.name == name);
        column.and_then(|column| column.kind).is_some_and(|kind| kinds.contains(&kind))
    }

    /// Returns true if the column holds texts, or if its values show no kind.
    fn may_be_text(&self, name: &str) -> bool {
        !self.is(name, &[Kind::Number, Kind::Bool, Kind::List, Kind::Object])
    }

    fn label(&self) -> Result<Option<String>> {
        if !self.flags.classes.is_empty() {
            return Ok(None);
        }
        let label = self.flagged(&self.flags.label, "--label-column")?;
        Ok(label.or_else(|| self.first(&LABELS)).or_else(|| self.first(&SCORES)))
    }

    /// Returns the columns of questions with answers, or None if the rows hold or need something else.
    fn with_answers(&self) -> Result<Option<Columns>> {
        let ColumnFlags { text, pair, answer, aim, .. } = self.flags;
        let names_labels = self.flags.names_labels();
        if let (Aim::Answers, Some(option)) = (aim, names_labels) {
            bail!("{option}: a language model learns no labels");
        }
        let text = self.flagged(text, "--text-column")?;
        if let Some(answer) = self.flagged(answer, "--answer-column")? {
            if pair.is_some() || names_labels.is_some() || aim.is_classifier() {
                bail!("--answer-column: is of a language model, which has no --pair-column, --label-column or classes");
            }
            let prompt = || self.first(&[INSTRUCTION, PROMPT]).or_else(|| self.first(&QUESTIONS));
            let usual = || prompt().or_else(|| self.first(&TEXTS)).filter(|name| *name != answer);
            let Some(text) = text.or_else(usual) else { return Err(self.no_text()) };
            return Ok(Some(Columns { text, answer: Some(answer), ..Columns::default() }));
        }
        if text.is_some() || pair.is_some() || names_labels.is_some() || aim.is_classifier() {
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
        // A question and an answer with a label are a pair.
        let is_question = self.label()?.is_none() || *aim == Aim::Answers;
        let question = QUESTIONS.iter().filter_map(|name| self.find(name)).find(|name| self.may_be_text(name));
        let Some(text) = question.filter(|_| is_question && self.may_be_text(&answer)) else { return Ok(None) };
        if *aim == Aim::Any && self.usual_pair().is_some() {
            return Ok(None);
        }
        Ok(Some(Columns { text, answer: Some(answer), ..Columns::default() }))
    }

    fn usual_pair(&self) -> Option<(String, String)> {
        let pair = PAIRS.iter().filter_map(|(a, b)| Some((self.find(a)?, self.find(b)?)));
        pair.into_iter().find(|(a, b)| self.may_be_text(a) && self.may_be_text(b))
    }

    /// Returns the columns of one or two texts, and of the label if there is one.
    fn with_texts(&self) -> Result<Columns> {
        let is_chat = |name: &String| self.is(name, &[Kind::List]);
        let usual_text = || {
            let chat = || CHATS.iter().filter_map(|name| self.find(name)).find(is_chat);
            self.first(&TEXTS).or_else(chat)
        };
        let text = self.flagged(&self.flags.text, "--text-column")?;
        let pair = self.flagged(&self.flags.pair, "--pair-column")?;
        let needs_labels = self.flags.aim.is_classifier() || self.flags.names_labels().is_some();
        // If labels are requested explicitly, the instruction or prompt is the text.
        let prompt = || self.first(&[INSTRUCTION, PROMPT]).filter(|_| needs_labels);
        let (text, pair) = match (text, pair) {
            (Some(text), pair) => (Some(text), pair),
            (None, Some(second)) => {
                let first = self.usual_pair().and_then(|(a, b)| (b == second).then_some(a));
                (first.or_else(usual_text).or_else(prompt).filter(|first| *first != second), Some(second))
            }
            (None, None) => match self.usual_pair() {
                Some((a, b)) => (Some(a), Some(b)),
                None => (usual_text().or_else(prompt), None),
            },
        };
        let Some(text) = text else { return Err(self.no_text()) };
        let (label, unused_label) = match self.flags.aim {
            Aim::Texts => (None, self.label()?.filter(|label| *label != text && Some(label) != pair.as_ref())),
            _ => (self.label()?, None),
        };
        let classes: Vec<String> = match self.flags.aim {
            Aim::Texts => Vec::new(),
            _ => {
                let named = |name: &String| self.flagged(&Some(name.clone()), "--label-columns");
                self.flags.classes.iter().filter_map(|name| named(name).transpose()).collect::<Result<_>>()?
            }
        };
        let separator = self.flags.separator.clone();
        let label_is_score = label.as_ref().is_some_and(|name| SCORES.iter().any(|s| s.eq_ignore_ascii_case(name)));
        let is_chat = is_chat(&text);
        let system = if is_chat { self.first(&SYSTEMS) } else { None };
        let is_pair_of = |(a, b): (&str, &str)| {
            let is = |name: &String, usual: &str| name.eq_ignore_ascii_case(usual);
            is(&text, a) && pair.as_ref().is_some_and(|pair| is(pair, b))
        };
        let pair_is_answer = [("question", "answer"), ("query", "answer")].into_iter().any(is_pair_of);
        Ok(Columns {
            text,
            pair,
            system,
            label,
            classes,
            separator,
            label_is_score,
            is_chat,
            pair_is_answer,
            unused_label,
            ..Columns::default()
        })
    }

    fn no_text(&self) -> anyhow::Error {
        anyhow!(
            "{}: no text column recognized; the columns are {}: name one with --text-column (and a second text with \
             --pair-column, or an answer with --answer-column)",
            self.path.display(),
            list(&self.schema.names())
        )
    }
}

/// Returns column names for a message, shortened: without a header, a column name is a cell of text.
pub fn list(columns: &[String]) -> String {
    const MAX_NAMES: usize = 20;
    const MAX_CHARS: usize = 40;
    let mut names: Vec<String> = columns.iter().take(MAX_NAMES).map(|c| shorten(c, MAX_CHARS)).collect();
    if columns.len() > MAX_NAMES {
        names.push(format!("{} more", columns.len() - MAX_NAMES));
    }
    names.join(", ")
}

fn shorten(name: &str, longest: usize) -> String {
    if name.chars().count() <= longest {
        return name.to_owned();
    }
    name.chars().take(longest).chain("...".chars()).collect()
}
