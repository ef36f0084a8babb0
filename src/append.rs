//! Files that rows are appended to while work goes on, and that survive whatever ends the process.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result, lock::try_lock};

/// A file of JSON rows, one a line, locked for this process.
///
/// A row counts once its line end is durable. What follows the last line end was cut off by a kill, a full disk or a power
/// failure, and is dropped as bytes, since a cut may go through a character. A row that could not be written whole is taken
/// back, so that no row ever follows a torn one.
#[derive(Debug)]
pub(crate) struct AppendFile {
    path: PathBuf,
    file: File,
    /// Bytes of whole rows.
    length: u64,
    /// A torn row could not be taken back.
    torn: bool,
}

impl AppendFile {
    /// Opens or makes the file and its folder, and returns its rows with their line numbers, from 1. Empty lines are skipped.
    ///
    /// # Errors
    /// If another process has the file, or a row is not JSON (the message names the line).
    pub fn open(path: &Path) -> Result<(Self, Vec<(usize, Value)>)> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)
            .map_err(Error::io(path))?;
        if !try_lock(&file, path)? {
            let message = "is in use by another process, expected one at a time; wait for it, or use another folder";
            return Err(Error::Store { path: path.into(), message: message.to_owned() });
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io(path))?;
        let whole = whole_lines(&bytes);
        let rows = whole
            .split(|&byte| byte == b'\n')
            .zip(1..)
            .filter(|(line, _)| !line.trim_ascii().is_empty())
            .map(|(line, number)| {
                let row = serde_json::from_slice(line).map_err(|error| {
                    let message = format!("is not valid JSON: {error}");
                    Error::invalid(path, format!("line {number}"), message)
                })?;
                Ok((number, row))
            })
            .collect::<Result<_>>()?;
        let length = whole.len() as u64;
        file.set_len(length).map_err(Error::io(path))?;
        Ok((Self { path: path.to_owned(), file, length, torn: false }, rows))
    }

    /// Adds a row for each value and makes them durable.
    ///
    /// # Errors
    /// If they cannot be written; the file is then as it was before.
    pub fn append<'a>(&mut self, rows: impl IntoIterator<Item = &'a Value>) -> Result<()> {
        if self.torn {
            let message = "ends in a row that could not be written whole; run the command again";
            return Err(Error::Store { path: self.path.clone(), message: message.to_owned() });
        }
        let mut text = String::new();
        for row in rows {
            text.push_str(&format!("{row}\n"));
        }
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.torn = self.file.set_len(self.length).is_err();
            return Err(Error::Io { path: self.path.clone(), source: error });
        }
        self.length += text.len() as u64;
        Ok(())
    }
}

/// All bytes up to the last line end.
pub(crate) fn whole_lines(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::AppendFile;

    /// Wherever the last row is cut, also inside a character, the rows before it are there and the next one follows them.
    #[test]
    fn a_cut_anywhere_costs_the_last_row_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x/rows.jsonl");
        let rows = [json!({"text": "caf\u{e9} \u{1f600}"}), json!({"text": "\u{fc}ber"})];
        let (mut file, found) = AppendFile::open(&path).unwrap();
        assert!(found.is_empty());
        file.append(&rows).unwrap();
        drop(file);
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|&b| b == b'\n').unwrap() + 1;
        for end in 0..=whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            let (mut file, found) = AppendFile::open(&path).unwrap();
            let kept = usize::from(end >= first) + usize::from(end == whole.len());
            assert_eq!(found.len(), kept, "cut at {end}");
            file.append(&rows[kept..]).unwrap();
            drop(file);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {end}");
        }
    }

    #[test]
    fn a_second_process_is_refused_and_a_row_in_the_middle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        // A second handle of one process is refused like one of another process.
        let (file, _) = AppendFile::open(&path).unwrap();
        let text = AppendFile::open(&path).unwrap_err().to_string();
        assert!(text.contains("is in use by another process"), "{text}");
        drop(file);
        std::fs::write(&path, b"{}\n{\"a\": \"\xc3\"}\n{}\n").unwrap();
        let text = AppendFile::open(&path).unwrap_err().to_string();
        assert!(text.contains("line 2: is not valid JSON"), "{text}");
        assert_eq!(std::fs::read(&path).unwrap().len(), 17);
    }

    /// A row that does not fit on the disk is taken back. `/dev/full` cannot be truncated either; then nothing more is written.
    #[test]
    #[cfg(target_os = "linux")]
    fn after_a_failed_write_no_row_follows_a_torn_one() {
        let mut file = AppendFile {
            path: "/dev/full".into(),
            file: std::fs::OpenOptions::new().append(true).open("/dev/full").unwrap(),
            length: 0,
            torn: false,
        };
        let row = json!({});
        assert!(file.append([&row]).unwrap_err().to_string().contains("No space left"));
        assert!(
            file.append([&row]).unwrap_err().to_string().contains("could not be written whole")
        );
    }
}
