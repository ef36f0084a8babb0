//! Benchmark results of a run: the folders `eval/NAME` of a run folder, as `bdhs eval all --out` leaves them, and some of those
//! that an ablation left.

use std::path::{Path, PathBuf};

use crate::{
    Error, Result,
    ablation::{Ablation, BASELINE, CONTROL, judged_folder},
    data::json::read_document,
    eval::{
        Outcome, compare,
        summary::{SUMMARY, Summary},
    },
};

/// One model on several benchmarks.
pub(super) struct Evaluation {
    /// The folder's name.
    pub name: String,
    pub folder: PathBuf,
    pub summary: Summary,
}

impl Evaluation {
    /// A metric's full result, if the evaluation has the metric.
    ///
    /// # Errors
    /// If the file is no result.
    pub fn outcome(&self, metric: &str) -> Result<Option<Outcome>> {
        if self.summary.metrics.iter().all(|row| row.metric != metric) {
            return Ok(None);
        }
        compare::read(&self.folder.join(metric).join("result.json")).map(Some)
    }
}

/// All evaluations of a run: the least masked first, then by name. What is compared is compared with the first.
///
/// # Errors
/// If a summary is malformed.
pub(super) fn read(run: &Path, ablation: Option<&Ablation>) -> Result<Vec<Evaluation>> {
    let root = run.join("eval");
    let mut folders = Vec::new();
    if root.is_dir() {
        let entries = std::fs::read_dir(&root).map_err(Error::io(&root))?;
        folders.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    let mut all = Vec::new();
    for folder in folders {
        all.extend(evaluation(folder)?);
    }
    all.sort_by(|a, b| {
        let rho = a.summary.rho.total_cmp(&b.summary.rho);
        rho.then_with(|| a.name.cmp(&b.name))
    });
    // Of an ablation, the models that are shown answer for answer.
    let shown = ablation.map(|ablation| [BASELINE, &ablation.default, CONTROL]);
    for (place, name) in shown.into_iter().flatten().enumerate() {
        if let Some(found) = evaluation(judged_folder(run, name))? {
            all.insert(place.min(all.len()), found);
        }
    }
    Ok(all)
}

/// What a folder holds; a run that is not finished has no summary yet.
fn evaluation(folder: PathBuf) -> Result<Option<Evaluation>> {
    let path = folder.join(SUMMARY);
    if !path.is_file() {
        return Ok(None);
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Some(Evaluation { name, summary: read_document(&path)?, folder }))
}
