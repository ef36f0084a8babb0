//! Distributions of the similarity, and thresholds that accept as much under every encoder.

use minijinja::{Value, context};

use super::super::{
    chart::{Axis, DotRow, Frame, Ink, dots, histogram, key},
    figure::{Figure, Multiples, Table},
    gallery::Pair,
    number::{count, phi, share},
    page::value,
    run::Run,
};
use crate::{Result, config::threshold_text, eval::tally::quantile};

pub(super) fn content(run: &Run, _: &[Pair]) -> Result<Option<Value>> {
    let firsts: Vec<Vec<f64>> = run
        .tables
        .iter()
        .map(|table| {
            let samples = 0..run.summary.samples as u32;
            samples.filter_map(|sample| table.phis(sample).first().copied()).collect()
        })
        .collect();
    let values = firsts.iter().flatten().copied().chain(run.thresholds.iter().copied());
    let axis = Axis::of(values);
    let most = firsts.iter().flat_map(|values| axis.count(values)).max().unwrap_or(0);
    let figures = run
        .encoders
        .iter()
        .zip(&firsts)
        .enumerate()
        .map(|(i, (encoder, values))| distribution(run, i, encoder, values, axis, most))
        .collect::<Result<Vec<_>>>()?;
    let legend = run.thresholds.iter().enumerate().map(|(i, threshold)| {
        key(i, Ink::Threshold(i), format!("eps {}", threshold_text(*threshold)))
    });
    let distributions = Multiples::new(legend.collect(), figures);
    let matched = match run.encoders.len() {
        0 | 1 => None,
        _ => Some(matched(run)?),
    };
    Ok(Some(context! {
        distributions => value(distributions),
        matched => value(matched),
        samples => count(run.summary.samples),
    }))
}

fn distribution(
    run: &Run,
    number: usize,
    encoder: &str,
    values: &[f64],
    axis: Axis,
    most: u64,
) -> Result<Figure> {
    let counts = axis.count(values);
    let mut sorted: Vec<f64> = values.iter().copied().filter(|x| !x.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    let quantiles = [0.05, 0.5, 0.95].map(|q| phi(quantile(&sorted, q)));
    let title = format!("phi of first attempts, {encoder}");
    let [low, middle, high] = &quantiles;
    let frame = Frame {
        id: &format!("phi-{number}"),
        title: &title,
        description: &format!(
            "Histogram of {} values with the thresholds marked: median {middle}, 90 % of them from {low} to {high}.",
            sorted.len()
        ),
        width: 420,
        height: 250,
    };
    let svg = histogram(&frame, axis, &counts, most, &run.thresholds)?;
    let rows = counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(bin, n)| {
            let from = axis.low + bin as f64 * axis.width();
            vec![format!("{from:.3} to {:.3}", from + axis.width()), count(*n)]
        })
        .collect();
    Ok(Figure {
        heading: format!("{encoder}: median {middle}"),
        svg,
        table: Table::new(title.clone(), ["phi", "first attempts"], rows),
    })
}

/// Thresholds of equal acceptance.
fn matched(run: &Run) -> Result<Multiples> {
    let summary = &run.summary;
    let first = &run.encoders[0];
    // The summary has, for each cell of the first encoder in turn, one entry an encoder.
    let own = summary.cells.iter().filter(|cell| cell.encoder == *first);
    let entries: Vec<_> = own.zip(summary.matched_acceptance.chunks(run.encoders.len())).collect();
    let mut rows = Vec::new();
    let mut table = Vec::new();
    for (cell, found) in &entries {
        let eps = threshold_text(cell.threshold);
        let rate = found.first().map_or(0.0, |entry| entry.rate);
        rows.push(DotRow {
            label: format!("as {eps} of the first: {} accepted", share(rate)),
            values: found.iter().map(|entry| entry.threshold).collect(),
        });
        let mut row = vec![eps, share(rate)];
        row.extend(
            found
                .iter()
                .map(|entry| format!("{} ({})", phi(entry.threshold), share(entry.acceptance))),
        );
        table.push(row);
    }
    let title = "Thresholds at which every encoder accepts as many first attempts";
    let frame = Frame {
        id: "matched",
        title,
        description: &format!(
            "One row a threshold of {first}; markers show the threshold of each encoder that accepts the same share. \
             The further apart they are, the less the encoders' scales agree."
        ),
        width: 420,
        height: rows.len() as u32 * super::super::chart::ROW + super::super::chart::AROUND,
    };
    let mut head = vec![format!("eps of {first}"), "accepted".to_owned()];
    head.extend(run.encoders.iter().map(|encoder| format!("{encoder}: threshold (accepted)")));
    let figure = Figure {
        heading: String::new(),
        svg: dots(&frame, &rows)?,
        table: Table::new(title, head, table),
    };
    let legend = run.encoders.iter().enumerate();
    let legend = legend.map(|(i, encoder)| key(i, Ink::Encoder(i), encoder)).collect();
    Ok(Multiples::new(legend, vec![figure]))
}
