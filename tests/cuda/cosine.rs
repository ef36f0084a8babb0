//! `cosine` on a GPU.

use bdhs::ops::cosine;
use candle_core::{DType, Device};

use super::{FLOATS, Random, assert_close, both, gpu, is_slow, values};

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
fn rows() {
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
fn all_pairs() {
    let Some(device) = gpu() else { return };
    let mut random = Random(7);
    for dtype in FLOATS {
        for (n, m, d) in [(1, 1, 1), (40, 150, 33), (130, 20, 64)] {
            if n > 128 && dtype != DType::F16 && is_slow() {
                continue;
            }
            let (a, gpu_a) = both(&device, &awkward(&mut random, n, d), &[n, d], dtype);
            let (b, gpu_b) = both(&device, &awkward(&mut random, m, d), &[m, d], dtype);
            let what = format!("{dtype:?}, {n} x {m}, d = {d}");
            let matrix = cosine::matrix(&gpu_a, &gpu_b).unwrap();
            assert_eq!(matrix.dims(), [n, m]);
            let bound = 1.1 * (f64::from(d.next_multiple_of(64) as u32) + 16.0) * 2f64.powi(-22);
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
fn counts_many_thresholds() {
    let Some(device) = gpu() else { return };
    let (a, gpu_a) = both(&device, &awkward(&mut Random(8), 50, 24), &[50, 24], DType::F32);
    let thresholds: Vec<f64> = (0..150).map(|t| f64::from(t) / 75.0 - 1.0).collect();
    let counts = cosine::count_above(&a, None, &thresholds).unwrap().counts;
    assert_eq!(cosine::count_above(&gpu_a, None, &thresholds).unwrap().counts, counts);
}

/// Counts and pairs on a GPU equal those on the CPU; twice, but once where that is slow.
fn tiles_agree(device: &Device, dtype: DType, [n, m, d]: [usize; 3], thresholds: &[f64]) {
    let mut random = Random((n * 31 + m * 7 + d) as u64);
    let (a, gpu_a) = both(device, &awkward(&mut random, n, d), &[n, d], dtype);
    let (b, gpu_b) = both(device, &awkward(&mut random, m, d), &[m, d], dtype);
    let what = format!("{dtype:?}, {n} x {m}, d = {d}");
    for (right, gpu_right) in [(Some(&b), Some(&gpu_b)), (None, None)] {
        let count = cosine::count_above(&a, right, thresholds).unwrap();
        for run in 0..if is_slow() { 1 } else { 2 } {
            let seen = cosine::count_above(&gpu_a, gpu_right, thresholds).unwrap();
            assert_eq!(
                (seen.counts, seen.pairs, seen.nan),
                (count.counts.clone(), count.pairs, count.nan),
                "{what}, symmetric = {}, run {run}",
                right.is_none()
            );
        }
        let places = |a, b| {
            let list = cosine::pairs_above(a, b, thresholds[0]).unwrap();
            list.pairs.iter().map(|p| (p.i, p.j)).collect::<Vec<_>>()
        };
        assert_eq!(places(&gpu_a, gpu_right), places(&a, right), "{what}: pairs");
    }
}

/// Rows and columns at the edges of tiles, pairs of tiles and chunks of columns.
#[test]
fn tiles_of_all_pairs() {
    let Some(device) = gpu() else { return };
    for (at, d) in [1, 65, 33].into_iter().enumerate() {
        tiles_agree(&device, FLOATS[at], [127 + at, 255 + at, d], &THRESHOLDS);
    }
    if is_slow() {
        return;
    }
    let mut at = 0;
    for (n, m) in [(127, 129), (128, 128), (255, 1), (256, 257), (129, 513), (300, 1000)] {
        for d in [1, 33, 64, 65] {
            at += 1;
            tiles_agree(&device, FLOATS[at % 3], [n, m, d], &THRESHOLDS);
        }
    }
    for (at, d) in [384, 768, 1100].into_iter().enumerate() {
        for dtype in FLOATS {
            tiles_agree(&device, dtype, [1000, 700, d], &THRESHOLDS);
        }
        tiles_agree(&device, FLOATS[at], [3000, 3000, d], &THRESHOLDS);
    }
}

/// Thresholds so close together that nearly every pair is near one, and is decided in f64.
#[test]
fn tiles_of_near_pairs() {
    let Some(device) = gpu() else { return };
    let rows = if is_slow() { 40 } else { 400 };
    let thresholds: Vec<f64> = (0..64).map(|t| 0.999 + f64::from(t) * 1.5e-5).collect();
    for dtype in FLOATS {
        tiles_agree(&device, dtype, [rows, rows + 3, 384], &thresholds);
        tiles_agree(&device, dtype, [rows, rows + 3, 40], &[-0.9, -0.2, 0.0, 0.2]);
    }
}
