//! What a checkpoint is and needs, without reading its weights: `bdhs doctor --model`.
//!
//! The networks are built on weights of which only the headers are read
//! ([`outline`](crate::models::weights::Weights::outline)), so that configuration, tokenizer, processor, and the presence,
//! shape and type of every tensor are checked as [`Model::load`] checks them; values are not looked at.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use serde::Serialize;

use super::adapter::canonical;
use super::families::{Part, part};
use super::{KvCache, Model, Source};
use crate::Result;

/// A checkpoint in figures. Field names and their order are part of the interface of `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outline {
    /// `LLaVA-1.5` or `LLaVA-1.6`.
    pub family: &'static str,
    /// `Hugging Face`, or `original LLaVA`.
    pub layout: &'static str,
    /// `llama` or `mistral`.
    pub language: String,
    /// Parameters of the language model, the output layer included.
    pub language_parameters: u64,
    /// Parameters of the vision tower's layers that are used.
    pub vision_parameters: u64,
    /// Parameters of the projector.
    pub projector_parameters: u64,
    /// Layers of the language model.
    pub layers: usize,
    /// Width of its states.
    pub hidden: usize,
    /// Query heads, and heads of keys and values.
    pub heads: (usize, usize),
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Longest sequence.
    pub context: usize,
    /// Bytes of all weights in the folder, by stored type.
    pub stored_bytes: BTreeMap<String, u64>,
    /// Image tokens of pictures of some sizes: width, height, tokens.
    pub image_tokens: Vec<(usize, usize, usize)>,
    /// What it takes in each type.
    pub memory: Vec<Memory>,
}

/// Memory in one type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// `f32`, `f16` or `bf16`.
    pub dtype: &'static str,
    /// Of the weights that are used.
    pub weight_bytes: u64,
    /// Of the keys and values of one token.
    pub cache_bytes_per_token: u64,
    /// Of weights and of a wave's keys and values, `token_budget` tokens.
    pub total_bytes: u64,
}

impl Outline {
    /// Reads a checkpoint's configuration and the headers of its weights. `token_budget` is that of a wave.
    ///
    /// # Errors
    /// As [`Model::load`], but for values that are not finite.
    pub fn read(source: &Source, token_budget: usize) -> Result<Self> {
        let weights = source.weights(&Device::Cpu, DType::F32)?.outline();
        let model = Model::of(source, &weights)?;
        let (config, text) = (model.config(), &model.config().text);
        let used = weights.used();
        let parameters = |of: Part| -> u64 {
            let own = used.iter().filter(|(name, _)| part(&canonical(name)) == of);
            own.map(|(_, count)| count).sum()
        };
        let [vision, projector, language] =
            [Part::Tower, Part::Projector, Part::Language].map(parameters);
        let all = vision + projector + language;
        let (family, layout) = config.names();
        let memory = [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)];
        let sizes = [(336, 336), (640, 480), (1024, 768), (672, 1344)];
        let tokens = |&(width, height): &(usize, usize)| {
            Ok((width, height, model.layout(width, height)?.tokens))
        };
        Ok(Self {
            family,
            layout,
            language: text.model_type.clone(),
            language_parameters: language,
            vision_parameters: vision,
            projector_parameters: projector,
            layers: text.layers,
            hidden: text.hidden,
            heads: (text.heads, text.kv_heads),
            vocabulary: text.vocab,
            context: text.max_positions,
            stored_bytes: weights.stored_bytes(),
            image_tokens: sizes.iter().map(tokens).collect::<Result<_>>()?,
            memory: memory
                .into_iter()
                .map(|(name, dtype)| {
                    let weight_bytes = all * dtype.size_in_bytes() as u64;
                    let cache = KvCache::bytes(text, token_budget, dtype) as u64;
                    Memory {
                        dtype: name,
                        weight_bytes,
                        cache_bytes_per_token: KvCache::bytes(text, 1, dtype) as u64,
                        total_bytes: weight_bytes + cache,
                    }
                })
                .collect(),
        })
    }
}
