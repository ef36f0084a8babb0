//! The kernels on plain device buffers: pooling, cosine and a mask on cudarc's slices and stream, without a candle tensor.
//!
//! ```toml
//! [dependencies]
//! bdhs = { path = "../bdhs", default-features = false, features = ["cuda-kernels"] }
//! ```
//!
//! `cargo run --release --no-default-features --features cuda-kernels --example cuda_buffers`

use bdhs::cudarc::driver::CudaContext;
use bdhs::ops::cuda::{Rows, cosine, mask, pool};
use bdhs::ops::mask::{Law, Row, TokenGrid};
use bdhs::ops::pool::{Mode, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Whether there is a GPU that this build has kernels for; the error says what to do.
    let gpu = bdhs::ops::cuda::probe(0)?;
    println!("{}, kernels for {}", gpu.name, gpu.target);
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();

    // Two sentences of 3 and 1 tokens, H = 2, to unit vectors. `Places` is checked and uploaded once.
    let states = stream.clone_htod(&[3f32, 0.0, 3.0, 0.0, 3.0, 12.0, 0.0, 5.0])?;
    let places = pool::Places::packed(&stream, &[0, 3, 4], 4)?;
    let options = Options { normalize: true, ..Options::new(Mode::Mean) };
    let mut vectors = stream.alloc_zeros::<f32>(2 * 2)?;
    pool::pool(&stream, &Rows::packed(&states, 4, 2)?, &places, &options, None, &mut vectors)?;
    let pooled = stream.clone_dtoh(&vectors)?;
    println!("vectors: {pooled:?}");
    for (seen, expected) in pooled.iter().zip([0.6, 0.8, 0.0, 1.0]) {
        assert!((seen - expected).abs() < 1e-6, "{seen} is not {expected}");
    }

    // The first vector against the second, on the device that they are on.
    let thresholds = cosine::Thresholds::new(&stream, &[0.9, 0.5])?;
    let mut scored = cosine::RowOutput::new(&stream, 1, 1, thresholds.len())?;
    let first = Rows::packed(vectors.slice(0..2), 1, 2)?;
    let second = Rows::packed(vectors.slice(2..4), 1, 2)?;
    cosine::rows(&stream, &first, &second, None, &thresholds, &mut scored)?;
    let (scores, below) =
        (stream.clone_dtoh(&scored.scores)?, stream.clone_dtoh(&scored.first_below)?);
    println!("cosine: {scores:?}, first below 0.9 and 0.5: {below:?}");
    assert!((scores[0] - 0.8).abs() < 1e-6);
    assert_eq!(below[..2], [0, u32::MAX]);

    // Which 6 of 576 image tokens stay: indices on the device, equal to those that the CPU draws.
    let grid = [TokenGrid { start: 0, rows: 24, cols: 24, stride: 24 }];
    let rows = [Row::new(7, 0, 576, &grid)];
    let masks = mask::Masks::new(&stream, Law::ExactK { rho: 0.99 }, &rows, false)?;
    let mut kept = stream.alloc_zeros::<u32>(masks.kept().indices.len())?;
    mask::draw(&stream, &masks, Some(&mut kept), None)?;
    let kept = stream.clone_dtoh(&kept)?;
    println!("kept image tokens: {kept:?}");
    assert_eq!(kept, masks.kept().indices);
    Ok(())
}
