//! Training of the demo's models on the CPU: `bdhs demo train`.
//!
//! The networks are those that run every checkpoint, on tracked weights; the ops' own backward passes make them
//! differentiable. Everything is a function of the seed: scenes, texts, first weights, order of the sums. The same
//! machine gives the same files, on any number of threads.

mod encoder;
mod llava;
mod parameters;

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use super::folder::{self, ENCODERS, LLAVA, encoder_names};
use super::questions::questions;
use super::scene::{Dice, Scene, Split};
use super::words::describe;
use super::{DESCRIBE, SHORT};
use crate::engine::{Progress, checkpoint};
use crate::{Error, Result};

/// How long to train.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Seed of scenes, texts and first weights.
    pub seed: u64,
    /// Steps of the vision tower on patch labels.
    pub vision_steps: usize,
    /// Steps of the whole LLaVA on texts.
    pub llava_steps: usize,
    /// Steps of each encoder.
    pub encoder_steps: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { seed: 1, vision_steps: 500, llava_steps: 1400, encoder_steps: 300 }
    }
}

/// Texts that vocabularies are made from.
const CORPUS: usize = 20_000;

/// Trains all five models, or `only` one, into `out/<name>` and writes `out/train.jsonl`: one line for each 20 steps, with model, stage,
/// step, loss, learning rate and seconds.
///
/// # Errors
/// An unknown name, a folder that cannot be written, a loss that is not a number, a requested stop.
pub fn train(
    settings: &Settings,
    only: Option<&str>,
    out: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let wanted = |name: &str| only.is_none_or(|only| only == name);
    if let Some(only) = only
        && only != LLAVA
        && !encoder_names().contains(&only)
    {
        let expected = format!("{LLAVA} or one of {}", encoder_names().join(", "));
        return Err(Error::argument("demo::train", "model", only, expected));
    }
    folder::create(out)?;
    let path = out.join("train.jsonl");
    let file = std::fs::File::create(&path).map_err(Error::io(&path))?;
    let mut log = Log { file, begun: Instant::now(), progress };
    let mut texts: Vec<String> = vocabulary_corpus(settings.seed).take(CORPUS).collect();
    // The words of prompts, often enough to be tokens of their own.
    for prompt in DESCRIBE.iter().chain([&SHORT]) {
        texts.extend((0..CORPUS / 20).map(|_| format!("USER: \n{prompt} ASSISTANT:")));
    }
    for (i, spec) in ENCODERS.iter().enumerate().filter(|(_, spec)| wanted(spec.name)) {
        let dir = out.join(spec.name);
        folder::write_encoder(&dir, spec, &texts)?;
        encoder::train(spec, &dir, settings, i as u64, &mut log)?;
    }
    if wanted(LLAVA) {
        let dir = out.join(LLAVA);
        folder::write_llava(&dir, &texts)?;
        llava::train(&dir, settings, &mut log)?;
    }
    Ok(())
}

/// Where training reports to.
struct Log<'a> {
    file: std::fs::File,
    begun: Instant,
    progress: &'a dyn Progress,
}

impl Log<'_> {
    fn begin(&self, model: &str, stage: &str, steps: usize) {
        self.progress.begin(&format!("{model}: {stage}"), Some(steps as u64));
    }

    /// One step done.
    fn step(&mut self, model: &str, stage: &str, step: usize, loss: f32, rate: f64) -> Result<()> {
        checkpoint(self.progress)?;
        self.progress.advance(1);
        if !loss.is_finite() {
            let got = format!("{loss} at step {step} of {model}, {stage}");
            return Err(Error::argument("demo::train", "loss", got, "a finite number"));
        }
        if step.is_multiple_of(20) {
            let line = serde_json::json!({
                "model": model, "stage": stage, "step": step, "loss": loss, "rate": rate,
                "seconds": (self.begun.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            });
            writeln!(self.file, "{line}").map_err(Error::io("train.jsonl"))?;
        }
        Ok(())
    }
}

/// Texts for training a tokenizer: descriptions, questions and answers of 1000 training scenes. They hold every word that
/// [`describe`] and [`questions`] use.
pub fn vocabulary_corpus(seed: u64) -> impl Iterator<Item = String> {
    const SCENES: u32 = 1000;
    const TEXTS: u32 = 0xD3;
    (0..SCENES).flat_map(move |index| {
        let scene = Scene::sample(seed, Split::Train, index);
        let mut dice = Dice::new(seed, Split::Train, index).fork(TEXTS);
        let mut texts = vec![describe(&scene, &mut dice)];
        for question in questions(&scene, &mut dice) {
            texts.extend([question.text, question.answer, question.long]);
        }
        texts
    })
}
