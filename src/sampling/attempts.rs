//! Which attempts there are, and what a candidate's identity is.

use std::borrow::Cow;

use super::SamplingConfig;

/// One attempt of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt {
    /// Number, from 1.
    pub number: u32,
    /// Completed from the reference, or a full response.
    pub guided: bool,
}

/// Whether attempt `number` of a run with `attempts` attempts is guided `[S]`: all are but the last; the only one of a run
/// with `attempts = 1` is guided too. With `guidance = false` (mask without guidance) none is.
pub fn is_guided(number: u32, attempts: u32, guidance: bool) -> bool {
    guidance && (number < attempts || attempts == 1)
}

/// The attempts of a run, in order.
pub fn attempts(config: &SamplingConfig) -> impl Iterator<Item = Attempt> + use<> {
    let (attempts, guidance) = (config.attempts, config.guidance);
    (1..=attempts)
        .map(move |number| Attempt { number, guided: is_guided(number, attempts, guidance) })
}

/// What a candidate depends on, and so its address in a store.
#[derive(Clone, Debug)]
pub struct CandidateKey<'a> {
    /// Fingerprint of the model's configuration, tokenizer and weights.
    pub model: [u8; 32],
    /// Only [`SamplingConfig::canonical_generation`] counts: not the number of attempts. Thresholds and encoders are no part of it at all.
    pub config: &'a SamplingConfig,
    /// Seed of the run.
    pub seed: u64,
    /// BLAKE3 of each image file, in the order of the prompt.
    pub images: Cow<'a, [[u8; 32]]>,
    /// Role and text of every turn of the prompt.
    pub turns: Vec<(&'a str, &'a str)>,
    /// The preferred response, y+.
    pub reference: &'a str,
    /// Index of the sample in its dataset; part of the random draws.
    pub sample: u32,
    /// Which attempt, in which stream.
    pub attempt: Attempt,
}

impl CandidateKey<'_> {
    /// BLAKE3 over all of it. Every part is preceded by its length, so that no two keys share a byte sequence.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        // Raise the version when the same configuration begins to give other candidates.
        add_part(&mut hasher, b"bdhs candidate 1");
        add_part(&mut hasher, &self.model);
        add_part(&mut hasher, self.config.canonical_generation().as_bytes());
        add_part(&mut hasher, &self.seed.to_le_bytes());
        hasher.update(&(self.images.len() as u64).to_le_bytes());
        for image in self.images.iter() {
            add_part(&mut hasher, image);
        }
        hasher.update(&(self.turns.len() as u64).to_le_bytes());
        for (role, text) in &self.turns {
            add_part(&mut hasher, role.as_bytes());
            add_part(&mut hasher, text.as_bytes());
        }
        add_part(&mut hasher, self.reference.as_bytes());
        add_part(&mut hasher, &self.sample.to_le_bytes());
        add_part(&mut hasher, &self.attempt.number.to_le_bytes());
        add_part(&mut hasher, &[u8::from(self.attempt.guided)]);
        *hasher.finalize().as_bytes()
    }
}

/// Adds a part of an identity to a hash, preceded by its length.
pub(crate) fn add_part(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
