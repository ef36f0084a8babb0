//! candle tensors as buffers of this module, and back.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Layout, Shape, Storage, Tensor};
use cudarc::driver::{CudaSlice, DeviceRepr};

use super::{Rows, Values, driver_error, refuse_capture};
use crate::ops::host::{even_rows, rows};
use crate::{Error, Result};

impl<'a> Rows<'a> {
    /// A storage as rows along the last axis; an error if its layout has no single distance between them.
    pub(in crate::ops) fn of_storage(
        op: &'static str,
        what: &'static str,
        storage: &'a CudaStorage,
        layout: &Layout,
    ) -> Result<Self> {
        let uneven =
            || Error::argument(op, what, format!("strided {layout:?}"), "evenly spaced rows");
        let (count, width, stride) = even_rows(layout).ok_or_else(uneven)?;
        let extent = if count == 0 { 0 } else { (count - 1) * stride + width };
        // A view of nothing may lie past the end.
        let start = if extent == 0 { 0 } else { layout.start_offset() };
        let range = start..start + extent;
        let values: Values<'a> = match &storage.slice {
            CudaStorageSlice::F32(v) => v.slice(range).into(),
            CudaStorageSlice::F16(v) => v.slice(range).into(),
            CudaStorageSlice::BF16(v) => v.slice(range).into(),
            _ => {
                return Err(Error::argument(
                    op,
                    what,
                    format!("{:?}", storage.dtype()),
                    "f32, f16 or bf16",
                ));
            }
        };
        Rows::strided(values, count, width, stride)
    }
}

/// The storage of an operand that a candle op holds beside its inputs.
pub(in crate::ops) fn on_gpu<'a>(
    op: &'static str,
    what: &'static str,
    storage: &'a Storage,
) -> Result<&'a CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => Err(Error::argument(op, what, "off the GPU", "on the GPU of the first tensor")),
    }
}

/// Runs `f` on the rows of a CUDA tensor along its last axis. A layout without even rows is copied first.
pub(in crate::ops) fn with_rows<R>(
    op: &'static str,
    what: &'static str,
    tensor: &Tensor,
    f: impl FnOnce(&Rows<'_>, &CudaDevice) -> Result<R>,
) -> Result<R> {
    let tensor = rows(tensor)?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => {
            f(&Rows::of_storage(op, what, storage, layout)?, storage.device())
        }
        _ => Err(Error::argument(
            op,
            what,
            format!("on {:?}", tensor.device().location()),
            "on a GPU",
        )),
    }
}

/// A tensor that owns a buffer.
pub(in crate::ops) fn tensor<T: CudaDType>(
    buffer: CudaSlice<T>,
    device: &CudaDevice,
    shape: impl Into<Shape>,
) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(buffer, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// Waits for the device and copies the first `len` elements to the host: for results that the caller gets as numbers.
pub(in crate::ops) fn to_host<T: DeviceRepr>(
    op: &'static str,
    device: &CudaDevice,
    buffer: &CudaSlice<T>,
    len: usize,
) -> Result<Vec<T>> {
    if len == 0 {
        return Ok(vec![]);
    }
    let stream = device.cuda_stream();
    refuse_capture(op, "results are read to the host", &stream)?;
    let values =
        stream.clone_dtoh(&buffer.slice(..len)).map_err(driver_error(op, "reading results"))?;
    // The copy to pageable memory may return before it is done.
    stream.synchronize().map_err(driver_error(op, "waiting for results"))?;
    Ok(values)
}
