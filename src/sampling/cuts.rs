//! What is kept of each reference sentence: the yes/no swap and the random cut `[S Alg. 1, eq. 7]`.
//!
//! ```text
//! y+      "No, there is a cat.  It sleeps."        kept      completed by the model       separator
//! sentence 0, swapped, 3 words kept:               "Yes, there is"  " ..."                "  "
//! sentence 1, 1 word kept:                         "It"             " ..."                ""
//! ```
//!
//! # Words `[C]`
//! A word is a run of characters without white space. In runs with characters of scripts that are written without spaces (Han,
//! kana, Thai, Lao, Khmer, Myanmar), each word by Unicode Annex 29 that touches such a character counts by itself; punctuation
//! belongs to the word before it. The cut lies before the white space in front of the first dropped word, so that the model
//! writes the blank. With `cut = "character"` every grapheme is a word, white space too. A swapped yes/no is never cut inside.
//!
//! # Draws
//! Sentence j reads index 0 of ([`Purpose::YesNo`], j) and of ([`Purpose::Cut`], j). So its cut depends on nothing but
//! (seed, sample, attempt, j): not on the other sentences, nor on the batch.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use unicode_segmentation::UnicodeSegmentation;

use super::{CutUnit, SamplingConfig, YesNoRule};
use crate::ops::philox::{Draws, Purpose, WHOLE_RESPONSE};
use crate::{Error, Result};

/// One sentence of the reference and what is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Its bytes in the reference. Bytes of the reference before the first fragment's start are leading white space.
    pub sentence: Range<usize>,
    /// What stays, after a swap; may be empty.
    pub kept: String,
    /// Whether the leading yes/no was swapped.
    pub swapped: bool,
    /// Bytes of the reference between this sentence and the next one, or the end.
    pub separator: Range<usize>,
}

/// Splits a reference and draws, for every sentence, the swap and the cut.
///
/// A reference of white space only gives no fragments. Uniform over 1..words-1 kept words; a sentence of one word keeps
/// nothing, unless it was swapped: then it keeps that word, without punctuation behind it.
///
/// # Errors
/// If there are more sentences than the 24 bits of the draw layout can number.
pub fn cut(reference: &str, draws: &Draws, config: &SamplingConfig) -> Result<Vec<Fragment>> {
    let sentences = config.sentences.split(reference);
    if sentences.len() >= WHOLE_RESPONSE as usize {
        return Err(Error::argument(
            "cuts",
            "sentences",
            sentences.len(),
            format!("< {WHOLE_RESPONSE}"),
        ));
    }
    let ends = sentences.iter().skip(1).map(|next| next.start).chain([reference.len()]);
    let fragments = sentences.iter().zip(ends).zip(0..).map(|((sentence, end), number)| {
        let (kept, swapped) = keep(&reference[sentence.clone()], draws, number, config);
        Fragment { sentence: sentence.clone(), kept, swapped, separator: sentence.end..end }
    });
    Ok(fragments.collect())
}

/// Joins leading white space, kept parts, completions and separators: y-.
///
/// A completion of a sentence that keeps nothing loses its leading white space if a separator or leading white space
/// stands before it already.
///
/// # Errors
/// If there is not one completion a fragment.
pub fn rebuild(
    reference: &str,
    fragments: &[Fragment],
    completions: &[impl AsRef<str>],
) -> Result<String> {
    if completions.len() != fragments.len() {
        return Err(Error::argument("cuts", "completions", completions.len(), fragments.len()));
    }
    let mut text = String::with_capacity(2 * reference.len());
    if let Some(first) = fragments.first() {
        text.push_str(&reference[..first.sentence.start]);
    }
    for (fragment, completion) in fragments.iter().zip(completions) {
        text.push_str(&fragment.kept);
        text.push_str(own_completion(fragment, completion.as_ref()));
        text.push_str(&reference[fragment.separator.clone()]);
    }
    Ok(text)
}

/// The part of a completion that belongs to the response: see [`rebuild`].
pub fn own_completion<'a>(fragment: &Fragment, completion: &'a str) -> &'a str {
    if fragment.kept.is_empty() { completion.trim_start() } else { completion }
}

/// What is kept of one sentence, and whether it was swapped.
fn keep(sentence: &str, draws: &Draws, number: u32, config: &SamplingConfig) -> (String, bool) {
    let swap = config
        .yes_no
        .find(sentence)
        .filter(|_| draws.uniform(Purpose::YesNo, number, 0) < config.swap_probability);
    let (sentence, answer) = match swap {
        Some(word) => {
            let other = opposite(word);
            (format!("{other}{}", &sentence[word.len()..]), Some(other))
        }
        None => (sentence.to_owned(), None),
    };
    let mut cuts = config.cut.positions(&sentence);
    // A cut inside the swapped answer would undo the swap.
    cuts.retain(|&at| at >= answer.map_or(0, str::len));
    let kept = match (cuts.len(), answer) {
        (0, Some(answer)) => answer,
        (0, None) => "",
        (n, _) => {
            let drawn = (draws.uniform(Purpose::Cut, number, 0) * n as f64) as usize;
            &sentence[..cuts[drawn.min(n - 1)]]
        }
    };
    (kept.to_owned(), answer.is_some())
}

fn opposite(word: &str) -> &'static str {
    match word {
        "Yes" => "No",
        "yes" => "no",
        "No" => "Yes",
        _ => "yes",
    }
}

impl YesNoRule {
    /// The yes/no that a sentence starts with, if it does. The sentence starts with something visible, as
    /// [`super::SentenceRule::split`] gives it, so the white space of the paper's pattern is never there.
    pub fn find(self, sentence: &str) -> Option<&str> {
        static PATTERN: LazyLock<Regex> = LazyLock::new(|| regex(r"^(Yes|yes|No|no)"));
        static WORD: LazyLock<Regex> = LazyLock::new(|| {
            regex(r"^(Yes|yes|No|no)(?:$|[^\w'’\-\u{2010}\u{2011}]|['’\-\u{2010}\u{2011}](?:\W|$))")
        });
        static NUMBER: LazyLock<Regex> = LazyLock::new(|| regex(r"^[Nn]o\.\s*\d"));
        let pattern = match self {
            Self::Word if NUMBER.is_match(sentence) => return None,
            Self::Word => &WORD,
            Self::Pattern => &PATTERN,
        };
        pattern.captures(sentence).and_then(|found| found.get(1)).map(|word| word.as_str())
    }
}

/// Compiles a pattern of this file.
fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|error| unreachable!("{error}"))
}

impl CutUnit {
    /// Where a sentence may be cut, ascending: as many positions as it has units, less one. Position k keeps k + 1 units.
    pub fn positions(self, sentence: &str) -> Vec<usize> {
        match self {
            Self::Word => word_cuts(sentence),
            Self::Character => sentence.grapheme_indices(true).skip(1).map(|(at, _)| at).collect(),
        }
    }
}

fn word_cuts(sentence: &str) -> Vec<usize> {
    let mut cuts = Vec::new();
    let mut end = 0;
    for run in sentence.split_whitespace() {
        // `run` is a slice of `sentence`, so the distance of the two starts is its offset.
        let start = run.as_ptr() as usize - sentence.as_ptr() as usize;
        if end > 0 {
            cuts.push(end);
        }
        if run.contains(is_unspaced) {
            cuts.extend(cuts_inside(run).map(|at| start + at));
        }
        end = start + run.len();
    }
    cuts
}

/// Cuts between the words of a run without white space where one of the two is in an unspaced script.
fn cuts_inside(run: &str) -> impl Iterator<Item = usize> {
    let mut before: Option<bool> = None;
    run.split_word_bound_indices().filter_map(move |(at, segment)| {
        let first = segment.chars().next().filter(|c| c.is_alphanumeric())?;
        let unspaced = is_unspaced(first);
        let cut = before.is_some_and(|before| before || unspaced);
        before = Some(unspaced);
        cut.then_some(at)
    })
}

/// Scripts written without spaces between words.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{0E00}'..='\u{0EFF}' | '\u{1000}'..='\u{109F}' | '\u{1780}'..='\u{17FF}' | '\u{3040}'..='\u{30FF}'
        | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3134F}')
}
