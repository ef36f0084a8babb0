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
//! * Gradients are real, in f32 (on a GPU made of candle's ops): for x, the residual, weight and biases. Where any of them is tracked, the
//!   sum before the normalisation is an op of its own (and rounded to the dtype), so that each has its gradient.
//! * On a GPU a call is one launch (without gradients); the norm is within the same bound, the sum the CPU's bit for bit.
//!
//! # Example
//! ```
//! use bdhs::ops::norm::rms_norm;
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> bdhs::Result<()> {
//! let x = Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?;
//! let weight = Tensor::new(&[1f32, 1.0], &Device::Cpu)?;
//! let y = rms_norm(&x, None, &weight, 0.0)?.to_vec2::<f32>()?;
//! // The root mean square of (3, 4) is sqrt(12.5).
//! assert!((y[0][0] - 3.0 / 12.5f32.sqrt()).abs() < 1e-6);
//! # Ok(())
//! # }
//! ```
//!
//! Sources: layer normalisation (Ba et al. 2016), RMSNorm (Zhang & Sennrich 2019).

mod composed;

use super::act::{Activation, bias_act};
#[cfg(feature = "cuda")]
use super::cuda;
use super::grads;
#[cfg(feature = "cuda")]
use super::host::candle;
use super::host::{
    Rows, SharedMut, Stored, TASK, by_float, check_device, contiguous, map_rows, rows,
};
use super::simd::{self, any_width, elementwise};
use crate::{Error, Result};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Shape, Storage, Tensor,
};
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
/// [`Error::Argument`] for operands of other shapes or dtypes, H = 0, or a negative eps.
pub fn layer_norm(
    x: &Tensor,
    before: Option<Add>,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    Ok(run("norm::layer_norm", NormKind::Layer, x, before, (weight, bias), eps, false)?.1)
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
    run("norm::layer_norm_sum", NormKind::Layer, x, Some(before), (weight, bias), eps, true)
}

/// RMS normalisation: `[.., H]` like x.
///
/// # Errors
/// As [`layer_norm`].
pub fn rms_norm(x: &Tensor, before: Option<Add>, weight: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(run("norm::rms_norm", NormKind::Rms, x, before, (weight, None), eps, false)?.1)
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
    run("norm::rms_norm_sum", NormKind::Rms, x, Some(before), (weight, None), eps, true)
}

/// What rows are divided by, and whether they are centred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Centred, divided by the standard deviation.
    Layer,
    /// Divided by the root of the mean square.
    Rms,
}

/// `(what was normalised, its norm)`; the first is x itself unless `both`.
fn run(
    op: &'static str,
    kind: NormKind,
    x: &Tensor,
    before: Option<Add>,
    (weight, bias): (&Tensor, Option<&Tensor>),
    eps: f64,
    both: bool,
) -> Result<(Tensor, Tensor)> {
    let width = check(op, x, before, eps)?;
    let parameter = |what: &'static str, t: &Tensor| -> Result<Tensor> {
        if t.dims() != [width] || t.dtype() != x.dtype() {
            let got = format!("{:?} {:?}", t.dims(), t.dtype());
            return Err(Error::argument(op, what, got, format!("[{width}] {:?}", x.dtype())));
        }
        check_device(op, what, t, x)?;
        Ok(t.contiguous()?)
    };
    let weight = parameter("weight", weight)?;
    let bias = bias.map(|b| parameter("bias", b)).transpose()?;
    let add_bias = before.and_then(|a| a.bias);
    let add_bias = add_bias.map(|b| parameter("before.bias", b)).transpose()?;
    let residual = before.map(|a| a.residual);
    residual.map_or(Ok(()), |residual| check_device(op, "residual", residual, x))?;
    let operands = [Some(x), residual, Some(&weight), bias.as_ref(), add_bias.as_ref()];
    let tracked = operands.iter().flatten().any(|t| t.track_op());
    let norm = Norm { kind, eps: eps as f32, both, width, weight, bias, add_bias };
    if tracked {
        return norm.tracked(x, residual);
    }
    let x = rows(x)?;
    let y = match residual {
        Some(residual) => x.apply_op2_no_bwd(&rows(residual)?, &norm)?,
        None => x.apply_op1_no_bwd(&norm)?,
    };
    if both { Ok((y.get(0)?, y.get(1)?)) } else { Ok((x, y)) }
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

elementwise! {
    fn centre_and_scale(values: &mut [f32], mean: f32, inverse: f32, weight: &[f32]) {
        for (v, w) in values.iter_mut().zip(weight) {
            *v = (*v - mean) * inverse * w;
        }
    }
}

/// Mean (0 for RMS) and mean square around it.
fn moments(kind: NormKind, values: &[f32]) -> (f32, f32) {
    let n = values.len() as f32;
    let mean = match kind {
        NormKind::Layer => simd::moment(values, 0.0, false) / n,
        NormKind::Rms => 0.0,
    };
    (mean, simd::moment(values, mean, true) / n)
}

fn normalise(kind: NormKind, eps: f32, values: &mut [f32], weight: &[f32], bias: Option<&[f32]>) {
    let (mean, variance) = moments(kind, values);
    centre_and_scale(values, mean, 1.0 / (variance + eps).sqrt(), weight);
    if let Some(bias) = bias {
        simd::add_scaled(values, bias, 1.0);
    }
}

impl Norm {
    fn forward<T: Stored>(
        &self,
        x: Rows<T>,
        residual: Option<Rows<T>>,
    ) -> candle_core::Result<Vec<T>> {
        let width = self.width;
        let weight = parameter::<T>(&self.weight)?;
        let bias = self.bias.as_ref().map(parameter::<T>).transpose()?;
        let add_bias = self.add_bias.as_ref().map(parameter::<T>).transpose()?;
        let mut out = vec![T::default(); if self.both { 2 * x.len() } else { x.len() }];
        let normed_at = out.len() - x.len();
        let shared = SharedMut::new(&mut out);
        let rows = TASK.div_ceil(width);
        (0..x.count.div_ceil(rows)).into_par_iter().for_each(|task| {
            let mut values = vec![0f32; width];
            for row in task * rows..((task + 1) * rows).min(x.count) {
                let at = row * width;
                simd::widen(x.get(row), &mut values);
                if let Some(bias) = &add_bias {
                    simd::add_scaled(&mut values, bias, 1.0);
                }
                if let Some(residual) = residual {
                    simd::add_scaled(&mut values, residual.get(row), 1.0);
                }
                if self.both {
                    // SAFETY: each row of the sum is written by its one task, and only here.
                    T::store(&values, unsafe { shared.range(at, width) });
                }
                normalise(self.kind, self.eps, &mut values, &weight, bias.as_deref());
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
fn parameter<T: Stored>(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("norm: parameters are not on the CPU, where x is")
    };
    Ok(T::to_f32_vec(contiguous::<T>(storage, layout, "norm")?))
}

// The GPU's path; the kernel is in `cuda::norm`.

#[cfg(feature = "cuda")]
impl Norm {
    fn forward_on_gpu(
        &self,
        x: cuda::norm::Operand<'_>,
        residual: Option<cuda::norm::Operand<'_>>,
    ) -> Result<CudaStorage> {
        let weight = self.weight.storage_and_layout();
        let bias = self.bias.as_ref().map(Tensor::storage_and_layout);
        let add_bias = self.add_bias.as_ref().map(Tensor::storage_and_layout);
        let on_gpu = |what, storage| cuda::on_gpu("norm", what, storage);
        let call = cuda::norm::Call {
            kind: self.kind,
            residual,
            weight: (on_gpu("weight", &*weight.0)?, weight.1),
            bias: match &bias {
                Some((storage, layout)) => Some((on_gpu("bias", storage)?, layout)),
                None => None,
            },
            add_bias: match &add_bias {
                Some((storage, layout)) => Some((on_gpu("before.bias", storage)?, layout)),
                None => None,
            },
            eps: self.eps,
            both: self.both,
        };
        cuda::norm::forward(x, &call)
    }
}

// The differentiable path.

impl Norm {
    /// The sum as candle ops and the norm as an op that takes its parameters as inputs.
    fn tracked(self, x: &Tensor, residual: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let mut sum = rows(x)?;
        if let Some(bias) = &self.add_bias {
            sum = bias_act(&sum, Some(bias), Activation::Identity)?;
        }
        if let Some(residual) = residual {
            sum = (sum + residual)?;
        }
        let bias = match self.bias {
            Some(bias) => bias,
            None => Tensor::zeros(self.width, sum.dtype(), sum.device())?,
        };
        let op = TrackedNorm { kind: self.kind, eps: self.eps };
        let y = sum.apply_op3(&self.weight, &bias, op)?;
        Ok((sum, y))
    }
}

/// Gradients of a chunk of rows: of x, and the sums for weight and bias.
struct RowGrads {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl TrackedNorm {
    /// With h = (x - mean) / sd (RMS: x / rms) and g = grad * weight: dx = (g - mean(g) - h mean(g h)) / sd, where RMS
    /// has no mean(g); dweight = sum of grad * h over rows, dbias = sum of grad.
    fn rows(&self, x: &[f32], grad: &[f32], weight: &[f32]) -> RowGrads {
        let width = weight.len();
        let n = width as f32;
        let mut out = RowGrads {
            x: Vec::with_capacity(x.len()),
            weight: vec![0.0; width],
            bias: vec![0.0; width],
        };
        let (mut h, mut g) = (vec![0f32; width], vec![0f32; width]);
        for (x, grad) in x.chunks(width).zip(grad.chunks(width)) {
            let (mean, variance) = moments(self.kind, x);
            let inverse = 1.0 / (variance + self.eps).sqrt();
            normalised(&mut h, x, mean, inverse);
            product(&mut g, grad, weight);
            let mean_g = match self.kind {
                NormKind::Layer => simd::moment(&g, 0.0, false) / n,
                NormKind::Rms => 0.0,
            };
            let along = simd::dot(&g, &h) / n;
            simd::add_scaled(&mut out.bias, grad, 1.0);
            add_product(&mut out.weight, grad, &h);
            out.x.extend(g.iter().zip(&h).map(|(g, h)| inverse * (g - mean_g - h * along)));
        }
        out
    }
}

any_width! {
    fn normalised(out: &mut [f32], x: &[f32], mean: f32, inverse: f32) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = (x - mean) * inverse;
        }
    }
}

any_width! {
    fn product(out: &mut [f32], a: &[f32], b: &[f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a * b;
        }
    }
}

any_width! {
    fn add_product(out: &mut [f32], a: &[f32], b: &[f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out += a * b;
        }
    }
}

/// [`Norm`] without the sum, its parameters as inputs.
struct TrackedNorm {
    kind: NormKind,
    eps: f32,
}

impl CustomOp3 for TrackedNorm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        l: &Layout,
        weight: &CpuStorage,
        weight_l: &Layout,
        bias: &CpuStorage,
        bias_l: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(x, "norm", T => {
            let weight = T::to_f32_vec(contiguous::<T>(weight, weight_l, "norm")?);
            let bias = T::to_f32_vec(contiguous::<T>(bias, bias_l, "norm")?);
            let y = map_rows(Rows::<T>::of(x, l, "norm")?, |values, _| {
                normalise(self.kind, self.eps, values, &weight, Some(&bias));
            });
            Ok((T::wrap(y), l.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        l: &Layout,
        weight: &CudaStorage,
        weight_l: &Layout,
        bias: &CudaStorage,
        bias_l: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let call = cuda::norm::Call {
            kind: self.kind,
            residual: None,
            weight: (weight, weight_l),
            bias: Some((bias, bias_l)),
            add_bias: None,
            eps: self.eps,
            both: false,
        };
        let y = cuda::norm::forward((x, l), &call).map_err(candle)?;
        Ok((y, l.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // A frozen weight keeps none.
        let wanted = |grad: Tensor, of: &Tensor| of.track_op().then_some(grad);
        if !x.device().is_cpu() {
            let [dx, dweight, dbias] =
                composed::norm(self.kind, self.eps, [x, weight, bias], grad)?;
            return Ok((Some(dx), wanted(dweight, weight), wanted(dbias, bias)));
        }
        let [x32, weight32, grad32] = grads::as_f32([x, weight, grad], "norm")?;
        let width = weight32.len();
        let rows = TASK.div_ceil(width) * width;
        let parts: Vec<RowGrads> = x32
            .par_chunks(rows)
            .zip(grad32.par_chunks(rows))
            .map(|(x, grad)| self.rows(x, grad, &weight32))
            .collect();
        let (mut dweight, mut dbias) = (vec![0f32; width], vec![0f32; width]);
        let mut dx = Vec::with_capacity(x32.len());
        for part in &parts {
            dx.extend_from_slice(&part.x);
            simd::add_scaled(&mut dweight, &part.weight, 1.0);
            simd::add_scaled(&mut dbias, &part.bias, 1.0);
        }
        let [dweight, dbias] = [grads::like(dweight, weight)?, grads::like(dbias, bias)?];
        Ok((Some(grads::like(dx, x)?), wanted(dweight, weight), wanted(dbias, bias)))
    }
}

// candle's view of the op without gradients.

struct Norm {
    kind: NormKind,
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
            let y = self.forward::<T>(Rows::of(x, l, "norm")?, None)?;
            Ok((T::wrap(y), self.shape(l)))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, l: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((self.forward_on_gpu((x, l), None).map_err(candle)?, self.shape(l)))
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
            let residual = Rows::of(residual, residual_l, "norm")?;
            let y = self.forward::<T>(Rows::of(x, l, "norm")?, Some(residual))?;
            Ok((T::wrap(y), self.shape(l)))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        l: &Layout,
        residual: &CudaStorage,
        residual_l: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let residual = Some((residual, residual_l));
        Ok((self.forward_on_gpu((x, l), residual).map_err(candle)?, self.shape(l)))
    }
}
