//! BERT (Devlin et al. 2019): positions from 0, token type 0.

use super::stack::{BERT_NAMES, Embedding, Stack, check_offsets, plain_positions, without_prefix};
use super::{Config, Encoder};
use crate::Result;
use crate::models::weights::Weights;
use candle_core::Tensor;

/// A BERT encoder without its pooler.
pub struct Bert {
    embedding: Embedding,
    stack: Stack,
    hidden: usize,
    max_tokens: usize,
}

impl Bert {
    /// Takes the weights, with or without the prefix `bert.`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let weights = without_prefix(weights, &["bert"]);
        Ok(Self {
            embedding: Embedding::load(config, &weights, true)?,
            stack: Stack::load(config, &weights, &BERT_NAMES)?,
            hidden: config.hidden_size,
            max_tokens: config.max_position_embeddings,
        })
    }
}

impl Encoder for Bert {
    fn forward(&self, ids: &[u32], cu_seqlens: &[u32]) -> Result<Tensor> {
        check_offsets(ids, cu_seqlens, self.max_tokens)?;
        let x = self.embedding.forward(ids, &plain_positions(cu_seqlens))?;
        self.stack.forward(x, cu_seqlens, None)
    }

    fn hidden_size(&self) -> usize {
        self.hidden
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}
