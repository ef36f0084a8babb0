//! Token sampling on a GPU. Contract: [`crate::ops::token`]; calls: [`super`].
//!
//! Weights are integers in steps of 2^-40 of the largest: what a token loses is below that, and the token drawn is the CPU's
//! unless the draw, or a filter's cut, lies within 1e-6 of a boundary between two tokens.

#[cfg(feature = "cuda")]
mod tensors;

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView};

use super::args::{self, TokenArgs, TokenRow};
use super::module::File;
use super::{Queue, Rows, Upload};
use crate::ops::token::{Row, check_rows};
use crate::{Error, Result};
#[cfg(feature = "cuda")]
pub(in crate::ops) use tensors::sample_on_tensor;

/// The largest vocabulary: sums of weights must fit 64 bits.
pub const MAX_VOCAB: usize = 1 << 22;

/// Rows to sample: settings, draws and histories, checked and uploaded.
#[derive(Debug)]
pub struct Batch {
    rows: CudaSlice<TokenRow>,
    history: CudaSlice<u32>,
    count: usize,
    vocab: usize,
    penalised: bool,
}

impl Batch {
    /// Uploads rows for logits of `vocab` tokens.
    ///
    /// # Errors
    /// On settings or history tokens outside the contract, a vocabulary above [`MAX_VOCAB`], and statuses of the driver.
    pub fn new(to: &impl Upload, rows: &[Row<'_>], vocab: usize) -> Result<Self> {
        let op = "cuda::token::Batch";
        let (device_rows, history, penalised) = device_rows(op, rows, vocab)?;
        Ok(Self {
            rows: to.upload(op, &device_rows)?,
            history: to.upload(op, &history)?,
            count: rows.len(),
            vocab,
            penalised,
        })
    }

    /// Replaces the rows in place, for a graph that samples from this batch again and again: as many rows as before, no
    /// more history in all than there was room for, and a penalty only if there was one.
    ///
    /// # Errors
    /// As [`Batch::new`], and on rows that do not fit.
    pub fn update(&mut self, stream: &Arc<CudaStream>, rows: &[Row<'_>]) -> Result<()> {
        let op = "cuda::token::Batch::update";
        let (device_rows, history, penalised) = device_rows(op, rows, self.vocab)?;
        if rows.len() != self.count
            || history.len() > self.history.len()
            || (penalised && !self.penalised)
        {
            let shape = |rows, history, penalised| {
                format!(
                    "{rows} rows, {history} tokens of history, {}penalty",
                    if penalised { "" } else { "no " }
                )
            };
            let got = shape(rows.len(), history.len(), penalised);
            return Err(Error::argument(
                op,
                "rows",
                got,
                format!("at most {}", shape(self.count, self.history.len(), self.penalised)),
            ));
        }
        let queue = Queue { op, stream };
        queue.put(&device_rows, &mut self.rows)?;
        queue.put(&history, &mut self.history)
    }
}

/// The kernels' rows, all histories in one list, and whether any row has a penalty.
fn device_rows(
    op: &'static str,
    rows: &[Row<'_>],
    vocab: usize,
) -> Result<(Vec<TokenRow>, Vec<u32>, bool)> {
    if vocab == 0 || vocab > MAX_VOCAB {
        return Err(Error::argument(op, "V", vocab, format!("in 1..={MAX_VOCAB}")));
    }
    check_rows(op, rows, vocab)?;
    let (mut device_rows, mut history, mut penalised) = (vec![], vec![], false);
    for row in rows {
        let p = &row.params;
        let penalty = p.repetition_penalty as f32;
        // Without a penalty the history is not looked at.
        let used: &[u32] = if penalty == 1.0 { &[] } else { row.history };
        penalised |= !used.is_empty();
        device_rows.push(TokenRow {
            seed: row.draws.seed,
            step: row.step,
            history_start: history.len() as u64,
            top_p: p.top_p,
            min_p: p.min_p,
            scale: if p.temperature == 0.0 { 0.0 } else { (1.0 / p.temperature) as f32 },
            penalty,
            sample: row.draws.sample,
            attempt: row.draws.attempt,
            sentence: row.sentence,
            // At or above the vocabulary it does nothing.
            top_k: p.top_k.min(vocab) as u32,
            history: u32::try_from(used.len()).map_err(|_| {
                Error::argument(op, "history", used.len(), "fewer than 2^32 tokens")
            })?,
            reserved: 0,
        });
        history.extend_from_slice(used);
    }
    Ok((device_rows, history, penalised))
}

/// What [`sample`] writes, in one buffer, so that it is read in one piece: for each row, in turn of
/// kinds,
/// 1. the token;
/// 2. the bits of its natural log-probability (f32); NaN where a row has no distribution;
/// 3. 0, or why a row has no distribution: 1 = NaN, 2 = plus infinity, 3 = nothing but minus
///    infinity.
#[derive(Debug)]
pub struct Output {
    /// Three times as many as rows.
    pub words: CudaSlice<u32>,
    rows: usize,
}

impl Output {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// Statuses of the driver.
    pub fn new(stream: &Arc<CudaStream>, rows: usize) -> Result<Self> {
        let queue = Queue { op: "cuda::token::Output", stream };
        Ok(Self { words: queue.alloc(3 * rows)?, rows })
    }

    /// The tokens, on the device.
    pub fn tokens(&self) -> CudaView<'_, u32> {
        self.words.slice(..self.rows)
    }
}

/// Draws a token a row. One launch.
///
/// # Errors
/// On logits of another shape than the batch, buffers of another GPU, and statuses of the driver. A row without a distribution is
/// no error here: see [`Output`].
pub fn sample(
    stream: &Arc<CudaStream>,
    logits: &Rows<'_>,
    batch: &Batch,
    out: &mut Output,
) -> Result<()> {
    let op = "cuda::token::sample";
    let queue = Queue { op, stream };
    if (logits.count, logits.width) != (batch.count, batch.vocab) {
        let got = format!("[{}, {}]", logits.count, logits.width);
        return Err(Error::argument(
            op,
            "logits",
            got,
            format!("[{}, {}]", batch.count, batch.vocab),
        ));
    }
    if out.rows < batch.count {
        let expected = format!("at least {}", batch.count);
        return Err(Error::argument(op, "rows of out", out.rows, expected));
    }
    let kind = (out.rows * size_of::<u32>()) as u64;
    let words = batch.count * batch.vocab.div_ceil(32);
    let mut bits = if batch.penalised { Some(queue.alloc::<u32>(words)?) } else { None };
    let (address, _logits) = logits.read(&queue, "logits")?;
    let (rows, _rows) = queue.read("rows", &batch.rows)?;
    let (history, _history) = queue.read("history", &batch.history)?;
    let (penalised, _bits) = match &mut bits {
        Some(bits) => {
            let (address, guard) = queue.write("workspace", bits)?;
            (address, Some(guard))
        }
        None => (0, None),
    };
    let (token, _words) = queue.write("out", &mut out.words)?;
    let (log_prob, status) = (token + kind, token + 2 * kind);
    let args = TokenArgs {
        logits: address,
        rows,
        history,
        penalised,
        token,
        log_prob,
        status,
        row_stride: logits.stride as i64,
        vocab: batch.vocab as u32,
        aligned: logits.aligned(address),
    };
    let kernel = logits.values.pick(["token_sample_f32", "token_sample_f16", "token_sample_bf16"]);
    // SAFETY: logits hold the batch's rows; histories name tokens of the vocabulary (checked by `Batch`); the workspace has
    // a bit for each token of each row if a row has a penalty. All are guarded here.
    unsafe { queue.launch(File::Token, kernel, batch.count as u64, args::TOKEN_THREADS, &args) }
}
