//! The gallery.

use minijinja::{Value, context};

use super::super::{
    gallery::{Pair, Why},
    number::{count, plural},
    page::value,
    run::Run,
};
use crate::Result;

pub(super) fn content(run: &Run, pairs: &[Pair]) -> Result<Option<Value>> {
    let rest = pairs.get(1..).unwrap_or_default();
    if rest.is_empty() {
        return Ok(None);
    }
    let reasons: Vec<(&str, &str)> = Why::ALL
        .into_iter()
        .filter(|why| pairs.iter().any(|pair| pair.why.contains(&why.label())))
        .map(|why| (why.label(), why.meaning()))
        .collect();
    let shown = plural(rest.len() as u64, "pair");
    let samples = count(run.summary.samples);
    Ok(Some(context! { pairs => value(rest), shown, samples, reasons => value(reasons) }))
}
