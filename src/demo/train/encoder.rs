//! A sentence encoder that measures how much of a description was changed.
//!
//! Two descriptions of a scene and of an edited one are embedded, and their cosine is regressed on 1 - slope * edits.
//! Contrastive training would spread cosines over the whole range; this gives the narrow band below 1 in which real
//! sentence encoders place a response and its altered copy, and thresholds of .90 to .99 mean something.

use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::parameters::{Init, Parameters, Spec, SpecList, rate};
use super::{Log, Settings};
use crate::Result;
use crate::demo::folder::EncoderSpec;
use crate::demo::questions::questions;
use crate::demo::scene::{Dice, Scene, Split};
use crate::demo::words::{describe, edit, paraphrases};
use crate::models::encoder::load_network;
use crate::models::tokenizer::Tokenizer;
use crate::ops::pool::{Mode, Options, Rows, pool};

const PAIRS: usize = 48;
const PEAK: f64 = 2e-3;
/// Most attributes that a training pair differs in.
const MOST_EDITS: usize = 12;

pub(super) fn train(
    spec: &EncoderSpec,
    dir: &Path,
    settings: &Settings,
    number: u64,
    log: &mut Log,
) -> Result<()> {
    let tokenizer = Tokenizer::load(dir)?;
    let specs = parameters(spec, tokenizer.vocab_size());
    let parameters = Parameters::new(&specs, settings.seed ^ ((number + 1) << 32))?;
    let mut optimiser = parameters.optimiser(|_| true)?;
    let steps = settings.encoder_steps;
    log.begin(spec.name, "edits", steps);
    for step in 0..steps {
        let pairs: Vec<(String, String, f32)> = (0..PAIRS)
            .into_par_iter()
            .map(|i| pair(spec, settings.seed, (step * PAIRS + i) as u32, number as u32))
            .collect();
        // Rebuilt at each step: the network joins weights when it is made.
        let network = load_network(dir, &parameters.weights(spec.name))?;
        let (mut ids, mut cu) = (Vec::new(), vec![0u32]);
        for text in pairs.iter().map(|p| &p.0).chain(pairs.iter().map(|p| &p.1)) {
            ids.extend(tokenizer.encode_truncated(text, spec.max_tokens)?.ids);
            cu.push(ids.len() as u32);
        }
        let states = network.forward(&ids, &cu)?;
        let options = Options { normalize: true, ..Options::new(Mode::Mean) };
        let vectors = pool(&states, Rows::Packed { cu_seqlens: &cu }, &options, None)?;
        let [a, b] = [0, PAIRS].map(|start| vectors.narrow(0, start, PAIRS));
        let cosines = (a? * b?)?.sum(1)?;
        let wanted: Vec<f32> = pairs.iter().map(|p| p.2).collect();
        let error = (cosines - Tensor::new(wanted, &Device::Cpu)?)?;
        let loss = (error.sqr()?.mean_all()? * 100.0)?;
        let rate = rate(PEAK, step, steps);
        let loss = optimiser.step(&loss, rate)?;
        log.step(spec.name, "edits", step, loss, rate)?;
    }
    parameters.save(&dir.join("model.safetensors"), |_| true)
}

/// Two texts and the cosine they should have. A paraphrase counts as half an edit.
fn pair(spec: &EncoderSpec, seed: u64, index: u32, number: u32) -> (String, String, f32) {
    let mut dice = Dice::new(seed, Split::Train, index).fork(0x100 + number);
    let scene = Scene::sample(seed, Split::Train, index);
    // Answers to questions are short: one edit is all that fits, and it is most of the text.
    if dice.chance(0.15) {
        let all = questions(&scene, &mut dice);
        let (one, other) = (dice.pick(&all).long.clone(), dice.pick(&all).long.clone());
        let same = one == other;
        return (one, other, if same { 1.0 } else { (1.0 - 8.0 * spec.slope) as f32 });
    }
    let (first, reworded) = paraphrases(&scene, &mut dice);
    match dice.below(8) {
        0 => return (first.clone(), first, 1.0),
        1 => return (first, reworded, (1.0 - 0.5 * spec.slope) as f32),
        _ => {}
    }
    let (edited, edits) = edit(&scene, 1 + dice.below(MOST_EDITS), &mut dice);
    let again = dice.fork(7);
    let (mut left, mut right) = (again.clone(), again);
    let second = describe(&edited, &mut right);
    // The same draws for both give the same templates, so that mostly the edits differ.
    let first = if dice.chance(0.7) { describe(&scene, &mut left) } else { first };
    (first, second, (1.0 - spec.slope * edits as f64) as f32)
}

fn parameters(spec: &EncoderSpec, vocab: usize) -> Vec<Spec> {
    let (h, wide) = (EncoderSpec::HIDDEN, EncoderSpec::INNER);
    let mut list = SpecList::default();
    list.put("embeddings.word_embeddings.weight", &[vocab, h], Init::Normal(0.05));
    list.put("embeddings.position_embeddings.weight", &[spec.positions(), h], Init::Normal(0.02));
    if spec.architecture == "mpnet" {
        // The attention op has no gradient for it.
        let shape = [EncoderSpec::BUCKETS, EncoderSpec::HEADS];
        list.put("encoder.relative_attention_bias.weight", &shape, Init::Frozen(0.5));
    } else {
        let types = if spec.architecture == "bert" { 2 } else { 1 };
        list.put("embeddings.token_type_embeddings.weight", &[types, h], Init::Normal(0.02));
    }
    list.norm("embeddings.LayerNorm", h, true);
    let (attention, norm) = match spec.architecture {
        "mpnet" => (["attn.q", "attn.k", "attn.v", "attn.o"], "LayerNorm"),
        _ => (["self.query", "self.key", "self.value", "output.dense"], "output.LayerNorm"),
    };
    for layer in 0..EncoderSpec::LAYERS {
        let at = format!("encoder.layer.{layer}");
        for name in attention {
            list.dense(&format!("{at}.attention.{name}"), h, h, true);
        }
        list.norm(&format!("{at}.attention.{norm}"), h, true);
        list.dense(&format!("{at}.intermediate.dense"), h, wide, true);
        list.dense(&format!("{at}.output.dense"), wide, h, true);
        list.norm(&format!("{at}.output.LayerNorm"), h, true);
    }
    list.specs
}
