//! LoRA adapters in PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`), merged into the weights of their base as
//! those are loaded: W + (alpha / r) B A, computed in f32. Fully trained modules (`modules_to_save`, or
//! `non_lora_trainables.safetensors` beside them, as the original LLaVA code has it) take the base's place.
//!
//! An adapter's folder is named wherever a model's is, or beside a base; else the base is the folder that
//! `base_model_name_or_path` says, or the repository of the hub, at the commit that `revision` says. PEFT names tensors as the
//! model class did when it was trained, checkpoints as it did when they were saved, and the original LLaVA code has names of its
//! own: all are brought to one form ([`canonical`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::hub::{self, Kind, Name};
use super::weights::{Weights, refuse_pickle};
use crate::{Error, Result};

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const TENSORS: &str = "adapter_model.safetensors";
/// What the original LLaVA code trains whole beside an adapter.
pub(super) const WHOLE: &str = "non_lora_trainables.safetensors";
/// What PEFT puts before every name.
const PREFIX: &str = "base_model.model.";

#[derive(Deserialize)]
struct Config {
    peft_type: String,
    base_model_name_or_path: Option<String>,
    /// Of the base, on the hub.
    revision: Option<String>,
    #[serde(default)]
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    alpha_pattern: HashMap<String, f64>,
}

impl Config {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        serde_json::from_str(&text)
            .map_err(|e| Error::invalid(path, format!("line {}", e.line()), e.to_string()))
    }
}

/// What an adapter does to one tensor of the base.
#[derive(Debug)]
enum Change {
    /// Adds `scale` B A; names of A `[r, in]` and B `[out, r]`.
    Add { a: String, b: String, scale: f64 },
    /// Takes its place: a tensor of the file with this number.
    Replace(usize, String),
}

/// An adapter and what it changes, by canonical name.
#[derive(Debug)]
pub struct Adapter {
    /// [`TENSORS`], then [`WHOLE`] if there is one.
    files: Vec<Weights>,
    changes: HashMap<String, Change>,
}

/// Whether a folder is an adapter's.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(CONFIG).is_file()
}

/// Where an adapter's base is.
enum Base {
    Folder(PathBuf),
    Hub(Name),
}

/// The base that the adapter in a folder names; none if there is no adapter.
fn named_base(dir: &Path) -> Result<Option<Base>> {
    if !is_adapter(dir) {
        return Ok(None);
    }
    let path = dir.join(CONFIG);
    let config = Config::read(&path)?;
    let name = config.base_model_name_or_path.unwrap_or_default();
    let candidates = [PathBuf::from(&name), dir.join(&name)];
    // A name such as `..` is a folder from here too, but seldom that of a model.
    let is_model = |base: &PathBuf| ["config.json", CONFIG].iter().any(|f| base.join(f).is_file());
    let folder = candidates.iter().find(|base| !name.is_empty() && is_model(base));
    let folder =
        folder.or_else(|| candidates.iter().find(|base| !name.is_empty() && base.is_dir()));
    if let Some(folder) = folder.cloned() {
        return Ok(Some(Base::Folder(folder)));
    }
    let revision = config.revision.map_or_else(String::new, |revision| format!("@{revision}"));
    match Name::parse(&format!("{name}{revision}"), Kind::Model) {
        Some(name) => Ok(Some(Base::Hub(name))),
        None => {
            let message = format!(
                "is {name:?}, expected the folder of the base model (absolute, or relative to here or to the adapter), \
                 or its repository on the hub; or give the base as the model, and this folder as its adapter"
            );
            Err(Error::invalid(path, "field base_model_name_or_path", message))
        }
    }
}

/// The folder of a model's configuration and base weights: `dir`, or the base of the adapter in it. Nothing is fetched:
/// [`base_on_hub`] tells what to fetch.
///
/// # Errors
/// If the adapter's configuration is malformed, or its base is neither a folder here nor in the hub's cache.
pub fn base(dir: &Path) -> Result<PathBuf> {
    match named_base(dir)? {
        None => Ok(dir.to_owned()),
        Some(Base::Folder(folder)) => Ok(folder),
        Some(Base::Hub(name)) => hub::cached(&name, Kind::Model).ok_or_else(|| {
            let message = format!(
                "is {name}, which is no folder here or beside the adapter, and not in the hub's cache: {}",
                hub::advice(&name)
            );
            Error::invalid(dir.join(CONFIG), "field base_model_name_or_path", message)
        }),
    }
}

/// The repository that the base of the adapter in `dir` is to be fetched from; none if it is a folder, or there is no adapter.
///
/// # Errors
/// If the adapter's configuration is malformed.
pub fn base_on_hub(dir: &Path) -> Result<Option<Name>> {
    Ok(match named_base(dir)? {
        Some(Base::Hub(name)) => Some(name),
        _ => None,
    })
}

/// A tensor's name without what differs between generations of model classes, and between layouts.
pub fn canonical(name: &str) -> String {
    const FORMS: [(&str, &str); 15] = [
        ("model.language_model.", "language."),
        ("language_model.model.", "language."),
        ("language_model.lm_head", "lm_head"),
        ("model.vision_tower.vision_tower.vision_model.", "vision."),
        ("model.vision_tower.vision_tower.", "vision."),
        ("model.vision_tower.vision_model.", "vision."),
        ("vision_tower.vision_model.", "vision."),
        ("model.vision_tower.", "vision."),
        ("vision_tower.", "vision."),
        ("model.visual.", "visual."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.image_newline", "image_newline"),
        // Those of the original LLaVA code, and of Qwen2-VL before transformers 4.52, where they are none of the above.
        ("model.layers.", "language.layers."),
        ("model.embed_tokens.", "language.embed_tokens."),
        ("model.norm.", "language.norm."),
    ];
    let form =
        FORMS.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    form.or_else(|| projector(name)).unwrap_or_else(|| name.to_owned())
}

/// The canonical name of a tensor of the original code's projector: layers and activations in turn, or one layer alone.
fn projector(name: &str) -> Option<String> {
    let rest = name.strip_prefix("model.mm_projector.")?;
    let numbered =
        rest.split_once('.').and_then(|(n, rest)| Some((n.parse::<usize>().ok()?, rest)));
    let (place, rest) = numbered.unwrap_or((0, rest));
    Some(format!("multi_modal_projector.linear_{}.{rest}", place / 2 + 1))
}

/// The name that model classes have given since transformers 4.52, from the canonical one.
pub(crate) fn current_name(canonical: &str) -> String {
    const FORMS: [(&str, &str); 4] = [
        ("language.", "model.language_model."),
        ("vision.", "model.vision_tower."),
        ("visual.", "model.visual."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ];
    let form =
        FORMS.iter().find_map(|(from, to)| Some(format!("{to}{}", canonical.strip_prefix(from)?)));
    form.unwrap_or_else(|| canonical.to_owned())
}

/// PEFT's name of the module between tower and decoder that a tensor belongs to; none for other tensors.
pub(crate) fn projector_module(canonical: &str) -> Option<&'static str> {
    const MODULES: [(&str, &str); 2] =
        [("multi_modal_projector.", "multi_modal_projector"), ("visual.merger.", "merger")];
    let of = MODULES.iter().find(|(prefix, _)| canonical.starts_with(prefix));
    of.map(|(_, module)| *module)
}

/// PEFT's name of a tensor or module, from its canonical name.
pub(crate) fn peft_name(canonical: &str) -> String {
    format!("{PREFIX}{}", current_name(canonical))
}

impl Adapter {
    /// The adapter in a folder, for this base.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another kind of adapter than LoRA (DoRA, scales by pattern, and adapters of embeddings
    /// among them) and for pickles; [`Error::Invalid`] for a tensor that fits none of the base's.
    pub fn open(dir: &Path, base: &Weights) -> Result<Self> {
        let path = dir.join(CONFIG);
        let config = Config::read(&path)?;
        let unsupported = |message: String| {
            Err(Error::unsupported(format!("adapter {}", path.display()), message))
        };
        if config.peft_type != "LORA" || config.use_dora {
            let kind = if config.use_dora { "DoRA" } else { &config.peft_type };
            return unsupported(format!("it is {kind}, expected LORA"));
        }
        if config.fan_in_fan_out || !config.alpha_pattern.is_empty() {
            return unsupported("fan_in_fan_out and alpha_pattern are not built in".to_owned());
        }
        let known: HashMap<String, Vec<usize>> = base
            .names()
            .into_iter()
            .map(|name| (canonical(name), base.shape(name).unwrap_or_default().to_vec()))
            .collect();
        let mut this = Self { files: open_files(dir)?, changes: HashMap::new() };
        for file in 0..this.files.len() {
            let weights = &this.files[file];
            for name in weights.names() {
                let (target, change) = change(name, file, weights, &config)?;
                check(name, weights, &target, &change, known.get(&target))?;
                let replaces = |change: &Change| matches!(change, Change::Replace(..));
                let whole = replaces(&change);
                let before = this.changes.insert(target.clone(), change);
                if before.is_some_and(|before| whole || replaces(&before)) {
                    let message = format!("changes {target}, which another tensor changes too");
                    return Err(Error::invalid(weights.path(), format!("tensor {name}"), message));
                }
            }
        }
        Ok(this)
    }

    /// Whether the adapter changes a tensor of the base.
    pub(super) fn changes(&self, name: &str) -> bool {
        self.changes.contains_key(&canonical(name))
    }

    /// A tensor of the base, changed if the adapter changes it. `read` gives the base's in a dtype.
    pub(super) fn apply(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
        read: impl Fn(DType) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let get = |file: usize, name: &str| {
            let weights = &self.files[file];
            weights.get(weights.shape(name).unwrap_or_default(), name)
        };
        let changed = match self.changes.get(&canonical(name)) {
            None => return read(dtype),
            Some(Change::Replace(file, name)) => get(*file, name)?.to_device(device)?,
            Some(Change::Add { a, b, scale }) => {
                let delta = (get(0, b)?.matmul(&get(0, a)?)? * *scale)?;
                (read(DType::F32)? + delta.to_device(device)?)?
            }
        };
        Ok(changed.to_dtype(dtype)?)
    }
}

/// The adapter's files. Pickles in the place of one are refused.
fn open_files(dir: &Path) -> Result<Vec<Weights>> {
    let mut files = Vec::new();
    for (name, needed) in [(TENSORS, true), (WHOLE, false)] {
        let path = dir.join(name);
        if !path.is_file() {
            let pickle = path.with_extension("bin");
            if pickle.is_file() {
                refuse_pickle(&pickle)?;
            }
            if !needed {
                continue;
            }
        }
        files.push(Weights::open(path, &Device::Cpu, DType::F32)?);
    }
    Ok(files)
}

/// Checks that a change fits the tensor of the base that it is for.
fn check(
    name: &str,
    weights: &Weights,
    target: &str,
    change: &Change,
    stored: Option<&Vec<usize>>,
) -> Result<()> {
    let shape = match change {
        Change::Add { a, b, .. } => weights
            .shape(b)
            .zip(weights.shape(a))
            .filter(|(b, a)| b.len() == 2 && a.len() == 2 && b[1] == a[0])
            .map(|(b, a)| vec![b[0], a[1]]),
        Change::Replace(_, name) => weights.shape(name).map(<[usize]>::to_vec),
    };
    let message = match (stored, shape) {
        (Some(stored), Some(shape)) if *stored == shape => return Ok(()),
        (None, _) => format!("changes {target}, which the base does not have"),
        (_, None) => "lacks a lora_A or lora_B that it fits".to_owned(),
        (Some(stored), Some(shape)) => {
            format!("gives shape {shape:?}, expected {stored:?} of {target}")
        }
    };
    Err(Error::invalid(weights.path(), format!("tensor {name}"), message))
}

/// What a tensor of an adapter's file changes, and how.
fn change(name: &str, file: usize, weights: &Weights, config: &Config) -> Result<(String, Change)> {
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    if bare.contains("lora_embedding_") || bare.contains("lora_magnitude") {
        let message = "embeddings and magnitudes are not built in";
        return Err(Error::unsupported(format!("adapter tensor {name}"), message));
    }
    let pair = [".lora_A.weight", ".lora_B.weight"].iter().find_map(|end| bare.strip_suffix(end));
    let Some(module) = pair else {
        return Ok((canonical(bare), Change::Replace(file, name.to_owned())));
    };
    let prefix = &name[..name.len() - bare.len()];
    let [a, b] = ["A", "B"].map(|side| format!("{prefix}{module}.lora_{side}.weight"));
    let rank = weights.shape(&a).and_then(|shape| shape.first()).copied().unwrap_or(1) as f64;
    let divisor = if config.use_rslora { rank.sqrt() } else { rank };
    let scale = config.lora_alpha / divisor;
    Ok((canonical(&format!("{module}.weight")), Change::Add { a, b, scale }))
}
