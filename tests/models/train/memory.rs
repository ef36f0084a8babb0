//! Peak memory of a step against depth and length, with layers recomputed and with the whole graph kept.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::*;

/// The tiny LLaVA with its language layers repeated up to `layers`.
fn deep(dir: &Path, layers: usize) -> PathBuf {
    let to = dir.join(format!("layers-{layers}"));
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(golden("llava/llava15")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
    let path = to.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let own = config["text_config"]["num_hidden_layers"].as_u64().unwrap() as usize;
    config["text_config"]["num_hidden_layers"] = json!(layers);
    std::fs::write(&path, config.to_string()).unwrap();
    let mut tensors = load(&to.join("model.safetensors"));
    for layer in own..layers {
        let from = format!("model.layers.{}.", layer % own);
        let copies: Vec<(String, Tensor)> = tensors
            .iter()
            .filter(|(name, _)| name.contains("language_model") && name.contains(&from))
            .map(|(name, t)| (name.replace(&from, &format!("model.layers.{layer}.")), t.clone()))
            .collect();
        tensors.extend(copies);
    }
    candle_core::safetensors::save(&tensors, to.join("model.safetensors")).unwrap();
    to
}

/// Eight pairs whose answers have about `words` words each.
fn long_pairs(dir: &Path, words: usize) -> PathBuf {
    let text = std::fs::read_to_string(golden("dpo/pairs.jsonl")).unwrap();
    let mut row: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let image = row["images"][0].as_str().unwrap().to_owned();
    std::fs::create_dir_all(dir.join("images")).unwrap();
    std::fs::copy(golden("dpo").join(&image), dir.join(&image)).unwrap();
    let mut rows = String::new();
    for i in 0..8 {
        row["chosen"] = json!(format!("a {i} {}", "dog ".repeat(words)));
        row["rejected"] = json!(format!("the {i} {}", "cat ".repeat(words)));
        rows.push_str(&format!("{row}\n"));
    }
    let path = dir.join(format!("pairs-{words}.jsonl"));
    std::fs::write(&path, rows).unwrap();
    path
}

/// Peak resident memory of a training of one step, in MB; Linux tells it of a living process.
fn peak(model: &Path, pairs: &Path, recompute: bool, dir: &Path) -> f64 {
    let config = dir.join("train.toml");
    let text = format!(
        "[train]\nrank = 4\nepochs = 1\nbatch = 8\ntokens = 1000000\nrecompute = {recompute}\n"
    );
    std::fs::write(&config, text).unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_bdhs"))
        .args(["train", "--quiet", "--threads", "1"])
        .arg(&config)
        .args(["--model".as_ref(), model.as_os_str(), "--pairs".as_ref(), pairs.as_os_str()])
        .args(["--out".as_ref(), out.path().as_os_str()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0f64;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("VmHWM"));
        let found = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        peak = peak.max(found.unwrap_or(0.0) / 1024.0);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[test]
#[cfg(target_os = "linux")]
fn recomputation_makes_memory_grow_with_states_not_with_activations() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = long_pairs(dir.path(), 300);
    let [few, many] = [4, 16].map(|layers| deep(dir.path(), layers));
    let growth = |recompute| {
        peak(&many, &pairs, recompute, dir.path()) - peak(&few, &pairs, recompute, dir.path())
    };
    let (with, without) = (growth(true), growth(false));
    println!("twelve layers more: {with:.0} MB recomputed, {without:.0} MB with the whole graph");
    assert!(with < without / 6.0, "{with} {without}");
}

/// The whole curve, into the file that BDHS_MEMORY_RESULT names.
#[test]
#[ignore = "a measurement of minutes: docs/results.md has its figures"]
fn curve() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    for layers in [4, 8, 16] {
        let model = deep(dir.path(), layers);
        for words in [100, 200, 400] {
            let pairs = long_pairs(dir.path(), words);
            let [with, without] =
                [true, false].map(|recompute| peak(&model, &pairs, recompute, dir.path()).round());
            println!("{layers} layers, {words} words: {with} MB, {without} MB");
            rows.push(json!({
                "layers": layers, "words": words, "recomputed_mb": with, "whole_graph_mb": without,
            }));
        }
    }
    let path = std::env::var("BDHS_MEMORY_RESULT").expect("a path");
    std::fs::write(path, format!("{:#}\n", Value::from(rows))).unwrap();
}
