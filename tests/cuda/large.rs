//! Buffers past 2^31 bytes and 2^31 elements: what lies at their far ends is read and written as elsewhere. Ignored unless
//! asked for: up to 10 GB on the GPU and 5 GB on the host.

use bdhs::ops::cosine;
use bdhs::ops::mask::{self, Piece, Positions};
use bdhs::ops::philox::Draws;
use bdhs::ops::pool::{self, Mode, Options, Rows};
use bdhs::ops::token::{self, Params};
use candle_core::{DType, Device, Tensor};
use half::f16;
use rayon::prelude::*;

use super::{assert_close, gpu, values};

const HIDDEN: usize = 768;
/// HIDDEN times as many values are more than 2^31.
const ROWS: usize = 2_900_000;

/// The value at a place: one of 4,096 between -1 and 1.
fn value(i: usize) -> f16 {
    let z = (i as u64 ^ (i as u64 >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 52;
    f16::from_f32((z as f32 - 2047.5) / 2048.0)
}

fn filled(rows: usize, width: usize, device: &Device) -> Tensor {
    let all: Vec<f16> = (0..rows * width).into_par_iter().map(value).collect();
    Tensor::from_vec(all, (rows, width), device).unwrap()
}

fn row(r: usize) -> Vec<f64> {
    (r * HIDDEN..(r + 1) * HIDDEN).map(|i| f64::from(value(i))).collect()
}

/// A mean in float64.
fn mean(rows: std::ops::Range<usize>) -> Vec<f64> {
    let n = rows.len() as f64;
    let add = |mut a: Vec<f64>, b: Vec<f64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    let sum = rows.into_par_iter().fold(|| vec![0.0; HIDDEN], |a, r| add(a, row(r)));
    sum.reduce(|| vec![0.0; HIDDEN], add).into_iter().map(|x| x / n).collect()
}

#[test]
#[ignore = "needs a GPU with 10 GB free"]
fn states_past_two_gigabytes() {
    let Some(device) = gpu() else { return };
    let states = filled(ROWS, HIDDEN, &device);

    let cu = [0, ROWS as u32 - 130, ROWS as u32 - 64, ROWS as u32];
    for mode in [Mode::Mean, Mode::Last] {
        let packed = Rows::Packed { cu_seqlens: &cu };
        let seen = values(&pool::pool(&states, packed, &Options::new(mode), None).unwrap());
        for (b, span) in cu.windows(2).enumerate() {
            let span = span[0] as usize..span[1] as usize;
            let expected = if mode == Mode::Last { row(span.end - 1) } else { mean(span) };
            let seen = &seen[b * HIDDEN..(b + 1) * HIDDEN];
            assert_close(seen, &expected, 1e-5, 1e-5, &format!("{mode:?}, sequence {b}"));
        }
    }

    // Each row with the next one.
    let n = ROWS - 1;
    let (left, right) = (states.narrow(0, 0, n).unwrap(), states.narrow(0, 1, n).unwrap());
    let scores = cosine::rows(&left, &right, None, &[0.05]).unwrap();
    let seen = values(&scores.scores);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for r in (0..n).step_by(99_991).chain(n - 300..n) {
        let (a, b) = (row(r), row(r + 1));
        let expected = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
        assert_close(&seen[r..=r], &[expected], 1e-5, 0.0, &format!("cosine of row {r}"));
        assert_eq!(scores.first_below[r].is_some(), expected < 0.05, "row {r}: {expected}");
    }

    let last = [Piece::Rows { source: 0, start: ROWS - 5, len: 5 }];
    let seen = mask::pack(&[&states], &[&last[..]], Positions::Original).unwrap();
    let expected: Vec<f64> = (ROWS - 5..ROWS).flat_map(row).collect();
    assert_eq!(values(&seen.rows), expected);
}

#[test]
#[ignore = "needs a GPU with 10 GB free"]
fn scores_past_two_gigabytes() {
    let Some(device) = gpu() else { return };
    let (n, m, d) = (50_000, 44_000, 24);
    let (a, b) = (filled(n, d, &device), filled(m, d, &device));
    let matrix = cosine::matrix(&a, &b).unwrap();
    let (a, b) = (a.to_device(&Device::Cpu).unwrap(), b.to_device(&Device::Cpu).unwrap());
    for first in [0, n / 2, n - 40] {
        let rows = a.narrow(0, first, 40).unwrap();
        let expected = values(&cosine::matrix(&rows, &b).unwrap());
        let seen = values(&matrix.narrow(0, first, 40).unwrap());
        assert_close(&seen, &expected, 3e-5, 0.0, &format!("rows from {first}"));
    }
}

#[test]
#[ignore = "needs a GPU with 10 GB free"]
fn logits_past_two_gigabytes() {
    let Some(device) = gpu() else { return };
    let (rows, vocab) = (14_400, 151_936);
    let logits = filled(rows, vocab, &device);
    let row = |sample| token::Row {
        params: Params { temperature: 0.1, top_p: 0.9, ..Params::default() },
        draws: Draws { seed: 9, sample, attempt: 0 },
        sentence: 0,
        step: 0,
        history: &[],
    };
    let requests: Vec<token::Row<'_>> = (0..rows as u32).map(row).collect();
    let seen = token::sample(&logits, &requests).unwrap();
    let last = logits.narrow(0, rows - 24, 24).unwrap().to_device(&Device::Cpu).unwrap();
    let twin = token::sample(&last, &requests[rows - 24..]).unwrap();
    let differ = seen[rows - 24..].iter().zip(&twin).filter(|(s, t)| s.token != t.token).count();
    assert!(differ <= 1, "{differ} of 24 tokens differ");
    assert_eq!(last.dtype(), DType::F16);
}
