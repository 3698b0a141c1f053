//! Cells that hold a conversation: a turn is `{"role": .., "content": ..}`, or `{"from": .., "value": ..}` as in
//! ShareGPT.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::table::Cell;
use crate::chat::{ASSISTANT, Message, SYSTEM, USER};

/// Contents of a turn besides its text that a template would write, or that change what is learned.
const OTHER: [&str; 8] = [
    "tool_calls",
    "function_call",
    "reasoning_content",
    "thinking",
    "weight of 0, which excludes it from training",
    "images",
    "audio",
    "no text as content",
];
const WEIGHT: usize = 4;
const NO_TEXT: usize = 7;

/// Roles that templates receive unchanged.
const ROLES: [&str; 8] = [USER, ASSISTANT, SYSTEM, "developer", "tool", "function", "ipython", "environment"];

/// Other names of the user and the assistant in datasets.
const USERS: [&str; 2] = ["human", "prompter"];
const ASSISTANTS: [&str; 8] = ["gpt", "chatgpt", "bing", "bard", "claude", "bot", "model", "ai"];

/// Reads the turns of a cell. Adds unused keys of a turn to `ignored`.
pub fn messages(
    cell: Cell,
    column: &str,
    ignored: &mut BTreeSet<String>,
    place: &dyn Fn() -> String,
) -> Result<Vec<Message>> {
    let Cell::Nested(Value::Array(turns)) = cell else {
        bail!("{}: \"{column}\" is not a list of messages, as it is in other rows", place());
    };
    let message = |(i, turn): (usize, &Value)| {
        let non_empty = |key: &str| turn.get(key).filter(|value| !is_nothing(value));
        let either = |a: &str, b: &str| turn.get(a).filter(|v| !v.is_null()).or_else(|| turn.get(b));
        let Some(role) = either("role", "from").and_then(Value::as_str) else {
            bail!(
                "{}: message {} in \"{column}\" is not like {{\"role\": \"user\", \"content\": \"...\"}}",
                place(),
                i + 1
            );
        };
        let Some(role) = role_of(role) else {
            bail!(
                "{}: message {} in \"{column}\" has the role \"{role}\"; expected {}",
                place(),
                i + 1,
                [&ROLES[..], &USERS, &ASSISTANTS].concat().join(", ")
            );
        };
        let content_text = either("content", "value").and_then(content);
        let is_other = |i: &usize| match *i {
            WEIGHT => non_empty("weight").is_some_and(|weight| weight.as_f64() == Some(0.0)),
            NO_TEXT => content_text.is_none(),
            i => non_empty(OTHER[i]).is_some(),
        };
        let other = (0..OTHER.len()).find(is_other).map(|i| OTHER[i]);
        for (key, value) in turn.as_object().into_iter().flatten() {
            let is_used = matches!(key.as_str(), "role" | "from" | "content" | "value" | "weight");
            if !is_used && !OTHER.contains(&key.as_str()) && !is_nothing(value) && !ignored.contains(key) {
                ignored.insert(key.clone());
            }
        }
        Ok(Message { role: role.into(), content: content_text.unwrap_or_default(), other })
    };
    turns.iter().enumerate().map(message).collect()
}

/// Returns the conversation with the system message of a separate column.
///
/// # Errors
/// Returns an error if the conversation begins with a different system message.
pub fn with_system(
    mut messages: Vec<Message>,
    system: Option<String>,
    column: &str,
    place: &dyn Fn() -> String,
) -> Result<Vec<Message>> {
    let Some(system) = system.filter(|text| !text.trim().is_empty()) else { return Ok(messages) };
    match messages.first() {
        Some(first) if first.role == SYSTEM && first.content != system => {
            bail!("{}: \"{column}\" and the first message are two different system messages", place())
        }
        Some(first) if first.role == SYSTEM => {}
        _ => messages.insert(0, Message::new(SYSTEM, &system)),
    }
    Ok(messages)
}

/// Returns the last message of the user.
pub fn last_of_user(messages: &[Message], column: &str, place: &dyn Fn() -> String) -> Result<String> {
    let of_user = messages.iter().rev().find(|message| message.role == USER && !message.content.is_empty());
    let content = of_user.map(|message| message.content.clone());
    content.ok_or_else(|| {
        anyhow!(
            "{}: \"{column}\" has no message of the user like {{\"role\": \"user\", \"content\": \"...\"}}",
            place()
        )
    })
}

/// Returns a text, or the joined texts of a list of parts.
fn content(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect(),
        _ => None,
    }
}

/// Returns true for null and empty values, which fill a column that only other rows use.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Returns the standard name of a role.
fn role_of(name: &str) -> Option<&str> {
    let is = |known: &&&str| known.eq_ignore_ascii_case(name);
    if USERS.iter().any(|known| is(&known)) {
        return Some(USER);
    }
    if ASSISTANTS.iter().any(|known| is(&known)) {
        return Some(ASSISTANT);
    }
    ROLES.iter().find(is).copied()
}
