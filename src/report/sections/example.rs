//! The first pair of the gallery, ahead of all figures.

use minijinja::{Value, context};

use super::super::{gallery::Pair, page::value, run::Run};
use crate::Result;

pub(super) fn content(run: &Run, pairs: &[Pair]) -> Result<Option<Value>> {
    let guidance = run.sampling.guidance;
    Ok(pairs.first().map(|pair| context! { pair => value(pair), guidance }))
}
