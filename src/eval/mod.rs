//! Floor 4: the eight benchmarks. Questions and answers in their official formats, scores that can stand beside
//! published ones.
//!
//! A [`Metric`] opens a benchmark's files as a [`Benchmark`]: items with prompts, and a rule that scores answers.
//! [`evaluate`] joins a prediction file (and, for judged sets, the judge's replies) to the items, scores every item and sums
//! the parts ([`tally`]) to the metric's statistics with bootstrap intervals. What differs between reference
//! implementations is a [`Protocol`], named in every result; what a benchmark leaves open is a [`Settings`] field.
//!
//! Scores are recomputed from items alone, so a stored result can be compared with another ([`compare`]).

pub mod answer;
pub mod compare;
mod evaluate;
mod files;
pub mod folder;
pub mod gqa;
pub mod intervals;
pub mod join;
pub mod judge;
pub mod layout;
pub mod llavaw;
pub mod mmhal;
pub mod mmvet;
pub mod pope;
mod python;
pub mod recall_coco;
pub mod replies;
mod rows;
pub mod run;
mod settings;
pub mod summary;
pub mod tally;
pub mod vqat;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use evaluate::{Outcome, Sources, ask_judge, evaluate};
pub use files::{Files, Input};
pub use replies::{Replies, Reply};
pub use settings::{Protocol, Settings, Singular, Unit};

use crate::{Error, Result};
use judge::Ask;
use tally::Statistic;

/// One question of a benchmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Name; differs from those of all other items.
    pub id: String,
    /// Image, as the benchmark names it; none where the benchmark's file names none.
    pub image: Option<String>,
    /// The question without suffix or context.
    pub question: String,
    /// What the model is asked, suffix and context included; the image comes first.
    pub prompt: String,
    /// The benchmark's own grouping; may be empty.
    pub category: String,
}

/// One item with its score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemScore {
    /// As [`Item::id`].
    pub id: String,
    /// As [`Item::category`].
    pub category: String,
    /// What is resampled together: the image, or the item itself.
    pub unit: String,
    /// As [`Item::image`].
    #[serde(default)]
    pub image: Option<String>,
    /// As [`Item::question`].
    #[serde(default)]
    pub question: String,
    /// The answer as given; null where none was needed.
    pub answer: Option<String>,
    /// What the protocol made of it (of the judge's replies, for judged sets).
    pub parsed: Value,
    /// The ground truth.
    pub target: Value,
    /// How good the answer is: 1 is right, except where the metric's scale is another one. Null where nothing could be scored.
    pub score: Option<f64>,
    /// What the item adds to each sum of the tally.
    pub cells: tally::Additions,
}

impl ItemScore {
    /// An item and its answer, not scored yet.
    pub(crate) fn of(item: &Item, given: &Given, place: usize) -> Self {
        Self {
            id: item.id.clone(),
            category: item.category.clone(),
            unit: item.image.clone().unwrap_or_default(),
            image: item.image.clone(),
            question: item.question.clone(),
            answer: given.answers.get(place).cloned().flatten(),
            parsed: Value::Null,
            target: Value::Null,
            score: None,
            cells: tally::Additions::default(),
        }
    }
}

/// All items of a run, scored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// In the benchmark's order.
    pub items: Vec<ItemScore>,
    /// For judged sets: item and run of each reply in which the protocol finds no grade.
    pub ungraded: Vec<(usize, usize)>,
    /// What the metric reports beside its statistics.
    pub details: Map<String, Value>,
}

/// What there is to score.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// One answer an item, in the items' order; null where it is missing.
    pub answers: Vec<Option<String>>,
    /// For judged sets: a list an item for each run of the judge.
    pub replies: Vec<Vec<Option<Reply>>>,
    /// Requests that were no reply, as the files of replies know them.
    pub failed: u64,
}

impl Given {
    /// What a run's judge said of an item, empty where there is no reply (which the reader of the replies has refused).
    pub(crate) fn reply(replies: &[Option<Reply>], item: usize) -> &str {
        replies[item].as_ref().map_or("", |reply| reply.content.as_str())
    }

    /// An item's answer, empty where it is missing (which the reader of the predictions has allowed).
    pub(crate) fn answer(&self, item: usize) -> &str {
        self.answers.get(item).and_then(Option::as_deref).unwrap_or("")
    }
}

/// What is fixed about a metric.
#[derive(Debug)]
pub struct Spec {
    /// As on the command line.
    pub name: &'static str,
    /// One line: benchmark, what is asked, what is measured.
    pub title: &'static str,
    /// What the score is.
    pub headline: &'static str,
    /// The default first.
    pub protocols: &'static [Protocol],
    /// Files of the benchmark.
    pub inputs: &'static [Input],
    /// Fields of a prediction row that may hold the item's id, the likeliest first.
    pub ids: &'static [&'static str],
    /// Fields that may hold the answer.
    pub texts: &'static [&'static str],
    /// Appended to the question, unless the settings say otherwise.
    pub suffix: &'static str,
    /// Most tokens of an answer, unless the settings say otherwise.
    pub max_new_tokens: u32,
    /// Whether a judge grades the answers.
    pub judged: bool,
}

/// A benchmark's rules.
pub trait Metric: Sync {
    /// What is fixed.
    fn spec(&self) -> &'static Spec;

    /// Reads the benchmark's files.
    ///
    /// # Errors
    /// If a needed file is missing (named, with where it comes from), malformed, or does not fit the others.
    fn open(&self, files: &Files, settings: &Settings) -> Result<Box<dyn Benchmark>>;

    /// Most tokens of an answer under a protocol, unless the settings say otherwise.
    fn max_new_tokens(&self, _protocol: Protocol) -> u32 {
        self.spec().max_new_tokens
    }

    /// Checks that the files are enough to ask a model the questions, not only to score answers.
    ///
    /// # Errors
    /// If one is missing.
    fn can_ask(&self, _files: &Files, _settings: &Settings) -> Result<()> {
        Ok(())
    }

    /// The statistics that can be read off sums over items, the score first. `cells` are the names of all sums.
    fn statistics(&self, protocol: Protocol, cells: &tally::Cells) -> Vec<Statistic>;
}

/// A benchmark's items and how they are scored.
pub trait Benchmark: Sync {
    /// The questions, in the benchmark's order.
    fn items(&self) -> &[Item];

    /// Whether only the items that have an answer count, since nothing says which were asked.
    fn open_ended(&self) -> bool {
        false
    }

    /// Scores answers, or a judge's replies to them.
    ///
    /// # Errors
    /// If a reply makes the score undefined; the message names the item.
    fn score(&self, given: &Given) -> Result<Scored>;

    /// What a judge is asked about an answer.
    ///
    /// # Errors
    /// If the metric has no judge, or a file that the question needs is missing.
    fn ask(&self, item: usize, _answer: &str) -> Result<Ask> {
        let item = &self.items()[item].id;
        Err(Error::argument("judge", "item", item, "an item of a metric with a judge"))
    }

    /// What to ask after these replies to `first` and what followed it; none once there is a verdict, or no more to ask.
    fn again(&self, _first: &Ask, _replies: &[String]) -> Option<Ask> {
        None
    }

    /// Whether [`Benchmark::ask`] uses the benchmark's own prompt. Results of another one are not comparable.
    fn official_prompt(&self) -> bool {
        false
    }

    /// The item's id that a row of a prediction file means, where the file names items in another way; none for the row's own id.
    ///
    /// # Errors
    /// If a row names no item of the benchmark.
    fn key(&self, _row: &join::Prediction) -> Result<Option<String>> {
        Ok(None)
    }
}

/// All metrics, in the order of the published table.
pub const METRICS: [&dyn Metric; 8] = [
    &pope::Pope,
    &mmhal::MmHal { vision: false },
    &mmhal::MmHal { vision: true },
    &llavaw::LlavaW,
    &vqat::Vqat,
    &gqa::Gqa,
    &mmvet::MmVet,
    &recall_coco::RecallCoco,
];

/// The metric of a name.
///
/// # Errors
/// If there is none; the message lists all.
pub fn metric(name: &str) -> Result<&'static dyn Metric> {
    METRICS.into_iter().find(|metric| metric.spec().name == name).ok_or_else(|| {
        let names: Vec<&str> = METRICS.iter().map(|metric| metric.spec().name).collect();
        Error::argument("eval", "metric", format!("{name:?}"), names.join(", "))
    })
}

impl Spec {
    /// What is appended to the question.
    pub(crate) fn suffix<'a>(&self, settings: &'a Settings) -> &'a str {
        settings.suffix.as_deref().unwrap_or(self.suffix)
    }

    /// The protocol asked for, or the default.
    ///
    /// # Errors
    /// If the metric does not have it; the message lists those it has.
    pub fn protocol(&self, wanted: Option<Protocol>) -> Result<Protocol> {
        match wanted {
            None => Ok(self.protocols[0]),
            Some(protocol) if self.protocols.contains(&protocol) => Ok(protocol),
            Some(protocol) => Err(Error::argument(
                self.name,
                "protocol",
                protocol,
                self.protocols.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            )),
        }
    }

    /// What `--help` says: score, protocols, files and where they come from.
    pub fn help(&self) -> String {
        let names: Vec<String> = self.protocols.iter().map(ToString::to_string).collect();
        let protocols = names.join(", ").replacen(&names[0], &format!("{} (default)", names[0]), 1);
        let text = format!("Score: {}\nProtocols: {protocols}", self.headline);
        format!("{text}\n\n{}", Input::list(self.inputs))
    }
}
