//! How often each similarity occurs, with the thresholds upon it.

use minijinja::Value;
use plotters::prelude::*;

use super::{Frame, Ink, Plot, fill, marker, px, stroke, svg, ticks};
use crate::Result;

/// Bins that several histograms share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::report) struct Axis {
    pub low: f64,
    pub high: f64,
    pub bins: usize,
}

impl Axis {
    /// Round bins, about 24 of them, that hold all values and all thresholds.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|x| x.is_finite())
            // Cosines: nothing else decides how many bins there are.
            .map(|x| x.clamp(-1.0, 1.0))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        if low > high {
            return Self { low: 0.0, high: 1.0, bins: 20 };
        }
        let width = [0.001, 0.002, 0.005, 0.01, 0.02, 0.025, 0.05, 0.1]
            .into_iter()
            .find(|width| (high - low) / width <= 26.0)
            .unwrap_or(0.1);
        let first = (low / width + 1e-9).floor();
        // A value on the last edge belongs to a bin of its own, but a cosine of 1 does not need one beyond 1.
        let last = ((high / width).floor() + 1.0).min((1.0 / width).ceil()).max(first + 1.0);
        Self { low: first * width, high: last * width, bins: (last - first).round() as usize }
    }

    /// The width of a bin.
    pub fn width(&self) -> f64 {
        (self.high - self.low) / self.bins as f64
    }

    /// How many values fall into each bin; NaN into none.
    pub fn count(&self, values: &[f64]) -> Vec<u64> {
        let mut counts = vec![0; self.bins];
        for value in values.iter().filter(|x| x.is_finite()) {
            let bin = ((value - self.low) / self.width() + 1e-9).floor();
            counts[bin.clamp(0.0, self.bins as f64 - 1.0) as usize] += 1;
        }
        counts
    }
}

/// Bars of counts; thresholds as lines with the markers that they have elsewhere, all below `most`.
pub(in crate::report) fn histogram(
    frame: &Frame,
    axis: Axis,
    counts: &[u64],
    most: u64,
    thresholds: &[f64],
) -> Result<Value> {
    let plot = Plot {
        left: 44.0,
        top: 24.0,
        right: f64::from(frame.width) - 14.0,
        bottom: f64::from(frame.height) - 46.0,
        x: (axis.low, axis.high),
        y: (0.0, most.max(1) as f64 * 1.04),
    };
    svg(frame, |area| {
        let whole = ticks(plot.y, 4).into_iter().filter(|y| y.fract() == 0.0);
        plot.rows(area, &whole.map(|y| (y, y.to_string())).collect::<Vec<_>>())?;
        let decimals = if axis.width() < 0.005 { 3 } else { 2 };
        let labels: Vec<_> =
            ticks(plot.x, 5).into_iter().map(|x| (x, format!("{x:.decimals$}"))).collect();
        plot.columns(area, &labels, "phi")?;
        for (bin, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let left = axis.low + bin as f64 * axis.width();
            let (x0, y0) = plot.at((left, count as f64));
            let (x1, y1) = plot.at((left + axis.width(), 0.0));
            let gap = px(0.6);
            area.draw(&Rectangle::new([(x0 + gap, y0), (x1 - gap, y1)], fill(Ink::Plain)))?;
        }
        for (kind, threshold) in thresholds.iter().enumerate() {
            if (axis.low..=axis.high).contains(threshold) {
                let ink = Ink::Threshold(kind);
                let x = px(plot.x(*threshold));
                let line = vec![(x, px(plot.top - 8.0)), (x, px(plot.bottom))];
                // A rim, so that the line stands out from the bars.
                area.draw(&PathElement::new(line.clone(), stroke(Ink::Paper, 4.2)))?;
                area.draw(&PathElement::new(line, stroke(ink, 1.8)))?;
                // Two heights, as neighbours may be closer than a marker is wide.
                let y = if kind.is_multiple_of(2) { 8.0 } else { 18.0 };
                marker(area, kind, (x, px(y)), 4.0, ink)?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_round_and_hold_every_value() {
        let values = [0.613, 0.7, 0.97, 0.999_999_9, 1.0, f64::NAN];
        let axis = Axis::of(values.into_iter());
        assert!((axis.low - 0.6).abs() < 1e-12 && (axis.high - 1.0).abs() < 1e-12, "{axis:?}");
        assert_eq!(axis.count(&values).iter().sum::<u64>(), 5);
        let bin = ((0.7 - axis.low) / axis.width() + 1e-9) as usize;
        assert_eq!(axis.count(&[0.7])[bin], 1);
        let negative = Axis::of([-0.2, 0.9].into_iter());
        assert_eq!(negative.count(&[-0.2, 0.9]).iter().sum::<u64>(), 2);
        assert_eq!(Axis::of([0.5].into_iter()).bins, 1);
        assert_eq!(Axis::of(std::iter::empty()).bins, 20);
    }
}
