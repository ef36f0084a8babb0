//! Cosines: row against row at 768, and all pairs of 2,048 x 384 against five thresholds; the matrix as the yardstick.

use std::hint::black_box;
use std::time::Duration;

use bdhs::ops::cosine::{count_below, matrix, pairs_above, rows, top_k};
use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const THRESHOLDS: [f64; 5] = [0.90, 0.93, 0.95, 0.97, 0.99];

fn row_against_row(c: &mut Criterion) {
    let mut group = c.benchmark_group("cosine rows");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    let (n, d) = (20_000, 768);
    let [a, b] = [0, 1].map(|_| Tensor::randn(0f32, 1.0, (n, d), &Device::Cpu).unwrap());
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let [a, b] = [&a, &b].map(|t| t.to_dtype(dtype).unwrap());
        group.throughput(Throughput::Bytes((2 * n * d * dtype.size_in_bytes()) as u64));
        group.bench_function(format!("5 thresholds/{dtype:?}"), |bench| {
            bench.iter(|| rows(black_box(&a), &b, None, &THRESHOLDS).unwrap());
        });
    }
    group.finish();
}

fn all_pairs(c: &mut Criterion) {
    let mut group = c.benchmark_group("cosine all pairs");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    let (n, d) = (2048, 384);
    let a = Tensor::randn(0f32, 1.0, (n, d), &Device::Cpu).unwrap();
    for dtype in [DType::F32, DType::F16] {
        let a = a.to_dtype(dtype).unwrap();
        // Pairs of the full square; the one-sided jobs look at half of them.
        group.throughput(Throughput::Elements((n * n) as u64));
        group.bench_function(format!("matrix/{dtype:?}"), |b| {
            b.iter(|| matrix(black_box(&a), &a).unwrap())
        });
        group.bench_function(format!("top 10/{dtype:?}"), |b| {
            b.iter(|| top_k(black_box(&a), &a, 10).unwrap())
        });
        group.bench_function(format!("count 5 thresholds, two-sided/{dtype:?}"), |b| {
            b.iter(|| count_below(black_box(&a), Some(&a), &THRESHOLDS).unwrap());
        });
        group.bench_function(format!("count 5 thresholds, one-sided/{dtype:?}"), |b| {
            b.iter(|| count_below(black_box(&a), None, &THRESHOLDS).unwrap());
        });
        group.bench_function(format!("pairs above 0.9, one-sided/{dtype:?}"), |b| {
            b.iter(|| pairs_above(black_box(&a), None, 0.9).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, row_against_row, all_pairs);
criterion_main!(benches);
