//! Files that are there completely or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Error, Result};

/// A file written under a temporary name beside its own, which it gets from [`AtomicFile::commit`]. Dropped before
/// that, it leaves nothing; a killed process leaves the temporary file, which the next writing replaces.
#[derive(Debug)]
pub struct AtomicFile {
    writer: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl AtomicFile {
    /// Starts `path`; its folder is made if it is missing.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let Some(name) = path.file_name() else {
            return Err(Error::invalid(path, "", "not a file name"));
        };
        let folder = folder_of(path);
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".part");
        let temporary = folder.join(hidden);
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
        let writer = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { writer, temporary, path: path.into(), committed: false })
    }

    /// The name the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds bytes.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(Error::io(&self.path))
    }

    /// Makes everything durable and gives the file its name, replacing one that has it.
    pub fn commit(mut self) -> Result<()> {
        self.writer
            .flush()
            .and_then(|()| self.writer.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .map_err(Error::io(&self.path))?;
        self.committed = true;
        // Only Unix can sync a folder; elsewhere the rename is durable when the system says so.
        #[cfg(unix)]
        {
            let folder = folder_of(&self.path);
            File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io(folder))?;
        }
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a file that will not go away, and the reason for the drop matters more.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a whole file at once, under the rules of [`AtomicFile`].
pub fn write_file(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.put(bytes)?;
    file.commit()
}

/// Writes a value as indented JSON, a line end behind it, under the rules of [`AtomicFile`].
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::Io { path: path.into(), source: error.into() })?;
    write_file(path, format!("{text}\n").as_bytes())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
