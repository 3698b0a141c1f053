//! Conversations, and the template that writes them as the text that a model was tuned on.
//!
//! A template is Jinja: `chat_template.jinja` or `chat_template` in tokenizer_config.json, or `tokenizer.chat_template` in a GGUF
//! file. It is rendered as transformers' `apply_chat_template` renders it, without tools (fixtures/chat_templates.py has what was
//! compared). Templates come with models of others, so what they may take is bounded: steps, memory and the text they write.

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

/// The role of the model itself.
pub const ASSISTANT: &str = "assistant";
/// The role of who asks.
pub const USER: &str = "user";
/// The role of what is said beforehand.
pub const SYSTEM: &str = "system";

/// Steps that a template may take for one conversation (see [`Environment::set_fuel`]); some hundred are usual for a turn.
const STEPS: u64 = 5_000_000;

/// Bytes that a template may write for one conversation.
const LONGEST: usize = 16 << 20;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another that the template knows.
    pub role: String,
    pub content: String,
    /// What else is in the turn, or is missing, that no template is given here: such a conversation is not learnt.
    pub other: Option<&'static str>,
}

/// Whether the assistant answers something.
pub fn is_answered(messages: &[Message]) -> bool {
    messages.iter().skip(1).any(|message| message.role == ASSISTANT)
}

impl Message {
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: content.into(), other: None }
    }
}

/// A model's chat template, with the special tokens that it can name.
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
    /// The bytes that the assistant says, the mark that ends a turn included.
    pub answers: Vec<Range<usize>>,
}

impl Template {
    /// A template from its source. `tokens` has special tokens by their names, such as `eos_token`.
    ///
    /// # Errors
    /// If the source is no Jinja.
    pub fn new(source: &str, tokens: BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(python::print);
        environment.add_function("dict", python::dict);
        environment.add_function("raise_exception", |said: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, said))
        });
        environment.add_filter("tojson", python::to_json);
        environment.add_function("strftime_now", |format: String| python::now(&format));
        environment.set_fuel(Some(STEPS));
        environment.add_template_owned("chat", without_marks(source)).map_err(|e| anyhow!("chat template: {e}"))?;
        Ok(Self { environment, source: source.to_owned(), tokens })
    }

    /// The template of a model folder; None if it has none.
    ///
    /// # Errors
    /// If a file cannot be read or the template is no Jinja.
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
        // What tokenizer_config.json does not name stands in the file from before it.
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

    /// The template in a .gguf file; None if it has none.
    ///
    /// # Errors
    /// If the file cannot be read or the template is no Jinja.
    pub fn of_gguf(path: &Path) -> Result<Option<Self>> {
        let gguf = Gguf::open(path)?;
        let Some(source) = chat_template(&gguf) else { return Ok(None) };
        Self::new(source, special_tokens(&gguf)).with_context(|| path.display().to_string()).map(Some)
    }

    /// The template as the model has it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Everything that the text depends on beside the conversation.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let tokens = self.tokens.iter().flat_map(|(name, token)| [name, token]);
        [&self.source].into_iter().chain(tokens).map(|part| part.as_bytes())
    }

    /// What comes before the assistant's next turn.
    ///
    /// # Errors
    /// If the template refuses the conversation.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        self.render(messages, true)
    }

    /// A whole conversation. What is learnt of it is what stands between the text of the turns before an answer, as
    /// [`Template::prompt`] has it, and that with the answer. A prompt may open what the answer does not have, such as a thought
    /// (`<think>`): then the answer begins where the two texts part. Not learnt are answers to nothing, with which a conversation
    /// begins, and earlier ones that a template writes otherwise once others follow.
    ///
    /// # Errors
    /// If nobody answers, a turn is more than its text, the template refuses the conversation, or the last answer cannot be found
    /// in what it writes.
    pub fn write(&self, messages: &[Message]) -> Result<Written> {
        if let Some((i, other)) = messages.iter().enumerate().find_map(|(i, m)| Some((i, m.other?))) {
            bail!("message {} has {other}; expected a text alone", i + 1);
        }
        let of_assistant = |i: &usize| messages[*i].role == ASSISTANT;
        let Some(last) = (1..messages.len()).rfind(of_assistant) else { bail!("no message of the assistant answers") };
        let text = self.render(messages, false)?;
        let mut answers = Vec::new();
        for i in (1..=last).filter(of_assistant) {
            let (asked, said) = (self.prompt(&messages[..i])?, self.render(&messages[..=i], false)?);
            let start = match said.starts_with(&asked) {
                true => Some(asked.len()),
                false => parting(&self.render(&messages[..i], false)?, &asked, &said, &messages[i].content),
            };
            let answer = start.map(|start| start..said.trim_end().len().max(start));
            match answer.filter(|answer| text.starts_with(&said[..answer.end])) {
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
        let given = [
            ("messages", messages.iter().map(turn).collect()),
            ("add_generation_prompt", add_generation_prompt.into()),
            // As transformers gives them to a template where there are none.
            ("tools", ().into()),
            ("documents", ().into()),
        ];
        let mut text = Bounded(Vec::new());
        match template.render_captured_to(Jinja::from_pairs(tokens.chain(given)), &mut text) {
            Ok(_) => String::from_utf8(text.0).map_err(|e| anyhow!("chat template: {e}")),
            Err(e) if e.kind() == ErrorKind::OutOfFuel => {
                bail!("chat template: takes more than {STEPS} steps for a conversation; does it end?")
            }
            Err(e) if e.kind() == ErrorKind::WriteFailure => {
                bail!("chat template: writes more than {} MB for a conversation; does it end?", LONGEST >> 20)
            }
            Err(e) => bail!("chat template: {e}"),
        }
    }
}

/// Where an answer begins whose prompt `asked` is not what stands before it in `said`: where the two part, behind the turns `before`
/// and something that both have (the name of the assistant), and not inside of the answer's `content`.
fn parting(before: &str, asked: &str, said: &str, content: &str) -> Option<usize> {
    if !said.starts_with(before) || !asked.starts_with(before) {
        return None;
    }
    let alike = asked.char_indices().zip(said.chars()).take_while(|((_, a), b)| a == b);
    let common = alike.last().map_or(0, |((at, c), _)| at + c.len_utf8());
    let begins = said[before.len()..].find(content.trim()).map(|at| before.len() + at);
    (common > before.len()).then(|| begins.map_or(common, |begins| begins.min(common)))
}

/// What a template has written so far.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The template, or of several the one called default.
fn default_of(template: &Value) -> Result<Option<&str>> {
    let Value::Array(all) = template else { return Ok(template.as_str()) };
    match all.iter().find(|one| one["name"] == "default") {
        Some(one) => Ok(one["template"].as_str()),
        None => {
            let names: Vec<&str> = all.iter().filter_map(|one| one["name"].as_str()).collect();
            bail!("none of its chat templates is called default; it has {}", names.join(", "))
        }
    }
}

/// A source whose marks around what an assistant says, `{% generation %}`, which only transformers knows, are blocks that change
/// nothing.
fn without_marks(source: &str) -> String {
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
