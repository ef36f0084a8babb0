//! How many blocks and threads a kernel gets, how much workspace, and how its work is divided: every figure of a launch comes
//! from here. No result depends on these figures but where a comment says so.

use super::args::{
    ACT_FLIGHT, ACT_THREADS, ATTEND_FEW, ATTEND_FEW_THREADS, ATTEND_FLOAT_FEW, ATTEND_FLOAT_LINES,
    ATTEND_FLOAT_WIDE, ATTEND_LINES, ATTEND_THREADS, COSINE_ROW_THREADS, NORM_KEPT, NORM_THREADS,
    PACK_THREADS, POOL_GRAD_THREADS, POOL_PART, POOL_SHARED_ROW, POOL_THREADS, ROPE_THREADS, TILE,
    TILE_K, WGMMA_COLUMNS,
};

/// Elements of a 16-byte load.
pub(super) fn vector(element_bytes: usize) -> u64 {
    16 / element_bytes as u64
}

/// Blocks for work that a grid of any size gets through, `warps` at a time: enough to fill the GPU four times over.
fn resident(items: u64, threads: u32, multiprocessors: u32) -> u64 {
    let warps = u64::from(threads / 32);
    items.div_ceil(warps).min(u64::from(multiprocessors) * 32)
}

/// `pool_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pool {
    /// Threads along the columns. The order of the sum of squares depends on it: a function of D and the dtype alone.
    pub(super) columns: u32,
    pub(super) parts_per_block: u32,
    /// Blocks a sequence.
    pub(super) groups: u64,
    /// Rows of D values in the workspace for parts; 0 = none.
    pub(super) parts: u64,
    /// Rows of D values in the workspace for pooled vectors; 0 = none.
    pub(super) pooled: u64,
}

impl Pool {
    /// `tokens`: of the longest sequence, of those that count; `rows`: of the states; `vector`: elements of a load.
    pub(super) fn new(
        batch: u64,
        tokens: u64,
        rows: u64,
        dim: u64,
        vector: u64,
        multiprocessors: u32,
    ) -> Self {
        let columns = dim.div_ceil(vector).next_multiple_of(32).min(256) as u32;
        let parts = tokens.div_ceil(POOL_PART).max(1);
        // As many parts a block as fit, but no fewer blocks than multiprocessors if parts suffice.
        let spread = (batch * parts / u64::from(multiprocessors)).max(1);
        let parts_per_block = u64::from(POOL_THREADS / columns).min(parts).min(spread);
        let groups = parts.div_ceil(parts_per_block);
        Self {
            columns,
            parts_per_block: parts_per_block as u32,
            groups,
            parts: if groups > 1 { rows / POOL_PART + batch } else { 0 },
            pooled: if dim > POOL_SHARED_ROW { batch } else { 0 },
        }
    }

    pub(super) fn threads(&self) -> u32 {
        self.columns * self.parts_per_block
    }
}

/// `pool_grad_*`: blocks a sequence.
pub(super) fn pool_grad_chunks(max: bool, tokens: u64, dim: u64) -> u64 {
    if max { dim.div_ceil(u64::from(POOL_GRAD_THREADS)) } else { tokens.div_ceil(POOL_PART).max(1) }
}

/// `attend_*`: whether a block's lines (a query row and a query head of one key head) are few. Its keys are then divided over
/// warps or blocks, and those that it has in common with other blocks are read together. Results depend on it in their last bits.
pub(super) fn attend_few(rows: usize, group: usize) -> bool {
    rows == 1 || rows as u64 * group as u64 <= 2 * ATTEND_FEW
}

/// `attend_*`: blocks and threads for items (or shares, if `few`) and key heads.
pub(super) fn attend(
    f32_rows: bool,
    dim: usize,
    few: bool,
    items: usize,
    heads: usize,
) -> (u64, u32) {
    let (items, heads) = (items as u64, heads as u64);
    match (f32_rows, few) {
        (false, false) => (items * heads, ATTEND_THREADS),
        (false, true) => {
            (items.div_ceil(u64::from(ATTEND_FEW_THREADS / 32)) * heads, ATTEND_FEW_THREADS)
        }
        (true, _) => {
            let pieces = match few {
                true => ATTEND_FEW / ATTEND_FLOAT_FEW,
                false if dim > 128 => ATTEND_LINES / ATTEND_FLOAT_WIDE,
                false => ATTEND_LINES / ATTEND_FLOAT_LINES,
            };
            (items * heads * pieces, ATTEND_THREADS)
        }
    }
}

/// `cosine_rows_*` and `cosine_prepare_*`: blocks, a warp a row.
pub(super) fn cosine_rows(rows: u64, multiprocessors: u32) -> u64 {
    resident(rows, COSINE_ROW_THREADS, multiprocessors)
}

/// `pack_rows` and `write_rows`: blocks, a warp a row.
pub(super) fn pack(rows: u64, multiprocessors: u32) -> u64 {
    resident(rows, PACK_THREADS, multiprocessors)
}

/// More blocks than this go through their work in steps.
const MOST_BLOCKS: u64 = 1 << 30;

/// `act_*`: blocks for that many vectors.
pub(super) fn act(vectors: u64) -> u64 {
    vectors.div_ceil(u64::from(ACT_THREADS) * ACT_FLIGHT).min(MOST_BLOCKS)
}

/// `rope_*`: blocks for that many vectors.
pub(super) fn rope(vectors: u64) -> u64 {
    vectors.div_ceil(u64::from(ROPE_THREADS)).min(MOST_BLOCKS)
}

/// `norm_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Norm {
    /// A warp a row, not a block.
    pub(super) warp: bool,
    /// Threads of a block. The order of a row's sums depends on both: functions of H and the dtype alone.
    pub(super) threads: u32,
    pub(super) blocks: u64,
}

impl Norm {
    pub(super) fn new(rows: u64, width: u64, vector: u64) -> Self {
        if width <= 32 * NORM_KEPT {
            let blocks = rows.div_ceil(u64::from(NORM_THREADS / 32)).min(MOST_BLOCKS);
            return Self { warp: true, threads: NORM_THREADS, blocks };
        }
        // As few vectors a thread as the largest block allows, and no more threads than share those.
        let vectors = width.div_ceil(vector);
        let each = vectors.div_ceil(u64::from(NORM_THREADS));
        let threads = vectors.div_ceil(each).next_multiple_of(32) as u32;
        Self { warp: false, threads, blocks: rows.min(MOST_BLOCKS) }
    }
}

/// Rows of a side of tiles, padded.
pub(super) fn padded_rows(rows: u64) -> u64 {
    rows.next_multiple_of(TILE)
}

/// Width of an operand's rows, padded.
pub(super) fn padded_width(d: u64) -> u64 {
    d.next_multiple_of(TILE_K)
}

/// Tiles along a side.
pub(super) fn tiles(rows: u64) -> u64 {
    rows.div_ceil(TILE)
}

/// `cosine_*_wgmma_*`: blocks that stay until all tiles are done, one a multiprocessor.
pub(super) fn wide_blocks(tiles_a: u64, tiles_b: u64, multiprocessors: u32) -> u64 {
    (tiles_a * tiles_b.div_ceil(WGMMA_COLUMNS / TILE)).min(u64::from(multiprocessors))
}

/// Products of planes of f16 for f32 rows: high x high and both cross terms. One would do for other dtypes.
pub(super) fn products(f32_rows: bool) -> u32 {
    if f32_rows { 3 } else { 1 }
}

/// `cosine_top_k_*`: rows of `a` that are scored at a time, a multiple of a tile. A pair takes 16 bytes of workspace; about
/// 256 MiB in all, more where one tile's rows need more.
pub(super) fn top_k_rows(columns: u64) -> u64 {
    let fitting = (1u64 << 24) / columns.max(1);
    (fitting / TILE * TILE).max(TILE)
}

/// Unit roundoff of f32.
const U: f64 = 1.0 / 16_777_216.0;

/// Largest |fast - exact| of a score of `cosine_rows_*` on rows of `d` values, loaded `vector` at a time.
///
/// A lane adds at most ceil(d / 32 vector) vector terms, five shuffles join the lanes. From there as `row_bound` of
/// `ops::cosine`'s CPU path.
pub(super) fn row_bound(d: u64, vector: u64) -> f64 {
    let roundings = (d.div_ceil(32 * vector) * vector + 5) as f64;
    let g = roundings * U / (1.0 - roundings * U);
    2.0 * g / (1.0 - g) + d as f64 * 2f64.powi(-58) + 1e-14
}

/// Largest |tile - exact| of a score of the tile kernels.
///
/// Tensor cores may cut where they should round: 2^-22 for each of the padded additions, 1.01 for the cross terms' own, which
/// are scaled by 2^-11, and 16 for scaling. That holds for both instructions: one adds 16 products to a sum, each cut at 2^-23 of
/// the largest or finer, and rounds. One product of f32 rows rounded to f16 loses 2^-10, and 2^-25 a value
/// below f16's normal range; three lose what `low` loses of that.
pub(super) fn tile_bound(padded_d: u64, f32_rows: bool, products: u32) -> f64 {
    let d = padded_d as f64;
    let sums = (1.01 * d + 16.0) * 2f64.powi(-22);
    sums + match (f32_rows, products) {
        (false, _) => 0.0,
        (true, 1) => 1.001 * 2f64.powi(-10) + 2.0 * d.sqrt() * 2f64.powi(-25),
        (true, _) => d.sqrt() * 2f64.powi(-34),
    }
}

/// Whether 16-byte loads are allowed: the first row and every step are multiples of 16 bytes.
pub(super) fn aligned(address: u64, stride: u64, element_bytes: usize) -> bool {
    address.is_multiple_of(16) && (stride * element_bytes as u64).is_multiple_of(16)
}

/// The widest of 16, 4 and 2 bytes that divides everything.
pub(super) fn copy_unit(row_bytes: u64, addresses: impl Iterator<Item = u64>) -> u32 {
    let bits = addresses.fold(row_bytes, |bits, address| bits | address);
    if bits.is_multiple_of(16) {
        16
    } else if bits.is_multiple_of(4) {
        4
    } else {
        2
    }
}
