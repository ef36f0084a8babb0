//! The ops on a GPU, against float64 and against the CPU. Every test is skipped, with a message, where there is no GPU that the
//! kernels run on. `scripts/cuda-on-cpu` runs them without one, the kernels on the CPU.
//!
//! candle's own kernels are needed by few tests, which say so where those are missing.

mod act;
mod attend;
mod calls;
mod cosine;
mod flash;
mod graph;
mod large;
mod mask;
mod norm;
mod pool;
mod product;
mod rope;
#[path = "../common/skip.rs"]
mod skip;
mod token;

use std::sync::Arc;

use bdhs::ops::cuda;
use candle_core::{DType, Device, Tensor};
use cudarc::driver::CudaStream;
use half::{bf16, f16};
use skip::skip;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The first GPU, or `None` after saying why the test is skipped. With
/// `BDHS_NEED=gpu`, having none is a failure.
fn gpu() -> Option<Device> {
    match cuda::probe(0) {
        Ok(_) => Some(Device::new_cuda_with_stream(0).unwrap()),
        Err(error) => {
            skip("gpu", error);
            None
        }
    }
}

/// Whether large cases would take minutes: under a checking tool, which sets `BDHS_TEST_SIZES=small`, or if the GPU is the host
/// shim behind the stand-in driver.
fn is_slow() -> bool {
    std::env::var("BDHS_TEST_SIZES").is_ok_and(|sizes| sizes == "small")
        || cuda::probe(0).is_ok_and(|gpu| gpu.name.starts_with("host shim"))
}

/// A stream that can be captured into a graph, the kernels loaded: without events, so all work has to be on it.
fn stream_to_capture() -> Option<Arc<CudaStream>> {
    gpu()?;
    let context = cudarc::driver::CudaContext::new(0).unwrap();
    // SAFETY: callers put everything on the one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    cuda::load(&context).unwrap();
    Some(stream)
}

fn stream(device: &Device) -> Arc<CudaStream> {
    device.as_cuda_device().unwrap().cuda_stream()
}

/// Whether candle's own kernels run, as its `backward` needs; says that the test is skipped if not.
fn candle_runs(device: &Device) -> bool {
    let sum = Tensor::ones(2, DType::F32, device).and_then(|x| (&x + &x)?.to_vec1::<f32>());
    sum.map_err(|error| skip("candle-kernels", error)).is_ok()
}

/// Deterministic values, about normal.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ self.0 >> 33;
        x.wrapping_mul(0xFF51_AFD7_ED55_8CCD) >> 11
    }

    fn below(&mut self, n: usize) -> usize {
        (self.word() % n as u64) as usize
    }

    fn normal(&mut self) -> f32 {
        let uniform = |x: u64| (x as f64 + 0.5) / (1u64 << 53) as f64;
        ((0..6).map(|_| uniform(self.word())).sum::<f64>() - 3.0) as f32 * std::f32::consts::SQRT_2
    }

    fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// The same values, rounded to `dtype`, on the CPU and on the GPU. Converted on the host: candle's kernels are not needed.
fn both(device: &Device, values: &[f32], shape: &[usize], dtype: DType) -> (Tensor, Tensor) {
    let on = |device: &Device| match dtype {
        DType::F16 => {
            Tensor::from_vec(values.iter().map(|&x| f16::from_f32(x)).collect(), shape, device)
        }
        DType::BF16 => {
            Tensor::from_vec(values.iter().map(|&x| bf16::from_f32(x)).collect(), shape, device)
        }
        _ => Tensor::from_vec(values.to_vec(), shape, device),
    };
    (on(&Device::Cpu).unwrap(), on(device).unwrap())
}

/// Values on the host, widened.
fn values(tensor: &Tensor) -> Vec<f64> {
    let host = tensor.to_device(&Device::Cpu).unwrap().flatten_all().unwrap();
    host.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

#[track_caller]
fn assert_close(seen: &[f64], expected: &[f64], absolute: f64, relative: f64, what: &str) {
    assert_eq!(seen.len(), expected.len(), "{what}: length");
    for (i, (s, e)) in seen.iter().zip(expected).enumerate() {
        let close =
            (s.is_nan() && e.is_nan()) || (s - e).abs() <= absolute + relative * e.abs() || s == e;
        assert!(close, "{what}: {s} at {i}, expected {e}");
    }
}

/// Lengths that cover: empty, one, a part, just over a part, several blocks' worth.
const LENGTHS: [usize; 7] = [3, 0, 1, 64, 65, 700, 130];

fn packed_rows() -> (Vec<u32>, Vec<Vec<usize>>) {
    let mut cu = vec![0u32];
    let mut rows = vec![];
    for n in LENGTHS {
        let first = cu[cu.len() - 1] as usize;
        rows.push((first..first + n).collect());
        cu.push((first + n) as u32);
    }
    (cu, rows)
}
