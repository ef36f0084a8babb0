//! One file into the cache. What comes is written to `blobs/ETAG.incomplete`, which a later call goes on with; it gets its name
//! once it is whole and, where the etag is a SHA-256, hashes to it. Only then does the snapshot have the file.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::cache::{Repo, create_parent};
use super::client::{Client, Failure, Metadata};
use crate::progress::checkpoint;
use crate::{Error, Result};

/// Tries in a row that bring nothing, before a download is given up.
const TRIES: u32 = 3;
/// Wait between them.
const WAIT: Duration = Duration::from_millis(500);
/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Bytes of a step of the progress bar, and least size of a file that has one.
const STEP: u64 = 1_000_000;

/// Fetches a file of a commit, as far as the cache does not have it.
///
/// # Errors
/// As [`super::fetch`].
pub(super) fn file(client: &Client, repo: &Repo, commit: &str, file: &str) -> Result<()> {
    if repo.snapshot(commit).join(file).is_file() {
        return Ok(());
    }
    let metadata = client.metadata(commit, file)?;
    let blob = repo.blob(&metadata.etag);
    if !blob.is_file() {
        let _lock = repo.lock(&metadata.etag, client.progress)?;
        if !blob.is_file() {
            let transfer = Transfer { client, repo, commit, file, metadata: &metadata };
            transfer.run(blob)?;
        }
    }
    repo.link(commit, file, &metadata.etag)
}

struct Transfer<'a> {
    client: &'a Client<'a>,
    repo: &'a Repo,
    commit: &'a str,
    file: &'a str,
    metadata: &'a Metadata,
}

/// What has come of a file.
struct Part {
    path: PathBuf,
    file: File,
    size: u64,
    hasher: Sha256,
}

impl Transfer<'_> {
    fn run(&self, blob: PathBuf) -> Result<()> {
        let total = self.metadata.size;
        let mut part =
            self.open(blob.with_file_name(format!("{}.incomplete", self.metadata.etag)))?;
        if total >= STEP {
            self.client.progress.begin(&format!("{}, MB", self.file), Some(total / STEP));
            self.client.progress.advance(part.size / STEP);
        }
        let mut fruitless = 0;
        while part.size < total {
            let before = part.size;
            match self.receive(&mut part) {
                Ok(()) => {}
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Unreachable(error)) => {
                    fruitless = if part.size > before { 0 } else { fruitless + 1 };
                    if fruitless == TRIES {
                        return Err(error);
                    }
                    std::thread::sleep(WAIT);
                }
            }
        }
        self.verify(&part)?;
        part.file.sync_all().map_err(|error| self.unwritten(error, &part.path))?;
        fs::rename(&part.path, &blob).map_err(Error::io(blob))
    }

    /// What an earlier call left, hashed again; or an empty file.
    fn open(&self, path: PathBuf) -> Result<Part> {
        create_parent(&path)?;
        let mut options = File::options();
        let mut file =
            options.read(true).append(true).create(true).open(&path).map_err(Error::io(&path))?;
        let (mut hasher, mut size) = (Sha256::new(), 0);
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk).map_err(Error::io(&path))? {
                0 => break,
                count => {
                    hasher.update(&chunk[..count]);
                    size += count as u64;
                }
            }
        }
        let mut part = Part { path, file, size, hasher };
        if part.size > self.metadata.size {
            part.clear()?;
        }
        Ok(part)
    }

    /// Receives until the connection ends.
    fn receive(&self, part: &mut Part) -> Result<(), Failure> {
        let mut response = self.client.bytes(self.commit, self.file, part.size)?;
        if response.status().as_u16() != 206 {
            part.clear()?;
        }
        let url = self.client.url(self.commit, self.file);
        let mut body = response.body_mut().as_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            checkpoint(self.client.progress)?;
            let count = body.read(&mut chunk).map_err(|error| Failure::unreachable(&url, error))?;
            if count == 0 {
                break;
            }
            if part.size + count as u64 > self.metadata.size {
                return Err(self
                    .other(part, format!("more than {} bytes", self.metadata.size))
                    .into());
            }
            part.file
                .write_all(&chunk[..count])
                .map_err(|error| self.unwritten(error, &part.path))?;
            part.hasher.update(&chunk[..count]);
            let before = part.size;
            part.size += count as u64;
            if self.metadata.size >= STEP {
                self.client.progress.advance(part.size / STEP - before / STEP);
            }
        }
        if part.size < self.metadata.size {
            let reason = format!("ended after {} of {} bytes", part.size, self.metadata.size);
            return Err(Failure::unreachable(&url, reason));
        }
        Ok(())
    }

    /// Compares the hash, where the etag is one.
    fn verify(&self, part: &Part) -> Result<()> {
        let etag = &self.metadata.etag;
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|c| c.is_ascii_hexdigit());
        let mut found = String::new();
        for byte in part.hasher.clone().finalize() {
            found.push_str(&format!("{byte:02x}"));
        }
        match is_sha256 && *etag != found {
            true => Err(self.other(part, format!("SHA-256 {found}"))),
            false => Ok(()),
        }
    }

    /// What came is another file: it is deleted.
    fn other(&self, part: &Part, seen: String) -> Error {
        let deleted = match fs::remove_file(&part.path) {
            Ok(()) => "it was deleted, and the same command fetches it again".to_owned(),
            Err(error) => format!("delete {}: {error}", part.path.display()),
        };
        let Metadata { etag, size } = self.metadata;
        let message =
            format!("came with {seen}, expected {size} bytes of SHA-256 {etag}; {deleted}");
        Error::invalid(self.client.name.to_string(), self.file, message)
    }

    fn unwritten(&self, error: std::io::Error, path: &std::path::Path) -> Error {
        let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        let source = match full {
            false => error,
            true => std::io::Error::new(
                error.kind(),
                format!(
                    "no space for {} of {}, {:.2} GB: free some, and the same command goes on from there, or move the cache \
                     ({}) by HF_HOME",
                    self.file,
                    self.client.name,
                    self.metadata.size as f64 / 1e9,
                    self.repo.cache().display(),
                ),
            ),
        };
        Error::Io { path: path.into(), source }
    }
}

impl Part {
    /// Begins anew.
    fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::io(&self.path))?;
        (self.size, self.hasher) = (0, Sha256::new());
        Ok(())
    }
}
