//! Cosine similarity in batches: row against row, all pairs, counts against thresholds, nearest rows.
//!
//! ```text
//! rows     candidates [N, D]  groups 0 2 5      all pairs   a [N, D]  x  b [M, D]   in tiles of 128 x 512,
//!            c0 c1 | c2 c3 c4                               or, with no b, the pairs i < j of a
//!          references [R, D]                                (half the work)
//!            r0    | r1
//!                                               b: columns ─►                with no b:
//!          scores [N]      s0 s1 s2 s3 s4       a  ┌────┬────┬────┐           ┌────┬────┬────┐
//!          first_below [R, T]                   │  │tile│    │    │           │ ◥  │    │    │
//!            threshold   0.9  0.5               ▼  ├────┼────┼────┤           └────┼────┼────┤
//!            r0            0    -   (of c0 c1)     │    │    │    │                │ ◥  │    │
//!            r1            2    0   (of c2..c4)    └────┴────┴────┘                └────┴────┘
//! ```
//!
//! # Values
//! cos(x, y) = x.y / (|x| |y|), clamped to [-1, 1]. A zero vector has cosine 0 with any finite vector. A vector with a NaN or
//! infinite value has cosine NaN with every vector; NaN is on neither side of a threshold, and is counted. In: f32,
//! f16, bf16, both sides the same; products and sums in f32; out: f32. Norms are computed on the way, inputs need no
//! normalisation and may have any magnitude.
//!
//! # Decisions are exact
//! Thresholds are f64. A fast score is compared with a threshold only if it is further from it than a proven bound on its error
//! (`row_bound`, `tile_bound` in `cpu.rs`: 3.6e-6 and 4.6e-5 at D = 768, whatever the values); else the cosine is computed
//! again in f64 from the original inputs, and counted as `rechecked`. f16 and bf16 inputs are not rounded on the way.
//! So a decision equals the f64 decision; that one is itself good to 1e-12 for D up to 30,000.
//! [`top_k`] is exact in the same sense: order and ties are those of the f64 cosines.
//!
//! Scores have the errors of the bounds above plus half a unit in the last place of f32, and only that where they were
//! rechecked. A score of [`rows`] depends on its pair and the thresholds alone; scores of [`matrix`] and [`pairs_above`] may differ in the last
//! bits with the shape of the call, decisions never.
//!
//! # Devices
//! CPU and, in a `cuda` build, CUDA: the same decisions; bounds and products of the device path are in `ops::cuda`'s
//! `cosine`. Scores, top-k and their indices stay on the device; counts, lists and `first_below` are numbers on the host, so
//! calls that return those wait for the device. [`rows_f64`] computes on the CPU.
//!
//! # Cost
//! [`rows`]: floor (N + R) D s bytes read, 4 N written; one pass. All pairs: 2 N M D FLOP, half of that for one side. Of
//! the N x M scores only tiles ever exist, and of the inputs only tiles and a panel of 8 MB are copied; [`matrix`] alone writes all scores, from
//! f32 copies of both sides.
//!
//! # Example
//! ```
//! use bdhs::ops::cosine::{count_above, rows};
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> bdhs::Result<()> {
//! let a = Tensor::new(&[[1f32, 0.0], [1.0, 1.0]], &Device::Cpu)?;
//! let b = Tensor::new(&[[2f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
//! // Row against row, with the first row below each threshold.
//! let scored = rows(&a, &b, None, &[0.9])?;
//! assert_eq!(scored.first_below, [None, Some(0)]);
//! // All pairs, without a matrix of scores: 1, 0, .707 and .707.
//! assert_eq!(count_above(&a, Some(&b), &[0.5, 0.9])?.counts, [3, 1]);
//! # Ok(())
//! # }
//! ```
//!
//! Source: bounds after N. Higham, "Accuracy and Stability of Numerical Algorithms", chapter 3.

mod cpu;

use candle_core::{DType, Device, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::host::{Floats, check_device, check_offsets, with_floats};
use super::simd::{self, Element};
use crate::{Error, Result};
use cpu::{Band, Best, Side};

/// What [`rows`] returns.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RowScores {
    /// `[N]` f32: each candidate's cosine with its reference.
    pub scores: Tensor,
    /// `[R, T]`, row-major: the first candidate of the group, counted within it, whose cosine is below the threshold.
    pub first_below: Vec<Option<u32>>,
    /// Candidates whose cosine is NaN.
    pub nan: u64,
    /// Candidates computed again in f64.
    pub rechecked: u64,
}

/// What [`count_below`] and [`count_above`] return.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// For each threshold, how many pairs are on its side.
    pub counts: Vec<u64>,
    /// All pairs, NaN included.
    pub pairs: u64,
    /// Pairs whose cosine is NaN: in no count.
    pub nan: u64,
    /// Decisions (a pair against a threshold) taken in f64.
    pub rechecked: u64,
}

impl RowScores {
    /// Share of the candidates that were computed again in f64; 0 if there are none.
    pub fn recheck_share(&self) -> f64 {
        share(self.rechecked, self.scores.elem_count() as u64)
    }
}

impl Counts {
    /// Share of the decisions that were taken in f64; 0 if there are none.
    pub fn recheck_share(&self) -> f64 {
        share(self.rechecked, self.pairs * self.counts.len() as u64)
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A pair and its cosine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Row of the first tensor.
    pub i: u32,
    /// Row of the second tensor, or of the first if there is no second.
    pub j: u32,
    /// The cosine.
    pub score: f32,
}

/// What [`pairs_above`] returns.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PairList {
    /// Ascending by (i, j).
    pub pairs: Vec<Pair>,
    /// Pairs whose cosine is NaN: not in the list.
    pub nan: u64,
    /// Pairs decided in f64.
    pub rechecked: u64,
}

/// What [`top_k`] returns.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TopK {
    /// `[N, k]` f32, falling.
    pub scores: Tensor,
    /// `[N, k]` u32: rows of the second tensor.
    pub indices: Tensor,
    /// Cosines computed in f64; at least N k.
    pub rechecked: u64,
}

/// Scores candidates `[N, D]` against references `[R, D]` and finds, for each group and each of T thresholds, the first
/// candidate below the threshold.
///
/// `groups` holds R + 1 offsets: candidates `groups[r]..groups[r + 1]` belong to reference r; a group may be empty. `None`
/// pairs candidate i with reference i (N = R). No thresholds: scores only.
///
/// # Errors
/// On shapes, dtypes, offsets or thresholds (outside [-1, 1], NaN) that do not fit.
#[doc(alias = "cosine_similarity")]
pub fn rows(
    candidates: &Tensor,
    references: &Tensor,
    groups: Option<&[u32]>,
    thresholds: &[f64],
) -> Result<RowScores> {
    let op = "cosine::rows";
    let (n, r, d) = check_sides(op, candidates, references)?;
    check_thresholds(op, thresholds)?;
    match groups {
        Some(groups) => check_groups(op, groups, n, r)?,
        None if n == r => {}
        None => {
            let got = format!("{n} candidates, {r} references, no groups");
            return Err(Error::argument(op, "candidates", got, "one candidate per reference"));
        }
    }
    #[cfg(feature = "cuda")]
    if candidates.device().is_cuda() {
        return cuda::cosine::rows_on_tensors(op, candidates, references, groups, thresholds);
    }
    let owners = groups.map(owners);
    let (exact, rechecked) =
        with_sides(op, candidates, references, RowJob { d, owners, thresholds })?;
    let mut first_below = vec![None; r * thresholds.len()];
    let group = |r: usize| groups.map_or(r..r + 1, |g| g[r] as usize..g[r + 1] as usize);
    first_below.par_chunks_mut(thresholds.len().max(1)).enumerate().with_min_len(1024).for_each(
        |(r, first)| {
            let scores = &exact[group(r)];
            for (first, threshold) in first.iter_mut().zip(thresholds) {
                *first = scores.iter().position(|c| c < threshold).map(|at| at as u32);
            }
        },
    );
    let nan = exact.iter().filter(|c| c.is_nan()).count() as u64;
    let scores: Vec<f32> = exact.iter().map(|&c| c as f32).collect();
    Ok(RowScores {
        scores: Tensor::from_vec(scores, n, &Device::Cpu)?,
        first_below,
        nan,
        rechecked,
    })
}

/// The float64 cosine of candidate i with reference i, `[N, D]` each: the number that every decision of this module is
/// defined by. For scores that are kept, and compared with thresholds nobody knows yet. On the CPU: from a GPU the rows are
/// copied.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn rows_f64(candidates: &Tensor, references: &Tensor) -> Result<Vec<f64>> {
    let op = "cosine::rows_f64";
    let (n, r, d) = check_sides(op, candidates, references)?;
    if n != r {
        return Err(Error::argument(op, "candidates", n, format!("{r}, one a reference")));
    }
    let [candidates, references] = [candidates, references].map(|t| t.to_device(&Device::Cpu));
    with_sides(op, &candidates?, &references?, ExactJob { d })
}

/// r + 1 offsets from 0 to n that never fall.
pub(super) fn check_groups(op: &'static str, groups: &[u32], n: usize, r: usize) -> Result<()> {
    if groups.len() != r + 1 {
        let expected = format!("{}, one more than references", r + 1);
        return Err(Error::argument(op, "groups", format!("{} offsets", groups.len()), expected));
    }
    check_offsets(op, "groups", groups, n, "the candidates")
}

/// The reference of every candidate.
fn owners(groups: &[u32]) -> Vec<u32> {
    let mut owners = vec![];
    for (r, pair) in groups.windows(2).enumerate() {
        owners.extend(std::iter::repeat_n(r as u32, (pair[1] - pair[0]) as usize));
    }
    owners
}

/// All cosines of a `[N, D]` with b `[M, D]`: `[N, M]` f32. The one function here that writes them all.
///
/// # Errors
/// On shapes or dtypes that do not fit.
#[doc(alias = "cosine_similarity")]
#[doc(alias = "cdist")]
pub fn matrix(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (n, m, d) = check_sides("cosine::matrix", a, b)?;
    #[cfg(feature = "cuda")]
    if a.device().is_cuda() {
        return cuda::cosine::matrix_on_tensors("cosine::matrix", a, b);
    }
    let scores = with_sides("cosine::matrix", a, b, MatrixJob { d })?;
    Ok(Tensor::from_vec(scores, (n, m), &Device::Cpu)?)
}

/// For each row of a `[N, D]` the k rows of b `[M, D]` of the largest cosine, ties by index; NaN ranks last, by index.
///
/// # Errors
/// On shapes or dtypes that do not fit, and if k > M.
pub fn top_k(a: &Tensor, b: &Tensor, k: usize) -> Result<TopK> {
    let (n, m, d) = check_sides("cosine::top_k", a, b)?;
    if k > m {
        return Err(Error::argument(
            "cosine::top_k",
            "k",
            k,
            format!("at most {m}, the rows of b"),
        ));
    }
    #[cfg(feature = "cuda")]
    if a.device().is_cuda() {
        return cuda::cosine::top_k_on_tensors("cosine::top_k", a, b, k);
    }
    let (best, rechecked) = with_sides("cosine::top_k", a, b, TopKJob { d, k })?;
    let scores: Vec<f32> = best.iter().map(|&(c, _)| c as f32).collect();
    let indices: Vec<u32> = best.iter().map(|&(_, j)| j).collect();
    Ok(TopK {
        scores: Tensor::from_vec(scores, (n, k), &Device::Cpu)?,
        indices: Tensor::from_vec(indices, (n, k), &Device::Cpu)?,
        rechecked,
    })
}

/// For each threshold, how many pairs have a cosine below it. `b` = `None`: the pairs i < j of a.
///
/// # Errors
/// On shapes, dtypes or thresholds (outside [-1, 1], NaN) that do not fit.
pub fn count_below(a: &Tensor, b: Option<&Tensor>, thresholds: &[f64]) -> Result<Counts> {
    // Below is what is neither at or above nor NaN; counting above lets most groups of scores be skipped.
    let mut counts = count("cosine::count_below", a, b, thresholds, false)?;
    for count in &mut counts.counts {
        *count = counts.pairs - counts.nan - *count;
    }
    Ok(counts)
}

/// For each threshold, how many pairs have a cosine above it (strictly). `b` = `None`: the pairs i < j of a.
///
/// # Errors
/// As [`count_below`].
pub fn count_above(a: &Tensor, b: Option<&Tensor>, thresholds: &[f64]) -> Result<Counts> {
    count("cosine::count_above", a, b, thresholds, true)
}

/// Pairs above each threshold: strictly, or at it too.
fn count(
    op: &'static str,
    a: &Tensor,
    b: Option<&Tensor>,
    thresholds: &[f64],
    strict: bool,
) -> Result<Counts> {
    let (_, _, d) = check_sides(op, a, b.unwrap_or(a))?;
    check_thresholds(op, thresholds)?;
    #[cfg(feature = "cuda")]
    if a.device().is_cuda() {
        return cuda::cosine::count_on_tensors(op, a, b, thresholds, strict);
    }
    let passes = if strict { |c: f64, t: f64| c > t } else { |c: f64, t: f64| c >= t };
    with_sides(op, a, b.unwrap_or(a), CountJob { d, symmetric: b.is_none(), thresholds, passes })
}

/// The pairs whose cosine is above the threshold (strictly). `b` = `None`: the pairs i < j of a. The list is as long as
/// there are such pairs: count first where that may be many.
///
/// # Errors
/// As [`count_below`].
pub fn pairs_above(a: &Tensor, b: Option<&Tensor>, threshold: f64) -> Result<PairList> {
    let op = "cosine::pairs_above";
    let (_, _, d) = check_sides(op, a, b.unwrap_or(a))?;
    check_thresholds(op, &[threshold])?;
    #[cfg(feature = "cuda")]
    if a.device().is_cuda() {
        return cuda::cosine::pairs_on_tensors(op, a, b, threshold);
    }
    with_sides(op, a, b.unwrap_or(a), PairsJob { d, symmetric: b.is_none(), threshold })
}

/// Rows of both sides and D.
fn check_sides(op: &'static str, a: &Tensor, b: &Tensor) -> Result<(usize, usize, usize)> {
    let dims = format!("{:?} and {:?}", a.dims(), b.dims());
    let (&[n, d], &[m, e]) = (a.dims(), b.dims()) else {
        return Err(Error::argument(op, "shapes", dims, "[N, D] and [M, D]"));
    };
    if d != e || d == 0 {
        return Err(Error::argument(op, "shapes", dims, "one D, at least 1"));
    }
    if u32::try_from(n.max(m)).is_err() {
        return Err(Error::argument(op, "shapes", dims, "fewer than 2^32 rows"));
    }
    if a.dtype() != b.dtype() || !matches!(a.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        let got = format!("{:?} and {:?}", a.dtype(), b.dtype());
        return Err(Error::argument(op, "dtypes", got, "f32, f16 or bf16, the same on both sides"));
    }
    check_device(op, "second tensor", b, a)?;
    Ok((n, m, d))
}

pub(super) fn check_thresholds(op: &'static str, thresholds: &[f64]) -> Result<()> {
    match thresholds.iter().find(|t| !(-1.0..=1.0).contains(*t)) {
        Some(bad) => Err(Error::argument(op, "threshold", bad, "in [-1, 1]")),
        None => Ok(()),
    }
}

/// Work on the values of both sides, whatever their type.
trait Job {
    type Output;
    fn run<T: Element>(self, a: &[T], b: &[T]) -> Self::Output;
}

fn with_sides<J: Job>(op: &'static str, a: &Tensor, b: &Tensor, job: J) -> Result<J::Output> {
    with_floats(op, "first tensor", a, |a| {
        with_floats(op, "second tensor", b, |b| match (a, b) {
            (Floats::F32(a), Floats::F32(b)) => Ok(job.run(a, b)),
            (Floats::F16(a), Floats::F16(b)) => Ok(job.run(a, b)),
            (Floats::BF16(a), Floats::BF16(b)) => Ok(job.run(a, b)),
            _ => Err(Error::argument(op, "dtypes", "two different ones", "the same on both sides")),
        })
    })
}

/// Rows whose sums are taken before their scores.
const BATCH: usize = 16;

struct RowJob<'a> {
    d: usize,
    owners: Option<Vec<u32>>,
    thresholds: &'a [f64],
}

impl Job for RowJob<'_> {
    /// Every candidate's cosine, on the right side of every threshold, and how many were rechecked.
    type Output = (Vec<f64>, u64);

    fn run<T: Element>(self, a: &[T], b: &[T]) -> Self::Output {
        let (d, bound) = (self.d, cpu::row_bound(self.d));
        let mut scores = vec![0f64; a.len() / d];
        let of = |i: usize| {
            let r = self.owners.as_ref().map_or(i, |owners| owners[i] as usize);
            &b[r * d..(r + 1) * d]
        };
        // The sums of several rows first: a root and a quotient between two rows would keep memory waiting.
        let rechecked = scores
            .par_chunks_mut(BATCH)
            .zip(a.par_chunks(BATCH * d))
            .enumerate()
            .with_min_len(4)
            .map(|(batch, (scores, rows))| {
                let first = batch * BATCH;
                let mut sums = [[0f32; 3]; BATCH];
                for (k, x) in rows.chunks_exact(d).enumerate() {
                    sums[k] = simd::dot3(x, of(first + k));
                }
                let mut again = 0;
                for (k, (score, x)) in scores.iter_mut().zip(rows.chunks_exact(d)).enumerate() {
                    *score = cpu::fast(sums[k], self.thresholds, bound).unwrap_or_else(|| {
                        again += 1;
                        cpu::exact(x, of(first + k))
                    });
                }
                again
            })
            .sum();
        (scores, rechecked)
    }
}

struct ExactJob {
    d: usize,
}

impl Job for ExactJob {
    type Output = Vec<f64>;

    fn run<T: Element>(self, a: &[T], b: &[T]) -> Self::Output {
        let rows = a.par_chunks(self.d).zip(b.par_chunks(self.d));
        rows.with_min_len(64).map(|(x, y)| cpu::exact(x, y)).collect()
    }
}

struct MatrixJob {
    d: usize,
}

impl Job for MatrixJob {
    type Output = Vec<f32>;

    fn run<T: Element>(self, a: &[T], b: &[T]) -> Self::Output {
        let unit = |values: &[T]| {
            let side = Side::new(values, self.d);
            let mut out = vec![0f32; values.len()];
            out.par_chunks_mut(self.d).enumerate().for_each(|(i, out)| side.fill(i..i + 1, out));
            out
        };
        let (a, b) = (unit(a), unit(b));
        let mut scores = vec![0f32; (a.len() / self.d) * (b.len() / self.d)];
        cpu::product(&a, &b, self.d, &mut scores, Parallelism::Rayon(0));
        scores.par_iter_mut().with_min_len(1 << 14).for_each(|s| *s = s.clamp(-1.0, 1.0));
        scores
    }
}

struct CountJob<'a> {
    d: usize,
    symmetric: bool,
    thresholds: &'a [f64],
    /// How an exact cosine passes a threshold.
    passes: fn(f64, f64) -> bool,
}

impl Job for CountJob<'_> {
    type Output = Counts;

    fn run<T: Element>(self, a: &[T], b: &[T]) -> Counts {
        let (a, b) = (Side::new(a, self.d), Side::new(b, self.d));
        let bound = cpu::tile_bound(self.d);
        let bands: Vec<Band> = self.thresholds.iter().map(|&t| Band::new(t, bound)).collect();
        let low = bands.iter().map(|band| band.low).fold(f32::INFINITY, f32::min);
        let start = |_| (vec![0u64; bands.len()], 0u64);
        let states = cpu::tiles(
            &a,
            &b,
            (self.symmetric, Some(low)),
            start,
            |(counts, rechecked), i, j, scores| {
                cpu::groups_reaching(scores, low, |at, group| {
                    for (count, band) in counts.iter_mut().zip(&bands) {
                        let [above, near] = simd::count_reaching(group, band.high, band.low);
                        *count += u64::from(above);
                        if near == above {
                            continue;
                        }
                        for (c, _) in group
                            .iter()
                            .enumerate()
                            .filter(|(_, s)| (band.low..=band.high).contains(*s))
                        {
                            let cosine = cpu::exact(a.row(i), b.row(j + at + c));
                            *count += u64::from((self.passes)(cosine, band.threshold));
                            *rechecked += 1;
                        }
                    }
                });
            },
        );
        let mut total = Counts { counts: vec![0; bands.len()], pairs: 0, nan: 0, rechecked: 0 };
        for (counts, rechecked) in states {
            total.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            total.rechecked += rechecked;
        }
        total.pairs = pairs(a.len(), b.len(), self.symmetric);
        total.nan = total.pairs - pairs(a.len() - a.nans(), b.len() - b.nans(), self.symmetric);
        total
    }
}

/// How many pairs there are.
pub(super) fn pairs(n: usize, m: usize, symmetric: bool) -> u64 {
    let (n, m) = (n as u64, m as u64);
    if symmetric { n * n.saturating_sub(1) / 2 } else { n * m }
}

struct PairsJob {
    d: usize,
    symmetric: bool,
    threshold: f64,
}

impl Job for PairsJob {
    type Output = PairList;

    fn run<T: Element>(self, a: &[T], b: &[T]) -> PairList {
        let (a, b) = (Side::new(a, self.d), Side::new(b, self.d));
        let band = Band::new(self.threshold, cpu::tile_bound(self.d));
        let start = |_| (vec![], 0u64);
        let states = cpu::tiles(
            &a,
            &b,
            (self.symmetric, Some(band.low)),
            start,
            |(found, rechecked), i, j, scores| {
                cpu::groups_reaching(scores, band.low, |at, group| {
                    for (c, &score) in group.iter().enumerate().filter(|(_, s)| **s >= band.low) {
                        let column = j + at + c;
                        let mut pair =
                            Pair { i: i as u32, j: column as u32, score: score.clamp(-1.0, 1.0) };
                        if score <= band.high {
                            let cosine = cpu::exact(a.row(i), b.row(column));
                            *rechecked += 1;
                            if cosine <= band.threshold {
                                continue;
                            }
                            pair.score = cosine as f32;
                        }
                        found.push(pair);
                    }
                });
            },
        );
        let rechecked = states.iter().map(|(_, rechecked)| rechecked).sum();
        let mut found: Vec<Pair> = states.into_iter().flat_map(|(found, _)| found).collect();
        found.par_sort_unstable_by_key(|pair| (pair.i, pair.j));
        let all = pairs(a.len(), b.len(), self.symmetric);
        let nan = all - pairs(a.len() - a.nans(), b.len() - b.nans(), self.symmetric);
        PairList { pairs: found, nan, rechecked }
    }
}

struct TopKJob {
    d: usize,
    k: usize,
}

impl Job for TopKJob {
    /// N k (cosine, row of b), and how many cosines were computed in f64.
    type Output = (Vec<(f64, u32)>, u64);

    fn run<T: Element>(self, a: &[T], b: &[T]) -> Self::Output {
        let (a, b) = (Side::new(a, self.d), Side::new(b, self.d));
        let margin = 2.0 * cpu::tile_bound(self.d);
        let best = || Best::new(self.k, margin);
        let mut rows: Vec<Best> = (0..a.len()).map(|_| best()).collect();
        let start =
            |rows: std::ops::Range<usize>| (rows.start, rows.map(|_| best()).collect::<Vec<_>>());
        let states = cpu::tiles(&a, &b, (false, None), start, |(first, rows), i, j, scores| {
            rows[i - *first].see(j, scores);
        });
        for (first, part) in states {
            rows[first..].iter_mut().zip(part).for_each(|(row, part)| row.merge(part));
        }
        let finished: Vec<(Vec<(f64, u32)>, u64)> = rows
            .into_par_iter()
            .enumerate()
            .map(|(i, best)| {
                let (mut found, rechecked) = best.finish(|j| cpu::exact(a.row(i), b.row(j)));
                let missing = self.k - found.len();
                let nans = (0..b.len()).filter(|&j| a.is_nan(i) || b.is_nan(j));
                found.extend(nans.take(missing).map(|j| (f64::NAN, j as u32)));
                (found, rechecked)
            })
            .collect();
        let rechecked = finished.iter().map(|(_, rechecked)| rechecked).sum();
        (finished.into_iter().flat_map(|(found, _)| found).collect(), rechecked)
    }
}
