//! Where training and evaluation get their rows from.

use crate::{Result, Tokens};

/// What a task model should predict, for every row.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Labels<'a> {
    /// Nothing beside the tokens: a language model predicts those, and a classifier can only predict.
    None,
    /// A class for each row.
    Classes(&'a [usize]),
    /// A number for each row.
    Scores(&'a [f64]),
}

/// The rows that a model is trained or evaluated on. Tokens may be made when they are asked for: a training asks for those of
/// one step ahead, from a thread of its own.
pub trait Rows: Sync {
    /// Number of rows.
    fn len(&self) -> usize;

    /// Whether there are no rows.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of these rows, in this order.
    ///
    /// # Errors
    /// If a row cannot be tokenized; [`crate::Error::Rows`] carries any error.
    fn tokens(&self, rows: &[usize]) -> Result<Vec<Tokens>>;

    /// What should be predicted for each row.
    fn labels(&self) -> Labels<'_>;

    /// The length of every row in any unit, for batches of rows of similar length.
    fn lengths(&self) -> Vec<usize>;
}

/// Rows whose tokens are in memory.
#[derive(Clone, Debug)]
pub struct TokenRows {
    tokens: Vec<Tokens>,
    targets: Targets,
}

#[derive(Clone, Debug)]
enum Targets {
    None,
    Classes(Vec<usize>),
    Scores(Vec<f64>),
}

impl TokenRows {
    /// Rows without labels, as a language model learns them.
    pub fn new(tokens: Vec<Tokens>) -> Self {
        Self { tokens, targets: Targets::None }
    }

    /// Rows with a class each.
    pub fn with_classes(tokens: Vec<Tokens>, classes: Vec<usize>) -> Self {
        Self { tokens, targets: Targets::Classes(classes) }
    }

    /// Rows with a score each.
    pub fn with_scores(tokens: Vec<Tokens>, scores: Vec<f64>) -> Self {
        Self { tokens, targets: Targets::Scores(scores) }
    }
}

impl Rows for TokenRows {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn tokens(&self, rows: &[usize]) -> Result<Vec<Tokens>> {
        Ok(rows.iter().map(|&row| self.tokens[row].clone()).collect())
    }

    fn labels(&self) -> Labels<'_> {
        match &self.targets {
            Targets::None => Labels::None,
            Targets::Classes(classes) => Labels::Classes(classes),
            Targets::Scores(scores) => Labels::Scores(scores),
        }
    }

    fn lengths(&self) -> Vec<usize> {
        self.tokens.iter().map(|row| row.ids.len()).collect()
    }
}
