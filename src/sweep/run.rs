//! Carrying out a run: generate what the most demanding cell needs, embed once per encoder, decide all cells.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    path::PathBuf,
    time::Instant,
};

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{Config, Grid, Model, blocks, finish::finish, summary::Summary};
use crate::{
    Error, Result,
    data::{Dataset, DatasetOptions, Sample, image},
    engine::{Engine, Images, Progress, Request, checkpoint, waves},
    models::{
        device,
        encoder::{Embeddings, SentenceEncoder},
        hub::Origin,
        llava::Llava,
        memory,
    },
    ops::cosine,
    sampling::{Attempt, Candidate, CandidateKey, acceptance::resolved, attempts::attempts},
    store::{self, EncoderInfo, Key, Manifest, Score, Shard, Store, WaveRecord},
};

/// Bytes of image features that a block may hold.
const IMAGE_CACHE: usize = 1 << 30;

/// What a run needs beside its configuration.
pub struct Options {
    /// Where networks run.
    pub device: Device,
    /// Which part of the run; [`Shard::WHOLE`] for all of it.
    pub shard: Shard,
}

/// Carries out a run, or continues it: whatever its folder already holds is not computed again.
///
/// A part of a run ([`Shard::Part`] of several) only fills its own store and returns `None`; a whole run
/// first takes over the stores of all parts that lie in its folder, then decides, exports and returns the
/// summary.
///
/// # Errors
/// Settings, data, models or a run folder that do not fit, each named; a requested stop. What was
/// committed stays.
pub fn run(config: &Config, options: &Options, progress: &dyn Progress) -> Result<Option<Summary>> {
    config.validate()?;
    let mut runner = Runner::new(config, options, progress)?;
    let ranges = blocks(runner.dataset.samples.len(), config.run.block, options.shard);
    if ranges.is_empty() {
        let block = config.run.block;
        progress.warn(&format!(
            "this part has no block: a run is divided by blocks of run.block = {block} samples"
        ));
    }
    for range in ranges {
        runner.block(range)?;
    }
    if options.shard != Shard::WHOLE {
        return Ok(None);
    }
    progress.begin("deciding and exporting", None);
    runner.release();
    finish(&runner).map(Some)
}

/// A run at work.
pub(super) struct Runner<'a> {
    pub(super) config: &'a Config,
    pub(super) dataset: Dataset,
    pub(super) encoders: Vec<SentenceEncoder>,
    pub(super) store: Store,
    /// Wall time of each stage in this process, in seconds.
    pub(super) seconds: BTreeMap<String, f64>,
    pub(super) progress: &'a dyn Progress,
    device: Device,
    /// Fingerprint of the model's files and the storage type it runs in.
    model_hash: [u8; 32],
    images: Vec<Vec<[u8; 32]>>,
    /// Loaded once something has to be generated.
    model: Option<Llava>,
    generated: HashSet<Key>,
    /// phi of each scored candidate, one map an encoder.
    phis: Vec<HashMap<Key, f64>>,
}

impl<'a> Runner<'a> {
    fn new(config: &'a Config, options: &Options, progress: &'a dyn Progress) -> Result<Self> {
        progress.begin("reading data and models", None);
        let begun = Instant::now();
        let dataset = open_dataset(config)?;
        let encoders = load_encoders(&config.grid, &options.device)?;
        let images: Vec<Vec<[u8; 32]>> = dataset
            .samples
            .par_iter()
            .map(|sample| sample.images.iter().map(|path| image::content_hash(path)).collect())
            .collect::<Result<_>>()?;
        let dtype = &config.model.dtype;
        device::dtype(dtype)?;
        let fingerprint = format!("{}:{dtype}", config.model.source()?.fingerprint()?);
        let model_hash = *blake3::hash(fingerprint.as_bytes()).as_bytes();
        if !store_path(config, options.shard).exists() {
            check_images(&dataset, config.sampling.rho)?;
        }
        let budget = match config.run.token_budget {
            Some(budget) => budget,
            None => memory::slots(&config.model.source()?, device::dtype(dtype)?, &options.device)?,
        };
        let identity = (fingerprint, budget);
        let wanted = manifest(config, options.shard, identity, &dataset, &images);
        let mut store = open_store(config, &wanted)?;
        let generated = store.heads()?.into_iter().map(|head| head.key).collect();
        let mut phis = Vec::with_capacity(encoders.len());
        for encoder in &encoders {
            store.add_encoder(&EncoderInfo::of(encoder))?;
            let scores = store.scores(encoder.fingerprint())?;
            phis.push(scores.into_iter().map(|(key, score)| (key, score.phi)).collect());
        }
        let seconds = BTreeMap::from([("prepare".to_owned(), begun.elapsed().as_secs_f64())]);
        Ok(Self {
            config,
            dataset,
            encoders,
            store,
            seconds,
            progress,
            device: options.device.clone(),
            model_hash,
            images,
            model: None,
            generated,
            phis,
        })
    }

    /// The content address of an attempt at a sample.
    pub(super) fn key(&self, sample: &Sample, attempt: Attempt) -> Key {
        let key = CandidateKey {
            model: self.model_hash,
            config: &self.config.sampling,
            seed: self.config.run.seed,
            images: self.images[sample.index as usize].as_slice().into(),
            turns: sample.key_turns(),
            reference: &sample.reference,
            sample: sample.index,
            attempt,
        };
        Key::from_bytes(key.hash())
    }

    /// All rounds of one block, as far as some cell still needs them.
    fn block(&mut self, range: Range<usize>) -> Result<()> {
        let mut images = Images::new(IMAGE_CACHE);
        let mut references: Vec<Option<Embeddings>> = self.encoders.iter().map(|_| None).collect();
        for attempt in attempts(&self.config.sampling) {
            let open: Vec<usize> = range
                .clone()
                .filter(|&i| self.is_open(&self.dataset.samples[i], attempt))
                .collect();
            if open.is_empty() {
                break;
            }
            self.generate(&open, attempt, &mut images)?;
            self.score(&range, &open, attempt, &mut references)?;
        }
        Ok(())
    }

    /// Whether some cell still needs this attempt. Only earlier attempts count, so that a resumed round
    /// has the samples of an undisturbed one, whatever part of it is already scored.
    fn is_open(&self, sample: &Sample, attempt: Attempt) -> bool {
        let lists: Vec<Vec<f64>> = self
            .phis
            .iter()
            .map(|known| {
                attempts(&self.config.sampling)
                    .take_while(|earlier| earlier.number < attempt.number)
                    .map_while(|attempt| known.get(&self.key(sample, attempt)).copied())
                    .collect()
            })
            .collect();
        let lists: Vec<&[f64]> = lists.iter().map(Vec::as_slice).collect();
        !resolved(&lists, &self.config.grid.thresholds, self.config.sampling.attempts)
    }

    /// One round of a block: an attempt at every open sample, wave by wave, each wave one transaction.
    ///
    /// Waves are laid out over all open samples, also those that are already stored, so that a resumed
    /// round has the batch shapes of an undisturbed one.
    fn generate(&mut self, open: &[usize], attempt: Attempt, images: &mut Images) -> Result<()> {
        let keys: Vec<Key> =
            open.iter().map(|&i| self.key(&self.dataset.samples[i], attempt)).collect();
        if keys.iter().all(|key| self.generated.contains(key)) {
            return Ok(());
        }
        self.load_model()?;
        let Some(model) = &self.model else { return Ok(()) };
        let begun = Instant::now();
        let mut budget = self.store.token_budget()?;
        let mut engine = Engine::new(model, self.config.sampling.clone(), self.config.run.seed)?
            .with_slots(budget as usize);
        let prepared = open
            .par_iter()
            .map(|&i| {
                engine.prepare(Request {
                    sample: &self.dataset.samples[i],
                    attempt: attempt.number,
                    guided: attempt.guided,
                })
            })
            .collect::<Result<Vec<_>>>()
            .map_err(|error| error.in_file(&self.dataset.path))?;
        let costs: Vec<usize> = prepared.iter().map(|prepared| prepared.cost()).collect();
        self.progress.begin(&format!("attempt {}: tokens", attempt.number), None);
        let mut stored = 0.0;
        for range in waves(&costs, budget as usize) {
            checkpoint(self.progress)?;
            let begun = Instant::now();
            let missing: Vec<usize> =
                range.filter(|&i| !self.generated.contains(&keys[i])).collect();
            let wave: Vec<_> = missing.iter().map(|&i| prepared[i].clone()).collect();
            let candidates = engine.generate(&wave, images, self.progress)?;
            let rows: Vec<(Key, Candidate)> =
                missing.iter().map(|&i| keys[i]).zip(candidates).collect();
            if rows.is_empty() {
                continue;
            }
            let number = self.store.next_wave(attempt.number)?;
            if engine.slots() < budget as usize {
                budget = engine.slots() as u32;
                self.store.lower_token_budget(attempt.number, number, budget, "out of memory")?;
            }
            let record = WaveRecord {
                round: attempt.number,
                wave: number,
                token_budget: budget,
                seconds: BTreeMap::from([("generate".into(), begun.elapsed().as_secs_f64())]),
            };
            let committing = Instant::now();
            self.store.commit_wave(&record, &rows)?;
            stored += committing.elapsed().as_secs_f64();
            self.generated.extend(rows.iter().map(|(key, _)| *key));
        }
        *self.seconds.entry("store".into()).or_default() += stored;
        *self.seconds.entry("generate".into()).or_default() +=
            begun.elapsed().as_secs_f64() - stored;
        Ok(())
    }

    /// Frees what only generation and scoring need: the rest of the run has its own tables of all candidates.
    fn release(&mut self) {
        self.model = None;
        self.generated = HashSet::new();
        self.phis = Vec::new();
        self.images = Vec::new();
    }

    fn load_model(&mut self) -> Result<()> {
        if self.model.is_some() {
            return Ok(());
        }
        self.progress.begin("loading the model", None);
        let begun = Instant::now();
        let dtype = device::dtype(&self.config.model.dtype)?;
        let model = Llava::open(&self.config.model.source()?, &self.device, dtype)?;
        // A sample that the model has no room for is told before hours of work, not after.
        let engine = Engine::new(&model, self.config.sampling.clone(), self.config.run.seed)?;
        for guided in [self.config.sampling.guidance, false] {
            self.dataset
                .samples
                .par_iter()
                .try_for_each(|sample| {
                    engine.prepare(Request { sample, attempt: 1, guided }).map(|_| ())
                })
                .map_err(|error| error.in_file(&self.dataset.path))?;
        }
        self.model = Some(model);
        *self.seconds.entry("load model".into()).or_default() += begun.elapsed().as_secs_f64();
        Ok(())
    }

    /// Scores a round of a block with every encoder: one transaction each.
    ///
    /// Batches are a function of the block and its open samples, so a resumed run embeds the same ones.
    fn score(
        &mut self,
        block: &Range<usize>,
        open: &[usize],
        attempt: Attempt,
        references: &mut [Option<Embeddings>],
    ) -> Result<()> {
        for (e, reference) in references.iter_mut().enumerate() {
            checkpoint(self.progress)?;
            let todo: Vec<(usize, Key)> = open
                .iter()
                .map(|&i| (i, self.key(&self.dataset.samples[i], attempt)))
                .filter(|(_, key)| !self.phis[e].contains_key(key))
                .collect();
            if todo.is_empty() {
                continue;
            }
            let begun = Instant::now();
            let encoder = &self.encoders[e];
            let stage = format!("attempt {}: {}", attempt.number, encoder.name());
            self.progress.begin(&stage, None);
            if reference.is_none() {
                let samples = &self.dataset.samples[block.clone()];
                let texts: Vec<&str> = samples.iter().map(|s| s.reference.as_str()).collect();
                *reference = Some(encoder.embed(&texts)?);
            }
            let Some(reference) = reference else { continue };
            let scores = self.phi(e, block.start, &todo, reference)?;
            let committing = Instant::now();
            self.store.commit_scores(self.encoders[e].fingerprint(), &scores)?;
            let stored = committing.elapsed().as_secs_f64();
            self.phis[e].extend(scores.iter().map(|score| (score.candidate, score.phi)));
            let stage = format!("embed {}", self.encoders[e].name());
            *self.seconds.entry("store".into()).or_default() += stored;
            *self.seconds.entry(stage).or_default() += begun.elapsed().as_secs_f64() - stored;
        }
        Ok(())
    }

    /// phi of some candidates of a block whose references are embedded from sample `first` on.
    fn phi(
        &self,
        encoder: usize,
        first: usize,
        todo: &[(usize, Key)],
        references: &Embeddings,
    ) -> Result<Vec<Score>> {
        let texts = todo
            .iter()
            .map(|(i, key)| {
                self.store.candidate(key)?.map(|candidate| candidate.text).ok_or_else(|| {
                    Error::Store {
                        path: self.store.path().into(),
                        message: format!("candidate {key} of sample {i} is missing"),
                    }
                })
            })
            .collect::<Result<Vec<String>>>()?;
        let embedded = self.encoders[encoder].embed(&texts)?;
        let rows: Vec<u32> = todo.iter().map(|(i, _)| (i - first) as u32).collect();
        let device = references.vectors.device();
        let paired = references.vectors.index_select(&Tensor::new(rows, device)?, 0)?;
        let phis = cosine::rows_f64(&embedded.vectors, &paired)?;
        Ok(todo
            .iter()
            .enumerate()
            .map(|(row, (i, key))| Score {
                candidate: *key,
                phi: phis[row],
                candidate_tokens: embedded.tokens[row],
                reference_tokens: references.tokens[i - first],
                candidate_truncated: embedded.truncated[row],
                reference_truncated: references.truncated[i - first],
            })
            .collect())
    }
}

fn open_dataset(config: &Config) -> Result<Dataset> {
    let options =
        DatasetOptions { image_folder: config.data.images.clone(), turn: config.data.turn };
    let mut dataset = Dataset::open(&config.data.file, &options)?;
    dataset.samples.truncate(config.data.limit.unwrap_or(usize::MAX));
    dataset.validate_for(config.sampling.rho)?;
    Ok(dataset)
}

/// Loads the encoders of a grid. Two of one name would share their cells' names and are refused.
pub fn load_encoders(grid: &Grid, device: &Device) -> Result<Vec<SentenceEncoder>> {
    let dtype = device::dtype(&grid.dtype)?;
    let mut encoders: Vec<SentenceEncoder> = Vec::new();
    for (i, path) in grid.encoders.iter().enumerate() {
        let encoder = SentenceEncoder::load(path, device, dtype)?;
        if encoders.iter().any(|known| known.name() == encoder.name()) {
            return Err(Error::invalid(
                "configuration",
                format!("field grid.encoders[{i}]"),
                format!(
                    "{:?} is the name of two encoders, and so of their cells; give one as a folder or link of another name",
                    encoder.name()
                ),
            ));
        }
        encoders.push(encoder);
    }
    Ok(encoders)
}

/// Where the model is from: of one with an adapter, the adapter.
fn model_path(model: &Model) -> String {
    let path = model.adapter.as_ref().unwrap_or(&model.path);
    Origin::of(path).map_or_else(|| path.display().to_string(), |origin| origin.to_string())
}

/// What a store must have been made with to be continued by this run; its token budget may be another one.
fn manifest(
    config: &Config,
    shard: Shard,
    (model_fingerprint, token_budget): (String, u32),
    dataset: &Dataset,
    images: &[Vec<[u8; 32]>],
) -> Manifest {
    let mut hasher = blake3::Hasher::new();
    for (sample, images) in dataset.samples.iter().zip(images) {
        let turns = format!("{:?}", (&sample.id, sample.key_turns(), &sample.reference, images));
        hasher.update(&(turns.len() as u64).to_le_bytes()).update(turns.as_bytes());
    }
    Manifest {
        bdhs_version: env!("CARGO_PKG_VERSION").into(),
        model_fingerprint,
        model_path: model_path(&config.model),
        sampling: config.sampling.canonical_generation(),
        seed: config.run.seed,
        token_budget,
        dataset_fingerprint: hasher.finalize().to_hex().to_string(),
        plan_hash: format!("block {}", config.run.block),
        shard,
        created_at: String::new(),
    }
}

/// The store of this part of the run.
pub fn store_path(config: &Config, shard: Shard) -> PathBuf {
    config.run.out.join(match shard {
        Shard::Part { index, count: count @ 2.. } => {
            format!("part-{}-of-{count}.db", index + 1)
        }
        _ => "store.db".into(),
    })
}

/// The stores of parts in the run folder, of whatever division.
fn parts(config: &Config) -> Result<Vec<PathBuf>> {
    let out = &config.run.out;
    let is_part = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("part-") && name.ends_with(".db")
    };
    let mut parts: Vec<PathBuf> = std::fs::read_dir(out)
        .map_err(Error::io(out))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_part)
        .collect();
    parts.sort();
    // Nothing is in one that was killed as it was made.
    let begun = parts.iter().map(Store::is_begun).collect::<Result<Vec<bool>>>()?;
    Ok(parts.into_iter().zip(begun).filter_map(|(part, begun)| begun.then_some(part)).collect())
}

/// Before a run goes on in `count` parts: what parts of another division hold is put into the whole run's store, which every
/// part takes over as it begins.
///
/// # Errors
/// Stores that are not of one run, or that another process has open.
pub fn divide(config: &Config, count: u32) -> Result<()> {
    if !config.run.out.is_dir() {
        return Ok(());
    }
    let own: Vec<PathBuf> =
        (0..count).map(|index| store_path(config, Shard::Part { index, count })).collect();
    let others: Vec<PathBuf> =
        parts(config)?.into_iter().filter(|part| !own.contains(part)).collect();
    if !others.is_empty() {
        store::merge(store_path(config, Shard::WHOLE), &others)?;
    }
    Ok(())
}

/// Opens the store of this part. A whole run takes over the stores of parts first, and a part that of the whole run, so that
/// nothing is computed again however a run was divided before.
fn open_store(config: &Config, wanted: &Manifest) -> Result<Store> {
    let out = &config.run.out;
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let (path, whole) = (store_path(config, wanted.shard), store_path(config, Shard::WHOLE));
    if wanted.shard == Shard::WHOLE {
        let parts = parts(config)?;
        if !parts.is_empty() {
            store::merge(&path, &parts)?;
        }
        return Store::open_or_create(&path, wanted);
    }
    if !Store::is_begun(&whole)? {
        return Store::open_or_create(&path, wanted);
    }
    let token_budget = Store::open(&whole)?.manifest().token_budget;
    let wanted = Manifest { token_budget, ..wanted.clone() };
    drop(Store::open_or_create(&path, &wanted)?);
    store::merge(&path, &[whole])?;
    Store::open_or_create(&path, &wanted)
}

/// Decodes every image once, so that a broken one is told before hours of work. Where no image token is
/// ever visible, none is needed.
fn check_images(dataset: &Dataset, rho: f64) -> Result<()> {
    if rho == 1.0 {
        return Ok(());
    }
    dataset
        .samples
        .par_iter()
        .flat_map_iter(|sample| &sample.images)
        .try_for_each(|path| image::open(path).map(|_| ()))
}
