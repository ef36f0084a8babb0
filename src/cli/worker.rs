//! The worker's side of a process that another one started: settings in by the first line of stdin, progress out by lines on stdout.

use std::io::Write;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, config::Config};

/// A line of a worker's stdout.
#[derive(Serialize, Deserialize)]
pub(super) enum Message {
    /// So many steps of the work are done.
    Advance(u64),
    /// Something that the user should read.
    Warn(String),
}

impl Message {
    /// Writes the line. Where nobody reads it any more, stdin has ended too, and so does this process.
    pub(super) fn send(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            let _ = writeln!(std::io::stdout().lock(), "{line}");
        }
    }
}

/// What a worker is to do: the line of stdin that it was started with.
pub(super) fn settings() -> Result<Config> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(Error::io("stdin"))?;
    serde_json::from_str(&line)
        .map_err(|error| Error::invalid("stdin", "line 1", format!("no settings: {error}")))
}

/// Ends this process, which is a worker, once stdin ends. What it has committed is kept, as after any kill.
pub(super) fn end_with_stdin() {
    thread::spawn(|| {
        // Nothing more is expected there; an error is as good as the end.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(130);
    });
}
