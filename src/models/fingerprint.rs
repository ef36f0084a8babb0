//! What identifies a model: a hash of the files that are read of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;

use super::files;
use crate::{Error, Result};

/// A hash (64 hex digits) of all that decides what the network in a folder computes: the settings and weights that are read of it
/// and of its module folders, whatever `modules.json` calls them, by relative name and content. Files that are not read are left
/// out, so that what else was downloaded does not change it.
///
/// # Errors
/// [`Error::Io`] if the folder or a file cannot be read.
pub fn fingerprint(dir: impl AsRef<Path>) -> Result<String> {
    let dir = dir.as_ref();
    let mut found = hashed_files(dir, "")?;
    for name in files::modules(dir)? {
        found.extend(hashed_files(&dir.join(&name), &format!("{name}/"))?);
    }
    found.sort();
    let mut all = blake3::Hasher::new();
    for (name, path) in found {
        all.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        all.update(hash_file(&path)?.as_bytes());
    }
    Ok(all.finalize().to_hex().to_string())
}

fn hashed_files(dir: &Path, prefix: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut names = files::weights(dir)?;
    names.extend(files::pieces(dir).map(str::to_owned));
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if files::is_settings(&name) && entry.path().is_file() {
            names.push(name);
        }
    }
    Ok(names.into_iter().map(|name| (format!("{prefix}{name}"), dir.join(name))).collect())
}

/// Length and the hashes of 4 MiB pieces, taken in parallel.
fn hash_file(path: &Path) -> Result<blake3::Hash> {
    let file = File::open(path).map_err(Error::io(path))?;
    // SAFETY: as in `weights`.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    let pieces: Vec<blake3::Hash> = map.par_chunks(4 << 20).map(blake3::hash).collect();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(map.len() as u64).to_le_bytes());
    for piece in pieces {
        hasher.update(piece.as_bytes());
    }
    Ok(hasher.finalize())
}
