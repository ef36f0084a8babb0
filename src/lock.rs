//! Locks on files, which the system drops when their process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use crate::{Error, Result};

/// Whether this process has the lock now; false if another one has it. The lock lasts as long as the file is open.
///
/// # Errors
/// A file system that has no locks; the message says what to do.
pub(crate) fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(refused(path, error)),
    }
}

/// Waits for the lock.
///
/// # Errors
/// As [`try_lock`].
pub(crate) fn lock(file: &File, path: &Path) -> Result<()> {
    file.lock().map_err(|error| refused(path, error))
}

/// Says of a lock's failure what it means.
fn refused(path: &Path, error: io::Error) -> Error {
    // ENOLCK has no kind of its own.
    const NO_LOCKS: i32 = 37;
    let absent = error.kind() == io::ErrorKind::Unsupported
        || cfg!(target_os = "linux") && error.raw_os_error() == Some(NO_LOCKS);
    if !absent {
        return Error::Io { path: path.into(), source: error };
    }
    let message = format!(
        "this file system has no file locks ({error}), as Lustre mounted without flock and some NFS; locks keep \
         two processes from writing one file. Use a folder on another file system (a local disk, a scratch file \
         system with locks), or have this one mounted with flock"
    );
    Error::Io { path: path.into(), source: io::Error::new(error.kind(), message) }
}

/// Checks, before any work, that a folder can hold a run: its name is UTF-8, it can be made and written to, and files in it
/// can be locked. The folder is made if it is missing; nothing else is left in it.
///
/// # Errors
/// What the folder lacks, and what to do.
pub(crate) fn check_folder(folder: &Path) -> Result<()> {
    if folder.to_str().is_none() {
        let message = "is no UTF-8 text, and the JSON files of a run could not hold it; use a folder of another name";
        return Err(Error::invalid(folder, "name of the folder", message));
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let probe = folder.join(format!(".lock-check-{}", std::process::id()));
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&probe);
    let file = file.map_err(Error::io(&probe))?;
    let locked = try_lock(&file, folder);
    drop(file);
    std::fs::remove_file(&probe).map_err(Error::io(&probe))?;
    locked.map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::{check_folder, refused};

    /// ENOSYS, EOPNOTSUPP and ENOLCK say that there are no locks; another error stays what it is.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_system_without_locks_is_named() {
        for code in [38, 95, 37] {
            let text = refused(Path::new("x.lock"), io::Error::from_raw_os_error(code)).to_string();
            assert!(
                text.contains("no file locks") && text.contains("mounted with flock"),
                "{text}"
            );
        }
        let text = refused(Path::new("x.lock"), io::Error::from_raw_os_error(5)).to_string();
        assert!(!text.contains("no file locks"), "{text}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_name_that_is_not_utf_8_is_refused_before_anything_is_made() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(std::ffi::OsStr::from_bytes(b"a\xff"));
        let text = check_folder(&folder).unwrap_err().to_string();
        assert!(text.contains("no UTF-8 text") && !folder.exists(), "{text}");
        check_folder(&dir.path().join("b/c")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("b/c")).unwrap().count(), 0);
    }
}
