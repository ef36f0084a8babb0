//! POPE: is an object in the image, yes or no?
//!
//! # Protocols
//! - `llava`, `official` (the same rule; LLaVA's files or POPE's): see [`says_no`]. F1 is 0 where nothing is true positive.
//!   The score is the mean of the splits' F1. A label other than `no` counts as yes.
//! - `lmms-eval`: an answer is right if it equals the label after lower-casing and trimming; one that is neither `yes` nor
//!   `no` is in no cell of precision and recall, but wrong for accuracy. All splits are pooled. Its yes-ratio is that of the
//!   ground truth, not of the answers.
//! - `vlmevalkit`: see [`word_decides`]; without a judge an undecided answer counts as no for F1, and as wrong for
//!   accuracy whatever the label. All splits are pooled.
//! - `strict`: see [`strict`]; an undecided answer is wrong in every respect, labels must be yes or no.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{
    Benchmark, Files, Given, Input, Item, ItemScore, Metric, Protocol, Scored, Settings, Spec,
    tally::{Additions, Cells, Statistic, at},
    vqat::delete_punctuation,
};
use crate::{
    Error, Result,
    data::json::{Object, read_objects},
};

/// LLaVA's suffix for short answers; the files of LLaVA hold it already.
pub const SHORT: &str = "\nAnswer the question using a single word or phrase.";

/// The metric.
pub struct Pope;

const SPEC: Spec = Spec {
    name: "pope",
    title: "POPE: is an object in the image? yes/no, F1",
    headline: "mean of the splits' F1 x 100 (llava, official, strict); pooled F1 x 100 (lmms-eval, vlmevalkit)",
    protocols: &[
        Protocol::Llava,
        Protocol::Official,
        Protocol::LmmsEval,
        Protocol::VlmEvalKit,
        Protocol::Strict,
    ],
    inputs: &[
        Input {
            key: "labels",
            names: &["coco", "labels", "output/coco", "."],
            what: "folder of coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json (any of them), or one such file",
            from: "github.com/RUCAIBox/POPE, output/coco (LLaVA uses the revision e3e39262 with 2,910 random questions)",
            required: true,
        },
        Input {
            key: "questions",
            names: &["llava_pope_test.jsonl", "questions.jsonl"],
            what: "LLaVA's question file, for its ids and prompts",
            from: "LLaVA's eval.zip (docs/Evaluation.md), pope/llava_pope_test.jsonl",
            required: false,
        },
    ],
    ids: &["question_id", "id"],
    texts: &["text", "answer", "prediction"],
    suffix: SHORT,
    max_new_tokens: 128,
    judged: false,
};

impl Metric for Pope {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open(&self, files: &Files, settings: &Settings) -> Result<Box<dyn Benchmark>> {
        let protocol = SPEC.protocol(settings.protocol)?;
        let labels = files.need(SPEC.inputs, "labels")?;
        let splits = splits(&labels, protocol)?;
        let suffix = SPEC.suffix(settings);
        let questions = match files.find(SPEC.inputs, "questions")? {
            Some(path) => from_questions(&path, &splits, settings)?,
            None => from_labels(&splits, suffix),
        };
        Ok(Box::new(Questions { protocol, questions: questions.1, items: questions.0 }))
    }

    fn statistics(&self, protocol: Protocol, cells: &Cells) -> Vec<Statistic> {
        let splits = cells.groups("", "n");
        let counts: Vec<Counts> = splits.iter().map(|split| Counts::of(cells, split)).collect();
        let pooled = matches!(protocol, Protocol::LmmsEval | Protocol::VlmEvalKit);
        let mean = counts.clone();
        let mean = move |sums: &[f64]| {
            100.0 * mean.iter().map(|split| f1(split.sums(sums))).sum::<f64>() / mean.len() as f64
        };
        let all = counts.clone();
        let total = move |sums: &[f64]| {
            let mut total = [0.0; 7];
            for split in &all {
                total.iter_mut().zip(split.sums(sums)).for_each(|(total, sum)| *total += sum);
            }
            total
        };
        let mut list = Vec::new();
        let over_all = |name: &str, value: Share| {
            let total = total.clone();
            Statistic::new(name, move |sums| 100.0 * value(total(sums))).within(0.0, 100.0)
        };
        if pooled {
            list.push(over_all("f1_pooled", f1));
            list.push(Statistic::new("f1", mean).within(0.0, 100.0));
        } else {
            list.push(Statistic::new("f1", mean).within(0.0, 100.0));
            list.push(over_all("f1_pooled", f1));
        }
        list.push(over_all("accuracy", accuracy));
        list.push(over_all("precision", precision));
        list.push(over_all("recall", recall));
        list.push(over_all("yes_ratio", yes_ratio));
        for (split, counts) in splits.iter().zip(counts) {
            let each: [(&str, Share); 5] = [
                ("f1", f1),
                ("accuracy", accuracy),
                ("precision", precision),
                ("recall", recall),
                ("yes_ratio", yes_ratio),
            ];
            for (name, value) in each {
                let share = move |sums: &[f64]| 100.0 * value(counts.sums(sums));
                let statistic = Statistic::new(format!("{name}/{split}"), share);
                list.push(statistic.within(0.0, 100.0));
            }
        }
        list
    }
}

/// Cells of one split: tp, fp, tn, fn, right, yes, n.
#[derive(Clone, Copy)]
struct Counts([Option<usize>; 7]);

const CELLS: [&str; 7] = ["tp", "fp", "tn", "fn", "right", "yes", "n"];

impl Counts {
    fn of(cells: &Cells, split: &str) -> Self {
        Self(CELLS.map(|cell| cells.get(&format!("{split}/{cell}"))))
    }

    fn sums(&self, sums: &[f64]) -> [f64; 7] {
        self.0.map(|cell| at(sums, cell))
    }
}

/// A share of a split's counts.
type Share = fn([f64; 7]) -> f64;

fn precision([tp, fp, ..]: [f64; 7]) -> f64 {
    if tp == 0.0 { 0.0 } else { tp / (tp + fp) }
}

fn recall([tp, _, _, fnn, ..]: [f64; 7]) -> f64 {
    if tp == 0.0 { 0.0 } else { tp / (tp + fnn) }
}

/// From precision and recall, as the reference computes it.
fn f1(counts: [f64; 7]) -> f64 {
    let (p, r) = (precision(counts), recall(counts));
    if p + r == 0.0 { 0.0 } else { 2.0 * p * r / (p + r) }
}

fn accuracy([_, _, _, _, right, _, n]: [f64; 7]) -> f64 {
    right / n
}

fn yes_ratio([_, _, _, _, _, yes, n]: [f64; 7]) -> f64 {
    yes / n
}

/// The rule of POPE's evaluate.py and LLaVA's eval_pope.py: whether an answer is a no; all else is a yes.
///
/// Only the text before the first `.` counts, which may be nothing. Commas are deleted, words end at U+0020 only, and one of
/// them must be exactly `No`, `not` or `no`. So `NO`, `No!`, `No\n`, `isn't` and an empty answer are yes, and
/// `Yes, but not clearly` is no.
pub fn says_no(answer: &str) -> bool {
    let sentence = answer.split('.').next().unwrap_or_default().replace(',', "");
    sentence.split(' ').any(|word| matches!(word, "No" | "not" | "no"))
}

/// lmms-eval's reading of an answer, which must then equal the label.
pub fn lmms(answer: &str) -> String {
    super::python::strip(&answer.to_lowercase()).to_owned()
}

/// VLMEvalKit's rule: punctuation is deleted as for VQA, and the answer is decided if exactly one of the words `yes` and `no`
/// occurs. `not` is no such word.
pub fn word_decides(answer: &str) -> Option<bool> {
    let text = delete_punctuation(&answer.to_lowercase());
    let has = |wanted: &str| super::python::split(&text).any(|word| word == wanted);
    match (has("yes"), has("no")) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        _ => None,
    }
}

/// The strict reading: letters only, in any case. The first word decides if it is yes or no; else the answer is decided if it
/// holds yes and no negation, or a negation (no, not, none, cannot, a word in n't) and no yes.
pub fn strict(answer: &str) -> Option<bool> {
    let lower = answer.to_lowercase().replace('\u{2019}', "'");
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_alphabetic() && c != '\'')
        .map(|word| word.trim_matches('\''))
        .filter(|word| !word.is_empty())
        .collect();
    let negates = |word: &&str| {
        matches!(*word, "no" | "not" | "none" | "nope" | "cannot") || word.ends_with("n't")
    };
    match words.first() {
        Some(&"yes") => return Some(true),
        Some(&"no") => return Some(false),
        _ => {}
    }
    match (words.contains(&"yes"), words.iter().any(negates)) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        _ => None,
    }
}

/// One file of labels.
struct Split {
    name: String,
    path: PathBuf,
    rows: Vec<Label>,
}

struct Label {
    line: usize,
    image: String,
    question: String,
    label: String,
}

/// The label files of a folder, or the one file: random, popular, adversarial, then others by name.
fn splits(path: &Path, protocol: Protocol) -> Result<Vec<Split>> {
    let mut paths = vec![path.to_owned()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
        paths = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_json = name.ends_with(".json") || name.ends_with(".jsonl");
            is_json && name.contains("_pope_") && !name.starts_with("llava_pope_")
        });
    }
    if paths.is_empty() {
        let message = "has no label file, expected coco_pope_random.json, coco_pope_popular.json or coco_pope_adversarial.json";
        return Err(Error::invalid(path, "", message));
    }
    let mut splits = paths
        .into_iter()
        .map(|path| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let name = stem.split_once("_pope_").map_or(stem.as_str(), |(_, name)| name).to_owned();
            let rows = read_objects(&path)?
                .iter()
                .map(|object| label(object, protocol))
                .collect::<Result<Vec<_>>>()?;
            if rows.is_empty() {
                return Err(Error::invalid(&path, "", "has no rows, expected one a question"));
            }
            Ok(Split { name, path, rows })
        })
        .collect::<Result<Vec<Split>>>()?;
    let known = ["random", "popular", "adversarial"];
    let place = |name: &str| known.iter().position(|known| *known == name).unwrap_or(known.len());
    splits.sort_by(|a, b| (place(&a.name), &a.name).cmp(&(place(&b.name), &b.name)));
    Ok(splits)
}

fn label(object: &Object, protocol: Protocol) -> Result<Label> {
    let label = object.string("label")?.to_owned();
    if protocol == Protocol::Strict && !matches!(label.as_str(), "yes" | "no") {
        return Err(object.error("label", format!("is {label:?}, expected yes or no")));
    }
    Ok(Label {
        line: object.line,
        image: object.string("image")?.to_owned(),
        question: object.string("text")?.to_owned(),
        label,
    })
}

/// Items with, for each, its label.
type Labelled = (Vec<Item>, Vec<String>);

/// Items of a question file; the k-th question of a split has its k-th label, as in LLaVA, and must ask the same.
fn from_questions(path: &Path, splits: &[Split], settings: &Settings) -> Result<Labelled> {
    let mut next = vec![0usize; splits.len()];
    let (mut items, mut labels) = (Vec::new(), Vec::new());
    for object in read_objects(path)? {
        let category = object.string("category")?;
        let Some(split) = splits.iter().position(|split| split.name == category) else {
            if settings.allow_extra {
                continue;
            }
            let message = format!(
                "is {category:?}, but the labels have no coco_pope_{category}.json; --allow-extra skips such questions"
            );
            return Err(object.error("category", message));
        };
        let place = next[split];
        next[split] += 1;
        let Split { rows, path: labels_path, .. } = &splits[split];
        let Some(row) = rows.get(place) else {
            let message = format!(
                "is question {} of its split, but {} has {}",
                place + 1,
                labels_path.display(),
                rows.len()
            );
            return Err(object.error("category", message));
        };
        let (text, image) = (object.string("text")?, object.string("image")?);
        if !text.starts_with(&row.question) || image != row.image {
            let message = format!(
                "asks {text:?} about {image}, but line {} of {} asks {:?} about {}; both files must have one order",
                row.line,
                labels_path.display(),
                row.question,
                row.image
            );
            return Err(object.error("text", message));
        }
        let prompt = match &settings.suffix {
            None => text.to_owned(),
            Some(suffix) => format!("{}{suffix}", row.question),
        };
        items.push(item(object.name("question_id")?, category, row, prompt));
        labels.push(row.label.clone());
    }
    for (split, asked) in splits.iter().zip(next) {
        if asked < split.rows.len() {
            let message = format!(
                "asks {asked} questions of split {}, but {} has {}",
                split.name,
                split.path.display(),
                split.rows.len()
            );
            return Err(Error::invalid(path, "", message));
        }
    }
    Ok((items, labels))
}

/// Items of the label files alone, numbered as LLaVA does: adversarial from 1, random from 10000001, popular from 20000001;
/// other splits from 30000001, 40000001, ...
fn from_labels(splits: &[Split], suffix: &str) -> Labelled {
    let (mut items, mut labels) = (Vec::new(), Vec::new());
    let mut others = 2;
    for split in splits {
        let block = match split.name.as_str() {
            "adversarial" => 0,
            "random" => 1,
            "popular" => 2,
            _ => {
                others += 1;
                others
            }
        };
        for (row, number) in split.rows.iter().zip(1..) {
            let id = (block * 10_000_000 + number).to_string();
            items.push(item(id, &split.name, row, format!("{}{suffix}", row.question)));
            labels.push(row.label.clone());
        }
    }
    (items, labels)
}

fn item(id: String, split: &str, row: &Label, prompt: String) -> Item {
    Item {
        id,
        image: Some(row.image.clone()),
        question: row.question.clone(),
        prompt,
        category: split.to_owned(),
    }
}

struct Questions {
    protocol: Protocol,
    items: Vec<Item>,
    /// In the items' order.
    questions: Vec<String>,
}

impl Benchmark for Questions {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn score(&self, given: &Given) -> Result<Scored> {
        let mut names = Names::default();
        let mut unparsed = 0u64;
        let items = (0..self.items.len())
            .map(|i| {
                let (item, label) = (&self.items[i], &self.questions[i]);
                let (score, parsed, cells) =
                    self.judge(given.answer(i), label, names.of(&item.category));
                unparsed += u64::from(parsed.is_null());
                ItemScore {
                    parsed,
                    target: json!(label),
                    score: Some(score),
                    cells,
                    ..ItemScore::of(item, given, i)
                }
            })
            .collect::<Vec<_>>();
        let mut details = Map::new();
        details.insert("unparsed".into(), unparsed.into());
        details.insert("splits".into(), confusion(&items));
        Ok(Scored { items, details, ..Scored::default() })
    }
}

impl Questions {
    /// Score, reading and cells of one answer.
    fn judge(&self, answer: &str, label: &str, names: &[Arc<str>; 7]) -> (f64, Value, Additions) {
        let gold = label != "no";
        let yes_no = |yes: bool| json!(if yes { "yes" } else { "no" });
        // What counts as predicted for precision and recall; whether accuracy is given; whether yes-ratio counts a yes.
        let (parsed, cell, right, yes) = match self.protocol {
            Protocol::LmmsEval => {
                let answer = lmms(answer);
                let decided = match answer.as_str() {
                    "yes" => Some(true),
                    "no" => Some(false),
                    _ => None,
                };
                // lmms-eval's yes-ratio counts labels.
                (decided.map_or(Value::Null, yes_no), decided, answer == label, label == "yes")
            }
            Protocol::VlmEvalKit => {
                let decided = word_decides(answer);
                let yes = decided == Some(true);
                (decided.map_or(Value::Null, yes_no), Some(yes), decided == Some(gold), yes)
            }
            Protocol::Strict => {
                let decided = strict(answer);
                let cell = decided.unwrap_or(!gold);
                let yes = decided == Some(true);
                (decided.map_or(Value::Null, yes_no), Some(cell), decided == Some(gold), yes)
            }
            Protocol::Llava | Protocol::Official => {
                let yes = !says_no(answer);
                (yes_no(yes), Some(yes), yes == gold, yes)
            }
        };
        let mut cells = Additions::default();
        if let Some(yes) = cell {
            let place = match (yes, gold) {
                (true, true) => 0,
                (true, false) => 1,
                (false, false) => 2,
                (false, true) => 3,
            };
            cells.push(names[place].clone(), 1.0);
        }
        cells.push(names[4].clone(), f64::from(u8::from(right)));
        cells.push(names[5].clone(), f64::from(u8::from(yes)));
        cells.push(names[6].clone(), 1.0);
        (f64::from(u8::from(right)), parsed, cells)
    }
}

/// Cell names of each split, shared by its items.
#[derive(Default)]
struct Names(Vec<(String, [Arc<str>; 7])>);

impl Names {
    fn of(&mut self, split: &str) -> &[Arc<str>; 7] {
        let place = match self.0.iter().position(|(name, _)| name == split) {
            Some(place) => place,
            None => {
                let cells = CELLS.map(|cell| format!("{split}/{cell}").into());
                self.0.push((split.to_owned(), cells));
                self.0.len() - 1
            }
        };
        &self.0[place].1
    }
}

/// The counts of each split.
fn confusion(items: &[ItemScore]) -> Value {
    let mut splits: Map<String, Value> = Map::new();
    let tally = super::tally::Tally::new(items);
    let sums = tally.sums();
    for split in tally.cells.groups("", "n") {
        let counts = Counts::of(&tally.cells, &split).sums(&sums);
        let counts: Map<String, Value> = CELLS
            .iter()
            .zip(counts)
            .map(|(name, count)| ((*name).into(), json!(count as u64)))
            .collect();
        splits.insert(split, counts.into());
    }
    splits.into()
}
