//! `bdhs report`: the page of a run.

use std::path::PathBuf;

use clap::Args;

use super::{
    Global,
    ui::{print_json, print_text},
};
use crate::{
    Result,
    report::{self, Options, PAIRS},
};

/// Arguments of `bdhs report`.
#[derive(Args)]
pub(super) struct Report {
    /// A run folder, as sweep and sample leave it
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Where to write [default: report.html in the run folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Most pairs in the gallery
    #[arg(long, value_name = "N", default_value_t = PAIRS)]
    pairs: usize,
    /// Folder of the pictures, if they have moved
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
}

impl Report {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let options =
            Options { pairs: self.pairs, out: self.out.clone(), images: self.images.clone() };
        let written = report::write(&self.run, &options)?;
        if global.json {
            return print_json(&written);
        }
        for missing in &written.missing {
            eprintln!("warning: not in the report: {missing}");
        }
        print_text(&format!(
            "{}: {} sections, {} pairs, {} kB",
            written.path.display(),
            written.sections.len(),
            written.pairs_shown,
            written.bytes.div_ceil(1000)
        ))
    }
}
