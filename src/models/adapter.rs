//! LoRA adapters in PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`), merged into the weights of their base as
//! those are loaded: W + (alpha / r) B A, computed in f32. Fully trained modules (`modules_to_save`, or
//! `non_lora_trainables.safetensors` beside them, as the original LLaVA code has it), trained biases and rows of trained tokens
//! take the base's place. What else `adapter_config.json` may say is in [`settings::ADAPTER`].
//!
//! An adapter's folder is named wherever a model's is, or beside a base; else the base is the folder that
//! `base_model_name_or_path` says, or the repository of the hub, at the commit that `revision` says. PEFT names tensors as the
//! model class did when it was trained, checkpoints as it did when they were saved, and the original LLaVA code has names of its
//! own: all are brought to one form ([`canonical`]).

mod residual;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::families::{Part, part};
use super::hub::{self, Kind, Name};
use super::settings;
use super::weights::{Weights, refuse_pickle};
use crate::{Error, Result};
use residual::Start;

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const TENSORS: &str = "adapter_model.safetensors";
/// What the original LLaVA code trains whole beside an adapter.
pub(super) const WHOLE: &str = "non_lora_trainables.safetensors";
/// The output layer, which a base with a tied embedding does not have.
const HEAD: &str = "lm_head.weight";
/// What PEFT puts before every name.
const PREFIX: &str = "base_model.model.";

#[derive(Deserialize)]
struct Config {
    peft_type: String,
    base_model_name_or_path: Option<String>,
    /// Of the base, on the hub.
    revision: Option<String>,
    /// Rank of the modules that no pattern names.
    r: Option<usize>,
    #[serde(default)]
    rank_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    lora_alpha: f64,
    #[serde(default)]
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    init_lora_weights: Value,
    #[serde(default)]
    trainable_token_indices: Value,
    #[serde(default)]
    ensure_weight_tying: Option<bool>,
    #[serde(skip)]
    path: PathBuf,
}

impl Config {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let invalid = |e: serde_json::Error| {
            Error::invalid(path, format!("line {}", e.line()), e.to_string())
        };
        let config: Self = serde_json::from_str(&text).map_err(invalid)?;
        Ok(Self { path: path.to_owned(), ..config })
    }

    /// Refuses what would be left out.
    fn check(&self) -> Result<()> {
        if self.peft_type != "LORA" {
            return self.unsupported(format!("it is {}, expected LORA", self.peft_type));
        }
        let text = std::fs::read_to_string(&self.path).map_err(Error::io(&self.path))?;
        let fields: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| Error::invalid(&self.path, "", e.to_string()))?;
        settings::ADAPTER.check(&fields, &self.path)?;
        self.start().map(|_| ())
    }

    /// Refuses a change that PEFT makes of one use of a tied embedding alone: a base without an output layer of its own uses
    /// its embedding for both.
    fn check_tied(&self, target: &str, change: &Change, has_head: bool) -> Result<()> {
        let one_alone = match target {
            HEAD => true,
            "language.embed_tokens.weight" => {
                matches!(change, Change::Replace(..)) && self.ensure_weight_tying != Some(true)
            }
            _ => false,
        };
        if has_head || !one_alone {
            return Ok(());
        }
        self.unsupported(format!(
            "it changes {target}, but the base's output layer is its embedding, and PEFT would change one of the two alone; save              the adapter with ensure_weight_tying = true, or merge it with PEFT"
        ))
    }

    fn unsupported<T>(&self, message: String) -> Result<T> {
        Err(Error::unsupported(format!("adapter {}", self.path.display()), message))
    }

    /// What the pairs began with: PEFT takes it off the base.
    fn start(&self) -> Result<Start> {
        let Some(name) = self.init_lora_weights.as_str() else { return Ok(Start::Nothing) };
        match name.to_lowercase().as_str() {
            "gaussian" | "eva" | "orthogonal" => Ok(Start::Nothing),
            "pissa" => Ok(Start::Pissa),
            "olora" => Ok(Start::Olora),
            _ => self.unsupported(format!(
                "init_lora_weights is {name:?}, which changes the base by something that is not in the adapter; known are true,                  false, gaussian, eva, orthogonal, pissa and olora. Convert it to a plain LoRA with PEFT (save_pretrained with                  path_initial_model_for_weight_conversion)"
            )),
        }
    }

    /// The value of a pattern for the module of these names; the first key that fits counts, as in PEFT.
    fn pattern<'a>(
        &self,
        field: &str,
        pattern: Option<&'a Map<String, Value>>,
        names: &[&str],
    ) -> Result<Option<&'a Value>> {
        for (key, value) in pattern.into_iter().flatten() {
            let regex = Regex::new(&format!(r"^(.*\.)?({key})$")).map_err(|error| {
                let message =
                    format!("{key:?} is no regular expression that is understood: {error}");
                Error::invalid(&self.path, format!("field {field}"), message)
            })?;
            if names.iter().any(|name| regex.is_match(name)) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// alpha / r of a module whose A has `rank` rows; that A is absent is said elsewhere.
    fn scale(&self, names: &[&str], rank: Option<usize>) -> Result<f64> {
        let wrong = |field: &str, message: String| {
            Err(Error::invalid(&self.path, format!("field {field}"), message))
        };
        let pattern = self.pattern("rank_pattern", self.rank_pattern.as_ref(), names)?;
        let stated = pattern.and_then(Value::as_u64).map(|r| r as usize).or(self.r);
        if let (Some(r), Some(rank)) = (stated, rank)
            && r != rank
        {
            return wrong(
                "r",
                format!("says rank {r} for {}, whose lora_A has {rank} rows", names[0]),
            );
        }
        let alpha = match self.pattern("alpha_pattern", self.alpha_pattern.as_ref(), names)? {
            None => self.lora_alpha,
            Some(value) => match value.as_f64() {
                Some(alpha) => alpha,
                None => return wrong("alpha_pattern", format!("holds {value}, expected numbers")),
            },
        };
        let rank = rank.unwrap_or(1).max(1) as f64;
        Ok(alpha / if self.use_rslora { rank.sqrt() } else { rank })
    }

    /// The trained rows of an embedding, by its module's name.
    fn trained_tokens(&self, module: &str) -> Result<Vec<u32>> {
        let listed = match &self.trainable_token_indices {
            Value::Object(of_modules) => of_modules
                .iter()
                .find(|(name, _)| module == *name || module.ends_with(&format!(".{name}")))
                .map(|(_, ids)| ids),
            list => Some(list),
        };
        let ids = listed.and_then(Value::as_array).and_then(|ids| {
            ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
        });
        ids.ok_or_else(|| {
            let message = format!("lists no token ids for {module}, whose rows the adapter has");
            Error::invalid(&self.path, "field trainable_token_indices", message)
        })
    }
}

/// What an adapter does to one tensor of the base.
#[derive(Debug)]
enum Change {
    /// Adds `scale` B A; names of A `[r, in]` and B `[out, r]`, which began with a part of the base.
    Add { a: String, b: String, scale: f64, start: Start },
    /// Adds `scale` times the bias of B.
    AddBias { name: String, scale: f64 },
    /// Rows that take the place of those of these numbers.
    Rows { name: String, ids: Vec<u32> },
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
    /// [`Error::Unsupported`] for another kind of adapter than LoRA, for settings that are not built in (DoRA and adapters of
    /// embeddings among them) and for pickles; [`Error::Invalid`] for a tensor that fits none of the base's.
    pub fn open(dir: &Path, base: &Weights) -> Result<Self> {
        let config = Config::read(&dir.join(CONFIG))?;
        config.check()?;
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
                config.check_tied(&target, &change, known.contains_key(HEAD))?;
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

    /// Whether the adapter changes what an image becomes: tower, projector, or what stands between
    /// rows of patches.
    pub(super) fn sees(&self) -> bool {
        self.changes.keys().any(|name| part(name) != Part::Language)
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
            Some(Change::Add { a, b, scale, start }) => {
                let a = get(0, a)?;
                let delta = (get(0, b)?.matmul(&a)? * *scale)?;
                let base = read(DType::F32)?;
                let rest = match start {
                    Start::Nothing => base,
                    // The base as it is stored has the precision that PEFT keeps the rest in.
                    start => start.rest(&base.to_device(&Device::Cpu)?, a.dim(0)?, *scale)?,
                };
                (rest.to_device(device)? + delta.to_device(device)?)?
            }
            Some(Change::AddBias { name, scale }) => {
                (read(DType::F32)? + (get(0, name)?.to_device(device)? * *scale)?)?
            }
            Some(Change::Rows { name, ids }) => {
                let (base, rows) = (read(DType::F32)?, get(0, name)?.to_device(device)?);
                let mut order: Vec<u32> = (0..base.dim(0)? as u32).collect();
                let first = order.len() as u32;
                for (row, &id) in ids.iter().enumerate() {
                    order[id as usize] = first + row as u32;
                }
                Tensor::cat(&[&base, &rows], 0)?.index_select(&Tensor::new(order, device)?, 0)?
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
        Change::Replace(_, name) | Change::AddBias { name, .. } => {
            weights.shape(name).map(<[usize]>::to_vec)
        }
        Change::Rows { name, ids } => {
            let fits = |stored: &&Vec<usize>| {
                ids.iter().all(|&id| (id as usize) < stored[0])
                    && weights.shape(name) == Some(&[ids.len(), stored[1]])
            };
            stored.filter(|stored| stored.len() == 2).filter(fits).cloned()
        }
    };
    let message = match (stored, shape) {
        (Some(stored), Some(shape)) if *stored == shape => return Ok(()),
        (None, _) if matches!(change, Change::AddBias { .. }) => {
            format!("is a bias (lora_bias) for {target}, but that layer of the base has none")
        }
        (None, _) => format!("changes {target}, which the base does not have"),
        (Some(stored), None) if matches!(change, Change::Rows { .. }) => {
            format!("does not fit {stored:?} of {target} and trainable_token_indices")
        }
        (_, None) => "lacks a lora_A or lora_B that it fits".to_owned(),
        (Some(stored), Some(shape)) => {
            format!("gives shape {shape:?}, expected {stored:?} of {target}")
        }
    };
    Err(Error::invalid(weights.path(), format!("tensor {name}"), message))
}

/// A name without what PEFT's wrappers put into it: the adapter's own name, the wrapped layer, the saved module.
fn unwrapped(bare: &str) -> String {
    let mut name = bare.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".");
    for part in
        ["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "trainable_tokens_delta"]
    {
        name = name.replace(&format!(".{part}.default"), &format!(".{part}"));
    }
    name.replace(".base_layer.", ".").replace(".original_module.", ".")
}

/// What a tensor of an adapter's file changes, and how.
fn change(name: &str, file: usize, weights: &Weights, config: &Config) -> Result<(String, Change)> {
    let bare = unwrapped(name.strip_prefix(PREFIX).unwrap_or(name));
    if bare.contains("lora_embedding_") || bare.contains("lora_magnitude") {
        let message = "embeddings and magnitudes are not built in";
        return Err(Error::unsupported(format!("adapter tensor {name}"), message));
    }
    if let Some(module) = bare.strip_suffix(".token_adapter.trainable_tokens_delta") {
        let ids = config.trained_tokens(module)?;
        let target = canonical(&format!("{module}.weight"));
        return Ok((target, Change::Rows { name: name.to_owned(), ids }));
    }
    const SIDES: [&str; 3] = [".lora_A.weight", ".lora_B.weight", ".lora_B.bias"];
    let side = SIDES.iter().find_map(|end| Some((*end, bare.strip_suffix(end)?)));
    let Some((side, module)) = side else {
        return Ok((canonical(&bare), Change::Replace(file, name.to_owned())));
    };
    // The other side's name, as this file writes names.
    let other = |wanted: &str| match side {
        ".lora_A.weight" => name.replace(".lora_A", wanted),
        _ => name.replace(".lora_B", wanted).replace(".bias", ".weight"),
    };
    let (a, b) = (other(".lora_A"), other(".lora_B"));
    let rank = weights.shape(&a).and_then(|shape| shape.first()).copied();
    let target = canonical(&format!("{module}.weight"));
    let current = current_name(&target);
    let names = [module, current.trim_end_matches(".weight")];
    let scale = config.scale(&names, rank)?;
    if side == ".lora_B.bias" {
        let target = canonical(&format!("{module}.bias"));
        return Ok((target, Change::AddBias { name: name.to_owned(), scale }));
    }
    Ok((target, Change::Add { a, b, scale, start: config.start()? }))
}
