//! Bias-Driven Hallucination Sampling (BDHS): rejected answers for aligning multimodal LLMs, written by the model's own
//! language prior while its access to the image is cut (arXiv 2407.02477, Sec. 3.4).
//!
//! Five floors, each built on those below it; `ARCHITECTURE.md` has the order of rooms within them:
//!
//! - `cli`: the `bdhs` command;
//! - `report`: the page of a run; `ablation`: trained and judged cells, compared; `sweep`: all cells (encoder, threshold)
//!   from one set of candidates; `bench`: rates of a machine; `config`: the configuration of an experiment; `demo`: a
//!   world and models to show it on; `eval`: benchmarks and their scores; `train`: LoRA and DPO;
//! - `sampling`, `data`, `engine`, `store`: the method, its input, generation, results;
//! - `models`: multimodal LLMs and sentence encoders on ragged batches;
//! - [`ops`]: the kernels, for any project.
//!
//! # What is promised
//!
//! [`ops`], [`Error`](enum@Error) and [`Result`] follow semantic versioning. So do the command line, `--json` documents,
//! configuration files and the file formats in `docs/`. All other modules are public for the command, the tests and the
//! benches only: they may change in any release.
//!
//! All but [`ops`] belong to the default feature `toolkit`. `ARCHITECTURE.md` says why it is built like this.

#![warn(missing_docs, clippy::undocumented_unsafe_blocks)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod ops;

#[cfg(feature = "toolkit")]
pub mod ablation;
#[cfg(feature = "toolkit")]
pub mod bench;
#[cfg(feature = "toolkit")]
pub mod cli;
#[cfg(feature = "toolkit")]
pub mod config;
#[cfg(feature = "toolkit")]
pub mod data;
#[cfg(feature = "toolkit")]
pub mod demo;
#[cfg(feature = "toolkit")]
pub mod engine;
#[cfg(feature = "toolkit")]
pub mod eval;
#[cfg(feature = "toolkit")]
pub mod models;
#[cfg(feature = "toolkit")]
pub mod report;
#[cfg(feature = "toolkit")]
pub mod sampling;
#[cfg(feature = "toolkit")]
pub mod store;
#[cfg(feature = "toolkit")]
pub mod sweep;
#[cfg(feature = "toolkit")]
pub mod train;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "toolkit")]
mod append;
#[cfg(feature = "toolkit")]
mod files;
#[cfg(feature = "toolkit")]
mod lock;
#[cfg(feature = "toolkit")]
mod progress;

mod error;
pub use error::{Error, Result};

/// The version of candle that tensors of this crate's functions are of.
pub use candle_core;
/// The version of cudarc that `ops::cuda` takes buffers of.
#[cfg(feature = "cuda-kernels")]
pub use cudarc;
