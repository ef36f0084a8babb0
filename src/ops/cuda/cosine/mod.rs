//! Cosine similarity on a GPU. Contract: [`crate::ops::cosine`]; calls: [`super`].
//!
//! Decisions are those of float64, as on the CPU: a fast score decides only where it is further from the threshold than its
//! bound (`row_bound` and `tile_bound` in `geometry.rs`: 3.5e-6 and 1.9e-4 at D = 768), the rest is computed in f64 from the original
//! values, and counted. f32 rows go through the tensor cores as two f16 planes and three products.

mod pairs;
#[cfg(feature = "cuda")]
mod tensors;

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};

use super::args::{self, CosineRowsArgs};
use super::module::File;
use super::{Queue, Rows, Upload, check_len, geometry};
use crate::ops::cosine::{check_groups, check_thresholds};
use crate::{Error, Result};
pub use pairs::{CountOutput, PairOutput, Side, count, matrix, pairs, top_k};
#[cfg(feature = "cuda")]
pub(in crate::ops) use tensors::{
    count_on_tensors, matrix_on_tensors, pairs_on_tensors, rows_on_tensors, top_k_on_tensors,
};

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
    queue.fill(&mut out.first_below, 0xff)?;

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
