//! Files that are there completely or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::{Error, Result};

/// A file written under a temporary name in its folder, and given its own by [`AtomicFile::commit`]. The temporary name is this
/// file's alone, so that two processes (or threads) that write one path do not meet: the last to commit wins, whole. Dropped before
/// that, it leaves nothing; a killed process leaves the temporary file, which a later writing of the path takes away.
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
        clear(folder, name);
        let (file, temporary) = loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let mut hidden = prefix(name);
            hidden.push(format!("{}-{number}", std::process::id()));
            let temporary = folder.join(hidden);
            match File::options().write(true).create_new(true).open(&temporary) {
                Ok(file) => break (file, temporary),
                // A process of another machine, or one that was killed, has this one's number.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(&temporary)(error)),
            }
        };
        // Says that it is in use, where the file system has locks; where it has none, files of killed processes stay.
        let _ = file.try_lock();
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

/// Counts the files of this process.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Time from a temporary file's creation in which its lock may not have been taken yet.
const YOUNG: Duration = Duration::from_secs(60);

/// What temporary names of a file begin with.
fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".part-");
    prefix
}

/// Takes away what killed processes have left of writing this file; a file that cannot be taken away is in nobody's way.
fn clear(folder: &Path, name: &OsStr) {
    let prefix = prefix(name);
    let abandoned = |path: &Path| {
        let Ok(file) = File::open(path) else { return false };
        let changed = file.metadata().and_then(|metadata| metadata.modified());
        let old = changed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > YOUNG));
        old && file.try_lock().is_ok()
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let ours = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        if ours && abandoned(&entry.path()) {
            let _ = fs::remove_file(entry.path());
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{AtomicFile, write_file};

    /// Writers of one path do not meet: each file is whole, and the last to be committed has the name.
    #[test]
    fn writers_side_by_side_each_write_a_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        std::thread::scope(|scope| {
            for byte in [b'a', b'b', b'c', b'd'] {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        write_file(path, &[byte; 5000]).unwrap();
                        let found = std::fs::read(path).unwrap();
                        assert!(found.len() == 5000 && found.iter().all(|b| *b == found[0]));
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// What a killed process left is taken away by the next writing, and what is being written is not.
    #[test]
    fn files_of_killed_processes_are_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let old = |name: &str| {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
        };
        old(".a.json.part-1-0");
        old(".b.json.part-1-0");
        let mut open = AtomicFile::create(&path).unwrap();
        open.put(b"1").unwrap();
        open.writer.get_ref().set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
        write_file(&path, b"2").unwrap();
        open.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1");
        assert!(!dir.path().join(".a.json.part-1-0").exists());
        assert!(dir.path().join(".b.json.part-1-0").exists());
    }
}
