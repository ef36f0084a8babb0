//! What encoders did not see, and what is odd about candidates.

use minijinja::{Value, context};

use super::super::{
    figure::Table,
    gallery::{Pair, flag_meaning},
    number::{count, share},
    page::value,
    run::Run,
};
use crate::Result;

pub(super) fn content(run: &Run, _: &[Pair]) -> Result<Option<Value>> {
    let summary = &run.summary;
    let rows = summary.truncation.iter().map(|entry| {
        vec![
            entry.encoder.clone(),
            count(entry.max_tokens.into()),
            count(entry.scored),
            share(entry.candidates),
            share(entry.references),
        ]
    });
    let truncation = Table::new(
        "What each encoder cut off",
        ["encoder", "reads tokens", "candidates scored", "candidates cut", "references cut"],
        rows.collect(),
    );
    let total = summary.candidates_generated.max(1) as f64;
    let rows = summary.flags.iter().map(|(name, n)| {
        vec![
            name.replace('_', " "),
            count(*n),
            share(*n as f64 / total),
            flag_meaning(name).to_owned(),
        ]
    });
    let flags = Table::new(
        "Flags over all candidates",
        ["flag", "candidates", "share", "meaning"],
        rows.collect(),
    );
    let cut = summary.truncation.iter().any(|t| t.candidates > 0.0 || t.references > 0.0);
    Ok(Some(context! { truncation => value(truncation), flags => value(flags), cut }))
}
