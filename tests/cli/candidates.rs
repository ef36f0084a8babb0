//! Candidates made elsewhere: the grid and the exports of an ordinary run, and what another engine is given.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use bdhs::store::Store;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{bdhs, dataset, encoders, exports, json, llava, succeed};

fn sweep(data: &Path, out: &Path, model: bool) -> Command {
    let mut command = bdhs();
    command.args(["--json", "sweep", "--data"]).arg(data).arg("--out").arg(out);
    if model {
        command.arg("--model").arg(llava());
    }
    for encoder in encoders() {
        command.arg("--encoder").arg(encoder);
    }
    command.args(["--max-sentence-tokens", "6", "--max-response-tokens", "12", "--attempts", "3"]);
    command.args(["--rho", "0.5", "--threshold", "0.5", "--threshold", "0.999"]);
    command
}

/// The candidates of a run as rows, by what `form` makes of each.
fn rows(run: &Path, form: impl Fn(&bdhs::sampling::Candidate) -> (&'static str, Value)) -> String {
    let mut text = String::new();
    let store = Store::open(run.join("store.db")).unwrap();
    store
        .each_candidate(|_, one| {
            let (name, value) = form(&one);
            let id = format!("sample-{}", one.sample);
            let row = json!({"id": id, "attempt": one.attempt, "guided": one.guided, name: value});
            text.push_str(&format!("{row}\n"));
            Ok(())
        })
        .unwrap();
    text
}

#[test]
fn candidates_of_a_run_give_its_exports() {
    let dir = TempDir::new().unwrap();
    let data = dataset(dir.path(), 6);
    let own = dir.path().join("own");
    let summary = json(&succeed(&mut sweep(&data, &own, true)));
    let file = dir.path().join("candidates.jsonl");
    fs::write(&file, rows(&own, |one| ("parts", json!(one.parts)))).unwrap();
    let given = dir.path().join("given");
    let again = json(&succeed(sweep(&data, &given, true).arg("--candidates").arg(&file)));
    assert_eq!(summary["cells"], again["cells"]);
    assert_eq!(summary["candidates_generated"], again["candidates_generated"]);
    assert!(exports(&own) == exports(&given), "exports differ");
    assert!(given.join("report.html").is_file());

    // Completions alone are put together by the method's rules.
    let completions = |one: &bdhs::sampling::Candidate| {
        let all: Vec<&str> = one.parts.iter().map(|part| part.completion.as_str()).collect();
        ("completions", json!(all))
    };
    fs::write(&file, rows(&own, completions)).unwrap();
    let other = dir.path().join("completions");
    succeed(sweep(&data, &other, true).arg("--candidates").arg(&file));
    let texts = |run: &Path| {
        let path = run.join("cells/bert__0.50/pairs.jsonl");
        let text = fs::read_to_string(path).unwrap();
        let row = |line: &str| serde_json::from_str::<Value>(line).unwrap()["rejected"].clone();
        text.lines().map(row).collect::<Vec<_>>()
    };
    assert_eq!(texts(&own), texts(&other));

    // Without a model, whole texts.
    fs::write(&file, rows(&own, |one| ("text", json!(one.text)))).unwrap();
    let bare = dir.path().join("bare");
    let third = json(&succeed(sweep(&data, &bare, false).arg("--candidates").arg(&file)));
    assert_eq!(third["samples"], 6);
    assert_eq!(texts(&own), texts(&bare));

    // One that is needed is missing; one is there twice.
    let text = fs::read_to_string(&file).unwrap();
    let first = text.lines().next().unwrap();
    for (content, say) in [
        (
            text.replacen(&format!("{first}\n"), "", 1),
            "has no candidate of sample \"sample-0\", attempt 1",
        ),
        (format!("{text}{first}\n"), "is there already, on line 1"),
        (json!({"id": "sample-0", "attempt": 1}).to_string(), "one of text, completions and parts"),
    ] {
        fs::write(&file, content).unwrap();
        let out = dir.path().join("refused");
        let output = sweep(&data, &out, false).arg("--candidates").arg(&file).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && message.contains(say), "{message}");
    }
}

#[test]
fn prompts_say_what_the_method_decides() {
    let dir = TempDir::new().unwrap();
    let data = dataset(dir.path(), 3);
    let run = dir.path().join("run");
    succeed(&mut sweep(&data, &run, true));
    let file = dir.path().join("prompts.jsonl");
    let mut command = bdhs();
    command.args(["--json", "prompts", "--data"]).arg(&data).arg("--model").arg(llava());
    command.args(["--attempts", "3", "--rho", "0.5", "--max-sentence-tokens", "6"]);
    command.args(["--max-response-tokens", "12", "--prompts"]).arg(&file);
    assert_eq!(json(&succeed(&mut command))["attempts"], 9);
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut asked: HashMap<(u64, u64), &Value> = HashMap::new();
    for line in &lines {
        asked.insert((line["sample"].as_u64().unwrap(), line["attempt"].as_u64().unwrap()), line);
    }
    let store = Store::open(run.join("store.db")).unwrap();
    let mut compared = 0;
    store
        .each_candidate(|_, one| {
            let line = asked[&(one.sample.into(), one.attempt.into())];
            assert_eq!(line["guided"], one.guided);
            assert_eq!(line["kept"], json!(one.kept), "the masks of a run");
            assert_eq!(line["image_tokens"], one.image_tokens);
            let prefixes = line["prefixes"].as_array().unwrap();
            assert_eq!(prefixes.len(), one.parts.len());
            for (prefix, part) in prefixes.iter().zip(&one.parts) {
                assert!(prefix.as_str().unwrap().ends_with(&part.kept), "{prefix} {part:?}");
            }
            let positions = line["positions"].as_array().unwrap();
            assert_eq!(positions.len(), one.kept.len());
            compared += 1;
            Ok(())
        })
        .unwrap();
    assert!(compared >= 3);
}
