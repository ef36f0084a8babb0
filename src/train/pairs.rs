//! Preference pairs from files: rows of a data set's shapes that have a rejected answer, as our exports and others' write
//! them.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use rayon::prelude::*;

use super::sequence::{POSITIONS, Sequences, layouts};
use super::settings::Settings;
use crate::data::{Dataset, DatasetOptions, Picture, Reason, Skipped};
use crate::models::{Model, Source, Turn};
use crate::sampling::Flag;
use crate::{Error, Result};

/// A chosen and a rejected answer to one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Number of its row over all files, from 1.
    pub row: usize,
    /// Where its row is in its file: `line 3`.
    pub place: String,
    /// The column `id`, or the row's number.
    pub id: String,
    /// Pictures, in the order of their placeholders.
    pub images: Vec<Picture>,
    /// The conversation up to the question.
    pub turns: Vec<Turn>,
    /// y+.
    pub chosen: String,
    /// y-.
    pub rejected: String,
    /// The rejected answer that the data came with, beside this program's own.
    pub source_rejected: Option<String>,
    /// Flags of the rejected answer, of those that we know.
    pub flags: Vec<Flag>,
}

impl Pair {
    /// Whether a flag says that the rejected answer teaches nothing.
    pub fn is_flagged(&self) -> bool {
        self.flags.iter().any(|flag| Flag::UNUSABLE.contains(flag))
    }
}

/// Pairs, and what was left out.
#[derive(Debug)]
pub struct Pairs {
    /// Those that can be trained on.
    pub pairs: Vec<Pair>,
    /// Rows left out.
    pub skipped: Vec<Skipped>,
    /// Rows that were read.
    pub rows: usize,
    /// What the files hold, for people.
    pub about: String,
    /// What a reader of the log should know.
    pub note: Option<String>,
}

impl Pairs {
    /// Leaves out those whose pictures cannot be decoded, or for whose tokens the model has too few positions. Its weights are
    /// not read for it.
    ///
    /// # Errors
    /// As [`read_some`] if more than the share `most` of the rows is left out; a model that cannot be loaded.
    pub fn leave_out(
        &mut self,
        source: &Source,
        settings: &Settings,
        file: &Path,
        most: f64,
    ) -> Result<()> {
        let weights = source.weights(&Device::Cpu, DType::F32)?.outline();
        let model = Model::with_weights(source.base(), &weights)?;
        let fault = |pair: &Pair| -> Option<(Reason, String)> {
            let mut pictures = pair.images.iter();
            if let Some(Err(error)) =
                pictures.find_map(|one| Some(one.open()).filter(Result::is_err))
            {
                return Some((Reason::BrokenPicture, error.to_string()));
            }
            let layouts = layouts(&model, pair);
            match layouts.and_then(|layouts| Sequences::new(&model, pair, &layouts, settings)) {
                Ok(_) => None,
                Err(Error::Invalid { message, .. }) if message.contains(POSITIONS) => {
                    Some((Reason::TooLong, message))
                }
                Err(error) => Some((Reason::Malformed, error.to_string())),
            }
        };
        let faults: Vec<_> = self.pairs.par_iter().map(fault).collect();
        let mut faults = faults.into_iter();
        let skipped = &mut self.skipped;
        self.pairs.retain(|pair| {
            let Some((reason, message)) = faults.next().flatten() else { return true };
            skipped.push(Skipped {
                row: pair.row,
                file: file.to_owned(),
                at: pair.place.clone(),
                id: pair.id.clone(),
                reason,
                message,
            });
            false
        });
        let share = self.skipped.len() as f64 / self.rows.max(1) as f64;
        if share > most || self.pairs.is_empty() {
            let advice = format!(
                "{:.1} % of the rows would be left out, more than data.max_skipped = {most} allows",
                100.0 * share
            );
            return Err(Skipped::refuse(&self.skipped, self.rows, &advice));
        }
        Ok(())
    }
}

/// Reads all pairs of a file, every row of which must be one. `images` is the picture folder, the file's own by default.
///
/// # Errors
/// As [`read_some`] without a share that may be left out.
pub fn read_pairs(path: &Path, images: Option<&Path>) -> Result<Vec<Pair>> {
    let options =
        DatasetOptions { image_folder: images.map(Path::to_owned), ..DatasetOptions::default() };
    Ok(read_some(&[path.to_owned()], &options, None)?.pairs)
}

/// Reads the pairs of a run's cell, as this program exported them: their paths are taken wherever they lead. Relative ones, of
/// older runs, are relative to `images`.
///
/// # Errors
/// As [`read_pairs`].
pub fn read_exported(path: &Path, images: &Path) -> Result<Vec<Pair>> {
    let images = Some(images.to_owned());
    let options = DatasetOptions { image_folder: images, anywhere: true, ..Default::default() };
    Ok(read_some(&[path.to_owned()], &options, None)?.pairs)
}

/// Reads pairs. With `most`, rows that are of no use are left out, up to that share of all. Pictures that lie in the files
/// are read when they are needed.
///
/// # Errors
/// As [`Dataset::list`]. Rows of no use, by kind, where none may be left out or too many are: without a picture or a rejected
/// answer, with a chosen answer that equals the rejected one and no flag that says so, with pictures that are missing or not
/// as many as their placeholders.
pub fn read_some(paths: &[PathBuf], options: &DatasetOptions, most: Option<f64>) -> Result<Pairs> {
    let options = DatasetOptions { needs_picture: true, needs_rejected: true, ..options.clone() };
    let dataset = Dataset::list(paths, &options)?;
    match most {
        Some(most) => dataset.check_share(most)?,
        None => dataset
            .check("--skip-bad (data.skip_bad = true) leaves such rows out and counts them")?,
    }
    let mut pairs = Vec::with_capacity(dataset.len());
    /// Rows read at a time.
    const CHUNK: usize = 256;
    for first in (0..dataset.len()).step_by(CHUNK) {
        for sample in dataset.read_lazily(first..dataset.len().min(first + CHUNK))? {
            let rejected = sample.rejected.ok_or_else(|| {
                let path = paths.first().cloned().unwrap_or_default();
                let message =
                    "has a rejected answer to its last turn only, and another turn is taken";
                Error::invalid(path, &sample.place, message)
            })?;
            pairs.push(Pair {
                row: sample.row,
                place: sample.place,
                id: sample.id,
                images: sample.images,
                turns: sample.turns,
                chosen: sample.reference,
                rejected,
                source_rejected: sample.source_rejected,
                flags: sample.flags,
            });
        }
    }
    Ok(Pairs {
        pairs,
        rows: dataset.described().rows as usize,
        about: dataset.described().text(),
        note: dataset.note(),
        skipped: dataset.skipped().to_vec(),
    })
}
