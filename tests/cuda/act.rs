//! `act` on a GPU.

use bdhs::ops::act::{Activation, bias_act, silu_mul};
use bdhs::ops::cuda;
use candle_core::{DType, Device, Tensor, Var};

use super::{FLOATS, Random, assert_close, both, candle_runs, gpu, roundoff, stream, values};

const ACTIVATIONS: [Activation; 7] = [
    Activation::Identity,
    Activation::GeluErf,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
];

/// Both are within the contract of the exact value, and may round to neighbours.
#[track_caller]
fn assert_twins(seen: &Tensor, twin: &Tensor, what: &str) {
    assert_eq!((seen.dims(), seen.dtype()), (twin.dims(), twin.dtype()), "{what}");
    let unit = 2.02 * roundoff(twin.dtype());
    assert_close(&values(seen), &values(twin), 6e-7, unit + 6e-7, what);
}

#[test]
fn every_activation_is_the_cpus() {
    let Some(device) = gpu() else { return };
    let mut random = Random(31);
    for dtype in FLOATS {
        for shape in [[0, 8], [1, 1], [5, 33], [3, 1000], [40, 64]] {
            let mut x = random.vec(shape[0] * shape[1]);
            x.iter_mut().for_each(|x| *x *= 4.0);
            let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, -60.0, 60.0];
            x.iter_mut().skip(20).zip(special).for_each(|(x, special)| *x = special);
            let (cpu, gpu) = both(&device, &x, &shape, dtype);
            let (bias, gpu_bias) = both(&device, &random.vec(shape[1]), &[shape[1]], dtype);
            for f in ACTIVATIONS {
                let what = format!("{f:?}, {shape:?}, {dtype:?}");
                let twin = bias_act(&cpu, None, f).unwrap();
                assert_twins(&bias_act(&gpu, None, f).unwrap(), &twin, &what);
                let twin = bias_act(&cpu, Some(&bias), f).unwrap();
                let seen = bias_act(&gpu, Some(&gpu_bias), f).unwrap();
                assert_twins(&seen, &twin, &format!("{what}, bias"));
            }
        }
    }
}

/// The gate and up as halves of one product: rows with distance, read where they are.
#[test]
fn gated_products_of_halves_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let mut random = Random(32);
    for dtype in FLOATS {
        for (rows, width) in [(0, 8), (1, 5), (7, 33), (6, 256)] {
            let wide = random.vec(rows * 2 * width);
            let (cpu, gpu) = both(&device, &wide, &[rows, 2 * width], dtype);
            let half = |t: &Tensor, first| t.narrow(1, first * width, width).unwrap();
            let twin = silu_mul(&half(&cpu, 0), &half(&cpu, 1)).unwrap();
            let seen = silu_mul(&half(&gpu, 0), &half(&gpu, 1)).unwrap();
            let what = format!("{rows} x {width}, {dtype:?}");
            assert_twins(&seen, &twin, &what);
            let (_, copied) =
                both(&device, &cut(&wide, 2 * width, 0, width), &[rows, width], dtype);
            let (_, up) =
                both(&device, &cut(&wide, 2 * width, width, width), &[rows, width], dtype);
            let packed = silu_mul(&copied, &up).unwrap();
            assert_eq!(values(&packed), values(&seen), "{what}: packed");
        }
    }
}

/// Columns `first..first + count` of rows of `width`.
fn cut(values: &[f32], width: usize, first: usize, count: usize) -> Vec<f32> {
    values.chunks(width).flat_map(|row| row[first..first + count].to_vec()).collect()
}

/// Tracked tensors give what others do; gradients, made of candle's ops there, are the CPU's.
#[test]
fn gradients_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let mut random = Random(33);
    let (cpu, gpu) = both(&device, &random.vec(24), &[4, 6], DType::F32);
    let (up, gpu_up) = both(&device, &random.vec(24), &[4, 6], DType::F32);
    let tracked = Var::from_tensor(&gpu).unwrap();
    let y = bias_act(&tracked, None, Activation::Silu).unwrap();
    assert_eq!(values(&y), values(&bias_act(&gpu, None, Activation::Silu).unwrap()), "tracked");
    if !candle_runs(&device) {
        return;
    }
    let gradient = |x: &Tensor, up: &Tensor, gated: bool| {
        let var = Var::from_tensor(x).unwrap();
        let y = match gated {
            true => silu_mul(&var, up),
            false => bias_act(&var, None, Activation::GeluErf),
        };
        let loss = (y.unwrap() * up).unwrap().sum_all().unwrap();
        values(loss.backward().unwrap().get(&var).unwrap())
    };
    for gated in [false, true] {
        let (seen, twin) = (gradient(&gpu, &gpu_up, gated), gradient(&cpu, &up, gated));
        assert_close(&seen, &twin, 1e-5, 1e-5, "gradient");
    }
}

#[test]
fn bad_calls_are_refused_by_name() {
    let Some(device) = gpu() else { return };
    let stream = stream(&device);
    let (cpu, x) = both(&device, &[1.0; 24], &[4, 6], DType::F32);
    let mut others = vec![cpu];
    if cuda::probe(1).is_ok() {
        let second = Device::new_cuda_with_stream(1).unwrap();
        others.push(both(&second, &[1.0; 24], &[4, 6], DType::F32).1);
    }
    for other in &others {
        for result in
            [bias_act(&x, Some(&other.get(0).unwrap()), Activation::Relu), silu_mul(&x, other)]
        {
            let message = result.unwrap_err().to_string();
            assert!(message.contains("expected on Cuda { gpu_id: 0 }"), "{message}");
        }
    }

    let buffer = stream.alloc_zeros::<f32>(24).unwrap();
    let rows = |count, width| cuda::Rows::packed(&buffer, count, width).unwrap();
    let mut out = stream.alloc_zeros::<f32>(23).unwrap();
    let message = |result: bdhs::Result<()>| result.unwrap_err().to_string();
    let x = rows(4, 6);
    let seen = message(cuda::act::bias_act(&stream, &x, None, Activation::Relu, &mut out));
    assert!(seen.contains("out is 23 elements long, expected at least 24"), "{seen}");
    let bias = rows(1, 5);
    let seen = message(cuda::act::bias_act(&stream, &x, Some(&bias), Activation::Relu, &mut out));
    assert!(seen.contains("bias is 1 rows of 5 f32, expected 1 rows of 6 f32"), "{seen}");
    let seen = message(cuda::act::silu_mul(&stream, &x, &rows(3, 6), &mut out));
    assert!(seen.contains("up is 3 rows of 6 f32, expected 4 rows of 6 f32"), "{seen}");
    let mut other = stream.alloc_zeros::<half::bf16>(24).unwrap();
    let seen = message(cuda::act::silu_mul(&stream, &x, &x, &mut other));
    assert!(seen.contains("out is of another dtype, expected f32"), "{seen}");
}
