//! The method: data in, sampling, the store of candidates, the grid, exports.
#![cfg(feature = "toolkit")]

#[path = "../common/mod.rs"]
mod common;
mod data;
mod export;
mod grid;
mod sampling;
mod sampling_config;
mod sentences;
mod shapes;
mod store;
