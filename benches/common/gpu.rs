//! Cases on the first GPU: calls of `bdhs::ops::cuda` that only launch, timed by events of their stream.
//!
//! "Hot" cases take one input again and again; "cold" ones go through as many as exceed every cache.

use std::sync::Arc;
use std::time::Duration;

use bdhs::ops::cuda;
use candle_core::{DType, Device};
use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaSlice, CudaStream};
use half::{bf16, f16};

use super::{Case, Output, Run, rotate, values};

/// Where launches go.
pub type Stream = Arc<CudaStream>;

/// Bytes that all inputs of a cold case have together, at least: several times the largest L2.
const COLD_BYTES: usize = 512 << 20;

/// The stream of the first GPU that the kernels run on; none where there is no GPU.
pub fn first() -> Option<Stream> {
    if let Err(error) = cuda::probe(0) {
        eprintln!("no cases on a GPU: {error}");
        return None;
    }
    let device = Device::new_cuda_with_stream(0).expect("a GPU that was probed");
    Some(device.as_cuda_device().expect("a GPU").cuda_stream())
}

/// Floats on the GPU.
pub enum Buffer {
    F32(CudaSlice<f32>),
    F16(CudaSlice<f16>),
    BF16(CudaSlice<bf16>),
}

impl Buffer {
    /// As [`values`], rounded to a type; about a tenth of a second for 100 MB.
    pub fn new(stream: &Stream, seed: u64, n: usize, dtype: DType) -> Self {
        let values = values(seed, n);
        match dtype {
            DType::F16 => {
                let values: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
                Self::F16(stream.clone_htod(&values).expect("memory"))
            }
            DType::BF16 => {
                let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
                Self::BF16(stream.clone_htod(&values).expect("memory"))
            }
            _ => Self::F32(stream.clone_htod(&values).expect("memory")),
        }
    }

    /// The buffer as rows.
    pub fn rows(&self, count: usize, width: usize) -> cuda::Rows<'_> {
        match self {
            Self::F32(values) => cuda::Rows::packed(values, count, width),
            Self::F16(values) => cuda::Rows::packed(values, count, width),
            Self::BF16(values) => cuda::Rows::packed(values, count, width),
        }
        .expect("rows that fit their buffer")
    }
}

/// How many inputs a case needs: one, or for a cold case as many as exceed the caches.
pub fn sets(kept: &str, bytes: usize) -> usize {
    if kept == "cold" { COLD_BYTES.div_ceil(bytes.max(1)).max(super::COLD_SETS) } else { 1 }
}

/// A case of launches: `inputs` are made when the case runs, `launch` gets them in turn.
pub fn case<S: 'static>(
    stream: &Stream,
    name: String,
    (bytes, flops): (usize, usize),
    inputs: impl Fn(&Stream) -> Vec<S> + 'static,
    launch: impl Fn(&Stream, &S) + Copy + 'static,
) -> Case {
    let own = stream.clone();
    let make = move || {
        let stream = own.clone();
        rotate(inputs(&own), move |input| {
            launch(&stream, input);
            Output::Numbers(vec![])
        })
    };
    let stream = stream.clone();
    let timer = move |run: &Run, runs: u64| elapsed(&stream, run, runs);
    Case { timer: Some(Box::new(timer)), ..Case::new(name, bytes, flops, make) }
}

/// What `runs` calls take on the device, from the first launch to the end of the last.
fn elapsed(stream: &Stream, run: &Run, runs: u64) -> Duration {
    let event = || {
        let timing = Some(CUevent_flags::CU_EVENT_DEFAULT);
        stream.context().new_event(timing).expect("an event")
    };
    let (start, end) = (event(), event());
    start.record(stream).expect("a recorded event");
    for _ in 0..runs {
        run();
    }
    end.record(stream).expect("a recorded event");
    end.synchronize().expect("kernels that end");
    Duration::from_secs_f64(f64::from(start.elapsed_ms(&end).expect("a time")) * 1e-3)
}
