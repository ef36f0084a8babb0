//! Floor 2: networks and their files.

pub mod adapter;
pub mod device;
pub mod encoder;
mod files;
pub mod fingerprint;
pub mod hub;
pub mod llava;
pub mod lora;
pub mod memory;
pub mod merge;
pub mod sentencepiece;
pub mod tokenizer;
pub mod weights;
