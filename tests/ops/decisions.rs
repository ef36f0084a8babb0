//! Decisions of the cosine op on pairs around thresholds equal those of float64, and how many needed it.
//!
//! The plain test takes 400,000 pairs; ten million of them run in CI:
//! `cargo test --test ops decisions:: -- --ignored --nocapture`.

use crate::numbers::Random;
use crate::pairs::{self, Batch, THRESHOLDS, batch, cosine, on_the_edge};
use bdhs::ops::cosine::{count_above, count_below, pairs_above, rows};
use candle_core::{DType, Tensor};
use rayon::prelude::*;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const DIMS: [usize; 10] = [1, 2, 3, 7, 8, 24, 33, 40, 48, 64];
/// Pairs of a batch, and rows of either side of a square.
const BATCH: usize = 5000;
const SIDE: usize = 200;

/// What a part of the pairs came to.
#[derive(Default, Clone, Copy)]
struct Tally {
    pairs: u64,
    decisions: u64,
    /// Within 1e-12 of the threshold: either answer is right.
    free: u64,
    rechecked: u64,
}

impl std::ops::Add for Tally {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self {
            pairs: self.pairs + o.pairs,
            decisions: self.decisions + o.decisions,
            free: self.free + o.free,
            rechecked: self.rechecked + o.rechecked,
        }
    }
}

/// One to one, and in groups of five against the reference of the first.
fn row_batch(seed: u64) -> Tally {
    let mut random = Random(seed);
    let d = DIMS[random.word() as usize % DIMS.len()];
    let dtype = FLOATS[random.word() as usize % 3];
    let b = batch(&mut random, BATCH, d, dtype);
    let got = rows(&b.candidates, &b.references, None, &b.thresholds).unwrap();
    let mut tally = Tally { rechecked: got.rechecked, pairs: BATCH as u64, ..Tally::default() };
    for (i, &cosine) in b.cosines.iter().enumerate() {
        for (t, &threshold) in b.thresholds.iter().enumerate() {
            let below = got.first_below[i * b.thresholds.len() + t].is_some();
            tally.decisions += 1;
            if on_the_edge(cosine, threshold) {
                tally.free += 1;
            } else {
                assert_eq!(
                    below,
                    cosine < threshold,
                    "{cosine:.17} against {threshold:.17}, D {d}"
                );
            }
        }
    }
    assert_eq!(got.recheck_share(), got.rechecked as f64 / BATCH as f64);
    grouped(&b);
    tally
}

/// The first candidate below: the groups' candidates are the same, hence their cosines with the shared reference differ.
fn grouped(b: &Batch) {
    let n = 500;
    let groups: Vec<u32> = (0..=n / 5).map(|r| r * 5).collect();
    let candidates = b.candidates.narrow(0, 0, n as usize).unwrap();
    let owners: Vec<u32> = (0..n).map(|i| i / 5).collect();
    let owners = Tensor::from_vec(owners, n as usize, candidates.device()).unwrap();
    let references = b.references.narrow(0, 0, n as usize / 5).unwrap();
    let exact = pairs::cosines(&candidates, &references.index_select(&owners, 0).unwrap());
    let got = rows(&candidates, &references, Some(&groups), &b.thresholds).unwrap();
    for (r, group) in exact.chunks(5).enumerate() {
        for (t, &threshold) in b.thresholds.iter().enumerate() {
            if group.iter().any(|&c| on_the_edge(c, threshold)) {
                continue;
            }
            let want = group.iter().position(|&c| c < threshold).map(|k| k as u32);
            assert_eq!(got.first_below[r * b.thresholds.len() + t], want, "group {r}, {threshold}");
        }
    }
}

/// All pairs of one side with another: counts from both sides, and the list above one threshold.
fn square(seed: u64) -> Tally {
    let mut random = Random(seed);
    let d = DIMS[1 + random.word() as usize % (DIMS.len() - 1)];
    let dtype = FLOATS[random.word() as usize % 3];
    let b = batch(&mut random, SIDE, d, dtype);
    let wide = |t: &Tensor| -> Vec<f32> {
        t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (x, y) = (wide(&b.candidates), wide(&b.references));
    let exact: Vec<f64> =
        x.chunks(d).flat_map(|x| y.chunks(d).map(move |y| cosine(x, y))).collect();
    let below = count_below(&b.candidates, Some(&b.references), &b.thresholds).unwrap();
    let above = count_above(&b.candidates, Some(&b.references), &b.thresholds).unwrap();
    let mut tally = Tally {
        rechecked: below.rechecked,
        pairs: exact.len() as u64,
        decisions: (exact.len() * b.thresholds.len()) as u64,
        free: 0,
    };
    for (t, &threshold) in b.thresholds.iter().enumerate() {
        let free = exact.iter().filter(|&&c| on_the_edge(c, threshold)).count() as u64;
        let count = |f: &dyn Fn(f64) -> bool| {
            exact.iter().filter(|&&c| f(c) && !on_the_edge(c, threshold)).count() as u64
        };
        let (least_below, least_above) = (count(&|c| c < threshold), count(&|c| c > threshold));
        let (below, above) = (below.counts[t], above.counts[t]);
        assert!((least_below..=least_below + free).contains(&below), "below {threshold:.17}");
        assert!((least_above..=least_above + free).contains(&above), "above {threshold:.17}");
        tally.free += free;
    }
    let threshold = b.thresholds[random.word() as usize % b.thresholds.len()];
    let list = pairs_above(&b.candidates, Some(&b.references), threshold).unwrap().pairs;
    let mut listed = vec![false; exact.len()];
    list.iter().for_each(|p| listed[p.i as usize * SIDE + p.j as usize] = true);
    for (&listed, &cosine) in listed.iter().zip(&exact) {
        let free = on_the_edge(cosine, threshold);
        assert!(free || listed == (cosine > threshold), "{cosine:.17} and {threshold:.17}");
    }
    let share = below.recheck_share();
    assert_eq!(share, below.rechecked as f64 / tally.decisions as f64);
    tally
}

/// `n` pairs in all, one in five of them in squares.
fn decide(n: usize) {
    let [batches, squares] = [n / 5 * 4 / BATCH, n / 5 / (SIDE * SIDE)];
    let sum = |count: usize, part: fn(u64) -> Tally| {
        (0..count as u64).into_par_iter().map(part).reduce(Tally::default, |a, b| a + b)
    };
    let [one, all] = [sum(batches, row_batch), sum(squares, |s| square(s ^ 1 << 40))];
    for (name, t, unit) in [("rows", one, one.pairs), ("all pairs", all, all.decisions)] {
        println!(
            "{name}: {} pairs, {} decisions, {} within 1e-12 of their threshold; recheck share {:.3e}",
            t.pairs,
            t.decisions,
            t.free,
            t.rechecked as f64 / unit as f64,
        );
    }
    // The aim was true: decisions that f32 cannot take, and some that float64 cannot either.
    assert!(one.rechecked * 20 > one.pairs && one.free > 0 && all.rechecked > 0);
}

#[test]
fn decisions_around_thresholds_are_those_of_float64() {
    decide(400_000);
}

#[test]
#[ignore = "ten million pairs: about a minute on two cores, run by CI"]
fn ten_million_decisions_are_those_of_float64() {
    decide(10_000_000);
}

/// On embeddings that were not made to be hard, few are rechecked.
#[test]
fn ordinary_data_is_hardly_rechecked() {
    let (n, d) = (4000, 384);
    let mut random = Random(5);
    let base = random.values(d, 1.0);
    let mut side = || {
        let values = (0..n * d).map(|i| base[i % d] + random.signed() * 0.33).collect();
        Tensor::from_vec(values, (n, d), &candle_core::Device::Cpu).unwrap()
    };
    let (a, b): (Tensor, Tensor) = (side(), side());
    let row = rows(&a, &b, None, &THRESHOLDS).unwrap().recheck_share();
    let all = count_below(&a, Some(&b), &THRESHOLDS).unwrap().recheck_share();
    println!("recheck share on cosines around 0.9: rows {row:.2e}, all pairs {all:.2e}");
    assert!(row < 1e-2 && all < 1e-2, "{row} {all}");
    assert_eq!(rows(&a, &b, None, &[]).unwrap().recheck_share(), 0.0);
    assert_eq!(count_below(&a, None, &[]).unwrap().recheck_share(), 0.0);
}
