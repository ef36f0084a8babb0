//! What `--pairs` names: a file or folder of pairs, a run, or a cell of a run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{Files, SavedRun, label};
use crate::models::encoder::Choice;
use crate::{Error, Result};

/// Where pairs are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairSource {
    /// The file, or what [`Dataset::list`](crate::data::Dataset::list) takes.
    pub file: PathBuf,
    /// The folder that its relative image paths start from, where the run says so.
    pub images: Option<PathBuf>,
    /// The file is this program's own export: its absolute paths are taken wherever they lead.
    pub own: bool,
    /// What was chosen among several, for people.
    pub note: Option<String>,
}

impl PairSource {
    /// Finds what a text names: `FILE`, a folder of data, `RUN`, `RUN:CELL`, or a cell's folder.
    ///
    /// # Errors
    /// A run without cells, or without the cell that is named; the message lists those that it has.
    pub fn find(text: &Path) -> Result<Self> {
        if text.is_dir() {
            if exported(text).is_some() {
                return Self::cell(text);
            }
            return match text.join("cells").is_dir() {
                true => Self::run(text),
                false => Ok(Self::foreign(text)),
            };
        }
        let words = text.to_string_lossy();
        if !text.exists()
            && let Some((run, cell)) = words.rsplit_once(':')
            && Path::new(run).join("cells").is_dir()
        {
            let folder = Path::new(run).join("cells").join(cell);
            if cell.is_empty() || exported(&folder).is_none() {
                let message =
                    format!("has no cell {cell:?}, expected one of {}", cells(run.as_ref())?);
                return Err(Error::invalid(run, "", message));
            }
            return Self::cell(&folder);
        }
        // A file beside its run's `cells`.
        match text.parent().filter(|folder| run_of(folder).is_some()) {
            Some(folder) => Ok(Self { file: text.to_owned(), ..Self::cell(folder)? }),
            None => Ok(Self::foreign(text)),
        }
    }

    fn foreign(file: &Path) -> Self {
        Self { file: file.to_owned(), images: None, own: false, note: None }
    }

    /// A cell's folder.
    fn cell(folder: &Path) -> Result<Self> {
        let file = exported(folder).unwrap_or_else(|| folder.join("pairs.jsonl"));
        let run = run_of(folder);
        let saved = run.map(SavedRun::read).transpose()?.flatten();
        let images = saved.map(|saved| saved.config.data.image_folder().to_owned());
        Ok(Self {
            file,
            images: images.filter(|path| path.is_dir()),
            own: run.is_some(),
            note: None,
        })
    }

    /// A run: its only cell, or its default one.
    fn run(run: &Path) -> Result<Self> {
        let all = folders(run)?;
        if let [one] = all.as_slice() {
            return Self::cell(one);
        }
        let chosen = SavedRun::read(run)?.map(|saved| default_cell(&saved)).transpose()?;
        let folder = chosen.as_ref().map(|cell| run.join("cells").join(cell));
        match folder.filter(|folder| exported(folder).is_some()) {
            Some(folder) => {
                let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let note = format!(
                    "{} has {} cells; training on {name}, its default. {}:CELL names another",
                    run.display(),
                    all.len(),
                    run.display()
                );
                Ok(Self { note: Some(note), ..Self::cell(&folder)? })
            }
            None => {
                let message = match all.is_empty() {
                    true => "has no exported cells: the run is not finished".to_owned(),
                    false => format!(
                        "has several cells: give {}:CELL, with one of {}",
                        run.display(),
                        cells(run)?
                    ),
                };
                Err(Error::invalid(run, "", message))
            }
        }
    }

    /// As a configuration's data file.
    pub fn files(&self) -> Files {
        self.file.clone().into()
    }
}

/// The name of a run's default cell.
fn default_cell(saved: &SavedRun) -> Result<String> {
    let grid = &saved.config.grid;
    let name = |path: &PathBuf| Choice::parse(path).map(|choice| choice.name());
    let names = grid.encoders.iter().map(name).collect::<Result<Vec<_>>>()?;
    let (encoder, threshold) = saved.config.default_cell(&names)?;
    let threshold = grid.thresholds.get(threshold).copied().unwrap_or_default();
    Ok(names.get(encoder).map(|name| label(name, threshold)).unwrap_or_default())
}

/// The pairs of a cell's folder.
fn exported(folder: &Path) -> Option<PathBuf> {
    let files = ["pairs.jsonl", "pairs.parquet"].map(|name| folder.join(name));
    files.into_iter().find(|file| file.is_file())
}

/// The run that a cell's folder belongs to.
fn run_of(folder: &Path) -> Option<&Path> {
    let cells = folder.parent()?;
    let run = cells.parent().filter(|_| cells.file_name().is_some_and(|name| name == "cells"))?;
    (run.join("run.json").is_file() || run.join("store.db").is_file()).then_some(run)
}

fn folders(run: &Path) -> Result<Vec<PathBuf>> {
    let cells = run.join("cells");
    let mut found = Vec::new();
    for entry in fs::read_dir(&cells).map_err(Error::io(&cells))? {
        let path = entry.map_err(Error::io(&cells))?.path();
        if exported(&path).is_some() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn cells(run: &Path) -> Result<String> {
    let all = folders(run)?;
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(all.iter().map(name).collect::<Vec<_>>().join(", "))
}
