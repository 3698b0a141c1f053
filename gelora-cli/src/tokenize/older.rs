//! Builds the tokenizers of model folders without tokenizer.json from older files, as transformers does.
//!
//! Source: `models/NAME/tokenization_NAME.py` of transformers 5.23, and `AutoTokenizer.from_pretrained` for the choice
//! of the class. The class of DeBERTa ignores the normalization table of its SentencePiece model, and so does this
//! module.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use gelora_lora::files::check_downloaded;
use serde_json::{Map, Value};
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NFC, Replace, Sequence as Normalizers, Strip};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::ASIDE;
use super::added::Tokens;
use super::class::Class;
use super::gguf::QWEN2;
use super::sentencepiece::{CONTROL, DEFINED, Model};

/// Returns the tokenizer of a folder, and the contents of the files that it was built from.
///
/// # Errors
/// Returns an error if the folder has none of these files, if its model type or class is not supported, or if a file is
/// damaged.
pub fn tokenizer(model: &Path) -> Result<(Tokenizer, Vec<Option<Vec<u8>>>)> {
    let missing = model.join("tokenizer.json");
    let folder = Folder { path: model.to_owned() };
    let older = || super::FILES[1..].iter().map(|files| files.join(" with "));
    if !super::FILES[1..].iter().flat_map(|files| files.iter()).any(|file| model.join(file).is_file()) {
        bail!(
            "{}: no such file, nor {}; a model folder needs its tokenizer.json (transformers writes one with \
             AutoTokenizer.from_pretrained(...).save_pretrained(...))",
            missing.display(),
            older().collect::<Vec<_>>().join(", ")
        );
    }
    let config = folder.json("config.json")?;
    let [options, special, added, ..] = ASIDE;
    let optional_files = [options, special, added];
    let [options, special, added] = [folder.json(options)?, folder.json(special)?, folder.json(added)?];
    let text = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
    let model_type = text(&config, "model_type").unwrap_or_default();
    let named = text(&options, "tokenizer_class").or_else(|| text(&config, "tokenizer_class"));
    let class = Class::of(&model_type, named.as_deref()).ok_or_else(|| {
        let named = named.as_ref().map(|name| format!(" with the class {name}")).unwrap_or_default();
        anyhow!(
            "{}: no such file; the tokenizer of the model type {model_type:?}{named} cannot be built from {}. \
             transformers writes the file with AutoTokenizer.from_pretrained(...).save_pretrained(...)",
            missing.display(),
            older().collect::<Vec<_>>().join(", ")
        )
    })?;
    let files = class.files().iter().map(|name| match folder.bytes(name)? {
        Some(bytes) => Ok(bytes),
        None => bail!("{}: no such file, nor {}", missing.display(), class.files().join(" with ")),
    });
    let files: Vec<Vec<u8>> = files.collect::<Result<_>>()?;
    let name = class.files().join(", ");
    let file_error = |problem: String| anyhow!("{}: {name}: {problem}", model.display());
    let tokenizer = build(class, &files, [&options, &special, &added]).map_err(file_error)?;
    let mut parts: Vec<Option<Vec<u8>>> = files.into_iter().map(Some).collect();
    for name in optional_files {
        parts.push(folder.bytes(name)?);
    }
    parts.push(Some(format!("{class:?}").into_bytes()));
    Ok((tokenizer, parts))
}

struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Returns the contents of a file, or None if it does not exist.
    fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        check_downloaded(&path, &bytes)?;
        Ok(Some(bytes))
    }

    /// Returns the JSON object of a file, or an empty object if the file does not exist.
    fn json(&self, name: &str) -> Result<Map<String, Value>> {
        let Some(bytes) = self.bytes(name)? else { return Ok(Map::new()) };
        let path = self.path.join(name);
        match serde_json::from_slice(&bytes).with_context(|| format!("{}: not valid JSON", path.display()))? {
            Value::Object(map) => Ok(map),
            _ => bail!("{}: expected a JSON object", path.display()),
        }
    }
}

/// Builds the tokenizer of a class.
fn build(
    class: Class,
    files: &[Vec<u8>],
    [options, special, added]: [&Map<String, Value>; 3],
) -> Result<Tokenizer, String> {
    let failed = |error: tokenizers::Error| error.to_string();
    let flag = |key: &str| options.get(key).and_then(Value::as_bool);
    // Special and added tokens, with those that a SentencePiece model marks.
    let spm = if class == Class::DebertaV2 { Some(Model::parse(&files[0])?) } else { None };
    let marked = spm.as_ref().map(|spm| {
        let marked = spm.pieces.iter().filter(|piece| [CONTROL, DEFINED].contains(&piece.kind));
        let token = |piece: &super::sentencepiece::Piece| {
            AddedToken::from(piece.text.as_str(), piece.kind == CONTROL).normalized(false)
        };
        marked.map(token).collect::<Vec<_>>()
    });
    let tokens = Tokens::read(options, special, added, &class.tokens(), marked)?;
    let prefixed = flag("add_prefix_space");
    // Normalizer, pre-tokenizer and model of the class.
    let mut tokenizer = match (class, spm) {
        (Class::Bert | Class::MpNet, _) => {
            let wordpiece = WordPiece::builder()
                .vocab(WordPiece::read_bytes(&files[0]).map_err(failed)?)
                .unk_token(tokens.get("unk_token")?)
                .build()
                .map_err(failed)?;
            let mut tokenizer = Tokenizer::new(wordpiece);
            let chinese = flag("tokenize_chinese_chars").unwrap_or(true);
            let lower = flag("do_lower_case").unwrap_or(true);
            tokenizer
                .with_normalizer(Some(BertNormalizer::new(true, chinese, flag("strip_accents"), lower)))
                .map_err(failed)?;
            tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
            tokenizer.with_decoder(Some(WordPieceDecoder::new("##".into(), true)));
            tokenizer
        }
        (_, Some(spm)) => unigram(spm, &tokens.get("unk_token")?, flag)?,
        (_, None) => {
            let bpe = BPE::builder().vocab_and_merges(vocabulary(&files[0])?, merges(&files[1])?);
            let mut tokenizer = Tokenizer::new(bpe.build().map_err(failed)?);
            let bytes = ByteLevel::new(prefixed.unwrap_or(false), true, class != Class::Qwen2);
            if class == Class::Qwen2 {
                tokenizer.with_normalizer(Some(NFC)).map_err(failed)?;
                let pattern = SplitPattern::Regex(QWEN2.into());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
                tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])));
            } else {
                tokenizer.with_pre_tokenizer(Some(bytes));
            }
            tokenizer.with_decoder(Some(ByteLevel::default()));
            tokenizer
        }
    };
    // Added tokens, in the order that determines their ids.
    tokenizer.set_encode_special_tokens(flag("split_special_tokens").unwrap_or(false));
    tokenizer.add_tokens(tokens.all()).map_err(failed)?;
    if class == Class::Qwen2 {
        tokenizer.add_tokens(tokens.plain()).map_err(failed)?;
    }
    let known = |name: &str| -> Result<(String, u32), String> {
        let text = tokens.get(name)?;
        let id = tokenizer.token_to_id(&text).ok_or_else(|| format!("{name} {text:?} is not in the vocabulary"))?;
        Ok((text, id))
    };
    // Post-processor: the special tokens around a text and around a pair.
    match class {
        Class::Bert | Class::DebertaV2 => {
            let ((cls, _), (sep, _)) = (known("cls_token")?, known("sep_token")?);
            let (single, pair) = (format!("{cls}:0 $A:0 {sep}:0"), format!("{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"));
            let processor = template(single, pair, vec![known("cls_token")?, known("sep_token")?])?;
            tokenizer.with_post_processor(Some(processor));
        }
        Class::MpNet | Class::Roberta => {
            let trim = class == Class::MpNet || flag("trim_offsets").unwrap_or(true);
            let prefixed = class == Class::Roberta && prefixed.unwrap_or(false);
            let processor = RobertaProcessing::new(known("sep_token")?, known("cls_token")?);
            tokenizer.with_post_processor(Some(processor.trim_offsets(trim).add_prefix_space(prefixed)));
        }
        Class::Gpt2 | Class::Qwen2 => {
            let requested = |key: &str, name: &str| match flag(key) {
                Some(true) if tokens.get(name).is_ok() => known(name).map(Some),
                _ => Ok(None),
            };
            let (bos, eos) = (requested("add_bos_token", "bos_token")?, requested("add_eos_token", "eos_token")?);
            let around = |text: &str, kind: usize| {
                let special = |token: &Option<(String, u32)>| token.as_ref().map(|(text, _)| format!("{text}:{kind}"));
                [special(&bos), Some(format!("{text}:{kind}")), special(&eos)].into_iter().flatten().collect::<Vec<_>>()
            };
            let (single, second) = (around("$A", 0).join(" "), around("$B", 1).join(" "));
            let pair = format!("{single} {second}");
            let mut special: Vec<(String, u32)> = bos.iter().chain(&eos).cloned().collect();
            special.dedup();
            tokenizer.with_post_processor(Some(template(single, pair, special)?));
        }
    }
    Ok(tokenizer)
}

/// Builds the tokenizer of a unigram SentencePiece model.
fn unigram(spm: Model, unknown: &str, flag: impl Fn(&str) -> Option<bool>) -> Result<Tokenizer, String> {
    let failed = |error: tokenizers::Error| error.to_string();
    let named = spm.pieces.iter().position(|piece| piece.text == unknown && piece.score == 0.0);
    let pieces = spm.pieces.into_iter().map(|piece| (piece.text, piece.score)).collect();
    let mut tokenizer =
        Tokenizer::new(Unigram::from(pieces, Some(named.unwrap_or(spm.unknown)), false).map_err(failed)?);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if flag("do_lower_case") == Some(true) {
        normalizers.push(Lowercase.into());
    }
    let spaces = ReplacePattern::Regex(r"\s{2,}|[\n\r\t]".into());
    normalizers.push(Replace::new(spaces, " ").map_err(failed)?.into());
    normalizers.push(NFC.into());
    normalizers.push(Strip::new(false, true).into());
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(failed)?;
    let mut cuts: Vec<PreTokenizerWrapper> = Vec::new();
    if flag("split_by_punct") == Some(true) {
        cuts.push(Punctuation::new(SplitDelimiterBehavior::Isolated).into());
    }
    let scheme = if flag("add_prefix_space").unwrap_or(true) { PrependScheme::Always } else { PrependScheme::First };
    cuts.push(Metaspace::new('▁', scheme, true).into());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(cuts)));
    tokenizer.with_decoder(Some(Metaspace::new('▁', scheme, true)));
    Ok(tokenizer)
}

fn template(single: String, pair: String, special: Vec<(String, u32)>) -> Result<TemplateProcessing, String> {
    let failed = |error: String| format!("special tokens cannot be put around a text: {error}");
    TemplateProcessing::builder()
        .try_single(single)
        .and_then(|builder| builder.try_pair(pair))
        .map_err(|error| failed(error.to_string()))?
        .special_tokens(special)
        .build()
        .map_err(|error| failed(error.to_string()))
}

/// Reads vocab.json: pieces and their ids.
fn vocabulary(bytes: &[u8]) -> Result<Vocab, String> {
    let json: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|e| format!("the vocabulary is no JSON object: {e}"))?;
    let entry = |(piece, id): (String, Value)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok((piece, id)),
        None => Err(format!("the piece {piece:?} has the id {id}")),
    };
    json.into_iter().map(entry).collect()
}

/// Reads merges.txt: two pieces per line, after a line with the version.
fn merges(bytes: &[u8]) -> Result<Vec<(String, String)>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the merges are not UTF-8".to_owned())?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.starts_with("#version"));
    let merge = |(line, number): (&str, usize)| match line.split_once(' ') {
        Some((a, b)) if !b.contains(' ') => Ok((a.to_owned(), b.to_owned())),
        _ => Err(format!("line {number} of the merges is {line:?}; expected two pieces")),
    };
    lines.map(merge).collect()
}

#[cfg(test)]
mod tests;
