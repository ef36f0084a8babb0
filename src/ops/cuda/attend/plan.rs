//! A plan as the kernels take it: items of work and the segments that they name.

use std::cmp::Reverse;

use cudarc::driver::CudaSlice;

use super::super::args::{ATTEND_CHUNK, AttendItem, AttendSegment};
use super::super::{Upload, geometry};
use crate::ops::attend::{AttendPlan, Block};
use crate::{Error, Result};

const OP: &str = "cuda::attend::Plan";

/// Who sees what, checked, divided into blocks of threads and uploaded: one upload, good for every layer of a pass.
#[derive(Debug)]
pub struct Plan {
    /// Items of many lines, those of few, segments.
    pub(super) words: CudaSlice<u32>,
    pub(super) many: usize,
    pub(super) few: usize,
    /// Lines' chunks in the workspace, and tickets, for each key head.
    pub(super) parts: usize,
    pub(super) tickets: usize,
    pub(super) rows: usize,
    pub(super) slots: usize,
    pub(super) group: usize,
    /// Whether every row is in a block with keys, so that the kernels write all of the output.
    pub(super) whole: bool,
    /// Rows of the longest block if each sees exactly its own number of keys in one segment, as a bias asks.
    pub(super) biased: Option<usize>,
}

impl Plan {
    /// The plan for `rows` rows of q, `slots` of the arena, and `group` query heads a key head.
    ///
    /// # Errors
    /// As [`attend`](crate::ops::attend::attend) on the plan; on blocks, rows or slots whose counts do not fit 32 bits; and
    /// statuses of the driver.
    pub fn new(
        to: &impl Upload,
        plan: &AttendPlan,
        rows: usize,
        slots: usize,
        group: usize,
    ) -> Result<Self> {
        plan.check(rows, slots)?;
        for (what, count) in [("rows", rows), ("slots", slots)] {
            if u32::try_from(count).is_err() {
                return Err(Error::argument(OP, what, count, "below 2^32"));
            }
        }
        let group = u32::try_from(group).ok().filter(|&group| group > 0).ok_or_else(|| {
            Error::argument(OP, "group", group, "query heads a key head, in 1..2^32")
        })?;
        let mut work = Work { group, ..Work::default() };
        plan.blocks.iter().enumerate().try_for_each(|(i, block)| work.add(i, block))?;
        let own = |block: &Block| {
            block.rows.is_empty() || matches!(block.keys[..], [s] if s.len == block.rows.len())
        };
        let longest = plan.blocks.iter().map(|block| block.rows.len()).max().unwrap_or(0);
        let words = work.words();
        Ok(Self {
            words: to.upload(OP, &words)?,
            many: work.many.len(),
            few: work.few.len(),
            parts: work.parts as usize,
            tickets: work.tickets as usize,
            rows,
            slots,
            group: group as usize,
            whole: work.covered == rows,
            biased: plan.blocks.iter().all(own).then_some(longest),
        })
    }
}

/// The words of a struct of 32-bit fields.
macro_rules! words_of {
    ($value:expr, $($field:ident),*) => { [$($value.$field),*] };
}

#[derive(Default)]
struct Work {
    group: u32,
    many: Vec<AttendItem>,
    /// With the first slot of each.
    few: Vec<(u32, AttendItem)>,
    segments: Vec<AttendSegment>,
    parts: u32,
    tickets: u32,
    /// Rows that see keys, or may.
    covered: usize,
}

impl Work {
    /// Adds the `i`th block, which is checked.
    fn add(&mut self, i: usize, block: &Block) -> Result<()> {
        let too_many = || {
            let got =
                format!("{} rows and {} segments in block {i}", block.rows.len(), block.keys.len());
            Error::argument(OP, "block", got, "rows times query heads, keys and chunks below 2^31")
        };
        let lines = block.rows.len() as u64 * u64::from(self.group);
        if lines > i32::MAX as u64 {
            return Err(too_many());
        }
        let first_segment = u32::try_from(self.segments.len()).map_err(|_| too_many())?;
        let keys = self.add_segments(block).ok_or_else(too_many)?;
        if keys == 0 {
            return Ok(());
        }
        self.covered += block.rows.len();
        let few = geometry::attend_few(block.rows.len(), self.group as usize);
        let step = geometry::attend_lines(few);
        for first_line in (0..lines).step_by(step as usize) {
            let item = AttendItem {
                first_row: block.rows.start as u32,
                rows: block.rows.len() as u32,
                first_segment,
                keys,
                causal: u32::from(block.causal),
                first_line: first_line as u32,
                lines: step.min(lines - first_line) as u32,
                ..AttendItem::default()
            };
            match few {
                true => self.add_chunks(item).ok_or_else(too_many)?,
                false => self.many.push(item),
            }
        }
        Ok(())
    }

    /// The block's segments that have keys; how many keys, if fewer than 2^31 - 2^16 (the kernels count past them).
    fn add_segments(&mut self, block: &Block) -> Option<u32> {
        let mut keys = 0u32;
        for segment in block.keys.iter().filter(|segment| segment.len > 0) {
            // Slots fit 32 bits, and so do all sums modulo 2^32.
            let base = (segment.start as u32).wrapping_sub(keys);
            keys = keys.checked_add(u32::try_from(segment.len).ok()?)?;
            if keys > i32::MAX as u32 - (1 << 16) {
                return None;
            }
            self.segments.push(AttendSegment { base, end: keys });
        }
        Some(keys)
    }

    /// An item of few lines, once for each chunk of its keys.
    fn add_chunks(&mut self, item: AttendItem) -> Option<()> {
        let chunks = u64::from(item.keys).div_ceil(ATTEND_CHUNK) as u32;
        let (part, ticket) = (self.parts, self.tickets);
        if chunks > 1 {
            self.parts = self.parts.checked_add(chunks.checked_mul(item.lines)?)?;
            self.tickets = self.tickets.checked_add(1)?;
        }
        for chunk in 0..chunks {
            let first = u64::from(chunk) * ATTEND_CHUNK;
            let segments = &self.segments[item.first_segment as usize..];
            let holds = segments.iter().find(|segment| u64::from(segment.end) > first)?;
            let slot = holds.base.wrapping_add(first as u32);
            self.few.push((slot, AttendItem { chunk, chunks, part, ticket, ..item }));
        }
        Some(())
    }

    /// Everything in one array. The longest items come first, so that none is left over; chunks of the same keys follow one
    /// another, so that forks of a prefix find it in the cache.
    fn words(&mut self) -> Vec<u32> {
        let seen = |item: &AttendItem| match item.causal {
            0 => i64::from(item.keys),
            _ => {
                let last = (item.first_line + item.lines - 1) / self.group;
                i64::from(item.keys) + i64::from(last) + 1 - i64::from(item.rows)
            }
        };
        self.many.sort_by_key(|item| Reverse(seen(item)));
        self.few.sort_by_key(|(slot, _)| *slot);
        let items = self.many.iter().chain(self.few.iter().map(|(_, item)| item));
        let items = items.flat_map(|item| {
            words_of!(
                item,
                first_row,
                rows,
                first_segment,
                keys,
                causal,
                first_line,
                lines,
                chunk,
                chunks,
                part,
                ticket,
                reserved
            )
        });
        items.chain(self.segments.iter().flat_map(|s| words_of!(s, base, end))).collect()
    }
}
