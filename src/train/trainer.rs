//! A model in training: reference log-probabilities, gradients of a batch, updates.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;

use super::adam::{self, Adam};
use super::loss::LogProbs;
use super::pairs::Pair;
use super::parameters::Parameters;
use super::pass::{Grads, Pass, log_probs};
use super::sequence::{Packed, Sequences, layouts};
use super::settings::{Loss, Settings};
use crate::data::Picture;
use crate::models::adapter;
use crate::models::lora::Mode;
use crate::models::{ImageLayout, Model, Source};
use crate::{Error, Result};

/// Bytes of vision features that are kept between epochs.
const IMAGE_CACHE: usize = 2 << 30;

/// A pair with its token sequences and, once known, the reference model's log-probabilities.
#[derive(Clone, Debug)]
pub struct Example {
    /// The pair.
    pub pair: Pair,
    /// Its token sequences.
    pub sequences: Sequences,
    /// Of the chosen and the rejected answer; zeros for the supervised loss, which has no reference.
    pub reference: [f64; 2],
    /// What it counts among its batch's pairs.
    pub weight: f64,
    /// Image tokens in all.
    pub image_tokens: usize,
    /// How those of each image are laid out.
    pub layouts: Vec<ImageLayout>,
}

/// What a batch says: means over its pairs, by their weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchStats {
    /// The loss.
    pub loss: f64,
    /// Implicit rewards of chosen and rejected answers.
    pub rewards: [f64; 2],
    /// Share of pairs whose chosen answer has the higher reward.
    pub accuracy: f64,
    /// Log-probabilities of chosen and rejected answers.
    pub log_probs: [f64; 2],
    /// Token rows computed.
    pub rows: usize,
    /// Length of the gradient before clipping.
    pub gradient_norm: f64,
}

/// A model in training.
pub struct Trainer {
    /// The model as trained so far; its adapters are applied outside of steps.
    pub model: Model,
    pub(super) settings: Settings,
    pub(super) parameters: Parameters,
    pub(super) adam: Adam,
    images: Mutex<Images>,
}

/// The vision tower's states of images.
#[derive(Default)]
struct Images {
    /// By file and number of views: a family may show one picture in more views than one of several.
    known: HashMap<(PathBuf, usize), Tensor>,
    bytes: usize,
}

impl Trainer {
    /// A model folder with fresh adapters.
    ///
    /// # Errors
    /// As [`Model::load`]; a folder that is itself an adapter; a target layer that the model does not have.
    pub fn new(dir: &Path, device: &Device, dtype: DType, settings: &Settings) -> Result<Self> {
        Self::open(&Source::new(dir, None)?, device, dtype, settings)
    }

    /// As [`Trainer::new`], with the source's bounds of pictures.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn open(
        source: &Source,
        device: &Device,
        dtype: DType,
        settings: &Settings,
    ) -> Result<Self> {
        settings.validate()?;
        source.unadapted()?;
        let (parameters, weights) = Parameters::new(source.weights(device, dtype)?, settings)?;
        let model = Model::of(source, &weights)?;
        let vars: Vec<&Var> = parameters.all.iter().map(|one| &one.var).collect();
        let adam = Adam::new(&vars)?;
        parameters.switch.set(Mode::Apply);
        Ok(Self { model, settings: settings.clone(), parameters, adam, images: Mutex::default() })
    }

    /// Takes the values of an adapter in PEFT's layout in place of the fresh ones.
    ///
    /// # Errors
    /// If it lacks a trained tensor, or one has another shape.
    pub fn load_adapter(&self, dir: &Path) -> Result<()> {
        let path = dir.join(adapter::TENSORS);
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
            .map_err(|error| Error::invalid(&path, "", error.to_string()))?;
        self.parameters.set(&tensors, &path)
    }

    /// Writes the adapter in PEFT's layout.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save_adapter(&self, dir: &Path) -> Result<()> {
        self.parameters.save(dir, self.model.dir(), &self.settings)
    }

    /// Copies of all trained tensors, by their names in PEFT's file.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn tensors(&self) -> Result<HashMap<String, Tensor>> {
        let all = self.parameters.tensors().into_iter();
        all.map(|(name, tensor)| Ok((name, tensor.copy()?))).collect()
    }

    /// A pair as token sequences, its reference still unknown.
    ///
    /// # Errors
    /// As [`Sequences::new`], and an image that cannot be read.
    pub fn example(&self, pair: &Pair) -> Result<Example> {
        let layouts = layouts(&self.model, pair)?;
        let sequences = Sequences::new(&self.model, pair, &layouts, &self.settings)?;
        Ok(Example {
            pair: pair.clone(),
            sequences,
            reference: [0.0; 2],
            weight: 1.0,
            image_tokens: layouts.iter().map(|layout| layout.tokens).sum(),
            layouts,
        })
    }

    /// Log-probabilities of pairs' answers under the base model: of each pair those of a pass over it alone, so that they
    /// depend on nothing else. Only before the first step if the projector is trained.
    ///
    /// # Errors
    /// If an image cannot be read, or a log-probability is not finite.
    pub fn references(&self, examples: &[&Example]) -> Result<Vec<[f64; 2]>> {
        self.parameters.switch.set(Mode::Off);
        let one = |example: &&Example| {
            let packed = Packed::new(&[(&example.sequences, example.image_tokens)]);
            let input = self.input(&packed, &[example])?;
            let found = log_probs(&self.model.language, &packed, &input)?;
            let sums = sums(&packed, &found);
            finite(&example.pair, &sums)?;
            Ok([sums[0], sums.get(1).copied().unwrap_or(0.0)])
        };
        let found = examples.par_iter().map(one).collect();
        self.parameters.switch.set(Mode::Apply);
        found
    }

    /// The mean loss of a batch and its gradients, by name, before clipping.
    ///
    /// # Errors
    /// A log-probability that is not finite (the pair is named), or an image that cannot be read.
    pub fn gradients(
        &mut self,
        batch: &[&Example],
    ) -> Result<(BatchStats, HashMap<String, Tensor>)> {
        let (stats, grads) = self.batch(batch)?;
        let names = self.parameters.all.iter().map(|one| one.name.clone());
        Ok((stats, names.zip(grads).collect()))
    }

    /// One optimiser step on a batch, at this share of the highest learning rates.
    ///
    /// # Errors
    /// As [`Trainer::gradients`], and a gradient that is not finite; nothing is changed then.
    pub fn step(&mut self, batch: &[&Example], rate: f64) -> Result<BatchStats> {
        let (stats, mut grads) = self.batch(batch)?;
        adam::clip(&mut grads, stats.gradient_norm, &self.settings)
            .map_err(|error| self.blame(batch, error))?;
        let of = |projector: bool| match projector {
            true => self.settings.projector_learning_rate,
            false => self.settings.learning_rate,
        };
        let vars: Vec<(&Var, f64)> =
            self.parameters.all.iter().map(|one| (&one.var, rate * of(one.projector))).collect();
        self.adam.update(&vars, &grads, &self.settings)?;
        Ok(stats)
    }

    /// Names the first pair of a batch whose own gradient is not finite.
    fn blame(&mut self, batch: &[&Example], error: Error) -> Error {
        for example in batch {
            if self.batch(&[example]).is_ok_and(|(stats, _)| !stats.gradient_norm.is_finite()) {
                let at = &example.pair.place;
                let message =
                    format!("pair {:?} has a gradient that is not finite", example.pair.id);
                return Error::invalid("", at, message);
            }
        }
        error
    }

    fn batch(&mut self, batch: &[&Example]) -> Result<(BatchStats, Vec<Tensor>)> {
        let mut stats = BatchStats::default();
        let mut grads: Grads = vec![None; self.parameters.all.len()];
        // The supervised loss is a mean over tokens, the others are means over pairs.
        let count = |example: &&Example| match self.settings.loss {
            Loss::Sft => example.sequences.tokens()[0] as f64,
            Loss::Sigmoid | Loss::Ipo => example.weight,
        };
        let weight = 1.0 / batch.iter().map(count).sum::<f64>();
        for (number, part) in parts(batch, self.settings.tokens).into_iter().enumerate() {
            self.parameters.switch.batch(self.adam.step, number as u32);
            self.part(part, weight, &mut stats, &mut grads)?;
        }
        let n: f64 = batch.iter().map(|example| example.weight).sum();
        stats.accuracy /= n;
        for sum in stats.rewards.iter_mut().chain(&mut stats.log_probs) {
            *sum /= n;
        }
        let grads = self.parameters.all.iter().zip(grads).map(|(parameter, grad)| {
            // Never a silent zero: a parameter without a gradient is a cut in the graph.
            let missing =
                || Error::argument("train", "gradient", &parameter.name, "one for every parameter");
            grad.ok_or_else(missing)
        });
        let grads: Vec<Tensor> = grads.collect::<Result<_>>()?;
        stats.gradient_norm = adam::norm(&grads)?;
        Ok((stats, grads))
    }

    /// One pass over some pairs of a batch, each of which counts `weight` in the loss.
    fn part(
        &mut self,
        part: &[&Example],
        weight: f64,
        stats: &mut BatchStats,
        grads: &mut Grads,
    ) -> Result<()> {
        let all: Vec<(&Sequences, usize)> =
            part.iter().map(|e| (&e.sequences, e.image_tokens)).collect();
        let packed = Packed::new(&all);
        let input = self.input(&packed, part)?;
        let language = &self.model.language;
        let recompute = self.settings.recompute;
        let (pass, found) = Pass::up(language, &packed, input, &self.parameters, recompute)?;
        let sums = sums(&packed, &found);
        let mut slopes = Vec::with_capacity(packed.answers);
        let mut next = 0;
        for example in part {
            let own = &sums[next..next + example.sequences.tails.len()];
            next += own.len();
            finite(&example.pair, own)?;
            let weight = weight * example.weight;
            let value = self.count(example, own, weight, stats);
            slopes.extend(value.iter().take(own.len()).map(|slope| slope * weight));
        }
        let slopes: Vec<f64> = packed.targets.iter().map(|target| slopes[target.answer]).collect();
        pass.down(&slopes, &self.parameters, grads)?;
        self.parameters.switch.set(Mode::Apply);
        stats.rows += packed.order.len();
        Ok(())
    }

    /// Adds a pair to the statistics; returns its slopes.
    fn count(
        &self,
        example: &Example,
        sums: &[f64],
        weight: f64,
        stats: &mut BatchStats,
    ) -> [f64; 2] {
        let tokens = example.sequences.tokens();
        let second = |list: &[usize]| list.get(1).copied().unwrap_or(0);
        let pair = LogProbs {
            policy: [sums[0], sums.get(1).copied().unwrap_or(0.0)],
            reference: example.reference,
            tokens: [tokens[0], second(&tokens)],
        };
        let value = pair.loss(&self.settings);
        stats.loss += value.loss * weight;
        let rewards = pair.rewards(self.settings.beta);
        stats.accuracy += example.weight * f64::from(u8::from(rewards[0] > rewards[1]));
        for (sum, reward) in stats.rewards.iter_mut().zip(rewards) {
            *sum += example.weight * reward;
        }
        for (sum, log_prob) in stats.log_probs.iter_mut().zip(pair.policy) {
            *sum += example.weight * log_prob;
        }
        value.slopes
    }

    /// The input rows of a pass; with a graph where the projector is trained and in training.
    fn input(&self, packed: &Packed, part: &[&Example]) -> Result<Tensor> {
        let mut rows = Vec::new();
        for example in part {
            for (picture, layout) in example.pair.images.iter().zip(&example.layouts) {
                rows.push(self.model.image_rows(&self.features(picture, layout)?, layout)?);
            }
        }
        let text = self.model.language.embed(&packed.ids)?;
        packed.input(&rows, &text)
    }

    /// The vision tower's states of an image: it is frozen, so they are kept while there is room.
    fn features(&self, picture: &Picture, layout: &ImageLayout) -> Result<Tensor> {
        let key = (picture.name().to_owned(), layout.tiles);
        let known = |images: &Images| images.known.get(&key).cloned();
        if let Some(known) = self.images.lock().ok().as_deref().and_then(known) {
            return Ok(known);
        }
        let opened = picture.open_as(self.model.turns_pictures())?;
        let pixels = self
            .model
            .preprocess_as(&opened, layout)
            .map_err(|error| Error::invalid(picture.name(), "", error.to_string()))?;
        let found = self.model.vision_features(&pixels)?;
        let bytes = found.elem_count() * found.dtype().size_in_bytes();
        if let Ok(mut images) = self.images.lock()
            && images.bytes + bytes <= IMAGE_CACHE
            && images.known.insert(key, found.clone()).is_none()
        {
            images.bytes += bytes;
        }
        Ok(found)
    }
}

/// The parts of a batch that are computed at once: as many pairs in order as the token rows allow, at least one.
fn parts<'a, 'b>(batch: &'b [&'a Example], tokens: usize) -> Vec<&'b [&'a Example]> {
    let (mut parts, mut start, mut rows) = (Vec::new(), 0, 0);
    for (i, example) in batch.iter().enumerate() {
        let own = example.sequences.rows();
        if i > start && rows + own > tokens {
            parts.push(&batch[start..i]);
            (start, rows) = (i, 0);
        }
        rows += own;
    }
    if start < batch.len() {
        parts.push(&batch[start..]);
    }
    parts
}

/// Each answer's log-probability: the sum over its tokens.
fn sums(packed: &Packed, found: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; packed.answers];
    for (target, value) in packed.targets.iter().zip(found) {
        sums[target.answer] += value;
    }
    sums
}

fn finite(pair: &Pair, sums: &[f64]) -> Result<()> {
    match sums.iter().find(|sum| !sum.is_finite()) {
        None => Ok(()),
        Some(sum) => {
            let message = format!(
                "pair {:?} has the log-probability {sum}, expected a finite number",
                pair.id
            );
            Err(Error::invalid("", &pair.place, message))
        }
    }
}
