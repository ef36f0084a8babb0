//! From words to COCO's 80 classes: double words, and the benchmark's table of synonyms.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use super::words;
use crate::{Error, Result};

/// Pairs of words that are one object word.
const PAIRS: [&str; 29] = [
    "motor bike",
    "motor cycle",
    "air plane",
    "traffic light",
    "street light",
    "traffic signal",
    "stop light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "suit case",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "cell phone",
    "mobile phone",
    "teddy bear",
    "hair drier",
    "potted plant",
    "bow tie",
    "laptop computer",
    "stove top oven",
    "home plate",
    "train track",
    "passenger jet",
    "passenger train",
];

/// Animals that stay what they are after `baby` or `adult`.
const ANIMALS: [&str; 12] = [
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    "animal", "cub",
];

/// CHAIR's double words with what they become. `stove top oven` can never match, since words are taken in twos.
pub fn double_words() -> HashMap<String, String> {
    let mut table: HashMap<String, String> =
        PAIRS.iter().map(|pair| ((*pair).to_owned(), (*pair).to_owned())).collect();
    for animal in ANIMALS {
        table.insert(format!("baby {animal}"), animal.to_owned());
        table.insert(format!("adult {animal}"), animal.to_owned());
    }
    // `wine glas` is what the suffix rules leave of `wine glass`.
    for (pair, word) in [
        ("bow tie", "tie"),
        ("toilet seat", "toilet"),
        ("wine glas", "wine glass"),
        ("passenger jet", "jet"),
        ("passenger train", "train"),
    ] {
        table.insert(pair.to_owned(), word.to_owned());
    }
    table
}

/// A benchmark's synonyms: one line a class, its name first, entries separated by `, `.
#[derive(Clone, Debug, Default)]
pub struct Synonyms {
    /// Class by synonym.
    class: HashMap<String, String>,
}

impl Synonyms {
    /// Reads the file. Entries are taken as CHAIR takes them: lines are stripped, entries are not, so that an entry after two
    /// blanks keeps one and cannot be found; with `repaired` they are stripped and brought to lower case.
    ///
    /// # Errors
    /// If the file cannot be read, is not UTF-8, or has no line.
    pub fn read(path: &Path, repaired: bool) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut class = HashMap::new();
        for line in text.lines() {
            let entries: Vec<&str> = line.trim().split(", ").collect();
            let name = if repaired { entries[0].trim() } else { entries[0] };
            for entry in &entries {
                let entry =
                    if repaired { entry.trim().to_lowercase() } else { (*entry).to_owned() };
                class.insert(entry, name.to_owned());
            }
        }
        class.remove("");
        if class.is_empty() {
            return Err(Error::invalid(path, "", "has no synonyms, expected one line a class"));
        }
        Ok(Self { class })
    }

    /// The class of a word or double word.
    pub fn class(&self, word: &str) -> Option<&str> {
        self.class.get(word).map(String::as_str)
    }

    /// Names of all classes.
    pub fn classes(&self) -> HashSet<&str> {
        self.class.values().map(String::as_str).collect()
    }
}

/// How a word becomes singular.
pub(super) type Rule = dyn Fn(&str) -> String + Send + Sync;

/// The pipeline from a caption to classes.
pub(super) struct Pipeline {
    pub synonyms: Synonyms,
    pub doubles: HashMap<String, String>,
    pub singular: Box<Rule>,
    /// Keep a word as it is where the synonyms have it: the `strict` protocol, which so keeps `bus`.
    pub known_first: bool,
}

impl Pipeline {
    /// The classes that a caption mentions, in order, with repetition. `memory` remembers singular forms.
    pub fn classes(&self, caption: &str, memory: &mut HashMap<String, String>) -> Vec<&str> {
        let singular: Vec<String> = words::words(caption)
            .into_iter()
            .map(|word| {
                if self.known_first && self.synonyms.class(&word).is_some() {
                    return word;
                }
                if let Some(known) = memory.get(&word) {
                    return known.clone();
                }
                let singular = (self.singular)(&word);
                memory.insert(word, singular.clone());
                singular
            })
            .collect();
        let mut merged: Vec<&str> = Vec::with_capacity(singular.len());
        let mut i = 0;
        let mut double = String::new();
        while i < singular.len() {
            if let Some(next) = singular.get(i + 1) {
                double.clear();
                double.push_str(&singular[i]);
                double.push(' ');
                double.push_str(next);
                if let Some(word) = self.doubles.get(&double) {
                    merged.push(word);
                    i += 2;
                    continue;
                }
            }
            merged.push(&singular[i]);
            i += 1;
        }
        // A toilet's seat is no chair.
        let toilet = merged.contains(&"toilet");
        merged
            .into_iter()
            .filter(|word| !(toilet && *word == "seat"))
            .filter_map(|word| self.synonyms.class(word))
            .collect()
    }
}
