//! `bdhs report`: the page of a run.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    Global,
    ui::{Bars, print_json, print_text, printable},
};
use crate::{
    Result,
    engine::Progress,
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

/// Writes the page of a run that has its results. A page that cannot be drawn is a warning, since the results are what counts.
pub(super) fn write_page(run: &Path, bars: &Bars) {
    bars.begin("writing the report", None);
    if let Err(error) = report::write(run, &Options::default()) {
        bars.warn(&format!("report.html was not written: {error}"));
    }
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
            eprintln!("warning: not in the report: {}", printable(missing));
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
