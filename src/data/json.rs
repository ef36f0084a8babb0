//! JSON and JSONL files as rows that know their line.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// One object of a file.
pub(crate) struct Object {
    pub path: Arc<Path>,
    /// Line on which the object begins, from 1.
    pub line: usize,
    /// Element of the array, from 0, in a file that holds an array.
    element: Option<usize>,
    fields: Map<String, Value>,
}

impl Object {
    /// An error at this object, or at one of its fields.
    pub fn error(&self, field: &str, message: impl Into<String>) -> Error {
        let mut at = format!("line {}", self.line);
        if let Some(element) = self.element {
            at.push_str(&format!(" (element {element})"));
        }
        if !field.is_empty() {
            at.push_str(&format!(": field {field}"));
        }
        Error::invalid(&*self.path, at, message)
    }

    /// A field, unless it is absent or null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// A field that must be a string.
    pub fn string(&self, name: &str) -> Result<&str> {
        let value =
            self.get(name).ok_or_else(|| self.error(name, "is missing, expected a string"))?;
        value
            .as_str()
            .ok_or_else(|| self.error(name, format!("is {}, expected a string", kind(value))))
    }

    /// The field `id`: a string that is not blank, or an integer (as its digits).
    pub fn id(&self) -> Result<String> {
        self.name("id")
    }

    /// A field that names something: a string that is not blank, or an integer (as its digits).
    pub fn name(&self, field: &str) -> Result<String> {
        match self.get(field) {
            Some(Value::String(id)) if !id.trim().is_empty() => Ok(id.clone()),
            Some(Value::Number(id)) if !id.is_f64() => Ok(id.to_string()),
            Some(other) => {
                Err(self.error(field, format!("is {}, expected a name or an integer", kind(other))))
            }
            None => Err(self.error(field, "is missing, expected a name or an integer")),
        }
    }

    /// All fields, in the file's order.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }
}

/// A value in the words of an error message.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::String(text) if text.trim().is_empty() => "blank".to_owned(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    }
}

/// Remembers where each id was seen.
#[derive(Default)]
pub(crate) struct Ids(HashMap<String, usize>);

impl Ids {
    /// # Errors
    /// If the id was there before; the message names both lines.
    pub fn add(&mut self, id: &str, object: &Object) -> Result<()> {
        match self.0.insert(id.to_owned(), object.line) {
            None => Ok(()),
            Some(first) => Err(object
                .error("id", format!("{id:?} is there already, on line {first}; ids must differ"))),
        }
    }
}

/// Reads the objects of a file: a JSON array of objects if it begins with `[`, else one object a line (JSONL).
///
/// A byte order mark, CRLF line ends and blank lines are accepted.
///
/// # Errors
/// If the file cannot be read, is not UTF-8, or holds something else; the message names line and column.
pub(crate) fn read_objects(path: &Path) -> Result<Vec<Object>> {
    objects(path, &std::fs::read(path).map_err(Error::io(path))?)
}

/// As [`read_objects`], of a file whose content is known.
pub(crate) fn objects(path: &Path, bytes: &[u8]) -> Result<Vec<Object>> {
    let shared: Arc<Path> = Arc::from(path);
    let object = |piece: &Piece| {
        let fields = parse_piece(path, bytes, piece)?;
        Ok(Object { path: shared.clone(), line: piece.line, element: piece.element, fields })
    };
    pieces(path, bytes)?.iter().map(object).collect()
}

/// Where the JSON of a row lies in its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    start: usize,
    end: usize,
    /// Line on which it begins, from 1, and how many bytes of that line are before it.
    line: usize,
    before: usize,
    /// Element of the array, from 0, in a file that holds an array.
    element: Option<usize>,
}

impl Piece {
    /// Its place in words.
    pub fn place(&self) -> String {
        place(self.line, self.element)
    }
}

fn place(line: usize, element: Option<usize>) -> String {
    match element {
        Some(element) => format!("line {line} (element {element})"),
        None => format!("line {line}"),
    }
}

/// Cuts the content of a file into rows: the elements of an array if it begins with `[`, else its lines that are not blank.
/// What a row holds is checked when it is parsed.
///
/// # Errors
/// If it is not UTF-8, an array that does not end or lacks an element, and one object in place of rows.
pub(crate) fn pieces(path: &Path, bytes: &[u8]) -> Result<Vec<Piece>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = line_of(bytes, error.valid_up_to());
        Error::invalid(path, format!("line {line}"), "is not UTF-8 text")
    })?;
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    if body.trim_start().starts_with('[') {
        return array_elements(path, text, text.len() - body.len());
    }
    let mut pieces = Vec::new();
    let mut start = text.len() - body.len();
    for (line, number) in body.split_inclusive('\n').zip(1..) {
        if !line.trim().is_empty() {
            let end = start + line.trim_end().len();
            pieces.push(Piece { start, end, line: number, before: 0, element: None });
        }
        start += line.len();
    }
    refuse_document(path, bytes, body, &pieces)?;
    Ok(pieces)
}

/// Refuses a file that is one JSON object over several lines: its rows may lie in one of its fields.
fn refuse_document(path: &Path, bytes: &[u8], body: &str, pieces: &[Piece]) -> Result<()> {
    let first = pieces.first().filter(|_| pieces.len() > 1);
    let whole = |piece: &Piece| serde_json::from_slice::<Value>(&bytes[piece.start..piece.end]);
    if first.is_none_or(|piece| whole(piece).is_ok()) {
        return Ok(());
    }
    let Ok(document) = serde_json::from_str::<Map<String, Value>>(body) else { return Ok(()) };
    let rows =
        document.iter().find(|(_, value)| value.as_array().is_some_and(|rows| !rows.is_empty()));
    let inside = match rows {
        Some((name, _)) => format!(
            "; its field {name:?} is a list: save that list as a file of its own, as `jq .{name}` does"
        ),
        None => String::new(),
    };
    let message = format!(
        "is one JSON object with the fields {}; expected an array of rows, or a row (an object) a line{inside}",
        document.keys().map(|key| format!("{key:?}")).collect::<Vec<_>>().join(", ")
    );
    Err(Error::invalid(path, "", message))
}

/// The object that a piece of a file is.
///
/// # Errors
/// If it is not valid JSON or no object; the message names line and column.
pub(crate) fn parse_piece(path: &Path, bytes: &[u8], piece: &Piece) -> Result<Map<String, Value>> {
    let json = std::str::from_utf8(&bytes[piece.start..piece.end])
        .map_err(|_| Error::invalid(path, piece.place(), "is not UTF-8 text"))?;
    parse(path, piece, json)
}

/// Reads a file that holds one JSON document; fields that `T` does not have are skipped without being kept.
///
/// # Errors
/// If the file cannot be read, is not valid JSON, or does not have the shape of `T`; the message names line and column.
pub(crate) fn read_document<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    document(path, &std::fs::read(path).map_err(Error::io(path))?)
}

/// As [`read_document`], of a file whose content is known.
pub(crate) fn document<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let body = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    serde_json::from_slice(body).map_err(|error| {
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        let at = format!("line {}, column {}", error.line(), error.column());
        Error::invalid(path, at, format!("is not the expected JSON: {reason}"))
    })
}

/// The entries of a JSON object in the file's order; a key that is there twice is an error.
pub(crate) struct Entries<T>(pub Vec<(String, T)>);

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Entries<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: serde::Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object from ids to entries")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Self::Value, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(format!("id {key:?} is there twice")));
                    }
                    entries.push((key, map.next_value()?));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Visitor(std::marker::PhantomData))
    }
}

fn line_of(bytes: &[u8], at: usize) -> usize {
    bytes[..at].iter().filter(|&&byte| byte == b'\n').count() + 1
}

fn parse(path: &Path, piece: &Piece, json: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(json) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => {
            let message = format!("is {}, expected an object", kind(&other));
            Err(Error::invalid(path, piece.place(), message))
        }
        Err(error) => {
            let column = error.column() + if error.line() > 1 { 0 } else { piece.before };
            let at = place(piece.line + error.line().saturating_sub(1), piece.element);
            // serde_json ends its message with its own line and column, which count from the start of the piece.
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            let message = format!("is not valid JSON: {reason}, at column {column}");
            Err(Error::invalid(path, at, message))
        }
    }
}

/// Cuts the array that begins after `first` bytes into its elements. Finds commas and brackets outside strings.
fn array_elements(path: &Path, text: &str, first: usize) -> Result<Vec<Piece>> {
    let mut elements: Vec<Piece> = Vec::new();
    let (mut depth, mut in_string, mut escaped, mut line) = (0usize, false, false, 1);
    let mut element: Option<Piece> = None;
    let mut line_start = first;
    let mut last_comma = None;
    for (at, byte) in text.bytes().enumerate().skip(first) {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            if byte == b'\n' {
                (line, line_start) = (line + 1, at + 1);
            }
            continue;
        }
        let closes = matches!(byte, b']' | b'}');
        if depth == 1 && (closes || byte == b',') {
            match element.take() {
                Some(piece) => {
                    let end = piece.start + text[piece.start..at].trim_end().len();
                    elements.push(Piece { end, ..piece });
                }
                None if closes && elements.is_empty() => {}
                None => {
                    let line = last_comma.filter(|_| closes).unwrap_or(line);
                    let message = "has a comma without an element";
                    return Err(Error::invalid(path, format!("line {line}"), message));
                }
            }
            last_comma = (byte == b',').then_some(line);
        } else if depth == 1 && element.is_none() && !byte.is_ascii_whitespace() {
            let (before, number) = (at - line_start, Some(elements.len()));
            element = Some(Piece { start: at, end: at, line, before, element: number });
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'\n' => (line, line_start) = (line + 1, at + 1),
            _ => {}
        }
        if closes && depth == 0 {
            return match text[at + 1..].trim() {
                "" => Ok(elements),
                _ => Err(Error::invalid(
                    path,
                    format!("line {line}"),
                    "has text after the end of the array",
                )),
            };
        }
    }
    // A broken element (a missing quote or bracket) is the likely reason: let the parser name it.
    if let Some(piece) = element {
        parse(path, &piece, &text[piece.start..])?;
    }
    Err(Error::invalid(path, format!("line {line}"), "the file ends inside the array, expected ]"))
}
