//! Which calls of [`attend`](super::attend) candle-flash-attn's kernels compute, and how they are told.
//!
//! They take sequences of packed rows: sequence i has rows `rows[i]..rows[i + 1]` of q, which see slots `keys[i]..keys[i + 1]` of k
//! and v, all of them or in causal order, where the last row sees all (as in a causal [`Block`](super::Block)). A sequence of no
//! rows steps over slots that nobody sees.
//!
//! ```text
//! encoder batch, image patches   every block sees itself           flash
//! prefill into a new arena       the same, causal                  flash
//! decoding, kept text of forks   a prefix, then slots of its own   ours: two segments, or slots that others see too
//! MPNet                          a bias by distance                ours
//! training                       gradients                         ours: flash has none
//! ```
//!
//! Only f16 and bf16. Weights are rounded to that type before they meet v, which ours are not: errors are those of unfused
//! attention in the type, not those of [`attend`](super::attend)'s contract. The kernel is chosen for a whole plan, so a row's last
//! bits may change with what else is in it. Nothing here knows of a sliding window: a plan has none, and the language model refuses
//! positions that its window would hide.

use std::fmt;
use std::sync::OnceLock;

use candle_core::{DType, Tensor};

use super::{AttendPlan, Sequences};
#[cfg(feature = "flash-attn")]
use crate::ops::cuda::attend::flash_forward as launch;
use crate::{Error, Result};

/// Sequences, and heads, that a launch takes.
const MOST: usize = 65_535;

/// Which kernels attention on a GPU uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Ours, always: the default.
    Own,
    /// candle-flash-attn's where they fit, else ours.
    Flash,
}

impl Kernels {
    /// `own` or `flash`.
    ///
    /// # Errors
    /// Another name, and `flash` in a build without it.
    pub fn named(name: &str) -> Result<Self> {
        let refused = |message| Err(Error::unsupported(format!("BDHS_ATTEND={name}"), message));
        match name {
            "own" => Ok(Self::Own),
            "flash" if cfg!(feature = "flash-attn") => Ok(Self::Flash),
            "flash" => {
                refused("this build has no flash-attn; rebuild with `--features flash-attn`")
            }
            _ => refused("expected own or flash"),
        }
    }

    /// As the environment's `BDHS_ATTEND` says; it is read once.
    ///
    /// # Errors
    /// As [`Kernels::named`].
    pub fn of_environment() -> Result<Self> {
        static CHOSEN: OnceLock<Kernels> = OnceLock::new();
        if let Some(&chosen) = CHOSEN.get() {
            return Ok(chosen);
        }
        let chosen = match std::env::var_os("BDHS_ATTEND") {
            None => Self::Own,
            Some(name) => Self::named(&name.to_string_lossy())?,
        };
        Ok(*CHOSEN.get_or_init(|| chosen))
    }
}

/// Why a call is left to our own kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// q is not on a GPU.
    Place,
    /// Neither f16 nor bf16.
    Dtype,
    /// D is no multiple of 8.
    Width,
    /// Rows of q, k or v do not lie at multiples of 16 bytes.
    Alignment,
    /// The scale is not above 0.
    Scale,
    /// There is a bias.
    Bias,
    /// Gradients may be asked for.
    Gradient,
    /// Blocks of several rows, some causal, some not.
    Mixed,
    /// A row is in no block, or sees no key.
    Blind,
    /// A block sees slots that are not one run.
    Segments,
    /// Blocks see slots in another order than that of their rows, or the same ones.
    Order,
    /// No block has more than one row: our kernels divide keys over the GPU, flash's do not.
    Decoding,
    /// More sequences or heads than a launch takes.
    Count,
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Place => "not on a GPU",
            Self::Dtype => "neither f16 nor bf16",
            Self::Width => "D is no multiple of 8",
            Self::Alignment => "rows do not lie at multiples of 16 bytes",
            Self::Scale => "a scale that is not above 0",
            Self::Bias => "a bias",
            Self::Gradient => "gradients may be asked for",
            Self::Mixed => "some blocks are causal and some are not",
            Self::Blind => "a row is in no block or sees no key",
            Self::Segments => "a block sees several runs of slots",
            Self::Order => {
                "blocks see slots in another order than that of their rows, or the same ones"
            }
            Self::Decoding => "no block has more than one row",
            Self::Count => "too many sequences or heads",
        })
    }
}

/// A call but for its plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// Whether the operands are on a GPU.
    pub on_gpu: bool,
    /// Of q, k and v.
    pub dtype: DType,
    /// D.
    pub dim: usize,
    /// Hq.
    pub heads: usize,
    /// R.
    pub rows: usize,
    /// Whether all rows of q, k and v lie at multiples of 16 bytes.
    pub aligned: bool,
    /// The scale.
    pub scale: f32,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether an operand is tracked.
    pub tracked: bool,
}

impl Call {
    /// Of operands whose heads lie one after another.
    pub fn of([q, k, v]: [&Tensor; 3], scale: f32, bias: bool) -> Self {
        let (rows, heads, dim) = (q.dims()[0], q.dims()[1], q.dims()[2]);
        // Values of two bytes; a buffer begins at a multiple of 256.
        let aligned = |t: &&Tensor| {
            t.stride()[0].is_multiple_of(8) && t.layout().start_offset().is_multiple_of(8)
        };
        let operands = [q, k, v];
        Self {
            on_gpu: q.device().is_cuda(),
            dtype: q.dtype(),
            dim,
            heads,
            rows,
            aligned: operands.iter().all(aligned),
            scale,
            bias,
            tracked: operands.iter().any(|t| t.track_op()),
        }
    }

    fn check(&self) -> std::result::Result<(), Own> {
        let refused = [
            (!self.on_gpu, Own::Place),
            (!matches!(self.dtype, DType::F16 | DType::BF16), Own::Dtype),
            (!self.dim.is_multiple_of(8), Own::Width),
            (!self.aligned, Own::Alignment),
            (self.scale.is_nan() || self.scale <= 0.0, Own::Scale),
            (self.bias, Own::Bias),
            (self.tracked, Own::Gradient),
            (self.heads > MOST || self.rows > i32::MAX as usize, Own::Count),
        ];
        refused.into_iter().find(|(is, _)| *is).map_or(Ok(()), |(_, why)| Err(why))
    }
}

impl Sequences {
    /// A plan that was checked against the call's rows and slots, as sequences; or why our own kernels are to compute it.
    ///
    /// # Errors
    /// The first reason.
    pub fn of(plan: &AttendPlan, call: &Call) -> std::result::Result<Self, Own> {
        call.check()?;
        let mut blocks: Vec<_> = plan.blocks.iter().filter(|b| !b.rows.is_empty()).collect();
        blocks.sort_by_key(|block| block.rows.start);
        // In a block of one row the order makes no difference.
        let causal = blocks.iter().any(|block| block.causal && block.rows.len() > 1);
        let mut this =
            Self { rows: vec![0], keys: vec![], longest_rows: 0, longest_keys: 0, causal };
        let (mut next_row, mut next_slot) = (0, 0);
        for block in blocks {
            let (start, keys) = run(&block.keys)?;
            let rows = block.rows.len();
            if causal && !block.causal && rows > 1 {
                return Err(Own::Mixed);
            }
            if block.rows.start != next_row || (causal && keys < rows) {
                return Err(Own::Blind);
            }
            if start < next_slot {
                return Err(Own::Order);
            }
            if this.keys.is_empty() {
                this.keys.push(slot(start)?);
            } else if start > next_slot {
                this.rows.push(slot(next_row)?);
                this.keys.push(slot(start)?);
            }
            (next_row, next_slot) = (block.rows.end, start + keys);
            this.rows.push(slot(next_row)?);
            this.keys.push(slot(next_slot)?);
            this.longest_rows = this.longest_rows.max(rows);
            this.longest_keys = this.longest_keys.max(keys);
        }
        match this.longest_rows {
            _ if next_row != call.rows => Err(Own::Blind),
            0 => Err(Own::Blind),
            1 => Err(Own::Decoding),
            _ if this.rows.len() - 1 > MOST => Err(Own::Count),
            _ => Ok(this),
        }
    }
}

/// The one run that segments make; where it begins and how long it is.
fn run(segments: &[super::Segment]) -> std::result::Result<(usize, usize), Own> {
    let mut found: Option<(usize, usize)> = None;
    for segment in segments.iter().filter(|segment| segment.len > 0) {
        found = match found {
            None => Some((segment.start, segment.len)),
            Some((start, len)) if start + len == segment.start => Some((start, len + segment.len)),
            Some(_) => return Err(Own::Segments),
        };
    }
    found.ok_or(Own::Blind)
}

/// A row or slot as the kernels count them.
fn slot(i: usize) -> std::result::Result<u32, Own> {
    i32::try_from(i).map(|i| i as u32).map_err(|_| Own::Count)
}

/// The result if the environment asks for flash and its kernels fit; the operands were checked.
#[cfg(feature = "cuda")]
pub(super) fn chosen(
    operands: [&Tensor; 3],
    plan: &AttendPlan,
    scale: f32,
    bias: bool,
) -> Result<Option<Tensor>> {
    if Kernels::of_environment()? == Kernels::Own {
        return Ok(None);
    }
    match Sequences::of(plan, &Call::of(operands, scale, bias)) {
        Ok(sequences) => launch(operands, &sequences, scale),
        Err(_) => Ok(None),
    }
}

/// Never called: a build without flash-attn refuses to choose it.
#[cfg(all(feature = "cuda", not(feature = "flash-attn")))]
fn launch(_: [&Tensor; 3], _: &Sequences, _: f32) -> Result<Option<Tensor>> {
    Ok(None)
}

/// [`attend`](super::attend) by candle-flash-attn's kernels, whatever the environment says.
///
/// # Errors
/// As [`attend`](super::attend); and a call that those kernels do not compute, with the reason.
#[cfg(feature = "flash-attn")]
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, plan: &AttendPlan, scale: f32) -> Result<Tensor> {
    let unsupported =
        |why: &dyn fmt::Display| Error::unsupported("attention by flash-attn", why.to_string());
    super::check(q, k, v, plan, scale)?;
    let [q, k, v] = [super::whole_rows(q)?, super::whole_rows(k)?, super::whole_rows(v)?];
    let operands = [&q, &k, &v];
    let sequences =
        Sequences::of(plan, &Call::of(operands, scale, false)).map_err(|why| unsupported(&why))?;
    launch(operands, &sequences, scale)?
        .ok_or_else(|| unsupported(&"the stream is being captured into a graph"))
}

#[cfg(test)]
mod tests {
    use super::super::{Block, Segment};
    use super::*;

    const CALL: Call = Call {
        on_gpu: true,
        dtype: DType::BF16,
        dim: 64,
        heads: 8,
        rows: 10,
        aligned: true,
        scale: 0.125,
        bias: false,
        tracked: false,
    };

    fn block(rows: std::ops::Range<usize>, keys: &[(usize, usize)], causal: bool) -> Block {
        let keys = keys.iter().map(|&(start, len)| Segment { start, len }).collect();
        Block { rows, keys, causal }
    }

    fn sequences(rows: &[u32], keys: &[u32], longest: (usize, usize), causal: bool) -> Sequences {
        let (rows, keys) = (rows.to_vec(), keys.to_vec());
        Sequences { rows, keys, longest_rows: longest.0, longest_keys: longest.1, causal }
    }

    #[test]
    fn plans_that_flash_computes() {
        let ragged = |causal| AttendPlan::ragged(&[0, 4, 4, 9, 10], causal);
        let (cu, longest) = ([0, 4, 9, 10], (5, 5));
        let of = |blocks: Vec<Block>| AttendPlan { blocks };
        for (what, plan, expected) in [
            ("an encoder's batch", ragged(false), sequences(&cu, &cu, longest, false)),
            ("a prefill", ragged(true), sequences(&cu, &cu, longest, true)),
            (
                "blocks in any order, one row of either kind",
                of(vec![block(9..10, &[(30, 7)], false), block(0..9, &[(12, 18)], true)]),
                sequences(&[0, 9, 10], &[12, 30, 37], (9, 18), true),
            ),
            (
                "slots that nobody sees are stepped over",
                of(vec![block(0..4, &[(0, 4)], true), block(4..10, &[(8, 6)], true)]),
                sequences(&[0, 4, 4, 10], &[0, 4, 8, 14], (6, 6), true),
            ),
            (
                "segments that make one run",
                of(vec![block(0..10, &[(3, 5), (0, 0), (8, 5)], true)]),
                sequences(&[0, 10], &[3, 13], (10, 10), true),
            ),
        ] {
            assert_eq!(Sequences::of(&plan, &CALL), Ok(expected), "{what}");
        }
    }

    #[test]
    fn plans_that_are_ours() {
        let of = |blocks: &[Block]| AttendPlan { blocks: blocks.to_vec() };
        let prefix = block(0..9, &[(0, 9)], true);
        let many = AttendPlan::ragged(&(0..=70_000).map(|i| 2 * i).collect::<Vec<_>>(), false);
        for (plan, rows, expected) in [
            (of(&[prefix.clone(), block(9..10, &[(0, 6), (9, 1)], true)]), 10, Own::Segments),
            (of(&[prefix.clone(), block(9..10, &[(0, 9)], true)]), 10, Own::Order),
            (of(&[block(0..9, &[(20, 9)], true), block(9..10, &[(0, 9)], true)]), 10, Own::Order),
            (of(std::slice::from_ref(&prefix)), 10, Own::Blind),
            (of(&[block(1..10, &[(0, 9)], true)]), 10, Own::Blind),
            (of(&[prefix.clone(), block(9..10, &[], true)]), 10, Own::Blind),
            // The first of three causal rows sees none of two keys.
            (of(&[block(0..3, &[(0, 2)], true)]), 3, Own::Blind),
            (of(&[]), 0, Own::Blind),
            (of(&[prefix, block(9..11, &[(9, 2)], false)]), 11, Own::Mixed),
            (AttendPlan::ragged(&[0, 1, 2, 3], true), 3, Own::Decoding),
            (many, 140_000, Own::Count),
        ] {
            let seen = Sequences::of(&plan, &Call { rows, ..CALL });
            assert_eq!(seen, Err(expected), "{:?}", plan.blocks.first());
        }
    }

    #[test]
    fn calls_that_are_ours() {
        let plan = AttendPlan::ragged(&[0, 10], true);
        assert!(Sequences::of(&plan, &CALL).is_ok());
        for (call, expected) in [
            (Call { on_gpu: false, ..CALL }, Own::Place),
            (Call { dtype: DType::F32, ..CALL }, Own::Dtype),
            (Call { dim: 20, ..CALL }, Own::Width),
            (Call { aligned: false, ..CALL }, Own::Alignment),
            (Call { scale: 0.0, ..CALL }, Own::Scale),
            (Call { scale: -1.0, ..CALL }, Own::Scale),
            (Call { bias: true, ..CALL }, Own::Bias),
            (Call { tracked: true, ..CALL }, Own::Gradient),
            (Call { heads: 70_000, ..CALL }, Own::Count),
        ] {
            assert_eq!(Sequences::of(&plan, &call), Err(expected), "{call:?}");
        }
    }

    #[test]
    fn calls_are_read_off_tensors() {
        use candle_core::{Device, Var};
        let qkv = Tensor::zeros((10, 3, 2, 16), DType::F16, &Device::Cpu).unwrap();
        let part = |i| qkv.narrow(1, i, 1).unwrap().squeeze(1).unwrap();
        let [q, k, v] = [0, 1, 2].map(part);
        let call = Call::of([&q, &k, &v], 0.5, true);
        let expected = Call {
            on_gpu: false,
            dtype: DType::F16,
            dim: 16,
            heads: 2,
            rows: 10,
            aligned: true,
            scale: 0.5,
            bias: true,
            tracked: false,
        };
        assert_eq!(call, expected);
        let narrow = Tensor::zeros((10, 1, 12), DType::F16, &Device::Cpu).unwrap();
        assert!(!Call::of([&narrow, &narrow, &narrow], 0.5, false).aligned);
        let var = Var::from_tensor(&k).unwrap();
        assert!(Call::of([&q, &var, &v], 0.5, false).tracked);
    }

    #[test]
    fn kernels_are_named() {
        assert_eq!(Kernels::named("own").unwrap(), Kernels::Own);
        let flash = Kernels::named("flash");
        match cfg!(feature = "flash-attn") {
            true => assert_eq!(flash.unwrap(), Kernels::Flash),
            false => assert!(flash.unwrap_err().to_string().contains("no flash-attn")),
        }
        for name in ["", "Flash", "cutlass"] {
            let message = Kernels::named(name).unwrap_err().to_string();
            assert!(message.contains("expected own or flash"), "{message}");
        }
    }
}
