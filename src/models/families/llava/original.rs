//! Checkpoints as the original LLaVA code writes them (`liuhaotian/*`): the same networks, said otherwise.
//!
//! | | here | in the Hugging Face layout |
//! |---|---|---|
//! | `config.json` | the language model's, with `mm_*` fields beside its own | an object for each network |
//! | tensors | `model.layers...`, `model.mm_projector.0`, `model.vision_tower.vision_tower...` | see [`super`] |
//! | CLIP tower | inside (LLaVA-1.6), or in the folder that `mm_vision_tower` names (LLaVA-1.5) | inside |
//! | preprocessing | of the CLIP folder, and `image_aspect_ratio` | of the checkpoint |
//! | `image_grid_pinpoints` | (width, height) | (height, width) |
//! | an image in a text | cuts it: the parts are tokenised each by itself | a token |
//! | conversations | in the code | a chat template |
//!
//! Source: `llava_arch.py`, `mm_utils.py`, `builder.py` and `conversation.py` of LLaVA 1.2. Two things are transformers', not
//! the original's, where the two differ: the number of rows that are padding is rounded (the original cuts it off, which
//! gives some sizes another row of patches), and text after a special token is tokenised as `tokenizer_config.json` says.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde_json::{Map, Value, json};

use super::config::{Config, Generation, PINPOINTS, VisionConfig, check_pinpoints, vision_layers};
use crate::models::adapter::{canonical, current_name};
use crate::models::families;
use crate::models::fields::Fields;
use crate::models::language::TextConfig;
use crate::models::prompt::IMAGE;
use crate::models::weights::{Part, Weights};
use crate::ops::act::Activation;
use crate::{Error, Result};

/// The conversation of models around Llama 2 Chat, the only one that other checkpoints never have.
const LLAMA_2: &str = "llava_llama_2";

/// How a picture is brought to a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aspect {
    /// By margins of the mean colour.
    Pad,
    /// By CLIP's own steps, which cut off what is not in the middle.
    Crop,
    /// By AnyRes tiles.
    AnyRes,
}

/// What a checkpoint in the original layout says beside its networks.
#[derive(Debug, Clone)]
pub struct Original {
    pub(super) aspect: Aspect,
    /// What stands for an image in a prompt: `<image>`, or that between two marks.
    pub(in crate::models) placeholder: String,
    /// The conversation that the checkpoint's name asks for.
    pub(in crate::models) conversation: Option<&'static str>,
    tower: Tower,
}

/// Whether `config.json` is in this layout; `llava` is a model type in both.
pub(in crate::models) fn is_original(fields: &Fields) -> bool {
    let known = ["LlavaLlamaForCausalLM", "LlavaMistralForCausalLM"];
    let model_type = fields.value("model_type").and_then(Value::as_str).unwrap_or_default();
    let architecture = fields.value("architectures").and_then(|list| list[0].as_str());
    let llava = ["", "llava", "llava_llama", "llava_mistral"].contains(&model_type);
    llava
        && (fields.has("mm_vision_tower")
            || model_type.starts_with("llava_")
            || architecture.is_some_and(|name| known.contains(&name)))
}

/// Whether the checkpoint in a folder is in this layout; one that cannot be read is not.
pub(crate) fn has_layout(dir: &Path) -> bool {
    Fields::read(&dir.join("config.json")).is_ok_and(|fields| is_original(&fields))
}

/// Reads the fields of `config.json` in `dir`.
///
/// # Errors
/// As [`Config::read`]; a vision tower that is neither here nor one of OpenAI's.
pub(super) fn read(dir: &Path, fields: &Fields) -> Result<families::Config> {
    let architecture = fields.value("architectures").and_then(|list| list[0].as_str());
    if let Some(name) = architecture.filter(|name| name.contains("Qwen")) {
        return Err(Error::unsupported(
            format!("architecture \"{name}\" in the layout of the original LLaVA code"),
            format!(
                "{}: use the same model in the Hugging Face layout (its repository ends with -hf)",
                fields.path().display()
            ),
        ));
    }
    let tower = Tower::find(dir, fields)?;
    let vision = tower.config(fields)?;
    let aspect = Aspect::read(fields)?;
    let anyres = aspect == Aspect::AnyRes;
    let projector_layers = projector_layers(fields)?;
    if let Some(width) = fields.usize("mm_hidden_size")?.filter(|width| *width != vision.hidden) {
        let message = format!("is {width}, expected the vision tower's width {}", vision.hidden);
        return Err(fields.invalid("mm_hidden_size", message));
    }
    let marked = fields.bool("mm_use_im_start_end", false)?;
    let placeholder = if marked { "<im_start><image><im_end>" } else { IMAGE };
    let tied = fields.bool("tie_word_embeddings", false)?;
    let this = Config {
        generation: if anyres { Generation::Next } else { Generation::Llava },
        vision_layers: vision_layers(fields, "mm_vision_select_layer", -2, vision.layers)?,
        drop_class_token: drops_class_token(fields, aspect)?,
        max_tiles: None,
        projector_layers,
        projector_act: Activation::GeluErf,
        projector_bias: true,
        pinpoints: if anyres { pinpoints(fields, vision.image_size)? } else { Vec::new() },
        vision,
        original: Some(Original {
            aspect,
            placeholder: placeholder.to_owned(),
            conversation: conversation(dir, fields),
            tower,
        }),
    };
    Ok(families::Config {
        text: TextConfig::read(fields, if is_mistral(fields) { "mistral" } else { "llama" }, tied)?,
        image_token: None,
        video_token: None,
        eos: fields.ids("eos_token_id")?,
        pictures: families::Pictures::Llava(this),
    })
}

fn is_mistral(fields: &Fields) -> bool {
    let architecture = fields.value("architectures").and_then(|list| list[0].as_str());
    fields.value("model_type").and_then(Value::as_str) == Some("llava_mistral")
        || architecture == Some("LlavaMistralForCausalLM")
}

/// The original code goes by the checkpoint's name as well.
fn conversation(dir: &Path, fields: &Fields) -> Option<&'static str> {
    let folder = dir.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let trained_as = fields.value("_name_or_path").and_then(Value::as_str).unwrap_or_default();
    let named = |name: &str| name.contains("llama-2") || name.contains("llama2");
    (named(&folder) || named(&trained_as.to_lowercase())).then_some(LLAMA_2)
}

fn drops_class_token(fields: &Fields, aspect: Aspect) -> Result<bool> {
    const NAME: &str = "mm_vision_select_feature";
    match fields.str(NAME)? {
        None | Some("patch") => Ok(true),
        Some("cls_patch") if aspect != Aspect::AnyRes => Ok(false),
        Some("cls_patch") => Err(Error::unsupported(
            format!("{NAME} \"cls_patch\" with AnyRes tiles"),
            format!(
                "{}: the class token of a tile has no place in the patch grid; use \"patch\"",
                fields.path().display()
            ),
        )),
        Some(other) => {
            let message = format!("is \"{other}\", expected \"patch\" or \"cls_patch\"");
            Err(fields.invalid(NAME, message))
        }
    }
}

/// `linear`, or `mlpNx_gelu`: N layers.
fn projector_layers(fields: &Fields) -> Result<usize> {
    let kind = fields.str("mm_projector_type")?.unwrap_or("linear");
    if kind == "linear" {
        return Ok(1);
    }
    let layers = kind.strip_prefix("mlp").and_then(|rest| rest.strip_suffix("x_gelu"));
    layers.and_then(|n| n.parse().ok()).filter(|n| (1..=8).contains(n)).ok_or_else(|| {
        Error::unsupported(
            format!("mm_projector_type \"{kind}\""),
            format!("{}: expected linear or mlp2x_gelu", fields.path().display()),
        )
    })
}

/// As `(height, width)`; the file has them the other way round, as a list or as Python would print one.
fn pinpoints(fields: &Fields, tile: usize) -> Result<Vec<(usize, usize)>> {
    let printed = match fields.value(PINPOINTS) {
        None => {
            return Err(fields.invalid(PINPOINTS, "is missing, expected the AnyRes resolutions"));
        }
        Some(Value::String(text)) => {
            let list = text.replace('(', "[").replace(')', "]");
            let list = serde_json::from_str(&list).unwrap_or_else(|_| Value::from(text.as_str()));
            Some(Fields::of(fields.path(), Map::from_iter([(PINPOINTS.to_owned(), list)])))
        }
        Some(_) => None,
    };
    let listed = printed.as_ref().unwrap_or(fields).pairs(PINPOINTS)?.unwrap_or_default();
    check_pinpoints(fields, listed.into_iter().map(|(w, h)| (h, w)).collect(), tile)
}

impl Aspect {
    fn read(fields: &Fields) -> Result<Self> {
        const NAME: &str = "image_aspect_ratio";
        const MERGE: &str = "mm_patch_merge_type";
        let merge = fields.str(MERGE)?.unwrap_or("flat");
        match fields.str(NAME)? {
            None | Some("square") => Ok(Self::Crop),
            Some("pad") => Ok(Self::Pad),
            Some("anyres") if merge == "spatial_unpad" => Ok(Self::AnyRes),
            Some("anyres") => Err(Error::unsupported(
                format!("{MERGE} \"{merge}\" with AnyRes tiles"),
                format!("{}: expected \"spatial_unpad\"", fields.path().display()),
            )),
            Some(other) => Err(Error::unsupported(
                format!("{NAME} \"{other}\""),
                format!("{}: expected pad, square or anyres", fields.path().display()),
            )),
        }
    }
}

impl Original {
    /// The settings of the tower's image processor.
    pub(super) fn processor(&self) -> Result<Fields> {
        self.tower.processor()
    }

    /// The folder of the CLIP tower, where there is one.
    pub(in crate::models) fn tower(&self) -> Option<&Path> {
        self.tower.folder.as_deref()
    }

    /// The weights of the checkpoint in `dir`, those of the tower among them, under the names that the Hugging Face layout has
    /// today.
    pub(in crate::models) fn weights(
        &self,
        dir: &Path,
        device: &Device,
        dtype: DType,
    ) -> Result<Weights> {
        let renamed = |name: &str| Some(current_name(&canonical(name)));
        let own = Part { path: dir, rename: &renamed };
        let inside = Weights::open(dir, device, dtype)?
            .names()
            .into_iter()
            .any(|name| canonical(name) == "vision.embeddings.class_embedding");
        if inside {
            return Weights::open_parts(&[own], original_name, device, dtype);
        }
        let Some(folder) = &self.tower.folder else {
            let config = dir.join("config.json");
            let wanted = self.tower.wanted();
            let message = format!("{wanted}, since the checkpoint has no vision tower of its own");
            return Err(Error::invalid(config, format!("field {TOWER}"), message));
        };
        let tower = Part { path: folder, rename: &tower_name };
        Weights::open_parts(&[own, tower], original_name, device, dtype)
    }
}

/// The name here of a tensor of a CLIP folder; none for its text tower.
fn tower_name(name: &str) -> Option<String> {
    let bare = name.strip_prefix("vision_model.").unwrap_or(name);
    let parts = ["embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm."];
    let ours = parts.iter().any(|part| bare.starts_with(part));
    ours.then(|| current_name(&format!("vision.{bare}")))
}

/// What the original code calls a tensor.
fn original_name(name: &str) -> String {
    let form = canonical(name);
    if let Some(rest) = form.strip_prefix("language.") {
        return format!("model.{rest}");
    }
    if let Some(rest) = form.strip_prefix("vision.") {
        return format!("model.vision_tower.vision_tower.vision_model.{rest}");
    }
    let layer = form.strip_prefix("multi_modal_projector.linear_").and_then(|r| r.split_once('.'));
    match layer.and_then(|(n, rest)| Some((n.parse::<usize>().ok()?.checked_sub(1)?, rest))) {
        Some((n, rest)) => format!("model.mm_projector.{}.{rest}", 2 * n),
        None if form == "image_newline" => format!("model.{form}"),
        None => form,
    }
}

const TOWER: &str = "mm_vision_tower";

/// The CLIP tower that `mm_vision_tower` names.
#[derive(Debug, Clone)]
struct Tower {
    name: String,
    /// Where it was looked for.
    candidates: [PathBuf; 2],
    folder: Option<PathBuf>,
}

impl Tower {
    /// A path, absolute or relative to the checkpoint, or a folder beside the checkpoint with the name's last part.
    fn find(dir: &Path, fields: &Fields) -> Result<Self> {
        let Some(name) = fields.str(TOWER)?.filter(|name| !name.is_empty()) else {
            return Err(
                fields.invalid(TOWER, "is missing, expected the CLIP tower's folder or name")
            );
        };
        let absolute = std::path::absolute(dir).map_err(Error::io(dir))?;
        let last = Path::new(name).file_name().unwrap_or_default();
        let candidates = [dir.join(name), absolute.parent().unwrap_or(&absolute).join(last)];
        let folder = candidates.iter().find(|folder| folder.join("config.json").is_file()).cloned();
        Ok(Self { name: name.to_owned(), candidates, folder })
    }

    fn wanted(&self) -> String {
        let [first, second] = &self.candidates;
        format!(
            "is {:?}, but there is no such CLIP folder at {} or {}; fetch its config.json, preprocessor_config.json and \
             model.safetensors there",
            self.name,
            first.display(),
            second.display()
        )
    }

    /// Side of the input of one of OpenAI's towers of size L, by name.
    fn known_side(&self) -> Option<usize> {
        match self.name.rsplit('/').next()? {
            "clip-vit-large-patch14-336" => Some(336),
            "clip-vit-large-patch14" => Some(224),
            _ => None,
        }
    }

    /// `fields` are the checkpoint's, for errors.
    fn config(&self, fields: &Fields) -> Result<VisionConfig> {
        let Some(folder) = &self.folder else {
            let side = self.known_side().ok_or_else(|| fields.invalid(TOWER, self.wanted()))?;
            let sides = Map::from_iter([("image_size".to_owned(), json!(side))]);
            return VisionConfig::of(&Fields::of(fields.path(), sides), false, super::Tower::Clip);
        };
        let own = Fields::read(&folder.join("config.json"))?;
        match own.str("model_type")? {
            Some("clip") => VisionConfig::read(&own, super::Tower::Clip),
            Some("clip_vision_model") => VisionConfig::of(&own, true, super::Tower::Clip),
            other => Err(Error::unsupported(
                format!("vision tower \"{}\"", other.unwrap_or_default()),
                format!("{}: expected clip or clip_vision_model", own.path().display()),
            )),
        }
    }

    fn processor(&self) -> Result<Fields> {
        if let Some(folder) = &self.folder {
            return Fields::read(&folder.join("preprocessor_config.json"));
        }
        let side = json!(self.known_side());
        let sides = [("size".to_owned(), side.clone()), ("crop_size".to_owned(), side)];
        Ok(Fields::of(Path::new(&self.name), Map::from_iter(sides)))
    }
}
