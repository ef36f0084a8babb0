//! Pooling on the CPU: forward and backward. Arguments are checked by the parent module.

use std::ops::Range;

use rayon::prelude::*;

use super::Mode;
use crate::ops::host::{Floats, each_float};
use crate::ops::simd::{self, Element};

/// Tokens of a part; fixed, so that the order of additions is a property of the sequence alone.
const PART: usize = 64;

/// Which rows of the flattened states belong to which sequence.
pub(super) enum Segments {
    /// B + 1 offsets.
    Packed(Vec<usize>),
    /// Sequence b owns rows `rows[cu[b]..cu[b + 1]]`, all within `b * tokens..(b + 1) * tokens`.
    Padded { rows: Vec<u32>, cu: Vec<usize>, tokens: usize },
}

/// The rows of one sequence, in order.
#[derive(Clone, Copy)]
enum Tokens<'a> {
    From(usize, usize),
    List(&'a [u32]),
}

impl Tokens<'_> {
    fn len(&self) -> usize {
        match self {
            Self::From(_, len) => *len,
            Self::List(rows) => rows.len(),
        }
    }

    fn at(&self, i: usize) -> usize {
        match self {
            Self::From(start, _) => start + i,
            Self::List(rows) => rows[i] as usize,
        }
    }
}

impl Segments {
    fn count(&self) -> usize {
        match self {
            Self::Packed(cu) | Self::Padded { cu, .. } => cu.len() - 1,
        }
    }

    fn tokens(&self, b: usize) -> Tokens<'_> {
        match self {
            Self::Packed(cu) => Tokens::From(cu[b], cu[b + 1] - cu[b]),
            Self::Padded { rows, cu, .. } => Tokens::List(&rows[cu[b]..cu[b + 1]]),
        }
    }

    /// Rows that sequence b occupies, padding included. Spans follow one another without gaps.
    fn span(&self, b: usize) -> Range<usize> {
        match self {
            Self::Packed(cu) => cu[b]..cu[b + 1],
            Self::Padded { tokens, .. } => b * tokens..(b + 1) * tokens,
        }
    }
}

/// One checked call.
pub(super) struct Plan {
    pub(super) segments: Segments,
    pub(super) mode: Mode,
    pub(super) hidden: usize,
    pub(super) dim: usize,
    pub(super) normalize: bool,
}

impl Plan {
    /// `(B, D)`.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.segments.count(), self.dim)
    }

    /// Weight of token i of a sequence in the sum, before the division by [`Plan::divisor`].
    fn weight(&self, i: usize) -> f32 {
        if self.mode == Mode::WeightedMean { (i + 1) as f32 } else { 1.0 }
    }

    /// What the weighted sum over n tokens is divided by.
    fn divisor(&self, n: usize) -> f32 {
        let n = n as f64;
        (match self.mode {
            Mode::Mean => n,
            Mode::MeanSqrtLen => n.sqrt(),
            Mode::WeightedMean => n * (n + 1.0) / 2.0,
            Mode::Cls | Mode::Last | Mode::Max => 1.0,
        }) as f32
    }
}

/// Residual add and LayerNorm of one token.
pub(super) struct LayerNorm<'a> {
    pub(super) residual: Option<Floats<'a>>,
    pub(super) weight: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) eps: f32,
}

impl LayerNorm<'_> {
    /// The normalised row `row` of `states` into `line`.
    fn apply<T: Element>(&self, states: &[T], row: usize, line: &mut [f32]) {
        let at = row * line.len()..(row + 1) * line.len();
        simd::widen(&states[at.clone()], line);
        if let Some(residual) = self.residual {
            each_float!(residual, r => simd::add_scaled(line, &r[at], 1.0));
        }
        let n = line.len() as f32;
        let mean = simd::moment(line, 0.0, false) / n;
        let scale = 1.0 / (simd::moment(line, mean, true) / n + self.eps).sqrt();
        for (x, w) in line.iter_mut().zip(self.weight) {
            *x = (*x - mean) * scale * w;
        }
        if let Some(bias) = self.bias {
            simd::add_scaled(line, bias, 1.0);
        }
    }
}

/// `[B, D]` in f32.
pub(super) fn forward<T: Element>(
    states: &[T],
    plan: &Plan,
    norm: Option<&LayerNorm<'_>>,
) -> Vec<f32> {
    let mut out = vec![0f32; plan.segments.count() * plan.dim];
    out.par_chunks_mut(plan.dim).enumerate().for_each(|(b, out)| {
        pool_one(states, plan, norm, plan.segments.tokens(b), out);
        if plan.normalize {
            let norm = norm2(out);
            if norm != 0.0 {
                out.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
            }
        }
    });
    out
}

/// The pooled vector before normalisation, into zeros.
fn pool_one<T: Element>(
    states: &[T],
    plan: &Plan,
    norm: Option<&LayerNorm<'_>>,
    tokens: Tokens<'_>,
    out: &mut [f32],
) {
    let n = tokens.len();
    match plan.mode {
        _ if n == 0 => {}
        Mode::Cls => add_part(states, plan, norm, tokens, 0..1, out),
        Mode::Last => add_part(states, plan, norm, tokens, n - 1..n, out),
        _ if n <= PART => add_part(states, plan, norm, tokens, 0..n, out),
        _ => {
            let mut parts = vec![0f32; n.div_ceil(PART) * out.len()];
            parts.par_chunks_mut(out.len()).enumerate().for_each(|(p, part)| {
                add_part(states, plan, norm, tokens, p * PART..n.min((p + 1) * PART), part);
            });
            out.copy_from_slice(&parts[..out.len()]);
            for part in parts.chunks(out.len()).skip(1) {
                match plan.mode {
                    Mode::Max => simd::max_into(out, part),
                    _ => simd::add_scaled(out, part, 1.0),
                }
            }
        }
    }
    let divisor = plan.divisor(n);
    if divisor != 1.0 && n > 0 {
        out.iter_mut().for_each(|x| *x /= divisor);
    }
}

/// Adds (or takes the maximum of) tokens `which` of a sequence into zeros.
fn add_part<T: Element>(
    states: &[T],
    plan: &Plan,
    norm: Option<&LayerNorm<'_>>,
    tokens: Tokens<'_>,
    which: Range<usize>,
    acc: &mut [f32],
) {
    let max = plan.mode == Mode::Max;
    if max {
        acc.fill(f32::NEG_INFINITY);
    }
    let single = matches!(plan.mode, Mode::Cls | Mode::Last);
    let mut line = vec![0f32; if norm.is_some() { plan.hidden } else { 0 }];
    let weight = |i: usize| if single { 1.0 } else { plan.weight(i) };
    let mut i = which.start;
    if norm.is_none() && !max {
        while i + 4 <= which.end {
            let four = [i, i + 1, i + 2, i + 3];
            let rows = four.map(|i| &states[tokens.at(i) * plan.hidden..]);
            simd::add_scaled4(acc, rows, four.map(weight));
            i += 4;
        }
    }
    for i in i..which.end {
        let row = tokens.at(i);
        if let Some(norm) = norm {
            norm.apply(states, row, &mut line);
            combine(acc, &line[..plan.dim], weight(i), max);
        } else {
            combine(acc, &states[row * plan.hidden..][..plan.dim], weight(i), max);
        }
    }
}

fn combine<T: Element>(acc: &mut [f32], x: &[T], weight: f32, max: bool) {
    if max { simd::max_into(acc, x) } else { simd::add_scaled(acc, x, weight) }
}

/// The Euclidean norm.
fn norm2(v: &[f32]) -> f64 {
    let square = simd::dot(v, v);
    // Inside this range neither overflow nor underflow has touched the sum.
    if (2f32.powi(-90)..=2f32.powi(120)).contains(&square) {
        return f64::from(square).sqrt();
    }
    v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// Gradient of the states, zero where nothing flows, in their dtype.
pub(super) fn backward<T: Element>(states: &[T], grad: &[f32], plan: &Plan) -> Vec<T> {
    let mut out = vec![T::default(); states.len()];
    let mut spans = vec![];
    let mut rest = out.as_mut_slice();
    for b in 0..plan.segments.count() {
        let (span, after) = rest.split_at_mut(plan.segments.span(b).len() * plan.hidden);
        spans.push(span);
        rest = after;
    }
    spans.into_par_iter().enumerate().for_each(|(b, span)| {
        let tokens = plan.segments.tokens(b);
        if tokens.len() > 0 {
            let grad = &grad[b * plan.dim..(b + 1) * plan.dim];
            backward_one(states, grad, plan, b, span);
        }
    });
    out
}

/// The gradient of one non-empty sequence; `span` holds its rows, padding included.
fn backward_one<T: Element>(states: &[T], grad: &[f32], plan: &Plan, b: usize, span: &mut [T]) {
    let tokens = plan.segments.tokens(b);
    let first = plan.segments.span(b).start;
    let n = tokens.len();
    let mut pooled = vec![0f32; plan.dim];
    pool_one(states, plan, None, tokens, &mut pooled);
    let grad = if plan.normalize { unnormalise(grad, &pooled) } else { grad.to_vec() };
    let divisor = plan.divisor(n);
    let mut put = |i: usize, weight: f32| {
        let at = (tokens.at(i) - first) * plan.hidden;
        for (x, g) in span[at..at + plan.dim].iter_mut().zip(&grad) {
            *x = T::from_f32(g * weight / divisor);
        }
    };
    match plan.mode {
        Mode::Cls => put(0, 1.0),
        Mode::Last => put(n - 1, 1.0),
        Mode::Max => {
            for (c, (&g, &max)) in grad.iter().zip(&pooled).enumerate() {
                let value = |i: usize| states[tokens.at(i) * plan.hidden + c].to_f32();
                let attains = |&i: &usize| value(i) == max || value(i).is_nan();
                if let Some(i) = (0..n).find(attains) {
                    span[(tokens.at(i) - first) * plan.hidden + c] = T::from_f32(g);
                }
            }
        }
        Mode::Mean | Mode::WeightedMean | Mode::MeanSqrtLen => {
            (0..n).for_each(|i| put(i, plan.weight(i)));
        }
    }
}

/// Gradient through v / |v|: (g - y (y . g)) / |v| with y = v / |v|; zeros for a zero vector.
fn unnormalise(grad: &[f32], v: &[f32]) -> Vec<f32> {
    let norm = norm2(v);
    if norm == 0.0 {
        return vec![0.0; v.len()];
    }
    let along: f64 = grad.iter().zip(v).map(|(&g, &x)| f64::from(g) * f64::from(x) / norm).sum();
    grad.iter()
        .zip(v)
        .map(|(&g, &x)| ((f64::from(g) - f64::from(x) / norm * along) / norm) as f32)
        .collect()
}
