//! The command: its documents, its help, answering with a model, and being killed.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    common::{self, bdhs, succeed},
    golden::lines,
    judge::{Act, mmhal, serve},
    write,
};

fn eval(metric: &str, data: &Path) -> Command {
    let mut command = bdhs();
    command.args(["eval", metric, "--data"]).arg(data);
    command
}

/// POPE about `n` pictures, two questions each.
fn pope(dir: &Path, n: usize) {
    std::fs::create_dir_all(dir.join("images")).expect("a folder");
    let mut rows = Vec::new();
    for i in 0..n {
        let name = format!("{i}.png");
        let picture = common::picture(30 + i as u32, 24, i as u32);
        picture.save(dir.join("images").join(&name)).expect("a writable file");
        for (thing, label) in [("dog", "yes"), ("cat", "no")] {
            let text = format!("Is there a {thing} in the image?");
            rows.push(
                json!({"question_id": rows.len() + 1, "image": name, "text": text, "label": label})
                    .to_string(),
            );
        }
    }
    write(dir, "coco_pope_random.json", &rows.join("\n"));
}

fn answered(dir: &Path, out: &str) -> Command {
    let mut command = eval("pope", dir);
    command.arg("--model").arg(common::llava()).arg("--images").arg(dir.join("images"));
    command.arg("--out").arg(dir.join(out)).args([
        "--max-new-tokens",
        "6",
        "--resamples",
        "50",
        "--json",
    ]);
    command
}

#[test]
fn help_names_files_and_where_they_come_from() {
    for name in ["pope", "mmhal", "mmhalv", "llavaw", "vqat", "gqa", "mmvet", "recall-coco"] {
        let output = succeed(bdhs().args(["eval", name, "--help"]));
        let text = String::from_utf8_lossy(&output.stdout);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let spec = bdhs::eval::metric(name).unwrap().spec();
        for input in spec.inputs {
            for part in [input.key, input.what, input.from] {
                let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(text.contains(&part), "{name}: {part:?} is not in {text}");
            }
        }
        assert!(text.contains(&format!("{} (default)", spec.protocols[0])), "{name}: {text}");
    }
}

#[test]
fn a_model_answers_and_a_stopped_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    pope(dir.path(), 4);
    let whole = common::json(&succeed(&mut answered(dir.path(), "whole")));
    assert_eq!(whole["metric"], "pope");
    let keys: Vec<&String> = whole.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["metric", "protocol", "score", "details", "items"]);
    let path = dir.path().join("whole/predictions.jsonl");
    let rows = lines(&path);
    assert_eq!(rows.len(), 8);
    let prompt = "Is there a dog in the image?\nAnswer the question using a single word or phrase.";
    assert_eq!(rows[0]["prompt"], prompt);
    assert!(rows.iter().all(|row| row["tokens"].as_u64().unwrap() <= 6));
    // Cut off in the middle of the fourth row: the same command writes what is missing.
    let text = std::fs::read_to_string(&path).unwrap();
    let cut = text.match_indices('\n').nth(2).unwrap().0 + 20;
    std::fs::write(&path, &text[..cut]).unwrap();
    let again = common::json(&succeed(&mut answered(dir.path(), "whole")));
    assert_eq!(lines(&path).len(), 8);
    assert_eq!(again["items"].as_array().unwrap().len(), 8);
    // The predictions alone give the same result.
    let mut scored = eval("pope", dir.path());
    scored.arg("--predictions").arg(&path).args(["--resamples", "50", "--json"]);
    assert_eq!(common::json(&succeed(&mut scored))["score"], again["score"]);
    // While a process answers, a second one says so and changes nothing.
    let held = std::fs::File::open(&path).unwrap();
    held.lock().unwrap();
    let output = answered(dir.path(), "whole").output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use by another process"));
    drop(held);
    assert_eq!(lines(&path).len(), 8);
    // Another setting is another run.
    let mut other = answered(dir.path(), "whole");
    other.args(["--rho", "1"]);
    let output = other.output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("was made with rho 0.0, this run has 1.0")
    );
}

#[test]
fn missing_images_are_named() {
    let dir = tempfile::tempdir().unwrap();
    pope(dir.path(), 2);
    std::fs::remove_file(dir.path().join("images/1.png")).unwrap();
    let output = answered(dir.path(), "out").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no image \"1.png\""));
}

#[test]
fn results_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    pope(dir.path(), 4);
    for (name, text) in [("a", "Yes"), ("b", "No")] {
        // The random split's ids, as LLaVA numbers them.
        let rows: Vec<String> = (10_000_001..=10_000_008)
            .map(|id| json!({"question_id": id, "text": text}).to_string())
            .collect();
        let answers = write(dir.path(), &format!("{name}.jsonl"), &rows.join("\n"));
        let mut command = eval("pope", dir.path());
        command.arg("--predictions").arg(answers).arg("--out").arg(dir.path().join(name));
        succeed(&mut command);
    }
    let mut command = bdhs();
    command.args(["eval", "compare", "--json"]);
    command.args(["a", "b"].map(|name| dir.path().join(name).join("result.json")));
    let found = common::json(&succeed(&mut command));
    assert_eq!(found["differing"].as_array().unwrap().len(), 8);
    assert_eq!(found["scores"]["accuracy"]["difference"]["value"], 0.0);
    for name in ["items.jsonl", "lmms_eval_results.json", "lmms_eval_samples_pope.jsonl"] {
        assert!(dir.path().join("a").join(name).exists(), "{name}");
    }
}

fn judged(dir: &Path, url: &str) -> Command {
    let mut command = eval("mmhal", dir);
    command.arg("--predictions").arg(dir.join("answers.jsonl")).arg("--out").arg(dir.join("out"));
    command.args(["--judge", "gpt-x", "--judge-threads", "2", "--json"]);
    command.env("OPENAI_BASE_URL", url).env("OPENAI_API_KEY", "sk-secret");
    command
}

/// Killed while replies come in, again and again; in the end every item has its reply, and at most the requests that were under
/// way at each kill (two threads) were asked again.
#[test]
fn a_killed_judge_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|_, _| {
        std::thread::sleep(Duration::from_millis(150));
        Act::Reply("Rating: 4".into())
    });
    let path = dir.path().join("out/replies.jsonl");
    let rows = || std::fs::read_to_string(&path).unwrap_or_default().matches('\n').count();
    let mut kills = 0;
    for wanted in [1, 4] {
        let mut child = judged(dir.path(), &server.url)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while rows() < wanted && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    let before = rows();
    assert!(before >= 4);
    let output = succeed(&mut judged(dir.path(), &server.url));
    let outcome = common::json(&output);
    assert_eq!(outcome["score"], 4.0);
    let stored = lines(&path);
    let mut ids: Vec<&Value> = stored.iter().map(|row| &row["id"]).collect();
    ids.sort_by_key(|id| id.to_string());
    ids.dedup();
    assert_eq!((ids.len(), stored.len()), (8, 8));
    assert!(server.seen.lock().unwrap().len() <= 8 + 2 * kills);
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    for when in ["about: ", "now: "] {
        assert!(shown.contains(&format!("judge gpt-x at {}, {when}", server.url)), "{shown}");
    }
    assert!(!shown.contains("sk-secret"));
}

/// A judge that does not answer for a minute: whoever waits for it ends within ten seconds of being asked to, by any of the
/// three signals, and says that it can be started again.
#[test]
#[cfg(unix)]
fn a_stop_is_heard_whatever_is_waited_for() {
    let dirs: Vec<tempfile::TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let server = serve(|_, _| {
        std::thread::sleep(Duration::from_secs(60));
        Act::Reply("Rating: 4".into())
    });
    let children: Vec<_> = ["TERM", "HUP", "INT"]
        .into_iter()
        .zip(&dirs)
        .map(|(signal, dir)| {
            mmhal(dir.path());
            let mut command = judged(dir.path(), &server.url);
            let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            (signal, child)
        })
        .collect();
    let begun = Instant::now();
    while server.seen.lock().unwrap().len() < 6 && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let begun = Instant::now();
    for (signal, child) in &children {
        let sent =
            Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
    for (signal, child) in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(130), "{signal}: {text}");
        assert!(text.contains("the same command resumes"), "{signal}: {text}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{signal}: {:?}", begun.elapsed());
    }
}

/// Under `nohup` the end of the terminal ends nothing.
#[test]
#[cfg(unix)]
fn an_ignored_hangup_stays_ignored() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|_, _| {
        std::thread::sleep(Duration::from_millis(300));
        Act::Reply("Rating: 4".into())
    });
    let inner = judged(dir.path(), &server.url);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(inner.get_program());
    command.args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while server.seen.lock().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let sent = Command::new("kill").args(["-HUP".to_owned(), child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(dir.path().join("out/result.json").exists());
}
