//! Vision towers, and the resizing that goes before them.

pub mod clip;
pub mod resample;
