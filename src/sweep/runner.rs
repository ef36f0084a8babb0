//! A run at work: its data, its models and its stores.

use std::{path::PathBuf, time::Instant};

use candle_core::Device;

use super::given::Given;
use super::seconds::{self, Seconds};
use super::survey;
use crate::{
    Error, Result,
    config::{Config, Grid, Model, SavedRun, safe_name},
    data::{Dataset, Sample},
    engine::{Arena, Progress},
    models::{self, device, encoder::SentenceEncoder, hub::Origin, memory},
    sampling::{Attempt, CandidateKey, add_part},
    store::{self, EncoderInfo, Key, Manifest, Shard, Store},
};

/// What a run needs beside its configuration.
pub struct Options {
    /// Where networks run.
    pub device: Device,
    /// Which part of the run; [`Shard::WHOLE`] for all of it.
    pub shard: Shard,
}

/// A run at work.
pub(super) struct Runner<'a> {
    pub(super) config: &'a Config,
    pub(super) dataset: Dataset,
    pub(super) encoders: Vec<SentenceEncoder>,
    pub(super) store: Store,
    /// Of this store.
    pub(super) seconds: Seconds,
    pub(super) progress: &'a dyn Progress,
    device: Device,
    /// Fingerprint of the model's files and the storage type it runs in.
    model_hash: [u8; 32],
    images: Vec<Vec<[u8; 32]>>,
    /// Candidates made elsewhere, if the run takes those.
    pub(super) given: Option<Given>,
    /// Loaded once something has to be generated; without its weights where candidates are given.
    pub(super) model: Option<models::Model>,
    /// Of the model's engines, one after another.
    pub(super) arena: Option<Arena>,
}

impl<'a> Runner<'a> {
    pub(super) fn new(
        config: &'a Config,
        options: &Options,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        progress.begin("reading data and models", None);
        let begun = Instant::now();
        let mut dataset = open_dataset(config, progress)?;
        let encoders = load_encoders(&config.grid, &options.device)?;
        encoders.iter().flat_map(SentenceEncoder::warnings).for_each(|text| progress.warn(text));
        let images = checked(&mut dataset, config, options, progress)?;
        let dtype = &config.model.dtype;
        device::dtype(dtype)?;
        let given = config.data.candidates.as_deref();
        let given = given.map(|path| Given::read(path, &config.sampling)).transpose()?;
        let fingerprint = match config.model.path.as_os_str().is_empty() {
            true => "candidates of another engine".to_owned(),
            false => format!("{}:{dtype}", config.model.source()?.fingerprint()?),
        };
        let model_hash = *blake3::hash(fingerprint.as_bytes()).as_bytes();
        let budget = token_budget(config, options)?;
        let identity = (fingerprint, budget);
        let wanted = manifest(config, options.shard, identity, &dataset, &images)?;
        let mut store = open_store(config, &wanted)?;
        if config.data.skip_bad {
            survey::write(&config.run.out, dataset.skipped())?;
        }
        // Also where the run is stopped before its end.
        SavedRun::of(config, dataset.described()).write(&config.run.out)?;
        for encoder in &encoders {
            store.add_encoder(&EncoderInfo::of(encoder))?;
        }
        let own = Seconds::from([("prepare".to_owned(), begun.elapsed().as_secs_f64())]);
        let seconds = seconds::sum([seconds::read(store.path())?, own]);
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
            given,
            model: None,
            arena: None,
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

    /// Frees what only generation needs.
    pub(super) fn release(&mut self) {
        (self.model, self.arena) = (None, None);
        self.images = Vec::new();
    }

    /// Loads the model, if it is not there yet.
    pub(super) fn load_model(&mut self) -> Result<()> {
        if self.model.is_some() {
            return Ok(());
        }
        self.progress.begin("loading the model", None);
        let begun = Instant::now();
        let dtype = device::dtype(&self.config.model.dtype)?;
        let source = self.config.model.source()?;
        let model = match &self.given {
            // For the masks, which are the model's image tokens'.
            Some(_) => {
                let weights = source.weights(&Device::Cpu, dtype)?.outline();
                models::Model::with_weights(source.base(), &weights)?
            }
            None => models::Model::open(&source, &self.device, dtype)?,
        };
        self.model = Some(model);
        *self.seconds.entry("load model".into()).or_default() += begun.elapsed().as_secs_f64();
        Ok(())
    }
}

/// Lists a run's data. Rows of no use are left out, and none is refused for them yet.
fn open_dataset(config: &Config, progress: &dyn Progress) -> Result<Dataset> {
    let dataset =
        Dataset::list(&config.data.file.0, &config.data.options(config.sampling.rho < 1.0))?;
    progress.begin(&format!("reading data: {}", dataset.described().text()), None);
    if let Some(note) = dataset.note() {
        progress.warn(&note);
    }
    Ok(dataset)
}

/// Checks a run's data before anything large is fetched or loaded: that its files are there, and its rows of use.
///
/// # Errors
/// As those of [`run`] about data, as far as no model is needed to tell.
pub fn check_data(config: &Config, progress: &dyn Progress) -> Result<()> {
    let dataset = open_dataset(config, progress)?;
    match config.data.skip_bad {
        true => dataset.check_share(config.data.max_skipped),
        false => dataset.check(survey::ADVICE),
    }
}

/// Leaves out samples of no use, or refuses them; the hashes of the others' pictures. A run that goes on takes the word of
/// its beginning, and its store then checks that the samples are the same.
fn checked(
    dataset: &mut Dataset,
    config: &Config,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Vec<[u8; 32]>>> {
    let mut check = !store_path(config, options.shard).exists();
    if config.data.skip_bad && !check {
        match survey::read(&config.run.out)? {
            Some(known) => dataset.leave_out_known(known),
            None => check = true,
        }
    }
    let hashes = survey::survey(dataset, config, check, progress)?;
    match config.data.skip_bad {
        true => dataset.check_share(config.data.max_skipped)?,
        false => dataset.check(survey::ADVICE)?,
    }
    Ok(hashes)
}

/// Loads the encoders of a grid. Two whose cells would have one name are refused.
///
/// # Errors
/// As [`SentenceEncoder::load`], and two encoders of one name.
pub fn load_encoders(grid: &Grid, device: &Device) -> Result<Vec<SentenceEncoder>> {
    let dtype = device::dtype(&grid.dtype)?;
    let mut encoders: Vec<SentenceEncoder> = Vec::new();
    for (i, path) in grid.encoders.iter().enumerate() {
        let encoder = SentenceEncoder::load(path, device, dtype)?;
        let named = |known: &&SentenceEncoder| safe_name(known.name()) == safe_name(encoder.name());
        if let Some(known) = encoders.iter().find(named) {
            let message = format!(
                "{:?} and {:?} give cells of one name ({}), after the folders that they are read from; copy one \
                 folder to another name",
                known.name(),
                encoder.name(),
                safe_name(encoder.name())
            );
            let field = format!("field grid.encoders[{i}]");
            return Err(Error::invalid("configuration", field, message));
        }
        if let Some(twin) = encoders.iter().find(|e| e.fingerprint() == encoder.fingerprint()) {
            let (first, name) = (twin.name(), encoder.name());
            return Err(Error::invalid(
                "configuration",
                format!("field grid.encoders[{i}]"),
                format!(
                    "{name:?} has the same files as {first:?}, so its cells would be the same; leave one out"
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
) -> Result<Manifest> {
    Ok(Manifest {
        bdhs_version: env!("CARGO_PKG_VERSION").into(),
        model_fingerprint,
        model_path: model_path(&config.model),
        sampling: config.sampling.canonical_generation(),
        seed: config.run.seed,
        token_budget,
        dataset_fingerprint: dataset_fingerprint(dataset, images)?,
        plan_hash: format!("block {}", config.run.block),
        shard,
        created_at: String::new(),
    })
}

/// BLAKE3 over the id, prompt, reference and images of every sample; each part is preceded by its length. The number before the
/// colon is the version of this rule (the first version had none): a store of another version cannot be compared.
fn dataset_fingerprint(dataset: &Dataset, images: &[Vec<[u8; 32]>]) -> Result<String> {
    /// Samples in memory at a time.
    const CHUNK: usize = 256;
    let mut hasher = blake3::Hasher::new();
    for (chunk, images) in images.chunks(CHUNK).enumerate() {
        let first = chunk * CHUNK;
        for (sample, images) in dataset.read(first..first + images.len())?.iter().zip(images) {
            let turns = sample.key_turns();
            add_part(&mut hasher, sample.id.as_bytes());
            hasher.update(&(turns.len() as u64).to_le_bytes());
            for text in turns.iter().flat_map(|(role, text)| [role, text]) {
                add_part(&mut hasher, text.as_bytes());
            }
            add_part(&mut hasher, sample.reference.as_bytes());
            add_part(&mut hasher, images.as_flattened());
        }
    }
    Ok(format!("2:{}", hasher.finalize().to_hex()))
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
pub(super) fn parts(config: &Config) -> Result<Vec<PathBuf>> {
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
    // Nothing is in one that was killed as it was made, or whose run was refused before it generated.
    let holds = parts.iter().map(Store::has_candidates).collect::<Result<Vec<bool>>>()?;
    Ok(parts.into_iter().zip(holds).filter_map(|(part, holds)| holds.then_some(part)).collect())
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

/// The token budget: the configuration's, or that of the store which this part continues or takes over, or what memory is good for.
fn token_budget(config: &Config, options: &Options) -> Result<u32> {
    if let Some(budget) = config.run.token_budget {
        return Ok(budget);
    }
    let mut stores = vec![store_path(config, options.shard), store_path(config, Shard::WHOLE)];
    if options.shard == Shard::WHOLE && config.run.out.is_dir() {
        stores.extend(parts(config)?);
    }
    for path in stores {
        if Store::has_candidates(&path)? {
            return Ok(Store::open(path)?.manifest().token_budget);
        }
    }
    if config.data.candidates.is_some() {
        /// What waves are laid out by where nothing is generated.
        const GIVEN: u32 = 16_384;
        return Ok(GIVEN);
    }
    memory::slots(&config.model.source()?, device::dtype(&config.model.dtype)?, &options.device)
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
    if !Store::has_candidates(&whole)? {
        return Store::open_or_create(&path, wanted);
    }
    let token_budget = Store::open(&whole)?.manifest().token_budget;
    let wanted = Manifest { token_budget, ..wanted.clone() };
    drop(Store::open_or_create(&path, &wanted)?);
    store::merge(&path, &[whole])?;
    Store::open_or_create(&path, &wanted)
}
