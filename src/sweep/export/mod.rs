//! A cell's pairs as files that trainers read, and a card that describes them.
//!
//! | file | for |
//! |---|---|
//! | `pairs.parquet`, `pairs.jsonl` | TRL's layout of vision preferences |
//! | `llama_factory.jsonl`, `dataset_info.json` | LLaMA-Factory: ShareGPT preferences and the entry that describes them |
//! | `swift.jsonl` | ms-swift: `messages` with `rejected_response` |
//! | `README.md` | people, and the hub's data card |
//!
//! `images`, `prompt`, `chosen`, `rejected` are what TRL trains on; the prompt holds one `{"type": "image"}` for each
//! image, where it stood. In Parquet, images have the form of Hugging Face's `Image` feature, and the schema carries that
//! library's description, so that `load_dataset("parquet")` decodes them. In JSONL they are absolute paths; pictures that lie
//! in a data file are written into the run's folder `pictures`. The other columns say where a pair comes from;
//! `docs/store.md` lists them.
//!
//! Rows are ordered by sample. The same store gives the same bytes: no times, no machine names, fixed writer settings.

mod card;
mod columns;
mod layouts;
mod record;

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::grid::{Cell, PairRef, Slot};
use crate::config::ExportFormat;
use crate::data::{Dataset, Picture, Sample};
use crate::files::{AtomicFile, write_file};
use crate::sampling::{Flag, SamplingConfig};
use crate::store::{CandidateRef, EncoderInfo, Score, ScoreRow, Store};
use crate::{Error, Result};

use columns::ParquetFile;
use record::{Origin, Record};

/// Which files to write, and what goes into them.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Files beside TRL's.
    pub formats: Vec<ExportFormat>,
    /// Put the images' bytes into the Parquet file; otherwise it holds their absolute paths, and is small.
    pub embed_images: bool,
    /// Leave out pairs with any of these flags. Empty by default: the method drops no sample.
    pub exclude: Vec<Flag>,
}

/// What was written for one cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Pairs written.
    pub pairs: u64,
    /// Pairs left out because of a flag.
    pub excluded: u64,
    /// The files, in `<folder>/cells/<encoder>__<threshold>`.
    pub files: Vec<PathBuf>,
}

/// Everything that pairs are made from: one for all cells of a sweep.
#[derive(Debug)]
pub struct Exporter<'a> {
    store: &'a Store,
    dataset: &'a Dataset,
    image_folder: PathBuf,
    config: &'a SamplingConfig,
    /// In candidate order.
    heads: Vec<CandidateRef>,
    encoders: Vec<EncoderInfo>,
    /// One list an encoder, each in candidate order.
    scores: Vec<Vec<ScoreRow>>,
}

/// A picture of a pair.
struct File {
    /// Relative to the image folder, with `/` between names.
    name: String,
    path: PathBuf,
    /// Its bytes, where they are to be embedded.
    bytes: Option<Vec<u8>>,
}

impl<'a> Exporter<'a> {
    /// Reads keys and scores; texts are read some pairs at a time. `config` is the one the store was made with.
    ///
    /// # Errors
    /// The image folder is missing, or two encoders of the store have the same name, which the columns could not tell apart.
    pub fn new(
        store: &'a Store,
        dataset: &'a Dataset,
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
            dataset,
            image_folder: image_folder.canonicalize().map_err(Error::io(image_folder))?,
            config,
            heads: store.candidate_refs()?,
            encoders,
            scores,
        })
    }

    /// Writes one cell's files under `folder`, each under a temporary name until it is complete.
    ///
    /// # Errors
    /// A pair whose sample or candidate is missing; a picture that cannot be read; a file that cannot be written.
    pub fn export(&self, cell: &Cell, folder: &Path, options: &ExportOptions) -> Result<Exported> {
        let pictures = folder.join("pictures");
        let folder = folder.join("cells").join(cell.label());
        let mut done = Exported { pairs: 0, excluded: 0, files: Vec::new() };
        let mut lines = Vec::new();
        for layout in layouts::of(&options.formats) {
            lines.push((layout, AtomicFile::create(folder.join(layout.file))?));
        }
        let names: Vec<&str> = self.encoders.iter().map(|e| e.name.as_str()).collect();
        let path = folder.join("pairs.parquet");
        let own = self.dataset.has_rejected();
        let mut parquet = ParquetFile::create(&path, &names, own)?;
        let mut pairs: Vec<&PairRef> = cell.pairs.iter().collect();
        pairs.sort_by_key(|pair| pair.sample);
        let (mut samples, mut written) = (Window::default(), HashSet::new());
        for pair in pairs {
            let sample = samples.get(self.dataset, pair.sample)?;
            let sample = sample.ok_or_else(|| self.missing("the dataset's row", cell, pair))?;
            let files = sample.images.iter();
            let files = files
                .map(|image| self.file(image, &pictures, options.embed_images, &mut written))
                .collect::<Result<Vec<_>>>()?;
            let record = self.record(cell, pair, sample, &files)?;
            if record.flags.iter().any(|flag| options.exclude.contains(flag)) {
                done.excluded += 1;
                continue;
            }
            for (layout, file) in &mut lines {
                let path = file.path().to_owned();
                let line = (layout.line)(&record, sample).map_err(std::io::Error::from);
                line.and_then(|line| file.write_all(line.as_bytes())).map_err(Error::io(path))?;
            }
            parquet.push(record, files)?;
            done.pairs += 1;
        }
        for (layout, file) in lines {
            done.files.push(file.path().to_owned());
            file.commit()?;
            if let Some((name, text)) = (layout.beside)(cell) {
                write_file(folder.join(name), text.as_bytes())?;
                done.files.push(folder.join(name));
            }
        }
        done.files.push(path);
        parquet.commit()?;
        let card = self.card(cell, options, &done);
        write_file(folder.join("README.md"), card.as_bytes())?;
        done.files.push(folder.join("README.md"));
        Ok(done)
    }

    /// The file of a picture. Of one that lies in a data file, it is written into the folder `pictures`, by its content.
    fn file(
        &self,
        picture: &Picture,
        pictures: &Path,
        embed: bool,
        written: &mut HashSet<PathBuf>,
    ) -> Result<File> {
        if let Some(path) = picture.file() {
            let inside = path.strip_prefix(&self.image_folder).unwrap_or(path);
            let name = inside.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/");
            let bytes = if embed { Some(picture.read()?.into_owned()) } else { None };
            return Ok(File { name, path: path.to_owned(), bytes });
        }
        let bytes = picture.read()?;
        let kind = image::guess_format(&bytes).ok().and_then(|kind| kind.extensions_str().first());
        let hash = blake3::hash(&bytes).to_hex();
        let name = format!("{}.{}", &hash[..32], kind.unwrap_or(&"img"));
        let path = std::path::absolute(pictures.join(&name)).map_err(Error::io(pictures))?;
        if written.insert(path.clone()) && !path.is_file() {
            fs::create_dir_all(pictures).map_err(Error::io(pictures))?;
            write_file(&path, &bytes)?;
        }
        Ok(File { name, path, bytes: embed.then(|| bytes.into_owned()) })
    }

    fn missing(&self, what: &str, cell: &Cell, pair: &PairRef) -> Error {
        let message = format!(
            "{what} of sample {}, attempt {} of cell {} is missing",
            pair.sample,
            pair.attempt,
            cell.label()
        );
        Error::Store { path: self.store.path().into(), message }
    }

    fn record(
        &self,
        cell: &Cell,
        pair: &PairRef,
        sample: &Sample,
        files: &[File],
    ) -> Result<Record> {
        let missing = || self.missing("the candidate", cell, pair);
        let known = |head: &CandidateRef| place((head.sample, head.attempt, head.guided));
        let head = self.heads.binary_search_by_key(&place(pair.slot()), known);
        let key = self.heads[head.map_err(|_| missing())?].key;
        let candidate = self.store.candidate(&key)?.ok_or_else(missing)?;
        let scores = self.encoders.iter().zip(&self.scores);
        let scores = scores.map(|(e, rows)| (e.name.as_str(), score(rows, pair.slot()))).collect();
        let origin = Origin {
            cell,
            pair,
            key,
            config: self.config,
            seed: self.store.manifest().seed,
            files,
            scores,
        };
        Ok(Record::new(sample, &candidate, &origin))
    }
}

/// Some consecutive samples, in memory.
#[derive(Default)]
struct Window {
    first: usize,
    samples: Vec<Sample>,
}

impl Window {
    /// Sample `index`; those after it are read with it. None if there is no such sample.
    fn get(&mut self, dataset: &Dataset, index: u32) -> Result<Option<&Sample>> {
        /// Samples read at a time.
        const SIZE: usize = 64;
        let index = index as usize;
        if !(self.first..self.first + self.samples.len()).contains(&index) {
            let end = dataset.len().min(index + SIZE);
            self.samples = if index < end { dataset.read(index..end)? } else { Vec::new() };
            self.first = index;
        }
        Ok(self.samples.get(index - self.first))
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
