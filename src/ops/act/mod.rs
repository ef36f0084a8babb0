//! Activations with their bias, and the gated product of Llama's MLP.
//!
//! ```text
//! bias_act    x [.., H] ──► + b [H] ──► f ──► y [.., H]          silu_mul    g [.., H] ──► silu ──┐
//!             (any leading axes; b is the same for each row)                 u [.., H] ───────────┴─► * ──► y [.., H]
//! ```
//!
//! * `bias_act`: `y = f(x + b)`, x `[.., H]`, b `[H]` or none; `silu_mul`: `y = silu(g) * u`, both `[.., H]`.
//! * f32, f16, bf16 in and out (operands alike), computed in f32, rounded once at the end.
//! * Error: GELU within 2e-7 (absolute, or relative to |x| where |x| > 1) of the exact function; the others within 4 ulp.
//! * NaN gives NaN; infinities give what the formula gives (`silu(-inf)` = -inf / inf = NaN, as everywhere).
//! * Each element depends on nothing else: results do not depend on shape, batch or thread count.
//! * Bytes: `bias_act` reads and writes each element once, `silu_mul` reads two and writes one.
//! * Gradients are real, in f32 (on a GPU made of candle's ops): of x, bias, gate and up. At 0 the slope of relu is 0.
//! * On a GPU a call is one launch, within the same bounds (not the CPU's bits).
//!
//! # Example
//! ```
//! use bdhs::ops::act::{Activation, bias_act};
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> bdhs::Result<()> {
//! let x = Tensor::new(&[[-1f32, 0.0, 2.0]], &Device::Cpu)?;
//! let bias = Tensor::new(&[0f32, 0.5, -1.0], &Device::Cpu)?;
//! let y = bias_act(&x, Some(&bias), Activation::Relu)?;
//! assert_eq!(y.to_vec2::<f32>()?, [[0.0, 0.5, 1.0]]);
//! # Ok(())
//! # }
//! ```
//!
//! Sources: GELU (Hendrycks & Gimpel 2016) by erf and by tanh, quick GELU as in CLIP, SiLU; erf from fits of our own.

mod composed;

#[cfg(feature = "cuda")]
use super::cuda;
use super::grads;
#[cfg(feature = "cuda")]
use super::host::candle;
use super::host::{Rows, Stored, by_float, check_device, contiguous, map_rows, rows};
use super::simd::{self, elementwise, exp};
use crate::{Error, Result};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Shape, Tensor};

/// The function after the bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x` itself: only the bias is added.
    Identity,
    /// `x/2 (1 + erf(x / sqrt 2))`: what Hugging Face calls `gelu`.
    GeluErf,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `x sigmoid(1.702 x)`: `quick_gelu`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// The function a Hugging Face config means by this name (`hidden_act`), if we have it.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::GeluErf,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "tanh" => Self::Tanh,
            "linear" => Self::Identity,
            _ => return None,
        })
    }
}

/// `f(x + bias)`: x `[.., H]`, bias `[H]`, the same shape and dtype out. An empty x gives an empty result.
///
/// # Errors
/// [`Error::Argument`] for a scalar x, a bias of another length or dtype, or a dtype other than f32, f16, bf16.
pub fn bias_act(x: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    const OP: &str = "act::bias_act";
    check_float(OP, x)?;
    let Some(&width) = x.dims().last() else {
        return Err(Error::argument(OP, "x", "a scalar", "[.., H]"));
    };
    let x = rows(x)?;
    let Some(bias) = bias else {
        return Ok(x.apply_op1(Plain(activation))?);
    };
    if bias.dims() != [width] || bias.dtype() != x.dtype() {
        let got = format!("{:?} {:?}", bias.dims(), bias.dtype());
        return Err(Error::argument(OP, "bias", got, format!("[{width}] {:?}", x.dtype())));
    }
    check_device(OP, "bias", bias, &x)?;
    Ok(x.apply_op2(&bias.contiguous()?, Biased(activation))?)
}

/// `silu(gate) * up`, both of one shape and dtype.
///
/// # Errors
/// [`Error::Argument`] if shapes or dtypes differ, or the dtype is not f32, f16 or bf16.
#[doc(alias = "swiglu")]
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    const OP: &str = "act::silu_mul";
    check_float(OP, gate)?;
    if gate.dims() != up.dims() || gate.dtype() != up.dtype() {
        let got = format!("{:?} {:?}", up.dims(), up.dtype());
        return Err(Error::argument(
            OP,
            "up",
            got,
            format!("{:?} {:?}", gate.dims(), gate.dtype()),
        ));
    }
    check_device(OP, "up", up, gate)?;
    Ok(rows(gate)?.apply_op2(&rows(up)?, SiluMul)?)
}

fn check_float(op: &'static str, x: &Tensor) -> Result<()> {
    match x.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        other => Err(Error::argument(op, "dtype", format!("{other:?}"), "F32, F16 or BF16")),
    }
}

// CPU path.

/// `x q` below zero, so that the tail keeps its relative accuracy, `x (1 - q)` above.
#[inline(always)]
fn gelu_erf(x: f32) -> f32 {
    x * normal_cdf(x)
}

/// The normal distribution's integral up to x, by q = erfc(|x| / sqrt 2) / 2.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    // |z| < 1: z P(z^2), minimax, relative error 1.2e-9.
    let t = z * z;
    let p = (((((7.853_861_5e-5 * t - 8.010_193_7e-4) * t + 5.188_327_7e-3) * t - 0.026_853_813)
        * t
        + 0.112_835_854)
        * t
        - 0.376_126_26)
        * t
        + std::f32::consts::FRAC_2_SQRT_PI;
    let small = 0.5 - 0.5 * (z * p);
    // |z| >= 1: e^(-z^2) Q(1 / (1 + 0.4 z)), Q fitted to erfcx on [1, 10.2], relative error 2.1e-8.
    let u = 1.0 / (1.0 + 0.4 * z);
    let q = ((((((-0.119_014_79 * u + 0.251_749) * u - 1.744_43e-3) * u + 0.219_663_32) * u
        + 0.196_248_3)
        * u
        + 0.227_255_06)
        * u
        + 0.225_560_1)
        * u
        + 3.292_088_9e-6;
    let large = 0.5 * exp(-t) * q;
    let half_erfc = if z < 1.0 { small } else { large };
    if x < 0.0 { half_erfc } else { 1.0 - half_erfc }
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    // (1 + tanh u) / 2 = 1 / (1 + e^(-2u)).
    let u = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-2.0 * u))
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

macro_rules! map_in_place {
    ($name:ident, $f:expr) => {
        elementwise! {
            fn $name(values: &mut [f32]) {
                for v in values.iter_mut() {
                    *v = $f(*v);
                }
            }
        }
    };
}
map_in_place!(map_gelu_erf, gelu_erf);
map_in_place!(map_gelu_tanh, gelu_tanh);
map_in_place!(map_quick_gelu, |x: f32| x / (1.0 + exp(-1.702 * x)));
// Not `f32::max`, which would turn NaN into 0.
map_in_place!(map_relu, |x: f32| if x < 0.0 { 0.0 } else { x });
map_in_place!(map_silu, silu);
map_in_place!(map_tanh, f32::tanh);

// Slopes, for the backward passes.
map_in_place!(map_gelu_erf_slope, |x: f32| {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    normal_cdf(x) + x * INV_SQRT_2PI * exp(-0.5 * x * x)
});
map_in_place!(map_gelu_tanh_slope, |x: f32| {
    let u = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    let s = 1.0 / (1.0 + exp(-2.0 * u));
    s + 2.0 * x * s * (1.0 - s) * 0.797_884_6 * (1.0 + 0.134_145 * x * x)
});
map_in_place!(map_quick_gelu_slope, |x: f32| sigmoid_slope(x, 1.702));
map_in_place!(map_relu_slope, |x: f32| if x > 0.0 { 1.0 } else { x * 0.0 });
map_in_place!(map_silu_slope, |x: f32| sigmoid_slope(x, 1.0));
map_in_place!(map_tanh_slope, |x: f32| {
    let t = f32::tanh(x);
    1.0 - t * t
});

/// The slope of x sigmoid(k x).
#[inline(always)]
fn sigmoid_slope(x: f32, k: f32) -> f32 {
    let s = 1.0 / (1.0 + exp(-k * x));
    s + k * x * s * (1.0 - s)
}

/// Turns values into slopes at them.
fn slope(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Identity => values.fill(1.0),
        Activation::GeluErf => map_gelu_erf_slope(values),
        Activation::GeluTanh => map_gelu_tanh_slope(values),
        Activation::QuickGelu => map_quick_gelu_slope(values),
        Activation::Relu => map_relu_slope(values),
        Activation::Silu => map_silu_slope(values),
        Activation::Tanh => map_tanh_slope(values),
    }
}

elementwise! {
    fn multiply(values: &mut [f32], by: &[f32]) {
        for (v, by) in values.iter_mut().zip(by) {
            *v *= by;
        }
    }
}

elementwise! {
    fn gate_times_up(gate: &mut [f32], up: &[f32]) {
        for (g, u) in gate.iter_mut().zip(up) {
            *g = silu(*g) * u;
        }
    }
}

/// Turns values into their activations.
pub(super) fn apply(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::GeluErf => map_gelu_erf(values),
        Activation::GeluTanh => map_gelu_tanh(values),
        Activation::QuickGelu => map_quick_gelu(values),
        Activation::Relu => map_relu(values),
        Activation::Silu => map_silu(values),
        Activation::Tanh => map_tanh(values),
    }
}

fn bias_act_cpu<T: Stored>(x: Rows<T>, bias: Option<&[T]>, f: Activation) -> Vec<T> {
    map_rows(x, |values, _| {
        if let Some(bias) = bias {
            simd::add_scaled(values, bias, 1.0);
        }
        apply(f, values);
    })
}

fn silu_mul_cpu<T: Stored>(gate: Rows<T>, up: Rows<T>) -> Vec<T> {
    map_rows(gate, |values, row| {
        // A stack buffer in pieces, since the widest MLP rows do not fit one.
        let mut wide = [0f32; 256];
        for (values, up) in values.chunks_mut(256).zip(up.get(row).chunks(256)) {
            let wide = &mut wide[..up.len()];
            simd::widen(up, wide);
            gate_times_up(values, wide);
        }
    })
}

// Backward passes, in f32.

/// Gradients of `f(x + bias)` with respect to x and bias.
fn bias_act_grads(
    x: &Tensor,
    bias: Option<&Tensor>,
    grad: &Tensor,
    activation: Activation,
) -> candle_core::Result<(Tensor, Option<Tensor>)> {
    if !x.device().is_cpu() {
        return composed::bias_act(x, bias, grad, activation);
    }
    let [x32, grad32] = grads::as_f32([x, grad], "bias_act")?;
    let width = width(x.shape());
    let bias32 = match bias {
        Some(bias) => Some(grads::as_f32([bias], "bias_act")?),
        None => None,
    };
    let dx = map_rows(Rows::packed(&x32, width), |values, row| {
        if let Some([bias]) = &bias32 {
            simd::add_scaled(values, bias, 1.0);
        }
        slope(activation, values);
        multiply(values, &grad32[row * width..(row + 1) * width]);
    });
    let dbias = bias.map(|bias| grads::like(grads::column_sums(&dx, width), bias)).transpose()?;
    Ok((grads::like(dx, x)?, dbias))
}

/// Gradients of `silu(gate) * up`.
fn silu_mul_grads(
    gate: &Tensor,
    up: &Tensor,
    grad: &Tensor,
) -> candle_core::Result<(Tensor, Tensor)> {
    if !gate.device().is_cpu() {
        return composed::silu_mul(gate, up, grad);
    }
    let [gate32, up32, grad32] = grads::as_f32([gate, up, grad], "silu_mul")?;
    let width = width(gate.shape());
    let gate32 = Rows::packed(&gate32, width);
    let dgate = map_rows(gate32, |values, row| {
        let own = row * width..(row + 1) * width;
        map_silu_slope(values);
        multiply(values, &up32[own.clone()]);
        multiply(values, &grad32[own]);
    });
    let dup = map_rows(gate32, |values, row| {
        map_silu(values);
        multiply(values, &grad32[row * width..(row + 1) * width]);
    });
    Ok((grads::like(dgate, gate)?, grads::like(dup, up)?))
}

// candle's view of the ops.

fn width(shape: &Shape) -> usize {
    shape.dims().last().copied().unwrap_or(1).max(1)
}

struct Plain(Activation);

impl CustomOp1 for Plain {
    fn name(&self) -> &'static str {
        "bias_act"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(x, self.name(), T => {
            let y = bias_act_cpu::<T>(Rows::of(x, l, self.name())?, None, self.0);
            Ok((T::wrap(y), l.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, l: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let y = cuda::act::biased((x, l), None, self.0).map_err(candle)?;
        Ok((y, l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(bias_act_grads(x, None, grad, self.0)?.0))
    }
}

struct Biased(Activation);

impl CustomOp2 for Biased {
    fn name(&self) -> &'static str {
        "bias_act"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        l: &Layout,
        bias: &CpuStorage,
        bias_l: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(x, self.name(), T => {
            let bias = contiguous(bias, bias_l, self.name())?;
            let y = bias_act_cpu::<T>(Rows::of(x, l, self.name())?, Some(bias), self.0);
            Ok((T::wrap(y), l.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        l: &Layout,
        bias: &CudaStorage,
        bias_l: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let y = cuda::act::biased((x, l), Some((bias, bias_l)), self.0).map_err(candle)?;
        Ok((y, l.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (x, bias) = bias_act_grads(x, Some(bias), grad, self.0)?;
        Ok((Some(x), bias))
    }
}

struct SiluMul;

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        "silu_mul"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        l: &Layout,
        up: &CpuStorage,
        up_l: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(gate, self.name(), T => {
            let up = Rows::of(up, up_l, self.name())?;
            let y = silu_mul_cpu::<T>(Rows::of(gate, l, self.name())?, up);
            Ok((T::wrap(y), l.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        l: &Layout,
        up: &CudaStorage,
        up_l: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let y = cuda::act::gated((gate, l), (up, up_l)).map_err(candle)?;
        Ok((y, l.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (gate, up) = silu_mul_grads(gate, up, grad)?;
        Ok((Some(gate), Some(up)))
    }
}
