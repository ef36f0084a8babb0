//! Cosine similarity on a GPU. Contract: [`crate::ops::cosine`]; calls: [`super`].
//!
//! Decisions are those of float64, as on the CPU: a fast score decides only where it is further from the threshold than its
//! bound (`row_bound` and `tile_bound` in `geometry.rs`: 3.5e-6 and 1.9e-4 at D = 768), the rest is computed in f64 from the original
//! values, and counted. f32 rows go through the tensor cores as two f16 planes and three products.

use std::sync::Arc;

use candle_core::Tensor;
use candle_core::cuda_backend::CudaDevice;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, SyncOnDrop};

use super::args::{
    self, CosinePrepareArgs, CosineRowsArgs, CosineSide, CosineTileArgs, FoundPair, TopKArgs,
};
use super::module::File;
use super::{Queue, Rows, Upload, check_len, geometry, tensor, to_host, with_rows};
use crate::ops::cosine::{
    Counts, Pair, PairList, RowScores, TopK, check_groups, check_thresholds, pairs as pair_count,
};
use crate::{Error, Result};

/// Which candidates belong to which reference, on a device.
#[derive(Debug)]
pub struct Groups {
    offsets: CudaSlice<u32>,
    candidates: usize,
    references: usize,
}

impl Groups {
    /// Candidates `offsets[r]..offsets[r + 1]` belong to reference r. Uploads them.
    ///
    /// # Errors
    /// On offsets that do not go from 0 to `candidates` without a fall, and statuses of the driver.
    pub fn new(
        to: &impl Upload,
        offsets: &[u32],
        candidates: usize,
        references: usize,
    ) -> Result<Self> {
        let op = "cuda::cosine::Groups";
        check_groups(op, offsets, candidates, references)?;
        Ok(Self { offsets: to.upload(op, offsets)?, candidates, references })
    }
}

/// Thresholds on a device.
#[derive(Debug)]
pub struct Thresholds {
    values: Vec<f64>,
    device: CudaSlice<f64>,
}

impl Thresholds {
    /// Uploads thresholds.
    ///
    /// # Errors
    /// On one outside [-1, 1] or NaN, and statuses of the driver.
    pub fn new(to: &impl Upload, values: &[f64]) -> Result<Self> {
        let op = "cuda::cosine::Thresholds";
        check_thresholds(op, values)?;
        if u32::try_from(values.len()).is_err() {
            return Err(Error::argument(op, "thresholds", values.len(), "fewer than 2^32"));
        }
        Ok(Self { values: values.to_vec(), device: to.upload(op, values)? })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// Thresholds with the guard bands of tile kernels, for rows of one width and type.
#[derive(Debug)]
pub struct Bands {
    thresholds: Thresholds,
    low: CudaSlice<f32>,
    high: CudaSlice<f32>,
    lows: Vec<f32>,
    d: usize,
    code: u32,
}

impl Bands {
    /// Bands around `thresholds` for rows such as `like`.
    ///
    /// # Errors
    /// As [`Thresholds::new`].
    pub fn new(to: &impl Upload, thresholds: &[f64], like: &Rows<'_>) -> Result<Self> {
        let bound = tile_bound(like);
        let lows: Vec<f32> = thresholds.iter().map(|t| round_down(t - bound)).collect();
        let highs: Vec<f32> = thresholds.iter().map(|t| -round_down(-(t + bound))).collect();
        let op = "cuda::cosine::Bands";
        Ok(Self {
            thresholds: Thresholds::new(to, thresholds)?,
            low: to.upload(op, &lows)?,
            high: to.upload(op, &highs)?,
            lows,
            d: like.width,
            code: like.values.code(),
        })
    }
}

/// The largest f32 that is not above `x`.
fn round_down(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) > x { near.next_down() } else { near }
}

fn tile_bound(rows: &Rows<'_>) -> f64 {
    let f32_rows = rows.values.code() == args::DTYPE_F32;
    geometry::tile_bound(
        geometry::padded_width(rows.width as u64),
        f32_rows,
        geometry::products(f32_rows),
    )
}

fn check_sides(op: &'static str, a: &Rows<'_>, b: &Rows<'_>) -> Result<()> {
    if a.width != b.width || a.width == 0 {
        let got = format!("{} and {}", a.width, b.width);
        return Err(Error::argument(op, "D", got, "one D, at least 1"));
    }
    if u32::try_from(a.count.max(b.count)).is_err() {
        let got = format!("{} and {}", a.count, b.count);
        return Err(Error::argument(op, "rows", got, "fewer than 2^32"));
    }
    if a.values.code() != b.values.code() {
        let got = format!("{} and {}", a.values.name(), b.values.name());
        return Err(Error::argument(op, "dtypes", got, "the same on both sides"));
    }
    Ok(())
}

/// What [`rows`] writes.
#[derive(Debug)]
pub struct RowOutput {
    /// `[N]`: each candidate's cosine with its reference.
    pub scores: CudaSlice<f32>,
    /// `[R, T]`: the first candidate of the group, counted within it, below the threshold; `u32::MAX` = none.
    pub first_below: CudaSlice<u32>,
    /// How many scores are NaN, and how many were computed again in f64.
    pub tally: CudaSlice<u64>,
}

impl RowOutput {
    /// Room for N candidates, R references, T thresholds.
    ///
    /// # Errors
    /// Statuses of the driver.
    pub fn new(
        stream: &Arc<CudaStream>,
        candidates: usize,
        references: usize,
        thresholds: usize,
    ) -> Result<Self> {
        let op = "cuda::cosine::RowOutput";
        let queue = Queue { op, stream };
        let cells = references.checked_mul(thresholds).ok_or_else(|| {
            Error::argument(
                op,
                "references x thresholds",
                format!("{references} x {thresholds}"),
                "an address's worth",
            )
        })?;
        Ok(Self {
            scores: queue.alloc(candidates)?,
            first_below: queue.alloc(cells)?,
            tally: queue.alloc(2)?,
        })
    }
}

/// Scores candidates against references, and finds the first below each threshold. Without `groups`, candidate i belongs to
/// reference i. One launch.
///
/// # Errors
/// On sizes and types that do not fit, buffers of another GPU, and statuses of the driver.
pub fn rows(
    stream: &Arc<CudaStream>,
    candidates: &Rows<'_>,
    references: &Rows<'_>,
    groups: Option<&Groups>,
    thresholds: &Thresholds,
    out: &mut RowOutput,
) -> Result<()> {
    let op = "cuda::cosine::rows";
    let queue = Queue { op, stream };
    check_sides(op, candidates, references)?;
    let (n, r, t) = (candidates.count, references.count, thresholds.len());
    let belongs = groups.map_or(n == r, |groups| (groups.candidates, groups.references) == (n, r));
    if !belongs {
        let expected = groups.map_or("as many as references".into(), |g| {
            format!("{} of {}", g.candidates, g.references)
        });
        return Err(Error::argument(op, "candidates", format!("{n} of {r} references"), expected));
    }
    check_len(op, "scores", &out.scores, n)?;
    check_len(op, "first_below", &out.first_below, r * t)?;
    check_len(op, "tally", &out.tally, 2)?;
    queue.clear(&mut out.tally)?;
    queue.fill_ones(&mut out.first_below)?;

    let (x, _x) = candidates.read(&queue, "candidates")?;
    let (y, _y) = references.read(&queue, "references")?;
    let (limits, _limits) = queue.read("thresholds", &thresholds.device)?;
    let (scores, _scores) = queue.write("scores", &mut out.scores)?;
    let (first_below, _first) = queue.write("first_below", &mut out.first_below)?;
    let (tally, _tally) = queue.write("tally", &mut out.tally)?;
    let (offsets, _offsets) = match groups {
        Some(groups) => {
            let (address, guard) = queue.read("groups", &groups.offsets)?;
            (address, Some(guard))
        }
        None => (0, None),
    };
    let vector = geometry::vector(candidates.values.bytes());
    let args = CosineRowsArgs {
        candidates: x,
        references: y,
        groups: offsets,
        thresholds: limits,
        scores,
        first_below,
        tally,
        candidate_count: n as u64,
        reference_count: r as u64,
        d: candidates.width as i64,
        candidate_stride: candidates.stride as i64,
        reference_stride: references.stride as i64,
        bound: geometry::row_bound(candidates.width as u64, vector),
        threshold_count: t as u32,
        aligned: candidates.aligned(x) & references.aligned(y),
    };
    let kernel = candidates.values.pick(["cosine_rows_f32", "cosine_rows_f16", "cosine_rows_bf16"]);
    let blocks = geometry::cosine_rows(n as u64, queue.multiprocessors()?);
    // SAFETY: both sides hold their rows, offsets name existing candidates (checked by `Groups`), outputs are long
    // enough. All are guarded here.
    unsafe { queue.launch(File::Cosine, kernel, blocks, args::COSINE_ROW_THREADS, &args) }
}

/// One side of an all-pairs call: rows, and what the tensor cores read of them.
#[derive(Debug)]
pub struct Side<'a> {
    rows: &'a Rows<'a>,
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

    /// The side from row `first` on, `count` rows of it, as the kernels take it.
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
    let kernel = tile_kernel(a.rows, ["cosine_count_f16", "cosine_count_bf16"]);
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
        unsafe {
            queue.launch(
                File::Cosine,
                kernel,
                args.tiles_a * args.tiles_b,
                args::COSINE_TILE_THREADS,
                &args,
            )?
        };
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
    let kernel = tile_kernel(a.rows, ["cosine_pairs_f16", "cosine_pairs_bf16"]);
    // SAFETY: both sides are prepared and whole; no more than `capacity` pairs are written. All are guarded here.
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

// ---- candle: results on the host, hence each of these but the scores waits for the device ----

/// [`crate::ops::cosine::rows`] on CUDA tensors, after its checks.
pub(in crate::ops) fn rows_on_tensors(
    op: &'static str,
    candidates: &Tensor,
    references: &Tensor,
    groups: Option<&[u32]>,
    thresholds: &[f64],
) -> Result<RowScores> {
    with_rows(op, "candidates", candidates, |x, device| {
        with_rows(op, "references", references, |y, _| {
            let (n, r, t) = (x.count, y.count, thresholds.len());
            let groups = groups.map(|groups| Groups::new(device, groups, n, r)).transpose()?;
            let limits = Thresholds::new(device, thresholds)?;
            let stream = device.cuda_stream();
            let mut out = RowOutput::new(&stream, n, r, t)?;
            rows(&stream, x, y, groups.as_ref(), &limits, &mut out)?;
            let tally = to_host(op, device, &out.tally, 2)?;
            let first_below = to_host(op, device, &out.first_below, r * t)?;
            Ok(RowScores {
                scores: tensor(out.scores, device, n),
                first_below: first_below
                    .into_iter()
                    .map(|at| (at != u32::MAX).then_some(at))
                    .collect(),
                nan: tally[0],
                rechecked: tally[1],
            })
        })
    })
}

/// Runs `f` with both sides prepared.
fn with_sides<R>(
    op: &'static str,
    a: &Tensor,
    b: Option<&Tensor>,
    f: impl FnOnce(&CudaDevice, &Side<'_>, Option<&Side<'_>>) -> Result<R>,
) -> Result<R> {
    with_rows(op, "first tensor", a, |a, device| {
        let stream = device.cuda_stream();
        let side_a = Side::new(&stream, a)?;
        match b {
            None => f(device, &side_a, None),
            Some(b) => with_rows(op, "second tensor", b, |b, _| {
                f(device, &side_a, Some(&Side::new(&stream, b)?))
            }),
        }
    })
}

/// [`crate::ops::cosine::matrix`] on CUDA tensors, after its checks. Does not wait.
pub(in crate::ops) fn matrix_on_tensors(
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
) -> Result<Tensor> {
    with_sides(op, a, Some(b), |device, a, b| {
        let b = b.unwrap_or(a);
        let stream = device.cuda_stream();
        let (n, m) = (a.rows.count, b.rows.count);
        let mut scores = Queue { op, stream: &stream }.alloc::<f32>(n * m)?;
        matrix(&stream, a, b, &mut scores)?;
        Ok(tensor(scores, device, (n, m)))
    })
}

/// [`crate::ops::cosine::top_k`] on CUDA tensors, after its checks.
pub(in crate::ops) fn top_k_on_tensors(
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
    k: usize,
) -> Result<TopK> {
    with_sides(op, a, Some(b), |device, a, b| {
        let b = b.unwrap_or(a);
        let stream = device.cuda_stream();
        let queue = Queue { op, stream: &stream };
        let n = a.rows.count;
        let (mut scores, mut indices) = (queue.alloc::<f32>(n * k)?, queue.alloc::<u32>(n * k)?);
        let mut rechecked = queue.alloc::<u64>(1)?;
        top_k(&stream, a, b, k, &mut scores, &mut indices, &mut rechecked)?;
        Ok(TopK {
            rechecked: to_host(op, device, &rechecked, 1)?[0],
            scores: tensor(scores, device, (n, k)),
            indices: tensor(indices, device, (n, k)),
        })
    })
}

/// Pairs of one side or two, and those of them that have a NaN.
fn nan_pairs(
    op: &'static str,
    device: &CudaDevice,
    a: &Side<'_>,
    b: Option<&Side<'_>>,
) -> Result<(u64, u64)> {
    let nans =
        |side: &Side<'_>| Ok::<_, Error>(to_host(op, device, &side.not_finite, 1)?[0] as usize);
    let right = b.unwrap_or(a);
    let (n, m, symmetric) = (a.rows.count, right.rows.count, b.is_none());
    let all = pair_count(n, m, symmetric);
    Ok((all, all - pair_count(n - nans(a)?, m - nans(right)?, symmetric)))
}

/// The counts of [`crate::ops::cosine`] on CUDA tensors, after its checks: pairs above, strictly or not.
pub(in crate::ops) fn count_on_tensors(
    op: &'static str,
    a: &Tensor,
    b: Option<&Tensor>,
    thresholds: &[f64],
    strict: bool,
) -> Result<Counts> {
    with_sides(op, a, b, |device, a, b| {
        let stream = device.cuda_stream();
        let bands = Bands::new(device, thresholds, a.rows)?;
        let mut out = CountOutput::new(&stream, thresholds.len())?;
        count(&stream, a, b, &bands, strict, &mut out)?;
        let (pairs, nan) = nan_pairs(op, device, a, b)?;
        Ok(Counts {
            counts: to_host(op, device, &out.counts, thresholds.len())?,
            pairs,
            nan,
            rechecked: to_host(op, device, &out.rechecked, 1)?[0],
        })
    })
}

/// Room for pairs in a first attempt: 12 bytes each.
const FIRST_CAPACITY: usize = 1 << 20;

/// [`crate::ops::cosine::pairs_above`] on CUDA tensors, after its checks. Where more pairs are found than there was room for, the
/// launch is repeated with room for all.
pub(in crate::ops) fn pairs_on_tensors(
    op: &'static str,
    a: &Tensor,
    b: Option<&Tensor>,
    threshold: f64,
) -> Result<PairList> {
    with_sides(op, a, b, |device, a, b| {
        let stream = device.cuda_stream();
        let band = Bands::new(device, &[threshold], a.rows)?;
        let (all, nan) = nan_pairs(op, device, a, b)?;
        let mut capacity = FIRST_CAPACITY.min(all as usize);
        loop {
            let mut out = PairOutput::new(&stream, capacity)?;
            pairs(&stream, a, b, &band, &mut out)?;
            let found = to_host(op, device, &out.count, 1)?[0] as usize;
            if found > capacity {
                capacity = found;
                continue;
            }
            let rechecked = to_host(op, device, &out.rechecked, 1)?[0];
            let found = to_host(op, device, &out.found, found)?;
            let mut pairs: Vec<Pair> =
                found.into_iter().map(|FoundPair { i, j, score }| Pair { i, j, score }).collect();
            pairs.sort_unstable_by_key(|pair| (pair.i, pair.j));
            return Ok(PairList { pairs, nan, rechecked });
        }
    })
}
