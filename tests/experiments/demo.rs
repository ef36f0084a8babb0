//! The embedded demo: what it does without arguments, what its models can do, and that training is a function of its seed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{bdhs, json, succeed};
use serde_json::Value;

/// The command with a cache of its own.
fn with_cache(cache: &Path) -> Command {
    let mut command = bdhs();
    command.env("BDHS_CACHE", cache).arg("--json");
    command
}

#[test]
fn sweep_without_arguments_gives_the_grid_of_the_embedded_demo() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, out) = (dir.path().join("cache"), dir.path().join("run"));
    let sweep = || {
        let mut command = with_cache(&cache);
        command.args(["sweep", "--limit", "90", "--out"]).arg(&out);
        json(&succeed(&mut command))
    };
    let summary = sweep();
    let cells = summary["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 20);
    for cell in cells {
        assert_eq!(cell["pairs"], 90);
        assert!(cell["encoder"].as_str().unwrap().starts_with("demo-"));
    }
    let generated = summary["candidates_generated"].as_u64().unwrap();
    let independent = summary["candidates_if_independent"].as_u64().unwrap();
    assert!(independent > 8 * generated, "{generated} for {independent}");

    // The grid says something: cells accept different candidates.
    let mut kinds: Vec<Vec<u64>> = Vec::new();
    for cell in cells {
        let folder = format!(
            "{}__{:.2}",
            cell["encoder"].as_str().unwrap(),
            cell["threshold"].as_f64().unwrap()
        );
        let rows = fs::read_to_string(out.join("cells").join(folder).join("pairs.jsonl")).unwrap();
        let attempts: Vec<u64> = rows
            .lines()
            .map(|row| serde_json::from_str::<Value>(row).unwrap()["attempt"].as_u64().unwrap())
            .collect();
        assert_eq!(attempts.len(), 90);
        if !kinds.contains(&attempts) {
            kinds.push(attempts);
        }
    }
    assert!(kinds.len() >= 10, "only {} of 20 cells differ", kinds.len());

    let again = sweep();
    assert_eq!(again["cells"], summary["cells"], "a second run finds everything done");
    assert_eq!(again["candidates_generated"], summary["candidates_generated"]);
}

#[test]
fn the_model_sees_with_its_image_and_makes_things_up_without() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = with_cache(dir.path());
    command.args(["demo", "figures", "--scenes", "60", "--rho", "0", "--rho", "1"]);
    let figures = json(&succeed(&mut command));
    let [seeing, blind] = [0, 1].map(|i| &figures["rows"][i]);
    let value = |row: &Value, field: &str| row[field].as_f64().unwrap();
    assert!(value(seeing, "recall") > 0.85, "{seeing}");
    assert!(value(seeing, "hallucinated") < 0.12, "{seeing}");
    assert!(value(blind, "recall") < 0.55, "{blind}");
    assert!(value(blind, "hallucinated") > 0.4, "{blind}");
    assert!(value(seeing, "short") > value(blind, "short") + 0.2);
    // The words of a probe tell nothing, so a blind model is at chance.
    let pope = |row: &Value| {
        let kinds = ["random", "popular", "adversarial"];
        kinds.map(|kind| row["pope"][kind].as_f64().unwrap()).iter().sum::<f64>() / 3.0
    };
    assert!(pope(seeing) > 0.75, "{seeing}");
    assert!(pope(blind) < 0.58, "{blind}");
}

/// Every file below a folder, by relative name.
fn files(dir: &Path, into: &mut Vec<PathBuf>, root: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into, root);
        } else {
            into.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
    into.sort();
}

#[test]
fn training_is_a_function_of_the_seed_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let train = |name: &str, threads: &str, seed: &str| {
        let out = dir.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_bdhs"));
        command.args(["--quiet", "--threads", threads, "demo", "train", "--seed", seed, "--out"]);
        command.arg(&out).args([
            "--vision-steps",
            "2",
            "--llava-steps",
            "2",
            "--encoder-steps",
            "2",
        ]);
        succeed(&mut command);
        out
    };
    // The seed of the embedded models, whose files but the weights do not depend on the steps.
    let (one, two, other) =
        (train("one", "1", "1"), train("two", "2", "1"), train("other", "2", "6"));
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/models");
    let mut names = Vec::new();
    files(&one, &mut names, &one);
    assert!(names.len() > 30, "{names:?}");
    for name in names.iter().filter(|name| !name.ends_with("train.jsonl")) {
        let written = fs::read(one.join(name)).unwrap();
        assert!(written == fs::read(two.join(name)).unwrap(), "{} differs", name.display());
        if !name.ends_with("model.safetensors") {
            let shipped = fs::read(embedded.join(name)).unwrap();
            assert!(written == shipped, "{} is not what is embedded", name.display());
        }
    }
    let weights = |root: &Path| fs::read(root.join("demo-llava/model.safetensors")).unwrap();
    assert!(weights(&one) != weights(&other), "another seed gives other weights");
}

#[test]
fn embedded_names_are_known_to_every_command_and_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("texts.jsonl");
    fs::write(&rows, "{\"id\": \"a\", \"text\": \"There is a red star at the top.\"}\n").unwrap();
    let vectors = dir.path().join("vectors.jsonl");
    let mut command = with_cache(dir.path());
    command.args(["embed", "--encoder", "demo-xlm-roberta", "--input"]).arg(&rows);
    let report = json(&succeed(command.arg("--output").arg(&vectors)));
    assert_eq!(report["encoder"], "demo-xlm-roberta");
    assert_eq!(report["dim"], 96);

    let mut command = with_cache(dir.path());
    let output = command.args(["demo", "train", "--only", "demo-gpt", "--out"]).arg(dir.path());
    let output = output.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("demo-gpt") && message.contains("demo-xlm-roberta"), "{message}");
}

#[test]
fn scenes_are_written_as_a_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = with_cache(dir.path());
    let out = dir.path().join("scenes");
    command.args(["demo", "scenes", "--count", "6", "--split", "select", "--out"]).arg(&out);
    succeed(&mut command);
    let options = bdhs::data::DatasetOptions::default();
    let dataset = bdhs::data::Dataset::open(&out.join("data.json"), &options).unwrap();
    assert_eq!(dataset.len(), 6);
    let yes_no = |text: &str| text.starts_with("Yes, ") || text.starts_with("No, ");
    for (i, sample) in dataset.read(0..6).unwrap().iter().enumerate() {
        assert!(sample.images[0].name().is_file());
        assert_eq!(yes_no(&sample.reference), i % 3 == 2, "{}", sample.reference);
    }
}
