//! From files to a result.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Benchmark, Files, Given, Item, ItemScore, Metric, Protocol, Replies, Scored, Settings, Unit,
    folder::find_image,
    join,
    judge::{self, Cost, Judge, Work},
    replies,
    tally::{self, Tally},
};
use crate::{Error, Result, engine::Progress};

/// A scored run: the document that `--json` prints. Field names and their order are part of the interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The metric's name.
    pub metric: String,
    /// Whose rules.
    pub protocol: Protocol,
    /// The headline; null where no item could be scored.
    pub score: Option<f64>,
    /// Statistics with intervals (`scores`), counts (`counts`), settings, and what else the metric reports.
    pub details: Map<String, Value>,
    /// Every item, in the benchmark's order.
    pub items: Vec<ItemScore>,
}

impl Outcome {
    /// How the judge's replies came out; none for metrics without a judge.
    pub fn replies(&self) -> Option<Replies> {
        serde_json::from_value(self.details.get("replies")?.clone()).ok()
    }
}

/// Where answers and replies come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Prediction file; a judged set can be scored from replies alone.
    pub predictions: Option<PathBuf>,
    /// Reply files, for judged sets.
    pub replies: Vec<PathBuf>,
}

/// Checks settings and files against what a metric takes, and reads the benchmark.
pub(super) fn open(
    metric: &dyn Metric,
    files: &Files,
    settings: &Settings,
) -> Result<Box<dyn Benchmark>> {
    let spec = metric.spec();
    settings.validate()?;
    files.validate(spec.inputs)?;
    spec.protocol(settings.protocol)?;
    metric.open(files, settings)
}

/// Which models judged, and how many replies each gave: the choice of judge moves scores a lot.
fn judges(given: &Given) -> Value {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for reply in given.replies.iter().flatten().flatten() {
        *counts.entry(reply.model.as_deref().unwrap_or("unknown")).or_default() += 1;
    }
    json!(counts)
}

/// Scores a prediction file, or a judge's replies to one.
///
/// # Errors
/// If a file is missing or malformed, predictions do not fit the items, or a reply makes the score undefined.
pub fn evaluate(
    metric: &dyn Metric,
    files: &Files,
    settings: &Settings,
    sources: &Sources,
) -> Result<Outcome> {
    let benchmark = open(metric, files, settings)?;
    let (given, counts) = gather(metric, benchmark.as_ref(), settings, sources)?;
    let mut scored = benchmark.score(&given)?;
    if let Some(label) = &files.label {
        scored.details.insert("data".into(), label.as_str().into());
    }
    if metric.spec().judged {
        let replies = Replies::of(&given, &scored);
        some_grade(&replies, &given, &sources.replies[0])?;
        scored.details.insert("unparsed".into(), replies.no_grade.into());
        scored.details.insert("replies".into(), json!(replies));
        scored.details.insert("judge_models".into(), judges(&given));
        scored.details.insert("official_prompt".into(), benchmark.official_prompt().into());
    }
    outcome(metric, settings, scored, counts)
}

/// A score of replies of which none holds a grade would say nothing about the answers.
fn some_grade(replies: &Replies, given: &Given, path: &Path) -> Result<()> {
    if replies.total == 0 || replies.no_grade < replies.total {
        return Ok(());
    }
    let first = given.replies.iter().flatten().flatten().next();
    let first: String = first.map_or("", |reply| &reply.content).chars().take(100).collect();
    let what = if replies.cut > 0 {
        "where a model thinks before it answers, give it more tokens (--judge-max-tokens N, with another --out)"
    } else {
        "the model does not answer in the form that the prompt asks for; ask another one (with another --out), or choose another --protocol"
    };
    let message = format!(
        "no reply holds a grade, so there is no score: {replies}; the first reads {first:?}; {what}"
    );
    Err(Error::invalid(path, "", message))
}

/// Asks a judge about a prediction file's answers; returns the file of replies and what it has cost. Images of vision judges are
/// looked for in `images`.
///
/// # Errors
/// As [`evaluate`] and [`judge::run`].
pub fn ask_judge(
    metric: &dyn Metric,
    files: &Files,
    settings: &Settings,
    (predictions, images, out): (&Path, Option<&Path>, &Path),
    judge: &Judge,
    (progress, estimate): (&dyn Progress, &dyn Fn(Cost)),
) -> Result<(PathBuf, Cost)> {
    let spec = metric.spec();
    if !spec.judged {
        return Err(Error::argument(spec.name, "--judge", "given", "nothing: it has no judge"));
    }
    let benchmark = open(metric, files, settings)?;
    let rows = join::read(predictions, spec)?;
    let joined = join::join(benchmark.as_ref(), rows, predictions, settings)?;
    let image = |item: &Item| {
        let folder = images.ok_or_else(|| {
            Error::argument(
                spec.name,
                "--images",
                "not given",
                "the folder of images, for the judge",
            )
        })?;
        find_image(folder, item.image.as_deref().unwrap_or_default())
    };
    let work = Work {
        metric: spec.name,
        benchmark: benchmark.as_ref(),
        answers: &joined.answers,
        image: &image,
        out,
    };
    judge::run(judge, &work, progress, estimate)
}

/// Answers and replies in the items' order, and how many are missing.
fn gather(
    metric: &dyn Metric,
    benchmark: &dyn Benchmark,
    settings: &Settings,
    sources: &Sources,
) -> Result<(Given, Map<String, Value>)> {
    let spec = metric.spec();
    let items = benchmark.items();
    let mut counts = Map::new();
    let mut given = Given::default();
    match &sources.predictions {
        Some(path) => {
            let rows = join::read(path, spec)?;
            let joined = join::join(benchmark, rows, path, settings)?;
            counts.insert("missing_answers".into(), joined.missing.into());
            counts.insert("extra_answers".into(), joined.extra.into());
            given.answers = joined.answers;
        }
        None if spec.judged && !sources.replies.is_empty() => {}
        None => {
            return Err(Error::argument(
                spec.name,
                "--predictions",
                "not given",
                "a file of answers",
            ));
        }
    }
    if !spec.judged {
        return if sources.replies.is_empty() {
            Ok((given, counts))
        } else {
            Err(Error::argument(spec.name, "--judge-replies", "given", "nothing: it has no judge"))
        };
    }
    if sources.replies.is_empty() {
        let expected = "a file of the judge's replies";
        return Err(Error::argument(spec.name, "--judge-replies", "not given", expected));
    }
    let found = replies::read(&sources.replies, items)?;
    (given.replies, given.failed) = (found.runs, found.failed);
    for (run, replies) in given.replies.iter().enumerate() {
        let absent: Vec<&str> = items
            .iter()
            .zip(replies)
            .filter(|(_, reply)| reply.is_none())
            .map(|(item, _)| item.id.as_str())
            .collect();
        if !absent.is_empty() {
            let shown: Vec<&str> = absent.iter().take(5).copied().collect();
            let message = format!(
                "run {run} has no reply for {} of {} items ({}{})",
                absent.len(),
                items.len(),
                shown.join(", "),
                if absent.len() > shown.len() { ", ..." } else { "" }
            );
            return Err(Error::invalid(&sources.replies[0], "", message));
        }
    }
    counts.insert("judge_runs".into(), given.replies.len().into());
    Ok((given, counts))
}

/// Statistics and intervals of scored items.
pub(super) fn outcome(
    metric: &dyn Metric,
    settings: &Settings,
    mut scored: Scored,
    counts: Map<String, Value>,
) -> Result<Outcome> {
    let spec = metric.spec();
    let protocol = spec.protocol(settings.protocol)?;
    for item in &mut scored.items {
        if settings.unit == Unit::Item || item.unit.is_empty() {
            item.unit.clone_from(&item.id);
        }
    }
    let tally = Tally::new(&scored.items);
    let statistics = metric.statistics(protocol, &tally.cells);
    let estimates = tally::estimates(&tally, &statistics, settings.resamples, settings.seed);
    let score = estimates.first().and_then(|estimate| estimate.value);
    let mut details = Map::new();
    let mut all = Map::from_iter([("items".to_owned(), scored.items.len().into())]);
    all.extend(counts);
    let scores: Map<String, Value> = statistics
        .iter()
        .zip(&estimates)
        .map(|(statistic, estimate)| (statistic.name.clone(), json!(estimate)))
        .collect();
    details.insert("scores".into(), scores.into());
    details.insert("units".into(), tally.units().into());
    details.insert("counts".into(), all.into());
    details.append(&mut scored.details);
    let mut recorded = json!(settings);
    recorded["protocol"] = json!(protocol);
    recorded["suffix"] = json!(spec.suffix(settings));
    recorded["max_new_tokens"] =
        json!(settings.max_new_tokens.unwrap_or(metric.max_new_tokens(protocol)));
    details.insert("settings".into(), recorded);
    Ok(Outcome { metric: spec.name.into(), protocol, score, details, items: scored.items })
}
