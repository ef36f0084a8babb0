//! Row-wise cosine, and its decisions.

use std::path::Path;

use bdhs::ops::cosine::{RowScores, rows};
use candle_core::{DType, Tensor};

use super::{Cases, FLOATS, Results, U, below, code, pick, tensor, wide};
use crate::numbers::Random;
use crate::pairs::{batch, on_the_edge};
use crate::replay;

/// The kernel's bound: 32 lanes of 4 (f32) or 8 values.
fn kernel_bound(d: usize, dtype: DType) -> f64 {
    let vec = if dtype == DType::F32 { 4 } else { 8 };
    bound(d.div_ceil(32 * vec) * vec + 5)
}

fn bound(roundings: usize) -> f64 {
    let g = roundings as f64 * U / (1.0 - roundings as f64 * U);
    2.0 * g / (1.0 - g) + 1e-13
}

struct RowCase {
    candidates: Tensor,
    references: Tensor,
    groups: Option<Vec<u32>>,
    thresholds: Vec<f64>,
}

impl RowCase {
    fn write(&self, to: &mut Cases) {
        to.values([code(self.candidates.dtype()), self.candidates.dim(1).unwrap() as u64]);
        to.tensor(&self.candidates);
        to.tensor(&self.references);
        to.array(self.groups.as_deref().unwrap_or_default());
        to.array(&self.thresholds);
    }

    fn cpu(&self) -> RowScores {
        rows(&self.candidates, &self.references, self.groups.as_deref(), &self.thresholds).unwrap()
    }
}

fn row_case(random: &mut Random, dtype: DType) -> RowCase {
    let any = 1 + below(random, 600);
    let (d, r) = (pick(random, &[1, 5, 24, 40, 384, 768, any]), below(random, 30));
    let grouped = random.word().is_multiple_of(2);
    let mut groups = vec![0];
    (0..r).for_each(|_| {
        groups.push(groups[groups.len() - 1] + if grouped { below(random, 5) as u32 } else { 1 })
    });
    let n = groups[r] as usize;
    let base = random.values(d, 1.0);
    let mut side = |rows: usize| {
        let mut values = vec![];
        for _ in 0..rows {
            let (noise, kind) = (pick(random, &[0.0, 0.05, 0.3, 2.0]), random.word() % 40);
            let scale = if kind == 0 { 0.0 } else { pick(random, &[1.0, 0.25, -2.0]) };
            values.extend(base.iter().map(|b| (b + random.signed() * noise) * scale));
            let last = values.len() - 1;
            values[last] =
                if kind == 1 { pick(random, &[f32::NAN, f32::INFINITY]) } else { values[last] };
        }
        tensor(values, &[rows, d], dtype)
    };
    let (candidates, references) = (side(n), side(r));
    RowCase {
        candidates,
        references,
        groups: grouped.then_some(groups),
        thresholds: vec![0.97, 0.9, 0.0, 1.0, -1.0],
    }
}

/// Scores of rows within both bounds, the same NaNs, the same first candidate below each threshold.
pub fn cosine_rows(program: &Path, calls: usize) -> Result<String, String> {
    let mut random = Random(4);
    let mut file = Cases::default();
    let cases: Vec<RowCase> = (0..calls).map(|c| row_case(&mut random, FLOATS[c % 3])).collect();
    cases.iter().for_each(|case| case.write(&mut file));
    let mut results = Results::new(replay(program, &file.0));
    let (mut scores, mut decisions, mut worst) = (0, 0, 0f64);
    for (c, case) in cases.iter().enumerate() {
        let cpu = case.cpu();
        let (kernel, first, tally) =
            (results.array::<f32>(), results.array::<u32>(), results.array::<u64>());
        let d = case.candidates.dim(1).unwrap();
        let slack = bound(d.div_ceil(32) + 6) + kernel_bound(d, case.candidates.dtype()) + 2.0 * U;
        for (i, (x, y)) in wide(&cpu.scores).iter().zip(&kernel).enumerate() {
            let apart = (f64::from(*x) - f64::from(*y)).abs();
            let same = x.is_nan() && y.is_nan() || apart <= slack;
            if !same {
                return Err(format!("call {c}, candidate {i}, D {d}: {x} and {y} by the kernel"));
            }
            worst = worst.max(apart);
            scores += 1;
        }
        if tally[0] != cpu.nan {
            return Err(format!("call {c}: {} NaN scores, {} by the kernel", cpu.nan, tally[0]));
        }
        let first: Vec<Option<u32>> = first.iter().map(|&k| (k != u32::MAX).then_some(k)).collect();
        if first != cpu.first_below {
            return Err(format!("call {c}: another first candidate below a threshold"));
        }
        decisions += first.len();
    }
    Ok(format!("{scores} scores, {decisions} decisions, largest difference {worst:.1e}"))
}

/// `n` pairs around thresholds, one to one: the kernel decides as float64 does.
pub fn decisions(program: &Path, n: usize) -> Result<String, String> {
    const BATCH: usize = 1000;
    let mut random = Random(5);
    let mut file = Cases::default();
    let cases: Vec<_> = (0..n / BATCH)
        .map(|c| {
            let d = pick(&mut random, &[2, 3, 8, 24, 33, 48]);
            let b = batch(&mut random, BATCH, d, FLOATS[c % 3]);
            let (candidates, references) = (b.candidates.clone(), b.references.clone());
            let case =
                RowCase { candidates, references, groups: None, thresholds: b.thresholds.clone() };
            case.write(&mut file);
            b
        })
        .collect();
    let mut results = Results::new(replay(program, &file.0));
    let (mut decisions, mut free, mut rechecked) = (0, 0, 0);
    for (c, case) in cases.iter().enumerate() {
        let (_, first, tally) =
            (results.array::<f32>(), results.array::<u32>(), results.array::<u64>());
        rechecked += tally[1];
        for (i, &cosine) in case.cosines.iter().enumerate() {
            for (t, &threshold) in case.thresholds.iter().enumerate() {
                decisions += 1;
                let below = first[i * case.thresholds.len() + t] == 0;
                if on_the_edge(cosine, threshold) {
                    free += 1;
                } else if below != (cosine < threshold) {
                    return Err(format!(
                        "batch {c}, pair {i}: {cosine:.17} against {threshold:.17}"
                    ));
                }
            }
        }
    }
    let share = rechecked as f64 / n as f64;
    Ok(format!(
        "{n} pairs, {decisions} decisions, {free} within 1e-12 of their threshold; recheck share {share:.3}"
    ))
}
