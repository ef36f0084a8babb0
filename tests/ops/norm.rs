//! `ops::norm` against float64 formulas.

use crate::numbers::Random;
use bdhs::ops::norm::{Add, layer_norm, layer_norm_sum, rms_norm, rms_norm_sum};
use candle_core::{DType, Device, Tensor, Var};

fn values(t: &Tensor) -> Vec<f64> {
    let t = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    t.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn reference(x: &[f64], w: &[f64], b: Option<&[f64]>, eps: f64, centred: bool) -> Vec<f64> {
    let h = w.len();
    let mut out = Vec::new();
    for row in x.chunks(h) {
        let mean = if centred { row.iter().sum::<f64>() / h as f64 } else { 0.0 };
        let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / h as f64;
        for (i, x) in row.iter().enumerate() {
            out.push((x - mean) / (var + eps).sqrt() * w[i] + b.map_or(0.0, |b| b[i]));
        }
    }
    out
}

fn close(y: &Tensor, exact: &[f64], bound: f64, what: &str) {
    let y = values(y);
    assert_eq!(y.len(), exact.len(), "{what}");
    for (i, (y, e)) in y.iter().zip(exact).enumerate() {
        assert!((y - e).abs() <= bound * e.abs().max(1.0), "{what} {i}: {y}, expected {e}");
    }
}

#[test]
fn both_norms_with_and_without_a_residual() {
    let mut random = Random(1);
    for (rows, h) in [(0, 4), (1, 1), (3, 5), (2, 16), (7, 384), (33, 1000), (4, 4099)] {
        for (dtype, bound) in [(DType::F32, 1e-5), (DType::F16, 3e-3), (DType::BF16, 2e-2)] {
            let mut tensor = |dims: &[usize]| {
                let n = dims.iter().product();
                Tensor::from_vec(random.values(n, 2.0), dims, &Device::Cpu)
                    .unwrap()
                    .to_dtype(dtype)
                    .unwrap()
            };
            let (x, r) = (tensor(&[rows, h]), tensor(&[rows, h]));
            let (w, b, c) = (tensor(&[h]), tensor(&[h]), tensor(&[h]));
            let (wv, bv, cv) = (values(&w), values(&b), values(&c));
            let (eps, what) = (1e-2, format!("{rows} {h} {dtype:?}"));
            let plain = values(&x);
            let sum: Vec<f64> = plain
                .iter()
                .zip(values(&r))
                .enumerate()
                .map(|(i, (x, r))| x + cv[i % h] + r)
                .collect();
            let add = Add { residual: &r, bias: Some(&c) };

            let y = layer_norm(&x, None, &w, Some(&b), eps).unwrap();
            assert_eq!((y.dims(), y.dtype()), (x.dims(), dtype));
            close(&y, &reference(&plain, &wv, Some(&bv), eps, true), bound, &what);
            close(
                &rms_norm(&x, None, &w, eps).unwrap(),
                &reference(&plain, &wv, None, eps, false),
                bound,
                &what,
            );
            let y = layer_norm(&x, Some(add), &w, Some(&b), eps).unwrap();
            close(&y, &reference(&sum, &wv, Some(&bv), eps, true), bound, &what);
            let (s, y) = layer_norm_sum(&x, add, &w, None, eps).unwrap();
            close(&s, &sum, bound, &what);
            close(&y, &reference(&sum, &wv, None, eps, true), bound, &what);
            let (s, y) = rms_norm_sum(&x, add, &w, eps).unwrap();
            close(&s, &sum, bound, &what);
            close(&y, &reference(&sum, &wv, None, eps, false), bound, &what);
        }
    }
}

#[test]
fn a_large_mean_does_not_swallow_the_variance() {
    let h = 768;
    let x: Vec<f32> = (0..h).map(|i| 1000.0 + (i % 2) as f32).collect();
    let x = Tensor::from_vec(x, (1, h), &Device::Cpu).unwrap();
    let w = Tensor::ones(h, DType::F32, &Device::Cpu).unwrap();
    let y = layer_norm(&x, None, &w, None, 1e-12).unwrap();
    close(&y, &reference(&values(&x), &values(&w), None, 1e-12, true), 1e-3, "large mean");
}

#[test]
fn rows_do_not_see_each_other() {
    let mut random = Random(2);
    let (rows, h) = (100, 500);
    let mut x = random.values(rows * h, 1.0);
    let w = Tensor::from_vec(random.values(h, 1.0), h, &Device::Cpu).unwrap();
    let run = |x: &[f32], rows: usize| {
        let x = Tensor::from_slice(x, (rows, h), &Device::Cpu).unwrap();
        layer_norm(&x, None, &w, None, 1e-5).unwrap().to_vec2::<f32>().unwrap()
    };
    let whole = run(&x, rows);
    assert_eq!(run(&x[57 * h..58 * h], 1)[0], whole[57]);
    x[3 * h] = f32::NAN;
    let poisoned = run(&x, rows);
    assert!(poisoned[3].iter().all(|x| x.is_nan()));
    assert_eq!(poisoned[4], whole[4]);
    assert_eq!(poisoned[2], whole[2]);
}

#[test]
fn strided_input() {
    let x = Tensor::from_vec(Random(3).values(60, 1.0), (6, 10), &Device::Cpu).unwrap();
    let w = Tensor::ones(6, DType::F32, &Device::Cpu).unwrap();
    let t = x.t().unwrap();
    let y = rms_norm(&t, None, &w, 1e-6).unwrap();
    close(&y, &reference(&values(&t), &values(&w), None, 1e-6, false), 1e-5, "strided");
}

#[test]
fn misuse_is_named() {
    let x = Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap();
    let w = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
    let message = layer_norm(&x, None, &x, None, 1e-5).unwrap_err().to_string();
    assert!(message.contains("weight is [2, 3] F32, expected [3] F32"), "{message}");
    let residual = Tensor::ones((3, 3), DType::F32, &Device::Cpu).unwrap();
    let add = Add { residual: &residual, bias: None };
    assert!(rms_norm(&x, Some(add), &w, 1e-5).unwrap_err().to_string().contains("residual"));
    assert!(rms_norm(&x, None, &w, -1.0).unwrap_err().to_string().contains("eps is -1"));
    assert!(rms_norm(&x, None, &w, f64::NAN).is_err());
}

/// The same by candle's own ops, in float64.
fn composed(sum: &Tensor, weight: &Tensor, bias: Option<&Tensor>, layer: bool) -> Tensor {
    let mean = sum.mean_keepdim(1).unwrap();
    let x = if layer { sum.broadcast_sub(&mean).unwrap() } else { sum.clone() };
    let deviation = (x.sqr().unwrap().mean_keepdim(1).unwrap() + 1e-5).unwrap().sqrt().unwrap();
    let y = x.broadcast_div(&deviation).unwrap().broadcast_mul(weight).unwrap();
    bias.map_or(y.clone(), |bias| y.broadcast_add(bias).unwrap())
}

#[test]
fn gradients_equal_those_of_composed_float64_ops() {
    let mut random = Random(7);
    for (rows, h, layer) in [(1, 1, false), (3, 5, true), (70, 33, false), (900, 40, true)] {
        let mut var = |dims: &[usize]| {
            let n = dims.iter().product();
            let t = Tensor::from_vec(random.values(n, 1.5), dims, &Device::Cpu).unwrap();
            Var::from_tensor(&t).unwrap()
        };
        let (x, residual) = (var(&[rows, h]), var(&[rows, h]));
        let (weight, bias, add_bias) = (var(&[h]), var(&[h]), var(&[h]));
        let (g, g_sum) = (var(&[rows, h]), var(&[rows, h]));
        let vars = [&x, &residual, &weight, &bias, &add_bias];
        let doubles = vars.map(|v| Var::from_tensor(&v.to_dtype(DType::F64).unwrap()).unwrap());
        let [dx, dresidual, dweight, dbias, dadd] = &doubles;
        let before = Add { residual: &residual, bias: Some(&add_bias) };
        let (sum, y) = match layer {
            true => layer_norm_sum(&x, before, &weight, Some(&bias), 1e-5).unwrap(),
            false => rms_norm_sum(&x, before, &weight, 1e-5).unwrap(),
        };
        let loss = (y * g.as_tensor()).unwrap().sum_all().unwrap();
        let loss = (loss + (sum * g_sum.as_tensor()).unwrap().sum_all().unwrap()).unwrap();
        let ours = loss.backward().unwrap();

        let sum = (dx.broadcast_add(dadd).unwrap() + dresidual.as_tensor()).unwrap();
        let y = composed(&sum, dweight, layer.then_some(dbias.as_tensor()), layer);
        let [g, g_sum] = [&g, &g_sum].map(|g| g.to_dtype(DType::F64).unwrap());
        let loss = (y * g).unwrap().sum_all().unwrap();
        let loss = (loss + (sum * g_sum).unwrap().sum_all().unwrap()).unwrap();
        let theirs = loss.backward().unwrap();
        for (i, (var, double)) in vars.iter().zip(&doubles).enumerate() {
            if i == 3 && !layer {
                continue;
            }
            let ours = values(ours.get(var).expect("a gradient"));
            let theirs = theirs.get(double).unwrap().flatten_all().unwrap();
            let theirs = theirs.to_vec1::<f64>().unwrap();
            let scale = theirs.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() < 2e-5 * scale, "{rows} x {h}, operand {i}: {a} for {b}");
            }
        }
    }
}
