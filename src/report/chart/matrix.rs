//! A square of shares, one row and column a cell of the grid.

use minijinja::Value;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, VPos},
};

use super::{Frame, Ink, fill, font, px, step, svg};
use crate::Result;

/// `values[row][column]` in 0..=1; `labels` name rows and columns, in groups of one encoder each.
pub(in crate::report) fn matrix(
    frame: &Frame,
    values: &[Vec<f64>],
    labels: &[String],
    groups: &[(String, usize)],
) -> Result<Value> {
    let (left, top, gap) = (32.0, 22.0, 3.0);
    let count = values.len().max(1) as f64;
    let gaps = gap * groups.len().saturating_sub(1) as f64;
    let side = (f64::from(frame.width) - left - gaps) / count;
    // Where row or column i begins: groups are set apart.
    let mut starts = Vec::with_capacity(values.len());
    let mut names = Vec::new();
    let mut at = 0.0;
    for (name, size) in groups {
        names.push((name, at, *size as f64 * side));
        for _ in 0..*size {
            starts.push(at);
            at += side;
        }
        at += gap;
    }
    svg(frame, |area| {
        let tick = |h, v| font((side * 0.66).min(11.8), Ink::Label, h, v);
        for (start, label) in starts.iter().zip(labels) {
            let y = px(top + start + side / 2.0);
            let style = tick(HPos::Right, VPos::Center);
            area.draw(&Text::new(label.clone(), (px(left - 5.0), y), style))?;
        }
        for (name, start, width) in &names {
            // About as much of a name as its columns have room for.
            let room = (width / 6.6) as usize;
            let name: String = match name.chars().count() > room {
                true => name.chars().take(room.saturating_sub(1)).chain(['…']).collect(),
                false => (*name).clone(),
            };
            let style = font(11.8, Ink::Label, HPos::Left, VPos::Top);
            area.draw(&Text::new(name, (px(left + start), px(2.0)), style))?;
        }
        for (row, y) in values.iter().zip(&starts) {
            for (value, x) in row.iter().zip(&starts) {
                let (x, y) = (left + x, top + y);
                let corners = [(px(x), px(y)), (px(x + side - 0.7), px(y + side - 0.7))];
                area.draw(&Rectangle::new(corners, fill(Ink::Step(step(*value)))))?;
                if side > 30.0 {
                    let size = (side * 0.36).clamp(11.8, 16.0);
                    let style = font(size, Ink::OnStep(step(*value)), HPos::Center, VPos::Center);
                    let text = format!("{:.0}", 100.0 * value);
                    let at = (px(x + side / 2.0), px(y + side / 2.0));
                    area.draw(&Text::new(text, at, style))?;
                }
            }
        }
        Ok(())
    })
}
