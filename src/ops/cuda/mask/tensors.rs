//! Compaction of candle tensors on a GPU.

use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::{DType, Device, Tensor};
use cudarc::driver::DeviceRepr;
use half::{bf16, f16};

use super::super::{Queue, Rows, tensor};
use super::{Gather, pack};
use crate::ops::cuda::pool::Output;
use crate::{Error, Result};

/// The packed rows of [`crate::ops::mask::pack`] on CUDA tensors, after its checks.
pub(in crate::ops) fn pack_tensors(
    op: &'static str,
    sources: &[&Tensor],
    rows: &[(usize, usize)],
    hidden: usize,
) -> Result<Tensor> {
    let Device::Cuda(device) = sources[0].device() else {
        return Err(Error::argument(op, "sources", "off the GPU", "on a GPU"));
    };
    let dense: Vec<Tensor> =
        sources.iter().map(|source| source.contiguous()).collect::<Result<_, _>>()?;
    let locked: Vec<_> = dense.iter().map(Tensor::storage_and_layout).collect();
    let mut views = vec![];
    for (storage, layout) in &locked {
        let candle_core::Storage::Cuda(storage) = &**storage else {
            return Err(Error::argument(op, "sources", "off the GPU", "on one GPU"));
        };
        views.push(Rows::of_storage(op, "sources", storage, layout)?);
    }
    let gather = Gather::new(device, &views, rows)?;
    let shape = (rows.len(), hidden);
    match sources[0].dtype() {
        DType::F32 => packed::<f32>(device, &gather, shape),
        DType::F16 => packed::<f16>(device, &gather, shape),
        _ => packed::<bf16>(device, &gather, shape),
    }
}

fn packed<T: Output + CudaDType + DeviceRepr>(
    device: &CudaDevice,
    gather: &Gather<'_>,
    shape: (usize, usize),
) -> Result<Tensor> {
    let stream = device.cuda_stream();
    let mut out = Queue { op: "mask::pack", stream: &stream }.alloc::<T>(shape.0 * shape.1)?;
    pack(&stream, gather, &mut out)?;
    Ok(tensor(out, device, shape))
}
