//! Replies of a judge, from the files that reference scripts and this crate write.
//!
//! - ours: rows `{"id", "run", "content", "model"}` (`run` from 0; absent = 0), as [`super::judge`] stores them: rows whose `kind` is
//!   not `reply` are skipped, and of several attempts the last counts;
//! - LLaVA's reviews: rows `{"question_id", "content", "tuple"}`, one file a run;
//! - MM-Vet's grades: `{"v1_0": {"model": [...], "content": [...], "score": [...]}}`, one entry a run in each list;
//! - MMHal's and RLAIF's: a list of chat completions (`{"model", "choices": [{"message": {"content"}}]}`), in item order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Given, Item, Scored,
    judge::{graded, text_of},
    rows::{self, Rows},
};
use crate::{
    Error, Result,
    data::json::{Object, kind},
};

/// Why a reply ended that reached its limit of tokens.
const LENGTH: &str = "length";

/// What a judge wrote about one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// What rules read: the text without its thoughts and fence ([`graded`]), otherwise unchanged.
    pub content: String,
    /// The model that the service named.
    pub model: Option<String>,
    /// It ended because its limit of tokens was reached.
    pub cut: bool,
    /// It was asked for without a temperature, which the service does not take.
    pub no_temperature: bool,
}

/// How a judge's replies came out: what stands next to every judged score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replies {
    /// One an item and run.
    pub total: u64,
    /// Of these, in which the protocol finds no grade.
    pub no_grade: u64,
    /// Of those without a grade, cut by their limit of tokens.
    pub cut: u64,
    /// Requests that failed; they were asked again.
    pub failed: u64,
    /// Replies to requests without a temperature, since the service takes none.
    pub no_temperature: u64,
}

impl Replies {
    /// Counts what was scored.
    pub(super) fn of(given: &Given, scored: &Scored) -> Self {
        let reply = |&(item, run): &(usize, usize)| given.replies[run][item].as_ref();
        let all = || given.replies.iter().flatten().flatten();
        Self {
            total: all().count() as u64,
            no_grade: scored.ungraded.len() as u64,
            cut: scored.ungraded.iter().filter_map(reply).filter(|reply| reply.cut).count() as u64,
            failed: given.failed,
            no_temperature: all().filter(|reply| reply.no_temperature).count() as u64,
        }
    }
}

impl std::ops::AddAssign for Replies {
    fn add_assign(&mut self, more: Self) {
        self.total = self.total.saturating_add(more.total);
        self.no_grade = self.no_grade.saturating_add(more.no_grade);
        self.cut = self.cut.saturating_add(more.cut);
        self.failed = self.failed.saturating_add(more.failed);
        self.no_temperature = self.no_temperature.saturating_add(more.no_temperature);
    }
}

impl std::fmt::Display for Replies {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { total, no_grade, cut, failed, no_temperature } = *self;
        write!(f, "{total} replies, {no_grade} without a grade")?;
        if cut > 0 {
            write!(f, " ({cut} cut by their limit of tokens)")?;
        }
        write!(f, ", {failed} failed requests")?;
        if no_temperature > 0 {
            write!(f, ", {no_temperature} asked without a temperature, which the service refuses")?;
        }
        Ok(())
    }
}

/// What reply files hold.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Runs, each with a reply an item.
    pub runs: Vec<Vec<Option<Reply>>>,
    /// Rows of requests that failed.
    pub failed: u64,
}

/// Reads reply files. A file may hold several runs; the runs of several files follow one another.
///
/// # Errors
/// If a file cannot be read or is of none of the kinds, a reply is for no item or there twice; the message names line and id.
pub(super) fn read(paths: &[PathBuf], items: &[Item]) -> Result<Found> {
    let mut found = Found::default();
    for path in paths {
        let more = read_file(path, items)?;
        found.runs.extend(more.runs);
        found.failed += more.failed;
    }
    Ok(found)
}

fn read_file(path: &Path, items: &[Item]) -> Result<Found> {
    let mut store = Store {
        items,
        path,
        found: Found::default(),
        places: HashMap::new(),
        attempts: HashMap::new(),
    };
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
    if store.found.runs.is_empty() {
        return Err(Error::invalid(path, "", "has no replies, expected one an item"));
    }
    Ok(store.found)
}

struct Store<'a> {
    items: &'a [Item],
    path: &'a Path,
    found: Found,
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
        let runs = &mut self.found.runs;
        while runs.len() <= run {
            runs.push(vec![None; self.items.len()]);
        }
        if runs[run][place].replace(reply).is_some() {
            let message = format!("is a second reply about {id:?} in run {run}, expected one");
            return Err(Error::invalid(self.path, at, message));
        }
        Ok(())
    }

    /// A row of ours or of LLaVA's reviews.
    fn row(&mut self, object: &Object) -> Result<()> {
        if let Some(kind) = object.get("kind").filter(|kind| *kind != "reply") {
            self.found.failed += u64::from(kind == "failure");
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
                    self.found.runs[run][place] = None;
                }
            }
        }
        let reply = Reply {
            content: graded(&content).to_owned(),
            model,
            cut: object.get("finish").is_some_and(|finish| finish == LENGTH),
            no_temperature: object.fields().get("temperature").is_some_and(Value::is_null),
        };
        self.put(format!("line {}", object.line), &id, run, reply)
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
            let reply = Reply {
                content: graded(text).to_owned(),
                model: model.map(str::to_owned),
                ..Reply::default()
            };
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
            let choice = object.get("choices").and_then(|choices| choices.get(0));
            let Some(message) = choice.and_then(|choice| choice.get("message")) else {
                return Err(object.error("choices[0].message", "is missing, expected the reply"));
            };
            // A refusal has no content; it is a reply that no rule finds a score in.
            let content = text_of(&message["content"])
                .map_err(|reason| object.error("choices[0].message.content", reason))?;
            let reply = Reply {
                content: graded(&content).to_owned(),
                model: object.get("model").and_then(Value::as_str).map(str::to_owned),
                cut: choice.is_some_and(|choice| choice["finish_reason"] == LENGTH),
                no_temperature: false,
            };
            self.put(format!("line {}", object.line), &item.id, 0, reply)?;
        }
        Ok(())
    }
}
