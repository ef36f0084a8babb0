//! The benchmarks: known scores, each quirk of the reference scorers, bad input, intervals.
#![cfg(feature = "toolkit")]

mod cli;
#[path = "../common/mod.rs"]
mod common;
mod golden;
mod input;
mod judge;
mod judges_of_today;
mod nulls;
mod quirks;
mod statistics;

use std::path::{Path, PathBuf};

use bdhs::eval::{Files, Outcome, Settings, Sources, evaluate, metric};

/// Files by key.
fn files(named: &[(&str, &Path)]) -> Files {
    let named = named.iter().map(|(key, path)| ((*key).to_owned(), path.to_path_buf())).collect();
    Files { named, ..Files::default() }
}

/// Files of a folder.
fn folder(path: &Path) -> Files {
    Files { folder: Some(path.to_owned()), ..Files::default() }
}

/// Settings with a protocol and no bootstrap.
fn protocol(name: &str) -> Settings {
    let protocol = Some(name.parse().expect("a protocol"));
    Settings { protocol, resamples: 0, ..Settings::default() }
}

fn predictions(path: &Path) -> Sources {
    Sources { predictions: Some(path.to_owned()), replies: vec![] }
}

fn replies(paths: &[PathBuf]) -> Sources {
    Sources { predictions: None, replies: paths.to_vec() }
}

fn run(name: &str, files: &Files, settings: &Settings, sources: &Sources) -> bdhs::Result<Outcome> {
    evaluate(metric(name)?, files, settings, sources)
}

/// Writes a file of a test's own.
fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("a writable file");
    path
}

fn score(outcome: &Outcome, name: &str) -> f64 {
    outcome.details["scores"][name]["value"].as_f64().unwrap_or(f64::NAN)
}
