//! A chart with all that belongs to it, and tables.

use minijinja::Value;
use serde::Serialize;

use super::chart::Key;

/// A chart, its legend, and the table behind it.
#[derive(Serialize)]
pub(super) struct Figure {
    /// Heading of one of several charts.
    pub heading: String,
    /// The `<svg>`.
    pub svg: Value,
    pub table: Table,
}

/// A table; the first entry of each row is its header.
#[derive(Serialize, Default)]
pub(super) struct Table {
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table from its parts.
    pub fn new(
        caption: impl Into<String>,
        head: impl IntoIterator<Item = impl Into<String>>,
        rows: Vec<Vec<String>>,
    ) -> Self {
        let head = head.into_iter().map(Into::into).collect();
        Self { caption: caption.into(), head, rows }
    }
}

/// Several charts under one legend.
#[derive(Serialize)]
pub(super) struct Multiples {
    pub legend: Vec<Key>,
    pub figures: Vec<Figure>,
    /// Charts side by side on a wide page.
    pub columns: usize,
}

impl Multiples {
    /// Charts in as many columns as suit their number.
    pub fn new(legend: Vec<Key>, figures: Vec<Figure>) -> Self {
        let columns = match figures.len() {
            1 => 1,
            2 | 4 => 2,
            _ => 3,
        };
        Self { legend, figures, columns }
    }
}

/// A table over the grid, one cell a (encoder, threshold), in colours of the sequential scale.
#[derive(Serialize)]
pub(super) struct HeatMap {
    pub title: String,
    /// What the scale is.
    pub note: String,
    pub head: Vec<String>,
    pub rows: Vec<HeatRow>,
}

/// A row of a [`HeatMap`].
#[derive(Serialize)]
pub(super) struct HeatRow {
    pub encoder: String,
    pub cells: Vec<Tile>,
}

/// A value and its step of the colour scale.
#[derive(Serialize)]
pub(super) struct Tile {
    pub text: String,
    pub step: usize,
}
