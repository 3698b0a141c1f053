//! Counts the tokens of texts before truncation.

use super::Tokenizer;
use crate::data::Example;

/// A limit above the length of any text.
const NO_LIMIT: usize = 1 << 30;
/// Number of examples that are encoded at a time.
const CHUNK: usize = 512;

impl Tokenizer {
    /// Returns the number of tokens of each example without a limit, special tokens included. None marks an example
    /// that cannot be encoded.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::with_max_length`].
    pub fn lengths(&self, examples: &[&Example]) -> anyhow::Result<Vec<Option<usize>>> {
        let whole = self.clone().with_max_length(NO_LIMIT)?;
        let mut lengths = Vec::with_capacity(examples.len());
        for chunk in examples.chunks(CHUNK) {
            match whole.encode_all(chunk.iter().copied()) {
                Ok(encoded) => lengths.extend(encoded.iter().map(|tokens| Some(tokens.ids.len()))),
                Err(_) => lengths.extend(chunk.iter().map(|e| whole.encode(e).ok().map(|tokens| tokens.ids.len()))),
            }
        }
        Ok(lengths)
    }
}
