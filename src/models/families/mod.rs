//! Model families: what differs from one to the next, and the only place that knows their names.
//!
//! A family says what `config.json` means and what its tensors are called, how a picture becomes pixels and how many tokens
//! (from its size alone), how the states of its tower become rows of the decoder, and what stands for an image in a
//! conversation. Everything else is common: the decoder, the engine, training, reports.

pub mod llava;
pub mod qwen;

use std::path::Path;

use ::image::RgbImage;
use candle_core::{DType, Device, Tensor};

use super::adapter::projector_module;
use super::fields::Fields;
use super::files::refuse_quantised;
use super::image::{ImageLayout, Pixels};
use super::language::{Language, TextConfig};
use super::source::Bounds;
use super::weights::Weights;
use crate::{Error, Result};

/// All that `config.json` says.
#[derive(Debug, Clone)]
pub struct Config {
    /// The decoder.
    pub text: TextConfig,
    /// The id that stands for an image in a token sequence; none where none does.
    pub image_token: Option<u32>,
    /// The id that stands for a film, which is refused; none where none does.
    pub video_token: Option<u32>,
    /// End-of-sequence ids named by `config.json`; `generation_config.json` goes before them.
    pub eos: Vec<u32>,
    /// What the family says about pictures.
    pub pictures: Pictures,
}

/// What a family says about pictures.
#[derive(Debug, Clone)]
pub enum Pictures {
    /// See [`llava`].
    Llava(llava::Config),
    /// See [`qwen`].
    Qwen(qwen::Config),
}

/// A kind of checkpoint that is built in.
struct Built {
    /// Of `config.json`.
    model_type: &'static str,
    /// Its entry in `architectures`, where `model_type` is absent.
    architecture: &'static str,
    /// For people.
    name: &'static str,
    read: fn(&Path, &Fields) -> Result<Config>,
}

const BUILT: [Built; 5] = [
    Built {
        model_type: "llava",
        architecture: "LlavaForConditionalGeneration",
        name: "LLaVA-1.5",
        read: |dir, fields| llava::Config::read(dir, fields, llava::Generation::Llava),
    },
    Built {
        model_type: "llava_next",
        architecture: "LlavaNextForConditionalGeneration",
        name: "LLaVA-1.6",
        read: |dir, fields| llava::Config::read(dir, fields, llava::Generation::Next),
    },
    Built {
        model_type: "llava_onevision",
        architecture: "LlavaOnevisionForConditionalGeneration",
        name: "LLaVA-OneVision",
        read: |dir, fields| llava::Config::read(dir, fields, llava::Generation::OneVision),
    },
    Built {
        model_type: "qwen2_vl",
        architecture: "Qwen2VLForConditionalGeneration",
        name: "Qwen2-VL",
        read: |_, fields| qwen::read(fields, qwen::Generation::Qwen2),
    },
    Built {
        model_type: "qwen2_5_vl",
        architecture: "Qwen2_5_VLForConditionalGeneration",
        name: "Qwen2.5-VL",
        read: |_, fields| qwen::read(fields, qwen::Generation::Qwen2_5),
    },
];

/// Whether `config.json` in a folder, read alone, is of a checkpoint that is built in: for refusing others before their weights
/// are fetched.
///
/// # Errors
/// As [`Config::read`].
pub fn check(dir: &Path) -> Result<()> {
    Config::read(dir).map(|_| ())
}

impl Config {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// The file is missing or not JSON, a field has the wrong type or an impossible value ([`Error::Invalid`], which
    /// names it), or the family or an option is not built in ([`Error::Unsupported`]).
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let fields = Fields::read(&path)?;
        refuse_quantised(fields.value("quantization_config"), &path)?;
        if llava::original::is_original(&fields) {
            return llava::Config::read(dir, &fields, llava::Generation::Llava);
        }
        let (what, name) = match (fields.str("model_type")?, fields.value("architectures")) {
            (Some(name), _) => ("model type", name.to_owned()),
            (None, Some(list)) => ("architecture", list[0].as_str().unwrap_or_default().to_owned()),
            (None, None) => return Err(fields.invalid("model_type", "is missing")),
        };
        let known = |built: &&Built| name == built.model_type || name == built.architecture;
        match BUILT.iter().find(known) {
            Some(built) => {
                let video_token = video_token(&fields)?;
                Ok(Self { video_token, ..(built.read)(dir, &fields)? })
            }
            None => Err(not_built(what, &name, &path)),
        }
    }

    /// The same with other bounds of pictures.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a family whose pictures have one size.
    pub(super) fn with_pixels(mut self, pixels: Bounds) -> Result<Self> {
        match &mut self.pictures {
            Pictures::Qwen(config) => config.pixels = pixels,
            Pictures::Llava(_) if pixels == Bounds::default() => {}
            Pictures::Llava(_) => {
                return Err(Error::unsupported(
                    format!("min_pixels and max_pixels for {}", self.names().0),
                    "expected neither: only Qwen2-VL and Qwen2.5-VL show pictures at their own size",
                ));
            }
        }
        Ok(self)
    }

    /// The checkpoint's weights, in whichever layout, under the names of the Hugging Face layout.
    pub(super) fn weights(&self, dir: &Path, device: &Device, dtype: DType) -> Result<Weights> {
        match self.original() {
            None => Weights::open(dir, device, dtype),
            Some(original) => original.weights(dir, device, dtype),
        }
    }

    /// A folder outside the checkpoint that weights are read from too.
    pub(super) fn elsewhere(&self) -> Option<&Path> {
        self.original()?.tower()
    }

    /// What turns' images are replaced by, where that is more than the image token.
    pub(super) fn placeholder(&self) -> Option<&str> {
        Some(&self.original()?.placeholder)
    }

    /// The conversation of a checkpoint without a template of its own, if its family or name asks for one; and whether only
    /// `chat_template.jinja` counts as its own.
    pub(super) fn conversation(&self) -> (Option<&'static str>, bool) {
        let original = self.original();
        (original.and_then(|original| original.conversation), original.is_some())
    }

    /// See [`Model::turns_pictures`](super::Model::turns_pictures).
    pub(super) fn turns_pictures(&self) -> bool {
        self.original().is_none()
    }

    /// The family's name, and that of the layout, for people.
    pub(super) fn names(&self) -> (&'static str, &'static str) {
        let layout = if self.original().is_some() { "original LLaVA" } else { "Hugging Face" };
        let family = match &self.pictures {
            Pictures::Llava(config) => config.generation.name(),
            Pictures::Qwen(config) => config.generation.name(),
        };
        (family, layout)
    }

    fn original(&self) -> Option<&llava::original::Original> {
        match &self.pictures {
            Pictures::Llava(config) => config.original.as_ref(),
            Pictures::Qwen(_) => None,
        }
    }
}

/// Refuses an adapter that the original LLaVA code trained on a bare language model, where `base` is that language model: the
/// adapter's own files would make the LLaVA of it.
///
/// # Errors
/// [`Error::Unsupported`], with what to give instead; files that are not JSON.
pub(super) fn check_base(base: &Path, adapter: &Path) -> Result<()> {
    let Some(own) = Fields::read_if_present(&adapter.join("config.json"))? else { return Ok(()) };
    if check(base).is_ok() || !llava::original::is_original(&own) {
        return Ok(());
    }
    let kind =
        Fields::read(&base.join("config.json"))?.str("model_type")?.unwrap_or_default().to_owned();
    Err(Error::unsupported(
        format!("the adapter {} on {}", adapter.display(), base.display()),
        format!(
            "that base is a bare language model (model type \"{kind}\"), and the base must be a whole LLaVA. This adapter was trained \
             by the original LLaVA code, which puts the LLaVA together from the language model, the adapter's config.json and its \
             non_lora_trainables: merge them with that code (scripts/merge_lora_weights.py --model-path {} --model-base {}), and \
             give the result as the model, without an adapter",
            adapter.display(),
            base.display()
        ),
    ))
}

fn not_built(what: &str, name: &str, path: &Path) -> Error {
    let built: Vec<String> =
        BUILT.iter().map(|built| format!("{} ({})", built.model_type, built.name)).collect();
    Error::unsupported(
        format!("{what} \"{name}\""),
        format!(
            "{}: expected one of {} in the Hugging Face layout, or llava, llava_llama or llava_mistral in that of the \
             original LLaVA code. Candidates that another program made with such a model can still be chosen from: bdhs score",
            path.display(),
            built.join(", ")
        ),
    )
}

fn video_token(fields: &Fields) -> Result<Option<u32>> {
    for name in ["video_token_id", "video_token_index"] {
        if let Some(id) = fields.usize(name)? {
            let wrong = |_| fields.invalid(name, format!("is {id}, expected a token id"));
            return u32::try_from(id).map(Some).map_err(wrong);
        }
    }
    Ok(None)
}

/// End-of-sequence ids of `config.json`, or of its `text_config`.
pub(super) fn eos(fields: &Fields) -> Result<Vec<u32>> {
    let eos = fields.ids("eos_token_id")?;
    if eos.is_empty() {
        fields.object_or_empty("text_config")?.ids("eos_token_id")
    } else {
        Ok(eos)
    }
}

/// The first of the prefixes under which there is a tensor `probe`.
pub(super) fn find(
    weights: &Weights,
    dir: &Path,
    what: &str,
    prefixes: &[&'static str],
    probe: &str,
) -> Result<&'static str> {
    let found = prefixes.iter().find(|prefix| weights.contains(&format!("{prefix}.{probe}")));
    found.copied().ok_or_else(|| {
        Error::invalid(
            dir,
            format!("tensor {}.{probe}", prefixes[0]),
            format!("no {what} in the weights; looked for it under {}", prefixes.join(", ")),
        )
    })
}

/// The decoder of the checkpoint in `dir`.
pub(super) fn language(dir: &Path, config: &Config, weights: &Weights) -> Result<Language> {
    /// Prefixes of the decoder and of its output layer.
    const NAMES: [(&str, &str); 3] = [
        ("model.language_model", "lm_head"),
        ("language_model.model", "language_model.lm_head"),
        ("model", "lm_head"),
    ];
    let prefixes = NAMES.map(|(prefix, _)| prefix);
    let prefix = find(weights, dir, "language model", &prefixes, "embed_tokens.weight")?;
    let head = NAMES.iter().find(|(own, _)| *own == prefix).map_or("lm_head", |(_, head)| head);
    Language::load(&config.text, &weights.pp(prefix), &weights.pp(head))
}

/// What of a parameter's name says that it is of the vision tower, and that it is of what lies between tower and decoder.
pub(super) fn part(canonical: &str) -> Part {
    if projector_module(canonical).is_some() || canonical == "image_newline" {
        Part::Projector
    } else if ["vision.", "visual."].iter().any(|prefix| canonical.starts_with(prefix)) {
        Part::Tower
    } else {
        Part::Language
    }
}

/// A part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The vision tower.
    Tower,
    /// Between tower and decoder.
    Projector,
    /// The decoder.
    Language,
}

/// The part of a model that sees: processor, tower and projector.
#[expect(clippy::large_enum_variant, reason = "there is one in a model")]
pub(super) enum Vision {
    Llava(llava::Vision),
    Qwen(qwen::Vision),
}

impl Vision {
    pub(super) fn load(dir: &Path, config: &Config, weights: &Weights) -> Result<Self> {
        let hidden = config.text.hidden;
        match &config.pictures {
            Pictures::Llava(own) => {
                Ok(Self::Llava(llava::Vision::load(dir, own, hidden, weights)?))
            }
            Pictures::Qwen(own) => Ok(Self::Qwen(qwen::Vision::load(dir, own, hidden, weights)?)),
        }
    }

    /// `alone`: the image is the only one of its conversation.
    pub(super) fn layout(&self, width: usize, height: usize, alone: bool) -> Result<ImageLayout> {
        match self {
            Self::Llava(vision) => vision.layout(width, height, alone),
            Self::Qwen(vision) => vision.layout(width, height),
        }
    }

    pub(super) fn preprocess(&self, image: &RgbImage, layout: &ImageLayout) -> Result<Pixels> {
        match self {
            Self::Llava(vision) => vision.preprocess(image, layout),
            Self::Qwen(vision) => vision.preprocess(image, layout),
        }
    }

    pub(super) fn states(&self, pixels: &[&Pixels]) -> Result<Vec<Tensor>> {
        match self {
            Self::Llava(vision) => vision.states(pixels),
            Self::Qwen(vision) => vision.states(pixels),
        }
    }

    pub(super) fn rows(&self, states: &Tensor, layout: &ImageLayout) -> Result<Tensor> {
        match self {
            Self::Llava(vision) => vision.rows(states, layout),
            Self::Qwen(vision) => vision.rows(states),
        }
    }
}
