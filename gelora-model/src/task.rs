//! The kind of model that a dataset is for.

use crate::Config;

/// Default limit on the tokens of a row or block, for training and evaluating language models.
pub const LM_MAX_LENGTH: usize = 512;

/// Whether a dataset is for a language model if the user does not specify it: it has no labels, and either it has
/// answers or the model is a decoder.
pub fn is_language_model(config: &Config, has_labels: bool, has_answers: bool) -> bool {
    !has_labels && (config.causal || has_answers)
}
