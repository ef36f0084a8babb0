//! Rates of encoders and of a LLaVA, on the demo's pictures and texts.

use std::path::Path;

use candle_core::Tensor;

use super::{Ceilings, Clock, Options, Row};
use crate::{
    Result,
    config::{self, named},
    data::{Dataset, DatasetOptions, Sample},
    demo::embedded,
    engine::{Engine, Images, Request},
    models::{KvCache, Model, encoder::SentenceEncoder, language::TextConfig},
    ops::attend::{AttendPlan, Block, Segment},
};

/// References that an encoder embeds.
const TEXTS: usize = 64;
/// Samples that attempts are made at.
const SAMPLES: usize = 16;
/// Sequences of a prefill, and tokens of each: prompt, kept image tokens and reference of an attempt at 7B's usual size.
const SEQUENCES: usize = 8;
const PREFIX: usize = 160;
/// Sentences that are decoded at once.
const BATCHES: [usize; 5] = [1, 4, 16, 64, 256];
/// Sentences that fork from a sequence, and tokens that each has drawn.
const FORKS: usize = 4;
const OWN: usize = 16;
const SEED: u64 = 1;

/// Texts to vectors.
pub(super) fn encoder(
    options: &Options,
    path: &Path,
    clock: &Clock,
    ceilings: &Ceilings,
) -> Result<Row> {
    let folder = named::encoder(path, clock.progress)?;
    let encoder = SentenceEncoder::load(folder, &options.device, options.dtype)?;
    let samples = samples(TEXTS)?;
    let texts: Vec<&str> = samples.iter().map(|sample| sample.reference.as_str()).collect();
    let longest = encoder.max_tokens() as u32;
    let tokens: u32 = encoder.embed(&texts)?.tokens.iter().map(|&n| n.min(longest)).sum();
    let seconds = clock.time(|| encoder.embed(&texts).map(|_| ()))?;
    let operations = 2.0 * encoder.products() as f64 * f64::from(tokens);
    Ok(Row {
        what: format!("{}: texts of {} tokens", encoder.name(), tokens as usize / texts.len()),
        unit: "texts",
        rate: texts.len() as f64 / seconds,
        share: Some(ceilings.share(operations, 0.0, seconds)),
    })
}

/// Prefill, decoding and whole attempts.
pub(super) fn model(options: &Options, clock: &Clock, ceilings: &Ceilings) -> Result<Vec<Row>> {
    let folder = named::model(&options.model, clock.progress)?;
    let model = Model::load(folder, &options.device, options.dtype)?;
    let text = &model.config().text;
    let prefix = PREFIX.min(text.max_positions.saturating_sub(OWN)).max(1);
    let passes = Passes { model: &model, prefix };
    let layers = layer_products(text) as f64;
    let weights = layers * options.dtype.size_in_bytes() as f64;
    let name = options.model.file_name().unwrap_or_default().to_string_lossy();

    let mut cache = model.language.new_cache(SEQUENCES * prefix)?;
    let rows = (SEQUENCES * prefix) as f64;
    let seconds = clock.time(|| passes.prefill(&mut cache))?;
    let prefill = Row {
        what: format!("{name}: prefill, {SEQUENCES} x {prefix}"),
        unit: "tokens",
        rate: rows / seconds,
        share: Some(ceilings.share(2.0 * layers * rows, weights, seconds)),
    };
    let head = (text.vocab * text.hidden) as f64;
    let read = weights + head * options.dtype.size_in_bytes() as f64;
    let mut rows = vec![prefill];
    for forks in BATCHES {
        let step = passes.step(forks);
        let mut cache = model.language.new_cache(step.slots)?;
        let seconds = clock.time(|| passes.decode(&step, &mut cache))?;
        let sentences = forks as f64;
        rows.push(Row {
            what: format!("{name}: decoding, {forks} at once"),
            unit: "tokens",
            rate: sentences / seconds,
            share: Some(ceilings.share(2.0 * (layers + head) * sentences, read, seconds)),
        });
    }
    rows.extend(attempts(&model, &name, clock)?);
    Ok(rows)
}

/// First attempts at the demo's scenes by the engine, from files to texts, pictures included.
fn attempts(model: &Model, name: &str, clock: &Clock) -> Result<[Row; 2]> {
    let samples = samples(SAMPLES)?;
    let mut engine = Engine::new(model, config::demo().sampling, SEED)?;
    let mut drawn = 0;
    let seconds = clock.time(|| {
        let wave = samples
            .iter()
            .map(|sample| engine.prepare(Request { sample, attempt: 1, guided: true }))
            .collect::<Result<Vec<_>>>()?;
        let candidates = engine.generate(&wave, &mut Images::new(1 << 30), clock.progress)?;
        drawn = candidates.iter().flat_map(|c| &c.parts).map(|part| part.tokens).sum();
        Ok(())
    })?;
    let row = |what: &str, unit, count: f64| Row {
        what: format!("{name}: {what}"),
        unit,
        rate: count / seconds,
        share: None,
    };
    Ok([
        row(&format!("attempts, {SAMPLES} at once"), "attempts", SAMPLES as f64),
        row("tokens drawn by them", "tokens", f64::from(drawn)),
    ])
}

/// The first of the demo's scenes.
fn samples(count: usize) -> Result<Vec<Sample>> {
    let data = config::demo().data;
    let options = DatasetOptions {
        image_folder: data.images,
        turn: data.turn,
        limit: Some(count),
        ..DatasetOptions::default()
    };
    let dataset = Dataset::open(&embedded::resolve(Path::new(embedded::SCENES))?, &options)?;
    dataset.read(0..dataset.len())
}

/// Weights of the dense layers that a token is multiplied by, without the output layer.
fn layer_products(text: &TextConfig) -> usize {
    let (wide, narrow) = (text.heads * text.head_dim, text.kv_heads * text.head_dim);
    text.layers * (2 * text.hidden * (wide + narrow) + 3 * text.hidden * text.inner)
}

/// A decode step.
struct Step {
    plan: AttendPlan,
    /// Slots and positions of the tokens that are decoded.
    last: Vec<u32>,
    positions: Vec<u32>,
    /// Of the arena.
    slots: usize,
}

/// Passes of the language model as the engine takes them.
struct Passes<'a> {
    model: &'a Model,
    prefix: usize,
}

impl Passes<'_> {
    /// Sequences packed one after another, each seeing itself.
    fn prefill(&self, cache: &mut KvCache) -> Result<()> {
        let rows = SEQUENCES * self.prefix;
        let positions: Vec<u32> = (0..rows).map(|row| (row % self.prefix) as u32).collect();
        let bounds: Vec<u32> = (0..=SEQUENCES).map(|i| (i * self.prefix) as u32).collect();
        let slots: Vec<u32> = (0..rows as u32).collect();
        let plan = AttendPlan::ragged(&bounds, true);
        self.model.language.forward(&self.embed(rows)?, &positions, cache, &slots, &plan)?;
        Ok(())
    }

    /// So many sentences, [`FORKS`] of them leaving each sequence.
    fn step(&self, forks: usize) -> Step {
        let sequences = forks.div_ceil(FORKS);
        let own = |fork: usize| sequences * self.prefix + fork * OWN;
        let block = |fork: usize| Block {
            rows: fork..fork + 1,
            keys: vec![
                Segment { start: fork / FORKS * self.prefix, len: self.prefix },
                Segment { start: own(fork), len: OWN },
            ],
            causal: false,
        };
        Step {
            plan: AttendPlan { blocks: (0..forks).map(block).collect() },
            last: (0..forks).map(|fork| (own(fork) + OWN - 1) as u32).collect(),
            positions: vec![(self.prefix + OWN - 1) as u32; forks],
            slots: own(forks),
        }
    }

    /// The last token of every sentence, and its logits.
    fn decode(&self, step: &Step, cache: &mut KvCache) -> Result<()> {
        let (language, Step { plan, last, positions, .. }) = (&self.model.language, step);
        let states = language.step(&self.embed(last.len())?, positions, cache, last, plan)?;
        language.logits(&states)?;
        Ok(())
    }

    fn embed(&self, rows: usize) -> Result<Tensor> {
        let vocabulary = self.model.config().text.vocab as u32;
        let ids: Vec<u32> = (0..rows as u32).map(|i| i * 7919 % vocabulary).collect();
        self.model.language.embed(&ids)
    }
}
