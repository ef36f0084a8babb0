//! Which attempt becomes the rejected response `[S]`: the first with phi < eps, else the last.
//!
//! phi is the cosine of the sentence embeddings of y- and y+. NaN is below no threshold. A cell's decision needs only phis that
//! do not depend on the cell's threshold, so one table of phis answers every threshold.

use super::attempts::is_guided;

/// The threshold of the paper.
pub const PAPER_THRESHOLD: f64 = 0.97;

/// The place of the threshold that is nearest to the paper's, the first of several; none of an empty list.
pub fn nearest_to_paper(thresholds: &[f64]) -> Option<usize> {
    let distance = |i: &usize| (thresholds[*i] - PAPER_THRESHOLD).abs();
    (0..thresholds.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// What a cell (encoder, threshold) returns for a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// The attempt, from 1.
    pub attempt: u32,
    /// Whether it is the guided candidate of that number.
    pub guided: bool,
    /// It is the last attempt and was returned although phi is not below the threshold.
    pub forced: bool,
    /// Its phi; NaN if the encoder gave none.
    pub phi: f64,
}

/// Decides a cell, or says that more attempts are needed (`None`).
///
/// `phis[i - 1]` is phi of attempt i of a run with `attempts` attempts: its last entry, if it is there, belongs to the unguided
/// candidate (unless `attempts` is 1). Entries past `attempts` are ignored.
pub fn decide(phis: &[f64], threshold: f64, attempts: u32, guidance: bool) -> Option<Decision> {
    let phis = &phis[..phis.len().min(attempts as usize)];
    let (phi, attempt, forced) = phis
        .iter()
        .zip(1..)
        .find(|&(&phi, _)| phi < threshold)
        .map(|(&phi, number)| (phi, number, false))
        .or_else(|| {
            let &last = phis.last().filter(|_| phis.len() == attempts as usize)?;
            Some((last, attempts, true))
        })?;
    Some(Decision { attempt, guided: is_guided(attempt, attempts, guidance), forced, phi })
}

/// Whether every cell has its decision, so that a sample needs no further attempt.
///
/// `phis` has one list for each encoder, as in [`decide`]. The most demanding cell is the smallest threshold with the encoder that
/// accepts last. No thresholds or no encoders: nothing is asked, so true.
pub fn resolved(phis: &[&[f64]], thresholds: &[f64], attempts: u32) -> bool {
    let Some(smallest) = thresholds.iter().copied().min_by(f64::total_cmp) else { return true };
    phis.iter().all(|phis| decide(phis, smallest, attempts, true).is_some())
}
