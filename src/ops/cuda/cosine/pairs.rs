//! All pairs of two sides, or of one: the tile kernels and top-k.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, SyncOnDrop};

use super::super::args::{
    self, CosinePrepareArgs, CosineSide, CosineTileArgs, FoundPair, TopKArgs,
};
use super::super::module::File;
use super::super::{Queue, Rows, check_len, geometry};
use super::{Bands, check_sides, tile_bound};
use crate::{Error, Result};

/// One side of an all-pairs call: rows, and what the tensor cores read of them.
#[derive(Debug)]
pub struct Side<'a> {
    pub(super) rows: &'a Rows<'a>,
    high: CudaSlice<u16>,
    low: Option<CudaSlice<u16>>,
    scale: CudaSlice<f32>,
    nan: CudaSlice<u32>,
    /// Rows with a value that is not finite: one number.
    pub not_finite: CudaSlice<u64>,
}

impl<'a> Side<'a> {
    /// Prepares rows: padded copies in f16 or bf16, norms. One launch. Takes 2 bytes a value, 4 for f32.
    ///
    /// # Errors
    /// On no columns or 2^32 rows, buffers of another GPU, and statuses of the driver.
    pub fn new(stream: &Arc<CudaStream>, rows: &'a Rows<'a>) -> Result<Self> {
        let op = "cuda::cosine::Side";
        let queue = Queue { op, stream };
        check_sides(op, rows, rows)?;
        let padded = geometry::padded_rows(rows.count as u64) as usize;
        let padded_d = geometry::padded_width(rows.width as u64) as usize;
        let cells = padded.checked_mul(padded_d).ok_or_else(|| {
            Error::argument(op, "rows x D", format!("{padded} x {padded_d}"), "an address's worth")
        })?;
        let f32_rows = rows.values.code() == args::DTYPE_F32;
        let mut side = Self {
            rows,
            high: queue.alloc(cells)?,
            low: if f32_rows { Some(queue.alloc(cells)?) } else { None },
            scale: queue.alloc(padded)?,
            nan: queue.alloc(padded)?,
            not_finite: queue.zeros(1)?,
        };
        {
            let (address, _rows) = rows.read(&queue, "rows")?;
            let (high, _high) = queue.write("workspace", &mut side.high)?;
            let (low, _low) = match &mut side.low {
                Some(low) => {
                    let (address, guard) = queue.write("workspace", low)?;
                    (address, Some(guard))
                }
                None => (0, None),
            };
            let (scale, _scale) = queue.write("workspace", &mut side.scale)?;
            let (nan, _nan) = queue.write("workspace", &mut side.nan)?;
            let (tally, _tally) = queue.write("workspace", &mut side.not_finite)?;
            let args = CosinePrepareArgs {
                rows: address,
                high,
                low,
                scale,
                nan,
                tally,
                count: rows.count as u64,
                padded: padded as u64,
                d: rows.width as i64,
                padded_d: padded_d as i64,
                stride: rows.stride as i64,
            };
            let kernel = rows.values.pick([
                "cosine_prepare_f32",
                "cosine_prepare_f16",
                "cosine_prepare_bf16",
            ]);
            let blocks = geometry::cosine_rows(padded as u64, queue.multiprocessors()?);
            // SAFETY: the rows exist; planes hold padded * padded_d values, scale and nan one a padded row. All are guarded.
            unsafe { queue.launch(File::Cosine, kernel, blocks, args::COSINE_ROW_THREADS, &args)? };
        }
        Ok(side)
    }

    /// The side from row `first` on, a multiple of a tile, `count` rows of it, as the kernels take it.
    fn read<'b>(
        &'b self,
        queue: &'b Queue<'_>,
        first: u64,
        count: u64,
    ) -> Result<(CosineSide, Vec<SyncOnDrop<'b>>)> {
        let (high, a) = queue.read("workspace", &self.high)?;
        let (scale, b) = queue.read("workspace", &self.scale)?;
        let (nan, c) = queue.read("workspace", &self.nan)?;
        let (rows, d) = self.rows.read(queue, "rows")?;
        let mut guards = vec![a, b, c, d];
        debug_assert!(first.is_multiple_of(args::TILE), "row {first} begins no tile");
        let plane = first * geometry::padded_width(self.rows.width as u64) * 2;
        let low = match &self.low {
            Some(low) => {
                let (address, guard) = queue.read("workspace", low)?;
                guards.push(guard);
                address + plane
            }
            None => 0,
        };
        let side = CosineSide {
            high: high + plane,
            low,
            scale: scale + first * 4,
            nan: nan + first * 4,
            rows: rows + first * (self.rows.stride * self.rows.values.bytes()) as u64,
            count,
            stride: self.rows.stride as i64,
        };
        Ok((side, guards))
    }

    fn count(&self) -> u64 {
        self.rows.count as u64
    }
}

/// What all tile kernels share. `b` = `None`: the pairs i < j of `a`.
fn tile_args(a: CosineSide, b: CosineSide, like: &Rows<'_>, symmetric: bool) -> CosineTileArgs {
    CosineTileArgs {
        a,
        b,
        d: like.width as i64,
        padded_d: geometry::padded_width(like.width as u64) as i64,
        tiles_a: geometry::tiles(a.count),
        tiles_b: geometry::tiles(b.count),
        lowest: f32::INFINITY,
        products: geometry::products(like.values.code() == args::DTYPE_F32),
        symmetric: u32::from(symmetric),
        strict: 1,
        dtype: like.values.code(),
        ..Default::default()
    }
}

/// The tile kernel for a side's planes: f16 serves f32 and f16, bf16 serves bf16.
fn tile_kernel(like: &Rows<'_>, [f16, bf16]: [&'static str; 2]) -> &'static str {
    like.values.pick([f16, f16, bf16])
}

/// A tile kernel's names: everywhere, and what sm_90a has besides; for planes of f16 and of bf16.
type TileKernel = [[&'static str; 2]; 2];

const COUNT: TileKernel = [
    ["cosine_count_f16", "cosine_count_bf16"],
    ["cosine_count_wgmma_f16", "cosine_count_wgmma_bf16"],
];
const PAIRS: TileKernel = [
    ["cosine_pairs_f16", "cosine_pairs_bf16"],
    ["cosine_pairs_wgmma_f16", "cosine_pairs_wgmma_bf16"],
];

/// Enqueues the kernel for sm_90a where that is what runs, else its twin: the same results.
///
/// # Safety
/// As [`Queue::launch`].
unsafe fn launch_tiles(
    queue: &Queue<'_>,
    [plain, wide]: TileKernel,
    like: &Rows<'_>,
    args: &CosineTileArgs,
) -> Result<()> {
    let tiles = args.tiles_a * args.tiles_b;
    let wide = tile_kernel(like, wide);
    // Tiles are numbered with 31 bits; the twin's launch refuses more.
    if tiles <= i32::MAX as u64 && queue.has(File::Cosine, wide)? {
        let blocks = geometry::wide_blocks(args.tiles_a, args.tiles_b, queue.multiprocessors()?);
        let block = (args::WGMMA_THREADS, args::WGMMA_SHARED);
        // SAFETY: the caller vouches for it.
        return unsafe { queue.launch_with_shared(File::Cosine, wide, blocks, block, args) };
    }
    let kernel = tile_kernel(like, plain);
    // SAFETY: the caller vouches for it.
    unsafe { queue.launch(File::Cosine, kernel, tiles, args::COSINE_TILE_THREADS, args) }
}

/// All cosines of `a` with `b` into `scores` `[N, M]`, row-major. One launch.
///
/// # Errors
/// On sizes and types that do not fit, more than 2^31 tiles of 128 x 128, buffers of another GPU, and statuses of the driver.
pub fn matrix(
    stream: &Arc<CudaStream>,
    a: &Side<'_>,
    b: &Side<'_>,
    scores: &mut impl DevicePtrMut<f32>,
) -> Result<()> {
    let op = "cuda::cosine::matrix";
    check_sides(op, a.rows, b.rows)?;
    matrix_rows(&Queue { op, stream }, a, 0, a.count(), b, scores)
}

fn matrix_rows(
    queue: &Queue<'_>,
    a: &Side<'_>,
    first: u64,
    count: u64,
    b: &Side<'_>,
    scores: &mut impl DevicePtrMut<f32>,
) -> Result<()> {
    let cells = (count as usize).checked_mul(b.rows.count).ok_or_else(|| {
        Error::argument(
            queue.op,
            "N x M",
            format!("{count} x {}", b.rows.count),
            "an address's worth",
        )
    })?;
    check_len(queue.op, "scores", scores, cells)?;
    let (left, _a) = a.read(queue, first, count)?;
    let (right, _b) = b.read(queue, 0, b.count())?;
    let (to, _scores) = queue.write("scores", scores)?;
    let args = CosineTileArgs { scores: to, ..tile_args(left, right, a.rows, false) };
    let kernel = tile_kernel(a.rows, ["cosine_matrix_f16", "cosine_matrix_bf16"]);
    // SAFETY: both sides are prepared and whole from `first` on; `scores` holds count * M. All are guarded here.
    unsafe {
        queue.launch(
            File::Cosine,
            kernel,
            args.tiles_a * args.tiles_b,
            args::COSINE_TILE_THREADS,
            &args,
        )
    }
}

/// What [`count`] writes.
#[derive(Debug)]
pub struct CountOutput {
    /// `[T]`: pairs above each threshold.
    pub counts: CudaSlice<u64>,
    /// Decisions taken in f64: one number.
    pub rechecked: CudaSlice<u64>,
}

impl CountOutput {
    /// Room for T thresholds.
    ///
    /// # Errors
    /// Statuses of the driver.
    pub fn new(stream: &Arc<CudaStream>, thresholds: usize) -> Result<Self> {
        let queue = Queue { op: "cuda::cosine::CountOutput", stream };
        Ok(Self { counts: queue.alloc(thresholds)?, rechecked: queue.alloc(1)? })
    }
}

/// For each threshold, the number of pairs above it: strictly, or at it too. `b` = `None`: the pairs i < j of `a`. Pairs with NaN
/// are not counted. One launch for every 64 thresholds; the N x M scores are never written.
///
/// # Errors
/// As [`matrix`], and on bands made for other rows.
pub fn count(
    stream: &Arc<CudaStream>,
    a: &Side<'_>,
    b: Option<&Side<'_>>,
    bands: &Bands,
    strict: bool,
    out: &mut CountOutput,
) -> Result<()> {
    let op = "cuda::cosine::count";
    let queue = Queue { op, stream };
    let right = b.unwrap_or(a);
    check_sides(op, a.rows, right.rows)?;
    check_bands(op, bands, a.rows)?;
    check_len(op, "counts", &out.counts, bands.thresholds.len())?;
    check_len(op, "rechecked", &out.rechecked, 1)?;
    queue.clear(&mut out.counts)?;
    queue.clear(&mut out.rechecked)?;
    let (side_a, _a) = a.read(&queue, 0, a.count())?;
    let (side_b, _b) = right.read(&queue, 0, right.count())?;
    let (counts, _counts) = queue.write("counts", &mut out.counts)?;
    let (rechecked, _rechecked) = queue.write("rechecked", &mut out.rechecked)?;
    let (thresholds, _thresholds) = queue.read("thresholds", &bands.thresholds.device)?;
    let (low, _low) = queue.read("thresholds", &bands.low)?;
    let (high, _high) = queue.read("thresholds", &bands.high)?;
    for (at, lows) in bands.lows.chunks(args::COSINE_THRESHOLDS).enumerate() {
        let first = (at * args::COSINE_THRESHOLDS) as u64;
        let args = CosineTileArgs {
            thresholds: thresholds + 8 * first,
            low: low + 4 * first,
            high: high + 4 * first,
            counts: counts + 8 * first,
            rechecked,
            lowest: lows.iter().copied().fold(f32::INFINITY, f32::min),
            threshold_count: lows.len() as u32,
            strict: u32::from(strict),
            ..tile_args(side_a, side_b, a.rows, b.is_none())
        };
        // SAFETY: both sides are prepared and whole; thresholds, bands and counts hold this chunk. All are guarded here.
        unsafe { launch_tiles(&queue, COUNT, a.rows, &args)? };
    }
    Ok(())
}

fn check_bands(op: &'static str, bands: &Bands, rows: &Rows<'_>) -> Result<()> {
    if (bands.d, bands.code) == (rows.width, rows.values.code()) {
        return Ok(());
    }
    let got = format!("for D = {}", bands.d);
    Err(Error::argument(
        op,
        "bands",
        got,
        format!("for {} rows of D = {}", rows.values.name(), rows.width),
    ))
}

/// What [`pairs`] writes.
#[derive(Debug)]
pub struct PairOutput {
    /// The first pairs found, in any order, as many as there is room for.
    pub found: CudaSlice<FoundPair>,
    /// How many were found, which may be more: one number.
    pub count: CudaSlice<u64>,
    /// Pairs decided in f64: one number.
    pub rechecked: CudaSlice<u64>,
    capacity: usize,
}

impl PairOutput {
    /// Room for `capacity` pairs.
    ///
    /// # Errors
    /// Statuses of the driver.
    pub fn new(stream: &Arc<CudaStream>, capacity: usize) -> Result<Self> {
        let queue = Queue { op: "cuda::cosine::PairOutput", stream };
        Ok(Self {
            found: queue.alloc(capacity)?,
            count: queue.alloc(1)?,
            rechecked: queue.alloc(1)?,
            capacity,
        })
    }
}

/// The pairs strictly above a threshold. `b` = `None`: the pairs i < j of `a`. One launch.
///
/// # Errors
/// As [`count`], and on more or less than one threshold.
pub fn pairs(
    stream: &Arc<CudaStream>,
    a: &Side<'_>,
    b: Option<&Side<'_>>,
    band: &Bands,
    out: &mut PairOutput,
) -> Result<()> {
    let op = "cuda::cosine::pairs";
    let queue = Queue { op, stream };
    let right = b.unwrap_or(a);
    check_sides(op, a.rows, right.rows)?;
    check_bands(op, band, a.rows)?;
    if band.thresholds.len() != 1 {
        return Err(Error::argument(op, "thresholds", band.thresholds.len(), "1"));
    }
    queue.clear(&mut out.count)?;
    queue.clear(&mut out.rechecked)?;
    let capacity = out.capacity.min(out.found.len());
    let (side_a, _a) = a.read(&queue, 0, a.count())?;
    let (side_b, _b) = right.read(&queue, 0, right.count())?;
    let (found, _found) = queue.write("found", &mut out.found)?;
    let (counts, _counts) = queue.write("count", &mut out.count)?;
    let (rechecked, _rechecked) = queue.write("rechecked", &mut out.rechecked)?;
    let (thresholds, _thresholds) = queue.read("thresholds", &band.thresholds.device)?;
    let (low, _low) = queue.read("thresholds", &band.low)?;
    let (high, _high) = queue.read("thresholds", &band.high)?;
    let args = CosineTileArgs {
        thresholds,
        low,
        high,
        counts,
        rechecked,
        found,
        capacity: capacity as u64,
        lowest: band.lows[0],
        threshold_count: 1,
        ..tile_args(side_a, side_b, a.rows, b.is_none())
    };
    // SAFETY: both sides are prepared and whole; no more than `capacity` pairs are written. All are guarded here.
    unsafe { launch_tiles(&queue, PAIRS, a.rows, &args) }
}

/// For each row of `a` the `k` rows of `b` of the largest cosine, ties by index, NaN last: scores and indices `[N, k]`, row-major.
/// `rechecked` counts cosines computed in f64. Two launches for every so many rows that the workspace (16 bytes a pair) stays
/// near 256 MiB.
///
/// # Errors
/// As [`matrix`], and if k is above the rows of `b`.
pub fn top_k(
    stream: &Arc<CudaStream>,
    a: &Side<'_>,
    b: &Side<'_>,
    k: usize,
    scores: &mut impl DevicePtrMut<f32>,
    indices: &mut impl DevicePtrMut<u32>,
    rechecked: &mut impl DevicePtrMut<u64>,
) -> Result<()> {
    let op = "cuda::cosine::top_k";
    let queue = Queue { op, stream };
    check_sides(op, a.rows, b.rows)?;
    if k > b.rows.count {
        return Err(Error::argument(
            op,
            "k",
            k,
            format!("at most {}, the rows of b", b.rows.count),
        ));
    }
    let cells = a.rows.count.checked_mul(k).ok_or_else(|| {
        Error::argument(op, "N x k", format!("{} x {k}", a.rows.count), "an address's worth")
    })?;
    check_len(op, "scores", scores, cells)?;
    check_len(op, "indices", indices, cells)?;
    check_len(op, "rechecked", rechecked, 1)?;
    queue.clear(rechecked)?;
    if cells == 0 {
        return Ok(());
    }
    let columns = b.count();
    let chunk = geometry::top_k_rows(columns).min(a.count());
    let pairs = (chunk * columns) as usize;
    let mut all = queue.alloc::<f32>(pairs)?;
    let mut candidate = queue.alloc::<u32>(pairs)?;
    let mut exact = queue.alloc::<f64>(pairs)?;
    let kernel = a.rows.values.pick(["cosine_top_k_f32", "cosine_top_k_f16", "cosine_top_k_bf16"]);
    let mut first = 0;
    while first < a.count() {
        let count = chunk.min(a.count() - first);
        matrix_rows(&queue, a, first, count, b, &mut all)?;
        let (x, _x) = a.rows.read(&queue, "rows of a")?;
        let (y, _y) = b.rows.read(&queue, "rows of b")?;
        let (from, _from) = queue.read("workspace", &all)?;
        let (candidate, _candidate) = queue.write("workspace", &mut candidate)?;
        let (exact, _exact) = queue.write("workspace", &mut exact)?;
        let (best, _best) = queue.write("scores", scores)?;
        let (index, _index) = queue.write("indices", indices)?;
        let (tally, _tally) = queue.write("rechecked", rechecked)?;
        let args = TopKArgs {
            scores: from,
            a: x,
            b: y,
            candidate,
            exact,
            best: best + first * k as u64 * 4,
            index: index + first * k as u64 * 4,
            rechecked: tally,
            first_row: first,
            columns,
            k: k as u64,
            d: a.rows.width as i64,
            a_stride: a.rows.stride as i64,
            b_stride: b.rows.stride as i64,
            margin: 2.0 * tile_bound(a.rows),
        };
        // SAFETY: the scores of `count` rows are in `all`, workspaces are as large, outputs hold k a row from `first` on.
        unsafe { queue.launch(File::Cosine, kernel, count, args::TOP_K_THREADS, &args)? };
        first += count;
    }
    Ok(())
}
