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

use std::{collections::VecDeque, sync::Arc};

use candle_core::Tensor;

pub use answer::{Answer, Answerer, Answering, Question, answer};
use decode::{Decoder, Flow, Ticket};
pub(crate) use prepare::{Entry, entries, places};
pub use prepare::{Prepared, Request, Written, is_too_long};
pub use text::Detokenizer;
pub use vision::Images;
pub use waves::waves;

pub use crate::progress::{Progress, checkpoint};
use crate::{
    Result,
    models::{KvCache, Model, memory},
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
    /// Kept from one wave to the next, with the decode steps that were captured over it.
    arena: Option<Arena>,
    work: Work,
}

/// Keys and values of an engine, for another engine of the same model: what is captured over them
/// stays good.
pub struct Arena(KvCache);

/// What an engine has computed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows of prefill passes: text tokens and image tokens.
    pub prefilled: u64,
    /// Decode steps of 1, of 2 to 7, of 8 to 31, and of 32 or more rows.
    pub steps: [u64; 4],
    /// Rows of those steps.
    pub decoded: [u64; 4],
    /// Decode steps that were one launch of a captured CUDA graph.
    pub replays: u64,
}

impl Work {
    /// Counts a decode step of so many rows.
    fn step(&mut self, rows: usize) {
        let class = [2, 8, 32].iter().filter(|&&least| rows >= least).count();
        self.steps[class] += 1;
        self.decoded[class] += rows as u64;
    }
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
        Ok(Self {
            model,
            config,
            seed,
            slots: usize::MAX,
            forbidden,
            arena: None,
            work: Work::default(),
        })
    }

    /// Holds at most `slots` key-value slots at a time, or as many as one attempt needs: the attempts of a wave begin as earlier ones
    /// end. Without this, all of a wave begin together.
    pub fn with_slots(self, slots: usize) -> Self {
        Self { slots, ..self }
    }

    /// Goes on in the arena of an earlier engine of the same model.
    pub fn with_arena(self, arena: Option<Arena>) -> Self {
        Self { arena, ..self }
    }

    /// The arena, for a later engine of the same model; none if nothing was generated.
    pub fn into_arena(self) -> Option<Arena> {
        self.arena
    }

    /// What it has computed so far.
    pub fn work(&self) -> Work {
        self.work
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

    /// An attempt as text: what another engine has to complete.
    ///
    /// # Errors
    /// An unusable prompt.
    pub fn written(&self, request: Request) -> Result<Written> {
        prepare::written(self.model, &self.config, self.seed, request)
    }

    /// Most key-value slots at a time, as they are now.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Generates a wave. `images` remembers features between the waves of a block. Where memory
    /// runs out, what has not ended begins again with half of the slots, and later waves keep to
    /// them, as long as the largest attempt has room.
    ///
    /// The result is a function of the wave and of the slots as a whole. On a CPU with AVX2 a
    /// candidate is a function of its own attempt alone, to the bit; elsewhere another grouping
    /// changes logits in the last bits.
    ///
    /// # Errors
    /// Unreadable images, failing tensor operations, logits that are not numbers, no room for a
    /// single attempt, a requested stop.
    pub fn generate(
        &mut self,
        wave: &[Prepared],
        images: &mut Images,
        progress: &dyn Progress,
    ) -> Result<Vec<Candidate>> {
        let all = wave.iter().map(Prepared::cost).sum::<usize>();
        let least = wave.iter().map(Prepared::cost).max().unwrap_or(0);
        let mut flow = Wave { next: 0, wave, parts: wave.iter().map(|_| None).collect() };
        self.run(&mut flow, (all, least), images, progress)?;
        let parts = flow.parts.into_iter().flatten();
        wave.iter().zip(parts).map(|(prepared, parts)| candidate(prepared, parts)).collect()
    }

    /// Computes a flow that needs at most `all` slots at a time; none of its attempts needs more
    /// than `least`, but for those that need more than there is.
    fn run<'a>(
        &mut self,
        flow: &mut dyn Flow<'a>,
        (all, mut least): (usize, usize),
        images: &mut Images,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut waiting = VecDeque::new();
        loop {
            let slots = all.min(self.slots).max(least);
            let outcome = self.arena(slots).and_then(|mut arena| {
                let mut work = self.work;
                let before = arena.0.replays();
                let outcome = decode::run(
                    &mut Decoder {
                        engine: &*self,
                        arena: &mut arena.0,
                        images,
                        progress,
                        work: &mut work,
                    },
                    flow,
                    &mut waiting,
                    slots,
                );
                work.replays += arena.0.replays() - before;
                self.work = work;
                // After an error its memory is worth more than what is captured over it.
                self.arena = outcome.is_ok().then_some(arena);
                outcome
            });
            match outcome {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    least = waiting.front().map_or(least, |ticket| ticket.prepared.cost());
                }
                Err(error) if error.is_out_of_memory() && slots > least => {
                    memory::trim(self.model.language.device())?;
                    self.slots = (slots / 2).max(least);
                    let slots = self.slots;
                    progress.warn(&format!("{error}; going on with {slots} tokens at a time"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// An arena of at least so many slots: the one that is there, or a new one.
    fn arena(&mut self, slots: usize) -> Result<Arena> {
        if let Some(arena) = self.arena.take()
            && arena.0.slots() >= slots
        {
            return Ok(arena);
        }
        // One that is too small has gone by now. A larger one than needed will do for later waves.
        let more = slots.checked_next_power_of_two().unwrap_or(slots).min(self.slots).max(slots);
        let language = &self.model.language;
        match language.new_cache(more) {
            Err(error) if error.is_out_of_memory() && more > slots => language.new_cache(slots),
            made => made,
        }
        .map(Arena)
    }
}

/// The attempts of a wave, and the parts of those that have ended.
struct Wave<'w, 'a> {
    next: usize,
    wave: &'w [Prepared<'a>],
    parts: Vec<Option<Vec<Part>>>,
}

impl<'a> Flow<'a> for Wave<'_, 'a> {
    fn next(&mut self, _: &Engine) -> Result<Option<Ticket<'a>>> {
        let id = self.next;
        self.next += 1;
        let prepared = self.wave.get(id).cloned().map(Arc::new);
        Ok(prepared.map(|prepared| Ticket { id, prepared }))
    }

    fn ended(&mut self, ticket: Ticket<'a>, parts: Vec<Part>) -> Result<()> {
        self.parts[ticket.id] = Some(parts);
        Ok(())
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
