//! Image preprocessing equal to the PIL processor of transformers, `Qwen2VLImageProcessor`.
//!
//! A picture is resized so that both sides are multiples of a block (28 pixels in the released checkpoints), its pixels are
//! between `min_pixels` and `max_pixels`, and its shape is nearly kept. So its size alone says how many tokens it becomes.
//! Settings come from `processor_config.json` (its `image_processor`) or `preprocessor_config.json`. Bounds are `min_pixels` and
//! `max_pixels` or, as transformers 5 writes them, `size` with `shortest_edge` and `longest_edge`, which are pixels of the
//! whole picture in spite of their names. Absent ones are 3,136 and 1,003,520.

use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::Config;
use crate::models::fields::Fields;
use crate::models::vision::pixels::{CLIP_MEAN, CLIP_STD, processor_fields, resample, values};
use crate::models::vision::resample::{Filter, resize};
use crate::models::{ImageLayout, ImagePositions};
use crate::ops::mask::TokenGrid;
use crate::{Error, Result};

/// Longer pictures are refused: the length over the width.
const LONGEST: usize = 200;

/// The largest `max_pixels`: what a picture can become in memory.
const MAX_PIXELS: usize = 1 << 27;

/// How pictures become blocks in one checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchSettings {
    /// Side of a block, pixels: of what becomes one token.
    block: usize,
    /// Whether pictures are resized.
    resize: bool,
    min_pixels: usize,
    max_pixels: usize,
}

impl PatchSettings {
    /// Reads the settings of a checkpoint folder; no weights are read.
    ///
    /// # Errors
    /// Those of [`ImageProcessor::read`].
    pub fn read(dir: &Path, config: &Config) -> Result<Self> {
        Self::of(&processor_fields(dir)?, config)
    }

    fn of(fields: &Fields, config: &Config) -> Result<Self> {
        let tower = &config.tower;
        let sides = [
            ("patch_size", 14, tower.patch),
            ("merge_size", 2, tower.merge),
            ("temporal_patch_size", 2, tower.frames),
        ];
        for (name, default, expected) in sides {
            let got = fields.positive(name, default)?;
            if got != expected {
                let message =
                    format!("is {got}, but the vision tower in config.json has {expected}");
                return Err(fields.invalid(name, message));
            }
        }
        let size = fields.object("size")?;
        let bound = |own: &'static str, of_size: &str, default: usize| -> Result<usize> {
            match (fields.usize(own)?, &size) {
                (Some(pixels), _) => Ok(pixels),
                (None, None) => Ok(default),
                (None, Some(size)) => size.usize(of_size)?.ok_or_else(|| {
                    fields.invalid("size", format!("has no {of_size}, and there is no {own}"))
                }),
            }
        };
        let this = Self {
            block: tower.block(),
            resize: fields.bool("do_resize", true)?,
            min_pixels: 0,
            max_pixels: 0,
        };
        let low = bound("min_pixels", "shortest_edge", 56 * 56)?;
        let high = bound("max_pixels", "longest_edge", 28 * 28 * 1280)?;
        let this = this.with_bounds(low, high).map_err(|_| {
            let name = if fields.has("max_pixels") { "max_pixels" } else { "size" };
            let message = format!("bounds pictures to {low} to {high} pixels, expected {EXPECTED}");
            fields.invalid(name, message)
        })?;
        this.with_bounds(config.pixels.min.unwrap_or(low), config.pixels.max.unwrap_or(high))
    }

    /// The same with other bounds.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `1 <= min_pixels <= max_pixels <= 134217728`.
    pub fn with_bounds(self, min_pixels: usize, max_pixels: usize) -> Result<Self> {
        if min_pixels == 0 || min_pixels > max_pixels || max_pixels > MAX_PIXELS {
            let got = format!("{min_pixels} to {max_pixels}");
            return Err(Error::argument("PatchSettings::with_bounds", "pixels", got, EXPECTED));
        }
        Ok(Self { min_pixels, max_pixels, ..self })
    }

    /// (height, width) of a picture after the resize, both multiples of a block.
    ///
    /// # Errors
    /// [`Error::Argument`] if a side is 0, if one is more than 200 times the other, or if pictures are not resized and this
    /// one's sides are no multiples of a block.
    pub fn size(&self, width: usize, height: usize) -> Result<(usize, usize)> {
        let refuse = |expected: String| {
            let got = format!("{width}x{height}");
            Err(Error::argument("Model::layout", "image size", got, expected))
        };
        let (short, long) = (width.min(height), width.max(height));
        if short == 0 {
            return refuse("both sides positive".into());
        }
        if long > LONGEST.saturating_mul(short) {
            return refuse(format!("one side at most {LONGEST} times the other"));
        }
        let block = self.block;
        if !self.resize {
            return match width.is_multiple_of(block) && height.is_multiple_of(block) {
                true => Ok((height, width)),
                false => refuse(format!("multiples of {block}, since do_resize is false")),
            };
        }
        let side = block as f64;
        // Halves go to the even number, as in Python.
        let nearest = |length: usize| (length as f64 / side).round_ties_even() as usize * block;
        let (h, w) = (height as f64, width as f64);
        let sides = (nearest(height), nearest(width));
        let pixels = sides.0.saturating_mul(sides.1);
        Ok(if pixels > self.max_pixels {
            let shrink = (h * w / self.max_pixels as f64).sqrt();
            let at_most =
                |length: f64| ((length / shrink / side).floor() as usize * block).max(block);
            (at_most(h), at_most(w))
        } else if pixels < self.min_pixels {
            let grow = (self.min_pixels as f64 / (h * w)).sqrt();
            let at_least = |length: f64| (length * grow / side).ceil() as usize * block;
            (at_least(h), at_least(w))
        } else {
            sides
        })
    }

    /// Rows and columns of a picture's tokens.
    ///
    /// # Errors
    /// Those of [`PatchSettings::size`].
    pub fn grid(&self, width: usize, height: usize) -> Result<(usize, usize)> {
        let (height, width) = self.size(width, height)?;
        Ok((height / self.block, width / self.block))
    }

    /// A picture's tokens: one grid, row by row.
    ///
    /// # Errors
    /// Those of [`PatchSettings::size`].
    pub fn layout(&self, width: usize, height: usize) -> Result<ImageLayout> {
        let (rows, cols) = self.grid(width, height)?;
        Ok(ImageLayout {
            tokens: rows * cols,
            grids: vec![TokenGrid { start: 0, rows, cols, stride: cols }],
            positions: ImagePositions::Grid { rows, cols },
            tiles: 1,
            anyres: None,
        })
    }
}

const EXPECTED: &str = "1 <= min_pixels <= max_pixels <= 134217728";

/// The image processor of a checkpoint.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    settings: PatchSettings,
    filter: Filter,
    /// The f32 value of each 8-bit value, for each channel.
    values: Box<[[f32; 256]; 3]>,
}

impl ImageProcessor {
    /// Reads the processor's settings in `dir`.
    ///
    /// # Errors
    /// No settings file, an impossible value or one that does not go with the tower ([`Error::Invalid`] naming the field);
    /// another processor, or a resampling that is not a convolution ([`Error::Unsupported`]).
    pub fn read(dir: &Path, config: &Config) -> Result<Self> {
        let fields = processor_fields(dir)?;
        if let Some(name) = fields.str("image_processor_type")? {
            let base = name.trim_end_matches("Fast").trim_end_matches("Pil");
            if !["Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor"].contains(&base) {
                return Err(Error::unsupported(
                    format!("image processor \"{name}\""),
                    format!("{}: expected Qwen2VLImageProcessor", fields.path().display()),
                ));
            }
        }
        Ok(Self {
            settings: PatchSettings::of(&fields, config)?,
            filter: resample(&fields)?,
            values: values(&fields, fields.channels("image_mean", CLIP_MEAN)?, CLIP_STD)?,
        })
    }

    /// How pictures become blocks.
    pub fn settings(&self) -> &PatchSettings {
        &self.settings
    }

    /// A decoded image, resized and normalised: `[1, 3, H, W]`, f32 on the CPU.
    ///
    /// # Errors
    /// Those of [`PatchSettings::size`].
    pub fn preprocess(&self, image: &RgbImage) -> Result<Tensor> {
        let size = image.dimensions();
        let (height, width) = self.settings.size(size.0 as usize, size.1 as usize)?;
        let image = match size == (width as u32, height as u32) {
            true => std::borrow::Cow::Borrowed(image),
            false => std::borrow::Cow::Owned(resize(
                image,
                None,
                width as u32,
                height as u32,
                self.filter,
            )),
        };
        let mut pixels = Vec::with_capacity(3 * height * width);
        for (channel, values) in self.values.iter().enumerate() {
            pixels.extend(image.pixels().map(|pixel| values[usize::from(pixel.0[channel])]));
        }
        Ok(Tensor::from_vec(pixels, (1, 3, height, width), &Device::Cpu)?)
    }
}
