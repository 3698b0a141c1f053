//! Special and added tokens of a model folder without tokenizer.json: which they are, and how they are found in a text.
//!
//! Source: `_from_pretrained` of transformers' `tokenization_utils_base.py` and the constructors of `PreTrainedTokenizerBase` and
//! `TokenizersBackend`, 5.23, whose order decides which ids new tokens have.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// Tokens with a name, in the order in which transformers adds them.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The special tokens of a tokenizer by their names, and all tokens that are added to its vocabulary.
#[derive(Debug)]
pub struct Tokens {
    named: Vec<(String, AddedToken)>,
    extra: Vec<AddedToken>,
    /// Of `added_tokens_decoder` or added_tokens.json, in the order of their ids.
    stored: Vec<AddedToken>,
}

impl Tokens {
    /// Takes the tokens out of what tokenizer_config.json, special_tokens_map.json and added_tokens.json say; `defaults` are
    /// those of the tokenizer's class, `pieces` what a SentencePiece model marks.
    ///
    /// # Errors
    /// If an entry is not a token.
    pub fn read(
        config: &Map<String, Value>,
        special: &Map<String, Value>,
        added: &Map<String, Value>,
        defaults: &[(&str, AddedToken)],
        pieces: Option<Vec<AddedToken>>,
    ) -> Result<Self, String> {
        let mut by_id = BTreeMap::new();
        let default = |name: &str| defaults.iter().find(|(known, _)| *known == name).map(|(_, token)| token.clone());
        // A text takes the options that the class gives to the token.
        let token_of_name = |name: &str, value: &Value| match (value.as_str(), default(name)) {
            (Some(text), Some(default)) => Ok(AddedToken { content: text.to_owned(), ..default }),
            _ => token(name, value),
        };
        // None where a file says that there is none.
        let mut given: BTreeMap<&str, Option<AddedToken>> = BTreeMap::new();
        let mut others = Vec::new();
        let mut extra = list(config, "extra_special_tokens")?;
        let mut additional = list(config, "additional_special_tokens")?;
        if extra.as_ref().is_none_or(Vec::is_empty) && additional.is_some() {
            extra = additional.take();
        }
        for (key, value) in config {
            match NAMES.iter().find(|name| *name == key) {
                Some(name) if value.is_null() => drop(given.insert(name, None)),
                Some(name) => drop(given.insert(name, Some(token_of_name(key, value)?))),
                None if key.ends_with("_token") && (value.is_string() || value.is_object()) => {
                    others.push((key.clone(), token(key, value)?));
                }
                None => {}
            }
        }
        if let Some(Value::Object(tokens)) = config.get("extra_special_tokens") {
            for (key, value) in tokens {
                others.push((key.clone(), token(key, value)?));
            }
        }
        if let Some(decoder) = config.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, value) in decoder {
                let number: u64 = id.parse().map_err(|_| format!("added_tokens_decoder has the id {id:?}"))?;
                by_id.insert(number, token(id, value)?);
            }
        } else {
            for (key, value) in special {
                if let Some(name) = NAMES.iter().find(|name| *name == key) {
                    given.insert(name, Some(token_of_name(key, value)?.special(true)));
                }
            }
            if let Some(listed) = list(special, "extra_special_tokens")? {
                extra.get_or_insert_default().extend(listed);
            }
            if let Some(listed) = list(special, "additional_special_tokens")? {
                additional = Some(listed);
            }
            let is_special = |text: &str| {
                let of_name = given.values().flatten().any(|token| token.content == text);
                of_name || extra.iter().flatten().any(|token| token.content == text)
            };
            for (text, id) in added {
                let number = id.as_u64().ok_or_else(|| format!("added_tokens.json gives {text:?} the id {id}"))?;
                by_id.insert(number, AddedToken::from(text.as_str(), is_special(text)));
            }
        }
        let named = NAMES.into_iter().filter_map(|name| {
            let token = given.remove(name).unwrap_or_else(|| default(name))?;
            Some((name.to_owned(), token))
        });
        let named = named.chain(others).collect();
        let extra = extra.or(pieces).or(additional).unwrap_or_default();
        Ok(Self { named, extra, stored: by_id.into_values().collect() })
    }

    /// The text of a token that the tokenizer cannot do without.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<String, String> {
        let found = self.named.iter().find(|(known, _)| known == name);
        found.map(|(_, token)| token.content.clone()).ok_or_else(|| format!("there is no {name}"))
    }

    /// Every token in the order in which it is added.
    pub fn all(&self) -> Vec<AddedToken> {
        let is_stored = |token: &&AddedToken| self.stored.iter().any(|stored| stored.content == token.content);
        let is_named = |token: &AddedToken| self.named.iter().any(|(_, named)| named.content == token.content);
        let others = self.named.iter().map(|(_, token)| token).chain(&self.extra).filter(|token| !is_stored(token));
        let special = |token: &AddedToken| token.clone().special(token.special || is_named(token));
        self.stored.iter().chain(others).map(special).collect()
    }

    /// The special tokens as texts alone.
    pub fn plain(&self) -> Vec<AddedToken> {
        let all = self.named.iter().map(|(_, token)| token).chain(&self.extra);
        all.map(|token| AddedToken::from(token.content.as_str(), true)).collect()
    }
}

/// A token: a string, or an object with its options.
fn token(key: &str, value: &Value) -> Result<AddedToken, String> {
    if let Value::String(text) = value {
        return Ok(AddedToken::from(text.as_str(), true));
    }
    let content = value.get("content").and_then(Value::as_str);
    let content = content.ok_or_else(|| format!("{key} is {value}; expected a token"))?;
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Ok(AddedToken::from(content, special)
        .normalized(flag("normalized").unwrap_or(!special))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .single_word(flag("single_word").unwrap_or(false)))
}

/// The tokens of a list, if the key is there with one.
fn list(map: &Map<String, Value>, key: &str) -> Result<Option<Vec<AddedToken>>, String> {
    let Some(Value::Array(values)) = map.get(key) else { return Ok(None) };
    values.iter().map(|value| token(key, value)).collect::<Result<_, _>>().map(Some)
}
