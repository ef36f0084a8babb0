//! A benchmark's questions answered by a model of one's own: predictions first, as a file, then the score.
//!
//! `predictions.jsonl` gets a row `{"question_id", "image", "prompt", "text", "model_id", "tokens", "stop"}` for each answer as soon
//! as it is there; `run.json` says what they were made with. Questions about one image are answered
//! together, so rows come in another order than the benchmark's; once all are there, they are brought
//! into that order. An interrupted run goes on where it stopped: rows that are there are kept, a row
//! that was cut off is dropped, and another model, prompt or limit is refused.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    Files, Metric, Settings,
    evaluate::open,
    folder::{IMAGES, claim, find_image},
};
use crate::{
    Error, Result,
    append::AppendFile,
    engine::{Answer, Answerer, Answering, Images, Progress, Question},
    files::write_file,
    models::Model,
};

/// Where a model's answers come from and go to.
#[derive(Clone, Copy)]
pub struct Folders<'a> {
    /// Images, by the benchmark's names.
    pub images: &'a Path,
    /// `run.json` and `predictions.jsonl`.
    pub out: &'a Path,
    /// Features of images that other metrics or models asked about.
    pub features: &'a RefCell<Images>,
}

/// Answers a metric's questions and returns the prediction file. The token limit is that of the settings or the metric.
///
/// # Errors
/// If a benchmark's file or an image is missing, the folder holds answers of another run, or generation fails.
pub fn answer_items(
    metric: &dyn Metric,
    files: &Files,
    settings: &Settings,
    model: &Model,
    folders: Folders,
    mut answering: Answering,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let spec = metric.spec();
    let benchmark = open(metric, files, settings)?;
    metric.can_ask(files, settings)?;
    let (items, Folders { images, out, features }) = (benchmark.items(), folders);
    let limit = metric.max_new_tokens(spec.protocol(settings.protocol)?);
    answering.max_new_tokens = settings.max_new_tokens.unwrap_or(limit);
    let questions = items
        .iter()
        .map(|item| {
            let image = item.image.as_deref().map(|name| find_image(images, name)).transpose()?;
            Ok(Question { id: item.id.clone(), image, text: item.prompt.clone() })
        })
        .collect::<Result<Vec<_>>>()?;
    let name = model.dir().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prompts: Vec<&str> = items.iter().map(|item| item.prompt.as_str()).collect();
    let run = json!({
        "metric": spec.name,
        "model": name,
        "model_fingerprint": model.fingerprint()?,
        "prompts": blake3::hash(json!(prompts).to_string().as_bytes()).to_hex().to_string(),
        "max_new_tokens": answering.max_new_tokens,
        "rho": answering.rho,
        "seed": answering.seed,
        IMAGES: images,
    });
    let path = out.join("predictions.jsonl");
    // A second process that answers the same questions hears of it here.
    let (mut file, rows) = AppendFile::open(&path)?;
    claim(&out.join("run.json"), &run)?;
    let known: HashSet<&str> =
        rows.iter().filter_map(|(_, row)| row["question_id"].as_str()).collect();
    let open = |i: usize| !known.contains(items[i].id.as_str());
    let answerer = Answerer { model, answering, images: &mut features.borrow_mut() };
    answerer.answer(&questions, &open, progress, |answers| {
        let row = |answer: &Answer| {
            let item = &items[answer.question];
            json!({
                "question_id": item.id,
                "image": item.image,
                "prompt": item.prompt,
                "text": answer.text,
                "model_id": name,
                "tokens": answer.tokens,
                "stop": answer.stop,
            })
        };
        let rows: Vec<Value> = answers.iter().map(row).collect();
        file.append(&rows)
    })?;
    in_order(&path, items.iter().map(|item| item.id.as_str()))?;
    Ok(path)
}

/// Brings the rows of a file into the order of these ids; those of other ids, or of an id once
/// more, come after them.
fn in_order<'a>(path: &Path, ids: impl Iterator<Item = &'a str>) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let places: HashMap<&str, usize> = ids.zip(0..).collect();
    let mut rows = Vec::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).map_err(|error| {
            Error::invalid(path, "", format!("has a row that is not valid JSON: {error}"))
        })?;
        let place = row["question_id"].as_str().and_then(|id| places.get(id));
        rows.push((place.copied().unwrap_or(usize::MAX), line));
    }
    if rows.is_sorted_by_key(|(place, _)| *place) {
        return Ok(());
    }
    rows.sort_by_key(|(place, _)| *place);
    let sorted: String = rows.into_iter().map(|(_, line)| format!("{line}\n")).collect();
    write_file(path, sorted.as_bytes())
}
