//! Who sees what: the plan of a call, as it is given and as flash-attn takes it.

use std::ops::Range;

use crate::{Error, Result};

/// The largest D on a GPU.
pub(in crate::ops) const WIDEST_ON_GPU: usize = 256;

/// A run of arena slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first slot.
    pub start: usize,
    /// How many; 0 is allowed.
    pub len: usize,
}

/// Query rows that see the same keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Rows of q.
    pub rows: Range<usize>,
    /// What they see, in order. Empty: the rows give zeros.
    pub keys: Vec<Segment>,
    /// Whether row t of n sees all but the last n - 1 - t keys.
    pub causal: bool,
}

/// Who sees what. Blocks must not share rows; rows in no block give zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttendPlan {
    /// The blocks, in any order.
    pub blocks: Vec<Block>,
}

impl AttendPlan {
    /// One block per sequence of a packed batch, each seeing itself: `cu_seqlens` is `[0, T_0, T_0 + T_1, ..]`.
    pub fn ragged(cu_seqlens: &[u32], causal: bool) -> Self {
        let block = |w: &[u32]| {
            let (start, end) = (w[0] as usize, w[1].max(w[0]) as usize);
            Block { rows: start..end, keys: vec![Segment { start, len: end - start }], causal }
        };
        Self { blocks: cu_seqlens.windows(2).map(block).collect() }
    }

    /// Checks every block against R query rows and S slots.
    pub(in crate::ops) fn check(&self, rows: usize, slots: usize) -> Result<()> {
        const OP: &str = "attend";
        let mut seen = vec![false; rows];
        for (i, block) in self.blocks.iter().enumerate() {
            let (start, end) = (block.rows.start, block.rows.end);
            if start > end || end > rows {
                let got = format!("{start}..{end} in block {i}");
                return Err(Error::argument(OP, "rows", got, format!("within 0..{rows}")));
            }
            if let Some(row) = (start..end).find(|&row| std::mem::replace(&mut seen[row], true)) {
                let got = format!("row {row} again in block {i}");
                return Err(Error::argument(OP, "rows", got, "each row in one block"));
            }
            for s in &block.keys {
                if s.start.checked_add(s.len).is_none_or(|end| end > slots) {
                    let got = format!("{} slots from {} in block {i}", s.len, s.start);
                    return Err(Error::argument(OP, "segment", got, format!("within 0..{slots}")));
                }
            }
        }
        Ok(())
    }
}

/// An error unless slots are distinct and below `count`.
pub(in crate::ops) fn check_slots(op: &'static str, slots: &[u32], count: usize) -> Result<()> {
    let mut sorted = slots.to_vec();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::argument(op, "slots", format!("{} twice", pair[0]), "distinct slots"));
    }
    match sorted.last() {
        Some(&last) if last as usize >= count => {
            Err(Error::argument(op, "slots", last, format!("below {count}")))
        }
        _ => Ok(()),
    }
}

/// A plan as flash-attn's kernels take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// Where each sequence's rows begin, and where the last one's end.
    pub rows: Vec<u32>,
    /// Where each sequence's slots begin, and where the last one's end.
    pub keys: Vec<u32>,
    /// Rows of the longest.
    pub longest_rows: usize,
    /// Slots of the longest.
    pub longest_keys: usize,
    /// Whether rows see in causal order.
    pub causal: bool,
}
