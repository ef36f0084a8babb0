//! Prediction files, and which answer belongs to which item.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::{
    Benchmark, Item, Settings, Spec,
    rows::{self, Rows},
};
use crate::{
    Error, Result,
    data::json::{Object, kind},
};

/// One row of a prediction file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// Id in the file; none in files that go by order.
    pub id: Option<String>,
    /// The question or prompt, where the row repeats it.
    pub prompt: Option<String>,
    /// The image, where the row names it.
    pub image: Option<String>,
    /// The answer.
    pub text: String,
    /// Line, from 1; entry number in files that map ids to answers.
    pub line: usize,
}

/// Fields that may repeat the question.
const PROMPTS: [&str; 2] = ["prompt", "question"];

/// Reads a prediction file: rows with an id and a text field of the metric's, or an object from ids to texts.
///
/// # Errors
/// If the file cannot be read, or a row has no answer or an unusable id; the message names line and field.
pub fn read(path: &Path, spec: &Spec) -> Result<Vec<Prediction>> {
    let fields: Vec<&str> = spec.ids.iter().chain(spec.texts).copied().collect();
    let rows = match rows::read(path, &fields)? {
        Rows::Objects(objects) => {
            objects.iter().map(|object| prediction(object, spec)).collect::<Result<Vec<_>>>()?
        }
        Rows::Entries(entries) => entries
            .into_iter()
            .zip(1..)
            .map(|((id, value), line)| match value {
                Value::String(text) => {
                    Ok(Prediction { id: Some(id), prompt: None, image: None, text, line })
                }
                other => Err(Error::invalid(
                    path,
                    format!("entry {id:?}"),
                    format!("is {}, expected the answer as a string", kind(&other)),
                )),
            })
            .collect::<Result<Vec<_>>>()?,
    };
    if rows.is_empty() {
        return Err(Error::invalid(path, "", "has no rows, expected one a question"));
    }
    Ok(rows)
}

fn prediction(object: &Object, spec: &Spec) -> Result<Prediction> {
    let id = match spec.ids.iter().find(|name| object.get(name).is_some()) {
        Some(name) => Some(object.name(name)?),
        None => None,
    };
    let Some(field) = spec.texts.iter().find(|name| object.fields().contains_key(**name)) else {
        let expected = spec.texts.join(", ");
        return Err(object.error(spec.texts[0], format!("is missing, expected one of {expected}")));
    };
    let text = object.string(field)?.to_owned();
    let string = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
    let prompt = PROMPTS.iter().filter(|name| *name != field).find_map(|name| string(name));
    Ok(Prediction { id, prompt, image: string("image"), text, line: object.line })
}

/// What a prediction file gives to a benchmark's items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// In the items' order.
    pub answers: Vec<Option<String>>,
    /// Items without an answer.
    pub missing: usize,
    /// Rows that answer no item.
    pub extra: usize,
}

/// Gives each item its answer. Rows with ids may come in any order; rows without go by order, and where they repeat the
/// question it must be the item's.
///
/// # Errors
/// On an id that is there twice, on rows without ids that do not fit the items, and, unless the settings allow them, on
/// missing and extra answers.
pub fn join(
    benchmark: &dyn Benchmark,
    rows: Vec<Prediction>,
    path: &Path,
    settings: &Settings,
) -> Result<Joined> {
    let items = benchmark.items();
    if rows.iter().all(|row| row.id.is_none()) {
        return by_order(items, rows, path);
    }
    let mut keyed: Vec<(String, Prediction)> = Vec::with_capacity(rows.len());
    for row in rows {
        let key = match (benchmark.key(&row)?, &row.id) {
            (Some(key), _) => key,
            (None, Some(id)) => id.clone(),
            (None, None) => {
                let message = "has no id, but other rows have one";
                return Err(Error::invalid(path, format!("line {}", row.line), message));
            }
        };
        keyed.push((key, row));
    }
    let places: HashMap<&str, usize> =
        items.iter().zip(0..).map(|(item, i)| (item.id.as_str(), i)).collect();
    let mut joined = Joined { answers: vec![None; items.len()], ..Joined::default() };
    // Lines that answer items, by place, and those that answer nothing, by key.
    let mut lines = vec![None; items.len()];
    let mut others: HashMap<String, usize> = HashMap::new();
    for (key, row) in keyed {
        let error = |message: String| Error::invalid(path, format!("line {}", row.line), message);
        let first = match places.get(key.as_str()) {
            Some(&i) => {
                joined.answers[i] = Some(row.text);
                lines[i].replace(row.line)
            }
            None if settings.allow_extra => {
                joined.extra += 1;
                others.insert(key.clone(), row.line)
            }
            None => {
                let shown = key.escape_debug();
                return Err(error(format!(
                    "answers \"{shown}\", which the benchmark does not ask; --allow-extra skips such rows"
                )));
            }
        };
        if let Some(first) = first {
            return Err(error(format!(
                "answers {key:?} again, after line {first}; expected one answer a question"
            )));
        }
    }
    if !benchmark.open_ended() {
        refuse_missing(&mut joined, items, path, settings)?;
    }
    Ok(joined)
}

fn refuse_missing(
    joined: &mut Joined,
    items: &[Item],
    path: &Path,
    settings: &Settings,
) -> Result<()> {
    let absent: Vec<&str> = items
        .iter()
        .zip(&joined.answers)
        .filter(|(_, answer)| answer.is_none())
        .map(|(item, _)| item.id.as_str())
        .collect();
    joined.missing = absent.len();
    if absent.is_empty() || settings.allow_missing {
        return Ok(());
    }
    let shown: Vec<&str> = absent.iter().take(5).copied().collect();
    let more = if absent.len() > shown.len() { ", ..." } else { "" };
    Err(Error::invalid(
        path,
        "",
        format!(
            "has no answer for {} of {} questions ({}{more}); --allow-missing scores them as empty answers",
            absent.len(),
            items.len(),
            shown.join(", "),
        ),
    ))
}

fn by_order(items: &[Item], rows: Vec<Prediction>, path: &Path) -> Result<Joined> {
    if rows.len() != items.len() {
        return Err(Error::invalid(
            path,
            "",
            format!(
                "has {} rows without ids, expected {}: one a question, in the benchmark's order",
                rows.len(),
                items.len()
            ),
        ));
    }
    for (item, row) in items.iter().zip(&rows) {
        if let Some(prompt) = &row.prompt
            && !prompt.contains(item.question.trim())
        {
            return Err(Error::invalid(
                path,
                format!("line {}", row.line),
                format!(
                    "answers {prompt:?}, but question {:?} is {:?}; rows without ids go by order",
                    item.id, item.question
                ),
            ));
        }
    }
    let answers = rows.into_iter().map(|row| Some(row.text)).collect();
    Ok(Joined { answers, missing: 0, extra: 0 })
}
