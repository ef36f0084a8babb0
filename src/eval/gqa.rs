//! GQA: short answers about scenes, compared as strings.
//!
//! # Protocols
//! - `llava`: the answer is lower-cased and all trailing dots are removed ([`convert`]); then the official equality.
//! - `official`: predictions are compared as they are.
//! - `lmms-eval`: both sides are lower-cased and lose all ASCII punctuation ([`exact_match`]); blanks stay.
//! - `vlmevalkit`: both sides are trimmed and lower-cased; a trailing dot makes an answer wrong.
//! - `strict`: both sides are trimmed, lower-cased, and lose punctuation at both ends.
//!
//! Only questions with `isBalanced` count (absent = they do). A question is open if its structural type is `query`, else
//! binary.

use serde::Deserialize;
use serde_json::json;

use super::{
    Benchmark, Files, Given, Input, Item, ItemScore, Metric, Protocol, Scored, Settings, Spec,
    pope::SHORT,
    python,
    tally::{Additions, Cells, Statistic},
};
use crate::{
    Error, Result,
    data::json::{Entries, read_document},
};

/// The metric.
pub struct Gqa;

const SPEC: Spec = Spec {
    name: "gqa",
    title: "GQA: short answers about scenes, exact match",
    headline: "accuracy x 100",
    protocols: &[
        Protocol::Llava,
        Protocol::Official,
        Protocol::LmmsEval,
        Protocol::VlmEvalKit,
        Protocol::Strict,
    ],
    inputs: &[Input {
        key: "questions",
        names: &[
            "testdev_balanced_questions.json",
            "data/testdev_balanced_questions.json",
            "questions1.2/testdev_balanced_questions.json",
            "data/questions1.2/testdev_balanced_questions.json",
        ],
        what: "testdev_balanced_questions.json: questions, answers and types by id",
        from: "cs.stanford.edu/people/dorarad/gqa, questions1.2.zip",
        required: true,
    }],
    ids: &["questionId", "question_id", "id"],
    texts: &["prediction", "text", "answer"],
    suffix: SHORT,
    max_new_tokens: 128,
    judged: false,
};

/// LLaVA's convert_gqa_for_eval.py: all trailing dots go, then lower case. Blanks stay.
pub fn convert(answer: &str) -> String {
    answer.trim_end_matches('.').to_lowercase()
}

/// lmms-eval's exact match: lower case, without the 32 ASCII punctuation characters.
pub fn exact_match(answer: &str) -> String {
    answer.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect()
}

/// What is compared: answer or target under a protocol.
fn reading(protocol: Protocol, text: &str, answer: bool) -> String {
    match protocol {
        Protocol::Llava if answer => convert(text),
        Protocol::Llava | Protocol::Official => text.to_owned(),
        Protocol::LmmsEval => exact_match(text),
        Protocol::VlmEvalKit => python::strip(text).to_lowercase(),
        Protocol::Strict => {
            let edge = |c: char| python::is_space(c) || c.is_ascii_punctuation();
            text.trim_matches(edge).to_lowercase()
        }
    }
}

#[derive(Deserialize)]
struct Question {
    question: String,
    #[serde(default)]
    answer: Option<String>,
    #[serde(rename = "imageId", default)]
    image: Option<String>,
    #[serde(rename = "isBalanced", default = "yes")]
    balanced: bool,
    #[serde(default)]
    types: Types,
}

fn yes() -> bool {
    true
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Types {
    structural: Option<String>,
    semantic: Option<String>,
}

struct Questions {
    protocol: Protocol,
    items: Vec<Item>,
    /// In the items' order: answer and types.
    truth: Vec<(String, Types)>,
}

impl Metric for Gqa {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open(&self, files: &Files, settings: &Settings) -> Result<Box<dyn Benchmark>> {
        let path = files.need(SPEC.inputs, "questions")?;
        let protocol = SPEC.protocol(settings.protocol)?;
        let suffix = SPEC.suffix(settings);
        let (mut items, mut truth) = (Vec::new(), Vec::new());
        for (id, question) in read_document::<Entries<Question>>(&path)?.0 {
            if !question.balanced {
                continue;
            }
            let Some(answer) = question.answer else {
                let message =
                    "has no field answer, expected the ground truth (a test split has none)";
                return Err(Error::invalid(&path, format!("question {id:?}"), message));
            };
            items.push(Item {
                prompt: format!("{}{suffix}", question.question),
                category: question.types.structural.clone().unwrap_or_default(),
                image: question.image,
                question: question.question,
                id,
            });
            truth.push((answer, question.types));
        }
        if items.is_empty() {
            return Err(Error::invalid(&path, "", "has no balanced question"));
        }
        Ok(Box::new(Questions { protocol, items, truth }))
    }

    fn max_new_tokens(&self, protocol: Protocol) -> u32 {
        if protocol == Protocol::LmmsEval { 16 } else { SPEC.max_new_tokens }
    }

    fn statistics(&self, _protocol: Protocol, cells: &Cells) -> Vec<Statistic> {
        let mut list =
            vec![Statistic::ratio("accuracy", cells, ("right", "n"), 100.0).within(0.0, 100.0)];
        for axis in ["kind", "structural", "semantic"] {
            for group in cells.groups(axis, "n") {
                let names = (format!("{axis}/{group}/right"), format!("{axis}/{group}/n"));
                let name = format!("accuracy/{axis}/{group}");
                let ratio = Statistic::ratio(name, cells, (&names.0, &names.1), 100.0);
                list.push(ratio.within(0.0, 100.0));
            }
        }
        list
    }
}

impl Benchmark for Questions {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn score(&self, given: &Given) -> Result<Scored> {
        let items = (0..self.items.len())
            .map(|i| {
                let (item, (target, types)) = (&self.items[i], &self.truth[i]);
                let parsed = reading(self.protocol, given.answer(i), true);
                let right = parsed == reading(self.protocol, target, false);
                let score = f64::from(u8::from(right));
                let mut cells = Additions::default();
                cells.push("right", score);
                cells.push("n", 1.0);
                let kind = match types.structural.as_deref() {
                    Some("query") => "open",
                    Some(_) => "binary",
                    None => "",
                };
                let groups = [
                    ("kind", Some(kind).filter(|kind| !kind.is_empty())),
                    ("structural", types.structural.as_deref()),
                    ("semantic", types.semantic.as_deref()),
                ];
                for (axis, group) in groups {
                    if let Some(group) = group {
                        cells.push(format!("{axis}/{group}/right"), score);
                        cells.push(format!("{axis}/{group}/n"), 1.0);
                    }
                }
                ItemScore {
                    parsed: json!(parsed),
                    target: json!(target),
                    score: Some(score),
                    cells,
                    ..ItemScore::of(item, given, i)
                }
            })
            .collect();
        Ok(Scored { items, ..Scored::default() })
    }
}
