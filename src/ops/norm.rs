//! Layer and RMS normalisation over the last dimension, with the residual addition before it fused in.
//!
//! ```text
//! x         [.., H]  ──┐
//! add.bias     [H]   ──┼─► sum [.., H] ──► normalise each row of H ──► * weight [H] ──► + bias [H] ──► y [.., H]
//! residual  [.., H]  ──┘   (f32, not      (f32, two passes)
//!                           rounded) └──► the new residual stream, rounded: `*_sum` forms only
//! ```
//!
//! * x `[.., H]`; weight, bias `[H]`; residual like x. f32, f16, bf16 in and out (all operands alike).
//! * With [`Add`] the row normalised is `x + add.bias + add.residual`, formed in f32 and *not* rounded before the
//!   normalisation; the `*_sum` forms also return that sum (rounded to the dtype), for pre-norm networks.
//! * layer: `(x - mean) / sqrt(var + eps) * weight + bias`, var the mean squared deviation, in a second pass over the
//!   row (no E[x^2] - mean^2); rms: `x / sqrt(mean(x^2) + eps) * weight`. All in f32, rounded once.
//! * A constant row (var = 0, eps = 0) gives NaN, as the formula does; NaN propagates to its own row only. H = 0 is an error.
//! * Rows are independent and their sums have a fixed order: results depend on neither batch nor threads.
//! * Error: within 1e-5 of float64 for rows whose deviation is not tiny against their mean.
//! * Bytes: each operand read once, each result written once.
//! * No gradient: `backward` through x or residual is an error, and tracked parameters are refused at the call.
//!
//! Sources: layer normalisation (Ba et al. 2016), RMSNorm (Zhang & Sennrich 2019).

use super::host::{SharedMut, Stored, by_float, contiguous};
use super::simd::{self, any_width};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Shape, Storage, Tensor};
use rayon::prelude::*;

/// What is added to x before it is normalised.
#[derive(Clone, Copy, Debug)]
pub struct Add<'a> {
    /// The residual stream, shaped like x.
    pub residual: &'a Tensor,
    /// The bias `[H]` of the linear layer that made x.
    pub bias: Option<&'a Tensor>,
}

/// Layer normalisation: `[.., H]` like x.
///
/// # Errors
/// [`Error::Argument`] for operands of other shapes or dtypes, H = 0, a negative eps, or parameters that track gradients.
pub fn layer_norm(
    x: &Tensor,
    before: Option<Add>,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    run("norm::layer_norm", Law::Layer, x, before, weight, bias, eps, false)
}

/// [`layer_norm`] that also returns what was normalised: `(x + before, its layer norm)`.
///
/// # Errors
/// As [`layer_norm`].
pub fn layer_norm_sum(
    x: &Tensor,
    before: Add,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let both = run("norm::layer_norm_sum", Law::Layer, x, Some(before), weight, bias, eps, true)?;
    Ok((both.get(0)?, both.get(1)?))
}

/// RMS normalisation: `[.., H]` like x.
///
/// # Errors
/// As [`layer_norm`].
pub fn rms_norm(x: &Tensor, before: Option<Add>, weight: &Tensor, eps: f64) -> Result<Tensor> {
    run("norm::rms_norm", Law::Rms, x, before, weight, None, eps, false)
}

/// [`rms_norm`] that also returns what was normalised: `(x + before, its RMS norm)`.
///
/// # Errors
/// As [`layer_norm`].
pub fn rms_norm_sum(
    x: &Tensor,
    before: Add,
    weight: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let both = run("norm::rms_norm_sum", Law::Rms, x, Some(before), weight, None, eps, true)?;
    Ok((both.get(0)?, both.get(1)?))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Law {
    Layer,
    Rms,
}

// One argument for each operand of the op: grouping them would only rename them.
#[allow(clippy::too_many_arguments)]
fn run(
    op: &'static str,
    law: Law,
    x: &Tensor,
    before: Option<Add>,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
    both: bool,
) -> Result<Tensor> {
    let width = check(op, x, before, eps)?;
    let parameter = |what: &'static str, t: &Tensor| -> Result<Tensor> {
        if t.dims() != [width] || t.dtype() != x.dtype() {
            let got = format!("{:?} {:?}", t.dims(), t.dtype());
            return Err(Error::argument(op, what, got, format!("[{width}] {:?}", x.dtype())));
        }
        if t.track_op() {
            return Err(Error::argument(op, what, "tracked", "detached: there is no gradient"));
        }
        Ok(t.contiguous()?)
    };
    let norm = Norm {
        law,
        eps: eps as f32,
        both,
        width,
        weight: parameter("weight", weight)?,
        bias: bias.map(|b| parameter("bias", b)).transpose()?,
        add_bias: before.and_then(|a| a.bias).map(|b| parameter("before.bias", b)).transpose()?,
    };
    let x = x.contiguous()?;
    Ok(match before {
        Some(before) => x.apply_op2(&before.residual.contiguous()?, norm)?,
        None => x.apply_op1(norm)?,
    })
}

/// Checks x, the residual and eps; returns H.
fn check(op: &'static str, x: &Tensor, before: Option<Add>, eps: f64) -> Result<usize> {
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::argument(op, "dtype", format!("{:?}", x.dtype()), "F32, F16 or BF16"));
    }
    let width = match x.dims().last() {
        Some(&width) if width > 0 => width,
        _ => return Err(Error::argument(op, "x", format!("{:?}", x.dims()), "[.., H], H > 0")),
    };
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::argument(op, "eps", eps, "finite and >= 0"));
    }
    if let Some(Add { residual: r, .. }) = before
        && (r.dims() != x.dims() || r.dtype() != x.dtype())
    {
        let got = format!("{:?} {:?}", r.dims(), r.dtype());
        return Err(Error::argument(
            op,
            "residual",
            got,
            format!("{:?} {:?}", x.dims(), x.dtype()),
        ));
    }
    Ok(width)
}

// CPU path.

any_width! {
    fn centre_and_scale(values: &mut [f32], mean: f32, inverse: f32, weight: &[f32]) {
        for (v, w) in values.iter_mut().zip(weight) {
            *v = (*v - mean) * inverse * w;
        }
    }
}

impl Norm {
    fn row(&self, values: &mut [f32], weight: &[f32], bias: Option<&[f32]>) {
        let n = values.len() as f32;
        let (mean, squares) = match self.law {
            Law::Layer => {
                let mean = simd::moment(values, 0.0, false) / n;
                (mean, simd::moment(values, mean, true))
            }
            Law::Rms => (0.0, simd::moment(values, 0.0, true)),
        };
        centre_and_scale(values, mean, 1.0 / (squares / n + self.eps).sqrt(), weight);
        if let Some(bias) = bias {
            simd::add_scaled(values, bias, 1.0);
        }
    }

    fn forward<T: Stored>(&self, x: &[T], residual: Option<&[T]>) -> candle_core::Result<Vec<T>> {
        /// Elements a task handles at least: enough to hide what a task costs.
        const TASK: usize = 1 << 14;
        let width = self.width;
        let weight = parameter::<T>(Some(&self.weight))?.unwrap_or_default();
        let bias = parameter::<T>(self.bias.as_ref())?;
        let add_bias = parameter::<T>(self.add_bias.as_ref())?;
        let mut out = vec![T::default(); if self.both { 2 * x.len() } else { x.len() }];
        let normed_at = out.len() - x.len();
        let shared = SharedMut::new(&mut out);
        let rows = TASK.div_ceil(width);
        x.par_chunks(rows * width).enumerate().for_each(|(task, chunk)| {
            let mut values = vec![0f32; width];
            for (i, x) in chunk.chunks(width).enumerate() {
                let at = (task * rows + i) * width;
                simd::widen(x, &mut values);
                if let Some(bias) = &add_bias {
                    simd::add_scaled(&mut values, bias, 1.0);
                }
                if let Some(residual) = residual {
                    simd::add_scaled(&mut values, &residual[at..at + width], 1.0);
                }
                if self.both {
                    // SAFETY: each row of the sum is written by its one task, and only here.
                    T::store(&values, unsafe { shared.range(at, width) });
                }
                self.row(&mut values, &weight, bias.as_deref());
                // SAFETY: each row of the result is written by its one task, past all rows of the sum.
                T::store(&values, unsafe { shared.range(normed_at + at, width) });
            }
        });
        Ok(out)
    }

    fn shape(&self, x: &Layout) -> Shape {
        let mut dims = x.dims().to_vec();
        if self.both {
            dims.insert(0, 2);
        }
        dims.into()
    }
}

/// The values of a parameter as f32.
fn parameter<T: Stored>(tensor: Option<&Tensor>) -> candle_core::Result<Option<Vec<f32>>> {
    let Some(tensor) = tensor else { return Ok(None) };
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("norm: parameters are not on the CPU, where x is")
    };
    Ok(Some(T::to_f32_vec(contiguous::<T>(storage, layout, "norm")?)))
}

// candle's view of the op. `bwd` is candle's default: an error.

struct Norm {
    law: Law,
    eps: f32,
    /// Whether the sum before normalisation is returned too, stacked in front.
    both: bool,
    width: usize,
    weight: Tensor,
    bias: Option<Tensor>,
    add_bias: Option<Tensor>,
}

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(x, "norm", T => {
            let y = self.forward::<T>(contiguous(x, l, "norm")?, None)?;
            Ok((T::wrap(y), self.shape(l)))
        })
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        l: &Layout,
        residual: &CpuStorage,
        residual_l: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(x, "norm", T => {
            let residual = contiguous(residual, residual_l, "norm")?;
            let y = self.forward::<T>(contiguous(x, l, "norm")?, Some(residual))?;
            Ok((T::wrap(y), self.shape(l)))
        })
    }
}
