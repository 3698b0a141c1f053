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
        let said = turn.get("content").or_else(|| turn.get("value")).and_then(content);
        match (turn.get("role").or_else(|| turn.get("from")).and_then(Value::as_str), said) {
            (Some(role), Some(content)) => Ok(Message { role: role_of(role).into(), content }),
            _ => bail!(
                "{}: message {} in \"{column}\" is not like {{\"role\": \"user\", \"content\": \"...\"}}",
                at(),
                i + 1
            ),
        }
    };
    turns.iter().enumerate().map(message).collect()
}

/// What the user said last.
pub fn last_of_user(messages: &[Message], column: &str, at: &dyn Fn() -> String) -> Result<String> {
    let of_user = messages.iter().rev().find(|message| message.role == USER);
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
