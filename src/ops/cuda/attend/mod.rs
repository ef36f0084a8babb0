//! Ragged attention on a GPU. Contract: [`crate::ops::attend`]; calls: [`super`].
//!
//! f16 and bf16 go through the tensor cores, f32 through fused multiply-adds. Blocks of many rows read their keys once for
//! every 64 lines (a query row and a query head). Those of few rows (decoding) divide their keys over the GPU, 64 at a time. Up to
//! 16 lines read such a chunk together: the query heads of a key head, and rows of any blocks that see it in the same slots, as
//! forks of one prefix do.

#[cfg(feature = "flash-attn")]
mod flash;
mod plan;
#[cfg(feature = "cuda")]
mod tensors;

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DevicePtrMut};

use super::args::{self, AttendArgs, AttendItem, AttendRow, AttendSegment, AttendShare, WriteArgs};
use super::module::File;
use super::pool::Output;
use super::{Queue, Rows, Upload, Values, check_len, geometry};
use crate::ops::attend::{WIDEST_ON_GPU, check_slots};
use crate::{Error, Result};
#[cfg(feature = "flash-attn")]
pub(in crate::ops) use flash::forward as flash_forward;
pub use plan::Plan;
use plan::Sizes;
#[cfg(feature = "cuda")]
pub use tensors::write_rows_to;
#[cfg(feature = "cuda")]
pub(in crate::ops) use tensors::{forward, write_forward};

/// Queries, keys and values: rows of whole tokens, head after head.
#[derive(Debug)]
pub struct Operands<'a> {
    /// `[R, Hq D]`.
    pub q: Rows<'a>,
    /// `[S, Hkv D]`.
    pub k: Rows<'a>,
    /// `[S, Hkv D]`.
    pub v: Rows<'a>,
    /// D, at most 256.
    pub dim: usize,
}

/// A bias by distance; see [`crate::ops::attend::RelativeBias`].
#[derive(Debug)]
pub struct Bias<'a> {
    /// `[Hq, 2 max - 1]`.
    pub table: CudaView<'a, f32>,
    /// The longest sequence that it serves.
    pub max: usize,
}

/// Heads of a call whose arguments fit together.
struct Heads {
    kv: usize,
    group: usize,
}

fn check(
    op: &'static str,
    operands: &Operands<'_>,
    plan: &Plan,
    scale: f32,
    bias: Option<&Bias<'_>>,
) -> Result<Heads> {
    let Operands { q, k, v, dim } = operands;
    if *dim == 0 || *dim > WIDEST_ON_GPU {
        return Err(Error::argument(op, "D", dim, format!("in 1..={WIDEST_ON_GPU} on a GPU")));
    }
    let shape =
        |rows: &Rows<'_>| format!("{} rows of {} {}", rows.count, rows.width, rows.values.name());
    if k.width % dim != 0 || q.width != k.width * plan.group {
        let expected = format!("{} times the width of k, heads of {dim}: {}", plan.group, shape(k));
        return Err(Error::argument(op, "q", shape(q), expected));
    }
    if (k.count, k.width, k.values.code()) != (v.count, v.width, v.values.code()) {
        return Err(Error::argument(op, "v", shape(v), format!("as k: {}", shape(k))));
    }
    if q.values.code() != k.values.code() {
        return Err(Error::argument(op, "k", shape(k), format!("the dtype of q: {}", shape(q))));
    }
    if (q.count, k.count) != (plan.rows, plan.slots) {
        let got = format!("for {} rows and {} slots", plan.rows, plan.slots);
        return Err(Error::argument(op, "plan", got, format!("for {} and {}", q.count, k.count)));
    }
    if !scale.is_finite() {
        return Err(Error::argument(op, "scale", scale, "finite"));
    }
    let heads = Heads { kv: k.width / dim, group: plan.group };
    if u32::try_from(q.width).is_err() {
        return Err(Error::argument(op, "q", shape(q), "rows of fewer than 2^32 values"));
    }
    if let Some(bias) = bias {
        let width = bias.max.saturating_mul(2).saturating_sub(1);
        let len = width.saturating_mul(heads.kv * heads.group);
        check_len(op, "bias.table", &bias.table, len)?;
        if u32::try_from(len).is_err() {
            return Err(Error::argument(op, "bias.table", format!("{len} values"), "below 2^32"));
        }
        if plan.biased.is_none_or(|longest| longest > bias.max) {
            let got = format!("longest block with its own keys: {:?}", plan.biased);
            let expected = format!("one segment as long as the rows, at most {}", bias.max);
            return Err(Error::argument(op, "keys with a relative bias", got, expected));
        }
    }
    Ok(heads)
}

/// What a call writes on the way: parts of lines with several chunks, and how many have come.
#[derive(Debug)]
pub struct Workspace {
    parts: Option<CudaSlice<f32>>,
    tickets: Option<CudaSlice<u32>>,
}

impl Workspace {
    /// For calls by a plan, and plans that [replace](Plan::replace) it, with so many key heads of `dim` values.
    ///
    /// # Errors
    /// Statuses of the driver.
    pub fn new(stream: &Arc<CudaStream>, plan: &Plan, kv_heads: usize, dim: usize) -> Result<Self> {
        let queue = Queue { op: "cuda::attend::Workspace", stream };
        let Sizes { parts, tickets, .. } = plan.room;
        Ok(Self {
            parts: (parts > 0).then(|| queue.alloc(parts * kv_heads * (dim + 2))).transpose()?,
            tickets: (tickets > 0).then(|| queue.alloc(tickets * kv_heads)).transpose()?,
        })
    }

    /// Whether it is large enough for calls by a plan.
    pub fn fits(&self, plan: &Plan, kv_heads: usize, dim: usize) -> bool {
        let len = |buffer: Option<usize>| buffer.unwrap_or(0);
        let parts = len(self.parts.as_ref().map(CudaSlice::len));
        let tickets = len(self.tickets.as_ref().map(CudaSlice::len));
        parts >= plan.room.parts * kv_heads * (dim + 2) && tickets >= plan.room.tickets * kv_heads
    }
}

/// Attention by plan into `out`, `[R, Hq D]` of the operands' dtype: a launch for blocks of many rows, one for those of few.
///
/// # Errors
/// On operands that do not fit the plan or each other, D above 256, a bias that does not fit the plan, an output that is too
/// short or of another type, buffers of another GPU, and statuses of the driver.
pub fn attend<T: Output>(
    stream: &Arc<CudaStream>,
    operands: &Operands<'_>,
    plan: &Plan,
    scale: f32,
    bias: Option<&Bias<'_>>,
    out: &mut impl DevicePtrMut<T>,
) -> Result<()> {
    let heads = check("cuda::attend", operands, plan, scale, bias)?;
    let mut workspace = Workspace::new(stream, plan, heads.kv, operands.dim)?;
    attend_in(stream, operands, plan, scale, bias, &mut workspace, out)
}

/// As [`attend`], in a workspace of the caller: nothing is allocated.
///
/// # Errors
/// As [`attend`], and on a workspace that is too small.
pub fn attend_in<T: Output>(
    stream: &Arc<CudaStream>,
    operands: &Operands<'_>,
    plan: &Plan,
    scale: f32,
    bias: Option<&Bias<'_>>,
    workspace: &mut Workspace,
    out: &mut impl DevicePtrMut<T>,
) -> Result<()> {
    let op = "cuda::attend";
    let queue = Queue { op, stream };
    let heads = check(op, operands, plan, scale, bias)?;
    let Operands { q, k, v, dim } = operands;
    if T::CODE != q.values.code() {
        let expected = format!("{}, as q", q.values.name());
        return Err(Error::argument(op, "out", "of another dtype", expected));
    }
    check_len(op, "out", out, q.count * q.width)?;
    if !workspace.fits(plan, heads.kv, *dim) {
        return Err(Error::argument(op, "workspace", "too small", "one made for the plan"));
    }
    let room = plan.room;
    if !plan.whole {
        queue.clear(out)?;
    }
    if let Some(tickets) = &mut workspace.tickets {
        queue.clear(tickets)?;
    }
    let (words, _words) = queue.read("plan", &plan.words)?;
    let (q_at, _q) = q.read(&queue, "q")?;
    let (k_at, _k) = k.read(&queue, "k")?;
    let (v_at, _v) = v.read(&queue, "v")?;
    let (to, _out) = queue.write("out", out)?;
    let aligned = [(q, q_at), (k, k_at), (v, v_at)].iter().all(|(rows, at)| rows.aligned(*at) == 1)
        && (dim * q.values.bytes()).is_multiple_of(16);
    let shares = words + (room.many * size_of::<AttendItem>()) as u64;
    let segments = shares + (room.few * size_of::<AttendShare>()) as u64;
    let rows = segments + (room.segments * size_of::<AttendSegment>()) as u64;
    let mut args = AttendArgs {
        q: q_at,
        k: k_at,
        v: v_at,
        out: to,
        items: words,
        shares,
        segments,
        rows,
        members: rows + (room.few_rows * size_of::<AttendRow>()) as u64,
        q_pitch: q.stride as i64,
        k_pitch: k.stride as i64,
        v_pitch: v.stride as i64,
        dim: *dim as u32,
        kv_heads: heads.kv as u32,
        group: heads.group as u32,
        scale: (f64::from(scale) * std::f64::consts::LOG2_E) as f32,
        aligned: u32::from(aligned),
        share_count: room.few as u32,
        ..Default::default()
    };
    let mut guards = vec![];
    if let Some(bias) = bias {
        let (address, guard) = queue.read("bias.table", &bias.table)?;
        (args.bias, args.bias_max) = (address, bias.max as u32);
        guards.push(guard);
    }
    if let Some(parts) = &mut workspace.parts {
        let (address, guard) = queue.write("workspace", parts)?;
        args.parts = address;
        guards.push(guard);
    }
    if let Some(tickets) = &mut workspace.tickets {
        let (address, guard) = queue.write("workspace", tickets)?;
        args.tickets = address;
        guards.push(guard);
    }
    for (few, items) in [(false, room.many), (true, room.few)] {
        let f32_rows = matches!(q.values, Values::F32(_));
        let (blocks, threads) = geometry::attend(f32_rows, *dim, few, items, heads.kv);
        // SAFETY: rows and slots of the items are within those of q, k and v, which have as many as the plan was checked
        // for; `out` has all rows of q; the workspace is what the plan counted. All are guarded here.
        unsafe {
            queue.launch(File::Attend, kernel(&q.values, *dim, few), blocks, threads, &args)?;
        }
    }
    Ok(())
}

/// The kernel for rows of a type and heads of `dim` values.
fn kernel(values: &Values<'_>, dim: usize, few: bool) -> &'static str {
    let names = match (values, few) {
        (Values::F32(_), false) => {
            ["attend_f32_64", "attend_f32_128", "attend_f32_128", "attend_f32_256"]
        }
        (Values::F32(_), true) => {
            ["attend_few_f32_64", "attend_few_f32_128", "attend_few_f32_128", "attend_few_f32_256"]
        }
        (Values::F16(_), false) => {
            ["attend_f16_64", "attend_f16_96", "attend_f16_128", "attend_f16_256"]
        }
        (Values::F16(_), true) => {
            ["attend_few_f16_64", "attend_few_f16_96", "attend_few_f16_128", "attend_few_f16_256"]
        }
        (Values::BF16(_), false) => {
            ["attend_bf16_64", "attend_bf16_96", "attend_bf16_128", "attend_bf16_256"]
        }
        (Values::BF16(_), true) => [
            "attend_few_bf16_64",
            "attend_few_bf16_96",
            "attend_few_bf16_128",
            "attend_few_bf16_256",
        ],
    };
    names[[64, 96, 128].iter().filter(|&&width| dim > width).count()]
}

/// Slots of an arena to write to, checked and uploaded.
#[derive(Debug)]
pub struct Slots {
    slots: CudaSlice<u32>,
    count: usize,
    arena: usize,
}

impl Slots {
    /// Slots of an arena that has `arena` of them.
    ///
    /// # Errors
    /// On slots out of range or named twice, an arena of 2^32 slots or more, and statuses of the driver.
    pub fn new(to: &impl Upload, slots: &[u32], arena: usize) -> Result<Self> {
        Self::padded(to, slots, slots.len(), arena)
    }

    /// As [`Slots::new`], for `count` rows: those behind the slots are not written.
    ///
    /// # Errors
    /// As [`Slots::new`], and on more slots than rows.
    pub fn padded(to: &impl Upload, slots: &[u32], count: usize, arena: usize) -> Result<Self> {
        let op = "cuda::attend::Slots";
        Ok(Self { slots: to.upload(op, &padded(op, slots, count, arena)?)?, count, arena })
    }

    /// Other slots of the same arena for as many rows, in the order of the stream, as for [`Slots::padded`].
    ///
    /// # Errors
    /// As [`Slots::padded`], and if a graph is being captured.
    pub fn replace(&mut self, stream: &Arc<CudaStream>, slots: &[u32]) -> Result<()> {
        let op = "cuda::attend::Slots";
        let slots = padded(op, slots, self.count, self.arena)?;
        Queue { op, stream }.put(&slots, &mut self.slots)
    }
}

fn padded(op: &'static str, slots: &[u32], count: usize, arena: usize) -> Result<Vec<u32>> {
    check_slots(op, slots, arena)?;
    if arena > args::WRITE_NOWHERE as usize {
        return Err(Error::argument(op, "slots of the arena", arena, "below 2^32"));
    }
    if slots.len() > count {
        return Err(Error::argument(
            op,
            "slots",
            slots.len(),
            format!("at most {count}, the rows"),
        ));
    }
    let mut slots = slots.to_vec();
    slots.resize(count, args::WRITE_NOWHERE);
    Ok(slots)
}

/// Writes rows to their slots of an arena of packed rows of the same width. One launch.
///
/// # Errors
/// On rows that are not as many as the slots, an arena that is too short or of another type or GPU, and
/// statuses of the driver.
pub fn write_rows<T: Output>(
    stream: &Arc<CudaStream>,
    rows: &Rows<'_>,
    slots: &Slots,
    arena: &mut impl DevicePtrMut<T>,
) -> Result<()> {
    let op = "cuda::attend::write_rows";
    let queue = Queue { op, stream };
    if rows.count != slots.count {
        return Err(Error::argument(
            op,
            "rows",
            rows.count,
            format!("{}, one a slot", slots.count),
        ));
    }
    if T::CODE != rows.values.code() {
        let expected = format!("{}, as the rows", rows.values.name());
        return Err(Error::argument(op, "arena", "of another dtype", expected));
    }
    check_len(op, "arena", arena, slots.arena.saturating_mul(rows.width))?;
    let row_bytes = (rows.width * rows.values.bytes()) as u64;
    if row_bytes == 0 || rows.count == 0 {
        return Ok(());
    }
    let (from, _rows) = rows.read(&queue, "rows")?;
    let (where_, _slots) = queue.read("slots", &slots.slots)?;
    let (to, _arena) = queue.write("arena", arena)?;
    let pitch = (rows.stride * rows.values.bytes()) as u64;
    let args = WriteArgs {
        rows: from,
        arena: to,
        slots: where_,
        count: rows.count as u64,
        row_bytes,
        pitch,
        unit: geometry::copy_unit(row_bytes, [from, to, pitch].into_iter()),
        reserved: 0,
    };
    let blocks = geometry::pack(rows.count as u64, queue.multiprocessors()?);
    // SAFETY: slots are below the number of rows that the arena was checked to hold; rows are as many as slots. All are
    // guarded here.
    unsafe { queue.launch(File::Attend, "write_rows", blocks, args::WRITE_THREADS, &args) }
}
