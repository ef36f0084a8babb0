//! Which models an ablation trains and judges: one a set of pairs, not one a cell.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sweep::Config;
use crate::sweep::grid::label;
use crate::train::{Loss, Pair, Settings, read_pairs};
use crate::{Error, Result};

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
    /// Its pairs' file, unless it is the baseline.
    pub pairs: Option<PathBuf>,
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
    /// A cell without pairs (the run is not decided), or a default cell that the grid does not have.
    pub fn new(config: &Config, encoders: &[String]) -> Result<Self> {
        let mut models =
            vec![Model { name: BASELINE.to_owned(), kind: Kind::Baseline, seed: 0, pairs: None }];
        let mut cells = Vec::new();
        // Model by what its training would be made of.
        let mut known: HashMap<blake3::Hash, usize> = HashMap::new();
        for encoder in encoders {
            for &threshold in &config.grid.thresholds {
                let cell = label(encoder, threshold);
                let path = pairs_file(&config.run.out, &cell);
                let pairs = read_pairs(&path, Some(config.data.image_folder()))?;
                let next = models.len();
                let place = *known.entry(content(&pairs, &config.train)).or_insert(next);
                if place == next {
                    let (kind, seed) = (Kind::Cells(Vec::new()), config.train.seed);
                    models.push(Model { name: cell.clone(), kind, seed, pairs: Some(path) });
                }
                if let Kind::Cells(cells) = &mut models[place].kind {
                    cells.push(cell.clone());
                }
                let (encoder, model) = (encoder.clone(), models[place].name.clone());
                cells.push(CellModel { cell, encoder, threshold, model });
            }
        }
        let default = default_cell(config, &cells)?;
        let mut plan = Self { default: cells[default].model.clone(), models, cells };
        plan.repeat(config, default);
        Ok(plan)
    }

    /// Adds the other seeds of the default cell, and the control.
    fn repeat(&mut self, config: &Config, default: usize) {
        let cell = self.cells[default].cell.clone();
        let pairs = Some(pairs_file(&config.run.out, &cell));
        let mut add = |stem: &str, kind: &Kind, skip: u32| {
            for more in skip..config.ablation.seeds {
                let seed = config.train.seed + u64::from(more);
                let name = seeded(stem, more);
                self.models.push(Model { name, kind: kind.clone(), seed, pairs: pairs.clone() });
            }
        };
        add(&self.default.clone(), &Kind::Cells(vec![cell]), 1);
        if config.ablation.control {
            add(CONTROL, &Kind::Control, 0);
        }
    }

    /// Models of the default cell, one a seed.
    pub fn defaults(&self, seeds: u32) -> Vec<String> {
        (0..seeds).map(|more| seeded(&self.default, more)).collect()
    }

    /// Models of the control, one a seed.
    pub fn controls(&self, seeds: u32) -> Vec<String> {
        let names = (0..seeds).map(|more| seeded(CONTROL, more));
        names.filter(|name| self.models.iter().any(|model| model.name == *name)).collect()
    }
}

impl Model {
    /// The settings of its training.
    pub fn settings(&self, config: &Config) -> Settings {
        let mut settings = Settings { seed: self.seed, ..config.train.clone() };
        if self.kind == Kind::Control {
            settings.loss = Loss::Sft;
            settings.online = None;
            if let Some(rate) = config.ablation.control_learning_rate {
                settings.learning_rate = rate;
            }
        }
        settings
    }
}

fn seeded(stem: &str, more: u32) -> String {
    if more == 0 { stem.to_owned() } else { format!("{stem}__seed{more}") }
}

fn pairs_file(run: &Path, cell: &str) -> PathBuf {
    run.join("cells").join(cell).join("pairs.jsonl")
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

fn default_cell(config: &Config, cells: &[CellModel]) -> Result<usize> {
    /// The paper's threshold.
    const EPS: f64 = 0.97;
    if let Some(name) = &config.ablation.default_cell {
        return cells.iter().position(|cell| cell.cell == *name).ok_or_else(|| {
            let all: Vec<&str> = cells.iter().map(|cell| cell.cell.as_str()).collect();
            let message = format!("is {name:?}, expected one of {}", all.join(", "));
            Error::invalid("configuration", "field ablation.default_cell", message)
        });
    }
    let first = config.grid.thresholds.len();
    let away = |i: &usize| (cells[*i].threshold - EPS).abs();
    Ok((0..first).min_by(|a, b| away(a).total_cmp(&away(b))).unwrap_or(0))
}
