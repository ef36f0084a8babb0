//! Pooling on a GPU. Contract: [`crate::ops::pool`]; calls: [`super`].

use std::sync::Arc;

use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::{CudaStorage, DType, Layout, Shape, Storage, Tensor};
use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr, ValidAsZeroBits,
};
use half::{bf16, f16};

use super::args::{self, PoolArgs, PoolGradArgs, PoolMaskArgs, PoolRows};
use super::module::File;
use super::{Queue, Rows, Upload, check_len, geometry, tensor, to_host, with_rows};
use crate::ops::pool::{FinalNorm, Mode, Options, check_dim, check_eps, check_offsets};
use crate::{Error, Result};

/// Which rows of a buffer belong to which sequence, on a device.
#[derive(Debug)]
pub struct Places {
    place: Place,
    batch: usize,
    /// Rows of the states.
    rows: usize,
    /// Tokens of the longest sequence, at most.
    longest: usize,
}

#[derive(Debug)]
enum Place {
    Packed { cu: CudaSlice<u32> },
    Padded { order: CudaSlice<u32>, lengths: CudaSlice<u32>, width: usize },
}

/// A padding mask on a device: nonzero = token.
#[derive(Debug)]
pub enum Mask<'a> {
    /// Bytes.
    U8(CudaView<'a, u8>),
    /// 32-bit integers.
    U32(CudaView<'a, u32>),
    /// 64-bit integers.
    I64(CudaView<'a, i64>),
}

impl Places {
    /// `tokens` packed rows: sequence b owns rows `cu_seqlens[b]..cu_seqlens[b + 1]`. Uploads the offsets.
    ///
    /// # Errors
    /// On offsets that do not go from 0 to `tokens` without a fall, and statuses of the driver.
    pub fn packed(to: &impl Upload, cu_seqlens: &[u32], tokens: usize) -> Result<Self> {
        let op = "cuda::pool::Places::packed";
        check_offsets(op, cu_seqlens, tokens)?;
        Ok(Self {
            place: Place::Packed { cu: to.upload(op, cu_seqlens)? },
            batch: cu_seqlens.len() - 1,
            rows: tokens,
            longest: cu_seqlens
                .windows(2)
                .map(|pair| (pair[1] - pair[0]) as usize)
                .max()
                .unwrap_or(0),
        })
    }

    /// `[batch, width]` padded rows, `mask` row-major. Launches a kernel that numbers the tokens; nothing is read to the host.
    ///
    /// # Errors
    /// On a mask of another length, `batch * width` of 2^32 or more, and statuses of the driver.
    pub fn padded(
        stream: &Arc<CudaStream>,
        mask: &Mask<'_>,
        batch: usize,
        width: usize,
    ) -> Result<Self> {
        let op = "cuda::pool::Places::padded";
        let queue = Queue { op, stream };
        let rows =
            batch.checked_mul(width).filter(|rows| u32::try_from(*rows).is_ok()).ok_or_else(
                || Error::argument(op, "B * T", format!("{batch} * {width}"), "below 2^32"),
            )?;
        let mut order = queue.alloc::<u32>(rows)?;
        let mut lengths = queue.zeros::<u32>(batch)?;
        {
            let (address, bytes, _mask) = match mask {
                Mask::U8(v) => {
                    check_len(op, "mask", v, rows)?;
                    let (address, guard) = queue.read("mask", v)?;
                    (address, 1, guard)
                }
                Mask::U32(v) => {
                    check_len(op, "mask", v, rows)?;
                    let (address, guard) = queue.read("mask", v)?;
                    (address, 4, guard)
                }
                Mask::I64(v) => {
                    check_len(op, "mask", v, rows)?;
                    let (address, guard) = queue.read("mask", v)?;
                    (address, 8, guard)
                }
            };
            let (to_order, _order) = queue.write("places", &mut order)?;
            let (to_lengths, _lengths) = queue.write("lengths", &mut lengths)?;
            let args = PoolMaskArgs {
                mask: address,
                order: to_order,
                lengths: to_lengths,
                width: width as u64,
                mask_bytes: bytes,
                reserved: 0,
            };
            // SAFETY: mask and places hold batch * width elements, lengths batch; all are guarded here.
            unsafe {
                queue.launch(
                    File::Pool,
                    "pool_places",
                    batch as u64,
                    args::POOL_MASK_THREADS,
                    &args,
                )?
            };
        }
        Ok(Self { place: Place::Padded { order, lengths, width }, batch, rows, longest: width })
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The same for a candle mask; a strided one is copied first.
    fn of_mask(op: &'static str, mask: &Tensor) -> Result<Self> {
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
        Self::padded(&storage.device.cuda_stream(), &marks, batch, width)
    }

    fn read<'b>(&'b self, queue: &'b Queue<'_>) -> Result<(PoolRows, impl Sized + use<'b>)> {
        match &self.place {
            Place::Packed { cu } => {
                let (cu, guard) = queue.read("places", cu)?;
                Ok((PoolRows { cu, ..Default::default() }, (guard, None)))
            }
            Place::Padded { order, lengths, width } => {
                let (order, guard) = queue.read("places", order)?;
                let (lengths, also) = queue.read("places", lengths)?;
                Ok((PoolRows { cu: 0, lengths, order, width: *width as u64 }, (guard, Some(also))))
            }
        }
    }
}

/// Residual add and LayerNorm before pooling.
#[derive(Debug)]
pub struct Norm<'a> {
    /// As many rows, as wide, as the states.
    pub residual: Option<Rows<'a>>,
    /// `[H]`.
    pub weight: CudaView<'a, f32>,
    /// `[H]`.
    pub bias: Option<CudaView<'a, f32>>,
    /// Added to the variance; finite, not negative.
    pub eps: f64,
}

/// An element of the pooled vectors: f32, f16, bf16, or i8 (value = code / 127, -128 for NaN).
pub trait Output: DeviceRepr + ValidAsZeroBits + sealed::Sealed {
    /// The kernels' code of the type.
    #[doc(hidden)]
    const CODE: u32;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! output {
    ($($ty:ty => $code:ident),*) => {
        $(impl sealed::Sealed for $ty {}
        impl Output for $ty {
            const CODE: u32 = args::$code;
        })*
    };
}
output!(f32 => DTYPE_F32, f16 => DTYPE_F16, bf16 => DTYPE_BF16, i8 => DTYPE_I8);

fn mode_code(mode: Mode) -> u32 {
    match mode {
        Mode::Cls => args::POOL_CLS,
        Mode::Mean => args::POOL_MEAN,
        Mode::Max => args::POOL_MAX,
        Mode::Last => args::POOL_LAST,
        Mode::WeightedMean => args::POOL_WEIGHTED,
        Mode::MeanSqrtLen => args::POOL_SQRT,
    }
}

fn check_places(
    op: &'static str,
    states: &Rows<'_>,
    places: &Places,
    dim: Option<usize>,
) -> Result<usize> {
    if states.count != places.rows || states.width == 0 {
        let got = format!("{} rows of {}", states.count, states.width);
        return Err(Error::argument(
            op,
            "states",
            got,
            format!("{} rows of at least 1", places.rows),
        ));
    }
    if u32::try_from(places.batch).is_err() {
        return Err(Error::argument(op, "sequences", places.batch, "below 2^32"));
    }
    check_dim(op, dim, states.width)
}

/// Pools the rows of `states` into `out` `[B, D]`, row-major. One launch; `options.dtype` is not looked at, the type of `out`
/// counts. i8 needs `options.normalize`.
///
/// # Errors
/// On sizes or options outside the contract, buffers of another GPU, and statuses of the driver.
pub fn pool<O: Output>(
    stream: &Arc<CudaStream>,
    states: &Rows<'_>,
    places: &Places,
    options: &Options,
    norm: Option<&Norm<'_>>,
    out: &mut impl DevicePtrMut<O>,
) -> Result<()> {
    let op = "cuda::pool";
    let queue = Queue { op, stream };
    let dim = check_places(op, states, places, options.dim)?;
    check_len(op, "out", out, places.batch * dim)?;
    if O::CODE == args::DTYPE_I8 && !options.normalize {
        return Err(Error::argument(
            op,
            "normalize",
            false,
            "true: the codes' scale is fixed at 1/127",
        ));
    }
    if let Some(norm) = norm {
        check_norm(op, states, norm)?;
    }
    if places.batch == 0 {
        return Ok(());
    }
    let counted = if matches!(options.mode, Mode::Cls | Mode::Last) {
        places.longest.min(1)
    } else {
        places.longest
    };
    let vector = geometry::vector(states.values.bytes());
    let (batch, rows) = (places.batch as u64, places.rows as u64);
    let shape = geometry::Pool::new(
        batch,
        counted as u64,
        rows,
        dim as u64,
        vector,
        queue.multiprocessors()?,
    );
    let mut parts = workspace(&queue, shape.parts as usize * dim)?;
    let mut pooled = workspace(&queue, shape.pooled as usize * dim)?;
    let mut tickets = if shape.groups > 1 { Some(queue.zeros::<u32>(places.batch)?) } else { None };

    let (address, _states) = states.read(&queue, "states")?;
    let (where_, _places) = places.read(&queue)?;
    let (to, _out) = queue.write("out", out)?;
    let mut args = PoolArgs {
        states: address,
        rows: where_,
        out: to,
        hidden: states.width as i64,
        dim: dim as i64,
        state_stride: states.stride as i64,
        batch: places.batch as u32,
        mode: mode_code(options.mode),
        out_dtype: O::CODE,
        normalize: u32::from(options.normalize),
        aligned: states.aligned(address),
        columns: shape.columns,
        parts_per_block: shape.parts_per_block,
        groups: shape.groups as u32,
        ..Default::default()
    };
    let mut guards = vec![];
    for (buffer, field) in [(&mut parts, &mut args.parts), (&mut pooled, &mut args.pooled)] {
        let Some(buffer) = buffer else { continue };
        let (address, guard) = queue.write("workspace", buffer)?;
        *field = address;
        guards.push(guard);
    }
    if let Some(tickets) = &mut tickets {
        let (address, guard) = queue.write("workspace", tickets)?;
        args.tickets = address;
        guards.push(guard);
    }
    if let Some(norm) = norm {
        let (weight, guard) = queue.read("norm weight", &norm.weight)?;
        args.weight = weight;
        guards.push(guard);
        args.eps = norm.eps as f32;
        if let Some(bias) = &norm.bias {
            let (bias, guard) = queue.read("norm bias", bias)?;
            args.bias = bias;
            guards.push(guard);
        }
        if let Some(residual) = &norm.residual {
            let (address, guard) = residual.read(&queue, "residual")?;
            guards.push(guard);
            args.residual = address;
            args.residual_dtype = residual.values.code();
            args.residual_stride = residual.stride as i64;
            args.residual_aligned = residual.aligned(address);
        }
    }
    let kernel = states.values.pick(["pool_f32", "pool_f16", "pool_bf16"]);
    // SAFETY: states and residual hold the rows that `places` names, which its constructors checked or computed; weight
    // and bias hold `hidden` values, `out` batch * dim, the workspace what the geometry says. All are guarded here.
    unsafe { queue.launch(File::Pool, kernel, batch * shape.groups, shape.threads(), &args) }
}

fn workspace(queue: &Queue<'_>, len: usize) -> Result<Option<CudaSlice<f32>>> {
    if len == 0 { Ok(None) } else { queue.alloc(len).map(Some) }
}

fn check_norm(op: &'static str, states: &Rows<'_>, norm: &Norm<'_>) -> Result<()> {
    check_eps(op, norm.eps)?;
    check_len(op, "norm weight", &norm.weight, states.width)?;
    if let Some(bias) = &norm.bias {
        check_len(op, "norm bias", bias, states.width)?;
    }
    match &norm.residual {
        Some(residual) if (residual.count, residual.width) != (states.count, states.width) => {
            let got = format!("{} rows of {}", residual.count, residual.width);
            Err(Error::argument(
                op,
                "residual",
                got,
                format!("{} rows of {}", states.count, states.width),
            ))
        }
        _ => Ok(()),
    }
}

/// Writes the gradient of the states into `out`, packed rows of their dtype: zeros where nothing flows. `grad` is that of the
/// pooled vectors, `[B, D]`. Modes that need the pooled vectors (max, and any with normalisation) compute them again.
///
/// # Errors
/// As [`pool`].
pub fn pool_grad<T: Output>(
    stream: &Arc<CudaStream>,
    states: &Rows<'_>,
    places: &Places,
    options: &Options,
    grad: &impl DevicePtr<f32>,
    out: &mut impl DevicePtrMut<T>,
) -> Result<()> {
    let op = "cuda::pool backward";
    let queue = Queue { op, stream };
    let dim = check_places(op, states, places, options.dim)?;
    check_len(op, "gradient", grad, places.batch * dim)?;
    check_len(op, "out", out, states.count * states.width)?;
    if T::CODE != states.values.code() {
        return Err(Error::argument(
            op,
            "out",
            "of another dtype",
            format!("{}, as the states", states.values.name()),
        ));
    }
    queue.clear(out)?;
    let max = options.mode == Mode::Max;
    let pooled = if max || options.normalize {
        let mut pooled = queue.alloc::<f32>(places.batch * dim)?;
        let plain = Options { normalize: false, ..*options };
        pool(stream, states, places, &plain, None, &mut pooled)?;
        Some(pooled)
    } else {
        None
    };
    let counted = if matches!(options.mode, Mode::Cls | Mode::Last) { 1 } else { places.longest };
    let chunks = geometry::pool_grad_chunks(max, counted as u64, dim as u64);
    let (address, _states) = states.read(&queue, "states")?;
    let (where_, _places) = places.read(&queue)?;
    let (grad, _grad) = queue.read("gradient", grad)?;
    let (to, _out) = queue.write("out", out)?;
    let mut args = PoolGradArgs {
        states: address,
        rows: where_,
        grad,
        pooled: 0,
        out: to,
        hidden: states.width as i64,
        dim: dim as i64,
        state_stride: states.stride as i64,
        batch: places.batch as u32,
        mode: mode_code(options.mode),
        normalize: u32::from(options.normalize),
        chunks: chunks as u32,
    };
    let _pooled = match &pooled {
        Some(pooled) => {
            let (address, guard) = queue.read("workspace", pooled)?;
            args.pooled = address;
            Some(guard)
        }
        None => None,
    };
    let kernel = states.values.pick(["pool_grad_f32", "pool_grad_f16", "pool_grad_bf16"]);
    // SAFETY: as in `pool`; `grad` and `pooled` hold batch * dim values, `out` all rows. All are guarded here.
    unsafe {
        queue.launch(
            File::Pool,
            kernel,
            places.batch as u64 * chunks,
            args::POOL_GRAD_THREADS,
            &args,
        )
    }
}

// ---- candle ----

/// The places of a checked call on a CUDA tensor.
pub(in crate::ops) fn places(
    op: &'static str,
    states: &Tensor,
    rows: crate::ops::pool::Rows<'_>,
) -> Result<Places> {
    match rows {
        crate::ops::pool::Rows::Packed { cu_seqlens } => {
            let candle_core::Device::Cuda(device) = states.device() else {
                return Err(Error::argument(
                    op,
                    "states",
                    format!("on {:?}", states.device().location()),
                    "on a GPU",
                ));
            };
            Places::packed(device, cu_seqlens, states.dim(0)?)
        }
        crate::ops::pool::Rows::Padded { mask } => Places::of_mask(op, mask),
    }
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
            Rows::of_storage(op, "residual", cuda(op, "residual", storage)?, layout)?
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

fn cuda<'a>(op: &'static str, what: &'static str, storage: &'a Storage) -> Result<&'a CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => Err(Error::argument(op, what, "off the GPU", "on the GPU of the states")),
    }
}

fn f32_view<'a>(
    op: &'static str,
    what: &'static str,
    storage: &'a Storage,
    layout: &Layout,
) -> Result<CudaView<'a, f32>> {
    let values = cuda(op, what, storage)?.as_cuda_slice::<f32>()?;
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
    pool(stream, rows, places, options, norm, &mut out)?;
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
    let rows = even_rows("pool", "states", storage, layout)?;
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
    let rows = even_rows(op, "states", states.0, states.1)?;
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
        super::Values::F32(_) => run!(f32),
        super::Values::F16(_) => run!(f16),
        super::Values::BF16(_) => run!(bf16),
    };
    Ok((storage, states.1.shape().clone()))
}

fn even_rows<'a>(
    op: &'static str,
    what: &'static str,
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<Rows<'a>> {
    Rows::of_storage(op, what, storage, layout)?.ok_or_else(|| {
        Error::argument(op, what, format!("strided {layout:?}"), "evenly spaced rows")
    })
}

fn wrap<T: CudaDType>(
    buffer: CudaSlice<T>,
    device: candle_core::cuda_backend::CudaDevice,
) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(buffer, device)
}
