//! What a run folder keeps of its run beside the results: enough to report on it when nothing else is left.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Config, named::recorded};
use crate::{Error, Result, data::Described, files::write_json, models::PatchMap};

/// Its name in a run folder.
const FILE: &str = "run.json";

/// How a run was made; written when it begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedRun {
    /// The configuration, its paths absolute; what is from the hub by repository and commit.
    pub config: Config,
    /// Where the model's image tokens lie in a picture; none if its settings could not be read.
    pub patches: Option<PatchMap>,
    /// What the data was: shapes of its rows, and how many were left out. Empty in runs of older versions.
    #[serde(default)]
    pub data: Described,
}

impl SavedRun {
    /// What is kept of a run.
    pub fn of(config: &Config, data: Described) -> Self {
        let mut config = config.clone();
        // A drawing aid: a run does not fail for the lack of it.
        let patches = config.model.source().and_then(|source| PatchMap::read(&source)).ok();
        config.visit_paths(&mut |path, kind| match (kind, std::path::absolute(&*path)) {
            (Some(_), _) => *path = recorded(path),
            (None, Ok(absolute)) => *path = absolute,
            (None, Err(_)) => {}
        });
        Self { config, patches, data }
    }

    /// Writes it into a run folder.
    pub fn write(&self, run: &Path) -> Result<()> {
        write_json(&run.join(FILE), self)
    }

    /// Reads that of a run folder; none where a folder has none, as older versions left it.
    ///
    /// # Errors
    /// A file that cannot be read, or that holds something else.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::Io { path, source: error }),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Error::invalid(&path, format!("line {}", error.line()), error.to_string())
        })
    }
}
