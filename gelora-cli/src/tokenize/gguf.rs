//! Reads the tokenizer of a GGUF file.
//!
//! A "gpt2" tokenizer is byte-level BPE. The file names its word splitting without describing it. A "llama" tokenizer
//! is SentencePiece's BPE, whose merges follow from the scores of its pieces.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use gelora_model::gguf::Gguf;
use serde_json::Value;
use tokenizers::decoders::{byte_fallback, fuse, sequence, strip};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers, unicode::NFC};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
};

use super::sentencepiece::MAX_PIECE_BYTES;
use crate::{fingerprint, ui};

/// Types of tokens that are matched literally in a text: control tokens, and tokens that a user defined.
pub(super) const CONTROL: i64 = 3;
pub(super) const DEFINED: i64 = 4;

/// Patterns that split a text into words in Llama 3, Qwen 2 and Mistral Nemo, from their tokenizer.json.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
);
pub const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Returns the tokenizer of a file, and a hash of its content.
pub fn tokenizer(path: &Path) -> Result<(Tokenizer, [u32; 2])> {
    let gguf = Gguf::open(path)?;
    let file_error = |problem: String| anyhow!("{}: {problem}", path.display());
    let key = |name: &str| gguf.metadata().get(&format!("tokenizer.ggml.{name}"));
    let texts = |name: &str| -> Option<Vec<&str>> { key(name)?.as_array()?.iter().map(Value::as_str).collect() };
    let numbers = |name: &str| -> Option<Vec<f64>> { key(name)?.as_array()?.iter().map(Value::as_f64).collect() };
    let flag = |name: &str| key(name).and_then(Value::as_bool);
    let id = |name: &str| key(&format!("{name}_token_id")).and_then(Value::as_u64);
    // The vocabulary: tokens with their types.
    let tokens =
        texts("tokens").ok_or_else(|| file_error("no tokenizer.ggml.tokens; expected a tokenizer inside".into()))?;
    if let Some(token) = tokens.iter().find(|token| token.len() > MAX_PIECE_BYTES) {
        return Err(file_error(format!("has a token of {} bytes; expected {MAX_PIECE_BYTES} at most", token.len())));
    }
    let kinds: Vec<i64> = numbers("token_type").unwrap_or_default().into_iter().map(|kind| kind as i64).collect();
    let vocabulary: HashMap<String, u32> =
        tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id)).collect();
    let model = key("model").and_then(Value::as_str).unwrap_or("");
    let failed = |error: tokenizers::Error| file_error(format!("not a readable tokenizer: {error}"));
    // Whether texts begin with a special token, if the file does not say.
    let mut begins_by_default = model == "llama";
    let mut tokenizer = match model {
        "gpt2" => {
            let lines = texts("merges").ok_or_else(|| file_error("no tokenizer.ggml.merges".into()))?;
            let merges: Vec<(String, String)> = lines
                .iter()
                .filter_map(|line| line.split_once(' '))
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .collect();
            let pre = key("pre").and_then(Value::as_str).unwrap_or_else(|| {
                ui::warn(format!(
                    "{}: tokenizer.ggml.pre is missing; texts are split into words as in GPT-2, which \
                     changes the tokens if the model splits them differently. Newer converters write the key",
                    path.display()
                ));
                "default"
            });
            let pre = Pre::named(pre).ok_or_else(|| {
                let expected = "expected gpt-2, smollm, llama-bpe, qwen2 or tekken";
                file_error(format!("tokenizer.ggml.pre = {pre:?} is not supported; {expected}"))
            })?;
            let bpe = BPE::builder()
                .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges)
                .ignore_merges(pre.has_whole_words())
                .build()
                .map_err(failed)?;
            let mut tokenizer = Tokenizer::new(bpe);
            tokenizer.with_pre_tokenizer(Some(pre.words()?));
            if pre == Pre::Qwen2 {
                tokenizer.with_normalizer(Some(NFC)).map_err(failed)?;
            }
            begins_by_default = pre.has_whole_words();
            tokenizer.with_decoder(Some(ByteLevel::default()));
            tokenizer
        }
        "llama" => {
            let scores = numbers("scores").ok_or_else(|| file_error("no tokenizer.ggml.scores".into()))?;
            let merges = merges_of(&tokens, &scores, &vocabulary);
            let unknown = id("unknown").and_then(|id| tokens.get(id as usize)).map_or("<unk>", |token| *token);
            let bpe = BPE::builder()
                .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges)
                .unk_token(unknown.to_owned())
                .fuse_unk(true)
                .byte_fallback(true)
                .build()
                .map_err(failed)?;
            let mut tokenizer = Tokenizer::new(bpe);
            let spaces = Replace::new(" ", "▁").map_err(failed)?;
            let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
            let prefixed = flag("add_space_prefix").unwrap_or(true);
            if prefixed {
                normalizers.push(Prepend::new("▁".into()).into());
            }
            normalizers.push(spaces.into());
            tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(failed)?;
            let mut decoders: Vec<DecoderWrapper> = vec![
                Replace::new("▁", " ").map_err(failed)?.into(),
                byte_fallback::ByteFallback::default().into(),
                fuse::Fuse::default().into(),
            ];
            if prefixed {
                decoders.push(strip::Strip::new(' ', 1, 0).into());
            }
            tokenizer.with_decoder(Some(sequence::Sequence::new(decoders)));
            tokenizer
        }
        other => bail!("{}: tokenizer.ggml.model = {other:?} is not supported; expected gpt2 or llama", path.display()),
    };
    // Control tokens and user-defined tokens are matched literally.
    let tokens_of_type = |kind: i64, special: bool| -> Vec<AddedToken> {
        let kinds = tokens.iter().zip(&kinds).filter(|(_, k)| **k == kind);
        kinds.map(|(token, _)| AddedToken::from((*token).to_owned(), special).normalized(false)).collect()
    };
    tokenizer.add_special_tokens(tokens_of_type(CONTROL, true)).map_err(failed)?;
    tokenizer.add_tokens(tokens_of_type(DEFINED, false)).map_err(failed)?;
    // A template puts the first special token before every text.
    let begins = flag("add_bos_token").unwrap_or(begins_by_default);
    if let Some((bos, id)) = id("bos").filter(|_| begins).and_then(|id| Some((*tokens.get(id as usize)?, id as u32))) {
        let template = TemplateProcessing::builder()
            .try_single(format!("{bos} $A"))
            .and_then(|builder| builder.try_pair(format!("{bos} $A {bos} $B:1")))
            .map_err(|error| file_error(format!("the token {bos:?} cannot begin texts: {error}")))?
            .special_tokens(vec![(bos.to_owned(), id)])
            .build()
            .map_err(|error| file_error(format!("the token {bos:?} cannot begin texts: {error}")))?;
        tokenizer.with_post_processor(Some(template));
    }
    let json = tokenizer.to_string(false).map_err(failed)?;
    Ok((tokenizer, fingerprint::of([Some(json.as_bytes())])))
}

/// Returns the special tokens of a file by the names of transformers.
pub fn special_tokens(gguf: &Gguf) -> BTreeMap<String, String> {
    const NAMES: [(&str, &str); 4] = [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")];
    let token = |(stored, name): (&str, &str)| {
        let key = |key: &str| gguf.metadata().get(&format!("tokenizer.ggml.{key}"));
        let id = usize::try_from(key(&format!("{stored}_token_id"))?.as_u64()?).ok()?;
        Some((format!("{name}_token"), key("tokens")?.get(id)?.as_str()?.to_owned()))
    };
    NAMES.into_iter().filter_map(token).collect()
}

/// Returns the source of a file's chat template.
pub fn chat_template(gguf: &Gguf) -> Option<&str> {
    gguf.metadata().get("tokenizer.chat_template").and_then(Value::as_str)
}

/// Returns the tokenizer of a .gguf file as the files of a model folder: their names and contents.
///
/// # Errors
/// Returns the errors of [`tokenizer`].
pub fn as_files(path: &Path) -> Result<Vec<(&'static str, String)>> {
    let (gguf, (inner, _)) = (Gguf::open(path)?, tokenizer(path)?);
    let inner = inner.to_string(true).map_err(|error| anyhow!("{}: tokenizer: {error}", path.display()))?;
    let mut config: serde_json::Map<String, Value> =
        special_tokens(&gguf).into_iter().map(|(name, token)| (name, token.into())).collect();
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    let config = serde_json::to_string_pretty(&config)?;
    let template = chat_template(&gguf).map(|source| ("chat_template.jinja", source.to_owned()));
    Ok([("tokenizer.json", inner), ("tokenizer_config.json", config)].into_iter().chain(template).collect())
}

/// Word splitting of a byte-level tokenizer, and the settings that depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pre {
    Gpt2,
    SmolLm,
    Llama3,
    Qwen2,
    Tekken,
}

impl Pre {
    /// Returns the value for a name in `tokenizer.ggml.pre`, as defined by llama.cpp.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "default" | "gpt-2" => Pre::Gpt2,
            "smollm" => Pre::SmolLm,
            "llama-bpe" | "llama3" | "llama-v3" => Pre::Llama3,
            "qwen2" | "deepseek-r1-qwen" => Pre::Qwen2,
            "tekken" => Pre::Tekken,
            _ => return None,
        })
    }

    /// All values with the names that are written.
    pub(super) const ALL: [(Self, &'static str); 5] = [
        (Pre::Gpt2, "gpt-2"),
        (Pre::SmolLm, "smollm"),
        (Pre::Llama3, "llama-bpe"),
        (Pre::Qwen2, "qwen2"),
        (Pre::Tekken, "tekken"),
    ];

    /// Returns true if a word that is a token stays whole, whatever its merges are. Texts of these tokenizers begin
    /// with a special token.
    pub(super) fn has_whole_words(self) -> bool {
        matches!(self, Pre::Llama3 | Pre::Tekken)
    }

    /// Returns the pre-tokenizer that splits a text into words.
    pub(super) fn words(self) -> Result<PreTokenizerWrapper> {
        let split = |pattern: &str| -> Result<PreTokenizerWrapper> {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split =
                Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|e| anyhow!("tokenizer: {e}"))?;
            Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
        };
        let bytes = ByteLevel::new(false, true, true);
        match self {
            Pre::Gpt2 => Ok(bytes.into()),
            Pre::SmolLm => Ok(Sequence::new(vec![Digits::new(true).into(), bytes.into()]).into()),
            Pre::Llama3 => split(LLAMA3),
            Pre::Qwen2 => split(QWEN2),
            Pre::Tekken => split(TEKKEN),
        }
    }
}

/// Returns every pair of pieces whose concatenation is a piece, in the order of falling score.
fn merges_of(tokens: &[&str], scores: &[f64], vocabulary: &HashMap<String, u32>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = cuts.filter_map(|(a, b)| Some((*vocabulary.get(a)?, *vocabulary.get(b)?, a, b)));
        let mut pairs: Vec<_> = known.collect();
        pairs.sort_by_key(|(a, b, ..)| (*a, *b));
        all.extend(pairs.into_iter().map(|(_, _, a, b)| (*score, a.to_owned(), b.to_owned())));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0)); // the sort is stable: pieces of equal score keep their order
    all.into_iter().map(|(_, a, b)| (a, b)).collect()
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn words(pre: &str, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        Pre::named(pre).unwrap().words().unwrap().pre_tokenize(&mut cut).unwrap();
        let parts = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        parts.into_iter().map(|(_, (begin, end), _)| text[begin..end].to_owned()).collect()
    }

    #[test]
    fn texts_are_split_as_each_model_splits_them() {
        let text = "It's 12345 HelloWorld, NASA's\n\n  x=1/\n";
        for (pre, want) in [
            ("gpt-2", "It|'s| 12345| HelloWorld|,| NASA|'s|\n\n | x|=|1|/|\n"),
            ("smollm", "It|'s| |1|2|3|4|5| HelloWorld|,| NASA|'s|\n\n | x|=|1|/|\n"),
            ("llama-bpe", "It|'s| |123|45| HelloWorld|,| NASA|'s|\n\n| | x|=|1|/\n"),
            ("qwen2", "It|'s| |1|2|3|4|5| HelloWorld|,| NASA|'s|\n\n| | x|=|1|/\n"),
            ("deepseek-r1-qwen", "It|'s| |1|2|3|4|5| HelloWorld|,| NASA|'s|\n\n| | x|=|1|/\n"),
            ("tekken", "It|'s| |1|2|3|4|5| Hello|World|,| NASA|'s|\n\n| | x|=|1|/\n"),
        ] {
            assert_eq!(words(pre, text).join("|"), want, "{pre}");
        }
        assert_eq!(Pre::named("falcon"), None);
    }

    /// Returns the tokenizer of the tiny model's file after replacing bytes by as many others.
    fn changed(changes: &[(&str, &str)]) -> Tokenizer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/gguf/tiny.gguf");
        let mut bytes = std::fs::read(path).unwrap();
        for (from, to) in changes {
            let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
        let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        tokenizer(file.path()).unwrap().0
    }

    #[test]
    fn llama_3_keeps_words_whole_and_begins_texts_with_a_token() {
        // The changes add a token that no merge produces, and remove the key that says whether texts begin with a
        // special token.
        let changes =
            [("<unused0>", "unreached"), ("eos_token_id", "bos_token_id"), ("add_bos_token", "add_box_token")];
        let ids = |tokenizer: &Tokenizer| tokenizer.encode("unreached", true).unwrap().get_ids().to_vec();
        let plain = changed(&changes);
        let token = plain.token_to_id("unreached").unwrap();
        assert!(ids(&plain).len() > 5 && !ids(&plain).contains(&token));
        let llama = changed(&[&changes[..], &[("smollm", "llama3")]].concat());
        assert_eq!(ids(&llama), [0, token]);
    }
}
