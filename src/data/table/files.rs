//! Which files a name stands for: a file, a pattern, or a folder of one of the layouts that data sets have.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::json::read_document;
use crate::{Error, Result};

/// A file of rows, and the folder of its pictures if its layout says which that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub file: PathBuf,
    pub folder: Option<PathBuf>,
}

impl Found {
    fn new(file: PathBuf) -> Self {
        Self { file, folder: None }
    }
}

/// What a folder is searched for, in this order.
const FOLDERS: &str = "dataset_dict.json or *.arrow (datasets.save_to_disk), metadata.jsonl, metadata.parquet or \
                       metadata.csv (imagefolder), *.parquet, *.jsonl, *.json, *.csv, here or in data/";

/// The files that a name stands for, in order.
///
/// # Errors
/// If there is none; a folder of several splits, which are named.
pub(crate) fn find(path: &Path) -> Result<Vec<Found>> {
    if path.is_dir() {
        return folder(path);
    }
    let pattern = path.to_string_lossy();
    if !path.exists() && pattern.contains(['*', '?']) {
        let files = glob(path)?;
        if files.is_empty() {
            return Err(Error::invalid(path, "", "matches no file"));
        }
        return Ok(files.into_iter().map(Found::new).collect());
    }
    if path.extension().is_some_and(|extension| extension == "json")
        && let Some(found) = collection(path)?
    {
        return Ok(found);
    }
    Ok(vec![Found::new(path.to_owned())])
}

/// The files of a folder that end so, by name.
fn ending(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn folder(path: &Path) -> Result<Vec<Found>> {
    let splits = path.join("dataset_dict.json");
    if splits.is_file() {
        let splits: Value = read_document(&splits)?;
        let names: Vec<&str> =
            splits["splits"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        return match names.as_slice() {
            [one] => folder(&path.join(one)),
            _ => {
                let message =
                    format!("has the splits {}: give the folder of one", names.join(", "));
                Err(Error::invalid(path, "", message))
            }
        };
    }
    for base in [path.to_owned(), path.join("data")] {
        if !base.is_dir() {
            continue;
        }
        let arrow = ending(&base, &[".arrow"])?;
        if !arrow.is_empty() {
            return Ok(arrow.into_iter().map(Found::new).collect());
        }
        for name in ["metadata.jsonl", "metadata.parquet", "metadata.csv"] {
            let file = base.join(name);
            if file.is_file() {
                return Ok(vec![Found { file, folder: Some(base) }]);
            }
        }
        for endings in [
            &[".parquet"][..],
            &[".jsonl", ".jsonl.gz", ".jsonl.zst"],
            &[".json", ".json.gz", ".json.zst"],
            &[".csv", ".tsv"],
        ] {
            let mut files = ending(&base, endings)?;
            files.retain(|file| !is_description(file));
            if !files.is_empty() {
                return Ok(files.into_iter().map(Found::new).collect());
            }
        }
    }
    Err(Error::invalid(path, "", format!("is a folder without data, expected {FOLDERS}")))
}

/// Files of JSON that describe a folder and hold no rows.
fn is_description(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    ["dataset_info.json", "dataset_infos.json", "state.json", "config.json"].contains(&&*name)
}

/// MMPR's `meta.json`: an object whose entries name a file of rows (`annotation`) and the folder of its pictures (`root`),
/// both beside it or beside its folder.
fn collection(path: &Path) -> Result<Option<Vec<Found>>> {
    let Ok(bytes) = fs::read(path) else { return Ok(None) };
    let Ok(Value::Object(entries)) = serde_json::from_slice::<Value>(&bytes) else {
        return Ok(None);
    };
    if entries.is_empty() || !entries.values().all(|entry| entry["annotation"].is_string()) {
        return Ok(None);
    }
    let own = path.parent().unwrap_or(Path::new(""));
    let place = |text: &str| {
        let all = [Some(own), own.parent()];
        let mut all = all.into_iter().flatten().map(|base| base.join(text));
        all.find(|place| place.exists()).unwrap_or_else(|| own.join(text))
    };
    let found = entries.values().map(|entry| Found {
        file: place(entry["annotation"].as_str().unwrap_or_default()),
        folder: entry["root"].as_str().map(place),
    });
    Ok(Some(found.collect()))
}

/// Files whose paths match a pattern: `*` stands for any characters and `?` for one, within a name.
fn glob(pattern: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let text = part.as_os_str().to_string_lossy();
        if !text.contains(['*', '?']) {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let mut next = Vec::new();
        for base in found {
            let folder = if base.as_os_str().is_empty() { Path::new(".") } else { &base };
            let Ok(entries) = fs::read_dir(folder) else { continue };
            let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
            let matching = names.filter(|name| matches(text.as_bytes(), name.as_encoded_bytes()));
            next.extend(matching.map(|name| base.join(name)));
        }
        found = next;
    }
    found.retain(|path| path.is_file());
    found.sort();
    Ok(found)
}

fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.first(), name.first()) {
        (None, None) => true,
        (Some(b'*'), _) => {
            matches(&pattern[1..], name) || (!name.is_empty() && matches(pattern, &name[1..]))
        }
        (Some(b'?'), Some(_)) => matches(&pattern[1..], &name[1..]),
        (Some(a), Some(b)) if a == b => matches(&pattern[1..], &name[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_within_a_name() {
        for (pattern, name, expected) in [
            ("*.parquet", "a.parquet", true),
            ("train-*-of-?.parquet", "train-0-of-2.parquet", true),
            ("train-*-of-?.parquet", "train-0-of-12.parquet", false),
            ("*", "", true),
            ("?", "", false),
            ("a*b*c", "aXbYbZc", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
