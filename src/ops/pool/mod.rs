//! Fused embedding pooling: token states of many sequences to one vector each, in one pass.
//!
//! ```text
//! packed  [sum T, H]                     padded  [B, T, H] with mask [B, T]
//!   rows 0..3   sequence 0                 1 1 1 0    right padding, left padding or holes:
//!   rows 3..5   sequence 1                 0 0 1 1    only marked tokens count
//!   cu_seqlens  0 3 5
//!
//! (+ residual -> LayerNorm) -> pool over tokens -> first D of H values -> (L2 normalise) -> [B, D]
//! ```
//!
//! # Modes
//! With x_1..x_n the tokens of a sequence, in order (padding is not counted, so both layouts and both padding sides agree):
//! [`Mode::Cls`] x_1; [`Mode::Last`] x_n; [`Mode::Mean`] sum x_i / n; [`Mode::MeanSqrtLen`] sum x_i / sqrt(n);
//! [`Mode::WeightedMean`] sum i x_i / sum i; [`Mode::Max`] the largest value of each column.
//!
//! # Numbers
//! - In: f32, f16, bf16. Sums in f32. Out: f32, f16, bf16 (rounded once, to nearest even), or i8 by [`pool_i8`].
//! - A sequence is cut into parts of 64 tokens; the tokens of a part are added in order, then the parts in order. The cut
//!   depends on the sequence only, so its vector is the same, bit for bit, in any batch, either layout, and on any number of threads.
//! - Error of a sum: each term takes part in at most 64 + n / 64 roundings (one more when weighted), so it is below
//!   (65 + n / 64) 2^-24 times the sum of the terms' magnitudes.
//! - LayerNorm: two passes, f32, variance over H (not H - 1), eps inside the root.
//! - Matryoshka: the vector is cut to its first D values *before* normalisation. LayerNorm sees all H.
//! - Normalisation divides by the Euclidean norm; where its square would leave the range of f32, it is taken in f64.
//!
//! # Edges
//! No sequences: `[0, D]`. An empty sequence gives zeros in every mode (max too). A zero vector normalises to zeros. NaN
//! propagates to its column, and by normalisation to the whole vector; so does an infinite value under normalisation.
//!
//! # Gradients
//! Real in every mode, with normalisation and truncation, by the op's own backward pass; a max goes to the first token that
//! attains it; a zero vector passes none through normalisation. With LayerNorm, if anything is being tracked, the
//! LayerNorm is made of candle ops instead of fused, and all of it has gradients. [`pool_i8`] refuses tracked inputs.
//!
//! # Cost
//! Floor: n H s_in bytes read (twice that with a residual; n D s_in without LayerNorm when D < H; one token a sequence for cls and
//! last), B D s_out written.
//!
//! # Example
//! ```
//! use bdhs::ops::pool::{Mode, Options, Rows, pool};
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> bdhs::Result<()> {
//! // Three tokens of one sentence and one of another, without padding.
//! let states = Tensor::new(&[[1f32, 0.0], [2.0, 0.0], [3.0, 3.0], [0.0, 5.0]], &Device::Cpu)?;
//! let mean = pool(&states, Rows::Packed { cu_seqlens: &[0, 3, 4] }, &Options::new(Mode::Mean), None)?;
//! assert_eq!(mean.to_vec2::<f32>()?, [[2.0, 1.0], [0.0, 5.0]]);
//! # Ok(())
//! # }
//! ```
//!
//! Source: Reimers and Gurevych 2019 (cls, mean, max), Muennighoff 2022 (weighted mean), Kusupati et al. 2022 (Matryoshka).

mod cpu;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Shape, Tensor};
use half::{bf16, f16};

#[cfg(feature = "cuda")]
use super::cuda;
use super::host::{Floats, candle, check_device, check_offsets, each_float, with_floats};
use super::simd::Element;
use crate::{Error, Result};
use cpu::{LayerNorm, Plan, Segments};

/// How tokens become one vector; formulas in the module docs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The first token.
    Cls,
    /// The mean.
    Mean,
    /// The largest value of each column.
    Max,
    /// The last token.
    Last,
    /// The mean with weights 1, 2, 3, ...
    WeightedMean,
    /// The sum over the square root of the length.
    MeanSqrtLen,
}

/// Which tokens belong to which sequence.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// States are `[sum T, H]`; sequence b owns rows `cu_seqlens[b]..cu_seqlens[b + 1]`. Starts at 0, never falls, ends at sum T.
    Packed {
        /// B + 1 offsets.
        cu_seqlens: &'a [u32],
    },
    /// States are `[B, T, H]`.
    Padded {
        /// `[B, T]`, u8, u32 or i64; nonzero = token, 0 = padding.
        mask: &'a Tensor,
    },
}

/// What to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Pooling mode.
    pub mode: Mode,
    /// Keep the first D of H values (Matryoshka); `None` = H.
    pub dim: Option<usize>,
    /// Divide by the Euclidean norm.
    pub normalize: bool,
    /// Output dtype: f32, f16 or bf16. [`pool_i8`] ignores it.
    pub dtype: DType,
}

impl Options {
    /// Full width, not normalised, f32.
    pub fn new(mode: Mode) -> Self {
        Self { mode, dim: None, normalize: false, dtype: DType::F32 }
    }
}

/// The last block's residual add and LayerNorm, fused before pooling: `norm(states + residual) * weight + bias`.
#[derive(Debug, Clone, Copy)]
pub struct FinalNorm<'a> {
    /// Shape of the states, any float dtype.
    pub residual: Option<&'a Tensor>,
    /// `[H]`, any float dtype.
    pub weight: &'a Tensor,
    /// `[H]`, any float dtype.
    pub bias: Option<&'a Tensor>,
    /// Added to the variance; finite, not negative.
    pub eps: f64,
}

impl FinalNorm<'_> {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [Some(self.weight), self.residual, self.bias].into_iter().flatten()
    }
}

/// Vectors in eight bits: value = code / 127.
///
/// The scale is one constant, so the integer dot product of two vectors over 127^2 is their cosine, up to an error of
/// (|a|_1 + |b|_1) / 254 + D / 254^2. Code -128 never comes from a number: it marks NaN.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Int8 {
    /// `[B, D]`, row-major.
    pub codes: Vec<i8>,
    /// D.
    pub dim: usize,
}

/// Pools token states to `[B, D]`, on the device of the states: see the module docs. Strided states are copied first; on CUDA only
/// where their rows are not evenly spaced. Nothing waits for a CUDA device.
///
/// # Errors
/// On shapes, dtypes, offsets or options outside the contract.
#[doc(alias = "mean_pooling")]
pub fn pool(
    states: &Tensor,
    rows: Rows<'_>,
    options: &Options,
    norm: Option<&FinalNorm<'_>>,
) -> Result<Tensor> {
    let checked = check("pool", states, rows, options, norm)?;
    let dtype = options.dtype;
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::argument(
            "pool",
            "output dtype",
            format!("{dtype:?}"),
            "f32, f16 or bf16",
        ));
    }
    let tracked = states.track_op() || norm.is_some_and(|n| n.tensors().any(Tensor::track_op));
    #[cfg(feature = "cuda")]
    if states.device().is_cuda() {
        let places = cuda::pool::places("pool", states, rows)?;
        if !tracked {
            return cuda::pool::on_tensor("pool", states, &places, options, checked.dim, norm);
        }
        let options = *options;
        let op = Pool { work: Arc::new(Work::Cuda { places, options, dim: checked.dim }), dtype };
        return Ok(match norm {
            None => states.contiguous()?.apply_op1(op)?,
            Some(norm) => composed_norm(states, norm)?.apply_op1(op)?,
        });
    }
    let plan = plan(checked, states, rows)?;
    match norm {
        Some(norm) if !tracked => {
            let shape = plan.shape();
            let pooled = fused(states, &plan, Some(norm))?;
            Ok(match dtype {
                DType::F16 => Tensor::from_vec(narrow::<f16>(&pooled), shape, &Device::Cpu)?,
                DType::BF16 => Tensor::from_vec(narrow::<bf16>(&pooled), shape, &Device::Cpu)?,
                _ => Tensor::from_vec(pooled, shape, &Device::Cpu)?,
            })
        }
        norm => {
            let states = match norm {
                None => states.contiguous()?,
                Some(norm) => composed_norm(states, norm)?,
            };
            Ok(states.apply_op1(Pool { work: Arc::new(Work::Cpu(plan)), dtype })?)
        }
    }
}

/// As [`pool`], into 8-bit codes on the host: round(127 v), ties to even. The vectors must be normalised, which bounds v by 1. On
/// CUDA this waits for the codes (`ops::cuda` leaves them on the device).
///
/// # Errors
/// As [`pool`], and if `options.normalize` is off or gradients are being tracked.
pub fn pool_i8(
    states: &Tensor,
    rows: Rows<'_>,
    options: &Options,
    norm: Option<&FinalNorm<'_>>,
) -> Result<Int8> {
    let checked = check("pool_i8", states, rows, options, norm)?;
    if !options.normalize {
        return Err(Error::argument(
            "pool_i8",
            "normalize",
            false,
            "true: the codes' scale is fixed at 1/127",
        ));
    }
    if states.track_op() || norm.is_some_and(|n| n.tensors().any(Tensor::track_op)) {
        return Err(Error::argument(
            "pool_i8",
            "states",
            "tracked for gradients",
            "detached tensors: codes have no gradient",
        ));
    }
    #[cfg(feature = "cuda")]
    if states.device().is_cuda() {
        let places = cuda::pool::places("pool_i8", states, rows)?;
        let codes = cuda::pool::codes("pool_i8", states, &places, options, checked.dim, norm)?;
        return Ok(Int8 { codes, dim: checked.dim });
    }
    let plan = plan(checked, states, rows)?;
    let code = |v: &f32| match (v * 127.0).round_ties_even() {
        x if x.is_nan() => i8::MIN,
        x => x.clamp(-127.0, 127.0) as i8,
    };
    Ok(Int8 { codes: fused(states, &plan, norm)?.iter().map(code).collect(), dim: plan.dim })
}

fn narrow<T: Element>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&v| T::from_f32(v)).collect()
}

/// A call whose arguments fit together.
struct Checked {
    mode: Mode,
    hidden: usize,
    dim: usize,
    normalize: bool,
}

/// Checks every argument, for any device; reads no values of a tensor.
fn check(
    op: &'static str,
    states: &Tensor,
    rows: Rows<'_>,
    options: &Options,
    norm: Option<&FinalNorm<'_>>,
) -> Result<Checked> {
    let shape = format!("{:?}", states.dims());
    let hidden = match (rows, states.dims()) {
        (Rows::Packed { cu_seqlens }, &[tokens, hidden]) => {
            check_offsets(op, "cu_seqlens", cu_seqlens, tokens, "the rows of states")?;
            hidden
        }
        (Rows::Padded { mask }, &[batch, tokens, hidden]) => {
            check_mask(op, states, mask, batch, tokens)?;
            hidden
        }
        (Rows::Packed { .. }, _) => return Err(Error::argument(op, "states", shape, "[sum T, H]")),
        (Rows::Padded { .. }, _) => return Err(Error::argument(op, "states", shape, "[B, T, H]")),
    };
    float(op, "states", states)?;
    if hidden == 0 {
        return Err(Error::argument(op, "states", shape, "H of at least 1"));
    }
    let dim = check_dim(op, options.dim, hidden)?;
    if let Some(norm) = norm {
        check_norm(op, states, norm, hidden)?;
    }
    Ok(Checked { mode: options.mode, hidden, dim, normalize: options.normalize })
}

/// The plan of a checked call on the CPU.
fn plan(checked: Checked, states: &Tensor, rows: Rows<'_>) -> Result<Plan> {
    let segments = match rows {
        Rows::Packed { cu_seqlens } => {
            Segments::Packed(cu_seqlens.iter().map(|&x| x as usize).collect())
        }
        Rows::Padded { mask } => padded(mask, states.dim(0)?, states.dim(1)?)?,
    };
    let Checked { mode, hidden, dim, normalize } = checked;
    Ok(Plan { segments, mode, hidden, dim, normalize })
}

/// D: all of `hidden`, or what is asked for.
pub(super) fn check_dim(op: &'static str, dim: Option<usize>, hidden: usize) -> Result<usize> {
    let dim = dim.unwrap_or(hidden);
    if dim == 0 || dim > hidden {
        return Err(Error::argument(op, "dim", dim, format!("in 1..={hidden}")));
    }
    Ok(dim)
}

fn float(op: &'static str, what: &'static str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        other => Err(Error::argument(op, what, format!("{other:?}"), "f32, f16 or bf16")),
    }
}

fn check_norm(
    op: &'static str,
    states: &Tensor,
    norm: &FinalNorm<'_>,
    hidden: usize,
) -> Result<()> {
    let wanted = [
        ("residual", norm.residual, states.dims()),
        ("norm weight", Some(norm.weight), &[hidden][..]),
        ("norm bias", norm.bias, &[hidden][..]),
    ];
    for (what, tensor, dims) in wanted {
        let Some(tensor) = tensor else { continue };
        if tensor.dims() != dims {
            return Err(Error::argument(
                op,
                what,
                format!("{:?}", tensor.dims()),
                format!("{dims:?}"),
            ));
        }
        float(op, what, tensor)?;
        check_device(op, what, tensor, states)?;
    }
    check_eps(op, norm.eps)
}

pub(super) fn check_eps(op: &'static str, eps: f64) -> Result<()> {
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::argument(op, "norm eps", eps, "finite and not negative"));
    }
    Ok(())
}

fn check_mask(
    op: &'static str,
    states: &Tensor,
    mask: &Tensor,
    batch: usize,
    tokens: usize,
) -> Result<()> {
    if mask.dims() != [batch, tokens] {
        return Err(Error::argument(
            op,
            "mask",
            format!("{:?}", mask.dims()),
            format!("[{batch}, {tokens}]"),
        ));
    }
    if !matches!(mask.dtype(), DType::U8 | DType::U32 | DType::I64) {
        return Err(Error::argument(op, "mask", format!("{:?}", mask.dtype()), "u8, u32 or i64"));
    }
    if u32::try_from(batch * tokens).is_err() {
        return Err(Error::argument(op, "B * T", batch * tokens, "below 2^32"));
    }
    check_device(op, "mask", mask, states)
}

/// The marked places of a checked mask.
fn padded(mask: &Tensor, batch: usize, tokens: usize) -> Result<Segments> {
    // Compared before any cast, since a cast could turn a large value into 0.
    let marks = mask.ne(0f64)?.flatten_all()?.to_vec1::<u8>()?;
    let (mut rows, mut cu) = (vec![], vec![0]);
    for b in 0..batch {
        rows.extend((b * tokens..(b + 1) * tokens).filter(|&t| marks[t] != 0).map(|t| t as u32));
        cu.push(rows.len());
    }
    Ok(Segments::Padded { rows, cu, tokens })
}

/// The pooled vectors in f32, computed without the autograd graph.
fn fused(states: &Tensor, plan: &Plan, norm: Option<&FinalNorm<'_>>) -> Result<Vec<f32>> {
    let Some(norm) = norm else {
        return with_floats("pool", "states", states, |v| {
            Ok(each_float!(v, v => cpu::forward(v, plan, None)))
        });
    };
    let vector = |t: &Tensor| t.to_dtype(DType::F32)?.to_vec1::<f32>();
    let weight = vector(norm.weight)?;
    let bias = norm.bias.map(vector).transpose()?;
    let eps = norm.eps as f32;
    let run = |states: Floats<'_>, residual: Option<Floats<'_>>| {
        let norm = LayerNorm { residual, weight: &weight, bias: bias.as_deref(), eps };
        Ok(each_float!(states, v => cpu::forward(v, plan, Some(&norm))))
    };
    with_floats("pool", "states", states, |states| match norm.residual {
        None => run(states, None),
        Some(residual) => {
            with_floats("pool", "residual", residual, |residual| run(states, Some(residual)))
        }
    })
}

/// The same LayerNorm by candle ops, in f32.
fn composed_norm(states: &Tensor, norm: &FinalNorm<'_>) -> Result<Tensor> {
    let mut x = states.to_dtype(DType::F32)?;
    if let Some(residual) = norm.residual {
        x = (x + residual.to_dtype(DType::F32)?)?;
    }
    let axis = x.rank() - 1;
    let centred = x.broadcast_sub(&x.mean_keepdim(axis)?)?;
    let variance = centred.sqr()?.mean_keepdim(axis)?;
    let mut y = centred.broadcast_div(&(variance + norm.eps)?.sqrt()?)?;
    y = y.broadcast_mul(&norm.weight.to_dtype(DType::F32)?)?;
    if let Some(bias) = norm.bias {
        y = y.broadcast_add(&bias.to_dtype(DType::F32)?)?;
    }
    Ok(y.contiguous()?)
}

/// A checked call, ready for its device.
enum Work {
    Cpu(Plan),
    #[cfg(feature = "cuda")]
    Cuda {
        places: cuda::pool::Places,
        options: Options,
        dim: usize,
    },
}

impl Work {
    fn cpu(&self) -> candle_core::Result<&Plan> {
        match self {
            Self::Cpu(plan) => Ok(plan),
            #[cfg(feature = "cuda")]
            Self::Cuda { .. } => candle_core::bail!("pool: made for a GPU, called on the CPU"),
        }
    }
}

/// The candle op: contiguous states in (CUDA: evenly spaced rows), `[B, D]` out.
struct Pool {
    work: Arc<Work>,
    dtype: DType,
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let plan = self.work.cpu()?;
        let states = Floats::new("pool", "states", storage, layout).map_err(candle)?;
        let pooled = each_float!(states, v => cpu::forward(v, plan, None));
        let storage = match self.dtype {
            DType::F16 => CpuStorage::F16(narrow(&pooled)),
            DType::BF16 => CpuStorage::BF16(narrow(&pooled)),
            _ => CpuStorage::F32(pooled),
        };
        Ok((storage, plan.shape().into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        let Work::Cuda { places, options, dim } = &*self.work else {
            candle_core::bail!("pool: made for the CPU, called on a GPU")
        };
        cuda::pool::forward(storage, layout, places, options, *dim).map_err(candle)
    }

    fn bwd(
        &self,
        states: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let grad = grad.to_dtype(DType::F32)?.contiguous()?;
        let states = states.contiguous()?;
        Ok(Some(states.apply_op2_no_bwd(&grad, &PoolGrad { work: self.work.clone() })?))
    }
}

/// Gradient of the states from the states and the f32 gradient of the pooled vectors.
struct PoolGrad {
    work: Arc<Work>,
}

impl CustomOp2 for PoolGrad {
    fn name(&self) -> &'static str {
        "pool backward"
    }

    fn cpu_fwd(
        &self,
        states: &CpuStorage,
        states_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let plan = self.work.cpu()?;
        let x = Floats::new("pool backward", "states", states, states_layout).map_err(candle)?;
        let Floats::F32(grad) =
            Floats::new("pool backward", "gradient", grad, grad_layout).map_err(candle)?
        else {
            candle_core::bail!("pool backward: the gradient is not f32");
        };
        let storage = match x {
            Floats::F32(x) => CpuStorage::F32(cpu::backward(x, grad, plan)),
            Floats::F16(x) => CpuStorage::F16(cpu::backward(x, grad, plan)),
            Floats::BF16(x) => CpuStorage::BF16(cpu::backward(x, grad, plan)),
        };
        Ok((storage, states_layout.shape().clone()))
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        states: &candle_core::CudaStorage,
        states_layout: &Layout,
        grad: &candle_core::CudaStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        let Work::Cuda { places, options, .. } = &*self.work else {
            candle_core::bail!("pool backward: made for the CPU, called on a GPU")
        };
        cuda::pool::backward((states, states_layout), (grad, grad_layout), places, options)
            .map_err(candle)
    }
}
