//! Texts to vectors on the CPU by whole encoders: tokens, network, pooling. all-MiniLM-L6-v2 and all-mpnet-base-v2 from the folder
//! that `BDHS_BENCH_ENCODERS` names (default: `weights` in the cache, where `scripts/weights` puts them); the demo's four
//! encoders where these are absent. `benches/peers/encode.py` sets them beside other libraries.
//!
//! Texts are runs of words of the photos' references: "ragged" of 8 to 60 words, "uniform" of 32.

mod common;

use std::path::{Path, PathBuf};

use bdhs::demo::embedded::resolve;
use bdhs::models::encoder::SentenceEncoder;
use candle_core::{DType, Device};
use common::{Case, Output};

/// The command's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Real encoders and how many texts a run takes.
const REAL: [(&str, usize); 2] = [("all-MiniLM-L6-v2", 128), ("all-mpnet-base-v2", 32)];
const DEMO: [(&str, usize); 4] =
    [("demo-bert", 128), ("demo-mpnet", 128), ("demo-roberta", 128), ("demo-xlm-roberta", 128)];
const DTYPES: [(DType, &str); 2] = [(DType::F32, "f32"), (DType::BF16, "bf16")];

fn main() {
    let words = words();
    let mut cases = vec![];
    for (dtype, dtype_name) in DTYPES {
        for (folder, name, count) in encoders() {
            for shape in ["ragged", "uniform"] {
                let texts: Vec<String> = (0..count).map(|i| text(&words, shape, i)).collect();
                let case = format!("encode/{name}, {shape}/{dtype_name}");
                cases.push(case_of(case, folder.clone(), dtype, texts));
            }
        }
    }
    common::main(cases);
}

fn case_of(name: String, folder: PathBuf, dtype: DType, texts: Vec<String>) -> Case {
    let bytes = texts.iter().map(String::len).sum();
    let (again, their) = (folder.clone(), texts.clone());
    let make = move || -> common::Run {
        let (encoder, texts) = (load(&folder, dtype), texts.clone());
        Box::new(move || Output::Tensor(encoder.embed(&texts).expect("vectors").vectors))
    };
    // Every vector: a wrong one is not hidden by the others.
    let check = move || {
        let vectors = load(&again, dtype).embed(&their).expect("vectors").vectors;
        let values = vectors.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
        values.expect("f32").into_iter().map(f64::from).collect()
    };
    Case { check: Some(Box::new(check)), ..Case::new(name, bytes, 0, make) }
}

fn load(folder: &Path, dtype: DType) -> SentenceEncoder {
    let folder = resolve(folder).expect("an encoder");
    SentenceEncoder::load(folder, &Device::Cpu, dtype).expect("an encoder")
}

/// Folder, name and texts of each encoder that is here.
fn encoders() -> Vec<(PathBuf, &'static str, usize)> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = || match variable("BDHS_CACHE") {
        Some(cache) => Some(cache),
        None => Some(variable("HOME")?.join(".cache/bdhs")),
    };
    let weights = variable("BDHS_BENCH_ENCODERS").or_else(|| Some(cache()?.join("weights")));
    let real: Vec<_> = REAL
        .into_iter()
        .filter_map(|(name, count)| Some((weights.as_ref()?.join(name), name, count)))
        .filter(|(folder, ..)| folder.join("model.safetensors").exists())
        .collect();
    if real.is_empty() {
        eprintln!("no real encoders (scripts/weights fetches them): the demo's instead");
        return DEMO.into_iter().map(|(name, count)| (name.into(), name, count)).collect();
    }
    real
}

/// Every word of the references, in order.
fn words() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/photos/photos.json");
    let text = std::fs::read_to_string(path).expect("the photos' references");
    let samples: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let answers =
        samples.as_array().expect("samples").iter().map(|sample| {
            sample["conversations"][1]["value"].as_str().expect("an answer").to_owned()
        });
    let answers: Vec<String> = answers.collect();
    answers.iter().flat_map(|answer| answer.split(' ').map(str::to_owned)).collect()
}

/// The `i`th text. `encode.py` makes the same ones.
fn text(words: &[String], shape: &str, i: usize) -> String {
    let length = if shape == "ragged" { 8 + i * 29 % 53 } else { 32 };
    let word = |k: usize| words[(i * 37 + k) % words.len()].as_str();
    (0..length).map(word).collect::<Vec<_>>().join(" ")
}
