//! Image features, computed once a block.

use std::collections::HashMap;

use candle_core::Tensor;

use super::{Engine, prepare::Prepared};
use crate::{
    Result,
    data::{Sample, image},
    models::llava::{ImageLayout, Llava},
    ops::philox::Draws,
    sampling::{
        SamplingConfig,
        attempts::attempts,
        corruption::{MaskRequest, add_noise, join_layouts, visible_tokens},
    },
};

/// Remembers the image rows that any attempt of a run keeps.
///
/// Masks are drawn by counter, so the rows that later attempts will keep are known at the first one: at
/// rho = 0.99 and five attempts the tower runs once an image and about 5 % of its rows are held.
pub struct Images {
    known: HashMap<u32, Rows>,
    bytes: usize,
    budget: usize,
}

/// Some rows of a sample's image features.
struct Rows {
    /// Which image tokens, ascending.
    tokens: Vec<u32>,
    /// `[tokens, H]`.
    rows: Tensor,
}

impl Images {
    /// Holds at most `budget` bytes; what does not fit is computed again when it is needed.
    pub fn new(budget: usize) -> Self {
        Self { known: HashMap::new(), bytes: 0, budget }
    }

    /// The features `[kept, H]` of an attempt's kept image tokens; none where nothing is kept. The
    /// vision tower always sees whole images.
    pub(super) fn kept_features(
        &mut self,
        engine: &Engine,
        prepared: &Prepared,
    ) -> Result<Option<Tensor>> {
        if prepared.kept.is_empty() {
            return Ok(None);
        }
        let sample = prepared.request.sample;
        // Noise is drawn for each attempt, so nothing can be shared.
        if engine.config.noise_steps > 0 {
            let all = features(engine, prepared)?;
            return Ok(Some(select(&all, &prepared.kept)?));
        }
        if !self.known.contains_key(&sample.index) {
            let all = features(engine, prepared)?;
            let tokens = union(engine, sample)?;
            let rows = select(&all, &tokens)?;
            let bytes = rows.elem_count() * rows.dtype().size_in_bytes();
            if self.bytes + bytes > self.budget {
                return Ok(Some(select(&all, &prepared.kept)?));
            }
            self.bytes += bytes;
            self.known.insert(sample.index, Rows { tokens, rows });
        }
        let Rows { tokens, rows } = &self.known[&sample.index];
        let places: Option<Vec<u32>> = prepared
            .kept
            .iter()
            .map(|token| tokens.binary_search(token).ok().map(|place| place as u32))
            .collect();
        match places {
            Some(places) => Ok(Some(select(rows, &places)?)),
            // An attempt that is none of the configured run's.
            None => Ok(Some(select(&features(engine, prepared)?, &prepared.kept)?)),
        }
    }
}

/// Token counts of a sample's images, from their headers.
pub(super) fn layouts(model: &Llava, sample: &Sample) -> Result<Vec<ImageLayout>> {
    sample
        .images
        .iter()
        .map(|path| {
            let (width, height) = image::dimensions(path)?;
            model.layout(width as usize, height as usize)
        })
        .collect()
}

/// Features of all image tokens of an attempt's images, one image after another.
fn features(engine: &Engine, prepared: &Prepared) -> Result<Tensor> {
    let request = &prepared.request;
    let draws = Draws { seed: engine.seed, sample: request.sample.index, attempt: request.attempt };
    let mut all = Vec::new();
    let mut first = 0;
    for path in &request.sample.images {
        let mut pixels = engine.model.preprocess(&image::open(path)?)?;
        if engine.config.noise_steps > 0 {
            let shape = pixels.tiles.shape().clone();
            let mut values = pixels.tiles.flatten_all()?.to_vec1::<f32>()?;
            add_noise(&mut values, first, &draws, request.guided, engine.config.noise_steps)?;
            first += values.len() as u64;
            pixels.tiles = Tensor::from_vec(values, shape, pixels.tiles.device())?;
        }
        all.push(engine.model.image_features(&pixels)?);
    }
    Ok(Tensor::cat(&all, 0)?)
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

/// The image tokens that an attempt keeps, ascending, counted over all images.
pub(super) fn kept_tokens(
    config: &SamplingConfig,
    draws: Draws,
    guided: bool,
    layouts: &[ImageLayout],
) -> Result<Vec<u32>> {
    let parts = layouts.iter().map(|layout| (layout.tokens, layout.grids.as_slice()));
    let (tokens, grids) = join_layouts(parts);
    let request = MaskRequest { draws, guided, tokens, grids: &grids };
    Ok(visible_tokens(config, &[request])?.indices)
}

fn select(rows: &Tensor, tokens: &[u32]) -> Result<Tensor> {
    Ok(rows.index_select(&Tensor::new(tokens, rows.device())?, 0)?)
}
