//! The file that every reply is appended to.

use std::{collections::HashMap, path::Path};

use serde_json::Value;

use super::graded;
use crate::{Error, Result, append::AppendFile};

/// What rules read of the replies by (id, run, attempt), and the file, locked for this process.
pub(super) struct Store {
    file: AppendFile,
    contents: HashMap<(String, u32, u32), String>,
}

impl Store {
    /// Opens or makes the file. A last row that was cut off is dropped: its reply was not counted as received. Replies of a
    /// model that was refused before and is accepted now are taken over.
    ///
    /// # Errors
    /// If another process has it, or a row is malformed.
    pub fn open(path: &Path, accepted: impl Fn(&str) -> bool) -> Result<Self> {
        let (file, rows) = AppendFile::open(path)?;
        let mut contents = HashMap::new();
        let mut refused = Vec::new();
        for (line, row) in rows {
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
        let mut store = Self { file, contents };
        for mut row in refused {
            row["kind"] = "reply".into();
            if entry(&row).is_some_and(|(key, _)| !store.contents.contains_key(&key)) {
                store.append(&row)?;
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
    pub fn append(&mut self, row: &Value) -> Result<()> {
        self.file.append([row])?;
        if row["kind"] == "reply" {
            self.contents.extend(entry(row));
        }
        Ok(())
    }
}

fn entry(row: &Value) -> Option<((String, u32, u32), String)> {
    let number = |name: &str| row[name].as_u64().and_then(|number| u32::try_from(number).ok());
    let key = (row["id"].as_str()?.to_owned(), number("run")?, number("attempt")?);
    Some((key, graded(row["content"].as_str()?).to_owned()))
}
