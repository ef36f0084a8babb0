//! Image features, computed once a block.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{DType, DeviceLocation, Tensor};
use rayon::prelude::*;

use super::{
    Engine, Progress, checkpoint,
    prepare::{Prepared, kept_tokens},
};
use crate::{
    Error, Result,
    data::Sample,
    models::{Bounds, ImageLayout, Model, Pixels},
    ops::philox::Draws,
    sampling::{attempts::attempts, corruption::add_noise},
};

/// Samples whose pixels are in memory at a time.
const GROUP: usize = 16;

/// Remembers the image rows that any attempt of a run keeps.
///
/// Masks are drawn by counter, so the rows that later attempts will keep are known at the first
/// one: at rho = 0.99 and five attempts the tower runs once an image and about 5 % of its rows are
/// held. Images are known by their paths, so samples about one image share its rows, and so do
/// models that have the tower and the projector of one folder ([`Model::vision_of`]). Everything is
/// forgotten when a model with others comes.
pub struct Images {
    of: Option<Owner>,
    known: HashMap<Vec<PathBuf>, Rows>,
    bytes: usize,
    budget: usize,
    computed: u64,
}

/// Whose features are remembered: the folder of tower and projector, bounds of pictures, and what
/// they run as.
#[derive(PartialEq)]
struct Owner(PathBuf, Bounds, DType, DeviceLocation);

/// Some rows of a sample's image features.
#[derive(Clone)]
struct Rows {
    /// Which image tokens, ascending.
    tokens: Vec<u32>,
    /// `[tokens, H]`.
    rows: Tensor,
}

impl Images {
    /// Holds at most `budget` bytes; what does not fit is computed again when it is needed.
    pub fn new(budget: usize) -> Self {
        Self { of: None, known: HashMap::new(), bytes: 0, budget, computed: 0 }
    }

    /// How many samples' images went through the tower.
    pub fn computed(&self) -> u64 {
        self.computed
    }

    /// The features `[kept, H]` of the kept image tokens of every attempt of a wave; none where nothing is kept. The vision tower
    /// always sees whole images.
    pub(super) fn of_wave(
        &mut self,
        engine: &Engine,
        wave: &[&Prepared],
        progress: &dyn Progress,
    ) -> Result<Vec<Option<Tensor>>> {
        self.belong_to(engine.model);
        let mut found: Vec<Option<Tensor>> = Vec::with_capacity(wave.len());
        // Attempts that share a run of the tower, by the first of them.
        let mut missing: Vec<Vec<usize>> = Vec::new();
        let mut first: HashMap<Vec<PathBuf>, usize> = HashMap::new();
        for (i, prepared) in wave.iter().enumerate() {
            found.push(self.recall(engine, prepared)?);
            if found[i].is_some() || prepared.kept.is_empty() {
                continue;
            }
            let group = match engine.config.noise_steps {
                0 => *first.entry(names(prepared.request.sample)).or_insert(missing.len()),
                // Noise is drawn for each attempt, so nothing can be shared.
                _ => missing.len(),
            };
            match missing.get_mut(group) {
                Some(attempts) => attempts.push(i),
                None => missing.push(vec![i]),
            }
        }
        for group in missing.chunks(GROUP) {
            checkpoint(progress)?;
            let firsts: Vec<&Prepared> = group.iter().map(|attempts| wave[attempts[0]]).collect();
            features(engine, &firsts, |at, all| {
                self.computed += 1;
                let rows = self.keep(engine, wave, &group[at], all)?;
                for &i in &group[at] {
                    found[i] = Some(rows.of(&wave[i].kept)?);
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Forgets what another tower or projector gave.
    fn belong_to(&mut self, model: &Model) {
        let (language, folder) = (&model.language, model.vision_of().to_owned());
        let (dtype, device) = (language.dtype(), language.device().location());
        let owner = Owner(folder, model.pixels(), dtype, device);
        if self.of.as_ref() != Some(&owner) {
            self.known.clear();
            (self.of, self.bytes) = (Some(owner), 0);
        }
    }

    /// Features that are remembered.
    fn recall(&self, engine: &Engine, prepared: &Prepared) -> Result<Option<Tensor>> {
        let rows = self.known.get(&names(prepared.request.sample));
        match rows.filter(|rows| engine.config.noise_steps == 0 && rows.hold(&prepared.kept)) {
            Some(rows) if !prepared.kept.is_empty() => Ok(Some(rows.of(&prepared.kept)?)),
            _ => Ok(None),
        }
    }

    /// The rows of all features that these attempts at one sample need, and those that later ones will; remembered if they fit.
    fn keep(
        &mut self,
        engine: &Engine,
        wave: &[&Prepared],
        attempts: &[usize],
        all: &Tensor,
    ) -> Result<Rows> {
        let sample = wave[attempts[0]].request.sample;
        let share = engine.config.noise_steps == 0;
        let mut tokens = if share { union(engine, sample)? } else { Vec::new() };
        // Another sample about the same image keeps others.
        let before = self.known.get(&names(sample));
        tokens.extend(before.filter(|_| share).iter().flat_map(|rows| &rows.tokens));
        // An attempt may be none of the configured run's.
        tokens.extend(attempts.iter().flat_map(|&i| &wave[i].kept));
        tokens.sort_unstable();
        tokens.dedup();
        let rows = Rows { rows: select(all, &tokens)?, tokens };
        let before = before.map_or(0, Rows::bytes);
        if share && self.bytes - before + rows.bytes() <= self.budget {
            self.bytes += rows.bytes() - before;
            self.known.insert(names(sample), rows.clone());
        }
        Ok(rows)
    }
}

/// What a sample's pictures are known by; their bytes, if they are in memory, are not kept.
fn names(sample: &Sample) -> Vec<PathBuf> {
    sample.images.iter().map(|image| image.name().to_owned()).collect()
}

impl Rows {
    fn bytes(&self) -> usize {
        self.rows.elem_count() * self.rows.dtype().size_in_bytes()
    }

    fn hold(&self, tokens: &[u32]) -> bool {
        tokens.iter().all(|token| self.tokens.binary_search(token).is_ok())
    }

    /// The rows of these tokens, which it holds.
    fn of(&self, tokens: &[u32]) -> Result<Tensor> {
        let place = |token: &u32| self.tokens.partition_point(|held| held < token) as u32;
        select(&self.rows, &tokens.iter().map(place).collect::<Vec<_>>())
    }
}

/// Token counts of a sample's images, from their headers.
pub(super) fn layouts(model: &Model, sample: &Sample) -> Result<Vec<ImageLayout>> {
    let turned = model.turns_pictures();
    let sizes = sample.images.iter().map(|picture| picture.dimensions_as(turned));
    model.layouts(&sizes.collect::<Result<Vec<_>>>()?)
}

/// Calls `done(i, features)` with the features of all image tokens of attempt i, one image after another. Files are read and
/// pixels prepared by all threads.
fn features(
    engine: &Engine,
    attempts: &[&Prepared],
    mut done: impl FnMut(usize, &Tensor) -> Result<()>,
) -> Result<()> {
    let model = engine.model;
    let pixels: Vec<Vec<Pixels>> =
        attempts.par_iter().map(|prepared| pixels(engine, prepared)).collect::<Result<_>>()?;
    let mut states = model.states(&pixels.iter().flatten().collect::<Vec<_>>())?.into_iter();
    for (i, images) in pixels.iter().enumerate() {
        let own = images.iter().zip(&mut states);
        let all: Vec<Tensor> = own
            .map(|(image, states)| model.image_rows(&states, &image.layout))
            .collect::<Result<_>>()?;
        done(i, &Tensor::cat(&all, 0)?)?;
    }
    Ok(())
}

/// The pixels of an attempt's images.
fn pixels(engine: &Engine, prepared: &Prepared) -> Result<Vec<Pixels>> {
    let request = &prepared.request;
    let draws = Draws { seed: engine.seed, sample: request.sample.index, attempt: request.attempt };
    let mut all = Vec::new();
    let mut first = 0;
    for (picture, layout) in request.sample.images.iter().zip(&prepared.layouts) {
        let sample = request.sample;
        let opened = picture.open_as(engine.model.turns_pictures())?;
        let mut pixels = engine.model.preprocess_as(&opened, layout).map_err(|error| {
            let at = format!("picture of sample {:?}, {}", sample.id, sample.place);
            Error::invalid(picture.name(), at, error.to_string())
        })?;
        if engine.config.noise_steps > 0 {
            let shape = pixels.tiles.shape().clone();
            let mut values = pixels.tiles.flatten_all()?.to_vec1::<f32>()?;
            add_noise(&mut values, first, &draws, request.guided, engine.config.noise_steps)?;
            first += values.len() as u64;
            pixels.tiles = Tensor::from_vec(values, shape, pixels.tiles.device())?;
        }
        all.push(pixels);
    }
    Ok(all)
}

/// Every image token that some attempt of the run keeps.
fn union(engine: &Engine, sample: &Sample) -> Result<Vec<u32>> {
    let layouts = layouts(engine.model, sample)?;
    let mut tokens = Vec::new();
    for attempt in attempts(&engine.config) {
        let draws = Draws { seed: engine.seed, sample: sample.index, attempt: attempt.number };
        tokens.extend(kept_tokens(&engine.config, draws, attempt.guided, &layouts)?);
    }
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}

fn select(rows: &Tensor, tokens: &[u32]) -> Result<Tensor> {
    Ok(rows.index_select(&Tensor::new(tokens, rows.device())?, 0)?)
}
