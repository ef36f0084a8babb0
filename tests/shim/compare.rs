//! The same generated cases through the Rust CPU paths and the shim-run kernels. Each function returns what it compared,
//! or the first difference.

use std::path::Path;

use bdhs::ops::cosine::{RowScores, rows};
use bdhs::ops::mask::{self, Law, TokenGrid};
use bdhs::ops::philox::{Draws, Purpose, WHOLE_RESPONSE};
use bdhs::ops::pool::{self, FinalNorm, Mode};
use bdhs::ops::token::{self, Params, Sampled};
use bytemuck::Pod;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use crate::exact;
use crate::numbers::Random;
use crate::pairs::{batch, on_the_edge};
use crate::replay;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const U: f64 = 1.0 / 16_777_216.0;

/// A file of cases; see `driver.hpp`.
#[derive(Default)]
struct Cases(Vec<u8>);

impl Cases {
    fn value(&mut self, value: u64) {
        self.0.extend(value.to_ne_bytes());
    }
    fn values<const N: usize>(&mut self, values: [u64; N]) {
        values.into_iter().for_each(|value| self.value(value));
    }
    fn float(&mut self, value: f64) {
        self.0.extend(value.to_ne_bytes());
    }
    /// The start of an array of `count` records, which follow as `words`.
    fn count(&mut self, count: usize) {
        self.value(count as u64);
    }
    fn words(&mut self, words: &[u32]) {
        self.0.extend_from_slice(bytemuck::cast_slice(words));
    }
    fn array<T: Pod>(&mut self, values: &[T]) {
        self.count(values.len());
        self.0.extend_from_slice(bytemuck::cast_slice(values));
    }
    fn tensor(&mut self, tensor: &Tensor) {
        let flat = tensor.flatten_all().unwrap();
        match tensor.dtype() {
            DType::F32 => self.array(&flat.to_vec1::<f32>().unwrap()),
            DType::F16 => self.array(&flat.to_vec1::<f16>().unwrap()),
            _ => self.array(&flat.to_vec1::<bf16>().unwrap()),
        }
    }
}

/// The arrays of a file of results, one after another.
struct Results {
    bytes: Vec<u8>,
    at: usize,
}

impl Results {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }
    fn array<T: Pod>(&mut self) -> Vec<T> {
        let count = u64::from_ne_bytes(self.bytes[self.at..self.at + 8].try_into().unwrap());
        let start = self.at + 8;
        self.at = start + count as usize * size_of::<T>();
        self.bytes[start..self.at]
            .chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
            .collect()
    }
}

fn below(random: &mut Random, n: usize) -> usize {
    (random.word() % n as u64) as usize
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[below(random, from.len())]
}

/// Uniform in (0, 1).
fn unit(random: &mut Random) -> f64 {
    f64::from(random.signed()) / 2.0 + 0.5
}

fn tensor(values: Vec<f32>, dims: &[usize], dtype: DType) -> Tensor {
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn code(dtype: DType) -> u64 {
    FLOATS.iter().position(|&d| d == dtype).unwrap() as u64
}

fn draws(random: &mut Random) -> Draws {
    let attempt = below(random, 6) as u32;
    Draws { seed: random.word(), sample: random.word() as u32, attempt }
}

// ---- mask ----

struct MaskCase {
    law: Law,
    exempt: bool,
    rows: Vec<(Draws, u32, usize, Vec<TokenGrid>)>,
}

fn mask_case(random: &mut Random) -> MaskCase {
    let any = unit(random);
    let rho = pick(random, &[0.0, 1.0, 0.99, 0.5, any]);
    let law = match random.word() % 3 {
        0 => Law::Bernoulli { rho },
        1 => Law::ExactK { rho },
        _ => Law::Blocks { rho, block: 1 + below(random, 5) },
    };
    let rows = (0..below(random, 5))
        .map(|_| {
            let (mut grids, mut next) = (vec![], below(random, 3));
            for _ in 0..below(random, 4) {
                let (rows, cols) = (below(random, 25), below(random, 25));
                let stride = cols + below(random, 2);
                grids.push(TokenGrid { start: next, rows, cols, stride });
                next += rows * stride + below(random, 2);
            }
            let sentence = pick(random, &[0, 0, 3, WHOLE_RESPONSE]);
            (draws(random), sentence, next + below(random, 40), grids)
        })
        .collect();
    MaskCase { law, exempt: random.word().is_multiple_of(2), rows }
}

impl MaskCase {
    fn kept(&self) -> mask::Kept {
        let rows: Vec<mask::Row<'_>> = self
            .rows
            .iter()
            .map(|(draws, sentence, tokens, grids)| mask::Row {
                draws: *draws,
                sentence: *sentence,
                tokens: *tokens,
                grids,
            })
            .collect();
        mask::draw(self.law, &rows, self.exempt).unwrap()
    }

    fn write(&self, kept: &mask::Kept, bits: &mask::Bitmask, to: &mut Cases) {
        let (law, block) = match self.law {
            Law::Bernoulli { .. } => (0, 1),
            Law::ExactK { .. } => (1, 1),
            Law::Blocks { block, .. } => (2, block),
        };
        to.values([law, block as u64, u64::from(self.exempt)]);
        to.float(self.law.rho());
        to.values([kept.indices.len() as u64, bits.words.len() as u64]);
        to.count(self.rows.len());
        let mut first_grid = 0;
        for (r, (draws, sentence, tokens, grids)) in self.rows.iter().enumerate() {
            to.values([draws.seed, u64::from(kept.cu_seqlens[r]), bits.starts[r] as u64]);
            let grid_count = grids.len() as u32;
            to.words(&[draws.sample, draws.attempt, *sentence, *tokens as u32]);
            to.words(&[first_grid, grid_count, 0, 0]);
            first_grid += grid_count;
        }
        let grids: Vec<[u32; 4]> = self
            .rows
            .iter()
            .flat_map(|row| &row.3)
            .map(|g| [g.start, g.rows, g.cols, g.stride].map(|v| v as u32))
            .collect();
        to.array(&grids);
    }
}

/// Kept indices and bitmasks, equal bit for bit.
pub fn mask(program: &Path, calls: usize) -> Result<String, String> {
    let mut random = Random(1);
    let mut file = Cases::default();
    let cases: Vec<(mask::Kept, mask::Bitmask, Law)> = (0..calls)
        .map(|_| {
            let case = mask_case(&mut random);
            let kept = case.kept();
            let bits = kept.bitmask();
            case.write(&kept, &bits, &mut file);
            (kept, bits, case.law)
        })
        .collect();
    let mut results = Results::new(replay(program, &file.0));
    let (mut rows, mut tokens) = (0, 0u64);
    for (c, (kept, bits, law)) in cases.iter().enumerate() {
        if results.array::<u32>() != kept.indices || results.array::<u32>() != bits.words {
            return Err(format!("call {c}, {law:?}: another mask"));
        }
        rows += kept.rows();
        tokens += kept.tokens.iter().map(|&t| u64::from(t)).sum::<u64>();
    }
    Ok(format!("{calls} calls, {rows} rows, {tokens} tokens, equal bit for bit"))
}

// ---- token ----

struct TokenRow {
    params: Params,
    draws: Draws,
    sentence: u32,
    step: u64,
    history: Vec<u32>,
}

fn token_row(random: &mut Random, vocab: usize) -> TokenRow {
    let (any, some) = (unit(random), 1 + below(random, vocab));
    let params = Params {
        temperature: pick(random, &[0.0, 1.0, 1.0, 0.7, 0.2, 2.5]),
        top_k: pick(random, &[0, 0, 1, vocab, vocab + 5, some]),
        top_p: pick(random, &[1.0, 1.0, 0.9, 0.5, 1e-9, any]),
        min_p: pick(random, &[0.0, 0.0, 0.05, 0.5, any]),
        repetition_penalty: pick(random, &[1.0, 1.0, 1.3, 0.8]),
    };
    let history = (0..below(random, 20)).map(|_| below(random, vocab) as u32).collect();
    let step = pick(random, &[0, 5, 77, (1 << 34) - 1]);
    TokenRow {
        params,
        draws: draws(random),
        sentence: pick(random, &[0, 2, WHOLE_RESPONSE]),
        step,
        history,
    }
}

impl TokenRow {
    fn row(&self) -> token::Row<'_> {
        token::Row {
            params: self.params,
            draws: self.draws,
            sentence: self.sentence,
            step: self.step,
            history: &self.history,
        }
    }

    fn write(&self, history_start: usize, to: &mut Cases) {
        let p = &self.params;
        let scale = if p.temperature == 0.0 { 0.0 } else { (1.0 / p.temperature) as f32 };
        to.values([self.draws.seed, self.step, history_start as u64]);
        to.float(p.top_p);
        to.float(p.min_p);
        to.words(&[scale.to_bits(), (p.repetition_penalty as f32).to_bits()]);
        to.words(&[self.draws.sample, self.draws.attempt, self.sentence, p.top_k as u32]);
        to.words(&[self.history.len() as u32, 0]);
    }

    /// Whether the draw lies in this token's part of the distribution, or within 1e-6 of it, with a filter moved
    /// by at most 1e-6.
    fn may_draw(&self, logits: &[f32], got: Sampled) -> bool {
        let logits: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
        let u = self.draws.uniform(Purpose::Token, self.sentence, self.step);
        let nudges = [0.0, -1e-6, 1e-6];
        nudges.iter().flat_map(|p| nudges.iter().map(move |m| (p, m))).any(|(p, m)| {
            let mut params = self.params;
            params.top_p = (params.top_p + p).min(1.0);
            params.min_p *= 1.0 + m;
            exact::check(got, &exact::reference(&logits, &params, &self.history), u).is_ok()
        })
    }
}

fn logits(random: &mut Random, rows: usize, vocab: usize, dtype: DType) -> Tensor {
    let mut values = Vec::with_capacity(rows * vocab);
    for _ in 0..rows {
        let (spread, grid) =
            (pick(random, &[0.0, 0.5, 3.0, 20.0]), pick(random, &[0.0, 0.25, 2.0]));
        for _ in 0..vocab {
            let value = random.signed() * spread;
            let tied = if grid > 0.0 { (value / grid).round() * grid } else { value };
            values.push(if random.word().is_multiple_of(50) { f32::NEG_INFINITY } else { tied });
        }
        let last = values.len() - 1 - below(random, vocab);
        values[last] = match random.word() % 40 {
            0 => f32::NAN,
            1 => f32::INFINITY,
            _ => values[last],
        };
    }
    tensor(values, &[rows, vocab], dtype)
}

/// Tokens, log-probabilities and refusals: equal, but for draws within 1e-6 of a boundary, which are counted.
pub fn token(program: &Path, calls: usize) -> Result<String, String> {
    let mut random = Random(2);
    let mut file = Cases::default();
    let mut cases = vec![];
    for c in 0..calls {
        let long = 4096 + below(&mut random, 900);
        let vocab = pick(&mut random, &[1, 2, 31, 33, 77, 300, 1025, long]);
        let dtype = FLOATS[c % 3];
        let rows: Vec<TokenRow> =
            (0..1 + below(&mut random, 3)).map(|_| token_row(&mut random, vocab)).collect();
        let logits = logits(&mut random, rows.len(), vocab, dtype);
        file.values([code(dtype), vocab as u64]);
        file.count(rows.len());
        let mut history: Vec<u32> = vec![];
        for row in &rows {
            row.write(history.len(), &mut file);
            history.extend(&row.history);
        }
        file.tensor(&logits);
        file.array(&history);
        cases.push((rows, logits));
    }
    let mut results = Results::new(replay(program, &file.0));
    let (mut compared, mut near, mut refused) = (0, 0, 0);
    for (c, (rows, logits)) in cases.iter().enumerate() {
        let (tokens, log_probs, status) =
            (results.array::<u32>(), results.array::<f32>(), results.array::<u32>());
        for (r, row) in rows.iter().enumerate() {
            compared += 1;
            let own = logits.narrow(0, r, 1).unwrap();
            let Ok(cpu) = token::sample(&own, &[row.row()]) else {
                refused += 1;
                match status[r] {
                    0 => return Err(format!("call {c}, row {r}: only the CPU refuses it")),
                    _ => continue,
                }
            };
            let kernel = Sampled { token: tokens[r], log_prob: log_probs[r] };
            let slack = 4e-5 + 2e-6 * f64::from(cpu[0].log_prob).abs();
            let close = (f64::from(kernel.log_prob) - f64::from(cpu[0].log_prob)).abs() <= slack;
            if status[r] == 0 && kernel.token == cpu[0].token && close {
                continue;
            }
            near += 1;
            let values = wide(&own);
            if status[r] != 0 || ![cpu[0], kernel].iter().all(|&got| row.may_draw(&values, got)) {
                return Err(format!(
                    "call {c}, row {r}: {:?} on the CPU, {kernel:?} by the kernel",
                    cpu[0]
                ));
            }
        }
    }
    if near * 100 > compared {
        return Err(format!("{near} of {compared} rows differ near a boundary"));
    }
    Ok(format!("{compared} rows, {refused} refused by both, {near} on a boundary"))
}

// ---- pool ----

const MODES: [Mode; 6] =
    [Mode::Cls, Mode::Mean, Mode::Max, Mode::Last, Mode::WeightedMean, Mode::MeanSqrtLen];

struct PoolCase {
    options: pool::Options,
    /// 8-bit codes instead of `options.dtype`.
    codes: bool,
    states: Tensor,
    cu: Vec<u32>,
    /// Padded layout: `[B, T]`.
    mask: Option<Tensor>,
    /// Weight, bias, residual.
    norm: Option<(Tensor, Option<Tensor>, Option<Tensor>)>,
}

const EPS: f64 = 1e-3;

fn pool_case(random: &mut Random, dtype: DType) -> PoolCase {
    let (batch, odd) = (below(random, 5), 1 + below(random, 70));
    let hidden = pick(random, &[1, 8, 64, 384, odd]);
    let lengths: Vec<usize> = (0..batch)
        .map(|_| {
            let any = below(random, 330);
            pick(random, &[0, 1, 2, 5, 63, 64, 65, 128, 129, any])
        })
        .collect();
    let width = lengths.iter().max().map_or(1, |m| m + 1);
    let padded = random.word().is_multiple_of(3);
    let total = if padded { batch * width } else { lengths.iter().sum() };
    let dims: &[usize] = if padded { &[batch, width, hidden] } else { &[total, hidden] };
    let scale = pick(random, &[1.0, 1.0, 100.0, 1e-3]);
    let states = tensor(random.values(total * hidden, scale), dims, dtype);
    let mask = padded.then(|| {
        let marks: Vec<u8> = match random.word() % 3 {
            0 => (0..total).map(|i| u8::from(i % width < lengths[i / width])).collect(),
            1 => (0..total).map(|i| u8::from(width - i % width <= lengths[i / width])).collect(),
            _ => (0..total).map(|_| u8::from(!random.word().is_multiple_of(3))).collect(),
        };
        Tensor::from_vec(marks, (batch, width), &Device::Cpu).unwrap()
    });
    let mut cu = vec![0];
    lengths.iter().for_each(|&n| cu.push(cu[cu.len() - 1] + n as u32));
    let norm = random.word().is_multiple_of(3).then(|| {
        let [weight, bias] =
            [0, 1].map(|_| tensor(random.values(hidden, 2.0), &[hidden], DType::F32));
        let residual = random
            .word()
            .is_multiple_of(2)
            .then(|| tensor(random.values(total * hidden, scale), dims, dtype));
        (weight, random.word().is_multiple_of(2).then_some(bias), residual)
    });
    let codes = random.word().is_multiple_of(5);
    let options = pool::Options {
        mode: pick(random, &MODES),
        dim: Some(pick(random, &[hidden, hidden, 1 + hidden / 2])),
        normalize: codes || random.word().is_multiple_of(2),
        dtype: pick(random, &FLOATS),
    };
    PoolCase { options, codes, states, cu, mask, norm }
}

impl PoolCase {
    fn dim(&self) -> usize {
        self.options.dim.unwrap()
    }

    fn write(&self, to: &mut Cases) {
        let o = &self.options;
        let mode = MODES.iter().position(|&m| m == o.mode).unwrap() as u64;
        let dims = self.states.dims();
        let (batch, hidden) = (self.cu.len() - 1, dims[dims.len() - 1]);
        let out = if self.codes { 3 } else { code(o.dtype) };
        to.values([code(self.states.dtype()), out, mode, u64::from(o.normalize)]);
        to.values([batch, hidden, self.dim()].map(|v| v as u64));
        to.float(EPS);
        match &self.mask {
            Some(mask) => {
                to.value(dims[1] as u64);
                to.array::<u32>(&[]);
                to.array(&mask.flatten_all().unwrap().to_vec1::<u8>().unwrap());
            }
            None => {
                to.value(0);
                to.array(&self.cu);
                to.array::<u8>(&[]);
            }
        }
        to.tensor(&self.states);
        let norm = self.norm.as_ref();
        for part in [norm.map(|n| &n.0), norm.and_then(|n| n.1.as_ref())] {
            to.array(&part.map(wide).unwrap_or_default());
        }
        match norm.and_then(|n| n.2.as_ref()) {
            Some(residual) => to.tensor(residual),
            None => to.array::<u8>(&[]),
        }
    }

    /// `[B, D]` by the CPU path, codes as they are.
    fn cpu(&self) -> Vec<f64> {
        let rows = match &self.mask {
            Some(mask) => pool::Rows::Padded { mask },
            None => pool::Rows::Packed { cu_seqlens: &self.cu },
        };
        let norm = self.norm.as_ref().map(|(weight, bias, residual)| FinalNorm {
            residual: residual.as_ref(),
            weight,
            bias: bias.as_ref(),
            eps: EPS,
        });
        if self.codes {
            let codes = pool::pool_i8(&self.states, rows, &self.options, norm.as_ref()).unwrap();
            return codes.codes.iter().map(|&c| f64::from(c)).collect();
        }
        let pooled = pool::pool(&self.states, rows, &self.options, norm.as_ref()).unwrap();
        wide(&pooled).into_iter().map(f64::from).collect()
    }

    fn read(&self, from: &mut Results) -> Vec<f64> {
        let bytes: Vec<u8> = from.array();
        let half = |b: &[u8]| u16::from_ne_bytes([b[0], b[1]]);
        match self.options.dtype {
            _ if self.codes => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
            DType::F16 => bytes.chunks(2).map(|b| f16::from_bits(half(b)).to_f64()).collect(),
            DType::BF16 => bytes.chunks(2).map(|b| bf16::from_bits(half(b)).to_f64()).collect(),
            _ => bytes
                .chunks(4)
                .map(|b| f64::from(f32::from_ne_bytes([b[0], b[1], b[2], b[3]])))
                .collect(),
        }
    }

    /// Both paths add in the same order; without weights, LayerNorm and normalisation every operation is the same.
    fn same_bits(&self) -> bool {
        self.norm.is_none() && !self.options.normalize && self.options.mode != Mode::WeightedMean
    }

    /// How far apart the two paths may be at a value of `size`, in vectors of which `largest` is the largest value.
    ///
    /// Each path is within 65 + n / 64 roundings of the exact sum of terms that are at most `largest` term; a LayerNorm adds
    /// roundings of its two sums, and normalisation those of the norm.
    fn slack(&self, size: f64, n: f64, largest: f64) -> f64 {
        let rounded = match self.options.dtype {
            _ if self.codes => return 1.0,
            DType::F16 => 2f64.powi(-10) * size + 2f64.powi(-24),
            DType::BF16 => 2f64.powi(-7) * size,
            _ => 4.0 * U * size,
        };
        let inner = if self.norm.is_some() { 8.0 } else { 1.0 };
        2.0 * (70.0 + n / 64.0) * U * inner * largest + rounded
    }

    /// The largest token value that goes into the vectors, on the scale of the sum's result.
    fn largest_term(&self, n: f64) -> f64 {
        let peak = |t: &Tensor| wide(t).iter().fold(0f32, |m, v| m.max(v.abs()));
        let term = match &self.norm {
            // A standardised value is at most the root of H.
            Some((weight, bias, _)) => {
                let hidden = wide(weight).len() as f64;
                f64::from(peak(weight)) * hidden.sqrt() + f64::from(bias.as_ref().map_or(0.0, peak))
            }
            None => f64::from(peak(&self.states)),
        };
        if self.options.mode == Mode::MeanSqrtLen { term * n.sqrt() } else { term }
    }
}

/// Forward pooling: equal bit for bit where all operations are the same, else within the documented bounds.
pub fn pool(program: &Path, calls: usize) -> Result<String, String> {
    let mut random = Random(3);
    let mut file = Cases::default();
    let cases: Vec<PoolCase> = (0..calls)
        .map(|c| {
            let case = pool_case(&mut random, FLOATS[c % 3]);
            case.write(&mut file);
            case
        })
        .collect();
    let mut results = Results::new(replay(program, &file.0));
    let (mut exact, mut close, mut worst) = (0, 0, 0f64);
    for (c, case) in cases.iter().enumerate() {
        let (cpu, kernel) = (case.cpu(), case.read(&mut results));
        if cpu.len() != kernel.len() {
            return Err(format!("case {c}: {} values, {} by the kernel", cpu.len(), kernel.len()));
        }
        // Before normalisation, the same states give the length that both divided by.
        let plain = PoolCase {
            options: pool::Options { normalize: false, dtype: DType::F32, ..case.options },
            codes: false,
            states: case.states.clone(),
            cu: case.cu.clone(),
            mask: case.mask.clone(),
            norm: case.norm.clone(),
        };
        let unnormalised = plain.cpu();
        let n = 330.0;
        for (b, (cpu, kernel)) in cpu.chunks(case.dim()).zip(kernel.chunks(case.dim())).enumerate()
        {
            let before = &unnormalised[b * case.dim()..(b + 1) * case.dim()];
            let length = before.iter().map(|v| v * v).sum::<f64>().sqrt();
            let mut largest = case.largest_term(n);
            if case.options.normalize && length > 0.0 {
                // An error of every value by `largest` changes the length by at most its root of D.
                largest *= (1.0 + (case.dim() as f64).sqrt()) / length;
            }
            for (k, (&x, &y)) in cpu.iter().zip(kernel).enumerate() {
                let same = x == y || (x.is_nan() && y.is_nan());
                if case.same_bits() {
                    exact += 1;
                } else {
                    close += 1;
                    worst = if same || case.codes {
                        worst
                    } else {
                        worst.max((x - y).abs() / length.max(1.0))
                    };
                }
                let fits = !case.same_bits() && (x - y).abs() <= case.slack(x.abs(), n, largest);
                if !same && !fits {
                    let o = &case.options;
                    return Err(format!(
                        "case {c}, sequence {b}, column {k}, {o:?}: {x} and {y} by the kernel"
                    ));
                }
            }
        }
    }
    Ok(format!(
        "{calls} calls, {exact} values bit for bit, {close} within the bounds, largest difference {worst:.1e}"
    ))
}

// ---- cosine ----

/// The kernel's bound: 32 lanes of 4 (f32) or 8 values.
fn kernel_bound(d: usize, dtype: DType) -> f64 {
    let vec = if dtype == DType::F32 { 4 } else { 8 };
    bound(d.div_ceil(32 * vec) * vec + 5)
}

fn bound(roundings: usize) -> f64 {
    let g = roundings as f64 * U / (1.0 - roundings as f64 * U);
    2.0 * g / (1.0 - g) + 1e-13
}

struct RowCase {
    candidates: Tensor,
    references: Tensor,
    groups: Option<Vec<u32>>,
    thresholds: Vec<f64>,
}

impl RowCase {
    fn write(&self, to: &mut Cases) {
        to.values([code(self.candidates.dtype()), self.candidates.dim(1).unwrap() as u64]);
        to.tensor(&self.candidates);
        to.tensor(&self.references);
        to.array(self.groups.as_deref().unwrap_or_default());
        to.array(&self.thresholds);
    }

    fn cpu(&self) -> RowScores {
        rows(&self.candidates, &self.references, self.groups.as_deref(), &self.thresholds).unwrap()
    }
}

fn row_case(random: &mut Random, dtype: DType) -> RowCase {
    let any = 1 + below(random, 600);
    let (d, r) = (pick(random, &[1, 5, 24, 40, 384, 768, any]), below(random, 30));
    let grouped = random.word().is_multiple_of(2);
    let mut groups = vec![0];
    (0..r).for_each(|_| {
        groups.push(groups[groups.len() - 1] + if grouped { below(random, 5) as u32 } else { 1 })
    });
    let n = groups[r] as usize;
    let base = random.values(d, 1.0);
    let mut side = |rows: usize| {
        let mut values = vec![];
        for _ in 0..rows {
            let (noise, kind) = (pick(random, &[0.0, 0.05, 0.3, 2.0]), random.word() % 40);
            let scale = if kind == 0 { 0.0 } else { pick(random, &[1.0, 0.25, -2.0]) };
            values.extend(base.iter().map(|b| (b + random.signed() * noise) * scale));
            let last = values.len() - 1;
            values[last] =
                if kind == 1 { pick(random, &[f32::NAN, f32::INFINITY]) } else { values[last] };
        }
        tensor(values, &[rows, d], dtype)
    };
    let (candidates, references) = (side(n), side(r));
    RowCase {
        candidates,
        references,
        groups: grouped.then_some(groups),
        thresholds: vec![0.97, 0.9, 0.0, 1.0, -1.0],
    }
}

/// Scores of rows within both bounds, the same NaNs, the same first candidate below each threshold.
pub fn cosine_rows(program: &Path, calls: usize) -> Result<String, String> {
    let mut random = Random(4);
    let mut file = Cases::default();
    let cases: Vec<RowCase> = (0..calls).map(|c| row_case(&mut random, FLOATS[c % 3])).collect();
    cases.iter().for_each(|case| case.write(&mut file));
    let mut results = Results::new(replay(program, &file.0));
    let (mut scores, mut decisions, mut worst) = (0, 0, 0f64);
    for (c, case) in cases.iter().enumerate() {
        let cpu = case.cpu();
        let (kernel, first, tally) =
            (results.array::<f32>(), results.array::<u32>(), results.array::<u64>());
        let d = case.candidates.dim(1).unwrap();
        let slack = bound(d.div_ceil(32) + 6) + kernel_bound(d, case.candidates.dtype()) + 2.0 * U;
        for (i, (x, y)) in wide(&cpu.scores).iter().zip(&kernel).enumerate() {
            let apart = (f64::from(*x) - f64::from(*y)).abs();
            let same = x.is_nan() && y.is_nan() || apart <= slack;
            if !same {
                return Err(format!("call {c}, candidate {i}, D {d}: {x} and {y} by the kernel"));
            }
            worst = worst.max(apart);
            scores += 1;
        }
        if tally[0] != cpu.nan {
            return Err(format!("call {c}: {} NaN scores, {} by the kernel", cpu.nan, tally[0]));
        }
        let first: Vec<Option<u32>> = first.iter().map(|&k| (k != u32::MAX).then_some(k)).collect();
        if first != cpu.first_below {
            return Err(format!("call {c}: another first candidate below a threshold"));
        }
        decisions += first.len();
    }
    Ok(format!("{scores} scores, {decisions} decisions, largest difference {worst:.1e}"))
}

/// `n` pairs around thresholds, one to one: the kernel decides as float64 does.
pub fn decisions(program: &Path, n: usize) -> Result<String, String> {
    const BATCH: usize = 1000;
    let mut random = Random(5);
    let mut file = Cases::default();
    let cases: Vec<_> = (0..n / BATCH)
        .map(|c| {
            let d = pick(&mut random, &[2, 3, 8, 24, 33, 48]);
            let b = batch(&mut random, BATCH, d, FLOATS[c % 3]);
            let (candidates, references) = (b.candidates.clone(), b.references.clone());
            let case =
                RowCase { candidates, references, groups: None, thresholds: b.thresholds.clone() };
            case.write(&mut file);
            b
        })
        .collect();
    let mut results = Results::new(replay(program, &file.0));
    let (mut decisions, mut free, mut rechecked) = (0, 0, 0);
    for (c, case) in cases.iter().enumerate() {
        let (_, first, tally) =
            (results.array::<f32>(), results.array::<u32>(), results.array::<u64>());
        rechecked += tally[1];
        for (i, &cosine) in case.cosines.iter().enumerate() {
            for (t, &threshold) in case.thresholds.iter().enumerate() {
                decisions += 1;
                let below = first[i * case.thresholds.len() + t] == 0;
                if on_the_edge(cosine, threshold) {
                    free += 1;
                } else if below != (cosine < threshold) {
                    return Err(format!(
                        "batch {c}, pair {i}: {cosine:.17} against {threshold:.17}"
                    ));
                }
            }
        }
    }
    let share = rechecked as f64 / n as f64;
    Ok(format!(
        "{n} pairs, {decisions} decisions, {free} within 1e-12 of their threshold; recheck share {share:.3}"
    ))
}
