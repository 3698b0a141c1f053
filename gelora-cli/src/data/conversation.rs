//! Cells that hold a conversation: `{"role": .., "content": ..}` a turn, or `{"from": .., "value": ..}` as ShareGPT has them.

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::table::Cell;
use crate::chat::{ASSISTANT, Message, USER};

/// The turns.
pub fn messages(cell: Cell, column: &str, at: &dyn Fn() -> String) -> Result<Vec<Message>> {
    let Cell::Nested(Value::Array(turns)) = cell else {
        bail!("{}: \"{column}\" is not a list of messages, as it is in other rows", at());
    };
    let message = |(i, turn): (usize, &Value)| {
        let there = |key: &str| turn.get(key).filter(|value| !value.is_null());
        let either = |a: &str, b: &str| there(a).or_else(|| there(b));
        let Some(role) = either("role", "from").and_then(Value::as_str) else {
            bail!(
                "{}: message {} in \"{column}\" is not like {{\"role\": \"user\", \"content\": \"...\"}}",
                at(),
                i + 1
            );
        };
        let said = either("content", "value").and_then(content);
        let other =
            OTHER.into_iter().find(|key| there(key).is_some()).or(said.is_none().then_some("no text as content"));
        Ok(Message { role: role_of(role).into(), content: said.unwrap_or_default(), other })
    };
    turns.iter().enumerate().map(message).collect()
}

/// What a turn may hold beside its text that a template would write.
const OTHER: [&str; 4] = ["tool_calls", "function_call", "reasoning_content", "thinking"];

/// What the user said last.
pub fn last_of_user(messages: &[Message], column: &str, at: &dyn Fn() -> String) -> Result<String> {
    let of_user = messages.iter().rev().find(|message| message.role == USER && !message.content.is_empty());
    let content = of_user.map(|message| message.content.clone());
    content.ok_or_else(|| {
        anyhow!("{}: \"{column}\" has no message of the user like {{\"role\": \"user\", \"content\": \"...\"}}", at())
    })
}

/// A text, or the texts in a list of parts.
fn content(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect(),
        _ => None,
    }
}

/// ShareGPT's names of roles are those of others.
fn role_of(name: &str) -> &str {
    match name {
        "human" => USER,
        "gpt" => ASSISTANT,
        other => other,
    }
}
