//! Whole runs with every family of models: the same commands, the same promises.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::common::{bdhs, dataset, encoders, exports, golden, json, succeed, sweep_with};

/// A complete tiny checkpoint of each family.
const MODELS: [&str; 6] = [
    "llava/llava15",
    "llava/next_yi",
    "onevision/onevision",
    "onevision/next_qwen3",
    "qwen_vl/qwen2_5",
    "qwen_vl/qwen2",
];

fn sweep(name: &str, data: &Path, out: &Path) -> Command {
    let mut command = sweep_with(&golden(name), data, out);
    command.args(["--rho", "0.5"]);
    command
}

/// One run, one that goes on after half of its shards, and merged shards give the same bytes.
#[test]
fn shards_and_runs_that_go_on_equal_one_run() {
    for name in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let data = dataset(dir.path(), 6);
        let config = dir.path().join("run.toml");
        std::fs::write(&config, "[run]\nblock = 2\n").unwrap();
        let whole = dir.path().join("whole");
        let first = json(&succeed(sweep(name, &data, &whole).arg(&config).arg("--json")));
        let parts = dir.path().join("parts");
        for shard in ["3/3", "1/3"] {
            succeed(sweep(name, &data, &parts).arg(&config).args(["--shard", shard]));
        }
        let second = json(&succeed(sweep(name, &data, &parts).arg(&config).arg("--json")));
        assert_eq!(exports(&parts), exports(&whole), "{name}");
        assert_eq!(first["cells"], second["cells"], "{name}");
        let page = std::fs::read_to_string(whole.join("report.html")).unwrap();
        assert!(page.contains("image tokens visible"), "{name}");
        // Kept tokens are drawn where they are in the picture.
        assert!(page.contains("<path"), "{name}");
        assert!(!page.contains("; not drawn"), "{name}");
    }
}

/// Pairs train an adapter, which samples, merges, and is checked like any model.
#[test]
fn every_family_trains_merges_and_is_checked() {
    for name in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let data = dataset(dir.path(), 4);
        let pairs = golden("dpo/pairs.jsonl");
        let adapter = dir.path().join("adapter");
        let mut train = bdhs();
        train.arg("train").arg("--model").arg(golden(name)).arg("--pairs").arg(&pairs);
        train.arg("--out").arg(&adapter).args(["--projector-learning-rate", "1e-3"]);
        succeed(train.args(["--epochs", "1", "--batch", "4", "--learning-rate", "1e-2"]));
        let adapted = dir.path().join("adapted");
        succeed(sweep(name, &data, &adapted).arg("--adapter").arg(&adapter));
        let merged = dir.path().join("merged");
        succeed(bdhs().arg("merge").arg(&adapter).arg("--out").arg(&merged));
        let outline = |folder: &Path| -> Value {
            let output = succeed(bdhs().args(["doctor", "--json", "--model"]).arg(folder));
            json(&output)["model"].clone()
        };
        let (base, trained) = (outline(&golden(name)), outline(&merged));
        assert_eq!(base, trained, "{name}: a merged checkpoint is another of its family");
        for part in ["language_parameters", "vision_parameters", "projector_parameters"] {
            assert!(base[part].as_u64().unwrap() > 0, "{name}: {part}");
        }
    }
}

#[test]
fn bench_measures_every_family() {
    for name in MODELS {
        let mut command = bdhs();
        command.args(["bench", "--json", "--seconds", "0.01", "--model"]).arg(golden(name));
        let rates = json(&succeed(command.arg("--encoder").arg(&encoders()[0])));
        assert!(rates.to_string().contains("attempts"), "{name}: {rates}");
    }
}
