//! Whole runs of the command on the tiny models.

use std::path::Path;

use crate::common::{self, bdhs, dataset, encoders, exports, json, llava, succeed, sweep};
use serde_json::Value;

fn cell<'a>(summary: &'a Value, encoder: &str, threshold: f64) -> &'a Value {
    summary["cells"]
        .as_array()
        .and_then(|cells| {
            cells.iter().find(|c| c["encoder"] == encoder && c["threshold"] == threshold)
        })
        .expect("the cell")
}

/// The fixed names of the JSON document, and the arithmetic between them.
#[test]
fn sweep_prints_the_whole_grid_as_one_json_document() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 6);
    let out = dir.path().join("run");
    let summary = json(&succeed(sweep(&data, &out).args(["--rho", "0.5", "--json"])));
    let cells = summary["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 10);
    let mut independent = 0.0;
    for cell in cells {
        assert_eq!(cell["pairs"], 6);
        let accepted = cell["accepted_by_attempt"].as_array().unwrap();
        assert_eq!(accepted.len(), 5);
        let accepted: u64 = accepted.iter().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(accepted + cell["forced"].as_u64().unwrap(), 6);
        let phi = &cell["phi"];
        let quantile = |name: &str| phi[name].as_f64().unwrap();
        assert!(quantile("p05") <= quantile("p50") && quantile("p50") <= quantile("p95"));
        independent += cell["mean_attempts"].as_f64().unwrap() * 6.0;
    }
    let generated = summary["candidates_generated"].as_u64().unwrap();
    let total = summary["candidates_if_independent"].as_u64().unwrap();
    assert!((independent - total as f64).abs() < 1e-6);
    assert!(generated >= 6 && generated <= total);
    let stored: Value =
        serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(stored["cells"], summary["cells"]);
    assert_eq!(exports(&out).len(), 30);
}

/// Where memory runs out, a run goes on with less at a time, and says so; its answers stay.
#[test]
fn a_run_goes_on_in_less_memory() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 6);
    let slot = {
        let seen = json(&succeed(bdhs().arg("doctor").arg("--model").arg(llava()).arg("--json")));
        seen["model"]["memory"][0]["cache_bytes_per_token"].as_u64().unwrap()
    };
    let run = |name: &str, slots: u64| {
        let mut command = sweep(&data, &dir.path().join(name));
        command.args(["--rho", "0.5", "--json", "--token-budget", "100000"]);
        command.env("BDHS_MEMORY", (slots * slot).to_string());
        command
    };
    let whole = succeed(&mut run("whole", 1 << 30));
    assert_eq!(json(&whole)["budget_lowered"], 0);
    let less = succeed(&mut run("less", 700));
    assert!(json(&less)["budget_lowered"].as_u64().unwrap() > 0);
    let said = String::from_utf8_lossy(&less.stderr);
    assert!(said.contains("going on with") && said.contains("are free"), "{said}");
    assert_eq!(exports(&dir.path().join("less")), exports(&dir.path().join("whole")));

    let none = run("none", 3).output().unwrap();
    assert_eq!(none.status.code(), Some(1));
    let said = String::from_utf8_lossy(&none.stderr);
    assert!(said.contains("out of memory: keys and values of a wave needs"), "{said}");
    // What was wrong is over: the same run goes on.
    succeed(&mut run("none", 1 << 30));
}

/// Memory is looked at once: the store keeps what it was good for.
#[test]
fn a_run_keeps_its_token_budget() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 4);
    let run = |out: &str, shard: &str, memory: &str| {
        let mut command = sweep(&data, &dir.path().join(out));
        command.args(["--rho", "1", "--shard", shard]).env("BDHS_MEMORY", memory);
        command
    };
    let refused = run("new", "1/1", "unknown").output().unwrap();
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("BDHS_MEMORY"));
    succeed(&mut run("whole", "1/1", "1000000000"));
    succeed(&mut run("whole", "1/1", "unknown"));
    succeed(&mut run("parts", "1/2", "1000000000"));
    succeed(&mut run("parts", "2/2", "1000000000"));
    succeed(&mut run("parts", "1/1", "unknown"));
}

/// A larger threshold never takes longer to accept.
#[test]
fn acceptance_grows_with_the_threshold() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 8);
    let summary =
        json(&succeed(sweep(&data, &dir.path().join("run")).args(["--rho", "1", "--json"])));
    for pair in summary["cells"].as_array().unwrap().windows(2) {
        if pair[0]["encoder"] == pair[1]["encoder"] {
            let mean = |cell: &Value| cell["mean_attempts"].as_f64().unwrap();
            assert!(mean(&pair[0]) >= mean(&pair[1]));
        }
    }
}

/// Every cell of the grid equals a run of that cell alone, replayed on the same store.
#[test]
fn each_cell_equals_a_single_cell_run_replayed_on_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 6);
    let out = dir.path().join("run");
    let args = ["--rho", "0.5", "--json"];
    let grid = json(&succeed(sweep(&data, &out).args(args)));
    let expected = exports(&out);
    let candidates = candidates(&out);
    for encoder in encoders() {
        let name = encoder.file_name().unwrap().to_str().unwrap();
        for threshold in ["0.9", "0.93", "0.95", "0.97", "0.99"] {
            std::fs::remove_dir_all(out.join("cells")).unwrap();
            let mut command = bdhs();
            command.arg("sample").arg("--model").arg(common::llava()).arg("--data").arg(&data);
            command.arg("--out").arg(&out).arg("--encoder").arg(&encoder);
            command.args(["--max-sentence-tokens", "24", "--max-response-tokens", "48"]);
            let one = json(&succeed(command.args(["--threshold", threshold]).args(args)));
            let threshold: f64 = threshold.parse().unwrap();
            assert_eq!(cell(&one, name, threshold), cell(&grid, name, threshold));
            let files = exports(&out);
            assert_eq!(files.len(), 2);
            for file in files {
                assert!(expected.contains(&file), "{}", file.0.display());
            }
        }
    }
    assert_eq!(self::candidates(&out), candidates, "nothing was generated again");
}

fn candidates(out: &Path) -> usize {
    bdhs::store::Store::open(out.join("store.db")).unwrap().candidates().unwrap().len()
}

/// One shard and three merged shards give the same bytes.
#[test]
fn three_merged_shards_equal_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 8);
    let config = dir.path().join("run.toml");
    std::fs::write(&config, "[run]\nblock = 2\n[sampling]\nrho = 0.5\n").unwrap();
    let whole = dir.path().join("whole");
    let first = json(&succeed(sweep(&data, &whole).arg(&config).arg("--json")));
    let parts = dir.path().join("parts");
    for shard in ["3/3", "1/3", "2/3"] {
        succeed(sweep(&data, &parts).arg(&config).args(["--shard", shard]));
    }
    let second = json(&succeed(sweep(&data, &parts).arg(&config).arg("--json")));
    assert_eq!(exports(&parts), exports(&whole));
    for field in ["cells", "candidates_generated", "candidates_if_independent", "overlap"] {
        assert_eq!(first[field], second[field], "{field}");
    }
}

/// References without an image, which rho = 1 allows.
#[test]
fn references_without_images_run_at_rho_one_only() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("text.jsonl");
    let rows: String = common::REFERENCES
        .iter()
        .enumerate()
        .map(|(i, r)| {
            format!("{}\n", serde_json::json!({"id": i, "prompt": "Describe.", "reference": r}))
        })
        .collect();
    std::fs::write(&data, rows).unwrap();
    let out = dir.path().join("run");
    let refused = sweep(&data, &out).args(["--rho", "0.99"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("text.jsonl: line 1"));
    let summary = json(&succeed(sweep(&data, &out).args(["--rho", "1", "--json"])));
    assert_eq!(summary["samples"], 8);
}

/// `paper` mode and the corruptions run through the same command.
#[test]
fn settings_of_the_method_reach_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 4);
    let settings = [
        ("exact", "law = \"exact_k\"\nrho = 0.7"),
        ("blocks", "law = { blocks = { block = 2 } }\nrho = 0.7"),
        ("noise", "rho = 0.0\nnoise_steps = 500"),
        ("free", "guidance = false"),
        ("greedy", "temperature = 0.0\npositions = \"compact\"\nnewlines = \"exempt\""),
        ("one", "attempts = 1"),
    ];
    for (name, text) in settings {
        let config = dir.path().join(format!("{name}.toml"));
        std::fs::write(&config, format!("[sampling]\n{text}\n")).unwrap();
        let out = dir.path().join(name);
        let summary = json(&succeed(sweep(&data, &out).arg(&config).arg("--json")));
        assert_eq!(summary["samples"], 4, "{name}");
        let stored = bdhs::store::Store::open(out.join("store.db")).unwrap();
        for (_, candidate) in stored.candidates().unwrap() {
            let alone = name == "one";
            let last = candidate.attempt == 5;
            assert_eq!(candidate.guided, name != "free" && (alone || !last), "{name}");
            match name {
                "exact" => assert_eq!(
                    candidate.kept.len(),
                    (0.3 * f64::from(candidate.image_tokens)).round() as usize
                ),
                "noise" => assert_eq!(candidate.kept.len(), candidate.image_tokens as usize),
                _ => {}
            }
        }
    }
    let out = dir.path().join("paper");
    succeed(sweep(&data, &out).args(["--paper"]));
    let store = bdhs::store::Store::open(out.join("store.db")).unwrap();
    assert!(store.manifest().sampling.contains(r#""sentences":"first_dot""#));
}

/// `score` on given texts: first below the threshold, else the last; the same cells as `sweep` prints.
#[test]
fn score_decides_given_candidates() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, texts: &[&str]| {
        let rows: String = texts
            .iter()
            .enumerate()
            .map(|(i, text)| {
                format!("{}\n", serde_json::json!({"id": format!("r{i}"), "text": text}))
            })
            .collect();
        let path = dir.path().join(name);
        std::fs::write(&path, rows).unwrap();
        path
    };
    let reference = common::REFERENCES;
    let references = write("a.jsonl", &reference[..3]);
    // Sample 0 changes at once, sample 1 at the second attempt, sample 2 never.
    let first = write("b.jsonl", &["Completely different words here", reference[1], reference[2]]);
    let second = write("c.jsonl", &[reference[0], "Nothing of the kind can be seen", reference[2]]);
    let mut command = bdhs();
    command.arg("score").arg("--references").arg(references);
    command.arg("--candidates").args([first, second]);
    command.arg("--encoder").args(encoders()).args(["--threshold", "0.9", "0.99", "--json"]);
    let summary = json(&succeed(&mut command));
    for cell in summary["cells"].as_array().unwrap() {
        assert_eq!(cell["accepted_by_attempt"], serde_json::json!([1, 1]), "{cell}");
        assert_eq!(cell["forced"], 1);
        assert_eq!(cell["mean_attempts"], 5.0 / 3.0);
    }
    assert_eq!(summary["flags"]["identical"], 4);
}

/// `embed` writes rows in input order, in all three formats, with the same values.
#[test]
fn embed_writes_rows_in_input_order() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("texts.jsonl");
    let texts = ["", "a", common::REFERENCES[2], "b c", common::REFERENCES[0]];
    let rows: String = texts
        .iter()
        .enumerate()
        .map(|(i, text)| format!("{}\n", serde_json::json!({"id": i, "text": text})))
        .collect();
    std::fs::write(&input, rows).unwrap();
    let [encoder, _] = encoders();
    let run = |name: &str| {
        let output = dir.path().join(name);
        let mut command = bdhs();
        command.arg("embed").arg("--encoder").arg(&encoder).arg("--input").arg(&input);
        let report = json(&succeed(command.arg("--output").arg(&output).arg("--json")));
        assert_eq!(report["rows"], 5);
        std::fs::read(&output).unwrap()
    };
    let npy = run("out.npy");
    let expected = bdhs::models::encoder::SentenceEncoder::load(
        &encoder,
        &candle_core::Device::Cpu,
        candle_core::DType::F32,
    )
    .unwrap()
    .embed(&texts)
    .unwrap()
    .vectors
    .flatten_all()
    .unwrap()
    .to_vec1::<f32>()
    .unwrap();
    let values: Vec<f32> = npy[npy.len() - 4 * expected.len()..]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    assert_eq!(values, expected);
    assert!(run("out.safetensors").ends_with(&npy[npy.len() - 4 * expected.len()..]));
    let lines = String::from_utf8(run("out.jsonl")).unwrap();
    let third: Value = serde_json::from_str(lines.lines().nth(2).unwrap()).unwrap();
    let dim = expected.len() / 5;
    let third: Vec<f32> =
        third["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    assert_eq!(third, expected[2 * dim..3 * dim]);
}

#[test]
fn doctor_reports_a_usable_device_and_refuses_an_unknown_one() {
    let report = json(&succeed(bdhs().args(["doctor", "--json"])));
    assert_eq!(report["device"]["usable"], true);
    assert_eq!(report["threads"], 2);
    let output = bdhs().args(["doctor", "--json", "--device", "tpu"]).output().unwrap();
    assert_eq!(json(&output)["device"]["usable"], false);
    // Scripts hear of it by the exit code.
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tpu"));
}

/// An adapter is part of the model, beside its base or named as the model.
#[test]
fn an_adapter_makes_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 3);
    let adapter = common::golden("llava/adapter_next_vicuna");
    let run = |name: &str, arguments: &[&Path]| {
        let out = dir.path().join(name);
        succeed(sweep(&data, &out).args(arguments));
        exports(&out)
    };
    let plain = run("plain", &[]);
    let beside = run("beside", &[Path::new("--adapter"), &adapter]);
    assert_ne!(plain, beside);
    let config = dir.path().join("run.toml");
    let [base, adapter] = [common::llava(), adapter].map(|path| path.display().to_string());
    std::fs::write(&config, format!("[model]\npath = {base:?}\nadapter = {adapter:?}\n")).unwrap();
    let out = dir.path().join("beside");
    // The adapter alone, and both in a file, go on with the run: nothing is left to generate.
    let saved: Value =
        serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(saved["config"]["model"]["adapter"], adapter);
    for first in [format!("--model={adapter}"), config.display().to_string()] {
        let mut again = bdhs();
        again.arg("sweep").arg(&first).arg("--data").arg(&data).arg("--out").arg(&out);
        for encoder in encoders() {
            again.arg("--encoder").arg(encoder);
        }
        again.args(["--max-sentence-tokens", "24", "--max-response-tokens", "48"]);
        succeed(&mut again);
    }
    assert_eq!(exports(&out), beside);
    let refused = sweep(&data, &out).output().unwrap();
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("model_fingerprint"));
    let training =
        sweep(&data, &out).arg("--adapter").arg(&adapter).arg("--train").output().unwrap();
    assert_eq!(training.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&training.stderr).contains("training on the adapter"));
}

#[test]
fn bench_sets_rates_beside_ceilings() {
    let encoder = &encoders()[0];
    let mut command = bdhs();
    command.args(["bench", "--json", "--seconds", "0", "--encoder"]).arg(encoder);
    let report = json(&succeed(&mut command));
    let rows = report["rows"].as_array().unwrap();
    let units: Vec<&str> = rows.iter().map(|row| row["unit"].as_str().unwrap()).collect();
    let decoding = ["tokens"; 5].as_slice();
    assert_eq!(units, [&["texts", "tokens"], decoding, &["attempts", "tokens"]].concat());
    assert!(rows.iter().all(|row| row["rate"].as_f64().unwrap() > 0.0), "{report}");
    // A network cannot pass what the machine gives; a busy machine may have given less before, hence the room.
    let shares: Vec<f64> = rows.iter().filter_map(|row| row["share"].as_f64()).collect();
    assert_eq!(shares.len(), 7);
    assert!(shares.iter().all(|share| (0.0..3.0).contains(share) && *share > 0.0), "{report}");
    for ceiling in ["product_f32", "read"] {
        assert!(report["ceilings"][ceiling].as_f64().unwrap() > 1e8, "{report}");
    }
    // Attempts at 16 scenes draw several tokens each.
    let rate = |row: usize| rows[row]["rate"].as_f64().unwrap();
    assert!(rate(8) > 3.0 * rate(7), "{report}");
    let failed = bdhs().args(["bench", "--seconds", "-1"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(3));
    let message = String::from_utf8_lossy(&failed.stderr);
    assert!(message.contains("seconds") && message.contains("between 0 and 3600"), "{message}");
}
