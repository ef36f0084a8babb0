//! What a sweep found: one JSON document of fixed shape, and one table for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use serde::{Deserialize, Serialize};

use super::grid::{
    Attempts, Cell, MatchedThreshold, Overlap, Quantiles, ScoreTable, Slot,
    candidates_if_independent, first_acceptance, matched_threshold, overlap,
};
use crate::config::threshold_text;
use crate::data::reasons;
use crate::sampling::Flag;
use crate::store::{EncoderInfo, ScoreRow};
use crate::{Error, Result};

/// The document that `--json` prints. Field names and their order are part of the interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Samples of the sweep.
    pub samples: u64,
    /// N.
    pub attempts: u32,
    /// One entry a cell: encoders in the order given, each with its thresholds in the order given.
    pub cells: Vec<CellSummary>,
    /// Candidates that were generated once, for all cells.
    pub candidates_generated: u64,
    /// Candidates that one run a cell would have generated in all.
    pub candidates_if_independent: u64,
    /// How much the cells share.
    pub overlap: Overlap,
    /// For the first encoder's acceptance at each threshold, the threshold of every encoder that accepts as many.
    pub matched_acceptance: Vec<MatchedThreshold>,
    /// What each encoder did not see.
    pub truncation: Vec<Truncation>,
    /// Flags over all candidates generated: name to count; every name is there.
    pub flags: BTreeMap<String, u64>,
    /// Wall time of each stage in seconds, over all processes that worked on the run; of those side by side, the sum.
    pub seconds: BTreeMap<String, f64>,
    /// How often the token budget had to be lowered; the waves after that are not those of the first budget.
    pub budget_lowered: u64,
    /// Rows of the data that were left out, by reason; absent where there are none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, u64>,
}

/// One (encoder, threshold).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellSummary {
    /// The encoder.
    pub encoder: String,
    /// eps.
    pub threshold: f64,
    /// Pairs, one a sample.
    pub pairs: u64,
    /// Pairs accepted at attempt 1, 2, ..., N.
    pub accepted_by_attempt: Vec<u64>,
    /// Pairs whose last attempt was returned whatever its phi.
    pub forced: u64,
    /// Candidates a run of this cell alone generates, a pair.
    pub mean_attempts: f64,
    /// Quantiles of phi over the pairs: linear interpolation at (n - 1) q, as NumPy's default.
    pub phi: Quantiles,
    /// Pairs whose phi is not a number.
    pub undefined_phi: u64,
    /// Pairs with any flag.
    pub flagged: u64,
    /// Flags over the pairs: name to count; every name is there. A pair may have several.
    pub flags: BTreeMap<String, u64>,
}

/// How much of the texts one encoder did not see. Shares of the candidates it scored and of their samples' references.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Truncation {
    /// The encoder.
    pub encoder: String,
    /// Tokens it reads.
    pub max_tokens: u32,
    /// Candidates it scored.
    pub scored: u64,
    /// Share of candidates longer than that.
    pub candidates: f64,
    /// Share of references longer than that.
    pub references: f64,
}

impl Truncation {
    /// Counts over all scores of one encoder.
    pub fn new(encoder: &EncoderInfo, rows: &[ScoreRow]) -> Self {
        let share = |part: usize, all: usize| part as f64 / all.max(1) as f64;
        let long = rows.iter().filter(|row| row.score.candidate_truncated).count();
        let references: BTreeSet<u32> = rows.iter().map(|row| row.sample).collect();
        let long_references: BTreeSet<u32> =
            rows.iter().filter(|row| row.score.reference_truncated).map(|row| row.sample).collect();
        Self {
            encoder: encoder.name.clone(),
            max_tokens: encoder.max_tokens,
            scored: rows.len() as u64,
            candidates: share(long, rows.len()),
            references: share(long_references.len(), references.len()),
        }
    }
}

/// What a summary is made from.
#[derive(Clone, Copy, Debug)]
pub struct SummaryInput<'a> {
    /// Indices of all samples.
    pub samples: &'a [u32],
    /// The run's attempts.
    pub attempts: Attempts,
    /// One table an encoder.
    pub tables: &'a [ScoreTable],
    /// All cells, decided from these tables.
    pub cells: &'a [Cell],
    /// The flags of every candidate generated; its size is the number of candidates generated.
    pub flags: &'a BTreeMap<Slot, Vec<Flag>>,
    /// One entry an encoder.
    pub truncation: &'a [Truncation],
    /// Wall time of each stage, in seconds.
    pub seconds: &'a BTreeMap<String, f64>,
    /// How often the token budget was lowered.
    pub budget_lowered: u64,
    /// Rows of the data that were left out, by reason.
    pub skipped: &'a BTreeMap<String, u64>,
}

impl Summary {
    /// That of a run folder.
    ///
    /// # Errors
    /// If the run is not finished, or the file holds something else.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("summary.json");
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::Store {
                path: folder.into(),
                message: "has no summary.json, which a run writes when it ends: not a run folder, or a run that is \
                          not finished (the command that began it continues it)"
                    .into(),
            },
            _ => Error::Io { path: path.clone(), source: error },
        })?;
        let summary: Self = serde_json::from_str(&text).map_err(|error| {
            Error::invalid(&path, format!("line {}", error.line()), error.to_string())
        })?;
        if summary.cells.is_empty()
            || summary.samples == 0
            || u32::try_from(summary.samples).is_err()
        {
            let message = format!(
                "has {} cells and {} samples, expected at least one of each",
                summary.cells.len(),
                summary.samples
            );
            return Err(Error::invalid(&path, "", message));
        }
        Ok(summary)
    }

    /// Counts everything.
    pub fn new(input: &SummaryInput) -> Self {
        Self {
            samples: input.samples.len() as u64,
            attempts: input.attempts.count,
            cells: input.cells.iter().map(|cell| summarise(cell, input.flags)).collect(),
            candidates_generated: input.flags.len() as u64,
            candidates_if_independent: candidates_if_independent(input.cells),
            overlap: overlap(input.cells),
            matched_acceptance: matched(input),
            truncation: input.truncation.to_vec(),
            flags: count_flags(input.flags.values()),
            seconds: input.seconds.clone(),
            budget_lowered: input.budget_lowered,
            skipped: input.skipped.clone(),
        }
    }

    /// A table of all cells, at most 100 columns wide for up to 6 attempts, and the totals below it.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut start = 0;
        while start < self.cells.len() {
            let encoder = &self.cells[start].encoder;
            let same =
                self.cells[start..].iter().take_while(|cell| cell.encoder == *encoder).count();
            text.push_str(&format!("{encoder}\n{}\n\n", self.encoder_table(start..start + same)));
            start += same;
        }
        text.push_str(&self.totals());
        text
    }

    fn encoder_table(&self, cells: std::ops::Range<usize>) -> Table {
        let mut table = Table::new();
        table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─')));
        let mut header = vec!["eps".to_owned(), "pairs".into()];
        header.extend((1..=self.attempts).map(|attempt| format!("at {attempt}")));
        header.extend(["forced", "mean", "phi 5%", "50%", "95%", "flagged"].map(String::from));
        let columns = header.len();
        table.set_header(header);
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |x| format!("{x:.3}"));
        for cell in &self.cells[cells] {
            let mut row = vec![threshold_text(cell.threshold), cell.pairs.to_string()];
            row.extend(cell.accepted_by_attempt.iter().map(u64::to_string));
            row.extend([
                cell.forced.to_string(),
                format!("{:.2}", cell.mean_attempts),
                number(cell.phi.p05),
                number(cell.phi.p50),
                number(cell.phi.p95),
                cell.flagged.to_string(),
            ]);
            table.add_row(row);
        }
        for index in 0..columns {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
                column.set_padding((1, 1));
            }
        }
        table
    }

    fn totals(&self) -> String {
        let saved = self.candidates_if_independent as f64 / self.candidates_generated.max(1) as f64;
        let mut lines = vec![format!(
            "{} samples, {} candidates generated; {} if each cell were a run of its own ({saved:.1} x)",
            self.samples, self.candidates_generated, self.candidates_if_independent,
        )];
        if !self.skipped.is_empty() {
            let rows: u64 = self.skipped.values().sum();
            let reasons = reasons(&self.skipped);
            lines.push(format!("{rows} rows of the data left out (skipped.jsonl): {reasons}"));
        }
        for entry in self.truncation.iter().filter(|t| t.candidates > 0.0 || t.references > 0.0) {
            lines.push(format!(
                "{} ({} tokens) cuts {:.1} % of candidates, {:.1} % of references",
                entry.encoder,
                entry.max_tokens,
                100.0 * entry.candidates,
                100.0 * entry.references,
            ));
        }
        let flags: Vec<_> =
            self.flags.iter().filter(|f| *f.1 > 0).map(|(name, n)| format!("{name} {n}")).collect();
        if !flags.is_empty() {
            lines.push(list("flags of candidates: ", &flags));
        }
        if !self.seconds.is_empty() {
            let stages: Vec<_> =
                self.seconds.iter().map(|(stage, s)| format!("{stage} {s:.1} s")).collect();
            lines.push(list("time: ", &stages));
        }
        if self.budget_lowered > 0 {
            let times = self.budget_lowered;
            lines.push(format!("token budget lowered {times} times: the waves after that are not those of the first budget"));
        }
        lines.push(
            "cells share candidates: they are paired comparisons, not independent runs".into(),
        );
        lines.join("\n") + "\n"
    }
}

/// Entries after a title, broken into lines of at most 100 columns.
fn list(title: &str, entries: &[String]) -> String {
    let mut text = title.to_owned();
    let mut width = title.len();
    for (index, entry) in entries.iter().enumerate() {
        let separator = if index + 1 == entries.len() { "" } else { "," };
        let space = if index == 0 { 0 } else { 1 };
        if width + space + entry.len() + separator.len() > 100 {
            text.push_str("\n  ");
            width = 2;
        } else if space == 1 {
            text.push(' ');
            width += 1;
        }
        text.push_str(entry);
        text.push_str(separator);
        width += entry.len() + separator.len();
    }
    text
}

fn summarise(cell: &Cell, flags: &BTreeMap<Slot, Vec<Flag>>) -> CellSummary {
    let lists = || cell.pairs.iter().filter_map(|pair| flags.get(&pair.slot()));
    CellSummary {
        encoder: cell.encoder.clone(),
        threshold: cell.threshold,
        pairs: cell.pairs.len() as u64,
        accepted_by_attempt: cell.accepted_by_attempt(),
        forced: cell.forced(),
        mean_attempts: cell.mean_attempts(),
        phi: cell.phi(),
        undefined_phi: cell.pairs.iter().filter(|pair| pair.phi.is_nan()).count() as u64,
        flagged: lists().filter(|list| !list.is_empty()).count() as u64,
        flags: count_flags(lists()),
    }
}

fn count_flags<'a>(lists: impl Iterator<Item = &'a Vec<Flag>>) -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<String, u64> =
        Flag::ALL.iter().map(|flag| (flag_name(*flag), 0)).collect();
    for flag in lists.flatten() {
        *counts.entry(flag_name(*flag)).or_default() += 1;
    }
    counts
}

/// The name of a flag, as serialised.
pub(crate) fn flag_name(flag: Flag) -> String {
    serde_json::to_value(flag)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("{flag:?}"))
}

fn matched(input: &SummaryInput) -> Vec<MatchedThreshold> {
    let Some(first) = input.tables.first() else { return Vec::new() };
    input
        .cells
        .iter()
        .filter(|cell| cell.encoder == first.encoder)
        .map(|cell| first_acceptance(first, input.samples, cell.threshold))
        .flat_map(|rate| input.tables.iter().map(move |table| (table, rate)))
        .map(|(table, rate)| matched_threshold(table, input.samples, rate))
        .collect()
}
