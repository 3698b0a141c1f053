//! Converts a model folder's tokenizer to the keys of a GGUF file.
//!
//! GGUF has two forms for tokenizers of language models. "gpt2" is byte-level BPE with a word splitting that llama.cpp
//! knows by name. "llama" is SentencePiece's BPE, in which scores of pieces replace merges. Any other tokenizer, or a
//! tokenizer with a differing option, is an error.
//!
//! Source: llama.cpp, `src/llama-vocab.cpp` and `gguf-py/gguf/vocab.py`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use gelora_model::gguf::MetadataValue;
use serde_json::{Value, json};

use super::Tokenizer;
use super::gguf::{CONTROL, DEFINED, Pre};
use crate::chat::Template;

/// Types of tokens other than control tokens and user-defined tokens.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// Character that stands for a space in SentencePiece.
const SPACE: &str = "▁";

/// The GGUF keys of a tokenizer.
pub struct Keys {
    pub keys: Vec<(String, MetadataValue)>,
    /// Differences between the tokenizer and llama.cpp.
    pub remarks: Vec<String>,
}

/// Form of a tokenizer in GGUF.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Byte-level BPE, with llama.cpp's name of the word splitting.
    Bytes(&'static str),
    /// SentencePiece's BPE. `prefixed`: a text begins with a space.
    Pieces { prefixed: bool },
}

/// Returns the keys of a folder's tokenizer, for a model with `rows` embeddings.
///
/// # Errors
/// Returns an error if the folder has no tokenizer, or one that a GGUF file cannot express.
pub fn keys(model: &Path, rows: usize) -> Result<Keys> {
    let tokenizer = Tokenizer::open(model)?;
    let inner = &tokenizer.inner;
    let text = inner.to_string(false).map_err(|error| anyhow!("tokenizer: {error}"))?;
    let json: Value = serde_json::from_str(&text).context("tokenizer")?;
    let mut remarks = Vec::new();
    let form = form_of(&json, &mut remarks).map_err(|problem| anyhow!("the tokenizer {problem}"))?;

    // Place every token at its id; ids without a token become padding.
    let vocabulary: HashMap<String, u32> = inner.get_vocab(true);
    let added = inner.get_added_tokens_decoder();
    let mut tokens: Vec<Option<&str>> = vec![None; rows];
    for (token, id) in &vocabulary {
        match tokens.get_mut(*id as usize) {
            Some(place) => *place = Some(token),
            None if added.get(id).is_some_and(|token| token.special) => {}
            None => bail!("the token {token:?} has the id {id}, and the model {rows} embeddings"),
        }
    }
    for token in added.values().filter(|token| token.lstrip || token.rstrip) {
        remarks.push(format!("the tokenizer takes spaces beside {:?} away; llama.cpp does not", token.content));
    }
    let named = named_tokens(model)?;
    let id_of = |name: &str| named.get(name).and_then(|token| vocabulary.get(token)).copied();
    let unknown = id_of("unk_token").or_else(|| vocabulary.get(json["model"]["unk_token"].as_str()?).copied());
    // The type of each token, in llama.cpp's numbers.
    let kind = |(id, token): (u32, &Option<&str>)| match (token, added.get(&id)) {
        (None, _) => UNUSED,
        _ if Some(id) == unknown && matches!(form, Form::Pieces { .. }) => UNKNOWN,
        (_, Some(token)) if token.special => CONTROL,
        (Some(token), _) if matches!(form, Form::Pieces { .. }) && is_byte(token) => BYTE,
        (_, Some(_)) => DEFINED,
        _ => NORMAL,
    };
    let kinds: Vec<i32> = (0..).zip(&tokens).map(|pair| kind(pair) as i32).collect();
    let name = |(id, token): (usize, &Option<&str>)| token.map_or_else(|| format!("[PAD{id}]"), str::to_owned);
    let texts: Vec<String> = tokens.iter().enumerate().map(name).collect();

    // The keys of the form: merges, or scores and the space prefix.
    let mut keys = Vec::new();
    let mut set = |key: &str, value| keys.push((format!("tokenizer.ggml.{key}"), value));
    let merges = merges_of(&json)?;
    match &form {
        Form::Bytes(pre) => {
            set("model", MetadataValue::Text("gpt2".into()));
            set("pre", MetadataValue::Text((*pre).into()));
            if let Some((a, b)) = merges.iter().find(|(a, b)| a.contains(' ') || b.contains(' ')) {
                bail!("the tokenizer merges {a:?} and {b:?}; expected no spaces in a merge");
            }
            set("merges", MetadataValue::Texts(merges.iter().map(|(a, b)| format!("{a} {b}")).collect()));
        }
        Form::Pieces { prefixed } => {
            set("model", MetadataValue::Text("llama".into()));
            set("pre", MetadataValue::Text("default".into()));
            let is_plain = |token: &str| vocabulary.get(token).is_some_and(|id| !added.contains_key(id));
            set("scores", MetadataValue::Floats(scores(&texts, &merges, is_plain)?));
            set("add_space_prefix", MetadataValue::Flag(*prefixed));
        }
    }
    set("tokens", MetadataValue::Texts(texts));
    set("token_type", MetadataValue::Integers(kinds));

    // Special tokens, and whether texts begin and end with them.
    let (first, last) = around(inner)?;
    for (key, id) in [
        ("bos", first.or_else(|| id_of("bos_token"))),
        ("eos", last.or_else(|| id_of("eos_token")).or(tokenizer_end(model))),
        ("unknown", unknown),
        ("padding", id_of("pad_token")),
    ] {
        if let Some(id) = id.filter(|id| (*id as usize) < rows) {
            set(&format!("{key}_token_id"), MetadataValue::Unsigned(id));
        }
    }
    set("add_bos_token", MetadataValue::Flag(first.is_some()));
    set("add_eos_token", MetadataValue::Flag(last.is_some()));
    if let Some(template) = Template::of_folder(model)? {
        keys.push(("tokenizer.chat_template".into(), MetadataValue::Text(template.source().into())));
    }
    Ok(Keys { keys, remarks })
}

/// Returns the form of a tokenizer.json. The error continues the words "the tokenizer".
fn form_of(json: &Value, remarks: &mut Vec<String>) -> Result<Form, String> {
    let model = &json["model"];
    let kind = model["type"].as_str().unwrap_or("without a type");
    if kind != "BPE" {
        return Err(format!("is of the form {kind}, which a GGUF file of a language model cannot say; expected BPE"));
    }
    let is_empty = |key: &str| model[key].is_null() || model[key] == "" || model[key] == json!(0.0);
    for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        if !is_empty(key) {
            return Err(format!("has the option {key} = {}, which a GGUF file cannot say", model[key]));
        }
    }
    let whole_words = model["ignore_merges"] == true;
    if model["byte_fallback"] == true {
        if whole_words {
            return Err(
                "has the option ignore_merges with pieces of SentencePiece, which a GGUF file cannot say".into()
            );
        }
        return Ok(Form::Pieces { prefixed: space_prefix(json, remarks)? });
    }
    let words = simplified(&json["pre_tokenizer"]);
    let found = Pre::ALL.into_iter().find(|(pre, _)| {
        let known = pre.words().ok().and_then(|words| serde_json::to_value(words).ok());
        known.is_some_and(|known| simplified(&known) == words) && pre.has_whole_words() == whole_words
    });
    let Some((pre, name)) = found else {
        let known: Vec<&str> = Pre::ALL.into_iter().map(|(_, name)| name).collect();
        let known = known.join(", ");
        return Err(format!("cuts texts into words in a way that is none of {known}, for which llama.cpp has names"));
    };
    match &json["normalizer"] {
        Value::Null => {}
        normalizer if normalizer["type"] == "NFC" && pre == Pre::Qwen2 => {
            remarks.push("the tokenizer composes characters (NFC); llama.cpp does not".into());
        }
        normalizer => return Err(format!("has the normalizer {normalizer}, which a GGUF file cannot say")),
    }
    Ok(Form::Bytes(name))
}

/// Returns true if a SentencePiece tokenizer puts a space before a text.
fn space_prefix(json: &Value, remarks: &mut Vec<String>) -> Result<bool, String> {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let (normalizer, words) = (&json["normalizer"], &json["pre_tokenizer"]);
    // After the replacement no space is left, so this split has no effect.
    let at_spaces = words["type"] == "Split" && words["pattern"] == json!({"String": " "});
    if words.is_null() || at_spaces {
        let steps = match normalizer["normalizers"].as_array() {
            Some(steps) => steps.clone(),
            None => vec![normalizer.clone()],
        };
        if steps == [replace.clone()] {
            return Ok(false);
        }
        if steps == [prepend, replace] {
            return Ok(true);
        }
    } else if words["type"] == "Metaspace" && words["replacement"] == SPACE && normalizer.is_null() {
        let scheme = words["prepend_scheme"].as_str().unwrap_or("always");
        if scheme == "first" {
            remarks
                .push("the tokenizer puts a space before a text; llama.cpp puts one behind special tokens too".into());
        }
        return Ok(scheme != "never");
    }
    Err(format!(
        "has the normalizer {normalizer} and the pre-tokenizer {words}; a GGUF file can say that spaces become \
         {SPACE} and whether one is put first"
    ))
}

/// Returns a pre-tokenizer without the options that only change offsets.
fn simplified(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().filter(|(key, _)| *key != "trim_offsets").map(|(key, v)| (key.clone(), simplified(v))).collect()
        }
        Value::Array(all) => all.iter().map(simplified).collect(),
        other => other.clone(),
    }
}

/// Returns the merges in their order. They are stored as pairs, or as lines in older files.
fn merges_of(json: &Value) -> Result<Vec<(String, String)>> {
    let pair = |merge: &Value| {
        let from_line = || merge.as_str()?.split_once(' ');
        let from_pair = || Some((merge.get(0)?.as_str()?, merge.get(1)?.as_str()?));
        let (a, b) = from_line().or_else(from_pair)?;
        Some((a.to_owned(), b.to_owned()))
    };
    let all = json["model"]["merges"].as_array().into_iter().flatten();
    all.map(|merge| pair(merge).with_context(|| format!("the tokenizer has the merge {merge}; expected a pair")))
        .collect()
}

/// Returns scores of pieces with which llama.cpp merges as the tokenizer does: llama.cpp merges any two neighbors whose
/// concatenation is a piece, in the order of falling score.
fn scores(tokens: &[String], merges: &[(String, String)], is_plain: impl Fn(&str) -> bool) -> Result<Vec<f32>> {
    // Number the pieces in merge order. A piece in two places of the order has no single score.
    let mut order: HashMap<String, usize> = HashMap::new();
    let mut last = String::new();
    for (a, b) in merges {
        let piece = format!("{a}{b}");
        if piece != last {
            let next = order.len();
            if order.insert(piece.clone(), next).is_some() {
                bail!("the tokenizer merges {piece:?} at two places in its order, which scores of pieces cannot say");
            }
            last = piece;
        }
    }
    // llama.cpp also merges pairs that the tokenizer does not list, so there must be none.
    let pairs: HashSet<(&str, &str)> = merges.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let known: HashSet<&str> = tokens.iter().map(String::as_str).filter(|token| is_plain(token)).collect();
    for token in tokens.iter().filter(|token| is_plain(token) && !is_byte(token)) {
        let mut cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        if let Some((a, b)) = cuts.find(|(a, b)| known.contains(a) && known.contains(b) && !pairs.contains(&(*a, *b))) {
            bail!("the tokenizer does not merge {a:?} and {b:?} into its piece {token:?}, as scores of pieces would");
        }
    }
    // The score falls with the position in the order. Pieces without a merge come last.
    let least = order.len();
    Ok(tokens.iter().map(|token| -(order.get(token).copied().unwrap_or(least) as f32)).collect())
}

/// Returns true for the piece of a byte, such as <0x0A>.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Returns the tokens that every text begins and ends with.
fn around(tokenizer: &tokenizers::Tokenizer) -> Result<(Option<u32>, Option<u32>)> {
    let ids = |special: bool| -> Result<Vec<u32>> {
        let encoding = tokenizer.encode("a", special).map_err(|error| anyhow!("tokenizer: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    };
    let (plain, whole) = (ids(false)?, ids(true)?);
    let begin = whole.windows(plain.len().max(1)).position(|part| part == plain);
    let Some(begin) = begin else { bail!("the tokenizer changes a text that its special tokens are added to") };
    match (&whole[..begin], &whole[begin + plain.len()..]) {
        (first @ ([] | [_]), last @ ([] | [_])) => Ok((first.first().copied(), last.first().copied())),
        (first, last) => {
            let (first, last) = (first.len(), last.len());
            bail!(
                "the tokenizer puts {first} tokens before a text and {last} behind it; a GGUF file can say one of each"
            )
        }
    }
}

/// Returns the special tokens by their names in tokenizer_config.json and special_tokens_map.json.
fn named_tokens(model: &Path) -> Result<BTreeMap<String, String>> {
    let mut named = BTreeMap::new();
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let path = model.join(file);
        if !path.is_file() {
            continue;
        }
        let config: Value = crate::commands::read_json(&path)?;
        let text = |token: &Value| token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned);
        let all = config.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token"));
        named.extend(all.filter_map(|(name, token)| Some((name.clone(), text(token)?))));
    }
    Ok(named)
}

/// Returns the token that ends a text according to config.json.
fn tokenizer_end(model: &Path) -> Option<u32> {
    gelora_model::Config::load(model).ok()?.eos.first().copied()
}

#[cfg(test)]
mod tests;
