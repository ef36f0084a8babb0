//! Preference pairs from files: rows of TRL's columns `images`, `prompt`, `chosen`, `rejected`, as our exports and others'
//! write them.
//!
//! `prompt`, `chosen` and `rejected` are texts, or lists of messages `{"role", "content"}` whose content is a text or a list of
//! `{"type": "text", "text"}` and `{"type": "image"}`. `images` is a list of paths (or `image` one path), relative to the image
//! folder. A column `flags` is read if it is there.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::json::{Object, kind, read_objects};
use crate::data::{image_folder, image_path};
use crate::models::IMAGE;
use crate::models::{Role, Turn};
use crate::sampling::Flag;
use crate::{Error, Result};

/// A chosen and a rejected answer to one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Line of its row, from 1.
    pub line: usize,
    /// The field `id`, or the line.
    pub id: String,
    /// Image files, in the order of their placeholders.
    pub images: Vec<PathBuf>,
    /// The conversation up to the question.
    pub turns: Vec<Turn>,
    /// y+.
    pub chosen: String,
    /// y-.
    pub rejected: String,
    /// Flags of the rejected answer, of those that we know.
    pub flags: Vec<Flag>,
}

impl Pair {
    /// Whether a flag says that the rejected answer teaches nothing.
    pub fn is_flagged(&self) -> bool {
        self.flags.iter().any(|flag| Flag::UNUSABLE.contains(flag))
    }
}

/// Reads all pairs of a JSON or JSONL file. `images` is the image folder, the file's own by default.
///
/// # Errors
/// On the first row that does not hold; the message names file, line and field: no image, a chosen answer that equals the
/// rejected one without a flag that says so, an unknown role, images that are not as many as their placeholders.
pub fn read_pairs(path: &Path, images: Option<&Path>) -> Result<Vec<Pair>> {
    let folder = image_folder(path, images)?;
    let pairs: Vec<Pair> =
        read_objects(path)?.iter().map(|row| pair(row, &folder)).collect::<Result<_>>()?;
    if pairs.is_empty() {
        return Err(Error::invalid(path, "", "has no rows, expected pairs"));
    }
    Ok(pairs)
}

fn pair(row: &Object, folder: &Path) -> Result<Pair> {
    let images = match (row.get("images"), row.get("image")) {
        (Some(Value::Array(names)), None) => names.iter().collect(),
        (None, Some(name)) => vec![name],
        (Some(other), None) => {
            return Err(row.error("images", format!("is {}, expected a list", kind(other))));
        }
        (None, None) => Vec::new(),
        (Some(_), Some(_)) => {
            return Err(row.error("image", "and field images are both there, expected one"));
        }
    };
    if images.is_empty() {
        return Err(row.error("images", "holds no image, expected at least one"));
    }
    let images = images
        .into_iter()
        .map(|name| image_path(row, "images", folder, name))
        .collect::<Result<Vec<_>>>()?;
    let flags = row.get("flags").and_then(Value::as_array).map(|flags| {
        flags.iter().filter_map(|flag| serde_json::from_value(flag.clone()).ok()).collect()
    });
    let pair = Pair {
        line: row.line,
        id: if row.get("id").is_some() { row.id()? } else { row.line.to_string() },
        turns: prompt(row, images.len())?,
        images,
        chosen: answer(row, "chosen")?,
        rejected: answer(row, "rejected")?,
        flags: flags.unwrap_or_default(),
    };
    if pair.chosen.trim().is_empty() {
        return Err(row.error("chosen", "is blank, expected an answer"));
    }
    if pair.chosen == pair.rejected && !pair.is_flagged() {
        return Err(row.error("rejected", "equals chosen: there is nothing to prefer"));
    }
    Ok(pair)
}

/// The prompt's turns, with a placeholder for each image.
fn prompt(row: &Object, images: usize) -> Result<Vec<Turn>> {
    let mut turns = match row.get("prompt") {
        Some(Value::String(text)) => vec![Turn { role: Role::User, text: text.clone() }],
        Some(Value::Array(messages)) => {
            let all = messages.iter().enumerate();
            all.map(|(n, message)| turn(row, &format!("prompt[{n}]"), message))
                .collect::<Result<_>>()?
        }
        other => {
            let message =
                format!("is {}, expected a text or messages", kind(other.unwrap_or(&Value::Null)));
            return Err(row.error("prompt", message));
        }
    };
    if turns.last().is_none_or(|turn| turn.role != Role::User) {
        return Err(row.error("prompt", "does not end with a user's turn"));
    }
    let count = |turns: &[Turn]| turns.iter().map(|turn| turn.text.matches(IMAGE).count()).sum();
    let mut found: usize = count(&turns);
    if found == 0
        && let Some(first) = turns.iter_mut().find(|turn| turn.role == Role::User)
    {
        first.text = format!("{}{}", format!("{IMAGE}\n").repeat(images), first.text);
        found = images;
    }
    if found != images {
        return Err(
            row.error("images", format!("has {images} paths, but the prompt holds {found} images"))
        );
    }
    Ok(turns)
}

fn turn(row: &Object, field: &str, message: &Value) -> Result<Turn> {
    let role = match message.get("role").and_then(Value::as_str) {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system") => Role::System,
        other => {
            let message = format!("is {other:?}, expected system, user or assistant");
            return Err(row.error(&format!("{field}.role"), message));
        }
    };
    let text = content(row, &format!("{field}.content"), message.get("content"))?;
    // The form that prompts have in sampling: a turn's only image first, a line break behind it.
    let text = match text.matches(IMAGE).count() {
        1 if role == Role::User => format!("{IMAGE}\n{}", text.replace(IMAGE, "").trim()),
        _ => text,
    };
    Ok(Turn { role, text })
}

fn content(row: &Object, field: &str, content: Option<&Value>) -> Result<String> {
    let parts = match content {
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(Value::Array(parts)) => parts,
        other => {
            let message =
                format!("is {}, expected a text or parts", kind(other.unwrap_or(&Value::Null)));
            return Err(row.error(field, message));
        }
    };
    let mut text = String::new();
    for part in parts {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("image"), _) => text.push_str(IMAGE),
            (Some("text"), Some(words)) => text.push_str(words),
            (other, _) => {
                let message = format!("has a part of type {other:?}, expected text or image");
                return Err(row.error(field, message));
            }
        }
    }
    Ok(text)
}

/// An answer: a text, or the one assistant's message.
fn answer(row: &Object, field: &str) -> Result<String> {
    let text = match row.get(field) {
        Some(Value::Array(messages)) => match messages.as_slice() {
            [message] if message.get("role").and_then(Value::as_str) == Some("assistant") => {
                content(row, &format!("{field}[0].content"), message.get("content"))?
            }
            _ => return Err(row.error(field, "is not one message of the assistant")),
        },
        _ => row.string(field)?.to_owned(),
    };
    if text.contains(IMAGE) {
        return Err(row.error(field, format!("holds {IMAGE}, which only a prompt may")));
    }
    Ok(text)
}
