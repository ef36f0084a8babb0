//! The JSON files of a sentence-transformers folder.

use super::text;
use crate::models::settings::Table;
use crate::ops::act::Activation;
use crate::ops::pool::Mode;
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// How the token states become one vector.
#[derive(Debug)]
pub(super) struct Pooling {
    /// Concatenated in this order.
    pub(super) modes: Vec<Mode>,
    /// The width of the token states that the file declares, if it does.
    declared: Option<usize>,
}

impl Pooling {
    /// The pooled width for states of width `hidden`; `path` is for the error.
    pub(super) fn width(&self, hidden: usize, path: &Path) -> Result<usize> {
        match self.declared {
            Some(declared) if declared != hidden => {
                let message = format!("{declared}, expected hidden_size {hidden}");
                Err(Error::invalid(path, "field word_embedding_dimension", message))
            }
            _ => Ok(hidden * self.modes.len()),
        }
    }
}

/// A linear layer with an activation, after pooling.
#[derive(Debug)]
pub(super) struct Dense {
    pub(super) dir: PathBuf,
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) bias: bool,
    pub(super) activation: Activation,
}

/// A module after pooling; dropout is left out, since it does nothing but in training.
#[derive(Debug)]
pub(super) enum Module {
    Normalize,
    /// Of vectors of so many components, with the weights in this folder.
    LayerNorm(PathBuf, usize),
    Dense(Dense),
}

/// What the folder's JSON files say.
#[derive(Debug)]
pub(super) struct Modules {
    pub(super) transformer_dir: PathBuf,
    pub(super) pooling: Pooling,
    pub(super) pooling_path: PathBuf,
    pub(super) head: Vec<Module>,
    /// Put before every text.
    pub(super) prompt: String,
    /// Only so many components of a vector are kept.
    pub(super) truncate_dim: Option<usize>,
    pub(super) max_tokens: Option<usize>,
    pub(super) lower_case: bool,
    /// What a user should know of the folder.
    pub(super) warnings: Vec<String>,
}

#[derive(Deserialize)]
struct ModuleEntry {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Modules {
    /// `prompt` is the name of one of the prompts, empty for none; the default one where absent.
    pub(super) fn load(dir: &Path, prompt: Option<&str>) -> Result<Self> {
        let path = dir.join("modules.json");
        if !path.is_file() && dir.join("config.json").is_file() {
            return Self::of_network(dir, prompt);
        }
        let listed: Vec<Map<String, Value>> = read(&path)?;
        for entry in &listed {
            ENTRY.check(entry, &path)?;
        }
        let entries: Vec<ModuleEntry> = read(&path)?;
        let kinds: Vec<&str> =
            entries.iter().map(|e| e.kind.rsplit('.').next().unwrap_or_default()).collect();
        let (&["Transformer", "Pooling", ..], [transformer, pooling, rest @ ..]) =
            (&kinds[..], &entries[..])
        else {
            return Err(Error::unsupported(
                format!("the module list {kinds:?} in {}", path.display()),
                "it must begin with Transformer and Pooling",
            ));
        };
        let transformer_dir = inside(dir, &transformer.path, &path)?;
        let pooling_path = inside(dir, &pooling.path, &path)?.join("config.json");
        let pooling = read_pooling(&pooling_path)?;
        let (prompt, truncate_dim) =
            read_usage(&dir.join("config_sentence_transformers.json"), prompt, &pooling)?;
        let mut head = Vec::new();
        for (entry, kind) in rest.iter().zip(&kinds[2..]) {
            head.push(match *kind {
                "Normalize" => read_normalize(&inside(dir, &entry.path, &path)?)?,
                "Dense" => Module::Dense(read_dense(inside(dir, &entry.path, &path)?)?),
                "LayerNorm" => read_layer_norm(inside(dir, &entry.path, &path)?)?,
                "Dropout" => {
                    read_dropout(&inside(dir, &entry.path, &path)?)?;
                    continue;
                }
                _ => {
                    return Err(Error::unsupported(
                        format!("module {:?} in {}", entry.kind, path.display()),
                        "after Pooling there may be Normalize, Dense, LayerNorm and Dropout",
                    ));
                }
            });
        }
        let (max_tokens, lower_case) = read_limits(&transformer_dir)?;
        Ok(Self {
            transformer_dir,
            pooling: pooling.pooling,
            pooling_path,
            head,
            prompt,
            truncate_dim,
            max_tokens,
            lower_case,
            warnings: Vec::new(),
        })
    }

    /// Of a folder with a network alone: its vectors are means over tokens, as sentence-transformers has it.
    fn of_network(dir: &Path, prompt: Option<&str>) -> Result<Self> {
        let pooling = PoolingFile {
            pooling: Pooling { modes: vec![Mode::Mean], declared: None },
            include_prompt: true,
        };
        let usage = dir.join("config_sentence_transformers.json");
        let (prompt, truncate_dim) = read_usage(&usage, prompt, &pooling)?;
        let (max_tokens, lower_case) = read_limits(dir)?;
        Ok(Self {
            transformer_dir: dir.to_owned(),
            pooling: pooling.pooling,
            pooling_path: dir.join("config.json"),
            head: Vec::new(),
            prompt,
            truncate_dim,
            max_tokens,
            lower_case,
            warnings: vec![format!(
                "{} has no modules.json: its vectors are the means of its token states, as sentence-transformers makes them of \
                 such a folder",
                dir.display()
            )],
        })
    }
}

/// An entry of `modules.json`.
const ENTRY: Table = Table { read: &["path", "type"], free: &["idx", "name"], only: &[] };

/// `config_sentence_transformers.json`.
const USAGE: Table = Table {
    read: &["prompts", "default_prompt_name", "truncate_dim"],
    free: &["__version__", "similarity_fn_name", "model_type"],
    only: &[],
};

/// The files of modules after pooling.
const DENSE: Table = Table {
    read: &[
        "in_features",
        "out_features",
        "bias",
        "activation_function",
        "module_input_name",
        "module_output_name",
    ],
    free: &[],
    only: &[("use_residual", &[], "a Dense module without a residual is expected")],
};
const NORMALIZE: Table =
    Table { read: &["module_input_name", "module_output_name"], free: &[], only: &[] };
const LAYER_NORM: Table = Table { read: &["dimension"], free: &[], only: &[] };
const DROPOUT: Table = Table { read: &[], free: &["dropout"], only: &[] };

/// The file with the length limit.
const LIMITS: Table = Table {
    read: &["max_seq_length", "do_lower_case", "transformer_task"],
    free: &[],
    only: &[
        (
            "model_args",
            &[],
            "settings of the model's class are not passed on: put them into config.json",
        ),
        (
            "tokenizer_args",
            &[],
            "settings of the tokenizer are not passed on: put them into tokenizer_config.json",
        ),
        (
            "config_args",
            &[],
            "settings of the configuration are not passed on: put them into config.json",
        ),
        (
            "modality_config",
            &[r#"{"text": {"method": "forward", "method_output_name": "last_hidden_state"}}"#],
            "texts alone are embedded, by the network's last states",
        ),
        ("module_output_name", &[r#""token_embeddings""#], "the network's last states are pooled"),
    ],
};

/// A module's folder, which must lie in the model's.
fn inside(dir: &Path, path: &str, file: &Path) -> Result<PathBuf> {
    use std::path::Component;
    if Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Ok(dir.join(path));
    }
    let message = format!("path {path:?}, expected a folder inside the model's");
    Err(Error::invalid(file, "field path", message))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::invalid(path, "", e.to_string()))
}

/// The pooling modes, and whether a prompt's tokens take part.
struct PoolingFile {
    pooling: Pooling,
    include_prompt: bool,
}

/// By the names of newer files (`pooling_mode`).
fn pooling_mode(name: &str) -> Option<Mode> {
    Some(match name {
        "cls" => Mode::Cls,
        "max" => Mode::Max,
        "mean" => Mode::Mean,
        "mean_sqrt_len_tokens" => Mode::MeanSqrtLen,
        "weightedmean" => Mode::WeightedMean,
        "lasttoken" => Mode::Last,
        _ => return None,
    })
}

/// The flags of older files, in the order in which their vectors are concatenated.
const POOLING_FLAGS: [(&str, Mode); 6] = [
    ("pooling_mode_cls_token", Mode::Cls),
    ("pooling_mode_max_tokens", Mode::Max),
    ("pooling_mode_mean_tokens", Mode::Mean),
    ("pooling_mode_mean_sqrt_len_tokens", Mode::MeanSqrtLen),
    ("pooling_mode_weightedmean_tokens", Mode::WeightedMean),
    ("pooling_mode_lasttoken", Mode::Last),
];

fn read_pooling(path: &Path) -> Result<PoolingFile> {
    let mut fields: Map<String, Value> = read(path)?;
    let flag = |field: &str, value: Value| {
        value.as_bool().ok_or_else(|| {
            Error::invalid(path, format!("field {field}"), format!("{value}, expected a boolean"))
        })
    };
    let mut modes = Vec::new();
    for (name, mode) in POOLING_FLAGS {
        if let Some(value) = fields.shift_remove(name)
            && flag(name, value)?
        {
            modes.push(mode);
        }
    }
    if let Some(value) = fields.shift_remove("pooling_mode") {
        let names = match value {
            Value::Array(names) => names,
            one => vec![one],
        };
        let known = |name: &Value| name.as_str().and_then(pooling_mode);
        modes = names
            .iter()
            .map(|name| known(name).ok_or_else(|| unknown_pooling(&name.to_string(), path)))
            .collect::<Result<_>>()?;
    }
    let include_prompt = match fields.shift_remove("include_prompt") {
        Some(value) => flag("include_prompt", value)?,
        None => true,
    };
    let mut declared = None;
    for field in ["word_embedding_dimension", "embedding_dimension"] {
        if let Some(value) = fields.shift_remove(field) {
            declared = value.as_u64().map(|n| n as usize);
        }
    }
    if let Some(field) = fields.keys().next() {
        return Err(unknown_pooling(field, path));
    }
    if modes.is_empty() {
        // What sentence-transformers does when no flag is set.
        modes.push(Mode::Mean);
    }
    Ok(PoolingFile { pooling: Pooling { modes, declared }, include_prompt })
}

fn unknown_pooling(what: &str, path: &Path) -> Error {
    Error::unsupported(
        format!("pooling option {what} in {}", path.display()),
        "known are cls, max, mean, mean_sqrt_len_tokens, weightedmean and lasttoken",
    )
}

/// The prompt that is asked for, and the components that are kept.
fn read_usage(
    path: &Path,
    wanted: Option<&str>,
    pooling: &PoolingFile,
) -> Result<(String, Option<usize>)> {
    #[derive(Default, Deserialize)]
    struct File {
        #[serde(default)]
        prompts: Map<String, Value>,
        #[serde(default)]
        default_prompt_name: Option<String>,
        #[serde(default)]
        truncate_dim: Option<Value>,
    }
    if path.is_file() {
        USAGE.check(&read(path)?, path)?;
    }
    let file: File = if path.is_file() { read(path)? } else { File::default() };
    let truncate_dim = match &file.truncate_dim {
        None => None,
        Some(value) => match value.as_u64() {
            Some(dim) if dim > 0 => Some(dim as usize),
            _ => {
                let message = format!("{value}, expected a positive integer");
                return Err(Error::invalid(path, "field truncate_dim", message));
            }
        },
    };
    let (field, name) = match (wanted, &file.default_prompt_name) {
        (Some(name), _) => ("prompts", name),
        (None, Some(name)) => ("default_prompt_name", name.as_str()),
        (None, None) => return Ok((String::new(), truncate_dim)),
    };
    let prompt = match file.prompts.get(name) {
        Some(Value::String(prompt)) => prompt.clone(),
        // The two that every model has, empty unless it says otherwise; and none at all.
        None | Some(Value::Null) if ["", "query", "document"].contains(&name) => String::new(),
        _ => {
            let known: Vec<&String> = file.prompts.keys().collect();
            let message = format!("{name:?} is no prompt here, expected one of {known:?}");
            return Err(Error::invalid(path, format!("field {field}"), message));
        }
    };
    if !prompt.is_empty() && !pooling.include_prompt {
        return Err(Error::unsupported(
            format!("include_prompt = false with the prompt {prompt:?} of {}", path.display()),
            "pooling without the prompt's tokens is not implemented",
        ));
    }
    Ok((prompt, truncate_dim))
}

/// Modules after pooling work on the sentence vector; files may say so, or say otherwise.
fn check_names(fields: &Map<String, Value>, path: &Path) -> Result<()> {
    for name in ["module_input_name", "module_output_name"] {
        match fields.get(name) {
            None | Some(Value::Null) => {}
            Some(value) if value == "sentence_embedding" => {}
            Some(value) => {
                return Err(Error::unsupported(
                    format!("{name} = {value} in {}", path.display()),
                    "modules after Pooling work on sentence_embedding",
                ));
            }
        }
    }
    Ok(())
}

fn read_normalize(dir: &Path) -> Result<Module> {
    let path = dir.join("config.json");
    if path.is_file() {
        let fields = read(&path)?;
        NORMALIZE.check(&fields, &path)?;
        check_names(&fields, &path)?;
    }
    Ok(Module::Normalize)
}

fn read_layer_norm(dir: PathBuf) -> Result<Module> {
    let path = dir.join("config.json");
    let fields: Map<String, Value> = read(&path)?;
    LAYER_NORM.check(&fields, &path)?;
    Ok(Module::LayerNorm(dir, size(&fields, "dimension", &path)?))
}

fn read_dropout(dir: &Path) -> Result<()> {
    let path = dir.join("config.json");
    if path.is_file() { DROPOUT.check(&read(&path)?, &path) } else { Ok(()) }
}

/// A positive integer.
fn size(fields: &Map<String, Value>, name: &str, path: &Path) -> Result<usize> {
    match fields.get(name).and_then(Value::as_u64) {
        Some(n) if n > 0 => Ok(n as usize),
        _ => {
            let message = format!("{:?}, expected a positive integer", fields.get(name));
            Err(Error::invalid(path, format!("field {name}"), message))
        }
    }
}

fn read_dense(dir: PathBuf) -> Result<Dense> {
    let path = dir.join("config.json");
    let fields: Map<String, Value> = read(&path)?;
    DENSE.check(&fields, &path)?;
    check_names(&fields, &path)?;
    let input = size(&fields, "in_features", &path)?;
    let output = size(&fields, "out_features", &path)?;
    let bias = match fields.get("bias") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(value)) => *value,
        Some(value) => {
            let message = format!("{value}, expected a boolean");
            return Err(Error::invalid(&path, "field bias", message));
        }
    };
    let name = match fields.get("activation_function") {
        None => "Tanh",
        Some(value) => value.as_str().and_then(|s| s.rsplit('.').next()).unwrap_or_default(),
    };
    let activation = match name {
        "Tanh" => Activation::Tanh,
        "Identity" => Activation::Identity,
        "GELU" => Activation::GeluErf,
        "ReLU" => Activation::Relu,
        _ => {
            return Err(Error::unsupported(
                format!("activation_function {name:?} in {}", path.display()),
                "known are Tanh, Identity, GELU and ReLU",
            ));
        }
    };
    Ok(Dense { dir, input, output, bias, activation })
}

/// The length limit and whether to lower the case, from the file beside the network or the tokenizer's.
fn read_limits(dir: &Path) -> Result<(Option<usize>, bool)> {
    #[derive(Default, Deserialize)]
    struct Limits {
        max_seq_length: Option<usize>,
        #[serde(default)]
        do_lower_case: bool,
        transformer_task: Option<String>,
    }
    const NAMES: [&str; 7] = [
        "sentence_bert_config.json",
        "sentence_roberta_config.json",
        "sentence_distilbert_config.json",
        "sentence_camembert_config.json",
        "sentence_albert_config.json",
        "sentence_xlm-roberta_config.json",
        "sentence_xlnet_config.json",
    ];
    let path = NAMES.iter().map(|name| dir.join(name)).find(|path| path.is_file());
    if let Some(path) = &path {
        LIMITS.check(&read(path)?, path)?;
    }
    let limits: Limits = path.as_deref().map(read).transpose()?.unwrap_or_default();
    match limits.transformer_task.as_deref() {
        None | Some("feature-extraction") => {}
        Some(other) => {
            let what = format!("transformer_task {other:?} in {}", dir.display());
            return Err(Error::unsupported(what, "only \"feature-extraction\" gives vectors"));
        }
    }
    let fallback = text::Settings::read(dir)?.max_tokens()?;
    Ok((limits.max_seq_length.or(fallback), limits.do_lower_case))
}
