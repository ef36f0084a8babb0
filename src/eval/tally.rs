//! Scores as functions of sums over items, and how far a resample of the items moves them.
//!
//! Every item adds numbers to named cells (`adversarial/tp`, `math/sum`, ...), and a [`Statistic`] is a function of the
//! cells' sums. So a result's items are enough to compute it again, also on a resample.
//!
//! The bootstrap draws units with replacement, as many as there are. Units are images with all their questions, since
//! answers about one image are not independent, or single items ([`super::Unit`]). Draw i of resample r is unit
//! `floor(w n / 2^32)` with w the Philox word of (seed, sample r, [`Purpose::Bootstrap`], index i); so intervals do not depend
//! on threads, and two runs over the same items can be resampled alike ([`paired`]).

use std::{collections::HashMap, sync::Arc};

use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use super::intervals::{Estimate, quantile};
use super::{
    ItemScore,
    intervals::{self, Bounds},
};
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
    /// The least and the largest value that it can have, where there are bounds.
    pub scale: Option<[f64; 2]>,
}

impl Statistic {
    /// A statistic without bounds.
    pub fn new(
        name: impl Into<String>,
        value: impl Fn(&[f64]) -> f64 + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), value: Box::new(value), scale: None }
    }

    /// The same with bounds, on which its intervals near them depend.
    pub fn within(self, low: f64, high: f64) -> Self {
        Self { scale: Some([low, high]), ..self }
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

/// Every statistic with its interval, in order.
pub fn estimates(
    tally: &Tally,
    statistics: &[Statistic],
    resamples: u32,
    seed: u64,
) -> Vec<Estimate> {
    let all: Vec<&Statistic> = statistics.iter().collect();
    let drawn = Resampled::new(&[(tally, all)], resamples, seed);
    (0..statistics.len()).map(|i| drawn.score(0, i)).collect()
}

/// Differences `b - a` of the statistics of two runs over the same units, resampled alike; with each its
/// two-sided p-value.
pub fn paired(
    a: (&Tally, &[Statistic]),
    b: (&Tally, &[Statistic]),
    resamples: u32,
    seed: u64,
) -> Vec<(Estimate, Option<f64>)> {
    let runs = [a, b].map(|(tally, statistics)| (tally, statistics.iter().collect()));
    let drawn = Resampled::new(&runs, resamples, seed);
    (0..a.1.len().min(b.1.len())).map(|i| drawn.difference(&[1], &[0], i)).collect()
}

/// Draws of one resample. The resample is a count for each unit, since one and the same unit adds the same each time.
fn counts(units: usize, seed: u64, sample: u32, words: &mut [u32], counts: &mut [u32]) {
    let draws = Draws { seed, sample, attempt: 0 };
    draws.fill(Purpose::Bootstrap, 0, words);
    counts.fill(0);
    for &word in words.iter() {
        counts[((u64::from(word) * units as u64) >> 32) as usize] += 1;
    }
}

impl Tally {
    /// Sums over the units, each as often as it was drawn.
    fn weighted(&self, counts: &[u32], sums: &mut [f64]) {
        for (unit, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let weight = f64::from(count);
            for &(cell, value) in &self.additions[self.starts[unit]..self.starts[unit + 1]] {
                sums[cell as usize] += weight * value;
            }
        }
    }

    /// How many units a statistic is about: those that add to a sum on which it depends.
    fn units_of(&self, statistic: &Statistic) -> u64 {
        // Sums of no special values; one that matters changes the value when it is doubled.
        let mut sums: Vec<f64> =
            (0..self.cells.names.len()).map(|cell| 3.0 + (0.618 * cell as f64).fract()).collect();
        let value = (statistic.value)(&sums);
        let matters: Vec<bool> = (0..sums.len())
            .map(|cell| {
                let kept = sums[cell];
                sums[cell] *= 2.0;
                let changed = (statistic.value)(&sums);
                sums[cell] = kept;
                changed != value
            })
            .collect();
        let about = |unit: usize| {
            let additions = &self.additions[self.starts[unit]..self.starts[unit + 1]];
            additions.iter().any(|&(cell, _)| matters[cell as usize])
        };
        (0..self.units()).filter(|&unit| about(unit)).count() as u64
    }
}

/// Statistics of several runs over the same units, on all items and on each of the same resamples: whatever is compared is
/// compared on the same images.
pub struct Resampled {
    statistics: usize,
    /// Key of the draws.
    seed: u64,
    /// `[run][statistic]` of all items.
    whole: Vec<f64>,
    /// The same of each resample.
    drawn: Vec<Vec<f64>>,
    /// Units that each statistic of each run is about.
    units: Vec<u64>,
    /// Bounds of each statistic.
    scales: Vec<Option<[f64; 2]>>,
}

impl Resampled {
    /// Resamples runs whose tallies have the same units in the same order. All have the same statistics.
    pub fn new(runs: &[(&Tally, Vec<&Statistic>)], resamples: u32, seed: u64) -> Self {
        let statistics = runs.first().map_or(0, |(_, statistics)| statistics.len());
        let units = runs.first().map_or(0, |(tally, _)| tally.units());
        let values = |sums: &[Vec<f64>]| -> Vec<f64> {
            let run = |((_, statistics), sums): (&(&Tally, Vec<&Statistic>), &Vec<f64>)| {
                statistics.iter().map(|statistic| (statistic.value)(sums)).collect::<Vec<f64>>()
            };
            runs.iter().zip(sums).flat_map(run).collect()
        };
        let drawn = (0..if units == 0 { 0 } else { resamples })
            .into_par_iter()
            .map_init(
                || (vec![0u32; units], vec![0u32; units]),
                |(words, drawn), sample| {
                    counts(units, seed, sample, words, drawn);
                    let sums: Vec<Vec<f64>> = runs
                        .iter()
                        .map(|(tally, _)| {
                            let mut sums = vec![0.0; tally.cells.names.len()];
                            tally.weighted(drawn, &mut sums);
                            sums
                        })
                        .collect();
                    values(&sums)
                },
            )
            .collect();
        let whole: Vec<Vec<f64>> = runs.iter().map(|(tally, _)| tally.sums()).collect();
        Self {
            statistics,
            seed,
            whole: values(&whole),
            drawn,
            units: runs
                .par_iter()
                .flat_map_iter(|(tally, all)| {
                    all.iter().map(move |statistic| tally.units_of(statistic))
                })
                .collect(),
            scales: runs.first().map_or_else(Vec::new, |(_, all)| {
                all.iter().map(|statistic| statistic.scale).collect()
            }),
        }
    }

    /// A statistic of a run on all items.
    pub fn value(&self, run: usize, statistic: usize) -> f64 {
        self.whole[run * self.statistics + statistic]
    }

    /// A statistic of a run, with its interval.
    pub fn score(&self, run: usize, statistic: usize) -> Estimate {
        let place = run * self.statistics + statistic;
        let drawn = self.drawn.iter().map(|row| row[place]).collect();
        let bounds = self.scales[statistic].map(Bounds::Score);
        intervals::estimate(self.whole[place], drawn, self.units[place], bounds)
    }

    /// The mean of some runs minus that of others, with its two-sided p-value.
    ///
    /// Runs of one side are trainings of one recipe, a seed each. Where a side has several, they are drawn with replacement in each
    /// resample of the images, so that the interval is about other images *and* other seeds. Sides of equally many runs are drawn
    /// alike: run k of both has the same seed. The deviation that a draw of n seeds brings is scaled by sqrt(n / (n - 1)), as a
    /// resample varies by too little otherwise.
    pub fn difference(
        &self,
        runs: &[usize],
        minus: &[usize],
        statistic: usize,
    ) -> (Estimate, Option<f64>) {
        let place = |run: &usize| run * self.statistics + statistic;
        let side = |row: &[f64], side: &[usize], words: &[u32]| {
            let n = side.len();
            let mean = side.iter().map(|run| row[place(run)]).sum::<f64>() / n as f64;
            if n < 2 {
                return mean;
            }
            let pick =
                |word: &u32| row[place(&side[((u64::from(*word) * n as u64) >> 32) as usize])];
            let drawn = words.iter().take(n).map(pick).sum::<f64>() / n as f64;
            mean + (drawn - mean) * (n as f64 / (n as f64 - 1.0)).sqrt()
        };
        let mut words = vec![0; runs.len().max(minus.len())];
        let drawn = (0u32..)
            .zip(&self.drawn)
            .map(|(sample, row)| {
                // Images are drawn as attempt 0.
                Draws { seed: self.seed, sample, attempt: 1 }.fill(
                    Purpose::Bootstrap,
                    0,
                    &mut words,
                );
                side(row, runs, &words) - side(row, minus, &words)
            })
            .collect();
        let mean = |runs: &[usize]| {
            runs.iter().map(|run| self.whole[place(run)]).sum::<f64>() / runs.len() as f64
        };
        let units = runs.iter().chain(minus).map(|run| self.units[place(run)]).min().unwrap_or(0);
        let bounds = self.scales[statistic].map(|[low, high]| Bounds::Difference(high - low));
        self.test(mean(runs) - mean(minus), drawn, units, bounds)
    }

    /// A linear function of the runs' statistic whose weights sum to 0, with its two-sided p-value.
    pub fn contrast(&self, weights: &[(usize, f64)], statistic: usize) -> (Estimate, Option<f64>) {
        let of = |row: &[f64]| dot(row, weights, self.statistics, statistic);
        let units = weights.iter().map(|(run, _)| self.units[run * self.statistics + statistic]);
        let drawn = self.drawn.iter().map(|row| of(row)).collect();
        self.test(of(&self.whole), drawn, units.min().unwrap_or(0), None)
    }

    fn test(
        &self,
        value: f64,
        drawn: Vec<f64>,
        units: u64,
        bounds: Option<Bounds>,
    ) -> (Estimate, Option<f64>) {
        let p = intervals::two_sided(&drawn);
        (intervals::estimate(value, drawn, units, bounds), p)
    }

    /// Whether several contrasts are all 0: the root of the mean of their squares, and the p-value of so large a one. Under no
    /// effect the contrasts of resamples scatter about those of all items as these do about 0.
    pub fn spread(
        &self,
        contrasts: &[Vec<(usize, f64)>],
        statistic: usize,
    ) -> (Option<f64>, Option<f64>) {
        let all = |row: &[f64]| -> Vec<f64> {
            contrasts.iter().map(|weights| dot(row, weights, self.statistics, statistic)).collect()
        };
        let whole = all(&self.whole);
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let found = square(&mut whole.iter().copied());
        let (mut defined, mut larger) = (0, 0);
        for row in &self.drawn {
            let drawn = square(&mut all(row).into_iter().zip(&whole).map(|(x, centre)| x - centre));
            defined += usize::from(drawn.is_finite());
            larger += usize::from(drawn >= found);
        }
        let p =
            (defined > 0 && found.is_finite()).then(|| (larger + 1) as f64 / (defined + 1) as f64);
        let root = (found / contrasts.len().max(1) as f64).sqrt();
        (root.is_finite().then_some(root), p)
    }
}

fn dot(row: &[f64], weights: &[(usize, f64)], statistics: usize, statistic: usize) -> f64 {
    weights.iter().map(|(run, weight)| weight * row[run * statistics + statistic]).sum()
}
