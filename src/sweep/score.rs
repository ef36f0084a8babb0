//! The grid for texts that exist already: no generation.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use super::{
    grid::{Attempts, ScoreTable, Slot, decide_cells},
    summary::{Summary, SummaryInput, Truncation},
};
use crate::{
    Error, Result,
    config::check_thresholds,
    data::{TextRow, read_texts},
    engine::{Progress, checkpoint},
    models::encoder::{Embeddings, SentenceEncoder},
    ops::cosine,
    sampling::{Candidate, Flag, SentenceRule},
    store::{EncoderInfo, Key, Score, ScoreRow},
};

/// Decides all cells for references and their candidates: file k of `candidates` holds attempt k of every
/// reference, by id. The last file is what a cell falls back to.
///
/// # Errors
/// Unreadable rows; a candidate file that lacks a reference's id, or has one that no reference has; no
/// candidate file; thresholds outside [-1, 1].
pub fn score(
    references: &Path,
    candidates: &[PathBuf],
    encoders: &[SentenceEncoder],
    thresholds: &[f64],
    progress: &dyn Progress,
) -> Result<Summary> {
    check_thresholds(thresholds)?;
    let references = (references, read_texts(references)?);
    let attempts = candidates
        .iter()
        .map(|path| aligned(&references, path))
        .collect::<Result<Vec<Vec<String>>>>()?;
    let rule = Attempts { count: attempts.len() as u32, guidance: true };
    let mut seconds = BTreeMap::new();
    let mut tables = Vec::new();
    let mut truncation = Vec::new();
    for encoder in encoders {
        let begun = std::time::Instant::now();
        let rows = score_rows(encoder, &references.1, &attempts, progress)?;
        seconds.insert(format!("embed {}", encoder.name()), begun.elapsed().as_secs_f64());
        truncation.push(Truncation::new(&EncoderInfo::of(encoder), &rows));
        tables.push(ScoreTable::new(encoder.name(), &rows, rule));
    }
    let samples: Vec<u32> = (0..references.1.len() as u32).collect();
    let cells = decide_cells(&tables, &samples, thresholds, rule)?;
    Ok(Summary::new(&SummaryInput {
        skipped: &BTreeMap::new(),
        samples: &samples,
        attempts: rule,
        tables: &tables,
        cells: &cells,
        flags: &flags(&references.1, &attempts),
        truncation: &truncation,
        seconds: &seconds,
        budget_lowered: 0,
    }))
}

/// The texts of a candidate file in the order of the references.
fn aligned(references: &(&Path, Vec<TextRow>), path: &Path) -> Result<Vec<String>> {
    let rows = read_texts(path)?;
    let mut by_id: HashMap<&str, &TextRow> =
        rows.iter().map(|row| (row.id.as_str(), row)).collect();
    let texts = references
        .1
        .iter()
        .map(|reference| {
            by_id.remove(reference.id.as_str()).map(|row| row.text.clone()).ok_or_else(|| {
                let message = format!(
                    "has no row with id {:?}, which is on line {} of {}",
                    reference.id,
                    reference.line,
                    references.0.display()
                );
                Error::invalid(path, "", message)
            })
        })
        .collect::<Result<_>>()?;
    match by_id.into_values().min_by_key(|row| row.line) {
        Some(extra) => Err(Error::invalid(
            path,
            format!("line {}", extra.line),
            format!("id {:?} is no reference of {}", extra.id, references.0.display()),
        )),
        None => Ok(texts),
    }
}

/// Rows that are embedded between two looks at the progress bar.
const CHUNK: usize = 1024;

fn score_rows(
    encoder: &SentenceEncoder,
    references: &[TextRow],
    attempts: &[Vec<String>],
    progress: &dyn Progress,
) -> Result<Vec<ScoreRow>> {
    progress.begin(encoder.name(), Some(references.len() as u64));
    let mut rows = Vec::new();
    for start in (0..references.len()).step_by(CHUNK) {
        let range = start..references.len().min(start + CHUNK);
        checkpoint(progress)?;
        let texts: Vec<&str> =
            references[range.clone()].iter().map(|row| row.text.as_str()).collect();
        let known = encoder.embed(&texts)?;
        for (attempt, texts) in (1u32..).zip(attempts) {
            checkpoint(progress)?;
            let texts = &texts[range.clone()];
            let embedded = encoder.embed(texts)?;
            let phis = cosine::rows_f64(&embedded.vectors, &known.vectors)?;
            rows.extend(phis.iter().enumerate().map(|(i, &phi)| ScoreRow {
                sample: (start + i) as u32,
                attempt,
                guided: attempt < attempts.len() as u32 || attempts.len() == 1,
                score: entry(i, phi, &texts[i], &embedded, &known),
            }));
        }
        progress.advance(range.len() as u64);
    }
    rows.sort_by_key(|row| (row.sample, row.attempt));
    Ok(rows)
}

fn entry(
    i: usize,
    phi: f64,
    text: &str,
    candidates: &Embeddings,
    references: &Embeddings,
) -> Score {
    Score {
        candidate: Key::from_bytes(*blake3::hash(text.as_bytes()).as_bytes()),
        phi,
        candidate_tokens: candidates.tokens[i],
        reference_tokens: references.tokens[i],
        candidate_truncated: candidates.truncated[i],
        reference_truncated: references.truncated[i],
    }
}

/// What texts alone tell: empty, or the same as the reference.
fn flags(references: &[TextRow], attempts: &[Vec<String>]) -> BTreeMap<Slot, Vec<Flag>> {
    let mut flags = BTreeMap::new();
    for (attempt, texts) in (1u32..).zip(attempts) {
        let guided = attempt < attempts.len() as u32 || attempts.len() == 1;
        for (sample, (text, reference)) in (0u32..).zip(texts.iter().zip(references)) {
            let candidate = Candidate {
                sample,
                attempt,
                guided: false,
                text: text.clone(),
                parts: Vec::new(),
                image_tokens: 0,
                kept: Vec::new(),
            };
            let found = candidate.flags(&reference.text, SentenceRule::Unicode);
            flags.insert((sample, attempt, guided), found);
        }
    }
    flags
}
