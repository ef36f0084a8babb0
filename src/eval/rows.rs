//! Prediction and reply files: rows, or one object from ids to entries.

use std::path::Path;

use serde_json::Value;

use crate::{
    Error, Result,
    data::json::{Entries, Object, read_document, read_objects},
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
    if is_document(path, fields)? {
        return Ok(Rows::Entries(read_document::<Entries<Value>>(path)?.0));
    }
    Ok(Rows::Objects(read_objects(path)?))
}

/// Whether the file is one object of entries rather than rows.
fn is_document(path: &Path, fields: &[&str]) -> Result<bool> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let text = String::from_utf8_lossy(&bytes);
    let body = text.trim_start_matches('\u{feff}').trim();
    if !body.starts_with('{') {
        return Ok(false);
    }
    let first = body.lines().next().unwrap_or_default();
    Ok(match serde_json::from_str::<Value>(first) {
        Ok(Value::Object(row)) => {
            first.len() == body.len() && !fields.iter().any(|field| row.contains_key(*field))
        }
        // A row that is cut off is reported as one; a brace alone begins a pretty-printed document.
        _ => !first.trim_end().ends_with('}') && body.ends_with('}') && first.trim() == "{",
    })
}
