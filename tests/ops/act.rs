//! `ops::act` against float64 formulas.

use crate::numbers::Random;
use bdhs::ops::act::{Activation, bias_act, silu_mul};
use candle_core::{DType, Device, Tensor, Var};

const ALL: [Activation; 7] = [
    Activation::Identity,
    Activation::GeluErf,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
];

/// erf by its Maclaurin series, which float64 carries to |x| = 3, and by a continued fraction beyond.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..80 {
            term *= -a * a / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let mut fraction = a;
        for k in (1..60).rev() {
            fraction = a + (k as f64 / 2.0) / fraction;
        }
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

fn reference(f: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match f {
        Activation::Identity => x,
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}

fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn reference_erf_is_right() {
    for (x, y) in [(0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (3.2, 0.9999939742388482)]
    {
        assert!((erf(x) - y).abs() < 1e-14 && (erf(-x) + y).abs() < 1e-14, "{x}: {}", erf(x));
    }
}

#[test]
fn every_activation_over_its_whole_range() {
    let x: Vec<f32> =
        (-120_000..=120_000).map(|i| i as f32 * 1e-4).chain([-80.0, -30.0, 30.0, 80.0]).collect();
    let n = x.len();
    let t = Tensor::from_vec(x.clone(), (1, n), &Device::Cpu).unwrap();
    for f in ALL {
        let y = values(&bias_act(&t, None, f).unwrap());
        let mut worst = 0f64;
        for (&x, &y) in x.iter().zip(&y) {
            let error = (f64::from(y) - reference(f, x.into())).abs();
            worst = worst.max(error / f64::from(x.abs().max(1.0)));
        }
        assert!(worst < 2e-7, "{f:?}: {worst:e}");
    }
}

#[test]
fn the_negative_tail_of_gelu_keeps_its_relative_accuracy() {
    let x: Vec<f32> = (100..1200).map(|i| i as f32 * -0.01).collect();
    let t = Tensor::new(x.clone(), &Device::Cpu).unwrap();
    for (x, y) in x.iter().zip(values(&bias_act(&t, None, Activation::GeluErf).unwrap())) {
        // 1 + erf cancels even in float64 past -5.
        if *x > -5.0 {
            let exact = reference(Activation::GeluErf, f64::from(*x));
            assert!((f64::from(y) / exact - 1.0).abs() < 3e-6, "{x}: {y} {exact}");
        }
        assert!(y <= 0.0);
    }
}

#[test]
fn bias_shapes_dtypes_and_strides() {
    let mut random = Random(7);
    for (rows, width) in [(0, 5), (1, 1), (3, 7), (5, 16), (2, 333), (700, 65)] {
        let (x, b) = (random.values(rows * width, 4.0), random.values(width, 2.0));
        let bias = Tensor::from_vec(b, width, &Device::Cpu).unwrap();
        // Laid out transposed, so that the op sees strides.
        let x = Tensor::from_vec(x, (width, rows), &Device::Cpu).unwrap().t().unwrap();
        for (dtype, bound) in [(DType::F32, 1e-6), (DType::F16, 4e-3), (DType::BF16, 4e-2)] {
            let (x, bias) = (x.to_dtype(dtype).unwrap(), bias.to_dtype(dtype).unwrap());
            let y = bias_act(&x, Some(&bias), Activation::GeluErf).unwrap();
            assert_eq!((y.dims(), y.dtype()), (&[rows, width][..], dtype));
            let (x, bias) = (values(&x), values(&bias));
            for (i, y) in values(&y).into_iter().enumerate() {
                let exact =
                    reference(Activation::GeluErf, f64::from(x[i]) + f64::from(bias[i % width]));
                assert!((f64::from(y) - exact).abs() < bound, "{dtype:?} {i}: {y} {exact}");
            }
        }
    }
}

#[test]
fn gated_product() {
    let mut random = Random(8);
    for (rows, width) in [(0, 3), (1, 1), (4, 257), (90, 600)] {
        let (g, u) = (random.values(rows * width, 9.0), random.values(rows * width, 3.0));
        for (dtype, bound) in [(DType::F32, 1e-6), (DType::F16, 2e-3), (DType::BF16, 1e-2)] {
            let tensor = |v: &[f32]| {
                Tensor::from_slice(v, (rows, width), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
            };
            let (gate, up) = (tensor(&g), tensor(&u));
            let y = values(&silu_mul(&gate, &up).unwrap());
            for ((g, u), y) in values(&gate).into_iter().zip(values(&up)).zip(y) {
                let exact = reference(Activation::Silu, g.into()) * f64::from(u);
                assert!(
                    (f64::from(y) - exact).abs() <= bound * exact.abs().max(1.0),
                    "{y} {exact}"
                );
            }
            // Halves of one joined product have the same bits.
            let joined = Tensor::cat(&[&gate, &up], 1).unwrap();
            let half = |i: usize| joined.narrow(1, i * width, width).unwrap();
            let apart = silu_mul(&half(0), &half(1)).unwrap();
            assert_eq!(values(&apart), values(&silu_mul(&gate, &up).unwrap()), "{dtype:?}");
        }
    }
}

#[test]
fn nan_and_infinity() {
    let x = Tensor::new(&[f32::NAN, f32::INFINITY, 1.0], &Device::Cpu).unwrap();
    for f in ALL {
        let y = values(&bias_act(&x, None, f).unwrap());
        assert!(y[0].is_nan(), "{f:?}");
        let top = if f == Activation::Tanh { 1.0 } else { f32::INFINITY };
        assert_eq!(y[1], top, "{f:?}");
        assert!((f64::from(y[2]) - reference(f, 1.0)).abs() < 2e-7);
    }
}

#[test]
fn misuse_is_named() {
    let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    let wrong = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
    let message = bias_act(&x, Some(&wrong), Activation::Relu).unwrap_err().to_string();
    assert!(message.contains("bias is [2] F32, expected [3] F32"), "{message}");
    let ids = x.to_dtype(DType::U32).unwrap();
    assert!(bias_act(&ids, None, Activation::Relu).unwrap_err().to_string().contains("U32"));
    assert!(silu_mul(&x, &x.t().unwrap()).is_err());
}

/// The slope of `f`, by central differences of the float64 formula.
fn slope(f: Activation, x: f64) -> f64 {
    let step = 1e-5;
    (reference(f, x + step) - reference(f, x - step)) / (2.0 * step)
}

fn var(random: &mut Random, dims: &[usize]) -> Var {
    let n = dims.iter().product();
    Var::from_tensor(&Tensor::from_vec(random.values(n, 6.0), dims, &Device::Cpu).unwrap()).unwrap()
}

#[test]
fn gradients_equal_the_slopes_of_the_float64_formulas() {
    let mut random = Random(11);
    for f in ALL {
        for (rows, h) in [(1, 1), (3, 7), (500, 40)] {
            let (x, bias) = (var(&mut random, &[rows, h]), var(&mut random, &[h]));
            let g = var(&mut random, &[rows, h]);
            let y = bias_act(&x, Some(&bias), f).unwrap();
            let grads = (y * g.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
            let (xs, bs, gs) = (values(&x), values(&bias), values(&g));
            let exact: Vec<f64> = (0..xs.len())
                .map(|i| f64::from(gs[i]) * slope(f, f64::from(xs[i] + bs[i % h])))
                .collect();
            for (i, (a, b)) in values(grads.get(&x).unwrap()).iter().zip(&exact).enumerate() {
                assert!((f64::from(*a) - b).abs() < 1e-4, "{f:?} {rows} x {h} at {i}: {a}, {b}");
            }
            for (c, a) in values(grads.get(&bias).unwrap()).iter().enumerate() {
                let b: f64 = exact.iter().skip(c).step_by(h).sum();
                assert!(
                    (f64::from(*a) - b).abs() < 1e-3 * b.abs().max(1.0),
                    "{f:?} bias: {a}, {b}"
                );
            }
            let plain = bias_act(&x, None, f).unwrap().sum_all().unwrap().backward().unwrap();
            for (a, x) in values(plain.get(&x).unwrap()).iter().zip(&xs) {
                assert!((f64::from(*a) - slope(f, f64::from(*x))).abs() < 1e-5, "{f:?} {x}: {a}");
            }
        }
    }
}

#[test]
fn gradients_of_the_gated_product() {
    let mut random = Random(12);
    let [gate, up, g] = [(); 3].map(|()| var(&mut random, &[9, 300]));
    let y = silu_mul(&gate, &up).unwrap();
    let grads = (y * g.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
    let [dgate, dup] = [&gate, &up].map(|v| values(grads.get(v).unwrap()));
    let [gate, up, g] = [&gate, &up, &g].map(|v| values(v));
    for i in 0..gate.len() {
        let [x, u, g] = [gate[i], up[i], g[i]].map(f64::from);
        let exact = g * u * slope(Activation::Silu, x);
        assert!((f64::from(dgate[i]) - exact).abs() < 1e-4, "gate {i}");
        let exact = g * reference(Activation::Silu, x);
        assert!((f64::from(dup[i]) - exact).abs() < 1e-4, "up {i}");
    }
}
