//! Pairs of vectors whose cosines lie on and around thresholds, and their cosines to the last digit of float64.

use candle_core::{DType, Device, Tensor};

use crate::numbers::Random;

/// The ablation's thresholds.
pub const THRESHOLDS: [f64; 5] = [0.90, 0.93, 0.95, 0.97, 0.99];

/// Candidates and references of one dtype, some of the cosines within 1e-13 of some of the thresholds.
pub struct Batch {
    pub candidates: Tensor,
    pub references: Tensor,
    /// Cosine of candidate i with reference i.
    pub cosines: Vec<f64>,
    pub thresholds: Vec<f64>,
}

/// `n` pairs of `d` values. One in eight is random; the others aim at a threshold with a miss of 10^-1 to 10^-13, before the
/// values are rounded to `dtype`. Eight more thresholds lie within 1e-8 of cosines that occur.
pub fn batch(random: &mut Random, n: usize, d: usize, dtype: DType) -> Batch {
    let (mut x, mut y) = (Vec::with_capacity(n * d), Vec::with_capacity(n * d));
    for _ in 0..n {
        let reference: Vec<f64> = (0..d).map(|_| f64::from(random.signed())).collect();
        let mut candidate: Vec<f64> = (0..d).map(|_| f64::from(random.signed())).collect();
        if d > 1 && !random.word().is_multiple_of(8) {
            let miss = 10f64.powf(-1.0 - 12.0 * f64::from(random.signed()).abs());
            let sign = if random.word().is_multiple_of(2) { 1.0 } else { -1.0 };
            let at = THRESHOLDS[random.word() as usize % THRESHOLDS.len()] + sign * miss;
            aim(&mut candidate, &reference, at.clamp(-1.0, 1.0));
        }
        // Powers of two change no cosine.
        let [p, q] = [0, 1].map(|_| 2f64.powi((random.word() % 9) as i32 - 4));
        y.extend(reference.iter().map(|v| (v * p) as f32));
        x.extend(candidate.iter().map(|v| (v * q) as f32));
    }
    let tensor = |values: Vec<f32>| {
        Tensor::from_vec(values, (n, d), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    let (candidates, references) = (tensor(x), tensor(y));
    let cosines = cosines(&candidates, &references);
    let mut thresholds = THRESHOLDS.to_vec();
    for offset in [0.0, 2e-13, -2e-12, 2e-12, -1e-11, 1e-10, -1e-9, 1e-8] {
        let on = cosines[random.word() as usize % n] + offset;
        thresholds.push(if on.abs() <= 1.0 { on } else { 0.5 });
    }
    Batch { candidates, references, cosines, thresholds }
}

/// Turns `v` towards `reference` until their cosine is `cosine`.
fn aim(v: &mut [f64], reference: &[f64], cosine: f64) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let length = dot(reference, reference).sqrt();
    let along = dot(v, reference) / (length * length);
    v.iter_mut().zip(reference).for_each(|(v, r)| *v -= along * r);
    let across = dot(v, v).sqrt();
    if across > 1e-9 && length > 0.0 {
        let sine = (1.0 - cosine * cosine).sqrt();
        for (v, r) in v.iter_mut().zip(reference) {
            *v = *v / across * sine + r / length * cosine;
        }
    }
}

/// Cosine of row i with row i.
pub fn cosines(a: &Tensor, b: &Tensor) -> Vec<f64> {
    let d = a.dim(1).unwrap();
    let [a, b] = [a, b]
        .map(|t| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
    a.chunks(d).zip(b.chunks(d)).map(|(x, y)| cosine(x, y)).collect()
}

/// Products of f32 values are exact in f64, and their sums are compensated: what is left is the root and the quotient.
pub fn cosine(x: &[f32], y: &[f32]) -> f64 {
    let [xy, xx, yy] = [(x, y), (x, x), (y, y)].map(|(a, b)| {
        let (mut sum, mut lost) = (0f64, 0f64);
        for (a, b) in a.iter().zip(b) {
            let term = f64::from(*a) * f64::from(*b);
            let next = sum + term;
            let (large, small) = if sum.abs() > term.abs() { (sum, term) } else { (term, sum) };
            lost += (large - next) + small;
            sum = next;
        }
        sum + lost
    });
    if xx == 0.0 || yy == 0.0 { 0.0 } else { (xy / (xx * yy).sqrt()).clamp(-1.0, 1.0) }
}

/// Whether a decision may go either way.
pub fn on_the_edge(cosine: f64, threshold: f64) -> bool {
    (cosine - threshold).abs() < 1e-12
}
