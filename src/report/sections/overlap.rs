//! How many pairs two cells have in common.

use minijinja::{Value, context};

use super::super::{
    chart::{Frame, matrix},
    figure::{Figure, Multiples, Table},
    gallery::Pair,
    page::value,
    run::Run,
};
use crate::{Result, config::threshold_text};

pub(super) fn content(run: &Run, _: &[Pair]) -> Result<Option<Value>> {
    let overlap = &run.summary.overlap;
    if overlap.cells.len() < 2 {
        return Ok(None);
    }
    let figures = vec![
        figure(run, "pairs", "All pairs, the forced ones included", &overlap.pairs)?,
        figure(run, "accepted", "Accepted pairs only", &overlap.accepted)?,
    ];
    let distinct = distinct(&overlap.accepted);
    let steps: Vec<usize> = (0..10).collect();
    let cells = overlap.cells.len();
    Ok(Some(context! {
        multiples => value(Multiples::new(Vec::new(), figures)),
        distinct,
        cells,
        steps,
    }))
}

/// How many different sets the cells hold: two cells hold the same if their index is 1.
fn distinct(matrix: &[Vec<f64>]) -> usize {
    (0..matrix.len()).filter(|&i| (0..i).all(|j| matrix[i].get(j) != Some(&1.0))).count()
}

fn figure(run: &Run, id: &str, heading: &str, values: &[Vec<f64>]) -> Result<Figure> {
    let cells = &run.summary.cells;
    let labels: Vec<String> = cells
        .iter()
        .map(|cell| threshold_text(cell.threshold).trim_start_matches('0').to_owned())
        .collect();
    let groups: Vec<(String, usize)> = run
        .encoders
        .iter()
        .map(|encoder| {
            let own = cells.iter().filter(|cell| cell.encoder == *encoder).count();
            (encoder.clone(), own)
        })
        .collect();
    let between = || values.iter().enumerate().flat_map(|(i, row)| row.iter().take(i).copied());
    let least = between().fold(1.0, f64::min);
    let title = format!("Overlap of cells: {}", heading.to_lowercase());
    let frame = Frame {
        id: &format!("overlap-{id}"),
        title: &title,
        description: &format!(
            "Jaccard index of every two cells, darker is more; the least is {least:.2}, 1 on the diagonal."
        ),
        width: 400,
        height: 396,
    };
    let mut head = vec!["cell".to_owned()];
    head.extend(run.summary.overlap.cells.iter().cloned());
    let rows = run.summary.overlap.cells.iter().zip(values).map(|(cell, row)| {
        let mut entries = vec![cell.clone()];
        entries.extend(row.iter().map(|value| format!("{value:.2}")));
        entries
    });
    let table = Table::new(title.clone(), head, rows.collect());
    let svg = matrix(&frame, values, &labels, &groups)?;
    Ok(Figure { heading: heading.to_owned(), svg, table })
}
