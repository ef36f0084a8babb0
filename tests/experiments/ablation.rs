//! The whole ablation on the tiny models: trained cells, judged, compared; stopped, shared and continued.

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{
    ablation::{ablate, configuration, table},
    bdhs, json, llava, succeed,
};
use bdhs::ablation::{Ablation, Kind};

fn json_line(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap()
}

fn adapter(run: &Path, model: &str) -> Vec<u8> {
    std::fs::read(run.join("models").join(model).join("adapter_model.safetensors")).unwrap()
}

#[test]
fn every_cell_is_trained_judged_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (configuration(dir.path()), dir.path().join("run"));
    let document = json(&succeed(ablate(&config, &run).arg("--json")));
    let result: Ablation = serde_json::from_value(document).unwrap();
    assert_eq!(result.cells.len(), 4);
    let statistics: Vec<&str> = result.statistics.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(statistics, ["f1", "accuracy", "yes_ratio", "recall", "chair_i"]);
    assert_eq!(result.models[0].kind, Kind::Baseline);
    assert!(result.models[0].scores.iter().all(|score| score.baseline.is_none()));
    // Cells with the same pairs share a model, which names them all; others have one each.
    let pairs = |cell: &str| {
        let text =
            std::fs::read_to_string(run.join("cells").join(cell).join("pairs.jsonl")).unwrap();
        let rows = text.lines().map(|line| json_line(line)["rejected"].to_string());
        rows.collect::<Vec<_>>()
    };
    for a in &result.cells {
        for b in &result.cells {
            assert_eq!(
                a.model == b.model,
                pairs(&a.cell) == pairs(&b.cell),
                "{} {}",
                a.cell,
                b.cell
            );
        }
        let model = result.model(&a.model).unwrap();
        assert!(matches!(&model.kind, Kind::Cells(cells) if cells.contains(&a.cell)));
        assert_eq!(model.pairs + model.excluded, 8);
        assert!(model.scores.iter().all(|score| score.baseline.is_some()));
        assert!(
            model.scores.iter().all(|score| score.default.is_none() == (a.model == result.default))
        );
    }
    // Seeds and control.
    for name in ["control", "control__seed1", &format!("{}__seed1", result.default)] {
        assert!(result.model(name).is_some(), "{name}");
    }
    assert_ne!(
        adapter(&run, &result.default),
        adapter(&run, &format!("{}__seed1", result.default))
    );
    assert!(
        result.seeds.iter().all(|s| s.default.values.len() == 2 && s.default.interval.is_some())
    );
    // Variants: one with pairs of its own, one trained otherwise on the default cell's.
    let rejected = |file: &Path| {
        let text = std::fs::read_to_string(file).unwrap();
        let rows = text.lines().map(|line| json_line(line)["rejected"].to_string());
        rows.collect::<Vec<_>>()
    };
    let own = run.join("variants/blind");
    let file = "cells/bert__0.97/pairs.jsonl";
    assert_ne!(rejected(&own.join(file)), rejected(&run.join(file)));
    assert!(own.join("report.html").is_file() && !run.join("variants/ipo").exists());
    assert_eq!(result.variants[1].settings, "train.beta = 0.5, train.loss = \"ipo\"");
    for name in ["blind", "ipo", "blind__seed1", "ipo__seed1"] {
        let model = result.model(name).unwrap();
        assert_eq!(model.kind, Kind::Variant(name.split("__").next().unwrap().to_owned()));
        assert_ne!(adapter(&run, name), adapter(&run, &result.default));
        assert!(
            model.scores.iter().all(|score| {
                score.baseline.is_some_and(|difference| difference.p_holm.is_none())
            })
        );
    }
    assert!(result.seeds.iter().all(|s| s.variants.iter().all(|v| v.values.len() == 2)));
    // The baseline is the model itself, answering again in this run.
    let plain = bdhs()
        .args([
            "eval",
            "all",
            "--only",
            "pope",
            "--max-new-tokens",
            "6",
            "--resamples",
            "0",
            "--json",
        ])
        .arg("--model")
        .arg(llava())
        .arg("--data")
        .arg(dir.path().join("benchmarks"))
        .arg("--out")
        .arg(dir.path().join("plain"))
        .output()
        .unwrap();
    let plain = json(&plain);
    let own = result.models[0].scores[0].value.unwrap().value;
    assert_eq!(plain["metrics"][0]["score"]["value"].as_f64(), own);
    // The page shows it, and is the same when made anew.
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("The trained cells") && page.contains("recall-coco: chair_i"));
    succeed(bdhs().arg("report").arg(&run));
    assert!(page == std::fs::read_to_string(run.join("report.html")).unwrap());
    // Again: nothing is computed, the table is the same.
    let (before, begun) = (table(&run), Instant::now());
    succeed(&mut ablate(&config, &run));
    println!("again in {:?}", begun.elapsed());
    assert_eq!(table(&run), before);
}

/// kill -9 of the command alone, whose workers end with it, or of all of them.
fn kill(child: &mut std::process::Child, group: bool) {
    if group {
        let id = format!("-{}", child.id());
        assert!(Command::new("kill").args(["-9", "--", &id]).status().unwrap().success());
    } else {
        child.kill().unwrap();
    }
}

#[test]
fn kill_at_ten_random_moments_changes_no_number() {
    let dir = tempfile::tempdir().unwrap();
    let (config, calm) = (configuration(dir.path()), dir.path().join("calm"));
    let begun = Instant::now();
    succeed(&mut ablate(&config, &calm));
    let whole = begun.elapsed();
    let (mut killed, mut rounds, mut state) = (0, 0, 0x9e37_79b9_7f4a_7c15_u64);
    let mut run = dir.path().join("run-0");
    while killed < 10 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let pause = whole.mul_f64((state >> 40) as f64 / (1u64 << 24) as f64);
        let mut command = ablate(&config, &run);
        command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().unwrap();
        std::thread::sleep(pause.max(Duration::from_millis(5)));
        if child.try_wait().unwrap().is_none() {
            kill(&mut child, killed % 2 == 0);
            killed += 1;
        }
        if child.wait().unwrap().success() {
            assert_eq!(table(&run), table(&calm));
            rounds += 1;
            run = dir.path().join(format!("run-{rounds}"));
        }
    }
    succeed(&mut ablate(&config, &run));
    assert_eq!(table(&run), table(&calm));
    println!("{killed} kills, {rounds} runs finished between them");
}

#[test]
fn parts_in_any_order_are_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (config, whole) = (configuration(dir.path()), dir.path().join("whole"));
    succeed(&mut ablate(&config, &whole));
    let run = dir.path().join("parts");
    succeed(bdhs().arg("sweep").arg(&config).arg("--out").arg(&run));
    for (stage, part) in [
        ("train", "3/3"),
        ("train", "1/3"),
        ("judge", "1/3"),
        ("train", "2/3"),
        ("judge", "2/3"),
        ("judge", "3/3"),
    ] {
        let mut command = bdhs();
        command.args(["sweep", "--stage", stage, "--part", part, "--from-run"]).arg(&run);
        succeed(&mut command);
    }
    succeed(bdhs().args(["sweep", "--train", "--eval", "--from-run"]).arg(&run));
    assert_eq!(table(&run), table(&whole));
    // By two devices, a process each for candidates and for models.
    let run = dir.path().join("devices");
    succeed(ablate(&config, &run).args(["--device", "cpu,cpu"]));
    assert_eq!(table(&run), table(&whole));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (configuration(dir.path()), dir.path().join("run"));
    let refused = |command: &mut Command, parts: &[&str]| {
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        println!("{error}");
        for part in parts {
            assert!(error.contains(part), "no {part:?} in: {error}");
        }
    };
    let stage = |stage: &str| {
        let mut command = bdhs();
        command.args(["sweep", "--stage", stage, "--from-run"]).arg(&run);
        command
    };
    refused(&mut stage("train"), &["run.json"]);
    succeed(bdhs().arg("sweep").arg(&config).arg("--out").arg(&run));
    refused(&mut stage("judge"), &["not trained yet"]);
    refused(&mut stage("sing"), &["expected train or judge"]);
    let text = std::fs::read_to_string(&config).unwrap();
    let change = |from: &str, to: &str| {
        assert!(text.contains(from));
        std::fs::write(&config, text.replace(from, to)).unwrap();
    };
    change("seeds = 2", "seeds = 2\ndefault_cell = \"bert__0.5\"");
    refused(&mut ablate(&config, &run), &["ablation.default_cell", "bert__0.5", "__0.97"]);
    change("seeds = 2", "seeds = 0");
    refused(&mut ablate(&config, &run), &["ablation.seeds", "at least 1"]);
    change("metrics = [", "metrics = [\"chess\", ");
    refused(&mut ablate(&config, &run), &["chess"]);
    change("rho = 1.0", "shade = 1.0");
    refused(&mut ablate(&config, &run), &["variant \"blind\", sampling", "shade"]);
    change("rho = 1.0", "rho = 1.5");
    refused(&mut ablate(&config, &run), &["variant \"blind\"", "rho", "1.5"]);
    change("\"ipo\"\ntrain", "\"blind\"\ntrain");
    refused(&mut ablate(&config, &run), &["variant.name", "\"blind\" is given twice"]);
    change("\"blind\"", "\"control\"");
    refused(&mut ablate(&config, &run), &["variant.name", "control"]);
    change("[eval]", "[eval]\njury = 3");
    refused(&mut ablate(&config, &run), &["sweep.toml", "jury"]);
    change("batch = 4", "batch = 9");
    refused(&mut ablate(&config, &run), &["pairs.jsonl", "usable pairs of 8", "train.batch = 9"]);
    // A judged metric without a judge is told before anything is trained.
    change("\"pope\", ", "\"mmvet\", ");
    refused(&mut ablate(&config, &run), &["mmvet"]);
    assert!(!run.join("models").join("control").exists());
    // One cell that cannot be trained is named, and the others are.
    std::fs::write(&config, &text).unwrap();
    succeed(bdhs().arg("sweep").arg(&config).arg("--out").arg(&run));
    let path = run.join("cells/mpnet__0.95/pairs.jsonl");
    let pairs = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, pairs.lines().next().unwrap()).unwrap();
    refused(&mut stage("train"), &["mpnet__0.95", "1 usable pairs of 1"]);
    assert!(!run.join("models/mpnet__0.95/train.json").exists());
    for model in ["bert__0.95", "control__seed1"] {
        assert!(run.join("models").join(model).join("train.json").exists(), "{model}");
    }
}
