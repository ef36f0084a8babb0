//! Answers to questions about images: greedy decoding of the whole image, many questions a wave.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use super::{Engine, Images, Progress, Request, checkpoint, waves};
use crate::{
    Result,
    data::Sample,
    models::{IMAGE, Model, Role, Turn},
    sampling::{SamplingConfig, Stop},
};

/// Questions that share remembered image features, and that are prepared together.
const BLOCK: usize = 64;
/// Bytes of image features that are remembered within a block.
const IMAGE_CACHE: usize = 1 << 30;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Name, for messages.
    pub id: String,
    /// Image file; none for a question without an image.
    pub image: Option<PathBuf>,
    /// The user's turn; the image comes before it.
    pub text: String,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answering {
    /// Most tokens of an answer.
    pub max_new_tokens: u32,
    /// Key-value slots of one wave.
    pub token_budget: usize,
    /// Probability that an image token is hidden: 0 = the whole image, 1 = no image. The same tokens are hidden from all
    /// questions about an image.
    pub rho: f64,
    /// Key of the draws of hidden tokens.
    pub seed: u64,
}

impl Default for Answering {
    fn default() -> Self {
        Self { max_new_tokens: 128, token_budget: 16_384, rho: 0.0, seed: 0 }
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Which question: its place in the list.
    pub question: usize,
    /// The text, without white space around it.
    pub text: String,
    /// Why it ended.
    pub stop: Stop,
    /// Tokens drawn.
    pub tokens: u32,
}

/// Passes on requests to stop, but not the tokens of a wave: questions are what is counted.
struct Stops<'a>(&'a dyn Progress);

impl Progress for Stops<'_> {
    fn stop_requested(&self) -> bool {
        self.0.stop_requested()
    }
}

/// Answers all questions greedily, in order. `done` gets the answers of each wave as soon as they are there, and may fail.
///
/// # Errors
/// An invalid setting, an unreadable image, a question too long for the model, failing tensor operations, a requested stop, and
/// what `done` returns.
pub fn answer(
    model: &Model,
    questions: &[Question],
    answering: Answering,
    progress: &dyn Progress,
    mut done: impl FnMut(&[Answer]) -> Result<()>,
) -> Result<()> {
    let config = SamplingConfig {
        rho: answering.rho,
        guidance: false,
        attempts: 1,
        temperature: 0.0,
        max_response_tokens: answering.max_new_tokens,
        ..SamplingConfig::default()
    };
    config.validate()?;
    let mut engine = Engine::new(model, config, answering.seed)?.with_slots(answering.token_budget);
    let samples = samples(questions);
    progress.begin("answering", Some(questions.len() as u64));
    for first in (0..samples.len()).step_by(BLOCK) {
        let block = &samples[first..samples.len().min(first + BLOCK)];
        let mut images = Images::new(IMAGE_CACHE);
        let prepared = block
            .iter()
            .map(|sample| engine.prepare(Request { sample, attempt: 1, guided: false }))
            .collect::<Result<Vec<_>>>()?;
        let costs: Vec<usize> = prepared.iter().map(super::Prepared::cost).collect();
        for wave in waves(&costs, answering.token_budget) {
            checkpoint(progress)?;
            let candidates =
                engine.generate(&prepared[wave.clone()], &mut images, &Stops(progress))?;
            let answers: Vec<Answer> = wave
                .clone()
                .zip(candidates)
                .map(|(i, candidate)| {
                    let part = candidate.parts.first();
                    Answer {
                        question: first + i,
                        text: candidate.text,
                        stop: part.map_or(Stop::TokenLimit, |part| part.stop),
                        tokens: part.map_or(0, |part| part.tokens),
                    }
                })
                .collect();
            done(&answers)?;
            progress.advance(wave.len() as u64);
        }
    }
    Ok(())
}

/// Questions as samples without a reference. Questions about one image have one index, since features are remembered by it.
fn samples(questions: &[Question]) -> Vec<Sample> {
    let mut known: HashMap<Option<&Path>, u32> = HashMap::new();
    questions
        .iter()
        .zip(1..)
        .map(|(question, line)| {
            let next = known.len() as u32;
            let index = *known.entry(question.image.as_deref()).or_insert(next);
            let text = match &question.image {
                Some(_) => format!("{IMAGE}\n{}", question.text),
                None => question.text.clone(),
            };
            Sample {
                index,
                id: question.id.clone(),
                images: question.image.iter().cloned().collect(),
                turns: vec![Turn { role: Role::User, text }],
                reference: String::new(),
                line,
            }
        })
        .collect()
}
