//! `config.json` of a LLaVA checkpoint in the Hugging Face layout; [`super::original`] reads the other one.
//!
//! Checkpoints store only the fields that differ from a default, so the defaults are part of the format. They are
//! those of transformers 5 (`LlavaConfig`, `LlavaNextConfig`, `CLIPVisionConfig`):
//!
//! | field | default |
//! |---|---|
//! | `image_token_index` (or `image_token_id`) | 32000 |
//! | `vision_feature_layer`, `vision_feature_select_strategy` | -2, `default` (the class token is dropped) |
//! | `projector_hidden_act`, `multimodal_projector_bias` | `gelu` (exact), true |
//! | `image_grid_pinpoints` (LLaVA-NeXT) | the five of 336 px: 1x2, 2x1, 2x2, 3x1, 1x3 |
//! | LLaVA-OneVision | image token 151646, layer -1, `full`, the 36 resolutions of up to 6 x 6 tiles of 384 px, SigLIP so400m, `qwen2` |
//! | `vision_config` absent | CLIP ViT-L/14 at 336 px |
//! | SigLIP's, fields absent | 768 wide, 3072 inner, 12 layers, 12 heads, 224 px, patch 16, gelu_pytorch_tanh, eps 1e-6 |
//! | CLIP's, fields absent | 768 wide, 3072 inner, 12 layers, 12 heads, 224 px, patch 32, quick_gelu, eps 1e-5 |
//! | `text_config` | model type llama, and its defaults ([`TextConfig`]) |

use std::path::Path;

use serde_json::Value;

use super::original::{self, Original};
use crate::models::families;
use crate::models::fields::Fields;
use crate::models::language::TextConfig;
use crate::ops::act::Activation;
use crate::{Error, Result};

/// Which generation of LLaVA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// LLaVA-1.5 (`model_type` `llava`): one view of the image.
    Llava,
    /// LLaVA-1.6 / NeXT (`model_type` `llava_next`): AnyRes tiles beside the base view.
    Next,
    /// LLaVA-OneVision (`model_type` `llava_onevision`): as NeXT, with a limit to the tiles' patches, and the base view alone
    /// where a conversation has several images.
    OneVision,
}

impl Generation {
    /// For people.
    pub(in crate::models) fn name(self) -> &'static str {
        match self {
            Self::Llava => "LLaVA-1.5",
            Self::Next => "LLaVA-1.6",
            Self::OneVision => "LLaVA-OneVision",
        }
    }
}

/// What `config.json` says about pictures.
#[derive(Debug, Clone)]
pub struct Config {
    /// LLaVA-1.5 or LLaVA-NeXT.
    pub generation: Generation,
    /// The CLIP tower.
    pub vision: VisionConfig,
    /// Which states of the vision tower are used, counted in layers run: 0 = the embeddings, L = after layer L.
    /// (transformers' `hidden_states[-2]` of a tower with 24 layers is 23.) More than one are concatenated.
    pub vision_layers: Vec<usize>,
    /// Whether the class token, if the tower has one, is dropped (`default`) or kept (`full`).
    pub drop_class_token: bool,
    /// Of LLaVA-OneVision: how many tiles' patches the grid of tiles may have before it is shrunk.
    pub max_tiles: Option<usize>,
    /// Dense layers of the projector: two in the Hugging Face layout.
    pub projector_layers: usize,
    /// Activation between the layers of the projector.
    pub projector_act: Activation,
    /// Whether the projector's layers have a bias.
    pub projector_bias: bool,
    /// AnyRes resolutions, (height, width) in pixels; empty for LLaVA-1.5.
    pub pinpoints: Vec<(usize, usize)>,
    /// What else a checkpoint in the original layout says; none in the Hugging Face layout.
    pub original: Option<Original>,
}

/// Which vision tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tower {
    /// With a class token, a norm before the layers and no bias of patches.
    Clip,
    /// Without the first two, with the third.
    Siglip,
}

/// The CLIP or SigLIP vision tower.
#[derive(Debug, Clone)]
pub struct VisionConfig {
    /// Which of them.
    pub tower: Tower,
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

impl Config {
    /// Whether the tower's class token is an image token.
    pub(super) fn has_class_token(&self) -> bool {
        self.vision.tower == Tower::Clip && !self.drop_class_token
    }
}

impl VisionConfig {
    /// Patches along one side of a tile.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

impl Config {
    /// Reads the fields of `config.json` in `dir`, in either layout.
    ///
    /// # Errors
    /// A field has the wrong type or an impossible value ([`Error::Invalid`], which names it), or an option is not built in
    /// ([`Error::Unsupported`]).
    pub(in crate::models) fn read(
        dir: &Path,
        fields: &Fields,
        generation: Generation,
    ) -> Result<families::Config> {
        if original::is_original(fields) {
            return original::read(dir, fields);
        }
        let one_vision = generation == Generation::OneVision;
        let vision = match fields.object("vision_config")? {
            None if one_vision => VisionConfig::SO400M,
            _ if one_vision => VisionConfig::read(fields, Tower::Siglip)?,
            _ => VisionConfig::read(fields, Tower::Clip)?,
        };
        // NeXT does not inherit the language model's setting, the others do.
        let text = fields.object_or_empty("text_config")?;
        let tied = fields.bool("tie_word_embeddings", false)?
            || (generation != Generation::Next && text.bool("tie_word_embeddings", false)?);
        let model_type =
            text.str("model_type")?.unwrap_or(if one_vision { "qwen2" } else { "llama" });
        let text = TextConfig::read(&text, model_type, tied)?;
        let default = if one_vision { "full" } else { "default" };
        let strategy = fields.str("vision_feature_select_strategy")?.unwrap_or(default);
        let drop_class_token = match (strategy, vision.tower) {
            ("default", Tower::Siglip) => {
                return Err(Error::unsupported(
                    "vision_feature_select_strategy \"default\" with a SigLIP tower",
                    format!(
                        "{}: it drops a class token, which the tower does not have; use \"full\"",
                        fields.path().display()
                    ),
                ));
            }
            ("default", _) => true,
            ("full", tower) if generation == Generation::Llava || tower == Tower::Siglip => false,
            ("full", _) => {
                return Err(Error::unsupported(
                    "vision_feature_select_strategy \"full\" with AnyRes tiles",
                    format!(
                        "{}: the class token of a tile has no place in the patch grid; use \"default\"",
                        fields.path().display()
                    ),
                ));
            }
            (other, _) => {
                return Err(fields.invalid(
                    "vision_feature_select_strategy",
                    format!("is \"{other}\", expected \"default\" or \"full\""),
                ));
            }
        };
        let pinpoints = match generation {
            Generation::Llava => Vec::new(),
            Generation::Next => pinpoints(fields, default_pinpoints(), vision.image_size)?,
            Generation::OneVision => pinpoints(fields, many_pinpoints(), vision.image_size)?,
        };
        let max_tiles = if one_vision { Some(max_tiles(fields)?) } else { None };
        let image_token = Some(image_token(fields, if one_vision { 151_646 } else { 32_000 })?);
        let eos = families::eos(fields)?;
        let this = Self {
            generation,
            vision_layers: vision_layers(
                fields,
                "vision_feature_layer",
                if one_vision { -1 } else { -2 },
                vision.layers,
            )?,
            drop_class_token,
            max_tiles,
            projector_layers: 2,
            projector_act: fields.activation("projector_hidden_act", "gelu")?,
            projector_bias: fields.bool("multimodal_projector_bias", true)?,
            vision,
            pinpoints,
            original: None,
        };
        let pictures = families::Pictures::Llava(this);
        Ok(families::Config { text, image_token, video_token: None, eos, pictures })
    }
}

fn image_token(fields: &Fields, default: usize) -> Result<u32> {
    let name = if fields.has("image_token_index") { "image_token_index" } else { "image_token_id" };
    let id = fields.usize(name)?.unwrap_or(default);
    u32::try_from(id).map_err(|_| fields.invalid(name, format!("is {id}, expected a token id")))
}

/// The field `name` counted in layers run; transformers counts the embeddings as state 0 and -1 as the last.
pub(super) fn vision_layers(
    fields: &Fields,
    name: &str,
    default: i64,
    layers: usize,
) -> Result<Vec<usize>> {
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
        None => Ok(vec![one(&Value::from(default))?]),
        Some(Value::Array(list)) if !list.is_empty() => list.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

/// AnyRes resolutions, of which all sides are multiples of a tile's.
pub(super) const PINPOINTS: &str = "image_grid_pinpoints";

fn pinpoints(
    fields: &Fields,
    default: Vec<(usize, usize)>,
    tile: usize,
) -> Result<Vec<(usize, usize)>> {
    let pinpoints = fields.pairs(PINPOINTS)?.unwrap_or(default);
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

/// The AnyRes resolutions of the released LLaVA-OneVision checkpoints: one to six tiles of 384 px along each side.
pub(super) fn many_pinpoints() -> Vec<(usize, usize)> {
    let sides = || (1..=6).map(|tiles| 384 * tiles);
    sides().flat_map(|height| sides().map(move |width| (height, width))).collect()
}

/// N of `anyres_max_N`.
fn max_tiles(fields: &Fields) -> Result<usize> {
    const NAME: &str = "vision_aspect_ratio";
    let name = fields.str(NAME)?.unwrap_or("anyres_max_9");
    let number = name.strip_prefix("anyres_max_").and_then(|n| n.parse().ok());
    number.filter(|&n| n > 0).ok_or_else(|| {
        fields.invalid(NAME, format!("is \"{name}\", expected \"anyres_max_N\", N tiles"))
    })
}

impl VisionConfig {
    /// The tower of LLaVA-OneVision where `vision_config` is absent.
    const SO400M: Self = Self {
        tower: Tower::Siglip,
        hidden: 1152,
        inner: 4304,
        layers: 26,
        heads: 16,
        image_size: 384,
        patch_size: 14,
        act: Activation::GeluTanh,
        eps: 1e-6,
    };

    /// The object `vision_config`; `tower` is what a model type that is absent means.
    pub(super) fn read(config: &Fields, tower: Tower) -> Result<Self> {
        let given = config.object("vision_config")?.is_some();
        Self::of(&config.object_or_empty("vision_config")?, given, tower)
    }

    /// A tower's fields: all of it if `given`, else those in which it differs from ViT-L/14 at 336 px.
    pub(super) fn of(fields: &Fields, given: bool, tower: Tower) -> Result<Self> {
        let tower = match fields.str("model_type")? {
            None => tower,
            Some("clip_vision_model") => Tower::Clip,
            Some("siglip_vision_model") => Tower::Siglip,
            Some(kind) => {
                return Err(Error::unsupported(
                    format!("vision tower \"{kind}\""),
                    format!(
                        "{}: clip_vision_model and siglip_vision_model are built in",
                        fields.path().display()
                    ),
                ));
            }
        };
        let (patch, act, eps) = match tower {
            Tower::Clip => (32, "quick_gelu", 1e-5),
            Tower::Siglip => (16, "gelu_pytorch_tanh", 1e-6),
        };
        // A missing vision_config means ViT-L/14 at 336 px; a partial one is filled up from CLIP's own defaults.
        let or = |partial: usize, absent: usize| if given { partial } else { absent };
        let this = Self {
            tower,
            hidden: fields.positive("hidden_size", or(768, 1024))?,
            inner: fields.positive("intermediate_size", or(3072, 4096))?,
            layers: fields.positive("num_hidden_layers", or(12, 24))?,
            heads: fields.positive("num_attention_heads", or(12, 16))?,
            image_size: square(fields, "image_size", or(224, 336))?,
            patch_size: square(fields, "patch_size", or(patch, 14))?,
            act: fields.activation("hidden_act", act)?,
            eps: fields.f64("layer_norm_eps", eps)?,
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
