//! `vision_config` of Qwen2-VL and Qwen2.5-VL.
//!
//! Absent fields take the defaults of transformers 5 (`Qwen2VLVisionConfig`, `Qwen2_5_VLVisionConfig`), the same in both unless
//! said otherwise:
//!
//! | field | default |
//! |---|---|
//! | `depth`, `num_heads` | 32, 16 |
//! | `in_channels` (or `in_chans`), `patch_size`, `spatial_merge_size`, `temporal_patch_size` | 3, 14, 2, 2 |
//! | Qwen2-VL: `embed_dim`, `mlp_ratio`, `hidden_size` (of the output), `hidden_act` | 1280, 4, 3584, quick_gelu |
//! | Qwen2.5-VL: `hidden_size`, `intermediate_size`, `out_hidden_size` | 3584, 3420, 3584 |
//! | Qwen2.5-VL: `window_size` (pixels), `fullatt_block_indexes` | 112, [7, 15, 23, 31] |
//! | `rope_parameters` | axial, theta 10000 |

use serde_json::Value;

use super::Generation;
use crate::models::Bounds;
use crate::models::fields::Fields;
use crate::models::vision::qwen::{Kind, TowerConfig};
use crate::ops::act::Activation;
use crate::{Error, Result};

/// What `config.json` says about pictures.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which generation.
    pub generation: Generation,
    /// The vision tower.
    pub tower: TowerConfig,
    /// In place of the processor's.
    pub(in crate::models) pixels: Bounds,
}

impl Config {
    /// Reads `vision_config` among the fields of `config.json`.
    ///
    /// # Errors
    /// A field of a wrong type or an impossible value ([`Error::Invalid`]); a tower or an option that is not built in
    /// ([`Error::Unsupported`]).
    pub(in crate::models) fn read(fields: &Fields, generation: Generation) -> Result<Self> {
        let vision = fields.object_or_empty("vision_config")?;
        let own =
            [generation.model_type().to_owned(), format!("{}_vision", generation.model_type())];
        if let Some(kind) =
            vision.str("model_type")?.filter(|kind| !own.iter().any(|own| own == kind))
        {
            return Err(Error::unsupported(
                format!("vision tower \"{kind}\""),
                format!("{}: expected {}", vision.path().display(), own[1]),
            ));
        }
        for name in ["in_channels", "in_chans"] {
            if vision.positive(name, 3)? != 3 {
                return Err(vision.invalid(name, "is not 3: images are RGB"));
            }
        }
        let (patch, merge) =
            (side(&vision, "patch_size", 14)?, vision.positive("spatial_merge_size", 2)?);
        let width = match generation {
            Generation::Qwen2 => vision.positive("embed_dim", 1280)?,
            Generation::Qwen2_5 => vision.positive("hidden_size", 3584)?,
        };
        let tower = TowerConfig {
            width,
            inner: match generation {
                Generation::Qwen2 => (width as f64 * number(&vision, "mlp_ratio", 4.0)?) as usize,
                Generation::Qwen2_5 => vision.positive("intermediate_size", 3420)?,
            },
            layers: vision.positive("depth", 32)?,
            heads: vision.positive("num_heads", 16)?,
            frames: side(&vision, "temporal_patch_size", 2)?,
            output: vision.positive(output(generation), 3584)?,
            theta: theta(&vision)?,
            kind: match generation {
                Generation::Qwen2 => Kind::Plain(vision.activation("hidden_act", "quick_gelu")?),
                Generation::Qwen2_5 => windowed(&vision, patch * merge)?,
            },
            patch,
            merge,
        };
        if !tower.width.is_multiple_of(4 * tower.heads) {
            let message = format!(
                "is {}, but heads of the width {} must have a width that is a multiple of 4: pairs of rows and of columns",
                tower.heads, tower.width
            );
            return Err(vision.invalid("num_heads", message));
        }
        Ok(Self { generation, tower, pixels: Bounds::default() })
    }

    /// The tower's rows must be those of the decoder, of this width.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they are not.
    pub(super) fn check_width(&self, dir: &std::path::Path, hidden: usize) -> Result<()> {
        let (name, width) = (output(self.generation), self.tower.output);
        if width == hidden {
            return Ok(());
        }
        let message =
            format!("is {width}, expected the hidden_size of the language model, {hidden}");
        Err(Error::invalid(dir.join("config.json"), format!("field vision_config.{name}"), message))
    }
}

/// The field with the width of the decoder's rows.
fn output(generation: Generation) -> &'static str {
    match generation {
        Generation::Qwen2 => "hidden_size",
        Generation::Qwen2_5 => "out_hidden_size",
    }
}

/// A side given as a number or as a list of equal ones.
fn side(fields: &Fields, name: &str, default: usize) -> Result<usize> {
    let Some(Value::Array(sides)) = fields.value(name) else {
        return fields.positive(name, default);
    };
    match sides.first().and_then(Value::as_u64) {
        Some(side) if side > 0 && sides.iter().all(|other| *other == sides[0]) => Ok(side as usize),
        _ => Err(fields.wrong(name, &Value::from(sides.clone()), "equal positive sides")),
    }
}

fn windowed(vision: &Fields, block: usize) -> Result<Kind> {
    let act = vision.activation("hidden_act", "silu")?;
    if act != Activation::Silu {
        let name = vision.str("hidden_act")?.unwrap_or_default();
        return Err(Error::unsupported(
            format!("activation \"{name}\" of a gated vision tower"),
            format!("{}: hidden_act may be silu", vision.path().display()),
        ));
    }
    let size = vision.positive("window_size", 112)?;
    let window = size / block;
    if window == 0 {
        let message =
            format!("is {size}, expected at least {block}, the pixels of one image token");
        return Err(vision.invalid("window_size", message));
    }
    // transformers takes numbers past the last layer too: they name none.
    const FULL: &str = "fullatt_block_indexes";
    let full = match vision.value(FULL) {
        None => vec![7, 15, 23, 31],
        Some(value) => value
            .as_array()
            .and_then(|list| list.iter().map(|i| i.as_u64().map(|i| i as usize)).collect())
            .ok_or_else(|| vision.wrong(FULL, value, "a list of layers, counted from 0"))?,
    };
    Ok(Kind::Windowed { window, full })
}

fn theta(vision: &Fields) -> Result<f64> {
    let rope = vision.object_or_empty("rope_parameters")?;
    if let Some(kind) = rope.str("rope_type")?.filter(|kind| !["axial", "default"].contains(kind)) {
        return Err(Error::unsupported(
            format!("rope type \"{kind}\" of the vision tower"),
            format!("{}: expected axial", rope.path().display()),
        ));
    }
    number(&rope, "rope_theta", 10_000.0)
}

/// A positive number.
fn number(fields: &Fields, name: &str, default: f64) -> Result<f64> {
    match fields.value(name) {
        None => Ok(default),
        Some(_) => fields.positive_f64(name),
    }
}
