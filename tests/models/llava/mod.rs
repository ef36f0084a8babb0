//! LLaVA against transformers, on the tiny checkpoints of scripts/golden_llava.py; and against itself.

mod adapters;
mod conversations;
mod errors;
mod families;
mod images;
mod network;
mod original;
mod peft;
mod precision;
mod prompts;
mod sentencepiece;
mod shapes;
mod step;

use std::path::{Path, PathBuf};

use crate::common::place;
use bdhs::models::families::{Pictures, llava};
use bdhs::models::{Config, Language, Model, Piece, Role, Turn};
use bdhs::ops::attend::{AttendPlan, Block, Segment};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde_json::{Value, json};

const MODELS: [&str; 5] = ["llava15", "llava15_odd", "next_vicuna", "next_mistral", "next_yi"];

const QUESTION: &str = "<image>\nIs the cat near the old house, or naïve?";

const REPLY: &str = "Yes, the cat sits there.";

pub const ANSWER: &str = "There are 2 dogs. It is 3.5 m away…";

fn folder(name: &str) -> PathBuf {
    place::root().join("tests/golden/llava").join(name)
}

fn load(name: &str) -> Model {
    Model::load(folder(name), &place::device(), DType::F32).unwrap()
}

/// What a checkpoint's `config.json` says about pictures.
pub fn pictures(dir: &Path) -> llava::Config {
    match Config::read(dir).unwrap().pictures {
        Pictures::Llava(config) => config,
        other => panic!("not a LLaVA: {other:?}"),
    }
}

pub fn json_file(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

struct Golden {
    results: Value,
    tensors: std::collections::HashMap<String, Tensor>,
}

impl Golden {
    fn of(name: &str) -> Self {
        let dir = folder(name).join("expected");
        Self {
            results: json_file(dir.join("results.json")),
            tensors: candle_core::safetensors::load(dir.join("results.safetensors"), &Device::Cpu)
                .unwrap(),
        }
    }

    fn cases(&self) -> Vec<(String, usize, usize, &Value)> {
        let side = |c: &Value, s: &str| c[s].as_u64().unwrap() as usize;
        let cases = self.results["cases"].as_array().unwrap();
        cases
            .iter()
            .map(|c| {
                (c["name"].as_str().unwrap().to_owned(), side(c, "width"), side(c, "height"), c)
            })
            .collect()
    }
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// The test image of the golden script: sharp rings, other ones per channel.
pub fn picture(width: usize, height: usize) -> RgbImage {
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let (x, y) = (u64::from(x), u64::from(y));
        let value =
            |c: u64| (((3 * x * x + 5 * y * y + (7 + c) * x * y + 640 * c) >> 5) & 255) as u8;
        image::Rgb([value(0), value(1), value(2)])
    })
}

/// As in the golden scripts: the position-weighted sum of 8-bit values.
pub fn checksum(levels: impl Iterator<Item = u8>) -> u64 {
    let weight = |i: u64| (i.wrapping_mul(2_654_435_761) + 12_345) & 0xFFFF_FFFF;
    let sum = |sum: u64, (i, level): (u64, u8)| sum.wrapping_add(u64::from(level) * weight(i));
    (0..).zip(levels).fold(0, sum)
}

pub fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let a: Vec<f32> = a.flatten_all().unwrap().to_vec1().unwrap();
    let b: Vec<f32> = b.flatten_all().unwrap().to_vec1().unwrap();
    // NaN must not pass as a small difference.
    a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, |m, d| if d <= m { m } else { d })
}

fn turns() -> Vec<Turn> {
    let turn = |role, text: &str| Turn { role, text: text.to_owned() };
    vec![turn(Role::User, QUESTION), turn(Role::Assistant, REPLY), turn(Role::User, "How many?")]
}

fn one_question() -> Vec<Turn> {
    turns()[..1].to_vec()
}

/// Input states and original positions of an encoded text with one image.
fn inputs(model: &Model, pieces: &[Piece], features: Option<&Tensor>) -> (Tensor, Vec<u32>) {
    let parts: Vec<Tensor> = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Tokens(ids) => model.language.embed(ids).unwrap(),
            Piece::Image(0) => features.unwrap().clone(),
            Piece::Image(i) => panic!("image {i}"),
        })
        .collect();
    let x = Tensor::cat(&parts, 0).unwrap();
    let n = x.dim(0).unwrap() as u32;
    (x, (0..n).collect())
}

fn causal(rows: std::ops::Range<usize>, start: usize, len: usize) -> Block {
    Block { rows, keys: vec![Segment { start, len }], causal: true }
}

/// All states of one sequence in one pass.
fn prefill(language: &Language, x: &Tensor, positions: &[u32]) -> Tensor {
    let n = positions.len();
    let slots: Vec<u32> = (0..n as u32).collect();
    let plan = AttendPlan { blocks: vec![causal(0..n, 0, n)] };
    let mut cache = language.new_cache(n).unwrap();
    language.forward(x, positions, &mut cache, &slots, &plan).unwrap()
}

fn sequence(model: &Model, width: usize, height: usize, full: &str) -> (Tensor, Vec<u32>) {
    let pixels = model.preprocess(&picture(width, height)).unwrap();
    let features = model.image_features(&pixels).unwrap();
    inputs(model, &model.encode(full).unwrap(), Some(&features))
}

fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    dir
}

fn write(dir: &Path, file: &str, value: &Value) {
    std::fs::write(dir.join(file), value.to_string()).unwrap();
}

fn edit_tensors(dir: &Path, edit: impl Fn(&str, Tensor) -> Option<(String, Tensor)>) {
    let path = dir.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let edited: std::collections::HashMap<String, Tensor> =
        tensors.into_iter().filter_map(|(name, tensor)| edit(&name, tensor)).collect();
    candle_core::safetensors::save(&edited, &path).unwrap();
}
