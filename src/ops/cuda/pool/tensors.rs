//! Pooling of candle tensors that live on a GPU.

use std::sync::Arc;

use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorageSlice};
use candle_core::{CudaStorage, DType, Device, Layout, Shape, Storage, Tensor};
use cudarc::driver::{CudaSlice, CudaStream, CudaView};
use half::{bf16, f16};

use super::super::{Queue, Rows, Values, on_gpu, tensor, to_host, with_rows};
use super::{Mask, Norm, Output, Places, pool as launch, pool_grad};
use crate::ops::pool::{self, FinalNorm, Options};
use crate::{Error, Result};

/// The places of a checked call on a CUDA tensor.
pub(in crate::ops) fn places(
    op: &'static str,
    states: &Tensor,
    rows: pool::Rows<'_>,
) -> Result<Places> {
    match rows {
        pool::Rows::Packed { cu_seqlens } => {
            let Device::Cuda(device) = states.device() else {
                return Err(Error::argument(
                    op,
                    "states",
                    format!("on {:?}", states.device().location()),
                    "on a GPU",
                ));
            };
            Places::packed(device, cu_seqlens, states.dim(0)?)
        }
        pool::Rows::Padded { mask } => of_mask(op, mask),
    }
}

/// Places from a candle mask; a strided one is copied first.
fn of_mask(op: &'static str, mask: &Tensor) -> Result<Places> {
    let (batch, width) = mask.dims2()?;
    let mask = mask.contiguous()?;
    let (storage, layout) = mask.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(Error::argument(
            op,
            "mask",
            format!("on {:?}", mask.device().location()),
            "on the GPU of the states",
        ));
    };
    let range = layout.start_offset()..layout.start_offset() + batch * width;
    let marks = match &storage.slice {
        CudaStorageSlice::U8(v) => Mask::U8(v.slice(range)),
        CudaStorageSlice::U32(v) => Mask::U32(v.slice(range)),
        CudaStorageSlice::I64(v) => Mask::I64(v.slice(range)),
        _ => {
            return Err(Error::argument(
                op,
                "mask",
                format!("{:?}", mask.dtype()),
                "u8, u32 or i64",
            ));
        }
    };
    Places::padded(&storage.device.cuda_stream(), &marks, batch, width)
}

/// Runs `f` with the device's form of a norm.
fn with_norm<R>(
    op: &'static str,
    norm: Option<&FinalNorm<'_>>,
    f: impl FnOnce(Option<&Norm<'_>>) -> Result<R>,
) -> Result<R> {
    let Some(norm) = norm else { return f(None) };
    let vector =
        |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.to_dtype(DType::F32)?.contiguous()?) };
    let weight = vector(norm.weight)?;
    let bias = norm.bias.map(vector).transpose()?;
    let residual = norm.residual.map(Tensor::contiguous).transpose()?;
    let (weight_storage, weight_layout) = weight.storage_and_layout();
    let bias = bias.as_ref().map(Tensor::storage_and_layout);
    let residual = residual.as_ref().map(Tensor::storage_and_layout);
    let residual = match &residual {
        Some((storage, layout)) => {
            Some(Rows::of_storage(op, "residual", on_gpu(op, "residual", storage)?, layout)?)
        }
        None => None,
    };
    let bias = match &bias {
        Some((storage, layout)) => Some(f32_view(op, "norm bias", storage, layout)?),
        None => None,
    };
    let weight = f32_view(op, "norm weight", &weight_storage, weight_layout)?;
    f(Some(&Norm { residual, weight, bias, eps: norm.eps }))
}

fn f32_view<'a>(
    op: &'static str,
    what: &'static str,
    storage: &'a Storage,
    layout: &Layout,
) -> Result<CudaView<'a, f32>> {
    let values = on_gpu(op, what, storage)?.as_cuda_slice::<f32>()?;
    Ok(values.slice(layout.start_offset()..layout.start_offset() + layout.shape().elem_count()))
}

/// [`crate::ops::pool::pool`] on CUDA tensors, after its checks: `[B, D]`, untracked.
pub(in crate::ops) fn on_tensor(
    op: &'static str,
    states: &Tensor,
    places: &Places,
    options: &Options,
    dim: usize,
    norm: Option<&FinalNorm<'_>>,
) -> Result<Tensor> {
    with_norm(op, norm, |norm| {
        with_rows(op, "states", states, |rows, device| {
            let stream = device.cuda_stream();
            let shape = (places.batch, dim);
            Ok(match options.dtype {
                DType::F16 => {
                    tensor(pooled::<f16>(&stream, rows, places, options, dim, norm)?, device, shape)
                }
                DType::BF16 => tensor(
                    pooled::<bf16>(&stream, rows, places, options, dim, norm)?,
                    device,
                    shape,
                ),
                _ => {
                    tensor(pooled::<f32>(&stream, rows, places, options, dim, norm)?, device, shape)
                }
            })
        })
    })
}

fn pooled<O: Output>(
    stream: &Arc<CudaStream>,
    rows: &Rows<'_>,
    places: &Places,
    options: &Options,
    dim: usize,
    norm: Option<&Norm<'_>>,
) -> Result<CudaSlice<O>> {
    let mut out = Queue { op: "cuda::pool", stream }.alloc::<O>(places.batch * dim)?;
    launch(stream, rows, places, options, norm, &mut out)?;
    Ok(out)
}

/// [`crate::ops::pool::pool_i8`] on CUDA tensors, after its checks. Waits for the codes.
pub(in crate::ops) fn codes(
    op: &'static str,
    states: &Tensor,
    places: &Places,
    options: &Options,
    dim: usize,
    norm: Option<&FinalNorm<'_>>,
) -> Result<Vec<i8>> {
    with_norm(op, norm, |norm| {
        with_rows(op, "states", states, |rows, device| {
            let codes = pooled::<i8>(&device.cuda_stream(), rows, places, options, dim, norm)?;
            to_host(op, device, &codes, places.batch * dim)
        })
    })
}

/// The forward pass of the candle op.
pub(in crate::ops) fn forward(
    storage: &CudaStorage,
    layout: &Layout,
    places: &Places,
    options: &Options,
    dim: usize,
) -> Result<(CudaStorage, Shape)> {
    let rows = Rows::of_storage("pool", "states", storage, layout)?;
    let (device, shape) = (storage.device.clone(), Shape::from((places.batch, dim)));
    let stream = device.cuda_stream();
    let storage = match options.dtype {
        DType::F16 => wrap(pooled::<f16>(&stream, &rows, places, options, dim, None)?, device),
        DType::BF16 => wrap(pooled::<bf16>(&stream, &rows, places, options, dim, None)?, device),
        _ => wrap(pooled::<f32>(&stream, &rows, places, options, dim, None)?, device),
    };
    Ok((storage, shape))
}

/// The backward pass of the candle op: the gradient of the states, contiguous.
pub(in crate::ops) fn backward(
    states: (&CudaStorage, &Layout),
    grad: (&CudaStorage, &Layout),
    places: &Places,
    options: &Options,
) -> Result<(CudaStorage, Shape)> {
    let op = "pool backward";
    let rows = Rows::of_storage(op, "states", states.0, states.1)?;
    let Some((start, end)) = grad.1.contiguous_offsets() else {
        return Err(Error::argument(
            op,
            "gradient",
            format!("strided {:?}", grad.1),
            "a contiguous tensor",
        ));
    };
    let grad = grad.0.as_cuda_slice::<f32>()?.slice(start..end);
    let device = states.0.device.clone();
    let (stream, len) = (device.cuda_stream(), rows.count * rows.width);
    let queue = Queue { op, stream: &stream };
    macro_rules! run {
        ($ty:ty) => {{
            let mut out = queue.alloc::<$ty>(len)?;
            pool_grad(&stream, &rows, places, options, &grad, &mut out)?;
            wrap(out, device)
        }};
    }
    let storage = match rows.values {
        Values::F32(_) => run!(f32),
        Values::F16(_) => run!(f16),
        Values::BF16(_) => run!(bf16),
    };
    Ok((storage, states.1.shape().clone()))
}

fn wrap<T: CudaDType>(buffer: CudaSlice<T>, device: CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(buffer, device)
}
