//! Cosine similarity of candle tensors that live on a GPU. Counts, lists and first-below are numbers on the host: calls that return
//! them wait for the device.

use candle_core::Tensor;
use candle_core::cuda_backend::CudaDevice;

use super::super::args::FoundPair;
use super::super::{Queue, tensor, to_host, with_rows};
use super::{
    Bands, CountOutput, Groups, PairOutput, RowOutput, Side, Thresholds, count, matrix, pairs,
    rows, top_k,
};
use crate::ops::cosine::{Counts, Pair, PairList, RowScores, TopK, pairs as pair_count};
use crate::{Error, Result};

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
