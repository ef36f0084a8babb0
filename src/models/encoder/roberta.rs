//! RoBERTa (Liu et al. 2019): BERT's layers, positions counted from the padding token's number plus one.

use super::stack::{BERT_NAMES, Embedding, Stack, check_offsets, padded_positions, without_prefix};
use super::{Config, Encoder};
use crate::Result;
use crate::models::weights::Weights;
use candle_core::Tensor;

/// A RoBERTa encoder without its pooler.
pub struct Roberta {
    embedding: Embedding,
    stack: Stack,
    hidden: usize,
    max_tokens: usize,
    padding: u32,
}

impl Roberta {
    /// Takes the weights, with or without the prefix `roberta.`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let weights = without_prefix(weights, &["roberta"]);
        let padding = config.pad_token_id.unwrap_or(1);
        Ok(Self {
            embedding: Embedding::load(config, &weights, true)?,
            stack: Stack::load(config, &weights, &BERT_NAMES)?,
            hidden: config.hidden_size,
            max_tokens: config.max_position_embeddings.saturating_sub(padding as usize + 1),
            padding,
        })
    }
}

impl Encoder for Roberta {
    fn forward(&self, ids: &[u32], cu_seqlens: &[u32]) -> Result<Tensor> {
        check_offsets(ids, cu_seqlens, self.max_tokens)?;
        let positions = padded_positions(ids, cu_seqlens, self.padding);
        let x = self.embedding.forward(ids, &positions)?;
        self.stack.forward(x, cu_seqlens, None)
    }

    fn hidden_size(&self) -> usize {
        self.hidden
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}
