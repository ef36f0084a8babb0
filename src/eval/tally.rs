//! Scores as functions of sums over items, and how far a resample of the items moves them.
//!
//! Every item adds numbers to named cells (`adversarial/tp`, `math/sum`, ...), and a [`Statistic`] is a function of the
//! cells' sums. So a result's items are enough to compute it again, also on a resample.
//!
//! The bootstrap draws units with replacement, as many as there are. Units are images with all their questions, since
//! answers about one image are not independent, or single items ([`super::Unit`]). Draw i of resample r is unit
//! `floor(w n / 2^32)` with w the Philox word of (seed, sample r, [`Purpose::Bootstrap`], index i); so intervals do not depend
//! on threads, and two runs over the same items can be resampled alike ([`paired`]).

use std::{collections::HashMap, fmt, sync::Arc};

use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ItemScore;
use crate::{
    data::json::Entries,
    ops::philox::{Draws, Purpose},
};

/// Names of the cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cells {
    names: Vec<String>,
    places: HashMap<String, usize>,
}

impl Cells {
    /// The cell's place; it is made if there is none.
    pub fn add(&mut self, name: &str) -> usize {
        if let Some(&place) = self.places.get(name) {
            return place;
        }
        self.names.push(name.to_owned());
        self.places.insert(name.to_owned(), self.names.len() - 1);
        self.names.len() - 1
    }

    /// The cell's place, if any item adds to it.
    pub fn get(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// The distinct `X`, without a `/`, of all cells `before/X/after`, in order of first use.
    pub fn groups(&self, before: &str, after: &str) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for name in &self.names {
            let group = name
                .strip_prefix(before)
                .and_then(|name| name.strip_suffix(after))
                .and_then(
                    |name| if before.is_empty() { Some(name) } else { name.strip_prefix('/') },
                )
                .and_then(|name| name.strip_suffix('/'));
            if let Some(group) = group.filter(|group| !group.is_empty() && !group.contains('/'))
                && !found.iter().any(|known| known == group)
            {
                found.push(group.to_owned());
            }
        }
        found
    }
}

/// What one item adds, by cell name; an object of numbers in JSON, where null is not a number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Additions(pub Vec<(Arc<str>, f64)>);

impl Additions {
    /// Adds a number to a cell. An item may add to one more than once, as each of several judge runs does.
    pub fn push(&mut self, cell: impl Into<Arc<str>>, value: f64) {
        let cell = cell.into();
        match self.0.iter_mut().find(|(known, _)| *known == cell) {
            Some((_, sum)) => *sum += value,
            None => self.0.push((cell, value)),
        }
    }
}

impl Serialize for Additions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name.as_ref(), value)))
    }
}

impl<'de> Deserialize<'de> for Additions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = Entries::<Option<f64>>::deserialize(deserializer)?.0;
        let entry = |(name, value): (String, Option<f64>)| (name.into(), value.unwrap_or(f64::NAN));
        Ok(Self(entries.into_iter().map(entry).collect()))
    }
}

/// A function of the cells' sums.
pub type Formula = dyn Fn(&[f64]) -> f64 + Send + Sync;

/// A named function of the cells' sums.
pub struct Statistic {
    /// As in the result: `f1`, `accuracy/adversarial`.
    pub name: String,
    /// Its value; not a number where it is not defined.
    pub value: Box<Formula>,
}

impl Statistic {
    /// A statistic.
    pub fn new(
        name: impl Into<String>,
        value: impl Fn(&[f64]) -> f64 + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), value: Box::new(value) }
    }

    /// `scale * sum of one cell / sum of another`; not a number where the latter is 0.
    pub fn ratio(
        name: impl Into<String>,
        cells: &Cells,
        (above, below): (&str, &str),
        scale: f64,
    ) -> Self {
        let (above, below) = (cells.get(above), cells.get(below));
        Self::new(name, move |sums| scale * at(sums, above) / at(sums, below))
    }
}

/// A sum; 0 for a cell that nothing adds to.
pub fn at(sums: &[f64], cell: Option<usize>) -> f64 {
    cell.map_or(0.0, |cell| sums[cell])
}

/// Items as sparse additions, grouped by unit.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// The cells.
    pub cells: Cells,
    /// Additions of unit u are `additions[starts[u]..starts[u + 1]]`.
    starts: Vec<usize>,
    additions: Vec<(u32, f64)>,
}

impl Tally {
    /// The tally of scored items; units in order of first use.
    pub fn new<'a>(items: impl IntoIterator<Item = &'a ItemScore>) -> Self {
        let mut cells = Cells::default();
        let mut units: HashMap<&str, usize> = HashMap::new();
        let mut of_unit: Vec<Vec<(u32, f64)>> = Vec::new();
        for item in items {
            let unit = *units.entry(&item.unit).or_insert_with(|| {
                of_unit.push(Vec::new());
                of_unit.len() - 1
            });
            for (name, value) in &item.cells.0 {
                of_unit[unit].push((cells.add(name) as u32, *value));
            }
        }
        let mut starts = vec![0];
        let mut additions = Vec::new();
        for unit in of_unit {
            additions.extend(merge(unit));
            starts.push(additions.len());
        }
        Self { cells, starts, additions }
    }

    /// Number of units.
    pub fn units(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Sums over all items.
    pub fn sums(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.cells.names.len()];
        for &(cell, value) in &self.additions {
            sums[cell as usize] += value;
        }
        sums
    }

    fn add(&self, unit: usize, sums: &mut [f64]) {
        for &(cell, value) in &self.additions[self.starts[unit]..self.starts[unit + 1]] {
            sums[cell as usize] += value;
        }
    }
}

/// Adds up what goes to the same cell, in order of first use.
fn merge(additions: Vec<(u32, f64)>) -> Vec<(u32, f64)> {
    let mut merged: Vec<(u32, f64)> = Vec::new();
    for (cell, value) in additions {
        match merged.iter_mut().find(|(known, _)| *known == cell) {
            Some((_, sum)) => *sum += value,
            None => merged.push((cell, value)),
        }
    }
    merged
}

/// A statistic with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// On all items; null if not defined.
    pub value: Option<f64>,
    /// 2.5 % quantile over the resamples where the statistic is defined; null without resamples.
    pub low: Option<f64>,
    /// 97.5 % quantile.
    pub high: Option<f64>,
    /// Standard deviation over the resamples; null with fewer than two.
    pub stderr: Option<f64>,
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self.value, self.low, self.high) {
            (Some(value), Some(low), Some(high)) => write!(f, "{value:.2} [{low:.2}, {high:.2}]"),
            (Some(value), ..) => write!(f, "{value:.2}"),
            _ => f.write_str("–"),
        }
    }
}

/// Every statistic with its interval, in order.
pub fn estimates(
    tally: &Tally,
    statistics: &[Statistic],
    resamples: u32,
    seed: u64,
) -> Vec<Estimate> {
    let sums = tally.sums();
    let drawn = resampled(&[tally], resamples, seed);
    statistics
        .iter()
        .map(|statistic| {
            let values = drawn.iter().map(|sums| (statistic.value)(&sums[0])).collect();
            estimate((statistic.value)(&sums), values)
        })
        .collect()
}

/// Differences `b - a` of the statistics of two runs over the same units, resampled alike; with each its
/// two-sided p-value.
pub fn paired(
    a: (&Tally, &[Statistic]),
    b: (&Tally, &[Statistic]),
    resamples: u32,
    seed: u64,
) -> Vec<(Estimate, Option<f64>)> {
    let (whole_a, whole_b) = (a.0.sums(), b.0.sums());
    let drawn = resampled(&[a.0, b.0], resamples, seed);
    a.1.iter()
        .zip(b.1)
        .map(|(of_a, of_b)| {
            let difference = |x: &[f64], y: &[f64]| (of_b.value)(y) - (of_a.value)(x);
            let values: Vec<f64> =
                drawn.iter().map(|sums| difference(&sums[0], &sums[1])).collect();
            let whole = difference(&whole_a, &whole_b);
            let p = two_sided(&values);
            (estimate(whole, values), p)
        })
        .collect()
}

/// Twice the smaller share of differences on one side of 0, at most 1; ties count on both sides. With k of n on that side the
/// value is 2 (k + 1) / (n + 1), which is never 0.
fn two_sided(values: &[f64]) -> Option<f64> {
    let n = values.iter().filter(|value| !value.is_nan()).count();
    let below = values.iter().filter(|value| **value <= 0.0).count();
    let above = values.iter().filter(|value| **value >= 0.0).count();
    let p = 2.0 * (below.min(above) + 1) as f64 / (n + 1) as f64;
    (n > 0).then_some(p.min(1.0))
}

/// For each resample, the sums of each tally.
fn resampled(tallies: &[&Tally], resamples: u32, seed: u64) -> Vec<Vec<Vec<f64>>> {
    let n = tallies[0].units();
    if n == 0 {
        return Vec::new();
    }
    (0..resamples)
        .into_par_iter()
        .map_init(
            || vec![0u32; n],
            |words, sample| {
                let draws = Draws { seed, sample, attempt: 0 };
                draws.fill(Purpose::Bootstrap, 0, words);
                let mut sums: Vec<Vec<f64>> =
                    tallies.iter().map(|tally| vec![0.0; tally.cells.names.len()]).collect();
                for &word in words.iter() {
                    let unit = ((u64::from(word) * n as u64) >> 32) as usize;
                    for (tally, sums) in tallies.iter().zip(&mut sums) {
                        tally.add(unit, sums);
                    }
                }
                sums
            },
        )
        .collect()
}

fn estimate(value: f64, mut values: Vec<f64>) -> Estimate {
    let finite = |value: f64| value.is_finite().then_some(value);
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Estimate {
        value: finite(value),
        low: quantile(&values, 0.025),
        high: quantile(&values, 0.975),
        stderr: if values.len() > 1 { finite(variance.sqrt()) } else { None },
    }
}

/// The quantile of sorted values by linear interpolation at position (n - 1) q: NumPy's default. None without values.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let position = (sorted.len().checked_sub(1)? as f64) * q;
    let below = position.floor();
    let (a, b) = (sorted[below as usize], sorted[position.ceil() as usize]);
    let t = position - below;
    // From the nearer end, as NumPy does, so that t = 1 gives exactly b.
    Some(if t < 0.5 { a + (b - a) * t } else { b - (b - a) * (1.0 - t) })
}
