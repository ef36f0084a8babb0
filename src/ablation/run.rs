//! The stages after a sweep: train a model, judge it. Each is done once, whoever asks and in whatever order.
//!
//! ```text
//! RUN/models/NAME    the adapter of a model, as `bdhs train` leaves it
//! RUN/judged/NAME    its answers, replies and scores, as `bdhs eval all` leaves them
//! RUN/locks/NAME     who is at a model
//! RUN/reference.jsonl  log-probabilities under the base, shared by all trainings
//! ```

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use super::plan::{Kind, Model, Plan};
use crate::config::{Config, Eval, named};
use crate::data::json::read_document;
use crate::demo::embedded::{BENCHMARKS, is_embedded, resolve};
use crate::demo::judge::Service;
use crate::engine::{Answering, Images, Progress, checkpoint};
use crate::eval::judge::Judge;
use crate::eval::run::{self, Benchmarks, Callbacks};
use crate::eval::summary::{SUMMARY, Summary};
use crate::eval::{self, Settings};
use crate::files::write_json;
use crate::models::weights::Weights;
use crate::models::{self, Source, device, memory};
use crate::train::{self, Outcome};
use crate::{Error, Result};

/// A stage of an ablation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Train every model.
    Train,
    /// Judge every model; it must be trained.
    Judge,
}

impl Stage {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Judge => "judge",
        }
    }

    /// The stage of a name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Train, Self::Judge].into_iter().find(|stage| stage.name() == name)
    }
}

/// Seconds of a judged model, in its folder.
#[derive(Serialize, Deserialize)]
struct Seconds {
    judge: f64,
}

const SECONDS: &str = "seconds.json";
/// A base of fewer bytes is trained by one process a core.
const SMALL: u64 = 1 << 30;

/// The folder of a model's adapter.
pub fn model_folder(run: &Path, model: &str) -> PathBuf {
    run.join("models").join(model)
}

/// The folder of a model's scores.
pub fn judged_folder(run: &Path, model: &str) -> PathBuf {
    run.join("judged").join(model)
}

/// What was trained: none for the baseline, and for a model that is not trained yet.
///
/// # Errors
/// If the file is malformed.
pub fn trained(run: &Path, model: &Model) -> Result<Option<Outcome>> {
    let path = model_folder(run, &model.name).join("train.json");
    if path.is_file() { read_document(&path).map(Some) } else { Ok(None) }
}

/// What was judged, if it was: scores, and the seconds it took.
///
/// # Errors
/// If a file is malformed.
pub fn judged(run: &Path, model: &Model) -> Result<Option<(Summary, f64)>> {
    let folder = judged_folder(run, &model.name);
    if !folder.join(SECONDS).is_file() {
        return Ok(None);
    }
    let seconds: Seconds = read_document(&folder.join(SECONDS))?;
    Ok(Some((read_document(&folder.join(SUMMARY))?, seconds.judge)))
}

/// Which models a process works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All; those that another process is at are waited for.
    All,
    /// Whatever no other process is at: how several share the work.
    Free,
    /// Those whose place among all is `index` modulo `count`.
    Part {
        /// From 0.
        index: usize,
        /// At least 1.
        count: usize,
    },
}

/// Carries out stages for a share of the models; what is done is not done again, and two processes are never at one model.
///
/// # Errors
/// The first that a model met, after the others are done; a requested stop at once.
pub fn stages(
    config: &Config,
    plan: &Plan,
    stages: &[Stage],
    share: Share,
    device: &Device,
    progress: &dyn Progress,
) -> Result<()> {
    let judging = match stages.contains(&Stage::Judge) {
        true => Some(Judging::new(config, memory::features(device)?)?),
        false => None,
    };
    let config = &config.on(device)?;
    let source = config.model.source()?;
    source.unadapted()?;
    // Every byte of the base is read for it: once, not once a model.
    let base = match stages.contains(&Stage::Train) {
        true => source.fingerprint()?,
        false => String::new(),
    };
    let mut failed = None;
    for (i, model) in plan.models.iter().enumerate() {
        if matches!(share, Share::Part { index, count } if i % count != index) {
            continue;
        }
        let Some(_lock) = lock(&config.run.out, &model.name, share)? else { continue };
        checkpoint(progress)?;
        let mut done = Ok(());
        if stages.contains(&Stage::Train) {
            done = train(config, model, &base, device, progress);
        }
        if let (Ok(()), Some(judging)) = (&done, &judging) {
            done = judging.judge(config, model, device, progress);
        }
        match done {
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            // What one model fails at is no reason to leave the others.
            Err(error) if failed.is_none() => failed = Some(error),
            _ => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

/// A model's lock, held until it is dropped or the process ends; none if another has it and is not to be waited for.
fn lock(run: &Path, model: &str, share: Share) -> Result<Option<File>> {
    let folder = run.join("locks");
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let path = folder.join(model);
    let file = File::create(&path).map_err(Error::io(&path))?;
    match share {
        Share::Free => Ok(crate::lock::try_lock(&file, &path)?.then_some(file)),
        Share::All | Share::Part { .. } => {
            crate::lock::lock(&file, &path)?;
            Ok(Some(file))
        }
    }
}

/// How many processes of one thread each do a machine's share soonest: small products keep one core busy, large ones all.
///
/// # Errors
/// If the base has no weights.
pub fn workers(config: &Config, device: &Device) -> Result<usize> {
    let weights = Weights::open(&config.model.path, &Device::Cpu, DType::F32)?;
    let bytes: u64 = weights.stored_bytes().values().sum();
    Ok(if device.is_cpu() && bytes < SMALL { rayon::current_num_threads() } else { 1 })
}

/// How many models are trained, and how many are judged.
///
/// # Errors
/// If a file of theirs is malformed.
pub fn done(config: &Config, plan: &Plan) -> Result<[usize; 2]> {
    let run = &config.run.out;
    let mut done = [0, 0];
    for model in &plan.models {
        done[0] += usize::from(model.training.is_none() || trained(run, model)?.is_some());
        done[1] += usize::from(judged(run, model)?.is_some());
    }
    Ok(done)
}

/// `base` is the base's fingerprint.
fn train(
    config: &Config,
    model: &Model,
    base: &str,
    device: &Device,
    progress: &dyn Progress,
) -> Result<()> {
    let Some(training) = &model.training else { return Ok(()) };
    let pairs = train::read_exported(&training.pairs, &training.images)?;
    let reference = config.run.out.join("reference.jsonl");
    let options = train::Options {
        model: &config.model.path,
        pixels: config.model.pixels(),
        base,
        device,
        dtype: &config.model.dtype,
        out: &model_folder(&config.run.out, &model.name),
        file: &training.pairs,
        sampling: &training.sampling,
        reference: Some(&reference),
    };
    train::run(&pairs, &training.settings, &options, progress).map(|_| ())
}

/// Checks that models can be judged: benchmarks are there and whole, judged metrics have a judge.
///
/// # Errors
/// What does not fit.
pub fn check(config: &Config) -> Result<()> {
    Judging::new(config, 0).map(|_| ())
}

/// Benchmarks, settings and judge of an ablation.
struct Judging {
    data: PathBuf,
    label: Option<String>,
    images: PathBuf,
    settings: Settings,
    metrics: Vec<&'static dyn eval::Metric>,
    judge: Option<Judge>,
    /// Features of images, for all models with the base's tower and projector.
    features: RefCell<Images>,
    /// The demo's own judge, as long as it is needed.
    _service: Option<Service>,
}

impl Judging {
    /// `features` are the bytes that may be remembered of images.
    fn new(config: &Config, features: usize) -> Result<Self> {
        let eval: &Eval = &config.eval;
        eval.validate()?;
        let data = resolve(&eval.data)?;
        let (judge, service) = eval.judge.as_deref().map(named::judge).transpose()?.unzip();
        let this = Self {
            label: is_embedded(&eval.data).then(|| BENCHMARKS.to_owned()),
            images: eval.images.clone().unwrap_or_else(|| data.join("images")),
            settings: Settings {
                ocr: eval.ocr,
                max_new_tokens: eval.max_new_tokens,
                resamples: eval.resamples.unwrap_or(Settings::default().resamples),
                ..Settings::default()
            },
            metrics: run::chosen(&eval.metrics)?,
            judge,
            data,
            features: RefCell::new(Images::new(features)),
            _service: service.flatten(),
        };
        run::check(&this.benchmarks(), &this.metrics, &this.settings, this.judge.is_some())?;
        Ok(this)
    }

    fn benchmarks(&self) -> Benchmarks<'_> {
        Benchmarks { data: &self.data, label: self.label.clone() }
    }

    fn judge(
        &self,
        config: &Config,
        model: &Model,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<()> {
        let run_folder = &config.run.out;
        if judged(run_folder, model)?.is_some() {
            return Ok(());
        }
        let folder = match model.kind {
            Kind::Baseline => config.model.path.clone(),
            _ => model_folder(run_folder, &model.name),
        };
        if model.kind != Kind::Baseline && trained(run_folder, model)?.is_none() {
            let message = "has no train.json: this model is not trained yet";
            return Err(Error::invalid(folder, "", message));
        }
        let begun = Instant::now();
        let source = Source::new(&folder, None)?.with_pixels(config.model.pixels());
        let loaded = models::Model::open(&source, device, device::dtype(&config.model.dtype)?)?;
        let out = judged_folder(run_folder, &model.name);
        let mut answering = Answering::default();
        if let Some(budget) = config.run.token_budget {
            answering.token_budget = budget as usize;
        }
        let run = run::Run {
            model: Some((&loaded, answering)),
            judge: self.judge.as_ref(),
            images: Some(&self.images),
            features: &self.features,
            out: Some(&out),
        };
        let callbacks = Callbacks { progress, cost: &|_, _| {} };
        run::all(&run, &self.benchmarks(), &self.metrics, &self.settings, &callbacks)?;
        write_json(&out.join(SECONDS), &Seconds { judge: begun.elapsed().as_secs_f64() })
    }
}
