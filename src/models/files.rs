//! Which files of a model's folder are read: what a download fetches, and what a fingerprint covers.

use std::path::Path;

use serde_json::Value;

use super::adapter;
use super::sentencepiece;
use super::weights::{INDEX, Index, SINGLE};
use crate::{Error, Result};

/// Settings that are read, by name, in a model's folder or in that of a module.
const SETTINGS: [&str; 11] = [
    adapter::CONFIG,
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Whether a file, by its path in the model's folder, holds settings that are read.
pub(super) fn is_settings(path: &str) -> bool {
    let name = match path.split_once('/') {
        Some((folder, name)) if is_module(folder) => name,
        Some(_) => return false,
        None => path,
    };
    let limits = name.starts_with("sentence_") && name.ends_with("_config.json");
    SETTINGS.contains(&name) || limits
}

/// Whether a folder's name is that of a module, as sentence-transformers numbers them: `1_Pooling`.
pub(super) fn is_module(folder: &str) -> bool {
    folder.split_once('_').is_some_and(|(number, _)| number.parse::<u32>().is_ok())
}

/// A SentencePiece model and what is read beside it, where there is no `tokenizer.json`.
pub(super) const PIECES: [&str; 3] =
    [sentencepiece::PIECES, "added_tokens.json", "special_tokens_map.json"];

/// The vocabulary of an encoder that has neither `tokenizer.json` nor [`PIECES`].
pub(super) const VOCABULARY: &str = "vocab.txt";

/// What is read of a folder in the place of `tokenizer.json`, by name: those of [`PIECES`], or [`VOCABULARY`].
pub(super) fn pieces(dir: &Path) -> impl Iterator<Item = &'static str> + '_ {
    let is = |name: &str| dir.join(name).is_file();
    let names: &[&str] = match (is("tokenizer.json"), is(PIECES[0])) {
        (true, _) => &[],
        (false, true) => &PIECES,
        (false, false) => &[VOCABULARY],
    };
    names.iter().copied().filter(move |name| dir.join(name).is_file())
}

/// The folders of a model's modules, relative to its own: those that `modules.json` names; without it, those that are numbered.
///
/// # Errors
/// [`Error::Io`] if the folder or the file cannot be read.
pub(super) fn modules(dir: &Path) -> Result<Vec<String>> {
    let list = dir.join("modules.json");
    let mut folders = Vec::new();
    if list.is_file() {
        let text = std::fs::read_to_string(&list).map_err(Error::io(&list))?;
        // What is malformed is said by the loader.
        let entries: Value = serde_json::from_str(&text).unwrap_or_default();
        let paths = entries.as_array().into_iter().flatten();
        let paths =
            paths.filter_map(|entry| Some(entry["path"].as_str()?.trim_matches('/').to_owned()));
        folders.extend(paths.filter(|path| !path.is_empty() && dir.join(path).is_dir()));
    } else {
        for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
            let entry = entry.map_err(Error::io(dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_module(&name) && entry.path().is_dir() {
                folders.push(name);
            }
        }
    }
    folders.sort();
    folders.dedup();
    Ok(folders)
}

/// The weight files that are read of a folder, by name: an adapter's, and the single file or else the index and its shards.
///
/// # Errors
/// An index that is malformed.
pub(super) fn weights(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in [adapter::TENSORS, adapter::WHOLE] {
        if adapter::is_adapter(dir) && dir.join(name).is_file() {
            names.push(name.to_owned());
        }
    }
    if dir.join(SINGLE).is_file() {
        names.push(SINGLE.to_owned());
    } else if dir.join(INDEX).is_file() {
        names.push(INDEX.to_owned());
        names.extend(Index::read(&dir.join(INDEX))?.shards);
    }
    Ok(names)
}

/// Refuses a checkpoint whose `config.json`, here `path`, says that its weights are quantised: its files hold packed integers.
///
/// # Errors
/// [`Error::Unsupported`] with the method, unless the field `quantization_config` is absent or null.
pub(super) fn refuse_quantised(settings: Option<&Value>, path: &Path) -> Result<()> {
    let Some(settings) = settings.filter(|settings| !settings.is_null()) else { return Ok(()) };
    let method = settings["quant_method"].as_str().unwrap_or("of an unnamed method");
    Err(Error::unsupported(
        format!("quantization_config ({method}) in {}", path.display()),
        "weights are read in f32, f16 or bf16: use the checkpoint that this one was made from",
    ))
}
