//! How long texts are before they are cut.

use super::Tokenizer;
use crate::data::Example;

/// More than any text has.
const NO_LIMIT: usize = 1 << 30;
/// Examples that are encoded at a time.
const CHUNK: usize = 512;

impl Tokenizer {
    /// The number of tokens that each example has without a limit, special tokens included; none for one that cannot be
    /// encoded.
    ///
    /// # Errors
    /// As [`Tokenizer::with_max_length`].
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
