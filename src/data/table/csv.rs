//! Comma-separated values with a line of names. A value that is a JSON list or object becomes one where a list is
//! expected: conversations and pictures.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use csv::{Position, Reader, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};

use super::{Content, Each, Format, Want};
use crate::data::row::Row;
use crate::{Error, Result};

/// Columns that hold lists in every other format.
const LISTS: [&str; 7] = [
    "completions",
    "conversations",
    "file_names",
    "images",
    "messages",
    "rejected_conversations",
    "flags",
];

pub(super) struct Csv {
    path: PathBuf,
    content: Content,
    separator: u8,
    names: Vec<String>,
    places: Vec<Position>,
}

impl Csv {
    pub fn open(path: &Path, content: Content, separator: u8) -> Result<Self> {
        let mut this = Self {
            path: path.to_owned(),
            content,
            separator,
            names: Vec::new(),
            places: Vec::new(),
        };
        let (mut names, mut places) = (Vec::new(), Vec::new());
        {
            let mut reader = this.reader();
            let header = reader.headers().map_err(|error| this.failed(&error))?;
            names.extend(header.iter().map(|name| name.trim().to_owned()));
            let mut record = StringRecord::new();
            loop {
                let place = reader.position().clone();
                match reader.read_record(&mut record) {
                    Ok(true) => places.push(record.position().cloned().unwrap_or(place)),
                    Ok(false) => break,
                    Err(error) => return Err(this.failed(&error)),
                }
            }
        }
        this.names = names;
        this.places = places;
        Ok(this)
    }

    fn reader(&self) -> Reader<Cursor<&[u8]>> {
        let body = self.content.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&self.content);
        ReaderBuilder::new().delimiter(self.separator).from_reader(Cursor::new(body))
    }

    fn failed(&self, error: &csv::Error) -> Error {
        let at = error.position().map(|place| format!("line {}", place.line()));
        Error::invalid(&self.path, at.unwrap_or_default(), format!("is no CSV: {error}"))
    }
}

impl Format for Csv {
    fn len(&self) -> usize {
        self.places.len()
    }

    fn read(&self, rows: &[usize], _: Want, each: Each) -> Result<()> {
        let mut reader = self.reader();
        let mut record = StringRecord::new();
        for &number in rows {
            reader.seek(self.places[number].clone()).map_err(|error| self.failed(&error))?;
            reader.read_record(&mut record).map_err(|error| self.failed(&error))?;
            let values = self.names.iter().zip(record.iter());
            let fields: Map<String, Value> =
                values.map(|(name, text)| (name.clone(), value(name, text))).collect();
            let place = format!("line {}", self.places[number].line());
            each(number, Row { place, fields, ..Row::default() })?;
        }
        Ok(())
    }
}

fn value(name: &str, text: &str) -> Value {
    let may_be_list = LISTS.contains(&name) && text.starts_with(['[', '{']);
    match (text, may_be_list.then(|| serde_json::from_str(text))) {
        ("", _) => Value::Null,
        (_, Some(Ok(list))) => list,
        _ => Value::String(text.to_owned()),
    }
}
