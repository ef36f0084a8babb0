//! Data of other people's shapes through whole commands: odd rows counted, stores that know content, own exports as input.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, StringBuilder, StructBuilder};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{REFERENCES, bdhs, dataset, encoders, exports, golden, json, succeed};

const SHORT: [&str; 8] = [
    "--max-sentence-tokens",
    "6",
    "--max-response-tokens",
    "8",
    "--attempts",
    "2",
    "--threshold",
    "0.9",
];

fn sweep(data: &Path, out: &Path) -> Command {
    let mut command = bdhs();
    command.args(["--json", "sweep", "--model"]).arg(golden("llava/llava15"));
    command.arg("--encoder").arg(&encoders()[0]).args(SHORT);
    command.arg("--data").arg(data).arg("--out").arg(out);
    command
}

fn train(pairs: impl AsRef<Path>, out: &Path) -> Command {
    let mut command = bdhs();
    command.args(["--json", "train", "--model"]).arg(golden("llava/llava15"));
    command.args(["--rank", "2", "--alpha", "4", "--epochs", "1", "--batch", "1"]);
    command.arg("--pairs").arg(pairs.as_ref()).arg("--out").arg(out);
    command
}

fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A Parquet of RLAIF-V's columns out of (id, bytes, question, chosen) rows.
fn rlaif(path: &Path, rows: &[(String, Vec<u8>, String, String)]) {
    let fields: Fields =
        vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]
            .into();
    let mut pictures = StructBuilder::new(
        fields,
        vec![Box::new(BinaryBuilder::new()), Box::new(StringBuilder::new())],
    );
    for (_, bytes, _, _) in rows {
        let own = (!bytes.is_empty()).then_some(bytes);
        pictures.field_builder::<BinaryBuilder>(0).unwrap().append_option(own);
        pictures.field_builder::<StringBuilder>(1).unwrap().append_value("x.png");
        pictures.append(true);
    }
    let texts = |get: fn(&(String, Vec<u8>, String, String)) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(get)))
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", texts(|row| &row.0)),
        ("image", Arc::new(pictures.finish())),
        ("question", texts(|row| &row.2)),
        ("chosen", texts(|row| &row.3)),
        ("rejected", texts(|_| "Nothing is there.")),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
        .collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let file = fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// The rows of [`dataset`], with their pictures' bytes.
fn rows(dir: &Path, count: usize) -> Vec<(String, Vec<u8>, String, String)> {
    dataset(dir, count);
    (0..count)
        .map(|i| {
            let bytes = fs::read(dir.join(format!("images/{i}.png"))).unwrap();
            let question = format!("Describe picture {i}.");
            (format!("sample-{i}"), bytes, question, REFERENCES[i % REFERENCES.len()].to_owned())
        })
        .collect()
}

#[test]
fn odd_rows_are_counted_and_the_rest_runs() {
    let dir = TempDir::new().unwrap();
    let mut rows = rows(dir.path(), 26);
    let half = rows[3].1.len() / 2;
    rows[3].1.truncate(half);
    rows[7].1 = b"no picture at all".to_vec();
    rows[9].1.clear();
    rows[12].2 = " ".to_owned();
    rows[15].3 = "A dog sits near the tree. ".repeat(400);
    let data = dir.path().join("train.parquet");
    rlaif(&data, &rows);
    let out = dir.path().join("run");

    let message = refused(&mut sweep(&data, &out));
    for word in [
        "--skip-bad",
        "5 of 26 rows",
        "2 x broken picture",
        "1 x missing picture",
        "1 x blank question or answer",
        "1 x too long for the model",
    ] {
        assert!(message.contains(word), "{word}\n{message}");
    }
    assert!(!out.join("store.db").exists());
    let mut command = sweep(&data, &out);
    let mut skipping = || {
        command.arg("--skip-bad");
        json(&succeed(&mut command))
    };
    let summary = skipping();
    assert_eq!(summary["samples"], 21);
    let counts = json!({"broken_picture": 2, "missing_picture": 1, "blank": 1, "too_long": 1});
    for (name, count) in counts.as_object().unwrap() {
        assert_eq!(&summary["skipped"][name], count, "{name}");
    }
    let listed = lines(&out.join("skipped.jsonl"));
    let mut numbers: Vec<u64> = listed.iter().map(|one| one["row"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [4, 8, 10, 13, 16]);
    let run: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(run["data"]["shapes"], json!({"rlaif-v": 24}));
    assert_eq!(run["data"]["rows"], 26);
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("rows of the data left out"));

    // Again, and from its own record: the same bytes, nothing generated.
    let before = exports(&out);
    let mut again = sweep(&data, &out);
    succeed(again.arg("--skip-bad"));
    let mut record = bdhs();
    succeed(record.args(["sweep", "--from-run"]).arg(&out));
    assert_eq!(before, exports(&out));

    // The pictures were in the data: they are files beside the pairs, which can be trained on from anywhere.
    let pairs = out.join("cells/bert__0.90/pairs.jsonl");
    for row in lines(&pairs) {
        let path = PathBuf::from(row["images"][0].as_str().unwrap());
        assert!(path.is_absolute() && path.is_file(), "{path:?}");
        assert_eq!(row["source_rejected"], "Nothing is there.");
    }
    for (i, name) in [
        "run",
        "run:bert__0.90",
        "run/cells/bert__0.90",
        "run/cells/bert__0.90/pairs.parquet",
        "run/cells/bert__0.90/pairs.jsonl",
    ]
    .iter()
    .enumerate()
    {
        let outcome =
            json(&succeed(&mut train(dir.path().join(name), &dir.path().join(format!("a{i}")))));
        assert!(outcome["pairs"].as_u64().unwrap() > 0, "{name}");
    }
    let message = refused(&mut train(dir.path().join("run:bert__0.5"), &dir.path().join("b")));
    assert!(message.contains("bert__0.90"), "{message}");

    // A share above which the run stops.
    let toml = dir.path().join("s.toml");
    fs::write(&toml, "data.max_skipped = 0.1\ndata.skip_bad = true\n").unwrap();
    let mut command = sweep(&data, &dir.path().join("other"));
    command.arg(&toml);
    let message = refused(&mut command);
    assert!(message.contains("19.2 %") && message.contains("max_skipped = 0.1"), "{message}");
}

#[test]
fn a_store_knows_content_not_paths() {
    let dir = TempDir::new().unwrap();
    let rows = rows(dir.path(), 4);
    let parquet = dir.path().join("train.parquet");
    rlaif(&parquet, &rows);
    let out = dir.path().join("run");
    let first = json(&succeed(&mut sweep(&dir.path().join("data.json"), &out)));
    let second = json(&succeed(&mut sweep(&parquet, &out)));
    assert_eq!(first["candidates_generated"], second["candidates_generated"]);
    let mut other = rows;
    other[1].3.push('!');
    rlaif(&parquet, &other);
    assert!(refused(&mut sweep(&parquet, &out)).contains("store.db"));
}

#[test]
fn exports_of_every_trainer() {
    let dir = TempDir::new().unwrap();
    let data = dataset(dir.path(), 3);
    let out = dir.path().join("run");
    let toml = dir.path().join("s.toml");
    fs::write(&toml, "export.format = [\"trl\", \"llama-factory\", \"swift\"]\n").unwrap();
    succeed(sweep(&data, &out).arg(&toml));
    let cell = out.join("cells/bert__0.90");
    let trl = lines(&cell.join("pairs.jsonl"));
    let llama = lines(&cell.join("llama_factory.jsonl"));
    let swift = lines(&cell.join("swift.jsonl"));
    assert_eq!((trl.len(), llama.len(), swift.len()), (3, 3, 3));
    for i in 0..3 {
        let rejected = &trl[i]["rejected"][0]["content"][0]["text"];
        assert_eq!(&llama[i]["rejected"]["value"], rejected);
        assert_eq!(&swift[i]["rejected_response"], rejected);
        assert_eq!(llama[i]["chosen"], json!({"from": "gpt", "value": REFERENCES[i]}));
        let question = format!("<image>\nDescribe picture {i}.");
        assert_eq!(llama[i]["conversations"], json!([{"from": "human", "value": question}]));
        let said = |role: &str, text: &str| json!({"role": role, "content": text});
        assert_eq!(
            swift[i]["messages"],
            json!([said("user", &question), said("assistant", REFERENCES[i])])
        );
        for other in [&llama[i], &swift[i]] {
            for column in ["images", "id", "phi", "candidate", "scores"] {
                assert_eq!(other[column], trl[i][column], "{column}");
            }
        }
    }
    let info: Value =
        serde_json::from_slice(&fs::read(cell.join("dataset_info.json")).unwrap()).unwrap();
    let entry = &info["bdhs_bert__0.90"];
    assert_eq!(
        (&entry["ranking"], &entry["file_name"]),
        (&json!(true), &json!("llama_factory.jsonl"))
    );
    let card = fs::read_to_string(cell.join("README.md")).unwrap();
    for word in
        ["data_files: pairs.parquet", "| pairs | 3 |", "`rejected`", "Licence", "sampling.rho"]
    {
        assert!(card.contains(word), "{word}\n{card}");
    }
    // All three are read back, and are the same pairs.
    let reference = |name: &str| {
        let out = dir.path().join(name);
        // Short answers are cut by the token limit, which is a flag.
        let toml = dir.path().join("all.toml");
        fs::write(&toml, "train.exclude_flagged = false\n").unwrap();
        let outcome = json(&succeed(train(cell.join(name), &out).arg(&toml)));
        outcome["pairs"].as_u64().unwrap()
    };
    assert_eq!(["pairs.jsonl", "llama_factory.jsonl", "swift.jsonl"].map(reference), [3; 3]);
    let mut toml_error = sweep(&data, &out);
    fs::write(&toml, "export.format = [\"axolotl\"]\n").unwrap();
    let message = refused(toml_error.arg(&toml));
    assert!(message.contains("axolotl") && message.contains("llama-factory"), "{message}");
}

#[test]
fn sample_leaves_a_sweep_as_it_is() {
    let dir = TempDir::new().unwrap();
    let data = dataset(dir.path(), 2);
    let out = dir.path().join("run");
    succeed(sweep(&data, &out).args(["--threshold", "0.97"]));
    let before = fs::read(out.join("summary.json")).unwrap();
    let mut command = bdhs();
    command
        .args(["sample", "--model"])
        .arg(golden("llava/llava15"))
        .arg("--encoder")
        .arg(&encoders()[0]);
    command.args(&SHORT[..6]).arg("--data").arg(&data).arg("--out").arg(&out);
    let message = refused(&mut command);
    assert!(message.contains("sweep of 2 cells"), "{message}");
    assert_eq!(before, fs::read(out.join("summary.json")).unwrap());
    // Without a folder, one of its own.
    let mut command = bdhs();
    command
        .args(["sample", "--model"])
        .arg(golden("llava/llava15"))
        .arg("--encoder")
        .arg(&encoders()[0]);
    command.args(&SHORT[..6]).arg("--data").arg(&data).current_dir(dir.path());
    succeed(&mut command);
    assert!(dir.path().join("runs/sample/summary.json").is_file());
    assert!(!dir.path().join("runs/sweep").exists());
}

#[test]
fn a_run_that_is_not_finished_has_its_record() {
    let dir = TempDir::new().unwrap();
    let data = dataset(dir.path(), 4);
    let out = dir.path().join("run");
    succeed(sweep(&data, &out).args(["--shard", "1/2"]));
    assert!(out.join("run.json").is_file() && !out.join("summary.json").exists());
    let mut command = bdhs();
    let summary = json(&succeed(command.args(["--json", "sweep", "--from-run"]).arg(&out)));
    assert_eq!(summary["samples"], 4);
}

// ---- pairs of other shapes ----

const GOOD: &str = "A red cart stands near the wall.";
const BAD: &str = "The boat is green.";

/// The reference log-probabilities of a file's pairs.
fn references(dir: &Path, name: &str, rows: &[Value], more: &[&str]) -> Vec<[f64; 2]> {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let path = dir.join(format!("{name}.jsonl"));
    fs::write(&path, text).unwrap();
    let out = dir.join(name);
    succeed(train(&path, &out).args(more));
    let text = fs::read_to_string(out.join("reference.jsonl")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            serde_json::from_value(line["log_probs"].clone()).unwrap()
        })
        .collect()
}

#[test]
fn pairs_of_every_shape_train_alike() {
    let dir = TempDir::new().unwrap();
    dataset(dir.path(), 1);
    let image = "images/0.png";
    let said = |from: &str, value: &str| json!({"from": from, "value": value});
    let message = |role: &str, text: &str| json!({"role": role, "content": text});
    let trl = json!({"images": [image], "prompt": [message("user", "What is it?")],
        "chosen": [message("assistant", GOOD)], "rejected": [message("assistant", BAD)]});
    let expected = references(dir.path(), "trl", std::slice::from_ref(&trl), &[]);
    assert_eq!(expected.len(), 1);
    let shapes = [
        (
            "template",
            json!({"images": [image], "prompt": "USER: <image>\nWhat is it? ASSISTANT:",
            "chosen": format!(" {GOOD}"), "rejected": format!(" {BAD}")}),
        ),
        (
            "factory",
            json!({"conversations": [said("human", "<image>What is it?")], "chosen": said("gpt", GOOD),
            "rejected": said("gpt", BAD), "images": [image]}),
        ),
        (
            "povid",
            json!({"id": 7, "image": image,
            "conversations": [said("human", "<image>\nWhat is it?"), said("gpt", GOOD)],
            "rejected_conversations": [said("human", "<image>\nWhat is it?"), said("gpt", BAD)]}),
        ),
        (
            "implicit",
            json!({"images": [image],
            "chosen": [message("user", "What is it?"), message("assistant", GOOD)],
            "rejected": [message("user", "What is it?"), message("assistant", BAD)]}),
        ),
    ];
    for (name, row) in shapes {
        assert_eq!(references(dir.path(), name, &[row], &[]), expected, "{name}");
    }
    // A row of text alone, one of equal answers, and one that is too long.
    let bad = [
        json!({"images": [], "prompt": "Name a fruit.", "chosen": GOOD, "rejected": BAD}),
        json!({"images": [image], "prompt": "What is it?", "chosen": GOOD, "rejected": GOOD}),
        json!({"images": [image], "prompt": "What is it?", "chosen": "long ".repeat(4000), "rejected": BAD}),
    ];
    let path = dir.path().join("odd.jsonl");
    let all: Vec<Value> = std::iter::repeat_n(trl, 12).chain(bad).collect();
    fs::write(&path, all.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let text = refused(&mut train(&path, &dir.path().join("odd")));
    for word in ["no image", "--skip-bad", "1 x rejected equals chosen"] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    let outcome = json(&succeed(train(&path, &dir.path().join("odd")).arg("--skip-bad")));
    assert_eq!(outcome["pairs"], 12);
    let reasons: Vec<Value> = lines(&dir.path().join("odd/skipped.jsonl"))
        .into_iter()
        .map(|one| one["reason"].clone())
        .collect();
    assert_eq!(reasons, ["no_picture", "nothing_to_prefer", "too_long"]);
}

/// With gamma, a step's log-probabilities are the weighted means of two trainings': on our answers and on the data's own.
#[test]
fn gamma_averages_two_rejected_answers() {
    let dir = TempDir::new().unwrap();
    dataset(dir.path(), 1);
    let row = |rejected: &str, source: Option<&str>| {
        json!({"images": ["images/0.png"], "prompt": "What is it?", "chosen": GOOD, "rejected": rejected,
            "source_rejected": source})
    };
    let step = |name: &str, row: Value, more: &[&str]| {
        let path = dir.path().join(format!("{name}.jsonl"));
        fs::write(&path, row.to_string()).unwrap();
        let out = dir.path().join(name);
        succeed(train(&path, &out).args(more));
        lines(&out.join("train.jsonl"))[0].clone()
    };
    let other = "Two birds sit on a fence.";
    let ours = step("ours", row(BAD, None), &[]);
    let source = step("source", row(other, None), &[]);
    let both = step("both", row(BAD, Some(other)), &["--gamma", "0.25"]);
    let value = |line: &Value, name: &str| line[name].as_f64().unwrap();
    for name in ["loss", "logps/chosen", "logps/rejected"] {
        let expected = 0.25 * value(&ours, name) + 0.75 * value(&source, name);
        let found = value(&both, name);
        assert!(
            (found - expected).abs() < 1e-5 * expected.abs(),
            "{name}: {found}, expected {expected}"
        );
    }
    assert!((value(&ours, "logps/rejected") - value(&source, "logps/rejected")).abs() > 1e-3);
    let ignored = step("ignored", row(BAD, Some(other)), &[]);
    assert_eq!(value(&ignored, "logps/rejected"), value(&ours, "logps/rejected"));
}

#[test]
fn doctor_describes_data() {
    let dir = TempDir::new().unwrap();
    let data = dataset(dir.path(), 5);
    let mut command = bdhs();
    let report = json(&succeed(command.args(["--json", "doctor", "--data"]).arg(&data)));
    let expected = json!({"shapes": {"llava": 5}, "rows": 5, "samples": 5, "skipped": {}});
    assert_eq!(report["data"], expected);
    fs::remove_file(dir.path().join("images/3.png")).unwrap();
    let mut command = bdhs();
    let message = refused(command.args(["doctor", "--data"]).arg(&data));
    assert!(message.contains("3.png") && message.contains("--skip-bad"), "{message}");
}
