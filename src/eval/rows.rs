//! Prediction and reply files: rows, or one object from ids to entries.

use std::path::Path;

use serde_json::Value;

use crate::{
    Error, Result,
    data::json::{Entries, Object, document, objects},
};

/// What a file holds.
pub(super) enum Rows {
    /// A JSON array of objects, or one object a line.
    Objects(Vec<Object>),
    /// One object: entries by id.
    Entries(Vec<(String, Value)>),
}

/// Reads a file of either kind. `fields` are those that a row has at least one of; they tell a single row from a
/// single-line object of entries.
///
/// # Errors
/// If the file cannot be read or is not JSON; the message names the line.
pub(super) fn read(path: &Path, fields: &[&str]) -> Result<Rows> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    if is_document(&bytes, fields) {
        return Ok(Rows::Entries(document::<Entries<Value>>(path, &bytes)?.0));
    }
    Ok(Rows::Objects(objects(path, &bytes)?))
}

/// Whether a file's content is one object of entries rather than rows.
fn is_document(bytes: &[u8], fields: &[&str]) -> bool {
    // What is not UTF-8 is refused, with its line, by whatever reads it.
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let body = text.trim_start_matches('\u{feff}').trim();
    if !body.starts_with('{') {
        return false;
    }
    let first = body.lines().next().unwrap_or_default();
    match serde_json::from_str::<Value>(first) {
        Ok(Value::Object(row)) => {
            first.len() == body.len() && !fields.iter().any(|field| row.contains_key(*field))
        }
        // A row that is cut off is reported as one; a brace alone begins a pretty-printed document.
        _ => !first.trim_end().ends_with('}') && body.ends_with('}') && first.trim() == "{",
    }
}
