//! Sizes and options of the decoder, as `config.json` gives them: Llama, Mistral, Qwen2 or Qwen3.
//!
//! Checkpoints store only the fields that differ from a default, so the defaults are part of the format. They are those of
//! transformers 5 (`LlamaConfig`, `MistralConfig`, `Qwen2Config`, `Qwen3Config`):
//!
//! | field | llama | mistral | qwen2 | qwen3 |
//! |---|---|---|---|---|
//! | `vocab_size` | 32000 | 32000 | 151936 | 151936 |
//! | `intermediate_size` | 11008 | 14336 | 22016 | 22016 |
//! | `num_key_value_heads`, absent | as many as heads | 8 | 32 | 32 |
//! | `head_dim`, absent | hidden / heads | hidden / heads | hidden / heads | 128 |
//! | `max_position_embeddings` | 2048 | 131072 | 32768 | 32768 |
//! | sliding window | none | 4096 (an explicit null is none) | only with `use_sliding_window` | the same |
//! | bias of q, k, v | `attention_bias` | none | always | `attention_bias` |
//! | bias of o | `attention_bias` | none | none | `attention_bias` |
//! | norms of q and k | no | no | no | yes |
//!
//! All have a width of 4096, 32 layers, 32 heads, silu, eps 1e-6 and theta 10000. `qwen2_vl_text` and `qwen2_5_vl_text` are
//! qwen2 with other numbers: 152064 tokens, 8192 wide, 29568 inner, 80 layers, 64 heads, 8 of keys, eps 1e-5, theta 1000000.

use crate::models::fields::Fields;
use crate::{Error, Result};

/// The decoder.
#[derive(Debug, Clone)]
pub struct TextConfig {
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
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
    /// Bias in the projections to queries, keys and values.
    pub qkv_bias: bool,
    /// Bias in the projection behind attention.
    pub output_bias: bool,
    /// Whether each head's query and key go through an RMS norm before they are rotated.
    pub qk_norm: bool,
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
    /// Pairs of a head that turn with each component of a [`Place`](crate::models::Place), in order: the first so many with the
    /// first component, and so on. None: all components of a place are equal.
    pub sections: Option<[usize; 3]>,
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

impl TextConfig {
    /// A language model's own fields, whatever model type stands among them.
    pub(in crate::models) fn read(fields: &Fields, model_type: &str, tied: bool) -> Result<Self> {
        let Some(defaults) = DEFAULTS.iter().find(|defaults| defaults.model_type == model_type)
        else {
            let known: Vec<&str> = DEFAULTS.iter().map(|defaults| defaults.model_type).collect();
            return Err(Error::unsupported(
                format!("language model \"{model_type}\""),
                format!("{}: expected one of {}", fields.path().display(), known.join(", ")),
            ));
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
        let hidden = fields.positive("hidden_size", defaults.hidden)?;
        let heads = fields.positive("num_attention_heads", defaults.heads)?;
        // An explicit null means "as many as heads"; a default number stands only for an absent field.
        let kv_heads = match defaults.kv_heads {
            Some(number) if !fields.has("num_key_value_heads") => number,
            _ => heads,
        };
        let max_positions = fields.positive("max_position_embeddings", defaults.max_positions)?;
        let optional = |name, given: Bias| match given {
            Bias::Never => Ok(false),
            Bias::Always => Ok(true),
            Bias::IfSaid => fields.bool(name, false),
        };
        let this = Self {
            vocab: fields.positive("vocab_size", defaults.vocab)?,
            inner: fields.positive("intermediate_size", defaults.inner)?,
            layers: fields.positive("num_hidden_layers", defaults.layers)?,
            kv_heads: fields.positive("num_key_value_heads", kv_heads)?,
            head_dim: fields.positive("head_dim", defaults.head_dim.unwrap_or(hidden / heads))?,
            eps: fields.f64("rms_norm_eps", defaults.eps)?,
            rope: Rope::read(fields, max_positions, defaults.theta)?,
            qkv_bias: optional("attention_bias", defaults.qkv_bias)?,
            output_bias: optional("attention_bias", defaults.output_bias)?,
            qk_norm: defaults.qk_norm,
            mlp_bias: optional("mlp_bias", defaults.mlp_bias)?,
            sliding_window: defaults.window.read(fields)?,
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
        if let Some(sections) = self.rope.sections
            && sections.iter().sum::<usize>() != self.head_dim / 2
        {
            let message = format!(
                "is {sections:?}, expected three numbers with the sum {}, half of a head",
                self.head_dim / 2
            );
            return Err(fields.invalid(SECTIONS, message));
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
    fn read(text: &Fields, max_positions: usize, theta: f64) -> Result<Self> {
        let name = if text.value("rope_parameters").is_some() {
            "rope_parameters"
        } else {
            "rope_scaling"
        };
        let fields = text.object_or_empty(name)?;
        let theta = fields.f64("rope_theta", text.f64("rope_theta", theta)?)?;
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
            // transformers 4 names the sections' type, 5 does not.
            "default" | "mrope" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: fields.positive_f64("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: fields.positive_f64("factor")?,
                low: fields.positive_f64("low_freq_factor")?,
                high: fields.positive_f64("high_freq_factor")?,
                original: fields.f64("original_max_position_embeddings", max_positions as f64)?,
            },
            other => {
                return Err(Error::unsupported(
                    format!("rope type \"{other}\""),
                    format!("{}: expected default, linear or llama3", text.path().display()),
                ));
            }
        };
        Ok(Self { theta, scaling, sections: sections(&fields)? })
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

const SECTIONS: &str = "mrope_section";

/// Which pairs turn with which component; none where the model has plain positions.
fn sections(rope: &Fields) -> Result<Option<[usize; 3]>> {
    let Some(value) = rope.value(SECTIONS) else { return Ok(None) };
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let numbers: Option<Vec<usize>> =
        list.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok())).collect();
    match numbers.and_then(|numbers| <[usize; 3]>::try_from(numbers).ok()) {
        Some(sections) if !rope.bool("mrope_interleaved", false)? => Ok(Some(sections)),
        Some(_) => Err(Error::unsupported(
            "mrope_interleaved",
            format!("{}: sections that follow one another are built in", rope.path().display()),
        )),
        None => Err(rope.wrong(SECTIONS, value, "three numbers")),
    }
}

/// What an absent field means, and what has no field.
struct Defaults {
    model_type: &'static str,
    vocab: usize,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    eps: f64,
    theta: f64,
    /// None: as many as query heads.
    kv_heads: Option<usize>,
    /// None: width / heads.
    head_dim: Option<usize>,
    max_positions: usize,
    window: Window,
    qkv_bias: Bias,
    output_bias: Bias,
    mlp_bias: Bias,
    qk_norm: bool,
}

#[derive(Clone, Copy)]
enum Bias {
    Never,
    Always,
    /// `attention_bias` or `mlp_bias`.
    IfSaid,
}

#[derive(Clone, Copy)]
enum Window {
    Never,
    /// `sliding_window`, 4096 if absent.
    Always,
    /// `sliding_window`, if `use_sliding_window` is true, from layer `max_window_layers` on.
    IfSaid,
}

impl Window {
    fn read(self, fields: &Fields) -> Result<Option<usize>> {
        match self {
            Self::Never => Ok(None),
            Self::IfSaid if !fields.bool("use_sliding_window", false)? => Ok(None),
            _ if fields.has("sliding_window") => fields.usize("sliding_window"),
            _ => Ok(Some(4096)),
        }
    }
}

const LLAMA: Defaults = Defaults {
    model_type: "llama",
    vocab: 32_000,
    hidden: 4096,
    inner: 11_008,
    layers: 32,
    heads: 32,
    eps: 1e-6,
    theta: 10_000.0,
    kv_heads: None,
    head_dim: None,
    max_positions: 2_048,
    window: Window::Never,
    qkv_bias: Bias::IfSaid,
    output_bias: Bias::IfSaid,
    mlp_bias: Bias::IfSaid,
    qk_norm: false,
};

const QWEN2: Defaults = Defaults {
    model_type: "qwen2",
    vocab: 151_936,
    inner: 22_016,
    kv_heads: Some(32),
    max_positions: 32_768,
    window: Window::IfSaid,
    qkv_bias: Bias::Always,
    output_bias: Bias::Never,
    mlp_bias: Bias::Never,
    ..LLAMA
};

const QWEN2_VL: Defaults = Defaults {
    model_type: "qwen2_vl_text",
    vocab: 152_064,
    hidden: 8192,
    inner: 29_568,
    layers: 80,
    heads: 64,
    kv_heads: Some(8),
    eps: 1e-5,
    theta: 1_000_000.0,
    ..QWEN2
};

const DEFAULTS: [Defaults; 6] = [
    LLAMA,
    Defaults {
        model_type: "mistral",
        inner: 14_336,
        kv_heads: Some(8),
        max_positions: 131_072,
        window: Window::Always,
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        mlp_bias: Bias::Never,
        ..LLAMA
    },
    QWEN2,
    Defaults {
        model_type: "qwen3",
        head_dim: Some(128),
        qkv_bias: Bias::IfSaid,
        output_bias: Bias::IfSaid,
        qk_norm: true,
        ..QWEN2
    },
    QWEN2_VL,
    Defaults { model_type: "qwen2_5_vl_text", ..QWEN2_VL },
];
