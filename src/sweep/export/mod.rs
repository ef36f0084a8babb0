//! A cell's pairs as files that a trainer reads: JSONL and Parquet, in TRL's layout of vision preferences.
//!
//! `images`, `prompt`, `chosen`, `rejected` are what TRL trains on; the prompt holds one `{"type": "image"}` for each
//! image, where it stood. In Parquet, images are the files' own bytes in the form of Hugging Face's `Image` feature, and
//! the schema carries that library's description, so that `load_dataset("parquet")` decodes them. In JSONL they are
//! paths relative to the image folder. The other columns say where a pair comes from; `docs/store.md` lists them.
//!
//! Rows are ordered by sample. The same store gives the same bytes: no times, no machine names, fixed writer settings.

mod columns;
mod record;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::grid::{Cell, PairRef, Slot};
use crate::data::Sample;
use crate::files::AtomicFile;
use crate::sampling::{Flag, SamplingConfig};
use crate::store::{CandidateRef, EncoderInfo, Score, ScoreRow, Store};
use crate::{Error, Result};

use columns::ParquetFile;
use record::{Origin, Record};

/// Which files to write, and what goes into them.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Write `pairs.jsonl`.
    pub jsonl: bool,
    /// Write `pairs.parquet`.
    pub parquet: bool,
    /// Put the images' bytes into the Parquet file; otherwise it holds their absolute paths, and is small.
    pub embed_images: bool,
    /// Leave out pairs with any of these flags. Empty by default: the method drops no sample.
    pub exclude: Vec<Flag>,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { jsonl: true, parquet: true, embed_images: true, exclude: Vec::new() }
    }
}

/// What was written for one cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Pairs written.
    pub pairs: u64,
    /// Pairs left out because of a flag.
    pub excluded: u64,
    /// The files, `<folder>/cells/<encoder>__<threshold>/pairs.{jsonl,parquet}`.
    pub files: Vec<PathBuf>,
}

/// Everything that pairs are made from: one for all cells of a sweep.
#[derive(Debug)]
pub struct Exporter<'a> {
    store: &'a Store,
    samples: BTreeMap<u32, &'a Sample>,
    image_folder: PathBuf,
    config: &'a SamplingConfig,
    /// In candidate order.
    heads: Vec<CandidateRef>,
    encoders: Vec<EncoderInfo>,
    /// One list an encoder, each in candidate order.
    scores: Vec<Vec<ScoreRow>>,
}

impl<'a> Exporter<'a> {
    /// Reads keys and scores; texts are read a pair at a time. `config` is the one the store was made with.
    ///
    /// Errors: the image folder is missing, or two encoders of the store have the same name, which the columns could not
    /// tell apart.
    pub fn new(
        store: &'a Store,
        samples: &'a [Sample],
        image_folder: &Path,
        config: &'a SamplingConfig,
    ) -> Result<Self> {
        let encoders = store.encoders()?;
        if let Some(pair) = encoders.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let message = format!("holds scores of two encoders named {}", pair[0].name);
            return Err(Error::Store { path: store.path().into(), message });
        }
        let scores =
            encoders.iter().map(|e| store.score_rows(&e.fingerprint)).collect::<Result<_>>()?;
        Ok(Self {
            store,
            samples: samples.iter().map(|sample| (sample.index, sample)).collect(),
            image_folder: image_folder.canonicalize().map_err(Error::io(image_folder))?,
            config,
            heads: store.candidate_refs()?,
            encoders,
            scores,
        })
    }

    /// Writes one cell's files under `folder`, each under a temporary name until it is complete.
    pub fn export(&self, cell: &Cell, folder: &Path, options: &ExportOptions) -> Result<Exported> {
        let folder = folder.join("cells").join(cell.label());
        let mut done = Exported { pairs: 0, excluded: 0, files: Vec::new() };
        let mut jsonl = None;
        if options.jsonl {
            jsonl = Some(AtomicFile::create(folder.join("pairs.jsonl"))?);
        }
        let mut parquet = None;
        if options.parquet {
            let names: Vec<&str> = self.encoders.iter().map(|e| e.name.as_str()).collect();
            let path = folder.join("pairs.parquet");
            parquet = Some(ParquetFile::create(&path, &names, options.embed_images)?);
        }
        let mut pairs: Vec<&PairRef> = cell.pairs.iter().collect();
        pairs.sort_by_key(|pair| pair.sample);
        for pair in pairs {
            let (sample, record) = self.record(cell, pair)?;
            if record.flags.iter().any(|flag| options.exclude.contains(flag)) {
                done.excluded += 1;
                continue;
            }
            if let Some(file) = &mut jsonl {
                let path = file.path().to_owned();
                serde_json::to_writer(&mut *file, &record)
                    .map_err(std::io::Error::from)
                    .and_then(|()| file.write_all(b"\n"))
                    .map_err(Error::io(path))?;
            }
            if let Some(file) = &mut parquet {
                file.push(record, &sample.images)?;
            }
            done.pairs += 1;
        }
        if let Some(file) = jsonl {
            done.files.push(file.path().to_owned());
            file.commit()?;
        }
        if let Some(file) = parquet {
            done.files.push(folder.join("pairs.parquet"));
            file.commit()?;
        }
        Ok(done)
    }

    fn record(&self, cell: &Cell, pair: &PairRef) -> Result<(&'a Sample, Record)> {
        let missing = |what: &str| Error::Store {
            path: self.store.path().into(),
            message: format!(
                "{what} of sample {}, attempt {} of cell {} is missing",
                pair.sample,
                pair.attempt,
                cell.label()
            ),
        };
        let sample = *self.samples.get(&pair.sample).ok_or_else(|| missing("the dataset's row"))?;
        let known = |head: &CandidateRef| place((head.sample, head.attempt, head.guided));
        let head = self.heads.binary_search_by_key(&place(pair.slot()), known);
        let key = self.heads[head.map_err(|_| missing("the candidate"))?].key;
        let candidate = self.store.candidate(&key)?.ok_or_else(|| missing("the candidate"))?;
        let scores = self.encoders.iter().zip(&self.scores);
        let scores = scores.map(|(e, rows)| (e.name.as_str(), score(rows, pair.slot()))).collect();
        let origin = Origin {
            cell,
            pair,
            key,
            config: self.config,
            seed: self.store.manifest().seed,
            image_folder: &self.image_folder,
            scores,
        };
        Ok((sample, Record::new(sample, &candidate, &origin)))
    }
}

/// Orders candidates as a store does.
fn place((sample, attempt, guided): Slot) -> (u32, u32, bool) {
    (sample, attempt, !guided)
}

/// The score of a candidate among those of an encoder.
fn score(rows: &[ScoreRow], slot: Slot) -> Option<&Score> {
    let known = |row: &ScoreRow| place((row.sample, row.attempt, row.guided));
    rows.binary_search_by_key(&place(slot), known).ok().map(|at| &rows[at].score)
}
