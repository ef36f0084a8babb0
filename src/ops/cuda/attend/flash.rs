//! candle-flash-attn's kernels on candle tensors. What they compute and when: [`crate::ops::attend::flash`].

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::CudaDevice;
use candle_core::{DType, Device, Tensor};
use candle_flash_attn::flash_attn_varlen;

use super::super::{Upload, is_capturing, tensor::tensor};
use super::tensors::Last;
use crate::ops::attend::Sequences;
use crate::{Error, Result};

const OP: &str = "attend by flash-attn";

/// By sequences: where their rows and their slots begin.
static PLACES: Last<Sequences, (Tensor, Tensor)> = Last::new();

/// GPU, dtype, D and causal order of kernels that have been seen to run.
static PROVEN: Mutex<Vec<(usize, DType, usize, bool)>> = Mutex::new(Vec::new());

/// Attention of operands and sequences that fit; nothing while a graph is being captured, which outlives what is kept here.
///
/// # Errors
/// Kernels that do not run on this GPU, and statuses of the driver.
pub(in crate::ops) fn forward(
    [q, k, v]: [&Tensor; 3],
    sequences: &Sequences,
    scale: f32,
) -> Result<Option<Tensor>> {
    let Device::Cuda(device) = q.device() else {
        return Err(Error::argument(OP, "q", "off the GPU", "on a GPU"));
    };
    let stream = device.cuda_stream();
    if is_capturing(OP, &stream)? {
        return Ok(None);
    }
    prove(device, q.dtype(), q.dims()[2], sequences.causal)?;
    let places = PLACES.get(
        OP,
        &stream,
        |last| last == sequences,
        || sequences.clone(),
        || Ok((places(device, &sequences.rows)?, places(device, &sequences.keys)?)),
    )?;
    Ok(Some(call([q, k, v], &places, sequences, scale)?))
}

fn places(device: &CudaDevice, places: &[u32]) -> Result<Tensor> {
    Ok(tensor(device.upload(OP, places)?, device, places.len()))
}

fn call(
    [q, k, v]: [&Tensor; 3],
    (rows, keys): &(Tensor, Tensor),
    sequences: &Sequences,
    scale: f32,
) -> candle_core::Result<Tensor> {
    let (longest_rows, longest_keys) = (sequences.longest_rows, sequences.longest_keys);
    flash_attn_varlen(q, k, v, rows, keys, longest_rows, longest_keys, scale, sequences.causal)
}

/// The crate does not look at the status of a launch: one that fails, as on a GPU that the kernels were not compiled for, leaves
/// in the output what was in memory. So each kernel first does a small sum whose result is known.
fn prove(device: &CudaDevice, dtype: DType, dim: usize, causal: bool) -> Result<()> {
    let kernel = (device.cuda_stream().context().ordinal(), dtype, dim, causal);
    let mut proven = PROVEN.lock().unwrap_or_else(PoisonError::into_inner);
    if proven.contains(&kernel) {
        return Ok(());
    }
    // Two keys of one value: whatever the weights, the value. Another one each time, since memory may hold the last one's.
    let value: Vec<f32> = (0..dim).map(|i| 1.0 + ((i + proven.len()) % 64) as f32).collect();
    let on = |values: Vec<f32>| {
        let host = Tensor::from_vec(values, (2, 1, dim), &Device::Cpu)?.to_dtype(dtype)?;
        host.to_device(&Device::Cuda(device.clone()))
    };
    let zeros = on(vec![0.0; 2 * dim])?;
    let values = on([value.clone(), value.clone()].concat())?;
    let sequences =
        Sequences { rows: vec![0, 2], keys: vec![0, 2], longest_rows: 2, longest_keys: 2, causal };
    let places = (places(device, &sequences.rows)?, places(device, &sequences.keys)?);
    let out = call([&zeros, &zeros, &values], &places, &sequences, 1.0)?;
    let out = out.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if out != [value.clone(), value].concat() {
        return Err(Error::unsupported(
            format!("BDHS_ATTEND=flash on GPU {}", kernel.0),
            format!(
                "the kernel for {dtype:?} and heads of {dim} does not run; build with the CUDA_COMPUTE_CAP of this GPU or of an \
                 older one, or use BDHS_ATTEND=own"
            ),
        ));
    }
    proven.push(kernel);
    Ok(())
}
