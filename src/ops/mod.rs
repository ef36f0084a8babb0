//! Floor 1: the kernels, for anyone.

pub mod act;
pub mod attend;
pub mod cosine;
#[cfg(feature = "cuda")]
pub mod cuda;
mod host;
pub mod mask;
pub mod norm;
pub mod philox;
pub mod pool;
mod simd;
pub mod token;
