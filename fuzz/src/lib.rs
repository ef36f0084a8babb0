//! Folders that the targets put their input into.

use std::fs;
use std::path::{Path, PathBuf};

/// A golden folder of the repository's tests.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// A copy of a golden folder's files in a new folder, which goes when it is dropped.
pub fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(golden(name)).expect("the golden folder") {
        let path = entry.expect("an entry").path();
        if let (true, Some(file)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, dir.path().join(file)).expect("a copy");
        }
    }
    dir
}

/// Splits the input at its first byte 0xFF: targets that read two files get one part each.
pub fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|&byte| byte == 0xFF) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}
