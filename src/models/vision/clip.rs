//! The CLIP and SigLIP vision towers, up to the last layer that is used.
//!
//! transformers numbers states as `hidden_states[0]` = embeddings after the pre-norm, `hidden_states[i]` = after layer
//! i. The default -2 of a tower of 24 is 23: after layer 23, with layer 24 and the post-norm not used. They are not
//! even loaded. SigLIP has neither a class token nor a norm before the layers; its last state, too, is the one before the
//! post-norm.

use candle_core::Tensor;

use crate::models::families::llava::{Config, Tower, VisionConfig};
use crate::models::linear::{Group, Linear, Weight};
use crate::models::weights::Weights;
use crate::ops::attend::{AttendPlan, attend};
use crate::ops::norm::{Add, layer_norm, layer_norm_sum};
use crate::{Error, Result};

/// The tower.
pub struct Vision {
    config: VisionConfig,
    wanted: Vec<usize>,
    drop_class_token: bool,
    patch: Weight,
    patch_bias: Option<Tensor>,
    positions: Tensor,
    /// Of CLIP.
    class: Option<Class>,
    layers: Vec<Layer>,
}

/// The class token, and the norm behind it.
struct Class {
    token: Tensor,
    norm: Norm,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    fn load(weights: &Weights, name: &str, size: usize, eps: f64) -> Result<Self> {
        let weights = weights.pp(name);
        Ok(Self {
            weight: weights.get(&[size], "weight")?,
            bias: weights.get(&[size], "bias")?,
            eps,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, None, &self.weight, Some(&self.bias), self.eps)
    }

    /// `(x + before, its norm)`.
    fn forward_sum(&self, x: &Tensor, before: Add) -> Result<(Tensor, Tensor)> {
        layer_norm_sum(x, before, &self.weight, Some(&self.bias), self.eps)
    }
}

impl Vision {
    /// Loads the tower from `weights` (the prefix before `embeddings` and `encoder`).
    pub(in crate::models) fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let v = &config.vision;
        let (h, p, patches) = (v.hidden, v.patch_size, v.side() * v.side());
        let embeddings = weights.pp("embeddings");
        let used = config.vision_layers.iter().copied().max().unwrap_or(0);
        let layers = (0..used)
            .map(|i| Layer::load(v, &weights.pp(format!("encoder.layers.{i}"))))
            .collect::<Result<_>>()?;
        let patch = embeddings.get(&[h, 3, p, p], "patch_embedding.weight")?;
        let (class, patch_bias) = match v.tower {
            Tower::Clip => {
                let token = embeddings.get(&[h], "class_embedding")?;
                // The tensor really is spelled so.
                let norm = Norm::load(weights, "pre_layrnorm", h, v.eps)?;
                (Some(Class { token, norm }), None)
            }
            Tower::Siglip => (None, Some(embeddings.get(&[h], "patch_embedding.bias")?)),
        };
        let tokens = patches + usize::from(class.is_some());
        Ok(Self {
            patch: Weight::of(&embeddings, patch.reshape((h, 3 * p * p))?)?,
            patch_bias,
            positions: embeddings.get(&[tokens, h], "position_embedding.weight")?,
            class,
            layers,
            wanted: config.vision_layers.clone(),
            drop_class_token: config.drop_class_token,
            config: v.clone(),
        })
    }

    /// Features `[tiles, patches, H * chosen layers]` of `[tiles, 3, side, side]`; one patch more with the class token
    /// kept. Every tile is seen whole: masks act in the language model only.
    pub fn forward(&self, tiles: &Tensor) -> Result<Tensor> {
        let (count, channels, height, width) = tiles.dims4()?;
        let size = self.config.image_size;
        if (channels, height, width) != (3, size, size) {
            return Err(Error::argument(
                "Vision::forward",
                "tiles",
                format!("{:?}", tiles.dims()),
                format!("[tiles, 3, {size}, {size}]"),
            ));
        }
        let tokens = self.positions.dim(0)?;
        let mut x = self.embed(tiles)?;
        let bounds: Vec<u32> = (0..=count).map(|i| (i * tokens) as u32).collect();
        let plan = AttendPlan::ragged(&bounds, false);
        let mut states = vec![(0, x.clone())];
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&self.config, &x, &plan)?;
            if self.wanted.contains(&(i + 1)) {
                states.push((i + 1, x.clone()));
            }
        }
        self.select(&states, count, tokens)
    }

    /// What goes into the first layer, packed: `[tiles * tokens, H]`.
    fn embed(&self, tiles: &Tensor) -> Result<Tensor> {
        let c = &self.config;
        let (count, side, p) = (tiles.dim(0)?, c.side(), c.patch_size);
        // A convolution whose stride is its kernel is a product over flattened patches; pixels past the last whole
        // patch do not count.
        let patches = tiles
            .to_dtype(self.patch.dtype())?
            .narrow(2, 0, side * p)?
            .narrow(3, 0, side * p)?
            .reshape((count, 3, side, p, side, p))?
            .permute((0, 2, 4, 1, 3, 5))?
            .reshape((count * side * side, 3 * p * p))?;
        let mut patches = self.patch.product(&patches)?;
        if let Some(bias) = &self.patch_bias {
            patches = patches.broadcast_add(bias)?;
        }
        let patches = patches.reshape((count, side * side, c.hidden))?;
        let Some(class) = &self.class else {
            let x = patches.broadcast_add(&self.positions)?;
            return Ok(x.reshape((count * side * side, c.hidden))?);
        };
        let token = class.token.reshape((1, 1, c.hidden))?.expand((count, 1, c.hidden))?;
        let x = Tensor::cat(&[&token, &patches], 1)?.broadcast_add(&self.positions)?;
        class.norm.forward(&x.reshape((count * (1 + side * side), c.hidden))?)
    }

    fn select(&self, states: &[(usize, Tensor)], count: usize, tokens: usize) -> Result<Tensor> {
        let hidden = self.config.hidden;
        let skip = usize::from(self.drop_class_token && self.class.is_some());
        let mut chosen = Vec::with_capacity(self.wanted.len());
        for &layer in &self.wanted {
            for (_, state) in states.iter().filter(|(i, _)| *i == layer) {
                let state = state.reshape((count, tokens, hidden))?;
                chosen.push(state.narrow(1, skip, tokens - skip)?);
            }
        }
        match chosen.as_slice() {
            [one] => Ok(one.contiguous()?),
            all => Ok(Tensor::cat(all, 2)?),
        }
    }
}

struct Layer {
    norm1: Norm,
    qkv: Group<3>,
    output: Linear,
    norm2: Norm,
    up: Linear,
    down: Linear,
}

impl Layer {
    fn load(c: &VisionConfig, weights: &Weights) -> Result<Self> {
        let (attention, mlp) = (weights.pp("self_attn"), weights.pp("mlp"));
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| (name, c.hidden));
        Ok(Self {
            norm1: Norm::load(weights, "layer_norm1", c.hidden, c.eps)?,
            qkv: Group::load(&attention, c.hidden, qkv, true)?,
            output: Linear::load(&attention, "out_proj", c.hidden, c.hidden, true)?,
            norm2: Norm::load(weights, "layer_norm2", c.hidden, c.eps)?,
            up: Linear::load(&mlp, "fc1", c.hidden, c.inner, true)?,
            down: Linear::load(&mlp, "fc2", c.inner, c.hidden, true)?,
        })
    }

    fn forward(&self, c: &VisionConfig, x: &Tensor, plan: &AttendPlan) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let width = c.hidden / c.heads;
        let h = self.norm1.forward(x)?;
        let [query, key, value] = self.qkv.forward(&h)?.heads([c.heads; 3], width)?;
        let scale = 1.0 / (width as f32).sqrt();
        let seen = attend(&query, &key, &value, plan, scale, None)?.reshape((rows, c.hidden))?;
        let add = Add { residual: x, bias: self.output.bias() };
        let (x, h) = self.norm2.forward_sum(&self.output.product(&seen)?, add)?;
        let h = self.up.activated(&h, c.act)?;
        Ok((x + self.down.forward(&h)?)?)
    }
}
