//! The files of a folder of answers or replies: what it was made with, images by name.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result, data::json::read_document, files::write_file};

/// The one field of `run.json` that may change, as images are found by name.
pub const IMAGES: &str = "images";

/// Writes what a run is made with, or checks that it is what was written before.
pub(super) fn claim(path: &Path, run: &Value) -> Result<()> {
    if !path.exists() {
        return write_file(path, format!("{run:#}\n").as_bytes());
    }
    let found: Value = read_document(path)?;
    let differs = run
        .as_object()
        .into_iter()
        .flatten()
        .find(|(name, value)| name.as_str() != IMAGES && found.get(name) != Some(*value));
    match differs {
        None => Ok(()),
        Some((name, value)) => {
            let was = found.get(name).unwrap_or(&Value::Null);
            let message = format!(
                "was made with {name} {was}, this run has {value}; expected the same, or another folder"
            );
            Err(Error::Store { path: path.into(), message })
        }
    }
}

/// The file of an image that a benchmark names by file name, address or id.
///
/// # Errors
/// If there is none; the message says what was looked for.
pub fn find_image(folder: &Path, name: &str) -> Result<PathBuf> {
    let base = name.rsplit('/').next().unwrap_or(name);
    let mut names = vec![name.to_owned(), base.to_owned()];
    names.extend(["jpg", "png", "jpeg"].map(|end| format!("{base}.{end}")));
    if let Ok(number) = base.parse::<u64>() {
        names.extend(
            ["COCO_val2014_", "COCO_train2014_", ""].map(|p| format!("{p}{number:012}.jpg")),
        );
    }
    let inside = |name: &&String| !name.contains("..") && !name.starts_with('/');
    let found =
        names.iter().filter(inside).map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let tried = names.join(", ");
        Error::invalid(folder, "", format!("has no image {name:?}; looked for {tried}"))
    })
}
