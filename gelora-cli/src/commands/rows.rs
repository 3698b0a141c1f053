//! Rows of a dataset in the form that training and evaluation take, tokenized on demand or in advance.

use anyhow::{Context, Result};
use gelora_model::{Labels, Rows, Tokens};

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
        let examples = || rows.iter().map(|&row| &self.dataset.examples[row]);
        if self.parallel {
            return self
                .tokenizer
                .encode_all(examples())
                .with_context(|| self.dataset.place(rows[self.tokenizer.first_bad(examples()).unwrap_or(0)]));
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
    let rows = tokenizer.encode_all(&dataset.examples).with_context(|| {
        let row = tokenizer.first_bad(&dataset.examples);
        row.map_or_else(|| dataset.path.display().to_string(), |row| dataset.place(row))
    })?;
    Ok(rows.into_iter().filter(|row| row.predicted() > 0).collect())
}
