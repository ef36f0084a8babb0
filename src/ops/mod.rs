//! Floor 1: the kernels, for anyone.

pub mod act;
pub mod attend;
mod composed;
pub mod cosine;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dense;
mod grads;
mod host;
pub mod mask;
pub mod norm;
pub mod philox;
pub mod pool;
pub mod rope;
mod simd;
pub mod token;
