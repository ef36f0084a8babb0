//! Vision towers, and the resizing that goes before them.

pub mod clip;
pub(in crate::models) mod pixels;
pub mod qwen;
pub mod resample;
