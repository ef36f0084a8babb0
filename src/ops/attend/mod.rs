//! Ragged attention over a key/value arena: one op for encoders, prefill and decode.
//!
//! ```text
//! arena slots   0 1 2 3 4 5 6 7 8 9 | 10 11 | 12        k, v [S, Hkv, D]
//!               prefix of the answer  fork A  fork B     nothing is copied for a fork
//!
//! block         rows of q   keys (segments, as if one after another)        causal
//! prefill       0..10       [0, 10)                                         yes: row t sees slots 0..=t
//! fork A        10..12      [0, 6) [10, 12)   leaves the prefix at slot 6   yes
//! fork B        12..13      [0, 8) [12, 13)   leaves it at slot 8           yes
//! ```
//!
//! * q `[R, Hq, D]`; k, v `[S, Hkv, D]` with Hq a multiple of Hkv (query head h reads key head h / (Hq / Hkv)); out `[R, Hq, D]`.
//!   f32, f16 or bf16 (all alike); scores, softmax and sums in f32, rounded once at the end.
//! * An [`AttendPlan`] is a list of [`Block`]s of query rows, each with the arena segments its rows see, as if concatenated.
//!   In a causal block of n rows, row t does not see the last n - 1 - t keys. So a fork of a cached prefix is another
//!   block whose first segment is that prefix: nothing is copied.
//! * `out = softmax(scale q.k + bias) v`; the softmax subtracts the row's maximum first, in two passes.
//! * A row with no keys, and a row in no block, gives zeros. NaN in q reaches its own row only; NaN or infinity in k or v
//!   reaches every row that sees it and, in a causal block, may reach rows of the block that do not.
//! * A row's result depends on its own keys only. Row counts choose the code path, so it may differ in the last bits
//!   (about 1e-6 of the largest |v|) with the size of its block; it never depends on other blocks or on threads.
//! * Error: within 1e-5 of the largest |v| in f32 for scores within +-100.
//! * Bytes (floor): q and out once; of k and v, each segment once per block that names it.
//! * On a GPU D is at most 256, and blocks of one row or few lines (rows times Hq / Hkv) read together what they have
//!   in common: aligned runs of 64 of their keys in the same slots, for 16 lines at a time.
//! * Gradients of q, k and v are real, in f32 whatever the dtype; a tracked bias table is refused. On a GPU they are made of
//!   candle's ops, a block at a time, and a bias is refused.
//! * Built with `flash-attn`, and with `BDHS_ATTEND=flash` in the environment, calls on a GPU that candle-flash-attn's kernels
//!   compute just so are left to them ([`flash`]): rounded once more, and chosen by the whole plan.
//!
//! # Example
//! Two sequences of 2 and 3 rows in one call, without padding:
//!
//! ```
//! use bdhs::ops::attend::{AttendPlan, attend};
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> bdhs::Result<()> {
//! let (heads, dim) = (2, 4);
//! let q = Tensor::randn(0f32, 1.0, (5, heads, dim), &Device::Cpu)?;
//! let v = Tensor::ones((5, heads, dim), candle_core::DType::F32, &Device::Cpu)?;
//! let plan = AttendPlan::ragged(&[0, 2, 5], true);
//! let out = attend(&q, &q, &v, &plan, 0.5, None)?;
//! // Weights add up to 1, so the mean of ones is 1 in every row.
//! assert!((out.mean_all()?.to_scalar::<f32>()? - 1.0).abs() < 1e-6);
//! # Ok(())
//! # }
//! ```
//!
//! Source: scaled dot-product attention (Vaswani et al. 2017); grouped queries (Ainslie et al. 2023).

mod composed;
mod cpu;
pub mod flash;
mod grad;
mod plan;

use super::host::{Rows, Stored, by_float, flat_rows, whole_rows};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp3, DType, InplaceOp2, Layout, Shape, Tensor, bail};
use std::borrow::Cow;

pub use plan::{AttendPlan, Block, Segment, Sequences};
pub(super) use plan::{WIDEST_ON_GPU, check_slots};

/// A bias added to the scaled scores by distance: `table[h, key - query + max - 1]`, as in MPNet and T5.
#[derive(Clone, Debug)]
pub struct RelativeBias {
    /// `[Hq, 2 max - 1]`, f32.
    pub table: Tensor,
    /// The longest sequence the table serves.
    pub max: usize,
}

/// Attention by plan. `scale` multiplies q.k. With `bias`, each block must see exactly its own number of keys in one
/// segment (key j is the position of query j), at most `bias.max`.
///
/// # Errors
/// [`Error::Argument`] for shapes or dtypes outside the contract, rows in two blocks, and rows or slots out of range.
#[doc(alias = "flash_attn_varlen")]
#[doc(alias = "scaled_dot_product_attention")]
pub fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    plan: &AttendPlan,
    scale: f32,
    bias: Option<&RelativeBias>,
) -> Result<Tensor> {
    check(q, k, v, plan, scale)?;
    let bias = bias.map(|b| check_bias(b, plan, q.dims()[1])).transpose()?;
    // Rows of any pitch are taken as they are.
    let [q, k, v] = [whole_rows(q)?, whole_rows(k)?, whole_rows(v)?];
    #[cfg(feature = "cuda")]
    if q.device().is_cuda()
        && let Some(out) = flash::chosen([&q, &k, &v], plan, scale, bias.is_some())?
    {
        return Ok(out);
    }
    if [&q, &k, &v].iter().any(|t| t.track_op()) {
        // The backward pass needs the plan for longer than this call.
        let op = Attend { plan: Cow::Owned(plan.clone()), scale, bias };
        return Ok(q.apply_op3(&k, &v, op)?);
    }
    Ok(q.apply_op3_no_bwd(&k, &v, &Attend { plan: Cow::Borrowed(plan), scale, bias })?)
}

/// The part of the contract that is about q, k, v, scale and the plan's ranges.
fn check(q: &Tensor, k: &Tensor, v: &Tensor, plan: &AttendPlan, scale: f32) -> Result<()> {
    const OP: &str = "attend";
    let shape = |t: &Tensor| format!("{:?} {:?}", t.dims(), t.dtype());
    if !matches!(q.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::argument(OP, "dtype", format!("{:?}", q.dtype()), "F32, F16 or BF16"));
    }
    let &[rows, q_heads, dim] = q.dims() else {
        return Err(Error::argument(OP, "q", shape(q), "[R, Hq, D]"));
    };
    let &[slots, kv_heads, k_dim] = k.dims() else {
        return Err(Error::argument(OP, "k", shape(k), "[S, Hkv, D]"));
    };
    if k_dim != dim || dim == 0 || k.dtype() != q.dtype() {
        return Err(Error::argument(OP, "k", shape(k), format!("D and dtype of q: {}", shape(q))));
    }
    if v.dims() != k.dims() || v.dtype() != k.dtype() {
        return Err(Error::argument(OP, "v", shape(v), format!("as k: {}", shape(k))));
    }
    if kv_heads == 0 || q_heads % kv_heads != 0 {
        return Err(Error::argument(OP, "Hq", q_heads, format!("a multiple of Hkv = {kv_heads}")));
    }
    if !scale.is_finite() {
        return Err(Error::argument(OP, "scale", scale, "finite"));
    }
    if !q.device().is_cpu() && dim > WIDEST_ON_GPU {
        return Err(Error::argument(OP, "D", dim, format!("in 1..={WIDEST_ON_GPU} on a GPU")));
    }
    plan.check(rows, slots)
}

fn check_bias(bias: &RelativeBias, plan: &AttendPlan, heads: usize) -> Result<Bias> {
    const OP: &str = "attend";
    let t = &bias.table;
    let width = (2 * bias.max).saturating_sub(1);
    if t.dims() != [heads, width] || t.dtype() != DType::F32 {
        let got = format!("{:?} {:?}", t.dims(), t.dtype());
        return Err(Error::argument(OP, "bias.table", got, format!("[{heads}, {width}] F32")));
    }
    if t.track_op() {
        return Err(Error::argument(OP, "bias.table", "tracked", "detached: there is no gradient"));
    }
    for (i, block) in plan.blocks.iter().enumerate() {
        let len = block.rows.len();
        let own = matches!(block.keys[..], [s] if s.len == len) || (len == 0);
        if !own || len > bias.max {
            let got = format!("{len} rows and {:?} in block {i}", block.keys);
            let expected = format!("one segment as long as the rows, at most {}", bias.max);
            return Err(Error::argument(OP, "keys with a relative bias", got, expected));
        }
    }
    Ok(Bias { table: t.contiguous()?, max: bias.max })
}

/// Writes `rows` `[n, ..]` into the arena `[S, ..]`, row i at `slots[i]`, in place and without a gradient.
///
/// # Errors
/// [`Error::Argument`] if shapes or dtypes differ, a slot is out of range or named twice, or the arena is not
/// contiguous; nothing is written then.
pub fn write_rows(arena: &Tensor, rows: &Tensor, slots: &[u32]) -> Result<()> {
    const OP: &str = "attend::write_rows";
    if arena.rank() == 0 || !arena.is_contiguous() {
        let got = format!("{:?} with strides {:?}", arena.dims(), arena.stride());
        return Err(Error::argument(OP, "arena", got, "contiguous [S, ..]"));
    }
    let expected = [&[slots.len()], &arena.dims()[1..]].concat();
    if rows.dims() != expected || rows.dtype() != arena.dtype() {
        let got = format!("{:?} {:?}", rows.dims(), rows.dtype());
        return Err(Error::argument(OP, "rows", got, format!("{expected:?} {:?}", arena.dtype())));
    }
    check_slots(OP, slots, arena.dims()[0])?;
    if slots.is_empty() {
        return Ok(());
    }
    Ok(arena.inplace_op2(&whole_rows(rows)?, &WriteRows { slots })?)
}

// candle's view of the ops.

struct Bias {
    table: Tensor,
    max: usize,
}

struct Attend<'p> {
    plan: Cow<'p, AttendPlan>,
    scale: f32,
    bias: Option<Bias>,
}

impl CustomOp3 for Attend<'_> {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(q, "attend", T => {
            let operands = cpu::Operands {
                q: cpu::Heads::<T>::new(q, q_l)?,
                k: cpu::Heads::<T>::new(k, k_l)?,
                v: cpu::Heads::<T>::new(v, v_l)?,
            };
            let out = cpu::attend(&operands, self)?;
            Ok((<T as Stored>::wrap(out), q_l.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        q_l: &Layout,
        k: &candle_core::CudaStorage,
        k_l: &Layout,
        v: &candle_core::CudaStorage,
        v_l: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        let bias = self.bias.as_ref().map(|bias| (&bias.table, bias.max));
        let operands = [(q, q_l), (k, k_l), (v, v_l)];
        super::cuda::attend::forward(operands, &self.plan, self.scale, bias)
            .map_err(super::host::candle)
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [q, k, v] = if q.device().is_cpu() {
            grad::backward(self, [q, k, v], grad)?
        } else if self.bias.is_some() {
            bail!("attend: with a relative bias, gradients are computed on the CPU only")
        } else {
            composed::attend(&self.plan, self.scale, [q, k, v], grad)?
        };
        Ok((Some(q), Some(k), Some(v)))
    }
}

struct WriteRows<'a> {
    slots: &'a [u32],
}

impl InplaceOp2 for WriteRows<'_> {
    fn name(&self) -> &'static str {
        "write_rows"
    }

    fn cpu_fwd(
        &self,
        arena: &mut CpuStorage,
        arena_l: &Layout,
        rows: &CpuStorage,
        rows_l: &Layout,
    ) -> candle_core::Result<()> {
        by_float!(rows, "write_rows", T => {
            let Some(flat) = flat_rows(rows_l) else { bail!("write_rows: {rows_l:?}") };
            let rows = Rows::<T>::of(rows, &flat, "write_rows")?;
            let Some(arena) = <T as Stored>::slice_mut(arena) else {
                bail!("write_rows: operands differ in dtype")
            };
            for (row, &slot) in self.slots.iter().enumerate() {
                let at = arena_l.start_offset() + slot as usize * rows.width;
                arena[at..at + rows.width].copy_from_slice(rows.get(row));
            }
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        arena: &mut candle_core::CudaStorage,
        arena_l: &Layout,
        rows: &candle_core::CudaStorage,
        rows_l: &Layout,
    ) -> candle_core::Result<()> {
        super::cuda::attend::write_forward((arena, arena_l), (rows, rows_l), self.slots)
            .map_err(super::host::candle)
    }
}
