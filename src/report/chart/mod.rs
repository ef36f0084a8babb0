//! Charts as inline SVG, drawn by plotters.
//!
//! Colours are drawn as place-holders and become CSS variables of the page, so that one chart serves light, dark and
//! print. Every chart has a title and a description for those who do not see it; series differ in marker or pattern
//! as well as in colour.

mod bars;
mod curves;
mod dots;
mod histogram;
mod lines;
mod matrix;

use minijinja::Value;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use serde::Serialize;

use crate::{Error, Result};

pub(super) use bars::{BAR, Bar, bars};
pub(super) use curves::{Curve, curves};
pub(super) use dots::{AROUND, DotRow, ROW, dots};
pub(super) use histogram::{Axis, histogram};
pub(super) use lines::{Line, lines};
pub(super) use matrix::matrix;

/// plotters has whole pixels; drawing this many times larger than the view box makes them fine enough.
const FINE: f64 = 8.0;

/// plotters divides font sizes by this.
const FONT: f64 = 1.24;

/// Size of labels, in view box units (about CSS pixels).
const LABEL: f64 = 12.5;

/// What a chart is called and how large its view box is.
pub(super) struct Frame<'a> {
    /// Unique on the page.
    pub id: &'a str,
    pub title: &'a str,
    /// What it shows, in words.
    pub description: &'a str,
    pub width: u32,
    pub height: u32,
}

/// A colour by its part in a chart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// Labels.
    Label,
    /// Grid lines and axes.
    Line,
    /// The page behind the chart.
    Paper,
    /// A quantity that is compared with nothing.
    Plain,
    /// The quantity that a chart is about.
    Strong,
    /// A threshold, by its rank.
    Threshold(usize),
    /// An encoder, by its number.
    Encoder(usize),
    /// A step of the sequential scale, 0 to 9.
    Step(usize),
    /// Text upon that step.
    OnStep(usize),
}

/// Series colours of each kind before they repeat; markers repeat with another period.
const SERIES: usize = 6;
const STEPS: usize = 10;

impl Ink {
    fn code(self) -> (u8, u8) {
        match self {
            Self::Label => (0, 0),
            Self::Line => (0, 1),
            Self::Paper => (0, 2),
            Self::Plain => (0, 3),
            Self::Strong => (0, 4),
            Self::Threshold(i) => (1, (i % SERIES) as u8),
            Self::Encoder(i) => (2, (i % SERIES) as u8),
            Self::Step(i) => (3, i.min(STEPS - 1) as u8),
            Self::OnStep(i) => (4, i.min(STEPS - 1) as u8),
        }
    }

    /// The CSS variable.
    pub fn css(self) -> String {
        let (_, n) = self.code();
        match self {
            Self::Label => "var(--muted)".into(),
            Self::Line => "var(--line)".into(),
            Self::Paper => "var(--card)".into(),
            Self::Plain => "var(--plain)".into(),
            Self::Strong => "var(--strong)".into(),
            Self::Threshold(_) => format!("var(--t{n})"),
            Self::Encoder(_) => format!("var(--e{n})"),
            Self::Step(_) => format!("var(--h{n})"),
            Self::OnStep(_) => format!("var(--on{n})"),
        }
    }

    fn rgb(self) -> RGBColor {
        let (group, n) = self.code();
        RGBColor(1, group, n)
    }

    fn all() -> impl Iterator<Item = Self> {
        [Self::Label, Self::Line, Self::Paper, Self::Plain, Self::Strong]
            .into_iter()
            .chain((0..SERIES).flat_map(|i| [Self::Threshold(i), Self::Encoder(i)]))
            .chain((0..STEPS).flat_map(|i| [Self::Step(i), Self::OnStep(i)]))
    }

    /// Whether it carries data rather than the frame around it.
    fn is_data(self) -> bool {
        !matches!(self, Self::Label | Self::Line | Self::Paper | Self::OnStep(_))
    }
}

/// The step of the sequential scale for a value in 0..=1.
pub(super) fn step(value: f64) -> usize {
    ((value.clamp(0.0, 1.0) * STEPS as f64) as usize).min(STEPS - 1)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T = ()> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

/// Draws a chart: an `<svg>` that a template may insert as it is.
fn svg(frame: &Frame, draw: impl FnOnce(&Area) -> Drawn) -> Result<Value> {
    let mut text = String::new();
    let size = (px(frame.width.into()) as u32, px(frame.height.into()) as u32);
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area).and_then(|()| area.present()).map_err(|error| Error::Io {
            path: format!("chart {}", frame.id).into(),
            source: std::io::Error::other(error.to_string()),
        })?;
    }
    let mut marks = 0;
    for ink in Ink::all() {
        let RGBColor(r, g, b) = ink.rgb();
        let code = format!("\"#{r:02X}{g:02X}{b:02X}\"");
        if ink.is_data() {
            marks += text.matches(&code).count();
        }
        text = text.replace(&code, &format!("\"{}\"", ink.css()));
    }
    // The page's fonts, not plotters'; and full opacity needs no saying.
    text = text.replace(" font-family=\"sans-serif\"", "").replace(" opacity=\"1\"", "");
    let body = text.split_once('>').map_or("", |(_, body)| body);
    let id = frame.id;
    let head = format!(
        "<svg class=\"chart\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\" viewBox=\"0 0 {} {}\" \
         data-marks=\"{marks}\" xmlns=\"http://www.w3.org/2000/svg\">\n<title id=\"{id}-t\">{}</title>\n\
         <desc id=\"{id}-d\">{}</desc>",
        size.0,
        size.1,
        escape(frame.title),
        escape(frame.description),
    );
    Ok(Value::from_safe_string(head + body))
}

/// Text as XML character data.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// View box units as plotters' pixels.
fn px(units: f64) -> i32 {
    (units * FINE).round() as i32
}

fn font(size: f64, ink: Ink, h: HPos, v: VPos) -> TextStyle<'static> {
    let mut style =
        TextStyle::from(("sans-serif", size * FINE * FONT).into_font()).pos(Pos::new(h, v));
    style.color = ink.rgb().to_backend_color();
    style
}

/// A line of some width in view box units.
fn stroke(ink: Ink, width: f64) -> ShapeStyle {
    ShapeStyle { color: ink.rgb().to_rgba(), filled: false, stroke_width: px(width) as u32 }
}

fn fill(ink: Ink) -> ShapeStyle {
    ShapeStyle { color: ink.rgb().to_rgba(), filled: true, stroke_width: 0 }
}

/// The outline of a marker of radius 1; `None` is a circle. Five shapes, so that they and the six colours come
/// together again only after thirty series.
fn outline(kind: usize) -> Option<&'static [(f64, f64)]> {
    match kind % 5 {
        0 => None,
        1 => Some(&[(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
        2 => Some(&[(0.0, -1.15), (1.1, 0.85), (-1.1, 0.85)]),
        3 => Some(&[(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)]),
        _ => Some(&[(0.0, 1.15), (1.1, -0.85), (-1.1, -0.85)]),
    }
}

/// Draws a marker with a rim in the colour of the page, so that overlapping ones stay apart.
fn marker(area: &Area, kind: usize, (x, y): (i32, i32), radius: f64, ink: Ink) -> Drawn {
    for (radius, ink) in [(radius + 1.3, Ink::Paper), (radius, ink)] {
        match outline(kind) {
            None => area.draw(&Circle::new((x, y), px(radius), fill(ink)))?,
            Some(points) => {
                let at = |&(dx, dy): &(f64, f64)| (x + px(dx * radius), y + px(dy * radius));
                let points: Vec<(i32, i32)> = points.iter().map(at).collect();
                area.draw(&Polygon::new(points, fill(ink)))?;
            }
        }
    }
    Ok(())
}

/// An entry of a legend: a marker and what it stands for.
#[derive(Serialize)]
pub(super) struct Key {
    pub svg: Value,
    pub label: String,
}

/// The legend entry of a series.
pub(super) fn key(kind: usize, ink: Ink, label: impl Into<String>) -> Key {
    let colour = ink.css();
    let shape = match outline(kind) {
        None => format!("<circle r=\"5\" fill=\"{colour}\"/>"),
        Some(points) => {
            let points: Vec<String> =
                points.iter().map(|(x, y)| format!("{},{}", x * 5.0, y * 5.0)).collect();
            format!("<polygon points=\"{}\" fill=\"{colour}\"/>", points.join(" "))
        }
    };
    let svg =
        format!("<svg class=\"key\" viewBox=\"-8 -8 16 16\" aria-hidden=\"true\">{shape}</svg>");
    Key { svg: Value::from_safe_string(svg), label: label.into() }
}

/// A plot's frame: where its data go, in view box units, and which values its edges have.
struct Plot {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Plot {
    /// Where a value of the horizontal axis is.
    fn x(&self, value: f64) -> f64 {
        let (low, high) = self.x;
        self.left + (value - low) / (high - low) * (self.right - self.left)
    }

    /// Where a value of the vertical axis is.
    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.y;
        self.bottom - (value - low) / (high - low) * (self.bottom - self.top)
    }

    fn at(&self, (x, y): (f64, f64)) -> (i32, i32) {
        (px(self.x(x)), px(self.y(y)))
    }

    /// Horizontal grid lines with labels.
    fn rows(&self, area: &Area, ticks: &[(f64, String)]) -> Drawn {
        let style = font(LABEL, Ink::Label, HPos::Right, VPos::Center);
        for (value, label) in ticks {
            let y = px(self.y(*value));
            let line = vec![(px(self.left), y), (px(self.right), y)];
            area.draw(&PathElement::new(line, stroke(Ink::Line, 1.0)))?;
            area.draw(&Text::new(label.clone(), (px(self.left - 8.0), y), style.clone()))?;
        }
        Ok(())
    }

    /// Labels of the horizontal axis, and its name at the right below them.
    fn columns(&self, area: &Area, ticks: &[(f64, String)], name: &str) -> Drawn {
        let style = font(LABEL, Ink::Label, HPos::Center, VPos::Top);
        for (value, label) in ticks {
            let x = px(self.x(*value));
            let line = vec![(x, px(self.bottom)), (x, px(self.bottom + 4.0))];
            area.draw(&PathElement::new(line, stroke(Ink::Line, 1.0)))?;
            area.draw(&Text::new(label.clone(), (x, px(self.bottom + 8.0)), style.clone()))?;
        }
        let style = font(LABEL, Ink::Label, HPos::Right, VPos::Top);
        let at = (px(self.right), px(self.bottom + 25.0));
        area.draw(&Text::new(name.to_owned(), at, style))
    }
}

/// Round numbers that divide a range into about `wanted` parts.
fn ticks((low, high): (f64, f64), wanted: usize) -> Vec<f64> {
    let rough = (high - low) / wanted.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let unit = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|unit| *unit >= rough * 0.999)
        .unwrap_or(rough);
    let first = (low / unit - 1e-9).ceil() as i64;
    let last = (high / unit + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 1.0), 4), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(ticks((0.0, 7.0), 4), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(ticks((3.0, 47.0), 4).len(), 2);
    }

    #[test]
    fn a_hostile_title_is_text() {
        let frame = Frame {
            id: "x",
            title: "<script>alert(1)</script>",
            description: "a & b",
            width: 10,
            height: 10,
        };
        let text = svg(&frame, |area| {
            area.draw(&Text::new("<b>", (0, 0), font(9.0, Ink::Label, HPos::Left, VPos::Top)))
        });
        let text = text.unwrap().to_string();
        assert!(!text.contains("<script>") && !text.contains("<b>"), "{text}");
        assert!(text.contains("data-marks=\"0\""), "{text}");
    }
}
