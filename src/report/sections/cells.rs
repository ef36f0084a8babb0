//! Heat maps: one table cell a cell of the grid.

use minijinja::{Value, context};

use super::super::{
    chart::step,
    figure::{HeatMap, HeatRow, Table, Tile},
    gallery::Pair,
    number::{count, phi, share},
    page::value,
    run::Run,
};
use crate::{Result, config::threshold_text, sweep::summary::CellSummary};

pub(super) fn content(run: &Run, _: &[Pair]) -> Result<Option<Value>> {
    let attempts = f64::from(run.summary.attempts);
    let of = |part: u64, cell: &CellSummary| part as f64 / cell.pairs.max(1) as f64;
    let first =
        |cell: &CellSummary| of(cell.accepted_by_attempt.first().copied().unwrap_or(0), cell);
    let forced = |cell: &CellSummary| of(cell.forced, cell);
    let most = run.summary.cells.iter().map(forced).fold(0.1, f64::max);
    let maps = vec![
        map(
            run,
            "Accepted at the first attempt",
            "Share of pairs; the scale runs from 0 to 100 %.".into(),
            |cell| (share(first(cell)), first(cell)),
        ),
        map(
            run,
            "Attempts a pair",
            format!("Mean; the scale runs from 1 to {attempts}."),
            |cell| {
                let scale = (cell.mean_attempts - 1.0) / (attempts - 1.0).max(1.0);
                (format!("{:.2}", cell.mean_attempts), scale)
            },
        ),
        map(
            run,
            "Forced",
            format!(
                "Share of pairs whose last attempt was taken although it is not below the threshold; the scale runs from \
                 0 to {}.",
                share(most)
            ),
            |cell| (share(forced(cell)), forced(cell) / most),
        ),
    ];
    let head = [
        "encoder",
        "eps",
        "pairs",
        "accepted",
        "forced",
        "mean attempts",
        "phi 5 %",
        "phi 50 %",
        "phi 95 %",
        "phi undefined",
        "flagged",
    ];
    let all = Table::new("All cells", head, run.summary.cells.iter().map(row).collect());
    Ok(Some(context! { maps => value(maps), all => value(all) }))
}

fn map(
    run: &Run,
    title: &'static str,
    note: String,
    value: impl Fn(&CellSummary) -> (String, f64),
) -> HeatMap {
    let tile = |encoder: &str, threshold: &f64| match run.cell(encoder, *threshold) {
        Some(cell) => {
            let (text, scale) = value(cell);
            Tile { text, step: step(scale) }
        }
        None => Tile { text: "–".into(), step: 0 },
    };
    let row = |encoder: &String| HeatRow {
        encoder: encoder.clone(),
        cells: run.thresholds.iter().map(|threshold| tile(encoder, threshold)).collect(),
    };
    HeatMap {
        title: title.to_owned(),
        note,
        head: run.thresholds.iter().map(|t| threshold_text(*t)).collect(),
        rows: run.encoders.iter().map(row).collect(),
    }
}

fn row(cell: &CellSummary) -> Vec<String> {
    let accepted: u64 = cell.accepted_by_attempt.iter().sum();
    vec![
        cell.encoder.clone(),
        threshold_text(cell.threshold),
        count(cell.pairs),
        count(accepted),
        count(cell.forced),
        format!("{:.2}", cell.mean_attempts),
        phi(cell.phi.p05),
        phi(cell.phi.p50),
        phi(cell.phi.p95),
        count(cell.undefined_phi),
        count(cell.flagged),
    ]
}
