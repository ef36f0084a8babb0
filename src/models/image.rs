//! Images as the rest of the program sees them: how many tokens, where their patches are, and pixels.

use candle_core::Tensor;

use super::families::llava::AnyRes;
use super::language::Place;
use crate::ops::mask::TokenGrid;

/// How the tokens of one image are laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayout {
    /// Number of rows that the image takes in the token sequence.
    pub tokens: usize,
    /// Where its patches are. Tokens in no grid are the class token (`full` strategy) or newlines.
    pub grids: Vec<TokenGrid>,
    /// Which positions its tokens have.
    pub positions: ImagePositions,
    /// Number of tiles that the vision tower sees.
    pub tiles: usize,
    /// The AnyRes part; `None` where an image is one view.
    pub anyres: Option<AnyRes>,
}

/// Which positions the tokens of an image have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePositions {
    /// One after another, as of text.
    Sequence,
    /// By row and column, in a decoder of three components: all tokens of an image have one first component, and text goes on
    /// behind the longer side.
    Grid {
        /// Rows of tokens.
        rows: usize,
        /// Columns of tokens.
        cols: usize,
    },
}

impl ImageLayout {
    /// The positions of the tokens, in order, where `start` is that of the first.
    pub fn places(&self, start: u32) -> impl Iterator<Item = Place> + use<> {
        let positions = self.positions;
        (0..self.tokens as u32).map(move |i| match positions {
            ImagePositions::Sequence => Place::from(start + i),
            ImagePositions::Grid { cols, .. } => {
                Place([start, start + i / cols as u32, start + i % cols as u32])
            }
        })
    }

    /// From the position of the first token to that of the text behind the image.
    pub fn span(&self) -> u32 {
        match self.positions {
            ImagePositions::Sequence => self.tokens as u32,
            ImagePositions::Grid { rows, cols } => rows.max(cols) as u32,
        }
    }
}

/// A preprocessed image.
#[derive(Debug, Clone)]
pub struct Pixels {
    /// `[views, 3, height, width]`, f32 on the CPU, normalised; the base view first, then AnyRes tiles row by row.
    pub tiles: Tensor,
    /// The tokens that the image becomes.
    pub layout: ImageLayout,
}
