//! Lines over the steps of a training.

use minijinja::Value;
use plotters::prelude::*;

use super::{Frame, Ink, Plot, stroke, svg, ticks};
use crate::Result;

/// A series: values at steps, ascending.
pub(in crate::report) struct Line {
    pub ink: Ink,
    pub points: Vec<(f64, f64)>,
}

/// Lines over steps; the vertical axis holds all values, and zero if asked to.
pub(in crate::report) fn lines(frame: &Frame, lines: &[Line], zero: bool) -> Result<Value> {
    let all = || lines.iter().flat_map(|line| &line.points).filter(|(_, y)| y.is_finite());
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let values = all().map(of);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
    };
    let (x, mut y) = (bounds(|p| p.0), bounds(|p| p.1));
    if zero {
        y = (y.0.min(0.0), y.1.max(0.0));
    }
    // Of one value, or none, an axis still has two ends.
    let spread = |(low, high): (f64, f64)| match high > low {
        true => (low, high),
        false if low.is_finite() => (low - 0.5, low + 0.5),
        false => (0.0, 1.0),
    };
    let plot = Plot {
        left: 62.0,
        top: 12.0,
        right: f64::from(frame.width) - 14.0,
        bottom: f64::from(frame.height) - 46.0,
        x: spread(x),
        y: spread(y),
    };
    svg(frame, |area| {
        let label = |y: f64| match y.abs() {
            0.0 => "0".to_owned(),
            small if small < 1e-3 => format!("{y:.1e}"),
            _ => format!("{:.3}", y).trim_end_matches('0').trim_end_matches('.').to_owned(),
        };
        let rows: Vec<_> = ticks(plot.y, 4).into_iter().map(|y| (y, label(y))).collect();
        plot.rows(area, &rows)?;
        let columns: Vec<_> =
            ticks(plot.x, 5).into_iter().map(|x| (x, format!("{x:.0}"))).collect();
        plot.columns(area, &columns, "step")?;
        for line in lines {
            let points: Vec<_> = line.points.iter().map(|&point| plot.at(point)).collect();
            area.draw(&PathElement::new(points, stroke(line.ink, 1.8)))?;
        }
        Ok(())
    })
}
