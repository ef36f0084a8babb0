//! Norms of candle tensors on a GPU.

use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaStorage, Layout};
use half::{bf16, f16};

use super::super::{Queue, Rows, Values};
use super::{Norm, norm};
use crate::Result;
use crate::ops::cuda::pool::Output;
use crate::ops::norm::NormKind;

/// A tensor's storage with its layout.
pub(in crate::ops) type Operand<'a> = (&'a CudaStorage, &'a Layout);

/// A call of the candle op.
pub(in crate::ops) struct Call<'a> {
    pub(in crate::ops) kind: NormKind,
    pub(in crate::ops) residual: Option<Operand<'a>>,
    pub(in crate::ops) weight: Operand<'a>,
    pub(in crate::ops) bias: Option<Operand<'a>>,
    pub(in crate::ops) add_bias: Option<Operand<'a>>,
    pub(in crate::ops) eps: f32,
    /// Whether the sum is wanted, in front of the norm.
    pub(in crate::ops) both: bool,
}

fn rows<'a>(what: &'static str, (storage, layout): Operand<'a>) -> Result<Rows<'a>> {
    Rows::of_storage("norm", what, storage, layout)
}

/// The forward pass of the candle op: the norm of x, behind what was normalised if that is wanted.
pub(in crate::ops) fn forward(x: Operand<'_>, call: &Call<'_>) -> Result<CudaStorage> {
    let maybe = |what, operand: Option<_>| operand.map(|operand| rows(what, operand)).transpose();
    let norm = Norm {
        kind: call.kind,
        residual: maybe("residual", call.residual)?,
        weight: rows("weight", call.weight)?,
        bias: maybe("bias", call.bias)?,
        add_bias: maybe("before.bias", call.add_bias)?,
        eps: f64::from(call.eps),
    };
    let x_rows = rows("x", x)?;
    match x_rows.values {
        Values::F32(_) => normed::<f32>(x.0, &x_rows, &norm, call.both),
        Values::F16(_) => normed::<f16>(x.0, &x_rows, &norm, call.both),
        Values::BF16(_) => normed::<bf16>(x.0, &x_rows, &norm, call.both),
    }
}

fn normed<T: Output + CudaDType>(
    storage: &CudaStorage,
    x: &Rows<'_>,
    rule: &Norm<'_>,
    both: bool,
) -> Result<CudaStorage> {
    let stream = storage.device.cuda_stream();
    let values = x.count * x.width;
    let queue = Queue { op: "norm", stream: &stream };
    let mut buffer = queue.alloc::<T>(if both { 2 * values } else { values })?;
    if both {
        let (mut sum, mut out) = buffer.split_at_mut(values);
        norm(&stream, x, rule, Some(&mut sum), &mut out)?;
    } else {
        norm(&stream, x, rule, None, &mut buffer)?;
    }
    Ok(CudaStorage::wrap_cuda_slice(buffer, storage.device.clone()))
}
