//! What the ablation asks: does the threshold matter, does the encoder, does one depend on the other, and do recipes differ over
//! images *and* seeds.
//!
//! All models of a metric are resampled alike ([`Resampled`]), so every effect is one function of the models' scores on the same
//! images, and its interval and p-value are over images:
//!
//! - **threshold**: the slope of a line through the cells with a level of its own for each encoder (encoder as block), per .01;
//! - **encoder**: the encoders' means over thresholds, tested together;
//! - **interaction**: what is left of the cells without the means of both axes, tested together;
//! - **recipes**: baseline, default cell, control and variants, each the mean over its seeds, in pairs; images and seeds are drawn.
//!
//! Cells are one training each. Whether their differences are more than those of reseeding one training shows the variance
//! between cells beside that between seeds ([`Variances`]).

use serde::{Deserialize, Serialize};

use super::plan::{BASELINE, CONTROL, CellModel, Plan};
use crate::eval::intervals::seen;
use crate::eval::tally::{Estimate, Resampled};

/// A paired difference on the same resamples of the benchmark's images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Value and 95 % interval.
    pub difference: Estimate,
    /// Two-sided bootstrap p-value of no difference.
    pub p: Option<f64>,
    /// The same, adjusted by Holm's method over the grid's models in this statistic; none outside the grid, and where the grid is
    /// one model, which leaves nothing to adjust.
    pub p_holm: Option<f64>,
}

impl Difference {
    /// The difference that this test would have found with 80 % power at 5 %.
    pub fn sees(&self) -> Option<f64> {
        self.difference.stderr.map(|stderr| seen(stderr, 1))
    }
}

/// The axes of the grid in one statistic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Effects {
    /// Change of the statistic for .01 more of threshold; none with one threshold.
    pub threshold: Option<Difference>,
    /// Differences between encoders; none with one encoder.
    pub encoder: Option<JointTest>,
    /// Differences that are neither of the threshold nor of the encoder; none without two of each.
    pub interaction: Option<JointTest>,
    /// Variance between cells beside that between seeds.
    pub variances: Option<Variances>,
}

/// Several differences tested together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct JointTest {
    /// Root of the mean square of the deviations from their mean.
    pub deviation: Option<f64>,
    /// p-value of no deviation at all.
    pub p: Option<f64>,
}

/// How much a statistic varies from cell to cell, and from seed to seed of one cell. A ratio near 1 says that cells differ as
/// trainings of one cell do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variances {
    /// Variance between the models of the grid.
    pub cells: f64,
    /// Their number less one.
    pub cells_freedom: usize,
    /// Variance between the default cell's trainings; none with one seed.
    pub seeds: Option<f64>,
    /// Their number less one.
    pub seeds_freedom: usize,
}

impl Variances {
    /// Cells over seeds; none with one seed.
    pub fn ratio(&self) -> Option<f64> {
        self.seeds.filter(|seeds| *seeds > 0.0).map(|seeds| self.cells / seeds)
    }
}

/// Two recipes, each the mean over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipes {
    /// Name of the one.
    pub a: String,
    /// Name of the other, which is subtracted.
    pub b: String,
    /// Trainings of each.
    pub seeds: [usize; 2],
    /// The difference, over images and seeds.
    pub test: Difference,
}

/// What a run of this size can see in one statistic: the difference to the baseline that a test finds with 80 % power at 5 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Power {
    /// Median standard error of the grid's differences to the baseline.
    pub stderr: Option<f64>,
    /// A test alone.
    pub alone: Option<f64>,
    /// The first of the grid's tests in Holm's order.
    pub holm: Option<f64>,
}

impl Power {
    /// From the standard errors of a family of tests.
    pub fn of(mut stderrs: Vec<f64>) -> Self {
        stderrs.sort_by(f64::total_cmp);
        let n = stderrs.len();
        let Some(&stderr) = stderrs.get(n / 2) else { return Self::default() };
        Self { stderr: Some(stderr), alone: Some(seen(stderr, 1)), holm: Some(seen(stderr, n)) }
    }
}

/// Places of the cells' models among those that are resampled: `[encoder][threshold]`, and the thresholds.
pub struct Grid {
    models: Vec<Vec<usize>>,
    thresholds: Vec<f64>,
}

impl Grid {
    /// From places by encoder and threshold, and the thresholds.
    pub fn new(models: Vec<Vec<usize>>, thresholds: Vec<f64>) -> Self {
        Self { models, thresholds }
    }

    /// The grid of a plan; `place` finds a model.
    pub(super) fn of(cells: &[CellModel], place: impl Fn(&str) -> usize) -> Self {
        let mut grid = Self { models: Vec::new(), thresholds: Vec::new() };
        let mut encoders: Vec<&str> = Vec::new();
        for cell in cells {
            if !grid.thresholds.contains(&cell.threshold) {
                grid.thresholds.push(cell.threshold);
            }
            let row = encoders.iter().position(|name| *name == cell.encoder);
            let row = row.unwrap_or_else(|| {
                encoders.push(&cell.encoder);
                grid.models.push(Vec::new());
                encoders.len() - 1
            });
            grid.models[row].push(place(&cell.model));
        }
        grid
    }

    /// Weights of each cell, by encoder and threshold.
    fn weights(&self, of: impl Fn(usize, usize) -> f64) -> Vec<(usize, f64)> {
        let row = |(e, row): (usize, &Vec<usize>)| {
            let weight = |(t, model): (usize, &usize)| (*model, of(e, t));
            row.iter().enumerate().map(weight).collect::<Vec<_>>()
        };
        self.models.iter().enumerate().flat_map(row).collect()
    }

    /// Its effects in one statistic. `seeds` are the default cell's trainings.
    pub fn effects(&self, drawn: &Resampled, seeds: &[usize], statistic: usize) -> Effects {
        let (encoders, count) = (self.models.len() as f64, self.thresholds.len() as f64);
        let share = |same: bool, n: f64| f64::from(u8::from(same)) - 1.0 / n;
        let mean = self.thresholds.iter().sum::<f64>() / count;
        let square: f64 = self.thresholds.iter().map(|t| (t - mean).powi(2)).sum();
        let threshold = (self.thresholds.len() > 1).then(|| {
            // The least-squares slope of all cells, each encoder with a level of its own.
            let slope = |_, t: usize| 0.01 * (self.thresholds[t] - mean) / (square * encoders);
            let (difference, p) = drawn.contrast(&self.weights(slope), statistic);
            Difference { difference, p, p_holm: None }
        });
        let spread = |contrasts: Vec<Vec<(usize, f64)>>| {
            let (deviation, p) = drawn.spread(&contrasts, statistic);
            JointTest { deviation, p }
        };
        let all = |n: usize| 0..n;
        let encoder = (self.models.len() > 1).then(|| {
            let of = |own: usize| self.weights(|e, _| share(e == own, encoders) / count);
            spread(all(self.models.len()).map(of).collect())
        });
        let interaction = (self.models.len() > 1 && self.thresholds.len() > 1).then(|| {
            let of = |(x, y): (usize, usize)| {
                self.weights(|e, t| share(e == x, encoders) * share(t == y, count))
            };
            let cells = all(self.models.len())
                .flat_map(|e| all(self.thresholds.len()).map(move |t| (e, t)));
            spread(cells.map(of).collect())
        });
        let mut models: Vec<usize> = self.models.iter().flatten().copied().collect();
        models.sort_unstable();
        models.dedup();
        let values = |models: &[usize]| -> Vec<f64> {
            models.iter().map(|model| drawn.value(*model, statistic)).collect()
        };
        let variances = variance(&values(&models)).map(|cells| Variances {
            cells,
            cells_freedom: models.len() - 1,
            seeds: variance(&values(seeds)),
            seeds_freedom: seeds.len().saturating_sub(1),
        });
        Effects { threshold, encoder, interaction, variances }
    }
}

fn variance(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    (values.len() > 1 && squares.is_finite()).then(|| squares / (n - 1.0))
}

/// Baseline, default cell, control and variants against one another in one statistic: default and control against the baseline,
/// default against control, and each variant against the default.
pub(super) fn recipes(
    plan: &Plan,
    place: impl Fn(&str) -> usize,
    drawn: &Resampled,
    statistic: usize,
) -> Vec<Recipes> {
    let seeds =
        |stem: &str| -> Vec<usize> { plan.seeds(stem).iter().map(|name| place(name)).collect() };
    let default = ("default", seeds(&plan.default));
    let baseline = ("baseline", vec![place(BASELINE)]);
    let control = ("control", seeds(CONTROL));
    let variants = plan.variants();
    let mut pairs = vec![(&default, &baseline)];
    if !control.1.is_empty() {
        pairs.extend([(&control, &baseline), (&default, &control)]);
    }
    let variants: Vec<(&str, Vec<usize>)> =
        variants.iter().map(|name| (name.as_str(), seeds(name))).collect();
    pairs.extend(variants.iter().map(|variant| (variant, &default)));
    pairs
        .into_iter()
        .map(|(a, b)| {
            let (difference, p) = drawn.difference(&a.1, &b.1, statistic);
            Recipes {
                a: a.0.to_owned(),
                b: b.0.to_owned(),
                seeds: [a.1.len(), b.1.len()],
                test: Difference { difference, p, p_holm: None },
            }
        })
        .collect()
}
