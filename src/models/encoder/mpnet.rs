//! MPNet (Song et al. 2020): BERT's layers with positions counted from 2, no token types, and a bias by relative
//! position, shared by all layers, on every attention score.

use super::stack::{
    BERT_NAMES, Embedding, Names, Stack, check_offsets, padded_positions, without_prefix,
};
use super::{Config, Encoder};
use crate::models::weights::Weights;
use crate::ops::attend::RelativeBias;
use crate::{Error, Result};
use candle_core::{DType, Tensor};

const NAMES: Names = Names {
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attention_out: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..BERT_NAMES
};

/// The padding token's number: fixed by the architecture, whatever the config says.
const PADDING: u32 = 1;
/// Buckets of the bias.
const BUCKETS: usize = 32;
/// Distances from here on share the last bucket.
const MAX_DISTANCE: f32 = 128.0;

/// An MPNet encoder without its pooler.
pub struct Mpnet {
    embedding: Embedding,
    stack: Stack,
    bias: RelativeBias,
    hidden: usize,
    max_tokens: usize,
}

impl Mpnet {
    /// Takes the weights, with or without the prefix `mpnet.`.
    ///
    /// # Errors
    /// As [`Weights::get`]; [`Error::Unsupported`] for another number of buckets than transformers computes with.
    pub fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let weights = without_prefix(weights, &["mpnet"]);
        let max_tokens = config.max_position_embeddings.saturating_sub(PADDING as usize + 1).max(1);
        let buckets = config.relative_attention_num_buckets;
        if buckets != BUCKETS {
            let what = format!("relative_attention_num_buckets {buckets}");
            let message =
                format!("transformers computes MPNet with {BUCKETS}, whatever the config says");
            return Err(Error::unsupported(what, message));
        }
        // Its shape bounds what follows, which grows with the number of positions.
        let embedding = Embedding::load(config, &weights, false)?;
        let shape = [buckets, config.num_attention_heads];
        let by_bucket =
            weights.get_as(&shape, "encoder.relative_attention_bias.weight", DType::F32)?;
        let span = max_tokens as i64 - 1;
        let of_distance: Vec<u32> = (-span..=span).map(|d| bucket(d, buckets as u32)).collect();
        let of_distance = Tensor::new(of_distance, weights.device())?;
        let table = by_bucket.index_select(&of_distance, 0)?.t()?.contiguous()?;
        Ok(Self {
            embedding,
            stack: Stack::load(config, &weights, &NAMES)?,
            bias: RelativeBias { table, max: max_tokens },
            hidden: config.hidden_size,
            max_tokens,
        })
    }
}

/// The bucket of a distance (key - query): half of them for keys after the query; of each half, half for exact
/// distances and half on a logarithmic scale. In f32, as the weights were trained.
fn bucket(distance: i64, buckets: u32) -> u32 {
    let half = buckets / 2;
    let exact = half / 2;
    let side = if distance > 0 { half } else { 0 };
    let far = distance.unsigned_abs() as u32;
    if far < exact {
        return side + far;
    }
    let scale = f64::from(MAX_DISTANCE / exact as f32).ln() as f32;
    let steps = (far as f32 / exact as f32).ln() / scale * (half - exact) as f32;
    side + (exact + steps as u32).min(half - 1)
}

impl Encoder for Mpnet {
    fn forward(&self, ids: &[u32], cu_seqlens: &[u32]) -> Result<Tensor> {
        check_offsets(ids, cu_seqlens, self.max_tokens)?;
        let positions = padded_positions(ids, cu_seqlens, PADDING);
        let x = self.embedding.forward(ids, &positions)?;
        self.stack.forward(x, cu_seqlens, Some(&self.bias))
    }

    fn hidden_size(&self) -> usize {
        self.hidden
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_by_hand() {
        // Exact up to 7; 8, 16, 32, 64 begin every second bucket of the logarithmic half; 128 would be past the last.
        for (far, expected) in [
            (0, 0),
            (7, 7),
            (8, 8),
            (11, 8),
            (12, 9),
            (16, 10),
            (32, 12),
            (64, 14),
            (90, 14),
            (91, 15),
            (500, 15),
        ] {
            assert_eq!(bucket(-far, 32), expected, "-{far}");
            assert_eq!(bucket(far, 32), if far == 0 { 0 } else { 16 + expected }, "{far}");
        }
    }
}
