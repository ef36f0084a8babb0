//! The sections of the page, in order.

mod ablation;
mod acceptance;
mod benchmarks;
mod cells;
pub(super) mod cost;
mod example;
mod limits;
mod overlap;
mod pairs;
mod phi;
mod settings;

use minijinja::Value;

use super::{gallery::Pair, run::Run};
use crate::Result;

/// A section: what it says is a template filled with values.
pub(super) struct Section {
    /// Its anchor; also the name of its template.
    pub id: &'static str,
    pub title: &'static str,
    /// The template's text.
    pub template: &'static str,
    /// The template's values; none where a run has nothing of the kind.
    pub content: fn(&Run, &[Pair]) -> Result<Option<Value>>,
}

macro_rules! section {
    ($id:ident, $title:literal) => {
        Section {
            id: stringify!($id),
            title: $title,
            template: include_str!(concat!("../templates/", stringify!($id), ".html")),
            content: $id::content,
        }
    };
}

/// All sections. To add one: a module here with `content`, a template of its name, a line in this list.
pub(super) const ALL: [Section; 11] = [
    section!(example, "One pair"),
    section!(acceptance, "How soon a candidate is accepted"),
    section!(phi, "How similar candidates are"),
    section!(cells, "Encoder by threshold"),
    section!(overlap, "What the cells share"),
    section!(ablation, "The trained cells"),
    section!(benchmarks, "Benchmarks"),
    section!(cost, "What it cost"),
    section!(limits, "Truncation and flags"),
    section!(pairs, "More pairs"),
    section!(settings, "Settings and origin"),
];
