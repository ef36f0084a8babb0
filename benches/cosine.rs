//! Cosines: row against row at 768, in and out of the caches; all pairs against five thresholds; top 10; the machine's
//! own bandwidth and matrix product as the yardsticks.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bdhs::ops::cosine::{count_above, matrix, pairs_above, rows, top_k};
use candle_core::{DType, Tensor};
use common::{COLD_SETS, Case, FLOATS, Output, THRESHOLDS, close, embeddings, rotate, values};
use rayon::prelude::*;

/// Counts bytes, so that the memory that a call takes at its peak is a measurement.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that `f` takes beyond what was there, at its peak.
fn peak_of(f: impl FnOnce()) -> f64 {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    f();
    (PEAK.load(Ordering::Relaxed) - before) as f64
}

fn main() {
    let mut cases = machine();
    for (dtype, name) in FLOATS {
        for (n, kept) in [(20_000, "cold"), (400, "hot")] {
            cases.push(row_against_row(dtype, name, n, 768, kept));
        }
        for d in [384, 768] {
            cases.extend(all_pairs(dtype, name, 4096, d));
        }
    }
    #[cfg(feature = "cuda")]
    cases.extend(common::gpu::first().into_iter().flat_map(|stream| launches(&stream)));
    common::main(cases);
}

/// Rows against rows, and counts of all pairs, on a GPU.
#[cfg(feature = "cuda")]
fn launches(stream: &common::gpu::Stream) -> Vec<Case> {
    use bdhs::ops::cuda::cosine::{Bands, CountOutput, RowOutput, Side, Thresholds, count, rows};
    use common::gpu::{Buffer, case, sets};
    use std::cell::RefCell;

    let mut cases = vec![];
    for (dtype, dtype_name) in FLOATS {
        let d = 768;
        for (n, kept) in [(400, "hot"), (100_000, "cold")] {
            let values = 2 * n * d * dtype.size_in_bytes();
            let name = format!("cosine/gpu rows {kept}/{n} x {d}/{dtype_name}");
            let inputs = move |stream: &common::gpu::Stream| {
                let input = |set| {
                    let side = |seed| Buffer::new(stream, seed, n * d, dtype);
                    let limits = Thresholds::new(stream, &THRESHOLDS).unwrap();
                    let out = RowOutput::new(stream, n, n, THRESHOLDS.len()).unwrap();
                    (side(2 * set as u64), side(2 * set as u64 + 1), limits, RefCell::new(out))
                };
                (0..sets(kept, values)).map(input).collect()
            };
            let bytes = values + n * (4 + 4 * THRESHOLDS.len());
            cases.push(case(stream, name, (bytes, 0), inputs, move |stream, input| {
                let (a, b, limits, out) = input;
                let (a, b) = (a.rows(n, d), b.rows(n, d));
                rows(stream, &a, &b, None, limits, &mut out.borrow_mut()).unwrap();
            }));
        }
        let large = [(32_768, 384), (32_768, 768)].into_iter().filter(|_| dtype == DType::F16);
        for (n, d) in [(512, 384), (16_384, 384), (16_384, 768)].into_iter().chain(large) {
            let name = format!("cosine/gpu count/{n} x {d}/{dtype_name}");
            let inputs = move |stream: &common::gpu::Stream| {
                let [a, b] = [0, 1].map(|seed| Buffer::new(stream, seed, n * d, dtype));
                let bands = Bands::new(stream, &THRESHOLDS, &a.rows(n, d)).unwrap();
                let out = CountOutput::new(stream, THRESHOLDS.len()).unwrap();
                vec![(a, b, bands, RefCell::new(out))]
            };
            cases.push(case(stream, name, (0, 2 * n * n * d), inputs, move |stream, input| {
                let (a, b, bands, out) = input;
                let (a, b) = (a.rows(n, d), b.rows(n, d));
                let side = |rows| Side::new(stream, rows).unwrap();
                let (a, b) = (side(&a), side(&b));
                count(stream, &a, Some(&b), bands, true, &mut out.borrow_mut()).unwrap();
            }));
            cases.push(count_prepared(stream, (dtype, dtype_name), (n, d)));
        }
    }
    cases
}

/// The tiles alone: both sides are prepared before the clock starts. Buffers and their rows live as long as the process.
#[cfg(feature = "cuda")]
fn count_prepared(
    stream: &common::gpu::Stream,
    (dtype, dtype_name): (DType, &str),
    (n, d): (usize, usize),
) -> Case {
    use bdhs::ops::cuda::cosine::{Bands, CountOutput, Side, count};
    use common::gpu::{Buffer, case};
    use std::cell::RefCell;

    let name = format!("cosine/gpu count prepared/{n} x {d}/{dtype_name}");
    let inputs = move |stream: &common::gpu::Stream| {
        let [a, b] = [0, 1].map(|seed| {
            let buffer: &'static Buffer =
                Box::leak(Box::new(Buffer::new(stream, seed, n * d, dtype)));
            &*Box::leak(Box::new(buffer.rows(n, d)))
        });
        let bands = Bands::new(stream, &THRESHOLDS, a).unwrap();
        let out = CountOutput::new(stream, THRESHOLDS.len()).unwrap();
        let side = |rows| Side::new(stream, rows).unwrap();
        vec![(side(a), side(b), bands, RefCell::new(out))]
    };
    case(stream, name, (0, 2 * n * n * d), inputs, |stream, input| {
        let (a, b, bands, out) = input;
        count(stream, a, Some(b), bands, true, &mut out.borrow_mut()).unwrap();
    })
}

fn row_against_row(dtype: DType, name: &str, n: usize, d: usize, kept: &str) -> Case {
    let bytes = 2 * n * d * dtype.size_in_bytes() + 4 * n;
    let sets = if kept == "cold" { COLD_SETS } else { 1 };
    Case::new(format!("cosine/rows {kept}/{n} x {d}/{name}"), bytes, 0, move || {
        let side = |s: usize| embeddings(s as u64, n, d, dtype);
        let sets = (0..sets).map(|s| (side(2 * s), side(2 * s + 1))).collect();
        rotate(sets, |(a, b): &(Tensor, Tensor)| {
            Output::Tensor(rows(a, b, None, &THRESHOLDS).unwrap().scores)
        })
    })
}

fn all_pairs(dtype: DType, name: &str, n: usize, d: usize) -> Vec<Case> {
    let flops = 2 * n * n * d;
    type Side = fn(u64, usize, usize, DType) -> Tensor;
    let of = |side: Side, what: &str, flops: usize, run: fn(&(Tensor, Tensor)) -> Output| {
        Case::new(format!("cosine/{what}/{n} x {d}/{name}"), 0, flops, move || {
            rotate(vec![(side(0, n, d, dtype), side(1, n, d, dtype))], run)
        })
    };
    let case = |what: &str, flops: usize, run| of(embeddings, what, flops, run);
    let count: fn(&(Tensor, Tensor)) -> Output = |(a, b)| {
        let found = count_above(a, Some(b), &THRESHOLDS).unwrap();
        Output::Numbers(found.counts.iter().map(|&c| c as f64).collect())
    };
    vec![
        case("count", flops, count),
        // Nothing can be left out: every cosine is near the thresholds.
        of(close, "count, all close", flops, count),
        case("count, one side", flops / 2, |(a, _)| {
            let found = count_above(a, None, &THRESHOLDS).unwrap();
            Output::Numbers(found.counts.iter().map(|&c| c as f64).collect())
        }),
        case("count, peak bytes", flops, |(a, b)| {
            Output::Numbers(vec![peak_of(|| drop(count_above(a, Some(b), &THRESHOLDS).unwrap()))])
        }),
        case("pairs above 0.9, one side", flops / 2, |(a, _)| {
            Output::Numbers(vec![pairs_above(a, None, 0.9).unwrap().pairs.len() as f64])
        }),
        case("top 10", flops, |(a, b)| Output::Tensor(top_k(a, b, 10).unwrap().scores)),
        case("matrix", flops, |(a, b)| Output::Tensor(matrix(a, b).unwrap())),
    ]
}

/// Ceilings: reading and copying 256 MB on the threads of the run, and the f32 product that the tiles use.
fn machine() -> Vec<Case> {
    let n = 64 << 20;
    let read = Case::new("machine/read".into(), 4 * n, 0, move || {
        let from = vec![1f32; n];
        Box::new(move || {
            let sum = |part: &[f32]| {
                let mut lanes = [0f32; 64];
                part.chunks_exact(64).for_each(|c| {
                    lanes.iter_mut().zip(c).for_each(|(lane, x)| *lane += x);
                });
                lanes.iter().sum::<f32>()
            };
            Output::Numbers(vec![f64::from(from.par_chunks(1 << 20).map(sum).sum::<f32>())])
        })
    });
    let copy = Case::new("machine/copy".into(), 8 * n, 0, move || {
        let (from, to) = (vec![1f32; n], std::cell::RefCell::new(vec![0f32; n]));
        Box::new(move || {
            let mut to = to.borrow_mut();
            to.par_chunks_mut(1 << 20)
                .zip(from.par_chunks(1 << 20))
                .for_each(|(to, from)| to.copy_from_slice(from));
            Output::Numbers(vec![f64::from(to[n - 1])])
        })
    });
    let s = 3072;
    let product = Case::new("machine/sgemm".into(), 0, 2 * s * s * s, move || {
        let side = |seed| Tensor::from_vec(values(seed, s * s), (s, s), &candle_core::Device::Cpu);
        rotate(vec![(side(1).unwrap(), side(2).unwrap())], |(a, b)| {
            Output::Tensor(a.matmul(b).unwrap())
        })
    });
    vec![read, copy, product]
}
