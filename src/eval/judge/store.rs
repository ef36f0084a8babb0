//! The file that every reply is appended to.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{Error, Result, eval::folder::append};

/// Replies by (id, run, attempt), and the file, locked for this process.
pub(super) struct Store {
    path: PathBuf,
    file: File,
    contents: HashMap<(String, u32, u32), String>,
}

impl Store {
    /// Opens or makes the file. A last row that was cut off is dropped: its reply was not counted as received. Replies of a
    /// model that was refused before and is accepted now are taken over.
    ///
    /// # Errors
    /// If another process has it, or a row is malformed.
    pub fn open(path: &Path, accepted: impl Fn(&str) -> bool) -> Result<Self> {
        let mut file = append(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = "is in use by another process, expected one at a time".to_owned();
                return Err(Error::Store { path: path.into(), message });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(path)(error)),
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(Error::io(path))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)
            .and_then(|()| file.seek(SeekFrom::End(0)))
            .map_err(Error::io(path))?;
        let mut contents = HashMap::new();
        let mut refused = Vec::new();
        for (row, line) in text[..whole].lines().zip(1..) {
            let row: Value = serde_json::from_str(row).map_err(|error| {
                Error::invalid(path, format!("line {line}"), format!("is not valid JSON: {error}"))
            })?;
            if row["kind"] == "reply" {
                let (key, content) = entry(&row).ok_or_else(|| {
                    let message = "has no id, run, attempt and content, expected all of them";
                    Error::invalid(path, format!("line {line}"), message)
                })?;
                contents.insert(key, content);
            } else if row["kind"] == "other_model" && accepted(row["model"].as_str().unwrap_or(""))
            {
                refused.push(row);
            }
        }
        let mut store = Self { path: path.to_owned(), file, contents };
        for mut row in refused {
            row["kind"] = "reply".into();
            if entry(&row).is_some_and(|(key, _)| !store.contents.contains_key(&key)) {
                store.append(row)?;
            }
        }
        Ok(store)
    }

    pub fn has(&self, id: &str, run: u32, attempt: u32) -> bool {
        self.contents.contains_key(&(id.to_owned(), run, attempt))
    }

    pub fn content(&self, id: &str, run: u32, attempt: u32) -> Option<String> {
        self.contents.get(&(id.to_owned(), run, attempt)).cloned()
    }

    /// Adds a row and makes it durable.
    pub fn append(&mut self, row: Value) -> Result<()> {
        let line = format!("{row}\n");
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(Error::io(&self.path))?;
        if row["kind"] == "reply" {
            self.contents.extend(entry(&row));
        }
        Ok(())
    }
}

fn entry(row: &Value) -> Option<((String, u32, u32), String)> {
    let number = |name: &str| row[name].as_u64().and_then(|number| u32::try_from(number).ok());
    let key = (row["id"].as_str()?.to_owned(), number("run")?, number("attempt")?);
    Some((key, row["content"].as_str()?.to_owned()))
}
