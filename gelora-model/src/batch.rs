use gelora_kernels::Offsets;

use crate::{Error, Result};

/// The tokens of one example, including special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, (T).
    pub ids: Vec<u32>,
    /// Segment of each token, (T): 0 for the first text, 1 for the second.
    pub type_ids: Vec<u32>,
    /// Whether a language model should predict each token, (T).
    pub targets: Vec<bool>,
}

impl Tokens {
    /// Makes one text in which a language model should predict every token.
    pub fn of_ids(ids: Vec<u32>) -> Self {
        Self { type_ids: vec![0; ids.len()], targets: vec![true; ids.len()], ids }
    }

    /// Number of tokens that a language model should predict from the tokens before them.
    pub fn predicted(&self) -> usize {
        self.targets.iter().skip(1).filter(|target| **target).count()
    }
}

/// Sequences of tokens, stored one after the other without padding.
#[derive(Clone, Debug)]
pub struct Batch {
    ids: Vec<u32>,
    types: Vec<u32>,
    positions: Vec<u32>,
    sequences: Offsets,
}

impl Batch {
    /// Makes a batch of pairs (token ids, token type ids). Both lists of a pair have the same length and include
    /// special tokens.
    ///
    /// # Errors
    /// Returns an error if there is no sequence, a sequence is empty, or the two lists of a pair differ in length.
    pub fn new<I: AsRef<[u32]>, T: AsRef<[u32]>>(sequences: &[(I, T)]) -> Result<Self> {
        let lengths: Vec<usize> = sequences.iter().map(|(ids, _)| ids.as_ref().len()).collect();
        let offsets = Offsets::from_lengths(&lengths)?;
        let mut batch = Self { ids: Vec::new(), types: Vec::new(), positions: Vec::new(), sequences: offsets };
        for (i, (ids, types)) in sequences.iter().enumerate() {
            let (ids, types) = (ids.as_ref(), types.as_ref());
            if ids.len() != types.len() {
                let message = format!("sequence {i} has {} token ids and {} type ids", ids.len(), types.len());
                return Err(Error::Value(message));
            }
            batch.ids.extend_from_slice(ids);
            batch.types.extend_from_slice(types);
            batch.positions.extend(0..ids.len() as u32);
        }
        Ok(batch)
    }

    /// Makes a batch of examples.
    ///
    /// # Errors
    /// Returns the errors of [`Batch::new`].
    pub fn of_tokens<'a>(examples: impl IntoIterator<Item = &'a Tokens>) -> Result<Self> {
        let sequences: Vec<_> = examples.into_iter().map(|tokens| (&tokens.ids, &tokens.type_ids)).collect();
        Self::new(&sequences)
    }

    /// Makes a batch of texts without token types.
    ///
    /// # Errors
    /// Returns the errors of [`Batch::new`].
    pub fn of_ids<I: AsRef<[u32]>>(sequences: &[I]) -> Result<Self> {
        let zeros: Vec<Vec<u32>> = sequences.iter().map(|ids| vec![0; ids.as_ref().len()]).collect();
        Self::new(&sequences.iter().map(AsRef::as_ref).zip(&zeros).collect::<Vec<_>>())
    }

    /// Makes a batch of one sequence whose tokens follow `past` earlier tokens.
    pub(crate) fn after(ids: &[u32], past: usize) -> Result<Self> {
        let mut batch = Self::of_ids(&[ids])?;
        batch.positions.iter_mut().for_each(|p| *p += past as u32);
        Ok(batch)
    }

    /// Token ids, (N).
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Token type ids, (N).
    pub fn types(&self) -> &[u32] {
        &self.types
    }

    /// Position of each token in its sequence, (N).
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Start and end of each sequence.
    pub fn sequences(&self) -> &Offsets {
        &self.sequences
    }
}
