//! Where the time of a run went: beside each of its stores, since many processes may have worked on one run.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{Result, data::json::read_document, files::write_json};

/// Wall time of each stage, in seconds, over all processes that worked on a store.
pub(super) type Seconds = BTreeMap<String, f64>;

/// `store.seconds.json` beside `store.db`.
fn path(store: &Path) -> PathBuf {
    store.with_extension("seconds.json")
}

/// Those of a store; none before a process got to the end of a block.
pub(super) fn read(store: &Path) -> Result<Seconds> {
    let path = path(store);
    if path.exists() { read_document(&path) } else { Ok(Seconds::new()) }
}

/// Replaces those of a store.
pub(super) fn write(store: &Path, seconds: &Seconds) -> Result<()> {
    write_json(&path(store), seconds)
}

/// Those of several stores together.
pub(super) fn sum(all: impl IntoIterator<Item = Seconds>) -> Seconds {
    let mut total = Seconds::new();
    for (stage, seconds) in all.into_iter().flatten() {
        *total.entry(stage).or_default() += seconds;
    }
    total
}
