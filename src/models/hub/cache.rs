//! The cache of the hub's clients: `models--ORG--NAME/` with `refs/REVISION` (a commit), `blobs/ETAG` (contents),
//! `snapshots/COMMIT/PATH` (links to blobs), `.no_exist/COMMIT/PATH` (files that a commit is known not to have), and
//! `trees/COMMIT.json` (all files that it has, where a client has asked for them).

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::{Kind, is_commit};
use crate::files::write_file;
use crate::models::adapter;
use crate::models::families::llava::original::has_layout;
use crate::models::files::PIECES;
use crate::models::weights::{INDEX, Index, SINGLE};
use crate::progress::{Progress, checkpoint};
use crate::{Error, Result};

/// How often a lock is tried that another process holds.
const PATIENCE: Duration = Duration::from_millis(100);

/// A repository in the cache.
pub(super) struct Repo {
    cache: PathBuf,
    name: String,
}

/// What a snapshot does not have of the files that are read.
#[derive(Default)]
pub(super) struct Lacking {
    /// Without these nothing can be loaded.
    pub required: Vec<String>,
    /// These are read if a repository has them, and whether it has is not known.
    pub unsure: Vec<String>,
}

impl Repo {
    pub fn new(cache: &Path, repo: &str) -> Self {
        Self { cache: cache.to_owned(), name: format!("models--{}", repo.replace('/', "--")) }
    }

    pub fn folder(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    /// The cache itself.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// The file that holds the commit of a branch or tag.
    pub fn reference(&self, revision: &str) -> PathBuf {
        self.folder().join("refs").join(revision)
    }

    /// The commit of a revision, as far as the cache knows.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.reference(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers the commit of a revision.
    pub fn note_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        write(&self.reference(revision), commit)
    }

    /// Remembers that a commit does not have a file.
    pub fn note_absent(&self, commit: &str, file: &str) -> Result<()> {
        write(&self.folder().join(".no_exist").join(commit).join(file), "")
    }

    /// What a snapshot lacks of the files that are read.
    pub fn lacking(&self, commit: &str, kind: Kind) -> Lacking {
        let found = Found {
            snapshot: self.snapshot(commit),
            absent: self.folder().join(".no_exist").join(commit),
            lacking: Lacking::default(),
        };
        let mut lacking = match kind {
            Kind::Model => found.of_model(),
            Kind::Encoder => found.of_encoder(),
        };
        if let Some(listed) = self.listed(commit) {
            lacking.unsure.retain(|file| listed.contains_key(file));
            lacking.required.append(&mut lacking.unsure);
        }
        // Nobody reads this file: who has it has fetched the repository as a whole.
        if self.snapshot(commit).join(".gitattributes").is_file() {
            lacking.unsure.clear();
        }
        lacking
    }

    /// All files of a commit, where another client has listed them.
    fn listed(&self, commit: &str) -> Option<Map<String, Value>> {
        let path = self.folder().join("trees").join(format!("{commit}.json"));
        let mut document: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        match (document["format_version"].as_u64(), document["files"].take()) {
            (Some(1), Value::Object(files)) => Some(files),
            _ => None,
        }
    }

    /// The lock that clients hold while they fetch a blob; none where the file system has no locks, whose loss is a download
    /// made twice.
    pub fn lock(&self, etag: &str, progress: &dyn Progress) -> Result<Option<File>> {
        let path = self.cache.join(".locks").join(&self.name).join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::create(&path).map_err(Error::io(&path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) => {
                    checkpoint(progress)?;
                    std::thread::sleep(PATIENCE);
                }
            }
        }
    }

    /// Makes a blob a file of a snapshot.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        create_parent(&path)?;
        // What hangs there leads to no file, or this would not be called.
        if path.is_symlink() {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        match link(&self.blob(etag), file, etag, &path) {
            // Another process was quicker.
            Err(_) if path.is_file() => Ok(()),
            done => done.map_err(Error::io(path)),
        }
    }
}

#[cfg(unix)]
fn link(_blob: &Path, file: &str, etag: &str, path: &Path) -> std::io::Result<()> {
    // Relative, so that the cache can be moved: up from the snapshot's folder to the repository's.
    let up = "../".repeat(file.split('/').count() + 1);
    std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), path)
}

/// Where links take privileges, the blob itself becomes the snapshot's file, as `huggingface_hub` does there.
#[cfg(not(unix))]
fn link(blob: &Path, _file: &str, _etag: &str, path: &Path) -> std::io::Result<()> {
    fs::rename(blob, path)
}

fn write(path: &Path, text: &str) -> Result<()> {
    create_parent(path)?;
    write_file(path, text.as_bytes())
}

pub(super) fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(Error::io(parent))
}

/// A snapshot that is looked through.
struct Found {
    snapshot: PathBuf,
    absent: PathBuf,
    lacking: Lacking,
}

impl Found {
    fn has(&self, file: &str) -> bool {
        self.snapshot.join(file).is_file()
    }

    fn require(&mut self, file: String) {
        if !self.has(&file) {
            self.lacking.required.push(file);
        }
    }

    /// Files that are read if they are there.
    fn expect(&mut self, files: &[&str], folder: &str) {
        let files = files.iter().map(|file| format!("{folder}{file}"));
        let unsure = files.filter(|file| !self.has(file) && !self.absent.join(file).is_file());
        let unsure: Vec<String> = unsure.collect();
        self.lacking.unsure.extend(unsure);
    }

    /// The weights of a folder, whose name ends with a slash.
    fn require_weights(&mut self, folder: &str) {
        let index = format!("{folder}{INDEX}");
        if self.has(&format!("{folder}{SINGLE}")) || !self.has(&index) {
            return self.require(format!("{folder}{SINGLE}"));
        }
        // A malformed index is whole here: loading it says what is wrong with it.
        if let Ok(index) = Index::read(&self.snapshot.join(index)) {
            index.shards.into_iter().for_each(|shard| self.require(format!("{folder}{shard}")));
        }
    }

    fn of_model(mut self) -> Lacking {
        if self.has(adapter::CONFIG) {
            self.require(adapter::TENSORS.to_owned());
            self.expect(&[adapter::WHOLE], "");
            return self.lacking;
        }
        const PROCESSORS: [&str; 2] = ["preprocessor_config.json", "processor_config.json"];
        self.require("config.json".to_owned());
        if self.has(PIECES[0]) && !self.has("tokenizer.json") {
            self.expect(&["tokenizer.json"], "");
            self.expect(&PIECES, "");
        } else {
            self.require("tokenizer.json".to_owned());
        }
        // In the original layout the vision tower's settings are used.
        let original = has_layout(&self.snapshot);
        if !original && !PROCESSORS.iter().any(|file| self.has(file)) {
            self.require(PROCESSORS[0].to_owned());
        }
        self.require_weights("");
        if !original {
            self.expect(&PROCESSORS, "");
        }
        self.expect(
            &[
                "chat_template.jinja",
                "chat_template.json",
                "generation_config.json",
                "tokenizer_config.json",
            ],
            "",
        );
        self.lacking
    }

    fn of_encoder(mut self) -> Lacking {
        self.require("modules.json".to_owned());
        self.expect(&["config_sentence_transformers.json"], "");
        let text = fs::read_to_string(self.snapshot.join("modules.json")).unwrap_or_default();
        // As with an index, what is malformed is named by loading it.
        let modules: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        for module in modules {
            let text = |field: &str| module[field].as_str().unwrap_or_default().to_owned();
            let folder = match text("path").as_str() {
                "" => String::new(),
                path => format!("{path}/"),
            };
            match text("type").rsplit('.').next().unwrap_or_default() {
                "Transformer" => {
                    self.require(format!("{folder}config.json"));
                    self.require(format!("{folder}tokenizer.json"));
                    self.require_weights(&folder);
                    self.expect(&["sentence_bert_config.json", "tokenizer_config.json"], &folder);
                }
                "Pooling" => self.require(format!("{folder}config.json")),
                "Dense" => {
                    self.require(format!("{folder}config.json"));
                    self.require_weights(&folder);
                }
                _ => {}
            }
        }
        self.lacking
    }
}
