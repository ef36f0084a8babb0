//! What an SQLite failure means for the user.

use std::path::PathBuf;

use rusqlite::ErrorCode;

use crate::Error;

/// Turns an SQLite error into one that names the file and what to do; for `map_err`.
pub(super) fn sql(path: impl Into<PathBuf>) -> impl FnOnce(rusqlite::Error) -> Error {
    let path = path.into();
    move |error| Error::Store { path, message: explain(&error) }
}

/// Whether the statement broke a uniqueness, foreign-key or check rule.
pub(super) fn is_constraint(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}

fn explain(error: &rusqlite::Error) -> String {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            "the disk is full; every committed wave is kept: free some space, and the same command resumes"
        }
        Some(ErrorCode::NotADatabase) => "not an SQLite database, so not a bdhs store",
        Some(ErrorCode::DatabaseCorrupt) => {
            "the database is damaged; restore a copy, or save what is readable with `sqlite3 FILE .recover`"
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program kept the database in use for too long; close it, and the same command resumes"
        }
        Some(ErrorCode::ReadOnly) => "the file or its folder cannot be written",
        Some(ErrorCode::CannotOpen) => "the file cannot be opened, or its folder cannot be written",
        Some(ErrorCode::PermissionDenied) => "permission denied",
        Some(ErrorCode::SystemIoFailure) => {
            "the system failed to read or write; every committed wave is kept"
        }
        _ => return error.to_string(),
    };
    format!("{advice} ({error})")
}
