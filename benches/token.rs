//! Sampling a step of 32 rows, for two vocabulary sizes and the usual settings.

mod common;

use bdhs::ops::philox::Draws;
use bdhs::ops::token::{Params, Row, sample};
use candle_core::DType;
use common::{COLD_SETS, Case, Output, rotate, tensor};

const ROWS: usize = 32;

fn main() {
    let settings = [
        ("greedy", Params::GREEDY),
        ("temperature", Params { temperature: 0.7, ..Params::default() }),
        ("top-k 50", Params { top_k: 50, ..Params::default() }),
        ("top-p 0.9", Params { top_p: 0.9, ..Params::default() }),
        (
            "all",
            Params {
                temperature: 0.7,
                top_k: 50,
                top_p: 0.9,
                min_p: 0.05,
                repetition_penalty: 1.1,
            },
        ),
    ];
    let mut cases = vec![];
    for vocab in [32_000, 151_936] {
        for (dtype, name) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
            let bytes = ROWS * vocab * dtype.size_in_bytes();
            for (setting, params) in settings {
                let case = format!("token/{setting}/{ROWS} x {vocab}/{name}");
                cases.push(Case::new(case, bytes, 0, move || {
                    // Values in (-5, 5): about as flat as a model's early tokens.
                    let logits = |s| {
                        (tensor(s as u64, &[ROWS, vocab], DType::F32) * 5.0)
                            .unwrap()
                            .to_dtype(dtype)
                            .unwrap()
                    };
                    let history: Vec<u32> = (0..200).collect();
                    rotate((0..COLD_SETS).map(logits).collect(), move |logits| {
                        let rows: Vec<Row> = (0..ROWS as u32)
                            .map(|sample| Row {
                                params,
                                draws: Draws { seed: 1, sample, attempt: 1 },
                                sentence: 0,
                                step: 5,
                                history: &history,
                            })
                            .collect();
                        let drawn = sample(logits, &rows).unwrap();
                        Output::Numbers(vec![
                            f64::from(drawn[0].token),
                            f64::from(drawn[ROWS - 1].token),
                        ])
                    })
                }));
            }
        }
    }
    #[cfg(feature = "cuda")]
    cases.extend(common::gpu::first().into_iter().flat_map(|stream| launches(&stream, &settings)));
    common::main(cases);
}

/// A step of 8 and of 256 rows on a GPU.
#[cfg(feature = "cuda")]
fn launches(stream: &common::gpu::Stream, settings: &[(&'static str, Params)]) -> Vec<Case> {
    use bdhs::ops::cuda::token::{Batch, Output, sample};
    use common::gpu::{Buffer, case, sets};
    use std::cell::RefCell;

    let mut cases = vec![];
    for (rows, vocab, kept) in [(8, 2_000, "hot"), (256, 32_000, "cold"), (256, 151_936, "cold")] {
        for &(setting, params) in settings {
            let bytes = rows * vocab * 2;
            let name = format!("token/gpu {setting} {kept}/{rows} x {vocab}/bf16");
            let inputs = move |stream: &common::gpu::Stream| {
                let input = |set| {
                    let logits = Buffer::new(stream, set as u64, rows * vocab, DType::BF16);
                    let history: Vec<u32> = (0..200).collect();
                    let row = |sample| Row {
                        params,
                        draws: Draws { seed: 1, sample, attempt: 1 },
                        sentence: 0,
                        step: 5,
                        history: &history,
                    };
                    let batch: Vec<Row> = (0..rows as u32).map(row).collect();
                    let batch = Batch::new(stream, &batch, vocab).unwrap();
                    (logits, batch, RefCell::new(Output::new(stream, rows).unwrap()))
                };
                (0..sets(kept, bytes)).map(input).collect()
            };
            cases.push(case(stream, name, (bytes, 0), inputs, move |stream, input| {
                let (logits, batch, out) = input;
                let logits = logits.rows(rows, vocab);
                sample(stream, &logits, batch, &mut out.borrow_mut()).unwrap();
            }));
        }
    }
    cases
}
