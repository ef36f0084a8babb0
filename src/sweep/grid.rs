//! All cells of a sweep from one table of scores, and how they compare.
//!
//! A cell is (encoder, threshold). What a run of that cell alone would return for a sample follows from the scores of
//! its attempts in order ([`decide`]), so every cell is read off the same candidates. Cells are therefore paired
//! comparisons, not independent replicates.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::config::label;
use crate::eval::tally::quantile;
use crate::sampling::acceptance::decide;
use crate::sampling::attempts::is_guided;
use crate::store::ScoreRow;
use crate::{Error, Result};

/// Names a candidate within a run: sample, attempt from 1, guided or not.
pub type Slot = (u32, u32, bool);

/// The part of the method's settings that decides which attempts a cell looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// N, at least 1. Attempts 1 to N-1 are guided; attempt N is not, if N > 1.
    pub count: u32,
    /// Guided at all; without, every attempt is a full response.
    pub guidance: bool,
}

/// The scores of one encoder: for each sample, phi of attempts 1, 2, ... as far as they were generated.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreTable {
    /// The encoder.
    pub encoder: String,
    /// Each sample that has scores, ascending, and where its own begin in `phis`.
    samples: Vec<(u32, usize)>,
    phis: Vec<f64>,
}

impl ScoreTable {
    /// Takes from `rows` (in candidate order, as a store gives them) those of a run with these attempts. Attempts
    /// after a missing one are left out: no run looks at them before it has the missing one.
    pub fn new(encoder: impl Into<String>, rows: &[ScoreRow], attempts: Attempts) -> Self {
        let mut samples: Vec<(u32, usize)> = Vec::new();
        let mut phis = Vec::with_capacity(rows.len());
        for of_sample in rows.chunk_by(|a, b| a.sample == b.sample) {
            let first = phis.len();
            for row in of_sample {
                let fits = row.attempt <= attempts.count
                    && row.guided == is_guided(row.attempt, attempts.count, attempts.guidance);
                if fits && phis.len() - first + 1 == row.attempt as usize {
                    phis.push(row.score.phi);
                }
            }
            samples.push((of_sample[0].sample, first));
        }
        Self { encoder: encoder.into(), samples, phis }
    }

    /// phi of attempts 1, 2, ... of a sample; empty if it has none.
    pub fn phis(&self, sample: u32) -> &[f64] {
        let Ok(at) = self.samples.binary_search_by_key(&sample, |&(sample, _)| sample) else {
            return &[];
        };
        let end = self.samples.get(at + 1).map_or(self.phis.len(), |&(_, next)| next);
        &self.phis[self.samples[at].1..end]
    }
}

/// One sample's pair in a cell: which candidate is the rejected response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairRef {
    /// Index of the sample.
    pub sample: u32,
    /// The attempt, from 1; also how many attempts a run of this cell alone would have generated.
    pub attempt: u32,
    /// Whether it is the guided candidate of that number.
    pub guided: bool,
    /// The last attempt, returned although phi is not below the threshold.
    pub forced: bool,
    /// Its phi; NaN if the encoder gave none.
    pub phi: f64,
}

impl PairRef {
    /// The candidate.
    pub fn slot(&self) -> Slot {
        (self.sample, self.attempt, self.guided)
    }
}

/// All pairs of one (encoder, threshold), by sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The encoder.
    pub encoder: String,
    /// eps: accepted if phi is below.
    pub threshold: f64,
    /// N of the run.
    pub attempts: u32,
    /// One for each sample, ascending.
    pub pairs: Vec<PairRef>,
}

/// 5 %, 50 % and 95 % quantiles. Null in JSON where there are no values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// 5 %.
    pub p05: Option<f64>,
    /// Median.
    pub p50: Option<f64>,
    /// 95 %.
    pub p95: Option<f64>,
}

impl Cell {
    /// `<encoder>__<threshold>`, as in file names; the threshold with two to four decimals. Characters of the name
    /// other than letters, digits, `.`, `_` and `-` become `_`.
    pub fn label(&self) -> String {
        label(&self.encoder, self.threshold)
    }

    /// How many pairs were accepted at attempt 1, 2, ..., N; forced ones are not.
    pub fn accepted_by_attempt(&self) -> Vec<u64> {
        let mut counts = vec![0; self.attempts as usize];
        self.pairs
            .iter()
            .filter(|pair| !pair.forced)
            .for_each(|pair| counts[pair.attempt as usize - 1] += 1);
        counts
    }

    /// How many pairs are the last attempt although phi is not below the threshold.
    pub fn forced(&self) -> u64 {
        self.pairs.iter().filter(|pair| pair.forced).count() as u64
    }

    /// Candidates that a run of this cell alone generates, the last unguided one included.
    pub fn generations(&self) -> u64 {
        self.pairs.iter().map(|pair| u64::from(pair.attempt)).sum()
    }

    /// [`Cell::generations`] a pair; 0 without pairs.
    pub fn mean_attempts(&self) -> f64 {
        self.generations() as f64 / self.pairs.len().max(1) as f64
    }

    /// Quantiles of phi over the pairs, forced ones included, NaN left out.
    pub fn phi(&self) -> Quantiles {
        let mut phis: Vec<f64> = self.pairs.iter().map(|p| p.phi).filter(|x| !x.is_nan()).collect();
        phis.sort_by(f64::total_cmp);
        let [p05, p50, p95] = [0.05, 0.5, 0.95].map(|q| quantile(&phis, q));
        Quantiles { p05, p50, p95 }
    }
}

/// Decides every cell: encoders in the order of `tables`, each with the thresholds in the order given.
///
/// Errors: no attempts; an encoder twice, or a threshold that is twice in a file name; a threshold that is no number;
/// a sample with too few attempts scored to decide a cell.
pub fn decide_cells(
    tables: &[ScoreTable],
    samples: &[u32],
    thresholds: &[f64],
    attempts: Attempts,
) -> Result<Vec<Cell>> {
    if attempts.count == 0 {
        return Err(Error::argument("grid", "attempts", 0, "at least 1"));
    }
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    samples.dedup();
    let mut labels = HashSet::new();
    let mut cells = Vec::with_capacity(tables.len() * thresholds.len());
    for table in tables {
        for &threshold in thresholds {
            if !threshold.is_finite() {
                return Err(Error::argument("grid", "threshold", threshold, "a finite number"));
            }
            let name = label(&table.encoder, threshold);
            if !labels.insert(name.clone()) {
                let expected =
                    "each encoder and threshold once, thresholds told apart by four decimals";
                return Err(Error::argument("grid", "cell", format!("{name} twice"), expected));
            }
            let pairs = samples
                .iter()
                .map(|&sample| decide_pair(table, sample, threshold, attempts))
                .collect::<Result<_>>()?;
            let encoder = table.encoder.clone();
            cells.push(Cell { encoder, threshold, attempts: attempts.count, pairs });
        }
    }
    Ok(cells)
}

fn decide_pair(table: &ScoreTable, sample: u32, threshold: f64, rule: Attempts) -> Result<PairRef> {
    let phis = table.phis(sample);
    let found = decide(phis, threshold, rule.count, rule.guidance).ok_or_else(|| {
        let got = format!("{} for sample {sample} and {}", phis.len(), table.encoder);
        let expected = format!("enough to decide threshold {threshold}: the sweep is not finished");
        Error::argument("grid", "number of scored attempts", got, expected)
    })?;
    let (attempt, guided) = (found.attempt, found.guided);
    Ok(PairRef { sample, attempt, guided, forced: found.forced, phi: found.phi })
}

/// Candidates that one run a cell would generate, over all cells.
pub fn candidates_if_independent(cells: &[Cell]) -> u64 {
    cells.iter().map(Cell::generations).sum()
}

/// How much two cells share: Jaccard index of their sets of (sample, candidate), 1 on the diagonal, 0 if both are empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// Labels of the cells, in the order of rows and columns.
    pub cells: Vec<String>,
    /// Over accepted candidates.
    pub accepted: Vec<Vec<f64>>,
    /// Over all pairs, the forced ones included: over what the models are trained on.
    pub pairs: Vec<Vec<f64>>,
}

/// Most cells that are compared: two matrices of 200 x 200 numbers are still read by people.
pub const COMPARED: usize = 200;

/// Compares every two cells; of more than [`COMPARED`] none, and the lists are empty.
pub fn overlap(cells: &[Cell]) -> Overlap {
    let cells = if cells.len() > COMPARED { &[] } else { cells };
    let matrix = |with_forced: bool| {
        let row = |a| cells.iter().map(|b| jaccard(a, b, with_forced)).collect();
        cells.iter().map(row).collect()
    };
    Overlap {
        cells: cells.iter().map(Cell::label).collect(),
        accepted: matrix(false),
        pairs: matrix(true),
    }
}

/// A walk along both, which are ascending by sample.
fn jaccard(a: &Cell, b: &Cell, with_forced: bool) -> f64 {
    let counts = |pair: &&PairRef| with_forced || !pair.forced;
    let mut others = b.pairs.iter().filter(counts).peekable();
    let (mut own, mut shared) = (0, 0);
    for pair in a.pairs.iter().filter(counts) {
        own += 1;
        while others.next_if(|other| other.sample < pair.sample).is_some() {}
        shared += usize::from(others.peek().is_some_and(|other| other.slot() == pair.slot()));
    }
    let union = own + b.pairs.iter().filter(counts).count() - shared;
    if union == 0 { 0.0 } else { shared as f64 / union as f64 }
}

/// The threshold at which an encoder accepts a given share of first attempts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatchedThreshold {
    /// The encoder.
    pub encoder: String,
    /// The share asked for.
    pub rate: f64,
    /// The threshold; null if the encoder scored nothing.
    pub threshold: Option<f64>,
    /// The share of first attempts below it: the nearest to `rate` that this encoder's scores allow, the smaller of two.
    pub acceptance: f64,
}

/// The share of samples whose first attempt is below `threshold`.
pub fn first_acceptance(table: &ScoreTable, samples: &[u32], threshold: f64) -> f64 {
    let below = samples
        .iter()
        .filter(|&&sample| table.phis(sample).first().is_some_and(|&phi| phi < threshold))
        .count();
    below as f64 / samples.len().max(1) as f64
}

/// For one encoder, the threshold whose first-attempt acceptance is (nearest to) `rate`: encoders have different scales
/// of phi, so the same threshold is not the same strictness. It lies half-way between the two scores it separates.
pub fn matched_threshold(table: &ScoreTable, samples: &[u32], rate: f64) -> MatchedThreshold {
    let mut firsts: Vec<f64> = samples
        .iter()
        .filter_map(|&sample| table.phis(sample).first().copied())
        .filter(|phi| !phi.is_nan())
        .collect();
    firsts.sort_by(f64::total_cmp);
    let total = samples.len().max(1) as f64;
    // Between equal scores no threshold can cut.
    let cuts =
        (0..=firsts.len()).filter(|&k| k == 0 || k == firsts.len() || firsts[k - 1] < firsts[k]);
    let distance = |k: usize| (k as f64 / total - rate).abs();
    let accepted = cuts.min_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
    let threshold = match (accepted.checked_sub(1).map(|k| firsts[k]), firsts.get(accepted)) {
        (None, None) => None,
        (None, Some(&above)) => Some(above),
        (Some(below), None) => Some(below.next_up()),
        (Some(below), Some(&above)) => {
            let middle = below + (above - below) / 2.0;
            Some(if middle > below { middle } else { above })
        }
    };
    let acceptance = accepted as f64 / total;
    MatchedThreshold { encoder: table.encoder.clone(), rate, threshold, acceptance }
}
