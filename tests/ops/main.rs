//! The ops on the CPU, without the toolkit.

mod act;
mod attend;
mod cosine;
mod cuda_args;
mod cuda_support;
mod decisions;
mod dense;
#[path = "../numbers/token.rs"]
mod exact;
mod mask;
mod norm;
#[path = "../numbers/mod.rs"]
mod numbers;
#[path = "../numbers/pairs.rs"]
mod pairs;
mod philox;
mod pool;
mod rope;
#[path = "../common/skip.rs"]
mod skip;
mod token;
