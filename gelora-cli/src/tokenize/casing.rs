//! Applies the options of a BERT tokenizer: lowercase, strip accents, and split Chinese characters.
//!
//! transformers 5 builds the tokenizers of these classes from the vocabulary and tokenizer_config.json. The options
//! there, or their defaults (lowercase, accents like the case, Chinese characters split), take precedence over
//! tokenizer.json.
//!
//! Source: `BertTokenizer.__init__` of transformers 5.23, tested with each option present and absent in both files.

use std::path::Path;

use serde_json::Value;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::{NormalizerWrapper, Tokenizer};

use super::class::Class;
use crate::ui;

/// Applies the options of tokenizer_config.json to the tokenizer of `model`, which was read from its tokenizer.json.
/// Warns of differences. Returns the options as text for a fingerprint.
///
/// # Errors
/// Returns an error if the tokenizer refuses the options.
pub fn apply(tokenizer: &mut Tokenizer, model: &Path) -> tokenizers::Result<String> {
    let json = |name: &str| -> Value {
        let bytes = std::fs::read(model.join(name)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default() // a damaged file is an error where it is needed
    };
    let (config, options) = (json("config.json"), json("tokenizer_config.json"));
    let class_name = options["tokenizer_class"].as_str().or(config["tokenizer_class"].as_str());
    let class = Class::of(config["model_type"].as_str().unwrap_or_default(), class_name);
    let Some(NormalizerWrapper::BertNormalizer(stored)) = tokenizer.get_normalizer() else { return Ok(String::new()) };
    if !matches!(class, Some(Class::Bert | Class::MpNet)) {
        return Ok(String::new());
    }
    let flag = |key: &str| options[key].as_bool();
    let mut wanted = *stored;
    wanted.lowercase = flag("do_lower_case").unwrap_or(true);
    wanted.strip_accents = flag("strip_accents");
    wanted.handle_chinese_chars = flag("tokenize_chinese_chars").unwrap_or(true);
    let differences = [
        ("do_lower_case", stored.lowercase != wanted.lowercase, wanted.lowercase),
        ("strip_accents", strips(stored) != strips(&wanted), strips(&wanted)),
        (
            "tokenize_chinese_chars",
            stored.handle_chinese_chars != wanted.handle_chinese_chars,
            wanted.handle_chinese_chars,
        ),
    ];
    for (option, _, value) in differences.iter().filter(|(_, differs, _)| *differs) {
        let source = if options.get(*option).is_some_and(Value::is_boolean) { "" } else { " by default" };
        ui::warn(format!(
            "{}: {option} is {value}{source} in tokenizer_config.json and {} in tokenizer.json; the former holds, as \
             in transformers 5",
            model.display(),
            !value
        ));
    }
    let words = format!("{wanted:?}");
    tokenizer.with_normalizer(Some(wanted))?;
    Ok(words)
}

/// Returns true if accents are stripped: as the option says, or else exactly if the text is lowercased.
fn strips(normalizer: &BertNormalizer) -> bool {
    normalizer.strip_accents.unwrap_or(normalizer.lowercase)
}
