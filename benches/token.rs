//! Sampling a step of 32 rows, for two vocabulary sizes and the usual settings.

use std::hint::black_box;
use std::time::Duration;

use bdhs::ops::philox::Draws;
use bdhs::ops::token::{Params, Row, sample};
use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const ROWS: usize = 32;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("token");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    let history: Vec<u32> = (0..200).collect();
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
    for vocab in [32_000, 151_936] {
        // Deviation 2: a distribution about as flat as a model's early tokens.
        let logits = Tensor::randn(0f32, 2.0, (ROWS, vocab), &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let logits = logits.to_dtype(dtype).unwrap();
            group.throughput(Throughput::Bytes((ROWS * vocab * dtype.size_in_bytes()) as u64));
            for (name, params) in settings {
                let rows: Vec<Row> = (0..ROWS as u32)
                    .map(|sample| Row {
                        params,
                        draws: Draws { seed: 1, sample, attempt: 1 },
                        sentence: 0,
                        step: 5,
                        history: &history,
                    })
                    .collect();
                group.bench_function(format!("{name}/{vocab}/{dtype:?}"), |b| {
                    b.iter(|| sample(black_box(&logits), &rows).unwrap());
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
