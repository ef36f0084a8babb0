//! The trained cells: scores by encoder and threshold, tests, seeds, courses of training, costs.

use std::path::Path;

use minijinja::{Value, context};

use super::super::{
    chart::{Frame, Ink, Line, key, lines, step},
    figure::{Figure, HeatMap, HeatRow, Multiples, Table, Tile},
    gallery::Pair,
    number::{count, duration},
    page::value,
    run::Run,
};
use crate::{
    Result,
    ablation::{Ablation, BASELINE, Difference, EFFECT_HEADS, ModelResult, POWER_HEADS},
    config::threshold_text,
    train,
};

pub(super) fn content(run: &Run, _: &[Pair]) -> Result<Option<Value>> {
    let Some(ablation) = &run.ablation else { return Ok(None) };
    let grid = |model: &ModelResult| ablation.cells.iter().any(|cell| cell.model == model.name);
    let maps: Vec<HeatMap> =
        (0..ablation.statistics.len()).map(|i| map(run, ablation, i)).collect();
    let spent: f64 = ablation.models.iter().map(ModelResult::cost).sum();
    Ok(Some(context! {
        data => ablation.data.clone(),
        default => ablation.default.clone(),
        notes => ablation.notes.clone(),
        models => ablation.models.iter().filter(|model| grid(model)).count(),
        cells => ablation.cells.len(),
        spent => duration(spent),
        maps => value(maps),
        recipes => (!ablation.recipes.is_empty()).then(|| value(recipes(ablation))),
        effects => (!ablation.effects.is_empty()).then(|| value(effects(ablation))),
        power => (!ablation.power.is_empty()).then(|| value(power(ablation))),
        seeds => value(seeds(ablation)),
        variants => (!ablation.variants.is_empty()).then(|| value(variants(ablation))),
        tests => value(tests(ablation)),
        costs => value(costs(ablation)),
        courses => courses(&run.folder, ablation)?.map(value),
    }))
}

/// Scores of one statistic over the grid, and the baseline's beside.
fn map(run: &Run, ablation: &Ablation, i: usize) -> HeatMap {
    let statistic = &ablation.statistics[i];
    let of = |model: &str| ablation.model(model).and_then(|m| m.scores[i].value?.value);
    let all: Vec<f64> = ablation.cells.iter().filter_map(|cell| of(&cell.model)).collect();
    let (low, high) =
        all.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)));
    let scale = |x: f64| if high > low { (x - low) / (high - low) } else { 0.5 };
    let tile = |encoder: &String, threshold: f64| {
        let cell =
            ablation.cells.iter().find(|c| c.encoder == *encoder && c.threshold == threshold);
        match cell.and_then(|cell| of(&cell.model)) {
            Some(x) => Tile { text: format!("{x:.2}"), step: step(scale(x)) },
            None => Tile { text: "–".into(), step: 0 },
        }
    };
    let better = if statistic.less_is_better { "; less is better" } else { "" };
    let baseline = of(BASELINE).map_or_else(|| "–".to_owned(), |x| format!("{x:.2}"));
    HeatMap {
        title: format!("{}: {}", statistic.metric, statistic.name),
        note: format!("Baseline {baseline}. The scale runs from {low:.2} to {high:.2}{better}."),
        head: run.thresholds.iter().map(|t| threshold_text(*t)).collect(),
        rows: run
            .encoders
            .iter()
            .map(|encoder| HeatRow {
                encoder: encoder.clone(),
                cells: run.thresholds.iter().map(|t| tile(encoder, *t)).collect(),
            })
            .collect(),
    }
}

fn recipes(ablation: &Ablation) -> Table {
    let caption = "Recipes, means over seeds: difference [95 % interval over images and seeds] p, and what the test sees";
    Table::new(caption, ablation.recipe_heads(), ablation.recipe_rows())
}

fn effects(ablation: &Ablation) -> Table {
    let caption = "Threshold and encoder over the grid, and how cells vary beside seeds";
    Table::new(caption, EFFECT_HEADS, ablation.effect_rows())
}

fn power(ablation: &Ablation) -> Table {
    Table::new("Differences that this run can see", POWER_HEADS, ablation.power_rows())
}

fn seeds(ablation: &Ablation) -> Table {
    let trainings = ablation.seeds.first().map_or(0, |seeds| seeds.default.values.len());
    let caption = format!(
        "Means over {trainings} trainings, 95 % intervals over trainings, for these images"
    );
    Table::new(caption, ablation.seed_heads(), ablation.seed_rows())
}

/// What variants change.
fn variants(ablation: &Ablation) -> Table {
    let rows = ablation.variants.iter().map(|v| vec![v.name.clone(), v.settings.clone()]);
    Table::new(
        "Variants: the default cell under other settings",
        ["variant", "settings"],
        rows.collect(),
    )
}

/// Every cell against the baseline.
fn tests(ablation: &Ablation) -> Table {
    let test = |difference: &Option<Difference>| match difference {
        Some(Difference { difference, p_holm, .. }) => {
            let p = p_holm.map_or_else(String::new, |p| format!(" ({p:.2})"));
            format!("{:+.2}{p}", difference.value.unwrap_or(f64::NAN))
        }
        None => "–".to_owned(),
    };
    let rows = ablation.cells.iter().filter_map(|cell| {
        let model = ablation.model(&cell.model)?;
        let scores = model.scores.iter().map(|score| test(&score.baseline));
        Some([cell.cell.clone()].into_iter().chain(scores).collect())
    });
    let head = ["cell".to_owned()].into_iter().chain(ablation.heads());
    Table::new("Difference to the baseline (p by Holm over the grid)", head, rows.collect())
}

fn costs(ablation: &Ablation) -> Table {
    let rows = ablation.models.iter().map(|model| {
        let seconds = |stage: &str| match model.seconds.get(stage) {
            Some(seconds) => duration(*seconds),
            None => "–".to_owned(),
        };
        let last = |of: fn(&train::Means) -> f64| match &model.training {
            Some(means) => format!("{:.3}", of(means)),
            None => "–".to_owned(),
        };
        vec![
            model.title(),
            count(model.pairs as u64),
            count(model.excluded as u64),
            last(|means| means.loss),
            last(|means| means.margin),
            last(|means| means.accuracy),
            seconds("reference"),
            seconds("train"),
            seconds("judge"),
        ]
    });
    let head = [
        "model",
        "pairs",
        "left out",
        "loss",
        "margin",
        "accuracy",
        "reference",
        "training",
        "judging",
    ];
    Table::new("Trainings (last epoch) and what each model cost", head, rows.collect())
}

/// What a step's line says, by name.
type Course = (&'static str, fn(&train::Line) -> f64, bool);

/// The course of the default cell's training; none if its log is gone.
fn courses(folder: &Path, ablation: &Ablation) -> Result<Option<Multiples>> {
    const COURSES: [Course; 4] = [
        ("Loss", |line| line.loss, false),
        ("Reward margin", |line| line.margin, true),
        ("Reward accuracy", |line| line.accuracy, false),
        ("Learning rate", |line| line.learning_rate, true),
    ];
    let path = crate::ablation::model_folder(folder, &ablation.default).join("train.jsonl");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
    let log: Vec<train::Line> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let (Some(first), Some(last)) = (log.first(), log.last()) else { return Ok(None) };
    let figure = |(i, (name, of, zero)): (usize, &Course)| {
        let title = format!("{name}, {}", ablation.default);
        let frame = Frame {
            id: &format!("course-{i}"),
            title: &title,
            description: &format!(
                "From {:.4} at step 1 to {:.4} at step {}.",
                of(first),
                of(last),
                last.step
            ),
            width: 420,
            height: 220,
        };
        let points = log.iter().map(|line| (f64::from(line.step), of(line))).collect();
        let rows = log.iter().map(|line| vec![line.step.to_string(), format!("{:.6}", of(line))]);
        Ok(Figure {
            heading: (*name).to_owned(),
            svg: lines(&frame, &[Line { ink: Ink::Strong, points }], *zero)?,
            table: Table::new(title.clone(), ["step", name], rows.collect()),
        })
    };
    let figures = COURSES.iter().enumerate().map(figure).collect::<Result<Vec<_>>>()?;
    let legend = vec![key(0, Ink::Strong, format!("training of {}", ablation.default))];
    Ok(Some(Multiples::new(legend, figures)))
}
