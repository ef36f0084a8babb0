//! Floor 4: one self-contained HTML page that shows what a run found.
//!
//! The page is made from a run folder alone (`store.db`, `summary.json`, `run.json`, the exports) and, for the gallery,
//! the pictures. What is gone is named on the page and left out. It loads nothing: styles, charts (SVG) and pictures
//! (data URIs) are inside, there is no script, and its content security policy forbids both. All text of a run
//! (captions, names, prompts) goes through an escaping template, so that it is shown and never interpreted.
//!
//! The same folder gives the same bytes: nothing on the page tells when it was made.
//!
//! A section is a file in `sections/` with a template in `templates/`, and a line in `sections::ALL`.

mod chart;
mod evaluations;
mod figure;
mod gallery;
mod number;
mod page;
mod run;
mod sections;
mod texts;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{Error, Result, files::write_file};

pub use gallery::diff::{Marked, Span, mark_changes};

/// Pairs that the gallery shows if nothing else is said: about 1 MB of pictures.
pub const PAIRS: usize = 24;

/// What goes into a report, and where it goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pairs in the gallery, at most.
    pub pairs: usize,
    /// The file; `report.html` in the run folder where absent.
    pub out: Option<PathBuf>,
    /// Folder of the pictures; that of the run where absent.
    pub images: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { pairs: PAIRS, out: None, images: None }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Sections in order.
    pub sections: Vec<SectionName>,
    /// Pairs in the gallery.
    pub pairs_shown: u64,
    /// What could not be shown, and why; also on the page.
    pub missing: Vec<String>,
}

/// A section of the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SectionName {
    /// Its anchor.
    pub id: String,
    /// Its heading.
    pub title: String,
}

/// Writes the report of a run folder.
///
/// # Errors
/// A folder without a finished run; a store, summary or export that cannot be read; a file that cannot be written; a fault of
/// the code that draws the page, which costs the page alone.
/// Missing pictures, data and models are no errors.
pub fn write(folder: &Path, options: &Options) -> Result<Written> {
    catch_unwind(AssertUnwindSafe(|| drawn(folder, options))).unwrap_or_else(|fault| {
        let text = fault.downcast_ref::<String>().map(String::as_str);
        let text = text.or(fault.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let message = format!(
            "the page could not be drawn ({text}): a fault of this program, or a folder that was changed; the pairs are whole"
        );
        Err(Error::invalid(folder, "", message))
    })
}

fn drawn(folder: &Path, options: &Options) -> Result<Written> {
    let mut run = run::Run::load(folder, options)?;
    let pairs = gallery::pairs(&mut run, options.pairs)?;
    let (html, sections) = page::render(&run, &pairs)?;
    let path = options.out.clone().unwrap_or_else(|| folder.join("report.html"));
    write_file(&path, html.as_bytes())?;
    Ok(Written {
        path,
        bytes: html.len() as u64,
        sections,
        pairs_shown: pairs.len() as u64,
        missing: run.missing,
    })
}
