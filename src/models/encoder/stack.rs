//! What the four architectures share: embeddings and post-norm transformer layers over packed rows.

use super::Config;
use crate::models::weights::Weights;
use crate::ops::act::{Activation, bias_act};
use crate::ops::attend::{AttendPlan, RelativeBias, attend};
use crate::ops::dense::Dense;
use crate::ops::norm::{Add, layer_norm};
use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// Names of a layer's tensors.
pub(super) struct Names {
    /// What the layers' numbers stand below.
    pub(super) layers: &'static str,
    /// Query, key and value projections.
    pub(super) qkv: [&'static str; 3],
    /// The projection after attention.
    pub(super) attention_out: &'static str,
    /// The layer norm after it.
    pub(super) attention_norm: &'static str,
    /// The two projections of the feed-forward part.
    pub(super) feed: [&'static str; 2],
    /// The layer norm after it.
    pub(super) feed_norm: &'static str,
}

/// BERT's names, which RoBERTa and XLM-RoBERTa keep.
pub(super) const BERT_NAMES: Names = Names {
    layers: "encoder.layer",
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    feed: ["intermediate.dense", "output.dense"],
    feed_norm: "output.LayerNorm",
};

/// Checkpoints of a task model keep the encoder below its architecture's name; sentence-transformers' do not.
pub(super) fn without_prefix(weights: &Weights, names: &[&str]) -> Weights {
    const WORDS: &str = "embeddings.word_embeddings.weight";
    match names.iter().find(|name| weights.pp(name).contains(WORDS)) {
        Some(name) => weights.pp(name),
        None => weights.clone(),
    }
}

/// Refuses offsets that do not fit the ids, and sequences longer than `max`.
pub(super) fn check_offsets(ids: &[u32], cu_seqlens: &[u32], max: usize) -> Result<()> {
    const OP: &str = "Encoder::forward";
    let ends = (cu_seqlens.first(), cu_seqlens.last());
    let whole = ends == (Some(&0), Some(&(ids.len() as u32)));
    if !whole || !cu_seqlens.is_sorted() {
        let got = format!("{:?} to {:?}", ends.0, ends.1);
        let expected = format!("offsets that rise from 0 to {}", ids.len());
        return Err(Error::argument(OP, "cu_seqlens", got, expected));
    }
    let longest = cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
    if longest > max {
        return Err(Error::argument(OP, "sequence length", longest, format!("at most {max}")));
    }
    Ok(())
}

/// Positions counted from 0 in each sequence.
pub(super) fn plain_positions(cu_seqlens: &[u32]) -> Vec<u32> {
    cu_seqlens.windows(2).flat_map(|w| 0..w[1] - w[0]).collect()
}

/// Positions counted from `padding + 1`, where the padding token itself, should a text contain it, has position
/// `padding` and is not counted. Integers throughout: in a float dtype they would be wrong past 256.
pub(super) fn padded_positions(ids: &[u32], cu_seqlens: &[u32], padding: u32) -> Vec<u32> {
    let mut positions = Vec::with_capacity(ids.len());
    for w in cu_seqlens.windows(2) {
        let mut next = padding;
        for &id in &ids[w[0] as usize..w[1] as usize] {
            next += u32::from(id != padding);
            positions.push(if id == padding { padding } else { next });
        }
    }
    positions
}

/// `y = x W + b`, where a following op may take over the bias.
struct Linear {
    weight: Weight,
    /// `[out]`.
    bias: Tensor,
}

enum Weight {
    /// On the CPU.
    Packed(Dense),
    /// `[in, out]`; on a GPU, or in training.
    Plain(Tensor),
}

impl Linear {
    /// Several layers of one input become one product.
    fn load(weights: &Weights, names: &[&str], input: usize, output: usize) -> Result<Self> {
        let (mut rows, mut biases) = (Vec::new(), Vec::new());
        for name in names {
            rows.push(weights.get(&[output, input], &format!("{name}.weight"))?);
            biases.push(weights.get(&[output], &format!("{name}.bias"))?);
        }
        let rows = Tensor::cat(&rows, 0)?;
        let weight = match !rows.track_op() && rows.device().is_cpu() && Dense::available() {
            true => Weight::Packed(Dense::new(&rows)?),
            false => Weight::Plain(rows.t()?.contiguous()?),
        };
        Ok(Self { weight, bias: Tensor::cat(&biases, 0)? })
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(dense) => dense.product(x, None),
            Weight::Plain(weight) => Ok(x.matmul(weight)?),
        }
    }

    fn then(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(dense) => dense.activated(x, Some(&self.bias), activation),
            Weight::Plain(_) => bias_act(&self.product(x)?, Some(&self.bias), activation),
        }
    }
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        // Checkpoints that began in TensorFlow have the older names.
        let get = |part: &str, older: &str| {
            let name = |part: &str| format!("{name}.{part}");
            let part = if weights.contains(&name(older)) { older } else { part };
            weights.get(&[config.hidden_size], &name(part))
        };
        let (weight, bias) = (get("weight", "gamma")?, get("bias", "beta")?);
        Ok(Self { weight, bias, eps: config.layer_norm_eps })
    }

    /// `norm(x + residual)`, where x still lacks `bias`.
    fn after(&self, x: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
        let add = Add { residual, bias };
        layer_norm(x, Some(add), &self.weight, Some(&self.bias), self.eps)
    }
}

/// Word, position and (if the architecture has them) token type embeddings, normalised.
pub(super) struct Embedding {
    words: Tensor,
    positions: Tensor,
    /// Of type 0, the only one a single text has.
    token_type: Option<Tensor>,
    norm: Norm,
}

impl Embedding {
    pub(super) fn load(config: &Config, weights: &Weights, token_types: bool) -> Result<Self> {
        let w = weights.pp("embeddings");
        let h = config.hidden_size;
        let token_type = match token_types {
            true => {
                let shape = [config.type_vocab_size, h];
                Some(w.get(&shape, "token_type_embeddings.weight")?.get(0)?)
            }
            false => None,
        };
        Ok(Self {
            words: w.get(&[config.vocab_size, h], "word_embeddings.weight")?,
            positions: w.get(&[config.max_position_embeddings, h], "position_embeddings.weight")?,
            token_type,
            norm: Norm::load(&w, "LayerNorm", config)?,
        })
    }

    pub(super) fn forward(&self, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
        let vocabulary = self.words.dims()[0];
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            let expected = format!("below the vocabulary size {vocabulary}");
            return Err(Error::argument("Encoder::forward", "token id", id, expected));
        }
        let rows =
            |table: &Tensor, ids: &[u32]| table.index_select(&Tensor::new(ids, self.device())?, 0);
        let words = rows(&self.words, ids)?;
        let positions = rows(&self.positions, positions)?;
        self.norm.after(&words, self.token_type.as_ref(), &positions)
    }

    fn device(&self) -> &Device {
        self.words.device()
    }
}

struct Layer {
    qkv: Linear,
    attention_out: Linear,
    attention_norm: Norm,
    feed_in: Linear,
    feed_out: Linear,
    feed_norm: Norm,
}

impl Layer {
    fn load(config: &Config, w: &Weights, names: &Names) -> Result<Self> {
        let (h, wide) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            qkv: Linear::load(w, &names.qkv, h, h)?,
            attention_out: Linear::load(w, &[names.attention_out], h, h)?,
            attention_norm: Norm::load(w, names.attention_norm, config)?,
            feed_in: Linear::load(w, &[names.feed[0]], h, wide)?,
            feed_out: Linear::load(w, &[names.feed[1]], wide, h)?,
            feed_norm: Norm::load(w, names.feed_norm, config)?,
        })
    }
}

/// The transformer layers.
pub(super) struct Stack {
    layers: Vec<Layer>,
    heads: usize,
    activation: Activation,
}

impl Stack {
    pub(super) fn load(config: &Config, weights: &Weights, names: &Names) -> Result<Self> {
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(config, &weights.pp(format!("{}.{i}", names.layers)), names))
            .collect::<Result<_>>()?;
        let unknown = || Error::unsupported(config.hidden_act.clone(), "unknown activation");
        let activation = config.activation().ok_or_else(unknown)?;
        Ok(Self { layers, heads: config.num_attention_heads, activation })
    }

    /// x `[sum T, H]` to states of the same shape.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        cu_seqlens: &[u32],
        bias: Option<&RelativeBias>,
    ) -> Result<Tensor> {
        let plan = AttendPlan::ragged(cu_seqlens, false);
        for layer in &self.layers {
            x = self.layer(layer, &x, &plan, bias)?;
        }
        Ok(x)
    }

    fn layer(
        &self,
        layer: &Layer,
        x: &Tensor,
        plan: &AttendPlan,
        bias: Option<&RelativeBias>,
    ) -> Result<Tensor> {
        let (rows, h) = x.dims2()?;
        let dim = h / self.heads;
        let qkv = layer.qkv.then(x, Activation::Identity)?.reshape((rows, 3, self.heads, dim))?;
        let part = |i: usize| qkv.narrow(1, i, 1)?.squeeze(1);
        let scale = 1.0 / (dim as f32).sqrt();
        let seen =
            attend(&part(0)?, &part(1)?, &part(2)?, plan, scale, bias)?.reshape((rows, h))?;
        let product = layer.attention_out.product(&seen)?;
        let x = layer.attention_norm.after(&product, Some(&layer.attention_out.bias), x)?;
        let wide = layer.feed_in.then(&x, self.activation)?;
        let product = layer.feed_out.product(&wide)?;
        layer.feed_norm.after(&product, Some(&layer.feed_out.bias), &x)
    }
}
