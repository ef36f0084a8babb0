//! Pairs, with everything that decided about them.

pub(super) mod diff;
mod picture;
mod select;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{number, run::Run, texts::Text};
use crate::{
    Result,
    config::threshold_text,
    sampling::{Candidate, Flag},
    store::{EncoderInfo, Key},
    sweep::{
        grid::{PairRef, ScoreTable, Slot},
        summary::flag_name,
    },
};
use diff::{Marked, mark_changes};
use select::{Features, choose};

pub(super) use picture::{Picture, plain as plain_picture};
pub(super) use select::Why;

/// A pair as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Pair {
    /// Unique on the page.
    pub anchor: String,
    pub id: String,
    pub attempt: u32,
    pub guided: bool,
    /// Tags.
    pub why: Vec<&'static str>,
    pub flags: Vec<String>,
    /// Who says what; the last is the question.
    pub prompt: Vec<(String, String)>,
    pub texts: Marked,
    pub scores: Vec<ScoreLine>,
    /// Thresholds, as the columns of `scores`.
    pub thresholds: Vec<String>,
    pub picture: Option<Picture>,
    /// Why there is no picture.
    pub no_picture: Option<String>,
    /// Cells that take it, of how many.
    pub cells: (usize, usize),
}

/// One encoder's opinion.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ScoreLine {
    pub encoder: String,
    pub phi: String,
    /// What happens at each threshold.
    pub decisions: Vec<Decision>,
    /// Something of either text was cut off.
    pub truncated: bool,
}

/// What a cell does with a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Decision {
    /// The cell's pair.
    Taken,
    /// The cell's pair although it is not below.
    Forced,
    /// Below the threshold, but an earlier attempt was, too.
    Later,
    /// Not below the threshold.
    Not,
}

/// The gallery: see [`select::choose`] for which pairs. Pictures that cannot be read are noted in `run.missing`.
pub(super) fn pairs(run: &mut Run, wanted: usize) -> Result<Vec<Pair>> {
    // Only the texts of pairs that are shown are in memory together.
    let mut known: Vec<(Key, Features)> = Vec::new();
    run.store.each_candidate(|key, candidate| {
        let cells = taken(run, &candidate);
        if let (false, Some(text)) = (cells.is_empty(), run.texts.get(&candidate.sample)) {
            known.push((key, features(run, &candidate, text, &cells)));
        }
        Ok(())
    })?;
    let (keys, features): (Vec<Key>, Vec<Features>) = known.into_iter().unzip();
    let mut lost = Vec::new();
    let mut pairs: Vec<Pair> = Vec::new();
    for (i, why) in choose(&features, wanted) {
        let Some(candidate) = run.store.candidate(&keys[i])? else { continue };
        let text = &run.texts[&candidate.sample];
        let mut pair = pair(run, pairs.len() + 1, &candidate, text, &why);
        pair.cells = (taken(run, &candidate).len(), run.cells.len());
        pair.scores = lines(run, &keys[i], &candidate)?;
        (pair.picture, pair.no_picture) = match load(run, &candidate, text) {
            Ok(picture) => (picture, None),
            Err(reason) => {
                lost.push(reason.clone());
                (None, Some(reason))
            }
        };
        pairs.push(pair);
    }
    if let Some(first) = lost.first() {
        let of = format!("{} of {} pairs", lost.len(), pairs.len());
        run.missing.push(format!("pictures of {of}; the first: {first}"));
    }
    Ok(pairs)
}

fn slot(candidate: &Candidate) -> Slot {
    (candidate.sample, candidate.attempt, candidate.guided)
}

/// The pairs that this candidate is, one for each cell that takes it.
fn taken(run: &Run, candidate: &Candidate) -> Vec<PairRef> {
    let pairs = run.cells.iter().filter_map(|cell| cell.pairs.get(candidate.sample as usize));
    pairs.filter(|pair| pair.slot() == slot(candidate)).copied().collect()
}

fn features(run: &Run, candidate: &Candidate, text: &Text, taken: &[PairRef]) -> Features {
    let attempt = candidate.attempt as usize - 1;
    let phi = |table: &ScoreTable| table.phis(candidate.sample).get(attempt).copied();
    // NaN where an encoder has none.
    let phis: Vec<f64> = run.tables.iter().map(|table| phi(table).unwrap_or(f64::NAN)).collect();
    let minority = |threshold: &f64| {
        let below = phis.iter().filter(|phi| *phi < threshold).count();
        below.min(phis.len() - below)
    };
    let accepted = taken.iter().filter(|pair| !pair.forced).map(|pair| pair.phi);
    Features {
        sample: candidate.sample,
        attempt: candidate.attempt,
        minority: run.thresholds.iter().map(minority).max().unwrap_or(0),
        accepted_at: accepted.reduce(f64::max),
        swapped: candidate.parts.iter().any(|part| part.swapped),
        forced: taken.iter().any(|pair| pair.forced),
        guided: candidate.guided,
        flagged: !flags(run, candidate, text).is_empty(),
        phis,
    }
}

fn flags(run: &Run, candidate: &Candidate, text: &Text) -> Vec<Flag> {
    candidate.flags(&text.reference, run.sampling.sentences)
}

fn pair(run: &Run, number: usize, candidate: &Candidate, text: &Text, why: &[Why]) -> Pair {
    Pair {
        anchor: format!("pair-{number}"),
        id: text.id.clone(),
        attempt: candidate.attempt,
        guided: candidate.guided,
        why: why.iter().map(|why| why.label()).collect(),
        flags: flags(run, candidate, text)
            .into_iter()
            .map(|flag| flag_name(flag).replace('_', " "))
            .collect(),
        prompt: text.prompt.clone(),
        texts: mark_changes(&text.reference, &candidate.text, &takeovers(candidate)),
        scores: Vec::new(),
        thresholds: run.thresholds.iter().map(|t| threshold_text(*t)).collect(),
        picture: None,
        no_picture: None,
        cells: (0, 0),
    }
}

/// Where in a guided response the model took over from the reference; none if its parts do not make up its text.
fn takeovers(candidate: &Candidate) -> Vec<usize> {
    let mut offsets = Vec::new();
    let mut text = String::new();
    if candidate.guided {
        for part in &candidate.parts {
            text.push_str(&part.kept);
            offsets.push(text.len());
            text.push_str(&part.completion);
            text.push_str(&part.separator);
        }
    }
    if text == candidate.text { offsets } else { Vec::new() }
}

fn lines(run: &Run, key: &Key, candidate: &Candidate) -> Result<Vec<ScoreLine>> {
    let decision = |encoder: &str, phi: f64, threshold: f64| {
        let own = run
            .cells
            .iter()
            .find(|cell| cell.encoder == encoder && cell.threshold == threshold)
            .and_then(|cell| cell.pairs.iter().find(|pair| pair.slot() == slot(candidate)));
        match own {
            Some(pair) if pair.forced => Decision::Forced,
            Some(_) => Decision::Taken,
            None if phi < threshold => Decision::Later,
            None => Decision::Not,
        }
    };
    run.encoder_infos
        .iter()
        .map(|EncoderInfo { name, fingerprint, .. }| {
            let score = run.store.score(fingerprint, key)?;
            let phi = score.map_or(f64::NAN, |score| score.phi);
            let thresholds = run.thresholds.iter();
            Ok(ScoreLine {
                encoder: name.clone(),
                phi: number::phi(Some(phi)),
                decisions: thresholds.map(|t| decision(name, phi, *t)).collect(),
                truncated: score.is_some_and(|s| s.candidate_truncated || s.reference_truncated),
            })
        })
        .collect()
}

/// The picture of a pair; none for a sample without one, a reason where it cannot be had.
fn load(run: &Run, candidate: &Candidate, text: &Text) -> Result<Option<Picture>, String> {
    let Some(name) = text.images.first() else { return Ok(None) };
    let Some(folder) = &run.images else {
        let message = "the folder is not known, name it with --images";
        return Err(format!("{}: {message}", name.display()));
    };
    let path = inside(folder, name)?;
    picture::load(&path, candidate, run.patches.as_ref(), text.images.len())
        .map(Some)
        .map_err(|error| error.to_string())
}

/// The file of a picture that lies in the run's folder of pictures. A name that leads elsewhere, as a copied run may have it, is
/// not followed: the page would hold a file that its reader did not mean to show.
fn inside(folder: &Path, name: &Path) -> Result<PathBuf, String> {
    let path = folder.join(name);
    let real =
        |path: &Path| path.canonicalize().map_err(|error| format!("{}: {error}", path.display()));
    match real(&path)?.starts_with(real(folder)?) {
        true => Ok(path),
        false => Err(format!(
            "{}: lies outside the folder of pictures {}; name the folder that holds it with --images",
            name.display(),
            folder.display()
        )),
    }
}

/// What a flag says.
pub(super) fn flag_meaning(name: &str) -> &'static str {
    match name {
        "empty" => "nothing visible in the response",
        "identical" => "byte for byte the reference",
        "same_words" => "the reference up to white space",
        "token_limit" => "a completion was cut off by the token limit",
        "unchanged_sentence" => "a sentence of a guided response is the reference's",
        "empty_completion" => "the model wrote nothing for a sentence of a guided response",
        _ => "",
    }
}
