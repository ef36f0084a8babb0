//! The decoder over packed rows: Llama, Mistral, Qwen2 or Qwen3, by [`TextConfig`].
//!
//! All rows of a pass, of any number of sequences and in any mixture of prefill and decode, form one matrix `[n, H]`.
//! Each row has an explicit position (an integer; rotary tables are f32 and never go through the model's dtype) and a
//! slot in the key-value arena; an [`AttendPlan`] says which slots each block of rows sees. So removing masked image
//! tokens, keeping their neighbours' original positions, and forking a sequence are plain arguments.

mod cache;
mod config;
#[cfg(feature = "cuda")]
mod step;

use candle_core::{DType, Device, Tensor};

pub use cache::KvCache;
use cache::RotaryTable;
pub use config::{Rope, RopeScaling, TextConfig};

use crate::models::linear::{Group, Linear, Results, Weight, rows};
use crate::models::weights::Weights;
use crate::ops::act::silu_mul;
use crate::ops::attend::{AttendPlan, attend, write_rows};
use crate::ops::norm::{Add, rms_norm, rms_norm_sum};
use crate::ops::rope::rotate;
use crate::{Error, Result};

/// Where a row stands in its sequence: three components, of which each pair of a head turns with one
/// ([`Rope::sections`]). Text, and every row of a decoder without sections, has three equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(pub [u32; 3]);

impl Place {
    /// The largest component.
    pub fn last(&self) -> u32 {
        self.0.into_iter().max().unwrap_or(0)
    }
}

impl From<u32> for Place {
    fn from(position: u32) -> Self {
        Self([position; 3])
    }
}

fn places(positions: &[impl Into<Place> + Copy]) -> Vec<Place> {
    positions.iter().map(|&position| position.into()).collect()
}

/// The language model.
pub struct Language {
    config: TextConfig,
    /// None where they are the output layer's rows.
    embedding: Option<Tensor>,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Weight,
    device: Device,
    dtype: DType,
}

impl Language {
    /// Loads from `model` (`...embed_tokens`, `...layers`, `...norm`) and, unless the output layer is tied to the
    /// embedding, `head` (`lm_head`).
    pub(in crate::models) fn load(
        config: &TextConfig,
        model: &Weights,
        head: &Weights,
    ) -> Result<Self> {
        let shape = [config.vocab, config.hidden];
        let table = model.get(&shape, "embed_tokens.weight")?;
        let (device, dtype) = (table.device().clone(), table.dtype());
        // A checkpoint that ties its output layer and yet has one means the one it has, as in transformers.
        let tied = config.tied && !head.contains("weight");
        let (embedding, head) = match tied {
            true => (None, Weight::of(model, table)?),
            false => (Some(table), Weight::of(head, head.get(&shape, "weight")?)?),
        };
        let layers = (0..config.layers)
            .map(|i| Layer::load(config, &model.pp(format!("layers.{i}"))))
            .collect::<Result<_>>()?;
        Ok(Self {
            norm: model.get(&[config.hidden], "norm.weight")?,
            device,
            dtype,
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
        match &self.embedding {
            None => self.head.rows(ids),
            Some(table) => rows(table, ids),
        }
    }

    /// Runs all layers and the final norm on packed rows.
    ///
    /// - `x` `[n, H]`: input states, rows of any number of sequences;
    /// - `positions` (n): the position of each row in its sequence, a `u32` or a [`Place`]; gaps are fine;
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
        positions: &[impl Into<Place> + Copy],
        cache: &mut KvCache,
        slots: &[u32],
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        let positions = places(positions);
        self.check(x, &positions, cache, slots)?;
        self.over_arena(x, &positions, cache, slots, plan)
    }

    /// As [`Language::forward`], for passes that come again and again with about as many rows, as decode steps do. On a GPU such a
    /// pass is captured into a CUDA graph, so that the host launches one thing and not hundreds. That takes a few more rows, which
    /// nobody sees; last bits can differ from those of [`Language::forward`].
    ///
    /// Not captured, but as by [`Language::forward`]: with `BDHS_DECODE=ops` in the environment (`graph`, or nothing, is captured),
    /// and for models whose layers have other biases than of queries, keys and values, norms of heads, or adapters beside their
    /// weights. An arena that was stepped over is not for
    /// passes of another handle of the same GPU.
    ///
    /// # Errors
    /// As [`Language::forward`], and on another `BDHS_DECODE`.
    pub fn step(
        &self,
        x: &Tensor,
        positions: &[impl Into<Place> + Copy],
        cache: &mut KvCache,
        slots: &[u32],
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        let positions = &places(positions);
        self.check(x, positions, cache, slots)?;
        #[cfg(feature = "cuda")]
        if !positions.is_empty() {
            let (arenas, rotary, steps) = cache.parts();
            if let Some(states) =
                steps.run(self, x, || rotary.values(positions), arenas, slots, plan)?
            {
                return Ok(states);
            }
        }
        self.over_arena(x, positions, cache, slots, plan)
    }

    /// [`Language::forward`] after its checks.
    fn over_arena(
        &self,
        x: &Tensor,
        positions: &[Place],
        cache: &mut KvCache,
        slots: &[u32],
        plan: &AttendPlan,
    ) -> Result<Tensor> {
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
        positions: &[impl Into<Place> + Copy],
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        if positions.is_empty() {
            self.check_rows(x, &[])?;
            return Ok(x.clone());
        }
        let rotary = self.rotary(x, positions)?;
        self.run(x, &rotary, None, plan)
    }

    /// The rotary table of a pass, for [`Language::layer`].
    ///
    /// # Errors
    /// As [`Language::forward`].
    pub fn rotary(&self, x: &Tensor, positions: &[impl Into<Place> + Copy]) -> Result<Rotary> {
        let positions = places(positions);
        self.check_rows(x, &positions)?;
        RotaryTable::of(&self.config).rows(&positions, &self.device)
    }

    /// One layer of [`Language::forward_packed`]: all of them in order, then [`Language::finish`], are that pass. For training,
    /// which keeps what goes into each layer and computes the layer again when gradients come back.
    pub fn layer(
        &self,
        i: usize,
        x: &Tensor,
        rotary: &Rotary,
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        let (stream, pending) =
            self.layers[i].run(&self.config, x.clone(), None, rotary, None, plan)?;
        match pending {
            (delta, Some(bias)) => Ok((stream + delta.broadcast_add(bias)?)?),
            (delta, None) => Ok((stream + delta)?),
        }
    }

    /// The norm after the last layer.
    pub fn finish(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, None, &self.norm, self.config.eps)
    }

    fn run(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        arena: Option<(&KvCache, &[u32])>,
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        // The residual stream and what the last block wants added to it: the addition is fused into the next norm.
        let mut stream = x.clone();
        let mut pending = None;
        for (i, layer) in self.layers.iter().enumerate() {
            let arena = arena.map(|(cache, slots)| (cache.layer(i), slots));
            let (sum, delta) =
                layer.run(&self.config, stream, pending.as_ref(), rotary, arena, plan)?;
            (stream, pending) = (sum, Some(delta));
        }
        match &pending {
            None => self.finish(&stream),
            Some((delta, bias)) => {
                let add = Add { residual: &stream, bias: *bias };
                rms_norm(delta, Some(add), &self.norm, self.config.eps)
            }
        }
    }

    fn check(&self, x: &Tensor, positions: &[Place], cache: &KvCache, slots: &[u32]) -> Result<()> {
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

    fn check_rows(&self, x: &Tensor, positions: &[Place]) -> Result<()> {
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
            && let Some(position) =
                positions.iter().map(Place::last).find(|&p| p as usize >= window)
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
        Ok(self.head.product(hidden)?.to_dtype(DType::F32)?)
    }
}

/// Cosines and sines of each row's position, each `[n, head dim / 2]` in f32.
pub type Rotary = (Tensor, Tensor);

/// What a block wants added to the residual stream, and its bias.
type Pending<'a> = (Tensor, Option<&'a Tensor>);

/// Keys and values of a layer, and where each row's go.
type Arena<'a> = ((&'a Tensor, &'a Tensor), &'a [u32]);

struct Layer {
    attention_norm: Tensor,
    qkv: Group<3>,
    /// Of each head's query and key.
    head_norms: Option<[Tensor; 2]>,
    output: Linear,
    mlp_norm: Tensor,
    gate_up: Group<2>,
    down: Linear,
}

impl Layer {
    fn load(c: &TextConfig, weights: &Weights) -> Result<Self> {
        let attention = weights.pp("self_attn");
        let mlp = weights.pp("mlp");
        let (wide, narrow) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let qkv = [("q_proj", wide), ("k_proj", narrow), ("v_proj", narrow)];
        let gate_up = [("gate_proj", c.inner), ("up_proj", c.inner)];
        Ok(Self {
            attention_norm: weights.get(&[c.hidden], "input_layernorm.weight")?,
            qkv: Group::load(&attention, c.hidden, qkv, c.qkv_bias)?,
            head_norms: match c.qk_norm {
                true => Some([
                    attention.get(&[c.head_dim], "q_norm.weight")?,
                    attention.get(&[c.head_dim], "k_norm.weight")?,
                ]),
                false => None,
            },
            output: Linear::load(&attention, "o_proj", wide, c.hidden, c.output_bias)?,
            mlp_norm: weights.get(&[c.hidden], "post_attention_layernorm.weight")?,
            gate_up: Group::load(&mlp, c.hidden, gate_up, c.mlp_bias)?,
            down: Linear::load(&mlp, "down_proj", c.inner, c.hidden, c.mlp_bias)?,
        })
    }

    /// From the stream and what is to be added to it, to the same after this layer.
    fn run<'a>(
        &'a self,
        c: &TextConfig,
        mut stream: Tensor,
        pending: Option<&Pending>,
        rotary: &Rotary,
        arena: Option<Arena>,
        plan: &AttendPlan,
    ) -> Result<(Tensor, Pending<'a>)> {
        let h = match pending {
            None => rms_norm(&stream, None, &self.attention_norm, c.eps)?,
            Some((delta, bias)) => {
                let add = Add { residual: &stream, bias: *bias };
                let (sum, h) = rms_norm_sum(delta, add, &self.attention_norm, c.eps)?;
                stream = sum;
                h
            }
        };
        let seen = self.attend(c, &h, rotary, arena, plan)?;
        let add = Add { residual: &stream, bias: self.output.bias() };
        let (stream, h) = rms_norm_sum(&seen, add, &self.mlp_norm, c.eps)?;
        Ok((stream, (self.feed(c, &h)?, self.down.bias())))
    }

    /// Attention over the arena, or over the rows themselves, up to the output projection without its bias.
    fn attend(
        &self,
        c: &TextConfig,
        h: &Tensor,
        (cos, sin): &Rotary,
        arena: Option<Arena>,
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        let n = h.dim(0)?;
        let (wide, narrow) = (c.heads, c.kv_heads);
        let [query, key, value] = match (self.qkv.forward(h)?, &self.head_norms) {
            (Results::Joined(all), None) => {
                let all = all.reshape((n, wide + 2 * narrow, c.head_dim))?;
                let turned = rotate(&all.narrow(1, 0, wide + narrow)?, cos, sin)?;
                let value = all.narrow(1, wide + narrow, narrow)?;
                [turned.narrow(1, 0, wide)?, turned.narrow(1, wide, narrow)?, value]
            }
            (apart, norms) => {
                let [mut query, mut key, value] =
                    apart.heads([wide, narrow, narrow], c.head_dim)?;
                if let Some([of_query, of_key]) = norms {
                    query = rms_norm(&query.contiguous()?, None, of_query, c.eps)?;
                    key = rms_norm(&key.contiguous()?, None, of_key, c.eps)?;
                }
                [rotate(&query, cos, sin)?, rotate(&key, cos, sin)?, value]
            }
        };
        let (keys, values) = match arena {
            None => (&key, &value),
            Some(((keys, values), slots)) => {
                write_rows(keys, &key, slots)?;
                write_rows(values, &value, slots)?;
                (keys, values)
            }
        };
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        let seen = attend(&query, keys, values, plan, scale, None)?;
        self.output.product(&seen.reshape((n, wide * c.head_dim))?)
    }

    /// The gated feed-forward part, without the last bias.
    fn feed(&self, c: &TextConfig, h: &Tensor) -> Result<Tensor> {
        let [gate, up] = self.gate_up.forward(h)?.heads([1, 1], c.inner)?;
        self.down.product(&silu_mul(&gate, &up)?.reshape((h.dim(0)?, c.inner))?)
    }
}
