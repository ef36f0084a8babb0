//! Products with laid-out weights: against float64, row by row, and their gradients.

use crate::numbers::Random;
use crate::skip::skip;
use bdhs::ops::act::{Activation, bias_act};
use bdhs::ops::dense::Dense;
use candle_core::{DType, Device, Tensor, Var};

fn random(seed: u64, dims: &[usize], dtype: DType) -> Tensor {
    let values = Random(seed).values(dims.iter().product(), 1.0);
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn doubles(t: &Tensor) -> Vec<Vec<f64>> {
    t.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

fn bits(t: &Tensor) -> Vec<Vec<u32>> {
    let rows: Vec<Vec<f32>> = t.to_dtype(DType::F32).unwrap().to_vec2().unwrap();
    rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

/// There is nothing to test where the CPU has no kernel.
fn available() -> bool {
    let available = Dense::available();
    if !available {
        skip("dense", "this CPU has no kernel");
    }
    available
}

#[test]
fn equals_float64() {
    if !available() {
        return;
    }
    let shapes = [(1, 1, 1), (2, 3, 64), (5, 64, 65), (7, 513, 63), (97, 100, 130), (200, 1030, 1)];
    for (seed, (n, inputs, outputs)) in (0..).zip(shapes) {
        for (dtype, unit) in [(DType::F32, 0.0), (DType::F16, 4.9e-4), (DType::BF16, 3.9e-3)] {
            let x = random(seed, &[n, inputs], dtype);
            let weight = random(seed + 50, &[outputs, inputs], dtype);
            let bias = random(seed + 90, &[outputs], dtype);
            let dense = Dense::new(&weight).unwrap();
            let biases = bias.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            for bias in [None, Some(&bias)] {
                let y = doubles(&dense.product(&x, bias).unwrap());
                for (y, x) in y.iter().zip(doubles(&x)) {
                    for (o, (y, w)) in y.iter().zip(doubles(&weight)).enumerate() {
                        let terms = x.iter().zip(&w).map(|(x, w)| x * w);
                        let own = if bias.is_some() { biases[o] } else { 0.0 };
                        let exact = terms.clone().sum::<f64>() + own;
                        let size = terms.map(f64::abs).sum::<f64>() + own.abs();
                        let bound = 520.0 * 6e-8 * size + unit * exact.abs();
                        assert!((y - exact).abs() <= bound, "{n} {inputs} {outputs} {dtype:?}");
                    }
                }
            }
        }
    }
}

/// The bits of a row, alone and in any company, on one thread and on two.
#[test]
fn a_row_depends_on_itself_alone() {
    if !available() {
        return;
    }
    let types = [DType::F32, DType::F16, DType::BF16];
    for (dtype, inputs) in types.into_iter().flat_map(|dtype| [(dtype, 576), (dtype, 1031)]) {
        let x = random(1, &[230, inputs], dtype);
        let dense = Dense::new(&random(2, &[200, inputs], dtype)).unwrap();
        let bias = random(3, &[200], dtype);
        let run = |x: &Tensor| bits(&dense.product(x, Some(&bias)).unwrap());
        let whole = run(&x);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(whole, one.install(|| run(&x)));
        let parts = (1..=20).map(|len| (7 * len, len));
        for (start, len) in parts.chain([(229, 1), (100, 97)]) {
            let part = run(&x.narrow(0, start, len).unwrap());
            assert_eq!(part, whole[start..start + len], "{dtype:?} {start} {len}");
        }
    }
}

#[test]
fn what_is_no_number_stays_in_its_row() {
    if !available() {
        return;
    }
    for (dtype, bad) in
        [(DType::F32, f32::NAN), (DType::BF16, f32::NAN), (DType::BF16, f32::INFINITY)]
    {
        // An odd number of inputs, the last of a row among them.
        for at in [11, 21] {
            let mut values = vec![0.5f32; 3 * 11];
            values[at] = bad;
            let x =
                Tensor::from_vec(values, (3, 11), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let dense = Dense::new(&random(4, &[70, 11], dtype)).unwrap();
            let y = doubles(&dense.product(&x, None).unwrap());
            assert!(y[1].iter().all(|y| if bad.is_nan() { y.is_nan() } else { y.is_infinite() }));
            assert!(y[0].iter().chain(&y[2]).all(|y| y.is_finite()));
            let none = dense.product(&x.narrow(0, 0, 0).unwrap(), None).unwrap();
            assert_eq!(none.dims(), [0, 70]);
        }
    }
}

/// An activation after the product has the bits of `bias_act` in f32, is rounded once in bf16, and has a gradient.
#[test]
fn activations_join_the_product() {
    if !available() {
        return;
    }
    let [x, weight, bias] =
        [&[9, 70][..], &[130, 70], &[130]].map(|dims| random(3, dims, DType::F32));
    let act = Activation::GeluErf;
    let dense = Dense::new(&weight).unwrap();
    let apart = |x: &Tensor| bias_act(&dense.product(x, None).unwrap(), Some(&bias), act).unwrap();
    let expected = bits(&apart(&x));
    assert_eq!(bits(&dense.activated(&x, Some(&bias), act).unwrap()), expected);
    let tracked = Var::from_tensor(&x).unwrap();
    let y = dense.activated(tracked.as_tensor(), Some(&bias), act).unwrap();
    assert_eq!(bits(&y), expected);
    assert!(y.sum_all().unwrap().backward().unwrap().get(&tracked).is_some());

    let [x, weight, bias] = [x, weight, bias].map(|t| t.to_dtype(DType::BF16).unwrap());
    let dense = Dense::new(&weight).unwrap();
    let y = doubles(&dense.activated(&x, Some(&bias), act).unwrap());
    let [x, weight, bias] = [x, weight, bias].map(|t| t.to_dtype(DType::F32).unwrap());
    let wide = Dense::new(&weight).unwrap().activated(&x, Some(&bias), act).unwrap();
    for (y, exact) in y.iter().flatten().zip(doubles(&wide).iter().flatten()) {
        assert!((y - exact).abs() <= 1e-5 + 2f64.powi(-8) * exact.abs(), "{y} {exact}");
    }
}

/// The gradient of x is candle's own in float64.
#[test]
fn gradient() {
    if !available() {
        return;
    }
    let shapes = [(1, 5, 3), (70, 130, 200)];
    let types = [(DType::F32, 0.0), (DType::BF16, 3.9e-3)];
    for ((n, inputs, outputs), (dtype, unit)) in
        shapes.into_iter().flat_map(|s| types.map(|t| (s, t)))
    {
        let weight = random(5, &[outputs, inputs], dtype);
        let x = Var::from_tensor(&random(6, &[n, inputs], dtype)).unwrap();
        let g = random(7, &[n, outputs], dtype);
        let y = Dense::new(&weight).unwrap().product(x.as_tensor(), None).unwrap();
        let store = (y * &g).unwrap().sum_all().unwrap().backward().unwrap();
        let found = doubles(store.get(&x).unwrap());
        let exact = g.to_dtype(DType::F64).unwrap().matmul(&weight.to_dtype(DType::F64).unwrap());
        for (found, exact) in found.iter().flatten().zip(doubles(&exact.unwrap()).iter().flatten())
        {
            assert!((found - exact).abs() <= 1e-4 + unit * exact.abs(), "{found} {exact}");
        }
    }
}

#[test]
fn misfits_are_named() {
    if !available() {
        return;
    }
    let weight = random(8, &[4, 3], DType::F32);
    let dense = Dense::new(&weight).unwrap();
    let fails = |result: bdhs::Result<Tensor>, what: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    };
    fails(dense.product(&random(9, &[2, 4], DType::F32), None), "[n, 3] F32");
    fails(dense.product(&random(9, &[2, 3], DType::F16), None), "[n, 3] F32");
    let x = random(9, &[2, 3], DType::F32);
    fails(dense.product(&x, Some(&random(9, &[3], DType::F32))), "[4] F32");
    fails(dense.rows(&[1, 4]), "below 4");
    assert!(
        Dense::new(&random(9, &[4], DType::F32)).unwrap_err().to_string().contains("[out, in]")
    );
    let tracked = Var::from_tensor(&weight).unwrap();
    assert!(Dense::new(tracked.as_tensor()).unwrap_err().to_string().contains("detached"));
}
