//! Tests that cannot run where something is missing: they say so, and fail where it must not be missing.
//!
//! `BDHS_NEED` names what this machine has, with commas (`cxx,disk`) or `all`: a test that would skip for want of it fails. With
//! `BDHS_SKIPS` set to a file, each skip is added to it as a line, for a count at the end of `.ci/run`.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// What a test may lack, and what that is.
pub const NEEDS: [(&str, &str); 8] = [
    ("candle-kernels", "candle's own CUDA kernels (not under scripts/cuda-on-cpu)"),
    ("cpu", "that models run on the CPU (BDHS_TEST_DEVICE)"),
    ("cxx", "a C++17 compiler (CXX, or c++)"),
    ("dense", "a CPU that ops::dense has kernels for"),
    ("disk", "the right to mount a small file system (root on Linux)"),
    ("golden", "third-party predictions of known score (BDHS_GOLDEN)"),
    ("gpu", "a CUDA device that the kernels run on"),
    ("slurm", "a SLURM (SLURM_CONF; scripts/slurm-local starts one)"),
];

/// Records that the running test ends here for want of `need`, one of [`NEEDS`]. Panics where `BDHS_NEED` names it.
///
/// The line is written past the capture of the test harness, so that a plain `cargo test` shows it.
#[track_caller]
pub fn skip(need: &str, why: impl Display) {
    assert!(NEEDS.iter().any(|(name, _)| *name == need), "{need:?} is not in NEEDS");
    let needed = std::env::var("BDHS_NEED").unwrap_or_default();
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    if let Err(message) = allowed(need, &needed) {
        panic!("{message}: {why}");
    }
    let line = format!("skipped: {test}: {need}: {why}\n");
    // A lock, so that lines of tests that run at once stay whole.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("BDHS_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("BDHS_SKIPS, {}: {error}", path.display()));
    }
}

/// Whether a test may skip for want of `need` where `needed` is the value of `BDHS_NEED`.
pub fn allowed(need: &str, needed: &str) -> Result<(), String> {
    for name in needed.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if name == "all" || name == need {
            return Err(format!("BDHS_NEED={needed} asks for {need}, which is missing"));
        }
        if !NEEDS.iter().any(|(known, _)| *known == name) {
            let known: Vec<&str> = NEEDS.iter().map(|(known, _)| *known).collect();
            return Err(format!(
                "BDHS_NEED names {name:?}; expected all or some of {}",
                known.join(",")
            ));
        }
    }
    Ok(())
}

/// The C++ compiler, or `None` after [`skip`].
pub fn compiler() -> Option<String> {
    let name = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let version = std::process::Command::new(&name).arg("--version").output();
    if version.is_ok_and(|output| output.status.success()) {
        return Some(name);
    }
    skip("cxx", format_args!("{name} does not run; install a C++ compiler or set CXX"));
    None
}
