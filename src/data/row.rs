//! A row of a data file, whatever the file's format, and why a row may be of no use.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json::kind;
use crate::{Error, Result};

/// The only key of an object that stands for bytes: its value is their place in [`Row::blobs`]. No column of a file has
/// this name.
const BLOB: &str = "\0bytes";

/// One row, its columns as JSON values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// Where it is in its file: `line 3`, `line 9 (element 2)`, `row 5`.
    pub place: String,
    /// Columns by name.
    pub fields: Map<String, Value>,
    /// Values that are bytes; [`Row::bytes`] finds them.
    pub blobs: Vec<Arc<[u8]>>,
}

impl Row {
    /// A column, unless it is absent or null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Keeps bytes, and returns the value that stands for them.
    pub fn hold(blobs: &mut Vec<Arc<[u8]>>, bytes: &[u8]) -> Value {
        blobs.push(bytes.into());
        serde_json::json!({ BLOB: blobs.len() - 1 })
    }

    /// The bytes that a value stands for.
    pub fn bytes(&self, value: &Value) -> Option<&Arc<[u8]>> {
        self.blobs.get(usize::try_from(value.get(BLOB)?.as_u64()?).ok()?)
    }

    /// A column that must be text.
    pub fn text(&self, name: &str) -> Result<&str, Bad> {
        let value = self.get(name).unwrap_or(&Value::Null);
        match value {
            Value::Null => Err(Bad::malformed(name, "is missing, expected a string")),
            Value::String(text) => Ok(text),
            other => Err(Bad::malformed(name, format!("is {}, expected a string", kind(other)))),
        }
    }
}

/// Why a row cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It has no picture, and there is nothing to mask or to train on.
    NoPicture,
    /// The file of a picture is not there.
    MissingPicture,
    /// A picture cannot be decoded.
    BrokenPicture,
    /// A picture lies outside of the picture folder.
    PictureOutside,
    /// It has another number of pictures than of `<image>`.
    PictureCount,
    /// A question or an answer is blank.
    Blank,
    /// Turns do not follow one another as human and assistant.
    TurnOrder,
    /// The model has fewer positions than it needs.
    TooLong,
    /// The rejected answer is the chosen one.
    NothingToPrefer,
    /// A column is missing or has an unexpected type.
    Malformed,
}

impl Reason {
    /// What is wrong, in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::NoPicture => "no picture",
            Self::MissingPicture => "missing picture",
            Self::BrokenPicture => "broken picture",
            Self::PictureOutside => "picture outside the folder",
            Self::PictureCount => "pictures and <image> differ in number",
            Self::Blank => "blank question or answer",
            Self::TurnOrder => "turns out of order",
            Self::TooLong => "too long for the model",
            Self::NothingToPrefer => "rejected equals chosen",
            Self::Malformed => "malformed",
        }
    }

    /// Its name in files: `no_picture`.
    pub fn name(self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        value.as_str().unwrap_or_default().to_owned()
    }
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    pub reason: Reason,
    /// The column; empty if it is the row as a whole.
    pub field: String,
    pub message: String,
}

impl Bad {
    pub fn new(reason: Reason, field: &str, message: impl Into<String>) -> Self {
        Self { reason, field: field.to_owned(), message: message.into() }
    }

    pub fn malformed(field: &str, message: impl Into<String>) -> Self {
        Self::new(Reason::Malformed, field, message)
    }

    /// The row's place, and the column if it is one.
    pub fn at(&self, place: &str) -> String {
        match self.field.as_str() {
            "" => place.to_owned(),
            field => format!("{place}: field {field}"),
        }
    }
}

/// A row that is left out, as a line of `skipped.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its number over all files, from 1.
    pub row: usize,
    /// Its file.
    pub file: PathBuf,
    /// Its place in the file, and the column.
    pub at: String,
    /// Its id.
    pub id: String,
    /// What is wrong, by kind.
    pub reason: Reason,
    /// The value seen and what was expected.
    pub message: String,
}

impl Skipped {
    /// The rows of each reason.
    pub fn counts(all: &[Self]) -> std::collections::BTreeMap<String, u64> {
        let mut counts = std::collections::BTreeMap::new();
        for one in all {
            *counts.entry(one.reason.name()).or_default() += 1;
        }
        counts
    }

    /// The error of a data set with such rows: every kind with its count and first example, and what to do.
    pub(crate) fn refuse(all: &[Self], rows: usize, advice: &str) -> Error {
        let Some(first) = all.first() else { return Error::invalid("", "", "has no bad rows") };
        let mut message = first.message.clone();
        if all.len() > 1 {
            message.push_str(&format!("\n{} of {rows} rows cannot be used:", all.len()));
            let mut kinds: Vec<Reason> = all.iter().map(|one| one.reason).collect();
            kinds.sort_unstable();
            kinds.dedup();
            for kind in kinds {
                let mut own = all.iter().filter(|one| one.reason == kind);
                let count = own.clone().count();
                let words = kind.words();
                if let Some(one) = own.next() {
                    let at = format!("{}: {}: {}", one.file.display(), one.at, one.message);
                    message.push_str(&format!("\n  {count} x {words}, first {at}"));
                }
            }
        }
        message.push_str(&format!("\n{advice}"));
        Error::invalid(&first.file, &first.at, message)
    }
}
