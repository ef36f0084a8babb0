//! Pooling a batch of 64 x 128 tokens of 768: the fused op in each mode, and the same mean by candle ops on padded states.

use std::hint::black_box;
use std::time::Duration;

use bdhs::ops::pool::{FinalNorm, Mode, Options, Rows, pool, pool_i8};
use candle_core::{D, DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const BATCH: usize = 64;
const TOKENS: usize = 128;
const HIDDEN: usize = 768;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    let cu: Vec<u32> = (0..=BATCH).map(|b| (b * TOKENS) as u32).collect();
    let rows = Rows::Packed { cu_seqlens: &cu };
    let random = Tensor::randn(0f32, 1.0, (BATCH * TOKENS, HIDDEN), &Device::Cpu).unwrap();
    let weight = Tensor::randn(1f32, 0.1, HIDDEN, &Device::Cpu).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let states = random.to_dtype(dtype).unwrap();
        group.throughput(Throughput::Bytes(
            (BATCH * TOKENS * HIDDEN * dtype.size_in_bytes()) as u64,
        ));
        for mode in [Mode::Mean, Mode::Max, Mode::WeightedMean] {
            let options = Options { normalize: true, ..Options::new(mode) };
            group.bench_function(format!("{mode:?}/{dtype:?}"), |b| {
                b.iter(|| pool(black_box(&states), rows, &options, None).unwrap());
            });
        }
        let options = Options { normalize: true, ..Options::new(Mode::Mean) };
        let norm = FinalNorm { residual: Some(&states), weight: &weight, bias: None, eps: 1e-5 };
        group.bench_function(format!("residual + LayerNorm + Mean/{dtype:?}"), |b| {
            b.iter(|| pool(black_box(&states), rows, &options, Some(&norm)).unwrap());
        });
        group.bench_function(format!("Mean to i8/{dtype:?}"), |b| {
            b.iter(|| pool_i8(black_box(&states), rows, &options, None).unwrap());
        });
        let padded = states.reshape((BATCH, TOKENS, HIDDEN)).unwrap();
        let mask = Tensor::ones((BATCH, TOKENS, 1), DType::F32, &Device::Cpu).unwrap();
        group.bench_function(format!("candle ops, masked mean/{dtype:?}"), |b| {
            b.iter(|| masked_mean(black_box(&padded), &mask));
        });
    }
    group.finish();
}

/// What an embedding model written with candle's ops does.
fn masked_mean(padded: &Tensor, mask: &Tensor) -> Tensor {
    let sum = padded.to_dtype(DType::F32).unwrap().broadcast_mul(mask).unwrap().sum(1).unwrap();
    let mean = sum.broadcast_div(&mask.sum(1).unwrap()).unwrap();
    let norm = mean.sqr().unwrap().sum_keepdim(D::Minus1).unwrap().sqrt().unwrap();
    mean.broadcast_div(&norm).unwrap()
}

criterion_group!(benches, bench);
criterion_main!(benches);
