//! `pool` on a GPU.

use bdhs::ops::cuda;
use bdhs::ops::pool::{self, FinalNorm, Mode, Options, Rows};
use candle_core::{DType, Device, Tensor, Var};
use half::{bf16, f16};

use super::{
    FLOATS, LENGTHS, Random, assert_close, both, candle_runs, gpu, packed_rows, roundoff, stream,
    values,
};

const MODES: [Mode; 6] =
    [Mode::Cls, Mode::Mean, Mode::Max, Mode::Last, Mode::WeightedMean, Mode::MeanSqrtLen];

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

#[test]
fn packed() {
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
fn padded_normed_and_strided() {
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
fn bits_do_not_depend_on_the_batch() {
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
fn gradients() {
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
fn is_differentiable_in_candle() {
    let Some(device) = gpu() else { return };
    if !candle_runs(&device) {
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
