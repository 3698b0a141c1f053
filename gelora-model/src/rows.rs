//! The source of rows for training and evaluation.

use crate::{Result, Tokens};

/// The labels of all rows.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Labels<'a> {
    /// No labels. A language model predicts the tokens themselves; a classifier can only be used for prediction.
    None,
    /// A class for each row.
    Classes(&'a [usize]),
    /// The classes of each row, in any number.
    Sets(&'a [Vec<usize>]),
    /// A number for each row.
    Scores(&'a [f64]),
}

/// The rows on which a model is trained or evaluated. Tokens may be made on demand: training requests the tokens of
/// each step one step ahead, from a separate thread.
pub trait Rows: Sync {
    /// Number of rows.
    fn len(&self) -> usize;

    /// Whether there are no rows.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the tokens of the rows with these indices, in the same order.
    ///
    /// # Errors
    /// Returns an error if a row cannot be tokenized; [`crate::Error::Rows`] wraps any error.
    fn tokens(&self, rows: &[usize]) -> Result<Vec<Tokens>>;

    /// Returns the labels of all rows.
    fn labels(&self) -> Labels<'_>;

    /// Returns the length of every row, in any unit. Training uses it to form batches of rows of similar length.
    fn lengths(&self) -> Vec<usize>;
}

/// Rows whose tokens are held in memory.
#[derive(Clone, Debug)]
pub struct TokenRows {
    tokens: Vec<Tokens>,
    targets: Targets,
}

#[derive(Clone, Debug)]
enum Targets {
    None,
    Classes(Vec<usize>),
    Sets(Vec<Vec<usize>>),
    Scores(Vec<f64>),
}

impl TokenRows {
    /// Makes rows without labels, for a language model.
    pub fn new(tokens: Vec<Tokens>) -> Self {
        Self { tokens, targets: Targets::None }
    }

    /// Makes rows with one class each.
    pub fn with_classes(tokens: Vec<Tokens>, classes: Vec<usize>) -> Self {
        Self { tokens, targets: Targets::Classes(classes) }
    }

    /// Makes rows with any number of classes each.
    pub fn with_sets(tokens: Vec<Tokens>, sets: Vec<Vec<usize>>) -> Self {
        Self { tokens, targets: Targets::Sets(sets) }
    }

    /// Some of the rows of another source, in this order.
    ///
    /// # Errors
    /// Returns an error if a row cannot be tokenized.
    pub fn part_of(rows: &dyn Rows, indices: &[usize]) -> Result<Self> {
        let tokens = rows.tokens(indices)?;
        let targets = match rows.labels() {
            Labels::None => Targets::None,
            Labels::Classes(classes) => Targets::Classes(indices.iter().map(|&row| classes[row]).collect()),
            Labels::Sets(sets) => Targets::Sets(indices.iter().map(|&row| sets[row].clone()).collect()),
            Labels::Scores(scores) => Targets::Scores(indices.iter().map(|&row| scores[row]).collect()),
        };
        Ok(Self { tokens, targets })
    }

    /// Makes rows with one score each.
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
            Targets::Sets(sets) => Labels::Sets(sets),
            Targets::Scores(scores) => Labels::Scores(scores),
        }
    }

    fn lengths(&self) -> Vec<usize> {
        self.tokens.iter().map(|row| row.ids.len()).collect()
    }
}
