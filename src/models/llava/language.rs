//! The Llama or Mistral language model over packed rows.
//!
//! All rows of a pass, of any number of sequences and in any mixture of prefill and decode, form one matrix `[n, H]`.
//! Each row has an explicit position (an integer; rotary tables are f32 and never go through the model's dtype) and a
//! slot in the key-value arena; an [`AttendPlan`] says which slots each block of rows sees. So removing masked image
//! tokens, keeping their neighbours' original positions, and forking a sequence are plain arguments.

use candle_core::{DType, Device, Tensor};

use super::cache::{KvCache, RotaryTable};
use super::config::TextConfig;
use crate::models::weights::Weights;
use crate::ops::act::silu_mul;
use crate::ops::attend::{AttendPlan, attend, write_rows};
use crate::ops::norm::{Add, rms_norm, rms_norm_sum};
use crate::ops::rope::rotate;
use crate::{Error, Result};

/// A dense layer, weight `[out, in]`.
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn load(
        weights: &Weights,
        name: &str,
        input: usize,
        output: usize,
        bias: bool,
    ) -> Result<Self> {
        let weights = weights.pp(name);
        Ok(Self {
            weight: weights.get(&[output, input], "weight")?,
            bias: if bias { Some(weights.get(&[output], "bias")?) } else { None },
        })
    }

    /// `[n, in]` to `[n, out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.product(x)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// The product alone, for callers that fuse the bias into what follows.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&self.weight.t()?)?)
    }

    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// The language model.
pub struct Language {
    config: TextConfig,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
    device: Device,
    dtype: DType,
}

impl Language {
    /// Loads from `model` (`...embed_tokens`, `...layers`, `...norm`) and, unless the output layer is tied to the
    /// embedding, `head` (`lm_head`).
    pub(super) fn load(config: &TextConfig, model: &Weights, head: &Weights) -> Result<Self> {
        let shape = [config.vocab, config.hidden];
        let embedding = model.get(&shape, "embed_tokens.weight")?;
        let head = if config.tied { embedding.clone() } else { head.get(&shape, "weight")? };
        let layers = (0..config.layers)
            .map(|i| Layer::load(config, &model.pp(format!("layers.{i}"))))
            .collect::<Result<_>>()?;
        Ok(Self {
            norm: model.get(&[config.hidden], "norm.weight")?,
            device: embedding.device().clone(),
            dtype: embedding.dtype(),
            config: config.clone(),
            embedding,
            layers,
            head,
        })
    }

    /// The sizes of the model.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The dtype of weights, states and cache.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the model is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// An arena of `slots` token rows for every layer, see [`KvCache::bytes`].
    pub fn new_cache(&self, slots: usize) -> Result<KvCache> {
        KvCache::new(&self.config, slots, &self.device, self.dtype)
    }

    /// Input states `[n, H]` of text tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] if an id is not in the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocab) {
            return Err(Error::argument(
                "Language::embed",
                "token id",
                id,
                format!("ids below the vocabulary size {}", self.config.vocab),
            ));
        }
        Ok(self.embedding.index_select(&Tensor::new(ids, &self.device)?, 0)?)
    }

    /// Runs all layers and the final norm on packed rows.
    ///
    /// - `x` `[n, H]`: input states, rows of any number of sequences;
    /// - `positions` (n): the position of each row in its sequence; gaps are fine;
    /// - `slots` (n): where each row's keys and values go; all rows are written before any row attends;
    /// - `plan`: for each block of rows the slots that it sees, its own included.
    ///
    /// Returns `[n, H]`, ready for [`Language::logits`].
    ///
    /// # Errors
    /// [`Error::Argument`] if lengths differ, or a slot is out of range or named twice. [`Error::Unsupported`] if a
    /// position reaches the sliding window of the model: up to there the window hides nothing, past it this would be
    /// another function.
    pub fn forward(
        &self,
        x: &Tensor,
        positions: &[u32],
        cache: &mut KvCache,
        slots: &[u32],
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        self.check(x, positions, cache, slots)?;
        if positions.is_empty() {
            return Ok(x.clone());
        }
        let rotary = cache.rotary(positions)?;
        self.run(x, &rotary, Some((cache, slots)), plan)
    }

    /// As [`Language::forward`] without an arena: a row's keys and values are those of this pass, so the plan's
    /// segments name rows of `x`. Differentiable with respect to `x` and to weights that are tracked.
    ///
    /// # Errors
    /// As [`Language::forward`].
    pub fn forward_packed(
        &self,
        x: &Tensor,
        positions: &[u32],
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        self.check_rows(x, positions)?;
        if positions.is_empty() {
            return Ok(x.clone());
        }
        let rotary = RotaryTable::of(&self.config, &self.device).rows(positions)?;
        self.run(x, &rotary, None, plan)
    }

    fn run(
        &self,
        x: &Tensor,
        rotary: &(Tensor, Tensor),
        arena: Option<(&KvCache, &[u32])>,
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        let eps = self.config.eps;
        // The residual stream and what the last block wants added to it: the addition is fused into the next norm.
        let mut stream = x.clone();
        let mut pending: Option<(Tensor, Option<&Tensor>)> = None;
        for (i, layer) in self.layers.iter().enumerate() {
            let h = match &pending {
                None => rms_norm(&stream, None, &layer.attention_norm, eps)?,
                Some((delta, bias)) => {
                    let add = Add { residual: &stream, bias: *bias };
                    let (sum, h) = rms_norm_sum(delta, add, &layer.attention_norm, eps)?;
                    stream = sum;
                    h
                }
            };
            let arena = arena.map(|(cache, slots)| (cache.layer(i), slots));
            let seen = layer.attend(&self.config, &h, rotary, arena, plan)?;
            let add = Add { residual: &stream, bias: layer.output.bias() };
            let (sum, h) = rms_norm_sum(&seen, add, &layer.mlp_norm, eps)?;
            stream = sum;
            pending = Some((layer.feed(&h)?, layer.down.bias()));
        }
        match &pending {
            None => rms_norm(&stream, None, &self.norm, eps),
            Some((delta, bias)) => {
                let add = Add { residual: &stream, bias: *bias };
                rms_norm(delta, Some(add), &self.norm, eps)
            }
        }
    }

    fn check(&self, x: &Tensor, positions: &[u32], cache: &KvCache, slots: &[u32]) -> Result<()> {
        self.check_rows(x, positions)?;
        if slots.len() != positions.len() {
            return Err(Error::argument(
                "Language::forward",
                "number of slots",
                slots.len(),
                format!("{}, one a row", positions.len()),
            ));
        }
        cache.check_slots(slots)
    }

    fn check_rows(&self, x: &Tensor, positions: &[u32]) -> Result<()> {
        let expected = [positions.len(), self.config.hidden];
        if x.dims() != expected {
            return Err(Error::argument(
                "Language::forward",
                "shape of x",
                format!("{:?}", x.dims()),
                format!("{expected:?}: one row a position"),
            ));
        }
        if let Some(window) = self.config.sliding_window
            && let Some(position) = positions.iter().find(|&&p| p as usize >= window)
        {
            return Err(Error::unsupported(
                format!("position {position} of a model with a sliding window of {window}"),
                "sequences must be shorter than the window; use a smaller token limit",
            ));
        }
        Ok(())
    }

    /// Logits `[r, vocab]` in f32 of states that [`Language::forward`] returned.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.matmul(&self.head.t()?)?.to_dtype(DType::F32)?)
    }
}

struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    mlp_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Layer {
    fn load(c: &TextConfig, weights: &Weights) -> Result<Self> {
        let attention = weights.pp("self_attn");
        let mlp = weights.pp("mlp");
        let (wide, narrow) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let project =
            |name, input, output| Linear::load(&attention, name, input, output, c.attention_bias);
        let feed = |name, input, output| Linear::load(&mlp, name, input, output, c.mlp_bias);
        Ok(Self {
            attention_norm: weights.get(&[c.hidden], "input_layernorm.weight")?,
            query: project("q_proj", c.hidden, wide)?,
            key: project("k_proj", c.hidden, narrow)?,
            value: project("v_proj", c.hidden, narrow)?,
            output: project("o_proj", wide, c.hidden)?,
            mlp_norm: weights.get(&[c.hidden], "post_attention_layernorm.weight")?,
            gate: feed("gate_proj", c.hidden, c.inner)?,
            up: feed("up_proj", c.hidden, c.inner)?,
            down: feed("down_proj", c.inner, c.hidden)?,
        })
    }

    /// Attention over the arena, or over the rows themselves, up to the output projection without its bias.
    fn attend(
        &self,
        c: &TextConfig,
        h: &Tensor,
        (cos, sin): &(Tensor, Tensor),
        arena: Option<((&Tensor, &Tensor), &[u32])>,
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        let n = h.dim(0)?;
        let query = self.query.forward(h)?.reshape((n, c.heads, c.head_dim))?;
        let key = self.key.forward(h)?.reshape((n, c.kv_heads, c.head_dim))?;
        let value = self.value.forward(h)?.reshape((n, c.kv_heads, c.head_dim))?;
        let key = rotate(&key, cos, sin)?;
        let (keys, values) = match arena {
            None => (&key, &value),
            Some(((keys, values), slots)) => {
                write_rows(keys, &key, slots)?;
                write_rows(values, &value, slots)?;
                (keys, values)
            }
        };
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        let seen = attend(&rotate(&query, cos, sin)?, keys, values, plan, scale, None)?;
        self.output.product(&seen.reshape((n, c.heads * c.head_dim))?)
    }

    /// The gated feed-forward part, without the last bias.
    fn feed(&self, h: &Tensor) -> Result<Tensor> {
        self.down.product(&silu_mul(&self.gate.forward(h)?, &self.up.forward(h)?)?)
    }
}
