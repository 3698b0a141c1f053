//! Conversations, and the template that writes them as the text that a model was tuned on.
//!
//! A template is Jinja: `chat_template.jinja` or `chat_template` in tokenizer_config.json, or `tokenizer.chat_template` in a GGUF
//! file. It is rendered as transformers' `apply_chat_template` renders it, without tools and without today's date: a template that
//! asks for `strftime_now` takes the date that it has for want of one.

use std::collections::BTreeMap;
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
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |said: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, said))
        });
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
        let text = |token: &Value| token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned);
        let all = config.as_object().into_iter().flatten();
        let tokens = all.filter(|(name, _)| name.ends_with("_token"));
        let tokens = tokens.filter_map(|(name, token)| Some((name.clone(), text(token)?))).collect();
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
    /// [`Template::prompt`] has it, and that with the answer. Not learnt are answers to nothing, with which a conversation begins,
    /// and earlier ones that a template writes otherwise once others follow.
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
            let end = said.trim_end().len().max(asked.len());
            if said.starts_with(&asked) && text.starts_with(&said[..end]) {
                answers.push(asked.len()..end);
            } else if i == last {
                bail!("chat template: what it writes before an answer changes with the answer");
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
        template.render(Jinja::from_pairs(tokens.chain(given))).map_err(|e| anyhow!("chat template: {e}"))
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
mod tests {
    use super::*;

    /// As ChatML's, over several lines.
    const LINES: &str = "{% for m in messages %}\n    {% if loop.first and m['role'] != 'system' %}\n<|s|>system\nBe kind.<|e|>\n    {% endif %}\n<|s|>{{ m['role'] }}\n{{ m['content'].strip() }}<|e|>\n{% endfor %}\n{% if add_generation_prompt %}\n<|s|>assistant\n{% endif %}";

    fn turns(all: &[(&str, &str)]) -> Vec<Message> {
        all.iter().map(|(role, content)| Message::new(role, content)).collect()
    }

    #[test]
    fn what_the_assistant_says_is_learnt() {
        let template = Template::new(
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}\n{% endfor %}\
             {% if add_generation_prompt %}[assistant]{% endif %}",
            [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        )
        .unwrap();
        let all = turns(&[("user", "one "), ("assistant", "two"), ("user", "three"), ("assistant", " four")]);
        let written = template.write(&all).unwrap();
        assert_eq!(written.text, "<s>[user]one</s>\n[assistant]two</s>\n[user]three</s>\n[assistant]four</s>\n");
        let answers: Vec<&str> = written.answers.iter().map(|at| &written.text[at.clone()]).collect();
        assert_eq!(answers, ["two</s>", "four</s>"]);
        assert_eq!(template.prompt(&all[..1]).unwrap(), "<s>[user]one</s>\n[assistant]");
    }

    #[test]
    fn blocks_are_trimmed_and_strings_have_the_methods_of_python() {
        let template = Template::new(LINES, BTreeMap::new()).unwrap();
        let said = template.prompt(&turns(&[("user", " hello ")])).unwrap();
        assert_eq!(said, "<|s|>system\nBe kind.<|e|>\n<|s|>user\nhello<|e|>\n<|s|>assistant\n");
    }

    #[test]
    fn an_earlier_answer_that_is_written_otherwise_is_not_learnt() {
        let source = "{% for m in messages %}({{ m.content }}{% if loop.last and m.role == 'assistant' %}!{% endif %})\
                      {% endfor %}{% if add_generation_prompt %}({% endif %}";
        let template = Template::new(source, BTreeMap::new()).unwrap();
        let written = template.write(&turns(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]));
        let written = written.unwrap();
        assert_eq!(
            (written.text.as_str(), written.answers.len(), &written.answers[0]),
            ("(a)(b)(c)(d!)", 1, &(10..13))
        );
    }

    #[test]
    fn a_template_that_refuses_or_is_broken_says_so() {
        let refuses = Template::new("{{ raise_exception('roles must alternate') }}", BTreeMap::new()).unwrap();
        let said = refuses.prompt(&turns(&[("user", "a")])).unwrap_err().to_string();
        assert!(said.starts_with("chat template: ") && said.contains("roles must alternate"), "{said}");
        let broken = Template::new("{% for %}", BTreeMap::new()).unwrap_err().to_string();
        assert!(broken.starts_with("chat template: "), "{broken}");
        let moves = Template::new("{{ messages | length }}{{ add_generation_prompt }}", BTreeMap::new()).unwrap();
        assert!(moves.write(&turns(&[("user", "a"), ("assistant", "b")])).is_err());
    }

    #[test]
    fn marks_of_what_is_learnt_are_no_obstacle() {
        let source = "{% for m in messages %}{%- generation -%} {{ m.content }} {% endgeneration %}{% endfor %}";
        let template = Template::new(source, BTreeMap::new()).unwrap();
        assert_eq!(template.prompt(&turns(&[("user", "a"), ("user", "b")])).unwrap(), "a b ");
    }

    #[test]
    fn turns_that_are_more_than_text_and_empty_answers() {
        let template = Template::new("{% for m in messages %}{{ m.content }}\n{% endfor %}", BTreeMap::new()).unwrap();
        let mut all = turns(&[("user", "a"), ("assistant", "")]);
        assert!(template.write(&all).unwrap().answers.is_empty());
        all[1].other = Some("tool_calls");
        let said = template.write(&all).unwrap_err().to_string();
        assert_eq!(said, "message 2 has tool_calls; expected a text alone");
        assert!(template.write(&all[..1]).is_err());
    }

    #[test]
    fn a_folder_has_it_in_either_file() {
        let folder = tempfile::tempdir().unwrap();
        let asked = turns(&[("user", "a")]);
        assert!(Template::of_folder(folder.path()).unwrap().is_none());
        let config = serde_json::json!({"eos_token": {"content": "</s>"}, "chat_template": [
            {"name": "tools", "template": "no"}, {"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}"}]});
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let written = |folder: &Path| Template::of_folder(folder).unwrap().unwrap().prompt(&asked).unwrap();
        assert_eq!(written(folder.path()), "a</s>");
        let others =
            serde_json::json!({"chat_template": [{"name": "tools", "template": ""}, {"name": "rag", "template": ""}]});
        std::fs::write(folder.path().join("tokenizer_config.json"), others.to_string()).unwrap();
        let said = format!("{:#}", Template::of_folder(folder.path()).unwrap_err());
        assert!(said.contains("tokenizer_config.json") && said.ends_with("it has tools, rag"), "{said}");
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), "{{ eos_token }}").unwrap();
        assert_eq!(written(folder.path()), "</s>");
    }
}
