//! XLM-RoBERTa (Conneau et al. 2020): RoBERTa's network with a multilingual vocabulary; its checkpoints may keep the
//! weights below `roberta.`.

use super::{Config, Encoder, Roberta};
use crate::Result;
use crate::models::weights::Weights;
use candle_core::Tensor;

/// An XLM-RoBERTa encoder without its pooler.
pub struct XlmRoberta(Roberta);

impl XlmRoberta {
    /// Takes the weights, with or without the prefix `roberta.`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(config: &Config, weights: &Weights) -> Result<Self> {
        Ok(Self(Roberta::load(config, weights)?))
    }
}

impl Encoder for XlmRoberta {
    fn forward(&self, ids: &[u32], cu_seqlens: &[u32]) -> Result<Tensor> {
        self.0.forward(ids, cu_seqlens)
    }

    fn hidden_size(&self) -> usize {
        self.0.hidden_size()
    }

    fn max_tokens(&self) -> usize {
        self.0.max_tokens()
    }
}
