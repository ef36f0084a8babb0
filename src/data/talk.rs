//! Turns, prompts and answers out of a row's columns.

use serde_json::Value;

use super::json::kind;
use super::row::{Bad, Reason, Row};
use super::templates;
use crate::models::{IMAGE, Role, Turn};

/// What a row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Talk {
    /// The conversation; its last turn is an answer.
    pub turns: Vec<Turn>,
    /// The row's own rejected answer to the last question.
    pub rejected: Option<String>,
    /// Name of the chat template that the prompt was put into, and out of which it was taken.
    pub template: Option<&'static str>,
}

impl Talk {
    /// A prompt and its answers.
    pub fn new(mut prompt: Vec<Turn>, chosen: String, rejected: Option<String>) -> Self {
        prompt.push(Turn { role: Role::Assistant, text: chosen });
        Self { turns: prompt, rejected, template: None }
    }

    /// A prompt and one or two columns of answers. Where the prompt is a text that a chat template has been put around, the
    /// question is taken out of it.
    pub fn of(row: &Row, prompt: &str, chosen: &str, rejected: Option<&str>) -> Result<Self, Bad> {
        let bare = row.get(prompt).and_then(Value::as_str).and_then(templates::bare);
        if let Some(bare) = bare {
            let bare = bare.map_err(|message| Bad::malformed(prompt, message))?;
            let own = |name: &str| answer(row, name, &[]).map(|text| bare.answer(&text));
            let rejected = rejected.map(own).transpose()?;
            let talk = Self::new(bare.turns.clone(), own(chosen)?, rejected);
            return Ok(Self { template: Some(bare.name), ..talk });
        }
        let prompt = prompt_turns(row, prompt)?;
        let rejected = rejected.map(|name| answer(row, name, &prompt)).transpose()?;
        let text = answer(row, chosen, &prompt)?;
        if text.trim().is_empty() {
            return Err(Bad::new(Reason::Blank, chosen, "is blank, expected text"));
        }
        Ok(Self::new(prompt, text, rejected))
    }

    /// A conversation with the answers in it. A human's turn at its end is dropped.
    pub fn conversation(row: &Row, name: &str) -> Result<Self, Bad> {
        let mut turns = messages(row, name)?;
        if turns.last().is_some_and(|turn| turn.role == Role::User) {
            turns.pop();
        }
        if !turns.iter().any(|turn| turn.role == Role::Assistant) {
            let message = "has no gpt turn, expected at least one: it is the reference";
            return Err(Bad::new(Reason::TurnOrder, name, message));
        }
        Ok(Self { turns, rejected: None, template: None })
    }

    /// As [`conversation`](Self::conversation), with the rejected answer in another column: a text or a conversation.
    pub fn with_rejected(row: &Row, name: &str, rejected: &str) -> Result<Self, Bad> {
        let talk = Self::conversation(row, name)?;
        let rejected = match row.get(rejected) {
            None => None,
            Some(Value::Array(_)) => {
                Self::conversation(row, rejected)?.turns.pop().map(|turn| turn.text)
            }
            Some(_) => Some(row.text(rejected)?.to_owned()),
        };
        Ok(Self { rejected, ..talk })
    }

    /// Whole conversations under `chosen` and `rejected`, which share their prompt.
    pub fn implicit(row: &Row, chosen: &str, rejected: &str) -> Result<Self, Bad> {
        let mut turns = Self::conversation(row, chosen)?.turns;
        let mut other = Self::conversation(row, rejected)?.turns;
        let (good, bad) = (turns.pop(), other.pop());
        if turns.is_empty() || turns != other {
            let message = "does not begin as chosen does, expected the same prompt in both";
            return Err(Bad::malformed(rejected, message));
        }
        let text = |turn: Option<Turn>| turn.map(|turn| turn.text).unwrap_or_default();
        Ok(Self::new(turns, text(good), Some(text(bad))))
    }

    /// Puts an `<image>` for each picture in front of the first question, if the row has none at all.
    ///
    /// # Errors
    /// If there is another number of pictures than of `<image>`.
    pub fn place(&mut self, pictures: usize, field: &str) -> Result<(), Bad> {
        let count = |turns: &[Turn]| -> usize {
            turns.iter().map(|turn| turn.text.matches(IMAGE).count()).sum()
        };
        let mut found = count(&self.turns);
        if found == 0
            && pictures > 0
            && let Some(first) = self.turns.iter_mut().find(|turn| turn.role == Role::User)
        {
            first.text = format!("{}{}", format!("{IMAGE}\n").repeat(pictures), first.text);
            if pictures == 1 {
                first.text = in_front(&first.text);
            }
            found = pictures;
        }
        if found != pictures {
            let message = format!("{pictures} paths, but the human turns hold {found} {IMAGE}");
            return Err(Bad::new(Reason::PictureCount, field, message));
        }
        Ok(())
    }
}

/// The only picture of a turn at its start, with a line break behind it, as LLaVA's training does `[C]`.
fn in_front(text: &str) -> String {
    format!("{IMAGE}\n{}", text.replace(IMAGE, "").trim())
}

/// A prompt: a text or messages. Its last turn is the question.
pub(crate) fn prompt_turns(row: &Row, name: &str) -> Result<Vec<Turn>, Bad> {
    let turns = match row.get(name) {
        Some(Value::Array(_)) => messages(row, name)?,
        Some(Value::String(text)) => vec![turn(name, Role::User, text)?],
        other => {
            let value = other.unwrap_or(&Value::Null);
            let message = match value {
                Value::Null => "is missing, expected a text or messages".to_owned(),
                value => format!("is {}, expected a text or messages", kind(value)),
            };
            return Err(Bad::malformed(name, message));
        }
    };
    match turns.last() {
        Some(Turn { role: Role::User, .. }) => Ok(turns),
        _ => Err(Bad::new(Reason::TurnOrder, name, "does not end with a user's turn")),
    }
}

/// An answer: a text, a message, or messages of which the last is the answer and those before it, if any, are the prompt.
pub(crate) fn answer(row: &Row, name: &str, prompt: &[Turn]) -> Result<String, Bad> {
    let text = match row.get(name) {
        Some(Value::Object(_)) => message(name, row.get(name).unwrap_or(&Value::Null))?.1,
        Some(Value::Array(list)) => {
            let Some((last, before)) = list.split_last() else {
                return Err(Bad::malformed(name, "is an empty list, expected an answer"));
            };
            let (role, text) = message(&format!("{name}[{}]", before.len()), last)?;
            if role != Role::Assistant {
                return Err(Bad::new(
                    Reason::TurnOrder,
                    name,
                    "does not end with an assistant's turn",
                ));
            }
            if !before.is_empty() {
                let before = before.iter().enumerate().map(|(n, one)| {
                    let field = format!("{name}[{n}]");
                    message(&field, one).and_then(|(role, text)| turn(&field, role, &text))
                });
                if before.collect::<Result<Vec<_>, _>>()? != prompt {
                    let message = "has messages before the answer that are not the prompt's";
                    return Err(Bad::new(Reason::TurnOrder, name, message));
                }
            }
            text
        }
        _ => row.text(name)?.to_owned(),
    };
    if text.contains(IMAGE) {
        return Err(Bad::malformed(name, format!("holds {IMAGE}, which only a human turn may")));
    }
    Ok(text)
}

/// A list of messages, in the order that a conversation has.
pub(crate) fn messages(row: &Row, name: &str) -> Result<Vec<Turn>, Bad> {
    let list = row.get(name).and_then(Value::as_array);
    let list = list.ok_or_else(|| Bad::malformed(name, "is no list, expected a list of turns"))?;
    let mut turns: Vec<Turn> = Vec::with_capacity(list.len());
    for (n, entry) in list.iter().enumerate() {
        let field = format!("{name}[{n}]");
        let (role, text) = message(&field, entry)?;
        let expected = match turns.last().map(|turn| turn.role) {
            None => role != Role::Assistant,
            Some(Role::System | Role::Assistant) => role == Role::User,
            Some(Role::User) => role == Role::Assistant,
        };
        if !expected {
            let role = role_name(role);
            let message = format!("is {role:?} out of turn, expected human and gpt in turn");
            let key = if entry.get("from").is_some() { "from" } else { "role" };
            return Err(Bad::new(Reason::TurnOrder, &format!("{field}.{key}"), message));
        }
        let key = if entry.get("from").is_some() { "value" } else { "content" };
        turns.push(turn(&format!("{field}.{key}"), role, &text)?);
    }
    Ok(turns)
}

/// One message: `{"from", "value"}` or `{"role", "content"}`, whose content is a text or a list of parts.
fn message(field: &str, entry: &Value) -> Result<(Role, String), Bad> {
    let (role, text) = match entry.get("from") {
        Some(_) => ("from", "value"),
        None => ("role", "content"),
    };
    let named = |name: &str| format!("{field}.{name}");
    let value = entry.get(role).unwrap_or(&Value::Null);
    let who = value.as_str().ok_or_else(|| {
        Bad::malformed(&named(role), format!("is {}, expected a string", kind(value)))
    })?;
    let who = match who {
        "human" | "user" => Role::User,
        "gpt" | "assistant" => Role::Assistant,
        "system" => Role::System,
        other => {
            let expected = match role {
                "from" => "human, gpt or system",
                _ => "system, user or assistant",
            };
            let message = format!("is {other:?}, expected {expected}");
            return Err(Bad::malformed(&named(role), message));
        }
    };
    let value = entry.get(text).unwrap_or(&Value::Null);
    Ok((who, content(&named(text), value)?))
}

/// A text, or parts of type `text` and `image`, of which the latter become `<image>`.
fn content(field: &str, content: &Value) -> Result<String, Bad> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => {
            return Err(Bad::malformed(field, format!("is {}, expected a string", kind(other))));
        }
    };
    let mut text = String::new();
    for part in parts {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("image" | "image_url"), _) => text.push_str(IMAGE),
            (Some("text"), Some(words)) => text.push_str(words),
            (other, _) => {
                let message = format!("has a part of type {other:?}, expected text or image");
                return Err(Bad::malformed(field, message));
            }
        }
    }
    Ok(text)
}

/// A turn in the form that prompts have.
fn turn(field: &str, role: Role, text: &str) -> Result<Turn, Bad> {
    if text.trim().is_empty() && role != Role::System {
        return Err(Bad::new(Reason::Blank, field, "is blank, expected text"));
    }
    let text = match (role, text.matches(IMAGE).count()) {
        (_, 0) => text.to_owned(),
        (Role::User, 1) => in_front(text),
        (Role::User, _) => text.to_owned(),
        _ => {
            let message = format!("holds {IMAGE}, which only a human turn may");
            return Err(Bad::malformed(field, message));
        }
    };
    Ok(Turn { role, text })
}

pub(crate) fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "human",
        Role::Assistant => "gpt",
    }
}
