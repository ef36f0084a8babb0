//! Floor 4: the configuration of a whole experiment, as its TOML file and the command line give it.
//!
//! [`named`] says what a name of a model, an encoder or a judge means, [`SavedRun`] keeps a configuration in a run folder.

mod ablation;
pub mod named;
mod saved;
mod variant;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Error, Result,
    data::{DatasetOptions, TurnChoice, is_column},
    demo::{
        embedded::{self, is_embedded},
        folder, judge,
    },
    engine::Progress,
    models::{
        Bounds, Source, device,
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
    /// Storage type of its weights and states: `f32`, `f16`, `bf16`, or `auto` ([`Source::dtype`]).
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
            dtype: device::AUTO.into(),
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Files, folders or patterns of rows, in one of the shapes that `docs/data.md` lists; one, or a list.
    pub file: Files,
    /// Folder that image paths are relative to; the data file's own folder where absent.
    pub images: Option<PathBuf>,
    /// Names of the files' columns by the names that are read: `prompt = "question"`.
    pub columns: BTreeMap<String, String>,
    /// Which turn of a conversation is the reference.
    pub turn: TurnChoice,
    /// Only the first so many samples.
    pub limit: Option<usize>,
    /// Follow links that lead out of the image folder.
    pub allow_links: bool,
    /// Leave out rows that are of no use, count them, and list them in `skipped.jsonl`.
    pub skip_bad: bool,
    /// Share of the rows that may be left out, in [0, 1].
    pub max_skipped: f64,
    /// Candidates made elsewhere, in place of the model's own.
    pub candidates: Option<PathBuf>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            file: Files::default(),
            images: None,
            columns: BTreeMap::new(),
            turn: TurnChoice::default(),
            limit: None,
            allow_links: false,
            skip_bad: false,
            max_skipped: 0.2,
            candidates: None,
        }
    }
}

impl Data {
    /// The folder that image paths are relative to, here and in the exports.
    pub fn image_folder(&self) -> &Path {
        let first = self.file.0.first().map_or(Path::new(""), PathBuf::as_path);
        let own = match first.is_dir() {
            true => Some(first),
            false => first.parent(),
        };
        let own = own.filter(|folder| !folder.as_os_str().is_empty());
        self.images.as_deref().or(own).unwrap_or(Path::new("."))
    }

    /// How the files are read. `needs_picture`: rows without one are of no use.
    pub fn options(&self, needs_picture: bool) -> DatasetOptions {
        DatasetOptions {
            image_folder: self.images.clone(),
            turn: self.turn,
            limit: self.limit,
            columns: self.columns.clone(),
            allow_links: self.allow_links,
            needs_picture,
            ..DatasetOptions::default()
        }
    }
}

/// Paths of data: in a file one as a string, several as a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files(pub Vec<PathBuf>);

impl Files {
    /// Whether none is given.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|path| path.as_os_str().is_empty())
    }
}

impl<P: Into<PathBuf>> From<P> for Files {
    fn from(path: P) -> Self {
        Self(vec![path.into()])
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&all.join(", "))
    }
}

impl Serialize for Files {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [] => PathBuf::new().serialize(serializer),
            [one] => one.serialize(serializer),
            all => all.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a path or a list of paths")]
        enum Either {
            One(PathBuf),
            Many(Vec<PathBuf>),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::One(path) => vec![path],
            Either::Many(paths) => paths,
        }))
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

/// A trainer whose files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// `pairs.parquet` and `pairs.jsonl`.
    Trl,
    /// `llama_factory.jsonl` and `dataset_info.json`.
    LlamaFactory,
    /// `swift.jsonl`.
    Swift,
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
    /// Trainers whose files are written. Those of TRL are always there: report and training read them.
    pub format: Vec<ExportFormat>,
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
        let paths = self.data.file.0.iter_mut().chain([&mut self.eval.data, &mut self.run.out]);
        let paths = paths.chain(&mut self.data.candidates);
        for path in paths.chain(&mut self.data.images).chain(&mut self.eval.images) {
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
    pub fn resolved(self, progress: &dyn Progress) -> Result<Self> {
        let mut resolved = self.with_data()?;
        resolved.fetch(progress)?;
        Ok(resolved)
    }

    /// With the demo's scenes unpacked, if they are the data.
    ///
    /// # Errors
    /// If they cannot be.
    pub fn with_data(mut self) -> Result<Self> {
        for file in &mut self.data.file.0 {
            *file = embedded::resolve(file)?;
        }
        Ok(self)
    }

    /// Whether models and encoders are here, so that nothing has to be fetched.
    pub fn is_here(&self) -> bool {
        let mut here = true;
        self.clone().visit_paths(&mut |path, kind| {
            here &= kind.is_none_or(|kind| named::is_here(path, kind));
        });
        here
    }

    fn fetch(&mut self, progress: &dyn Progress) -> Result<()> {
        // Small files of all names come before large ones of any.
        let mut names = Vec::new();
        self.visit_paths(&mut |path, kind| names.extend(kind.map(|kind| (path.clone(), kind))));
        for (path, kind) in names {
            named::settings(&path, kind, progress)?;
        }
        let online = self.train.online.as_mut().map(|online| &mut online.encoder);
        for encoder in self.grid.encoders.iter_mut().chain(online) {
            *encoder = named::encoder(encoder, progress)?;
        }
        for variant in &mut self.variants {
            variant.resolve(progress)?;
        }
        if !self.model.path.as_os_str().is_empty() {
            self.model.path = named::model(&self.model.path, progress)?;
        }
        if let Some(adapter) = &mut self.model.adapter {
            *adapter = named::adapter(adapter, progress)?;
        }
        Ok(())
    }

    /// The same for a device: with the model's storage type in place of `auto`.
    ///
    /// # Errors
    /// As [`Source::new`] and [`Source::dtype`].
    pub fn on(&self, device: &Device) -> Result<Self> {
        let dtype = self.model.source()?.dtype(&self.model.dtype, device)?;
        let model = Model { dtype: dtype.as_str().to_owned(), ..self.model.clone() };
        Ok(Self { model, ..self.clone() })
    }

    /// Names of files that the JSON and databases of a run could not hold.
    fn check_names(&self) -> Result<()> {
        let mut odd = None;
        self.clone().visit_paths(&mut |path, _| {
            if path.to_str().is_none() {
                odd.get_or_insert(path.clone());
            }
        });
        match odd {
            None => Ok(()),
            Some(path) => {
                let message = "is no UTF-8 text, which run.json could not hold; use a name that is";
                Err(Error::invalid(path, "", message))
            }
        }
    }

    /// Checks that the run folder can hold a run, and makes it. Called before models are fetched or read.
    ///
    /// # Errors
    /// A folder that cannot be written to, or whose file system has no locks; the message says what to do.
    pub fn check_folder(&self) -> Result<()> {
        crate::lock::check_folder(&self.run.out)
    }

    /// Checks everything that can be checked without opening other files.
    ///
    /// # Errors
    /// The first field that is missing or outside its range, with the value seen.
    pub fn validate(&self) -> Result<()> {
        let invalid = |field: &str, message: String| {
            Err(Error::invalid("configuration", format!("field {field}"), message))
        };
        self.check_names()?;
        let absent = [
            (
                "model.path",
                self.model.path.as_os_str().is_empty() && self.data.candidates.is_none(),
            ),
            ("data.file", self.data.file.is_empty()),
        ];
        for (field, absent) in absent {
            if absent {
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
        if !(0.0..=1.0).contains(&self.data.max_skipped) {
            let message = format!("is {}, expected in [0, 1]", self.data.max_skipped);
            return invalid("data.max_skipped", message);
        }
        for (name, column) in &self.data.columns {
            if !is_column(name) {
                let message = format!(
                    "has {name:?} for {column:?}, expected names that some shape has, as prompt, chosen, rejected, images, id"
                );
                return invalid("data.columns", message);
            }
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
        let text = threshold_text(threshold);
        if let Some(other) = thresholds[..i].iter().find(|other| threshold_text(**other) == text) {
            let message = match *other == threshold {
                true => format!("{threshold} is given twice"),
                false => format!(
                    "is {threshold}, and {other} is there already: both are {text} in the names of cells, which \
                     have four decimals; leave one out"
                ),
            };
            return Err(Error::invalid("configuration", field(i), message));
        }
    }
    Ok(())
}

/// The name of a cell: of its folder in `cells`, and in tables.
pub(crate) fn label(encoder: &str, threshold: f64) -> String {
    format!("{}__{}", safe_name(encoder), threshold_text(threshold))
}

/// An encoder's name as folders have it: other characters than letters, digits and `._-` become `_`.
pub(crate) fn safe_name(encoder: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    encoder.chars().map(safe).collect()
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
