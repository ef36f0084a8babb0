//! A plan as the kernels take it: items of work and the segments that they name.

use std::cmp::Reverse;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};

use super::super::args::{
    ATTEND_CHUNK, ATTEND_FEW, ATTEND_LINES, AttendItem, AttendRow, AttendSegment, AttendShare,
};
use super::super::{Queue, Upload, geometry};
use crate::ops::attend::{AttendPlan, Block};
use crate::{Error, Result};

const OP: &str = "cuda::attend::Plan";

/// The words of a struct of 32-bit fields.
macro_rules! words_of {
    ($value:expr, $($field:ident),*) => { [$($value.$field),*] };
}

/// Who sees what, checked, divided into blocks of threads and uploaded: one upload, good for every layer of a pass.
#[derive(Debug)]
pub struct Plan {
    /// Items of blocks of many lines; of those of few: shares, and rows, which shares name; segments of both. Each kind takes
    /// its room.
    pub(super) words: CudaSlice<u32>,
    pub(super) room: Sizes,
    reads: usize,
    pub(super) rows: usize,
    pub(super) slots: usize,
    pub(super) group: usize,
    /// Whether every row is in a block with keys, so that the kernels write all of the output.
    pub(super) whole: bool,
    /// Rows of the longest block if each sees exactly its own number of keys in one segment, as a bias asks.
    pub(super) biased: Option<usize>,
}

/// How many there are of each kind, or how many there is room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) many: usize,
    pub(super) few: usize,
    pub(super) segments: usize,
    pub(super) few_rows: usize,
    members: usize,
    /// Lines' chunks in the workspace, and lines with several, for each key head.
    pub(super) parts: usize,
    pub(super) tickets: usize,
}

impl Sizes {
    /// Half more, and a few: a token more in each row adds a chunk to some. Of shares, for which
    /// blocks are launched, a quarter.
    fn with_room(self) -> Self {
        let room = |count: usize| count + count / 2 + 64;
        Self {
            many: self.many,
            few: self.few + self.few / 4 + 16,
            segments: room(self.segments),
            few_rows: room(self.few_rows),
            members: room(self.members),
            parts: room(self.parts),
            tickets: room(self.tickets),
        }
    }

    /// The larger of each.
    fn or(self, other: &Self) -> Self {
        Self {
            many: self.many,
            few: self.few.max(other.few),
            segments: self.segments.max(other.segments),
            few_rows: self.few_rows.max(other.few_rows),
            members: self.members.max(other.members),
            parts: self.parts.max(other.parts),
            tickets: self.tickets.max(other.tickets),
        }
    }

    /// Whether this much fits. Items of many lines leave no room: what is behind them would be read.
    fn fits(&self, room: &Self) -> bool {
        self.many == room.many
            && self.few <= room.few
            && self.segments <= room.segments
            && self.few_rows <= room.few_rows
            && self.members <= room.members
            && self.parts <= room.parts
            && self.tickets <= room.tickets
    }
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
        Self::build(to, plan, [rows, slots, group], |sizes| sizes)
    }

    /// As [`Plan::new`], with room for more, so that later plans can [replace](Plan::replace) it.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn with_room(
        to: &impl Upload,
        plan: &AttendPlan,
        rows: usize,
        slots: usize,
        group: usize,
    ) -> Result<Self> {
        Self::build(to, plan, [rows, slots, group], Sizes::with_room)
    }

    /// As [`Plan::with_room`], for a plan that could not [replace](Plan::replace) this one, with room for what this one has room for
    /// too.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn grown(&self, to: &impl Upload, plan: &AttendPlan) -> Result<Self> {
        let sizes = [self.rows, self.slots, self.group];
        Self::build(to, plan, sizes, |sizes| sizes.with_room().or(&self.room))
    }

    fn build(
        to: &impl Upload,
        plan: &AttendPlan,
        [rows, slots, group]: [usize; 3],
        room: impl FnOnce(Sizes) -> Sizes,
    ) -> Result<Self> {
        let found = Found::of(plan, rows, slots, group)?;
        let room = room(found.sizes());
        let own = |block: &Block| {
            block.rows.is_empty() || matches!(block.keys[..], [s] if s.len == block.rows.len())
        };
        let longest = plan.blocks.iter().map(|block| block.rows.len()).max().unwrap_or(0);
        Ok(Self {
            words: to.upload(OP, &found.words(&room))?,
            room,
            reads: found.shares.len(),
            rows,
            slots,
            group,
            whole: found.work.covered == rows,
            biased: plan.blocks.iter().all(own).then_some(longest),
        })
    }

    /// Another plan in the place of this one, in the order of the stream, for a graph that attends by it again and again. `false`,
    /// and nothing is changed, if it needs more room, or leaves rows without keys where this one does not. It takes no bias.
    ///
    /// # Errors
    /// As [`Plan::new`], and if a graph is being captured.
    pub fn replace(&mut self, stream: &Arc<CudaStream>, plan: &AttendPlan) -> Result<bool> {
        let found = Found::of(plan, self.rows, self.slots, self.group)?;
        let whole = found.work.covered == self.rows;
        if !found.sizes().fits(&self.room) || whole != self.whole {
            return Ok(false);
        }
        Queue { op: OP, stream }.put(&found.words(&self.room), &mut self.words)?;
        (self.reads, self.biased) = (found.shares.len(), None);
        Ok(true)
    }

    /// How many chunks of 64 keys the blocks of few lines read, a key head: a chunk once for up to 16 lines.
    pub fn reads(&self) -> usize {
        self.reads
    }
}

/// A checked plan, divided.
struct Found {
    work: Work,
    shares: Vec<AttendShare>,
    members: Vec<u32>,
}

impl Found {
    fn of(plan: &AttendPlan, rows: usize, slots: usize, group: usize) -> Result<Self> {
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
        work.sort_items();
        let (shares, members) = work.shares().ok_or_else(|| {
            Error::argument(OP, "blocks of few rows", plan.blocks.len(), "fewer than 2^32 chunks")
        })?;
        Ok(Self { work, shares, members })
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            many: self.work.many.len(),
            few: self.shares.len(),
            segments: self.work.segments.len(),
            few_rows: self.work.rows.len(),
            members: self.members.len(),
            parts: self.work.parts as usize,
            tickets: self.work.tickets as usize,
        }
    }

    /// Everything in one array, each kind in its room; zeros behind it, which for a share is no lines.
    fn words(&self, room: &Sizes) -> Vec<u32> {
        let mut words = vec![];
        let mut add = |kind: &mut dyn Iterator<Item = u32>, room: usize| {
            let end = words.len() + room;
            words.extend(kind);
            words.resize(end, 0);
        };
        let Work { many, segments, rows, .. } = &self.work;
        let items = many.iter().flat_map(|i| {
            words_of!(i, first_row, rows, first_segment, keys, causal, first_line, lines, reserved)
        });
        let shares = self.shares.iter().flat_map(|s| {
            words_of!(s, members, first_line, lines, first_segment, base, end, from, to)
        });
        let segments = segments.iter().flat_map(|s| words_of!(s, base, end));
        let rows = rows.iter().flat_map(|r| words_of!(r, row, position, keys, part, ticket));
        add(&mut { items }, 8 * room.many);
        add(&mut { shares }, 8 * room.few);
        add(&mut { segments }, 2 * room.segments);
        add(&mut { rows }, 5 * room.few_rows);
        add(&mut self.members.iter().copied(), room.members);
        words
    }
}

/// A row of a block of few lines and a chunk of its keys. What sorts together may be read together.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    /// Of the chunk's first key.
    slot: u32,
    from: u32,
    /// 0 if the row sees all of the chunk, in slots one after another; else one more than its block's number. Rows of one
    /// block have the same keys, but for those that are hidden from some.
    block: u32,
    row: u32,
    /// Where key `from` is.
    segment: u32,
}

#[derive(Default)]
struct Work {
    group: u32,
    many: Vec<AttendItem>,
    rows: Vec<AttendRow>,
    pairs: Vec<Pair>,
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
        if geometry::attend_few(block.rows.len(), self.group as usize) {
            return self.add_few(i, block, first_segment, keys).ok_or_else(too_many);
        }
        self.covered += block.rows.len();
        for first_line in (0..lines).step_by(ATTEND_LINES as usize) {
            self.many.push(AttendItem {
                first_row: block.rows.start as u32,
                rows: block.rows.len() as u32,
                first_segment,
                keys,
                causal: u32::from(block.causal),
                first_line: first_line as u32,
                lines: ATTEND_LINES.min(lines - first_line) as u32,
                reserved: 0,
            });
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

    /// The rows of a block of few lines that see keys, each with its chunks.
    fn add_few(&mut self, i: usize, block: &Block, first_segment: u32, keys: u32) -> Option<()> {
        let own = u32::try_from(i + 1).ok()?;
        let count = block.rows.len() as u32;
        for position in 0..count {
            let hidden = if block.causal { count - 1 - position } else { 0 };
            let seen = keys.saturating_sub(hidden);
            if seen == 0 {
                continue;
            }
            self.covered += 1;
            let row = u32::try_from(self.rows.len()).ok()?;
            let (part, ticket) = (self.parts, self.tickets);
            let chunks = seen.div_ceil(ATTEND_CHUNK as u32);
            if chunks > 1 {
                self.parts = self.parts.checked_add(chunks.checked_mul(self.group)?)?;
                self.tickets = self.tickets.checked_add(self.group)?;
            }
            let first_row = block.rows.start as u32;
            self.rows.push(AttendRow {
                row: first_row + position,
                position,
                keys: seen,
                part,
                ticket,
            });
            let mut segment = first_segment;
            for from in (0..seen).step_by(ATTEND_CHUNK as usize) {
                while self.segments[segment as usize].end <= from {
                    segment += 1;
                }
                let AttendSegment { base, end } = self.segments[segment as usize];
                let whole = from + ATTEND_CHUNK as u32 <= seen.min(end);
                let block = if whole { 0 } else { own };
                self.pairs.push(Pair { slot: base.wrapping_add(from), from, block, row, segment });
            }
        }
        Some(())
    }

    /// Rows that read a chunk together, as many as fit 16 lines, and the rows that they name; in the order of slots, so that
    /// neighbours find keys in the cache.
    fn shares(&mut self) -> Option<(Vec<AttendShare>, Vec<u32>)> {
        let (mut shares, few) = (vec![], ATTEND_FEW as u32);
        u32::try_from(self.pairs.len()).ok()?;
        self.pairs.sort_unstable();
        let mut first = 0;
        let together = |a: &Pair, b: &Pair| (a.slot, a.from, a.block) == (b.slot, b.from, b.block);
        for all in self.pairs.chunk_by(together) {
            for pairs in all.chunks((few / self.group).max(1) as usize) {
                let Pair { from, segment, .. } = pairs[0];
                let seen = pairs.iter().map(|pair| self.rows[pair.row as usize].keys).max()?;
                let AttendSegment { base, end } = self.segments[segment as usize];
                let lines = pairs.len() as u32 * self.group;
                for first_line in (0..lines).step_by(few as usize) {
                    shares.push(AttendShare {
                        members: first,
                        first_line,
                        lines: few.min(lines - first_line),
                        first_segment: segment,
                        base,
                        end,
                        from,
                        to: seen.min(from + ATTEND_CHUNK as u32),
                    });
                }
                first += pairs.len() as u32;
            }
        }
        u32::try_from(shares.len()).ok()?;
        Some((shares, self.pairs.iter().map(|pair| pair.row).collect()))
    }

    /// The longest items of many lines come first, so that none is left over.
    fn sort_items(&mut self) {
        let seen = |item: &AttendItem| match item.causal {
            0 => i64::from(item.keys),
            _ => {
                let last = (item.first_line + item.lines - 1) / self.group;
                i64::from(item.keys) + i64::from(last) + 1 - i64::from(item.rows)
            }
        };
        self.many.sort_by_key(|item| Reverse(seen(item)));
    }
}
