//! Training against TRL's DPOTrainer with PEFT on transformers (scripts/golden_dpo.py), and against itself.

mod bad_input;
mod golden;
mod gradients;
mod memory;
mod online;
mod runs;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::common::place;
use bdhs::train::{Example, Pair, Settings, Trainer, read_pairs};
use candle_core::{DType, Device, Tensor};

fn golden(name: &str) -> PathBuf {
    place::root().join("tests/golden").join(name)
}

fn pairs() -> Vec<Pair> {
    read_pairs(&golden("dpo/pairs.jsonl"), None).unwrap()
}

/// As scripts/golden_dpo.py trains.
fn settings() -> Settings {
    Settings {
        rank: 4,
        alpha: 8.0,
        projector: true,
        learning_rate: 5e-3,
        projector_learning_rate: 5e-3,
        batch: 4,
        epochs: 10,
        warmup: 0.1,
        ..Settings::default()
    }
}

/// The tiny LLaVA, its tokenizer without what puts a BOS in front: TRL leaves that to the chat template, which writes none.
fn base() -> &'static Path {
    static BASE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(golden("llava/llava15")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        let path = folder.path().join("tokenizer.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(!tokenizer["post_processor"].is_null());
        tokenizer["post_processor"] = serde_json::Value::Null;
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        folder
    });
    BASE.path()
}

fn trainer(settings: &Settings) -> Trainer {
    Trainer::new(base(), &place::device(), DType::F32, settings).unwrap()
}

/// The base's log-probabilities are known before the golden adapter is put in.
fn examples(trainer: &Trainer) -> Vec<Example> {
    let pairs = pairs();
    let mut examples: Vec<Example> =
        pairs.iter().map(|pair| trainer.example(pair).unwrap()).collect();
    let all: Vec<&Example> = examples.iter().collect();
    let references = trainer.references(&all).unwrap();
    for (example, reference) in examples.iter_mut().zip(references) {
        example.reference = reference;
    }
    examples
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference.
fn off(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn largest(a: &Tensor) -> f32 {
    values(a).into_iter().map(f32::abs).fold(0.0, f32::max)
}

fn load(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}
