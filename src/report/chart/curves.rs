//! Lines over attempts.

use minijinja::Value;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, VPos},
};

use super::{Area, Drawn, Frame, Ink, LABEL, Plot, font, marker, px, stroke, svg, ticks};
use crate::Result;

/// A series: its value after attempt 1, 2, ...
pub(in crate::report) struct Curve {
    /// Its marker.
    pub kind: usize,
    pub ink: Ink,
    /// Shares in 0..=1.
    pub values: Vec<f64>,
}

/// Curves of shares over attempts, from `low` upwards.
pub(in crate::report) fn curves(frame: &Frame, curves: &[Curve], low: f64) -> Result<Value> {
    let attempts = curves.iter().map(|curve| curve.values.len()).max().unwrap_or(1).max(1);
    let plot = Plot {
        left: 52.0,
        top: 12.0,
        right: f64::from(frame.width) - 14.0,
        bottom: f64::from(frame.height) - 46.0,
        x: (0.7, attempts as f64 + 0.3),
        y: (low, 1.0),
    };
    svg(frame, |area| {
        let shares = ticks(plot.y, 4).into_iter().map(|y| (y, format!("{:.0} %", 100.0 * y)));
        plot.rows(area, &shares.collect::<Vec<_>>())?;
        // Every attempt has a label while there is room for it.
        let every = attempts.div_ceil(12);
        let numbers = (1..=attempts).filter(|i| i.is_multiple_of(every) || *i == 1);
        let numbers: Vec<_> = numbers.map(|i| (i as f64, i.to_string())).collect();
        plot.columns(area, &numbers, "attempt")?;
        // The most demanding last, so that it lies on top where curves meet.
        for curve in curves.iter().rev() {
            draw(area, &plot, curve)?;
        }
        if curves.is_empty() {
            let style = font(LABEL, Ink::Label, HPos::Center, VPos::Center);
            area.draw(&Text::new("no data", (px(200.0), px(100.0)), style))?;
        }
        Ok(())
    })
}

fn draw(area: &Area, plot: &Plot, curve: &Curve) -> Drawn {
    let points: Vec<(i32, i32)> = curve
        .values
        .iter()
        .enumerate()
        .map(|(i, value)| plot.at((i as f64 + 1.0, *value)))
        .collect();
    area.draw(&PathElement::new(points.clone(), stroke(curve.ink, 2.0)))?;
    points.into_iter().try_for_each(|at| marker(area, curve.kind, at, 4.2, curve.ink))
}
