//! Sampling from logits that are candle tensors on a GPU.

use candle_core::Tensor;

use super::super::{args, to_host, with_rows};
use super::{Batch, Output, sample};
use crate::Result;
use crate::ops::token::{Row, Sampled, no_distribution};

/// [`crate::ops::token::sample`] on a CUDA tensor, after its checks. Waits for the tokens: 12 bytes a row.
pub(in crate::ops) fn sample_on_tensor(
    op: &'static str,
    logits: &Tensor,
    rows: &[Row<'_>],
) -> Result<Vec<Sampled>> {
    with_rows(op, "logits", logits, |logits, device| {
        let stream = device.cuda_stream();
        let batch = Batch::new(device, rows, logits.width)?;
        let mut out = Output::new(&stream, batch.count)?;
        sample(&stream, logits, &batch, &mut out)?;
        let words = to_host(op, device, &out.words, 3 * batch.count)?;
        let (tokens, words) = words.split_at(batch.count);
        let (log_probs, status) = words.split_at(batch.count);
        let bad = status.iter().enumerate().find(|(_, status)| **status != args::TOKEN_OK);
        if let Some((row, &status)) = bad {
            let got = match status {
                args::TOKEN_EMPTY => "nothing but -inf",
                args::TOKEN_INFINITE => "+inf",
                _ => "NaN",
            };
            return Err(no_distribution(op, got, row));
        }
        let sampled = tokens
            .iter()
            .zip(log_probs)
            .map(|(&token, &bits)| Sampled { token, log_prob: f32::from_bits(bits) });
        Ok(sampled.collect())
    })
}
