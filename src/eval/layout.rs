//! Results as files: our own, lmms-eval's layout, and tables for people.
//!
//! `result.json` is the document of `--json`; `items.jsonl` has an item a line. `lmms_eval_results.json` and
//! `lmms_eval_samples_<task>.jsonl` have the layout of lmms-eval's output, with its names and scales where it has the metric
//! (TextVQA's and GQA's `exact_match` and POPE's values are fractions there), so that tools that read the former read ours.

use std::path::Path;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use serde_json::{Map, Value, json};

use super::{
    Outcome, Unit,
    compare::Comparison,
    intervals::{p_text, seen},
    summary::Summary,
};
use crate::{Error, Result, files::AtomicFile};

/// lmms-eval's task of a metric, and its names for statistics with what our values are divided by.
fn lmms(metric: &str) -> (&str, &'static [(&'static str, &'static str, f64)]) {
    match metric {
        "pope" => (
            "pope",
            &[
                ("f1_pooled", "pope_f1_score", 100.0),
                ("accuracy", "pope_accuracy", 100.0),
                ("precision", "pope_precision", 100.0),
                ("recall", "pope_recall", 100.0),
                ("yes_ratio", "pope_yes_ratio", 100.0),
            ],
        ),
        "vqat" => ("textvqa_val", &[("accuracy", "exact_match", 100.0)]),
        "gqa" => ("gqa", &[("accuracy", "exact_match", 100.0)]),
        "mmvet" => ("mmvet", &[("total", "gpt_eval_score", 1.0)]),
        "llavaw" => (
            "llava_in_the_wild",
            &[
                ("ratio", "gpt_eval_llava_all", 1.0),
                ("ratio/conv", "gpt_eval_llava_conv", 1.0),
                ("ratio/detail", "gpt_eval_llava_detail", 1.0),
                ("ratio/complex", "gpt_eval_llava_complex", 1.0),
            ],
        ),
        "recall-coco" => (
            "coco_cap_chair",
            &[
                ("recall", "coco_cap_chair_recall", 1.0),
                ("chair_i", "coco_cap_chair_i", 1.0),
                ("chair_s", "coco_cap_chair_s", 1.0),
            ],
        ),
        other => (other, &[]),
    }
}

/// Writes a result into a folder, in all layouts. `model` is what the answers are named after, `date` seconds since 1970.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, outcome: &Outcome, model: &str, date: f64) -> Result<()> {
    let (task, _) = lmms(&outcome.metric);
    let pretty = |value: &Value| format!("{value:#}\n").into_bytes();
    put(folder, "result.json", [pretty(&json!(outcome))])?;
    put(folder, "items.jsonl", outcome.items.iter().map(|item| line(&json!(item))))?;
    let results = pretty(&lmms_results(outcome, model, date));
    put(folder, "lmms_eval_results.json", [results])?;
    let samples = lmms_samples(outcome);
    put(folder, &format!("lmms_eval_samples_{task}.jsonl"), samples.map(|row| line(&row)))
}

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}

fn put(folder: &Path, name: &str, parts: impl IntoIterator<Item = Vec<u8>>) -> Result<()> {
    let mut file = AtomicFile::create(folder.join(name))?;
    for part in parts {
        file.put(&part)?;
    }
    file.commit()
}

/// The document that lmms-eval writes as `<date>_results.json`.
pub fn lmms_results(outcome: &Outcome, model: &str, date: f64) -> Value {
    let (task, names) = lmms(&outcome.metric);
    let mut row = Map::new();
    let mut higher = Map::new();
    row.insert("alias".into(), task.into());
    for (name, estimate) in outcome.details["scores"].as_object().into_iter().flatten() {
        let known = names.iter().find(|(ours, ..)| ours == name);
        let (name, scale) =
            known.map_or((name.as_str(), 1.0), |(_, theirs, scale)| (*theirs, *scale));
        let scaled = |field: &str| estimate[field].as_f64().map(|value| value / scale);
        row.insert(format!("{name},none"), json!(scaled("value")));
        row.insert(format!("{name}_stderr,none"), json!(scaled("stderr")));
        let lower_is_better = name.starts_with("hallucination")
            || name.starts_with("coco_cap_chair_i")
            || name.starts_with("coco_cap_chair_s");
        higher.insert(name.to_owned(), json!(!lower_is_better));
    }
    let settings = &outcome.details["settings"];
    let n = outcome.items.len();
    json!({
        "results": {task: row},
        "group_subtasks": {task: []},
        "configs": {task: {
            "task": task,
            "output_type": "generate_until",
            "generation_kwargs": {"max_new_tokens": settings["max_new_tokens"], "temperature": 0.0, "do_sample": false},
            "repeats": 1,
            "metadata": {
                "protocol": outcome.protocol, "settings": settings, "data": outcome.details.get("data"),
            },
        }},
        "versions": {task: "bdhs"},
        "n-shot": {task: 0},
        "higher_is_better": {task: higher},
        "n-samples": {task: {"original": n, "effective": n}},
        "config": {
            "model": model,
            "model_args": "",
            "bootstrap_iters": settings["resamples"],
            "random_seed": settings["seed"],
        },
        "git_hash": null,
        "date": date,
        "model_name": model,
    })
}

/// The rows that lmms-eval writes as `<date>_samples_<task>.jsonl`.
fn lmms_samples(outcome: &Outcome) -> impl Iterator<Item = Value> {
    outcome.items.iter().enumerate().map(|(i, item)| {
        json!({
            "doc_id": i,
            "doc": {
                "question_id": item.id, "category": item.category, "image": item.image, "question": item.question,
            },
            "target": item.target,
            "resps": [[item.answer]],
            "filtered_resps": [item.answer],
            "parsed": item.parsed,
            "score": item.score,
        })
    })
}

/// Seconds since 1970.
///
/// # Errors
/// If the clock stands before that.
pub fn now() -> Result<f64> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since
        .map(|since| since.as_secs_f64())
        .map_err(|_| Error::argument("clock", "time", "before 1970", "a clock that is set"))
}

impl Outcome {
    /// Statistics with intervals, for people.
    pub fn table(&self) -> String {
        let mut table = new_table(&["score", "value", "95 % low", "high"]);
        for (name, estimate) in self.details["scores"].as_object().into_iter().flatten() {
            let cell = |field: &str| number(&estimate[field]);
            table.add_row([name.clone(), cell("value"), cell("low"), cell("high")]);
        }
        let counts: Vec<String> = self.details["counts"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, count)| count.as_u64() != Some(0))
            .map(|(name, count)| format!("{} {count}", name.replace('_', " ")))
            .collect();
        let data = self.details.get("data").and_then(Value::as_str);
        let replies = self.replies().map_or(String::new(), |replies| format!("\njudge: {replies}"));
        format!(
            "{} under {}{}\n{}\n{}, {} resampled units{replies}",
            self.metric,
            self.protocol,
            data.map_or(String::new(), |data| format!(", on {data}")),
            align(table, 4),
            counts.join(", "),
            self.details["units"]
        )
    }
}

impl Summary {
    /// Every metric's score, for people.
    pub fn table(&self) -> String {
        let mut table =
            new_table(&["metric", "score", "value", "95 % low", "high", "items", "protocol"]);
        for row in &self.metrics {
            let cell = |value: Option<f64>| number(&json!(value));
            table.add_row([
                row.metric.clone(),
                row.name.clone(),
                cell(row.score.value),
                cell(row.score.low),
                cell(row.score.high),
                row.items.to_string(),
                row.protocol.to_string(),
            ]);
        }
        for (column, right) in [false, false, true, true, true, true, false].iter().enumerate() {
            if let (true, Some(column)) = (*right, table.column_mut(column)) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let replies: String = self
            .metrics
            .iter()
            .filter_map(|row| Some(format!("\n{}: {}", row.metric, row.replies?)))
            .collect();
        format!("{} on {}, rho {}\n{table}{replies}", self.model, self.data, self.rho)
    }
}

impl Comparison {
    /// Statistics of both and their difference, for people.
    pub fn table(&self) -> String {
        let mut table = new_table(&["score", "a", "b", "b - a", "95 % low", "high", "p", "sees"]);
        for (name, change) in &self.scores {
            let difference = |field: &str| number(&change["difference"][field]);
            table.add_row([
                name.clone(),
                number(&change["a"]),
                number(&change["b"]),
                difference("value"),
                difference("low"),
                difference("high"),
                change["p"].as_f64().map_or("-".to_owned(), |p| p_text(p, self.resamples)),
                change["difference"]["stderr"]
                    .as_f64()
                    .map_or("-".to_owned(), |stderr| format!("{:.2}", seen(stderr, 1))),
            ]);
        }
        let mut text = format!("{} under {}\n{}\n", self.metric, self.protocol, align(table, 8));
        for (name, values) in
            self.settings.iter().filter(|(name, _)| !self.cautions.contains_key(*name))
        {
            text.push_str(&format!("setting {name} differs: {} and {}\n", values[0], values[1]));
        }
        for (name, values) in &self.cautions {
            let both = format!("{} and {}", values[0], values[1]);
            text.push_str(&format!(
                "caution: {name} differs, which is no difference of the models: {both}\n"
            ));
        }
        let unit = match self.unit {
            Unit::Image => "images, each with all its questions",
            Unit::Item => {
                "single items; where items share an image, p-values are too small (--unit image)"
            }
        };
        let first = self.scores.keys().next().map_or("", String::as_str);
        let tests = self.scores.len();
        text.push_str(&format!(
            "{} units: {unit}; {} resamples; sees: the difference that this many units show with 80 % power\n",
            self.units, self.resamples
        ));
        if tests > 1 {
            text.push_str(&format!(
                "{tests} tests side by side: some p-values below 0.05 are expected by chance; {first} is the score, the \
                 others describe it\n"
            ));
        }
        text.push_str(&format!("{} of {} items differ", self.differing.len(), self.items));
        text
    }
}

pub(crate) fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─')));
    table.set_header(header.iter().copied());
    table
}

fn align(mut table: Table, columns: usize) -> Table {
    for index in 1..columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn number(value: &Value) -> String {
    value.as_f64().map_or("-".to_owned(), |value| format!("{value:.4}"))
}
