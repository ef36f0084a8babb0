//! What a run may choose.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Whose rules decide a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// LLaVA's evaluation scripts (v1.5).
    Llava,
    /// lmms-eval.
    LmmsEval,
    /// The benchmark's own script.
    Official,
    /// VLMEvalKit.
    #[serde(rename = "vlmevalkit")]
    VlmEvalKit,
    /// The rule that the benchmark describes, without its script's faults. Not comparable with published numbers.
    Strict,
}

impl Protocol {
    const NAMES: [(Self, &'static str); 5] = [
        (Self::Llava, "llava"),
        (Self::LmmsEval, "lmms-eval"),
        (Self::Official, "official"),
        (Self::VlmEvalKit, "vlmevalkit"),
        (Self::Strict, "strict"),
    ];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(protocol, _)| protocol == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(_, name)| *name == text);
        found
            .map(|(protocol, _)| *protocol)
            .ok_or_else(|| "expected llava, lmms-eval, official, vlmevalkit or strict".to_owned())
    }
}

/// How Recall_coco brings words to their singular.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Singular {
    /// The suffix rules of pattern.en, as in CHAIR.
    #[default]
    Pattern,
    /// WordNet's noun lemmas, from the user's WordNet files, as in Object HalBench's rule pipeline.
    Wordnet,
    /// Words stay as they are.
    None,
}

impl FromStr for Singular {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pattern" => Ok(Self::Pattern),
            "wordnet" => Ok(Self::Wordnet),
            "none" => Ok(Self::None),
            _ => Err("expected pattern, wordnet or none".to_owned()),
        }
    }
}

/// What a bootstrap draws with replacement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Images, each with all its questions: answers about one image are not independent.
    #[default]
    Image,
    /// Single items.
    Item,
}

impl FromStr for Unit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "image" => Ok(Self::Image),
            "item" => Ok(Self::Item),
            _ => Err("expected image or item".to_owned()),
        }
    }
}

/// What a run may choose; every field is recorded in the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Rules; none = the metric's default.
    pub protocol: Option<Protocol>,
    /// Text after the question; none = the reference's.
    pub suffix: Option<String>,
    /// TextVQA: whether the prompt lists OCR tokens; none = the protocol's own.
    pub ocr: Option<bool>,
    /// Recall_coco: how words become singular.
    pub singular: Singular,
    /// Most tokens of an answer; none = the reference's.
    pub max_new_tokens: Option<u32>,
    /// Score missing answers as empty ones instead of refusing the file.
    pub allow_missing: bool,
    /// Skip answers to questions that the benchmark does not have instead of refusing the file.
    pub allow_extra: bool,
    /// What the bootstrap draws.
    pub unit: Unit,
    /// Bootstrap resamples; 0 = no intervals.
    pub resamples: u32,
    /// Key of the bootstrap's draws.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            protocol: None,
            suffix: None,
            ocr: None,
            singular: Singular::Pattern,
            max_new_tokens: None,
            allow_missing: false,
            allow_extra: false,
            unit: Unit::Image,
            resamples: 1000,
            seed: 0,
        }
    }
}

impl Settings {
    /// Checks every value against its range.
    ///
    /// # Errors
    /// On the first field out of range.
    pub fn validate(&self) -> Result<()> {
        if self.resamples > 1_000_000 {
            let (got, most) = (self.resamples, "at most 1000000");
            return Err(Error::argument("eval settings", "resamples", got, most));
        }
        match self.max_new_tokens {
            Some(got @ (0 | 1_000_001..)) => Err(Error::argument(
                "eval settings",
                "max_new_tokens",
                got,
                "between 1 and 1000000",
            )),
            _ => Ok(()),
        }
    }
}
