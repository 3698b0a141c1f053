//! Finds the special and added tokens of a model folder without tokenizer.json, and their matching options.
//!
//! Source: `_from_pretrained` of transformers' `tokenization_utils_base.py` and the constructors of
//! `PreTrainedTokenizerBase` and `TokenizersBackend`, 5.23. Their order determines the ids of new tokens.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// Named special tokens, in the order in which transformers adds them.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The special tokens of a tokenizer by name, and all tokens that are added to its vocabulary.
#[derive(Debug)]
pub struct Tokens {
    named: Vec<(String, AddedToken)>,
    extra: Vec<AddedToken>,
    /// Tokens of `added_tokens_decoder` or added_tokens.json, in the order of their ids.
    stored: Vec<AddedToken>,
}

impl Tokens {
    /// Reads the tokens from tokenizer_config.json, special_tokens_map.json and added_tokens.json. `defaults` are the
    /// tokens of the tokenizer's class. `pieces` are the tokens that a SentencePiece model marks.
    ///
    /// # Errors
    /// Returns an error if an entry is not a token.
    pub fn read(
        config: &Map<String, Value>,
        special: &Map<String, Value>,
        added: &Map<String, Value>,
        defaults: &[(&str, AddedToken)],
        pieces: Option<Vec<AddedToken>>,
    ) -> Result<Self, String> {
        let mut by_id = BTreeMap::new();
        let default = |name: &str| defaults.iter().find(|(known, _)| *known == name).map(|(_, token)| token.clone());
        // A token given as a string takes the options that the class gives to the token.
        let token_of_name = |name: &str, value: &Value| match (value.as_str(), default(name)) {
            (Some(text), Some(default)) => Ok(AddedToken { content: text.to_owned(), ..default }),
            _ => token(name, value),
        };
        // None marks a token that a file explicitly removes.
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
                let is_named = given.values().flatten().any(|token| token.content == text);
                is_named || extra.iter().flatten().any(|token| token.content == text)
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

    /// Returns the text of a token that the tokenizer needs.
    ///
    /// # Errors
    /// Returns an error if the tokenizer has no such token.
    pub fn get(&self, name: &str) -> Result<String, String> {
        let found = self.named.iter().find(|(known, _)| known == name);
        found.map(|(_, token)| token.content.clone()).ok_or_else(|| format!("there is no {name}"))
    }

    /// Returns all tokens in the order in which they are added.
    pub fn all(&self) -> Vec<AddedToken> {
        let is_stored = |token: &&AddedToken| self.stored.iter().any(|stored| stored.content == token.content);
        let is_named = |token: &AddedToken| self.named.iter().any(|(_, named)| named.content == token.content);
        let others = self.named.iter().map(|(_, token)| token).chain(&self.extra).filter(|token| !is_stored(token));
        let special = |token: &AddedToken| token.clone().special(token.special || is_named(token));
        self.stored.iter().chain(others).map(special).collect()
    }

    /// Returns the special tokens as texts without options.
    pub fn plain(&self) -> Vec<AddedToken> {
        let all = self.named.iter().map(|(_, token)| token).chain(&self.extra);
        all.map(|token| AddedToken::from(token.content.as_str(), true)).collect()
    }
}

/// Reads a token: a string, or an object with options.
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

/// Reads the tokens of a list. Returns None if the key is missing or not a list.
fn list(map: &Map<String, Value>, key: &str) -> Result<Option<Vec<AddedToken>>, String> {
    let Some(Value::Array(values)) = map.get(key) else { return Ok(None) };
    values.iter().map(|value| token(key, value)).collect::<Result<_, _>>().map(Some)
}
