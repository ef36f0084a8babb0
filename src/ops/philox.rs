//! Philox4x32-10: random draws addressed by what they are for, not by when they are made.
//!
//! A draw is a pure function of (seed, sample, attempt, purpose, sentence, index). No state is carried, so the
//! order of work, the batch a row is in and the machine cannot change it, and any thread can make any draw.
//!
//! Layout (32-bit words):
//!
//! ```text
//! key      k0 = seed, low word        k1 = seed, high word
//! counter  c0 = index / 4             c1 = sample            c2 = attempt
//!          c3 = purpose << 24 | sentence
//! output   word[index mod 4]
//! ```
//!
//! For example, the words of tokens 0..8 of one mask are two blocks, whoever draws them and in whatever order:
//!
//! ```text
//! counter (0, sample, attempt, tag) ──► w0 w1 w2 w3   tokens 0 1 2 3
//! counter (1, sample, attempt, tag) ──► w0 w1 w2 w3   tokens 4 5 6 7
//! ```
//!
//! Range: `index < 2^34`, `sentence < 2^24`. Both count things held in memory (tokens, values, sentences of one answer),
//! so a value past them is a bug in the caller; [`Draws`] panics rather than let two draws share a counter.
//!
//! Cost: 10 rounds of two 32x32 products make four words.
//!
//! # Example
//! ```
//! use bdhs::ops::philox::{Draws, Purpose, philox4x32};
//!
//! // A published test vector.
//! assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
//! // Draws of a stream, in any order.
//! let draws = Draws::stream(7, 42);
//! let words: Vec<u32> = (0..8).map(|index| draws.word(Purpose::Noise, 0, index)).collect();
//! let mut filled = [0; 8];
//! draws.fill(Purpose::Noise, 0, &mut filled);
//! assert_eq!(words, filled);
//! ```
//!
//! Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

/// What a draw decides. The number is part of the counter: never renumber, only append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// Which image tokens stay.
    Mask = 0,
    /// Where a sentence is cut.
    Cut = 1,
    /// Whether a leading yes/no is swapped.
    YesNo = 2,
    /// Which token comes next; the index is the step.
    Token = 3,
    /// Diffusion noise on pixels.
    Noise = 4,
    /// Dropout in training.
    Dropout = 5,
    /// Which units a bootstrap resample holds; the sample is the resample's number.
    Bootstrap = 6,
    /// Where an adapter's values start; the sentence is the adapter's number.
    Start = 7,
    /// The order of pairs; the attempt is the epoch.
    Order = 8,
}

/// The sentence number of draws that belong to a whole response: the unguided stream uses it for every purpose, so that
/// a guided and an unguided attempt of the same number share no draw.
pub const WHOLE_RESPONSE: u32 = 0xFF_FFFF;

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Added to the key after each round: the golden ratio and sqrt(3) - 1, as 32-bit fractions.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One Philox4x32-10 block: four words from a counter and a key.
#[inline]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// Maps a word to the open interval (0, 1): `(word >> 8 + 0.5) * 2^-24`.
///
/// The result is f64 on purpose. It has 25 significant bits: in f32 the largest value, 1 - 2^-25, would round to 1.0.
#[inline]
pub fn unit_interval(word: u32) -> f64 {
    (f64::from(word >> 8) + 0.5) * 2f64.powi(-24)
}

/// The draws of one stream: in the method, those of one attempt at one sample. Elsewhere [`Draws::stream`] names it by a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Draws {
    /// The seed of the run.
    pub seed: u64,
    /// The sample's index in the whole dataset (also when a shard is processed).
    pub sample: u32,
    /// The attempt.
    pub attempt: u32,
}

impl Draws {
    /// The draws of one of 2^64 independent streams of a seed. Its low word is the sample, its high word the attempt.
    pub fn stream(seed: u64, stream: u64) -> Self {
        Self { seed, sample: stream as u32, attempt: (stream >> 32) as u32 }
    }

    /// 32 random bits.
    ///
    /// # Panics
    /// If `sentence >= 2^24` or `index >= 2^34`: see the module docs.
    #[inline]
    pub fn word(&self, purpose: Purpose, sentence: u32, index: u64) -> u32 {
        self.block(purpose, sentence, index / 4)[(index % 4) as usize]
    }

    /// A uniform draw in (0, 1), both ends excluded, on a grid of 2^24 values; see [`unit_interval`].
    ///
    /// # Panics
    /// As [`Draws::word`].
    #[inline]
    pub fn uniform(&self, purpose: Purpose, sentence: u32, index: u64) -> f64 {
        unit_interval(self.word(purpose, sentence, index))
    }

    /// The words of indices `0..out.len()`, four for the price of one [`Draws::word`].
    ///
    /// # Panics
    /// As [`Draws::word`].
    pub fn fill(&self, purpose: Purpose, sentence: u32, out: &mut [u32]) {
        for (block, words) in out.chunks_mut(4).enumerate() {
            let drawn = self.block(purpose, sentence, block as u64);
            words.copy_from_slice(&drawn[..words.len()]);
        }
    }

    #[inline]
    fn block(&self, purpose: Purpose, sentence: u32, block: u64) -> [u32; 4] {
        assert!(sentence < 1 << 24, "philox: sentence is {sentence}, expected < 2^24");
        let Ok(c0) = u32::try_from(block) else {
            panic!("philox: index is at least {}, expected < 2^34", block * 4);
        };
        let c3 = (purpose as u32) << 24 | sentence;
        philox4x32(
            [c0, self.sample, self.attempt, c3],
            [self.seed as u32, (self.seed >> 32) as u32],
        )
    }
}
