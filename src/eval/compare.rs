//! Two results of one metric against each other.
//!
//! Both must be of one metric, one protocol and the same items (ids, questions, images and truths); then their difference is
//! bootstrapped on the same resamples, which is far sharper than comparing two intervals. Results of other judges, prompts, units or
//! data can be computed with, but differ by more than the model: [`Comparison::cautions`] names what differs.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    ItemScore, Outcome, Protocol, Unit, metric,
    tally::{self, Estimate, Tally},
};
use crate::{Error, Result, data::json::read_document};

/// What changed from one result to another. Field names and their order are part of the interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The metric.
    pub metric: String,
    /// Whose rules.
    pub protocol: Protocol,
    /// Items of each.
    pub items: u64,
    /// Resampled units.
    pub units: u64,
    /// What a unit is: `image` or `item`.
    #[serde(default)]
    pub unit: Unit,
    /// Resamples: no p-value is below 2 / (resamples + 1).
    #[serde(default)]
    pub resamples: u32,
    /// By statistic, the score first.
    pub scores: Map<String, Value>,
    /// Settings that are not the same: name to both values.
    pub settings: Map<String, Value>,
    /// Of these and of judges and prompts, what makes the difference one of more than the model: name to both values.
    #[serde(default)]
    pub cautions: Map<String, Value>,
    /// Items whose scores differ, in order.
    pub differing: Vec<Differing>,
}

/// One statistic of both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Value of the first.
    pub a: Option<f64>,
    /// Value of the second.
    pub b: Option<f64>,
    /// Second minus first.
    pub difference: Estimate,
    /// Two-sided bootstrap p-value of no difference.
    pub p: Option<f64>,
}

/// An item whose scores differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Differing {
    /// The item.
    pub id: String,
    /// Its category.
    pub category: String,
    /// Its image, where the benchmark names it.
    pub image: Option<String>,
    /// What was asked.
    pub question: String,
    /// The ground truth.
    pub target: Value,
    /// Answer of the first.
    pub answer_a: Option<String>,
    /// Answer of the second.
    pub answer_b: Option<String>,
    /// Score of the first.
    pub score_a: Option<f64>,
    /// Score of the second.
    pub score_b: Option<f64>,
}

/// Reads a result as `--json` or `--out` wrote it.
///
/// # Errors
/// If the file is not one.
pub fn read(path: &Path) -> Result<Outcome> {
    read_document(path)
}

/// Compares two results; `names` are for messages. Where they were drawn by other units, images are drawn if one of them did.
///
/// # Errors
/// If they are of different metrics, protocols or items, or an item is about another question, image or truth.
pub fn compare(
    a: &Outcome,
    mut b: Outcome,
    names: [&Path; 2],
    resamples: u32,
    seed: u64,
) -> Result<Comparison> {
    let other = |message: String| Error::invalid(names[1], "", message);
    if a.metric != b.metric || a.protocol != b.protocol {
        return Err(other(format!(
            "is {} under {}, but {} is {} under {}; expected one metric and one protocol",
            b.metric,
            b.protocol,
            names[0].display(),
            a.metric,
            a.protocol
        )));
    }
    let cautions = cautions(a, &b);
    let units = [a, &b].map(unit);
    let unit = if units.contains(&Unit::Image) { Unit::Image } else { Unit::Item };
    let coarse = if units[0] == unit { &a.items } else { &b.items };
    let units: HashMap<String, String> =
        coarse.iter().map(|item| (item.id.clone(), item.unit.clone())).collect();
    b.items = align(&a.items, b.items, names)?;
    let mut first = a.items.clone();
    for item in first.iter_mut().chain(&mut b.items) {
        item.unit.clone_from(units.get(&item.id).unwrap_or(&item.id));
    }
    let rules = metric(&a.metric)?;
    let (tally_a, tally_b) = (Tally::new(&first), Tally::new(&b.items));
    let of_a = rules.statistics(a.protocol, &tally_a.cells);
    let of_b = rules.statistics(b.protocol, &tally_b.cells);
    if of_a.iter().map(|s| &s.name).ne(of_b.iter().map(|s| &s.name)) {
        return Err(other("has other judge runs or categories, expected the same".to_owned()));
    }
    let changes = tally::paired((&tally_a, &of_a), (&tally_b, &of_b), resamples, seed);
    let (sums_a, sums_b) = (tally_a.sums(), tally_b.sums());
    let finite = |value: f64| value.is_finite().then_some(value);
    let mut scores = Map::new();
    for (i, (difference, p)) in changes.into_iter().enumerate() {
        let (a, b) = (finite((of_a[i].value)(&sums_a)), finite((of_b[i].value)(&sums_b)));
        scores.insert(of_a[i].name.clone(), json!(Change { a, b, difference, p }));
    }
    Ok(Comparison {
        metric: a.metric.clone(),
        protocol: a.protocol,
        items: a.items.len() as u64,
        units: tally_a.units() as u64,
        unit,
        resamples,
        scores,
        settings: differing_settings(a, &b),
        cautions,
        differing: a.items.iter().zip(&b.items).filter_map(|(a, b)| differing(a, b)).collect(),
    })
}

/// The second's items in the first's order and units.
///
/// # Errors
/// Items that only one has, and items of one id that ask something else.
pub(crate) fn align(
    a: &[ItemScore],
    b: Vec<ItemScore>,
    names: [&Path; 2],
) -> Result<Vec<ItemScore>> {
    let mut by_id: HashMap<String, ItemScore> =
        b.into_iter().map(|item| (item.id.clone(), item)).collect();
    let mut aligned = Vec::with_capacity(a.len());
    for item in a {
        let Some(mut other) = by_id.remove(&item.id) else {
            let message = format!("has no item {:?}, but {} has", item.id, names[0].display());
            return Err(Error::invalid(names[1], "", message));
        };
        same_item(item, &other, names)?;
        other.unit.clone_from(&item.unit);
        aligned.push(other);
    }
    match by_id.keys().min() {
        None => Ok(aligned),
        Some(id) => {
            let message = format!("has item {id:?}, but {} has not", names[0].display());
            Err(Error::invalid(names[1], "", message))
        }
    }
}

/// Two items of one id must ask the same: the files of two benchmarks may number their questions alike.
fn same_item(a: &ItemScore, b: &ItemScore, names: [&Path; 2]) -> Result<()> {
    // Results of older versions name neither question nor image.
    let named = |a: &str, b: &str| a.is_empty() || b.is_empty() || a == b;
    let images = [&a.image, &b.image].map(|image| image.as_deref().unwrap_or_default());
    let (what, texts) = if !named(&a.question, &b.question) {
        ("question", [a.question.clone(), b.question.clone()])
    } else if !named(images[0], images[1]) {
        ("image", images.map(str::to_owned))
    } else if a.target != b.target {
        ("truth", [&a.target, &b.target].map(Value::to_string))
    } else {
        return Ok(());
    };
    let message = format!(
        "has the {what} {:?}, but {} has {:?}: these are answers to other questions, expected the same benchmark",
        texts[1],
        names[0].display(),
        texts[0]
    );
    Err(Error::invalid(names[1], format!("item {:?}", a.id), message))
}

/// Settings that change nothing about what the numbers mean.
const HARMLESS: [&str; 5] = ["resamples", "seed", "max_new_tokens", "allow_missing", "allow_extra"];

/// What differs beside the model: data, judges, prompts, and settings that decide what is asked, parsed or resampled.
fn cautions(a: &Outcome, b: &Outcome) -> Map<String, Value> {
    let judges = |outcome: &Outcome| {
        let models = outcome.details.get("judge_models").and_then(Value::as_object);
        models.map(|models| models.keys().cloned().collect::<Vec<_>>())
    };
    let mut found = Map::new();
    if judges(a) != judges(b) {
        found.insert("judges".into(), json!([judges(a), judges(b)]));
    }
    for name in ["official_prompt", "data"] {
        let values = [a, b].map(|outcome| outcome.details.get(name).cloned().unwrap_or_default());
        if values[0] != values[1] {
            found.insert(name.into(), json!(values));
        }
    }
    let serious = |name: &str| !HARMLESS.contains(&name);
    found.extend(all_settings(a, b).into_iter().filter(|(name, _)| serious(name)));
    found
}

/// What a result's bootstrap drew.
fn unit(outcome: &Outcome) -> Unit {
    let setting = outcome.details.get("settings").map(|all| all["unit"].clone());
    setting.and_then(|unit| serde_json::from_value(unit).ok()).unwrap_or_default()
}

fn differing_settings(a: &Outcome, b: &Outcome) -> Map<String, Value> {
    let named = |name: &str| !matches!(name, "resamples" | "seed");
    all_settings(a, b).into_iter().filter(|(name, _)| named(name)).collect()
}

/// Every setting that only one has or that differs: name to both values.
fn all_settings(a: &Outcome, b: &Outcome) -> Map<String, Value> {
    let settings = |outcome: &Outcome| {
        outcome.details.get("settings").and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let (a, b) = (settings(a), settings(b));
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    let differs = |name: &&String| a.get(*name) != b.get(*name);
    let both = |name: &String| (name.clone(), json!([a.get(name), b.get(name)]));
    names.into_iter().filter(differs).map(both).collect()
}

fn differing(a: &ItemScore, b: &ItemScore) -> Option<Differing> {
    (a.score != b.score).then(|| Differing {
        id: a.id.clone(),
        category: a.category.clone(),
        image: a.image.clone(),
        question: a.question.clone(),
        target: a.target.clone(),
        answer_a: a.answer.clone(),
        answer_b: b.answer.clone(),
        score_a: a.score,
        score_b: b.score,
    })
}
