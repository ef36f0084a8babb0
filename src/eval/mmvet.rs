//! MM-Vet: open questions that need several capabilities at once; a judge grades each answer between 0 and 1.
//!
//! # Protocols
//! - `official`: the reply's text before its first blank is a Python float in \[0, 1\], else the answer scores 0 ([`grade`]). A
//!   reply that begins with a blank has none.
//! - `vlmevalkit`: the whole reply must be a float.
//! - `lmms-eval`: as official, from the reply stripped of white space.
//! - `strict`: as official from the stripped reply; answers without a valid grade are left out and counted, instead of scoring
//!   0.
//!
//! `nan` passes the reference's range check and makes its total undefined; here such a reply is an error, except under `strict`.
//!
//! A run's total is 100 times the mean grade; the score is the mean of the runs' totals. Capabilities and integrations (the
//! exact sets of capabilities) are reported as the reference does: means over runs rounded to one decimal, and the population
//! standard deviation of the run totals.

use std::{collections::HashMap, path::Path};

use serde_json::{Map, Value, json};

use super::{
    Benchmark, Files, Given, Input, Item, ItemScore, Metric, Protocol, Scored, Settings, Spec,
    join::Prediction,
    judge::{Ask, fields},
    python,
    tally::{Additions, Cells, Statistic, at},
};
use crate::{
    Error, Result,
    data::json::{Entries, kind, read_document, read_objects},
};

/// The metric.
pub struct MmVet;

const SPEC: Spec = Spec {
    name: "mmvet",
    title: "MM-Vet: open questions that need several capabilities, graded 0 to 1 by a judge",
    headline: "total x 100, mean over judge runs",
    protocols: &[Protocol::Official, Protocol::LmmsEval, Protocol::VlmEvalKit, Protocol::Strict],
    inputs: &[
        Input {
            key: "items",
            names: &["mm-vet.json", "capabilities.json"],
            what: "mm-vet.json: question, answer and capabilities by id (to score given grades, an object from ids to lists of capabilities is enough)",
            from: "github.com/yuweihao/MM-Vet, mm-vet.zip",
            required: true,
        },
        Input {
            key: "questions",
            names: &["llava-mm-vet.jsonl"],
            what: "LLaVA's question file, for its prompts",
            from: "LLaVA's eval.zip (docs/Evaluation.md), mm-vet/llava-mm-vet.jsonl",
            required: false,
        },
        PROMPT,
    ],
    ids: &["question_id", "id"],
    texts: &["text", "answer", "prediction"],
    suffix: "",
    max_new_tokens: 1024,
    judged: true,
};

const PROMPT: Input = Input {
    key: "prompt",
    names: &["mmvet_prompt.txt", "prompt.txt"],
    what: "the judge's few-shot prompt as a text file; without it our own wording is used and the result is not comparable",
    from: "github.com/yuweihao/MM-Vet, variable prompt of mm-vet_evaluator.ipynb",
    required: false,
};

/// MM-Vet's reading of a reply: the text before the first U+0020 as a Python float, accepted unless it is below 0 or above 1.
pub fn grade(reply: &str) -> Option<f64> {
    let value = python::float(reply.split(' ').next().unwrap_or_default())?;
    in_range(value).then_some(value)
}

/// The references' check, which NaN passes: neither below 0 nor above 1.
fn in_range(grade: f64) -> bool {
    grade.is_nan() || (0.0..=1.0).contains(&grade)
}

/// A reply's grade under a protocol.
fn reading(protocol: Protocol, reply: &str) -> Option<f64> {
    match protocol {
        Protocol::VlmEvalKit => python::float(reply).filter(|value| in_range(*value)),
        Protocol::LmmsEval => grade(python::strip(reply)),
        Protocol::Strict => grade(python::strip(reply)).filter(|value| !value.is_nan()),
        Protocol::Official | Protocol::Llava => grade(reply),
    }
}

struct Questions {
    protocol: Protocol,
    items: Vec<Item>,
    answers: Vec<String>,
    capabilities: Vec<Vec<String>>,
    /// The judge's prompt; the query is appended to it.
    prompt: String,
    official: bool,
}

/// Our own wording, where the benchmark's is not at hand.
const OWN_PROMPT: &str = "Grade a prediction against the ground truth of a question. The grade is a number between 0.0, totally \
    wrong, and 1.0, totally right. <AND> in the ground truth means that all parts are needed, <OR> that any is enough. Complete \
    the last line with the grade and nothing else.\n\nQuestion | Ground truth | Prediction | Grade\n--- | --- | --- | ---\n\
    What colour are the two cars? | red <AND> blue | Both are red. | 0.5\n\
    What animal is this? | cat <OR> kitten | It is a kitten. | 1.0\n";

/// Question, ground truth and prediction of a prompt in our own wording.
#[cfg_attr(not(feature = "demo"), allow(dead_code, reason = "the demo's judge reads prompts"))]
pub(crate) fn own_fields(prompt: &str) -> Option<[&str; 3]> {
    let first = format!("{}\n\n", OWN_PROMPT.trim_end_matches('\n'));
    fields(prompt, (&first, [" | ", " | "], " | "))?.try_into().ok()
}

/// What lmms-eval puts before a question since August 2024.
const STEP_BY_STEP: &str = "First please perform reasoning, and think step by step to provide best answer to the following \
    question: \n\n";

/// What is appended where a reply was no grade.
const AGAIN: &str = "\nPredict the correctness of the answer (digit): ";

impl Metric for MmVet {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open(&self, files: &Files, settings: &Settings) -> Result<Box<dyn Benchmark>> {
        let path = files.need(SPEC.inputs, "items")?;
        let protocol = SPEC.protocol(settings.protocol)?;
        let prompts = match files.find(SPEC.inputs, "questions")? {
            Some(path) => llava_questions(&path)?,
            None => HashMap::new(),
        };
        let suffix = SPEC.suffix(settings);
        let prompt = files.find(SPEC.inputs, "prompt")?;
        let text = match &prompt {
            Some(path) => std::fs::read_to_string(path).map_err(Error::io(path))?,
            None => OWN_PROMPT.to_owned(),
        };
        let mut benchmark = Questions {
            protocol,
            items: vec![],
            answers: vec![],
            capabilities: vec![],
            prompt: text,
            official: prompt.is_some(),
        };
        for (id, entry) in read_document::<Entries<Value>>(&path)?.0 {
            let string = |name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
            let (image, question) = match prompts.get(&id) {
                Some((image, question)) => (Some(image.clone()), question.clone()),
                None => (string("imagename"), string("question").unwrap_or_default()),
            };
            benchmark.capabilities.push(capabilities(&path, &id, &entry)?);
            benchmark.answers.push(string("answer").unwrap_or_default());
            let before = if protocol == Protocol::LmmsEval { STEP_BY_STEP } else { "" };
            benchmark.items.push(Item {
                prompt: format!("{before}{question}{suffix}"),
                category: benchmark.capabilities[benchmark.items.len()].join("_"),
                image,
                question,
                id,
            });
        }
        if benchmark.items.is_empty() {
            return Err(Error::invalid(&path, "", "has no entries, expected one a question"));
        }
        Ok(Box::new(benchmark))
    }

    fn statistics(&self, _protocol: Protocol, cells: &Cells) -> Vec<Statistic> {
        let runs = cells.groups("run", "n");
        let mean = |name: String, group: &str| {
            let pairs: Vec<[Option<usize>; 2]> = runs
                .iter()
                .map(|run| ["sum", "n"].map(|cell| cells.get(&format!("run/{run}/{group}{cell}"))))
                .filter(|[_, n]| n.is_some())
                .collect();
            Statistic::new(name, move |sums| {
                let totals = pairs.iter().map(|[sum, n]| 100.0 * at(sums, *sum) / at(sums, *n));
                totals.sum::<f64>() / pairs.len() as f64
            })
            .within(0.0, 100.0)
        };
        let runs_of = |prefix: &str| {
            let mut found: Vec<String> = Vec::new();
            for run in &runs {
                for group in cells.groups(&format!("run/{run}/{prefix}"), "n") {
                    if !found.contains(&group) {
                        found.push(group);
                    }
                }
            }
            found
        };
        let mut list = vec![mean("total".to_owned(), "")];
        for axis in ["capability", "integration"] {
            for group in runs_of(axis) {
                list.push(mean(format!("{axis}/{group}"), &format!("{axis}/{group}/")));
            }
        }
        list
    }
}

/// Image and question by id, from LLaVA's file, whose question_id i is `v1_i`.
fn llava_questions(path: &Path) -> Result<HashMap<String, (String, String)>> {
    let rows = read_objects(path)?;
    let question = |row: &crate::data::json::Object| {
        let (image, text) = (row.string("image")?, row.string("text")?);
        Ok((format!("v1_{}", row.name("question_id")?), (image.to_owned(), text.to_owned())))
    };
    rows.iter().map(question).collect()
}

fn capabilities(path: &Path, id: &str, entry: &Value) -> Result<Vec<String>> {
    let list = entry.as_array().or_else(|| entry.get("capability")?.as_array());
    let names = list.and_then(|list| {
        list.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    names.filter(|names| !names.is_empty()).ok_or_else(|| {
        let got = entry.get("capability").map_or_else(|| "missing".to_owned(), kind);
        let message = format!("field capability is {got}, expected a list of names");
        Error::invalid(path, format!("entry {id:?}"), message)
    })
}

impl Benchmark for Questions {
    fn items(&self) -> &[Item] {
        &self.items
    }

    /// LLaVA's answers are numbered; `i` is `v1_i`.
    fn key(&self, row: &Prediction) -> Result<Option<String>> {
        let number = row.id.as_deref().filter(|id| id.bytes().all(|byte| byte.is_ascii_digit()));
        Ok(number.map(|number| format!("v1_{number}")))
    }

    /// The prompt, then `question | answer | prediction | `.
    fn ask(&self, item: usize, answer: &str) -> Result<Ask> {
        let Item { question, id, .. } = &self.items[item];
        let target = self.answers[item].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ");
        if question.is_empty() || target.is_empty() {
            let message =
                "has no question and answer, which the judge's prompt needs; expected mm-vet.json";
            return Err(Error::invalid("--data", format!("item {id}"), message));
        }
        let prompt = self.prompt.trim_end_matches('\n');
        // The reference's prompt ends with a line break, and another one follows it; lmms-eval has one in all.
        let (breaks, end) =
            if self.protocol == Protocol::LmmsEval { ("\n", " |") } else { ("\n\n", " | ") };
        let user = format!("{prompt}{breaks}{}{end}", [question, &target, answer].join(" | "));
        let max_tokens = Some(if self.protocol == Protocol::LmmsEval { 128 } else { 3 });
        Ok(Ask { system: None, user, image: false, temperature: 0.0, max_tokens })
    }

    /// A reply without a grade is asked for again at temperatures 0, .5, 1 and 1.5, with a line appended. (The
    /// reference asks once more, at 2, and does not read that reply.)
    fn again(&self, first: &Ask, replies: &[String]) -> Option<Ask> {
        let last = replies.last()?;
        if reading(self.protocol, last).is_some() || self.protocol == Protocol::LmmsEval {
            return None;
        }
        let temperature = *[0.0, 0.5, 1.0, 1.5].get(replies.len() - 1)?;
        let user = format!("{}{}", first.user, AGAIN);
        Some(Ask { user, temperature, ..first.clone() })
    }

    fn official_prompt(&self) -> bool {
        self.official
    }

    fn score(&self, given: &Given) -> Result<Scored> {
        let mut ungraded = Vec::new();
        let mut items = Vec::with_capacity(self.items.len());
        for (i, item) in self.items.iter().enumerate() {
            let mut cells = Additions::default();
            let (mut grades, mut known) = (Vec::new(), Vec::new());
            let groups = std::iter::once(String::new())
                .chain(self.capabilities[i].iter().map(|name| format!("capability/{name}/")))
                .chain([format!("integration/{}/", item.category)])
                .collect::<Vec<_>>();
            for (run, replies) in given.replies.iter().enumerate() {
                let reply = Given::reply(replies, i);
                let found = reading(self.protocol, reply);
                if found.is_some_and(f64::is_nan) {
                    let message = format!(
                        "the judge's reply {reply:?} in run {run} is not a number, and so is the reference's total; \
                         ask again, or use --protocol strict, which leaves it out"
                    );
                    return Err(Error::invalid("replies", format!("item {}", item.id), message));
                }
                ungraded.extend(found.is_none().then_some((i, run)));
                grades.push(found);
                let value = match (found, self.protocol) {
                    (None, Protocol::Strict) => continue,
                    (found, _) => found.unwrap_or(0.0),
                };
                known.push(value);
                for group in &groups {
                    cells.push(format!("run/{run}/{group}sum"), value);
                    cells.push(format!("run/{run}/{group}n"), 1.0);
                }
            }
            let mean = known.iter().sum::<f64>() / known.len() as f64;
            items.push(ItemScore {
                parsed: json!(grades),
                target: json!(self.answers[i]),
                score: mean.is_finite().then_some(mean),
                cells,
                ..ItemScore::of(item, given, i)
            });
        }
        let mut details = Map::new();
        details.insert("reported".into(), reported(&items, given.replies.len()));
        Ok(Scored { items, ungraded, details })
    }
}

/// The table as MM-Vet prints it.
fn reported(items: &[ItemScore], runs: usize) -> Value {
    let tally = super::tally::Tally::new(items);
    let sums = tally.sums();
    let total = |run: usize, group: &str| {
        let cell = |name: &str| at(&sums, tally.cells.get(&format!("run/{run}/{group}{name}")));
        100.0 * cell("sum") / cell("n")
    };
    let mean = |group: &str| {
        let mean = (0..runs).map(|run| total(run, group)).sum::<f64>() / runs as f64;
        python::round(mean, 1)
    };
    let totals: Vec<f64> = (0..runs).map(|run| total(run, "")).collect();
    let average = totals.iter().sum::<f64>() / runs as f64;
    let variance = totals.iter().map(|t| (t - average).powi(2)).sum::<f64>() / runs as f64;
    let mut table = Map::new();
    for axis in ["capability", "integration"] {
        let groups = tally.cells.groups(&format!("run/0/{axis}"), "n");
        let row: Map<String, Value> = groups
            .iter()
            .map(|group| (group.clone(), json!(mean(&format!("{axis}/{group}/")))))
            .collect();
        table.insert(axis.into(), row.into());
    }
    let rounded: Vec<f64> = totals.iter().map(|total| python::round(*total, 1)).collect();
    table.insert("total".into(), json!(python::round(average, 1)));
    table.insert("std".into(), json!(python::round(variance.sqrt(), 1)));
    table.insert("runs".into(), json!(rounded));
    table.into()
}
