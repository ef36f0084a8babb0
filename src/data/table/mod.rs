//! Files of rows: a file a format. Rows are read by their numbers, in order, and only those that are asked for.

mod csv;
mod files;
mod ipc;
mod json;
mod parquet;
mod values;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

pub(crate) use files::{Found, find};

use super::row::Row;
use crate::{Error, Result};

/// What is read of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Everything.
    All,
    /// No bytes of pictures.
    Texts,
}

/// A call for each row: its number from 0, and what it holds.
pub(crate) type Each<'a> = &'a mut dyn FnMut(usize, Row) -> Result<()>;

/// A format.
trait Format: Send + Sync {
    /// How many rows there are.
    fn len(&self) -> usize;

    /// The names of all columns, where the file lists them.
    fn columns(&self) -> Vec<String> {
        Vec::new()
    }

    /// Calls `each` for the rows of these numbers, which ascend.
    fn read(&self, rows: &[usize], want: Want, each: Each) -> Result<()>;
}

/// An opened file of rows.
pub(crate) struct Table {
    /// The file.
    pub path: PathBuf,
    format: Box<dyn Format>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table({}, {} rows)", self.path.display(), self.len())
    }
}

impl Table {
    /// Opens a file. Its format is told by its content, and where that says nothing (text), by its name. Of formats with
    /// typed columns only the columns in `columns` are read.
    ///
    /// # Errors
    /// If it cannot be read, or is of none of the formats; the message lists them.
    pub fn open(path: &Path, columns: &BTreeSet<String>) -> Result<Self> {
        let mut head = [0; 6];
        let mut file = File::open(path).map_err(Error::io(path))?;
        let count = file.read(&mut head).map_err(Error::io(path))?;
        drop(file);
        let format: Box<dyn Format> = match &head[..count] {
            [b'P', b'A', b'R', b'1', ..] => Box::new(parquet::Parquet::open(path, columns)?),
            b"ARROW1" | [0xFF, 0xFF, 0xFF, 0xFF, ..] => Box::new(ipc::Ipc::open(path, columns)?),
            _ => text(path, Content::open(path)?)?,
        };
        Ok(Self { path: path.to_owned(), format })
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.format.len()
    }

    /// The names of all columns, also of those that are not read; of a file that does not list them, those of a row.
    pub fn columns(&self, row: &Row) -> Vec<String> {
        let all = self.format.columns();
        if all.is_empty() { row.fields.keys().cloned().collect() } else { all }
    }

    /// Calls `each` for the rows of these numbers, which ascend.
    ///
    /// # Errors
    /// That of `each`; a file that cannot be read.
    pub fn read(&self, rows: &[usize], want: Want, each: Each) -> Result<()> {
        self.format.read(rows, want, each)
    }
}

/// A format of text: CSV by its name, else JSON.
fn text(path: &Path, content: Content) -> Result<Box<dyn Format>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
    let separator = match name.rsplit('.').next() {
        Some("csv") => Some(b','),
        Some("tsv") => Some(b'\t'),
        _ => None,
    };
    Ok(match separator {
        Some(separator) => Box::new(csv::Csv::open(path, content, separator)?),
        None => Box::new(json::Lines::open(path, content)?),
    })
}

/// The bytes of a text file: mapped, or unpacked into memory.
pub(crate) enum Content {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Content {
    /// Opens a file; `.gz` and `.zst`, told by their first bytes, are unpacked.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: as with weights, the file is not to be changed while it is read; what is read is checked again each time.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let mut bytes = Vec::new();
        match &map[..] {
            [0x1F, 0x8B, ..] => flate2::read::MultiGzDecoder::new(&map[..])
                .read_to_end(&mut bytes)
                .map_err(Error::io(path))?,
            [0x28, 0xB5, 0x2F, 0xFD, ..] => zstd::stream::read::Decoder::new(&map[..])
                .and_then(|mut decoder| decoder.read_to_end(&mut bytes))
                .map_err(Error::io(path))?,
            _ => return Ok(Self::Mapped(map)),
        };
        Ok(Self::Owned(bytes))
    }
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A failure of a reader of a columnar format.
fn failed(path: &Path, error: impl std::error::Error) -> Error {
    Error::invalid(path, "", format!("cannot be read: {error}"))
}

/// Rows of record batches that come one after another from row `first` on; `wanted` are the numbers among them that are
/// passed on, which ascend.
fn batches<E: std::error::Error>(
    path: &Path,
    first: usize,
    wanted: &[usize],
    batches: impl Iterator<Item = std::result::Result<arrow_array::RecordBatch, E>>,
    each: Each,
) -> Result<()> {
    let mut at = first;
    let mut wanted = wanted.iter().copied().peekable();
    for batch in batches {
        let batch = batch.map_err(|error| failed(path, error))?;
        while let Some(&row) = wanted.peek() {
            if row >= at + batch.num_rows() {
                break;
            }
            wanted.next();
            each(row, values::row(&batch, row - at, row))?;
        }
        at += batch.num_rows();
        if wanted.peek().is_none() {
            break;
        }
    }
    Ok(())
}

/// Shares an opened table between the pictures that lie in it.
pub(crate) type Shared = Arc<Table>;
