//! The kernels in a project of your own: pool, compare and search embeddings that your model made, with nothing of the
//! toolkit.
//!
//! ```toml
//! [dependencies]
//! bdhs = { path = "../bdhs", default-features = false }
//! candle-core = "0.11.1"
//! ```
//!
//! `cargo run --release --example embed_kernels`

use bdhs::ops::cosine::{count_above, pairs_above, rows, top_k};
use bdhs::ops::pool::{Mode, Options, Rows, pool};
use candle_core::{DType, Device, Tensor};

/// Token states of a model's last layer: here random ones. `[sum T, H]`, sequences one after another, no padding.
fn states(lengths: &[usize], hidden: usize) -> candle_core::Result<(Tensor, Vec<u32>)> {
    let mut cu_seqlens = vec![0];
    for &n in lengths {
        cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + n as u32);
    }
    let tokens = lengths.iter().sum::<usize>();
    let states = Tensor::randn(0f32, 1.0, (tokens, hidden), &Device::Cpu)?.to_dtype(DType::BF16)?;
    Ok((states, cu_seqlens))
}

fn main() -> bdhs::Result<()> {
    let lengths: Vec<usize> = (0..300).map(|i| 3 + i % 20).collect();
    let (states, cu_seqlens) = states(&lengths, 384)?;

    // Sentence vectors: mean over each sequence's tokens, the first 256 values, unit length.
    let options =
        Options { dim: Some(256), normalize: true, dtype: DType::F16, ..Options::new(Mode::Mean) };
    let vectors = pool(&states, Rows::Packed { cu_seqlens: &cu_seqlens }, &options, None)?;
    println!("{} tokens to {:?} {:?}", states.dim(0)?, vectors.dims(), vectors.dtype());

    // Near duplicates, without a 300 x 300 matrix of scores.
    let found = count_above(&vectors, None, &[0.1, 0.3, 0.5])?;
    println!("{:?} of {} pairs above 0.1, 0.3, 0.5", found.counts, found.pairs);
    if let Some(pair) = pairs_above(&vectors, None, 0.3)?.pairs.first() {
        println!("the first above 0.3: {} and {}, {:.3}", pair.i, pair.j, pair.score);
    }

    // Search: the three nearest of the first two.
    let queries = vectors.narrow(0, 0, 2)?;
    let nearest = top_k(&queries, &vectors, 3)?;
    println!("nearest: {:?}", nearest.indices.to_vec2::<u32>()?);

    // Candidates against references in ragged groups: the first candidate of each group below each threshold.
    let candidates = vectors.narrow(0, 2, 7)?;
    let scored = rows(&candidates, &queries, Some(&[0, 5, 7]), &[0.9, 0.0])?;
    println!("first below 0.9 and 0.0, a group a pair: {:?}", scored.first_below);
    println!("decided in float64: {:.1} %", 100.0 * scored.recheck_share());
    Ok(())
}
