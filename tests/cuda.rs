//! The ops on a GPU, against float64 and against the CPU. Every test is skipped, with a message, where there is no GPU that the
//! kernels run on. `scripts/cuda-on-cpu` runs them without one, the kernels on the CPU.
//!
//! candle's own kernels are needed by few tests, which say so where those are missing.

use std::sync::Arc;

use bdhs::Error;
use bdhs::ops::cosine;
use bdhs::ops::cuda;
use bdhs::ops::mask::{self, Law, Piece, Positions, TokenGrid};
use bdhs::ops::philox::{Draws, WHOLE_RESPONSE};
use bdhs::ops::pool::{self, FinalNorm, Mode, Options, Rows};
use bdhs::ops::token::{self, Params};
use candle_core::{DType, Device, Tensor, Var};
use cudarc::driver::CudaStream;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::{bf16, f16};

const MODES: [Mode; 6] =
    [Mode::Cls, Mode::Mean, Mode::Max, Mode::Last, Mode::WeightedMean, Mode::MeanSqrtLen];
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The first GPU, or `None` after saying why the test is skipped. With `BDHS_NEED_GPU` set, having none is a failure.
fn gpu() -> Option<Device> {
    match cuda::probe(0) {
        Ok(_) => Some(Device::new_cuda_with_stream(0).unwrap()),
        Err(error) => {
            assert!(std::env::var_os("BDHS_NEED_GPU").is_none(), "no GPU: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn stream(device: &Device) -> Arc<CudaStream> {
    device.as_cuda_device().unwrap().cuda_stream()
}

/// Deterministic values, about normal.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ self.0 >> 33;
        x.wrapping_mul(0xFF51_AFD7_ED55_8CCD) >> 11
    }

    fn below(&mut self, n: usize) -> usize {
        (self.word() % n as u64) as usize
    }

    fn normal(&mut self) -> f32 {
        let uniform = |x: u64| (x as f64 + 0.5) / (1u64 << 53) as f64;
        ((0..6).map(|_| uniform(self.word())).sum::<f64>() - 3.0) as f32 * std::f32::consts::SQRT_2
    }

    fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// The same values, rounded to `dtype`, on the CPU and on the GPU. Converted on the host: candle's kernels are not needed.
fn both(device: &Device, values: &[f32], shape: &[usize], dtype: DType) -> (Tensor, Tensor) {
    let on = |device: &Device| match dtype {
        DType::F16 => {
            Tensor::from_vec(values.iter().map(|&x| f16::from_f32(x)).collect(), shape, device)
        }
        DType::BF16 => {
            Tensor::from_vec(values.iter().map(|&x| bf16::from_f32(x)).collect(), shape, device)
        }
        _ => Tensor::from_vec(values.to_vec(), shape, device),
    };
    (on(&Device::Cpu).unwrap(), on(device).unwrap())
}

/// Values on the host, widened.
fn values(tensor: &Tensor) -> Vec<f64> {
    let host = tensor.to_device(&Device::Cpu).unwrap().flatten_all().unwrap();
    host.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

#[track_caller]
fn assert_close(seen: &[f64], expected: &[f64], absolute: f64, relative: f64, what: &str) {
    assert_eq!(seen.len(), expected.len(), "{what}: length");
    for (i, (s, e)) in seen.iter().zip(expected).enumerate() {
        let close =
            (s.is_nan() && e.is_nan()) || (s - e).abs() <= absolute + relative * e.abs() || s == e;
        assert!(close, "{what}: {s} at {i}, expected {e}");
    }
}

// ---- pool ----

/// Pooling in float64, `[B, D]`.
fn pooled_f64(states: &[f64], hidden: usize, rows: &[Vec<usize>], options: &Options) -> Vec<f64> {
    let dim = options.dim.unwrap_or(hidden);
    let mut out = vec![];
    for rows in rows {
        let n = rows.len() as f64;
        let mut v = vec![0f64; dim];
        for (c, v) in v.iter_mut().enumerate() {
            let x = rows.iter().map(|row| states[row * hidden + c]);
            *v = match (options.mode, rows.is_empty()) {
                (_, true) => 0.0,
                (Mode::Cls, _) => x.clone().next().unwrap(),
                (Mode::Last, _) => x.clone().next_back().unwrap(),
                (Mode::Max, _) => x.fold(f64::NEG_INFINITY, f64::max),
                (Mode::Mean, _) => x.sum::<f64>() / n,
                (Mode::MeanSqrtLen, _) => x.sum::<f64>() / n.sqrt(),
                (Mode::WeightedMean, _) => {
                    x.enumerate().map(|(i, x)| (i + 1) as f64 * x).sum::<f64>()
                        / (n * (n + 1.0) / 2.0)
                }
            };
        }
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if options.normalize && norm > 0.0 {
            v.iter_mut().for_each(|x| *x /= norm);
        }
        out.extend(v);
    }
    out
}

/// Lengths that cover: empty, one, a part, just over a part, several blocks' worth.
const LENGTHS: [usize; 7] = [3, 0, 1, 64, 65, 700, 130];

fn packed_rows() -> (Vec<u32>, Vec<Vec<usize>>) {
    let mut cu = vec![0u32];
    let mut rows = vec![];
    for n in LENGTHS {
        let first = cu[cu.len() - 1] as usize;
        rows.push((first..first + n).collect());
        cu.push((first + n) as u32);
    }
    (cu, rows)
}

#[test]
fn pool_packed() {
    let Some(device) = gpu() else { return };
    let mut random = Random(1);
    let (cu, rows) = packed_rows();
    let tokens = cu[cu.len() - 1] as usize;
    for (case, dtype) in [(0, FLOATS[0]), (1, FLOATS[1]), (2, FLOATS[2])] {
        for (m, mode) in MODES.into_iter().enumerate() {
            let hidden = [40, 33, 384][(case + m) % 3];
            let (cpu, gpu) = both(&device, &random.vec(tokens * hidden), &[tokens, hidden], dtype);
            let options = Options {
                dim: if m % 2 == 0 { None } else { Some(hidden - 7) },
                normalize: m % 3 == 0,
                dtype: FLOATS[(case + m + 1) % 3],
                ..Options::new(mode)
            };
            let what = format!("{dtype:?}, {options:?}");
            let packed = Rows::Packed { cu_seqlens: &cu };
            let seen = pool::pool(&gpu, packed, &options, None).unwrap();
            assert_eq!(
                (seen.dtype(), seen.dims()),
                (options.dtype, &[LENGTHS.len(), options.dim.unwrap_or(hidden)][..])
            );
            let seen = values(&seen);
            let unit = roundoff(options.dtype);
            let reference = pooled_f64(&values(&cpu), hidden, &rows, &options);
            assert_close(
                &seen,
                &reference,
                2e-5 + 0.1 * unit,
                1.01 * unit,
                &format!("{what}, float64"),
            );
            let twin = values(&pool::pool(&cpu, packed, &options, None).unwrap());
            assert_close(&seen, &twin, 1e-6, 2.0 * unit, &format!("{what}, CPU"));
        }
    }
}

#[test]
fn pool_padded_normed_and_strided() {
    let Some(device) = gpu() else { return };
    let mut random = Random(2);
    let (batch, width, hidden) = (4, 70, 48);
    // Right padding, left padding, holes, none.
    let marks: Vec<u8> = (0..batch * width)
        .map(|i| match (i / width, i % width) {
            (0, t) => u8::from(t < 66),
            (1, t) => u8::from(t > 40),
            (2, t) => u8::from(t % 3 != 1),
            _ => 0,
        })
        .collect();
    for dtype in FLOATS {
        // A column and a row more than is pooled, so that rows are strided and misaligned.
        let wide = random.vec(batch * width * (hidden + 1));
        let (cpu, gpu) = both(&device, &wide, &[batch, width, hidden + 1], dtype);
        let cut = |t: &Tensor| t.narrow(2, 1, hidden).unwrap();
        let (cpu, gpu) = (cut(&cpu), cut(&gpu));
        let (weight, gpu_weight) = both(&device, &random.vec(hidden), &[hidden], DType::F32);
        let (bias, gpu_bias) = both(&device, &random.vec(hidden), &[hidden], DType::F32);
        let (residual, gpu_residual) =
            both(&device, &random.vec(batch * width * hidden), &[batch, width, hidden], FLOATS[2]);
        for mode in MODES {
            let options = Options { normalize: true, ..Options::new(mode) };
            let mask = |device: &Device, kind: usize| match kind {
                0 => Tensor::from_vec(marks.clone(), (batch, width), device),
                1 => Tensor::from_vec(
                    marks.iter().map(|&m| u32::from(m) << 31).collect(),
                    (batch, width),
                    device,
                ),
                _ => Tensor::from_vec(
                    marks.iter().map(|&m| i64::from(m) << 40).collect(),
                    (batch, width),
                    device,
                ),
            };
            for (kind, normed) in [(0, false), (1, true), (2, true)] {
                let norm = FinalNorm {
                    residual: (kind == 2).then_some(&residual),
                    weight: &weight,
                    bias: (kind == 1).then_some(&bias),
                    eps: 1e-5,
                };
                let gpu_norm = FinalNorm {
                    residual: (kind == 2).then_some(&gpu_residual),
                    weight: &gpu_weight,
                    bias: (kind == 1).then_some(&gpu_bias),
                    eps: 1e-5,
                };
                let (on_cpu, on_gpu) =
                    (mask(&Device::Cpu, kind).unwrap(), mask(&device, kind).unwrap());
                let twin = pool::pool(
                    &cpu,
                    Rows::Padded { mask: &on_cpu },
                    &options,
                    normed.then_some(&norm),
                )
                .unwrap();
                let seen = pool::pool(
                    &gpu,
                    Rows::Padded { mask: &on_gpu },
                    &options,
                    normed.then_some(&gpu_norm),
                )
                .unwrap();
                let what = format!("{dtype:?}, {mode:?}, mask {kind}, LayerNorm {normed}");
                assert_close(&values(&seen), &values(&twin), 1e-5, 1e-5, &what);
                let twin = pool::pool_i8(
                    &cpu,
                    Rows::Padded { mask: &on_cpu },
                    &options,
                    normed.then_some(&norm),
                )
                .unwrap();
                let seen = pool::pool_i8(
                    &gpu,
                    Rows::Padded { mask: &on_gpu },
                    &options,
                    normed.then_some(&gpu_norm),
                )
                .unwrap();
                assert_eq!(seen.dim, hidden);
                let off =
                    seen.codes.iter().zip(&twin.codes).filter(|(s, t)| s.abs_diff(**t) > 1).count();
                assert_eq!(off, 0, "{what}: codes");
            }
        }
    }
}

#[test]
fn pool_bits_do_not_depend_on_the_batch() {
    let Some(device) = gpu() else { return };
    let (cu, rows) = packed_rows();
    let (tokens, hidden) = (cu[cu.len() - 1] as usize, 96);
    let values_ = Random(3).vec(tokens * hidden);
    let options = Options { normalize: true, ..Options::new(Mode::Mean) };
    let (_, all) = both(&device, &values_, &[tokens, hidden], DType::F32);
    let together =
        values(&pool::pool(&all, Rows::Packed { cu_seqlens: &cu }, &options, None).unwrap());
    for (b, rows) in rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let own = &values_[rows[0] * hidden..(rows[0] + rows.len()) * hidden];
        let (_, one) = both(&device, own, &[rows.len(), hidden], DType::F32);
        let alone =
            pool::pool(&one, Rows::Packed { cu_seqlens: &[0, rows.len() as u32] }, &options, None)
                .unwrap();
        assert_eq!(values(&alone), together[b * hidden..(b + 1) * hidden], "sequence {b}");
    }
}

#[test]
fn pool_gradients() {
    let Some(device) = gpu() else { return };
    let stream = stream(&device);
    let mut random = Random(4);
    let (cu, _) = packed_rows();
    let (tokens, hidden, batch) = (cu[cu.len() - 1] as usize, 40, LENGTHS.len());
    for dtype in FLOATS {
        for (m, mode) in MODES.into_iter().enumerate() {
            let dim = if m % 2 == 0 { hidden } else { hidden - 3 };
            let options = Options { dim: Some(dim), normalize: m % 3 != 0, ..Options::new(mode) };
            let (cpu, gpu) = both(&device, &random.vec(tokens * hidden), &[tokens, hidden], dtype);
            let (grad, gpu_grad) =
                both(&device, &random.vec(batch * dim), &[batch, dim], DType::F32);
            let var = Var::from_tensor(&cpu).unwrap();
            let pooled =
                pool::pool(&var, Rows::Packed { cu_seqlens: &cu }, &options, None).unwrap();
            let loss = (pooled * &grad).unwrap().sum_all().unwrap();
            let expected = values(loss.backward().unwrap().get(&var).unwrap());
            let places = cuda::pool::Places::packed(&stream, &cu, tokens).unwrap();
            let (states, _) = gpu.storage_and_layout();
            let (upstream, _) = gpu_grad.storage_and_layout();
            let (candle_core::Storage::Cuda(states), candle_core::Storage::Cuda(upstream)) =
                (&*states, &*upstream)
            else {
                panic!("not on a GPU")
            };
            let upstream = upstream.as_cuda_slice::<f32>().unwrap();
            macro_rules! gradient {
                ($ty:ty) => {{
                    let slice = states.as_cuda_slice::<$ty>().unwrap();
                    let rows = cuda::Rows::packed(slice, tokens, hidden).unwrap();
                    let mut out = stream.alloc_zeros::<$ty>(tokens * hidden).unwrap();
                    cuda::pool::pool_grad(&stream, &rows, &places, &options, upstream, &mut out)
                        .unwrap();
                    stream
                        .clone_dtoh(&out)
                        .unwrap()
                        .iter()
                        .map(|x| f64::from(*x))
                        .collect::<Vec<f64>>()
                }};
            }
            let seen = match dtype {
                DType::F16 => gradient!(f16),
                DType::BF16 => gradient!(bf16),
                _ => gradient!(f32),
            };
            let unit = roundoff(dtype);
            assert_close(
                &seen,
                &expected,
                1e-6 + 2f64.powi(-24),
                2.0 * unit + 1e-6,
                &format!("{dtype:?}, {options:?}"),
            );
        }
    }
}

/// Through candle's own backward, which needs candle's kernels.
#[test]
fn pool_is_differentiable_in_candle() {
    let Some(device) = gpu() else { return };
    if let Err(error) =
        Tensor::ones(2, DType::F32, &device).and_then(|x| (&x + &x)?.to_vec1::<f32>())
    {
        eprintln!("skipped: candle's own kernels do not run: {error}");
        return;
    }
    let (cpu, gpu) = both(&device, &Random(5).vec(6 * 8), &[6, 8], DType::F32);
    let gradient = |states: &Tensor| {
        let var = Var::from_tensor(states).unwrap();
        let options = Options { normalize: true, ..Options::new(Mode::Mean) };
        let pooled =
            pool::pool(&var, Rows::Packed { cu_seqlens: &[0, 2, 6] }, &options, None).unwrap();
        let weights =
            Tensor::arange(0f32, 16f32, states.device()).unwrap().reshape((2, 8)).unwrap();
        let loss = (pooled * weights).unwrap().sum_all().unwrap();
        values(loss.backward().unwrap().get(&var).unwrap())
    };
    assert_close(&gradient(&gpu), &gradient(&cpu), 1e-6, 1e-5, "gradient");
}

// ---- cosine ----

/// Rows with repeated, opposite, zero, NaN and near rows among random ones.
fn awkward(random: &mut Random, rows: usize, d: usize) -> Vec<f32> {
    let centre = random.vec(d);
    let mut all = vec![];
    for i in 0..rows {
        let spread = [0.0, 0.02, 0.3, 3.0][random.below(4)];
        let sign = if random.below(9) == 0 { -1.0 } else { 1.0 };
        let mut row: Vec<f32> =
            centre.iter().map(|c| sign * (c + spread * random.normal())).collect();
        match i % 23 {
            7 => row.fill(0.0),
            11 => row[random.below(d)] = f32::NAN,
            _ => {}
        }
        all.extend(row);
    }
    all
}

const THRESHOLDS: [f64; 5] = [0.97, 0.5, 1.0, -1.0, 0.999];

#[test]
fn cosine_rows() {
    let Some(device) = gpu() else { return };
    let mut random = Random(6);
    for dtype in FLOATS {
        for (d, r) in [(7, 9), (384, 12), (768, 3)] {
            let groups: Vec<u32> = (0..=r as u32).map(|i| i * (i + 1) / 2).collect();
            let n = groups[r] as usize;
            let (x, gpu_x) = both(&device, &awkward(&mut random, n, d), &[n, d], dtype);
            let (y, gpu_y) = both(&device, &awkward(&mut random, r, d), &[r, d], dtype);
            let twin = cosine::rows(&x, &y, Some(&groups), &THRESHOLDS).unwrap();
            let seen = cosine::rows(&gpu_x, &gpu_y, Some(&groups), &THRESHOLDS).unwrap();
            let what = format!("{dtype:?}, d = {d}");
            assert_eq!(seen.first_below, twin.first_below, "{what}");
            assert_eq!(seen.nan, twin.nan, "{what}");
            assert_close(&values(&seen.scores), &values(&twin.scores), 1e-5, 0.0, &what);
            // One to one, and no thresholds.
            let ones = cosine::rows(&gpu_y, &gpu_y, None, &[]).unwrap();
            assert!(ones.first_below.is_empty());
            assert_close(
                &values(&ones.scores),
                &values(&cosine::rows(&y, &y, None, &[]).unwrap().scores),
                1e-5,
                0.0,
                &what,
            );
        }
    }
}

#[test]
fn cosine_all_pairs() {
    let Some(device) = gpu() else { return };
    let mut random = Random(7);
    for dtype in FLOATS {
        for (n, m, d) in [(1, 1, 1), (40, 150, 33), (130, 20, 64)] {
            let (a, gpu_a) = both(&device, &awkward(&mut random, n, d), &[n, d], dtype);
            let (b, gpu_b) = both(&device, &awkward(&mut random, m, d), &[m, d], dtype);
            let what = format!("{dtype:?}, {n} x {m}, d = {d}");
            let matrix = cosine::matrix(&gpu_a, &gpu_b).unwrap();
            assert_eq!(matrix.dims(), [n, m]);
            let bound = 1.1 * (f64::from(d.next_multiple_of(32) as u32) + 16.0) * 2f64.powi(-22);
            assert_close(
                &values(&matrix),
                &values(&cosine::matrix(&a, &b).unwrap()),
                bound,
                0.0,
                &what,
            );
            for symmetric in [false, true] {
                let (right, gpu_right) =
                    if symmetric { (None, None) } else { (Some(&b), Some(&gpu_b)) };
                for (count, gpu_count) in [
                    (
                        cosine::count_above(&a, right, &THRESHOLDS),
                        cosine::count_above(&gpu_a, gpu_right, &THRESHOLDS),
                    ),
                    (
                        cosine::count_below(&a, right, &THRESHOLDS),
                        cosine::count_below(&gpu_a, gpu_right, &THRESHOLDS),
                    ),
                ] {
                    let (count, gpu_count) = (count.unwrap(), gpu_count.unwrap());
                    assert_eq!(
                        (gpu_count.counts, gpu_count.pairs, gpu_count.nan),
                        (count.counts, count.pairs, count.nan),
                        "{what}"
                    );
                }
                let pairs = cosine::pairs_above(&a, right, 0.9).unwrap();
                let gpu_pairs = cosine::pairs_above(&gpu_a, gpu_right, 0.9).unwrap();
                assert_eq!(gpu_pairs.nan, pairs.nan, "{what}");
                let places = |list: &cosine::PairList| {
                    list.pairs.iter().map(|p| (p.i, p.j)).collect::<Vec<_>>()
                };
                assert_eq!(places(&gpu_pairs), places(&pairs), "{what}");
            }
            for k in [0, 1, m.min(5), m] {
                let (top, gpu_top) =
                    (cosine::top_k(&a, &b, k).unwrap(), cosine::top_k(&gpu_a, &gpu_b, k).unwrap());
                assert_eq!(gpu_top.indices.dims(), [n, k]);
                if k > 0 {
                    assert_eq!(values(&gpu_top.indices), values(&top.indices), "{what}, k = {k}");
                    assert_close(
                        &values(&gpu_top.scores),
                        &values(&top.scores),
                        1e-12,
                        2f64.powi(-23),
                        &what,
                    );
                }
            }
        }
    }
}

/// More thresholds than one launch takes.
#[test]
fn cosine_counts_many_thresholds() {
    let Some(device) = gpu() else { return };
    let (a, gpu_a) = both(&device, &awkward(&mut Random(8), 50, 24), &[50, 24], DType::F32);
    let thresholds: Vec<f64> = (0..150).map(|t| f64::from(t) / 75.0 - 1.0).collect();
    let counts = cosine::count_above(&a, None, &thresholds).unwrap().counts;
    assert_eq!(cosine::count_above(&gpu_a, None, &thresholds).unwrap().counts, counts);
}

// ---- mask ----

#[test]
fn mask_draws_are_the_same() {
    let Some(device) = gpu() else { return };
    let stream = stream(&device);
    let grids = [
        TokenGrid { start: 0, rows: 24, cols: 24, stride: 24 },
        TokenGrid { start: 577, rows: 30, cols: 17, stride: 18 },
    ];
    let tokens = [577 + 30 * 18, 0, 1, 1119, 2880];
    let rows: Vec<mask::Row<'_>> = tokens
        .iter()
        .enumerate()
        .map(|(r, &tokens)| mask::Row {
            draws: Draws {
                seed: 0x1234_5678_9ABC_DEF0 + r as u64,
                sample: r as u32 * 7,
                attempt: r as u32,
            },
            sentence: if r == 4 { WHOLE_RESPONSE } else { 0 },
            tokens,
            grids: if tokens >= 1117 { &grids } else { &[] },
        })
        .collect();
    for rho in [0.0, 0.5, 0.99, 1.0] {
        for law in [Law::Bernoulli { rho }, Law::ExactK { rho }, Law::Blocks { rho, block: 4 }] {
            for exempt in [false, true] {
                let what = format!("{law:?}, exempt {exempt}");
                let kept = mask::draw(law, &rows, exempt).unwrap();
                let masks = cuda::mask::Masks::new(&stream, law, &rows, exempt).unwrap();
                assert_eq!(*masks.kept(), kept, "{what}");
                let mut indices = stream.alloc_zeros::<u32>(kept.indices.len().max(1)).unwrap();
                let mut words = stream.alloc_zeros::<u32>(masks.words()).unwrap();
                cuda::mask::draw(&stream, &masks, Some(&mut indices), Some(&mut words)).unwrap();
                let seen = stream.clone_dtoh(&indices).unwrap();
                assert_eq!(seen[..kept.indices.len()], kept.indices, "{what}");
                assert_eq!(stream.clone_dtoh(&words).unwrap(), kept.bitmask().words, "{what}");
            }
        }
    }
}

#[test]
fn mask_packs_the_same_rows() {
    let Some(device) = gpu() else { return };
    let mut random = Random(9);
    for dtype in FLOATS {
        for hidden in [1, 6, 64, 515] {
            let (text, gpu_text) = both(&device, &random.vec(9 * hidden), &[9, hidden], dtype);
            // A view past the first row: misaligned where a row is no multiple of 16 bytes.
            let (image, gpu_image) = both(&device, &random.vec(21 * hidden), &[21, hidden], dtype);
            let (image, gpu_image) =
                (image.narrow(0, 1, 20).unwrap(), gpu_image.narrow(0, 1, 20).unwrap());
            let kept = [0, 3, 4, 19];
            let pieces = [
                Piece::Rows { source: 0, start: 2, len: 4 },
                Piece::Kept { source: 1, start: 0, tokens: 20, indices: &kept },
                Piece::Rows { source: 0, start: 8, len: 1 },
            ];
            let sequences: [&[Piece<'_>]; 3] = [&pieces, &[], &pieces[..1]];
            let twin = mask::pack(&[&text, &image], &sequences, Positions::Original).unwrap();
            let seen =
                mask::pack(&[&gpu_text, &gpu_image], &sequences, Positions::Original).unwrap();
            assert_eq!((&seen.positions, &seen.cu_seqlens), (&twin.positions, &twin.cu_seqlens));
            assert_eq!(values(&seen.rows), values(&twin.rows), "{dtype:?}, H = {hidden}");
        }
    }
}

// ---- token ----

#[test]
fn token_samples_are_the_same() {
    let Some(device) = gpu() else { return };
    let mut random = Random(10);
    let (mut rows_seen, mut others) = (0, 0);
    for dtype in FLOATS {
        for vocab in [1, 31, 1003, 5000] {
            let history: Vec<u32> = (0..20).map(|_| random.below(vocab) as u32).collect();
            let params = [
                Params::GREEDY,
                Params::default(),
                Params { temperature: 0.7, top_k: 5, ..Params::default() },
                Params { top_p: 0.9, ..Params::default() },
                Params { min_p: 0.05, repetition_penalty: 1.3, ..Params::default() },
                Params {
                    temperature: 1.5,
                    top_k: 50,
                    top_p: 0.8,
                    min_p: 0.01,
                    repetition_penalty: 0.8,
                },
            ];
            let rows: Vec<token::Row<'_>> = (0..24)
                .map(|r| token::Row {
                    params: params[r % params.len()],
                    draws: Draws { seed: 5, sample: r as u32, attempt: 1 },
                    sentence: 2,
                    step: r as u64 * 3,
                    history: &history,
                })
                .collect();
            let spread: Vec<f32> = random.vec(rows.len() * vocab).iter().map(|x| x * 3.0).collect();
            let (cpu, gpu) = both(&device, &spread, &[rows.len(), vocab], dtype);
            let (twin, seen) =
                (token::sample(&cpu, &rows).unwrap(), token::sample(&gpu, &rows).unwrap());
            for (r, (s, t)) in seen.iter().zip(&twin).enumerate() {
                rows_seen += 1;
                if s.token != t.token {
                    others += 1;
                    continue;
                }
                let close = (s.log_prob - t.log_prob).abs() < 2e-5 * (1.0 + t.log_prob.abs());
                assert!(close, "{dtype:?}, V = {vocab}, row {r}: {s:?}, expected {t:?}");
            }
        }
    }
    // Draws within 1e-6 of a boundary may go the other way.
    assert!(others * 100 <= rows_seen, "{others} of {rows_seen} tokens differ");
    println!("{rows_seen} rows, {others} with another token");
}

#[test]
fn token_rows_without_a_distribution_are_named() {
    let Some(device) = gpu() else { return };
    let row = token::Row {
        params: Params::default(),
        draws: Draws { seed: 1, sample: 0, attempt: 0 },
        sentence: 0,
        step: 0,
        history: &[],
    };
    for (value, part) in
        [(f32::NAN, "NaN"), (f32::INFINITY, "+inf"), (f32::NEG_INFINITY, "nothing but -inf")]
    {
        let logits = if value == f32::NEG_INFINITY {
            vec![0.0, 1.0, value, value]
        } else {
            vec![0.0, 1.0, value, 0.0]
        };
        let logits = Tensor::from_vec(logits, (2, 2), &device).unwrap();
        let message = token::sample(&logits, &[row, row]).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("row 1"), "{message}");
    }
}

// ---- calls ----

#[test]
fn two_host_threads_share_a_gpu() {
    let Some(device) = gpu() else { return };
    let (cu, _) = packed_rows();
    let (tokens, hidden) = (cu[cu.len() - 1] as usize, 64);
    let inputs: Vec<Vec<f32>> = (0..2).map(|t| Random(11 + t).vec(tokens * hidden)).collect();
    let options = Options { normalize: true, ..Options::new(Mode::Mean) };
    let run = |device: &Device, input: &[f32]| {
        let (_, states) = both(device, input, &[tokens, hidden], DType::F32);
        values(&pool::pool(&states, Rows::Packed { cu_seqlens: &cu }, &options, None).unwrap())
    };
    let alone: Vec<Vec<f64>> = inputs.iter().map(|input| run(&device, input)).collect();
    std::thread::scope(|scope| {
        for (input, alone) in inputs.iter().zip(&alone) {
            let (device, run) = (&device, &run);
            // One with the shared stream, one with a stream of its own on the same GPU.
            scope.spawn(move || {
                let own = Device::new_cuda_with_stream(0).unwrap();
                for _ in 0..5 {
                    assert_eq!(run(device, input), *alone);
                    assert_eq!(run(&own, input), *alone);
                }
            });
        }
    });
}

/// Pooling, scoring and sampling in one graph, replayed on new values.
#[test]
fn calls_are_captured_into_a_graph() {
    if gpu().is_none() {
        return;
    }
    let context = cudarc::driver::CudaContext::new(0).unwrap();
    // SAFETY: everything below is on one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    cuda::load(&context).unwrap();
    let (cu, _) = packed_rows();
    let (tokens, hidden, batch) = (cu[cu.len() - 1] as usize, 32, LENGTHS.len());
    let mut random = Random(13);
    let mut states = stream.clone_htod(&random.vec(tokens * hidden)).unwrap();
    let mut pooled = stream.alloc_zeros::<f32>(batch * hidden).unwrap();
    let places = cuda::pool::Places::packed(&stream, &cu, tokens).unwrap();
    let limits = cuda::cosine::Thresholds::new(&stream, &[0.5]).unwrap();
    let mut scores = cuda::cosine::RowOutput::new(&stream, batch, batch, 1).unwrap();
    let row = token::Row {
        params: Params { top_p: 0.9, ..Params::default() },
        draws: Draws { seed: 3, sample: 1, attempt: 2 },
        sentence: 0,
        step: 0,
        history: &[],
    };
    let mut tokens_of = cuda::token::Batch::new(&stream, &vec![row; batch], hidden).unwrap();
    let mut drawn = cuda::token::Output::new(&stream, batch).unwrap();
    let options = Options::new(Mode::Mean);

    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let rows = cuda::Rows::packed(&states, tokens, hidden).unwrap();
    cuda::pool::pool(&stream, &rows, &places, &options, None, &mut pooled).unwrap();
    let vectors = cuda::Rows::packed(&pooled, batch, hidden).unwrap();
    cuda::cosine::rows(&stream, &vectors, &vectors, None, &limits, &mut scores).unwrap();
    cuda::token::sample(&stream, &vectors, &tokens_of, &mut drawn).unwrap();
    // What would read host memory later is refused, and does not spoil the capture.
    let refused = cuda::pool::Places::packed(&stream, &cu, tokens).unwrap_err().to_string();
    assert!(refused.contains("captured"), "{refused}");
    let graph = stream
        .end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
        .unwrap()
        .unwrap();

    for step in 0..3 {
        let input = random.vec(tokens * hidden);
        stream.memcpy_htod(&input, &mut states).unwrap();
        let now = token::Row { step, ..row };
        tokens_of.update(&stream, &vec![now; batch]).unwrap();
        graph.launch().unwrap();
        stream.synchronize().unwrap();
        let cpu = Tensor::from_vec(input, (tokens, hidden), &Device::Cpu).unwrap();
        let expected = pool::pool(&cpu, Rows::Packed { cu_seqlens: &cu }, &options, None).unwrap();
        let seen: Vec<f64> =
            stream.clone_dtoh(&pooled).unwrap().iter().map(|x| f64::from(*x)).collect();
        assert_close(&seen, &values(&expected), 1e-6, 1e-6, "pooled in a graph");
        let ones: Vec<f64> =
            stream.clone_dtoh(&scores.scores).unwrap().iter().map(|x| f64::from(*x)).collect();
        let expected_ones: Vec<f64> = LENGTHS.iter().map(|&n| f64::from(u8::from(n > 0))).collect();
        assert_close(&ones, &expected_ones, 1e-6, 0.0, "scored in a graph");
        let expected = token::sample(&expected, &vec![now; batch]).unwrap();
        let expected: Vec<u32> = expected.iter().map(|s| s.token).collect();
        assert_eq!(stream.clone_dtoh(&drawn.token).unwrap(), expected, "step {step}");
    }
}

#[test]
fn bad_calls_are_refused_by_name() {
    let Some(device) = gpu() else { return };
    let stream = stream(&device);
    let buffer = stream.alloc_zeros::<f32>(24).unwrap();
    let message = |error: Error| error.to_string();
    let rows = |count, width, stride| cuda::Rows::strided(&buffer, count, width, stride);
    assert!(message(rows(4, 7, 6).unwrap_err()).contains("4 rows of 7, 6 apart"));
    assert!(
        rows(usize::MAX, 2, 2).is_err()
            && rows(0, 99, 99).is_ok()
            && rows(4, 6, 6).is_ok()
            && rows(19, 6, 1).is_ok()
    );

    let states = rows(4, 6, 6).unwrap();
    let places = cuda::pool::Places::packed(&stream, &[0, 1, 4], 4).unwrap();
    let mut out = stream.alloc_zeros::<f32>(12).unwrap();
    let options = Options::new(Mode::Mean);
    let wrong = Options { dim: Some(7), ..options };
    let error = cuda::pool::pool(&stream, &states, &places, &wrong, None, &mut out).unwrap_err();
    assert!(message(error).contains("dim is 7, expected in 1..=6"));
    let mut short = stream.alloc_zeros::<f32>(11).unwrap();
    let error =
        cuda::pool::pool(&stream, &states, &places, &options, None, &mut short).unwrap_err();
    assert!(message(error).contains("out is 11 elements long, expected at least 12"));
    let error =
        cuda::pool::pool(&stream, &rows(3, 6, 6).unwrap(), &places, &options, None, &mut out)
            .unwrap_err();
    assert!(message(error).contains("states is 3 rows of 6"));
    let mut codes = stream.alloc_zeros::<i8>(12).unwrap();
    let error =
        cuda::pool::pool(&stream, &states, &places, &options, None, &mut codes).unwrap_err();
    assert!(message(error).contains("normalize is false"));
    for bad in [&[0, 3, 2, 4][..], &[1, 4], &[0, 5], &[]] {
        assert!(cuda::pool::Places::packed(&stream, bad, 4).is_err(), "{bad:?}");
    }
    assert!(cuda::cosine::Thresholds::new(&stream, &[0.5, f64::NAN]).is_err());
    assert!(cuda::cosine::Groups::new(&stream, &[0, 2, 1], 1, 2).is_err());
    let side = cuda::cosine::Side::new(&stream, &states).unwrap();
    let other = stream.alloc_zeros::<f16>(24).unwrap();
    let halves = cuda::Rows::packed(&other, 4, 6).unwrap();
    let half_side = cuda::cosine::Side::new(&stream, &halves).unwrap();
    let mut scores = stream.alloc_zeros::<f32>(16).unwrap();
    let error = cuda::cosine::matrix(&stream, &side, &half_side, &mut scores).unwrap_err();
    assert!(message(error).contains("dtypes is f32 and f16"));
    let bands = cuda::cosine::Bands::new(&stream, &[0.5], &halves).unwrap();
    let mut counts = cuda::cosine::CountOutput::new(&stream, 1).unwrap();
    assert!(cuda::cosine::count(&stream, &side, None, &bands, true, &mut counts).is_err());
    let row = token::Row {
        params: Params { top_p: 0.0, ..Params::default() },
        draws: Draws { seed: 1, sample: 0, attempt: 0 },
        sentence: 0,
        step: 0,
        history: &[],
    };
    let error = cuda::token::Batch::new(&stream, &[row], 6).unwrap_err();
    assert!(message(error).contains("top_p is 0 in row 0"));
    assert!(cuda::token::Batch::new(&stream, &[], cuda::token::MAX_VOCAB + 1).is_err());
    let error =
        cuda::mask::Gather::new(&stream, std::slice::from_ref(&states), &[(0, 4)]).unwrap_err();
    assert!(message(error).contains("row 4 of source 0"));
}

#[test]
fn nothing_to_do_is_no_error() {
    let Some(device) = gpu() else { return };
    for dtype in FLOATS {
        let (_, none) = both(&device, &[], &[0, 8], dtype);
        let pooled =
            pool::pool(&none, Rows::Packed { cu_seqlens: &[0] }, &Options::new(Mode::Max), None)
                .unwrap();
        assert_eq!(pooled.dims(), [0, 8]);
        let empty = pool::pool(
            &none,
            Rows::Packed { cu_seqlens: &[0, 0, 0] },
            &Options::new(Mode::Max),
            None,
        )
        .unwrap();
        assert_eq!(values(&empty), [0.0; 16]);
        let (_, some) = both(&device, &[1.0; 24], &[3, 8], dtype);
        assert_eq!(cosine::matrix(&none, &some).unwrap().dims(), [0, 3]);
        assert_eq!(cosine::count_above(&none, None, &[0.5]).unwrap().counts, [0]);
        assert_eq!(cosine::count_above(&some, None, &[]).unwrap().pairs, 3);
        assert!(cosine::pairs_above(&some, Some(&none), 0.5).unwrap().pairs.is_empty());
        let scores = cosine::rows(&none, &some, Some(&[0, 0, 0, 0]), &[0.5]).unwrap();
        assert_eq!((scores.scores.dims(), &scores.first_below[..]), (&[0][..], &[None; 3][..]));
        assert!(token::sample(&none, &[]).unwrap().is_empty());
        assert_eq!(mask::pack(&[&some], &[], Positions::Original).unwrap().rows.dims(), [0, 8]);
    }
}

#[test]
fn tensors_of_two_devices_are_refused() {
    let Some(device) = gpu() else { return };
    let (cpu, gpu) = both(&device, &[1.0; 24], &[3, 8], DType::F32);
    let mut others = vec![cpu];
    if cuda::probe(1).is_ok() {
        let second = Device::new_cuda_with_stream(1).unwrap();
        others.push(both(&second, &[1.0; 24], &[3, 8], DType::F32).1);
        // And of plain buffers.
        let far = second.as_cuda_device().unwrap().cuda_stream().alloc_zeros::<f32>(24).unwrap();
        let rows = cuda::Rows::packed(&far, 3, 8).unwrap();
        let message = cuda::cosine::Side::new(&stream(&device), &rows).unwrap_err().to_string();
        assert!(message.contains("GPU 1") && message.contains("GPU 0"), "{message}");
    }
    for other in &others {
        for result in [
            cosine::matrix(&gpu, other).map(|_| ()),
            cosine::count_above(other, Some(&gpu), &[0.5]).map(|_| ()),
            cosine::rows(&gpu, other, None, &[]).map(|_| ()),
            mask::pack(&[&gpu, other], &[], Positions::Original).map(|_| ()),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains("Cuda { gpu_id: 0 }"), "{message}");
        }
    }
}
