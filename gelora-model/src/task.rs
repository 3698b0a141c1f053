//! Which kind of model a piece of data is for.

use crate::Config;

/// Tokens of a row or block at most where a language model is trained or evaluated, if nobody says otherwise.
pub const LM_MAX_LENGTH: usize = 512;

/// Whether data is for a language model, where nobody says so: it has no labels, and it has answers or the model is a decoder.
pub fn is_language_model(config: &Config, has_labels: bool, has_answers: bool) -> bool {
    !has_labels && (config.causal || has_answers)
}
