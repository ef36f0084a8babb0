//! Where in a picture the image tokens of a base view and of AnyRes tiles look.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::anyres::{Tiling, inner_size};
use super::config::Config;
use super::image::{ImageProcessor, Size};
use crate::Result;
use crate::models::patches::{PatchGrid, Patches, Rect};

/// How pictures become patches in one checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchMap {
    tiling: Tiling,
    base: BaseView,
}

/// Which part of a picture the base view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BaseView {
    /// All of it, squeezed to a square (AnyRes); of one of several pictures only where margins do not make it one.
    pub squeeze: bool,
    /// All of it, with margins that make it a square.
    pub pad_square: bool,
    /// Resized before the crop.
    pub resize: Option<Size>,
    /// The middle (height, width) pixels after the resize.
    pub crop: Option<(usize, usize)>,
}

impl PatchMap {
    pub(in crate::models) fn read(dir: &Path, config: &Config) -> Result<Self> {
        let base = ImageProcessor::read(dir, config)?.base_view();
        Ok(Self { tiling: Tiling::of(config), base })
    }

    pub(in crate::models) fn patches(
        &self,
        width: usize,
        height: usize,
        alone: bool,
    ) -> Result<Patches> {
        let layout = self.tiling.layout(width, height, alone)?;
        let side = self.tiling.side;
        let base = PatchGrid::new(&layout.grids[0], self.base.area(width, height, alone));
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
    fn area(&self, width: usize, height: usize, alone: bool) -> Rect {
        let whole = Rect { x: 0.0, y: 0.0, width: width as f64, height: height as f64 };
        if self.squeeze && (alone || !self.pad_square) {
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
            tiling: Tiling {
                image_size: 336,
                side: 24,
                class_token: false,
                pinpoints,
                max_tiles: None,
            },
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
        let patches = map(CROP, Vec::new()).patches(1344, 672, true).unwrap();
        assert_eq!(patches.base.area, Rect { x: 336.0, y: 0.0, width: 672.0, height: 672.0 });
        assert_eq!(patches.base.place(25), Some((1, 1)));
        assert_eq!(patches.base.place(576), None);
        let run = patches.base.run(1, 1, 2);
        assert_eq!(run, Rect { x: 364.0, y: 28.0, width: 56.0, height: 28.0 });
    }

    #[test]
    fn a_padded_square_reaches_beyond_the_picture() {
        let padded = BaseView { pad_square: true, ..CROP };
        let patches = map(padded, Vec::new()).patches(672, 336, true).unwrap();
        assert_eq!(patches.base.area, Rect { x: 0.0, y: -168.0, width: 672.0, height: 672.0 });
    }

    #[test]
    fn tiles_cover_the_picture_and_leave_newlines_out() {
        let squeezed = BaseView { squeeze: true, ..CROP };
        let patches = map(squeezed, vec![(672, 672), (336, 672)]).patches(800, 400, true).unwrap();
        assert_eq!(patches.base.area, Rect { x: 0.0, y: 0.0, width: 800.0, height: 400.0 });
        let tiles = patches.tiles.unwrap();
        assert_eq!((tiles.rows, tiles.cols, tiles.stride), (24, 48, 49));
        assert_eq!(tiles.area, Rect { x: 0.0, y: 0.0, width: 800.0, height: 400.0 });
        assert_eq!(tiles.place(576 + 48), None, "a newline");
        assert_eq!(tiles.place(576 + 49), Some((1, 0)));
        assert_eq!(patches.tokens, 576 + 24 * 49);
    }
}
