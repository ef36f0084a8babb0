//! The kernels: ops on candle tensors, on the CPU and on NVIDIA GPUs, and the same on plain device buffers.
//!
//! | op | input → output | dtypes | gradients |
//! |---|---|---|---|
//! | [`pool::pool`] | token states `[sum T, H]` or `[B, T, H]` with a mask → sentence vectors `[B, D]` | f32, f16, bf16 | yes |
//! | [`cosine::rows`], [`cosine::rows_f64`] | `[N, D]` against references, in groups → scores `[N]`, first below each threshold | f32, f16, bf16 | no |
//! | [`cosine::count_above`], [`cosine::pairs_above`], [`cosine::top_k`], [`cosine::matrix`] | `[N, D]` x `[M, D]` → counts, pairs, nearest rows, scores | f32, f16, bf16 | no |
//! | [`mask::draw`], [`mask::pack`] | image token grids → kept tokens; embeddings → one packed buffer | f32, f16, bf16 | of `pack` |
//! | [`token::sample`] | logits `[R, V]` → a token and its log-probability per row | f32, f16, bf16 | no |
//! | [`attend::attend`] | q `[R, Hq, D]` over a key-value arena `[S, Hkv, D]` → `[R, Hq, D]` | f32, f16, bf16 | yes |
//! | [`dense::Dense`] | `x [n, in] W^T + b`, W packed once (CPU) | f32, f16, bf16 | of x |
//! | [`norm::layer_norm`], [`norm::rms_norm`] | `[.., H]` with a fused residual → `[.., H]` | f32, f16, bf16 | yes |
//! | [`act::bias_act`], [`act::silu_mul`] | `[.., H]` → `[.., H]` | f32, f16, bf16 | yes |
//! | [`rope::rotate`] | `[n, heads, D]` with tables `[n, D / 2]` → the same | f32, f16, bf16 | of x |
//! | [`philox`] | seed, stream, index → random bits, the same on CPU and GPU | | |
//!
//! # Conventions
//! - **Shapes**: the last axis is contiguous values. Strided tensors are accepted; they are copied first where an op needs rows.
//!   Ragged batches are packed: rows of all sequences in turn, and `cu_seqlens` with one more entry than sequences.
//! - **Dtypes**: all float operands of a call have the same dtype. Sums are in f32, or in f64 where a page says so, and are
//!   rounded once.
//! - **NaN and infinity** reach the rows that they belong to and no others; each page states the exceptions.
//! - **Determinism**: a result does not depend on threads. Most do not depend on the other rows of a batch either; each page
//!   says so. GPU results may differ from the CPU's in the last bits, within the stated bounds. Decisions (thresholds, masks)
//!   are the same.
//! - **Errors** ([`crate::Error`]) name the op, the argument, the value seen and what was expected. Nothing is computed then.
//! - **Devices**: an op runs where its tensors are. All tensors of a call are on one device. Calls that return numbers wait for
//!   the device; calls that return tensors do not.
//! - **Cost**: each page gives the floor in bytes or operations.
//!
//! # Tensors or buffers
//! With candle, call the functions above. Without candle's CUDA build, or inside a CUDA graph of your own, use `ops::cuda` with
//! the feature `cuda-kernels`: the same kernels on cudarc's buffers and streams. That feature needs nvcc to compile our kernels and
//! nothing of candle's kernels. The feature `cuda` adds candle tensors on GPUs. `examples/embed_kernels.rs` shows the one,
//! `examples/cuda_buffers.rs` the other.

pub mod act;
pub mod attend;
pub mod cosine;
#[cfg(feature = "cuda-kernels")]
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
