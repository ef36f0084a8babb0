//! What the model may see of an image: masked tokens, or noise on the pixels.

use rayon::prelude::*;

use super::{Newlines, SamplingConfig};
use crate::ops::mask::{self, Kept, Row, TokenGrid};
use crate::ops::philox::{Draws, Purpose, WHOLE_RESPONSE};
use crate::{Error, Result};

/// Steps of the noise schedule.
pub const NOISE_STEPS: u32 = 1000;

/// The image tokens of one attempt at one sample.
#[derive(Clone, Copy, Debug)]
pub struct MaskRequest<'a> {
    /// Seed, sample and attempt.
    pub draws: Draws,
    /// Whether the attempt is guided; the two streams have different masks.
    pub guided: bool,
    /// Tokens of all images of the prompt, newline tokens included.
    pub tokens: usize,
    /// Patch regions of all images, in one numbering; see [`join_layouts`].
    pub grids: &'a [TokenGrid],
}

/// The sentence number of a stream's mask and noise: one for all sentences of a guided attempt, and the number of whole
/// responses for an unguided one.
pub fn stream(guided: bool) -> u32 {
    if guided { 0 } else { WHOLE_RESPONSE }
}

/// Draws which image tokens stay visible, for many attempts at once `[S eq. 6]`.
///
/// One mask an attempt, shared by all its sentences. A row depends only on its own request and on rho, law and newlines.
///
/// # Errors
/// On a configuration or a request outside the contract of [`mask::draw`].
pub fn visible_tokens(config: &SamplingConfig, requests: &[MaskRequest<'_>]) -> Result<Kept> {
    let rows: Vec<Row<'_>> = requests
        .iter()
        .map(|request| Row {
            draws: request.draws,
            sentence: stream(request.guided),
            tokens: request.tokens,
            grids: request.grids,
        })
        .collect();
    mask::draw(config.mask_scheme(), &rows, config.newlines == Newlines::Exempt)
}

/// Numbers the tokens of several images one after another: total count and shifted grids.
pub fn join_layouts<'a>(
    layouts: impl IntoIterator<Item = (usize, &'a [TokenGrid])>,
) -> (usize, Vec<TokenGrid>) {
    let (mut total, mut joined) = (0, Vec::new());
    for (tokens, grids) in layouts {
        joined.extend(grids.iter().map(|grid| TokenGrid { start: total + grid.start, ..*grid }));
        total += tokens;
    }
    (total, joined)
}

/// Share of signal variance left after `steps` diffusion steps `[S App. E]`: the product of 1 - beta_k over k = 1..=steps,
/// with `beta_k = sigmoid(-6 + 12 k / 1000) (0.5e-2 - 1e-5) + 1e-5`. 1 at no steps.
pub fn signal_share(steps: u32) -> f64 {
    let beta = |k: u32| {
        let t = -6.0 + 12.0 * f64::from(k) / f64::from(NOISE_STEPS);
        (0.5e-2 - 1e-5) / (1.0 + (-t).exp()) + 1e-5
    };
    (1..=steps).map(|k| 1.0 - beta(k)).product()
}

/// Adds diffusion noise to normalised pixel values in place: `sqrt(abar) x + sqrt(1 - abar) e`, e standard normal.
///
/// `pixels` are the values after mean and deviation were applied, in the order of the tensor `[tiles, 3, height, width]`;
/// with several images, `first` is the number of values of the images before. Value i reads the draws of its pair
/// (i / 2): Box-Muller makes two normals of two uniforms. Independent of threads and batch. 0 steps change nothing.
///
/// # Errors
/// If `steps` exceeds the schedule's 1000, or `first` is odd (pairs would be torn).
pub fn add_noise(
    pixels: &mut [f32],
    first: u64,
    draws: &Draws,
    guided: bool,
    steps: u32,
) -> Result<()> {
    if steps > NOISE_STEPS {
        return Err(Error::argument("noise", "steps", steps, format!("<= {NOISE_STEPS}")));
    }
    if !first.is_multiple_of(2) {
        return Err(Error::argument("noise", "first", first, "an even number"));
    }
    if steps == 0 {
        return Ok(());
    }
    let share = signal_share(steps);
    let (signal, noise) = (share.sqrt(), (1.0 - share).sqrt());
    const CHUNK: usize = 4096;
    pixels.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let start = first + (chunk * CHUNK) as u64;
        for (pair, values) in values.chunks_mut(2).enumerate() {
            let normals = normal_pair(draws, stream(guided), start + 2 * pair as u64);
            for (value, normal) in values.iter_mut().zip(normals) {
                *value = (signal * f64::from(*value) + noise * normal) as f32;
            }
        }
    });
    Ok(())
}

/// Two independent standard normals from the uniforms `index` and `index + 1`.
fn normal_pair(draws: &Draws, sentence: u32, index: u64) -> [f64; 2] {
    let radius = (-2.0 * draws.uniform(Purpose::Noise, sentence, index).ln()).sqrt();
    let angle = std::f64::consts::TAU * draws.uniform(Purpose::Noise, sentence, index + 1);
    [radius * angle.cos(), radius * angle.sin()]
}
