//! Preference sources: an image, a prompt and a preferred response a sample.
//!
//! # Rows
//! A file is a JSON array of rows or has one row a line (JSONL); fields not named here are ignored.
//! - LLaVA: `{"id", "image": path | [paths] | absent, "conversations": [{"from": "human" | "gpt" | "system", "value"}]}`.
//!   An optional system turn, then human and gpt in turn; a human turn at the very end is dropped.
//! - simple: `{"id", "image"?, "prompt", "chosen" | "reference"}`.
//!
//! # Images
//! Paths are relative to the image folder and must stay inside it, also through links. Each `<image>` in a human turn is one
//! image, in order; their number must be that of the paths. A simple row without any gets one a path, in front. The only
//! `<image>` of a turn is moved to its start, with a line break behind it, as LLaVA's training does `[C]`.
//!
//! # References
//! Taken byte for byte. Blank ones are errors, since there is nothing to guide by.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::{Ids, Object, kind, read_objects};
use crate::models::IMAGE;
use crate::models::{Role, Turn};
use crate::{Error, Result};

/// Which answers of a conversation become references.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnChoice {
    /// The last one; the turns before it are context.
    #[default]
    Last,
    /// The first one; what follows is dropped.
    First,
    /// Each one is a sample of its own, with `#1`, `#2`, ... after the id.
    Each,
}

/// How to read a data set.
#[derive(Clone, Debug, Default)]
pub struct DatasetOptions {
    /// Folder of the images; the data file's folder if not given.
    pub image_folder: Option<PathBuf>,
    /// Which answers to take.
    pub turn: TurnChoice,
}

/// An image, a prompt and its preferred response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Position in the data set, from 0. Part of the random draws, so it stays the same in a shard.
    pub index: u32,
    /// Name; differs from those of all other samples.
    pub id: String,
    /// Image files, in the order of their `<image>`; inside the image folder.
    pub images: Vec<PathBuf>,
    /// The conversation up to the question, which is last.
    pub turns: Vec<Turn>,
    /// The preferred response, y+; not blank.
    pub reference: String,
    /// Line of its row in the file, from 1.
    pub line: usize,
}

impl Sample {
    /// Role and text of each turn, as they enter a candidate's key.
    pub fn key_turns(&self) -> Vec<(&str, &str)> {
        self.turns.iter().map(|turn| (role_name(turn.role), turn.text.as_str())).collect()
    }
}

/// The samples of a file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// Its samples, in order; `samples[i].index == i`.
    pub samples: Vec<Sample>,
}

impl Dataset {
    /// Reads a file: see the module docs. Every image file must exist; none is decoded.
    ///
    /// # Errors
    /// On the first row that does not hold; the message names file, line and field. No rows at all are an error, too.
    pub fn open(path: &Path, options: &DatasetOptions) -> Result<Self> {
        let folder = image_folder(path, options.image_folder.as_deref())?;
        let mut ids = Ids::default();
        let mut samples: Vec<Sample> = Vec::new();
        for object in read_objects(path)? {
            for mut sample in samples_of(&object, &folder, options.turn)? {
                ids.add(&sample.id, &object)?;
                sample.index = u32::try_from(samples.len()).map_err(|_| {
                    object.error("", "is past the 2^32 samples that can be numbered")
                })?;
                samples.push(sample);
            }
        }
        if samples.is_empty() {
            return Err(Error::invalid(path, "", "has no rows, expected at least one"));
        }
        Ok(Self { path: path.to_owned(), samples })
    }

    /// Checks that every sample can be run under this rho: without an image there is nothing to mask, so only rho = 1 (no
    /// image) means anything.
    ///
    /// # Errors
    /// On the first sample without an image, if rho is below 1.
    pub fn validate_for(&self, rho: f64) -> Result<()> {
        match self.samples.iter().find(|sample| sample.images.is_empty()) {
            Some(sample) if rho < 1.0 => Err(Error::invalid(
                &self.path,
                format!("line {}", sample.line),
                format!(
                    "sample {:?} has no image, which is allowed with rho = 1 only; rho is {rho}",
                    sample.id
                ),
            )),
            _ => Ok(()),
        }
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "human",
        Role::Assistant => "gpt",
    }
}

/// The samples of one row; their index is still 0.
fn samples_of(object: &Object, folder: &Path, choice: TurnChoice) -> Result<Vec<Sample>> {
    let id = object.id()?;
    let images = images_of(object, folder)?;
    let turns = if object.get("conversations").is_some() {
        conversation(object)?
    } else {
        simple(object, images.len())?
    };
    let placeholders: usize = turns.iter().map(|turn| turn.text.matches(IMAGE).count()).sum();
    if placeholders != images.len() {
        let message =
            format!("{} paths, but the human turns hold {placeholders} {IMAGE}", images.len());
        return Err(object.error("image", message));
    }
    let answers: Vec<usize> =
        (0..turns.len()).filter(|&i| turns[i].role == Role::Assistant).collect();
    let chosen = match choice {
        TurnChoice::First => &answers[..1],
        TurnChoice::Last => &answers[answers.len() - 1..],
        TurnChoice::Each => &answers[..],
    };
    let sample = |(&answer, number): (&usize, usize)| {
        let context = turns[..answer].to_vec();
        let seen: usize = context.iter().map(|turn| turn.text.matches(IMAGE).count()).sum();
        Sample {
            index: 0,
            id: if choice == TurnChoice::Each { format!("{id}#{number}") } else { id.clone() },
            images: images[..seen].to_vec(),
            turns: context,
            reference: turns[answer].text.clone(),
            line: object.line,
        }
    };
    Ok(chosen.iter().zip(1..).map(sample).collect())
}

fn conversation(object: &Object) -> Result<Vec<Turn>> {
    let field = "conversations";
    let list = object.get(field).and_then(Value::as_array);
    let list = list.ok_or_else(|| object.error(field, "is no list, expected a list of turns"))?;
    let mut turns: Vec<Turn> = Vec::with_capacity(list.len());
    for (n, entry) in list.iter().enumerate() {
        let field = |name: &str| format!("conversations[{n}].{name}");
        let string = |name: &str| {
            let value = entry.get(name).unwrap_or(&Value::Null);
            value.as_str().ok_or_else(|| {
                object.error(&field(name), format!("is {}, expected a string", kind(value)))
            })
        };
        let role = match string("from")? {
            "human" | "user" => Role::User,
            "gpt" | "assistant" => Role::Assistant,
            "system" => Role::System,
            other => {
                return Err(object.error(
                    &field("from"),
                    format!("is {other:?}, expected human, gpt or system"),
                ));
            }
        };
        let expected = match turns.last().map(|turn| turn.role) {
            None => role != Role::Assistant,
            Some(Role::System | Role::Assistant) => role == Role::User,
            Some(Role::User) => role == Role::Assistant,
        };
        if !expected {
            let message =
                format!("is {:?} out of turn, expected human and gpt in turn", role_name(role));
            return Err(object.error(&field("from"), message));
        }
        turns.push(turn(object, &field("value"), role, string("value")?)?);
    }
    if turns.last().is_some_and(|turn| turn.role == Role::User) {
        turns.pop();
    }
    if !turns.iter().any(|turn| turn.role == Role::Assistant) {
        return Err(
            object.error(field, "has no gpt turn, expected at least one: it is the reference")
        );
    }
    Ok(turns)
}

fn simple(object: &Object, images: usize) -> Result<Vec<Turn>> {
    let prompt = object.string("prompt")?;
    let prompt = match prompt.contains(IMAGE) {
        true => prompt.to_owned(),
        false => format!("{}{prompt}", format!("{IMAGE}\n").repeat(images)),
    };
    let name = match (object.get("chosen"), object.get("reference")) {
        (Some(_), Some(_)) => {
            return Err(object.error("chosen", "and field reference are both there, expected one"));
        }
        (None, None) => {
            return Err(
                object.error("chosen", "is missing, expected it (or reference) to be a string")
            );
        }
        (Some(_), None) => "chosen",
        (None, Some(_)) => "reference",
    };
    Ok(vec![
        turn(object, "prompt", Role::User, &prompt)?,
        turn(object, name, Role::Assistant, object.string(name)?)?,
    ])
}

fn turn(object: &Object, field: &str, role: Role, text: &str) -> Result<Turn> {
    if text.trim().is_empty() && role != Role::System {
        return Err(object.error(field, "is blank, expected text"));
    }
    let text = match (role, text.matches(IMAGE).count()) {
        (_, 0) => text.to_owned(),
        (Role::User, 1) => format!("{IMAGE}\n{}", text.replace(IMAGE, "").trim()),
        (Role::User, _) => text.to_owned(),
        _ => return Err(object.error(field, format!("holds {IMAGE}, which only a human turn may"))),
    };
    Ok(Turn { role, text })
}

fn images_of(object: &Object, folder: &Path) -> Result<Vec<PathBuf>> {
    let names: Vec<&Value> = match object.get("image") {
        None => Vec::new(),
        Some(Value::Array(names)) => names.iter().collect(),
        Some(name) => vec![name],
    };
    names.into_iter().map(|name| image_path(object, "image", folder, name)).collect()
}

/// The real folder that a data file's image paths are relative to: the one given, else the file's own.
pub(crate) fn image_folder(file: &Path, given: Option<&Path>) -> Result<PathBuf> {
    let own = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = given.or(own).unwrap_or(Path::new("."));
    folder.canonicalize().map_err(Error::io(folder))
}

/// The file of an image that a field names, if it lies inside the folder.
pub(crate) fn image_path(
    object: &Object,
    field: &str,
    folder: &Path,
    name: &Value,
) -> Result<PathBuf> {
    let text = name.as_str().filter(|text| !text.trim().is_empty());
    let text =
        text.ok_or_else(|| object.error(field, format!("is {}, expected a path", kind(name))))?;
    let inside = Path::new(text)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside {
        let message =
            format!("{text:?} is absolute or has .., expected a path inside {}", folder.display());
        return Err(object.error(field, message));
    }
    let path = folder.join(text);
    let real = path
        .canonicalize()
        .map_err(|error| object.error(field, format!("{}: {error}", path.display())))?;
    if !real.starts_with(folder) {
        let message = format!("{text:?} leads to {}, outside {}", real.display(), folder.display());
        return Err(object.error(field, message));
    }
    if !real.is_file() {
        return Err(object.error(field, format!("{} is not a file", real.display())));
    }
    Ok(real)
}
