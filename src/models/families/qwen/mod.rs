//! Qwen2-VL and Qwen2.5-VL: pictures at nearly their own size, one token for 28 x 28 pixels, positions of three components.
//!
//! A picture's tokens are one grid, row by row. Their positions are (p, p + row, p + column), where p is the first free position,
//! and text goes on at p + the longer side of the grid. Videos are refused: only pictures are built in.

mod config;
pub mod image;

use std::path::Path;

use ::image::RgbImage;
use candle_core::Tensor;

pub use self::config::Config;
use self::image::ImageProcessor;
pub use self::image::PatchSettings;
use super::{Pictures, find};
use crate::models::families;
use crate::models::fields::Fields;
use crate::models::language::TextConfig;
use crate::models::vision::qwen::{Merger, Tower};
use crate::models::weights::Weights;
use crate::models::{ImageLayout, Pixels};
use crate::{Error, Result};

/// Which generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// Qwen2-VL.
    Qwen2,
    /// Qwen2.5-VL.
    Qwen2_5,
}

impl Generation {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Qwen2 => "Qwen2-VL",
            Self::Qwen2_5 => "Qwen2.5-VL",
        }
    }

    /// `model_type` of `config.json`.
    pub(super) fn model_type(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2_vl",
            Self::Qwen2_5 => "qwen2_5_vl",
        }
    }
}

/// The part of the model that sees: processor, tower and merger.
pub struct Vision {
    processor: ImageProcessor,
    tower: Tower,
    merger: Merger,
}

impl Vision {
    /// Loads the processor from `dir` and the networks from `weights`. `hidden` is the width of the decoder.
    pub(in crate::models) fn load(
        dir: &Path,
        config: &Config,
        hidden: usize,
        weights: &Weights,
    ) -> Result<Self> {
        config.check_width(dir, hidden)?;
        let processor = ImageProcessor::read(dir, config)?;
        let prefixes = ["model.visual", "visual"];
        let prefix = find(weights, dir, "vision tower", &prefixes, "patch_embed.proj.weight")?;
        let weights = weights.pp(prefix);
        Ok(Self {
            processor,
            tower: Tower::load(&config.tower, &weights)?,
            merger: Merger::load(&config.tower, &weights.pp("merger"))?,
        })
    }

    /// The tokens of an image of `width` x `height` pixels, without looking at its pixels.
    pub(in crate::models) fn layout(&self, width: usize, height: usize) -> Result<ImageLayout> {
        self.processor.settings().layout(width, height)
    }

    /// Resizes and normalises a decoded image.
    pub(in crate::models) fn preprocess(
        &self,
        image: &RgbImage,
        layout: &ImageLayout,
    ) -> Result<Pixels> {
        Ok(Pixels { tiles: self.processor.preprocess(image)?, layout: layout.clone() })
    }

    /// What the merger takes of each image, `[patches, width]`.
    pub(in crate::models) fn states(&self, pixels: &[&Pixels]) -> Result<Vec<Tensor>> {
        let pictures: Vec<&Tensor> = pixels.iter().map(|pixels| &pixels.tiles).collect();
        self.tower.forward(&pictures)
    }

    /// The merger: `[tokens, H]`.
    pub(in crate::models) fn rows(&self, states: &Tensor) -> Result<Tensor> {
        self.merger.forward(states)
    }
}

/// Reads `config.json`: the decoder's fields are at its top or, as transformers 5 writes it, in `text_config`.
pub(super) fn read(fields: &Fields, generation: Generation) -> Result<families::Config> {
    let nested = fields.object("text_config")?;
    let text = nested.as_ref().unwrap_or(fields);
    let tied =
        fields.bool("tie_word_embeddings", false)? || text.bool("tie_word_embeddings", false)?;
    let decoder = format!("{}_text", generation.model_type());
    if let (Some(nested), Some(kind)) = (&nested, text.str("model_type")?)
        && kind != decoder
    {
        return Err(Error::unsupported(
            format!("language model \"{kind}\""),
            format!("{}: expected {decoder}", nested.path().display()),
        ));
    }
    let mut text = TextConfig::read(text, &decoder, tied)?;
    text.rope.sections.get_or_insert([16, 24, 24]);
    let token = |name: &str, default: usize| -> Result<u32> {
        let id = fields.usize(name)?.unwrap_or(default);
        u32::try_from(id).map_err(|_| fields.invalid(name, format!("is {id}, expected a token id")))
    };
    Ok(families::Config {
        image_token: Some(token("image_token_id", 151_655)?),
        video_token: None,
        eos: families::eos(fields)?,
        pictures: Pictures::Qwen(Config::read(fields, generation)?),
        text,
    })
}
