//! Cosines on the CPU: one pair in f64, row by row, and tiles of all pairs. Arguments are checked by the parent module.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use crate::ops::simd::{self, Element};

/// Unit roundoff of f32.
const U: f64 = 1.0 / 16_777_216.0;

/// n roundings in a row change a value by at most this share (Higham, "Accuracy and Stability", lemma 3.1).
fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    nu / (1.0 - nu)
}

/// Largest |fast - exact| of [`fast`] on vectors of `d` values.
///
/// With g = gamma(roundings of a dot product): the product is off by at most g |x| |y|, each squared norm by a share of at
/// most g, so the quotient by at most 2 g / (1 - g). The rest covers underflow (squared norms are at least 2^-90,
/// each product loses at most 2^-150) and the f64 arithmetic after the sums.
pub(super) fn row_bound(d: usize) -> f64 {
    let g = gamma(simd::roundings(d));
    2.0 * g / (1.0 - g) + d as f64 * 2f64.powi(-58) + 1e-14
}

/// Largest |tile - exact| of a product of [`Side::fill`]ed rows of `d` values.
///
/// Each filled value carries two roundings (the inverse norm's and its own), so the exact product of two filled rows is
/// off by at most 4 U (to first order) of sum |x_i y_i| / |x| |y| <= 1. The product itself adds d terms in an order that
/// is the matrix library's, hence gamma(d); two more stand for second-order terms, the rest for underflow and norms.
pub(super) fn tile_bound(d: usize) -> f64 {
    (gamma(d + 2) + 4.0 * U) * 1.0001 + d as f64 * 2f64.powi(-120) + 1e-13
}

/// The cosine in f64: NaN if a value is not finite, else 0 with a zero vector, else within [-1, 1].
pub(super) fn exact<T: Element>(x: &[T], y: &[T]) -> f64 {
    let mut wide = vec![0f32; 2 * x.len()];
    let (wx, wy) = wide.split_at_mut(x.len());
    simd::widen(x, wx);
    simd::widen(y, wy);
    let [xy, xx, yy] = simd::dot3_f64(wx, wy);
    if !xx.is_finite() || !yy.is_finite() {
        f64::NAN
    } else if xx == 0.0 || yy == 0.0 {
        0.0
    } else {
        // Identical vectors give exactly 1: the root of a square is exact. Adding 0 makes -0 a 0, so that they tie.
        (xy / (xx * yy).sqrt()).clamp(-1.0, 1.0) + 0.0
    }
}

/// The cosine of one pair from its three sums ([`simd::dot3`]); none where f64 is needed: near one of `thresholds`, or out of
/// the fast path's range.
pub(super) fn fast([xy, xx, yy]: [f32; 3], thresholds: &[f64], bound: f64) -> Option<f64> {
    let safe = 2f32.powi(-90)..=2f32.powi(100);
    if !safe.contains(&xx) || !safe.contains(&yy) {
        return None;
    }
    let fast = f64::from(xy) / (f64::from(xx) * f64::from(yy)).sqrt();
    let near = thresholds.iter().any(|t| (fast - t).abs() <= bound);
    (!near).then_some(fast.clamp(-1.0, 1.0))
}

/// The rows of one side of an all-pairs job.
pub(super) struct Side<'a, T> {
    values: &'a [T],
    d: usize,
    /// 1 / |row|; 0 for a zero row, NaN for one with a value that is not finite.
    inverse: Vec<f64>,
}

impl<'a, T: Element> Side<'a, T> {
    pub(super) fn new(values: &'a [T], d: usize) -> Self {
        let inverse = values
            .par_chunks(d)
            .with_min_len(64)
            .map_init(
                || vec![0f32; d],
                |line, row| {
                    simd::widen(row, line);
                    match simd::dot3_f64(line, line)[0] {
                        square if !square.is_finite() => f64::NAN,
                        0.0 => 0.0,
                        square => 1.0 / square.sqrt(),
                    }
                },
            )
            .collect();
        Self { values, d, inverse }
    }

    pub(super) fn len(&self) -> usize {
        self.inverse.len()
    }

    pub(super) fn row(&self, i: usize) -> &'a [T] {
        &self.values[i * self.d..(i + 1) * self.d]
    }

    pub(super) fn is_nan(&self, i: usize) -> bool {
        self.inverse[i].is_nan()
    }

    pub(super) fn nans(&self) -> usize {
        self.inverse.iter().filter(|x| x.is_nan()).count()
    }

    /// Rows scaled to length one, in f32; a NaN row is NaN throughout.
    pub(super) fn fill(&self, rows: Range<usize>, out: &mut [f32]) {
        let normal = 2f64.powi(-100)..=2f64.powi(100);
        for (i, out) in rows.zip(out.chunks_exact_mut(self.d)) {
            let inverse = self.inverse[i];
            if normal.contains(&inverse) {
                simd::widen(self.row(i), out);
                simd::scale(out, inverse as f32);
            } else {
                // Out of f32's range, zero, or NaN.
                for (out, x) in out.iter_mut().zip(self.row(i)) {
                    *out = (f64::from(x.to_f32()) * inverse) as f32;
                }
            }
        }
    }
}

/// `out[n, m] = a[n, d] b[m, d]^T`, all row-major.
pub(super) fn product(a: &[f32], b: &[f32], d: usize, out: &mut [f32], parallelism: Parallelism) {
    add_product(a, b, (d, 0..d), out, parallelism);
}

/// The part of [`product`] over the dimensions `part`; added to `out` unless it is the first part.
fn add_product(
    a: &[f32],
    b: &[f32],
    (d, part): (usize, Range<usize>),
    out: &mut [f32],
    parallelism: Parallelism,
) {
    let (n, m) = (a.len() / d, b.len() / d);
    assert_eq!((a.len(), b.len(), out.len()), (n * d, m * d, n * m));
    let (a, b) = (&a[part.start.min(a.len())..], &b[part.start.min(b.len())..]);
    // SAFETY: the slices hold n d, m d (less `part.start`, where both begin) and n m values, which is what these strides
    // reach; `out` is borrowed alone.
    unsafe {
        gemm::gemm(
            n,
            m,
            part.len(),
            out.as_mut_ptr(),
            1,
            m as isize,
            part.start > 0,
            a.as_ptr(),
            1,
            d as isize,
            b.as_ptr(),
            d as isize,
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Rows and columns of a tile: its scores are read again from the cache of the core that made them.
const ROWS: usize = 128;
const COLS: usize = 512;
/// Columns are scaled to length one a panel at a time, once for all rows. Bytes of a panel: a part of the last-level cache.
const PANEL: usize = 8 << 20;

/// Buffers of one thread.
#[derive(Default)]
struct Tile {
    a: Vec<f32>,
    rests: Vec<Rests>,
    scores: Vec<f32>,
    /// Tiles to compute whole before another is tried in parts.
    whole: usize,
}

/// Lengths of what rows have beyond each of the [`Parts`].
type Rests = [f32; 2];

/// How a product is computed where only scores from a bound on matter: the first dimensions, then more, then all. A score is
/// at most what it is so far plus the product of the lengths of the rests (Cauchy and Schwarz); pairs that cannot reach the
/// bound any more are not looked at again.
#[derive(Clone, Copy)]
struct Parts {
    /// Scores below are of no interest.
    low: f32,
    /// Where the first and the second part end.
    ends: [usize; 2],
}

/// Beyond rounding of partial sums and lengths. The whole score's own error is in the bound.
const SLACK: f32 = 1e-4;
/// A tile with a larger share of pairs that may reach the bound is computed on as a product.
const FEW: usize = 32;
/// Tiles that are computed whole after one whose parts were of no use.
const PATIENCE: usize = 15;

impl Parts {
    fn new(d: usize, low: f32) -> Option<Self> {
        // Short rows, and bounds so low that the parts would rarely be enough.
        (d >= 128 && low > 0.5).then_some(Self { low, ends: [d / 4, d / 2] })
    }

    fn rests(self, row: &[f32]) -> Rests {
        let [first, second] = self.ends;
        let late = simd::dot(&row[second..], &row[second..]);
        let middle = simd::dot(&row[first..second], &row[first..second]);
        [(late + middle).sqrt(), late.sqrt()]
    }

    /// Fills a tile's scores; those that are below the bound may be any number below it. NaN stays NaN. Whether the parts
    /// have saved anything.
    fn fill(self, d: usize, a: (&[f32], &[Rests]), b: (&[f32], &[Rests]), out: &mut [f32]) -> bool {
        let mut from = 0;
        for (stage, end) in self.ends.into_iter().enumerate() {
            add_product(a.0, b.0, (d, from..end), out, Parallelism::None);
            from = end;
            if let Some(alive) = self.alive(stage, a.1, b.1, out) {
                for (i, j) in alive {
                    let (x, y) = (&a.0[i * d + end..(i + 1) * d], &b.0[j * d + end..(j + 1) * d]);
                    out[i * b.1.len() + j] += simd::dot(x, y);
                }
                return true;
            }
        }
        add_product(a.0, b.0, (d, from..d), out, Parallelism::None);
        false
    }

    /// The pairs that may still reach the bound, unless they are many. The others' partial scores are below it.
    fn alive(
        self,
        stage: usize,
        a: &[Rests],
        b: &[Rests],
        scores: &mut [f32],
    ) -> Option<Vec<(usize, usize)>> {
        let mut alive = Vec::new();
        let most = scores.len() / FEW;
        for ((i, row), rest) in scores.chunks_exact_mut(b.len()).enumerate().zip(a) {
            for (g, group) in row.chunks(GROUP).enumerate() {
                let others = &b[g * GROUP..];
                let widest = others.iter().take(group.len()).fold(0f32, |w, r| w.max(r[stage]));
                let reach = |other: f32| self.low - SLACK - rest[stage] * other;
                if simd::largest_number(group) < reach(widest) {
                    continue;
                }
                let pairs = group.iter().zip(others).enumerate();
                let live = pairs.filter(|(_, (s, other))| **s >= reach(other[stage]));
                alive.extend(live.map(|(c, _)| (i, g * GROUP + c)));
                if alive.len() > most {
                    return None;
                }
            }
        }
        Some(alive)
    }
}

/// Visits all pairs (`symmetric`: those with i < j of one side) tile by tile, in parallel. An item is a block of rows times a
/// panel of columns: `start(rows)` makes its state, `visit(state, i, j, scores)` sees row i against columns j.. of one
/// tile. The states come back ordered by panels, then rows. With `low`, scores below it may be any numbers below it.
pub(super) fn tiles<T: Element, S: Send>(
    a: &Side<'_, T>,
    b: &Side<'_, T>,
    (symmetric, low): (bool, Option<f32>),
    start: impl Fn(Range<usize>) -> S + Sync,
    visit: impl Fn(&mut S, usize, usize, &[f32]) + Sync,
) -> Vec<S> {
    let d = a.d;
    let width = (PANEL / (4 * d) / COLS).max(1) * COLS;
    let parts = low.and_then(|low| Parts::new(d, low));
    let rests_of = |values: &[f32], rests: &mut Vec<Rests>| {
        let Some(parts) = parts else { return };
        let rows = values.par_chunks_exact(d).with_min_len(2 * ROWS);
        rows.map(|row| parts.rests(row)).collect_into_vec(rests);
    };
    let mut panel = vec![0f32; width.min(b.len()) * d];
    let mut panel_rests = vec![];
    let mut states = vec![];
    for first in (0..b.len()).step_by(width) {
        let columns = first..b.len().min(first + width);
        let panel = &mut panel[..columns.len() * d];
        panel.par_chunks_mut(32 * d).enumerate().for_each(|(part, out)| {
            let from = first + 32 * part;
            b.fill(from..from + out.len() / d, out);
        });
        let panel = &*panel;
        rests_of(panel, &mut panel_rests);
        let run = |tile: &mut Tile, block: usize| {
            let rows = block * ROWS..a.len().min((block + 1) * ROWS);
            let mut state = start(rows.clone());
            tile.a.resize(rows.len() * d, 0.0);
            a.fill(rows.clone(), &mut tile.a);
            rests_of(&tile.a, &mut tile.rests);
            for j in columns.clone().step_by(COLS) {
                let end = columns.end.min(j + COLS);
                if symmetric && end <= rows.start + 1 {
                    continue;
                }
                let b = &panel[(j - first) * d..(end - first) * d];
                tile.scores.resize(rows.len() * (end - j), 0.0);
                match parts {
                    Some(parts) if tile.whole == 0 => {
                        let rests = &panel_rests[j - first..end - first];
                        let a = (&*tile.a, &*tile.rests);
                        let saved = parts.fill(d, a, (b, rests), &mut tile.scores);
                        tile.whole = if saved { 0 } else { PATIENCE };
                    }
                    _ => {
                        product(&tile.a, b, d, &mut tile.scores, Parallelism::None);
                        tile.whole = tile.whole.saturating_sub(1);
                    }
                }
                for (i, scores) in rows.clone().zip(tile.scores.chunks_exact(end - j)) {
                    let skip = if symmetric { (i + 1).saturating_sub(j).min(end - j) } else { 0 };
                    visit(&mut state, i, j + skip, &scores[skip..]);
                }
            }
            state
        };
        // The pairs i < j of these columns need no later rows.
        let rows = if symmetric { columns.end.min(a.len()) } else { a.len() };
        let blocks = (0..rows.div_ceil(ROWS)).into_par_iter();
        states.par_extend(blocks.map_init(Tile::default, run));
    }
    states
}

/// A threshold with its guard band, rounded outwards: a tile's score above `high` is above it, one below `low` below it.
#[derive(Clone, Copy)]
pub(super) struct Band {
    pub(super) threshold: f64,
    pub(super) low: f32,
    pub(super) high: f32,
}

impl Band {
    pub(super) fn new(threshold: f64, bound: f64) -> Self {
        Self {
            threshold,
            low: round_down(threshold - bound),
            high: -round_down(-(threshold + bound)),
        }
    }
}

/// The largest f32 that is not above `x`.
pub(super) fn round_down(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) > x { near.next_down() } else { near }
}

/// Scores looked at together: their maximum is compared once.
const GROUP: usize = 64;

/// Calls `each` with the start and values of every group that has a score of at least `low`.
pub(super) fn groups_reaching(scores: &[f32], low: f32, mut each: impl FnMut(usize, &[f32])) {
    for (g, group) in scores.chunks(GROUP).enumerate() {
        if simd::largest_number(group) >= low {
            each(g * GROUP, group);
        }
    }
}

/// The best candidates of one row while its columns pass by.
pub(super) struct Best {
    k: usize,
    margin: f64,
    cutoff: f32,
    limit: usize,
    found: Vec<(f32, u32)>,
}

impl Best {
    /// `margin` is twice the bound: two scores that far apart are in their true order.
    pub(super) fn new(k: usize, margin: f64) -> Self {
        Self { k, margin, cutoff: f32::NEG_INFINITY, limit: 4 * k + 256, found: vec![] }
    }

    pub(super) fn see(&mut self, first: usize, scores: &[f32]) {
        // The cutoff is read afresh for each group: it rises as candidates come in.
        for (g, group) in scores.chunks(GROUP).enumerate() {
            if simd::largest_number(group) >= self.cutoff {
                let cutoff = self.cutoff;
                let at = first + g * GROUP;
                let kept = group.iter().enumerate().filter(|(_, s)| **s >= cutoff);
                self.found.extend(kept.map(|(c, &s)| (s, (at + c) as u32)));
                if self.found.len() >= self.limit {
                    self.prune();
                }
            }
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.found.extend(other.found);
    }

    /// Drops what cannot be among the k best: k scores are at least s, so their cosines are at least s - bound, and a
    /// cosine that reaches this has a score of at least s - 2 bound.
    fn prune(&mut self) {
        if self.k == 0 {
            self.found.clear();
        } else if self.found.len() > self.k {
            let (_, &mut (kth, _), _) =
                self.found.select_nth_unstable_by(self.k - 1, |a, b| b.0.total_cmp(&a.0));
            self.cutoff = round_down(f64::from(kth) - self.margin);
            self.found.retain(|(s, _)| *s >= self.cutoff);
        }
        // Many near-ties: prune less often rather than again and again in vain.
        self.limit = self.limit.max(2 * self.found.len());
    }

    /// The candidates that are left, and their exact cosines: the k best by cosine, ties by index.
    pub(super) fn finish(mut self, exact: impl Fn(usize) -> f64) -> (Vec<(f64, u32)>, u64) {
        self.prune();
        let mut scored: Vec<(f64, u32)> =
            self.found.iter().map(|&(_, j)| (exact(j as usize), j)).collect();
        let rechecked = scored.len() as u64;
        scored.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        scored.truncate(self.k);
        (scored, rechecked)
    }
}
