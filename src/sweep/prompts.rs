//! What another engine needs to make a run's candidates: the rules of the method stay here.
//!
//! One JSON line an attempt. `prefixes` are what the model continues, one a sentence (one in all where unguided), with the
//! checkpoint's placeholder for each image. `kept` are the image tokens that the model may see, counted over all images, and
//! `positions` where they lie in the sequence; all others are left out. The answers come back as `completions`.

use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device};
use serde::Serialize;
use serde_json::Value;

use super::survey;
use crate::config::Config;
use crate::data::Dataset;
use crate::engine::{Engine, Progress, Request, checkpoint};
use crate::files::AtomicFile;
use crate::models::{Model, Place};
use crate::sampling::attempts::attempts;
use crate::{Error, Result};

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    sample: u32,
    attempt: u32,
    guided: bool,
    /// As text: many JSON readers turn large integers into floats.
    seed: String,
    images: Vec<String>,
    prefixes: Vec<String>,
    max_tokens: u32,
    image_tokens: usize,
    kept: &'a [u32],
    positions: Vec<Value>,
}

/// Writes every attempt of a run; how many there are. No weights are read.
///
/// # Errors
/// As [`run`](super::run) about configuration, data and model; a file that cannot be written.
pub fn prompts(config: &Config, out: &Path, progress: &dyn Progress) -> Result<u64> {
    config.sampling.validate()?;
    let options = config.data.options(config.sampling.rho < 1.0);
    let mut dataset = Dataset::list(&config.data.file.0, &options)?;
    survey::survey(&mut dataset, config, true, progress)?;
    match config.data.skip_bad {
        true => dataset.check_share(config.data.max_skipped)?,
        false => dataset.check(survey::ADVICE)?,
    }
    let source = config.model.source()?;
    let weights = source.weights(&Device::Cpu, DType::F32)?.outline();
    let model = Model::with_weights(source.base(), &weights)?;
    let engine = Engine::new(&model, config.sampling.clone(), config.run.seed)?;
    let mut file = AtomicFile::create(out)?;
    let mut count = 0;
    /// Samples in memory at a time.
    const CHUNK: usize = 64;
    for first in (0..dataset.len()).step_by(CHUNK) {
        checkpoint(progress)?;
        for sample in &dataset.read(first..dataset.len().min(first + CHUNK))? {
            for attempt in attempts(&config.sampling) {
                let (number, guided) = (attempt.number, attempt.guided);
                let request = Request { sample, attempt: number, guided };
                let prepared = engine.prepare(request)?;
                let written = engine.written(request)?;
                let images = sample.images.iter();
                let line = Line {
                    id: &sample.id,
                    sample: sample.index,
                    attempt: number,
                    guided,
                    seed: config.run.seed.to_string(),
                    images: images.map(|image| image.name().display().to_string()).collect(),
                    prefixes: written.prefixes.into_iter().map(|(text, _)| text).collect(),
                    max_tokens: match guided {
                        true => config.sampling.max_sentence_tokens,
                        false => config.sampling.max_response_tokens,
                    },
                    image_tokens: prepared.image_tokens(),
                    kept: prepared.kept(),
                    positions: prepared.kept_positions().into_iter().map(position).collect(),
                };
                serde_json::to_writer(&mut file, &line)
                    .map_err(std::io::Error::from)
                    .and_then(|()| file.write_all(b"\n"))
                    .map_err(Error::io(out))?;
                count += 1;
            }
        }
    }
    file.commit()?;
    Ok(count)
}

/// A position: a number, or one an axis (time, height, width) where they differ.
fn position(place: Place) -> Value {
    match place.0 {
        [one, two, three] if one == two && two == three => one.into(),
        axes => axes.to_vec().into(),
    }
}
