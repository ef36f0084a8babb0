//! Floor 4: the configuration of a whole experiment, as its TOML file and the command line give it.
//!
//! [`named`] says what a name of a model, an encoder or a judge means, [`SavedRun`] keeps a configuration in a run folder.

mod ablation;
pub mod named;
mod saved;
mod variant;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    data::TurnChoice,
    demo::{
        embedded::{self, is_embedded},
        folder, judge,
    },
    engine::Progress,
    models::{
        Bounds, Source,
        hub::{self, Kind},
    },
    sampling::{SamplingConfig, acceptance::PAPER_THRESHOLD},
    train,
};

pub use ablation::{Ablation, Eval};
pub use saved::SavedRun;
pub use variant::Variant;

/// Everything that defines a run. `docs/config.md` lists every field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The multimodal LLM.
    pub model: Model,
    /// Images, prompts and preferred answers.
    pub data: Data,
    /// The method's settings.
    pub sampling: SamplingConfig,
    /// The ablation's axes.
    pub grid: Grid,
    /// How the run is carried out.
    pub run: Run,
    /// What the exports hold.
    pub export: Export,
    /// How a model is trained on a cell's pairs.
    pub train: train::Settings,
    /// Benchmarks of every trained model.
    pub eval: Eval,
    /// What trained cells are compared with.
    pub ablation: Ablation,
    /// Further rows of the ablation: the default cell under other settings.
    #[serde(rename = "variant")]
    pub variants: Vec<Variant>,
}

/// What [`Config::visit_paths`] calls.
type Visit<'a> = &'a mut dyn FnMut(&mut PathBuf, Option<Kind>);

/// The multimodal LLM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// LLaVA folder, or an adapter's that names its base, or a name ([`named::model`]).
    pub path: PathBuf,
    /// Folder of an adapter that changes it, or a name ([`named::adapter`]).
    pub adapter: Option<PathBuf>,
    /// Storage type of its weights and states: `f32`, `f16` or `bf16`.
    pub dtype: String,
    /// Pictures with fewer pixels are enlarged; the checkpoint's own bound if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<usize>,
    /// Pictures with more pixels are made smaller; the checkpoint's own bound if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<usize>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            adapter: None,
            dtype: "f32".into(),
            min_pixels: None,
            max_pixels: None,
        }
    }
}

impl Model {
    /// Where the model is read from.
    ///
    /// # Errors
    /// As [`Source::new`].
    pub fn source(&self) -> Result<Source> {
        Ok(Source::new(&self.path, self.adapter.as_deref())?.with_pixels(self.pixels()))
    }

    /// Bounds of pictures.
    pub fn pixels(&self) -> Bounds {
        Bounds { min: self.min_pixels, max: self.max_pixels }
    }

    /// What the model is called: its folder's name or its repository's, and its adapter's.
    pub fn name(&self) -> String {
        let name = |path: &Path| {
            let on_hub = path.to_str().and_then(|text| hub::Name::parse(text, Kind::Model));
            match (on_hub, path.file_name()) {
                (Some(name), _) => name.repo().to_owned(),
                (None, Some(name)) => name.to_string_lossy().into_owned(),
                (None, None) => path.display().to_string(),
            }
        };
        let adapter = self.adapter.as_deref().map(|adapter| format!(" + {}", name(adapter)));
        name(&self.path) + &adapter.unwrap_or_default()
    }
}

/// Images, prompts and preferred answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Conversations: LLaVA's JSON, or JSONL.
    pub file: PathBuf,
    /// Folder that image paths are relative to; the data file's own folder where absent.
    pub images: Option<PathBuf>,
    /// Which turn of a conversation is the reference.
    pub turn: TurnChoice,
    /// Only the first so many samples.
    pub limit: Option<usize>,
}

impl Data {
    /// The folder that image paths are relative to, here and in the exports.
    pub fn image_folder(&self) -> &Path {
        let own = self.file.parent().filter(|folder| !folder.as_os_str().is_empty());
        self.images.as_deref().or(own).unwrap_or(Path::new("."))
    }
}

/// The ablation's axes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grid {
    /// sentence-transformers folders, or names ([`named::encoder`]).
    pub encoders: Vec<PathBuf>,
    /// Storage type of the encoders.
    pub dtype: String,
    /// Similarity thresholds, each in [-1, 1].
    pub thresholds: Vec<f64>,
}

/// The thresholds of the ablation.
pub const THRESHOLDS: [f64; 5] = [0.90, 0.93, 0.95, PAPER_THRESHOLD, 0.99];

impl Default for Grid {
    fn default() -> Self {
        Self { encoders: Vec::new(), dtype: "f32".into(), thresholds: THRESHOLDS.to_vec() }
    }
}

/// How the run is carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Seed of every random draw.
    pub seed: u64,
    /// Key-value slots in use at a time: prompts, references and room for new tokens. A wave needs up to four times as many in all,
    /// one attempt after another. Without a number, as many as free memory holds
    /// ([`memory::slots`](crate::models::memory::slots)).
    pub token_budget: Option<u32>,
    /// Samples in a block. A block is worked on as one: its waves mix only its own samples, so a
    /// shard holds whole blocks and gives the same results as a single run.
    pub block: usize,
    /// The run folder.
    pub out: PathBuf,
}

impl Default for Run {
    fn default() -> Self {
        Self { seed: 0, token_budget: None, block: 256, out: "runs/sweep".into() }
    }
}

/// What the exports hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Export {
    /// Leave out pairs that carry a flag (empty, identical to the reference, cut by the token limit).
    /// The method itself drops nothing `[C]`.
    pub exclude_flagged: bool,
    /// Put the images' bytes into the Parquet files, once a cell; else these hold absolute paths.
    pub embed_images: bool,
}

impl Config {
    /// Reads a TOML file. Relative paths in it are relative to its folder; names of the embedded demo's models and scenes, and
    /// those of the hub where there is no such folder, stay as they are.
    ///
    /// # Errors
    /// An unreadable file; unknown fields and wrong types, with their line.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut config: Self = toml::from_str(&text).map_err(|error| {
            let at = error.span().map(|span| {
                format!("line {}", text[..span.start].bytes().filter(|&b| b == b'\n').count() + 1)
            });
            Error::invalid(path, at.unwrap_or_default(), error.message())
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        config.visit_paths(&mut |path, kind| {
            *path = match kind {
                Some(kind) => named::relative(path, kind, base),
                None => base.join(&*path),
            }
        });
        Ok(config)
    }

    /// Calls `change` with every path that is set and is no name of the embedded demo's; with a kind, with what names a model or
    /// an encoder.
    fn visit_paths(&mut self, change: Visit) {
        let mut visit = |path: &mut PathBuf, kind| {
            if !path.as_os_str().is_empty() && !is_embedded(path) {
                change(path, kind);
            }
        };
        for path in [&mut self.model.path].into_iter().chain(&mut self.model.adapter) {
            visit(path, Some(Kind::Model));
        }
        let online = self.train.online.as_mut().map(|online| &mut online.encoder);
        for encoder in self.grid.encoders.iter_mut().chain(online) {
            visit(encoder, Some(Kind::Encoder));
        }
        let paths = [&mut self.data.file, &mut self.eval.data, &mut self.run.out];
        for path in paths.into_iter().chain(&mut self.data.images).chain(&mut self.eval.images) {
            visit(path, None);
        }
        for variant in &mut self.variants {
            variant.visit_paths(&mut visit);
        }
    }

    /// Puts folders in place of names: models of the embedded demo are unpacked, those of the hub fetched where they are not here.
    ///
    /// # Errors
    /// As [`named::model`].
    pub fn resolved(mut self, progress: &dyn Progress) -> Result<Self> {
        self.data.file = embedded::resolve(&self.data.file)?;
        let online = self.train.online.as_mut().map(|online| &mut online.encoder);
        for encoder in self.grid.encoders.iter_mut().chain(online) {
            *encoder = named::encoder(encoder, progress)?;
        }
        for variant in &mut self.variants {
            variant.resolve(progress)?;
        }
        self.model.path = named::model(&self.model.path, progress)?;
        if let Some(adapter) = &mut self.model.adapter {
            *adapter = named::adapter(adapter, progress)?;
        }
        Ok(self)
    }

    /// Checks everything that can be checked without opening other files.
    ///
    /// # Errors
    /// The first field that is missing or outside its range, with the value seen.
    pub fn validate(&self) -> Result<()> {
        let invalid = |field: &str, message: String| {
            Err(Error::invalid("configuration", format!("field {field}"), message))
        };
        for (field, path) in [("model.path", &self.model.path), ("data.file", &self.data.file)] {
            if path.as_os_str().is_empty() {
                return invalid(
                    field,
                    "is not set; give it in the file or on the command line".into(),
                );
            }
        }
        if self.grid.encoders.is_empty() {
            return invalid("grid.encoders", "is empty; name at least one encoder".into());
        }
        check_thresholds(&self.grid.thresholds)?;
        let budget = self.run.token_budget.map(|slots| slots as usize);
        for (field, value) in [("run.token_budget", budget), ("run.block", Some(self.run.block))] {
            if value == Some(0) {
                return invalid(field, "is 0, expected at least 1".into());
            }
        }
        if self.data.limit == Some(0) {
            return invalid("data.limit", "is 0, expected at least 1".into());
        }
        self.train.validate()?;
        self.ablation.validate()?;
        self.sampling.validate()?;
        self.variants().map(|_| ())
    }
}

/// The default sweep: the demo's LLaVA, encoders and scenes, into `runs/demo`.
///
/// rho is .9 rather than the paper's .99: of 36 image tokens the latter leaves none in 70 % of attempts. The training's settings were
/// chosen on benchmarks of the selection split (docs/demo.md).
pub fn demo() -> Config {
    let mut config = Config::default();
    config.model.path = folder::LLAVA.into();
    config.data.file = embedded::SCENES.into();
    config.grid.encoders = folder::encoder_names().map(PathBuf::from).to_vec();
    config.sampling.rho = 0.9;
    config.sampling.max_sentence_tokens = 32;
    config.sampling.max_response_tokens = 128;
    config.run.out = "runs/demo".into();
    config.train.rank = 8;
    config.train.alpha = 16.0;
    config.train.beta = 1.0;
    config.train.learning_rate = 1e-3;
    config.ablation.seeds = 5;
    config.eval.data = embedded::BENCHMARKS.into();
    config.eval.judge = Some(judge::MODEL.to_owned());
    config.eval.ocr = Some(false);
    // The demo's model has 512 positions, and no answer of more than 60 tokens.
    config.eval.max_new_tokens = Some(128);
    config
}

/// Most thresholds of a grid: every cell has a folder of its own.
const MOST_THRESHOLDS: usize = 1000;

/// Thresholds: at least one, each a number in [-1, 1], none twice.
pub fn check_thresholds(thresholds: &[f64]) -> Result<()> {
    let field = |i: usize| format!("field grid.thresholds[{i}]");
    if thresholds.is_empty() {
        return Err(Error::invalid(
            "configuration",
            "field grid.thresholds",
            "is empty; name at least one threshold",
        ));
    }
    if thresholds.len() > MOST_THRESHOLDS {
        let message = format!(
            "has {} thresholds, expected at most {MOST_THRESHOLDS}: phi is kept in store.db and scores, where any threshold can be \
             answered later",
            thresholds.len()
        );
        return Err(Error::invalid("configuration", "field grid.thresholds", message));
    }
    for (i, &threshold) in thresholds.iter().enumerate() {
        if !(-1.0..=1.0).contains(&threshold) {
            return Err(Error::invalid(
                "configuration",
                field(i),
                format!("is {threshold}, expected a cosine in [-1, 1]"),
            ));
        }
        if thresholds[..i].contains(&threshold) {
            return Err(Error::invalid(
                "configuration",
                field(i),
                format!("{threshold} is given twice"),
            ));
        }
    }
    Ok(())
}

/// The name of a cell: of its folder in `cells`, and in tables.
pub(crate) fn label(encoder: &str, threshold: f64) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = encoder.chars().map(safe).collect();
    format!("{name}__{}", threshold_text(threshold))
}

/// Two to four decimals: 0.90, 0.975, 0.9725.
pub fn threshold_text(threshold: f64) -> String {
    let mut text = format!("{threshold:.4}");
    for _ in 0..2 {
        if text.ends_with('0') {
            text.pop();
        }
    }
    text
}
