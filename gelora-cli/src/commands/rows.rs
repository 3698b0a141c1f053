//! Rows of a dataset in the form that training and evaluation take, tokenized on demand or in advance.

use anyhow::{Context, Result, bail};
use gelora_model::{Labels, Rows, TokenRows, Tokens};

use crate::data::{Dataset, Example, Targets};
use crate::tokenize::Tokenizer;

/// Texts with their labels, tokenized on demand.
pub struct TextRows<'a> {
    pub dataset: &'a Dataset,
    pub tokenizer: &'a Tokenizer,
    /// Targets of the rows, or None if the labels are not used.
    pub targets: Option<Targets>,
    /// Whether rows are tokenized on all cores. False during training, because the training step uses the cores.
    pub parallel: bool,
}

impl TextRows<'_> {
    fn encode(&self, rows: &[usize]) -> Result<Vec<Tokens>> {
        if self.parallel {
            return encode_rows(self.tokenizer, self.dataset, rows);
        }
        let encode =
            |&row: &usize| self.tokenizer.encode(&self.dataset.examples[row]).with_context(|| self.dataset.place(row));
        rows.iter().map(encode).collect()
    }
}

impl Rows for TextRows<'_> {
    fn len(&self) -> usize {
        self.dataset.examples.len()
    }

    fn tokens(&self, rows: &[usize]) -> gelora_model::Result<Vec<Tokens>> {
        self.encode(rows).map_err(|error| gelora_model::Error::Rows(error.into()))
    }

    fn labels(&self) -> Labels<'_> {
        match &self.targets {
            None => Labels::None,
            Some(Targets::Classes(classes)) => Labels::Classes(classes),
            Some(Targets::Sets(sets)) => Labels::Sets(sets),
            Some(Targets::Scores(scores)) => Labels::Scores(scores),
        }
    }

    /// Lengths in characters. Rows are not tokenized for their lengths.
    fn lengths(&self) -> Vec<usize> {
        let characters = |text: &String| text.chars().count();
        let length = |e: &Example| characters(&e.text) + e.pair.as_ref().map_or(0, characters);
        self.dataset.examples.iter().map(length).collect()
    }
}

/// Tokenizes rows of a dataset on all cores.
///
/// # Errors
/// Returns an error that names the first row that cannot be tokenized.
pub fn encode_rows(tokenizer: &Tokenizer, dataset: &Dataset, rows: &[usize]) -> Result<Vec<Tokens>> {
    let examples = || rows.iter().map(|&row| &dataset.examples[row]);
    tokenizer.encode_all(examples()).with_context(|| {
        let first = tokenizer.first_bad(examples());
        first.map_or_else(|| dataset.path.display().to_string(), |index| dataset.place(rows[index]))
    })
}

/// Tokenizes every row of a dataset on all cores.
///
/// # Errors
/// As [`encode_rows`].
pub fn encode_all(tokenizer: &Tokenizer, dataset: &Dataset) -> Result<Vec<Tokens>> {
    encode_rows(tokenizer, dataset, &(0..dataset.examples.len()).collect::<Vec<_>>())
}

/// Returns tokens with the targets of their rows.
pub fn token_rows(tokens: Vec<Tokens>, targets: &Targets, rows: &[usize]) -> TokenRows {
    fn of<T: Clone>(all: &[T], rows: &[usize]) -> Vec<T> {
        rows.iter().map(|&row| all[row].clone()).collect()
    }
    match targets {
        Targets::Classes(classes) => TokenRows::with_classes(tokens, of(classes, rows)),
        Targets::Sets(sets) => TokenRows::with_sets(tokens, of(sets, rows)),
        Targets::Scores(scores) => TokenRows::with_scores(tokens, of(scores, rows)),
    }
}

/// Checks that a language model has rows to learn or to be evaluated on.
///
/// # Errors
/// Returns an error if `rows` is empty.
pub fn check_answers(rows: &[Tokens], tokenizer: &Tokenizer, dataset: &Dataset) -> Result<()> {
    if rows.is_empty() {
        bail!("{}: every answer is cut off at --max-length {}", dataset.path.display(), tokenizer.max_length());
    }
    Ok(())
}

/// Returns the rows that a language model learns: each row with an answer as it is, other texts in blocks. Rows whose
/// answer is cut off are left out.
///
/// # Errors
/// Returns an error if a row cannot be tokenized, or if there are conversations and the model has no chat template.
pub fn lm_rows(tokenizer: &Tokenizer, dataset: &Dataset) -> Result<Vec<Tokens>> {
    if !dataset.has_answers() {
        return tokenizer.blocks(dataset);
    }
    if dataset.examples.iter().any(|example| !example.chat.is_empty()) {
        tokenizer.template().with_context(|| dataset.path.display().to_string())?;
    }
    let rows = encode_all(tokenizer, dataset)?;
    Ok(rows.into_iter().filter(|row| row.predicted() > 0).collect())
}
