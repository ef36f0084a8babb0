//! Image preprocessing equal to the PIL processors of transformers: `CLIPImageProcessor`, `LlavaImageProcessor`
//! (LLaVA-1.5) and `LlavaNextImageProcessor` (LLaVA-NeXT).
//!
//! Settings come from `processor_config.json` (its `image_processor`) or `preprocessor_config.json`; absent fields take
//! the processors' defaults: shortest edge 224, crop 224, bicubic, all steps on, CLIP's mean and deviation.
//! Resizing and padding are done on 8-bit pixels with Pillow's arithmetic, so they are equal bit for bit.

use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::anyres::{self, Tiling};
use super::config::{Config, Generation};
use super::original::Aspect;
use super::patches::BaseView;
use crate::models::fields::Fields;
use crate::models::vision::resample::{Filter, resize};
use crate::models::{ImageLayout, Pixels};
use crate::{Error, Result};

const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Pixels past which a resized image is refused: only a wildly long strip gets there.
const MAX_PIXELS: usize = 1 << 27;

impl Size {
    /// (height, width) after the resize of an image of `width` x `height`.
    pub(super) fn of(self, width: usize, height: usize) -> (usize, usize) {
        let long = |short: usize, long: usize, other: usize| (short * long) as f64 / other as f64;
        match self {
            Self::Exact(h, w) => (h, w),
            Self::ShortestEdge(short) if width <= height => {
                (long(short, height, width) as usize, short)
            }
            Self::ShortestEdge(short) => (short, long(short, width, height) as usize),
        }
    }
}

/// Target of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Size {
    /// The shorter side gets this length, the other follows.
    ShortestEdge(usize),
    /// Exactly (height, width).
    Exact(usize, usize),
}

/// The image processor of a checkpoint.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    /// AnyRes: the side of the base view as (height, width), and the side of a tile before the resize.
    anyres: Option<(Size, usize)>,
    /// LLaVA-1.5: pad to a square with the mean colour first.
    pad_square: Option<[u8; 3]>,
    resize: Option<Size>,
    filter: Filter,
    crop: Option<(usize, usize)>,
    /// The f32 value of each 8-bit value, for each channel.
    values: Box<[[f32; 256]; 3]>,
    side: usize,
    config: Config,
}

impl ImageProcessor {
    /// Reads the processor's settings in `dir`.
    ///
    /// # Errors
    /// No settings file, an impossible value ([`Error::Invalid`] naming the field), a processor that does not go with
    /// the model or its tile size, or a resampling that is not a convolution ([`Error::Unsupported`]).
    pub fn read(dir: &Path, config: &Config) -> Result<Self> {
        let (fields, kind) = match &config.original {
            None => {
                let fields = settings(dir)?;
                let kind = Kind::read(&fields, config)?;
                (fields, kind)
            }
            // The settings are CLIP's; the checkpoint says what goes before them.
            Some(original) => (original.processor()?, Kind::of(original.aspect)),
        };
        let size = size(&fields, "size")?.unwrap_or(Size::ShortestEdge(224));
        let crop = size_exact(&fields, "crop_size")?.unwrap_or((224, 224));
        let do_resize = fields.bool("do_resize", true)?;
        let do_crop = fields.bool("do_center_crop", true)?;
        let filter = fields.usize("resample")?.unwrap_or(3);
        let filter = Filter::from_number(filter).ok_or_else(|| {
            Error::unsupported(
                format!("resample {filter}"),
                format!("{}: expected 1 to 5, Pillow's convolutions", fields.path().display()),
            )
        })?;
        let mean = fields.channels("image_mean", CLIP_MEAN)?;
        let pad = match &config.original {
            None => kind == Kind::Llava && fields.bool("do_pad", false)?,
            Some(original) => original.aspect == Aspect::Pad,
        };
        let this = Self {
            anyres: (kind == Kind::Next).then(|| {
                // The base view is square; tiles are cut at the crop height, as upstream does.
                let base = match size {
                    Size::ShortestEdge(n) => Size::Exact(n, n),
                    exact => exact,
                };
                (base, crop.0)
            }),
            pad_square: pad.then(|| mean.map(|m| (m * 255.0) as u8)),
            resize: do_resize.then_some(size),
            filter,
            crop: do_crop.then_some(crop),
            values: values(&fields, mean)?,
            side: config.vision.image_size,
            config: config.clone(),
        };
        this.check(&fields, size, crop)?;
        Ok(this)
    }

    /// The tokens of an image of `width` x `height` pixels.
    ///
    /// # Errors
    /// As [`Tiling::layout`].
    pub fn layout(&self, width: usize, height: usize) -> Result<ImageLayout> {
        Tiling::of(&self.config).layout(width, height)
    }

    /// Which part of a picture the base view shows.
    pub(super) fn base_view(&self) -> BaseView {
        BaseView {
            squeeze: self.anyres.is_some(),
            pad_square: self.pad_square.is_some(),
            resize: self.resize,
            crop: self.crop,
        }
    }

    /// Steps that can only give tiles of another side than the tower's are refused at once.
    fn check(&self, fields: &Fields, size: Size, crop: (usize, usize)) -> Result<()> {
        let side = (self.side, self.side);
        let mismatch = |name: &str, (h, w): (usize, usize)| {
            Err(fields.invalid(
                name,
                format!(
                    "makes tiles of {h}x{w} pixels, expected the vision tower's {0}x{0}",
                    self.side
                ),
            ))
        };
        if self.crop.is_some_and(|c| c != side) || (self.anyres.is_some() && crop != side) {
            return mismatch("crop_size", crop);
        }
        match (self.crop, self.resize, size) {
            (None, Some(_), Size::Exact(h, w)) if (h, w) != side => mismatch("size", (h, w)),
            _ => Ok(()),
        }
    }

    /// Preprocesses a decoded image.
    ///
    /// # Errors
    /// [`Error::Argument`] if a side is 0, if the image is too long and thin, or if the settings leave it in a shape
    /// other than the vision tower's.
    pub fn preprocess(&self, image: &RgbImage) -> Result<Pixels> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let layout = self.layout(width, height)?;
        let views = match (&self.anyres, &layout.anyres) {
            (Some((base, tile)), Some(plan)) => {
                self.views(image, *base, *tile, (plan.height, plan.width))?
            }
            _ => vec![match self.pad_square {
                Some(colour) => pad_to_square(image, colour),
                None => image.clone(),
            }],
        };
        let mut tiles = Vec::with_capacity(views.len() * 3 * self.side * self.side);
        for view in &views {
            self.finish(view, &mut tiles)?;
        }
        let shape = (views.len(), 3, self.side, self.side);
        Ok(Pixels { tiles: Tensor::from_vec(tiles, shape, &Device::Cpu)?, layout })
    }

    /// The base view and the AnyRes tiles, still 8-bit.
    fn views(
        &self,
        image: &RgbImage,
        base: Size,
        tile: usize,
        best: (usize, usize),
    ) -> Result<Vec<RgbImage>> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let (w, h) = anyres::inner_size(width, height, best);
        let inner = self.resized(image, Size::Exact(h, w))?;
        let mut canvas = RgbImage::new(best.1 as u32, best.0 as u32);
        paste(&mut canvas, &inner, (best.1 - w) / 2, (best.0 - h) / 2);
        let mut views = vec![self.resized(image, base)?];
        for top in (0..best.0).step_by(tile) {
            for left in (0..best.1).step_by(tile) {
                views.push(crop(&canvas, left, top, tile, tile));
            }
        }
        Ok(views)
    }

    /// Resize, crop, rescale and normalise one view; appended channel by channel.
    fn finish(&self, view: &RgbImage, out: &mut Vec<f32>) -> Result<()> {
        let mut view = match self.resize {
            Some(size) => self.resized(view, size)?,
            None => view.clone(),
        };
        if let Some((h, w)) = self.crop {
            view = center_crop(&view, w, h);
        }
        let side = self.side as u32;
        if view.dimensions() != (side, side) {
            return Err(Error::argument(
                "ImageProcessor::preprocess",
                "tile",
                format!("{}x{} pixels", view.width(), view.height()),
                format!("{side}x{side}, as the vision tower takes; check size and do_center_crop"),
            ));
        }
        for channel in 0..3 {
            let values = &self.values[channel];
            out.extend(view.pixels().map(|p| values[usize::from(p.0[channel])]));
        }
        Ok(())
    }

    fn resized(&self, image: &RgbImage, size: Size) -> Result<RgbImage> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let (h, w) = size.of(width, height);
        if h.saturating_mul(w) > MAX_PIXELS {
            return Err(Error::argument(
                "ImageProcessor::preprocess",
                "image size",
                format!("{width}x{height}, {w}x{h} after the resize"),
                format!("at most {MAX_PIXELS} pixels after the resize"),
            ));
        }
        Ok(resize(image, w as u32, h as u32, self.filter))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Clip,
    Llava,
    Next,
}

impl Kind {
    fn of(aspect: Aspect) -> Self {
        match aspect {
            Aspect::Crop => Self::Clip,
            Aspect::Pad => Self::Llava,
            Aspect::AnyRes => Self::Next,
        }
    }

    fn read(fields: &Fields, config: &Config) -> Result<Self> {
        const NAME: &str = "image_processor_type";
        let Some(name) = fields.str(NAME)? else {
            return Ok(match config.generation {
                Generation::Llava => Self::Llava,
                Generation::Next => Self::Next,
            });
        };
        let kind = match name.trim_end_matches("Fast").trim_end_matches("Pil") {
            "CLIPImageProcessor" => Self::Clip,
            "LlavaImageProcessor" => Self::Llava,
            "LlavaNextImageProcessor" => Self::Next,
            _ => {
                return Err(Error::unsupported(
                    format!("image processor \"{name}\""),
                    format!(
                        "{}: expected CLIPImageProcessor, LlavaImageProcessor or LlavaNextImageProcessor",
                        fields.path().display()
                    ),
                ));
            }
        };
        if (kind == Self::Next) != (config.generation == Generation::Next) {
            return Err(fields.invalid(
                NAME,
                format!("is \"{name}\", which does not go with a {:?} model", config.generation),
            ));
        }
        if kind == Self::Next {
            let pinpoints = fields.pairs("image_grid_pinpoints")?.unwrap_or_else(anyres_default);
            if pinpoints != config.pinpoints {
                return Err(fields.invalid(
                    "image_grid_pinpoints",
                    format!("is {pinpoints:?}, but config.json says {:?}", config.pinpoints),
                ));
            }
        }
        Ok(kind)
    }
}

fn anyres_default() -> Vec<(usize, usize)> {
    super::config::default_pinpoints()
}

/// The settings of the image processor, where transformers keeps them.
fn settings(dir: &Path) -> Result<Fields> {
    if let Some(file) = Fields::read_if_present(&dir.join("processor_config.json"))?
        && let Some(inner) = file.object("image_processor")?
    {
        return Ok(inner);
    }
    Fields::read(&dir.join("preprocessor_config.json"))
}

fn size(fields: &Fields, name: &str) -> Result<Option<Size>> {
    let value = match fields.value(name) {
        None => return Ok(None),
        Some(value) => value,
    };
    let side = |v: Option<&Value>| {
        v.and_then(Value::as_u64).filter(|n| (1..=65_536).contains(n)).map(|n| n as usize)
    };
    let read = match value {
        Value::Object(map) if map.get("longest_edge").is_some_and(|v| !v.is_null()) => None,
        Value::Object(map) => match side(map.get("shortest_edge")) {
            Some(n) => Some(Size::ShortestEdge(n)),
            None => {
                side(map.get("height")).zip(side(map.get("width"))).map(|(h, w)| Size::Exact(h, w))
            }
        },
        number => side(Some(number)).map(Size::ShortestEdge),
    };
    let expected = "a number, {\"shortest_edge\"} or {\"height\", \"width\"}, in 1..=65536";
    read.map(Some).ok_or_else(|| fields.wrong(name, value, expected))
}

/// (height, width); a single number is a square.
fn size_exact(fields: &Fields, name: &str) -> Result<Option<(usize, usize)>> {
    Ok(size(fields, name)?.map(|size| match size {
        Size::Exact(h, w) => (h, w),
        Size::ShortestEdge(n) => (n, n),
    }))
}

/// Rescaling and normalisation of every 8-bit value, rounded where numpy rounds: after the product, then in f32.
fn values(fields: &Fields, mean: [f64; 3]) -> Result<Box<[[f32; 256]; 3]>> {
    let std = fields.channels("image_std", CLIP_STD)?;
    if let Some(bad) = std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        return Err(fields.invalid("image_std", format!("holds {bad}, expected positive numbers")));
    }
    let rescale = fields.bool("do_rescale", true)?;
    let factor = if rescale { fields.f64("rescale_factor", 1.0 / 255.0)? } else { 1.0 };
    let normalise = fields.bool("do_normalize", true)?;
    let mut table = Box::new([[0.0; 256]; 3]);
    for (c, row) in table.iter_mut().enumerate() {
        for (v, out) in row.iter_mut().enumerate() {
            let x = (v as f64 * factor) as f32;
            *out = if normalise { (x - mean[c] as f32) / std[c] as f32 } else { x };
        }
    }
    Ok(table)
}

fn pad_to_square(image: &RgbImage, colour: [u8; 3]) -> RgbImage {
    let (w, h) = image.dimensions();
    let side = w.max(h);
    let mut out = RgbImage::from_pixel(side, side, image::Rgb(colour));
    paste(&mut out, image, ((side - w) / 2) as usize, ((side - h) / 2) as usize);
    out
}

/// The middle `width` x `height`; a smaller image is centred on black.
fn center_crop(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let (w, h) = (image.width() as usize, image.height() as usize);
    if w >= width && h >= height {
        return crop(image, (w - width) / 2, (h - height) / 2, width, height);
    }
    // Offsets of the larger canvas round up, those of the crop down (its offset against the image may be negative).
    let (full_w, full_h) = (w.max(width), h.max(height));
    let (pad_x, pad_y) = ((full_w - w).div_ceil(2), (full_h - h).div_ceil(2));
    let mut canvas = RgbImage::new(full_w as u32, full_h as u32);
    paste(&mut canvas, image, pad_x, pad_y);
    let start = |have: usize, want: usize, pad: usize| {
        let offset = (have as i64 - want as i64).div_euclid(2) + pad as i64;
        offset.max(0) as usize
    };
    crop(&canvas, start(w, width, pad_x), start(h, height, pad_y), width, height)
}

fn crop(image: &RgbImage, left: usize, top: usize, width: usize, height: usize) -> RgbImage {
    image::imageops::crop_imm(image, left as u32, top as u32, width as u32, height as u32)
        .to_image()
}

fn paste(canvas: &mut RgbImage, image: &RgbImage, left: usize, top: usize) {
    image::imageops::replace(canvas, image, left as i64, top as i64);
}
