//! A multimodal model: decoder, vision part, conversation format.

use std::path::{Path, PathBuf};

use ::image::RgbImage;
use candle_core::{DType, Device, Tensor};

use super::families::{self, Config, Vision, llava};
use super::image::{ImageLayout, Pixels};
use super::language::Language;
use super::prompt::{Piece, Prompt, PromptFormat, Turn};
use super::source::{Bounds, Source};
use super::weights::Weights;
use crate::Result;

/// A model with its processor.
///
/// [`Language`] runs packed rows with explicit positions over a shared key-value arena, so that batching, forks and
/// masked-image sampling are a matter of arguments. A sample without an image never touches the vision part.
pub struct Model {
    /// The decoder.
    pub language: Language,
    /// Template, tokenizer and end tokens.
    pub format: PromptFormat,
    source: Source,
    vision_of: PathBuf,
    config: Config,
    vision: Vision,
}

impl Model {
    /// Loads a checkpoint folder, or a PEFT adapter's folder with its base ([`crate::models::adapter`]); weights are converted to
    /// `dtype`.
    ///
    /// # Errors
    /// A missing or broken file, a missing, misshapen or non-finite tensor ([`Error::Invalid`](crate::Error::Invalid),
    /// [`Error::Io`](crate::Error::Io), naming it), or an architecture or option that is not built in
    /// ([`Error::Unsupported`](crate::Error::Unsupported)).
    pub fn load(dir: impl AsRef<Path>, device: &Device, dtype: DType) -> Result<Self> {
        Self::open(&Source::new(dir.as_ref(), None)?, device, dtype)
    }

    /// As [`Model::load`].
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn open(source: &Source, device: &Device, dtype: DType) -> Result<Self> {
        let weights = source.weights(device, dtype)?;
        let vision_of = if weights.sees_anew() { source.dir() } else { source.base() }.to_owned();
        Ok(Self { vision_of, ..Self::of(source, &weights)? })
    }

    /// The model whose configuration, tokenizer and processor lie in `dir`, with these weights: tracked ones make
    /// [`Language::forward_packed`] and [`Model::image_features`] differentiable.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn with_weights(dir: impl AsRef<Path>, weights: &Weights) -> Result<Self> {
        Self::of(&Source::new(dir.as_ref(), None)?, weights)
    }

    /// As [`Model::with_weights`], with the source's bounds of pictures; its adapter, if it has one, is in the weights.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn of(source: &Source, weights: &Weights) -> Result<Self> {
        let (dir, config) = (source.base(), source.config()?);
        let vision = Vision::load(dir, &config, weights)?;
        Ok(Self {
            format: PromptFormat::read(dir, &config)?,
            language: families::language(dir, &config, weights)?,
            source: source.clone(),
            vision_of: dir.to_owned(),
            vision,
            config,
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

    /// The folder that tower and projector are from: the adapter's if it changes them, else the
    /// checkpoint's. Models with one such folder make the same rows of an image.
    pub fn vision_of(&self) -> &Path {
        &self.vision_of
    }

    /// The bounds of pictures that it was opened with.
    pub fn pixels(&self) -> Bounds {
        self.source.pixels()
    }

    /// A hash of configuration, tokenizer and weights: equal if and only if the files are.
    pub fn fingerprint(&self) -> Result<String> {
        self.source.fingerprint()
    }

    /// The vision part, where it is a LLaVA's.
    pub fn llava(&self) -> Option<&llava::Vision> {
        match &self.vision {
            Vision::Llava(vision) => Some(vision),
            Vision::Qwen(_) => None,
        }
    }

    /// The tokens of an image of `width` x `height` pixels, the only one of its conversation, without looking at its pixels.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) if a side is 0 or the image is too long and thin.
    pub fn layout(&self, width: usize, height: usize) -> Result<ImageLayout> {
        self.vision.layout(width, height, true)
    }

    /// The layouts of all images of a conversation, each of (width, height) pixels.
    ///
    /// # Errors
    /// As [`Model::layout`].
    pub fn layouts(&self, sizes: &[(u32, u32)]) -> Result<Vec<ImageLayout>> {
        let alone = sizes.len() == 1;
        let one = |&(width, height): &(u32, u32)| {
            self.vision.layout(width as usize, height as usize, alone)
        };
        sizes.iter().map(one).collect()
    }

    /// Whether the checkpoint's own code turns pictures as their EXIF orientation says: all but the original LLaVA code do.
    pub fn turns_pictures(&self) -> bool {
        self.config.turns_pictures()
    }

    /// Preprocesses a decoded image that is the only one of its conversation.
    ///
    /// # Errors
    /// As [`Model::layout`]; settings that leave the image in a shape other than the tower's.
    pub fn preprocess(&self, image: &RgbImage) -> Result<Pixels> {
        let (width, height) = image.dimensions();
        self.preprocess_as(image, &self.layout(width as usize, height as usize)?)
    }

    /// Preprocesses a decoded image whose layout is known.
    ///
    /// # Errors
    /// As [`Model::preprocess`].
    pub fn preprocess_as(&self, image: &RgbImage, layout: &ImageLayout) -> Result<Pixels> {
        self.vision.preprocess(image, layout)
    }

    /// States of the vision tower of each image, as [`Model::image_rows`] takes them. What an image gives does not depend on
    /// the others.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn states(&self, pixels: &[&Pixels]) -> Result<Vec<Tensor>> {
        self.vision.states(pixels)
    }

    /// As [`Model::states`], of one image.
    ///
    /// # Errors
    /// As [`Model::states`].
    pub fn vision_features(&self, pixels: &Pixels) -> Result<Tensor> {
        Ok(self.states(&[pixels])?.remove(0))
    }

    /// The rows `[tokens, H]` that stand for an image in the input of the decoder.
    ///
    /// # Errors
    /// As [`Model::states`].
    pub fn image_features(&self, pixels: &Pixels) -> Result<Tensor> {
        self.image_rows(&self.vision_features(pixels)?, &pixels.layout)
    }

    /// As [`Model::image_features`], from the tower's states of the image ([`Model::states`]).
    ///
    /// # Errors
    /// As [`Model::states`].
    pub fn image_rows(&self, states: &Tensor, layout: &ImageLayout) -> Result<Tensor> {
        self.vision.rows(states, layout)
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
