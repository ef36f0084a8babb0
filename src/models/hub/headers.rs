//! A checkpoint's settings and the headers of its weights: what it takes to check a model without fetching it.
//!
//! The headers are written into files as long as the real ones, whose other bytes take no room on the disk, so that they are
//! read like any checkpoint of which only the headers are.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::cache::Repo;
use super::client::Client;
use super::environment::Environment;
use super::{Depth, Kind, Name, Origin, cached, complete, not_cached, unreachable, weights};
use crate::models::hub::client::Failure;
use crate::models::weights::{INDEX, Index};
use crate::progress::Progress;
use crate::{Error, Result};

/// Bytes that are asked for at first: most headers fit.
const FIRST: u64 = 256 << 10;
/// Longest header that is fetched.
const LONGEST: u64 = 256 << 20;

/// A folder with settings and headers, removed when this is dropped.
#[derive(Debug)]
pub struct Headers {
    folder: PathBuf,
    /// Where they are from.
    pub origin: Origin,
}

impl Headers {
    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        // What is left of it lies in a folder for temporary files.
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// The settings of a model and the headers of its weights, by range requests; none if the model is cached as a whole, is an
/// adapter, or the hub must not be asked.
///
/// # Errors
/// As [`fetch`](super::fetch); a hub that does not answer for ranges.
pub fn headers(name: &Name, progress: &dyn Progress) -> Result<Option<Headers>> {
    let environment = Environment::read();
    if cached(name, Kind::Model).is_some() {
        return Ok(None);
    }
    let repo = Repo::new(&environment.cache, &name.repo);
    let known = repo.commit(&name.revision);
    if environment.offline {
        let lacking = known.as_deref().map(|commit| repo.lacking(commit, Kind::Model));
        return Err(not_cached(name, lacking));
    }
    let client = Client::new(&environment, name, progress);
    let info =
        client.info(known.as_deref().unwrap_or(&name.revision)).map_err(
            |failure| match failure {
                Failure::Unreachable(error) => unreachable(error, name),
                Failure::Refused(error) => error,
            },
        )?;
    let snapshot = complete(&client, &repo, Kind::Model, Depth::Settings, &info)?;
    if !info.files.iter().any(|file| file == "config.json") {
        return Ok(None);
    }
    let folder = std::env::temp_dir().join(format!("bdhs-headers-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let origin = Origin { repo: name.repo.clone(), commit: info.commit.clone() };
    let made = Headers { folder, origin };
    for entry in fs::read_dir(&snapshot).map_err(Error::io(&snapshot))? {
        let path = entry.map_err(Error::io(&snapshot))?.path();
        if path.is_file() && path.extension().is_none_or(|extension| extension != "safetensors") {
            let target = made.folder.join(path.file_name().unwrap_or_default());
            fs::copy(&path, &target).map_err(Error::io(&target))?;
        }
    }
    progress.begin(&format!("reading headers of {name}"), None);
    let settings = super::settings(&info.files, Kind::Model);
    for file in weights(&info.files, &settings) {
        if file == INDEX {
            super::download::file(&client, &repo, &info.commit, file)?;
            let index = made.folder.join(file);
            fs::copy(snapshot.join(file), &index).map_err(Error::io(&index))?;
            for shard in Index::read(&index)?.shards {
                header(&client, &info.commit, &shard, &made.folder)?;
            }
        } else {
            header(&client, &info.commit, file, &made.folder)?;
        }
    }
    Ok(Some(made))
}

/// Writes a file of the real one's length that begins with its header.
fn header(client: &Client, commit: &str, file: &str, folder: &Path) -> Result<()> {
    let size = client.metadata(commit, file)?.size;
    let mut bytes = client.range(commit, file, 0..FIRST.min(size))?;
    let invalid = |message: String| Error::invalid(client.url(commit, file), "", message);
    let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    let length =
        length.ok_or_else(|| invalid(format!("has {} bytes, expected a header", bytes.len())))?;
    if length > LONGEST || 8 + length > size {
        return Err(invalid(format!("has a header of {length} bytes in {size}: no safetensors")));
    }
    let end = 8 + length;
    if end > bytes.len() as u64 {
        let more = client.range(commit, file, bytes.len() as u64..end)?;
        bytes.extend(more);
    }
    bytes.truncate(end as usize);
    let path = folder.join(file);
    let mut out = File::create(&path).map_err(Error::io(&path))?;
    out.write_all(&bytes).and_then(|()| out.set_len(size)).map_err(Error::io(&path))
}
