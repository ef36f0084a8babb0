//! Floor 3: what a run has produced, in one SQLite file.
//!
//! A store holds candidates (named by a hash of everything that decides them), their scores under each sentence
//! encoder, and the manifest of the run that made it. One wave of generation is one transaction: after any crash,
//! kill or full disk, a wave is there completely or not at all. One process
//! writes at a time; any SQLite client may read meanwhile. Tables and example queries: `docs/store.md`.

mod failure;
mod key;
mod lock;
mod manifest;
mod merge;
mod read;
mod schema;
mod write;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

pub use key::Key;
pub use manifest::{Manifest, Shard};
pub use merge::{MergeSummary, merge};
pub use read::{BudgetChange, CandidateRef, ScoreRow, Unscored, Wave};
pub use schema::{APPLICATION_ID, SCHEMA_VERSION};
pub use write::{EncoderInfo, Score, WaveRecord};

use crate::{Error, Result};
use failure::sql;
use lock::WriterLock;

/// An open store. Closed when dropped; nothing is pending between calls.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    manifest: Manifest,
    /// Present where this process may write. Dropped after the connection.
    lock: Option<WriterLock>,
}

impl Store {
    /// Makes a new store. A file that already holds something is refused, whatever it is.
    pub fn create(path: impl AsRef<Path>, manifest: &Manifest) -> Result<Self> {
        let path = path.as_ref();
        let (connection, lock) = connect_locked(path, true)?;
        if !schema::is_blank(&connection, path)? {
            return Err(store_error(path, "already exists; open it, or use another run folder"));
        }
        Self::initialise(connection, path, manifest, lock)
    }

    /// Opens a store for reading. A writer may be at work; each call sees a state between two of its transactions.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let connection = schema::connect(path, false)?;
        connection.execute_batch("PRAGMA query_only = ON").map_err(sql(path))?;
        Self::existing(connection, path, None)
    }

    /// Opens an existing store for writing, whatever run made it: for scoring and merging.
    pub fn open_writable(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (connection, lock) = connect_locked(path, false)?;
        Self::existing(connection, path, Some(lock))
    }

    /// Opens the store of a run for writing, or makes it.
    ///
    /// An existing store must fit: bdhs and schema version, model, settings, seed, dataset, plan and shard. Each
    /// field that does not is named with the value stored and the value wanted, and nothing is changed. A store that holds no
    /// candidate, as a run leaves it that was refused before it generated one, fits every run and becomes this one's. The token
    /// budget, the model's path and the time of creation are the store's: read them from [`Store::manifest`].
    pub fn open_or_create(path: impl AsRef<Path>, wanted: &Manifest) -> Result<Self> {
        let path = path.as_ref();
        let (connection, lock) = connect_locked(path, true)?;
        if schema::is_blank(&connection, path)? {
            return Self::initialise(connection, path, wanted, lock);
        }
        let mut store = Self::existing(connection, path, Some(lock))?;
        match store.samples()? {
            0 => store.begin_anew(wanted)?,
            _ => store.manifest.check_run(wanted, path)?,
        }
        Ok(store)
    }

    /// Gives a store without candidates to another run.
    fn begin_anew(&mut self, wanted: &Manifest) -> Result<()> {
        let (transaction, path) = self.begin()?;
        let text = "DELETE FROM encoders; DELETE FROM budget_changes; DELETE FROM waves; DELETE FROM manifest";
        transaction.execute_batch(text).map_err(sql(path))?;
        wanted.insert(&transaction, path)?;
        transaction.commit().map_err(sql(path))?;
        self.manifest = Manifest::read(&self.connection, &self.path)?;
        Ok(())
    }

    /// Whether a file holds a store: not one that is missing, or whose creation was cut short.
    ///
    /// # Errors
    /// A file that is no database.
    pub fn is_begun(path: impl AsRef<Path>) -> Result<bool> {
        let path = path.as_ref();
        Ok(path.exists() && !schema::is_blank(&schema::connect(path, false)?, path)?)
    }

    /// Whether a file holds a candidate: not one that is missing, and none that a run left which was refused before it generated.
    ///
    /// # Errors
    /// A file that is no store.
    pub fn has_candidates(path: impl AsRef<Path>) -> Result<bool> {
        let path = path.as_ref();
        Ok(Self::is_begun(path)? && Self::open(path)?.samples()? > 0)
    }

    /// Waits until no process has the store open for writing, at most so long: for whom a killed run's processes are about to end.
    ///
    /// # Errors
    /// A lock file that cannot be read.
    pub fn await_writer(path: impl AsRef<Path>, patience: Duration) -> Result<()> {
        lock::wait(path.as_ref(), patience)
    }

    /// What the store was made with.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn initialise(
        mut connection: Connection,
        path: &Path,
        manifest: &Manifest,
        lock: WriterLock,
    ) -> Result<Self> {
        let transaction = connection.transaction().map_err(sql(path))?;
        transaction.execute_batch(schema::TABLES).map_err(sql(path))?;
        transaction
            .pragma_update(None, "application_id", APPLICATION_ID)
            .and_then(|()| transaction.pragma_update(None, "user_version", SCHEMA_VERSION))
            .map_err(sql(path))?;
        manifest.insert(&transaction, path)?;
        transaction.commit().map_err(sql(path))?;
        Self::existing(connection, path, Some(lock))
    }

    fn existing(connection: Connection, path: &Path, lock: Option<WriterLock>) -> Result<Self> {
        schema::check(&connection, path)?;
        let manifest = Manifest::read(&connection, path)?;
        Ok(Self { connection, path: path.into(), manifest, lock })
    }
}

fn connect_locked(path: &Path, create: bool) -> Result<(Connection, WriterLock)> {
    if !create && !path.exists() {
        return Err(store_error(path, "no such store"));
    }
    let lock = WriterLock::acquire(path)?;
    Ok((schema::connect(path, create)?, lock))
}

fn store_error(path: &Path, message: impl Into<String>) -> Error {
    Error::Store { path: path.into(), message: message.into() }
}
