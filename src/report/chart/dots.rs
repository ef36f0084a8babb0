//! Rows of markers on one scale.

use minijinja::Value;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, VPos},
};

use super::{Frame, Ink, LABEL, Plot, font, marker, px, stroke, svg, ticks};
use crate::Result;

/// A row: its label, and a value for each series.
pub(in crate::report) struct DotRow {
    pub label: String,
    pub values: Vec<Option<f64>>,
}

/// Space that a row takes.
pub(in crate::report) const ROW: u32 = 46;

/// Space around the rows.
pub(in crate::report) const AROUND: u32 = 52;

/// One line a row from its least to its greatest value, with the series' markers.
pub(in crate::report) fn dots(frame: &Frame, rows: &[DotRow]) -> Result<Value> {
    let all = || rows.iter().flat_map(|row| row.values.iter().flatten().copied());
    let (low, high) =
        all().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let margin = ((high - low) * 0.08).max(0.005);
    let plot = Plot {
        left: 14.0,
        top: 6.0,
        right: f64::from(frame.width) - 14.0,
        bottom: f64::from(frame.height) - 46.0,
        x: (low - margin, high + margin),
        y: (0.0, 1.0),
    };
    svg(frame, |area| {
        let labels = ticks(plot.x, 5).into_iter().map(|x| (x, format!("{x:.2}")));
        let labels: Vec<_> = labels.collect();
        for (x, _) in &labels {
            let x = px(plot.x(*x));
            let line = vec![(x, px(plot.top)), (x, px(plot.bottom))];
            area.draw(&PathElement::new(line, stroke(Ink::Line, 1.0)))?;
        }
        plot.columns(area, &labels, "threshold")?;
        for (i, row) in rows.iter().enumerate() {
            let top = 6.0 + f64::from(ROW) * i as f64;
            let y = px(top + 30.0);
            let style = font(LABEL, Ink::Label, HPos::Left, VPos::Top);
            area.draw(&Text::new(row.label.clone(), (px(plot.left), px(top + 2.0)), style))?;
            let line = vec![(px(plot.left), y), (px(plot.right), y)];
            area.draw(&PathElement::new(line, stroke(Ink::Line, 1.0)))?;
            for (kind, value) in row.values.iter().enumerate() {
                if let Some(value) = value {
                    marker(area, kind, (px(plot.x(*value)), y), 5.4, Ink::Encoder(kind))?;
                }
            }
        }
        Ok(())
    })
}
