//! Cases on the first GPU: calls of `bdhs::ops::cuda` that only launch, timed by events of their stream.
//!
//! "Hot" cases take one input again and again; "cold" ones go through inputs that together are several times the largest L2.
//! Calls are enqueued by the host one by one, so a small call's time has the gap to the next launch in it. Small cases are
//! there a second time, "replayed": captured into a graph, which leaves the host out.
//!
//! Everything is on one stream, and cudarc's event tracking is off: a capture cannot wait for events from outside it.

use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bdhs::ops::cuda;
use candle_core::{DType, Device};
use cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use cudarc::driver::{CudaSlice, CudaStream};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Case, Output, Run, leaning, rotate, values};

/// Where launches go.
pub type Stream = Arc<CudaStream>;

/// Bytes that all inputs of a cold case have together, at least: several times the largest L2.
const COLD_BYTES: usize = 512 << 20;

/// Calls of one graph.
const REPLAYED: u64 = 16;

/// candle's device for the first GPU that the kernels run on; none where there is no GPU.
pub fn device() -> Option<&'static Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    let open = || {
        if let Err(error) = cuda::probe(0) {
            eprintln!("no cases on a GPU: {error}");
            return None;
        }
        let device = Device::new_cuda_with_stream(0).expect("a GPU that was probed");
        let context = device.as_cuda_device().expect("a GPU").cuda_stream().context().clone();
        // SAFETY: the benchmarks use this one stream.
        unsafe { context.disable_event_tracking() };
        cuda::load(&context).expect("kernels for a GPU that was probed");
        Some(device)
    };
    DEVICE.get_or_init(open).as_ref()
}

/// The stream of that device.
pub fn first() -> Option<Stream> {
    Some(device()?.as_cuda_device().expect("a GPU").cuda_stream())
}

/// The GPU's name, multiprocessors and bytes of L2, for `--serve`; nothing where there is no GPU.
pub fn describe() -> String {
    let Some(stream) = first() else { return String::new() };
    let context = stream.context();
    let figure = |attribute| context.attribute(attribute).unwrap_or(0);
    let multiprocessors = figure(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    let cache = figure(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
    format!("{}\t{multiprocessors}\t{cache}", context.name().unwrap_or_default())
}

/// Floats on the GPU.
pub enum Buffer {
    F32(CudaSlice<f32>),
    F16(CudaSlice<f16>),
    BF16(CudaSlice<bf16>),
}

impl Buffer {
    /// As [`values`], rounded to a type.
    pub fn new(stream: &Stream, seed: u64, n: usize, dtype: DType) -> Self {
        Self::of(stream, values(seed, n), dtype)
    }

    /// As [`super::embeddings`].
    pub fn embeddings(stream: &Stream, seed: u64, rows: usize, d: usize, dtype: DType) -> Self {
        Self::of(stream, leaning(seed, rows, d), dtype)
    }

    /// Values of the host, rounded to a type.
    pub fn of(stream: &Stream, values: Vec<f32>, dtype: DType) -> Self {
        match dtype {
            DType::F16 => {
                let values: Vec<f16> = values.into_par_iter().map(f16::from_f32).collect();
                Self::F16(stream.clone_htod(&values).expect("memory"))
            }
            DType::BF16 => {
                let values: Vec<bf16> = values.into_par_iter().map(bf16::from_f32).collect();
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
    if kept == "cold" { COLD_BYTES.div_ceil(bytes.max(1)).max(2) } else { 1 }
}

/// A case of launches: `inputs` are made when the case runs, `launch` gets them in turn. Nothing is read back: see [`Launches`].
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
    Case { timer: Some(timer(stream, 1)), ..Case::new(name, bytes, flops, make) }
}

/// Makes the input of a number.
pub type Make<S> = Box<dyn Fn(&Stream, usize) -> S>;

/// Launches whose output is read back for a check.
pub struct Launches<S> {
    /// `op/gpu what/...`.
    pub name: String,
    /// Bytes and floating-point operations, as those of a [`Case`].
    pub costs: (usize, usize),
    /// How many inputs.
    pub sets: usize,
    /// Makes an input, and room for the output.
    pub input: Make<S>,
    pub launch: fn(&Stream, &S),
    /// What the launch wrote, as few numbers.
    pub read: fn(&Stream, &S) -> Vec<f64>,
}

impl<S: 'static> Launches<S> {
    /// Calls enqueued one by one.
    pub fn calls(self, stream: &Stream) -> Case {
        Rc::new(self).enqueued(stream)
    }

    /// Calls enqueued one by one, and the same calls in a graph.
    pub fn calls_and_replays(self, stream: &Stream) -> Vec<Case> {
        let shared = Rc::new(self);
        vec![shared.clone().enqueued(stream), shared.replayed(stream)]
    }

    fn inputs(&self, stream: &Stream, sets: usize) -> Vec<S> {
        // What an earlier case freed goes back to the driver when the stream is waited for.
        stream.synchronize().expect("a stream");
        (0..sets).map(|set| (self.input)(stream, set)).collect()
    }

    fn enqueued(self: Rc<Self>, stream: &Stream) -> Case {
        let (own, all) = (stream.clone(), self.clone());
        let make = move || {
            let (stream, launch) = (own.clone(), all.launch);
            rotate(all.inputs(&own, all.sets), move |input| {
                launch(&stream, input);
                Output::Numbers(vec![])
            })
        };
        let (bytes, flops) = self.costs;
        let case = Case::new(self.name.clone(), bytes, flops, make);
        Case { timer: Some(timer(stream, 1)), check: Some(self.check(stream)), ..case }
    }

    fn replayed(self: Rc<Self>, stream: &Stream) -> Case {
        let (own, all) = (stream.clone(), self.clone());
        let make = move || {
            let inputs = all.inputs(&own, all.sets);
            let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            own.begin_capture(mode).expect("a capture");
            for call in 0..REPLAYED as usize {
                (all.launch)(&own, &inputs[call % inputs.len()]);
            }
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = own.end_capture(flags).expect("a graph").expect("launches in it");
            rotate(vec![(graph, inputs)], |(graph, _)| {
                graph.launch().expect("a replay");
                Output::Numbers(vec![])
            })
        };
        let (bytes, flops) = self.costs;
        let mut parts: Vec<&str> = self.name.splitn(3, '/').collect();
        let what = format!("{}, replayed", parts[1]);
        parts[1] = &what;
        let case = Case::new(parts.join("/"), bytes, flops, make);
        Case { timer: Some(timer(stream, REPLAYED)), check: Some(self.check(stream)), ..case }
    }

    /// Launches on the first input and reads what was written.
    fn check(self: Rc<Self>, stream: &Stream) -> Box<dyn Fn() -> Vec<f64>> {
        let stream = stream.clone();
        Box::new(move || {
            let inputs = self.inputs(&stream, 1);
            (self.launch)(&stream, &inputs[0]);
            (self.read)(&stream, &inputs[0])
        })
    }
}

/// Times runs of `calls` calls each by events.
pub fn timer(stream: &Stream, calls: u64) -> super::Timer {
    let stream = stream.clone();
    Box::new(move |run: &Run, wanted: u64| {
        let runs = wanted.div_ceil(calls);
        elapsed(&stream, run, runs).mul_f64(wanted as f64 / (runs * calls) as f64)
    })
}

/// What `runs` runs take on the device, from the end of a run before them to the end of the last: the device does not wait for
/// the first launch.
fn elapsed(stream: &Stream, run: &Run, runs: u64) -> Duration {
    let event = || {
        let timing = Some(CUevent_flags::CU_EVENT_DEFAULT);
        stream.context().new_event(timing).expect("an event")
    };
    let (start, end) = (event(), event());
    run();
    start.record(stream).expect("a recorded event");
    for _ in 0..runs {
        run();
    }
    end.record(stream).expect("a recorded event");
    end.synchronize().expect("kernels that end");
    Duration::from_secs_f64(f64::from(start.elapsed_ms(&end).expect("a time")) * 1e-3)
}

/// Times runs by the wall's clock: work of which the host has a part, and that ends on the host.
pub fn wall(run: &Run, runs: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..runs {
        run();
    }
    start.elapsed()
}
