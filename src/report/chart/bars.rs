//! Horizontal bars with their values written out.

use minijinja::Value;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, VPos},
};

use super::{Frame, Ink, LABEL, fill, font, px, svg};
use crate::Result;

/// A bar.
pub(in crate::report) struct Bar {
    pub label: String,
    /// Not negative.
    pub value: f64,
    /// The value as text, at its end.
    pub text: String,
    pub ink: Ink,
}

/// Space that a bar takes.
pub(in crate::report) const BAR: u32 = 44;

/// Bars from the left edge, one below the other; the longest fills the width that its text leaves.
pub(in crate::report) fn bars(frame: &Frame, bars: &[Bar]) -> Result<Value> {
    let most = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let longest = bars.iter().map(|bar| bar.text.chars().count()).max().unwrap_or(0);
    let room = f64::from(frame.width) - 12.0 - 8.0 * longest as f64;
    svg(frame, |area| {
        for (i, bar) in bars.iter().enumerate() {
            let top = f64::from(BAR) * i as f64 + 2.0;
            let label = font(LABEL, Ink::Label, HPos::Left, VPos::Top);
            area.draw(&Text::new(bar.label.clone(), (0, px(top)), label))?;
            let share = if most > 0.0 { bar.value / most } else { 0.0 };
            // A thin line is left of what is too small to see.
            let right = (room * share).max(1.5);
            let corners = [(0, px(top + 17.0)), (px(right), px(top + 33.0))];
            area.draw(&Rectangle::new(corners, fill(bar.ink)))?;
            let value = font(LABEL, Ink::Label, HPos::Left, VPos::Center);
            let at = (px(right + 7.0), px(top + 25.0));
            area.draw(&Text::new(bar.text.clone(), at, value))?;
        }
        Ok(())
    })
}
