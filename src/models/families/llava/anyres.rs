//! AnyRes of LLaVA-NeXT: which resolution an image gets, how many tokens that makes, and how they are packed.
//!
//! An image is shown twice: squeezed to one square tile (the base), and scaled to the best of a list of resolutions,
//! padded and cut into tiles. The tiles' patches form one large grid; rows or columns that lie wholly in the padding are
//! dropped, and a learned newline is put after every row. The token sequence is: base patches, then the grid.
//!
//! Source: LLaVA-NeXT as in transformers 5 (`select_best_resolution`, `pack_image_features`), including its rounding.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::config::Config;
use crate::models::{ImageLayout, ImagePositions};
use crate::ops::mask::TokenGrid;
use crate::{Error, Result};

/// What of a checkpoint decides how an image becomes tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiling {
    /// Side of a tile, pixels.
    pub image_size: usize,
    /// Patches along one side of a tile.
    pub side: usize,
    /// Whether the class token is kept, as token 0.
    pub class_token: bool,
    /// AnyRes resolutions, (height, width) in pixels; empty for LLaVA-1.5.
    pub pinpoints: Vec<(usize, usize)>,
    /// Of LLaVA-OneVision, see [`Config::max_tiles`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tiles: Option<usize>,
}

impl Tiling {
    /// That of a checkpoint.
    pub fn of(config: &Config) -> Self {
        Self {
            image_size: config.vision.image_size,
            side: config.vision.side(),
            class_token: config.has_class_token(),
            pinpoints: config.pinpoints.clone(),
            max_tiles: config.max_tiles,
        }
    }
}

/// The tile grid of an image and the part of its patch grid that is not padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnyRes {
    /// Chosen resolution, pixels.
    pub height: usize,
    /// Chosen resolution, pixels.
    pub width: usize,
    /// First patch row that is kept.
    pub top: usize,
    /// First patch column that is kept.
    pub left: usize,
    /// Patch rows kept.
    pub rows: usize,
    /// Patch columns kept.
    pub cols: usize,
    /// Rows and columns that these are shrunk to, where they are too many.
    pub shrunk: Option<(usize, usize)>,
}

impl Tiling {
    /// The layout of an image of `width` x `height` pixels. `alone`: it is the only one of its conversation.
    ///
    /// # Errors
    /// [`Error::Argument`] if a side is 0, or the image is so long and thin that no resolution of the list shows it.
    pub fn layout(&self, width: usize, height: usize, alone: bool) -> Result<ImageLayout> {
        let tiling = self;
        if width == 0 || height == 0 {
            return Err(Error::argument(
                "layout",
                "image size",
                format!("{width}x{height}"),
                "both sides positive",
            ));
        }
        let side = tiling.side;
        let class = usize::from(tiling.class_token);
        let base = TokenGrid { start: class, rows: side, cols: side, stride: side };
        let base_tokens = class + side * side;
        // LLaVA-OneVision puts a newline behind the base view of one of several images.
        let several = tiling.max_tiles.is_some() && !alone;
        if tiling.pinpoints.is_empty() || several {
            return Ok(ImageLayout {
                tokens: base_tokens + usize::from(several),
                grids: vec![base],
                positions: ImagePositions::Sequence,
                tiles: 1,
                anyres: None,
            });
        }
        let anyres = AnyRes::new(tiling, width, height)?;
        let (rows, cols) = anyres.shrunk.unwrap_or((anyres.rows, anyres.cols));
        let stride = cols + 1;
        let grid = TokenGrid { start: base_tokens, rows, cols, stride };
        let tile = tiling.image_size;
        Ok(ImageLayout {
            tokens: base_tokens + rows * stride,
            grids: vec![base, grid],
            positions: ImagePositions::Sequence,
            tiles: 1 + (anyres.height / tile) * (anyres.width / tile),
            anyres: Some(anyres),
        })
    }
}

impl AnyRes {
    fn new(tiling: &Tiling, width: usize, height: usize) -> Result<Self> {
        let (best_h, best_w) =
            best_resolution(width, height, &tiling.pinpoints).ok_or_else(|| {
                Error::argument(
                    "layout",
                    "image size",
                    format!("{width}x{height}"),
                    "a shape of which some AnyRes resolution shows at least one pixel",
                )
            })?;
        let (tile, side) = (tiling.image_size, tiling.side);
        let (grid_h, grid_w) = (best_h / tile * side, best_w / tile * side);
        // The wider image (against the grid) has padding above and below, the other left and right.
        let wider = width as f64 / height as f64 > grid_w as f64 / grid_h as f64;
        let (top, left) = if wider {
            (margin(grid_h, scaled(height, grid_w as f64 / width as f64)), 0)
        } else {
            (0, margin(grid_w, scaled(width, grid_h as f64 / height as f64)))
        };
        let (rows, cols) = (grid_h - 2 * top, grid_w - 2 * left);
        let shrunk = tiling.max_tiles.and_then(|most| shrunk(rows, cols, most * side * side));
        Ok(Self { height: best_h, width: best_w, top, left, rows, cols, shrunk })
    }
}

/// Rows and columns of a grid that has more than `most` patches, by more than a tenth of each side.
fn shrunk(rows: usize, cols: usize, most: usize) -> Option<(usize, usize)> {
    let ratio = ((rows * cols) as f64 / most as f64).sqrt();
    // Python's `//` of floats: the remainder is exact, the quotient is not.
    let divided = |n: usize| {
        let n = n as f64;
        ((n - n % ratio) / ratio).round() as usize
    };
    (ratio > 1.1).then(|| (divided(rows), divided(cols)))
}

/// `int(round(length * scale, 7))`: rounding to seven decimals undoes a product just below an integer.
fn scaled(length: usize, scale: f64) -> usize {
    let product = length as f64 * scale;
    // The decimal form is correctly rounded, as Python's round is.
    format!("{product:.7}").parse().map_or(product, |x: f64| x) as usize
}

/// Patches dropped on each of the two sides; an odd one stays, as upstream.
fn margin(grid: usize, kept: usize) -> usize {
    grid.saturating_sub(kept) / 2
}

/// Of the resolutions (height, width): most of the image's own pixels, then least waste, then the earliest.
pub(super) fn best_resolution(
    width: usize,
    height: usize,
    resolutions: &[(usize, usize)],
) -> Option<(usize, usize)> {
    let (w, h) = (width as f64, height as f64);
    let mut best = None;
    let mut most = 0;
    let mut least_waste = usize::MAX;
    for &(rows, cols) in resolutions {
        let scale = (cols as f64 / w).min(rows as f64 / h);
        let shown = ((w * scale) as usize * (h * scale) as usize).min(width * height);
        let waste = rows * cols - shown;
        if shown > most || (shown == most && waste < least_waste && shown > 0) {
            (best, most, least_waste) = (Some((rows, cols)), shown, waste);
        }
    }
    best
}

/// Size (width, height) of the image inside the resolution: one side fills it, the other is rounded up.
pub(super) fn inner_size(
    width: usize,
    height: usize,
    (rows, cols): (usize, usize),
) -> (usize, usize) {
    let scale_w = cols as f64 / width as f64;
    let scale_h = rows as f64 / height as f64;
    if scale_w < scale_h {
        (cols, ((height as f64 * scale_w).ceil() as usize).min(rows))
    } else {
        (((width as f64 * scale_h).ceil() as usize).min(cols), rows)
    }
}

/// Packs projected tiles `[tiles, side^2, H]` into the token sequence `[tokens, H]`; `newline` `[H]`.
pub(super) fn pack(
    tiles: &Tensor,
    newline: &Tensor,
    side: usize,
    tile_size: usize,
    layout: &ImageLayout,
) -> Result<Tensor> {
    let (count, patches, hidden) = tiles.dims3()?;
    let base = tiles.get(0)?;
    let Some(AnyRes { height, width, top, left, rows, cols, shrunk }) = layout.anyres else {
        return Ok(Tensor::cat(&[&base, &newline.reshape((1, hidden))?], 0)?);
    };
    let (down, across) = (height / tile_size, width / tile_size);
    if patches != side * side || count != 1 + down * across {
        return Err(Error::argument(
            "anyres::pack",
            "tiles",
            format!("{count} of {patches} patches"),
            format!("{} of {} patches", 1 + down * across, side * side),
        ));
    }
    // [down, across, side, side, H]: a patch row of the whole picture runs through all tiles across.
    let grid = tiles
        .narrow(0, 1, down * across)?
        .reshape((down, across, side, side, hidden))?
        .permute((0, 2, 1, 3, 4))?
        .reshape((down * side, across * side, hidden))?
        .narrow(0, top, rows)?
        .narrow(1, left, cols)?;
    let (grid, rows, cols) = match shrunk {
        None => (grid, rows, cols),
        Some((rows, cols)) => (shrink(&grid, rows, cols)?, rows, cols),
    };
    let newlines = newline.reshape((1, 1, hidden))?.expand((rows, 1, hidden))?;
    let grid = Tensor::cat(&[&grid, &newlines], 1)?.reshape((rows * (cols + 1), hidden))?;
    Ok(Tensor::cat(&[base, grid], 0)?)
}

/// Bilinear interpolation of a grid `[.., .., H]` to `rows` x `cols`, corners not aligned, as torch's without antialiasing; in f32.
fn shrink(grid: &Tensor, rows: usize, cols: usize) -> Result<Tensor> {
    let across = interpolate(&grid.to_dtype(DType::F32)?.contiguous()?, 1, cols)?;
    Ok(interpolate(&across.contiguous()?, 0, rows)?.to_dtype(grid.dtype())?)
}

/// Along one dimension of `[.., .., H]`.
fn interpolate(grid: &Tensor, dim: usize, to: usize) -> Result<Tensor> {
    let from = grid.dim(dim)?;
    let scale = from as f32 / to as f32;
    let (mut first, mut second, mut weights) = (vec![], vec![], vec![]);
    for i in 0..to {
        let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        first.push(low as u32);
        second.push((low + 1).min(from - 1) as u32);
        weights.push(at - low as f32);
    }
    let device = grid.device();
    let shape = if dim == 0 { (to, 1, 1) } else { (1, to, 1) };
    let weights = Tensor::from_vec(weights, shape, device)?;
    let rows = |places: Vec<u32>| grid.index_select(&Tensor::new(places, device)?, dim);
    let low = rows(first)?.broadcast_mul(&weights.affine(-1.0, 1.0)?)?;
    Ok((low + rows(second)?.broadcast_mul(&weights)?)?)
}
