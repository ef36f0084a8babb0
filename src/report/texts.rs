//! What the samples of a run say: from its exports, else from its data file.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    Error, Result,
    config::Config,
    data::Dataset,
    models::{IMAGE, Role},
    sweep::grid::Cell,
};

/// A sample's prompt and reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub id: String,
    /// Relative to the image folder, or absolute.
    pub images: Vec<PathBuf>,
    /// Who says what, in order.
    pub prompt: Vec<(String, String)>,
    pub reference: String,
}

/// The columns of an export that are needed here.
#[derive(Deserialize)]
struct Row {
    id: String,
    sample: u32,
    images: Vec<PathBuf>,
    prompt: Vec<Message>,
    chosen: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Vec<Content>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    text: Option<String>,
}

impl Message {
    fn text(&self) -> String {
        let texts: Vec<&str> = self.content.iter().filter_map(|c| c.text.as_deref()).collect();
        texts.join(" ")
    }
}

/// The texts of `samples` as the exports of a run have them. An export may leave flagged pairs out, so more cells are
/// read until all samples are known.
pub(super) fn from_exports(
    folder: &Path,
    cells: &[Cell],
    samples: usize,
) -> Result<BTreeMap<u32, Text>> {
    let mut texts = BTreeMap::new();
    for cell in cells {
        if texts.len() >= samples {
            break;
        }
        let path = folder.join("cells").join(cell.label()).join("pairs.jsonl");
        let Ok(file) = std::fs::File::open(&path) else { continue };
        for (number, line) in (1..).zip(BufReader::new(file).lines()) {
            let line = line.map_err(Error::io(&path))?;
            let row: Row = serde_json::from_str(&line).map_err(|error| {
                Error::invalid(&path, format!("line {number}"), error.to_string())
            })?;
            texts.entry(row.sample).or_insert_with(|| Text {
                id: row.id,
                images: row.images,
                prompt: row.prompt.iter().map(|m| (m.role.clone(), m.text())).collect(),
                reference: row.chosen.iter().map(Message::text).collect(),
            });
        }
    }
    Ok(texts)
}

/// The texts of a run's data file.
pub(super) fn from_dataset(config: &Config) -> Result<BTreeMap<u32, Text>> {
    let dataset = Dataset::list(&config.data.file.0, &config.data.options(false))?;
    let role = |role: Role| match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let mut texts = BTreeMap::new();
    for sample in dataset.read_lazily(0..dataset.len())? {
        let turns = sample.turns.iter();
        let prompt = turns
            .map(|turn| (role(turn.role).to_owned(), turn.text.replace(IMAGE, "").trim().into()))
            .collect();
        let images = sample.images.iter().map(|image| image.name().to_owned()).collect();
        let text = Text { id: sample.id, images, prompt, reference: sample.reference };
        texts.insert(sample.index, text);
    }
    Ok(texts)
}
