//! Pooling on a GPU. Contract: [`crate::ops::pool`]; calls: [`super`].

#[cfg(feature = "cuda")]
mod tensors;

use std::sync::Arc;

use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop,
    ValidAsZeroBits,
};
use half::{bf16, f16};

use super::args::{self, PoolArgs, PoolGradArgs, PoolMaskArgs, PoolRows};
use super::module::File;
use super::{Queue, Rows, Upload, check_len, geometry};
use crate::ops::host::check_offsets;
use crate::ops::pool::{Mode, Options, check_dim, check_eps};
use crate::{Error, Result};
#[cfg(feature = "cuda")]
pub(in crate::ops) use tensors::{backward, codes, forward, on_tensor, places};

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
        check_offsets(op, "cu_seqlens", cu_seqlens, tokens, "the rows of states")?;
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

    /// Where the places are, and guards to keep until the launch.
    fn read<'b>(
        &'b self,
        queue: &'b Queue<'_>,
    ) -> Result<(PoolRows, (SyncOnDrop<'b>, Option<SyncOnDrop<'b>>))> {
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
    let kernel = states.values.pick(match norm {
        None => ["pool_f32", "pool_f16", "pool_bf16"],
        Some(_) => ["pool_norm_f32", "pool_norm_f16", "pool_norm_bf16"],
    });
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
