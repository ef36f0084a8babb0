//! Masks of 256 rows of 2,880 image tokens, and packing what they keep between text.

use std::hint::black_box;
use std::time::Duration;

use bdhs::ops::mask::{Law, Piece, Positions, Row, TokenGrid, draw, pack};
use bdhs::ops::philox::Draws;
use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const ROWS: usize = 256;
const TOKENS: usize = 2928;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("mask");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    let grids = [
        TokenGrid { start: 0, rows: 24, cols: 24, stride: 24 },
        TokenGrid { start: 576, rows: 48, cols: 48, stride: 49 },
    ];
    let rows: Vec<Row> = (0..ROWS as u32)
        .map(|sample| Row {
            draws: Draws { seed: 1, sample, attempt: 1 },
            sentence: 0,
            tokens: TOKENS,
            grids: &grids,
        })
        .collect();
    group.throughput(Throughput::Elements((ROWS * TOKENS) as u64));
    for law in [
        Law::Bernoulli { rho: 0.99 },
        Law::ExactK { rho: 0.99 },
        Law::Blocks { rho: 0.99, block: 4 },
    ] {
        group.bench_function(format!("{law:?}"), |b| {
            b.iter(|| draw(law, black_box(&rows), false).unwrap())
        });
    }
    let kept = draw(Law::Bernoulli { rho: 0.99 }, &rows, false).unwrap();
    group.bench_function("bitmask", |b| b.iter(|| black_box(&kept).bitmask()));

    let hidden = 1024;
    let [text, image] = [64, TOKENS].map(|n| {
        Tensor::randn(0f32, 1.0, (n, hidden), &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap()
    });
    let pieces: Vec<[Piece; 3]> = (0..ROWS)
        .map(|r| {
            [
                Piece::Rows { source: 0, start: 0, len: 32 },
                Piece::Kept { source: 1, start: 0, tokens: TOKENS, indices: kept.row(r) },
                Piece::Rows { source: 0, start: 32, len: 32 },
            ]
        })
        .collect();
    let sequences: Vec<&[Piece]> = pieces.iter().map(|p| &p[..]).collect();
    let packed = ROWS * 64 + kept.indices.len();
    group.throughput(Throughput::Bytes((2 * packed * hidden * 2) as u64));
    group.bench_function("pack 1024 x bf16", |b| {
        b.iter(|| pack(&[&text, &image], black_box(&sequences), Positions::Original).unwrap());
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
