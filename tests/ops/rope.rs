//! `ops::rope` against turns in float64 and against candle's ops.

use crate::numbers::Random;
use bdhs::ops::rope::rotate;
use candle_core::{DType, Device, Tensor, Var};

fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn tables(random: &mut Random, rows: usize, half: usize) -> (Tensor, Tensor, Vec<f64>) {
    let angles: Vec<f64> = (0..rows * half).map(|_| 40.0 * f64::from(random.signed())).collect();
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f32> = angles.iter().map(|a| f(*a) as f32).collect();
        Tensor::from_vec(values, (rows, half), &Device::Cpu).unwrap()
    };
    (table(f64::cos), table(f64::sin), angles)
}

#[test]
fn pairs_are_turned_by_their_angle() {
    let mut random = Random(1);
    for (rows, heads, dim) in [(0, 1, 2), (1, 1, 2), (3, 2, 6), (40, 5, 32), (700, 3, 64)] {
        let (cos, sin, angles) = tables(&mut random, rows, dim / 2);
        for (dtype, bound) in [(DType::F32, 1e-6), (DType::F16, 2e-3), (DType::BF16, 1.6e-2)] {
            let x = Tensor::from_vec(
                random.values(rows * heads * dim, 1.0),
                (rows, heads, dim),
                &Device::Cpu,
            );
            let x = x.unwrap().to_dtype(dtype).unwrap();
            let y = rotate(&x, &cos, &sin).unwrap();
            assert_eq!((y.dims(), y.dtype()), (x.dims(), dtype));
            let (x, y) = (values(&x), values(&y));
            for i in 0..x.len() {
                let (row, d) = (i / (heads * dim), i % dim);
                if d >= dim / 2 {
                    continue;
                }
                let (a, b) = (f64::from(x[i]), f64::from(x[i + dim / 2]));
                let (s, c) = angles[row * dim / 2 + d].sin_cos();
                for (got, exact) in [(y[i], a * c - b * s), (y[i + dim / 2], b * c + a * s)] {
                    assert!(
                        (f64::from(got) - exact).abs() < bound,
                        "{dtype:?} {i}: {got}, {exact}"
                    );
                }
            }
        }
    }
}

#[test]
fn rows_may_lie_apart() {
    let mut random = Random(7);
    let (cos, sin, _) = tables(&mut random, 5, 3);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let all = Tensor::from_vec(random.values(5 * 4 * 6, 1.0), (5, 4, 6), &Device::Cpu);
        let all = all.unwrap().to_dtype(dtype).unwrap();
        let whole = rotate(&all, &cos, &sin).unwrap();
        let [part, expected] = [&all, &whole].map(|t| t.narrow(1, 1, 2).unwrap());
        assert_eq!(values(&rotate(&part, &cos, &sin).unwrap()), values(&expected), "{dtype:?}");
    }
}

#[test]
fn values_and_gradients_have_the_bits_of_candles_ops() {
    let mut random = Random(2);
    let (rows, heads, dim) = (50, 3, 16);
    let (cos, sin, _) = tables(&mut random, rows, dim / 2);
    let mut tensor = || {
        let n = rows * heads * dim;
        Tensor::from_vec(random.values(n, 2.0), (rows, heads, dim), &Device::Cpu).unwrap()
    };
    let (x, g) = (Var::from_tensor(&tensor()).unwrap(), tensor());
    let (wide_cos, wide_sin) = (cos.unsqueeze(1).unwrap(), sin.unsqueeze(1).unwrap());
    let half = |start| x.narrow(2, start, dim / 2).unwrap();
    let (a, b) = (half(0), half(dim / 2));
    let first =
        (a.broadcast_mul(&wide_cos).unwrap() - b.broadcast_mul(&wide_sin).unwrap()).unwrap();
    let second =
        (b.broadcast_mul(&wide_cos).unwrap() + a.broadcast_mul(&wide_sin).unwrap()).unwrap();
    let composed = Tensor::cat(&[first, second], 2).unwrap();
    let ours = rotate(&x, &cos, &sin).unwrap();
    assert_eq!(values(&ours), values(&composed));
    let grad = |y: Tensor| {
        let grads = (y * &g).unwrap().sum_all().unwrap().backward().unwrap();
        values(grads.get(&x).unwrap())
    };
    assert_eq!(grad(ours), grad(composed));
}

#[test]
fn misuse_is_named() {
    let x = Tensor::zeros((4, 2, 6), DType::F32, &Device::Cpu).unwrap();
    let table = Tensor::zeros((4, 3), DType::F32, &Device::Cpu).unwrap();
    let short = table.narrow(0, 0, 3).unwrap();
    let message = rotate(&x, &table, &short).unwrap_err().to_string();
    assert!(message.contains("sin is [3, 3] F32, expected [4, 3]"), "{message}");
    let odd = Tensor::zeros((4, 2, 5), DType::F32, &Device::Cpu).unwrap();
    assert!(rotate(&odd, &table, &table).unwrap_err().to_string().contains("D even"));
    let tracked = Var::from_tensor(&table).unwrap();
    assert!(rotate(&x, &tracked, &table).unwrap_err().to_string().contains("not tracked"));
    assert!(rotate(&table, &table, &table).is_err());
}
