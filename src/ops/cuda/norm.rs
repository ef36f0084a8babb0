//! Layer and RMS normalisation on a GPU. Contract: [`crate::ops::norm`]; calls: [`super`].

#[cfg(feature = "cuda")]
mod tensors;

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtrMut};

use super::args::{self, NormArgs};
use super::module::File;
use super::pool::Output;
use super::{Queue, Rows, check_len, geometry};
use crate::ops::norm::NormKind;
use crate::ops::pool::check_eps;
use crate::{Error, Result};
#[cfg(feature = "cuda")]
pub(in crate::ops) use tensors::{Call, Operand, forward};

/// What is added to rows and how they are normalised. All operands are of the rows' dtype.
#[derive(Debug)]
pub struct Norm<'a> {
    /// Which norm.
    pub kind: NormKind,
    /// As many rows, as wide, as x.
    pub residual: Option<Rows<'a>>,
    /// One row: what each row is multiplied by.
    pub weight: Rows<'a>,
    /// One row, added after that.
    pub bias: Option<Rows<'a>>,
    /// One row, added before the normalisation.
    pub add_bias: Option<Rows<'a>>,
    /// Added to the mean square; finite, not negative.
    pub eps: f64,
}

/// Writes the norm of each row of `x` into `out`, and what was normalised, rounded, into `sum`: both `[rows, H]`, row-major, of
/// the dtype of x. One launch. A row's bits depend on that row, H and the dtype alone.
///
/// # Errors
/// On sizes, dtypes or an eps outside the contract, buffers of another GPU, and statuses of the driver.
pub fn norm<T: Output, B: DevicePtrMut<T>>(
    stream: &Arc<CudaStream>,
    x: &Rows<'_>,
    norm: &Norm<'_>,
    sum: Option<&mut B>,
    out: &mut B,
) -> Result<()> {
    let op = "cuda::norm";
    let queue = Queue { op, stream };
    check(op, x, norm)?;
    if T::CODE != x.values.code() {
        let expected = format!("{}, as x", x.values.name());
        return Err(Error::argument(op, "out", "of another dtype", expected));
    }
    let values = x.count.saturating_mul(x.width);
    check_len(op, "out", out, values)?;
    let (width, bytes) = (x.width as u64, x.values.bytes());
    let shape = geometry::Norm::new(x.count as u64, width, geometry::vector(bytes));

    let (address, _x) = x.read(&queue, "x")?;
    let (to, _out) = queue.write("out", out)?;
    let mut args = NormArgs {
        x: address,
        out: to,
        rows: x.count as i64,
        width: x.width as i64,
        x_stride: x.stride as i64,
        law: if norm.kind == NormKind::Layer { args::NORM_LAYER } else { args::NORM_RMS },
        eps: norm.eps as f32,
        ..Default::default()
    };
    let whole = width.is_multiple_of(geometry::vector(bytes));
    let mut aligned = whole && x.aligned(address) != 0 && geometry::aligned(to, width, bytes);
    let mut guards = vec![];
    let operands = [
        ("residual", norm.residual.as_ref(), &mut args.residual),
        ("weight", Some(&norm.weight), &mut args.weight),
        ("bias", norm.bias.as_ref(), &mut args.bias),
        ("add_bias", norm.add_bias.as_ref(), &mut args.add_bias),
    ];
    for (what, rows, field) in operands {
        let Some(rows) = rows else { continue };
        let (address, guard) = rows.read(&queue, what)?;
        *field = address;
        aligned &= rows.aligned(address) != 0;
        guards.push(guard);
    }
    args.residual_stride = norm.residual.as_ref().map_or(0, |rows| rows.stride as i64);
    if let Some(sum) = sum {
        check_len(op, "sum", sum, values)?;
        let (address, guard) = queue.write("sum", sum)?;
        args.sum = address;
        aligned &= geometry::aligned(address, width, bytes);
        guards.push(guard);
    }
    args.aligned = u32::from(aligned);
    let kernel = x.values.pick(match shape.warp {
        true => ["norm_warp_f32", "norm_warp_f16", "norm_warp_bf16"],
        false => ["norm_block_f32", "norm_block_f16", "norm_block_bf16"],
    });
    // SAFETY: x and the residual hold `rows` rows of `width` values, the parameters one, out and sum rows * width; all are
    // guarded here.
    unsafe { queue.launch(File::Norm, kernel, shape.blocks, shape.threads, &args) }
}

fn check(op: &'static str, x: &Rows<'_>, norm: &Norm<'_>) -> Result<()> {
    check_eps(op, norm.eps)?;
    if x.width == 0 {
        return Err(Error::argument(op, "H", 0, "at least 1"));
    }
    let operands = [
        ("residual", norm.residual.as_ref(), x.count),
        ("weight", Some(&norm.weight), 1),
        ("bias", norm.bias.as_ref(), 1),
        ("add_bias", norm.add_bias.as_ref(), 1),
    ];
    for (what, rows, count) in operands {
        let Some(rows) = rows else { continue };
        if (rows.count, rows.width, rows.values.code()) != (count, x.width, x.values.code()) {
            let shape = |count, width, name| format!("{count} rows of {width} {name}");
            let got = shape(rows.count, rows.width, rows.values.name());
            return Err(Error::argument(op, what, got, shape(count, x.width, x.values.name())));
        }
    }
    Ok(())
}
