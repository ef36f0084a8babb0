//! Products with a weight, by cuBLAS, into buffers of the caller: for what is captured into a graph. candle's own products
//! allocate their results; the calls of cuBLAS are the same.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublas::CudaBlas;
use cudarc::cublas::result::{CublasError, gemm_strided_batched_ex};
use cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cublasSetWorkspace_v2, cudaDataType_t,
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};

use super::pool::Output;
use super::{Queue, Rows, check_len, driver_error};
use crate::{Error, Result};

const OP: &str = "cuda::product";

/// What cuBLAS takes for itself where it may choose: on Hopper and later, and before.
const WORKSPACE: usize = 32 << 20;
const WORKSPACE_BEFORE_HOPPER: usize = 4 << 20;

/// cuBLAS on a stream. Its workspace is allocated here, so that a product allocates nothing.
pub struct Products {
    blas: CudaBlas,
    stream: Arc<CudaStream>,
    _workspace: CudaSlice<u8>,
}

impl Products {
    /// # Errors
    /// Statuses of the driver and of cuBLAS.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let blas = CudaBlas::new(stream.clone()).map_err(status("starting cuBLAS"))?;
        let capability = stream.context().compute_capability();
        let (major, _) = capability.map_err(driver_error(OP, "asking what the GPU is"))?;
        let bytes = if major >= 9 { WORKSPACE } else { WORKSPACE_BEFORE_HOPPER };
        let queue = Queue { op: OP, stream };
        let mut workspace = queue.alloc::<u8>(bytes)?;
        let (address, guard) = queue.write("workspace", &mut workspace)?;
        // SAFETY: the buffer is that long, and lives as long as the handle.
        unsafe { cublasSetWorkspace_v2(*blas.handle(), address as *mut c_void, bytes) }
            .result()
            .map_err(status("giving cuBLAS its workspace"))?;
        drop(guard);
        Ok(Self { blas, stream: stream.clone(), _workspace: workspace })
    }

    /// Writes x `[n, in]` times the weight `[out, in]`, transposed, into `out`, `[n, out]`: packed rows of one float type, sums
    /// in f32.
    ///
    /// # Errors
    /// On rows that are not packed, sizes that do not fit each other or 31 bits, an output that is too short or of another
    /// type, buffers of another GPU, and statuses of cuBLAS.
    pub fn product<T: Output>(
        &self,
        x: &Rows<'_>,
        weight: &Rows<'_>,
        out: &mut impl DevicePtrMut<T>,
    ) -> Result<()> {
        let queue = Queue { op: OP, stream: &self.stream };
        for (what, rows) in [("x", x), ("weight", weight)] {
            if rows.stride != rows.width || rows.values.code() != T::CODE {
                let got = format!("{} values, {} apart", rows.values.name(), rows.stride);
                let expected = format!("packed rows of {}, of the output's type", rows.width);
                return Err(Error::argument(OP, what, got, expected));
            }
        }
        if x.width != weight.width {
            let expected = format!("{}, the width of the weight's", weight.width);
            return Err(Error::argument(OP, "width of x", x.width, expected));
        }
        check_len(OP, "out", out, x.count.saturating_mul(weight.count))?;
        if x.count * weight.count == 0 {
            return Ok(());
        }
        let int = |what, value: usize| {
            i32::try_from(value).map_err(|_| Error::argument(OP, what, value, "below 2^31"))
        };
        let (n, outputs) = (int("rows", x.count)?, int("outputs", weight.count)?);
        let inputs = int("inputs", x.width)?;
        let dtype = x.values.pick([
            cudaDataType_t::CUDA_R_32F,
            cudaDataType_t::CUDA_R_16F,
            cudaDataType_t::CUDA_R_16BF,
        ]);
        let (from, _x) = x.read(&queue, "x")?;
        let (by, _weight) = weight.read(&queue, "weight")?;
        let (to, _out) = queue.write("out", out)?;
        let (one, zero) = (1f32, 0f32);
        // SAFETY: columns are rows here: weight `inputs` x `outputs`, transposed, by x `inputs` x `n`; out was checked to hold
        // `outputs` x `n`. All are guarded here; one and zero are read before this returns.
        unsafe {
            gemm_strided_batched_ex(
                *self.blas.handle(),
                cublasOperation_t::CUBLAS_OP_T,
                cublasOperation_t::CUBLAS_OP_N,
                outputs,
                n,
                inputs,
                (&raw const one).cast(),
                by as *const c_void,
                dtype,
                inputs,
                0,
                from as *const c_void,
                dtype,
                inputs,
                0,
                (&raw const zero).cast(),
                to as *mut c_void,
                dtype,
                outputs,
                0,
                1,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .map_err(status("multiplying"))
    }
}

/// Turns a status of cuBLAS into an error that says what it was doing.
fn status(what: &'static str) -> impl Fn(CublasError) -> Error {
    move |error| Error::Device { op: OP, what, message: format!("{error:?}") }
}
