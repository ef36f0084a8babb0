//! LLaVA-1.5, LLaVA-1.6 (NeXT), Interleave and OneVision: CLIP or SigLIP tower, projector, AnyRes packing.
//!
//! Checkpoints are in the Hugging Face layout, or in that of the original LLaVA code ([`original`]). Of the former both
//! generations of tensor names are read: that of checkpoints before transformers 4.52
//! (`language_model.model.layers...`, `vision_tower.vision_model...`, `multi_modal_projector...`, `image_newline`) and
//! the later one (`model.language_model.layers...`, `lm_head`, `model.vision_tower...` with or without
//! `vision_model`, ...).

pub mod anyres;
mod config;
pub mod image;
pub mod original;
mod patches;
mod projector;

use std::path::Path;

use ::image::RgbImage;
use candle_core::{Device, Tensor};

use self::image::ImageProcessor;
use super::find;
use crate::Result;
use crate::models::vision::clip;
use crate::models::weights::Weights;
use crate::models::{ImageLayout, Pixels};

pub use anyres::{AnyRes, Tiling};
pub use config::{Config, Generation, Tower, VisionConfig};
pub use patches::PatchMap;

/// Tiles of a pass through the tower.
const TILES: usize = 8;

/// Processor, tower and projector.
pub struct Vision {
    config: Config,
    processor: ImageProcessor,
    tower: clip::Vision,
    projector: projector::Projector,
    newline: Option<Tensor>,
    hidden: usize,
    device: Device,
}

impl Vision {
    /// From the checkpoint in `dir`, for a decoder of width `hidden`.
    pub(in crate::models) fn load(
        dir: &Path,
        config: &Config,
        hidden: usize,
        weights: &Weights,
    ) -> Result<Self> {
        let processor = ImageProcessor::read(dir, config)?;
        let tower = find(
            weights,
            dir,
            "vision tower",
            &[
                "model.vision_tower.vision_model",
                "model.vision_tower",
                "vision_tower.vision_model",
                "vision_tower",
            ],
            match config.vision.tower {
                Tower::Clip => "embeddings.class_embedding",
                Tower::Siglip => "embeddings.patch_embedding.weight",
            },
        )?;
        let projector = find(
            weights,
            dir,
            "projector",
            &["model.multi_modal_projector", "multi_modal_projector"],
            "linear_1.weight",
        )?;
        let newline = match config.generation {
            Generation::Llava => None,
            Generation::Next | Generation::OneVision => {
                let names = ["model.image_newline", "image_newline"];
                let name = names.into_iter().find(|name| weights.contains(name));
                Some(weights.get(&[hidden], name.unwrap_or(names[1]))?)
            }
        };
        Ok(Self {
            tower: clip::Vision::load(config, &weights.pp(tower))?,
            projector: projector::Projector::load(config, hidden, &weights.pp(projector))?,
            config: config.clone(),
            device: weights.device().clone(),
            processor,
            newline,
            hidden,
        })
    }

    pub(in crate::models) fn layout(
        &self,
        width: usize,
        height: usize,
        alone: bool,
    ) -> Result<ImageLayout> {
        Tiling::of(&self.config).layout(width, height, alone)
    }

    pub(in crate::models) fn preprocess(
        &self,
        image: &RgbImage,
        layout: &ImageLayout,
    ) -> Result<Pixels> {
        self.processor.preprocess_as(image, layout)
    }

    /// States of the tower `[tiles, patches, width]` that the projector takes, of any number of tiles
    /// `[tiles, 3, side, side]`, normalised.
    pub fn tower(&self, tiles: &Tensor) -> Result<Tensor> {
        self.tower.forward(&tiles.to_device(&self.device)?)
    }

    /// States of the tower `[tiles, patches, width]` as rows of the decoder `[tiles, patches, H]`.
    pub fn project(&self, states: &Tensor) -> Result<Tensor> {
        let (count, patches, width) = states.dims3()?;
        let rows = self.projector.forward(&states.reshape((count * patches, width))?)?;
        Ok(rows.reshape((count, patches, self.hidden))?)
    }

    /// States of the tower of each image, `[tiles, patches, width]`. Tiles of many images go through the tower together. On a GPU
    /// every pass has as many tiles, blank ones at the end: the last bits of a product may depend on its shape there, and
    /// what an image gives must not depend on the others.
    pub(in crate::models) fn states(&self, pixels: &[&Pixels]) -> Result<Vec<Tensor>> {
        let tiles: Vec<&Tensor> = pixels.iter().map(|image| &image.tiles).collect();
        let tiles = Tensor::cat(&tiles, 0)?;
        let count = tiles.dim(0)?;
        let mut states = Vec::new();
        for first in (0..count).step_by(TILES) {
            let own = TILES.min(count - first);
            let mut some = tiles.narrow(0, first, own)?;
            if own < TILES && !self.device.is_cpu() {
                some = some.pad_with_zeros(0, 0, TILES - own)?;
            }
            states.push(self.tower(&some)?.narrow(0, 0, own)?);
        }
        let states = Tensor::cat(&states, 0)?;
        let mut first = 0;
        let own = |image: &&Pixels| {
            let count = image.tiles.dim(0)?;
            first += count;
            Ok(states.narrow(0, first - count, count)?)
        };
        pixels.iter().map(own).collect()
    }

    /// The rows `[tokens, H]` of an image, from its tower's states.
    pub(in crate::models) fn rows(&self, states: &Tensor, layout: &ImageLayout) -> Result<Tensor> {
        let tiles = self.project(states)?;
        match &self.newline {
            None => Ok(tiles.get(0)?),
            Some(newline) => anyres::pack(
                &tiles,
                newline,
                self.config.vision.side(),
                self.config.vision.image_size,
                layout,
            ),
        }
    }
}
