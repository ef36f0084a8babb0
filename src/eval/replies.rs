//! Replies of a judge, from the files that reference scripts and this crate write.
//!
//! - ours: rows `{"id", "run", "content", "model"}` (`run` from 0; absent = 0), as [`super::judge`] stores them: rows whose `kind` is
//!   not `reply` are skipped, and of several attempts the last counts;
//! - LLaVA's reviews: rows `{"question_id", "content", "tuple"}`, one file a run;
//! - MM-Vet's grades: `{"v1_0": {"model": [...], "content": [...], "score": [...]}}`, one entry a run in each list;
//! - MMHal's and RLAIF's: a list of chat completions (`{"model", "choices": [{"message": {"content"}}]}`), in item order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{
    Item,
    rows::{self, Rows},
};
use crate::{
    Error, Result,
    data::json::{Object, kind},
};

/// What a judge wrote about one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The text, unchanged.
    pub content: String,
    /// The model that the service named.
    pub model: Option<String>,
}

/// Reads reply files. A file may hold several runs; the runs of several files follow one another.
///
/// # Errors
/// If a file cannot be read or is of none of the kinds, a reply is for no item or there twice; the message names line and id.
pub(super) fn read(paths: &[PathBuf], items: &[Item]) -> Result<Vec<Vec<Option<Reply>>>> {
    let mut runs = Vec::new();
    for path in paths {
        runs.extend(read_file(path, items)?);
    }
    Ok(runs)
}

fn read_file(path: &Path, items: &[Item]) -> Result<Vec<Vec<Option<Reply>>>> {
    let mut store =
        Store { items, path, runs: Vec::new(), places: HashMap::new(), attempts: HashMap::new() };
    for (i, item) in items.iter().enumerate() {
        store.places.insert(&item.id, i);
    }
    match rows::read(path, &["choices", "content", "question_id", "id"])? {
        Rows::Entries(entries) => {
            for (id, entry) in entries {
                store.grades(&id, &entry)?;
            }
        }
        Rows::Objects(objects) if objects.iter().any(|row| row.get("choices").is_some()) => {
            store.completions(&objects)?;
        }
        Rows::Objects(objects) => {
            for object in &objects {
                store.row(object)?;
            }
        }
    }
    if store.runs.is_empty() {
        return Err(Error::invalid(path, "", "has no replies, expected one an item"));
    }
    Ok(store.runs)
}

struct Store<'a> {
    items: &'a [Item],
    path: &'a Path,
    runs: Vec<Vec<Option<Reply>>>,
    places: HashMap<&'a str, usize>,
    /// The last attempt read of each item and run, where rows number them.
    attempts: HashMap<(String, usize), u64>,
}

impl Store<'_> {
    fn put(&mut self, at: String, id: &str, run: usize, reply: Reply) -> Result<()> {
        let Some(&place) = self.places.get(id) else {
            let message = format!("is a reply about {id:?}, which the benchmark does not ask");
            return Err(Error::invalid(self.path, at, message));
        };
        if run >= 1000 {
            let message = format!("field run is {run}, expected below 1000");
            return Err(Error::invalid(self.path, at, message));
        }
        while self.runs.len() <= run {
            self.runs.push(vec![None; self.items.len()]);
        }
        if self.runs[run][place].replace(reply).is_some() {
            let message = format!("is a second reply about {id:?} in run {run}, expected one");
            return Err(Error::invalid(self.path, at, message));
        }
        Ok(())
    }

    /// A row of ours or of LLaVA's reviews.
    fn row(&mut self, object: &Object) -> Result<()> {
        if object.get("kind").is_some_and(|kind| kind != "reply") {
            return Ok(());
        }
        let field = if object.get("question_id").is_some() { "question_id" } else { "id" };
        let id = object.name(field)?;
        let run = match object.get("run") {
            None => 0,
            Some(run) => {
                run.as_u64().and_then(|run| usize::try_from(run).ok()).ok_or_else(|| {
                    object.error("run", format!("is {}, expected a whole number", kind(run)))
                })?
            }
        };
        let content = match object.fields().get("content") {
            Some(Value::String(content)) => content.clone(),
            Some(other) => {
                return Err(object
                    .error("content", format!("is {}, expected the reply's text", kind(other))));
            }
            None => return Err(object.error("content", "is missing, expected the reply's text")),
        };
        let model = object.get("model").and_then(Value::as_str).map(str::to_owned);
        if let Some(attempt) = object.get("attempt").and_then(Value::as_u64) {
            let last = self.attempts.entry((id.clone(), run)).or_insert(attempt);
            if attempt < *last {
                return Ok(());
            }
            if attempt > *last {
                *last = attempt;
                if let Some(&place) = self.places.get(id.as_str()) {
                    self.runs[run][place] = None;
                }
            }
        }
        self.put(format!("line {}", object.line), &id, run, Reply { content, model })
    }

    /// One item's lists of MM-Vet's grade file.
    fn grades(&mut self, id: &str, entry: &Value) -> Result<()> {
        let at = format!("entry {id:?}");
        let Some(contents) = entry.get("content").and_then(Value::as_array) else {
            let message = "has no list content, expected one reply a run";
            return Err(Error::invalid(self.path, at, message));
        };
        for (run, content) in contents.iter().enumerate() {
            let Some(text) = content.as_str() else {
                let message = format!("content[{run}] is {}, expected a string", kind(content));
                return Err(Error::invalid(self.path, at, message));
            };
            let model = entry.get("model").and_then(|models| models.get(run)?.as_str());
            let reply = Reply { content: text.to_owned(), model: model.map(str::to_owned) };
            self.put(at.clone(), id, run, reply)?;
        }
        Ok(())
    }

    /// Chat completions in item order.
    fn completions(&mut self, objects: &[Object]) -> Result<()> {
        if objects.len() != self.items.len() {
            let message = format!(
                "has {} chat completions, expected {}: one an item, in order",
                objects.len(),
                self.items.len()
            );
            return Err(Error::invalid(self.path, "", message));
        }
        for (item, object) in self.items.iter().zip(objects) {
            let message = object.get("choices").and_then(|choices| choices.get(0)?.get("message"));
            let Some(message) = message else {
                return Err(object.error("choices[0].message", "is missing, expected the reply"));
            };
            // A refusal has no content; it is a reply that no rule finds a score in.
            let content = message.get("content").and_then(Value::as_str).unwrap_or_default();
            let model = object.get("model").and_then(Value::as_str).map(str::to_owned);
            let reply = Reply { content: content.to_owned(), model };
            self.put(format!("line {}", object.line), &item.id, 0, reply)?;
        }
        Ok(())
    }
}
