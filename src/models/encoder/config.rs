//! `config.json` of the encoders.

use crate::models::files::refuse_quantised;
use crate::models::settings;
use crate::ops::act::Activation;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// What the architectures need to know, under Hugging Face's names (for DistilBERT, by its own).
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Config {
    /// The architecture.
    pub model_type: String,
    /// Rows of the word table.
    pub vocab_size: usize,
    /// H.
    #[serde(alias = "dim")]
    pub hidden_size: usize,
    /// Layers.
    #[serde(alias = "n_layers")]
    pub num_hidden_layers: usize,
    /// Heads; divides H.
    #[serde(alias = "n_heads")]
    pub num_attention_heads: usize,
    /// Width of the feed-forward layer.
    #[serde(alias = "hidden_dim")]
    pub intermediate_size: usize,
    /// The feed-forward activation.
    #[serde(default = "gelu", alias = "activation")]
    pub hidden_act: String,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the token type table (absent in MPNet).
    #[serde(default)]
    pub type_vocab_size: usize,
    /// Added to the variance of every layer norm.
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// The padding token; RoBERTa counts positions from the number after it.
    #[serde(default)]
    pub pad_token_id: Option<u32>,
    /// Only `absolute` is supported.
    #[serde(default = "absolute")]
    pub position_embedding_type: Option<String>,
    /// Buckets of MPNet's relative attention bias.
    #[serde(default = "buckets")]
    pub relative_attention_num_buckets: usize,
    /// How the weights are quantised: refused.
    #[serde(default)]
    quantization_config: Option<serde_json::Value>,
    /// A decoder would attend causally: refused.
    #[serde(default)]
    pub is_decoder: bool,
}

fn gelu() -> String {
    "gelu".into()
}

fn layer_norm_eps() -> f64 {
    1e-12
}

fn absolute() -> Option<String> {
    Some("absolute".into())
}

fn buckets() -> usize {
    32
}

impl Config {
    /// Reads and checks `config.json` in `dir`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] naming the field; [`Error::Unsupported`] for an option we do not have.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let wrong = |e: serde_json::Error| Error::invalid(&path, "", e.to_string());
        let fields: Map<String, Value> = serde_json::from_str(&text).map_err(wrong)?;
        let config: Self = serde_json::from_str(&text).map_err(wrong)?;
        settings::ENCODER.check(&fields, &path)?;
        refuse_quantised(config.quantization_config.as_ref(), &path)?;
        let invalid = |field: &str, message: String| {
            Err(Error::invalid(&path, format!("field {field}"), message))
        };
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("num_attention_heads", config.num_attention_heads),
            ("intermediate_size", config.intermediate_size),
            ("max_position_embeddings", config.max_position_embeddings),
        ];
        if let Some((field, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return invalid(field, "0, expected at least 1".into());
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let message = format!(
                "{}, expected a divisor of hidden_size {}",
                config.num_attention_heads, config.hidden_size
            );
            return invalid("num_attention_heads", message);
        }
        if !(config.layer_norm_eps >= 0.0 && config.layer_norm_eps.is_finite()) {
            return invalid("layer_norm_eps", format!("{}, expected >= 0", config.layer_norm_eps));
        }
        let unsupported = |what: String, message: &str| {
            Err(Error::unsupported(format!("{what} in {}", path.display()), message))
        };
        match config.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => {
                let what = format!("position_embedding_type {other:?}");
                return unsupported(what, "only \"absolute\" is implemented");
            }
        }
        if config.is_decoder {
            return unsupported("is_decoder = true".into(), "encoders see both directions");
        }
        if config.activation().is_none() {
            let what = format!("hidden_act {:?}", config.hidden_act);
            return unsupported(what, "known are gelu, gelu_new, quick_gelu, relu, silu");
        }
        Ok(config)
    }

    /// The feed-forward activation, if we have it.
    pub fn activation(&self) -> Option<Activation> {
        Activation::from_name(&self.hidden_act)
    }
}
