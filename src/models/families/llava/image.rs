//! Image preprocessing equal to the PIL processors of transformers: `CLIPImageProcessor`, `SiglipImageProcessor`,
//! `LlavaImageProcessor` (LLaVA-1.5), `LlavaNextImageProcessor` (LLaVA-NeXT) and `LlavaOnevisionImageProcessor`.
//!
//! Settings come from `processor_config.json` (its `image_processor`) or `preprocessor_config.json`; absent fields take
//! the processors' defaults: shortest edge 224, crop 224, bicubic, all steps on, CLIP's mean and deviation. SigLIP's and
//! OneVision's crop nothing and resize to 224 and 384 pixels each way; SigLIP's mean and deviation are 0.5.
//! Resizing and padding are done on 8-bit pixels with Pillow's arithmetic, so they are equal bit for bit.

use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::anyres::{self, Tiling};
use super::config::{Config, Generation, default_pinpoints, many_pinpoints};
use super::original::Aspect;
use super::patches::BaseView;
use crate::models::fields::Fields;
use crate::models::settings::IMAGES;
use crate::models::vision::pixels::{self, CLIP_MEAN, CLIP_STD};
use crate::models::vision::resample::{Filter, Square, columns_first, resize};
use crate::models::{ImageLayout, Pixels};
use crate::{Error, Result};

const HALF: [f64; 3] = [0.5; 3];

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
                let fields = pixels::processor_fields(dir)?;
                let kind = Kind::read(&fields, config)?;
                (fields, kind)
            }
            // The settings are CLIP's; the checkpoint says what goes before them.
            Some(original) => (original.processor()?, Kind::of(original.aspect)),
        };
        fields.check(&IMAGES)?;
        let defaults = kind.defaults();
        let size = size(&fields, "size")?.unwrap_or(defaults.size);
        let cut = size_exact(&fields, "crop_size")?.or(defaults.crop);
        let do_resize = fields.bool("do_resize", true)?;
        let do_crop = fields.bool("do_center_crop", defaults.crop.is_some())?;
        let mean = fields.channels("image_mean", defaults.mean)?;
        let pad = match &config.original {
            // The only view of one of several images.
            None if kind == Kind::OneVision => true,
            None => kind == Kind::Llava && fields.bool("do_pad", false)?,
            Some(original) => original.aspect == Aspect::Pad,
        };
        let this = Self {
            anyres: kind.has_tiles().then(|| {
                // The base view is square; tiles are cut at the crop height, as upstream does, or else at the base's.
                let base = match size {
                    Size::ShortestEdge(n) => (n, n),
                    Size::Exact(h, w) => (h, w),
                };
                (Size::Exact(base.0, base.1), cut.unwrap_or(base).0)
            }),
            pad_square: pad.then(|| mean.map(|m| (m * 255.0) as u8)),
            resize: do_resize.then_some(size),
            filter: pixels::resample(&fields)?,
            crop: cut.filter(|_| do_crop),
            values: pixels::values(&fields, mean, defaults.std)?,
            side: config.vision.image_size,
            config: config.clone(),
        };
        this.check(&fields, size)?;
        Ok(this)
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
    fn check(&self, fields: &Fields, size: Size) -> Result<()> {
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
        let tile = self.anyres.map(|(_, tile)| (tile, tile));
        if let Some(cut) = self.crop.or(tile).filter(|&cut| cut != side) {
            return mismatch("crop_size", cut);
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
        let layout = Tiling::of(&self.config).layout(width, height, true)?;
        self.preprocess_as(image, &layout)
    }

    /// As [`ImageProcessor::preprocess`], of an image whose layout is known.
    ///
    /// # Errors
    /// As [`ImageProcessor::preprocess`].
    pub fn preprocess_as(&self, image: &RgbImage, layout: &ImageLayout) -> Result<Pixels> {
        let (views, square) = match (&self.anyres, &layout.anyres) {
            (Some((base, tile)), Some(plan)) => {
                (self.views(image, *base, *tile, (plan.height, plan.width))?, None)
            }
            _ => (vec![image.clone()], self.pad_square.map(|colour| Square { colour })),
        };
        let mut tiles = Vec::with_capacity(views.len() * 3 * self.side * self.side);
        for view in &views {
            self.finish(view, square, &mut tiles)?;
        }
        let shape = (views.len(), 3, self.side, self.side);
        Ok(Pixels { tiles: Tensor::from_vec(tiles, shape, &Device::Cpu)?, layout: layout.clone() })
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
        let inner = self.resized(image, None, Size::Exact(h, w))?;
        let mut canvas = RgbImage::new(best.1 as u32, best.0 as u32);
        paste(&mut canvas, &inner, (best.1 - w) / 2, (best.0 - h) / 2);
        let mut views = vec![self.resized(image, None, base)?];
        for top in (0..best.0).step_by(tile) {
            for left in (0..best.1).step_by(tile) {
                views.push(crop(&canvas, left, top, tile, tile));
            }
        }
        Ok(views)
    }

    /// Pad, resize, crop, rescale and normalise one view; appended channel by channel.
    fn finish(&self, view: &RgbImage, square: Option<Square>, out: &mut Vec<f32>) -> Result<()> {
        let (width, height) = (view.width() as usize, view.height() as usize);
        let mut view = match (self.resize, square) {
            (Some(size), _) => self.resized(view, square, size)?,
            (None, Some(_)) => {
                let side = width.max(height);
                self.resized(view, square, Size::Exact(side, side))?
            }
            (None, None) => view.clone(),
        };
        if let Some((h, w)) = self.crop {
            let (width, height) = (view.width() as usize, view.height() as usize);
            too_large("after the crop", (width, height), (h.max(height), w.max(width)))?;
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

    fn resized(&self, image: &RgbImage, square: Option<Square>, size: Size) -> Result<RgbImage> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let (h, w) = match square {
            Some(_) => size.of(width.max(height), width.max(height)),
            None => size.of(width, height),
        };
        too_large("after the resize", (width, height), (h, w))?;
        let full = square.map_or((width, height), |_| (width.max(height), width.max(height)));
        let between = match columns_first(full, (w, h)) {
            true => (h, width),
            false => (height, w),
        };
        too_large("within the resize", (width, height), between)?;
        Ok(resize(image, square, w as u32, h as u32, self.filter))
    }
}

/// Refuses a picture of `given` (width, height) that would need one of `made` (height, width).
fn too_large(when: &str, given: (usize, usize), made: (usize, usize)) -> Result<()> {
    let ((width, height), (h, w)) = (given, made);
    if h.saturating_mul(w) <= MAX_PIXELS {
        return Ok(());
    }
    Err(Error::argument(
        "ImageProcessor::preprocess",
        "image size",
        format!("{width}x{height}, {w}x{h} {when}"),
        format!("at most {MAX_PIXELS} pixels {when}; cut the picture"),
    ))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Clip,
    Siglip,
    Llava,
    Next,
    OneVision,
}

/// What absent settings mean.
struct Defaults {
    size: Size,
    crop: Option<(usize, usize)>,
    mean: [f64; 3],
    std: [f64; 3],
}

impl Kind {
    fn defaults(self) -> Defaults {
        let clip = Defaults {
            size: Size::ShortestEdge(224),
            crop: Some((224, 224)),
            mean: CLIP_MEAN,
            std: CLIP_STD,
        };
        match self {
            Self::Clip | Self::Llava | Self::Next => clip,
            Self::OneVision => Defaults { size: Size::Exact(384, 384), crop: None, ..clip },
            Self::Siglip => {
                Defaults { size: Size::Exact(224, 224), crop: None, mean: HALF, std: HALF }
            }
        }
    }

    /// AnyRes.
    fn has_tiles(self) -> bool {
        matches!(self, Self::Next | Self::OneVision)
    }

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
                Generation::OneVision => Self::OneVision,
            });
        };
        let kind = match name.trim_end_matches("Fast").trim_end_matches("Pil") {
            "CLIPImageProcessor" => Self::Clip,
            "SiglipImageProcessor" => Self::Siglip,
            "LlavaImageProcessor" => Self::Llava,
            "LlavaNextImageProcessor" => Self::Next,
            "LlavaOnevisionImageProcessor" => Self::OneVision,
            _ => {
                return Err(Error::unsupported(
                    format!("image processor \"{name}\""),
                    format!(
                        "{}: expected CLIPImageProcessor, SiglipImageProcessor, LlavaImageProcessor, LlavaNextImageProcessor or \
                         LlavaOnevisionImageProcessor",
                        fields.path().display()
                    ),
                ));
            }
        };
        let fits = match config.generation {
            Generation::Llava => !kind.has_tiles(),
            Generation::Next => kind == Self::Next,
            Generation::OneVision => kind == Self::OneVision,
        };
        if !fits {
            return Err(fields.invalid(
                NAME,
                format!("is \"{name}\", which does not go with a {:?} model", config.generation),
            ));
        }
        if kind.has_tiles() {
            let default = match kind {
                Self::OneVision => many_pinpoints(),
                _ => default_pinpoints(),
            };
            let pinpoints = fields.pairs("image_grid_pinpoints")?.unwrap_or(default);
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
