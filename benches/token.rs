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
    if let Some(stream) = common::gpu::first() {
        cases.extend(gpu::cases(&stream, &settings));
        cases.extend(gpu::candle(&stream));
    }
    common::main(cases);
}

/// A step of 8 and of 256 rows on a GPU: `token/gpu SETTING KEPT/ROWS x V/bf16`.
#[cfg(feature = "cuda")]
mod gpu {
    use std::cell::{Cell, RefCell};

    use bdhs::ops::cuda::token::{Batch, Output, sample};
    use bdhs::ops::philox::Draws;
    use bdhs::ops::token::{Params, Row};
    use candle_core::{D, DType, Device, Tensor};

    use super::common::gpu::{Buffer, Launches, Stream, device, sets, wall};
    use super::common::{self, Case, digest, rotate, values};

    /// Values in (-5, 5), as on the CPU.
    fn logits(set: usize, n: usize) -> Vec<f32> {
        values(set as u64, n).into_iter().map(|x| x * 5.0).collect()
    }

    pub fn cases(stream: &Stream, settings: &[(&'static str, Params)]) -> Vec<Case> {
        let mut cases = vec![];
        for (rows, vocab, kept) in
            [(8, 2_000, "hot"), (256, 32_000, "cold"), (256, 151_936, "cold")]
        {
            for &(setting, params) in settings {
                let launches = sampled(setting, params, rows, vocab, kept);
                match kept {
                    "hot" => cases.extend(launches.calls_and_replays(stream)),
                    _ => cases.push(launches.calls(stream)),
                }
            }
        }
        cases
    }

    type Step = (Buffer, [usize; 2], Batch, RefCell<Output>);

    fn sampled(
        setting: &str,
        params: Params,
        rows: usize,
        vocab: usize,
        kept: &str,
    ) -> Launches<Step> {
        let bytes = rows * vocab * 2;
        Launches {
            name: format!("token/gpu {setting} {kept}/{rows} x {vocab}/bf16"),
            costs: (bytes, 0),
            sets: sets(kept, bytes),
            input: Box::new(move |stream, set| {
                let logits = Buffer::of(stream, logits(set, rows * vocab), DType::BF16);
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
                (logits, [rows, vocab], batch, RefCell::new(Output::new(stream, rows).unwrap()))
            }),
            launch: |stream, (logits, [rows, vocab], batch, out)| {
                let logits = logits.rows(*rows, *vocab);
                sample(stream, &logits, batch, &mut out.borrow_mut()).unwrap();
            },
            // Equal logits make tokens a matter of taste, log-probabilities not.
            read: |stream, (_, _, _, out)| {
                let words = stream.clone_dtoh(&out.borrow().words).unwrap();
                let rows = words.len() / 3;
                let log_probs = words[rows..2 * rows].iter().map(|&bits| f32::from_bits(bits));
                digest(&log_probs.collect::<Vec<f32>>())
            },
        }
    }

    /// What candle_transformers' LogitsProcessor does with top-p 0.9, row by row: a softmax on the GPU, the row to the host, a sort
    /// of all tokens there, a draw. Timed by the wall. Needs candle's kernels.
    pub fn candle(_: &Stream) -> Vec<Case> {
        let Some(device) = device() else { return vec![] };
        [(8, 2_000, "hot"), (256, 32_000, "cold")]
            .into_iter()
            .map(|(rows, vocab, kept)| {
                let bytes = rows * vocab * 2;
                let name = format!("token/candle gpu top-p 0.9 {kept}/{rows} x {vocab}/bf16");
                let make = move || {
                    let set = |set| on_device(device, set, rows, vocab);
                    let (sets, uniforms) =
                        ((0..sets(kept, bytes)).map(set).collect(), values(1, 4096));
                    let next = Cell::new(0);
                    rotate(sets, move |logits: &Tensor| {
                        let drawn = (0..rows).map(|row| {
                            next.set((next.get() + 1) % uniforms.len());
                            let u = (uniforms[next.get()] + 1.0) / 2.0;
                            f64::from(top_p(&logits.get(row).unwrap(), 0.9, u))
                        });
                        common::Output::Numbers(drawn.collect())
                    })
                };
                Case { timer: Some(Box::new(wall)), ..Case::new(name, bytes, 0, make) }
            })
            .collect()
    }

    fn on_device(device: &Device, set: usize, rows: usize, vocab: usize) -> Tensor {
        let logits = Tensor::from_vec(logits(set, rows * vocab), (rows, vocab), device).unwrap();
        logits.to_dtype(DType::BF16).unwrap()
    }

    fn top_p(logits: &Tensor, top_p: f32, u: f32) -> u32 {
        let logits = logits.to_dtype(DType::F32).unwrap();
        let weights = logits.broadcast_sub(&logits.max_keepdim(D::Minus1).unwrap()).unwrap();
        let weights = weights.exp().unwrap();
        let sum = weights.sum_keepdim(D::Minus1).unwrap();
        let mut probabilities: Vec<f32> = weights.broadcast_div(&sum).unwrap().to_vec1().unwrap();
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        order.sort_by(|&i, &j| probabilities[j].total_cmp(&probabilities[i]));
        let mut mass = 0.0;
        for i in order {
            if mass >= top_p {
                probabilities[i] = 0.0;
            } else {
                mass += probabilities[i];
            }
        }
        let cut = u * probabilities.iter().sum::<f32>();
        let mut below = 0.0;
        let reached = probabilities.iter().position(|p| {
            below += p;
            below > cut
        });
        reached.unwrap_or(probabilities.len() - 1) as u32
    }
}
