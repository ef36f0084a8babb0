//! Rotary position embedding: every pair (i, i + D/2) of a head turned by its row's angle.
//!
//! ```text
//! x [n, heads, D]      row r:  | a_0 .. a_{D/2-1} | b_0 .. b_{D/2-1} |   of each head
//! cos, sin [n, D/2]    a' = a cos - b sin,  b' = b cos + a sin
//! ```
//!
//! * x f32, f16 or bf16; cos and sin f32; out like x. Arithmetic in f32, four products and two sums a pair, no fused
//!   products, rounded once: the same bits as by candle's ops.
//! * Rows and heads are independent; results depend on neither batch nor threads. n = 0 is allowed; D must be even.
//! * NaN and infinity stay in their pair.
//! * The gradient of x is real: the turn back. cos and sin are tables, and tracked ones are refused.
//! * Bytes: x read once, the result written once, the tables once.
//! * On a GPU a call is one launch that gives the CPU's bits, and so is a gradient.
//!
//! # Example
//! ```
//! use bdhs::ops::rope::rotate;
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> bdhs::Result<()> {
//! // One row, one head of width 2, turned by a quarter.
//! let x = Tensor::new(&[[[1f32, 2.0]]], &Device::Cpu)?;
//! let (cos, sin) = (Tensor::new(&[[0f32]], &Device::Cpu)?, Tensor::new(&[[1f32]], &Device::Cpu)?);
//! assert_eq!(rotate(&x, &cos, &sin)?.flatten_all()?.to_vec1::<f32>()?, [-2.0, 1.0]);
//! # Ok(())
//! # }
//! ```
//!
//! Source: Su et al. 2021, in the half-split form of GPT-NeoX and Llama.

#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(feature = "cuda")]
use super::host::candle;
use super::host::{
    Rows, Stored, by_float, check_device, contiguous, flat_rows, map_rows, whole_rows,
};
use super::simd::any_width;
use crate::{Error, Result};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Storage, Tensor, bail};

/// Turns x `[n, heads, D]` by the angles whose cosines and sines are `cos` and `sin`, `[n, D / 2]` f32.
///
/// # Errors
/// [`Error::Argument`] for shapes or dtypes outside the contract, or tracked tables.
#[doc(alias = "rotary_embedding")]
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    const OP: &str = "rope::rotate";
    let shape = |t: &Tensor| format!("{:?} {:?}", t.dims(), t.dtype());
    let &[rows, _, dim] = x.dims() else {
        return Err(Error::argument(OP, "x", shape(x), "[n, heads, D]"));
    };
    if dim == 0 || dim % 2 != 0 || !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::argument(OP, "x", shape(x), "[n, heads, D] with D even, a float"));
    }
    for (what, table) in [("cos", cos), ("sin", sin)] {
        if table.dims() != [rows, dim / 2] || table.dtype() != DType::F32 || table.track_op() {
            let expected = format!("[{rows}, {}] F32, not tracked", dim / 2);
            return Err(Error::argument(OP, what, shape(table), expected));
        }
        check_device(OP, what, table, x)?;
    }
    let op = Rotate { cos: cos.contiguous()?, sin: sin.contiguous()? };
    Ok(whole_rows(x)?.apply_op1(op)?)
}

any_width! {
    fn turn(a: &mut [f32], b: &mut [f32], cos: &[f32], sin: &[f32]) {
        for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

struct Rotate {
    cos: Tensor,
    sin: Tensor,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (cos_storage, cos_l) = self.cos.storage_and_layout();
        let (sin_storage, sin_l) = self.sin.storage_and_layout();
        let (Storage::Cpu(cos), Storage::Cpu(sin)) = (&*cos_storage, &*sin_storage) else {
            bail!("rotate: the tables are not on the CPU, where x is")
        };
        let cos = contiguous::<f32>(cos, cos_l, "rotate")?;
        let sin = contiguous::<f32>(sin, sin_l, "rotate")?;
        let dim = l.dims()[2];
        let half = dim / 2;
        by_float!(x, "rotate", T => {
            let Some(flat) = flat_rows(l) else { bail!("rotate: {l:?}") };
            let y = map_rows(Rows::<T>::of(x, &flat, "rotate")?, |values, row| {
                let own = row * half..(row + 1) * half;
                for head in values.chunks_mut(dim) {
                    let (a, b) = head.split_at_mut(half);
                    turn(a, b, &cos[own.clone()], &sin[own.clone()]);
                }
            });
            Ok((T::wrap(y), l.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, l: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let (cos, cos_l) = self.cos.storage_and_layout();
        let (sin, sin_l) = self.sin.storage_and_layout();
        let table = |what, storage| cuda::on_gpu("rotate", what, storage).map_err(candle);
        let (cos, sin) = ((table("cos", &cos)?, cos_l), (table("sin", &sin)?, sin_l));
        Ok((cuda::rope::forward((x, l), cos, sin).map_err(candle)?, l.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let back = Self { cos: self.cos.clone(), sin: self.sin.neg()? };
        grad.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}
