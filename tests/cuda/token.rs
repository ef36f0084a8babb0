//! `token` on a GPU.

use bdhs::ops::philox::Draws;
use bdhs::ops::token::{self, Params};
use candle_core::Tensor;

use super::{FLOATS, Random, both, gpu};

#[test]
fn samples_are_the_same() {
    let Some(device) = gpu() else { return };
    let mut random = Random(10);
    let (mut rows_seen, mut others) = (0, 0);
    for dtype in FLOATS {
        for vocab in [1, 31, 1003, 5000] {
            let history: Vec<u32> = (0..20).map(|_| random.below(vocab) as u32).collect();
            let params = [
                Params::GREEDY,
                Params::default(),
                Params { temperature: 0.7, top_k: 5, ..Params::default() },
                Params { top_p: 0.9, ..Params::default() },
                Params { min_p: 0.05, repetition_penalty: 1.3, ..Params::default() },
                Params {
                    temperature: 1.5,
                    top_k: 50,
                    top_p: 0.8,
                    min_p: 0.01,
                    repetition_penalty: 0.8,
                },
            ];
            let rows: Vec<token::Row<'_>> = (0..24)
                .map(|r| token::Row {
                    params: params[r % params.len()],
                    draws: Draws { seed: 5, sample: r as u32, attempt: 1 },
                    sentence: 2,
                    step: r as u64 * 3,
                    history: &history,
                })
                .collect();
            let spread: Vec<f32> = random.vec(rows.len() * vocab).iter().map(|x| x * 3.0).collect();
            let (cpu, gpu) = both(&device, &spread, &[rows.len(), vocab], dtype);
            let (twin, seen) =
                (token::sample(&cpu, &rows).unwrap(), token::sample(&gpu, &rows).unwrap());
            for (r, (s, t)) in seen.iter().zip(&twin).enumerate() {
                rows_seen += 1;
                if s.token != t.token {
                    others += 1;
                    continue;
                }
                let close = (s.log_prob - t.log_prob).abs() < 2e-5 * (1.0 + t.log_prob.abs());
                assert!(close, "{dtype:?}, V = {vocab}, row {r}: {s:?}, expected {t:?}");
            }
        }
    }
    // Draws within 1e-6 of a boundary may go the other way.
    assert!(others * 100 <= rows_seen, "{others} of {rows_seen} tokens differ");
    println!("{rows_seen} rows, {others} with another token");
}

#[test]
fn rows_without_a_distribution_are_named() {
    let Some(device) = gpu() else { return };
    let row = token::Row {
        params: Params::default(),
        draws: Draws { seed: 1, sample: 0, attempt: 0 },
        sentence: 0,
        step: 0,
        history: &[],
    };
    for (value, part) in
        [(f32::NAN, "NaN"), (f32::INFINITY, "+inf"), (f32::NEG_INFINITY, "nothing but -inf")]
    {
        let logits = if value == f32::NEG_INFINITY {
            vec![0.0, 1.0, value, value]
        } else {
            vec![0.0, 1.0, value, 0.0]
        };
        let logits = Tensor::from_vec(logits, (2, 2), &device).unwrap();
        let message = token::sample(&logits, &[row, row]).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("row 1"), "{message}");
    }
}
