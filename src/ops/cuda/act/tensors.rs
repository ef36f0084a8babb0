//! Activations of candle tensors on a GPU.

use std::sync::Arc;

use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaStorage, Layout};
use cudarc::driver::CudaStream;
use half::{bf16, f16};

use super::super::{Queue, Rows, Values};
use super::{bias_act, silu_mul};
use crate::Result;
use crate::ops::act::Activation;
use crate::ops::cuda::pool::Output;

/// A tensor's storage with its layout.
type Operand<'a> = (&'a CudaStorage, &'a Layout);

/// The forward pass of the candle op `bias_act`.
pub(in crate::ops) fn biased(
    (storage, layout): Operand<'_>,
    bias: Option<Operand<'_>>,
    activation: Activation,
) -> Result<CudaStorage> {
    let op = "bias_act";
    let x = Rows::of_storage(op, "x", storage, layout)?;
    let bias = bias.map(|(s, layout)| Rows::of_storage(op, "bias", s, layout)).transpose()?;
    macro_rules! run {
        ($ty:ty) => {
            made::<$ty>(storage, &x, |stream, out| {
                bias_act(stream, &x, bias.as_ref(), activation, out)
            })
        };
    }
    match x.values {
        Values::F32(_) => run!(f32),
        Values::F16(_) => run!(f16),
        Values::BF16(_) => run!(bf16),
    }
}

/// The forward pass of the candle op `silu_mul`.
pub(in crate::ops) fn gated(
    (storage, layout): Operand<'_>,
    up: Operand<'_>,
) -> Result<CudaStorage> {
    let op = "silu_mul";
    let gate = Rows::of_storage(op, "gate", storage, layout)?;
    let up = Rows::of_storage(op, "up", up.0, up.1)?;
    macro_rules! run {
        ($ty:ty) => {
            made::<$ty>(storage, &gate, |stream, out| silu_mul(stream, &gate, &up, out))
        };
    }
    match gate.values {
        Values::F32(_) => run!(f32),
        Values::F16(_) => run!(f16),
        Values::BF16(_) => run!(bf16),
    }
}

/// A storage as long as all of x, filled by `f`.
fn made<T: Output + CudaDType>(
    storage: &CudaStorage,
    x: &Rows<'_>,
    f: impl FnOnce(&Arc<CudaStream>, &mut cudarc::driver::CudaSlice<T>) -> Result<()>,
) -> Result<CudaStorage> {
    let stream = storage.device.cuda_stream();
    let mut out = Queue { op: "act", stream: &stream }.alloc::<T>(x.count * x.width)?;
    f(&stream, &mut out)?;
    Ok(CudaStorage::wrap_cuda_slice(out, storage.device.clone()))
}
