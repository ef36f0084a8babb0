//! Pooling against a float64 reference, batch independence, edges, gradients by finite differences.

use bdhs::ops::philox::{Draws, Purpose};
use bdhs::ops::pool::{FinalNorm, Mode, Options, Rows, pool, pool_i8};
use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;

const MODES: [Mode; 6] =
    [Mode::Cls, Mode::Mean, Mode::Max, Mode::Last, Mode::WeightedMean, Mode::MeanSqrtLen];
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn random(n: usize, salt: u32) -> Vec<f32> {
    let draws = Draws { seed: 77, sample: salt, attempt: 0 };
    (0..n as u64).map(|i| draws.uniform(Purpose::Noise, 0, i) as f32 * 4.0 - 2.0).collect()
}

fn tensor(values: Vec<f32>, dims: &[usize], dtype: DType) -> Tensor {
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn wide(t: &Tensor) -> Vec<f64> {
    flat(t).into_iter().map(f64::from).collect()
}

fn offsets(lengths: &[usize]) -> Vec<u32> {
    let mut cu = vec![0];
    lengths.iter().for_each(|&n| cu.push(cu[cu.len() - 1] + n as u32));
    cu
}

/// LayerNorm parameters in f64: weight, bias, eps.
struct Norm64 {
    weight: Vec<f64>,
    bias: Vec<f64>,
    eps: f64,
}

fn layer_norm(x: &[f64], n: &Norm64) -> Vec<f64> {
    let h = x.len() as f64;
    let mean = x.iter().sum::<f64>() / h;
    let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / h;
    let scale = 1.0 / (var + n.eps).sqrt();
    x.iter().zip(&n.weight).zip(&n.bias).map(|((v, w), b)| (v - mean) * scale * w + b).collect()
}

/// One sequence in f64.
fn reference(tokens: &[Vec<f64>], o: &Options, norm: Option<&Norm64>, hidden: usize) -> Vec<f64> {
    let tokens: Vec<Vec<f64>> =
        tokens.iter().map(|x| norm.map_or(x.clone(), |n| layer_norm(x, n))).collect();
    let n = tokens.len();
    let sum = |weight: &dyn Fn(usize) -> f64, by: f64| -> Vec<f64> {
        (0..hidden)
            .map(|c| tokens.iter().enumerate().map(|(i, x)| weight(i) * x[c]).sum::<f64>() / by)
            .collect()
    };
    let mut v = match o.mode {
        _ if n == 0 => vec![0.0; hidden],
        Mode::Cls => tokens[0].clone(),
        Mode::Last => tokens[n - 1].clone(),
        Mode::Max => (0..hidden)
            .map(|c| tokens.iter().map(|x| x[c]).fold(f64::NEG_INFINITY, f64::max))
            .collect(),
        Mode::Mean => sum(&|_| 1.0, n as f64),
        Mode::MeanSqrtLen => sum(&|_| 1.0, (n as f64).sqrt()),
        Mode::WeightedMean => sum(&|i| (i + 1) as f64, (n * (n + 1)) as f64 / 2.0),
    };
    v.truncate(o.dim.unwrap_or(hidden));
    let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
    if o.normalize && length > 0.0 {
        v.iter_mut().for_each(|x| *x /= length);
    }
    v
}

/// Sequences as rows of f64 from packed states.
fn split(states: &[f64], lengths: &[usize], hidden: usize) -> Vec<Vec<Vec<f64>>> {
    let mut rows = states.chunks(hidden).map(<[f64]>::to_vec);
    lengths.iter().map(|&n| rows.by_ref().take(n).collect()).collect()
}

/// Packed states spread over a padded tensor; `place(b, i)` is where token i of sequence b goes. Padding holds NaN.
fn pad(
    states: &Tensor,
    lengths: &[usize],
    width: usize,
    place: impl Fn(usize, usize) -> usize,
) -> (Tensor, Tensor) {
    let hidden = states.dim(1).unwrap();
    let values = flat(states);
    let mut out = vec![f32::NAN; lengths.len() * width * hidden];
    let mut mask = vec![0u32; lengths.len() * width];
    let mut row = 0;
    for (b, &n) in lengths.iter().enumerate() {
        for i in 0..n {
            let to = b * width + place(b, i);
            mask[to] = 1;
            out[to * hidden..(to + 1) * hidden]
                .copy_from_slice(&values[row * hidden..(row + 1) * hidden]);
            row += 1;
        }
    }
    let mask = Tensor::from_vec(mask, (lengths.len(), width), &Device::Cpu).unwrap();
    (tensor(out, &[lengths.len(), width, hidden], states.dtype()), mask)
}

/// Unit roundoff of an output dtype.
fn roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every mode, dtype and layout, with and without LayerNorm, truncation, normalisation.
    #[test]
    fn matches_the_reference(
        lengths in prop::collection::vec(prop_oneof![0usize..5, 0usize..200], 0..5), hidden in 1usize..70,
        cut in any::<prop::sample::Index>(), mode in 0usize..6, input in 0usize..3, output in 0usize..3, normalize: bool,
        with_norm: bool, with_residual: bool, left: bool, salt: u32,
    ) {
        let total = lengths.iter().sum::<usize>();
        let states = tensor(random(total * hidden, salt), &[total, hidden], FLOATS[input]);
        let residual = tensor(random(total * hidden, salt ^ 1), &[total, hidden], FLOATS[(input + 1) % 3]);
        let weight = tensor(random(hidden, salt ^ 2), &[hidden], DType::BF16);
        let bias = tensor(random(hidden, salt ^ 3), &[hidden], DType::F32);
        let options =
            Options { mode: MODES[mode], dim: Some(cut.index(hidden) + 1), normalize, dtype: FLOATS[output] };
        let norm64 = Norm64 { weight: wide(&weight), bias: wide(&bias), eps: 1e-3 };
        let mut exact = wide(&states);
        if with_norm && with_residual {
            exact.iter_mut().zip(wide(&residual)).for_each(|(x, r)| *x += r);
        }
        let norm = with_norm.then_some(FinalNorm {
            residual: with_residual.then_some(&residual), weight: &weight, bias: Some(&bias), eps: 1e-3,
        });
        let cu = offsets(&lengths);
        let got = pool(&states, Rows::Packed { cu_seqlens: &cu }, &options, norm.as_ref()).unwrap();
        prop_assert_eq!(got.dtype(), FLOATS[output]);
        prop_assert_eq!(got.dims(), [lengths.len(), cut.index(hidden) + 1]);
        let want: Vec<f64> = split(&exact, &lengths, hidden)
            .iter()
            .flat_map(|tokens| reference(tokens, &options, with_norm.then_some(&norm64), hidden))
            .collect();
        for (got, want) in wide(&got).iter().zip(&want) {
            // The f32 part: values up to about 30 in size, some tens of roundings.
            let bound = 2e-4 + roundoff(FLOATS[output]) * want.abs();
            prop_assert!((got - want).abs() <= bound, "{} {} {:?}", got, want, options);
        }

        let width = lengths.iter().copied().max().unwrap_or(0) + 2;
        let place = |b: usize, i: usize| if left { width - lengths[b] + i } else { i };
        if norm.is_none() {
            let (padded, mask) = pad(&states, &lengths, width, place);
            let same = pool(&padded, Rows::Padded { mask: &mask }, &options, None).unwrap();
            prop_assert_eq!(flat(&same), flat(&got));
        }
    }
}

/// The same bits alone and in a batch, in both layouts, also for sequences of many parts and with holes in the mask.
#[test]
fn a_row_does_not_see_its_batch() {
    let lengths = [1, 300, 0, 64, 65, 7, 1000, 128];
    let hidden = 33;
    let total: usize = lengths.iter().sum();
    let cu = offsets(&lengths);
    for dtype in FLOATS {
        let states = tensor(random(total * hidden, 5), &[total, hidden], dtype);
        let (holes, mask) = pad(&states, &lengths, 2001, |b, i| 2 * i + b % 2);
        for mode in MODES {
            let options = Options { normalize: true, dim: Some(30), ..Options::new(mode) };
            let together: Vec<Vec<f32>> =
                pool(&states, Rows::Packed { cu_seqlens: &cu }, &options, None)
                    .unwrap()
                    .to_vec2()
                    .unwrap();
            let spread = pool(&holes, Rows::Padded { mask: &mask }, &options, None).unwrap();
            assert_eq!(spread.to_vec2::<f32>().unwrap(), together, "{mode:?}");
            for (b, &n) in lengths.iter().enumerate() {
                let alone = states.narrow(0, cu[b] as usize, n).unwrap();
                let alone =
                    pool(&alone, Rows::Packed { cu_seqlens: &[0, n as u32] }, &options, None)
                        .unwrap();
                assert_eq!(flat(&alone), together[b], "{mode:?} {b}");
            }
        }
    }
}

#[test]
fn edges() {
    let none = tensor(vec![], &[0, 3], DType::F32);
    for mode in MODES {
        let options = Options { normalize: true, ..Options::new(mode) };
        let packed = |states: &Tensor, cu: &[u32]| {
            pool(states, Rows::Packed { cu_seqlens: cu }, &options, None).unwrap()
        };
        assert_eq!(packed(&none, &[0]).dims(), [0, 3]);
        assert_eq!(flat(&packed(&none, &[0, 0, 0])), [0.0; 6]);
        assert_eq!(flat(&packed(&tensor(vec![0.0; 6], &[2, 3], DType::F32), &[0, 2])), [0.0; 3]);
        // Squares beyond f32 on either side.
        for size in [1e30f32, 1e-30, 1e-42] {
            let got = flat(&packed(
                &tensor(vec![3.0 * size, 0.0, -4.0 * size], &[1, 3], DType::F32),
                &[0, 1],
            ));
            assert!(
                (got[0] - 0.6).abs() < 1e-3 && got[1] == 0.0 && (got[2] + 0.8).abs() < 1e-3,
                "{got:?}"
            );
        }
        // One NaN takes its column, and with normalisation its vector; never another sequence.
        let mut values = vec![1.0; 12];
        values[4] = f32::NAN;
        let states = tensor(values, &[4, 3], DType::F32);
        let plain = Options::new(mode);
        let got =
            flat(&pool(&states, Rows::Packed { cu_seqlens: &[0, 2, 4] }, &plain, None).unwrap());
        let hit = mode != Mode::Cls;
        assert_eq!(
            [got[0].is_nan(), got[1].is_nan(), got[2].is_nan()],
            [false, hit, false],
            "{mode:?}"
        );
        assert!(got[3..].iter().all(|x| x.is_finite()));
        let got = flat(&packed(&states, &[0, 2, 4]));
        assert_eq!(got[..3].iter().all(|x| x.is_nan()), hit);
        assert!(got[3..].iter().all(|x| x.is_finite()));
    }
    let (padded, mask) =
        (tensor(vec![], &[0, 4, 3], DType::F32), tensor(vec![], &[0, 4], DType::U32));
    let got = pool(&padded, Rows::Padded { mask: &mask }, &Options::new(Mode::Mean), None).unwrap();
    assert_eq!(got.dims(), [0, 3]);
}

/// A half-precision running sum stalls at 2,048 ones; here the mean of any number of ones is one.
#[test]
fn half_sums_do_not_saturate() {
    for dtype in FLOATS {
        let ones = tensor(vec![1.0; 5000 * 2], &[5000, 2], dtype);
        let options = Options { dtype, ..Options::new(Mode::Mean) };
        assert_eq!(
            flat(&pool(&ones, Rows::Packed { cu_seqlens: &[0, 5000] }, &options, None).unwrap()),
            [1.0, 1.0]
        );
    }
}

#[test]
fn strided_states() {
    let base = tensor(random(60, 1), &[5, 12], DType::F32);
    let options = Options::new(Mode::Mean);
    let rows = Rows::Packed { cu_seqlens: &[0, 2, 12] };
    let transposed = base.t().unwrap();
    let copy = transposed.contiguous().unwrap();
    assert_eq!(
        flat(&pool(&transposed, rows, &options, None).unwrap()),
        flat(&pool(&copy, rows, &options, None).unwrap())
    );
    let narrowed = base.narrow(1, 3, 6).unwrap();
    let copy = narrowed.contiguous().unwrap();
    let rows = Rows::Packed { cu_seqlens: &[0, 5] };
    assert_eq!(
        flat(&pool(&narrowed, rows, &options, None).unwrap()),
        flat(&pool(&copy, rows, &options, None).unwrap())
    );
}

#[test]
fn mask_dtypes_agree() {
    let states = tensor(random(24, 3), &[2, 4, 3], DType::F32);
    let mask = tensor(vec![1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0], &[2, 4], DType::F32);
    let run = |mask: Tensor| {
        flat(&pool(&states, Rows::Padded { mask: &mask }, &Options::new(Mode::Mean), None).unwrap())
    };
    let want = run(mask.to_dtype(DType::U8).unwrap());
    assert_eq!(run(mask.to_dtype(DType::U32).unwrap()), want);
    assert_eq!(run(mask.to_dtype(DType::I64).unwrap()), want);
    // 256 and 2^32 are not zero, although their low bytes are.
    assert_eq!(run((mask.to_dtype(DType::I64).unwrap() * 256.0).unwrap()), want);
    assert_eq!(run((mask.to_dtype(DType::I64).unwrap() * 4_294_967_296.0).unwrap()), want);
}

#[test]
fn eight_bits() {
    let (lengths, hidden) = ([3, 0, 90, 1], 50);
    let states = tensor(random(94 * hidden, 9), &[94, hidden], DType::BF16);
    let cu = offsets(&lengths);
    let rows = Rows::Packed { cu_seqlens: &cu };
    let options = Options { normalize: true, dim: Some(40), ..Options::new(Mode::Mean) };
    let got = pool_i8(&states, rows, &options, None).unwrap();
    let want = flat(&pool(&states, rows, &options, None).unwrap());
    assert_eq!((got.dim, got.codes.len()), (40, 160));
    for (&code, v) in got.codes.iter().zip(&want) {
        assert!((f32::from(code) / 127.0 - v).abs() <= 0.5001 / 127.0);
    }
    let one_hot = tensor(vec![0.0, -5.0, 0.0, f32::NAN, 1.0, 1.0], &[2, 3], DType::F32);
    let got = pool_i8(
        &one_hot,
        Rows::Packed { cu_seqlens: &[0, 1, 2] },
        &Options { dim: None, ..options },
        None,
    )
    .unwrap();
    assert_eq!(got.codes, [0, -127, 0, -128, -128, -128]);
    let plain = Options::new(Mode::Mean);
    assert!(pool_i8(&states, rows, &plain, None).unwrap_err().to_string().contains("normalize"));
    let tracked = Var::from_tensor(&states).unwrap();
    assert!(
        pool_i8(tracked.as_tensor(), rows, &options, None)
            .unwrap_err()
            .to_string()
            .contains("gradient")
    );
}

/// Loss sum(c * pooled) in f64 of packed sequences.
fn loss(
    states: &[f64],
    lengths: &[usize],
    hidden: usize,
    o: &Options,
    norm: Option<&Norm64>,
    c: &[f32],
) -> f64 {
    let pooled =
        split(states, lengths, hidden).into_iter().flat_map(|t| reference(&t, o, norm, hidden));
    pooled.zip(c).map(|(v, &c)| v * f64::from(c)).sum()
}

/// Central difference of `f` in every coordinate of `x`.
fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    (0..x.len())
        .map(|i| {
            let at = |d: f64| {
                let mut moved = x.to_vec();
                moved[i] += d;
                f(&moved)
            };
            (at(step) - at(-step)) / (2.0 * step)
        })
        .collect()
}

fn close(got: &Tensor, want: &[f64], tolerance: f64, what: &str) {
    for (i, (g, w)) in wide(got).iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * (1.0 + w.abs()),
            "{what}: gradient {i} is {g}, expected {w}"
        );
    }
}

#[test]
fn gradients_match_finite_differences() {
    let (lengths, hidden) = ([3usize, 0, 1, 70], 5usize);
    let cu = offsets(&lengths);
    for (mode, dtype, normalize, dim) in MODES.into_iter().flat_map(|m| {
        FLOATS.into_iter().flat_map(move |d| [(m, d, false, 5), (m, d, true, 5), (m, d, true, 3)])
    }) {
        let options = Options { mode, normalize, dim: Some(dim), dtype: DType::F32 };
        let states =
            Var::from_tensor(&tensor(random(74 * hidden, 4), &[74, hidden], dtype)).unwrap();
        let c = random(4 * dim, 6);
        let want = differences(&wide(&states), |x| loss(x, &lengths, hidden, &options, None, &c));
        let scale = tensor(c, &[4, dim], DType::F32);
        let backward =
            |pooled: Tensor| (pooled * &scale).unwrap().sum_all().unwrap().backward().unwrap();

        let grads = backward(
            pool(states.as_tensor(), Rows::Packed { cu_seqlens: &cu }, &options, None).unwrap(),
        );
        let grad = grads.get(&states).unwrap();
        assert_eq!(grad.dtype(), dtype);
        let tolerance = if dtype == DType::F32 { 2e-5 } else { 1e-2 };
        let name = format!("{mode:?} {dtype:?} {normalize} {dim}");
        close(grad, &want, tolerance, &name);

        // Padded on the left: the same gradients, none for padding.
        let (padded, mask) = pad(states.as_tensor(), &lengths, 72, |b, i| 72 - lengths[b] + i);
        let clean = tensor(
            flat(&padded).iter().map(|x| if x.is_nan() { 9.0 } else { *x }).collect(),
            padded.dims(),
            dtype,
        );
        let padded = Var::from_tensor(&clean).unwrap();
        let grads = backward(
            pool(padded.as_tensor(), Rows::Padded { mask: &mask }, &options, None).unwrap(),
        );
        let got = flat(grads.get(&padded).unwrap());
        let marks = flat(&mask);
        let kept: Vec<f32> = got
            .chunks(hidden)
            .zip(&marks)
            .filter(|(_, m)| **m > 0.0)
            .flat_map(|(row, _)| row.to_vec())
            .collect();
        assert_eq!(kept, flat(grad));
        assert!(
            got.chunks(hidden)
                .zip(&marks)
                .filter(|(_, m)| **m == 0.0)
                .all(|(row, _)| row.iter().all(|g| *g == 0.0))
        );
    }
}

/// A tie sends the whole gradient to the first token; a zero vector sends none.
#[test]
fn gradient_of_ties_and_zeros() {
    let states = Var::from_tensor(&tensor(vec![1.0, 1.0, 0.5, 1.0], &[4, 1], DType::F32)).unwrap();
    let run = |options: &Options| {
        let pooled =
            pool(states.as_tensor(), Rows::Packed { cu_seqlens: &[0, 4] }, options, None).unwrap();
        flat(pooled.sum_all().unwrap().backward().unwrap().get(&states).unwrap())
    };
    assert_eq!(run(&Options::new(Mode::Max)), [1.0, 0.0, 0.0, 0.0]);
    let zero = Var::from_tensor(&tensor(vec![0.0; 4], &[2, 2], DType::F32)).unwrap();
    let options = Options { normalize: true, ..Options::new(Mode::Mean) };
    let pooled =
        pool(zero.as_tensor(), Rows::Packed { cu_seqlens: &[0, 2] }, &options, None).unwrap();
    assert_eq!(flat(pooled.sum_all().unwrap().backward().unwrap().get(&zero).unwrap()), [0.0; 4]);
}

/// LayerNorm under gradients: the value of the fused path, and gradients of everything that goes in.
#[test]
fn gradients_through_the_norm() {
    let (lengths, hidden, eps) = ([2usize, 3], 6usize, 1e-3);
    let cu = offsets(&lengths);
    let rows = Rows::Packed { cu_seqlens: &cu };
    let [x, r] = [1, 2].map(|salt| tensor(random(5 * hidden, salt), &[5, hidden], DType::F32));
    let [w, b] = [3, 4].map(|salt| tensor(random(hidden, salt), &[hidden], DType::F32));
    let c = random(2 * 4, 8);
    for mode in MODES {
        let options = Options { mode, normalize: true, dim: Some(4), dtype: DType::F32 };
        let fused = FinalNorm { residual: Some(&r), weight: &w, bias: Some(&b), eps };
        let value = flat(&pool(&x, rows, &options, Some(&fused)).unwrap());
        let [vx, vr, vw, vb] = [&x, &r, &w, &b].map(|t| Var::from_tensor(t).unwrap());
        let tracked = FinalNorm {
            residual: Some(vr.as_tensor()),
            weight: vw.as_tensor(),
            bias: Some(vb.as_tensor()),
            eps,
        };
        let pooled = pool(vx.as_tensor(), rows, &options, Some(&tracked)).unwrap();
        for (a, b) in flat(&pooled).iter().zip(&value) {
            assert!((a - b).abs() < 1e-5, "{mode:?}: composed {a}, fused {b}");
        }
        let scale = tensor(c.clone(), &[2, 4], DType::F32);
        let grads = (pooled * scale).unwrap().sum_all().unwrap().backward().unwrap();
        let at = |x: &[f64], r: &[f64], w: &[f64], b: &[f64]| {
            let sum: Vec<f64> = x.iter().zip(r).map(|(x, r)| x + r).collect();
            let norm = Norm64 { weight: w.to_vec(), bias: b.to_vec(), eps };
            loss(&sum, &lengths, hidden, &options, Some(&norm), &c)
        };
        let (x, r, w, b) = (wide(&x), wide(&r), wide(&w), wide(&b));
        let want = [
            differences(&x, |v| at(v, &r, &w, &b)),
            differences(&r, |v| at(&x, v, &w, &b)),
            differences(&w, |v| at(&x, &r, v, &b)),
            differences(&b, |v| at(&x, &r, &w, v)),
        ];
        for ((var, want), name) in
            [&vx, &vr, &vw, &vb].into_iter().zip(&want).zip(["x", "r", "w", "b"])
        {
            close(grads.get(var).unwrap(), want, 1e-4, &format!("{mode:?} {name}"));
        }
    }
}

#[test]
fn bad_arguments_are_named() {
    let x = tensor(vec![0.0; 12], &[4, 3], DType::F32);
    let x3 = tensor(vec![0.0; 12], &[2, 2, 3], DType::F32);
    let mask = tensor(vec![1.0; 4], &[2, 2], DType::U32);
    let options = Options::new(Mode::Mean);
    let message =
        |x: &Tensor, rows: Rows, o: Options| pool(x, rows, &o, None).unwrap_err().to_string();
    for cu in [&[][..], &[0], &[0, 3], &[1, 4], &[0, 5], &[0, 3, 2, 4]] {
        assert!(message(&x, Rows::Packed { cu_seqlens: cu }, options).contains("cu_seqlens"));
    }
    let all = Rows::Packed { cu_seqlens: &[0, 4] };
    assert!(message(&x3, all, options).contains("[sum T, H]"));
    assert!(message(&x, Rows::Padded { mask: &mask }, options).contains("[B, T, H]"));
    let wrong = tensor(vec![1.0; 4], &[1, 4], DType::U32);
    assert!(message(&x3, Rows::Padded { mask: &wrong }, options).contains("mask"));
    let wrong = mask.to_dtype(DType::F32).unwrap();
    assert!(message(&x3, Rows::Padded { mask: &wrong }, options).contains("u8, u32 or i64"));
    for dim in [0, 4] {
        assert!(message(&x, all, Options { dim: Some(dim), ..options }).contains("1..=3"));
    }
    assert!(message(&x, all, Options { dtype: DType::F64, ..options }).contains("F64"));
    assert!(message(&x.to_dtype(DType::F64).unwrap(), all, options).contains("states"));
    assert!(
        message(&tensor(vec![], &[4, 0], DType::F32), all, options).contains("H of at least 1")
    );
    let (w, short) =
        (tensor(vec![1.0; 3], &[3], DType::F32), tensor(vec![1.0; 2], &[2], DType::F32));
    let norm = FinalNorm { residual: None, weight: &w, bias: None, eps: 1e-5 };
    for (bad, what) in [
        (FinalNorm { weight: &short, ..norm }, "norm weight"),
        (FinalNorm { bias: Some(&short), ..norm }, "norm bias"),
        (FinalNorm { residual: Some(&x3), ..norm }, "residual"),
        (FinalNorm { eps: f64::NAN, ..norm }, "norm eps"),
        (FinalNorm { eps: -1.0, ..norm }, "norm eps"),
    ] {
        let text = pool(&x, all, &options, Some(&bad)).unwrap_err().to_string();
        assert!(text.contains(what), "{text}");
    }
}
