//! Floor 2: networks and their files.

pub mod adapter;
pub mod device;
pub mod encoder;
pub mod families;
mod fields;
mod files;
pub mod fingerprint;
pub(crate) mod guard;
pub mod hub;
mod image;
pub mod language;
mod linear;
pub mod lora;
pub mod memory;
pub mod merge;
mod model;
pub mod outline;
pub mod patches;
pub mod prompt;
pub mod sentencepiece;
mod settings;
mod source;
mod template;
pub mod tokenizer;
pub mod vision;
pub mod weights;

pub use families::Config;
pub use image::{ImageLayout, ImagePositions, Pixels};
pub use language::{KvCache, Language, Place};
pub use model::Model;
pub use patches::PatchMap;
pub use prompt::{Encoded, IMAGE, Piece, Prompt, PromptFormat, Role, Turn};
pub use source::{Bounds, Source};
