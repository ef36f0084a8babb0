//! LLaVA-1.5 and LLaVA-1.6 (NeXT): CLIP tower, projector, AnyRes packing, Llama or Mistral.
//!
//! [`Llava`] holds the parts; [`language::Language`] runs packed rows with explicit positions over a shared key-value
//! arena, so that batching, forks and masked-image sampling are a matter of arguments. A sample without an image never
//! touches the vision part.
//!
//! Checkpoints are in the Hugging Face layout, or in that of the original LLaVA code ([`original`]). Of the former both
//! generations of tensor names are read: that of checkpoints before transformers 4.52
//! (`language_model.model.layers...`, `vision_tower.vision_model...`, `multi_modal_projector...`, `image_newline`) and
//! the later one (`model.language_model.layers...`, `lm_head`, `model.vision_tower...` with or without
//! `vision_model`, ...).

pub mod anyres;
pub mod cache;
pub mod config;
mod fields;
pub mod image;
pub mod language;
mod linear;
pub mod original;
pub mod outline;
pub mod patches;
pub mod projector;
pub mod prompt;
pub mod resample;
mod source;
mod template;
pub mod vision;

use std::path::Path;

use ::image::RgbImage;
use candle_core::{DType, Device, Tensor};

pub use anyres::ImageLayout;
pub use cache::KvCache;
pub use config::Config;
pub use image::Pixels;
pub use language::Language;
pub use patches::PatchMap;
pub use prompt::{Encoded, Piece, Prompt, PromptFormat, Role, Turn};
pub use source::Source;

use self::image::ImageProcessor;
use crate::models::weights::Weights;
use crate::{Error, Result};

/// A LLaVA model with its processor.
pub struct Llava {
    /// The language model.
    pub language: Language,
    /// Template, tokenizer and end tokens.
    pub format: PromptFormat,
    source: Source,
    config: Config,
    processor: ImageProcessor,
    vision: vision::Vision,
    projector: projector::Projector,
    newline: Option<Tensor>,
}

impl Llava {
    /// Loads a checkpoint folder, or a PEFT adapter's folder with its base ([`crate::models::adapter`]); weights are converted to
    /// `dtype`.
    ///
    /// # Errors
    /// A missing or broken file, a missing, misshapen or non-finite tensor ([`Error::Invalid`], [`Error::Io`], naming
    /// it), or an architecture or option that is not built in ([`Error::Unsupported`]).
    pub fn load(dir: impl AsRef<Path>, device: &Device, dtype: DType) -> Result<Self> {
        Self::open(&Source::new(dir.as_ref(), None)?, device, dtype)
    }

    /// As [`Llava::load`].
    ///
    /// # Errors
    /// As [`Llava::load`].
    pub fn open(source: &Source, device: &Device, dtype: DType) -> Result<Self> {
        let weights = source.weights(device, dtype)?;
        Ok(Self { source: source.clone(), ..Self::with_weights(source.base(), &weights)? })
    }

    /// The model whose configuration, tokenizer and processor lie in `dir`, with these weights: tracked ones make
    /// [`Language::forward_packed`] and [`Llava::image_features`] differentiable.
    ///
    /// # Errors
    /// As [`Llava::load`].
    pub fn with_weights(dir: impl AsRef<Path>, weights: &Weights) -> Result<Self> {
        let dir = dir.as_ref();
        let config = Config::read(dir)?;
        let processor = ImageProcessor::read(dir, &config)?;
        let format = PromptFormat::read(dir, &config)?;
        let names = match config.original {
            Some(_) => CURRENT,
            None => Names::find(weights, dir)?,
        };
        let language =
            Language::load(&config.text, &weights.pp(names.language), &weights.pp(names.head))?;
        let newline = match config.generation {
            config::Generation::Llava => None,
            config::Generation::Next => Some(weights.get(&[config.text.hidden], names.newline)?),
        };
        Ok(Self {
            vision: vision::Vision::load(&config, &weights.pp(names.vision))?,
            projector: projector::Projector::load(&config, &weights.pp(names.projector))?,
            source: Source::new(dir, None)?,
            language,
            format,
            config,
            processor,
            newline,
        })
    }

    /// What `config.json` says.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The checkpoint's folder, or that of the adapter that changes it.
    pub fn dir(&self) -> &Path {
        self.source.dir()
    }

    /// A hash of configuration, tokenizer and weights: equal if and only if the files are.
    pub fn fingerprint(&self) -> Result<String> {
        self.source.fingerprint()
    }

    /// The tokens of an image of `width` x `height` pixels, without looking at its pixels.
    ///
    /// # Errors
    /// [`Error::Argument`] if a side is 0 or the image is too long and thin for AnyRes.
    pub fn layout(&self, width: usize, height: usize) -> Result<ImageLayout> {
        ImageLayout::new(&self.config, width, height)
    }

    /// Preprocesses a decoded image, see [`image::ImageProcessor::preprocess`].
    pub fn preprocess(&self, image: &RgbImage) -> Result<Pixels> {
        self.processor.preprocess(image)
    }

    /// States of the vision tower that the projector takes, `[tiles, patches, width]`.
    pub fn vision_features(&self, pixels: &Pixels) -> Result<Tensor> {
        self.tower_features(&pixels.tiles)
    }

    /// As [`Llava::vision_features`], of any number of tiles `[tiles, 3, side, side]`, normalised.
    pub fn tower_features(&self, tiles: &Tensor) -> Result<Tensor> {
        self.vision.forward(&tiles.to_device(self.language.device())?)
    }

    /// States of the tower `[tiles, patches, width]` as rows of the language model `[tiles, patches, H]`.
    pub fn project(&self, features: &Tensor) -> Result<Tensor> {
        let (count, patches, width) = features.dims3()?;
        let rows = self.projector.forward(&features.reshape((count * patches, width))?)?;
        Ok(rows.reshape((count, patches, self.config.text.hidden))?)
    }

    /// The rows `[tokens, H]` that stand for an image in the input of the language model.
    pub fn image_features(&self, pixels: &Pixels) -> Result<Tensor> {
        self.image_rows(&self.vision_features(pixels)?, &pixels.layout)
    }

    /// As [`Llava::image_features`], from the tower's states of the image's tiles ([`Llava::vision_features`]).
    pub fn image_rows(&self, features: &Tensor, layout: &ImageLayout) -> Result<Tensor> {
        let tiles = self.project(features)?;
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

    /// See [`PromptFormat::prompt`].
    pub fn prompt(&self, turns: &[Turn]) -> Result<Prompt> {
        self.format.prompt(turns)
    }

    /// See [`PromptFormat::encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<Piece>> {
        self.format.encode(text)
    }
}

/// Prefixes of the tensor names of one checkpoint.
struct Names {
    language: &'static str,
    head: &'static str,
    vision: &'static str,
    projector: &'static str,
    newline: &'static str,
}

/// Names since transformers 4.52; those of the original layout are brought to them.
const CURRENT: Names = Names {
    language: "model.language_model",
    head: "lm_head",
    vision: "model.vision_tower",
    projector: "model.multi_modal_projector",
    newline: "image_newline",
};

impl Names {
    fn find(weights: &Weights, dir: &Path) -> Result<Self> {
        let first = |what: &str, candidates: &[&'static str], probe: &str| {
            let found = candidates.iter().find(|c| weights.contains(&format!("{c}.{probe}")));
            found.copied().ok_or_else(|| {
                Error::invalid(
                    dir,
                    format!("tensor {}.{probe}", candidates[0]),
                    format!(
                        "no {what} in the weights; looked for it under {}",
                        candidates.join(", ")
                    ),
                )
            })
        };
        let language = first(
            "language model",
            &["model.language_model", "language_model.model"],
            "embed_tokens.weight",
        )?;
        let vision = first(
            "vision tower",
            &[
                "model.vision_tower.vision_model",
                "model.vision_tower",
                "vision_tower.vision_model",
                "vision_tower",
            ],
            "embeddings.class_embedding",
        )?;
        let projector = first(
            "projector",
            &["model.multi_modal_projector", "multi_modal_projector"],
            "linear_1.weight",
        )?;
        let later = language == "model.language_model";
        Ok(Self {
            language,
            head: if later { "lm_head" } else { "language_model.lm_head" },
            vision,
            projector,
            newline: if weights.contains("model.image_newline") {
                "model.image_newline"
            } else {
                "image_newline"
            },
        })
    }
}
