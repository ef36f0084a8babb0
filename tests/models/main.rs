//! The networks, the engine that runs them, and training.
#![cfg(feature = "toolkit")]

mod answers;
mod assemble;
#[path = "../common/mod.rs"]
mod common;
mod detokeniser;
mod encoder;
mod engine;
mod families;
mod limits;
mod llava;
mod qwen;
mod train;
