//! Images as the rest of the program sees them: how many tokens, where their patches are, and pixels.

use candle_core::Tensor;

use super::families::llava::AnyRes;
use crate::ops::mask::TokenGrid;

/// How the tokens of one image are laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayout {
    /// Number of rows that the image takes in the token sequence.
    pub tokens: usize,
    /// Where its patches are. Tokens in no grid are the class token (`full` strategy) or newlines.
    pub grids: Vec<TokenGrid>,
    /// Number of tiles that the vision tower sees.
    pub tiles: usize,
    /// The AnyRes part; `None` where an image is one view.
    pub anyres: Option<AnyRes>,
}

/// A preprocessed image.
#[derive(Debug, Clone)]
pub struct Pixels {
    /// `[views, 3, height, width]`, f32 on the CPU, normalised; the base view first, then AnyRes tiles row by row.
    pub tiles: Tensor,
    /// The tokens that the image becomes.
    pub layout: ImageLayout,
}
