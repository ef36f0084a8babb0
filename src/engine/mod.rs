//! Floor 3: the engine. Packed waves, key-value forks, decoding.
//!
//! An attempt at a sample is one teacher-forced prefill of (prompt, kept image tokens, reference) and
//! one row for each sentence that forks from it at the sentence's cut. The rows of all attempts of a
//! wave are decoded side by side. Masked image tokens are never computed: masking a token for every
//! query of every layer is the same function as leaving it out with the other positions kept
//! (method of arXiv 2407.02477, eq. 6).

mod answer;
mod decode;
mod prepare;
mod room;
mod text;
mod vision;
mod waves;

use candle_core::Tensor;

pub use answer::{Answer, Answering, Question, answer};
pub(crate) use prepare::{Entry, entries, places};
pub use prepare::{Prepared, Request};
pub use text::Detokenizer;
pub use vision::Images;
pub use waves::waves;

pub use crate::progress::{Progress, checkpoint};
use crate::{
    Result,
    models::Model,
    ops::act::{Activation, bias_act},
    sampling::{Candidate, Fragment, Part, SamplingConfig, cuts::rebuild},
};

/// Generates candidates with one model under one configuration.
pub struct Engine<'m> {
    model: &'m Model,
    config: SamplingConfig,
    seed: u64,
    /// Most key-value slots at a time.
    slots: usize,
    /// `[vocab]`: 0, or minus infinity for ids that stand for no text.
    forbidden: Tensor,
}

impl<'m> Engine<'m> {
    /// An engine; `seed` keys every random draw.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(model: &'m Model, config: SamplingConfig, seed: u64) -> Result<Self> {
        let format = &model.format;
        let textless =
            |id: &u32| Some(*id) == format.image_token() || format.tokenizer().token(*id).is_none();
        let forbidden: Vec<f32> = (0..model.config().text.vocab as u32)
            .map(|id| if textless(&id) { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let forbidden = Tensor::new(forbidden, model.language.device())?;
        Ok(Self { model, config, seed, slots: usize::MAX, forbidden })
    }

    /// Holds at most `slots` key-value slots at a time, or as many as one attempt needs: the attempts of a wave begin as earlier ones
    /// end. Without this, all of a wave begin together.
    pub fn with_slots(self, slots: usize) -> Self {
        Self { slots, ..self }
    }

    /// Logits `[r, vocab]` (f32) of states `[r, H]`, with minus infinity for the image placeholder and
    /// for ids that the tokenizer does not have (padding of the vocabulary).
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        bias_act(&self.model.language.logits(hidden)?, Some(&self.forbidden), Activation::Identity)
    }

    /// Lays out an attempt: tokens, masks, cuts. No network is run.
    ///
    /// # Errors
    /// An unreadable image; a sample that the model has no positions for.
    pub fn prepare<'a>(&self, request: Request<'a>) -> Result<Prepared<'a>> {
        let layouts = vision::layouts(self.model, request.sample)?;
        prepare::prepare(self.model, &self.config, self.seed, request, &layouts)
    }

    /// Most key-value slots at a time, as they are now.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Generates a wave. `images` remembers features between the waves of a block. Where memory runs out, the wave begins again with
    /// half of the slots, and later ones keep to them, as long as the largest attempt has room.
    ///
    /// The result is a function of the wave and of the slots as a whole. On a CPU with AVX2 a candidate is a function of its own
    /// attempt alone, to the bit; elsewhere another grouping changes logits in the last bits.
    ///
    /// # Errors
    /// Unreadable images, failing tensor operations, logits that are not numbers, no room for a single attempt, a requested stop.
    pub fn generate(
        &mut self,
        wave: &[Prepared],
        images: &mut Images,
        progress: &dyn Progress,
    ) -> Result<Vec<Candidate>> {
        let features = images.of_wave(self, wave, progress)?;
        let least = wave.iter().map(Prepared::cost).max().unwrap_or(0);
        let all = wave.iter().map(Prepared::cost).sum::<usize>();
        let parts = loop {
            let slots = all.min(self.slots).max(least);
            match decode::run(self, wave, slots, &features, progress) {
                Err(error) if error.is_out_of_memory() && slots > least => {
                    self.slots = (slots / 2).max(least);
                    let slots = self.slots;
                    progress.warn(&format!("{error}; going on with {slots} tokens at a time"));
                }
                parts => break parts?,
            }
        };
        wave.iter().zip(parts).map(|(prepared, parts)| candidate(prepared, parts)).collect()
    }
}

/// Joins the parts of an attempt with the reference's own bytes between them.
fn candidate(prepared: &Prepared, mut parts: Vec<Part>) -> Result<Candidate> {
    let request = &prepared.request;
    let reference = &request.sample.reference;
    let completions: Vec<&str> = parts.iter().map(|part| part.completion.as_str()).collect();
    let text = if request.guided {
        let fragments: Vec<Fragment> =
            prepared.forks.iter().filter_map(|fork| fork.fragment.clone()).collect();
        let text = rebuild(reference, &fragments, &completions)?;
        for (part, fragment) in parts.iter_mut().zip(&fragments) {
            part.separator = reference[fragment.separator.clone()].to_owned();
        }
        text
    } else {
        completions.concat()
    };
    Ok(Candidate {
        sample: request.sample.index,
        attempt: request.attempt,
        guided: request.guided,
        text,
        parts,
        image_tokens: prepared.layouts.iter().map(|layout| layout.tokens).sum::<usize>() as u32,
        kept: prepared.kept.clone(),
    })
}
