//! Further rows of an ablation: the default cell under other settings, as the paper's rows of other corruptions (`[[variant]]`).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{Config, Visit, label, named};
use crate::{
    Error, Result,
    demo::embedded,
    engine::Progress,
    models::{encoder::Choice, hub::Kind},
    sampling::acceptance::nearest_to_paper,
};

/// The default cell's row under other settings. What is not named stays as the run has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Variant {
    /// Its name, and that of its folders.
    pub name: String,
    /// Fields of `[sampling]`.
    pub sampling: Map<String, Value>,
    /// Fields of `[data]`.
    pub data: Map<String, Value>,
    /// Fields of `[train]`.
    pub train: Map<String, Value>,
}

impl Variant {
    /// Whether its pairs are others than the default cell's, so that it has a run of its own in `variants/NAME`.
    pub fn samples(&self) -> bool {
        !(self.sampling.is_empty() && self.data.is_empty())
    }

    /// As [`Config::visit_paths`], of all paths that are set.
    pub(super) fn visit_paths(&mut self, change: Visit) {
        let online = self.train.get_mut("online").and_then(|online| online.get_mut("encoder"));
        let names = ["file", "images"];
        let data = self.data.iter_mut().filter(|(name, _)| names.contains(&name.as_str()));
        let paths = data.map(|(_, value)| (value, None));
        for (value, kind) in paths.chain(online.map(|value| (value, Some(Kind::Encoder)))) {
            let texts = match value {
                Value::Array(values) => values.iter_mut().collect(),
                one => vec![one],
            };
            for value in texts {
                let Value::String(text) = value else { continue };
                let mut path = PathBuf::from(&*text);
                change(&mut path, kind);
                *text = path.to_string_lossy().into_owned();
            }
        }
    }

    /// As [`Config::resolved`].
    pub(super) fn resolve(&mut self, progress: &dyn Progress) -> Result<()> {
        let mut done = Ok(());
        self.visit_paths(&mut |path, kind| {
            // The first failure is the one to tell, and nothing is fetched after it.
            if done.is_err() {
                return;
            }
            let found = match kind {
                None => embedded::resolve(path),
                Some(_) => named::encoder(path, progress),
            };
            match found {
                Ok(found) => *path = found,
                Err(error) => done = Err(error),
            }
        });
        done
    }

    /// What the fields say, in words: `sampling.rho = 1`.
    pub fn changes(&self) -> String {
        let sections = [("sampling", &self.sampling), ("data", &self.data), ("train", &self.train)];
        let all = sections.iter().flat_map(|(section, fields)| {
            fields.iter().map(move |(name, value)| format!("{section}.{name} = {value}"))
        });
        all.collect::<Vec<_>>().join(", ")
    }

    fn check_name(&self) -> Result<()> {
        let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let reserved = ["", ".", "..", "baseline", "control"].contains(&self.name.as_str());
        // Two underscores separate a cell's encoder and threshold, and a model's seed.
        if reserved || self.name.contains("__") || !self.name.chars().all(safe) {
            let message = format!(
                "is {:?}, expected letters, digits, '.', '_' and '-', no \"__\", and neither baseline nor control",
                self.name
            );
            return Err(Error::invalid("configuration", "field variant.name", message));
        }
        Ok(())
    }
}

/// A section with some fields replaced.
fn replaced<T: Serialize + DeserializeOwned>(
    section: &T,
    fields: &Map<String, Value>,
    place: impl Fn() -> String,
) -> Result<T> {
    let invalid =
        |error: serde_json::Error| Error::invalid("configuration", place(), error.to_string());
    let mut value = serde_json::to_value(section).map_err(invalid)?;
    if let Value::Object(all) = &mut value {
        all.extend(fields.clone());
    }
    serde_json::from_value(value).map_err(invalid)
}

impl Config {
    /// The default cell's places among the encoders, whose names are given, and the thresholds.
    ///
    /// # Errors
    /// `ablation.default_cell` names none of the grid's.
    pub fn default_cell(&self, encoders: &[String]) -> Result<(usize, usize)> {
        let thresholds = &self.grid.thresholds;
        let Some(name) = &self.ablation.default_cell else {
            return Ok((0, nearest_to_paper(thresholds).unwrap_or(0)));
        };
        let mut labels = Vec::new();
        for (i, encoder) in encoders.iter().enumerate() {
            for (j, &threshold) in thresholds.iter().enumerate() {
                let label = label(encoder, threshold);
                if label == *name {
                    return Ok((i, j));
                }
                labels.push(label);
            }
        }
        let message = format!("is {name:?}, expected one of {}", labels.join(", "));
        Err(Error::invalid("configuration", "field ablation.default_cell", message))
    }

    /// The configuration of each variant: the default cell alone, with the variant's settings. `run.out` is the folder
    /// whose `cells` have its pairs.
    ///
    /// # Errors
    /// A name that is taken or unfit, and fields that are unknown or outside their ranges, each named.
    pub fn variants(&self) -> Result<Vec<(&Variant, Config)>> {
        let mut all: Vec<(&Variant, Config)> = Vec::new();
        if self.variants.is_empty() {
            return Ok(all);
        }
        let name = |path: &PathBuf| Choice::parse(path).map(|choice| choice.name());
        let names = self.grid.encoders.iter().map(name).collect::<Result<Vec<_>>>()?;
        let (encoder, threshold) = self.default_cell(&names)?;
        for variant in &self.variants {
            variant.check_name()?;
            if all.iter().any(|(other, _)| other.name == variant.name) {
                let message = format!("{:?} is given twice", variant.name);
                return Err(Error::invalid("configuration", "field variant.name", message));
            }
            let place = |section: &str| format!("variant {:?}, {section}", variant.name);
            let mut own = Self {
                sampling: replaced(&self.sampling, &variant.sampling, || place("sampling"))?,
                data: replaced(&self.data, &variant.data, || place("data"))?,
                train: replaced(&self.train, &variant.train, || place("train"))?,
                variants: Vec::new(),
                ..self.clone()
            };
            own.grid.encoders = vec![self.grid.encoders[encoder].clone()];
            own.grid.thresholds = vec![self.grid.thresholds[threshold]];
            own.ablation.default_cell = None;
            if variant.samples() {
                own.run.out = folder(&self.run.out, &variant.name);
            }
            own.validate().map_err(|error| {
                let place = format!("variant {:?}", variant.name);
                Error::invalid("configuration", place, error.to_string())
            })?;
            all.push((variant, own));
        }
        Ok(all)
    }

    /// The run itself, then those of its variants that have pairs of their own.
    ///
    /// # Errors
    /// As [`Config::variants`].
    pub fn runs(&self) -> Result<Vec<Config>> {
        let variants = self.variants()?.into_iter();
        let own = variants.filter(|(variant, _)| variant.samples()).map(|(_, config)| config);
        Ok(std::iter::once(self.clone()).chain(own).collect())
    }
}

/// The folder of a variant's own run.
fn folder(run: &Path, name: &str) -> PathBuf {
    run.join("variants").join(name)
}
