//! Devices and storage types by name.

use candle_core::{DType, Device};

use crate::{Error, Result};

/// Opens `cpu`, `cuda` (the first GPU) or `cuda:N`.
///
/// CUDA devices get a stream of their own rather than the thread's default one, so that work from
/// several host threads is ordered by the device and not by accident. All ops run there, and with them the networks.
///
/// # Errors
/// An unknown name, a build without CUDA, a GPU that the driver does not report, and a GPU or driver that this
/// build's kernels do not run on; the message says what to do.
pub fn open(name: &str) -> Result<Device> {
    let Some(ordinal) = ordinal(name)? else { return Ok(Device::Cpu) };
    if !cfg!(feature = "cuda") {
        return Err(Error::unsupported(
            format!("device {name:?}"),
            "this build has no CUDA; rebuild with `--features cuda`, or use --device cpu",
        ));
    }
    // First, since candle's own start on an unfit driver fails without a reason.
    #[cfg(feature = "cuda")]
    crate::ops::cuda::probe(ordinal)?;
    Ok(Device::new_cuda_with_stream(ordinal)?)
}

/// The number of the GPU that a device name means; `None` for `cpu`.
///
/// # Errors
/// An unknown name.
pub fn ordinal(name: &str) -> Result<Option<usize>> {
    match name {
        "cpu" => Ok(None),
        "cuda" => Ok(Some(0)),
        _ => match name.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(n)) => Ok(Some(n)),
            _ => Err(Error::unsupported(
                format!("device {name:?}"),
                "expected cpu, cuda or cuda:N with N from 0",
            )),
        },
    }
}

/// Parses a storage type: `f32`, `f16` or `bf16`.
pub fn dtype(name: &str) -> Result<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => {
            Err(Error::unsupported(format!("dtype {name:?}"), "expected one of f32, f16 and bf16"))
        }
    }
}
