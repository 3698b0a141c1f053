//! Converts text to token ids, as transformers does with `truncation=True` and `max_length`.
//!
//! Padding and truncation settings in tokenizer.json are ignored. Batches are padded, if at all, where they are made. A
//! pair that is too long loses tokens from its longer text first.

mod added;
mod casing;
mod class;
pub mod gguf;
mod lengths;
mod older;
mod pieces;
mod sentencepiece;
pub mod to_gguf;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use gelora_lora::files::check_downloaded;
use gelora_model::Tokens;
use gelora_model::gguf::is_gguf;
use rayon::prelude::*;
use tokenizers::{EncodeInput, Encoding, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::chat::{ASSISTANT, Message, Template, USER, Written};
use crate::contained::contained;
use crate::data::{Dataset, Example};
use crate::fingerprint;

/// Default of [`Tokenizer::with_max_length`]. Tokens beyond it are cut off.
pub const DEFAULT_MAX_LENGTH: usize = 128;

/// Files of a folder's tokenizer: tokenizer.json or, in older models, the files of the tokenizer's class.
pub const FILES: [&[&str]; 4] = [&["tokenizer.json"], &["spm.model"], &["vocab.txt"], &["vocab.json", "merges.txt"]];

/// Optional files of a tokenizer: options, names of special tokens, the chat template, and the tokens that end a
/// generation.
pub const ASIDE: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// A model's tokenizer with a length limit.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Path of its file or folder, for messages.
    path: PathBuf,
    truncate_from: TruncationDirection,
    fingerprint: [u32; 2],
    /// Token that ends a text in a language model.
    end: Option<u32>,
    /// Number of embeddings. Larger ids have no embedding.
    vocabulary: u32,
    /// Chat template, or the error of a broken template.
    template: Option<Result<Template, String>>,
}

impl Tokenizer {
    /// Opens the tokenizer.json of a model folder, the files that older models have instead, or the tokenizer of a
    /// .gguf file, with the length limit [`DEFAULT_MAX_LENGTH`].
    ///
    /// # Errors
    /// Returns an error if the files are missing or are not a tokenizer.
    pub fn open(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join("tokenizer.json");
        let path = if path.is_file() { path } else { model_dir.to_owned() };
        let (mut inner, fingerprint, truncate_from, template) = if is_gguf(model_dir) {
            let (inner, fingerprint) = contained(&path, || gguf::tokenizer(model_dir))?;
            (inner, fingerprint, TruncationDirection::Right, Template::of_gguf(model_dir))
        } else {
            let truncate_from = truncation_side(model_dir)?;
            let side = format!("{truncate_from:?}");
            let (inner, files) = if path.is_file() {
                let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
                check_downloaded(&path, &bytes)?;
                let unreadable = |problem: String| anyhow!("{}: not a readable tokenizer: {problem}", path.display());
                pieces::check(&bytes).map_err(unreadable)?;
                let (inner, casing) = contained(&path, || {
                    let read = tokenizers::Tokenizer::from_bytes(&bytes)
                        .and_then(|mut inner| casing::apply(&mut inner, model_dir).map(|casing| (inner, casing)));
                    read.map_err(|error| unreadable(error.to_string()))
                })?;
                (inner, vec![Some(bytes), Some(casing.into_bytes())])
            } else {
                contained(&path, || older::tokenizer(model_dir))?
            };
            let parts = files.iter().map(Option::as_deref).chain([Some(side.as_bytes())]);
            (inner, fingerprint::of(parts), truncate_from, Template::of_folder(model_dir))
        };
        inner.with_padding(None);
        let template = template_of(template);
        Self { inner, path, truncate_from, fingerprint, end: None, vocabulary: u32::MAX, template }
            .with_max_length(DEFAULT_MAX_LENGTH)
    }

    /// Sets the maximum number of tokens of an example, special tokens included. The caller keeps it within the model's
    /// number of positions.
    ///
    /// # Errors
    /// Returns an error if the special tokens leave no space for a token of each text of a pair.
    pub fn with_max_length(mut self, max_length: usize) -> Result<Self> {
        let added = |p: &tokenizers::PostProcessorWrapper, pair| tokenizers::PostProcessor::added_tokens(p, pair);
        let special =
            self.contained(|inner| Ok(inner.get_post_processor().map_or(0, |p| added(p, true).max(added(p, false)))))?;
        if max_length < special + 2 {
            bail!("a length of {max_length} is too short: {special} special tokens and a token of each text need more");
        }
        let truncation = TruncationParams {
            max_length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: self.truncate_from,
        };
        self.inner.with_truncation(Some(truncation)).map_err(|error| anyhow!("truncation to {max_length}: {error}"))?;
        Ok(self)
    }

    /// Runs a function of the tokenizers crate and turns its panics into errors. The crate panics on some files that it
    /// has read: on a template with an unknown token, or a broken decoder.
    fn contained<T>(&self, run: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<T>) -> Result<T> {
        contained(&self.path, || run(&self.inner).map_err(|error| anyhow!("tokenizer: {error}")))
    }

    /// Sets the token that ends a text.
    pub fn with_end(mut self, end: Option<u32>) -> Self {
        self.end = end;
        self
    }

    /// Sets the number of embeddings of the model. A text with a larger token id is an error.
    pub fn with_vocabulary(mut self, rows: usize) -> Self {
        self.vocabulary = u32::try_from(rows).unwrap_or(u32::MAX);
        self
    }

    /// Returns an error if an id has no embedding.
    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let Some(id) = ids.iter().find(|id| **id >= self.vocabulary) else { return Ok(()) };
        let token = self.inner.id_to_token(*id).unwrap_or_default();
        bail!("the token {token:?} has the id {id}, and the model {} embeddings", self.vocabulary)
    }

    /// Returns the maximum number of tokens of an example.
    pub fn max_length(&self) -> usize {
        self.inner.get_truncation().map_or(DEFAULT_MAX_LENGTH, |t| t.max_length)
    }

    /// Returns a hash of everything that tokens depend on, except the length limit. It includes the chat template.
    pub fn fingerprint(&self) -> [u32; 2] {
        match &self.template {
            Some(Ok(template)) => {
                let tokenizer = self.fingerprint.map(u32::to_le_bytes).concat();
                fingerprint::of([&tokenizer[..]].into_iter().chain(template.parts()).map(Some))
            }
            _ => self.fingerprint,
        }
    }

    /// Returns the number of token ids, added tokens included.
    #[cfg(test)]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns the number of tokens of the tokenizer's model, without added tokens.
    pub fn model_size(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// Returns the added tokens with ids of at least `first`, in the order of their ids. Special tokens are left out,
    /// because plain text does not contain them: Gemma 3 has one for images, which its language models have no
    /// embedding for.
    pub fn plain_from(&self, first: usize) -> Vec<String> {
        let added = self.inner.get_added_tokens_decoder();
        let mut plain: Vec<_> = added.iter().filter(|(id, t)| **id as usize >= first && !t.special).collect();
        plain.sort_by_key(|(id, _)| **id);
        plain.into_iter().map(|(_, token)| token.content.clone()).collect()
    }

    /// Returns the tokens of an example. The tokens of a conversation are those of the text that the chat template
    /// writes. Without a template they are those of its text.
    ///
    /// # Errors
    /// Returns an error if the tokenizer cannot encode a text (a vocabulary without an unknown token), or if the
    /// template refuses a conversation.
    pub fn encode(&self, example: &Example) -> Result<Tokens> {
        let _span = gelora_kernels::profile::span("tokenize", 0.0, 0.0);
        if let Some(written) = self.written(example)? {
            let encoding = self.contained(|inner| inner.encode(written.text.as_str(), false))?;
            return self.encoded_conversation(&encoding, &written);
        }
        let encoding = self.contained(|inner| inner.encode(input(example), true))?;
        self.encoded(&encoding, example)
    }

    /// Returns the model's chat template.
    ///
    /// # Errors
    /// Returns an error if the model has no template, or if the template is not valid Jinja.
    pub fn template(&self) -> Result<&Template> {
        match &self.template {
            Some(Ok(template)) => Ok(template),
            Some(Err(problem)) => bail!("{problem}"),
            None => bail!(
                "the model has no chat template, which conversations need; expected chat_template.jinja, or \
                 chat_template in tokenizer_config.json or in a GGUF file"
            ),
        }
    }

    /// Returns the special token with which the template ends a message of the assistant, if that end is a special
    /// token.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::template`] and [`Tokenizer::encode`].
    pub fn end_of_turn(&self) -> Result<Option<u32>> {
        let turns = [Message::new(USER, "a"), Message::new(ASSISTANT, "b")];
        let written = self.template()?.write(&turns)?;
        let encoding = self.contained(|inner| inner.encode(written.text.as_str(), false))?;
        let encoded = self.encoded_conversation(&encoding, &written)?;
        let last = encoded.targets.iter().rposition(|target| *target).map(|last| encoded.ids[last]);
        let added = self.inner.get_added_tokens_decoder();
        Ok(last.filter(|id| added.get(id).is_some_and(|token| token.special)))
    }

    /// Returns the index of the first example that cannot be encoded.
    pub fn first_bad<'e>(&self, examples: impl IntoIterator<Item = &'e Example>) -> Option<usize> {
        examples.into_iter().position(|example| self.encode(example).is_err())
    }

    /// Returns the text of a conversation in the model's chat template.
    fn written(&self, example: &Example) -> Result<Option<Written>> {
        if example.chat.is_empty() || self.template.is_none() {
            return Ok(None);
        }
        self.template()?.write(&example.chat).map(Some)
    }

    /// Returns the tokens of examples, in their order. Runs on all CPU cores.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::encode`].
    pub fn encode_all<'e>(&self, examples: impl IntoIterator<Item = &'e Example>) -> Result<Vec<Tokens>> {
        let _span = gelora_kernels::profile::span("tokenize", 0.0, 0.0);
        let examples: Vec<&Example> = examples.into_iter().collect();
        // If one row is a conversation, all rows are.
        let written = examples.par_iter().filter_map(|e| self.written(e).transpose());
        let written: Vec<Written> = written.collect::<Result<_>>()?;
        if !written.is_empty() && written.len() == examples.len() {
            let conversation = |written: &Written| {
                self.encoded_conversation(&self.contained(|inner| inner.encode(written.text.as_str(), false))?, written)
            };
            return written.par_iter().map(conversation).collect();
        }
        let encoded =
            |example: &&Example| self.encoded(&self.contained(|inner| inner.encode(input(example), true))?, example);
        examples.par_iter().map(encoded).collect()
    }

    /// Returns the tokens of an encoding. If the example has an answer, only its tokens are targets, followed by the
    /// end token if there is space.
    fn encoded(&self, encoding: &Encoding, example: &Example) -> Result<Tokens> {
        if encoding.is_empty() {
            bail!("tokenizer: a text has no tokens");
        }
        self.check_ids(encoding.get_ids())?;
        let (mut ids, mut type_ids) = (encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec());
        let Some(answer) = &example.answer else {
            let targets = vec![true; ids.len()];
            return Ok(Tokens { ids, type_ids, targets });
        };
        let prompt_length = example.text.len();
        let first = encoding.get_offsets().iter().position(|(_, end)| *end > prompt_length).unwrap_or(ids.len());
        let whole =
            encoding.get_offsets().last().is_some_and(|(_, end)| *end >= prompt_length + answer.trim_end().len());
        if let Some(end) = self.end.filter(|_| whole && ids.len() < self.max_length()) {
            ids.push(end);
            type_ids.push(0);
        }
        let targets = (0..ids.len()).map(|i| i >= first).collect();
        Ok(Tokens { ids, type_ids, targets })
    }

    /// Joins the texts and splits their tokens into blocks of the maximum length. Each text gets an end token, unless
    /// the rows are paragraphs of one text.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::encode`], and an error if there are fewer than two tokens.
    pub fn blocks(&self, dataset: &Dataset) -> Result<Vec<Tokens>> {
        let whole = self.whole()?;
        let encode = |text: &str| whole.contained(|inner| inner.encode(text, true));
        let texts = dataset.examples.iter().map(|e| e.text.as_str());
        let ids: Vec<u32> = if dataset.running {
            encode(&texts.collect::<String>())?.get_ids().to_vec()
        } else {
            let mut ids = Vec::new();
            for text in texts {
                ids.extend_from_slice(encode(text)?.get_ids());
                ids.extend(self.end);
            }
            ids
        };
        if ids.len() < 2 {
            bail!("{}: a language model needs at least two tokens", dataset.path.display());
        }
        self.check_ids(&ids).with_context(|| dataset.path.display().to_string())?;
        let block = |ids: &[u32]| {
            let (type_ids, targets) = (vec![0; ids.len()], vec![true; ids.len()]);
            Tokens { ids: ids.to_vec(), type_ids, targets }
        };
        Ok(ids.chunks(self.max_length()).filter(|ids| ids.len() > 1).map(block).collect())
    }

    /// Returns the tokens of a prompt. A prompt from a template already contains its special tokens. Other prompts get
    /// those that the tokenizer adds.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::encode`].
    pub fn prompt(&self, text: &str, by_template: bool) -> Result<Vec<u32>> {
        let ids = self.whole()?.contained(|inner| inner.encode(text, !by_template))?.get_ids().to_vec();
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// Returns the tokenizer without a length limit.
    fn whole(&self) -> Result<Self> {
        let mut whole = self.clone();
        whole.inner.with_truncation(None).map_err(|error| anyhow!("tokenizer: {error}"))?;
        Ok(whole)
    }

    /// Decodes tokens one by one. Calls `on_text` with each complete piece of text.
    pub fn stream<'t>(&'t self, mut on_text: impl FnMut(&str) + 't) -> impl FnMut(u32) + 't {
        let mut stream = self.inner.decode_stream(true);
        move |id| {
            // Tokens that cannot be decoded are errors of `decode`.
            let step = || stream.step(id).map_err(|error| anyhow!("tokenizer: {error}"));
            if let Ok(Some(piece)) = contained(&self.path, step) {
                on_text(&piece);
            }
        }
    }

    /// Decodes tokens to text.
    ///
    /// # Errors
    /// Returns an error if the tokenizer cannot decode them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.contained(|inner| inner.decode(ids, true))
    }

    /// Returns the tokens of a conversation. The answers of the assistant are the targets.
    fn encoded_conversation(&self, encoding: &Encoding, written: &Written) -> Result<Tokens> {
        if encoding.is_empty() {
            bail!("tokenizer: a conversation has no tokens");
        }
        self.check_ids(encoding.get_ids())?;
        let inside = |(begin, end): &(usize, usize)| {
            // Offsets of a token of spaces may be trimmed to an empty range. The token belongs to its position.
            written.answers.iter().any(|answer| *begin < answer.end && *end > answer.start)
        };
        let targets = encoding.get_offsets().iter().map(inside).collect();
        Ok(Tokens { ids: encoding.get_ids().to_vec(), type_ids: vec![0; encoding.len()], targets })
    }
}

/// Returns the input of the tokenizer for an example that is not a conversation.
fn input(example: &Example) -> EncodeInput<'_> {
    if let Some(answer) = &example.answer {
        return EncodeInput::Single(format!("{}{answer}", example.text).into());
    }
    match &example.pair {
        Some(pair) => EncodeInput::Dual(example.text.as_str().into(), pair.as_str().into()),
        None => EncodeInput::Single(example.text.as_str().into()),
    }
}

/// Keeps the error of a broken template until the template is needed.
fn template_of(found: Result<Option<Template>>) -> Option<Result<Template, String>> {
    found.map_err(|problem| format!("{problem:#}")).transpose()
}

/// Returns the side on which transformers truncates: the right, unless tokenizer_config.json says "left".
fn truncation_side(model_dir: &Path) -> Result<TruncationDirection> {
    let path = model_dir.join("tokenizer_config.json");
    let Ok(bytes) = std::fs::read(&path) else { return Ok(TruncationDirection::Right) };
    let config: serde_json::Value =
        serde_json::from_slice(&bytes).with_context(|| format!("{}: not valid JSON", path.display()))?;
    Ok(match config.get("truncation_side").and_then(serde_json::Value::as_str) {
        Some("left") => TruncationDirection::Left,
        _ => TruncationDirection::Right,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn tiny() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tiny-bert")
    }

    fn example(text: &str, pair: Option<&str>) -> Example {
        Example { text: text.into(), pair: pair.map(str::to_owned), ..Example::default() }
    }

    /// Rows 1 to 4 of the golden batch are the rows of tiny-bert.jsonl.
    #[test]
    fn ids_are_those_of_transformers() {
        let fixtures = tiny().join("..");
        let rows = crate::data::read(&fixtures.join("tiny-bert.jsonl"), None, &Default::default()).unwrap();
        let bytes = std::fs::read(fixtures.join("tiny-bert.golden.safetensors")).unwrap();
        let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let row = |name: &str, row: usize, len: usize| -> Vec<u32> {
            let tensor = golden.tensor(name).unwrap();
            let width = tensor.shape()[1];
            let all: Vec<u32> = tensor.data().chunks(8).map(|b| u32::from(b[0])).collect();
            all[row * width..row * width + len].to_vec()
        };
        let encoded = Tokenizer::open(&tiny()).unwrap().encode_all(&rows.examples).unwrap();
        assert_eq!(encoded.len(), 4);
        for (i, tokens) in encoded.iter().enumerate() {
            let len = tokens.ids.len();
            assert_eq!(tokens.ids, row("input_ids", i + 1, len), "row {i}");
            assert_eq!(tokens.type_ids, row("token_type_ids", i + 1, len), "row {i}");
            assert_eq!(row("attention_mask", i + 1, 19).iter().sum::<u32>() as usize, len, "row {i}");
        }
    }

    #[test]
    fn the_longer_text_is_cut_first() {
        let whole = Tokenizer::open(&tiny()).unwrap();
        let example = example("good good good good", Some("film film film film film film"));
        let (good, film) = (whole.inner.token_to_id("good").unwrap(), whole.inner.token_to_id("film").unwrap());
        let (cls, sep) = (2, 3);
        let encode = |length| whole.clone().with_max_length(length).unwrap().encode(&example).unwrap();
        let tokens = encode(10);
        assert_eq!(tokens.ids, [cls, good, good, good, sep, film, film, film, film, sep]);
        assert_eq!(tokens.type_ids, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
        assert_eq!(encode(5).ids, [cls, good, sep, film, sep]);
        assert_eq!(encode(13).ids.len(), 13);
        assert_eq!(encode(100), whole.encode(&example).unwrap());
    }

    #[test]
    fn stored_padding_and_truncation_are_overridden() {
        let folder = tempfile::tempdir().unwrap();
        let mut stored: serde_json::Value =
            serde_json::from_slice(&std::fs::read(tiny().join("tokenizer.json")).unwrap()).unwrap();
        stored["truncation"] =
            serde_json::json!({"direction": "Left", "max_length": 4, "strategy": "OnlyFirst", "stride": 1});
        stored["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right",
            "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"});
        std::fs::write(folder.path().join("tokenizer.json"), stored.to_string()).unwrap();
        let example = example("a dull plot", Some("the film is not good"));
        let expected = Tokenizer::open(&tiny()).unwrap().encode(&example).unwrap();
        assert_eq!(Tokenizer::open(folder.path()).unwrap().encode(&example).unwrap(), expected);
    }

    #[test]
    fn truncation_side_is_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(tiny().join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"truncation_side":"left"}"#).unwrap();
        let left = Tokenizer::open(folder.path()).unwrap().with_max_length(5).unwrap();
        let good = left.inner.token_to_id("good").unwrap();
        assert_eq!(left.encode(&example("film film film film good", None)).unwrap().ids[3], good);
        std::fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
        assert!(Tokenizer::open(folder.path()).is_err());
    }

    #[test]
    fn missing_broken_and_too_short_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let message = Tokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json: no such file"), "{message}");
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let message = Tokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json: not a readable tokenizer"), "{message}");
        let tokenizer = Tokenizer::open(&tiny()).unwrap();
        assert_eq!(tokenizer.vocab_size(), 69);
        let message = tokenizer.with_max_length(4).unwrap_err().to_string();
        assert!(message.starts_with("a length of 4 is too short: 3 special tokens"), "{message}");
    }
}
