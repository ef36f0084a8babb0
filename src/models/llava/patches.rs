//! Where in a picture each image token looks: for drawing masks.
//!
//! A [`PatchMap`] is a few numbers of a checkpoint's `config.json` and image processor. It can be kept beside a run,
//! so that the run's masks can still be drawn when the checkpoint is gone.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::anyres::{ImageLayout, Tiling, inner_size};
use super::config::Config;
use super::image::{ImageProcessor, Size};
use super::source::Source;
use crate::Result;
use crate::ops::mask::TokenGrid;

/// How pictures become patches in one checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchMap {
    tiling: Tiling,
    base: BaseView,
}

/// Which part of a picture the base view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BaseView {
    /// All of it, squeezed to a square (AnyRes).
    pub squeeze: bool,
    /// All of it, with margins that make it a square.
    pub pad_square: bool,
    /// Resized before the crop.
    pub resize: Option<Size>,
    /// The middle (height, width) pixels after the resize.
    pub crop: Option<(usize, usize)>,
}

/// A rectangle in pixels of the picture; it may reach beyond the picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rect {
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// A grid of patches: token `start + r * stride + c` looks at row `r`, column `c`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PatchGrid {
    /// Token of the upper left patch.
    pub start: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Tokens from one row to the next.
    pub stride: usize,
    /// What the whole grid covers.
    pub area: Rect,
}

impl PatchGrid {
    fn new(grid: &TokenGrid, area: Rect) -> Self {
        let TokenGrid { start, rows, cols, stride } = *grid;
        Self { start, rows, cols, stride, area }
    }

    /// Row and column of a token; none for tokens of other grids, newlines and class tokens.
    pub fn place(&self, token: usize) -> Option<(usize, usize)> {
        let offset = token.checked_sub(self.start)?;
        let (row, col) = (offset / self.stride, offset % self.stride);
        (row < self.rows && col < self.cols).then_some((row, col))
    }

    /// What `cols` patches from a row and column on cover.
    pub fn run(&self, row: usize, col: usize, cols: usize) -> Rect {
        let (w, h) = (self.area.width / self.cols as f64, self.area.height / self.rows as f64);
        Rect {
            x: self.area.x + col as f64 * w,
            y: self.area.y + row as f64 * h,
            width: cols as f64 * w,
            height: h,
        }
    }
}

/// The grids of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// Tokens of the picture, those outside all grids included.
    pub tokens: usize,
    /// The base view.
    pub base: PatchGrid,
    /// The AnyRes tiles as one grid; none for LLaVA-1.5.
    pub tiles: Option<PatchGrid>,
}

impl PatchMap {
    /// Reads the settings of a checkpoint folder; no weights are read.
    ///
    /// # Errors
    /// Those of [`Config::read`] and of the image processor's settings.
    pub fn read(dir: &Path) -> Result<Self> {
        let source = Source::new(dir, None)?;
        let config = Config::read(source.base())?;
        let base = ImageProcessor::read(source.base(), &config)?.base_view();
        Ok(Self { tiling: Tiling::of(&config), base })
    }

    /// The grids of a picture of `width` x `height` pixels.
    ///
    /// # Errors
    /// Those of [`ImageLayout::new`].
    pub fn patches(&self, width: usize, height: usize) -> Result<Patches> {
        let layout = ImageLayout::of(&self.tiling, width, height)?;
        let side = self.tiling.side;
        let base = PatchGrid::new(&layout.grids[0], self.base.area(width, height));
        let tiles = layout.anyres.as_ref().and_then(|plan| {
            // The picture lies in the middle of the canvas; the grid is the part of the canvas that is not padding.
            let (w, h) = inner_size(width, height, (plan.height, plan.width));
            let patch = self.tiling.image_size as f64 / side as f64;
            let (sx, sy) = (width as f64 / w as f64, height as f64 / h as f64);
            let (left, top) = ((plan.width - w) / 2, (plan.height - h) / 2);
            let area = Rect {
                x: (plan.left as f64 * patch - left as f64) * sx,
                y: (plan.top as f64 * patch - top as f64) * sy,
                width: plan.cols as f64 * patch * sx,
                height: plan.rows as f64 * patch * sy,
            };
            Some(PatchGrid::new(layout.grids.get(1)?, area))
        });
        Ok(Patches { tokens: layout.tokens, base, tiles })
    }
}

impl BaseView {
    /// The part of a picture that the view shows, in the picture's pixels.
    fn area(&self, width: usize, height: usize) -> Rect {
        let whole = Rect { x: 0.0, y: 0.0, width: width as f64, height: height as f64 };
        if self.squeeze {
            return whole;
        }
        let (shown, (w, h)) = if self.pad_square {
            let side = width.max(height);
            let [left, top] = [width, height].map(|length| ((side - length) / 2) as f64);
            let side_px = side as f64;
            (Rect { x: -left, y: -top, width: side_px, height: side_px }, (side, side))
        } else {
            (whole, (width, height))
        };
        let (rows, cols) = self.resize.map_or((h, w), |size| size.of(w, h));
        let Some((crop_rows, crop_cols)) = self.crop else { return shown };
        let (sx, sy) = (shown.width / cols as f64, shown.height / rows as f64);
        Rect {
            x: shown.x + (cols as f64 - crop_cols as f64) / 2.0 * sx,
            y: shown.y + (rows as f64 - crop_rows as f64) / 2.0 * sy,
            width: crop_cols as f64 * sx,
            height: crop_rows as f64 * sy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(base: BaseView, pinpoints: Vec<(usize, usize)>) -> PatchMap {
        PatchMap {
            tiling: Tiling { image_size: 336, side: 24, class_token: false, pinpoints },
            base,
        }
    }

    const CROP: BaseView = BaseView {
        squeeze: false,
        pad_square: false,
        resize: Some(Size::ShortestEdge(336)),
        crop: Some((336, 336)),
    };

    #[test]
    fn a_centre_crop_shows_the_middle_of_a_wide_picture() {
        let patches = map(CROP, Vec::new()).patches(1344, 672).unwrap();
        assert_eq!(patches.base.area, Rect { x: 336.0, y: 0.0, width: 672.0, height: 672.0 });
        assert_eq!(patches.base.place(25), Some((1, 1)));
        assert_eq!(patches.base.place(576), None);
        let run = patches.base.run(1, 1, 2);
        assert_eq!(run, Rect { x: 364.0, y: 28.0, width: 56.0, height: 28.0 });
    }

    #[test]
    fn a_padded_square_reaches_beyond_the_picture() {
        let padded = BaseView { pad_square: true, ..CROP };
        let patches = map(padded, Vec::new()).patches(672, 336).unwrap();
        assert_eq!(patches.base.area, Rect { x: 0.0, y: -168.0, width: 672.0, height: 672.0 });
    }

    #[test]
    fn tiles_cover_the_picture_and_leave_newlines_out() {
        let squeezed = BaseView { squeeze: true, ..CROP };
        let patches = map(squeezed, vec![(672, 672), (336, 672)]).patches(800, 400).unwrap();
        assert_eq!(patches.base.area, Rect { x: 0.0, y: 0.0, width: 800.0, height: 400.0 });
        let tiles = patches.tiles.unwrap();
        assert_eq!((tiles.rows, tiles.cols, tiles.stride), (24, 48, 49));
        assert_eq!(tiles.area, Rect { x: 0.0, y: 0.0, width: 800.0, height: 400.0 });
        assert_eq!(tiles.place(576 + 48), None, "a newline");
        assert_eq!(tiles.place(576 + 49), Some((1, 0)));
        assert_eq!(patches.tokens, 576 + 24 * 49);
    }
}
