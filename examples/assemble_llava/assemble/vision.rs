//! A small CLIP or SigLIP vision tower and a projector with random weights.

use std::collections::BTreeMap;

use bdhs::Result;
use candle_core::{Device, Tensor};

use super::{Options, Shape};

/// Side of the square input in pixels, as in the released checkpoints.
pub fn image_size(shape: Shape) -> usize {
    match shape {
        Shape::Llava | Shape::Next => 336,
        Shape::OneVision => 384,
    }
}

/// Side of a patch in pixels: 24 x 24 = 576 image tokens a view, or 27 x 27 = 729.
pub const PATCH: usize = 14;
/// Width of the tower; CLIP ViT-L has 1024.
pub const HIDDEN: usize = 64;
/// Inner width of the feed-forward part.
pub const INNER: usize = 256;
/// Layers; CLIP ViT-L has 24.
pub const LAYERS: usize = 4;
/// Attention heads.
pub const HEADS: usize = 4;

/// All tensors of the vision tower (`vision_tower.`), the projector and, for AnyRes, the newline.
///
/// `text_hidden` is the width of the language model, `spread` the root mean square of its token embeddings. Weights are
/// scaled so that image tokens come out about as long as word embeddings: much longer ones would drown the text, much
/// shorter ones would not be seen.
pub fn weights(
    text_hidden: usize,
    spread: f64,
    options: &Options,
) -> Result<BTreeMap<String, Tensor>> {
    let mut maker = Maker { random: Random(options.seed), tensors: BTreeMap::new(), options };
    let tower = "vision_tower.vision_model";
    let patch_inputs = 3 * PATCH * PATCH;
    let clip = options.shape != Shape::OneVision;
    let positions = (image_size(options.shape) / PATCH).pow(2) + usize::from(clip);
    if clip {
        maker.normal(format!("{tower}.embeddings.class_embedding"), &[HIDDEN], 1.0)?;
    } else {
        maker.normal(format!("{tower}.embeddings.patch_embedding.bias"), &[HIDDEN], 0.01)?;
    }
    let patches = format!("{tower}.embeddings.patch_embedding.weight");
    maker.normal(patches, &[HIDDEN, 3, PATCH, PATCH], (patch_inputs as f64).powf(-0.5))?;
    maker.normal(
        format!("{tower}.embeddings.position_embedding.weight"),
        &[positions, HIDDEN],
        0.3,
    )?;
    if clip {
        maker.norm(&format!("{tower}.pre_layrnorm"))?; // sic: the name in CLIP checkpoints
    }
    for i in 0..LAYERS {
        let layer = format!("{tower}.encoder.layers.{i}");
        maker.norm(&format!("{layer}.layer_norm1"))?;
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            maker.linear(&format!("{layer}.self_attn.{name}"), HIDDEN, HIDDEN, 1.0)?;
        }
        maker.norm(&format!("{layer}.layer_norm2"))?;
        maker.linear(&format!("{layer}.mlp.fc1"), INNER, HIDDEN, 1.0)?;
        maker.linear(&format!("{layer}.mlp.fc2"), HIDDEN, INNER, 1.0)?;
    }
    maker.norm(&format!("{tower}.post_layernorm"))?;
    maker.linear("multi_modal_projector.linear_1", text_hidden, HIDDEN, FEATURE_SCALE)?;
    maker.linear(
        "multi_modal_projector.linear_2",
        text_hidden,
        text_hidden,
        spread / GELU_SCALE,
    )?;
    if options.shape != Shape::Llava {
        maker.normal("image_newline".into(), &[text_hidden], spread)?;
    }
    Ok(maker.tensors)
}

/// Brings the states after the last but one layer back to a root mean square of about 1.
const FEATURE_SCALE: f64 = 0.6;
/// Root mean square of gelu(x) for x ~ N(0, 1).
const GELU_SCALE: f64 = 0.65;

struct Maker<'a> {
    random: Random,
    tensors: BTreeMap<String, Tensor>,
    options: &'a Options,
}

impl Maker<'_> {
    fn normal(&mut self, name: String, shape: &[usize], spread: f64) -> Result<()> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| (spread * self.random.normal()) as f32).collect();
        self.add(name, Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// Keeps the spread of its inputs, times `gain`; no bias to speak of.
    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, gain: f64) -> Result<()> {
        let spread = gain * (inputs as f64).powf(-0.5);
        self.normal(format!("{name}.weight"), &[outputs, inputs], spread)?;
        self.normal(format!("{name}.bias"), &[outputs], 0.01 * gain)
    }

    fn norm(&mut self, name: &str) -> Result<()> {
        let shape = &[HIDDEN][..];
        let one = Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu)?;
        self.add(format!("{name}.bias"), one.zeros_like()?)?;
        self.add(format!("{name}.weight"), one)
    }

    fn add(&mut self, name: String, tensor: Tensor) -> Result<()> {
        self.tensors.insert(name, tensor.to_dtype(self.options.dtype)?);
        Ok(())
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on every machine, without a dependency.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Strictly between 0 and 1.
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}
