//! What the integration tests share: the tiny checkpoints, a small dataset, the command.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod ablation;
pub mod disk;
pub mod place;
pub mod skip;
pub mod texts;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A folder under `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    place::root().join("tests/golden").join(name)
}

/// The tiny AnyRes LLaVA.
pub fn llava() -> PathBuf {
    golden("llava/next_vicuna")
}

/// The tiny encoders used in sweeps.
pub fn encoders() -> [PathBuf; 2] {
    [golden("encoders/bert"), golden("encoders/mpnet")]
}

/// The command under test.
pub fn bdhs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bdhs"));
    command.args(["--quiet", "--threads", "2"]);
    command
}

/// Runs to the end; panics with the error output unless it succeeds.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the command starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {error}");
    output
}

/// Stdout as one JSON document.
pub fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("stdout is one JSON document")
}

/// References of one to four sentences, two of them answering yes or no.
pub const REFERENCES: [&str; 8] = [
    "A red bus stands at the corner. Two people wait beside it. The sky is grey.",
    "Yes, there is a dog on the left. It looks at the camera and holds a ball.",
    "The kitchen is small but bright. A kettle stands on the stove. Nobody is there. It is noon.",
    "No, the cup is empty. A spoon lies next to it on the table.",
    "Three boats lie in the harbour. The water is calm and green.",
    "A woman reads a paper on a bench. Behind her, trees have lost their leaves.",
    "The clock shows 3.30 in the afternoon. A train of the old kind waits at the platform.",
    "A cat sleeps on a blue chair.",
];

/// Writes `n` small images of different shapes and a LLaVA conversation file; returns the file.
pub fn dataset(dir: &Path, n: usize) -> PathBuf {
    std::fs::create_dir_all(dir.join("images")).expect("a writable folder");
    let rows: Vec<serde_json::Value> = (0..n)
        .map(|i| {
            let (width, height) = [(40, 30), (30, 44), (64, 24), (24, 24)][i % 4];
            let name = format!("images/{i}.png");
            picture(width, height, i as u32).save(dir.join(&name)).expect("a writable file");
            serde_json::json!({
                "id": format!("sample-{i}"),
                "image": name,
                "conversations": [
                    {"from": "human", "value": format!("<image>\nDescribe picture {i}.")},
                    {"from": "gpt", "value": REFERENCES[i % REFERENCES.len()]},
                ],
            })
        })
        .collect();
    let file = dir.join("data.json");
    std::fs::write(&file, serde_json::to_string_pretty(&rows).expect("JSON"))
        .expect("a writable file");
    file
}

/// A picture made by a formula.
pub fn picture(width: u32, height: u32, seed: u32) -> image::RgbImage {
    image::RgbImage::from_fn(width, height, |x, y| {
        let value = |k: u32| ((x * (7 + k) + y * (13 - k) + seed * 29 * (k + 1)) % 256) as u8;
        image::Rgb([value(0), value(1), value(2)])
    })
}

/// `bdhs sweep` on a dataset with the tiny models and short answers.
pub fn sweep(data: &Path, out: &Path) -> Command {
    sweep_with(&llava(), data, out)
}

/// As [`sweep`], with another model.
pub fn sweep_with(model: &Path, data: &Path, out: &Path) -> Command {
    let mut command = bdhs();
    command.arg("sweep").arg("--model").arg(model).arg("--data").arg(data).arg("--out").arg(out);
    for encoder in encoders() {
        command.arg("--encoder").arg(encoder);
    }
    command.args(["--max-sentence-tokens", "24", "--max-response-tokens", "48"]);
    command
}

/// Every exported file of a run folder, by relative name, with its bytes.
pub fn exports(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![run.join("cells")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("an export folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(run).expect("inside").to_path_buf();
                found.push((name, std::fs::read(&path).expect("a readable export")));
            }
        }
    }
    found.sort();
    found
}
