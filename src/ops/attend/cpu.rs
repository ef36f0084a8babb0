//! The CPU path of [`attend`](super::attend): one task per (tile of query rows, key head).

use super::{Attend, Block, Segment};
use crate::ops::host::{Matrix, SharedMut, Stored, contiguous, gemm};
use crate::ops::simd::{self, elementwise, exp};
use candle_core::{CpuStorage, Layout, Storage, bail};
use rayon::prelude::*;

/// Query rows of a tile: bounds the score buffer and, in causal blocks, skips keys no row of the tile sees.
const TILE: usize = 128;
/// Up to this many lines (query row, query head) the products are memory-bound, and plain loops beat a packed GEMM.
const FEW_LINES: usize = 4;

/// `[rows, heads, D]` values with any row pitch.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, T> {
    values: &'a [T],
    pitch: usize,
    rows: usize,
    heads: usize,
    dim: usize,
}

impl<'a, T: Stored> Heads<'a, T> {
    pub(super) fn new(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<Self> {
        let Some(values) = T::slice(storage) else { bail!("attend: operands differ in dtype") };
        let (&[rows, heads, dim], &[pitch, _, _]) = (layout.dims(), layout.stride()) else {
            bail!("attend: operand is not [rows, heads, D]")
        };
        Ok(Self { values: &values[layout.start_offset()..], pitch, rows, heads, dim })
    }

    #[inline]
    fn get(&self, row: usize, head: usize) -> &'a [T] {
        let at = row * self.pitch + head * self.dim;
        &self.values[at..at + self.dim]
    }
}

#[derive(Clone, Copy)]
pub(super) struct Operands<'a, T> {
    pub(super) q: Heads<'a, T>,
    pub(super) k: Heads<'a, T>,
    pub(super) v: Heads<'a, T>,
}

/// Rows `start..end` of one block, counted within the block.
pub(super) struct Tile<'p> {
    pub(super) block: &'p Block,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Tile<'_> {
    pub(super) fn rows(&self) -> usize {
        self.end - self.start
    }

    /// Keys that row `t` of the tile sees.
    fn visible(&self, t: usize) -> usize {
        let total: usize = self.block.keys.iter().map(|s| s.len).sum();
        if !self.block.causal {
            return total;
        }
        (total + self.start + t + 1).saturating_sub(self.block.rows.len())
    }

    /// Keys that its last row sees: no row sees more.
    pub(super) fn keys(&self) -> usize {
        self.visible(self.rows() - 1)
    }
}

/// What a task reuses for the next one.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) q: Vec<f32>,
    /// A segment of keys or values as f32.
    kv: Vec<f32>,
    pub(super) scores: Vec<f32>,
    out: Vec<f32>,
}

pub(super) fn attend<T: Stored>(
    operands: &Operands<T>,
    op: &Attend,
) -> candle_core::Result<Vec<T>> {
    let (q, k) = (&operands.q, &operands.k);
    let mut out = vec![T::default(); q.rows * q.heads * q.dim];
    let table = match &op.bias {
        Some(bias) => Some((bias_values(&bias.table)?, bias.max)),
        None => None,
    };
    let tiles: Vec<Tile> = op.plan.blocks.iter().flat_map(tiles_of).collect();
    let kv_heads = k.heads;
    let shared = SharedMut::new(&mut out);
    let work = Work { operands, scale: op.scale, table: table.as_ref(), group: q.heads / kv_heads };
    (0..tiles.len() * kv_heads).into_par_iter().for_each_init(Scratch::default, |scratch, i| {
        let (tile, head) = (&tiles[i / kv_heads], i % kv_heads);
        work.tile(tile, head, scratch, |row, q_head, values| {
            // SAFETY: blocks share no rows, tiles no rows of a block, tasks of a tile no query heads.
            T::store(values, unsafe { shared.range((row * q.heads + q_head) * q.dim, q.dim) });
        });
    });
    Ok(out)
}

pub(super) fn tiles_of(block: &Block) -> impl Iterator<Item = Tile<'_>> {
    let n = block.rows.len();
    let visible = block.keys.iter().any(|s| s.len > 0);
    (0..if visible { n } else { 0 }).step_by(TILE).map(move |start| Tile {
        block,
        start,
        end: (start + TILE).min(n),
    })
}

pub(super) fn bias_values(table: &candle_core::Tensor) -> candle_core::Result<Vec<f32>> {
    let (storage, layout) = table.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("attend: the bias table is not on the CPU, where q is")
    };
    Ok(contiguous::<f32>(storage, layout, "attend")?.to_vec())
}

pub(super) struct Work<'a, T> {
    pub(super) operands: &'a Operands<'a, T>,
    pub(super) scale: f32,
    /// The bias table and its `max`.
    pub(super) table: Option<&'a (Vec<f32>, usize)>,
    /// Query heads of a key head.
    pub(super) group: usize,
}

impl<T: Stored> Work<'_, T> {
    /// All query heads of one key head for one tile; `write(row, query head, values)` takes the results.
    fn tile(
        &self,
        tile: &Tile,
        head: usize,
        scratch: &mut Scratch,
        write: impl Fn(usize, usize, &[f32]),
    ) {
        let dim = self.operands.q.dim;
        let keys = tile.keys();
        let lines = self.group * tile.rows();
        if keys == 0 {
            return;
        }
        scratch.out.clear();
        scratch.out.resize(lines * dim, 0.0);
        let few = lines <= FEW_LINES;
        self.probabilities(tile, head, few, scratch);
        self.for_segments(tile, keys, |segment, at| match few {
            true => self.values_by_sums(segment, at, head, keys, scratch),
            false => self.values_by_gemm(segment, at, head, keys, scratch),
        });
        for (line, values) in scratch.out.chunks(dim).enumerate() {
            let (g, t) = (line / tile.rows(), line % tile.rows());
            write(tile.block.rows.start + tile.start + t, head * self.group + g, values);
        }
    }

    /// Leaves the softmax of a tile's scores in `scratch.scores`, one line a (query head g, row t), number
    /// g * rows + t, of [`Tile::keys`] values; unless `few`, the queries in `scratch.q`.
    pub(super) fn probabilities(&self, tile: &Tile, head: usize, few: bool, scratch: &mut Scratch) {
        let keys = tile.keys();
        let lines = self.group * tile.rows();
        scratch.scores.resize(lines * keys, 0.0);
        if !few {
            scratch.q.resize(lines * self.operands.q.dim, 0.0);
            self.load_queries(tile, head, &mut scratch.q);
        }
        self.for_segments(tile, keys, |segment, at| match few {
            true => self.scores_by_dots(tile, segment, at, head, &mut scratch.scores),
            false => self.scores_by_gemm(segment, at, head, keys, scratch),
        });
        for (line, scores) in scratch.scores.chunks_mut(keys).enumerate() {
            let (g, t) = (line / tile.rows(), line % tile.rows());
            if let Some((table, max)) = self.table {
                let first = (head * self.group + g) * (2 * max - 1) + max - 1 - (tile.start + t);
                simd::add_scaled(scores, &table[first..first + keys], 1.0);
            }
            softmax(scores, tile.visible(t));
        }
    }

    /// The queries of a tile and key head, as lines.
    pub(super) fn load_queries(&self, tile: &Tile, head: usize, q: &mut [f32]) {
        let dim = self.operands.q.dim;
        for (line, q) in q.chunks_mut(dim).enumerate() {
            let (g, t) = (line / tile.rows(), line % tile.rows());
            let row = tile.block.rows.start + tile.start + t;
            simd::widen(self.operands.q.get(row, head * self.group + g), q);
        }
    }

    /// Calls `f(segment, keys before it)` on the first `keys` keys of the block.
    pub(super) fn for_segments(&self, tile: &Tile, keys: usize, mut f: impl FnMut(Segment, usize)) {
        let mut at = 0;
        for segment in &tile.block.keys {
            let len = segment.len.min(keys - at);
            if len > 0 {
                f(Segment { start: segment.start, len }, at);
            }
            at += len;
        }
    }

    /// By dot products, on the values as they are stored.
    fn scores_by_dots(&self, tile: &Tile, s: Segment, at: usize, head: usize, scores: &mut [f32]) {
        let keys = scores.len() / (self.group * tile.rows());
        for (line, scores) in scores.chunks_mut(keys).enumerate() {
            let (g, t) = (line / tile.rows(), line % tile.rows());
            let row = tile.block.rows.start + tile.start + t;
            let q = self.operands.q.get(row, head * self.group + g);
            for (j, score) in scores[at..at + s.len].iter_mut().enumerate() {
                *score = self.scale * simd::dot(q, self.operands.k.get(s.start + j, head));
            }
        }
    }

    /// By weighted sums, on the values as they are stored.
    fn values_by_sums(&self, s: Segment, at: usize, head: usize, keys: usize, w: &mut Scratch) {
        let dim = self.operands.q.dim;
        for (out, scores) in w.out.chunks_mut(dim).zip(w.scores.chunks(keys)) {
            for (j, &weight) in scores[at..at + s.len].iter().enumerate() {
                simd::add_scaled(out, self.operands.v.get(s.start + j, head), weight);
            }
        }
    }

    fn scores_by_gemm(&self, s: Segment, at: usize, head: usize, keys: usize, w: &mut Scratch) {
        let dim = self.operands.q.dim;
        let (k, pitch) = segment_as_f32(&self.operands.k, s, head, &mut w.kv);
        let q = Matrix { values: &w.q, strides: (dim, 1) };
        let lines = w.q.len() / dim;
        // k is read transposed: its rows are the columns of the product.
        gemm(
            (lines, s.len, dim),
            (&mut w.scores[at..], keys),
            q,
            Matrix { values: k, strides: (1, pitch) },
            self.scale,
            false,
        );
    }

    fn values_by_gemm(&self, s: Segment, at: usize, head: usize, keys: usize, w: &mut Scratch) {
        let dim = self.operands.q.dim;
        let (v, pitch) = segment_as_f32(&self.operands.v, s, head, &mut w.kv);
        let weights = Matrix { values: &w.scores[at..], strides: (keys, 1) };
        let v = Matrix { values: v, strides: (pitch, 1) };
        let lines = w.out.len() / dim;
        gemm((lines, dim, s.len), (&mut w.out, dim), weights, v, 1.0, true);
    }
}

/// The segment's rows of one head as f32 and their pitch: in place where they are f32, else converted into `buffer`.
pub(super) fn segment_as_f32<'a, T: Stored>(
    x: &Heads<'a, T>,
    s: Segment,
    head: usize,
    buffer: &'a mut Vec<f32>,
) -> (&'a [f32], usize) {
    let start = s.start * x.pitch + head * x.dim;
    if let Some(values) = T::as_f32(x.values) {
        return (&values[start..start + (s.len - 1) * x.pitch + x.dim], x.pitch);
    }
    buffer.resize(s.len * x.dim, 0.0);
    for (j, dst) in buffer.chunks_mut(x.dim).enumerate() {
        simd::widen(x.get(s.start + j, head), dst);
    }
    (buffer, x.dim)
}

/// Softmax of the first `visible` scores; the others become 0.
fn softmax(scores: &mut [f32], visible: usize) {
    let (seen, unseen) = scores.split_at_mut(visible);
    unseen.fill(0.0);
    if !seen.is_empty() {
        let max = simd::peak(seen);
        exp_minus(seen, max);
        simd::scale(seen, 1.0 / simd::moment(seen, 0.0, false));
    }
}

elementwise! {
    /// Turns scores into e^(score - max).
    fn exp_minus(scores: &mut [f32], max: f32) {
        for score in scores {
            *score = exp(*score - max);
        }
    }
}
