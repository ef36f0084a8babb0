//! Rotary embedding of candle tensors on a GPU.

use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaStorage, Layout};
use half::{bf16, f16};

use super::super::{Queue, Rows, Values};
use super::rotate;
use crate::ops::cuda::pool::Output;
use crate::ops::host::flat_rows;
use crate::{Error, Result};

/// A tensor's storage with its layout.
type Operand<'a> = (&'a CudaStorage, &'a Layout);

/// The forward pass of the candle op: x `[n, heads, D]`, its rows any distance apart; tables `[n, D / 2]` contiguous.
pub(in crate::ops) fn forward(
    x: Operand<'_>,
    cos: Operand<'_>,
    sin: Operand<'_>,
) -> Result<CudaStorage> {
    let (storage, layout) = x;
    let (&[_, heads, _], Some(flat)) = (layout.dims(), flat_rows(layout)) else {
        return Err(Error::argument("rotate", "x", format!("{layout:?}"), "[n, heads, D]"));
    };
    let x_rows = Rows::of_storage("rotate", "x", storage, &flat)?;
    match x_rows.values {
        Values::F32(_) => rotated::<f32>(storage, &x_rows, heads, cos, sin),
        Values::F16(_) => rotated::<f16>(storage, &x_rows, heads, cos, sin),
        Values::BF16(_) => rotated::<bf16>(storage, &x_rows, heads, cos, sin),
    }
}

fn rotated<T: Output + CudaDType>(
    storage: &CudaStorage,
    x: &Rows<'_>,
    heads: usize,
    cos: Operand<'_>,
    sin: Operand<'_>,
) -> Result<CudaStorage> {
    let stream = storage.device.cuda_stream();
    let mut out = Queue { op: "rotate", stream: &stream }.alloc::<T>(x.count * x.width)?;
    if x.count * x.width > 0 {
        let (cos_values, sin_values) = (cos.0.as_cuda_slice()?, sin.0.as_cuda_slice()?);
        let cos = cos_values.slice(cos.1.start_offset()..);
        let sin = sin_values.slice(sin.1.start_offset()..);
        rotate(&stream, x, heads, &cos, &sin, &mut out)?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, storage.device.clone()))
}
