//! Cosines: row against row at 768, in and out of the caches; all pairs against five thresholds; top 10; the machine's
//! own bandwidth and matrix product as the yardsticks. On a GPU also groups against their references.

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
    if let Some(stream) = common::gpu::first() {
        cases.extend(common::ceilings::cases(&stream));
        cases.extend(gpu::cases(&stream));
        cases.extend(launches(&stream));
    }
    common::main(cases);
}

/// Counts of all pairs on a GPU.
#[cfg(feature = "cuda")]
fn launches(stream: &common::gpu::Stream) -> Vec<Case> {
    use bdhs::ops::cuda::cosine::{Bands, CountOutput, Side, count};
    use common::gpu::{Buffer, case};
    use std::cell::RefCell;

    let mut cases = vec![];
    for (dtype, dtype_name) in FLOATS {
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

/// Rows against rows, groups against their references, pairs and top 10 on a GPU: `cosine/gpu WHAT/SHAPE/DTYPE`.
#[cfg(feature = "cuda")]
mod gpu {
    use std::cell::RefCell;

    use bdhs::ops::cuda::cosine::{
        Bands, Groups, PairOutput, RowOutput, Side, Thresholds, pairs, rows, top_k,
    };
    use candle_core::DType;
    use cudarc::driver::CudaSlice;

    use super::common::gpu::{Buffer, Launches, Stream, sets};
    use super::common::{Case, FLOATS, THRESHOLDS, digest};

    const D: usize = 768;
    const K: usize = 10;

    pub fn cases(stream: &Stream) -> Vec<Case> {
        let mut cases = vec![];
        for (dtype, name) in FLOATS {
            // Of f32 as many as of the others would be twice the bytes.
            let cold = if dtype == DType::F32 { 400_000 } else { 1_000_000 };
            cases.extend(row_by_row(400, "hot", (dtype, name)).calls_and_replays(stream));
            cases.push(row_by_row(cold, "cold", (dtype, name)).calls(stream));
        }
        for dtype in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
            cases.extend(groups(40, dtype).calls_and_replays(stream));
            cases.extend(groups(2000, dtype).calls_and_replays(stream));
        }
        for (n, d) in [(512, 384), (16_384, D)] {
            cases.push(pairs_above(n, d).calls(stream));
        }
        for (n, m, d) in [(16, 512, 384), (4096, 32_768, D)] {
            cases.push(top_10(n, m, d).calls(stream));
        }
        cases
    }

    /// Candidates and their references.
    struct Scored {
        candidates: Buffer,
        references: Buffer,
        count: [usize; 2],
        groups: Option<Groups>,
        limits: Thresholds,
        out: RefCell<RowOutput>,
    }

    fn scores(stream: &Stream, input: &Scored) {
        let [n, r] = input.count;
        let (candidates, references) = (input.candidates.rows(n, D), input.references.rows(r, D));
        let (groups, mut out) = (input.groups.as_ref(), input.out.borrow_mut());
        rows(stream, &candidates, &references, groups, &input.limits, &mut out).unwrap();
    }

    /// Of the scores; and how many references have a candidate below each threshold.
    fn read_scores(stream: &Stream, input: &Scored) -> Vec<f64> {
        let out = input.out.borrow();
        let mut numbers = digest(&stream.clone_dtoh(&out.scores).unwrap());
        let first = stream.clone_dtoh(&out.first_below).unwrap();
        numbers.extend((0..THRESHOLDS.len()).map(|t| {
            let column = first.iter().skip(t).step_by(THRESHOLDS.len());
            column.filter(|&&at| at != u32::MAX).count() as f64
        }));
        numbers
    }

    fn row_by_row(n: usize, kept: &str, (dtype, name): (DType, &str)) -> Launches<Scored> {
        let bytes = 2 * n * D * dtype.size_in_bytes() + n * (4 + 4 * THRESHOLDS.len());
        Launches {
            name: format!("cosine/gpu rows {kept}/{n} x {D}/{name}"),
            costs: (bytes, 0),
            sets: sets(kept, bytes),
            input: Box::new(move |stream, set| {
                let side = |k| Buffer::embeddings(stream, 2 * set as u64 + k, n, D, dtype);
                Scored {
                    candidates: side(0),
                    references: side(1),
                    count: [n, n],
                    groups: None,
                    limits: Thresholds::new(stream, &THRESHOLDS).unwrap(),
                    out: RefCell::new(RowOutput::new(stream, n, n, THRESHOLDS.len()).unwrap()),
                }
            }),
            launch: scores,
            read: read_scores,
        }
    }

    /// The ablation's shape: 3 to 7 candidates a reference, 5 in the mean.
    fn groups(references: usize, (dtype, name): (DType, &str)) -> Launches<Scored> {
        let mut offsets = vec![0u32];
        offsets.extend((0..references as u32).map(|r| 3 + r * 37 % 5));
        (1..offsets.len()).for_each(|r| offsets[r] += offsets[r - 1]);
        let n = offsets[references] as usize;
        let bytes = (n + references) * D * dtype.size_in_bytes()
            + 4 * (n + references * THRESHOLDS.len() + offsets.len());
        Launches {
            name: format!("cosine/gpu groups hot/{references} x 5 x {D}/{name}"),
            costs: (bytes, 0),
            sets: 1,
            input: Box::new(move |stream, _| Scored {
                candidates: Buffer::embeddings(stream, 0, n, D, dtype),
                references: Buffer::embeddings(stream, 1, references, D, dtype),
                count: [n, references],
                groups: Some(Groups::new(stream, &offsets, n, references).unwrap()),
                limits: Thresholds::new(stream, &THRESHOLDS).unwrap(),
                out: RefCell::new(RowOutput::new(stream, n, references, THRESHOLDS.len()).unwrap()),
            }),
            launch: scores,
            read: read_scores,
        }
    }

    /// One side, its pairs i < j above 0.9; sides are prepared within the call.
    fn pairs_above(
        n: usize,
        d: usize,
    ) -> Launches<(Buffer, [usize; 2], Bands, RefCell<PairOutput>)> {
        Launches {
            name: format!("cosine/gpu pairs above 0.9, one side/{n} x {d}/f16"),
            costs: (0, n * (n - 1) * d),
            sets: 1,
            input: Box::new(move |stream, _| {
                let a = Buffer::embeddings(stream, 0, n, d, DType::F16);
                let band = Bands::new(stream, &[0.9], &a.rows(n, d)).unwrap();
                let out = PairOutput::new(stream, 1 << 22).unwrap();
                (a, [n, d], band, RefCell::new(out))
            }),
            launch: |stream, (a, [n, d], band, out)| {
                let a = a.rows(*n, *d);
                let side = Side::new(stream, &a).unwrap();
                pairs(stream, &side, None, band, &mut out.borrow_mut()).unwrap();
            },
            read: |stream, (_, _, _, out)| {
                vec![stream.clone_dtoh(&out.borrow().count).unwrap()[0] as f64]
            },
        }
    }

    /// Two sides and room for scores, indices and how many were computed again.
    struct Ranked {
        sides: [Buffer; 2],
        shape: [usize; 3],
        scores: RefCell<CudaSlice<f32>>,
        indices: RefCell<CudaSlice<u32>>,
        rechecked: RefCell<CudaSlice<u64>>,
    }

    fn top_10(n: usize, m: usize, d: usize) -> Launches<Ranked> {
        Launches {
            name: format!("cosine/gpu top 10/{n} x {m} x {d}/f16"),
            costs: (0, 2 * n * m * d),
            sets: 1,
            input: Box::new(move |stream, _| Ranked {
                sides: [(0, n), (1, m)]
                    .map(|(seed, rows)| Buffer::embeddings(stream, seed, rows, d, DType::F16)),
                shape: [n, m, d],
                scores: RefCell::new(stream.alloc_zeros(n * K).unwrap()),
                indices: RefCell::new(stream.alloc_zeros(n * K).unwrap()),
                rechecked: RefCell::new(stream.alloc_zeros(1).unwrap()),
            }),
            launch: |stream, input| {
                let [n, m, d] = input.shape;
                let (a, b) = (input.sides[0].rows(n, d), input.sides[1].rows(m, d));
                let (a, b) = (Side::new(stream, &a).unwrap(), Side::new(stream, &b).unwrap());
                let (mut scores, mut indices) =
                    (input.scores.borrow_mut(), input.indices.borrow_mut());
                let mut rechecked = input.rechecked.borrow_mut();
                top_k(stream, &a, &b, K, &mut *scores, &mut *indices, &mut *rechecked).unwrap();
            },
            read: |stream, input| digest(&stream.clone_dtoh(&*input.scores.borrow()).unwrap()),
        }
    }
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
