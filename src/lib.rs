//! Bias-Driven Hallucination Sampling (BDHS): rejected answers for aligning multimodal LLMs, written by the model's own
//! language prior while its access to the image is cut (arXiv 2407.02477, Sec. 3.4).
//!
//! Five floors, each of which knows only those below it:
//!
//! - `cli`: the `bdhs` command;
//! - `sweep`: all (encoder, threshold) cells from one set of candidates; `train`: LoRA and DPO on their pairs; `eval`: benchmarks and
//!   their scores; `ablation`: trained and judged cells, compared; `report`: the page of a run; `bench`: rates of a machine; `demo`: a world
//!   and models to show it on;
//! - `sampling`, `data`, `engine`, `store`: the method, its input, generation, results;
//! - `models`: LLaVA and sentence encoders on ragged batches;
//! - [`ops`]: the kernels, for anyone.
//!
//! All but [`ops`] belong to the default feature `toolkit`. `ARCHITECTURE.md` says why it is built like this.

pub mod ops;

#[cfg(feature = "toolkit")]
pub mod ablation;
#[cfg(feature = "toolkit")]
pub mod bench;
#[cfg(feature = "toolkit")]
pub mod cli;
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
mod progress;

mod error;
pub use error::{Error, Result};

/// The version of candle that tensors of this crate's functions are of.
pub use candle_core;
/// The version of cudarc that `ops::cuda` takes buffers of.
#[cfg(feature = "cuda-kernels")]
pub use cudarc;
