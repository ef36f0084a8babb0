//! Benchmark scores, how they differ, and items on which two evaluations differ.

use minijinja::{Value, context};
use serde::Serialize;

use super::super::{
    evaluations::Evaluation,
    figure::Table,
    gallery::{Pair, Picture, plain_picture},
    number::count,
    page::value,
    run::Run,
};
use crate::{
    Result,
    eval::{
        METRICS, Outcome, Replies,
        compare::{Comparison, Differing, compare},
        folder::find_image,
        intervals::p_text,
        metric,
        summary::Headline,
        tally::Estimate,
    },
};

/// Differing items shown of each metric and pair of evaluations.
const SHOWN: usize = 3;

/// One item that two evaluations answer differently well.
#[derive(Serialize)]
struct Shown {
    anchor: String,
    metric: String,
    id: String,
    category: String,
    question: String,
    target: String,
    /// Evaluation, answer, score.
    answers: [(String, String, String); 2],
    picture: Option<Picture>,
}

/// One evaluation against the first.
#[derive(Serialize)]
struct Change {
    table: Table,
    items: Vec<Shown>,
}

pub(super) fn content(run: &Run, _: &[Pair]) -> Result<Option<Value>> {
    let Some((first, others)) = run.evaluations.split_first() else { return Ok(None) };
    let mut changes = Vec::new();
    for other in others {
        changes.extend(change(first, other, changes.len())?);
    }
    let data: Vec<&str> = run.evaluations.iter().map(|e| e.summary.data.as_str()).collect();
    Ok(Some(context! {
        scores => value(scores(&run.evaluations)),
        replies => replies(&run.evaluations).map(value),
        changes => value(changes),
        first => first.name.clone(),
        data => data[0],
        one_data => data.iter().all(|name| *name == data[0]),
    }))
}

/// A row a metric, a column an evaluation.
fn scores(evaluations: &[Evaluation]) -> Table {
    let mut rows = Vec::new();
    for rules in METRICS {
        let spec = rules.spec();
        let cells: Vec<String> = evaluations
            .iter()
            .map(|evaluation| {
                let row = evaluation.summary.metrics.iter().find(|row| row.metric == spec.name);
                row.map_or_else(|| "–".to_owned(), |row| row.score.to_string())
            })
            .collect();
        if cells.iter().any(|cell| cell != "–") {
            let mut row = vec![spec.name.to_owned(), spec.headline.to_owned()];
            row.extend(cells);
            rows.push(row);
        }
    }
    let names = evaluations.iter().map(|evaluation| match evaluation.summary.rho {
        0.0 => format!("{}: {}", evaluation.name, evaluation.summary.model),
        rho => format!("{}: {}, rho {rho}", evaluation.name, evaluation.summary.model),
    });
    let head = ["metric".to_owned(), "score".to_owned()].into_iter().chain(names);
    Table::new("Scores with 95 % intervals", head, rows)
}

/// How the judges' replies came out, a row a judged score; none without a judge.
fn replies(evaluations: &[Evaluation]) -> Option<Table> {
    let row = |evaluation: &Evaluation, row: &Headline| {
        let Replies { total, no_grade, cut, failed, no_temperature } = row.replies?;
        let counts = [total, no_grade, cut, failed, no_temperature].map(count);
        let names = [evaluation.name.clone(), row.metric.clone()];
        Some(names.into_iter().chain(counts).collect::<Vec<_>>())
    };
    let rows: Vec<Vec<String>> = evaluations
        .iter()
        .flat_map(|own| own.summary.metrics.iter().filter_map(move |headline| row(own, headline)))
        .collect();
    let head = [
        "evaluation",
        "metric",
        "replies",
        "without a grade",
        "of these cut by their limit",
        "failed requests",
        "asked without a temperature",
    ];
    (!rows.is_empty()).then(|| Table::new("Replies of the judge", head, rows))
}

/// What changes from the first evaluation to another, if they have a metric in common.
fn change(first: &Evaluation, other: &Evaluation, number: usize) -> Result<Option<Change>> {
    let (mut rows, mut items) = (Vec::new(), Vec::new());
    for row in &first.summary.metrics {
        let (Some(a), Some(b)) = (first.outcome(&row.metric)?, other.outcome(&row.metric)?) else {
            continue;
        };
        let settings = |outcome: &Outcome, name: &str| outcome.details["settings"][name].as_u64();
        let resamples = settings(&a, "resamples").unwrap_or(0) as u32;
        let names = [first.folder.as_path(), other.folder.as_path()];
        let seed = settings(&a, "seed").unwrap_or(0);
        let comparison = match compare(&a, b, names, resamples, seed) {
            Ok(comparison) => comparison,
            // Answers to other questions: nothing to compare, and no reason to leave the rest out.
            Err(error) => {
                let dash = || "–".to_owned();
                rows.push(vec![row.metric.clone(), error.to_string(), dash(), dash(), dash()]);
                continue;
            }
        };
        rows.push(difference(&comparison, &row.name));
        let differing = pick(&comparison.differing);
        let shown = differing.iter().enumerate().map(|(i, item)| {
            let anchor = format!("item-{number}-{}-{i}", comparison.metric);
            show(item, anchor, &comparison, [first, other])
        });
        items.extend(shown);
    }
    let head = ["metric", "difference", "p", "items better", "items worse"];
    let caption = format!("{} against {}", other.name, first.name);
    let table = Table::new(caption, head, rows);
    Ok((!table.rows.is_empty()).then_some(Change { table, items }))
}

fn difference(comparison: &Comparison, name: &str) -> Vec<String> {
    let change = &comparison.scores[name];
    let read = |value: &serde_json::Value| serde_json::from_value::<Estimate>(value.clone()).ok();
    let better = comparison.differing.iter().filter(|item| item.score_b > item.score_a).count();
    vec![
        comparison.metric.clone(),
        read(&change["difference"]).map_or_else(|| "–".to_owned(), |e| e.to_string()),
        change["p"].as_f64().map_or_else(|| "–".to_owned(), |p| p_text(p, comparison.resamples)),
        count(better as u64),
        count((comparison.differing.len() - better) as u64),
    ]
}

/// Items from all parts of the benchmark.
fn pick(differing: &[Differing]) -> Vec<&Differing> {
    let n = differing.len().min(SHOWN);
    (0..n).map(|i| &differing[i * differing.len() / n]).collect()
}

fn show(
    item: &Differing,
    anchor: String,
    comparison: &Comparison,
    evaluations: [&Evaluation; 2],
) -> Shown {
    let answers = [(&item.answer_a, item.score_a), (&item.answer_b, item.score_b)];
    let mut answers = answers.into_iter().zip(evaluations).map(|((answer, score), evaluation)| {
        let score = score.map_or_else(|| "not scored".to_owned(), |score| format!("{score:.2}"));
        (evaluation.name.clone(), answer.clone().unwrap_or_default(), score)
    });
    let images = &evaluations[0].summary.images;
    let picture = item.image.as_deref().and_then(|name| find_image(images, name).ok());
    let title = metric(&comparison.metric).map_or("", |metric| metric.spec().name);
    Shown {
        anchor,
        metric: title.to_owned(),
        id: item.id.clone(),
        category: item.category.clone(),
        question: item.question.clone(),
        target: target(&item.target),
        answers: [answers.next().unwrap_or_default(), answers.next().unwrap_or_default()],
        picture: picture.and_then(|path| plain_picture(&path).ok()),
    }
}

/// A ground truth in words: a list's different entries.
fn target(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(list) => {
            let mut texts: Vec<&str> = list.iter().filter_map(|entry| entry.as_str()).collect();
            texts.dedup();
            texts.join(", ")
        }
        serde_json::Value::Null => "the reference answer of the benchmark".to_owned(),
        other => other.to_string(),
    }
}
