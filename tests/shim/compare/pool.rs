//! Pooling.

use std::path::Path;

use bdhs::ops::pool::{self, FinalNorm, Mode};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::{Cases, FLOATS, Results, U, below, code, pick, tensor, wide};
use crate::numbers::Random;
use crate::replay;

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
