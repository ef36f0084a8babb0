//! A finished run, read from its folder.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    Options,
    evaluations::{self, Evaluation},
    texts::{self, Text},
};
use crate::{
    Error, Result,
    ablation::{self, Ablation},
    config::{Model, SavedRun},
    data::json::read_document,
    models::PatchMap,
    sampling::{
        MOST_ATTEMPTS, SamplingConfig,
        acceptance::{PAPER_THRESHOLD, nearest_to_paper},
    },
    store::{EncoderInfo, Manifest, Store, Wave},
    sweep::{
        grid::{Attempts, Cell, ScoreTable, decide_cells},
        summary::{CellSummary, Summary},
    },
};

/// Everything that sections are made from.
pub(super) struct Run {
    pub store: Store,
    pub manifest: Manifest,
    pub summary: Summary,
    /// None in folders of older versions.
    pub saved: Option<SavedRun>,
    pub sampling: SamplingConfig,
    /// Names in the summary's order.
    pub encoders: Vec<String>,
    /// The same encoders as the store knows them.
    pub encoder_infos: Vec<EncoderInfo>,
    /// Ascending.
    pub thresholds: Vec<f64>,
    /// One an encoder.
    pub tables: Vec<ScoreTable>,
    /// Decided anew from the store: encoder by encoder, thresholds in the summary's order. `pairs[i]` is that of sample i.
    pub cells: Vec<Cell>,
    pub waves: Vec<Wave>,
    /// By sample.
    pub texts: BTreeMap<u32, Text>,
    pub patches: Option<PatchMap>,
    /// Where relative picture paths start.
    pub images: Option<PathBuf>,
    /// What models scored on benchmarks.
    pub evaluations: Vec<Evaluation>,
    /// The trained cells.
    pub ablation: Option<Ablation>,
    /// The run's own.
    pub folder: PathBuf,
    /// What the page cannot show.
    pub missing: Vec<String>,
}

impl Run {
    /// Reads a run folder.
    pub fn load(folder: &Path, options: &Options) -> Result<Self> {
        let summary = Summary::read(folder)?;
        let store = Store::open(folder.join("store.db"))?;
        check_counts(folder, &summary, &store)?;
        let manifest = store.manifest().clone();
        let saved = SavedRun::read(folder)?;
        let mut missing = Vec::new();
        if saved.is_none() {
            missing.push(
                "run.json: the run was made by an older version; its settings are those of the store, and masks \
                 are not drawn"
                    .to_owned(),
            );
        }
        let sampling = match &saved {
            Some(saved) => saved.config.sampling.clone(),
            None => stored_sampling(&store, &summary)?,
        };
        let rule = Attempts { count: summary.attempts, guidance: sampling.guidance };
        let (encoders, mut thresholds) = axes(&summary);
        let encoder_infos = find_encoders(&store, &encoders)?;
        let mut tables = Vec::with_capacity(encoder_infos.len());
        for encoder in &encoder_infos {
            let rows = store.score_rows(&encoder.fingerprint)?;
            tables.push(ScoreTable::new(&encoder.name, &rows, rule));
        }
        let samples: Vec<u32> = (0..summary.samples as u32).collect();
        let cells = decide_cells(&tables, &samples, &thresholds, rule)?;
        thresholds.sort_by(f64::total_cmp);
        let waves = store.waves()?;
        let images = options
            .images
            .clone()
            .or_else(|| saved.as_ref().map(|saved| saved.config.data.image_folder().to_owned()));
        let patches = saved.as_ref().and_then(|saved| saved.patches.clone());
        let path = folder.join(ablation::RESULT);
        let ablation: Option<Ablation> =
            if path.is_file() { Some(read_document(&path)?) } else { None };
        let mut run = Self {
            texts: BTreeMap::new(),
            store,
            manifest,
            summary,
            saved,
            sampling,
            encoders,
            encoder_infos,
            thresholds,
            tables,
            cells,
            waves,
            patches,
            images,
            evaluations: evaluations::read(folder, ablation.as_ref())?,
            ablation,
            folder: folder.to_owned(),
            missing,
        };
        run.load_texts(folder)?;
        Ok(run)
    }

    /// Prompts and references, from wherever they still are.
    fn load_texts(&mut self, folder: &Path) -> Result<()> {
        let samples = self.summary.samples as usize;
        self.texts = texts::from_exports(folder, &self.cells, samples)?;
        if self.texts.len() >= samples {
            return Ok(());
        }
        let lack = samples - self.texts.len();
        let what = format!("prompts and references of {lack} of {samples} samples");
        match self.saved.as_ref().map(|saved| texts::from_dataset(&saved.config)) {
            Some(Ok(known)) => {
                for (sample, text) in known {
                    if (sample as usize) < samples {
                        self.texts.entry(sample).or_insert(text);
                    }
                }
            }
            Some(Err(error)) => self
                .missing
                .push(format!("{what}: no export of the run has them, and the data file: {error}")),
            None => self.missing.push(format!("{what}: no export of the run has them")),
        }
        Ok(())
    }

    /// The summary of a cell.
    pub fn cell(&self, encoder: &str, threshold: f64) -> Option<&CellSummary> {
        self.summary
            .cells
            .iter()
            .find(|cell| cell.encoder == encoder && cell.threshold == threshold)
    }

    /// The model folder's name, or its repository's.
    pub fn model_name(&self) -> String {
        match &self.saved {
            Some(saved) => saved.config.model.name(),
            None => {
                Model { path: PathBuf::from(&self.manifest.model_path), ..Model::default() }.name()
            }
        }
    }

    /// How many times fewer candidates than one run a cell would need.
    pub fn saved(&self) -> f64 {
        let summary = &self.summary;
        summary.candidates_if_independent as f64 / summary.candidates_generated.max(1) as f64
    }

    /// The threshold of the grid that is nearest to the paper's.
    pub fn main_threshold(&self) -> f64 {
        nearest_to_paper(&self.thresholds).map_or(PAPER_THRESHOLD, |i| self.thresholds[i])
    }
}

/// Counts that decide how much memory the page takes must be those of the store.
fn check_counts(folder: &Path, summary: &Summary, store: &Store) -> Result<()> {
    let path = folder.join("summary.json");
    let stored = store.samples()?;
    if summary.samples != stored {
        let message =
            format!("is {}, but store.db has candidates of {stored} samples", summary.samples);
        return Err(Error::invalid(path, "field samples", message));
    }
    if !(1..=MOST_ATTEMPTS).contains(&summary.attempts) {
        let message = format!("is {}, expected between 1 and {MOST_ATTEMPTS}", summary.attempts);
        return Err(Error::invalid(path, "field attempts", message));
    }
    for (i, cell) in summary.cells.iter().enumerate() {
        let field = format!("field cells[{i}]");
        if cell.accepted_by_attempt.len() != summary.attempts as usize {
            let (found, wanted) = (cell.accepted_by_attempt.len(), summary.attempts);
            let message = format!("has {found} counts in accepted_by_attempt, expected {wanted}");
            return Err(Error::invalid(path, field, message));
        }
        if !(-1.0..=1.0).contains(&cell.threshold) {
            let message =
                format!("has the threshold {}, expected a cosine in [-1, 1]", cell.threshold);
            return Err(Error::invalid(path, field, message));
        }
    }
    Ok(())
}

/// Encoders and thresholds in the summary's order.
fn axes(summary: &Summary) -> (Vec<String>, Vec<f64>) {
    let (mut encoders, mut thresholds) = (Vec::new(), Vec::new());
    for cell in &summary.cells {
        if !encoders.contains(&cell.encoder) {
            encoders.push(cell.encoder.clone());
        }
        if !thresholds.contains(&cell.threshold) {
            thresholds.push(cell.threshold);
        }
    }
    (encoders, thresholds)
}

/// The settings of a store without `run.json`. Guidance is no part of them, but its candidates show it.
fn stored_sampling(store: &Store, summary: &Summary) -> Result<SamplingConfig> {
    let text = &store.manifest().sampling;
    let sampling: SamplingConfig = serde_json::from_str(text).map_err(|error| {
        Error::invalid(store.path(), "manifest field sampling", error.to_string())
    })?;
    let guidance = store.candidate_refs()?.iter().any(|head| head.guided);
    Ok(SamplingConfig { guidance, attempts: summary.attempts, ..sampling })
}

fn find_encoders(store: &Store, names: &[String]) -> Result<Vec<EncoderInfo>> {
    let known = store.encoders()?;
    names
        .iter()
        .map(|name| {
            let mut found = known.iter().filter(|encoder| encoder.name == *name);
            match (found.next(), found.next()) {
                (Some(encoder), None) => Ok(encoder.clone()),
                (none, _) => {
                    let how_many = if none.is_none() { "none" } else { "several" };
                    let message =
                        format!("knows {how_many} of the name {name:?}, which summary.json has");
                    Err(Error::Store { path: store.path().into(), message })
                }
            }
        })
        .collect()
}
