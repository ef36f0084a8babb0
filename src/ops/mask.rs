//! Masked-image sampling: which image tokens a sample may see, and packing the kept ones for prefill.
//!
//! A masked token is never computed: it is left out of the sequence, and the kept ones keep their original positions.
//!
//! ```text
//! image tokens   0 1 2 3 4 5 6 7      indices     1 6 | 0 2 3
//! row 0 keeps      x         x        cu_seqlens  0 2 5
//! row 1 keeps    x   x x              bitmask     0b0100_0010 | 0b0000_1101   (token i is bit i mod 32)
//! ```
//!
//! # Draws
//! Token i of a row reads word i of ([`Purpose::Mask`], the row's sentence number); see [`super::philox`]. So a row's mask
//! depends on nothing but its own [`Row`]: not on the other rows of the call, nor on their number. All arithmetic on draws
//! is in integers, hence the same on every machine, bit for bit.
//!
//! # Laws
//! - [`MaskScheme::Bernoulli`] `[S eq. 6]`: token i stays iff `word >= ceil(rho * 2^32)`, compared in 64 bits, so that rho = 0
//!   keeps every token and rho = 1 none.
//! - [`MaskScheme::ExactK`] `[C]`: of the n drawn tokens exactly `k = round(n - rho * n)` stay (halves away from zero): those with the
//!   k smallest words, ties by index. A uniform choice without replacement.
//! - [`MaskScheme::Blocks`] `[C]`: each grid is cut from its top-left corner into squares of `block` x `block` tokens (narrower at the
//!   right and bottom edge); a square stays whole or goes whole, by the Bernoulli rule on the word of its top-left
//!   token. A newline token is a square of its own.
//!
//! Tokens in no grid are newline tokens. With `exempt_newlines` they stay always, draw nothing, and do not count in n.
//!
//! # Edges
//! Zero rows and rows of zero tokens are valid and give empty lists. rho outside [0, 1] or NaN, a block of 0, and grids
//! that overlap or leave the row are errors.
//!
//! # Example
//! ```
//! use bdhs::ops::mask::{MaskScheme, Row, TokenGrid, draw};
//!
//! # fn main() -> bdhs::Result<()> {
//! let grid = [TokenGrid { start: 0, rows: 24, cols: 24, stride: 24 }];
//! // One image of 576 tokens, of which exactly 6 stay. The mask depends on seed and stream alone.
//! let row = Row::new(7, 0, 576, &grid);
//! let kept = draw(MaskScheme::ExactK { rho: 0.99 }, &[row], false)?;
//! assert_eq!(kept.row(0).len(), 6);
//! assert_eq!(kept, draw(MaskScheme::ExactK { rho: 0.99 }, &[row], false)?);
//! # Ok(())
//! # }
//! ```
//!
//! # Cost
//! One Philox block per four tokens; ExactK adds a linear-time selection. [`pack`] moves 2 * rows * H * size bytes: read
//! once, written once, nothing else.

use candle_core::{DType, Device, Storage, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::host::check_device;
use super::philox::{Draws, Purpose};
use crate::{Error, Result};

/// How image tokens are chosen; `rho` is the share that goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaskScheme {
    /// Each token on its own, kept with probability 1 - rho.
    Bernoulli {
        /// Probability that a token goes, in [0, 1].
        rho: f64,
    },
    /// Exactly round((1 - rho) n) tokens, uniformly without replacement.
    ExactK {
        /// Share of tokens that go, in [0, 1].
        rho: f64,
    },
    /// Squares of a grid, each kept with probability 1 - rho.
    Blocks {
        /// Probability that a square goes, in [0, 1].
        rho: f64,
        /// Side of a square in tokens, at least 1.
        block: usize,
    },
}

impl MaskScheme {
    /// The share that goes.
    pub fn rho(&self) -> f64 {
        match *self {
            Self::Bernoulli { rho } | Self::ExactK { rho } | Self::Blocks { rho, .. } => rho,
        }
    }
}

/// A two-dimensional patch region inside the sequence of image tokens: cell (r, c) is token `start + r * stride + c`.
///
/// An AnyRes grid has a newline token after each row: its stride is cols + 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenGrid {
    /// Token of the top-left cell.
    pub start: usize,
    /// Rows of cells.
    pub rows: usize,
    /// Cells in a row.
    pub cols: usize,
    /// Tokens from one row's first cell to the next row's; at least `cols`.
    pub stride: usize,
}

/// One mask to draw.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Where the randomness comes from.
    pub draws: Draws,
    /// Sentence number of the draws: 0 in guided attempts (one mask for all sentences),
    /// [`super::philox::WHOLE_RESPONSE`] in unguided ones.
    pub sentence: u32,
    /// Image tokens, newline tokens included.
    pub tokens: usize,
    /// The patch regions among them. Tokens in none of them are newline tokens.
    pub grids: &'a [TokenGrid],
}

impl<'a> Row<'a> {
    /// The mask of a stream ([`Draws::stream`]) over `tokens` image tokens.
    pub fn new(seed: u64, stream: u64, tokens: usize, grids: &'a [TokenGrid]) -> Self {
        Self { draws: Draws::stream(seed, stream), sentence: 0, tokens, grids }
    }
}

/// The tokens that stay, for many rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// Kept tokens of all rows one after another, ascending within a row, numbered from the row's first image token.
    pub indices: Vec<u32>,
    /// Row r owns `indices[cu_seqlens[r]..cu_seqlens[r + 1]]`; rows + 1 values.
    pub cu_seqlens: Vec<u32>,
    /// Image tokens of each row before masking.
    pub tokens: Vec<u32>,
}

/// One bit per image token, 1 = stays. Each row begins at a word of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Bitmask {
    /// Token i of row r is bit i mod 32 (from the lowest) of `words[starts[r] + i / 32]`; unused bits are 0.
    pub words: Vec<u32>,
    /// First word of each row, and the number of words at the end: rows + 1 values.
    pub starts: Vec<usize>,
}

impl Kept {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Kept tokens of a row, ascending.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.indices[self.cu_seqlens[row] as usize..self.cu_seqlens[row + 1] as usize]
    }

    /// The same as bits.
    pub fn bitmask(&self) -> Bitmask {
        let mut starts = vec![0];
        for &tokens in &self.tokens {
            starts.push(starts[starts.len() - 1] + tokens.div_ceil(32) as usize);
        }
        let mut words = vec![0; starts[self.rows()]];
        for (row, &start) in starts[..self.rows()].iter().enumerate() {
            for &token in self.row(row) {
                words[start + token as usize / 32] |= 1 << (token % 32);
            }
        }
        Bitmask { words, starts }
    }
}

/// Draws the masks of many rows: see the module docs.
///
/// # Errors
/// On a scheme or a row outside the contract; the message names the row.
#[doc(alias = "random_masking")]
pub fn draw(scheme: MaskScheme, rows: &[Row<'_>], exempt_newlines: bool) -> Result<Kept> {
    check_scheme(scheme)?;
    let drawn: Vec<Vec<u32>> = rows
        .par_iter()
        .enumerate()
        .map(|(r, row)| Ok(draw_row(scheme, row, &cells(r, row)?, exempt_newlines)))
        .collect::<Result<_>>()?;
    let mut kept = Kept {
        indices: Vec::with_capacity(drawn.iter().map(Vec::len).sum()),
        cu_seqlens: vec![0],
        tokens: vec![],
    };
    for (row, indices) in rows.iter().zip(drawn) {
        kept.indices.extend_from_slice(&indices);
        kept.cu_seqlens.push(offset("mask::draw", kept.indices.len())?);
        kept.tokens.push(row.tokens as u32);
    }
    Ok(kept)
}

/// The threshold of the Bernoulli rule: a word below it goes.
pub(super) fn threshold(rho: f64) -> u64 {
    // Scaling by a power of two is exact, so ceil sees rho itself.
    (rho * 4_294_967_296.0).ceil() as u64
}

fn check_scheme(scheme: MaskScheme) -> Result<()> {
    if !(0.0..=1.0).contains(&scheme.rho()) {
        return Err(Error::argument("mask::draw", "rho", scheme.rho(), "a share in [0, 1]"));
    }
    if let MaskScheme::Blocks { block: 0, .. } = scheme {
        return Err(Error::argument("mask::draw", "block", 0, "at least 1"));
    }
    Ok(())
}

fn offset(op: &'static str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::argument(op, "total of rows", value, "below 2^32"))
}

/// Which tokens are grid cells, after checking the row's grids.
fn cells(r: usize, row: &Row<'_>) -> Result<Vec<bool>> {
    let fail = |what, got: String, expected: String| {
        Err(Error::argument("mask::draw", what, got, expected))
    };
    if u32::try_from(row.tokens).is_err() {
        return fail("tokens", format!("{} in row {r}", row.tokens), "below 2^32".into());
    }
    if row.sentence > super::philox::WHOLE_RESPONSE {
        return fail("sentence", format!("{} in row {r}", row.sentence), "below 2^24".into());
    }
    let mut cells = vec![false; row.tokens];
    for grid in row.grids {
        if grid.rows == 0 || grid.cols == 0 {
            continue;
        }
        let last_row =
            (grid.rows - 1).checked_mul(grid.stride).and_then(|x| x.checked_add(grid.start));
        let end = last_row.and_then(|x| x.checked_add(grid.cols));
        if grid.stride < grid.cols || end.is_none_or(|end| end > row.tokens) {
            let expected = format!("stride >= cols and every cell below token {}", row.tokens);
            return fail("grid", format!("{grid:?} in row {r}"), expected);
        }
        for line in 0..grid.rows {
            let start = grid.start + line * grid.stride;
            for cell in &mut cells[start..start + grid.cols] {
                if std::mem::replace(cell, true) {
                    return fail(
                        "grid",
                        format!("{grid:?} in row {r}"),
                        "no cell shared with another grid".into(),
                    );
                }
            }
        }
    }
    Ok(cells)
}

/// The kept tokens of one row. `cells` tells grid cells from newline tokens.
fn draw_row(scheme: MaskScheme, row: &Row<'_>, cells: &[bool], exempt_newlines: bool) -> Vec<u32> {
    let mut words = vec![0; row.tokens];
    row.draws.fill(Purpose::Mask, row.sentence, &mut words);
    let exempt = |i: usize| exempt_newlines && !cells[i];
    match scheme {
        MaskScheme::Bernoulli { rho } => {
            let bar = threshold(rho);
            (0..row.tokens)
                .filter(|&i| exempt(i) || u64::from(words[i]) >= bar)
                .map(|i| i as u32)
                .collect()
        }
        MaskScheme::ExactK { rho } => exact_k(rho, &words, exempt),
        MaskScheme::Blocks { rho, block } => {
            // A cell takes the word of its square's top-left cell; newline tokens keep their own.
            let own = words.clone();
            for grid in row.grids {
                for line in 0..grid.rows {
                    let start = grid.start + line * grid.stride;
                    let corner = grid.start + line / block * block * grid.stride;
                    for col in 0..grid.cols {
                        words[start + col] = own[corner + col / block * block];
                    }
                }
            }
            let bar = threshold(rho);
            (0..row.tokens)
                .filter(|&i| exempt(i) || u64::from(words[i]) >= bar)
                .map(|i| i as u32)
                .collect()
        }
    }
}

fn exact_k(rho: f64, words: &[u32], exempt: impl Fn(usize) -> bool) -> Vec<u32> {
    let (always, drawn): (Vec<usize>, Vec<usize>) = (0..words.len()).partition(|&i| exempt(i));
    // Word above, index below: one unique integer orders by word and breaks ties by index.
    let mut keys: Vec<u64> = drawn.iter().map(|&i| u64::from(words[i]) << 32 | i as u64).collect();
    let n = keys.len() as f64;
    // n - rho n rather than (1 - rho) n: the latter turns 0.5 into 0.49999999999999978 at rho = 0.9, n = 5.
    let k = ((n - rho * n).round() as usize).min(keys.len());
    if k < keys.len() {
        keys.select_nth_unstable(k);
        keys.truncate(k);
    }
    let mut kept: Vec<u32> =
        keys.iter().map(|&key| key as u32).chain(always.iter().map(|&i| i as u32)).collect();
    kept.sort_unstable();
    kept
}

/// A run of rows of one source tensor, as [`pack`] reads it.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// Rows `start..start + len`, all of them: text.
    Rows {
        /// Which source.
        source: usize,
        /// First row.
        start: usize,
        /// Number of rows.
        len: usize,
    },
    /// The kept rows of an image.
    Kept {
        /// Which source.
        source: usize,
        /// Row of the image's first token.
        start: usize,
        /// Image tokens before masking; this many positions are used up.
        tokens: usize,
        /// Kept tokens, strictly ascending, each below `tokens`.
        indices: &'a [u32],
    },
}

/// The position ids of packed rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Positions {
    /// As in the sequence before masking.
    #[default]
    Original,
    /// Counted again over the rows that are left.
    Compact,
}

/// Rows of many sequences, one after another.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Packed {
    /// `[T, H]`, dtype of the sources.
    pub rows: Tensor,
    /// Position id of each row, from 0 in each sequence.
    pub positions: Vec<u32>,
    /// Sequence s owns rows `cu_seqlens[s]..cu_seqlens[s + 1]`.
    pub cu_seqlens: Vec<u32>,
}

/// Gathers the kept rows of image embeddings between the rows of text into one packed prefill buffer.
///
/// `sources` are `[rows, H]` tensors of one H, dtype (f32, f16, bf16) and device; strided ones are copied first. Zero
/// sequences, empty sequences and empty pieces are valid; at least one source is needed, since it gives H. Values are
/// copied, never changed, on the device of the sources; nothing waits for it. If gradients are being tracked, the same rows
/// are gathered by candle ops (one more copy), and gradients reach the sources.
///
/// # Errors
/// On sources that do not fit together, and on pieces that leave their source; the message names the sequence and piece.
pub fn pack(
    sources: &[&Tensor],
    sequences: &[&[Piece<'_>]],
    positions: Positions,
) -> Result<Packed> {
    let hidden = check_sources(sources)?;
    let mut plan = Plan { positions: vec![], rows: vec![] };
    let mut cu_seqlens = vec![0];
    for (s, pieces) in sequences.iter().enumerate() {
        let mut next = 0;
        for (p, piece) in pieces.iter().enumerate() {
            check_piece(sources, piece, s, p)?;
            plan.add(piece, positions, &mut next).ok_or_else(|| {
                Error::argument("mask::pack", "sequence", format!("{s}, too long"), "below 2^32")
            })?;
        }
        cu_seqlens.push(offset("mask::pack", plan.rows.len())?);
    }
    let tracked = sources.iter().any(|s| s.track_op());
    let rows = match sources[0].dtype() {
        #[cfg(feature = "cuda")]
        _ if !tracked && sources[0].device().is_cuda() => {
            cuda::mask::pack_tensors("mask::pack", sources, &plan.rows, hidden)?
        }
        _ if tracked || !sources[0].device().is_cpu() => select_rows(sources, &plan.rows)?,
        DType::F32 => copy_rows::<f32>(sources, &plan.rows, hidden)?,
        DType::F16 => copy_rows::<f16>(sources, &plan.rows, hidden)?,
        _ => copy_rows::<bf16>(sources, &plan.rows, hidden)?,
    };
    Ok(Packed { rows, positions: plan.positions, cu_seqlens })
}

/// Source and row of every packed row, and its position.
struct Plan {
    positions: Vec<u32>,
    rows: Vec<(usize, usize)>,
}

impl Plan {
    /// Appends a piece whose first position is `next`; `None` if positions run past u32.
    fn add(&mut self, piece: &Piece<'_>, positions: Positions, next: &mut u32) -> Option<()> {
        let (used, kept) = match *piece {
            Piece::Rows { source, start, len } => {
                self.rows.extend((start..start + len).map(|row| (source, row)));
                (len, None)
            }
            Piece::Kept { source, start, tokens, indices } => {
                self.rows.extend(indices.iter().map(|&i| (source, start + i as usize)));
                (tokens, Some(indices))
            }
        };
        let after = next.checked_add(u32::try_from(used).ok()?)?;
        match (kept, positions) {
            (None, _) => self.positions.extend(*next..after),
            (Some(kept), Positions::Original) => {
                self.positions.extend(kept.iter().map(|i| *next + i))
            }
            (Some(kept), Positions::Compact) => self.positions.extend((*next..).take(kept.len())),
        }
        *next = match (kept, positions) {
            (Some(kept), Positions::Compact) => *next + kept.len() as u32,
            _ => after,
        };
        Some(())
    }
}

fn check_sources(sources: &[&Tensor]) -> Result<usize> {
    let fail = |got: String, expected: String| {
        Err(Error::argument("mask::pack", "sources", got, expected))
    };
    let Some(first) = sources.first() else {
        return fail("empty".into(), "at least one tensor".into());
    };
    if !matches!(first.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return fail(format!("{:?}", first.dtype()), "f32, f16 or bf16".into());
    }
    for (i, source) in sources.iter().enumerate() {
        if source.rank() != 2 || first.rank() != 2 || source.dim(1)? != first.dim(1)? {
            return fail(format!("{:?} at {i}", source.dims()), "[rows, H] with one H".into());
        }
        if source.dtype() != first.dtype() {
            return fail(format!("{:?} at {i}", source.dtype()), format!("{:?}", first.dtype()));
        }
        check_device("mask::pack", "sources", source, first)?;
    }
    Ok(first.dim(1)?)
}

fn check_piece(sources: &[&Tensor], piece: &Piece<'_>, s: usize, p: usize) -> Result<()> {
    let fail = |what, got: String, expected: String| {
        Err(Error::argument(
            "mask::pack",
            what,
            format!("{got} in piece {p} of sequence {s}"),
            expected,
        ))
    };
    let (source, start, len) = match *piece {
        Piece::Rows { source, start, len } => (source, start, len),
        Piece::Kept { source, start, tokens, .. } => (source, start, tokens),
    };
    let Some(tensor) = sources.get(source) else {
        return fail("source", source.to_string(), format!("below {}", sources.len()));
    };
    let rows = tensor.dim(0)?;
    if start.checked_add(len).is_none_or(|end| end > rows) {
        return fail(
            "piece",
            format!("{len} rows from row {start}"),
            format!("an end within {rows} rows"),
        );
    }
    if let Piece::Kept { tokens, indices, .. } = *piece {
        let ascending = indices.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || indices.last().is_some_and(|&last| last as usize >= tokens) {
            return fail(
                "indices",
                format!("{indices:?}"),
                format!("strictly ascending and below {tokens}"),
            );
        }
    }
    Ok(())
}

/// Copies rows on the CPU, a run of neighbouring rows at a time.
fn copy_rows<T: WithDType>(
    sources: &[&Tensor],
    rows: &[(usize, usize)],
    hidden: usize,
) -> Result<Tensor> {
    let sources: Vec<Tensor> = sources.iter().map(|s| s.contiguous()).collect::<Result<_, _>>()?;
    let locked: Vec<_> = sources.iter().map(Tensor::storage_and_layout).collect();
    let mut values = vec![];
    for (storage, layout) in &locked {
        let Storage::Cpu(storage) = &**storage else {
            return Err(Error::argument("mask::pack", "sources", "off the CPU", "CPU tensors"));
        };
        values.push(&T::cpu_storage_as_slice(storage)?[layout.start_offset()..]);
    }
    let mut out = Vec::with_capacity(rows.len() * hidden);
    for run in rows.chunk_by(|a, b| a.0 == b.0 && a.1 + 1 == b.1) {
        let (source, row) = run[0];
        out.extend_from_slice(&values[source][row * hidden..(row + run.len()) * hidden]);
    }
    Ok(Tensor::from_vec(out, (rows.len(), hidden), &Device::Cpu)?)
}

/// The same gather by candle ops: differentiable, any device.
fn select_rows(sources: &[&Tensor], rows: &[(usize, usize)]) -> Result<Tensor> {
    let mut first = vec![0];
    for source in sources {
        first.push(first[first.len() - 1] + source.dim(0)?);
    }
    let ids: Vec<u32> = rows
        .iter()
        .map(|&(source, row)| offset("mask::pack", first[source] + row))
        .collect::<Result<_>>()?;
    let ids = Tensor::from_vec(ids, rows.len(), sources[0].device())?;
    Ok(Tensor::cat(sources, 0)?.index_select(&ids, 0)?)
}
