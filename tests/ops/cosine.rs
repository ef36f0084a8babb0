//! Cosines against float64: values within the stated bounds, decisions equal without exception.

use bdhs::ops::cosine::{
    Pair, count_above, count_below, matrix, pairs_above, rows, rows_f64, top_k,
};
use bdhs::ops::philox::{Draws, Purpose};
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn random(n: usize, salt: u32) -> Vec<f32> {
    let draws = Draws { seed: 31, sample: salt, attempt: 0 };
    (0..n as u64).map(|i| (draws.uniform(Purpose::Noise, 0, i) * 2.0 - 1.0) as f32).collect()
}

fn tensor(values: Vec<f32>, rows: usize, d: usize, dtype: DType) -> Tensor {
    Tensor::from_vec(values, (rows, d), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// Rows that share a direction, so that cosines spread over high values too.
fn clustered(n: usize, d: usize, salt: u32, dtype: DType) -> Tensor {
    let (base, noise) = (random(d, 999), random(n * d, salt));
    let values =
        (0..n * d).map(|i| base[i % d] + noise[i] * ((i / d % 16) as f32 * 0.12)).collect();
    tensor(values, n, d, dtype)
}

fn wide(t: &Tensor) -> Vec<Vec<f64>> {
    let rows: Vec<Vec<f32>> = t.to_dtype(DType::F32).unwrap().to_vec2().unwrap();
    rows.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// The cosine, left to right in f64.
fn cosine(x: &[f64], y: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (xx, yy) = (dot(x, x), dot(y, y));
    match () {
        () if !xx.is_finite() || !yy.is_finite() => f64::NAN,
        () if xx == 0.0 || yy == 0.0 => 0.0,
        () => (dot(x, y) / (xx * yy).sqrt()).clamp(-1.0, 1.0),
    }
}

/// `[N][M]` cosines in f64, each with the squared norms taken once.
fn all(a: &Tensor, b: &Tensor) -> Vec<Vec<f64>> {
    let (a, b) = (wide(a), wide(b));
    a.iter().map(|x| b.iter().map(|y| cosine(x, y)).collect()).collect()
}

fn row_bound(d: usize) -> f64 {
    let n = (d.div_ceil(32) + 6) as f64 * 2f64.powi(-24);
    2.0 * n / (1.0 - n) + 1e-13 + 2f64.powi(-25)
}

fn tile_bound(d: usize) -> f64 {
    (d + 6) as f64 * 2f64.powi(-24) * 1.001 + 2f64.powi(-25)
}

/// One million pairs: every count equals the float64 count, for thresholds that lie on top of actual cosines.
#[test]
fn a_million_decisions_are_exact() {
    let (n, m, d) = (1010, 1001, 48);
    let (a, b) = (clustered(n, d, 1, DType::F32), clustered(m, d, 2, DType::F32));
    let exact = all(&a, &b);
    let mut thresholds = vec![0.9, 0.93, 0.95, 0.97, 0.99, 0.0, -1.0, 1.0];
    // Offsets far below what f32 can resolve, and still above the rounding of any f64 order of summation.
    for (k, offset) in [1e-12, -1e-12, 1e-11, -1e-10, 1e-9, -1e-8, 1e-7].into_iter().enumerate() {
        thresholds.push(exact[13 * k + 1][29 * k + 3] + offset);
    }
    let below = count_below(&a, Some(&b), &thresholds).unwrap();
    let above = count_above(&a, Some(&b), &thresholds).unwrap();
    assert_eq!((below.pairs, below.nan), ((n * m) as u64, 0));
    for (t, threshold) in thresholds.iter().enumerate() {
        let count =
            |f: &dyn Fn(f64) -> bool| exact.iter().flatten().filter(|c| f(**c)).count() as u64;
        assert_eq!(below.counts[t], count(&|c| c < *threshold), "below {threshold}");
        assert_eq!(above.counts[t], count(&|c| c > *threshold), "above {threshold}");
    }
    // Some decisions were close, and only few: the band is narrow.
    assert!(below.rechecked > 0 && below.rechecked < 20_000, "{}", below.rechecked);
}

/// The recheck is what makes it exact: plain f32 scores decide wrongly on the same pairs.
#[test]
fn plain_scores_would_decide_wrongly() {
    let (n, d) = (300, 384);
    let a = clustered(n, d, 3, DType::F32);
    let exact = all(&a, &a);
    let fast = wide(&matrix(&a, &a).unwrap());
    let (mut wrong, mut checked) = (0, 0);
    for k in 0..40 {
        let (i, j) = (3 * k, 7 * k + 5);
        for offset in [-1e-10, 1e-10] {
            let threshold = exact[i][j] + offset;
            let got = count_below(&a, None, &[threshold]).unwrap();
            let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
            let want = pairs.clone().filter(|&(i, j)| exact[i][j] < threshold).count() as u64;
            assert_eq!(got.counts[0], want);
            wrong +=
                usize::from(pairs.filter(|&(i, j)| fast[i][j] < threshold).count() as u64 != want);
            checked += 1;
        }
    }
    assert!(wrong > checked / 4, "only {wrong} of {checked} are hard");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Ragged groups, every dtype: values within the bound, the first candidate below each threshold.
    #[test]
    fn rows_match_the_reference(
        sizes in prop::collection::vec(0usize..7, 0..12), d in 1usize..300, dtype in 0usize..3, salt: u32,
        hard in any::<prop::sample::Index>(),
    ) {
        let (n, r) = (sizes.iter().sum::<usize>(), sizes.len());
        let (a, b) = (clustered(n, d, salt, FLOATS[dtype]), clustered(r, d, salt ^ 1, FLOATS[dtype]));
        let mut groups = vec![0u32];
        sizes.iter().for_each(|&k| groups.push(groups[groups.len() - 1] + k as u32));
        let (wa, wb) = (wide(&a), wide(&b));
        let owners: Vec<usize> = sizes.iter().enumerate().flat_map(|(r, &k)| vec![r; k]).collect();
        let exact: Vec<f64> = wa.iter().zip(&owners).map(|(x, &r)| cosine(x, &wb[r])).collect();
        let mut thresholds = vec![0.97, 0.5, 0.99];
        if n > 0 {
            let c = exact[hard.index(n)];
            thresholds.extend([c - 1e-11, c + 1e-11, c + 1e-8].into_iter().filter(|t| t.abs() <= 1.0));
        }
        let got = rows(&a, &b, Some(&groups), &thresholds).unwrap();
        for (got, want) in flat(&got.scores).iter().zip(&exact) {
            prop_assert!((f64::from(*got) - want).abs() <= row_bound(d), "{} {}", got, want);
        }
        for r in 0..r {
            for (t, threshold) in thresholds.iter().enumerate() {
                let group = &exact[groups[r] as usize..groups[r + 1] as usize];
                let want = group.iter().position(|c| c < threshold).map(|k| k as u32);
                prop_assert_eq!(got.first_below[r * thresholds.len() + t], want);
            }
        }
    }

    /// Any shape across tile edges: values, counts, pairs, neighbours; symmetric jobs see each pair once.
    #[test]
    fn all_pairs_match_the_reference(
        n in 0usize..300, m in 0usize..40, d in 1usize..40, dtype in 0usize..3, salt: u32, k in 0usize..12, flip: bool,
    ) {
        let (n, m) = if flip { (m, n) } else { (n, m) };
        let (a, b) = (clustered(n, d, salt, FLOATS[dtype]), clustered(m, d, salt ^ 1, FLOATS[dtype]));
        let exact = all(&a, &b);
        let scores = matrix(&a, &b).unwrap();
        prop_assert_eq!(scores.dims(), [n, m]);
        for (got, want) in flat(&scores).iter().zip(exact.iter().flatten()) {
            prop_assert!((f64::from(*got) - want).abs() <= tile_bound(d) && got.abs() <= 1.0);
        }
        let threshold = 0.95;
        let found = pairs_above(&a, Some(&b), threshold).unwrap().pairs;
        let want: Vec<(u32, u32)> = (0..n).flat_map(|i| (0..m).map(move |j| (i, j)))
            .filter(|&(i, j)| exact[i][j] > threshold).map(|(i, j)| (i as u32, j as u32)).collect();
        prop_assert_eq!(found.iter().map(|p| (p.i, p.j)).collect::<Vec<_>>(), want);
        for p in &found {
            prop_assert!((f64::from(p.score) - exact[p.i as usize][p.j as usize]).abs() <= tile_bound(d));
        }
        let half: Vec<Pair> = pairs_above(&a, None, threshold).unwrap().pairs;
        let own = all(&a, &a);
        let want: Vec<(u32, u32)> = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)))
            .filter(|&(i, j)| own[i][j] > threshold).map(|(i, j)| (i as u32, j as u32)).collect();
        prop_assert_eq!(half.iter().map(|p| (p.i, p.j)).collect::<Vec<_>>(), want);

        let k = k.min(m);
        let best = top_k(&a, &b, k).unwrap();
        let (indices, scores) = (best.indices.flatten_all().unwrap().to_vec1::<u32>().unwrap(), flat(&best.scores));
        for i in 0..n {
            let mut order: Vec<usize> = (0..m).collect();
            order.sort_by(|&x, &y| exact[i][y].total_cmp(&exact[i][x]).then(x.cmp(&y)));
            for (rank, &j) in order[..k].iter().enumerate() {
                let at = indices[i * k + rank] as usize;
                // Two f64 orders of summation may swap cosines that agree to 1e-13.
                prop_assert!(at == j || (exact[i][at] - exact[i][j]).abs() < 1e-13);
                prop_assert!((f64::from(scores[i * k + rank]) - exact[i][j]).abs() <= 6.1e-8);
            }
        }
    }
}

/// Rows whose first dimensions tell more, less, or nothing about the rest: all-pairs jobs with a bound compute products in
/// parts and leave pairs out that cannot reach it.
fn uneven(n: usize, d: usize, salt: u32, dtype: DType) -> Tensor {
    let (centres, noise) = (random(8 * d, 999), random(n * d, salt));
    let values = (0..n * d).map(|at| {
        let (i, k) = (at / d, at % d);
        let weight = match i % 4 {
            0 => 1.0,
            1 if k < d * 3 / 4 => 0.02,
            2 if k >= d / 4 => 0.02,
            3 if k < d / 2 => 0.0,
            _ => 1.0,
        };
        let spread = [0.05, 0.3, 0.8, 3.0][i / 4 % 4];
        weight * (centres[i / 16 % 8 * d + k] + spread * noise[at])
    });
    let mut values: Vec<f32> = values.collect();
    values[5 * d..6 * d].fill(0.0);
    values[70 * d + d - 1] = f32::NAN;
    tensor(values, n, d, dtype)
}

#[test]
fn products_in_parts_decide_as_float64_does() {
    for (d, dtype) in [(127, DType::F32), (128, DType::F32), (200, DType::F16), (384, DType::BF16)]
    {
        let (n, m) = (300, 700);
        let (a, b) = (uneven(n, d, 1, dtype), uneven(m, d, 2, dtype));
        let exact = all(&a, &b);
        let some = |i: usize, j: usize| exact[i][j];
        // Also on top of actual cosines.
        let mut thresholds = vec![0.51, 0.7, 0.9, 0.99];
        thresholds.extend([some(0, 128), some(18, 16), some(40, 33)].map(|c| c.max(0.55) + 1e-12));
        for threshold in thresholds {
            let want: Vec<(u32, u32)> = (0..n)
                .flat_map(|i| (0..m).map(move |j| (i, j)))
                .filter(|&(i, j)| exact[i][j] > threshold)
                .map(|(i, j)| (i as u32, j as u32))
                .collect();
            let found = pairs_above(&a, Some(&b), threshold).unwrap();
            let places: Vec<(u32, u32)> = found.pairs.iter().map(|p| (p.i, p.j)).collect();
            assert_eq!(places, want, "d {d}, threshold {threshold}");
            for p in &found.pairs {
                let error = f64::from(p.score) - exact[p.i as usize][p.j as usize];
                assert!(error.abs() <= tile_bound(d), "d {d}: {p:?} off by {error:e}");
            }
            let counted = count_above(&a, Some(&b), &[threshold]).unwrap();
            assert_eq!((counted.counts[0], counted.nan), (want.len() as u64, found.nan));
            let below = count_below(&a, Some(&b), &[threshold]).unwrap();
            let want = exact.iter().flatten().filter(|c| **c < threshold).count() as u64;
            assert_eq!(below.counts[0], want, "d {d}, threshold {threshold}");
        }
    }
}

/// Wide enough that a row's columns cross several work items, and k larger than a tile's share.
#[test]
fn top_k_over_many_tiles() {
    let (n, m, d, k) = (3, 9000, 16, 700);
    let (a, b) = (clustered(n, d, 1, DType::F16), clustered(m, d, 2, DType::F16));
    let exact = all(&a, &b);
    let best = top_k(&a, &b, k).unwrap();
    let indices: Vec<Vec<u32>> = best.indices.to_vec2().unwrap();
    for i in 0..n {
        let mut order: Vec<usize> = (0..m).collect();
        order.sort_by(|&x, &y| exact[i][y].total_cmp(&exact[i][x]).then(x.cmp(&y)));
        for (&j, &got) in order.iter().zip(&indices[i]) {
            assert!((exact[i][j] - exact[i][got as usize]).abs() < 1e-13);
        }
    }
    assert!(
        best.rechecked >= (n * k) as u64 && best.rechecked < (n * k * 2) as u64,
        "{}",
        best.rechecked
    );
}

/// Equal rows tie by index, wherever in the tiles they are.
#[test]
fn top_k_ties_by_index() {
    let d = 33;
    let one = random(d, 5);
    let copies = 5000;
    let mut values: Vec<f32> = (0..copies).flat_map(|_| one.clone()).collect();
    values[..d].iter_mut().for_each(|x| *x = -*x);
    let b = tensor(values, copies, d, DType::F32);
    let a = tensor(random(2 * d, 6), 2, d, DType::F32);
    let sign = cosine(&wide(&a)[0], &wide(&b)[1]) > 0.0;
    let indices: Vec<Vec<u32>> = top_k(&a, &b, 40).unwrap().indices.to_vec2().unwrap();
    let want: Vec<u32> = if sign { (1..41).collect() } else { (0..40).collect() };
    assert_eq!(indices[0], want);
}

#[test]
fn zeros_nan_and_infinity() {
    let inf = f32::INFINITY;
    let values = vec![1.0, 0.0, 0.0, 0.0, f32::NAN, 1.0, inf, 0.0, -2.0, 0.0, -0.0, 0.0];
    for dtype in FLOATS {
        let a = tensor(values.clone(), 6, 2, dtype);
        let nan = [false, false, true, true, false, false];
        let zero = [false, true, false, false, false, true];
        let scores: Vec<Vec<f32>> = matrix(&a, &a).unwrap().to_vec2().unwrap();
        for i in 0..6 {
            for j in 0..6 {
                let pair =
                    rows(&a.narrow(0, i, 1).unwrap(), &a.narrow(0, j, 1).unwrap(), None, &[0.5])
                        .unwrap();
                let got = flat(&pair.scores)[0];
                if nan[i] || nan[j] {
                    assert!(got.is_nan() && scores[i][j].is_nan(), "{i} {j}");
                    assert_eq!((pair.nan, pair.first_below[0]), (1, None));
                } else {
                    let want = match zero[i] || zero[j] {
                        true => 0.0,
                        false if i == j => 1.0,
                        false => -1.0,
                    };
                    assert_eq!((got, scores[i][j]), (want, want), "{i} {j}");
                    assert_eq!(pair.first_below[0], (want < 0.5).then_some(0));
                }
            }
        }
        // Of 15 pairs 9 have a NaN; of the 6 others one is -1 and five are 0.
        let below = count_below(&a, None, &[-1.0, 0.0, 0.5, 1.0]).unwrap();
        assert_eq!((below.counts, below.pairs, below.nan), (vec![0, 1, 6, 6], 15, 9));
        let above = count_above(&a, Some(&a), &[-1.0, -0.5, 0.0, 1.0]).unwrap();
        assert_eq!((above.counts, above.pairs, above.nan), (vec![14, 14, 2, 0], 36, 20));
        assert_eq!(pairs_above(&a, None, -0.5).unwrap().nan, 9);
        let best = top_k(&a, &a, 6).unwrap();
        let indices: Vec<Vec<u32>> = best.indices.to_vec2().unwrap();
        assert_eq!(indices[0], [0, 1, 5, 4, 2, 3]);
        assert_eq!(indices[2], [0, 1, 2, 3, 4, 5]);
        assert!(flat(&best.scores)[4].is_nan() && !flat(&best.scores)[3].is_nan());
    }
}

/// Norms whose squares leave f32, on either side, give the same cosines.
#[test]
fn any_magnitude() {
    let (n, d) = (20, 50);
    let base = random(n * d, 7);
    let reference = tensor(base.clone(), n, d, DType::F32);
    for size in [1e-38f32, 1e-25, 1e25, 3e38] {
        let scaled = tensor(base.iter().map(|x| x * size).collect(), n, d, DType::F32);
        let exact = all(&scaled, &scaled);
        let scores: Vec<Vec<f32>> = matrix(&scaled, &scaled).unwrap().to_vec2().unwrap();
        let pair = flat(&rows(&scaled, &reference, None, &[]).unwrap().scores);
        for i in 0..n {
            for j in 0..n {
                assert!((f64::from(scores[i][j]) - exact[i][j]).abs() <= tile_bound(d), "{size}");
            }
            assert!((pair[i] - 1.0).abs() < 1e-6, "{size}: {}", pair[i]);
        }
        let thresholds = [exact[0][1], 0.1];
        let below = count_below(&scaled, None, &thresholds).unwrap();
        for (count, t) in below.counts.iter().zip(thresholds) {
            let want = (0..n)
                .flat_map(|i| (i + 1..n).map(move |j| (i, j)))
                .filter(|&(i, j)| exact[i][j] < t)
                .count();
            assert!(count.abs_diff(want as u64) <= u64::from(t == thresholds[0]), "{size}");
        }
    }
}

/// A vector has cosine 1 with itself and its multiples by powers of two: not below 1, not above 1.
#[test]
fn clamped_to_one() {
    for dtype in FLOATS {
        let a = tensor(random(64 * 100, 8), 64, 100, dtype);
        let double = (&a * 2.0).unwrap();
        for b in [&a, &double] {
            let got = rows(&a, b, None, &[1.0, -1.0]).unwrap();
            assert!(flat(&got.scores).iter().all(|s| *s == 1.0));
            assert!(got.first_below.iter().all(Option::is_none));
            let negative = rows(&a, &b.neg().unwrap(), None, &[-1.0]).unwrap();
            assert!(flat(&negative.scores).iter().all(|s| *s == -1.0));
            assert!(negative.first_below.iter().all(Option::is_none));
        }
        assert_eq!(count_above(&a, Some(&a), &[1.0]).unwrap().counts, [0]);
        assert_eq!(count_below(&a, Some(&double), &[1.0]).unwrap().counts, [64 * 63]);
    }
}

/// A score does not depend on the other rows of the call.
#[test]
fn rows_do_not_see_their_batch() {
    for dtype in FLOATS {
        let (a, b) = (clustered(70, 130, 1, dtype), clustered(70, 130, 2, dtype));
        let together = flat(&rows(&a, &b, None, &[0.9]).unwrap().scores);
        for (i, want) in together.iter().enumerate() {
            let alone =
                rows(&a.narrow(0, i, 1).unwrap(), &b.narrow(0, i, 1).unwrap(), None, &[0.9])
                    .unwrap();
            assert_eq!(flat(&alone.scores)[0], *want);
        }
    }
}

#[test]
fn strided_and_empty() {
    let a = tensor(random(40, 1), 8, 5, DType::F32).t().unwrap();
    let copy = a.contiguous().unwrap();
    assert_eq!(flat(&rows(&a, &copy, None, &[]).unwrap().scores), [1.0; 5]);
    assert_eq!(flat(&matrix(&a, &a).unwrap()), flat(&matrix(&copy, &copy).unwrap()));
    let none = tensor(vec![], 0, 8, DType::F32);
    assert_eq!(rows(&none, &none, None, &[0.5]).unwrap().scores.dims(), [0]);
    let got = rows(&none, &a, Some(&[0; 6]), &[0.5, 0.6]).unwrap();
    assert_eq!(got.first_below, [None; 10]);
    assert_eq!(matrix(&none, &a).unwrap().dims(), [0, 5]);
    assert_eq!(matrix(&a, &none).unwrap().dims(), [5, 0]);
    assert_eq!(top_k(&a, &none, 0).unwrap().indices.dims(), [5, 0]);
    assert_eq!(top_k(&none, &a, 3).unwrap().indices.dims(), [0, 3]);
    assert_eq!(count_below(&none, None, &[0.5]).unwrap().counts, [0]);
    assert_eq!(count_below(&a, None, &[]).unwrap().pairs, 10);
    assert!(pairs_above(&a, Some(&none), 0.5).unwrap().pairs.is_empty());
}

#[test]
fn bad_arguments_are_named() {
    let a = tensor(vec![1.0; 12], 4, 3, DType::F32);
    let other = tensor(vec![1.0; 8], 4, 2, DType::F32);
    let half = a.to_dtype(DType::F16).unwrap();
    let text = |e: bdhs::Error| e.to_string();
    assert!(text(matrix(&a, &other).unwrap_err()).contains("one D"));
    assert!(text(matrix(&a, &half).unwrap_err()).contains("F16"));
    assert!(text(matrix(&a, &a.flatten_all().unwrap()).unwrap_err()).contains("[N, D]"));
    let empty = tensor(vec![], 4, 0, DType::F32);
    assert!(text(count_below(&empty, None, &[]).unwrap_err()).contains("at least 1"));
    let double = a.to_dtype(DType::F64).unwrap();
    assert!(text(top_k(&double, &double, 1).unwrap_err()).contains("F64"));
    assert!(text(top_k(&a, &a, 5).unwrap_err()).contains("at most 4"));
    for bad in [1.0001, -2.0, f64::NAN, f64::INFINITY] {
        assert!(text(rows(&a, &a, None, &[0.5, bad]).unwrap_err()).contains("threshold"));
        assert!(text(count_below(&a, None, &[bad]).unwrap_err()).contains("[-1, 1]"));
        assert!(text(count_above(&a, Some(&a), &[bad]).unwrap_err()).contains("[-1, 1]"));
        assert!(text(pairs_above(&a, None, bad).unwrap_err()).contains("[-1, 1]"));
    }
    let short = a.narrow(0, 0, 2).unwrap();
    assert!(text(rows(&a, &short, None, &[]).unwrap_err()).contains("4 candidates, 2 references"));
    for groups in [&[][..], &[0, 4], &[1, 2, 4], &[0, 2, 5], &[0, 5, 4]] {
        assert!(text(rows(&a, &short, Some(groups), &[]).unwrap_err()).contains("groups"));
    }
}

/// Scores that are kept are the float64 cosines themselves.
#[test]
fn rows_f64_is_the_float64_cosine() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let (n, d) = (65, 77);
        let a = tensor(random(n * d, 1), n, d, dtype);
        let b = tensor(random(n * d, 2), n, d, dtype);
        let scores = rows_f64(&a, &b).unwrap();
        for ((score, x), y) in scores.iter().zip(wide(&a)).zip(wide(&b)) {
            assert!((score - cosine(&x, &y)).abs() < 1e-14);
        }
        assert!(rows_f64(&a, &a).unwrap().iter().all(|&score| score == 1.0));
    }
    let short = tensor(random(8, 3), 2, 4, DType::F32);
    assert!(rows_f64(&short, &short.narrow(0, 0, 1).unwrap()).is_err());
}
