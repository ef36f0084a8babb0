//! Rotary position embedding on a GPU. Contract: [`crate::ops::rope`]; calls: [`super`].

#[cfg(feature = "cuda")]
mod tensors;

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

use super::args::{self, RopeArgs};
use super::module::File;
use super::pool::Output;
use super::{Queue, Rows, check_len, geometry};
use crate::{Error, Result};
#[cfg(feature = "cuda")]
pub(in crate::ops) use tensors::forward;

/// Turns `heads` heads of D values in each row of x and writes them into `out`, `[rows, heads, D]`, row-major, of the dtype of
/// x; `cos` and `sin` are `[rows, D / 2]`. One launch. The bits are the CPU's.
///
/// # Errors
/// If rows are not `heads` heads of an even D, on buffers that are too short, of another dtype or GPU, and statuses of the
/// driver.
pub fn rotate<T: Output>(
    stream: &Arc<CudaStream>,
    x: &Rows<'_>,
    heads: usize,
    cos: &impl DevicePtr<f32>,
    sin: &impl DevicePtr<f32>,
    out: &mut impl DevicePtrMut<T>,
) -> Result<()> {
    let op = "cuda::rotate";
    let queue = Queue { op, stream };
    let half = x.width.checked_div(heads).unwrap_or(0) / 2;
    if half == 0 || heads * half * 2 != x.width {
        let got = format!("rows of {}", x.width);
        return Err(Error::argument(op, "x", got, format!("{heads} heads of an even D")));
    }
    if T::CODE != x.values.code() {
        let expected = format!("{}, as x", x.values.name());
        return Err(Error::argument(op, "out", "of another dtype", expected));
    }
    check_len(op, "out", out, x.count.saturating_mul(x.width))?;
    check_len(op, "cos", cos, x.count * half)?;
    check_len(op, "sin", sin, x.count * half)?;
    let bytes = x.values.bytes();
    let (address, _x) = x.read(&queue, "x")?;
    let (cos, _cos) = queue.read("cos", cos)?;
    let (sin, _sin) = queue.read("sin", sin)?;
    let (to, _out) = queue.write("out", out)?;
    // Heads and tables then are too: a table's half is at least as many bytes.
    let aligned = x.aligned(address) != 0
        && geometry::aligned(to, half as u64, bytes)
        && geometry::aligned(cos | sin, half as u64, 4);
    let vectors = (half as u64).div_ceil(geometry::vector(bytes));
    let args = RopeArgs {
        x: address,
        cos,
        sin,
        out: to,
        rows: x.count as u64,
        heads: heads as u64,
        vectors,
        half: half as i64,
        x_stride: x.stride as i64,
        aligned: u32::from(aligned),
        reserved: 0,
    };
    let blocks = geometry::rope(x.count as u64 * heads as u64 * vectors);
    let kernel = x.values.pick(["rope_f32", "rope_f16", "rope_bf16"]);
    // SAFETY: x holds `rows` rows of `heads` heads, out as many, the tables `half` values a row; all are guarded here.
    unsafe { queue.launch(File::Rope, kernel, blocks, args::ROPE_THREADS, &args) }
}
