//! Sentence encoders against vectors of sentence-transformers (made by scripts/golden_encoders.py), and their refusals.

mod folders;
mod half;

use crate::common::place;
use bdhs::models::encoder::{Config, Embeddings, SentenceEncoder, load_network};
use bdhs::models::weights::Weights;
use candle_core::{DType, Device};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const ALL: [&str; 4] = ["bert", "mpnet", "roberta", "xlm_roberta"];

fn golden() -> PathBuf {
    place::root().join("tests/golden/encoders")
}

#[derive(serde::Deserialize)]
struct Expected {
    max_tokens: usize,
    texts: Vec<String>,
    tokens: Vec<u32>,
    vectors: Vec<Vec<f32>>,
}

fn expected(name: &str) -> Expected {
    let text = fs::read_to_string(golden().join(format!("{name}.expected.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn load(dir: &Path, dtype: DType) -> bdhs::Result<SentenceEncoder> {
    SentenceEncoder::load(dir, &place::device(), dtype)
}

fn rows(e: &Embeddings) -> Vec<Vec<f32>> {
    e.vectors.to_vec2().unwrap()
}

/// The largest difference between two lists of vectors, and its place.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> (f32, usize) {
    assert_eq!(a.len(), b.len());
    let row = |(x, y): (&Vec<f32>, &Vec<f32>)| {
        assert_eq!(x.len(), y.len());
        x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
    };
    let all = a.iter().zip(b).map(row).enumerate().map(|(i, d)| (d, i));
    all.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

#[test]
fn equals_sentence_transformers() {
    for name in ALL {
        let expected = expected(name);
        let encoder = load(&golden().join(name), DType::F32).unwrap();
        assert_eq!((encoder.name(), encoder.max_tokens()), (name, expected.max_tokens));
        assert_eq!(encoder.dim(), expected.vectors[0].len());
        let result = encoder.embed(&expected.texts).unwrap();
        assert_eq!(result.tokens, expected.tokens, "{name}");
        let (worst, at) = difference(&rows(&result), &expected.vectors);
        println!("{name}: largest difference {worst:e}");
        // xlm_roberta does not normalise: its components are some units large.
        let scale = expected.vectors.iter().flatten().fold(1f32, |m, x| m.max(x.abs()));
        assert!(worst <= 2e-6 * scale, "{name}: {worst:e} in {:?}", expected.texts[at]);
        for (tokens, truncated) in result.tokens.iter().zip(&result.truncated) {
            assert_eq!(*truncated, *tokens as usize > expected.max_tokens);
        }
        assert!(result.truncated.iter().any(|&t| t) && !result.truncated.iter().all(|&t| t));
    }
}

#[test]
fn a_vector_does_not_depend_on_its_neighbours() {
    for name in ALL {
        let texts = expected(name).texts;
        let encoder = load(&golden().join(name), DType::F32).unwrap();
        let together = rows(&encoder.embed(&texts).unwrap());
        let scale = together.iter().flatten().fold(1f32, |m, x| m.max(x.abs()));
        let alone: Vec<_> =
            texts.iter().map(|t| rows(&encoder.embed(&[t]).unwrap()).remove(0)).collect();
        assert!(difference(&together, &alone).0 <= 1e-6 * scale, "{name}, alone");
        let backwards: Vec<&String> = texts.iter().rev().chain(&texts).collect();
        let small = encoder.with_token_budget(60);
        let mut again = rows(&small.embed(&backwards).unwrap());
        let second = again.split_off(texts.len());
        again.reverse();
        assert!(difference(&together, &again).0 <= 1e-6 * scale, "{name}, backwards");
        assert!(difference(&together, &second).0 <= 1e-6 * scale, "{name}, repeated");
    }
}

#[test]
fn no_texts() {
    let encoder = load(&golden().join("bert"), DType::F32).unwrap();
    let none = encoder.embed::<&str>(&[]).unwrap();
    assert_eq!(none.vectors.dims(), [0, encoder.dim()]);
    assert!(none.tokens.is_empty() && none.truncated.is_empty());
}

#[test]
fn test_encoders_tell_texts_apart() {
    for name in ["bert", "mpnet", "roberta"] {
        let expected = expected(name);
        let at = |part: &str| {
            let i = expected.texts.iter().position(|t| t.contains(part)).unwrap();
            &expected.vectors[i]
        };
        let cosine =
            |a: &str, b: &str| -> f32 { at(a).iter().zip(at(b)).map(|(x, y)| x * y).sum() };
        let (near, far) =
            (cosine("a red jacket", "a blue jacket"), cosine("a red jacket", "Two dogs"));
        assert!(near > far && near < 0.999 && far < 0.95, "{name}: {near} {far}");
    }
}

#[test]
fn fingerprints_follow_the_files() {
    let dir = copy("roberta");
    let print = |dir: &TempDir| load(dir.path(), DType::F32).unwrap().fingerprint().to_owned();
    let before = print(&dir);
    assert_eq!(before.len(), 64);
    fs::write(dir.path().join("README.md"), "new").unwrap();
    assert_eq!(print(&dir), before, "a README computes nothing");
    edit(&dir, "2_Dense/config.json", |c| {
        c["activation_function"] = json!("torch.nn.modules.activation.ReLU")
    });
    assert_ne!(print(&dir), before);
    assert_ne!(load(&golden().join("bert"), DType::F32).unwrap().fingerprint(), before);
}

#[test]
fn networks_refuse_misuse() {
    let dir = golden().join("mpnet");
    let weights = Weights::open(&dir, &Device::Cpu, DType::F32).unwrap();
    let network = load_network(&dir, &weights).unwrap();
    let config = Config::load(&dir).unwrap();
    assert_eq!(
        (network.hidden_size(), network.max_tokens()),
        (32, config.max_position_embeddings - 2)
    );
    let refused = |ids: &[u32], cu: &[u32], part: &str| {
        let message = network.forward(ids, cu).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(&[0, 5, 2], &[0, 2], "cu_seqlens");
    refused(&[0, 5, 2], &[0, 2, 1, 3], "cu_seqlens");
    refused(&[0, 999_999, 2], &[0, 3], "token id is 999999");
    refused(&[5; 300], &[0, 300], "sequence length is 300, expected at most 258");
}

// Refusals of damaged and foreign folders.

fn copy(name: &str) -> TempDir {
    fn copy_into(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() {
                copy_into(&path, &target)
            } else {
                fs::copy(&path, &target).unwrap();
            }
        }
    }
    let dir = TempDir::new().unwrap();
    copy_into(&golden().join(name), dir.path());
    dir
}

fn edit(dir: &TempDir, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.path().join(file);
    let mut value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(&path, value.to_string()).unwrap();
}

/// Loading fails, and the message has all these parts.
fn refused(dir: &TempDir, parts: &[&str]) {
    let message = load(dir.path(), DType::F32).err().expect("refused").to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is missing in: {message}");
    }
}

/// Rewrites the header of model.safetensors and, given an offset of a tensor, its first value.
fn edit_weights(dir: &TempDir, header: impl FnOnce(&mut Value), first: Option<(&str, f32)>) {
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut value: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    let mut data = bytes[end..].to_vec();
    if let Some((tensor, x)) = first {
        let start = value[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start..start + 4].copy_from_slice(&x.to_le_bytes());
    }
    header(&mut value);
    let text = value.to_string();
    let all = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &data].concat();
    fs::write(&path, all).unwrap();
}

const TENSOR: &str = "encoder.layer.1.intermediate.dense.weight";

#[test]
fn refuses_a_missing_tensor() {
    let dir = copy("bert");
    edit_weights(
        &dir,
        |h| {
            let entry = h.as_object_mut().unwrap().shift_remove(TENSOR).unwrap();
            h["encoder.layer.1.other"] = entry;
        },
        None,
    );
    refused(
        &dir,
        &["model.safetensors", &format!("tensor {TENSOR}"), "absent, expected shape [64, 32]"],
    );
}

#[test]
fn refuses_a_wrong_shape() {
    let dir = copy("bert");
    edit_weights(&dir, |h| h[TENSOR]["shape"] = json!([32, 64]), None);
    refused(&dir, &["model.safetensors", TENSOR, "shape [32, 64], expected [64, 32]"]);
}

#[test]
fn refuses_integers_and_values_that_are_not_finite() {
    let dir = copy("bert");
    edit_weights(&dir, |h| h[TENSOR]["dtype"] = json!("I32"), None);
    refused(&dir, &["model.safetensors", TENSOR, "dtype I32, expected F32, F16 or BF16"]);
    for x in [f32::NAN, f32::INFINITY] {
        let dir = copy("bert");
        edit_weights(&dir, |_| (), Some((TENSOR, x)));
        refused(&dir, &["model.safetensors", TENSOR, &format!("value 0 is {x}, expected finite")]);
    }
    let dir = copy("bert");
    edit_weights(&dir, |_| (), Some((TENSOR, 1e6)));
    load(dir.path(), DType::F32).unwrap();
    let message = load(dir.path(), DType::F16).err().expect("refused").to_string();
    assert!(message.contains("value 0 is 1000000, which overflows"), "{message}");
}

#[test]
fn refuses_a_truncated_file() {
    let dir = copy("mpnet");
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for len in [0, 5, 300, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        refused(
            &dir,
            &["model.safetensors", &format!("not a whole safetensors file of {len} bytes")],
        );
    }
}

#[test]
fn refuses_weights_that_are_not_safetensors() {
    for (name, reason) in [("pytorch_model.bin", "pickle"), ("rust_model.ot", "another framework")]
    {
        let dir = copy("bert");
        fs::rename(dir.path().join("model.safetensors"), dir.path().join(name)).unwrap();
        refused(&dir, &[name, reason, "safetensors"]);
        fs::remove_file(dir.path().join(name)).unwrap();
        refused(&dir, &["no weights found, expected model.safetensors"]);
    }
}

#[test]
fn refuses_unknown_architectures_and_options() {
    type Change = fn(&mut Value);
    let cases: [(&str, &str, Change, &[&str]); 15] = [
        (
            "bert",
            "config.json",
            |c| c["model_type"] = json!("deberta"),
            &["\"deberta\"", "config.json", "mpnet"],
        ),
        (
            "bert",
            "config.json",
            |c| c["hidden_act"] = json!("mish"),
            &["hidden_act \"mish\"", "config.json"],
        ),
        ("bert", "config.json", |c| c["is_decoder"] = json!(true), &["is_decoder"]),
        (
            "bert",
            "config.json",
            |c| c["quantization_config"] = json!({"quant_method": "bitsandbytes"}),
            &["bitsandbytes", "config.json", "bf16"],
        ),
        (
            "bert",
            "config.json",
            |c| c["position_embedding_type"] = json!("relative_key"),
            &["relative_key"],
        ),
        (
            "bert",
            "config.json",
            |c| c["num_attention_heads"] = json!(5),
            &["config.json", "num_attention_heads: 5"],
        ),
        ("bert", "config.json", |c| c["hidden_size"] = json!("x"), &["config.json", "usize"]),
        (
            "bert",
            "1_Pooling/config.json",
            |c| c["pooling_mode_median"] = json!(true),
            &["pooling_mode_median", "1_Pooling"],
        ),
        (
            "bert",
            "1_Pooling/config.json",
            |c| c["word_embedding_dimension"] = json!(31),
            &["31, expected hidden_size 32"],
        ),
        (
            "xlm_roberta",
            "1_Pooling/config.json",
            |c| c["pooling_mode"] = json!(["mean", "median"]),
            &["\"median\""],
        ),
        (
            "roberta",
            "1_Pooling/config.json",
            |c| c["include_prompt"] = json!(false),
            &["include_prompt = false", "caption: "],
        ),
        (
            "roberta",
            "2_Dense/config.json",
            |c| c["activation_function"] = json!("torch.nn.SELU"),
            &["\"SELU\"", "2_Dense"],
        ),
        (
            "roberta",
            "2_Dense/config.json",
            |c| c["in_features"] = json!(33),
            &["in_features: 33, expected 32"],
        ),
        (
            "roberta",
            "config_sentence_transformers.json",
            |c| c["default_prompt_name"] = json!("q"),
            &["default_prompt_name: \"q\""],
        ),
        (
            "bert",
            "sentence_bert_config.json",
            |c| c["max_seq_length"] = json!(2),
            &["max_seq_length 2"],
        ),
    ];
    for (name, file, change, parts) in cases {
        let dir = copy(name);
        edit(&dir, file, change);
        refused(&dir, parts);
    }
    for (i, kind) in [(0, "CLIPModel"), (1, "WordWeights"), (2, "LSTM")] {
        let dir = copy("bert");
        edit(&dir, "modules.json", |m| {
            m[i]["type"] = json!(format!("sentence_transformers.models.{kind}"))
        });
        refused(&dir, &["modules.json", kind]);
    }
    let dir = copy("bert");
    edit(&dir, "modules.json", |m| m[1]["path"] = json!("../elsewhere"));
    refused(&dir, &["modules.json", "../elsewhere"]);
}

/// An encoder's folder with options behind its name.
fn variant(dir: &Path, options: &str) -> bdhs::Result<SentenceEncoder> {
    load(Path::new(&format!("{}{options}", dir.display())), DType::F32)
}

/// `prompt=NAME` and `default_prompt_name` are the same thing, and what sentence-transformers gave with the latter.
#[test]
fn prompts_by_name() {
    let expected = expected("roberta");
    let dir = copy("roberta");
    edit(&dir, "config_sentence_transformers.json", |c| c["default_prompt_name"] = json!(null));
    let named = variant(dir.path(), ",prompt=caption").unwrap();
    let vectors = rows(&named.embed(&expected.texts).unwrap());
    assert!(difference(&vectors, &expected.vectors).0 <= 2e-6);
    let without = load(dir.path(), DType::F32).unwrap();
    assert!(difference(&rows(&without.embed(&expected.texts).unwrap()), &vectors).0 > 1e-3);
    // None, and the two that every model has.
    let plain = rows(&without.embed(&expected.texts).unwrap());
    for none in [",prompt=", ",prompt=query", ",prompt=document"] {
        let none = variant(&golden().join("roberta"), none).unwrap();
        assert!(difference(&rows(&none.embed(&expected.texts).unwrap()), &plain).0 <= 1e-6);
    }
    let fingerprints = [named.fingerprint(), without.fingerprint()];
    assert_ne!(fingerprints[0], fingerprints[1]);
    assert!(named.name().ends_with(",prompt=caption"), "{}", named.name());
}

/// sentence-transformers truncates what its modules give, without another normalisation.
#[test]
fn vectors_are_truncated() {
    for name in ALL {
        let expected = expected(name);
        let width = expected.vectors[0].len();
        let dir = copy(name);
        let encoder = variant(&golden().join(name), ",dim=5").unwrap();
        assert_eq!((encoder.dim(), encoder.name()), (5, format!("{name},dim=5").as_str()));
        let cut: Vec<Vec<f32>> = expected.vectors.iter().map(|v| v[..5].to_vec()).collect();
        let vectors = rows(&encoder.embed(&expected.texts).unwrap());
        let scale = cut.iter().flatten().fold(1f32, |m, x| m.max(x.abs()));
        assert!(difference(&vectors, &cut).0 <= 2e-6 * scale, "{name}");
        assert_eq!(encoder.embed::<&str>(&[]).unwrap().vectors.dims(), [0, 5]);
        // As its file says it, and more than there is.
        for (said, kept) in [(7, 7), (10_000, width)] {
            let file = dir.path().join("config_sentence_transformers.json");
            fs::write(file, json!({"truncate_dim": said}).to_string()).unwrap();
            assert_eq!(load(dir.path(), DType::F32).unwrap().dim(), kept);
        }
        // What is asked for comes before what the file says.
        assert_eq!(variant(dir.path(), ",dim=3").unwrap().dim(), 3);
    }
}

#[test]
fn options_that_do_not_hold_are_refused() {
    let dir = golden().join("roberta");
    for (options, parts) in [
        (",dim=0", ["dim=0", "positive"]),
        (",dim=x", ["dim=x", "positive"]),
        (",dim=4096", ["4096", "at most the"]),
        (",dim=4,dim=5", ["dim=5", "twice"]),
        (",prompt=a,prompt=b", ["prompt=b", "twice"]),
        (",prompt=passage", ["\"passage\" is no prompt", "caption"]),
        (",dims=4", ["dims=4", "dim=N and prompt=NAME"]),
        (",", ["no option", "no folder"]),
    ] {
        let error = variant(&dir, options).err().expect("refused").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{options}: {error}");
    }
    let dir = copy("bert");
    fs::write(dir.path().join("config_sentence_transformers.json"), "{\"truncate_dim\": -1}")
        .unwrap();
    let error = load(dir.path(), DType::F32).err().expect("refused").to_string();
    assert!(error.contains("field truncate_dim: -1"), "{error}");
    // A folder of that very name is a folder.
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("bert,dim=4");
    std::os::unix::fs::symlink(golden().join("bert"), &odd).unwrap();
    assert_eq!(load(&odd, DType::F32).unwrap().dim(), 32);
}
