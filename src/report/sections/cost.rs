//! Candidates generated, and where the time went.

use minijinja::{Value, context};

use super::super::{
    chart::{BAR, Bar, Frame, Ink, bars},
    figure::{Figure, Multiples, Table},
    gallery::Pair,
    number::{count, duration, plural},
    page::value,
    run::Run,
};
use crate::Result;

pub(super) fn content(run: &Run, _: &[Pair]) -> Result<Option<Value>> {
    let mut figures = vec![generations(run)?];
    if !run.summary.seconds.is_empty() {
        figures.push(times(run)?);
    }
    let seconds: f64 = run.waves.iter().flat_map(|wave| wave.record.seconds.values()).sum();
    let summary = &run.summary;
    Ok(Some(context! {
        multiples => value(Multiples::new(Vec::new(), figures)),
        waves => plural(run.waves.len() as u64, "wave"),
        generation => duration(seconds),
        saved => format!("{:.1}", run.saved()),
        cells => summary.cells.len(),
        budget_lowered => summary.budget_lowered,
    }))
}

fn generations(run: &Run) -> Result<Figure> {
    let summary = &run.summary;
    let cells = summary.cells.len() as u64;
    let once = "once, for all cells".to_owned();
    let mut all = vec![(once, summary.candidates_generated, Ink::Strong)];
    for encoder in &run.encoders {
        let own = summary.cells.iter().filter(|cell| cell.encoder == *encoder);
        let sum: f64 = own.map(|cell| cell.mean_attempts * cell.pairs as f64).sum();
        all.push((format!("runs of {encoder}"), sum.round() as u64, Ink::Plain));
    }
    let independent = format!("{} in all", plural(cells, "separate run"));
    all.push((independent, summary.candidates_if_independent, Ink::Plain));
    let title = "Candidates generated";
    let parts: Vec<_> = all.iter().map(|(name, n, _)| format!("{name}: {}", count(*n))).collect();
    let frame = Frame {
        id: "generations",
        title,
        description: &format!("Bars: {}.", parts.join("; ")),
        width: 420,
        height: all.len() as u32 * BAR,
    };
    let bar = |(label, n, ink): &(String, u64, Ink)| Bar {
        label: label.clone(),
        value: *n as f64,
        text: count(*n),
        ink: *ink,
    };
    let rows = all.iter().map(|(label, n, _)| vec![label.clone(), count(*n)]).collect();
    Ok(Figure {
        heading: title.into(),
        svg: bars(&frame, &all.iter().map(bar).collect::<Vec<_>>())?,
        table: Table::new(title, ["how", "candidates"], rows),
    })
}

fn times(run: &Run) -> Result<Figure> {
    let seconds = &run.summary.seconds;
    let title = "Wall time of each stage";
    let parts: Vec<_> =
        seconds.iter().map(|(stage, s)| format!("{stage}: {}", duration(*s))).collect();
    let frame = Frame {
        id: "times",
        title,
        description: &format!("Bars: {}.", parts.join("; ")),
        width: 420,
        height: seconds.len() as u32 * BAR,
    };
    let list: Vec<Bar> = seconds
        .iter()
        .map(|(stage, s)| Bar {
            label: stage.clone(),
            value: s.max(0.0),
            text: duration(*s),
            ink: Ink::Plain,
        })
        .collect();
    let rows = seconds.iter().map(|(stage, s)| vec![stage.clone(), duration(*s)]).collect();
    Ok(Figure {
        heading: title.into(),
        svg: bars(&frame, &list)?,
        table: Table::new(title, ["stage", "time"], rows),
    })
}
