//! DistilBERT (Sanh et al. 2019): BERT's layers under other names, without token types.

use super::stack::{Embedding, Names, Stack, check_offsets, plain_positions, without_prefix};
use super::{Config, Encoder};
use crate::Result;
use crate::models::weights::Weights;
use candle_core::Tensor;

const NAMES: Names = Names {
    layers: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    attention_out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    feed: ["ffn.lin1", "ffn.lin2"],
    feed_norm: "output_layer_norm",
};

/// A DistilBERT encoder.
pub struct DistilBert {
    embedding: Embedding,
    stack: Stack,
    hidden: usize,
    max_tokens: usize,
}

impl DistilBert {
    /// Takes the weights, with or without the prefix `distilbert.`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let weights = without_prefix(weights, &["distilbert"]);
        Ok(Self {
            embedding: Embedding::load(config, &weights, false)?,
            stack: Stack::load(config, &weights, &NAMES)?,
            hidden: config.hidden_size,
            max_tokens: config.max_position_embeddings,
        })
    }
}

impl Encoder for DistilBert {
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
