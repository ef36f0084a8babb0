//! The tables of a store, and how a connection to one is set up. `docs/store.md` explains each column.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::failure::sql;
use crate::{Error, Result};

/// SQLite `application_id` of a store: the bytes `bdhs`.
pub const APPLICATION_ID: i32 = 0x6264_6873;

/// SQLite `user_version` of a store: raised whenever a table changes its meaning.
pub const SCHEMA_VERSION: i32 = 1;

/// How long a statement waits for another program's transaction before it gives up.
const BUSY_WAIT: Duration = Duration::from_secs(60);

pub(super) const TABLES: &str = "
CREATE TABLE manifest (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  bdhs_version TEXT NOT NULL,
  model_fingerprint TEXT NOT NULL,
  model_path TEXT NOT NULL,
  sampling TEXT NOT NULL CHECK (json_valid(sampling)),
  seed TEXT NOT NULL,
  token_budget INTEGER NOT NULL CHECK (token_budget > 0),
  dataset_fingerprint TEXT NOT NULL,
  plan_hash TEXT NOT NULL,
  shard TEXT NOT NULL,
  created_at TEXT NOT NULL
) STRICT;

CREATE TABLE budget_changes (
  shard TEXT NOT NULL,
  round INTEGER NOT NULL,
  wave INTEGER NOT NULL,
  token_budget INTEGER NOT NULL CHECK (token_budget > 0),
  reason TEXT NOT NULL,
  recorded_at TEXT NOT NULL,
  PRIMARY KEY (shard, round, wave, token_budget)
) STRICT, WITHOUT ROWID;

CREATE TABLE waves (
  shard TEXT NOT NULL,
  round INTEGER NOT NULL CHECK (round > 0),
  wave INTEGER NOT NULL CHECK (wave >= 0),
  token_budget INTEGER NOT NULL CHECK (token_budget > 0),
  candidates INTEGER NOT NULL CHECK (candidates >= 0),
  seconds TEXT NOT NULL CHECK (json_valid(seconds)),
  committed_at TEXT NOT NULL,
  PRIMARY KEY (shard, round, wave)
) STRICT, WITHOUT ROWID;

CREATE TABLE candidates (
  key BLOB NOT NULL PRIMARY KEY CHECK (length(key) = 32),
  sample INTEGER NOT NULL CHECK (sample >= 0),
  attempt INTEGER NOT NULL CHECK (attempt > 0),
  guided INTEGER NOT NULL CHECK (guided IN (0, 1)),
  text TEXT NOT NULL,
  parts TEXT NOT NULL CHECK (json_valid(parts)),
  image_tokens INTEGER NOT NULL CHECK (image_tokens >= 0),
  kept TEXT NOT NULL CHECK (json_valid(kept)),
  kept_tokens INTEGER NOT NULL CHECK (kept_tokens BETWEEN 0 AND image_tokens),
  shard TEXT NOT NULL,
  round INTEGER NOT NULL,
  wave INTEGER NOT NULL,
  UNIQUE (sample, attempt, guided),
  FOREIGN KEY (shard, round, wave) REFERENCES waves (shard, round, wave)
) STRICT;

CREATE TABLE encoders (
  id INTEGER PRIMARY KEY,
  fingerprint TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  dim INTEGER NOT NULL CHECK (dim > 0),
  max_tokens INTEGER NOT NULL CHECK (max_tokens > 0)
) STRICT;

CREATE TABLE scores (
  encoder INTEGER NOT NULL REFERENCES encoders (id),
  candidate BLOB NOT NULL REFERENCES candidates (key),
  phi REAL CHECK (phi BETWEEN -1 AND 1),
  candidate_tokens INTEGER NOT NULL CHECK (candidate_tokens >= 0),
  reference_tokens INTEGER NOT NULL CHECK (reference_tokens >= 0),
  candidate_truncated INTEGER NOT NULL CHECK (candidate_truncated IN (0, 1)),
  reference_truncated INTEGER NOT NULL CHECK (reference_truncated IN (0, 1)),
  PRIMARY KEY (encoder, candidate)
) STRICT, WITHOUT ROWID;
";

/// SQL for the present time, UTC, to the second.
pub(super) const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%SZ', 'now')";

/// Opens a connection that may write, creating the file only where `create` says so.
pub(super) fn connect(path: &Path, create: bool) -> Result<Connection> {
    // Readers ask for write access too: after a killed writer, whoever comes first must be able to roll its
    // unfinished transaction back. SQLite itself falls back to reading where the file cannot be written.
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let connection = Connection::open_with_flags(file(path)?, flags).map_err(sql(path))?;
    connection.busy_timeout(BUSY_WAIT).map_err(sql(path))?;
    // The rollback journal keeps a store in one file, works on network file systems and lets a copy of the file
    // be a backup, none of which the write-ahead log does; a wave takes seconds, so its extra syncs cost nothing.
    // EXTRA also syncs the folder after the journal is gone, so that a committed wave survives a power cut.
    connection
        .execute_batch(
            "PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA; PRAGMA foreign_keys = ON; \
             PRAGMA trusted_schema = OFF;",
        )
        .map_err(sql(path))?;
    Ok(connection)
}

/// A store's path as SQLite is given it: from the root, since it takes a name that begins with `file:` for an address.
///
/// # Errors
/// If the present folder is not known.
pub(super) fn file(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io(path))
}

/// Whether the file holds no table yet: a new one, or one whose creation was cut short.
pub(super) fn is_blank(connection: &Connection, path: &Path) -> Result<bool> {
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(sql(path))?;
    Ok(tables == 0 && pragma(connection, path, "application_id")? == 0)
}

/// Refuses a file that is no store, is of another schema version, or is damaged.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<()> {
    let application = pragma(connection, path, "application_id")?;
    if application != i64::from(APPLICATION_ID) {
        return Err(Error::Store {
            path: path.into(),
            message: format!(
                "an SQLite database, but not a bdhs store: its application_id is {application}, expected \
                 {APPLICATION_ID}"
            ),
        });
    }
    let version = pragma(connection, path, "user_version")?;
    if version != i64::from(SCHEMA_VERSION) {
        return Err(Error::Store {
            path: path.into(),
            message: format!(
                "schema_version is {version} in the store, this bdhs wants {SCHEMA_VERSION}; use the bdhs that \
                 made it, or another run folder"
            ),
        });
    }
    check_objects(connection, path)?;
    let health: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(sql(path))?;
    if health != "ok" {
        return Err(Error::Store {
            path: path.into(),
            message: format!("the database is damaged: {}", health.replace('\n', " ")),
        });
    }
    Ok(())
}

/// Refuses a file that holds something else than the tables of a store: a view or a trigger of one of their names could compute
/// anything, for ever.
fn check_objects(connection: &Connection, path: &Path) -> Result<()> {
    let names: Vec<&str> = TABLES
        .split("CREATE TABLE ")
        .skip(1)
        .filter_map(|table| table.split_whitespace().next())
        .collect();
    let mut statement = connection
        .prepare("SELECT type, name, strict FROM pragma_table_list WHERE schema = 'main'")
        .map_err(sql(path))?;
    let found = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .and_then(Iterator::collect::<rusqlite::Result<Vec<(String, String, bool)>>>)
        .map_err(sql(path))?;
    let refuse = |message: String| {
        let advice = "expected the tables of a store; restore a copy, or use another run folder";
        Err(Error::Store { path: path.into(), message: format!("{message}; {advice}") })
    };
    for (kind, name, strict) in found.iter().filter(|(_, name, _)| !name.starts_with("sqlite_")) {
        if kind != "table" || !strict || !names.contains(&name.as_str()) {
            return refuse(format!("the database has the {kind} {name:?}"));
        }
    }
    let triggers: Option<String> = connection
        .query_row("SELECT name FROM sqlite_schema WHERE type = 'trigger'", [], |row| row.get(0))
        .optional()
        .map_err(sql(path))?;
    if let Some(name) = triggers {
        return refuse(format!("the database has the trigger {name:?}"));
    }
    match names.iter().find(|name| !found.iter().any(|(_, other, _)| other == *name)) {
        Some(name) => refuse(format!("the database has no table {name:?}")),
        None => Ok(()),
    }
}

fn pragma(connection: &Connection, path: &Path, name: &str) -> Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0)).map_err(sql(path))
}
