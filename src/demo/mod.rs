//! The embedded demo: a procedural scene world, a tiny LLaVA and four tiny sentence encoders trained on it.
//!
//! `bdhs sweep` without arguments runs it, by the code that runs real checkpoints: the models lie in folders of the same
//! formats, the scenes in image files beside a LLaVA conversation file. Its numbers say how the method and the tool work,
//! not how real models behave.

pub mod benchmarks;
pub mod draw;
pub mod embedded;
pub mod figures;
pub mod folder;
#[cfg(feature = "demo")]
pub mod judge;
pub mod questions;
pub mod scene;
mod tokenizer;
pub mod train;
pub mod words;

#[cfg(not(feature = "demo"))]
mod absent;
#[cfg(not(feature = "demo"))]
pub use absent::judge;

use crate::models::IMAGE;
use crate::models::{Role, Turn};

/// The judge's name.
pub const JUDGE: &str = "demo-judge";

/// Prompts that ask for a description.
pub const DESCRIBE: [&str; 3] = [
    "Describe the picture.",
    "Describe this picture in detail.",
    "What can you see in the picture?",
];

/// What asks for a short answer, as in LLaVA's training data and benchmarks.
pub const SHORT: &str = "Answer the question using a single word or phrase.";

/// A user's turn about an image.
pub fn user_turn(text: &str) -> Turn {
    Turn { role: Role::User, text: format!("{IMAGE}\n{text}") }
}
