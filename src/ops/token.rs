//! Batched token sampling: one token and its log-probability per row of logits.
//!
//! ```text
//! logits [R, V]              token   0    1    2    3    4    5    6      (one row)
//!   row 0  params, draws     weight  .01  .30  .05  .20  .02  .40  .02
//!   row 1  params, draws     top-k, top-p, min-p leave   1         3         5
//!   ...                      running mass                [.30      [.50      [.90     W = .90
//!                            u W = .42, u in (0, 1)               ^ token 3 is drawn, log-probability ln(.20 / .90)
//! ```
//!
//! # Order
//! As Hugging Face `generate`: repetition penalty, temperature, top-k, top-p, min-p. All of a row's settings are its own
//! ([`Params`]).
//! 1. Repetition penalty p: the logit of each token in `history` (once, however often it occurs) becomes l * p if l < 0, else l / p.
//! 2. Temperature t: l / t. t = 0 is greedy: the largest logit, ties to the lower index; the filters cannot change it.
//! 3. top-k: tokens whose logit is below the k-th largest go. Ties with the k-th all stay.
//! 4. top-p: tokens are ranked by logit, ties by index, and a token stays iff the mass of those ranked before it is below
//!    p times the mass left by top-k. The first always stays.
//! 5. min-p: tokens whose probability is below min_p times the largest go.
//!
//! # Draw
//! With u = the uniform of ([`Purpose::Token`], sentence, step), see [`super::philox`], W the mass left and the tokens in
//! *index order*: the first token at which the running mass exceeds u W. A token of zero mass is never drawn. Weights
//! are exp((l - max) / t) in f32 (0 below e^-87), sums in f64; another implementation gives the same token unless u lies
//! within 1e-6 of a boundary between two tokens. A row depends on no other row of the call.
//!
//! The log-probability is that of the token under the distribution it was drawn from, ln(w / W); for greedy, under the softmax
//! of the penalised logits.
//!
//! # Edges
//! Zero rows are valid. NaN or plus infinity in a row, or nothing but minus infinity, is an error that names the row; minus
//! infinity bans a token.
//!
//! # Example
//! ```
//! use bdhs::ops::token::{Params, Row, sample};
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> bdhs::Result<()> {
//! let logits = Tensor::new(&[[0f32, 5.0, 1.0], [9.0, 0.0, 0.0]], &Device::Cpu)?;
//! let nucleus = Params { top_p: 0.9, ..Params::default() };
//! // Seed 7; a stream for each row; the first token of each.
//! let rows = [Row::new(Params::GREEDY, 7, 0, 0), Row::new(nucleus, 7, 1, 0)];
//! let drawn = sample(&logits, &rows)?;
//! assert_eq!((drawn[0].token, drawn[1].token), (1, 0));
//! # Ok(())
//! # }
//! ```
//!
//! # Cost
//! Floor: one read of the logits, rows * V * size bytes. Nothing is sorted: top-k is a linear-time selection, and top-p halves its
//! candidates around the cut, linear too. Rows run in parallel.

use candle_core::Tensor;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::host::{each_float, with_floats};
use super::philox::{Draws, Purpose, WHOLE_RESPONSE};
use super::simd::{self, Element};
use crate::{Error, Result};

/// How a row is sampled. The default leaves the model's distribution as it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// 0 = greedy, else in [1e-4, 1e4].
    pub temperature: f64,
    /// 0 = off.
    pub top_k: usize,
    /// In (0, 1]; 1 = off.
    pub top_p: f64,
    /// In [0, 1]; 0 = off.
    pub min_p: f64,
    /// In [1e-4, 1e4]; 1 = off.
    pub repetition_penalty: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

impl Params {
    /// The most likely token, whatever the draw.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 };
}

/// One row to sample.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Settings.
    pub params: Params,
    /// Where the randomness comes from.
    pub draws: Draws,
    /// Sentence number of the draw; [`WHOLE_RESPONSE`] in unguided attempts.
    pub sentence: u32,
    /// Index of the draw: how many tokens of this sentence were sampled before. Below 2^34.
    pub step: u64,
    /// Tokens that the repetition penalty applies to, in any order; may be empty.
    pub history: &'a [u32],
}

impl Row<'_> {
    /// A row that draws token `step` of a stream ([`Draws::stream`]), without a history.
    pub fn new(params: Params, seed: u64, stream: u64, step: u64) -> Self {
        Self { params, draws: Draws::stream(seed, stream), sentence: 0, step, history: &[] }
    }
}

/// What was drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its natural log-probability; see the module docs.
    pub log_prob: f32,
}

/// Draws one token per row of `logits` `[R, V]` (f32, f16, bf16; a strided tensor is copied first), R = `rows.len()`. On CUDA, V
/// is at most 2^22, and the call waits for the tokens (`ops::cuda` leaves them on the device).
///
/// # Errors
/// On shapes, settings or history tokens outside the contract and on logits without a distribution; the message names the row.
#[doc(alias = "LogitsProcessor")]
#[doc(alias = "multinomial")]
pub fn sample(logits: &Tensor, rows: &[Row<'_>]) -> Result<Vec<Sampled>> {
    let &[r, vocab] = logits.dims() else {
        return Err(Error::argument(
            "token::sample",
            "logits",
            format!("{:?}", logits.dims()),
            "[R, V]",
        ));
    };
    if r != rows.len() || vocab == 0 || u32::try_from(vocab).is_err() {
        let expected = format!("[{}, V] with 0 < V < 2^32", rows.len());
        return Err(Error::argument(
            "token::sample",
            "logits",
            format!("[{r}, {vocab}]"),
            expected,
        ));
    }
    check_rows("token::sample", rows, vocab)?;
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        return cuda::token::sample_on_tensor("token::sample", logits, rows);
    }
    with_floats("token::sample", "logits", logits, |values| {
        each_float!(values, v => v
            .par_chunks(vocab)
            .zip(rows)
            .enumerate()
            .map_init(Scratch::default, |scratch, (i, (logits, row))| scratch.sample(i, logits, row))
            .collect())
    })
}

/// Checks the settings of all rows.
pub(super) fn check_rows(op: &'static str, rows: &[Row<'_>], vocab: usize) -> Result<()> {
    rows.iter().enumerate().try_for_each(|(i, row)| check(op, i, row, vocab))
}

fn check(op: &'static str, i: usize, row: &Row<'_>, vocab: usize) -> Result<()> {
    let p = &row.params;
    let fail = |what, got: String, expected: &str| {
        Err(Error::argument(op, what, format!("{got} in row {i}"), expected))
    };
    let range = 1e-4..=1e4;
    if p.temperature != 0.0 && !range.contains(&p.temperature) {
        return fail("temperature", p.temperature.to_string(), "0 (greedy) or in [1e-4, 1e4]");
    }
    if !(p.top_p > 0.0 && p.top_p <= 1.0) {
        return fail("top_p", p.top_p.to_string(), "in (0, 1]");
    }
    if !(0.0..=1.0).contains(&p.min_p) {
        return fail("min_p", p.min_p.to_string(), "in [0, 1]");
    }
    if !range.contains(&p.repetition_penalty) {
        return fail("repetition_penalty", p.repetition_penalty.to_string(), "in [1e-4, 1e4]");
    }
    if row.sentence > WHOLE_RESPONSE {
        return fail("sentence", row.sentence.to_string(), "below 2^24");
    }
    if row.step >> 34 != 0 {
        return fail("step", row.step.to_string(), "below 2^34");
    }
    if let Some(token) = row.history.iter().find(|&&t| t as usize >= vocab) {
        return fail("history", token.to_string(), &format!("tokens below {vocab}"));
    }
    Ok(())
}

/// The error of a row without a distribution.
pub(super) fn no_distribution(op: &'static str, got: &str, row: usize) -> Error {
    let what = "logits after the repetition penalty";
    Error::argument(op, what, format!("{got} in row {row}"), "a finite largest logit")
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    /// Penalised logits; minus infinity once filtered out.
    logits: Vec<f32>,
    /// exp((logit - max) / t).
    weights: Vec<f32>,
    /// Logits that top-k selects from.
    order: Vec<f32>,
    /// Rank keys that top-p selects from.
    ranked: Vec<u64>,
}

/// Tokens summed before the sum joins the running mass.
const SPAN: usize = 1024;

impl Scratch {
    fn sample<T: Element>(&mut self, i: usize, logits: &[T], row: &Row<'_>) -> Result<Sampled> {
        let p = &row.params;
        self.penalise(logits, row);
        let max = simd::peak(&self.logits);
        if !max.is_finite() {
            let got = match max {
                f32::NEG_INFINITY => "nothing but -inf",
                f32::INFINITY => "+inf",
                _ => "NaN",
            };
            return Err(no_distribution("token::sample", got, i));
        }
        self.weights.resize(logits.len(), 0.0);
        let greedy = p.temperature == 0.0;
        let scale = if greedy { 1.0 } else { (1.0 / p.temperature) as f32 };
        if !greedy {
            self.top_k(p.top_k);
        }
        simd::exp_scaled(&self.logits, max, scale, &mut self.weights);
        if !greedy {
            self.top_p(p.top_p);
            self.min_p(p.min_p);
        }
        let spans: Vec<f64> = self.weights.chunks(SPAN).map(simd::sum_f64).collect();
        let total: f64 = spans.iter().sum();
        let token = if greedy {
            self.logits.iter().position(|&l| l == max).unwrap_or(0)
        } else {
            let u = row.draws.uniform(Purpose::Token, row.sentence, row.step);
            self.invert(&spans, u * total)
        };
        let exponent = f64::from((self.logits[token] - max) * scale);
        Ok(Sampled { token: token as u32, log_prob: (exponent - total.ln()) as f32 })
    }

    /// Widens the row and applies the repetition penalty.
    fn penalise<T: Element>(&mut self, logits: &[T], row: &Row<'_>) {
        self.logits.resize(logits.len(), 0.0);
        simd::widen(logits, &mut self.logits);
        let penalty = row.params.repetition_penalty as f32;
        if penalty == 1.0 {
            return;
        }
        for &token in row.history {
            // From the input, so that a token that occurs twice is penalised once.
            let logit = logits[token as usize].to_f32();
            self.logits[token as usize] =
                if logit < 0.0 { logit * penalty } else { logit / penalty };
        }
    }

    fn top_k(&mut self, k: usize) {
        if k == 0 || k >= self.logits.len() {
            return;
        }
        self.order.clear();
        self.order.extend_from_slice(&self.logits);
        let (_, &mut kth, _) = self.order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        for logit in &mut self.logits {
            if *logit < kth {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn top_p(&mut self, p: f64) {
        if p >= 1.0 {
            return;
        }
        let Self { logits, weights, ranked, .. } = self;
        let total: f64 = weights.chunks(SPAN).map(simd::sum_f64).sum();
        // Tokens this light sum to less than (1 - p) of the mass even together: they cannot be needed.
        let light = (1.0 - p) * total / logits.len() as f64;
        ranked.clear();
        let heavy = weights.iter().enumerate().filter(|(_, w)| f64::from(**w) >= light);
        ranked.extend(heavy.map(|(t, _)| rank_key(logits[t], t as u32)));
        // Halving: ranks below `low` stay, and so does rank `low`; ranks from `high` on go. `before` is the mass below `low`.
        let (mut low, mut high, mut before) = (0, ranked.len(), 0.0);
        while high - low > 1 {
            let middle = (high - low) / 2;
            let part = &mut ranked[low..high];
            part.select_nth_unstable(middle);
            let upper: f64 =
                part[..middle].iter().map(|&key| f64::from(weights[token_of(key)])).sum();
            if before + upper < p * total {
                before += upper;
                low += middle;
            } else {
                high = low + middle;
            }
        }
        ranked.truncate(high);
        let kept: Vec<(usize, f32)> =
            ranked.iter().map(|&key| (token_of(key), weights[token_of(key)])).collect();
        weights.fill(0.0);
        for (token, weight) in kept {
            weights[token] = weight;
        }
    }

    /// The largest weight is exp(0) = 1, so a weight is already relative to it.
    fn min_p(&mut self, min_p: f64) {
        if min_p > 0.0 {
            for weight in &mut self.weights {
                if f64::from(*weight) < min_p {
                    *weight = 0.0;
                }
            }
        }
    }

    /// The first token at which the running mass exceeds `target`.
    fn invert(&self, spans: &[f64], target: f64) -> usize {
        let mut before = 0.0;
        let mut last = 0;
        for (span, mass) in spans.iter().enumerate() {
            if before + mass <= target {
                before += mass;
                continue;
            }
            let mut running = before;
            for (token, &weight) in self.weights.iter().enumerate().skip(span * SPAN).take(SPAN) {
                if weight > 0.0 {
                    last = token;
                    running += f64::from(weight);
                    if running > target {
                        return token;
                    }
                }
            }
            // The span's sum was added in another order: the target lies on its end by less than a rounding.
            return last;
        }
        last
    }
}

/// An integer that orders tokens by falling logit, then by rising index.
fn rank_key(logit: f32, token: u32) -> u64 {
    // The bits of a float, read as an integer, rise with it if it is positive and fall if negative; -0 joins 0.
    let bits = (logit + 0.0).to_bits();
    let rising = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!rising) << 32 | u64::from(token)
}

fn token_of(key: u64) -> usize {
    (key & 0xFFFF_FFFF) as usize
}
