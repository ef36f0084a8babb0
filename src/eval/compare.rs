//! Two results of one metric against each other.
//!
//! Both must be of one metric, one protocol and the same items; then their difference is bootstrapped on the same resamples,
//! which is far sharper than comparing two intervals.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    ItemScore, Outcome, Protocol, metric,
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
    /// By statistic, the score first.
    pub scores: Map<String, Value>,
    /// Settings that are not the same: name to both values.
    pub settings: Map<String, Value>,
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

/// Compares two results; `names` are for messages.
///
/// # Errors
/// If they are of different metrics, protocols or items.
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
    b.items = align(&a.items, b.items, names)?;
    let rules = metric(&a.metric)?;
    let (tally_a, tally_b) = (Tally::new(&a.items), Tally::new(&b.items));
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
        scores,
        settings: differing_settings(a, &b),
        differing: a.items.iter().zip(&b.items).filter_map(|(a, b)| differing(a, b)).collect(),
    })
}

/// The second's items in the first's order and units.
fn align(a: &[ItemScore], b: Vec<ItemScore>, names: [&Path; 2]) -> Result<Vec<ItemScore>> {
    let mut by_id: HashMap<String, ItemScore> =
        b.into_iter().map(|item| (item.id.clone(), item)).collect();
    let mut aligned = Vec::with_capacity(a.len());
    for item in a {
        let Some(mut other) = by_id.remove(&item.id) else {
            let message = format!("has no item {:?}, but {} has", item.id, names[0].display());
            return Err(Error::invalid(names[1], "", message));
        };
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

fn differing_settings(a: &Outcome, b: &Outcome) -> Map<String, Value> {
    let settings = |outcome: &Outcome| {
        outcome.details.get("settings").and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let (a, b) = (settings(a), settings(b));
    let differs = |name: &&String| {
        !matches!(name.as_str(), "resamples" | "seed" | "unit") && a.get(*name) != b.get(*name)
    };
    a.keys().filter(differs).map(|name| (name.clone(), json!([a.get(name), b.get(name)]))).collect()
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
