//! The ablation's result: every model's scores with intervals, paired tests, costs, and what holds over seeds.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::effects::{Difference, Effects, Grid, Power, Recipes, recipes};
use super::plan::{BASELINE, CONTROL, CellModel, Kind, Plan};
use super::run::{judged, judged_folder, trained};
use crate::config::{Config, Variant};
use crate::eval::compare::{align, read};
use crate::eval::intervals::{enough, floor};
use crate::eval::summary::Summary;
use crate::eval::tally::{self, Estimate, Resampled, Tally};
use crate::eval::{ItemScore, Replies, metric};
use crate::train::Means;
use crate::{Error, Result};

/// Statistics that stand beside a metric's score, and whether less is better.
/// POPE's share of yes tells a better eye from a lower bar.
const BESIDE: [(&str, &str, bool); 3] =
    [("pope", "accuracy", false), ("pope", "yes_ratio", false), ("recall-coco", "chair_i", true)];

/// `ablation.json`. Field names and their order are part of the interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ablation {
    /// The benchmarks' label, or their folder.
    pub data: String,
    /// Columns of the table, in order.
    pub statistics: Vec<Statistic>,
    /// The model that others are tested against.
    pub default: String,
    /// Cells in the grid's order, and who answers for each.
    pub cells: Vec<CellModel>,
    /// The default cell under other settings.
    #[serde(default)]
    pub variants: Vec<Changed>,
    /// Every model, the baseline first.
    pub models: Vec<ModelResult>,
    /// Over seeds: default cell, control and variants beside the baseline, one for each statistic.
    pub seeds: Vec<Seeds>,
    /// The grid's axes, one for each statistic.
    #[serde(default)]
    pub effects: Vec<Effects>,
    /// Recipes in pairs over images and seeds, a list for each statistic.
    #[serde(default)]
    pub recipes: Vec<Vec<Recipes>>,
    /// What this run can see, one for each statistic.
    #[serde(default)]
    pub power: Vec<Power>,
    /// Resamples of every interval and test.
    #[serde(default)]
    pub resamples: u32,
    /// What a reader must know about the tests.
    pub notes: Vec<String>,
}

/// A variant: the default cell under other settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Its name, and that of its first model.
    pub name: String,
    /// The settings, as `sampling.rho = 1`.
    pub settings: String,
}

/// A column: a metric's score or a statistic beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistic {
    /// The metric.
    pub metric: String,
    /// The statistic.
    pub name: String,
    /// Whether less is better.
    pub less_is_better: bool,
}

/// One model's part of the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelResult {
    /// Its name, and that of its folders.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Seed of its training.
    pub seed: u64,
    /// Pairs trained on.
    pub pairs: usize,
    /// Pairs left out because of a flag.
    pub excluded: usize,
    /// The last epoch of its training.
    pub training: Option<Means>,
    /// In the order of [`Ablation::statistics`].
    pub scores: Vec<Score>,
    /// Wall time by stage: reference, train, judge.
    pub seconds: BTreeMap<String, f64>,
}

/// A statistic of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Value and 95 % interval over the benchmark's images.
    pub value: Option<Estimate>,
    /// This minus the baseline; none for the baseline.
    pub baseline: Option<Difference>,
    /// This minus the default cell's model; none for that.
    pub default: Option<Difference>,
    /// Items that score better and worse than the baseline's.
    pub changed: [u64; 2],
}

/// A statistic over seeds of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seeds {
    /// The baseline's value: the exact initial weights, judged in the same run.
    pub baseline: Option<f64>,
    /// The default cell's models.
    pub default: Spread,
    /// The control's models.
    pub control: Option<Spread>,
    /// Each variant's, in the order of [`Ablation::variants`].
    #[serde(default)]
    pub variants: Vec<Spread>,
}

/// Values of several seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// One a seed.
    pub values: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// 95 % interval of the mean over trainings (Student's t); none for one seed. It says nothing about other images.
    pub interval: Option<[f64; 2]>,
}

impl Spread {
    fn of(values: Vec<f64>) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let interval = (n > 1).then(|| {
            let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            let half = student(n - 1) * (squares / (n - 1) as f64 / n as f64).sqrt();
            [mean - half, mean + half]
        });
        Some(Self { values, mean, interval })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.interval {
            Some([low, high]) => write!(f, "{:.2} [{low:.2}, {high:.2}]", self.mean),
            None => write!(f, "{:.2}", self.mean),
        }
    }
}

/// The 97.5 % quantile of Student's t with so many degrees of freedom.
fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 10] =
        [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281];
    match TABLE.get(freedom - 1) {
        Some(&t) => t,
        // Cornish and Fisher's expansion about the normal quantile: within 0.001 from here on.
        None => {
            let (z, n) = (1.959_964_f64, freedom as f64);
            z + (z.powi(3) + z) / (4.0 * n)
                + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n)
        }
    }
}

/// Reads what all models left in the run folder.
///
/// # Errors
/// A model that is not judged yet, or a malformed file.
pub fn table(config: &Config, plan: &Plan) -> Result<Ablation> {
    let run = &config.run.out;
    let summaries = plan
        .models
        .iter()
        .map(|model| {
            judged(run, model)?.ok_or_else(|| {
                let folder = judged_folder(run, &model.name);
                Error::invalid(folder, "", "is not finished: this model is not judged yet")
            })
        })
        .collect::<Result<Vec<(Summary, f64)>>>()?;
    let statistics = statistics(&summaries[0].0);
    let resamples = config.eval.resamples.unwrap_or_else(|| enough(plan.models.len()));
    let mut compared = vec![Vec::new(); plan.models.len()];
    let (mut effects, mut pairs) = (Vec::new(), Vec::new());
    for row in &summaries[0].0.metrics {
        let own: Vec<&Statistic> = statistics.iter().filter(|s| s.metric == row.metric).collect();
        let metric = MetricRuns::new(run, plan, &row.metric, &own, resamples)?;
        let place = |name: &str| metric.place(name);
        let (grid, seeds) = (Grid::of(&plan.cells, place), plan.seeds(&plan.default));
        let seeds: Vec<usize> = seeds.iter().map(|name| place(name)).collect();
        for i in 0..own.len() {
            compared.iter_mut().enumerate().for_each(|(m, all)| all.push(metric.score(m, i)));
            effects.push(grid.effects(&metric.drawn, &seeds, i));
            pairs.push(recipes(plan, place, &metric.drawn, i));
        }
    }
    let mut models = Vec::new();
    for ((model, (_, judge)), scores) in plan.models.iter().zip(&summaries).zip(compared) {
        let outcome = trained(run, model)?;
        let mut seconds = outcome.as_ref().map(|o| o.seconds.clone()).unwrap_or_default();
        seconds.insert("judge".to_owned(), *judge);
        models.push(ModelResult {
            name: model.name.clone(),
            kind: model.kind.clone(),
            seed: model.seed,
            pairs: outcome.as_ref().map_or(0, |o| o.pairs),
            excluded: outcome.as_ref().map_or(0, |o| o.excluded),
            training: outcome.map(|o| o.last),
            scores,
            seconds,
        });
    }
    adjust(&mut models, plan);
    let seeds = (0..statistics.len()).filter_map(|i| seeds(&models, plan, i)).collect();
    let changed =
        |variant: &Variant| Changed { name: variant.name.clone(), settings: variant.changes() };
    Ok(Ablation {
        variants: config.variants.iter().map(changed).collect(),
        data: summaries[0].0.data.clone(),
        default: plan.default.clone(),
        cells: plan.cells.clone(),
        seeds,
        effects,
        recipes: pairs,
        power: (0..statistics.len()).map(|i| power(&models, plan, i)).collect(),
        resamples,
        notes: [notes(plan, config, resamples), reply_notes(&summaries)].concat(),
        statistics,
        models,
    })
}

fn statistics(summary: &Summary) -> Vec<Statistic> {
    let mut all = Vec::new();
    for row in &summary.metrics {
        let mut add = |name: &str, less_is_better| {
            let (metric, name) = (row.metric.clone(), name.to_owned());
            all.push(Statistic { metric, name, less_is_better });
        };
        add(&row.name, false);
        for (_, name, less) in BESIDE.iter().filter(|(metric, ..)| *metric == row.metric) {
            add(name, *less);
        }
    }
    all
}

/// All models' answers to one metric, resampled alike.
struct MetricRuns {
    names: Vec<String>,
    baseline: usize,
    default: usize,
    /// Items of each model, in the baseline's order.
    items: Vec<Vec<ItemScore>>,
    drawn: Resampled,
}

impl MetricRuns {
    fn new(
        run: &Path,
        plan: &Plan,
        name: &str,
        shown: &[&Statistic],
        resamples: u32,
    ) -> Result<Self> {
        let names: Vec<String> = plan.models.iter().map(|model| model.name.clone()).collect();
        let place = |wanted: &str| names.iter().position(|name| name == wanted).unwrap_or_default();
        let (baseline, default) = (place(BASELINE), place(&plan.default));
        let file = |model: &String| judged_folder(run, model).join(name).join("result.json");
        let outcomes =
            names.par_iter().map(|model| read(&file(model))).collect::<Result<Vec<_>>>()?;
        let protocol = outcomes[baseline].protocol;
        let first = outcomes[baseline].items.clone();
        let items = outcomes
            .into_par_iter()
            .zip(&names)
            .map(|(outcome, model)| {
                let (a, b) = (file(&names[baseline]), file(model));
                align(&first, outcome.items, [&a, &b])
            })
            .collect::<Result<Vec<_>>>()?;
        let tallies: Vec<Tally> = items.iter().map(Tally::new).collect();
        let rules = metric(name)?;
        let all: Vec<_> = tallies.iter().map(|t| rules.statistics(protocol, &t.cells)).collect();
        let runs = tallies
            .iter()
            .zip(&all)
            .zip(&names)
            .map(|((tally, all), model)| {
                let find = |statistic: &&Statistic| -> Result<&tally::Statistic> {
                    all.iter().find(|known| known.name == statistic.name).ok_or_else(|| {
                        let message = format!("has no statistic {:?}", statistic.name);
                        Error::invalid(file(model), "", message)
                    })
                };
                Ok((tally, shown.iter().map(find).collect::<Result<Vec<_>>>()?))
            })
            .collect::<Result<Vec<_>>>()?;
        let drawn = Resampled::new(&runs, resamples, 0);
        drop(runs);
        Ok(Self { baseline, default, items, drawn, names })
    }

    fn place(&self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).unwrap_or_default()
    }

    /// A model's statistic, and its differences from baseline and default.
    fn score(&self, model: usize, statistic: usize) -> Score {
        let against = |other: usize| {
            (other != model).then(|| {
                let (difference, p) = self.drawn.difference(&[model], &[other], statistic);
                Difference { difference, p, p_holm: None }
            })
        };
        let count = |better: bool| {
            let pairs = self.items[self.baseline].iter().zip(&self.items[model]);
            let changed = pairs.filter(|(a, b)| a.score != b.score);
            changed.filter(|(a, b)| (b.score > a.score) == better).count() as u64
        };
        Score {
            value: Some(self.drawn.score(model, statistic)),
            baseline: against(self.baseline),
            default: against(self.default),
            changed: [count(true), count(false)],
        }
    }
}

/// From the grid's differences to the baseline.
fn power(models: &[ModelResult], plan: &Plan, i: usize) -> Power {
    let grid = |model: &&ModelResult| plan.cells.iter().any(|cell| cell.model == model.name);
    let stderr = |model: &ModelResult| model.scores[i].baseline?.difference.stderr;
    Power::of(models.iter().filter(grid).filter_map(stderr).collect())
}

/// Holm's adjustment of each statistic's tests, over the models that answer for cells.
fn adjust(models: &mut [ModelResult], plan: &Plan) {
    let grid = |model: &ModelResult| plan.cells.iter().any(|cell| cell.model == model.name);
    let statistics = models.first().map_or(0, |model| model.scores.len());
    type Pick = fn(&mut Score) -> &mut Option<Difference>;
    let picks: [Pick; 2] = [|score| &mut score.baseline, |score| &mut score.default];
    for i in 0..statistics {
        for pick in picks {
            let mut tests: Vec<&mut Difference> = models
                .iter_mut()
                .filter(|model| grid(model))
                .filter_map(|model| pick(&mut model.scores[i]).as_mut())
                .filter(|test| test.p.is_some())
                .collect();
            tests.sort_by(|a, b| a.p.unwrap_or(1.0).total_cmp(&b.p.unwrap_or(1.0)));
            let (n, mut least) = (tests.len(), 0f64);
            // A family of one has nothing to adjust.
            if n < 2 {
                continue;
            }
            for (rank, test) in tests.into_iter().enumerate() {
                least = least.max((test.p.unwrap_or(1.0) * (n - rank) as f64).min(1.0));
                test.p_holm = Some(least);
            }
        }
    }
}

fn seeds(models: &[ModelResult], plan: &Plan, i: usize) -> Option<Seeds> {
    let value = |name: &String| {
        let model = models.iter().find(|model| model.name == *name)?;
        model.scores[i].value?.value
    };
    let spread = |stem: &str| Spread::of(plan.seeds(stem).iter().filter_map(value).collect());
    Some(Seeds {
        baseline: value(&BASELINE.to_owned()),
        default: spread(&plan.default)?,
        control: spread(CONTROL),
        variants: plan.variants().iter().filter_map(|name| spread(name)).collect(),
    })
}

fn notes(plan: &Plan, config: &Config, resamples: u32) -> Vec<String> {
    let trained =
        plan.models.iter().filter(|m| plan.cells.iter().any(|c| c.model == m.name)).count();
    let mut notes = vec![
        format!(
            "{} cells, {trained} trained models: cells whose pairs are the same share one.",
            plan.cells.len()
        ),
        "All cells draw from the same candidates, train from the same start in the same order (seed and settings are \
         equal), and answer the same items: differences are paired, and cells are no independent replicates."
            .to_owned(),
        "Intervals of scores and differences are over the benchmark's images, for one training each. Recipes (baseline, \
         default cell, control, variants) are compared over images and seeds together; the spread over seeds alone is for \
         these images and says nothing about others."
            .to_owned(),
        format!(
            "p-values are of single tests; p (Holm) is adjusted over the grid's models within a statistic. With {} \
             statistics side by side, some differences are expected by chance.",
            statistics_count(config)
        ),
        format!(
            "{resamples} resamples: no p-value is below {:.6}. \"Sees\" is the difference that a test would have found with \
             80 % power: a larger one is unlikely where p is large, a smaller one is not excluded.",
            floor(resamples)
        ),
    ];
    if floor(resamples) * trained as f64 > 0.05 {
        notes.push(format!(
            "With so few resamples no p (Holm) over {trained} models can be below 0.05: set eval.resamples to {} or more.",
            enough(trained)
        ));
    }
    if config.ablation.control {
        notes.push(
            "The control is trained on the chosen answers of the default cell alone, for as many steps: what it gains \
             needs no rejected answers."
                .to_owned(),
        );
    }
    if !config.variants.is_empty() {
        notes.push(
            "Variants are the default cell under other settings, trained as it is; those with other pairs have runs of \
             their own in variants/. They stand outside the grid, and Holm's adjustment is not over them."
                .to_owned(),
        );
    }
    notes
}

/// How the judges' replies came out, over all models: a line a judged metric.
fn reply_notes(summaries: &[(Summary, f64)]) -> Vec<String> {
    let mut all: BTreeMap<&str, Replies> = BTreeMap::new();
    for row in summaries.iter().flat_map(|(summary, _)| &summary.metrics) {
        if let Some(replies) = row.replies {
            *all.entry(&row.metric).or_default() += replies;
        }
    }
    all.iter().map(|(metric, replies)| format!("{metric}, over all models: {replies}.")).collect()
}

fn statistics_count(config: &Config) -> usize {
    let metrics = match config.eval.metrics.len() {
        0 => crate::eval::METRICS.len(),
        some => some,
    };
    metrics + BESIDE.len()
}
