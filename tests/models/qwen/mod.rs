//! Qwen2-VL and Qwen2.5-VL against transformers, on the tiny checkpoints of scripts/golden_qwen_vl.py.

mod errors;
mod images;
mod masks;
mod network;
mod prompts;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bdhs::models::{ImageLayout, Language, Model, Piece, Place};
use bdhs::ops::attend::{AttendPlan, Block, Segment};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde_json::Value;

use crate::common::place;

/// Checkpoints with tokenizer and template.
const COMPLETE: [&str; 2] = ["qwen2_5", "qwen2"];

const MODELS: [&str; 7] = [
    "qwen2_5",
    "qwen2",
    "qwen2_flat",
    "qwen2_5_nested",
    "qwen2_5_wide",
    "qwen2_one",
    "qwen2_5_real",
];

fn golden(name: &str) -> PathBuf {
    place::root().join("tests/golden/qwen_vl").join(name)
}

fn json_file(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// A copy of a checkpoint that can be changed; tokenizer and template are those of the first complete one where it has none.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for from in [COMPLETE[0], name] {
        for entry in std::fs::read_dir(golden(from)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    if name == "qwen2" {
        std::fs::remove_file(dir.path().join("chat_template.json")).unwrap();
    }
    dir
}

fn load_as(name: &str, dtype: DType) -> Model {
    Model::load(copy(name).path(), &place::device(), dtype).unwrap()
}

fn load(name: &str) -> Model {
    load_as(name, DType::F32)
}

/// The test image of the golden script: sharp rings, other ones per channel.
fn picture(width: usize, height: usize) -> RgbImage {
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let (x, y) = (u64::from(x), u64::from(y));
        let value =
            |c: u64| (((3 * x * x + 5 * y * y + (7 + c) * x * y + 640 * c) >> 5) & 255) as u8;
        image::Rgb([value(0), value(1), value(2)])
    })
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|n| n as u32).collect()
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let values = |t: &Tensor| -> Vec<f32> {
        t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    // NaN must not pass as a small difference.
    let differences = values(a).into_iter().zip(values(b)).map(|(x, y)| (x - y).abs());
    differences.fold(0.0, |m, d| if d <= m { m } else { d })
}

/// Bits of a mask in hexadecimal, the first token the lowest bit.
fn kept(text: &Value, tokens: usize) -> Vec<bool> {
    let digits: Vec<u32> =
        text.as_str().unwrap().chars().rev().map(|c| c.to_digit(16).unwrap()).collect();
    (0..tokens).map(|i| digits.get(i / 4).is_some_and(|digit| digit >> (i % 4) & 1 == 1)).collect()
}

/// A conversation with its images, as rows of the decoder.
struct Rows {
    /// The token, or none of an image.
    ids: Vec<Option<u32>>,
    x: Tensor,
    places: Vec<Place>,
    features: Tensor,
}

impl Rows {
    fn of(model: &Model, text: &str, sizes: &[(usize, usize)]) -> Self {
        let pixels: Vec<_> =
            sizes.iter().map(|&(w, h)| model.preprocess(&picture(w, h)).unwrap()).collect();
        let features: Vec<Tensor> =
            pixels.iter().map(|pixels| model.image_features(pixels).unwrap()).collect();
        let (mut ids, mut parts, mut places) = (vec![], vec![], vec![]);
        let mut next = 0;
        for piece in model.encode(text).unwrap() {
            match piece {
                Piece::Tokens(tokens) => {
                    parts.push(model.language.embed(&tokens).unwrap());
                    places.extend((next..).take(tokens.len()).map(Place::from));
                    next += tokens.len() as u32;
                    ids.extend(tokens.into_iter().map(Some));
                }
                Piece::Image(i) => {
                    let layout: &ImageLayout = &pixels[i].layout;
                    parts.push(features[i].clone());
                    places.extend(layout.places(next));
                    next += layout.span();
                    ids.extend(vec![None; layout.tokens]);
                }
            }
        }
        let features = Tensor::cat(&features, 0).unwrap();
        Self { ids, x: Tensor::cat(&parts, 0).unwrap(), places, features }
    }

    /// The rows that stay under a mask of the image tokens.
    fn masked(&self, kept: &[bool]) -> Vec<u32> {
        let mut image = kept.iter();
        let stays = |id: &Option<u32>| id.is_some() || *image.next().unwrap();
        let stays: Vec<bool> = self.ids.iter().map(stays).collect();
        (0..stays.len() as u32).filter(|&i| stays[i as usize]).collect()
    }

    fn select(&self, rows: &[u32]) -> (Tensor, Vec<Place>) {
        let index = Tensor::new(rows, self.x.device()).unwrap();
        let places = rows.iter().map(|&row| self.places[row as usize]).collect();
        (self.x.index_select(&index, 0).unwrap(), places)
    }
}

fn causal(rows: std::ops::Range<usize>, start: usize, len: usize) -> Block {
    Block { rows, keys: vec![Segment { start, len }], causal: true }
}

/// All states of one sequence in one pass.
fn prefill(language: &Language, x: &Tensor, places: &[Place]) -> Tensor {
    let n = places.len();
    let slots: Vec<u32> = (0..n as u32).collect();
    let plan = AttendPlan { blocks: vec![causal(0..n, 0, n)] };
    let mut cache = language.new_cache(n).unwrap();
    language.forward(x, places, &mut cache, &slots, &plan).unwrap()
}

fn sizes(case: &Value) -> Vec<(usize, usize)> {
    let pair = |size: &Value| (numbers(size)[0], numbers(size)[1]);
    case["sizes"].as_array().unwrap().iter().map(pair).collect()
}
