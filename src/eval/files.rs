//! Where a benchmark's files are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file or folder of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// Name on the command line, as in `--file labels=PATH`.
    pub key: &'static str,
    /// Paths under the data folder where users of the reference have it, the likeliest first.
    pub names: &'static [&'static str],
    /// What it holds.
    pub what: &'static str,
    /// Where it comes from.
    pub from: &'static str,
    /// Whether nothing can be scored without it.
    pub required: bool,
}

impl Input {
    /// The inputs as help text.
    pub(super) fn list(inputs: &[Self]) -> String {
        let mut text =
            String::from("Files, looked for in --data, or named with --file KEY=PATH:\n");
        for input in inputs {
            let need = if input.required { "" } else { " (optional)" };
            let names = input.names.join(" | ");
            text.push_str(&format!(
                "\n  {}{need}: {}\n      {names}\n      from {}\n",
                input.key, input.what, input.from
            ));
        }
        text
    }
}

/// The data folder, and files that were named one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Folder with the benchmark's own layout.
    pub folder: Option<PathBuf>,
    /// Paths by the key of their input; they come first.
    pub named: BTreeMap<String, PathBuf>,
    /// What results call the data, where it is not the benchmark itself.
    pub label: Option<String>,
}

impl Files {
    /// Checks that every named file is one of the metric's.
    ///
    /// # Errors
    /// On a key that no input has.
    pub fn validate(&self, inputs: &[Input]) -> Result<()> {
        match self.named.keys().find(|key| inputs.iter().all(|input| input.key != *key)) {
            None => Ok(()),
            Some(key) => {
                let keys: Vec<&str> = inputs.iter().map(|input| input.key).collect();
                Err(Error::argument("--file", "key", format!("{key:?}"), keys.join(", ")))
            }
        }
    }

    /// The path of an input; none if it is optional and not there.
    ///
    /// # Errors
    /// If a named path does not exist, or a required input is nowhere; the message says where it comes from.
    pub fn find(&self, inputs: &[Input], key: &str) -> Result<Option<PathBuf>> {
        let Some(input) = inputs.iter().find(|input| input.key == key) else {
            return Ok(None);
        };
        if let Some(path) = self.named.get(key) {
            std::fs::metadata(path).map_err(Error::io(path))?;
            return Ok(Some(path.clone()));
        }
        let folder = self.folder.as_deref();
        let found = folder.and_then(|folder| {
            input.names.iter().map(|name| folder.join(name)).find(|p| p.exists())
        });
        match found {
            None if input.required => Err(missing(folder, input)),
            found => Ok(found),
        }
    }

    /// As [`Files::find`], for an input that this run cannot do without, whether or not others can.
    ///
    /// # Errors
    /// As [`Files::find`], and if it is not there.
    pub fn need(&self, inputs: &[Input], key: &str) -> Result<PathBuf> {
        match (self.find(inputs, key)?, inputs.iter().find(|input| input.key == key)) {
            (Some(path), _) => Ok(path),
            (None, Some(input)) => Err(missing(self.folder.as_deref(), input)),
            (None, None) => Err(Error::argument("--file", "key", key, "one of the metric's files")),
        }
    }
}

fn missing(folder: Option<&Path>, input: &Input) -> Error {
    let Input { key, what, from, names, .. } = input;
    let names = names.join(" or ");
    let message = format!(
        "is missing: {what}, from {from}; expected {names} in the folder of --data, or --file {key}=PATH"
    );
    Error::invalid(folder.unwrap_or(Path::new("--data")), format!("file {key}"), message)
}
