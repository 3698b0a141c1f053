//! Conversations, and the chat templates that format them as text.
//!
//! A template is Jinja: `chat_template.jinja`, `chat_template` in tokenizer_config.json, or `tokenizer.chat_template`
//! in a GGUF file. It is rendered like transformers' `apply_chat_template` without tools (fixtures/chat_templates.py
//! has the compared cases). Templates come from unknown authors, so their steps, their memory and the length of their
//! text are bounded.

mod python;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use gelora_model::gguf::Gguf;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value as Jinja};
use serde_json::Value;

use crate::tokenize::gguf::{chat_template, special_tokens};

/// Role of the model.
pub const ASSISTANT: &str = "assistant";
/// Role of the user.
pub const USER: &str = "user";
/// Role of the system message.
pub const SYSTEM: &str = "system";

/// Maximum number of steps of a template for one conversation (see [`Environment::set_fuel`]). A turn usually takes
/// some hundred steps.
const MAX_STEPS: u64 = 5_000_000;

/// Maximum number of bytes that a template may write for one conversation.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another role that the template supports.
    pub role: String,
    pub content: String,
    /// Set if the turn has content that no template receives, such as tool calls, or lacks text. Such conversations are
    /// not used for training.
    pub other: Option<&'static str>,
}

/// Returns true if the assistant answers a message.
pub fn is_answered(messages: &[Message]) -> bool {
    messages.iter().skip(1).any(|message| message.role == ASSISTANT)
}

impl Message {
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: content.into(), other: None }
    }
}

/// A model's chat template, with the special tokens that it may name.
#[derive(Clone, Debug)]
pub struct Template {
    environment: Environment<'static>,
    source: String,
    tokens: BTreeMap<String, String>,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub text: String,
    /// Byte ranges of the assistant's messages, including the marker that ends a turn.
    pub answers: Vec<Range<usize>>,
}

impl Template {
    /// Compiles a template. `tokens` has special tokens by their names, such as `eos_token`.
    ///
    /// # Errors
    /// Returns an error if the source is not valid Jinja.
    pub fn new(source: &str, tokens: BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(python::print);
        environment.add_function("dict", python::dict);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", python::to_json);
        environment.add_function("strftime_now", |format: String| python::now(&format));
        environment.set_fuel(Some(MAX_STEPS));
        environment
            .add_template_owned("chat", without_generation_tags(source))
            .map_err(|e| anyhow!("chat template: {e}"))?;
        Ok(Self { environment, source: source.to_owned(), tokens })
    }

    /// Returns the template of a model folder, or None if it has none.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or if the template is not valid Jinja.
    pub fn of_folder(folder: &Path) -> Result<Option<Self>> {
        let (file, path) = (folder.join("chat_template.jinja"), folder.join("tokenizer_config.json"));
        let read = |path: &Path| -> Result<Option<String>> {
            let text = path.is_file().then(|| std::fs::read_to_string(path));
            text.transpose().with_context(|| path.display().to_string())
        };
        let config: Value = match read(&path)? {
            Some(text) => serde_json::from_str(&text).with_context(|| path.display().to_string())?,
            None => Value::Null,
        };
        let (place, source) = match read(&file)? {
            Some(source) => (file, Some(source)),
            None => {
                let source = default_of(&config["chat_template"]).with_context(|| path.display().to_string())?;
                (path, source.map(str::to_owned))
            }
        };
        // special_tokens_map.json is the older file. It has the tokens that tokenizer_config.json does not name.
        let older = folder.join("special_tokens_map.json");
        let older: Value = match read(&older)? {
            Some(text) => serde_json::from_str(&text).with_context(|| older.display().to_string())?,
            None => Value::Null,
        };
        let text = |token: &Value| token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned);
        let named = |file: &Value| -> Vec<(String, Value)> {
            let all = file.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token"));
            all.map(|(name, token)| (name.clone(), token.clone())).collect()
        };
        let tokens: BTreeMap<String, Value> = named(&older).into_iter().chain(named(&config)).collect();
        let tokens = tokens.into_iter().filter_map(|(name, token)| Some((name, text(&token)?))).collect();
        let template = source.map(|source| Self::new(&source, tokens)).transpose();
        template.with_context(|| place.display().to_string())
    }

    /// Returns the template in a .gguf file, or None if it has none.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or if the template is not valid Jinja.
    pub fn of_gguf(path: &Path) -> Result<Option<Self>> {
        let gguf = Gguf::open(path)?;
        let Some(source) = chat_template(&gguf) else { return Ok(None) };
        Self::new(source, special_tokens(&gguf)).with_context(|| path.display().to_string()).map(Some)
    }

    /// Returns the source of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns the strings that the text depends on besides the conversation.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let tokens = self.tokens.iter().flat_map(|(name, token)| [name, token]);
        [&self.source].into_iter().chain(tokens).map(|part| part.as_bytes())
    }

    /// Returns the text up to the assistant's next message.
    ///
    /// # Errors
    /// Returns an error if the template refuses the conversation.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        self.render(messages, true)
    }

    /// Formats a whole conversation and finds the answers to train on. An answer is the difference between the text of
    /// the turns before it, as [`Template::prompt`] writes it, and the text that includes it. A prompt may open a
    /// section that the answer lacks, such as a thought (`<think>`); then the answer begins where the two texts
    /// diverge. Answers at the start of a conversation are not used for training, nor earlier answers that a template
    /// writes differently once other turns follow.
    ///
    /// # Errors
    /// Returns an error if there is no answer, if a turn has more content than text, if the template refuses the
    /// conversation, or if the last answer cannot be found in the text.
    pub fn write(&self, messages: &[Message]) -> Result<Written> {
        if let Some((i, other)) = messages.iter().enumerate().find_map(|(i, m)| Some((i, m.other?))) {
            bail!("message {} has {other}; expected a text alone", i + 1);
        }
        let is_assistant = |i: &usize| messages[*i].role == ASSISTANT;
        let Some(last) = (1..messages.len()).rfind(is_assistant) else { bail!("no message of the assistant answers") };
        let text = self.render(messages, false)?;
        let mut answers = Vec::new();
        for i in (1..=last).filter(is_assistant) {
            let (prompt, answered) = (self.prompt(&messages[..i])?, self.render(&messages[..=i], false)?);
            let start = match answered.starts_with(&prompt) {
                true => Some(prompt.len()),
                false => divergence(&self.render(&messages[..i], false)?, &prompt, &answered, &messages[i].content),
            };
            let answer = start.map(|start| start..answered.trim_end().len().max(start));
            match answer.filter(|answer| text.starts_with(&answered[..answer.end])) {
                Some(answer) => answers.push(answer),
                None if i == last => bail!("chat template: what it writes before an answer changes with the answer"),
                None => {}
            }
        }
        answers.retain(|answer| !answer.is_empty());
        Ok(Written { text, answers })
    }

    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template("chat").map_err(|e| anyhow!("chat template: {e}"))?;
        let turn = |m: &Message| Jinja::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let tokens = self.tokens.iter().map(|(name, token)| (name.as_str(), Jinja::from(token.as_str())));
        let variables = [
            ("messages", messages.iter().map(turn).collect()),
            ("add_generation_prompt", add_generation_prompt.into()),
            // transformers passes these to a template as None if there are none.
            ("tools", ().into()),
            ("documents", ().into()),
        ];
        let mut text = Bounded(Vec::new());
        match template.render_captured_to(Jinja::from_pairs(tokens.chain(variables)), &mut text) {
            Ok(_) => String::from_utf8(text.0).map_err(|e| anyhow!("chat template: {e}")),
            Err(e) if e.kind() == ErrorKind::OutOfFuel => {
                bail!("chat template: takes more than {MAX_STEPS} steps for a conversation; does it end?")
            }
            Err(e) if e.kind() == ErrorKind::WriteFailure => {
                bail!("chat template: writes more than {} MB for a conversation; does it end?", MAX_TEXT_BYTES >> 20)
            }
            Err(e) => bail!("chat template: {e}"),
        }
    }
}

/// Returns the start of an answer in `answered`, if the text before the answer differs from its prompt. It is the
/// position where the two texts diverge. They must first share the turns `before` and some text after them (the name of
/// the assistant). The position is never inside the answer's `content`.
fn divergence(before: &str, prompt: &str, answered: &str, content: &str) -> Option<usize> {
    if !answered.starts_with(before) || !prompt.starts_with(before) {
        return None;
    }
    let common_chars = prompt.char_indices().zip(answered.chars()).take_while(|((_, a), b)| a == b);
    let common = common_chars.last().map_or(0, |((at, c), _)| at + c.len_utf8());
    let content_start = answered[before.len()..].find(content.trim()).map(|position| before.len() + position);
    (common > before.len()).then(|| content_start.map_or(common, |content_start| content_start.min(common)))
}

/// Output of a template, with a maximum length.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the template, or among several the one named default.
fn default_of(template: &Value) -> Result<Option<&str>> {
    let Value::Array(all) = template else { return Ok(template.as_str()) };
    match all.iter().find(|entry| entry["name"] == "default") {
        Some(entry) => Ok(entry["template"].as_str()),
        None => {
            let names: Vec<&str> = all.iter().filter_map(|entry| entry["name"].as_str()).collect();
            bail!("none of its chat templates is called default; it has {}", names.join(", "))
        }
    }
}

/// Replaces the tags around an assistant's message, `{% generation %}`, by blocks without effect. Only transformers
/// supports these tags.
fn without_generation_tags(source: &str) -> String {
    let mut parts = source.split("{%");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (tag, rest) = part.split_at(part.find("%}").unwrap_or(part.len()));
        let tag = match tag.trim_matches(|c: char| c.is_whitespace() || "-+".contains(c)) {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        };
        out.extend(["{%", tag.as_str(), rest]);
    }
    out
}

#[cfg(test)]
mod tests;
