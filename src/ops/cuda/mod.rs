//! The kernels on a GPU, for buffers of cudarc: no candle tensor needed.
//!
//! candle tensors go through the ops themselves ([`super::attend`], [`super::pool`], [`super::cosine`], [`super::mask`],
//! [`super::token`], [`super::norm`], [`super::act`], [`super::rope`]), which call what is here. Both ways share one set of
//! checks and one launch.
//!
//! # How to call
//! What is known on the host (offsets, thresholds, rows to sample) is checked and uploaded once, by a constructor; a call
//! then launches kernels and does nothing else. A call
//! - works on the stream that it is given, and returns before the work is done;
//! - never waits for the device and copies nothing to or from the host;
//! - allocates workspace, where the kernel needs any, in the order of the stream;
//! - checks every status of the driver and reports it with the op's name ([`Error::Device`]);
//! - launches nothing if an argument is outside its contract, or if there is nothing to do.
//!
//! So calls can be captured into a CUDA graph: make what the host knows, and [`load`] the kernels, before the capture. An
//! upload during one is refused, since the graph would read host memory that is gone by then. cudarc makes a stream wait for
//! the events of buffers that other streams wrote, which the driver refuses during a capture: allocate the buffers after
//! `CudaContext::disable_event_tracking`, and use one stream.
//!
//! Buffers must be of the stream's context; those of another GPU are refused. Lengths are checked, sizes are 64 bits
//! wide, rows may be any distance apart, and addresses need no more alignment than their type; 16-byte loads are used
//! where address and distance allow, and do not change results.
//!
//! # State of proof
//! The kernels run on the CPU, through a host shim, in `cargo test`. On a GPU, `scripts/gpu-check` runs the tests of this module, the
//! sanitizers and the benchmarks; `docs/results.md` says which GPUs have.

// The tables of layouts are for tests/ops/cuda_args.rs.
pub mod act;
#[allow(dead_code)]
mod args;
pub mod attend;
pub mod cosine;
mod geometry;
pub mod graph;
pub mod mask;
mod module;
pub mod norm;
pub mod pool;
pub mod product;
pub mod rope;
pub mod support;
#[cfg(feature = "cuda")]
mod tensor;
pub mod token;

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::CudaDevice;
use cudarc::driver::sys::CUstreamCaptureStatus;
use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, DriverError,
    LaunchConfig, PushKernelArg, SyncOnDrop, ValidAsZeroBits,
};
use half::{bf16, f16};

use crate::{Error, Result};
use args::Address;
pub use args::FoundPair;
pub use module::{Gpu, count, free_memory, keep_memory, load, probe, trim_memory};
#[cfg(feature = "cuda")]
pub(in crate::ops) use tensor::{on_gpu, tensor, to_host, with_rows};

/// Turns a status of the driver into an error that names the op and what it was doing.
fn driver_error(op: &'static str, what: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Device { op, what, message: format!("{error:?}") }
}

macro_rules! device_repr {
    ($($name:ident),*) => {
        $(
            // SAFETY: a `repr(C)` struct of integers and floats, without padding, as the kernels declare it
            // (tests/ops/cuda_args.rs).
            unsafe impl DeviceRepr for args::$name {}
            // SAFETY: all bits zero is a value of integers and floats.
            unsafe impl ValidAsZeroBits for args::$name {}
        )*
    };
}
device_repr!(
    AttendArgs,
    WriteArgs,
    PoolArgs,
    PoolMaskArgs,
    PoolGradArgs,
    CosineRowsArgs,
    CosinePrepareArgs,
    CosineTileArgs,
    FoundPair,
    TopKArgs,
    MaskGrid,
    MaskRow,
    MaskArgs,
    PackArgs,
    NormArgs,
    ActArgs,
    RopeArgs,
    TokenRow,
    TokenArgs
);

/// Floats on a device.
#[derive(Debug)]
pub enum Values<'a> {
    /// f32.
    F32(CudaView<'a, f32>),
    /// f16.
    F16(CudaView<'a, f16>),
    /// bf16.
    BF16(CudaView<'a, bf16>),
}

macro_rules! values_from {
    ($ty:ty, $variant:ident) => {
        impl<'a> From<CudaView<'a, $ty>> for Values<'a> {
            fn from(view: CudaView<'a, $ty>) -> Self {
                Self::$variant(view)
            }
        }
        impl<'a> From<&'a CudaSlice<$ty>> for Values<'a> {
            fn from(slice: &'a CudaSlice<$ty>) -> Self {
                Self::$variant(slice.as_view())
            }
        }
    };
}
values_from!(f32, F32);
values_from!(f16, F16);
values_from!(bf16, BF16);

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
        }
    }

    fn bytes(&self) -> usize {
        if matches!(self, Self::F32(_)) { 4 } else { 2 }
    }

    /// The kernels' code of the type.
    fn code(&self) -> u32 {
        match self {
            Self::F32(_) => args::DTYPE_F32,
            Self::F16(_) => args::DTYPE_F16,
            Self::BF16(_) => args::DTYPE_BF16,
        }
    }

    fn name(&self) -> &'static str {
        self.pick(["f32", "f16", "bf16"])
    }

    /// The one of f32, f16, bf16 that belongs to the type.
    fn pick<T: Copy>(&self, [f32, f16, bf16]: [T; 3]) -> T {
        match self {
            Self::F32(_) => f32,
            Self::F16(_) => f16,
            Self::BF16(_) => bf16,
        }
    }
}

/// Rows of floats on a device, one length, one distance from each to the next.
#[derive(Debug)]
pub struct Rows<'a> {
    values: Values<'a>,
    count: usize,
    width: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// `count` rows of `width` values, one after another.
    ///
    /// # Errors
    /// If the buffer is too short.
    pub fn packed(values: impl Into<Values<'a>>, count: usize, width: usize) -> Result<Self> {
        Self::strided(values, count, width, width)
    }

    /// `count` rows of `width` values, `stride` values apart.
    ///
    /// # Errors
    /// If the buffer is too short.
    pub fn strided(
        values: impl Into<Values<'a>>,
        count: usize,
        width: usize,
        stride: usize,
    ) -> Result<Self> {
        let values = values.into();
        let needed = match count {
            0 => Some(0),
            _ => (count - 1).checked_mul(stride).and_then(|last| last.checked_add(width)),
        };
        if needed.is_none_or(|needed| needed > values.len() || needed > i64::MAX as usize / 8) {
            return Err(Error::argument(
                "Rows",
                "buffer",
                format!("{} values", values.len()),
                format!("{count} rows of {width}, {stride} apart"),
            ));
        }
        Ok(Self { values, count, width, stride })
    }

    /// How many rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    fn read<'b>(
        &'b self,
        queue: &'b Queue<'_>,
        what: &'static str,
    ) -> Result<(Address, SyncOnDrop<'b>)> {
        match &self.values {
            Values::F32(v) => queue.read(what, v),
            Values::F16(v) => queue.read(what, v),
            Values::BF16(v) => queue.read(what, v),
        }
    }

    fn aligned(&self, address: Address) -> u32 {
        u32::from(geometry::aligned(address, self.stride as u64, self.values.bytes()))
    }
}

/// Where host data goes: a stream, or with the feature `cuda` a candle device, which keeps what it uploads while a graph is captured.
pub trait Upload: sealed::Sealed {
    /// The stream of the copy.
    fn stream(&self) -> Arc<CudaStream>;

    /// A device copy of `values`, at least one element long.
    ///
    /// # Errors
    /// A status of the driver; and on a bare stream, if a graph is being captured.
    fn upload<T: DeviceRepr + 'static>(
        &self,
        op: &'static str,
        values: &[T],
    ) -> Result<CudaSlice<T>>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::sync::Arc<cudarc::driver::CudaStream> {}
    #[cfg(feature = "cuda")]
    impl Sealed for candle_core::cuda_backend::CudaDevice {}
}

impl Upload for Arc<CudaStream> {
    fn stream(&self) -> Arc<CudaStream> {
        self.clone()
    }

    fn upload<T: DeviceRepr + 'static>(
        &self,
        op: &'static str,
        values: &[T],
    ) -> Result<CudaSlice<T>> {
        if values.is_empty() {
            return Queue { op, stream: self }.alloc(0);
        }
        refuse_capture(op, "uploading from the host", self)?;
        self.clone_htod(values).map_err(driver_error(op, "uploading from the host"))
    }
}

#[cfg(feature = "cuda")]
impl Upload for CudaDevice {
    fn stream(&self) -> Arc<CudaStream> {
        self.cuda_stream()
    }

    fn upload<T: DeviceRepr + 'static>(
        &self,
        op: &'static str,
        values: &[T],
    ) -> Result<CudaSlice<T>> {
        if values.is_empty() {
            return Queue { op, stream: &self.cuda_stream() }.alloc(0);
        }
        // During a capture candle gives what it has kept from an earlier call, and refuses the rest.
        let _kept =
            is_capturing(op, &self.cuda_stream())?.then(|| self.enable_cuda_graph_htod_cache());
        Ok(self.clone_htod(values)?)
    }
}

fn is_capturing(op: &'static str, stream: &CudaStream) -> Result<bool> {
    let status = stream
        .capture_status()
        .map_err(driver_error(op, "asking whether a graph is being captured"))?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// An error if a graph is being captured on `stream`.
fn refuse_capture(op: &'static str, what: &'static str, stream: &CudaStream) -> Result<()> {
    if !is_capturing(op, stream)? {
        return Ok(());
    }
    let got = format!("being captured into a graph while {what}");
    Err(Error::argument(op, "stream", got, "host data and results outside the capture"))
}

/// A stream to work on, for one call of one op.
struct Queue<'a> {
    op: &'static str,
    stream: &'a Arc<CudaStream>,
}

impl Queue<'_> {
    fn multiprocessors(&self) -> Result<u32> {
        module::multiprocessors(self.op, self.stream.context())
    }

    /// Whether what runs on the GPU has a kernel of that name.
    fn has(&self, file: module::File, kernel: &'static str) -> Result<bool> {
        module::has(self.op, self.stream.context(), file, kernel)
    }

    /// Uninitialised memory: what a kernel of this call writes before anyone reads it. Never of length 0, which the
    /// driver does not give out: no kernel writes the one element that then stands for none, but a copy may read it.
    fn alloc<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>> {
        // SAFETY: callers let a kernel write all that is read later; the element types take any bits.
        let mut buffer = unsafe { self.stream.alloc(len.max(1)) }
            .map_err(driver_error(self.op, "allocating"))?;
        if len == 0 {
            self.fill(&mut buffer, 0)?;
        }
        Ok(buffer)
    }

    fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>> {
        self.stream.alloc_zeros(len.max(1)).map_err(driver_error(self.op, "allocating"))
    }

    /// Writes host values to the beginning of a buffer, in the order of the stream.
    fn put<T: DeviceRepr>(&self, values: &[T], buffer: &mut CudaSlice<T>) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        self.check_context("buffer", buffer)?;
        refuse_capture(self.op, "uploading from the host", self.stream)?;
        let status = self.stream.memcpy_htod(values, buffer);
        status.map_err(driver_error(self.op, "uploading from the host"))
    }

    fn clear<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        buffer: &mut impl DevicePtrMut<T>,
    ) -> Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        self.check_context("buffer", buffer)?;
        self.stream.memset_zeros(buffer).map_err(driver_error(self.op, "clearing"))
    }

    /// Sets every byte.
    fn fill<T: DeviceRepr>(&self, buffer: &mut impl DevicePtrMut<T>, byte: u8) -> Result<()> {
        let bytes = buffer.num_bytes();
        if bytes == 0 {
            return Ok(());
        }
        let status = self.stream.context().bind_to_thread();
        status.map_err(driver_error(self.op, "entering the context"))?;
        let (address, _guard) = self.write("buffer", buffer)?;
        // SAFETY: the buffer is `bytes` long and borrowed alone.
        unsafe {
            cudarc::driver::result::memset_d8_async(address, byte, bytes, self.stream.cu_stream())
        }
        .map_err(driver_error(self.op, "filling"))
    }

    fn check_context<T>(&self, what: &'static str, buffer: &impl DeviceSlice<T>) -> Result<()> {
        let (own, other) = (self.stream.context(), buffer.stream().context());
        if own == other {
            return Ok(());
        }
        let place = |ordinal| format!("in a context of GPU {ordinal}");
        Err(Error::argument(
            self.op,
            what,
            place(other.ordinal()),
            format!("{}, as the stream", place(own.ordinal())),
        ))
    }

    /// The address, for reading; keep the guard until the launch.
    fn read<'b, T>(
        &'b self,
        what: &'static str,
        buffer: &'b impl DevicePtr<T>,
    ) -> Result<(Address, SyncOnDrop<'b>)> {
        self.check_context(what, buffer)?;
        Ok(buffer.device_ptr(self.stream))
    }

    /// The address, for writing; keep the guard until the launch.
    fn write<'b, T>(
        &'b self,
        what: &'static str,
        buffer: &'b mut impl DevicePtrMut<T>,
    ) -> Result<(Address, SyncOnDrop<'b>)> {
        self.check_context(what, buffer)?;
        Ok(buffer.device_ptr_mut(self.stream))
    }

    /// Enqueues a kernel. Nothing is launched for an empty grid.
    ///
    /// # Safety
    /// The addresses in `args` are live, as long as the kernel's contract asks, and guarded by the caller.
    unsafe fn launch<A: DeviceRepr>(
        &self,
        file: module::File,
        kernel: &'static str,
        blocks: u64,
        threads: u32,
        args: &A,
    ) -> Result<()> {
        // SAFETY: the caller vouches for it.
        unsafe { self.launch_with_shared(file, kernel, blocks, (threads, 0), args) }
    }

    /// As [`Queue::launch`], for blocks of so many threads and bytes of dynamic shared memory.
    ///
    /// # Safety
    /// As [`Queue::launch`].
    unsafe fn launch_with_shared<A: DeviceRepr>(
        &self,
        file: module::File,
        kernel: &'static str,
        blocks: u64,
        (threads, shared_mem_bytes): (u32, u32),
        args: &A,
    ) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        if blocks > i32::MAX as u64 {
            return Err(Error::argument(self.op, "blocks", blocks, "below 2^31: divide the call"));
        }
        let function = module::function(self.op, self.stream.context(), file, kernel)?;
        let config = LaunchConfig {
            grid_dim: (blocks as u32, 1, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes,
        };
        // SAFETY: the kernel takes one argument of this layout (tests/ops/cuda_args.rs), and the caller vouches for it.
        unsafe { self.stream.launch_builder(&function).arg(args).launch(config) }
            .map_err(driver_error(self.op, kernel))?;
        Ok(())
    }
}

/// An error unless a buffer has `needed` elements.
fn check_len<T>(
    op: &'static str,
    what: &'static str,
    buffer: &impl DeviceSlice<T>,
    needed: usize,
) -> Result<()> {
    if buffer.len() < needed {
        return Err(Error::argument(
            op,
            what,
            format!("{} elements long", buffer.len()),
            format!("at least {needed}"),
        ));
    }
    Ok(())
}
