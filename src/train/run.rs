//! A training from pairs to an adapter, which a later call continues where an earlier one was stopped.
//!
//! ```text
//! OUT/checkpoint.safetensors       adapters, moments and the number of steps: the state after a whole step, until the end
//! OUT/train.jsonl                  one line a step
//! OUT/adapter_config.json, adapter_model.safetensors
//! OUT/train.json                   settings and totals; is there once everything is
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::online::Drawer;
use super::pairs::Pair;
use super::parameters::write_tensors;
use super::references::References;
use super::settings::{Loss, Settings};
use super::trainer::{BatchStats, Example, Trainer};
use crate::data::json::read_document;
use crate::engine::{Progress, checkpoint};
use crate::files::{write_file, write_json};
use crate::models::encoder::Choice;
use crate::models::{Bounds, Source, device};
use crate::ops::philox::{Draws, Purpose};
use crate::sampling::SamplingConfig;
use crate::{Error, Result};

/// Where a training takes its model from and leaves its files.
pub struct Options<'a> {
    /// Model folder.
    pub model: &'a Path,
    /// Bounds of its pictures.
    pub pixels: Bounds,
    /// Its fingerprint ([`crate::models::fingerprint::fingerprint`]).
    pub base: &'a str,
    /// Where networks run.
    pub device: &'a Device,
    /// Storage type of the base: `f32`, `f16` or `bf16`; adapters are f32.
    pub dtype: &'a str,
    /// The folder of the adapter.
    pub out: &'a Path,
    /// The pairs' file, for messages.
    pub file: &'a Path,
    /// The method's settings, for `online`.
    pub sampling: &'a SamplingConfig,
    /// A file of reference log-probabilities that trainings of the same base share; none: in `out`.
    pub reference: Option<&'a Path>,
}

/// What a training did: `train.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Hash of everything that decides the adapter.
    pub identity: String,
    /// Fingerprint of the base model.
    pub base: String,
    /// The settings.
    pub settings: Settings,
    /// Pairs trained on.
    pub pairs: usize,
    /// Pairs left out because of a flag.
    pub excluded: usize,
    /// Optimiser steps.
    pub steps: u32,
    /// Numbers that are trained.
    pub parameters: usize,
    /// Means over the steps of the last epoch.
    pub last: Means,
    /// Wall time of this and earlier calls' stages in seconds: `reference`, `train`.
    pub seconds: std::collections::BTreeMap<String, f64>,
}

/// Means over some steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Means {
    /// Of the loss.
    pub loss: f64,
    /// Of the reward margins.
    pub margin: f64,
    /// Of the share of pairs whose chosen answer has the higher reward.
    pub accuracy: f64,
}

/// One line of `train.jsonl`, in TRL's names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The step, from 1.
    pub step: u32,
    /// Passes over the pairs so far.
    pub epoch: f64,
    /// The loss.
    pub loss: f64,
    /// Of the adapters.
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Implicit rewards: beta (policy - reference).
    #[serde(rename = "rewards/chosen")]
    pub chosen: f64,
    #[serde(rename = "rewards/rejected")]
    #[allow(missing_docs)]
    pub rejected: f64,
    #[serde(rename = "rewards/margins")]
    #[allow(missing_docs)]
    pub margin: f64,
    #[serde(rename = "rewards/accuracies")]
    #[allow(missing_docs)]
    pub accuracy: f64,
    /// Log-probabilities of whole answers under the policy.
    #[serde(rename = "logps/chosen")]
    pub chosen_log_prob: f64,
    #[serde(rename = "logps/rejected")]
    #[allow(missing_docs)]
    pub rejected_log_prob: f64,
    /// Token rows computed.
    pub rows: usize,
}

impl Outcome {
    /// A line for people.
    pub fn text(&self) -> String {
        let Means { loss, margin, accuracy } = self.last;
        format!(
            "{} steps on {} pairs ({} left out), {} trained numbers; last epoch: loss {loss:.4}, reward margin {margin:.3}, \
             accuracy {accuracy:.3}; {:.1} s",
            self.steps,
            self.pairs,
            self.excluded,
            self.parameters,
            self.seconds.values().sum::<f64>()
        )
    }
}

const STATE: &str = "checkpoint.safetensors";
const LOG: &str = "train.jsonl";
const DONE: &str = "train.json";

/// Trains on pairs, or continues; a finished training of the same identity is returned as it is.
///
/// # Errors
/// Settings or pairs that do not fit; a folder with another training; a loss or gradient that is not finite (the last
/// checkpoint stays, and the message names the pair); a requested stop.
pub fn run(
    pairs: &[Pair],
    settings: &Settings,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Outcome> {
    settings.validate()?;
    let usable: Vec<&Pair> =
        pairs.iter().filter(|pair| !(settings.exclude_flagged && pair.is_flagged())).collect();
    if usable.len() < settings.batch {
        let message = format!(
            "has {} usable pairs of {}, expected at least train.batch = {}",
            usable.len(),
            pairs.len(),
            settings.batch
        );
        return Err(Error::invalid(options.file, "", message));
    }
    let identity = identity(&usable, settings, options)?;
    let done = options.out.join(DONE);
    if done.is_file() {
        let outcome: Outcome = read_document(&done)?;
        return match outcome.identity == identity {
            true => Ok(outcome),
            false => Err(other_training(&done)),
        };
    }
    let mut run = Run::start(&usable, settings, options, identity, progress)?;
    run.train(progress)?;
    run.finish(pairs.len() - usable.len())
}

/// A training at work.
struct Run<'a> {
    trainer: Trainer,
    examples: Vec<Example>,
    /// With `gamma`, each pair once more with the rejected answer that its data came with.
    source: Vec<Option<Example>>,
    lines: Vec<Line>,
    /// Draws rejected answers, if that is asked for.
    drawer: Option<Drawer>,
    settings: &'a Settings,
    options: &'a Options<'a>,
    identity: String,
    seconds: [f64; 2],
}

impl<'a> Run<'a> {
    fn start(
        usable: &[&Pair],
        settings: &'a Settings,
        options: &'a Options<'a>,
        identity: String,
        progress: &dyn Progress,
    ) -> Result<Self> {
        progress.begin("training: loading the model", None);
        fs::create_dir_all(options.out).map_err(Error::io(options.out))?;
        let dtype = device::dtype(options.dtype)?;
        let source = Source::new(options.model, None)?.with_pixels(options.pixels);
        let trainer = Trainer::open(&source, options.device, dtype, settings)?;
        let examples = usable.iter().map(|pair| trainer.example(pair)).collect::<Result<Vec<_>>>();
        let mut examples = examples.map_err(|error| error.in_file(options.file))?;
        let mut source =
            with_source(usable, &trainer, settings).map_err(|error| error.in_file(options.file))?;
        for (example, source) in examples.iter_mut().zip(&source) {
            example.weight = if source.is_some() { settings.gamma.unwrap_or(1.0) } else { 1.0 };
        }
        let begun = Instant::now();
        if settings.loss != Loss::Sft {
            let own = options.out.join("reference.jsonl");
            let path = options.reference.unwrap_or(&own);
            let mut known = References::open(path, options.base, options.dtype)?;
            known
                .fill(&mut examples, &trainer, progress)
                .and_then(|()| {
                    let mut own: Vec<Example> = source.iter().flatten().cloned().collect();
                    known.fill(&mut own, &trainer, progress)?;
                    source.iter_mut().flatten().zip(own).for_each(|(one, filled)| *one = filled);
                    Ok(())
                })
                .map_err(|error| error.in_file(options.file))?;
        }
        let seconds = [begun.elapsed().as_secs_f64(), 0.0];
        let online = settings.online.as_ref();
        let drawer =
            online.map(|online| Drawer::new(online, options.sampling, &trainer)).transpose()?;
        let mut run = Self {
            drawer,
            trainer,
            examples,
            source,
            lines: Vec::new(),
            settings,
            options,
            identity,
            seconds,
        };
        run.resume()?;
        Ok(run)
    }

    /// Takes up the state of the last checkpoint, and the log up to it.
    fn resume(&mut self) -> Result<()> {
        let path = self.options.out.join(STATE);
        if !path.is_file() {
            return Ok(());
        }
        let invalid = |message: String| Error::invalid(&path, "", message);
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let (_, metadata) =
            safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| invalid(e.to_string()))?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        if metadata.get("identity") != Some(&self.identity) {
            return Err(other_training(&path));
        }
        let tensors: HashMap<String, Tensor> =
            candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        self.trainer.parameters.set(&tensors, &path)?;
        let step = metadata.get("step").and_then(|step| step.parse().ok());
        let seconds = metadata.get("seconds").and_then(|seconds| seconds.parse().ok());
        let adam = &mut self.trainer.adam;
        let names = self.trainer.parameters.all.iter().map(|one| one.name.as_str());
        let (Some(step), Some(()), Some(seconds)) = (step, adam.set(names, &tensors), seconds)
        else {
            return Err(invalid("is no whole checkpoint".to_owned()));
        };
        adam.step = step;
        self.seconds[1] = seconds;
        let log = self.options.out.join(LOG);
        let text = fs::read_to_string(&log).map_err(Error::io(&log))?;
        // Lines of steps after the checkpoint are of a past that is computed again.
        for line in text.lines().take(step as usize) {
            let line =
                serde_json::from_str(line).map_err(|e| Error::invalid(&log, "", e.to_string()))?;
            self.lines.push(line);
        }
        if self.lines.len() != step as usize {
            let message =
                format!("has {} lines, expected the checkpoint's {step}", self.lines.len());
            return Err(Error::invalid(&log, "", message));
        }
        Ok(())
    }

    fn train(&mut self, progress: &dyn Progress) -> Result<()> {
        let pairs = self.examples.len();
        let steps = self.settings.steps(pairs)?;
        let each = pairs.div_ceil(self.settings.batch) as u32;
        progress.begin("training", Some(u64::from(steps)));
        progress.advance(u64::from(self.trainer.adam.step));
        while self.trainer.adam.step < steps {
            let begun = Instant::now();
            let step = self.trainer.adam.step;
            let (epoch, within) = (step / each, (step % each) as usize);
            let order = order(pairs, self.settings.seed, epoch);
            let batch = order.iter().skip(within * self.settings.batch).take(self.settings.batch);
            let batch: Vec<usize> = batch.copied().collect();
            let drawn = match &self.drawer {
                Some(drawer) => drawer
                    .batch(&self.trainer, &self.examples, &batch, epoch)
                    .map_err(|error| error.in_file(self.options.file))?,
                None => Vec::new(),
            };
            let batch: Vec<&Example> = match &self.drawer {
                Some(_) => drawn.iter().collect(),
                None => {
                    let both = |&i: &usize| [Some(&self.examples[i]), self.source[i].as_ref()];
                    batch.iter().flat_map(both).flatten().collect()
                }
            };
            if batch.is_empty() {
                let message =
                    format!("none of the answers drawn in step {} can be learned from", step + 1);
                return Err(Error::invalid(self.options.file, "", message));
            }
            let rate = self.settings.schedule(step, steps);
            let stats = self.trainer.step(&batch, rate);
            let stats = stats.map_err(|error| error.in_file(self.options.file))?;
            let passes = f64::from(step + 1) / f64::from(each);
            self.lines.push(line(step + 1, passes, rate * self.settings.learning_rate, &stats));
            self.seconds[1] += begun.elapsed().as_secs_f64();
            progress.advance(1);
            let stop = progress.stop_requested();
            if stop || (step + 1).is_multiple_of(self.settings.checkpoint) {
                self.save()?;
            }
            checkpoint(progress)?;
        }
        Ok(())
    }

    /// Log first: a checkpoint is never ahead of it.
    fn save(&self) -> Result<()> {
        self.write_log()?;
        let names = self.trainer.parameters.all.iter().map(|one| one.name.as_str());
        let mut tensors = self.trainer.parameters.tensors();
        tensors.extend(self.trainer.adam.tensors(names));
        let metadata = HashMap::from([
            ("identity".to_owned(), self.identity.clone()),
            ("step".to_owned(), self.trainer.adam.step.to_string()),
            ("seconds".to_owned(), self.seconds[1].to_string()),
        ]);
        write_tensors(&self.options.out.join(STATE), &tensors, Some(metadata))
    }

    fn write_log(&self) -> Result<()> {
        let path = self.options.out.join(LOG);
        let mut text = Vec::new();
        for line in &self.lines {
            serde_json::to_writer(&mut text, line)
                .map_err(std::io::Error::from)
                .and_then(|()| text.write_all(b"\n"))
                .map_err(Error::io(&path))?;
        }
        write_file(&path, &text)
    }

    fn finish(self, excluded: usize) -> Result<Outcome> {
        let out = self.options.out;
        self.write_log()?;
        self.trainer.save_adapter(out)?;
        let each = self.examples.len().div_ceil(self.settings.batch);
        let last = &self.lines[self.lines.len().saturating_sub(each)..];
        let mean =
            |of: fn(&Line) -> f64| last.iter().map(of).sum::<f64>() / last.len().max(1) as f64;
        let parameters = self.trainer.parameters.all.iter();
        let outcome = Outcome {
            identity: self.identity,
            base: self.options.base.to_owned(),
            settings: self.settings.clone(),
            pairs: self.examples.len(),
            excluded,
            steps: self.trainer.adam.step,
            parameters: parameters.map(|one| one.var.elem_count()).sum(),
            last: Means {
                loss: mean(|line| line.loss),
                margin: mean(|line| line.margin),
                accuracy: mean(|line| line.accuracy),
            },
            seconds: [("reference", self.seconds[0]), ("train", self.seconds[1])]
                .map(|(stage, seconds)| (stage.to_owned(), seconds))
                .into(),
        };
        write_json(&out.join(DONE), &outcome)?;
        let state = out.join(STATE);
        if state.is_file() {
            fs::remove_file(&state).map_err(Error::io(&state))?;
        }
        Ok(outcome)
    }
}

/// With `gamma`, the pairs with the rejected answers that their data came with.
fn with_source(
    pairs: &[&Pair],
    trainer: &Trainer,
    settings: &Settings,
) -> Result<Vec<Option<Example>>> {
    let weight = 1.0 - settings.gamma.unwrap_or(1.0);
    let own = |pair: &&Pair| {
        let rejected = pair.source_rejected.clone();
        let rejected = rejected.filter(|text| weight > 0.0 && *text != pair.chosen);
        let example = |rejected| {
            Ok(Example { weight, ..trainer.example(&Pair { rejected, ..(*pair).clone() })? })
        };
        rejected.map(example).transpose()
    };
    pairs.iter().map(own).collect()
}

fn line(step: u32, epoch: f64, learning_rate: f64, stats: &BatchStats) -> Line {
    Line {
        step,
        epoch,
        loss: stats.loss,
        learning_rate,
        grad_norm: stats.gradient_norm,
        chosen: stats.rewards[0],
        rejected: stats.rewards[1],
        margin: stats.rewards[0] - stats.rewards[1],
        accuracy: stats.accuracy,
        chosen_log_prob: stats.log_probs[0],
        rejected_log_prob: stats.log_probs[1],
        rows: stats.rows,
    }
}

/// The order of pairs in an epoch.
fn order(pairs: usize, seed: u64, epoch: u32) -> Vec<usize> {
    let draws = Draws { seed, sample: 0, attempt: epoch };
    let mut words = vec![0; pairs];
    draws.fill(Purpose::Order, 0, &mut words);
    let mut order: Vec<usize> = (0..pairs).collect();
    order.sort_by_key(|&i| (words[i], i));
    order
}

fn other_training(path: &Path) -> Error {
    let message = "is of another training (settings, pairs or base differ); give another folder, or remove this one";
    Error::invalid(path, "", message)
}

fn identity(pairs: &[&Pair], settings: &Settings, options: &Options) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut put = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    };
    // How often a checkpoint is written changes nothing, nor does where the encoder lies.
    let mut settings = Settings { checkpoint: 1, ..settings.clone() };
    if let Some(online) = &mut settings.online {
        let encoder = Choice::parse(&std::mem::take(&mut online.encoder))?;
        put(&format!("{:?}", options.sampling));
        put(&encoder.fingerprint()?);
    }
    // Trainings without it are those of versions that did not know it.
    let known = format!("{settings:?}");
    put(known
        .strip_suffix(", gamma: None }")
        .map(|text| format!("{text} }}"))
        .as_ref()
        .unwrap_or(&known));
    put(options.dtype);
    put(options.base);
    let mut hashes: HashMap<&Path, String> = HashMap::new();
    for pair in pairs {
        for picture in &pair.images {
            let name = picture.name();
            if !hashes.contains_key(name) {
                let hash = blake3::Hash::from(picture.content_hash()?).to_hex().to_string();
                hashes.insert(name, hash);
            }
            put(&hashes[name]);
        }
        for turn in &pair.turns {
            put(&format!("{:?}", turn.role));
            put(&turn.text);
        }
        put(&pair.chosen);
        put(&pair.rejected);
        if let (Some(_), Some(source)) = (settings.gamma, &pair.source_rejected) {
            put(source);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}
