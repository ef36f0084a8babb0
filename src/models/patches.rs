//! Where in a picture each image token looks: for drawing masks.
//!
//! A [`PatchMap`] is a few numbers of a checkpoint's `config.json` and image processor. It can be kept beside a run,
//! so that the run's masks can still be drawn when the checkpoint is gone.

use serde::{Deserialize, Serialize};

use super::families::{Pictures, llava, qwen};
use super::source::Source;
use crate::Result;
use crate::ops::mask::TokenGrid;

/// How pictures become patches in one checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PatchMap {
    /// A base view, and AnyRes tiles where the checkpoint has them.
    Llava(llava::PatchMap),
    /// One grid over the whole picture.
    Qwen(qwen::PatchSettings),
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
    pub(super) fn new(grid: &TokenGrid, area: Rect) -> Self {
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
    /// The AnyRes tiles as one grid, where there are some.
    pub tiles: Option<PatchGrid>,
}

impl PatchMap {
    /// Reads the settings of a checkpoint; no weights are read.
    ///
    /// # Errors
    /// Those of [`Source::config`] and of the image processor's settings.
    pub fn read(source: &Source) -> Result<Self> {
        let dir = source.base();
        match source.config()?.pictures {
            Pictures::Llava(config) => Ok(Self::Llava(llava::PatchMap::read(dir, &config)?)),
            Pictures::Qwen(config) => Ok(Self::Qwen(qwen::PatchSettings::read(dir, &config)?)),
        }
    }

    /// The grids of a picture of `width` x `height` pixels. `alone`: it is the only one of its conversation.
    ///
    /// # Errors
    /// Those of [`Model::layout`](super::Model::layout).
    pub fn patches(&self, width: usize, height: usize, alone: bool) -> Result<Patches> {
        match self {
            Self::Llava(map) => map.patches(width, height, alone),
            Self::Qwen(settings) => {
                let layout = settings.layout(width, height)?;
                let whole = Rect { x: 0.0, y: 0.0, width: width as f64, height: height as f64 };
                let base = PatchGrid::new(&layout.grids[0], whole);
                Ok(Patches { tokens: layout.tokens, base, tiles: None })
            }
        }
    }
}
