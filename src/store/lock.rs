//! One writer a store: an advisory lock on a file beside it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Error, Result, lock::try_lock};

/// Held as long as a store is open for writing. The system drops the lock when the process ends, however it
/// ends, so that a killed run never blocks the next one. The lock file itself stays: deleting it would let two
/// writers lock two files of the same name.
#[derive(Debug)]
pub(super) struct WriterLock {
    _file: File,
}

impl WriterLock {
    /// Locks `<store>.lock`, or says which process holds it.
    pub(super) fn acquire(store: &Path) -> Result<Self> {
        let path = lock_path(store);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io(&path))?;
        if !try_lock(&file, &path)? {
            let mut holder = String::new();
            // Only for the message: an unreadable process number is no reason to fail differently.
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            let holder =
                if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
            return Err(Error::Store {
                path: store.into(),
                message: format!(
                    "another writer{holder} has this store open; wait for it, or use another run folder"
                ),
            });
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(Error::io(&path))?;
        Ok(Self { _file: file })
    }
}

/// Waits until nobody holds the lock, at most so long.
pub(super) fn wait(store: &Path, patience: Duration) -> Result<()> {
    let path = lock_path(store);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Io { path, source }),
    };
    let begun = Instant::now();
    while let Err(TryLockError::WouldBlock) = file.try_lock_shared() {
        if begun.elapsed() >= patience {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// `<store>.lock`, through symbolic links, so that two names of one store share one lock.
fn lock_path(store: &Path) -> PathBuf {
    let real = store.canonicalize().unwrap_or_else(|_| {
        let folder = match store.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        match (folder.canonicalize(), store.file_name()) {
            (Ok(folder), Some(name)) => folder.join(name),
            _ => store.to_path_buf(),
        }
    });
    let mut name = OsString::from(real);
    name.push(".lock");
    PathBuf::from(name)
}
