//! Which models an ablation trains and judges: one a set of pairs, not one a cell.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::config::{Config, label};
use crate::sampling::SamplingConfig;
use crate::train::{Loss, Pair, Settings, read_exported};

/// What a model of the ablation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The initial weights.
    Baseline,
    /// Trained on the pairs of these cells, whose pairs are the same.
    Cells(Vec<String>),
    /// Trained on the default cell's chosen answers alone.
    Control,
    /// The default cell under the settings of the variant of this name.
    Variant(String),
}

/// A model to be trained and judged.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its name, and that of its folders.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Seed of its training.
    pub seed: u64,
    /// What it is trained on, and how; none for the baseline.
    pub training: Option<Training>,
}

/// A model's training.
#[derive(Clone, Debug)]
pub struct Training {
    /// The pairs' file.
    pub pairs: PathBuf,
    /// The folder that its image paths are relative to.
    pub images: PathBuf,
    /// Settings, the seed among them.
    pub settings: Settings,
    /// The method's settings, for `train.online`.
    pub sampling: SamplingConfig,
}

impl Training {
    /// On a cell's pairs of a run, by the run's settings.
    fn of(config: &Config, cell: &str) -> Self {
        Self {
            pairs: config.run.out.join("cells").join(cell).join("pairs.jsonl"),
            images: config.data.image_folder().to_owned(),
            settings: config.train.clone(),
            sampling: config.sampling.clone(),
        }
    }

    fn read(&self) -> Result<Vec<Pair>> {
        read_exported(&self.pairs, &self.images)
    }

    /// The control: the chosen answers alone.
    fn supervised(mut self, learning_rate: Option<f64>) -> Self {
        self.settings.loss = Loss::Sft;
        self.settings.online = None;
        self.settings.learning_rate = learning_rate.unwrap_or(self.settings.learning_rate);
        self
    }
}

/// A cell of the grid and the model that answers for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellModel {
    /// The cell's label.
    pub cell: String,
    /// Its encoder.
    pub encoder: String,
    /// Its threshold.
    pub threshold: f64,
    /// The model trained on its pairs.
    pub model: String,
}

/// All models of an ablation, the baseline first, and the cells in the grid's order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is trained and judged.
    pub models: Vec<Model>,
    /// Who answers for which cell.
    pub cells: Vec<CellModel>,
    /// The model of the default cell.
    pub default: String,
}

/// Name of the baseline.
pub const BASELINE: &str = "baseline";
/// Name of the control's first model.
pub const CONTROL: &str = "control";

impl Plan {
    /// The plan for a decided run: reads the pairs of every cell. `encoders` are the grid's, by name.
    ///
    /// # Errors
    /// A cell without pairs (the run is not decided), a default cell that the grid does not have, a variant that does not fit.
    pub fn new(config: &Config, encoders: &[String]) -> Result<Self> {
        let baseline =
            Model { name: BASELINE.to_owned(), kind: Kind::Baseline, seed: 0, training: None };
        let (encoder, threshold) = config.default_cell(encoders)?;
        let default = encoder * config.grid.thresholds.len() + threshold;
        let mut plan = Self { models: vec![baseline], cells: Vec::new(), default: String::new() };
        // Model by what its training would be made of.
        let mut known: HashMap<blake3::Hash, usize> = HashMap::new();
        for encoder in encoders {
            for &threshold in &config.grid.thresholds {
                let cell = label(encoder, threshold);
                let training = Training::of(config, &cell);
                let next = plan.models.len();
                let pairs = content(&training.read()?, &config.train);
                let place = *known.entry(pairs).or_insert(next);
                if place == next {
                    plan.add(&cell, 0, Kind::Cells(Vec::new()), training);
                }
                if let Kind::Cells(cells) = &mut plan.models[place].kind {
                    cells.push(cell.clone());
                }
                let (encoder, model) = (encoder.clone(), plan.models[place].name.clone());
                plan.cells.push(CellModel { cell, encoder, threshold, model });
            }
        }
        plan.default = plan.cells[default].model.clone();
        plan.repeat(config, default)?;
        Ok(plan)
    }

    /// Adds the other seeds of the default cell, the control, and the variants.
    fn repeat(&mut self, config: &Config, default: usize) -> Result<()> {
        let cell = self.cells[default].cell.clone();
        let training = Training::of(config, &cell);
        let (stem, kind) = (self.default.clone(), Kind::Cells(vec![cell.clone()]));
        for more in 1..config.ablation.seeds {
            self.add(&stem, more, kind.clone(), training.clone());
        }
        if config.ablation.control {
            let training = training.supervised(config.ablation.control_learning_rate);
            for more in 0..config.ablation.seeds {
                self.add(CONTROL, more, Kind::Control, training.clone());
            }
        }
        for (variant, own) in config.variants()? {
            let training = Training::of(&own, &cell);
            training.read()?;
            for more in 0..config.ablation.seeds {
                self.add(
                    &variant.name,
                    more,
                    Kind::Variant(variant.name.clone()),
                    training.clone(),
                );
            }
        }
        Ok(())
    }

    /// Adds a model with the seed that is `more` than the training's.
    fn add(&mut self, stem: &str, more: u32, kind: Kind, mut training: Training) {
        training.settings.seed += u64::from(more);
        let (name, seed) = (seeded(stem, more), training.settings.seed);
        self.models.push(Model { name, kind, seed, training: Some(training) });
    }

    /// Models of a stem, one a seed: of [`Plan::default`], [`CONTROL`] or a variant. None if there are none.
    pub fn seeds(&self, stem: &str) -> Vec<String> {
        let names = (0..).map(|more| seeded(stem, more));
        names.take_while(|name| self.models.iter().any(|model| model.name == *name)).collect()
    }

    /// Names of the variants, in order.
    pub fn variants(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for model in &self.models {
            if let Kind::Variant(name) = &model.kind
                && !names.contains(name)
            {
                names.push(name.clone());
            }
        }
        names
    }
}

fn seeded(stem: &str, more: u32) -> String {
    if more == 0 { stem.to_owned() } else { format!("{stem}__seed{more}") }
}

/// A hash of what a training on pairs sees of them.
fn content(pairs: &[Pair], settings: &Settings) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for pair in pairs.iter().filter(|pair| !(settings.exclude_flagged && pair.is_flagged())) {
        let all = format!("{:?}", (&pair.images, &pair.turns, &pair.chosen, &pair.rejected));
        hasher.update(&(all.len() as u64).to_le_bytes()).update(all.as_bytes());
    }
    hasher.finalize()
}
