//! LLaVA-Bench (In-the-Wild): 60 open questions on 24 images; a judge scores GPT-4's reference answer and the model's.
//!
//! # Protocols
//! - `llava`: the reply's first line must be two Python floats, separated by one blank or one comma ([`pair`]); otherwise both
//!   scores are -1, and such rows enter the means. Per group, both means are rounded to three decimals before their ratio, and
//!   the ratio to one.
//! - `lmms-eval`: the first two numbers of the stripped reply's first line ([`first_two`]), else -1; the ratio as in `llava`.
//! - `vlmevalkit`: `llava`'s parser, and a ratio of the unrounded means, rounded to one decimal.
//! - `strict`: the first line that is not blank must hold two numbers from 1 to 10 and nothing but blanks, commas, semicolons
//!   or slashes besides; other rows are left out and counted. Nothing is rounded.
//!
//! A reply with `nan` makes the reference's score undefined; here it is an error, except under `strict`.
//!
//! The score is the ratio over all questions, 100 x model / reference; with several judge runs the mean of theirs (published
//! numbers are means of three). It is not the mean of the categories' ratios.

use std::{collections::HashMap, path::Path};

use serde_json::{Map, Value, json};

use super::{
    Benchmark, Files, Given, Input, Item, ItemScore, Metric, Protocol, Scored, Settings, Spec,
    judge::{Ask, fields, fill},
    python,
    tally::{Additions, Cells, Statistic, at},
};
use crate::{
    Error, Result,
    data::json::{Entries, Object, read_document, read_objects},
};

/// The metric.
pub struct LlavaW;

const SPEC: Spec = Spec {
    name: "llavaw",
    title: "LLaVA-Bench (In-the-Wild): open questions, scored by a judge against GPT-4's answers",
    headline: "100 x model / reference over all questions, mean over judge runs",
    protocols: &[Protocol::Llava, Protocol::LmmsEval, Protocol::VlmEvalKit, Protocol::Strict],
    inputs: &[
        Input {
            key: "questions",
            names: &["questions.jsonl"],
            what: "questions.jsonl: 60 questions with category",
            from: "huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
            required: true,
        },
        Input {
            key: "context",
            names: &["context.jsonl"],
            what: "context.jsonl: a description of each image, for the judge",
            from: "huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
            required: false,
        },
        Input {
            key: "reference",
            names: &["answers_gpt4.jsonl"],
            what: "answers_gpt4.jsonl: the reference answers, for the judge",
            from: "huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
            required: false,
        },
        Input {
            key: "prompt",
            names: &["rule.json", "llava_bench_rule.txt"],
            what: "the judge's instruction; without it our own wording is used and the result is not comparable",
            from: "github.com/haotian-liu/LLaVA, llava/eval/table/rule.json",
            required: false,
        },
    ],
    ids: &["question_id", "id"],
    texts: &["text", "answer", "prediction"],
    suffix: "",
    max_new_tokens: 1024,
    judged: true,
};

/// LLaVA's reading of a reply: its first line, commas as blanks, must be exactly two Python floats with one blank between;
/// else both are -1.
pub fn pair(reply: &str) -> [f64; 2] {
    let line = reply.split('\n').next().unwrap_or_default().replace(',', " ");
    let mut parts = line.split(' ');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(a), Some(b), None) => match (python::float(a), python::float(b)) {
            (Some(a), Some(b)) => [a, b],
            _ => [-1.0; 2],
        },
        _ => [-1.0; 2],
    }
}

/// lmms-eval's reading: the first two matches of `-?\d+(\.\d+)?` in the first line of the stripped reply; else both are -1. So
/// `Assistant 1: 8, Assistant 2: 7` is 1 and 8.
pub fn first_two(reply: &str) -> [f64; 2] {
    let line = python::strip(reply).split('\n').next().unwrap_or_default();
    match numbers(line)[..] {
        [a, b, ..] => [a, b],
        _ => [-1.0; 2],
    }
}

/// The strict reading; none for a reply without two scores.
pub fn strict(reply: &str) -> Option<[f64; 2]> {
    let line = reply.lines().find(|line| !line.trim().is_empty())?;
    let between = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '/');
    let parts: Vec<&str> = line.split(between).filter(|part| !part.is_empty()).collect();
    let [a, b] = parts[..] else { return None };
    let score = |text: &str| text.parse::<f64>().ok().filter(|score| (1.0..=10.0).contains(score));
    Some([score(a)?, score(b)?])
}

/// Matches of `-?\d+(\.\d+)?`.
fn numbers(line: &str) -> Vec<f64> {
    let bytes = line.as_bytes();
    let digits = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() {
        let start = at + usize::from(bytes[at] == b'-');
        let mut end = digits(start);
        if end == start {
            at += 1;
            continue;
        }
        if bytes.get(end) == Some(&b'.') && digits(end + 1) > end + 1 {
            end = digits(end + 1);
        }
        found.extend(line[at..end].parse::<f64>());
        at = end;
    }
    found
}

struct Questions {
    protocol: Protocol,
    items: Vec<Item>,
    /// Description of each image, for the judge.
    context: HashMap<String, String>,
    /// GPT-4's answers, by place.
    references: Vec<String>,
    /// The judge's instruction by category; under "" for all.
    rules: HashMap<String, String>,
    official: bool,
}

/// Our own wording, where the benchmark's is not at hand.
const OWN_RULE: &str = "Two assistants have answered the question above about an image, which is described in a few sentences. \
    Score how helpful, relevant, accurate and detailed each answer is, from 1 to 10. Write the two scores, the first \
    assistant's and then the second's, on the first line, with one blank between and nothing else. Explain them on the lines \
    after it, and do not let the order of the answers count.";

/// LLaVA's form around context, question, reference, answer and rule.
const FORM: [&str; 6] = [
    "[Context]\n",
    "\n\n[Question]\n",
    "\n\n[Assistant 1]\n",
    "\n\n[End of Assistant 1]\n\n[Assistant 2]\n",
    "\n\n[End of Assistant 2]\n\n[System]\n",
    "\n\n",
];

/// Context, question, reference and answer of a prompt with our own rule.
#[cfg_attr(not(feature = "demo"), allow(dead_code, reason = "the demo's judge reads prompts"))]
pub(crate) fn own_fields(prompt: &str) -> Option<[&str; 4]> {
    let [first, a, b, c, d, last] = FORM;
    let last = format!("{d}{OWN_RULE}{last}");
    fields(prompt, (first, [a, b, c], &last))?.try_into().ok()
}

/// The system message of LLaVA's script.
const SYSTEM: &str =
    "You are a helpful and precise assistant for checking the quality of the answer.";

/// Rules of a file: LLaVA's rule.json by category, or a text for all.
fn rules(path: &Path) -> Result<HashMap<String, String>> {
    if path.extension().is_none_or(|extension| extension != "json") {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        return Ok(HashMap::from([(String::new(), text)]));
    }
    let mut rules = HashMap::new();
    for (name, rule) in read_document::<Entries<Value>>(path)?.0 {
        if let (Some(category), Some(prompt)) =
            (name.strip_prefix("llava_bench_"), rule["prompt"].as_str())
        {
            rules.insert(category.to_owned(), prompt.to_owned());
        }
    }
    if rules.is_empty() {
        return Err(Error::invalid(
            path,
            "",
            "has no rule llava_bench_conv, expected LLaVA's rule.json",
        ));
    }
    Ok(rules)
}

/// Image descriptions; a list of sentences is joined by line breaks.
fn context(path: &Path) -> Result<HashMap<String, String>> {
    let text = |object: &Object| match object.get("caption") {
        Some(Value::Array(lines)) => {
            let lines: Vec<&str> = lines.iter().filter_map(Value::as_str).collect();
            Ok(lines.join("\n"))
        }
        _ => object.string("caption").map(str::to_owned),
    };
    let rows = read_objects(path)?;
    rows.iter().map(|row| Ok((row.string("image")?.to_owned(), text(row)?))).collect()
}

impl Metric for LlavaW {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open(&self, files: &Files, settings: &Settings) -> Result<Box<dyn Benchmark>> {
        let path = files.need(SPEC.inputs, "questions")?;
        let protocol = SPEC.protocol(settings.protocol)?;
        let suffix = SPEC.suffix(settings);
        let items = read_objects(&path)?
            .iter()
            .map(|object| {
                let question = object.string("text")?.to_owned();
                Ok(Item {
                    id: object.name("question_id")?,
                    image: Some(object.string("image")?.to_owned()),
                    prompt: format!("{question}{suffix}"),
                    question,
                    category: object.string("category")?.to_owned(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if items.is_empty() {
            return Err(Error::invalid(&path, "", "has no questions"));
        }
        let prompt = files.find(SPEC.inputs, "prompt")?;
        let own = || HashMap::from([(String::new(), OWN_RULE.to_owned())]);
        let mut references = Vec::new();
        if let Some(path) = files.find(SPEC.inputs, "reference")? {
            for row in read_objects(&path)? {
                references.push(row.string("text")?.to_owned());
            }
            if references.len() != items.len() {
                let message = format!("has {} answers, expected {}", references.len(), items.len());
                return Err(Error::invalid(&path, "", message));
            }
        }
        Ok(Box::new(Questions {
            protocol,
            items,
            context: files
                .find(SPEC.inputs, "context")?
                .map_or(Ok(HashMap::new()), |p| context(&p))?,
            references,
            rules: prompt.as_deref().map_or_else(|| Ok(own()), rules)?,
            official: prompt.is_some(),
        }))
    }

    fn max_new_tokens(&self, protocol: Protocol) -> u32 {
        if protocol == Protocol::LmmsEval { 4096 } else { SPEC.max_new_tokens }
    }

    fn statistics(&self, protocol: Protocol, cells: &Cells) -> Vec<Statistic> {
        let runs = cells.groups("run", "all/n");
        let mut groups: Vec<String> = vec!["all".to_owned()];
        for run in &runs {
            for group in cells.groups(&format!("run/{run}"), "n") {
                if !groups.contains(&group) {
                    groups.push(group);
                }
            }
        }
        let mut list = Vec::new();
        for group in groups {
            let places: Vec<[Option<usize>; 3]> = runs
                .iter()
                .map(|run| {
                    ["reference", "model", "n"]
                        .map(|cell| cells.get(&format!("run/{run}/{group}/{cell}")))
                })
                .filter(|[_, _, n]| n.is_some())
                .collect();
            let name = if group == "all" { "ratio".into() } else { format!("ratio/{group}") };
            list.push(Statistic::new(name, move |sums| {
                let ratios = places.iter().map(|cells| ratio(protocol, cells.map(|c| at(sums, c))));
                ratios.sum::<f64>() / places.len() as f64
            }));
        }
        list
    }
}

/// 100 x model / reference of one run and group, rounded as the protocol does.
fn ratio(protocol: Protocol, [reference, model, n]: [f64; 3]) -> f64 {
    let (reference, model) = (reference / n, model / n);
    match protocol {
        Protocol::Strict => 100.0 * model / reference,
        Protocol::VlmEvalKit => python::round(model / reference * 100.0, 1),
        _ => python::round(python::round(model, 3) / python::round(reference, 3) * 100.0, 1),
    }
}

impl Benchmark for Questions {
    fn items(&self) -> &[Item] {
        &self.items
    }

    /// The reference answer is always the first assistant's.
    fn ask(&self, item: usize, answer: &str) -> Result<Ask> {
        let Item { question, image, category, id, .. } = &self.items[item];
        let lacks = |what: &str| {
            Error::invalid(
                "--data",
                format!("item {id}"),
                format!("has no {what}, which the judge's prompt needs"),
            )
        };
        let image = image.as_deref().unwrap_or_default();
        let context = self.context.get(image).ok_or_else(|| lacks("row of context.jsonl"))?;
        let reference =
            self.references.get(item).ok_or_else(|| lacks("row of answers_gpt4.jsonl"))?;
        let rule = self.rules.get(category.as_str()).or_else(|| self.rules.get(""));
        let rule = rule.ok_or_else(|| lacks("rule for its category"))?;
        let user = fill(FORM, [context.as_str(), question, reference, answer, rule]);
        let (system, temperature) = match self.protocol {
            Protocol::LmmsEval => (None, 0.0),
            _ => (Some(SYSTEM), 0.2),
        };
        Ok(Ask { system, user, image: false, temperature, max_tokens: Some(1024) })
    }

    fn official_prompt(&self) -> bool {
        self.official
    }

    fn score(&self, given: &Given) -> Result<Scored> {
        let mut ungraded = Vec::new();
        let mut items = Vec::with_capacity(self.items.len());
        for (i, item) in self.items.iter().enumerate() {
            let mut cells = Additions::default();
            let mut pairs: Vec<Option<[f64; 2]>> = Vec::new();
            for (run, replies) in given.replies.iter().enumerate() {
                let reply = Given::reply(replies, i);
                let found = self.read(item, run, reply)?;
                let none = matches!(found, None | Some([-1.0, -1.0]));
                ungraded.extend(none.then_some((i, run)));
                pairs.push(found);
                let Some([reference, model]) = found else { continue };
                for group in ["all", &item.category] {
                    cells.push(format!("run/{run}/{group}/reference"), reference);
                    cells.push(format!("run/{run}/{group}/model"), model);
                    cells.push(format!("run/{run}/{group}/n"), 1.0);
                }
            }
            let models: Vec<f64> = pairs.iter().flatten().map(|pair| pair[1]).collect();
            let mean = models.iter().sum::<f64>() / models.len() as f64;
            items.push(ItemScore {
                parsed: json!(pairs),
                target: Value::Null,
                score: mean.is_finite().then_some(mean),
                cells,
                ..ItemScore::of(item, given, i)
            });
        }
        let mut details = Map::new();
        details.insert("runs".into(), self.runs(&items, given.replies.len()));
        Ok(Scored { items, ungraded, details })
    }
}

impl Questions {
    fn read(&self, item: &Item, run: usize, reply: &str) -> Result<Option<[f64; 2]>> {
        let found = match self.protocol {
            Protocol::Strict => return Ok(strict(reply)),
            Protocol::LmmsEval => first_two(reply),
            _ => pair(reply),
        };
        if found.iter().any(|score| !score.is_finite()) {
            let first = reply.lines().next().unwrap_or_default();
            let message = format!(
                "the judge's reply in run {run} begins with {first:?}, which makes the reference's score undefined; \
                 ask again, or use --protocol strict, which leaves it out"
            );
            return Err(Error::invalid("replies", format!("item {}", item.id), message));
        }
        Ok(Some(found))
    }

    /// For each run and group `[ratio, 10 x reference, 10 x model]`, as the reference's summary prints it.
    fn runs(&self, items: &[ItemScore], runs: usize) -> Value {
        let tally = super::tally::Tally::new(items);
        let sums = tally.sums();
        let of_run = |run: usize| {
            let groups = tally.cells.groups(&format!("run/{run}"), "n");
            let row: Map<String, Value> = groups
                .into_iter()
                .map(|group| {
                    let cell = |name: &str| {
                        at(&sums, tally.cells.get(&format!("run/{run}/{group}/{name}")))
                    };
                    let sums = ["reference", "model", "n"].map(cell);
                    let ten = |sum: f64| python::round(python::round(sum / sums[2], 3) * 10.0, 1);
                    let row = json!([ratio(self.protocol, sums), ten(sums[0]), ten(sums[1])]);
                    (group, row)
                })
                .collect();
            Value::from(row)
        };
        (0..runs).map(of_run).collect()
    }
}
