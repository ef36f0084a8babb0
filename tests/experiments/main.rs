//! Whole runs: sweeps, ablations, the demo, their reports.
#![cfg(feature = "toolkit")]

mod ablation;
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "demo")]
mod demo;
#[cfg(feature = "demo")]
mod demo_benchmarks;
mod demo_world;
mod devices;
mod families;
mod report;
mod resume;
mod slurm;
mod sweep;
