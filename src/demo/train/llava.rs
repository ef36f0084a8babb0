//! The demo LLaVA: its vision tower on patch labels first, then all of it on texts.
//!
//! A step packs the scenes of a batch: each scene's image once, and behind it every turn as a block of its own that sees
//! the image and itself. Masked image tokens are left out, as in sampling. Only answers count in the loss.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::loss::cross_entropy;
use rayon::prelude::*;

use super::parameters::{Init, Parameters, Spec, SpecList, rate};
use super::{Log, Settings};
use crate::demo::draw::draw;
use crate::demo::folder::{LLAVA, LLAVA_VOCAB, size};
use crate::demo::questions::{Kind, questions};
use crate::demo::scene::{Cell, Colour, Dice, Letter, Scene, Shape, Size, Split};
use crate::demo::words::describe;
use crate::demo::{DESCRIBE, SHORT, user_turn};
use crate::models::families::llava::Vision;
use crate::models::{Model, Piece};
use crate::ops::attend::{AttendPlan, Block, Segment};
use crate::{Error, Result};

const VISION_BATCH: usize = 48;
const VISION_PEAK: f64 = 2e-3;
const BATCH: usize = 24;
const PEAK: f64 = 2.5e-3;
/// Questions a scene, beside its description.
const QUESTIONS: usize = 5;
/// Image tokens.
const TOKENS: usize = (size::IMAGE / size::PATCH) * (size::IMAGE / size::PATCH);
/// The head that reads labels off patches; not saved.
const PROBE: &str = "probe";

pub(super) fn train(dir: &Path, settings: &Settings, log: &mut Log) -> Result<()> {
    let parameters = Parameters::new(&parameters(), settings.seed)?;
    let model = Model::with_weights(dir, &parameters.weights(LLAVA))?;
    train_vision(&model, &parameters, settings, log)?;
    let mut optimiser = parameters.optimiser(|name| !name.starts_with(PROBE))?;
    let steps = settings.llava_steps;
    log.begin(LLAVA, "texts", steps);
    for step in 0..steps {
        let first = (settings.vision_steps * VISION_BATCH + step * BATCH) as u32;
        let loss = text_loss(&model, settings.seed, first)?;
        let rate = rate(PEAK, step, steps);
        let loss = optimiser.step(&loss, rate)?;
        log.step(LLAVA, "texts", step, loss, rate)?;
    }
    parameters.save(&dir.join("model.safetensors"), |name| !name.starts_with(PROBE))
}

/// The part of the demo's model that sees.
fn vision(model: &Model) -> Result<&Vision> {
    let other = || Error::argument(LLAVA, "model", "another family", "a LLaVA");
    model.llava().ok_or_else(other)
}

/// What a patch of a scene shows: shape or letter, colour, size; 0 is nothing in each.
fn labels(scene: &Scene) -> [Vec<u32>; 3] {
    let side = size::IMAGE / size::PATCH;
    let mut all = [vec![0; TOKENS], vec![0; TOKENS], vec![0; TOKENS]];
    let mut put = |cell: Cell, labels: [u32; 3]| {
        for patch in 0..TOKENS {
            let (row, column) = (patch / side * 3 / side, patch % side * 3 / side);
            if (row, column) == (cell.row, cell.column) {
                for (list, label) in all.iter_mut().zip(labels) {
                    list[patch] = label;
                }
            }
        }
    };
    fn place<T: PartialEq>(all: &[T], one: &T) -> u32 {
        1 + all.iter().position(|x| x == one).unwrap_or(0) as u32
    }
    for object in &scene.objects {
        let shape = place(Shape::ALL, &object.shape);
        let colour = place(Colour::ALL, &object.colour);
        put(object.cell, [shape, colour, place(Size::ALL, &object.size)]);
    }
    if let Some(letter) = &scene.letter {
        let shapes = Shape::ALL.len() as u32;
        put(letter.cell, [shapes + place(&Letter::CHARACTERS, &letter.character), 0, 0]);
    }
    all
}

fn probe_widths() -> [usize; 3] {
    [1 + Shape::ALL.len() + Letter::CHARACTERS.len(), 1 + Colour::ALL.len(), 1 + Size::ALL.len()]
}

/// Grounds the tower: without this, texts alone take long to make it look.
fn train_vision(
    model: &Model,
    parameters: &Parameters,
    settings: &Settings,
    log: &mut Log,
) -> Result<()> {
    let steps = settings.vision_steps;
    let mut optimiser =
        parameters.optimiser(|name| name.contains("vision_tower") || name.starts_with(PROBE))?;
    log.begin(LLAVA, "patches", steps);
    let head = parameters.get(&format!("{PROBE}.weight"))?;
    for step in 0..steps {
        let first = (step * VISION_BATCH) as u32;
        let scenes = scenes(settings.seed, first, VISION_BATCH);
        let states = vision(model)?.tower(&tiles(model, settings.seed, &scenes)?)?;
        let states = states.reshape((VISION_BATCH * TOKENS, size::VISION))?;
        let logits = states.matmul(&head.t()?)?;
        let labels: Vec<[Vec<u32>; 3]> = scenes.iter().map(|(_, scene)| labels(scene)).collect();
        let mut loss = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        let mut at = 0;
        for (kind, width) in probe_widths().into_iter().enumerate() {
            let wanted: Vec<u32> =
                labels.iter().flat_map(|labels| labels[kind].iter().copied()).collect();
            let part = logits.narrow(1, at, width)?.contiguous()?;
            loss = (loss + cross_entropy(&part, &Tensor::new(wanted, &Device::Cpu)?)?)?;
            at += width;
        }
        let rate = rate(VISION_PEAK, step, steps);
        let loss = optimiser.step(&loss, rate)?;
        log.step(LLAVA, "patches", step, loss, rate)?;
    }
    Ok(())
}

fn scenes(seed: u64, first: u32, count: usize) -> Vec<(u32, Scene)> {
    let index = |i: usize| first + i as u32;
    (0..count)
        .into_par_iter()
        .map(|i| (index(i), Scene::sample(seed, Split::Train, index(i))))
        .collect()
}

/// The scenes' pictures, `[n, 3, side, side]`, through the checkpoint's own processor.
fn tiles(model: &Model, seed: u64, scenes: &[(u32, Scene)]) -> Result<Tensor> {
    let tiles: Vec<Tensor> = scenes
        .par_iter()
        .map(|(index, scene)| {
            let picture = draw(scene, seed.wrapping_add(u64::from(*index)));
            Ok(model.preprocess(&picture)?.tiles)
        })
        .collect::<Result<_>>()?;
    Ok(Tensor::cat(&tiles, 0)?)
}

/// Mean loss a token over the answers of a batch of scenes.
fn text_loss(model: &Model, seed: u64, first: u32) -> Result<Tensor> {
    let scenes = scenes(seed, first, BATCH);
    let vision = vision(model)?;
    let images = vision.project(&vision.tower(&tiles(model, seed, &scenes)?)?)?;
    let turns: Vec<SceneTurns> = scenes
        .par_iter()
        .map(|(index, scene)| SceneTurns::new(model, seed, *index, scene))
        .collect::<Result<_>>()?;
    let mut packed = Packed::default();
    for (i, turns) in turns.iter().enumerate() {
        packed.add(i, turns);
    }
    let text = model.language.embed(&packed.ids)?;
    let index = |rows: Vec<u32>| Tensor::new(rows, &Device::Cpu);
    // Image rows come first in the source that rows are taken from.
    let source = Tensor::cat(&[&images.reshape((BATCH * TOKENS, size::TEXT))?, &text], 0)?;
    let x = source.index_select(&index(packed.order)?, 0)?;
    let plan = AttendPlan { blocks: packed.blocks };
    let hidden = model.language.forward_packed(&x, &packed.positions, &plan)?;
    let logits = model.language.logits(&hidden.index_select(&index(packed.predicts)?, 0)?)?;
    Ok(cross_entropy(&logits, &index(packed.targets)?)?)
}

/// A scene's turns as tokens.
struct SceneTurns {
    /// Tokens before the image.
    front: Vec<u32>,
    /// Image tokens that are visible.
    kept: Vec<usize>,
    /// Tokens behind the image, and how many of them are the question.
    tails: Vec<(Vec<u32>, usize)>,
}

impl SceneTurns {
    fn new(model: &Model, seed: u64, index: u32, scene: &Scene) -> Result<Self> {
        let mut dice = Dice::new(seed, Split::Train, index).fork(0x200);
        let mut turns = vec![((*dice.pick(&DESCRIBE)).to_owned(), describe(scene, &mut dice))];
        let mut asked = questions(scene, &mut dice);
        // Letters are the hardest to read: where there is one, it is asked for.
        asked.sort_by_key(|question| question.kind != Kind::Letter);
        for question in asked.into_iter().take(QUESTIONS) {
            turns.push(match dice.chance(0.5) {
                true => (format!("{}\n{SHORT}", question.text), question.answer),
                false => (question.text, question.long),
            });
        }
        let mut this = Self { front: Vec::new(), kept: kept(&mut dice), tails: Vec::new() };
        for (question, answer) in turns {
            this.add(model, &question, &answer)?;
        }
        Ok(this)
    }

    fn add(&mut self, model: &Model, question: &str, answer: &str) -> Result<()> {
        let prompt = model.prompt(&[user_turn(question)])?;
        let whole = model.encode(&format!("{}</s>", prompt.with_answer(answer)))?;
        let open = model.encode(&prompt.text)?;
        match (whole.as_slice(), open.last()) {
            (
                [Piece::Tokens(front), Piece::Image(0), Piece::Tokens(tail)],
                Some(Piece::Tokens(question)),
            ) => {
                self.front.clone_from(front);
                self.tails.push((tail.clone(), question.len()));
                Ok(())
            }
            _ => Err(Error::argument("demo::train", "turn", question, "text, one image, text")),
        }
    }
}

/// In 12 % of scenes no image token is visible, in 18 % a random share of them, else all.
fn kept(dice: &mut Dice) -> Vec<usize> {
    let fate = dice.unit();
    let share = if fate < 0.12 {
        0.0
    } else if fate < 0.30 {
        dice.unit()
    } else {
        1.0
    };
    (0..TOKENS).filter(|_| dice.unit() < share).collect()
}

/// The rows of a batch.
#[derive(Default)]
struct Packed {
    /// Where each row comes from: image rows of all scenes, then text rows.
    order: Vec<u32>,
    ids: Vec<u32>,
    positions: Vec<u32>,
    blocks: Vec<Block>,
    /// Rows whose next token is one of an answer, and that token.
    predicts: Vec<u32>,
    targets: Vec<u32>,
}

impl Packed {
    fn token(&mut self, id: u32, position: usize) {
        self.order.push((BATCH * TOKENS + self.ids.len()) as u32);
        self.ids.push(id);
        self.positions.push(position as u32);
    }

    fn add(&mut self, scene: usize, turns: &SceneTurns) {
        let start = self.order.len();
        for (position, &id) in turns.front.iter().enumerate() {
            self.token(id, position);
        }
        for &token in &turns.kept {
            self.order.push((scene * TOKENS + token) as u32);
            self.positions.push((turns.front.len() + token) as u32);
        }
        let prefix = Segment { start, len: self.order.len() - start };
        self.blocks.push(Block { rows: start..self.order.len(), keys: vec![prefix], causal: true });
        for (tail, question) in &turns.tails {
            let start = self.order.len();
            for (i, &id) in tail.iter().enumerate() {
                self.token(id, turns.front.len() + TOKENS + i);
                if i >= *question {
                    self.predicts.push((start + i - 1) as u32);
                    self.targets.push(id);
                }
            }
            let own = Segment { start, len: tail.len() };
            let rows = start..self.order.len();
            self.blocks.push(Block { rows, keys: vec![prefix, own], causal: true });
        }
    }
}

fn parameters() -> Vec<Spec> {
    use size::*;
    let mut list = SpecList::default();
    let tower = "model.vision_tower.vision_model";
    let embeddings = format!("{tower}.embeddings");
    list.put(&format!("{embeddings}.class_embedding"), &[VISION], Init::Normal(0.02));
    let patch = [VISION, 3, PATCH, PATCH];
    list.put(&format!("{embeddings}.patch_embedding.weight"), &patch, Init::Normal(0.05));
    let positions = [TOKENS + 1, VISION];
    list.put(&format!("{embeddings}.position_embedding.weight"), &positions, Init::Normal(0.1));
    // The tensor really is spelled so.
    list.norm(&format!("{tower}.pre_layrnorm"), VISION, true);
    for layer in 0..VISION_LAYERS {
        let at = format!("{tower}.encoder.layers.{layer}");
        list.norm(&format!("{at}.layer_norm1"), VISION, true);
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            list.dense(&format!("{at}.self_attn.{name}"), VISION, VISION, true);
        }
        list.norm(&format!("{at}.layer_norm2"), VISION, true);
        list.dense(&format!("{at}.mlp.fc1"), VISION, VISION_INNER, true);
        list.dense(&format!("{at}.mlp.fc2"), VISION_INNER, VISION, true);
    }
    // transformers expects it, though the features are taken before it.
    list.norm(&format!("{tower}.post_layernorm"), VISION, true);
    list.dense("model.multi_modal_projector.linear_1", VISION, TEXT, true);
    list.dense("model.multi_modal_projector.linear_2", TEXT, TEXT, true);
    let text = "model.language_model";
    list.put(&format!("{text}.embed_tokens.weight"), &[LLAVA_VOCAB, TEXT], Init::Normal(0.04));
    for layer in 0..TEXT_LAYERS {
        let at = format!("{text}.layers.{layer}");
        list.norm(&format!("{at}.input_layernorm"), TEXT, false);
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            list.dense(&format!("{at}.self_attn.{name}"), TEXT, TEXT, false);
        }
        list.norm(&format!("{at}.post_attention_layernorm"), TEXT, false);
        list.dense(&format!("{at}.mlp.gate_proj"), TEXT, TEXT_INNER, false);
        list.dense(&format!("{at}.mlp.up_proj"), TEXT, TEXT_INNER, false);
        list.dense(&format!("{at}.mlp.down_proj"), TEXT_INNER, TEXT, false);
    }
    list.norm(&format!("{text}.norm"), TEXT, false);
    let width: usize = probe_widths().iter().sum();
    list.put(&format!("{PROBE}.weight"), &[width, VISION], Init::Normal(0.05));
    list.specs
}
