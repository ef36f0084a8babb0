//! Embeddings as files: `.npy`, `.safetensors`, `.jsonl`. Rows in the order given; nothing but one row in memory.

use std::path::Path;

use crate::{Error, Result, files::AtomicFile};

/// How a matrix is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixFormat {
    /// NumPy format 1.0, `<f4`, C order.
    Npy,
    /// One F32 tensor named `embeddings`.
    Safetensors,
    /// One line a row: `{"index": 0, "embedding": [..]}`. Numbers read back as the same f32.
    Jsonl,
}

impl MatrixFormat {
    /// The format that the file's extension names.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("safetensors") => Ok(Self::Safetensors),
            Some("jsonl") => Ok(Self::Jsonl),
            other => Err(Error::unsupported(
                format!("output file {} (extension {:?})", path.display(), other.unwrap_or("")),
                "use .npy, .safetensors or .jsonl",
            )),
        }
    }
}

/// Writes a `[rows, dim]` matrix of f32 row by row.
///
/// The number of rows is said first, since two of the formats begin with it. Bytes are little-endian on every machine,
/// and depend on nothing but the values.
#[derive(Debug)]
pub struct MatrixWriter {
    file: AtomicFile,
    format: MatrixFormat,
    rows: usize,
    dim: usize,
    written: usize,
    line: Vec<u8>,
}

impl MatrixWriter {
    /// Starts a file in the format of its extension.
    pub fn create(path: impl AsRef<Path>, rows: usize, dim: usize) -> Result<Self> {
        let path = path.as_ref();
        let format = MatrixFormat::of(path)?;
        let mut file = AtomicFile::create(path)?;
        file.put(&header(format, rows, dim))?;
        Ok(Self { file, format, rows, dim, written: 0, line: Vec::new() })
    }

    /// Adds any number of whole rows.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        let rows = values.len().checked_div(self.dim).unwrap_or(0);
        if rows * self.dim != values.len() {
            let expected = format!("a multiple of the dimension, {}", self.dim);
            return Err(Error::argument(
                "matrix writer",
                "number of values",
                values.len(),
                expected,
            ));
        }
        if rows > self.rows - self.written {
            let expected = format!("at most the {} announced", self.rows);
            return Err(Error::argument("matrix writer", "rows", self.written + rows, expected));
        }
        for row in values.chunks_exact(self.dim.max(1)) {
            self.line.clear();
            match self.format {
                MatrixFormat::Npy | MatrixFormat::Safetensors => {
                    row.iter().for_each(|value| self.line.extend_from_slice(&value.to_le_bytes()));
                }
                MatrixFormat::Jsonl => {
                    let index = self.written;
                    let entry = serde_json::json!({ "index": index });
                    self.line.extend_from_slice(entry.to_string().trim_end_matches('}').as_bytes());
                    self.line.extend_from_slice(b",\"embedding\":");
                    serde_json::to_writer(&mut self.line, row)
                        .map_err(|error| Error::invalid(self.file.path(), "", error.to_string()))?;
                    self.line.extend_from_slice(b"}\n");
                }
            }
            self.file.put(&self.line)?;
            self.written += 1;
        }
        Ok(())
    }

    /// Ends the file and gives it its name. Fewer rows than announced are an error, and leave no file.
    pub fn finish(self) -> Result<()> {
        if self.written != self.rows {
            let expected = format!("the {} announced", self.rows);
            return Err(Error::argument("matrix writer", "rows", self.written, expected));
        }
        self.file.commit()
    }
}

fn header(format: MatrixFormat, rows: usize, dim: usize) -> Vec<u8> {
    match format {
        MatrixFormat::Jsonl => Vec::new(),
        MatrixFormat::Npy => {
            let mut dict =
                format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
            // Magic (6), version (2), length (2), dict, newline: a multiple of 64, so that the data is aligned.
            let padding = (64 - (11 + dict.len()) % 64) % 64;
            dict.extend(std::iter::repeat_n(' ', padding));
            dict.push('\n');
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            // Two numbers of at most 20 digits: the dict never reaches the 65,535 bytes that version 1.0 allows.
            bytes.extend_from_slice(&(dict.len() as u16).to_le_bytes());
            bytes.extend_from_slice(dict.as_bytes());
            bytes
        }
        MatrixFormat::Safetensors => {
            let end = rows as u64 * dim as u64 * 4;
            let mut json = format!(
                r#"{{"embeddings":{{"dtype":"F32","shape":[{rows},{dim}],"data_offsets":[0,{end}]}}}}"#
            );
            let padding = (8 - json.len() % 8) % 8;
            json.extend(std::iter::repeat_n(' ', padding));
            let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(json.as_bytes());
            bytes
        }
    }
}
