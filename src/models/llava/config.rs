//! `config.json` of a LLaVA checkpoint in the Hugging Face layout; [`super::original`] reads the other one.
//!
//! Checkpoints store only the fields that differ from a default, so the defaults are part of the format. They are
//! those of transformers 5 (`LlavaConfig`, `LlavaNextConfig`, `CLIPVisionConfig`, `LlamaConfig`, `MistralConfig`):
//!
//! | field | default |
//! |---|---|
//! | `image_token_index` (or `image_token_id`) | 32000 |
//! | `vision_feature_layer`, `vision_feature_select_strategy` | -2, `default` (the class token is dropped) |
//! | `projector_hidden_act`, `multimodal_projector_bias` | `gelu` (exact), true |
//! | `image_grid_pinpoints` (LLaVA-NeXT) | the five of 336 px: 1x2, 2x1, 2x2, 3x1, 1x3 |
//! | `vision_config` absent | CLIP ViT-L/14 at 336 px |
//! | `vision_config` given, fields absent | 768 wide, 3072 inner, 12 layers, 12 heads, 224 px, patch 32, quick_gelu, eps 1e-5 |
//! | `text_config` | model type llama, 32000 tokens, 4096 wide, 32 layers, 32 heads, silu, eps 1e-6, theta 10000 |
//! | llama only | 11008 inner, as many key heads as heads, 2048 positions |
//! | mistral only | 14336 inner, 8 key heads, 131072 positions, a sliding window of 4096 (an explicit null is none) |

use std::path::Path;

use serde_json::Value;

use super::fields::Fields;
use super::original::{self, Original};
use crate::models::files::refuse_quantised;
use crate::ops::act::Activation;
use crate::{Error, Result};

/// Which generation of LLaVA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// LLaVA-1.5 (`model_type` `llava`): one view of the image.
    Llava,
    /// LLaVA-1.6 / NeXT (`model_type` `llava_next`): AnyRes tiles beside the base view.
    Next,
}

/// All that `config.json` says.
#[derive(Debug, Clone)]
pub struct Config {
    /// LLaVA-1.5 or LLaVA-NeXT.
    pub generation: Generation,
    /// The CLIP tower.
    pub vision: VisionConfig,
    /// The language model.
    pub text: TextConfig,
    /// The id that stands for an image in a token sequence; none in the original layout, where none does.
    pub image_token: Option<u32>,
    /// Which states of the vision tower are used, counted in layers run: 0 = the embeddings, L = after layer L.
    /// (transformers' `hidden_states[-2]` of a tower with 24 layers is 23.) More than one are concatenated.
    pub vision_layers: Vec<usize>,
    /// Whether the class token is dropped (`default`) or kept (`full`).
    pub drop_class_token: bool,
    /// Dense layers of the projector: two in the Hugging Face layout.
    pub projector_layers: usize,
    /// Activation between the layers of the projector.
    pub projector_act: Activation,
    /// Whether the projector's layers have a bias.
    pub projector_bias: bool,
    /// AnyRes resolutions, (height, width) in pixels; empty for LLaVA-1.5.
    pub pinpoints: Vec<(usize, usize)>,
    /// End-of-sequence ids named by `config.json`; `generation_config.json` goes before them.
    pub eos: Vec<u32>,
    /// What else a checkpoint in the original layout says; none in the Hugging Face layout.
    pub original: Option<Original>,
}

/// The CLIP vision tower.
#[derive(Debug, Clone)]
pub struct VisionConfig {
    /// Width of the states.
    pub hidden: usize,
    /// Inner width of the feed-forward part.
    pub inner: usize,
    /// Number of layers in the file; those past the chosen one are not loaded.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Side of the square input, pixels.
    pub image_size: usize,
    /// Side of a square patch, pixels.
    pub patch_size: usize,
    /// Feed-forward activation.
    pub act: Activation,
    /// Epsilon of the layer norms.
    pub eps: f64,
}

impl VisionConfig {
    /// Patches along one side of a tile.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// The Llama or Mistral language model.
#[derive(Debug, Clone)]
pub struct TextConfig {
    /// `llama` or `mistral`.
    pub model_type: String,
    /// Number of rows of the embedding and of the output layer.
    pub vocab: usize,
    /// Width of the states.
    pub hidden: usize,
    /// Inner width of the feed-forward part.
    pub inner: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Epsilon of the RMS norms.
    pub eps: f64,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Bias in the four attention projections.
    pub attention_bias: bool,
    /// Bias in the three feed-forward projections.
    pub mlp_bias: bool,
    /// A query sees only keys fewer than this many positions back.
    pub sliding_window: Option<usize>,
    /// Whether the output layer is the embedding matrix.
    pub tied: bool,
}

/// Rotary position embedding: frequencies `theta^(-2i/head_dim)`, scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are scaled for longer sequences.
    pub scaling: RopeScaling,
}

/// Scaling of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Sequence length before the scaling.
        original: f64,
    },
}

impl Config {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// The file is missing or not JSON, a field has the wrong type or an impossible value ([`Error::Invalid`], which
    /// names it), or the architecture is none of those above ([`Error::Unsupported`]).
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let fields = Fields::read(&path)?;
        refuse_quantised(fields.value("quantization_config"), &path)?;
        if original::is_original(&fields) {
            return original::read(dir, &fields);
        }
        let generation = generation(&fields)?;
        let vision = VisionConfig::read(&fields)?;
        let text = TextConfig::read_nested(&fields, generation)?;
        let drop_class_token = match fields.str("vision_feature_select_strategy")? {
            None | Some("default") => true,
            Some("full") if generation == Generation::Llava => false,
            Some("full") => {
                return Err(Error::unsupported(
                    "vision_feature_select_strategy \"full\" with AnyRes tiles",
                    format!(
                        "{}: the class token of a tile has no place in the patch grid; use \"default\"",
                        path.display()
                    ),
                ));
            }
            Some(other) => {
                return Err(fields.invalid(
                    "vision_feature_select_strategy",
                    format!("is \"{other}\", expected \"default\" or \"full\""),
                ));
            }
        };
        let pinpoints = match generation {
            Generation::Llava => Vec::new(),
            Generation::Next => pinpoints(&fields, vision.image_size)?,
        };
        let mut eos = fields.ids("eos_token_id")?;
        if eos.is_empty() {
            eos = fields.object_or_empty("text_config")?.ids("eos_token_id")?;
        }
        Ok(Self {
            generation,
            image_token: Some(image_token(&fields)?),
            vision_layers: vision_layers(&fields, "vision_feature_layer", vision.layers)?,
            drop_class_token,
            projector_layers: 2,
            projector_act: activation(&fields, "projector_hidden_act", "gelu")?,
            projector_bias: fields.bool("multimodal_projector_bias", true)?,
            vision,
            text,
            pinpoints,
            eos,
            original: None,
        })
    }
}

fn generation(fields: &Fields) -> Result<Generation> {
    let (what, name) = match (fields.str("model_type")?, fields.value("architectures")) {
        (Some(name), _) => ("model type", name.to_owned()),
        (None, Some(list)) => ("architecture", list[0].as_str().unwrap_or_default().to_owned()),
        (None, None) => return Err(fields.invalid("model_type", "is missing")),
    };
    match name.as_str() {
        "llava" | "LlavaForConditionalGeneration" => Ok(Generation::Llava),
        "llava_next" | "LlavaNextForConditionalGeneration" => Ok(Generation::Next),
        _ => Err(Error::unsupported(
            format!("{what} \"{name}\""),
            format!(
                "{}: expected llava (LLaVA-1.5) or llava_next (LLaVA-1.6) in the Hugging Face layout, or llava, \
                 llava_llama or llava_mistral in that of the original LLaVA code",
                fields.path().display()
            ),
        )),
    }
}

fn image_token(fields: &Fields) -> Result<u32> {
    let name = if fields.has("image_token_index") { "image_token_index" } else { "image_token_id" };
    let id = fields.usize(name)?.unwrap_or(32_000);
    u32::try_from(id).map_err(|_| fields.invalid(name, format!("is {id}, expected a token id")))
}

/// The field `name` counted in layers run; transformers counts the embeddings as state 0 and -1 as the last.
pub(super) fn vision_layers(fields: &Fields, name: &str, layers: usize) -> Result<Vec<usize>> {
    let one = |value: &Value| -> Result<usize> {
        let n = value
            .as_i64()
            .ok_or_else(|| fields.wrong(name, value, "an integer or a list of them"))?;
        let states = layers as i64 + 1;
        let index = if n < 0 { states + n } else { n };
        if !(0..states).contains(&index) {
            return Err(fields.invalid(
                name,
                format!("is {n}, expected -{states}..={layers} for a tower of {layers} layers"),
            ));
        }
        Ok(index as usize)
    };
    match fields.value(name) {
        None => Ok(vec![one(&Value::from(-2))?]),
        Some(Value::Array(list)) if !list.is_empty() => list.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

/// AnyRes resolutions, of which all sides are multiples of a tile's.
pub(super) const PINPOINTS: &str = "image_grid_pinpoints";

fn pinpoints(fields: &Fields, tile: usize) -> Result<Vec<(usize, usize)>> {
    let pinpoints = fields.pairs(PINPOINTS)?.unwrap_or_else(default_pinpoints);
    check_pinpoints(fields, pinpoints, tile)
}

pub(super) fn check_pinpoints(
    fields: &Fields,
    pinpoints: Vec<(usize, usize)>,
    tile: usize,
) -> Result<Vec<(usize, usize)>> {
    match pinpoints.iter().find(|(h, w)| h % tile != 0 || w % tile != 0) {
        Some((h, w)) => Err(fields.invalid(
            PINPOINTS,
            format!("holds [{h}, {w}], expected multiples of the tile side {tile}"),
        )),
        None => Ok(pinpoints),
    }
}

/// The AnyRes resolutions of the released LLaVA-1.6 checkpoints, (height, width).
pub(super) fn default_pinpoints() -> Vec<(usize, usize)> {
    vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
}

impl VisionConfig {
    pub(super) fn read(config: &Fields) -> Result<Self> {
        let given = config.object("vision_config")?.is_some();
        Self::of(&config.object_or_empty("vision_config")?, given)
    }

    /// A tower's fields: all of it if `given`, else those in which it differs from ViT-L/14 at 336 px.
    pub(super) fn of(fields: &Fields, given: bool) -> Result<Self> {
        if let Some(kind) = fields.str("model_type")?.filter(|k| *k != "clip_vision_model") {
            return Err(Error::unsupported(
                format!("vision tower \"{kind}\""),
                format!("{}: only clip_vision_model is built in", fields.path().display()),
            ));
        }
        // A missing vision_config means ViT-L/14 at 336 px; a partial one is filled up from CLIP's own defaults.
        let or = |partial: usize, absent: usize| if given { partial } else { absent };
        let this = Self {
            hidden: fields.positive("hidden_size", or(768, 1024))?,
            inner: fields.positive("intermediate_size", or(3072, 4096))?,
            layers: fields.positive("num_hidden_layers", or(12, 24))?,
            heads: fields.positive("num_attention_heads", or(12, 16))?,
            image_size: square(fields, "image_size", or(224, 336))?,
            patch_size: square(fields, "patch_size", or(32, 14))?,
            act: activation(fields, "hidden_act", "quick_gelu")?,
            eps: fields.f64("layer_norm_eps", 1e-5)?,
        };
        if fields.positive("num_channels", 3)? != 3 {
            return Err(fields.invalid("num_channels", "is not 3: images are RGB"));
        }
        if !this.hidden.is_multiple_of(this.heads) {
            return Err(fields.invalid(
                "num_attention_heads",
                format!("is {}, expected a divisor of hidden_size {}", this.heads, this.hidden),
            ));
        }
        if this.patch_size > this.image_size {
            return Err(fields.invalid(
                "patch_size",
                format!("is {}, expected at most image_size {}", this.patch_size, this.image_size),
            ));
        }
        Ok(this)
    }
}

/// A side length given as a number or as two equal ones.
fn square(fields: &Fields, name: &str, default: usize) -> Result<usize> {
    if let Some(Value::Array(sides)) = fields.value(name) {
        return match sides.as_slice() {
            [a, b] if a == b && a.as_u64().is_some_and(|n| n > 0) => {
                Ok(a.as_u64().unwrap_or_default() as usize)
            }
            _ => Err(fields.wrong(name, &Value::from(sides.clone()), "two equal positive sides")),
        };
    }
    fields.positive(name, default)
}

impl TextConfig {
    /// The object `text_config`.
    fn read_nested(config: &Fields, generation: Generation) -> Result<Self> {
        let fields = config.object_or_empty("text_config")?;
        // LLaVA-1.5 inherits the language model's setting, NeXT does not.
        let tied = config.bool("tie_word_embeddings", false)?
            || (generation == Generation::Llava && fields.bool("tie_word_embeddings", false)?);
        let model_type = fields.str("model_type")?.unwrap_or("llama");
        Self::read(&fields, model_type, tied)
    }

    /// A language model's own fields, whatever model type stands among them.
    pub(super) fn read(fields: &Fields, model_type: &str, tied: bool) -> Result<Self> {
        let mistral = match model_type {
            "llama" => false,
            "mistral" => true,
            other => {
                return Err(Error::unsupported(
                    format!("language model \"{other}\""),
                    format!("{}: expected llama or mistral", fields.path().display()),
                ));
            }
        };
        match fields.str("hidden_act")? {
            None | Some("silu" | "swish") => {}
            Some(other) => {
                return Err(Error::unsupported(
                    format!("language model activation \"{other}\""),
                    format!("{}: expected silu", fields.path().display()),
                ));
            }
        }
        let hidden = fields.positive("hidden_size", 4096)?;
        let heads = fields.positive("num_attention_heads", 32)?;
        // An explicit null means "as many as heads"; Mistral's 8 stand only for an absent field.
        let absent_is_8 = mistral && !fields.has("num_key_value_heads");
        let max_positions =
            fields.positive("max_position_embeddings", if mistral { 131_072 } else { 2_048 })?;
        let window = if !mistral {
            None
        } else if fields.has("sliding_window") {
            fields.usize("sliding_window")?
        } else {
            Some(4096)
        };
        let this = Self {
            vocab: fields.positive("vocab_size", 32_000)?,
            inner: fields.positive("intermediate_size", if mistral { 14_336 } else { 11_008 })?,
            layers: fields.positive("num_hidden_layers", 32)?,
            kv_heads: fields
                .positive("num_key_value_heads", if absent_is_8 { 8 } else { heads })?,
            head_dim: fields.positive("head_dim", hidden / heads)?,
            eps: fields.f64("rms_norm_eps", 1e-6)?,
            rope: Rope::read(fields, max_positions)?,
            attention_bias: !mistral && fields.bool("attention_bias", false)?,
            mlp_bias: !mistral && fields.bool("mlp_bias", false)?,
            sliding_window: window,
            tied,
            model_type: model_type.to_owned(),
            hidden,
            heads,
            max_positions,
        };
        this.check(fields)?;
        Ok(this)
    }

    fn check(&self, fields: &Fields) -> Result<()> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(fields.invalid(
                "num_key_value_heads",
                format!("is {}, expected a divisor of {} heads", self.kv_heads, self.heads),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(fields.invalid(
                "head_dim",
                format!("is {}, expected an even number: rotary pairs", self.head_dim),
            ));
        }
        if self.sliding_window == Some(0) {
            return Err(
                fields.invalid("sliding_window", "is 0, expected null or a positive integer")
            );
        }
        Ok(())
    }
}

impl Rope {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before).
    fn read(text: &Fields, max_positions: usize) -> Result<Self> {
        let name = if text.value("rope_parameters").is_some() {
            "rope_parameters"
        } else {
            "rope_scaling"
        };
        let fields = text.object_or_empty(name)?;
        let theta = fields.f64("rope_theta", text.f64("rope_theta", 10_000.0)?)?;
        if !(theta.is_finite() && theta > 0.0) {
            return Err(
                text.invalid("rope_theta", format!("is {theta}, expected a positive number"))
            );
        }
        let partial =
            fields.f64("partial_rotary_factor", text.f64("partial_rotary_factor", 1.0)?)?;
        if partial != 1.0 {
            return Err(Error::unsupported(
                format!("partial_rotary_factor {partial}"),
                format!("{}: whole heads are rotated", text.path().display()),
            ));
        }
        let kind = match fields.str("rope_type")? {
            Some(kind) => kind,
            None => fields.str("type")?.unwrap_or("default"),
        };
        let scaling = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: positive(&fields, "factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: positive(&fields, "factor")?,
                low: positive(&fields, "low_freq_factor")?,
                high: positive(&fields, "high_freq_factor")?,
                original: fields.f64("original_max_position_embeddings", max_positions as f64)?,
            },
            other => {
                return Err(Error::unsupported(
                    format!("rope type \"{other}\""),
                    format!("{}: expected default, linear or llama3", text.path().display()),
                ));
            }
        };
        Ok(Self { theta, scaling })
    }

    /// One frequency per pair of a head, radians per position.
    ///
    /// Rounded to f32 where transformers rounds: at position 4,000 a frequency rounded otherwise turns by 1e-4. The
    /// power itself is taken in f64, since that of f32 differs between C libraries.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let base = |i: usize| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / self.theta.powf(f64::from(exponent)) as f32
        };
        (0..head_dim / 2).map(|i| self.scale(base(i))).collect()
    }

    fn scale(&self, frequency: f32) -> f32 {
        match self.scaling {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 { factor, low, high, original } => {
                // Products with rounded reciprocals, as torch divides a number by a tensor: the difference below
                // cancels, so another rounding here is off by several ulp, and by that times the position in radians.
                let wavelength = (1.0 / frequency) * std::f32::consts::TAU;
                if wavelength < (original / high) as f32 {
                    frequency
                } else if wavelength > (original / low) as f32 {
                    frequency / factor as f32
                } else {
                    let ramp =
                        ((1.0 / wavelength) * original as f32 - low as f32) / (high - low) as f32;
                    (1.0 - ramp) * frequency / factor as f32 + ramp * frequency
                }
            }
        }
    }
}

fn positive(fields: &Fields, name: &str) -> Result<f64> {
    let x = fields.required_f64(name)?;
    if x.is_finite() && x > 0.0 {
        Ok(x)
    } else {
        Err(fields.invalid(name, format!("is {x}, expected a positive number")))
    }
}

fn activation(fields: &Fields, name: &str, default: &str) -> Result<Activation> {
    let given = fields.str(name)?.unwrap_or(default);
    Activation::from_name(given).ok_or_else(|| {
        Error::unsupported(
            format!("activation \"{given}\""),
            format!(
                "{}: {name} may be gelu, gelu_pytorch_tanh, quick_gelu, relu or silu",
                fields.path().display()
            ),
        )
    })
}
