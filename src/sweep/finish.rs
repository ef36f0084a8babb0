//! The end of a run: decide all cells from the store, export them, sum up.

use std::collections::BTreeMap;

use super::{
    export::{ExportOptions, Exporter},
    grid::{Attempts, Cell, ScoreTable, Slot, decide_cells},
    runner::{Runner, parts},
    seconds::{self, Seconds},
    summary::{Summary, SummaryInput, Truncation},
};
use crate::{Result, files::write_json, sampling::Flag, store::EncoderInfo};

/// Decides every cell, writes the exports, `summary.json` and `run.json` into the run folder.
pub(super) fn finish(runner: &Runner) -> Result<Summary> {
    let sampling = &runner.config.sampling;
    let rule = Attempts { count: sampling.attempts, guidance: sampling.guidance };
    let (mut tables, mut truncation) = (Vec::new(), Vec::new());
    for encoder in &runner.encoders {
        let rows = runner.store.score_rows(encoder.fingerprint())?;
        tables.push(ScoreTable::new(encoder.name(), &rows, rule));
        truncation.push(Truncation::new(&EncoderInfo::of(encoder), &rows));
    }
    let samples: Vec<u32> = (0..runner.dataset.len() as u32).collect();
    let cells = decide_cells(&tables, &samples, &runner.config.grid.thresholds, rule)?;
    export(runner, &cells)?;
    let summary = Summary::new(&SummaryInput {
        samples: &samples,
        attempts: rule,
        tables: &tables,
        cells: &cells,
        flags: &flags(runner)?,
        truncation: &truncation,
        seconds: &seconds(runner)?,
        budget_lowered: runner.store.budget_changes()?.len() as u64,
        skipped: &runner.dataset.described().skipped,
    });
    write_json(&runner.config.run.out.join("summary.json"), &summary)?;
    Ok(summary)
}

fn export(runner: &Runner, cells: &[Cell]) -> Result<()> {
    let folder = runner.config.data.image_folder();
    let exporter = Exporter::new(&runner.store, &runner.dataset, folder, &runner.config.sampling)?;
    let exclude = match runner.config.export.exclude_flagged {
        true => Flag::UNUSABLE.to_vec(),
        false => Vec::new(),
    };
    let embed_images = runner.config.export.embed_images;
    let formats = runner.config.export.format.clone();
    let options = ExportOptions { exclude, embed_images, formats };
    for cell in cells {
        exporter.export(cell, &runner.config.run.out, &options)?;
    }
    Ok(())
}

/// Those of this run's store and of its parts.
fn seconds(runner: &Runner) -> Result<Seconds> {
    let parts = parts(runner.config)?;
    let parts = parts.iter().map(|part| seconds::read(part)).collect::<Result<Vec<_>>>()?;
    Ok(seconds::sum(parts.into_iter().chain([runner.seconds.clone()])))
}

/// The flags of every candidate of this run's samples.
fn flags(runner: &Runner) -> Result<BTreeMap<Slot, Vec<Flag>>> {
    /// References in memory at a time.
    const CHUNK: usize = 256;
    let rule = runner.config.sampling.sentences;
    let count = runner.dataset.len();
    let mut flags = BTreeMap::new();
    let (mut first, mut references) = (0, Vec::new());
    // Candidates come in the order of samples.
    runner.store.each_candidate(|_, candidate| {
        let at = candidate.sample as usize;
        if at >= count {
            return Ok(());
        }
        if !(first..first + references.len()).contains(&at) {
            first = at;
            references = runner.dataset.references(first..count.min(first + CHUNK))?;
        }
        let slot = (candidate.sample, candidate.attempt, candidate.guided);
        flags.insert(slot, candidate.flags(&references[at - first], rule));
        Ok(())
    })?;
    Ok(flags)
}
