//! TextVQA: reading text in photographs; answers are compared with those of ten people.
//!
//! # Score
//! Each of ten human answers in turn is left out; the accuracy against the other nine is min(1, matches / 3), and their mean is
//! the question's. In closed form, with m of ten answers equal to the prediction: 0, .3, .6, .9, then 1 ([`accuracy`]). Both
//! sides are normalised first.
//!
//! # Protocols
//! - `llava`, `official`, `lmms-eval`: the answer processor of EvalAI ([`evalai`]), faults included.
//! - `vlmevalkit`: its own normaliser ([`vlmevalkit`]).
//! - `strict`: the processor as its comments describe it ([`strict`]).
//!
//! # Prompts
//! `llava` lists OCR tokens between question and suffix, from LLaVA's question file; the others do not, and `lmms-eval`
//! capitalises the question, which lower-cases the rest. The setting `ocr` decides, and is recorded: tokens are worth many
//! points.
//!
//! # Joining
//! LLaVA's answer files name the image, not the question, so rows with a prompt are joined on (image, question in lower
//! case), with the question taken out of the prompt ([`question_of`]). Rows without a prompt are joined on TextVQA's question_id.

mod normalise;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::OnceLock,
};

use serde::Deserialize;
use serde_json::{Value, json};

pub use normalise::{delete_punctuation, evalai, strict, vlmevalkit};

use super::{
    Benchmark, Files, Given, Input, Item, ItemScore, Metric, Protocol, Scored, Settings, Spec,
    join::Prediction,
    pope::SHORT,
    tally::{Additions, Cells, Statistic},
};
use crate::{
    Error, Result,
    data::json::{read_document, read_objects},
};

/// The metric.
pub struct Vqat;

const SPEC: Spec = Spec {
    name: "vqat",
    title: "TextVQA (val): reading text in photographs, soft accuracy",
    headline: "accuracy x 100",
    protocols: &[
        Protocol::Llava,
        Protocol::Official,
        Protocol::LmmsEval,
        Protocol::VlmEvalKit,
        Protocol::Strict,
    ],
    inputs: &[
        Input {
            key: "annotations",
            names: &["TextVQA_0.5.1_val.json"],
            what: "TextVQA_0.5.1_val.json: questions with ten answers each",
            from: "textvqa.org/dataset, v0.5.1",
            required: true,
        },
        Input {
            key: "questions",
            names: &["llava_textvqa_val_v051_ocr.jsonl"],
            what: "LLaVA's question file, for prompts with OCR tokens",
            from: "LLaVA's eval.zip (docs/Evaluation.md), textvqa/llava_textvqa_val_v051_ocr.jsonl",
            required: false,
        },
    ],
    ids: &["question_id", "questionId", "id"],
    texts: &["text", "answer", "prediction"],
    suffix: SHORT,
    max_new_tokens: 128,
    judged: false,
};

/// Accuracy of an answer that equals `matches` of the ten human ones.
pub fn accuracy(matches: usize) -> f64 {
    // The reference sums ten quotients; these are the doubles nearest to the exact values, as `statistics.mean` gives them.
    [0.0, 0.3, 0.6, 0.9].get(matches).copied().unwrap_or(1.0)
}

/// The question inside a prompt of LLaVA's, in lower case; none where the prompt has another form, at which LLaVA's script ends.
pub fn question_of(prompt: &str) -> Option<String> {
    let lines: Vec<&str> = prompt.split('\n').collect();
    let question = if prompt.starts_with("OCR tokens: ") {
        let (_, rest) = prompt.split_once("Question: ")?;
        rest.split_once(" Short answer:")?.0
    } else if prompt.contains("Reference OCR token: ") && lines.len() == 3 {
        if prompt.starts_with("Reference OCR token:") { lines[1] } else { lines[0] }
    } else if lines.len() == 2 {
        lines[0]
    } else {
        return None;
    };
    Some(question.to_lowercase())
}

fn normaliser(protocol: Protocol) -> fn(&str) -> String {
    match protocol {
        Protocol::VlmEvalKit => vlmevalkit,
        Protocol::Strict => strict,
        Protocol::Llava | Protocol::Official | Protocol::LmmsEval => evalai,
    }
}

#[derive(Deserialize)]
struct Annotations {
    data: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    question_id: Value,
    image_id: String,
    question: String,
    #[serde(default)]
    answers: Vec<String>,
}

struct Questions {
    path: std::path::PathBuf,
    protocol: Protocol,
    items: Vec<Item>,
    /// Ten answers each, in the items' order.
    answers: Vec<Vec<String>>,
    /// Place by image and question in lower case, made when a row names its question so.
    by_image: OnceLock<HashMap<(String, String), usize>>,
    ids: HashSet<String>,
}

impl Metric for Vqat {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open(&self, files: &Files, settings: &Settings) -> Result<Box<dyn Benchmark>> {
        let path = files.need(SPEC.inputs, "annotations")?;
        let protocol = SPEC.protocol(settings.protocol)?;
        let suffix = SPEC.suffix(settings);
        let prompts = match files.find(SPEC.inputs, "questions")? {
            Some(path) if with_ocr(settings)? => Some(prompts(&path)?),
            // Prompts do not matter for answers that are there already; `can_ask` is for the others.
            _ => None,
        };
        let mut benchmark = Questions {
            path: path.clone(),
            protocol,
            items: Vec::new(),
            answers: Vec::new(),
            by_image: OnceLock::new(),
            ids: HashSet::new(),
        };
        for question in read_document::<Annotations>(&path)?.data {
            let at = || format!("question {}", question.question_id);
            let id = match &question.question_id {
                Value::String(id) => id.clone(),
                id => id.to_string(),
            };
            if question.answers.len() != 10 {
                let message = format!("has {} answers, expected 10", question.answers.len());
                return Err(Error::invalid(&path, at(), message));
            }
            let key = || (question.image_id.clone(), question.question.to_lowercase());
            let prompt = prompts.as_ref().and_then(|prompts| prompts.get(&key()).cloned());
            let prompt = prompt.unwrap_or_else(|| match protocol {
                Protocol::LmmsEval => format!("{}{suffix}", capitalize(&question.question)),
                _ => format!("{}{suffix}", question.question),
            });
            if !benchmark.ids.insert(id.clone()) {
                return Err(Error::invalid(&path, at(), "is there twice, ids must differ"));
            }
            benchmark.answers.push(question.answers);
            benchmark.items.push(Item {
                id,
                image: Some(question.image_id),
                question: question.question,
                prompt,
                category: String::new(),
            });
        }
        if benchmark.items.is_empty() {
            return Err(Error::invalid(&path, "field data", "is empty, expected questions"));
        }
        Ok(Box::new(benchmark))
    }

    fn can_ask(&self, files: &Files, settings: &Settings) -> Result<()> {
        if with_ocr(settings)? { files.need(SPEC.inputs, "questions").map(|_| ()) } else { Ok(()) }
    }

    fn statistics(&self, _protocol: Protocol, cells: &Cells) -> Vec<Statistic> {
        vec![Statistic::ratio("accuracy", cells, ("sum", "n"), 100.0).within(0.0, 100.0)]
    }
}

impl Questions {
    /// LLaVA keeps the last of two equal questions about an image, and so does this.
    fn by_image(&self) -> &HashMap<(String, String), usize> {
        self.by_image.get_or_init(|| {
            let key = |item: &Item| {
                (item.image.clone().unwrap_or_default(), item.question.to_lowercase())
            };
            self.items.iter().map(key).zip(0..).collect()
        })
    }
}

/// Whether prompts list OCR tokens.
fn with_ocr(settings: &Settings) -> Result<bool> {
    Ok(settings.ocr.unwrap_or(SPEC.protocol(settings.protocol)? == Protocol::Llava))
}

/// LLaVA's prompts by image and question.
fn prompts(path: &Path) -> Result<HashMap<(String, String), String>> {
    let mut prompts = HashMap::new();
    for object in read_objects(path)? {
        let (image, text) = (object.name("question_id")?, object.string("text")?);
        let Some(question) = question_of(text) else {
            let message =
                format!("is {text:?}, expected question, OCR tokens and suffix on a line each");
            return Err(object.error("text", message));
        };
        prompts.insert((image, question), text.to_owned());
    }
    Ok(prompts)
}

/// Python's `str.capitalize`: the first character in title case, the rest in lower case.
fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

impl Benchmark for Questions {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn key(&self, row: &Prediction) -> Result<Option<String>> {
        let (Some(id), Some(prompt)) = (&row.id, &row.prompt) else { return Ok(None) };
        // Rows of our own repeat the prompt, too, but name the question.
        if self.ids.contains(id) {
            return Ok(None);
        }
        let Some(question) = question_of(prompt) else {
            return Err(Error::invalid(
                &self.path,
                format!("answer on line {}", row.line),
                format!("has the prompt {prompt:?}, expected question and suffix on a line each"),
            ));
        };
        match self.by_image().get(&(id.clone(), question.clone())) {
            Some(&place) => Ok(Some(self.items[place].id.clone())),
            None => Ok(Some(format!("{id}: {question}"))),
        }
    }

    fn score(&self, given: &Given) -> Result<Scored> {
        let normalise = normaliser(self.protocol);
        let (sum, n): (std::sync::Arc<str>, std::sync::Arc<str>) = ("sum".into(), "n".into());
        let one = |i: usize| {
            let item = &self.items[i];
            let parsed = normalise(given.answer(i));
            // Most of the ten answers are the same; each is normalised once.
            let mut known: Vec<(&str, bool)> = Vec::with_capacity(10);
            let mut matches = 0;
            for target in &self.answers[i] {
                let equal = match known.iter().find(|(text, _)| text == target) {
                    Some(&(_, equal)) => equal,
                    None => {
                        let equal = normalise(target) == parsed;
                        known.push((target, equal));
                        equal
                    }
                };
                matches += usize::from(equal);
            }
            let score = accuracy(matches);
            let mut cells = Additions::default();
            cells.push(sum.clone(), score);
            cells.push(n.clone(), 1.0);
            ItemScore {
                parsed: json!(parsed),
                target: json!(self.answers[i]),
                score: Some(score),
                cells,
                ..ItemScore::of(item, given, i)
            }
        };
        use rayon::prelude::*;
        let items = (0..self.items.len()).into_par_iter().map(one).collect();
        Ok(Scored { items, ..Scored::default() })
    }
}
