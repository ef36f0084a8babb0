//! What the backward passes of ops share. On the CPU: operands as f32 values, results as tensors; elsewhere: what passes made of
//! candle's ops need.

use candle_core::{D, DType, Device, Storage, Tensor, bail};
use rayon::prelude::*;

use super::host::{TASK, contiguous};
use super::simd;

/// The values of some tensors, row-major, in f32.
pub(crate) fn as_f32<const N: usize>(
    tensors: [&Tensor; N],
    op: &'static str,
) -> candle_core::Result<[Vec<f32>; N]> {
    let mut all = [const { Vec::new() }; N];
    for (values, tensor) in all.iter_mut().zip(tensors) {
        let tensor = tensor.to_dtype(DType::F32)?.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            bail!("{op}: the backward pass is on the CPU only")
        };
        *values = contiguous::<f32>(storage, layout, op)?.to_vec();
    }
    Ok(all)
}

/// Values as a tensor of the shape and dtype of another.
pub(crate) fn like(values: Vec<f32>, other: &Tensor) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, other.shape(), &Device::Cpu)?.to_dtype(other.dtype())
}

/// The sum of each column of `[rows, width]`: chunks of rows in order, so the same on any number of threads.
pub(crate) fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    let sum = |rows: &[f32]| {
        let mut total = vec![0f32; width];
        rows.chunks(width).for_each(|row| simd::add_scaled(&mut total, row, 1.0));
        total
    };
    let parts: Vec<Vec<f32>> = values.par_chunks(TASK.div_ceil(width) * width).map(sum).collect();
    let mut total = vec![0f32; width];
    parts.iter().for_each(|part| simd::add_scaled(&mut total, part, 1.0));
    total
}

/// Untracked f32 copies.
pub(super) fn wide<const N: usize>(tensors: [&Tensor; N]) -> candle_core::Result<[Tensor; N]> {
    let mut all = tensors.map(Tensor::clone);
    for tensor in &mut all {
        *tensor = tensor.detach().to_dtype(DType::F32)?;
    }
    Ok(all)
}

/// The sum over all axes but the last, by candle's ops.
pub(super) fn sums_of_columns(x: &Tensor) -> candle_core::Result<Tensor> {
    x.reshape(((), x.dim(D::Minus1)?))?.sum(0)
}

/// Compares passes made of candle's ops with those on the CPU.
#[cfg(test)]
pub(super) mod tests {
    use candle_core::{Device, Tensor, Var};

    pub(in crate::ops) fn random(dims: &[usize]) -> Tensor {
        Tensor::randn(0f32, 1.0, dims, &Device::Cpu).unwrap()
    }

    #[track_caller]
    pub(in crate::ops) fn close(seen: &Tensor, expected: &Tensor, what: &str) {
        assert_eq!(seen.dims(), expected.dims(), "{what}");
        let off = (seen - expected).unwrap().abs().unwrap().flatten_all().unwrap();
        let off: f32 = off.max(0).unwrap().to_scalar().unwrap();
        assert!(off < 2e-5, "{what}: {off}");
    }

    /// The gradients of the sum of `y * grad` by the CPU's own passes.
    pub(in crate::ops) fn own(y: &Tensor, grad: &Tensor, vars: &[&Var]) -> Vec<Tensor> {
        let grads = (y * grad).unwrap().sum_all().unwrap().backward().unwrap();
        vars.iter().map(|var| grads.get(var).unwrap().clone()).collect()
    }
}
