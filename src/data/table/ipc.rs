//! Arrow IPC, as `datasets.save_to_disk` writes it (a stream) and as files with a footer.
//!
//! A stream has no index. Its messages are walked through once, by their headers: rows of a batch are then read from a
//! stream made of what comes before all batches (schema and dictionaries) and that batch alone.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_ipc::{MessageHeader, root_as_message};
use arrow_schema::Schema;

use super::{Each, Format, Want, batches, failed};
use crate::{Error, Result};

pub(super) struct Ipc {
    path: PathBuf,
    /// First row of each batch, and the number of rows at the end.
    starts: Vec<usize>,
    /// All columns.
    names: Vec<String>,
    /// Places of the columns that are read.
    columns: Vec<usize>,
    layout: Layout,
}

enum Layout {
    /// With a footer, which says where batches lie.
    File,
    /// Messages before the batches, and the range of bytes of each batch.
    Stream { head: Vec<u8>, batches: Vec<(u64, u64)> },
}

impl Ipc {
    pub fn open(path: &Path, columns: &BTreeSet<String>) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let mut magic = [0; 6];
        file.read_exact(&mut magic).map_err(Error::io(path))?;
        file.rewind().map_err(Error::io(path))?;
        let wanted = |schema: &Schema| {
            let all = schema.fields().iter().enumerate();
            all.filter(|(_, field)| columns.contains(field.name())).map(|(i, _)| i).collect()
        };
        let names: Vec<String>;
        let (layout, starts, columns) = if &magic == b"ARROW1" {
            let mut reader =
                FileReader::try_new(file, None).map_err(|error| failed(path, error))?;
            let mut starts = vec![0];
            for batch in 0..reader.num_batches() {
                reader.set_index(batch).map_err(|error| failed(path, error))?;
                let rows = match reader.next() {
                    Some(batch) => batch.map_err(|error| failed(path, error))?.num_rows(),
                    None => 0,
                };
                starts.push(starts[batch] + rows);
            }
            names = reader.schema().fields().iter().map(|field| field.name().clone()).collect();
            (Layout::File, starts, wanted(&reader.schema()))
        } else {
            let (head, batches, starts) = walk(path, &mut file)?;
            let reader = StreamReader::try_new(Cursor::new(&head), None);
            let schema = reader.map_err(|error| failed(path, error))?.schema();
            names = schema.fields().iter().map(|field| field.name().clone()).collect();
            (Layout::Stream { head, batches }, starts, wanted(&schema))
        };
        Ok(Self { path: path.to_owned(), starts, names, columns, layout })
    }

    fn batch(&self, batch: usize, rows: &[usize], each: Each) -> Result<()> {
        let path = &self.path;
        let columns = Some(self.columns.clone());
        let mut file = File::open(path).map_err(Error::io(path))?;
        match &self.layout {
            Layout::File => {
                let mut reader =
                    FileReader::try_new(file, columns).map_err(|error| failed(path, error))?;
                reader.set_index(batch).map_err(|error| failed(path, error))?;
                batches(path, self.starts[batch], rows, reader, each)
            }
            Layout::Stream { head, batches: places } => {
                let (at, len) = places[batch];
                file.seek(SeekFrom::Start(at)).map_err(Error::io(path))?;
                let stream = Cursor::new(head).chain(file.take(len));
                let reader =
                    StreamReader::try_new(stream, columns).map_err(|error| failed(path, error))?;
                batches(path, self.starts[batch], rows, reader.take(1), each)
            }
        }
    }
}

/// The messages of a stream: the bytes before the first batch (and of dictionaries after it), the place of each batch, and
/// the first row of each.
#[allow(clippy::type_complexity, reason = "three lists of one walk")]
fn walk(path: &Path, file: &mut File) -> Result<(Vec<u8>, Vec<(u64, u64)>, Vec<usize>)> {
    let (mut head, mut places, mut starts) = (Vec::new(), Vec::new(), vec![0]);
    let length = file.metadata().map_err(Error::io(path))?.len();
    let cut = |at: u64| Error::invalid(path, format!("byte {at}"), "the Arrow stream ends here");
    let mut at = 0u64;
    loop {
        let mut size = [0; 4];
        file.seek(SeekFrom::Start(at)).map_err(Error::io(path))?;
        // Some writers leave the end mark out.
        if length < at + 8 {
            break;
        }
        file.read_exact(&mut size).map_err(Error::io(path))?;
        let mut prefix = 4;
        if size == [0xFF; 4] {
            file.read_exact(&mut size).map_err(Error::io(path))?;
            prefix = 8;
        }
        let size = u64::from(u32::from_le_bytes(size));
        if size == 0 {
            break;
        }
        if at + prefix + size > length {
            return Err(cut(at));
        }
        let mut message = vec![0; size as usize];
        file.read_exact(&mut message).map_err(Error::io(path))?;
        let message = root_as_message(&message).map_err(|error| {
            Error::invalid(path, format!("byte {at}"), format!("is no Arrow message: {error}"))
        })?;
        let body = u64::try_from(message.bodyLength()).unwrap_or(0);
        let all = prefix + size + body;
        if at + all > length {
            return Err(cut(at));
        }
        match (message.header_type(), message.header_as_record_batch()) {
            (MessageHeader::RecordBatch, Some(batch)) => {
                places.push((at, all));
                let rows = usize::try_from(batch.length()).unwrap_or(0);
                starts.push(starts[starts.len() - 1] + rows);
            }
            _ => {
                let mut bytes = vec![0; all as usize];
                file.seek(SeekFrom::Start(at)).map_err(Error::io(path))?;
                file.read_exact(&mut bytes).map_err(Error::io(path))?;
                head.extend(bytes);
            }
        }
        at += all;
    }
    Ok((head, places, starts))
}

impl Format for Ipc {
    fn columns(&self) -> Vec<String> {
        self.names.clone()
    }

    fn len(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    fn read(&self, rows: &[usize], _: Want, each: Each) -> Result<()> {
        let mut rest = rows;
        while let Some(&row) = rest.first() {
            let batch = self.starts.partition_point(|&start| start <= row) - 1;
            let own = rest.partition_point(|&row| row < self.starts[batch + 1]);
            self.batch(batch, &rest[..own], &mut *each)?;
            rest = &rest[own..];
        }
        Ok(())
    }
}
