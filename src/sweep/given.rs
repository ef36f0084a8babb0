//! Candidates made elsewhere (`--candidates`): texts of another engine in place of our own. What is drawn, kept and decided
//! stays this program's.
//!
//! A row is `{"id", "attempt", "guided"?}` with one of
//! - `text`: the whole response;
//! - `completions`: what was written after each of the prefixes that `bdhs prompts` gives, one a sentence; the response is put
//!   together by the method's rules;
//! - `parts`: as a store has them, with why each completion ended.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::data::Sample;
use crate::data::json::read_objects;
use crate::ops::philox::Draws;
use crate::sampling::cuts::{cut, rebuild};
use crate::sampling::{Attempt, Candidate, Part, SamplingConfig, Stop};
use crate::{Error, Result};

/// The candidates of a file.
pub(super) struct Given {
    path: PathBuf,
    rows: HashMap<(String, Attempt), Row>,
}

#[derive(Deserialize)]
struct Row {
    #[serde(skip)]
    line: usize,
    text: Option<String>,
    completions: Option<Vec<String>>,
    parts: Option<Vec<Part>>,
}

impl Given {
    /// # Errors
    /// A file that cannot be read, rows that are malformed or there twice; the message names the line.
    pub fn read(path: &Path, config: &SamplingConfig) -> Result<Self> {
        let mut rows = HashMap::new();
        for object in read_objects(path)? {
            let id = object.id()?;
            let number = object.get("attempt").and_then(Value::as_u64);
            let number = number.and_then(|number| u32::try_from(number).ok());
            let number = number.filter(|&number| number > 0).ok_or_else(|| {
                object.error("attempt", "is missing or no number, expected one from 1")
            })?;
            let guided = match object.get("guided") {
                None => {
                    crate::sampling::attempts::is_guided(number, config.attempts, config.guidance)
                }
                Some(Value::Bool(guided)) => *guided,
                Some(_) => return Err(object.error("guided", "is no true or false")),
            };
            let fields = Value::Object(object.fields().clone());
            let row: Row =
                serde_json::from_value(fields).map_err(|e| object.error("", e.to_string()))?;
            let forms = [row.text.is_some(), row.completions.is_some(), row.parts.is_some()];
            if forms.into_iter().filter(|&there| there).count() != 1 {
                return Err(object.error("text", "expected one of text, completions and parts"));
            }
            let attempt = Attempt { number, guided };
            let row = Row { line: object.line, ..row };
            if let Some(first) = rows.insert((id.clone(), attempt), row) {
                let message =
                    format!("attempt {number} of {id:?} is there already, on line {}", first.line);
                return Err(object.error("attempt", message));
            }
        }
        Ok(Self { path: path.to_owned(), rows })
    }

    /// The candidate of an attempt at a sample, with the image tokens that it had and saw.
    ///
    /// # Errors
    /// If the file has none, or another number of completions than the reference has sentences.
    pub fn candidate(
        &self,
        sample: &Sample,
        attempt: Attempt,
        config: &SamplingConfig,
        seed: u64,
        (image_tokens, kept): (u32, Vec<u32>),
    ) -> Result<Candidate> {
        let Attempt { number, guided } = attempt;
        let Some(row) = self.rows.get(&(sample.id.clone(), attempt)) else {
            let kind = if guided { "guided" } else { "free" };
            let message = format!(
                "has no candidate of sample {:?}, attempt {number} ({kind}), which some cell needs; `bdhs prompts` writes what it takes",
                sample.id
            );
            return Err(Error::invalid(&self.path, "", message));
        };
        let draws = Draws { seed, sample: sample.index, attempt: number };
        let parts = match (&row.parts, &row.completions, &row.text) {
            (Some(parts), _, _) => parts.clone(),
            (_, Some(completions), _) if guided => {
                let fragments = cut(&sample.reference, &draws, config)?;
                if fragments.len() != completions.len() {
                    let message = format!(
                        "has {} completions, but the reference of {:?} has {} sentences",
                        completions.len(),
                        sample.id,
                        fragments.len()
                    );
                    let at = format!("line {}: field completions", row.line);
                    return Err(Error::invalid(&self.path, at, message));
                }
                let part = |(fragment, text): (&crate::sampling::Fragment, &String)| Part {
                    kept: fragment.kept.clone(),
                    separator: sample.reference[fragment.separator.clone()].to_owned(),
                    swapped: fragment.swapped,
                    ..whole(text)
                };
                fragments.iter().zip(completions).map(part).collect()
            }
            (_, Some(completions), _) => vec![whole(&completions.concat())],
            (_, _, text) => vec![whole(text.as_deref().unwrap_or_default())],
        };
        let text = match (&row.text, guided) {
            (Some(text), _) => text.clone(),
            (None, true) => {
                let fragments = cut(&sample.reference, &draws, config)?;
                let completions: Vec<&str> = parts.iter().map(|p| p.completion.as_str()).collect();
                rebuild(&sample.reference, &fragments, &completions)?
            }
            (None, false) => parts.iter().map(|part| part.completion.as_str()).collect(),
        };
        Ok(Candidate {
            sample: sample.index,
            attempt: number,
            guided,
            text,
            parts,
            image_tokens,
            kept,
        })
    }
}

/// A completion about which nothing else is known.
fn whole(text: &str) -> Part {
    Part {
        kept: String::new(),
        completion: text.to_owned(),
        separator: String::new(),
        swapped: false,
        stop: Stop::EndOfSequence,
        tokens: 0,
        logprob: 0.0,
    }
}
