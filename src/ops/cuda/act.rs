//! Activations on a GPU. Contract: [`crate::ops::act`]; calls: [`super`].

#[cfg(feature = "cuda")]
mod tensors;

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtrMut};

use super::args::{self, ActArgs};
use super::module::File;
use super::pool::Output;
use super::{Queue, Rows, check_len, geometry};
use crate::ops::act::Activation;
use crate::{Error, Result};
#[cfg(feature = "cuda")]
pub(in crate::ops) use tensors::{biased, gated};

/// Writes `f(x + bias)` into `out`, `[rows, H]`, row-major, of the dtype of x. The bias is one row. One launch.
///
/// # Errors
/// On sizes or dtypes outside the contract, buffers of another GPU, and statuses of the driver.
pub fn bias_act<T: Output>(
    stream: &Arc<CudaStream>,
    x: &Rows<'_>,
    bias: Option<&Rows<'_>>,
    activation: Activation,
    out: &mut impl DevicePtrMut<T>,
) -> Result<()> {
    let op = "cuda::bias_act";
    if let Some(bias) = bias {
        check_like(op, "bias", bias, (1, x.width), x)?;
    }
    let kernels = ["act_bias_f32", "act_bias_f16", "act_bias_bf16"];
    // Every row has the one bias.
    let other = bias.map(|bias| (bias, 0));
    launch(Queue { op, stream }, kernels, x, other, code(activation), out)
}

/// Writes `silu(gate) * up` into `out`, `[rows, H]`, row-major, of the dtype of both. One launch.
///
/// # Errors
/// As [`bias_act`].
pub fn silu_mul<T: Output>(
    stream: &Arc<CudaStream>,
    gate: &Rows<'_>,
    up: &Rows<'_>,
    out: &mut impl DevicePtrMut<T>,
) -> Result<()> {
    let op = "cuda::silu_mul";
    check_like(op, "up", up, (gate.count, gate.width), gate)?;
    let kernels = ["act_gated_f32", "act_gated_f16", "act_gated_bf16"];
    let queue = Queue { op, stream };
    launch(queue, kernels, gate, Some((up, up.stride)), args::ACT_SILU, out)
}

fn code(activation: Activation) -> u32 {
    match activation {
        Activation::Identity => args::ACT_IDENTITY,
        Activation::GeluErf => args::ACT_GELU_ERF,
        Activation::GeluTanh => args::ACT_GELU_TANH,
        Activation::QuickGelu => args::ACT_QUICK_GELU,
        Activation::Relu => args::ACT_RELU,
        Activation::Silu => args::ACT_SILU,
        Activation::Tanh => args::ACT_TANH,
    }
}

/// An error unless `rows` have that shape and the dtype of x.
fn check_like(
    op: &'static str,
    what: &'static str,
    rows: &Rows<'_>,
    (count, width): (usize, usize),
    x: &Rows<'_>,
) -> Result<()> {
    if (rows.count, rows.width, rows.values.code()) == (count, width, x.values.code()) {
        return Ok(());
    }
    let shape = |count, width, name| format!("{count} rows of {width} {name}");
    let got = shape(rows.count, rows.width, rows.values.name());
    Err(Error::argument(op, what, got, shape(count, width, x.values.name())))
}

/// Launches one of `kernels` on x and the bias or up, which is given with the distance of its rows.
fn launch<T: Output>(
    queue: Queue<'_>,
    kernels: [&'static str; 3],
    x: &Rows<'_>,
    other: Option<(&Rows<'_>, usize)>,
    activation: u32,
    out: &mut impl DevicePtrMut<T>,
) -> Result<()> {
    if T::CODE != x.values.code() {
        let expected = format!("{}, as the input", x.values.name());
        return Err(Error::argument(queue.op, "out", "of another dtype", expected));
    }
    let values = x.count.saturating_mul(x.width);
    check_len(queue.op, "out", out, values)?;
    if values == 0 {
        return Ok(());
    }
    let bytes = x.values.bytes();
    let mut args = ActArgs {
        rows: x.count as u64,
        width: x.width as i64,
        x_stride: x.stride as i64,
        other_stride: other.map_or(0, |(_, stride)| stride as i64),
        activation,
        ..Default::default()
    };
    // Without a bias that starts again with each row, packed rows are one.
    let packed = x.stride == x.width && other.is_none_or(|(_, stride)| stride == x.width);
    if packed || x.count == 1 {
        args.rows = 1;
        args.width = values as i64;
    }
    args.vectors = (args.width as u64).div_ceil(geometry::vector(bytes));
    let (address, _x) = x.read(&queue, "x")?;
    let (to, _out) = queue.write("out", out)?;
    (args.x, args.out) = (address, to);
    let starts = |address, stride: i64| {
        geometry::aligned(address, if args.rows == 1 { 0 } else { stride as u64 }, bytes)
    };
    let mut aligned = starts(address, args.x_stride) && starts(to, args.width);
    let _other = match other {
        Some((rows, _)) => {
            let (address, guard) = rows.read(&queue, "other operand")?;
            aligned &= starts(address, args.other_stride);
            args.other = address;
            Some(guard)
        }
        None => None,
    };
    args.aligned = u32::from(aligned);
    let blocks = geometry::act(args.rows * args.vectors);
    let kernel = x.values.pick(kernels);
    // SAFETY: x and up hold `rows` rows of `width` values, the bias one, out rows * width; all are guarded here.
    unsafe { queue.launch(File::Act, kernel, blocks, args::ACT_THREADS, &args) }
}
