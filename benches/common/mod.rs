//! What the benchmarks share: cases that criterion runs by name, or that `benches/peers/` asks for one by one to set
//! them beside other libraries; the data of both; NVTX ranges.
//!
//! ```text
//! cargo bench --bench pool                        criterion's report
//! cargo bench --bench pool --features cuda gpu    the cases of a GPU, timed by its events
//! cargo bench --bench pool -- --profile-time 5    each case under an NVTX range of its name, for nsys and ncu
//! cargo bench --bench pool -- --serve             answers `benches/peers/ops.py` on stdin; see `serve`
//! cargo bench ... --features cuda -- --serve gpu  the same with the cases of a GPU, for `benches/peers/gpu.py`
//! ```

#![allow(dead_code, reason = "each benchmark uses its own part")]

#[cfg(feature = "cuda")]
pub mod ceilings;
#[cfg(feature = "cuda")]
pub mod gpu;
mod nvtx;

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput};
use rayon::prelude::*;

/// What a run gives, digested only where it is compared with another library.
pub enum Output {
    /// Read as its first and last value and the sum.
    Tensor(Tensor),
    Numbers(Vec<f64>),
}

impl Output {
    pub fn digest(self) -> Vec<f64> {
        let tensor = match self {
            Self::Tensor(tensor) => tensor,
            Self::Numbers(numbers) => return numbers,
        };
        let flat = tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap();
        digest(&flat.to_vec1::<f32>().unwrap())
    }
}

/// The first value, the last and the sum of at least one.
pub fn digest<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    let sum = values.iter().map(|&x| x.into()).sum();
    vec![values[0].into(), values[values.len() - 1].into(), sum]
}

/// One run of the work.
pub type Run = Box<dyn Fn() -> Output>;

/// A benchmark.
pub struct Case {
    /// `op/what/dtype/...`.
    pub name: String,
    /// Bytes that the op must move at least, and floating-point operations that it must do.
    pub bytes: usize,
    pub flops: usize,
    /// The same, op by op, of a case of many that come one after another: each takes the larger of
    /// what its bytes and its operations take. Empty where one of the two bounds all of the case.
    pub ops: Vec<[usize; 2]>,
    /// Makes the input and the work. Cold cases hold [`COLD_SETS`] inputs and take the next one at every run.
    pub make: Box<dyn Fn() -> Run>,
    /// What so many calls take, where that is not the wall's time of as many runs: the cases of a GPU.
    pub timer: Option<Timer>,
    /// The numbers of a check, where a run does not give them.
    pub check: Option<Box<dyn Fn() -> Vec<f64>>>,
}

/// Times runs.
pub type Timer = Box<dyn Fn(&Run, u64) -> Duration>;

impl Case {
    pub fn new(name: String, bytes: usize, flops: usize, make: impl Fn() -> Run + 'static) -> Self {
        Self { name, bytes, flops, ops: vec![], make: Box::new(make), timer: None, check: None }
    }
}

/// Input sets of a cold case: together they do not fit the caches.
pub const COLD_SETS: usize = 4;

/// Work that goes through `sets` in turn.
pub fn rotate<S: 'static>(sets: Vec<S>, work: impl Fn(&S) -> Output + 'static) -> Run {
    let next = std::cell::Cell::new(0);
    Box::new(move || {
        let at = next.get();
        next.set((at + 1) % sets.len());
        work(black_box(&sets[at]))
    })
}

/// Runs the benchmarks of one file.
pub fn main(cases: Vec<Case>) {
    let mut arguments = std::env::args().skip_while(|arg| arg != "--serve");
    if arguments.next().is_some() {
        let gpu = arguments.next().is_some_and(|place| place == "gpu");
        let here = |case: &Case| case.timer.is_some() == gpu;
        return serve(&cases.into_iter().filter(here).collect::<Vec<_>>());
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .with_profiler(nvtx::Ranges::default())
        .configure_from_args();
    for case in &cases {
        let (group, name) = case.name.split_once('/').expect("op/name");
        let mut group = criterion.benchmark_group(group);
        group.throughput(match case.flops {
            0 => Throughput::Bytes(case.bytes as u64),
            flops => Throughput::Elements(flops as u64),
        });
        let run = std::cell::LazyCell::new(|| (case.make)());
        group.bench_function(name, |b| match &case.timer {
            None => b.iter(|| black_box((*run)())),
            Some(timer) => b.iter_custom(|runs| timer(&run, runs)),
        });
        group.finish();
    }
    criterion.final_summary();
}

/// Answers lines on stdin: `list`; `check NAME` with the numbers of the first run; `time NAME THREADS SECONDS` with the seconds
/// of every run, of a GPU's case with those of a call in every batch; `device` with what `gpu::describe` says. The input of the
/// last case timed stays in memory.
fn serve(cases: &[Case]) {
    let mut made: Option<(&str, Run)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split('\t').collect();
        let answer = match words[0] {
            "list" => {
                let costs = |c: &Case| {
                    let ops = c.ops.iter().map(|[bytes, flops]| format!("{bytes}:{flops}"));
                    let ops = ops.collect::<Vec<_>>().join(",");
                    format!("{}\t{}\t{}\t{ops}\n", c.name, c.bytes, c.flops)
                };
                cases.iter().map(costs).collect::<String>() + "end"
            }
            "device" => place(),
            word => {
                let case = cases.iter().find(|case| case.name == words[1]).expect("a case");
                // A check is of the first input set: made anew. What is there is freed before.
                if word == "check" || made.as_ref().is_none_or(|(name, _)| *name != words[1]) {
                    drop(made.take());
                }
                let numbers = match (word, &case.check) {
                    ("check", Some(check)) => check(),
                    _ => {
                        let run = &made.get_or_insert_with(|| (&case.name, (case.make)())).1;
                        match (word, &case.timer) {
                            ("check", _) => run().digest(),
                            (_, Some(timer)) => batches(run, timer, number(words[3])),
                            _ => time(run, number(words[2]) as usize, number(words[3])),
                        }
                    }
                };
                numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")
            }
        };
        println!("{answer}");
        std::io::stdout().flush().expect("stdout");
    }
}

fn number(word: &str) -> f64 {
    word.parse().expect("a number")
}

/// The GPU of the cases, if any.
fn place() -> String {
    #[cfg(feature = "cuda")]
    return gpu::describe();
    #[cfg(not(feature = "cuda"))]
    String::new()
}

/// Seconds of a call in every batch within `seconds`, at least three batches if they take less than a second. A batch is as many calls
/// as take 2 ms, far above an event's resolution; the calls that find out how many also warm up.
fn batches(run: &Run, timer: &Timer, seconds: f64) -> Vec<f64> {
    let mut calls = 1;
    while timer(run, calls) < Duration::from_millis(2) {
        calls *= 2;
    }
    let (start, mut times) = (Instant::now(), vec![]);
    let spent = || start.elapsed().as_secs_f64();
    while times.is_empty() || (times.len() < 3 && spent() < 1.0) || spent() < seconds {
        times.push(timer(run, calls).as_secs_f64() / calls as f64);
    }
    times
}

/// Seconds of every run within `seconds`, at least five, after one that does not count; of one run alone where `seconds` is 0.
fn time(run: &Run, threads: usize, seconds: f64) -> Vec<f64> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    // The closure stays on this thread: only what the op spreads goes to the pool.
    let run = SendPtr(run);
    pool.install(move || {
        let run = run.get();
        let least = if seconds == 0.0 { 1 } else { 5 };
        if least > 1 {
            black_box(run());
        }
        let (start, mut times) = (Instant::now(), vec![]);
        while times.len() < least || start.elapsed().as_secs_f64() < seconds {
            let begin = Instant::now();
            black_box(run());
            times.push(begin.elapsed().as_secs_f64());
        }
        times
    })
}

/// Hands the work to the pool's thread while the caller waits for it.
struct SendPtr<'a>(&'a Run);

// SAFETY: `install` blocks the only thread that owns the work until the pool has returned it.
unsafe impl Send for SendPtr<'_> {}

impl SendPtr<'_> {
    fn get(&self) -> &Run {
        self.0
    }
}

/// Uniform in (-1, 1): SplitMix64, value i from `seed` + i + 1 steps. The peers make the same.
pub fn values(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64)
        .into_par_iter()
        .map(|i| {
            let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// [`values`] as a tensor.
pub fn tensor(seed: u64, dims: &[usize], dtype: DType) -> Tensor {
    let n = dims.iter().product();
    Tensor::from_vec(values(seed, n), dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// Embeddings: every eighth row leans to one of 64 centres, so that some cosines come near 0.9.
pub fn embeddings(seed: u64, rows: usize, d: usize, dtype: DType) -> Tensor {
    let values = leaning(seed, rows, d);
    Tensor::from_vec(values, (rows, d), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// The values of [`embeddings`].
pub fn leaning(seed: u64, rows: usize, d: usize) -> Vec<f32> {
    let (mut x, centres) = (values(seed, rows * d), values(999, 64 * d));
    for i in (0..rows).step_by(8) {
        let centre = &centres[i / 8 % 64 * d..][..d];
        x[i * d..(i + 1) * d].iter_mut().zip(centre).for_each(|(x, c)| *x += 3.0 * c);
    }
    x
}

/// Embeddings that all lie close together, as those of some models do: every cosine is near 0.97.
pub fn close(seed: u64, rows: usize, d: usize, dtype: DType) -> Tensor {
    let x = values(seed, rows * d).into_iter().map(|x| x + 3.5).collect::<Vec<f32>>();
    Tensor::from_vec(x, (rows, d), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

pub const FLOATS: [(DType, &str); 3] =
    [(DType::F32, "f32"), (DType::F16, "f16"), (DType::BF16, "bf16")];

/// The ablation's thresholds.
pub const THRESHOLDS: [f64; 5] = [0.90, 0.93, 0.95, 0.97, 0.99];
