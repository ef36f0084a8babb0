//! Recall_coco: which of an image's objects does a caption mention, and which does it make up?
//!
//! # Pipeline
//! CHAIR's (Rohrbach et al. 2018): lower case, words ([`words`]), singular forms ([`singular::pattern`] by default), pairs that
//! are one word merged from left to right, `seat` dropped beside `toilet`, and each word of the synonym table mapped to its
//! class. An image's objects are the classes of its COCO instances (train and val) and of what its reference captions mention.
//!
//! # Scores
//! Recall is the sum over captions of distinct recalled objects / the sum of objects, x 100; CHAIR_i is made-up mentions / all
//! mentions, with repetition; CHAIR_s is the share of captions with a made-up object. An image without objects adds nothing.
//!
//! # Protocols
//! - `official`: as above, with the table's faults: two entries begin with a blank and one with a capital, and can never match.
//! - `strict`: table entries are trimmed and in lower case, and a word that the table has is kept as it is, so that `bus`
//!   counts.
//!
//! Published numbers differ in the singulariser; the setting `singular` chooses it and is recorded. The lemmatisers of OPERA and
//! lmms-eval tag parts of speech first, which is not done here: `wordnet` takes every word as a noun, as Object HalBench's rules do.

mod coco;
pub mod singular;
pub mod tables;
mod wordnet;
pub mod words;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use self::{
    coco::Objects,
    tables::{Pipeline, Synonyms},
    wordnet::Nouns,
};
use super::{
    Benchmark, Files, Given, Input, Item, ItemScore, Metric, Protocol, Scored, Settings, Singular,
    Spec,
    join::Prediction,
    tally::{Additions, Cells, Statistic},
};
use crate::{
    Error, Result,
    data::json::{Object, read_objects},
};

/// The metric.
pub struct RecallCoco;

/// lmms-eval's question; Object HalBench asks each image's own.
const QUESTION: &str = "Please describe this image in detail.";

const SPEC: Spec = Spec {
    name: "recall-coco",
    title: "Recall_coco: objects that a caption mentions or makes up (CHAIR's rules)",
    headline: "micro recall x 100",
    protocols: &[Protocol::Official, Protocol::Strict],
    inputs: &[
        Input {
            key: "synonyms",
            names: &[
                "synonyms.txt",
                "chair_synonyms.txt",
                "data/synonyms.txt",
                "synonyms_refine.txt",
            ],
            what: "synonyms.txt: a line for each of the 80 classes",
            from: "github.com/LisaAnne/Hallucination, data/synonyms.txt (Object HalBench: synonyms_refine.txt)",
            required: true,
        },
        Input {
            key: "images",
            names: &["questions.jsonl", "obj_halbench_300_with_image.jsonl", "images.jsonl"],
            what: "rows {\"image_id\", \"question\"?, \"image\"?}: the images that are captioned; without it, those of the prediction file",
            from: "github.com/RLHF-V/RLAIF-V, eval/data (Object HalBench), or your own",
            required: false,
        },
        Input {
            key: "objects",
            names: &["gt_objects.json", "objects.json"],
            what: "a ready list {\"image id\": [\"class\", ...]}, instead of the annotations",
            from: "your own",
            required: false,
        },
        Input {
            key: "annotations",
            names: &["annotations", "coco/annotations"],
            what: "folder of instances_train2014.json, instances_val2014.json, captions_train2014.json, captions_val2014.json",
            from: "cocodataset.org, annotations_trainval2014.zip",
            required: false,
        },
        Input {
            key: "wordnet",
            names: &["wordnet", "dict"],
            what: "WordNet's dict folder with index.noun and noun.exc, for --singular wordnet",
            from: "wordnet.princeton.edu, or the package wordnet-base",
            required: false,
        },
    ],
    ids: &["image_id", "question_id", "id"],
    texts: &["caption", "text", "answer", "prediction"],
    suffix: "",
    max_new_tokens: 1024,
    judged: false,
};

struct Questions {
    items: Vec<Item>,
    objects: Objects,
    pipeline: Pipeline,
    /// No file says which images were asked about.
    open_ended: bool,
}

impl Metric for RecallCoco {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open(&self, files: &Files, settings: &Settings) -> Result<Box<dyn Benchmark>> {
        let strict = SPEC.protocol(settings.protocol)? == Protocol::Strict;
        let singular: Box<tables::Rule> = match settings.singular {
            Singular::Pattern => Box::new(singular::pattern),
            Singular::None => Box::new(str::to_owned),
            Singular::Wordnet => {
                let nouns = Nouns::read(&files.need(SPEC.inputs, "wordnet")?)?;
                Box::new(move |word| nouns.lemma(word))
            }
        };
        let pipeline = Pipeline {
            synonyms: Synonyms::read(&files.need(SPEC.inputs, "synonyms")?, strict)?,
            doubles: tables::double_words(),
            singular,
            known_first: strict,
        };
        let suffix = SPEC.suffix(settings);
        let mut items: Vec<Item> = Vec::new();
        if let Some(path) = files.find(SPEC.inputs, "images")? {
            items = read_objects(&path)?
                .iter()
                .map(|object| item(object, suffix))
                .collect::<Result<_>>()?;
        }
        let open_ended = items.is_empty();
        let objects = ground_truth(files, &mut items, suffix, &pipeline)?;
        if let Some(item) = items.iter().find(|item| !objects.contains_key(&item.id)) {
            let message =
                "has no entry in the object list, expected one (an empty list for no objects)";
            return Err(Error::invalid("objects", format!("image {}", item.id), message));
        }
        Ok(Box::new(Questions { items, objects, pipeline, open_ended }))
    }

    fn statistics(&self, _protocol: Protocol, cells: &Cells) -> Vec<Statistic> {
        vec![
            Statistic::ratio("recall", cells, ("recalled", "objects"), 100.0).within(0.0, 100.0),
            Statistic::ratio("chair_i", cells, ("made_up", "mentions"), 100.0).within(0.0, 100.0),
            Statistic::ratio("chair_s", cells, ("captions_made_up", "captions"), 100.0)
                .within(0.0, 100.0),
        ]
    }
}

fn item(object: &Object, suffix: &str) -> Result<Item> {
    let id = object.name("image_id")?;
    let question = object.get("question").and_then(Value::as_str).unwrap_or(QUESTION).to_owned();
    // Object HalBench holds the image itself, in base64; that is no name.
    let image = object.get("image").and_then(Value::as_str).filter(|image| image.len() < 1000);
    let image = image.map_or_else(|| id.clone(), str::to_owned);
    Ok(Item {
        prompt: format!("{question}{suffix}"),
        image: Some(image),
        question,
        category: String::new(),
        id,
    })
}

/// The objects of the items' images; where there are no items, all images become some.
fn ground_truth(
    files: &Files,
    items: &mut Vec<Item>,
    suffix: &str,
    pipeline: &Pipeline,
) -> Result<Objects> {
    let objects = match files.find(SPEC.inputs, "objects")? {
        Some(path) => coco::list(&path, &pipeline.synonyms.classes())?,
        None => {
            let folder = files.need(SPEC.inputs, "annotations")?;
            let wanted: HashSet<String> = items.iter().map(|item| item.id.clone()).collect();
            let wanted = (!items.is_empty()).then_some(&wanted);
            let (instances, captions) = (parts(&folder, "instances")?, parts(&folder, "captions")?);
            coco::annotations(&instances, &captions, wanted, pipeline)?
        }
    };
    if items.is_empty() {
        let mut ids: Vec<&String> = objects.keys().collect();
        ids.sort_by_key(|id| (id.len(), *id));
        items.extend(ids.into_iter().map(|id| Item {
            prompt: format!("{QUESTION}{suffix}"),
            image: Some(id.clone()),
            question: QUESTION.to_owned(),
            category: String::new(),
            id: id.clone(),
        }));
    }
    Ok(objects)
}

/// The files of one kind in COCO's annotation folder.
fn parts(folder: &Path, kind: &str) -> Result<Vec<PathBuf>> {
    let paths: Vec<PathBuf> = ["train2014", "val2014", "train2017", "val2017"]
        .iter()
        .map(|split| folder.join(format!("{kind}_{split}.json")))
        .filter(|path| path.exists())
        .collect();
    if paths.is_empty() {
        let message = format!("has no {kind}_train2014.json or {kind}_val2014.json, expected both");
        return Err(Error::invalid(folder, "", message));
    }
    Ok(paths)
}

impl Benchmark for Questions {
    fn items(&self) -> &[Item] {
        &self.items
    }

    /// COCO's file names hold the image id.
    fn key(&self, row: &Prediction) -> Result<Option<String>> {
        let Some(id) = row.id.as_deref().filter(|id| id.starts_with("COCO_")) else {
            return Ok(None);
        };
        let digits = id.trim_end_matches(".jpg").rsplit('_').next().unwrap_or_default();
        Ok(Some(digits.trim_start_matches('0').to_owned()))
    }

    fn open_ended(&self) -> bool {
        self.open_ended
    }

    fn score(&self, given: &Given) -> Result<Scored> {
        use rayon::prelude::*;
        let cells = ["recalled", "objects", "made_up", "mentions", "captions_made_up", "captions"]
            .map(std::sync::Arc::<str>::from);
        let items: Vec<ItemScore> = (0..self.items.len())
            .into_par_iter()
            .filter(|&i| !self.open_ended || given.answers.get(i).is_some_and(Option::is_some))
            .map_init(HashMap::new, |memory, i| self.one(i, given, &cells, memory))
            .collect();
        let mut totals = Map::new();
        for (place, cell) in cells.iter().enumerate() {
            let sum: f64 = items.iter().map(|item| item.cells.0[place].1).sum();
            totals.insert(cell.to_string(), json!(sum as u64));
        }
        let mut details = Map::new();
        details.insert("totals".into(), totals.into());
        Ok(Scored { items, details, ..Scored::default() })
    }
}

impl Questions {
    fn one(
        &self,
        i: usize,
        given: &Given,
        names: &[std::sync::Arc<str>; 6],
        memory: &mut HashMap<String, String>,
    ) -> ItemScore {
        let item = &self.items[i];
        let objects = &self.objects[&item.id];
        let mentions = self.pipeline.classes(given.answer(i), memory);
        let distinct: BTreeSet<&str> = mentions.iter().copied().collect();
        let (recalled, made_up): (Vec<&str>, Vec<&str>) =
            distinct.iter().partition(|class| objects.contains(**class));
        let missed: Vec<&String> =
            objects.iter().filter(|class| !distinct.contains(class.as_str())).collect();
        let wrong = mentions.iter().filter(|class| !objects.contains(**class)).count();
        let counts =
            [recalled.len(), objects.len(), wrong, mentions.len(), usize::from(wrong > 0), 1];
        let mut cells = Additions::default();
        for (name, count) in names.iter().zip(counts) {
            cells.push(name.clone(), count as f64);
        }
        ItemScore {
            parsed: json!({
                "mentions": mentions, "recalled": recalled, "made_up": made_up, "missed": missed,
            }),
            target: json!(objects),
            score: (!objects.is_empty()).then(|| recalled.len() as f64 / objects.len() as f64),
            cells,
            ..ItemScore::of(item, given, i)
        }
    }
}
