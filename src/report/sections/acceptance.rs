//! Share of pairs accepted after each attempt.

use minijinja::{Value, context};

use super::super::{
    chart::{Curve, Frame, Ink, curves, key},
    figure::{Figure, Multiples, Table},
    gallery::Pair,
    number::{count, share, wilson},
    page::value,
    run::Run,
};
use crate::{Result, config::threshold_text, sweep::summary::CellSummary};

pub(super) fn content(run: &Run, _: &[Pair]) -> Result<Option<Value>> {
    let all = || run.summary.cells.iter().flat_map(after);
    let lowest = all().fold(1.0, f64::min);
    // One scale for all encoders, from the quarter below the lowest point.
    let low = ((lowest * 4.0 - 1e-9).floor() / 4.0).clamp(0.0, 0.75);
    let figures = run
        .encoders
        .iter()
        .enumerate()
        .map(|(i, encoder)| figure(run, i, encoder, low))
        .collect::<Result<Vec<_>>>()?;
    let legend = run.thresholds.iter().enumerate().map(|(i, threshold)| {
        key(i, Ink::Threshold(i), format!("phi < {}", threshold_text(*threshold)))
    });
    let multiples = Multiples::new(legend.collect(), figures);
    let (attempts, guidance) = (run.summary.attempts, run.sampling.guidance);
    Ok(Some(
        context! { multiples => value(multiples), attempts, guidance, low => format!("{:.0}", 100.0 * low) },
    ))
}

/// Share of a cell's pairs that is accepted after attempt 1, 2, ...
fn after(cell: &CellSummary) -> Vec<f64> {
    let mut sum = 0;
    cell.accepted_by_attempt
        .iter()
        .map(|accepted| {
            sum += accepted;
            sum as f64 / cell.pairs.max(1) as f64
        })
        .collect()
}

fn figure(run: &Run, number: usize, encoder: &str, low: f64) -> Result<Figure> {
    let cells = run
        .thresholds
        .iter()
        .enumerate()
        .filter_map(|(i, threshold)| Some((i, run.cell(encoder, *threshold)?)));
    let mut series = Vec::new();
    let mut rows = Vec::new();
    let mut said = Vec::new();
    for (i, cell) in cells {
        let values = after(cell);
        let first = cell.accepted_by_attempt.first().copied().unwrap_or(0);
        let last = values.last().copied().unwrap_or(0.0);
        let eps = threshold_text(cell.threshold);
        said.push(format!(
            "below {eps}, {} at the first attempt and {} after all",
            share(values.first().copied().unwrap_or(0.0)),
            share(last)
        ));
        let (from, to) = wilson(first, cell.pairs);
        let mut row = vec![eps, count(cell.pairs)];
        row.extend(values.iter().map(|value| share(*value)));
        row.push(format!("{} to {}", share(from), share(to)));
        row.push(count(cell.forced));
        rows.push(row);
        series.push(Curve { kind: i, ink: Ink::Threshold(i), values });
    }
    let title = format!("Share of pairs accepted after each attempt, {encoder}");
    let frame = Frame {
        id: &format!("acceptance-{number}"),
        title: &title,
        description: &format!("One line a threshold: {}.", said.join("; ")),
        width: 420,
        height: 260,
    };
    let mut head = vec!["eps".to_owned(), "pairs".into()];
    head.extend((1..=run.summary.attempts).map(|i| format!("after {i}")));
    head.extend(["after 1, 95 % interval".into(), "forced".into()]);
    Ok(Figure {
        heading: encoder.to_owned(),
        svg: curves(&frame, &series, low)?,
        table: Table::new(title.clone(), head, rows),
    })
}
