//! Attention over candle tensors that live on a GPU.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Shape, Storage, Tensor};
use cudarc::driver::CudaStream;
use half::{bf16, f16};

use super::super::{Queue, Rows, Values, is_capturing};
use super::{Bias, Operands, Plan, Slots, attend, write_rows};
use crate::ops::attend::AttendPlan;
use crate::ops::host::{candle, flat_rows};
use crate::{Error, Result};

/// What was uploaded last, for what, and on which stream: the layers of a pass ask for the same thing one after another.
pub(super) struct Last<K, V>(Mutex<Option<Upload<K, V>>>);

struct Upload<K, V> {
    stream: Arc<CudaStream>,
    key: K,
    value: Arc<V>,
}

impl<K, V> Last<K, V> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// The last value if it was made on `stream` for a key that is the `same`, else a new one.
    pub(super) fn get(
        &self,
        op: &'static str,
        stream: &Arc<CudaStream>,
        same: impl Fn(&K) -> bool,
        key: impl FnOnce() -> K,
        make: impl FnOnce() -> Result<V>,
    ) -> Result<Arc<V>> {
        // A graph outlives what is kept here; candle keeps what is uploaded for one.
        if is_capturing(op, stream)? {
            return make().map(Arc::new);
        }
        // Nothing is left half done by a panic: the entry is replaced whole.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && Arc::ptr_eq(&last.stream, stream)
            && same(&last.key)
        {
            return Ok(last.value.clone());
        }
        let value = Arc::new(make()?);
        *last = Some(Upload { stream: stream.clone(), key: key(), value: value.clone() });
        Ok(value)
    }
}

/// By plan, rows, slots and group; by slots and slots of the arena.
static PLANS: Last<(AttendPlan, [usize; 3]), Plan> = Last::new();
static SLOTS: Last<(Vec<u32>, usize), Slots> = Last::new();

/// `[rows, heads, D]` with dense heads as rows of all heads; with the heads and D.
fn tokens<'a>(
    what: &'static str,
    (storage, layout): (&'a CudaStorage, &Layout),
) -> Result<(Rows<'a>, usize, usize)> {
    let (&[_, heads, dim], Some(flat)) = (layout.dims(), flat_rows(layout)) else {
        return Err(Error::argument("attend", what, format!("{layout:?}"), "[rows, heads, D]"));
    };
    Ok((Rows::of_storage("attend", what, storage, &flat)?, heads, dim))
}

/// The forward pass of the candle op, after its checks: heads lie one after another, rows any distance apart.
pub(in crate::ops) fn forward(
    [q, k, v]: [(&CudaStorage, &Layout); 3],
    plan: &AttendPlan,
    scale: f32,
    bias: Option<(&Tensor, usize)>,
) -> Result<(CudaStorage, Shape)> {
    let op = "attend";
    let (device, shape) = (q.0.device.clone(), q.1.shape().clone());
    let stream = device.cuda_stream();
    let (q, heads, dim) = tokens("q", q)?;
    let (k, kv_heads, _) = tokens("k", k)?;
    let (v, _, _) = tokens("v", v)?;
    let shape_of = [q.count, k.count, heads / kv_heads];
    let plan = PLANS.get(
        op,
        &stream,
        |(last, of)| *of == shape_of && last == plan,
        || (plan.clone(), shape_of),
        || Plan::new(&device, plan, q.count, k.count, heads / kv_heads),
    )?;
    let operands = Operands { q, k, v, dim };
    let locked = bias.map(|(table, max)| (table.storage_and_layout(), max));
    let bias = match &locked {
        None => None,
        Some(((storage, layout), max)) => {
            let Storage::Cuda(storage) = &**storage else {
                return Err(Error::argument(op, "bias.table", "off the GPU", "on the GPU of q"));
            };
            let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
            let table = storage.as_cuda_slice::<f32>()?.slice(range);
            Some(Bias { table, max: *max })
        }
    };
    let queue = Queue { op, stream: &stream };
    let len = operands.q.count * operands.q.width;
    macro_rules! run {
        ($ty:ty) => {{
            let mut out = queue.alloc::<$ty>(len)?;
            attend(&stream, &operands, &plan, scale, bias.as_ref(), &mut out)?;
            CudaStorage::wrap_cuda_slice(out, device)
        }};
    }
    let storage = match operands.q.values {
        Values::F32(_) => run!(f32),
        Values::F16(_) => run!(f16),
        Values::BF16(_) => run!(bf16),
    };
    Ok((storage, shape))
}

/// [`crate::ops::attend::write_rows`] on CUDA tensors, after its checks.
pub(in crate::ops) fn write_forward(
    (arena, arena_layout): (&mut CudaStorage, &Layout),
    (rows, rows_layout): (&CudaStorage, &Layout),
    slots: &[u32],
) -> Result<()> {
    let op = "write_rows";
    let (device, count) = (arena.device.clone(), arena_layout.dims()[0]);
    let stream = device.cuda_stream();
    let Some(flat) = flat_rows(rows_layout) else {
        return Err(Error::argument(op, "rows", format!("{rows_layout:?}"), "whole rows"));
    };
    let rows = Rows::of_storage(op, "rows", rows, &flat)?;
    let slots = SLOTS.get(
        op,
        &stream,
        |(last, of)| *of == count && last == slots,
        || (slots.to_vec(), count),
        || Slots::new(&device, slots, count),
    )?;
    write((arena, arena_layout), &stream, &rows, &slots)
}

fn write(
    (arena, layout): (&mut CudaStorage, &Layout),
    stream: &Arc<CudaStream>,
    rows: &Rows<'_>,
    slots: &Slots,
) -> Result<()> {
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    match &mut arena.slice {
        CudaStorageSlice::F32(arena) => {
            write_rows::<f32>(stream, rows, slots, &mut arena.slice_mut(range))
        }
        CudaStorageSlice::F16(arena) => {
            write_rows::<f16>(stream, rows, slots, &mut arena.slice_mut(range))
        }
        CudaStorageSlice::BF16(arena) => {
            write_rows::<bf16>(stream, rows, slots, &mut arena.slice_mut(range))
        }
        _ => Err(Error::argument("write_rows", "dtype", "of other values", "f32, f16 or bf16")),
    }
}

/// As [`write_rows`], into an arena that is a candle tensor `[slots, ...]`, contiguous.
///
/// # Errors
/// As [`write_rows`], and on a tensor that is not on a GPU.
pub fn write_rows_to(
    stream: &Arc<CudaStream>,
    rows: &Rows<'_>,
    slots: &Slots,
    arena: &Tensor,
) -> Result<()> {
    if !arena.is_contiguous() || arena.dim(0)? != slots.arena {
        let expected = format!("contiguous, {} slots", slots.arena);
        return Err(Error::argument(
            "write_rows",
            "arena",
            format!("{:?}", arena.layout()),
            expected,
        ));
    }
    Ok(arena.inplace_op1(&Write { stream, rows, slots })?)
}

struct Write<'a> {
    stream: &'a Arc<CudaStream>,
    rows: &'a Rows<'a>,
    slots: &'a Slots,
}

impl InplaceOp1 for Write<'_> {
    fn name(&self) -> &'static str {
        "write_rows"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("write_rows: the arena is not on the GPU, where the rows are")
    }

    fn cuda_fwd(&self, arena: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        write((arena, layout), self.stream, self.rows, self.slots).map_err(candle)
    }
}
