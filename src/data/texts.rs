//! Texts with ids: what is scored and embedded outside a run.

use std::path::Path;

use super::json::{Ids, read_objects};
use crate::Result;

/// One text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextRow {
    /// Its name; differs from those of all other rows.
    pub id: String,
    /// The text, exactly; may be empty.
    pub text: String,
    /// Line in the file, from 1.
    pub line: usize,
}

/// Reads rows `{"id": ..., "text": ...}`, as JSONL or a JSON array; other fields are ignored.
///
/// # Errors
/// If the file cannot be read, a row is malformed, or two rows share an id; the message names the lines.
pub fn read_texts(path: &Path) -> Result<Vec<TextRow>> {
    let mut ids = Ids::default();
    read_objects(path)?
        .into_iter()
        .map(|object| {
            let id = object.id()?;
            ids.add(&id, &object)?;
            Ok(TextRow { id, text: object.string("text")?.to_owned(), line: object.line })
        })
        .collect()
}
