//! What services and models of today do differently from those that the benchmarks' scripts were written for.

use std::{path::Path, time::Duration};

use bdhs::eval::{Outcome, Settings, Sources, evaluate, judge::Endpoint, metric};
use serde_json::{Value, json};

use super::{
    common::{bdhs, succeed},
    folder,
    golden::lines,
    judge::{Act, ask, judge, mmhal, scored, serve},
    write,
};

/// Two MM-Vet questions.
fn mmvet(dir: &Path) {
    let item = |name: &str| json!({"imagename": "a.png", "question": name, "answer": "x", "capability": ["ocr"]});
    write(dir, "mm-vet.json", &json!({"v1_0": item("Q0"), "v1_1": item("Q1")}).to_string());
    write(dir, "mmvet_prompt.txt", "PROMPT\n");
    write(dir, "answers.jsonl", &json!({"v1_0": "p0", "v1_1": "p1"}).to_string());
}

/// A chat completion with this message.
fn completion(message: &Value, finish: &str) -> Act {
    let usage = json!({"prompt_tokens": u64::MAX, "completion_tokens": u64::MAX});
    let choice = json!({"message": message, "finish_reason": finish});
    Act::Status(200, "", json!({"model": "gpt-x", "choices": [choice], "usage": usage}).to_string())
}

fn refused(parameter: &str, message: &str) -> Act {
    let error =
        json!({"error": {"message": message, "param": parameter, "code": "unsupported_parameter"}});
    Act::Status(400, "", error.to_string())
}

/// The limit goes under its new name and the temperature stays away once each is refused: two requests more in all, and the
/// result says what was not sent.
#[test]
fn refused_parameters_are_sent_in_the_way_that_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    mmvet(dir.path());
    // By the field that names the parameter, or by the text alone.
    for by_field in [true, false] {
        let server = serve(move |_, body| {
            let name = |name: &'static str| if by_field { name } else { "" };
            let error = |parameter: &'static str, text: &str| match by_field {
                true => refused(name(parameter), text),
                false => Act::Status(422, "", json!({"detail": text}).to_string()),
            };
            if body.get("max_tokens").is_some() {
                error("max_tokens", "'max_tokens' is not supported: use 'max_completion_tokens'")
            } else if body.get("temperature").is_some() {
                error("temperature", "`temperature` does not support this value")
            } else {
                Act::Reply("0.5".into())
            }
        });
        let mut judge = judge(&server.url);
        judge.threads = 1;
        let _ = std::fs::remove_dir_all(dir.path().join("out"));
        let (replies, _) = ask(dir.path(), "mmvet", &judge).unwrap();
        let seen = server.seen.lock().unwrap();
        assert_eq!(seen.len(), 4, "{seen:?}");
        let last = &seen[3].1;
        assert_eq!((&last["max_completion_tokens"], last.get("temperature")), (&json!(3), None));
        assert!(lines(&replies).iter().all(|row| row["temperature"].is_null()));
        let outcome = scored(dir.path(), "mmvet", replies);
        assert_eq!(outcome.score, Some(50.0));
        assert_eq!(outcome.details["replies"]["no_temperature"], 2);
        assert!(outcome.table().contains("2 asked without a temperature"), "{}", outcome.table());
    }
}

/// A service that takes temperatures up to 1 gets the others as before, and 1.5 without one.
#[test]
fn one_refused_temperature_leaves_the_others() {
    let dir = tempfile::tempdir().unwrap();
    mmvet(dir.path());
    let server = serve(|_, body| match body["temperature"].as_f64() {
        Some(warm) if warm > 1.0 => refused("temperature", "at most 1"),
        Some(_) if body["messages"][0]["content"].as_str().unwrap().contains("Q1") => {
            Act::Reply("1".into())
        }
        _ => Act::Reply("well".into()),
    });
    let mut judge = judge(&server.url);
    judge.threads = 1;
    let (replies, _) = ask(dir.path(), "mmvet", &judge).unwrap();
    let rows = lines(&replies);
    let sent: Vec<Option<f64>> = rows.iter().map(|row| row["temperature"].as_f64()).collect();
    assert_eq!(sent, [Some(0.0), Some(0.0), Some(0.5), Some(1.0), None, Some(0.0)]);
}

/// Another refusal is what it says, and is not asked again.
#[test]
fn other_refusals_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    mmvet(dir.path());
    let server = serve(|_, _| refused("messages", "too long, reduce max_tokens or temperature"));
    let mut judge = judge(&server.url);
    judge.threads = 1;
    let error = ask(dir.path(), "mmvet", &judge).unwrap_err().to_string();
    assert!(error.contains("status 400") && error.contains("too long"), "{error}");
    assert_eq!(server.seen.lock().unwrap().len(), 1);
}

/// However a grade is wrapped, it is the same grade, and thoughts are none.
#[test]
fn content_in_every_form_is_read() {
    let text = |content: Value| json!({"role": "assistant", "content": content});
    for message in [
        text(json!("0.5")),
        text(json!("<think>\n0.2 perhaps\n</think>\n\n0.5")),
        text(json!("0.2 perhaps</think>0.5")),
        text(json!("```\n0.5\n```")),
        text(json!([{"type": "text", "text": "0.5"}])),
        text(
            json!([{"type": "thinking", "thinking": "0.2"}, {"type": "text", "text": "0."}, {"type": "text", "text": "5"}]),
        ),
        text(json!(["0.5"])),
    ] {
        let dir = tempfile::tempdir().unwrap();
        mmvet(dir.path());
        let sent = message.clone();
        let server = serve(move |_, _| completion(&sent, "stop"));
        let (replies, cost) = ask(dir.path(), "mmvet", &judge(&server.url)).unwrap();
        assert_eq!(scored(dir.path(), "mmvet", replies).score, Some(50.0), "{message}");
        // A service may claim any number of tokens; a sum of them does not wrap.
        assert_eq!(
            (cost.requests, cost.prompt_tokens, cost.completion_tokens),
            (2, u64::MAX, u64::MAX)
        );
    }
}

/// A content that is no text is no refusal either: it ends the run, names what came, and is not paid for again.
#[test]
fn content_that_is_no_text_ends_the_run() {
    for content in
        [json!(3), json!({"text": "0.5"}), json!([{"type": "audio", "data": "x"}]), json!(true)]
    {
        let dir = tempfile::tempdir().unwrap();
        mmvet(dir.path());
        let message = json!({"content": content});
        let server = serve(move |_, _| completion(&message, "stop"));
        let mut judge = judge(&server.url);
        judge.threads = 1;
        let error = ask(dir.path(), "mmvet", &judge).unwrap_err().to_string();
        assert!(
            error.contains("choices[0].message.content") && error.contains("expected"),
            "{error}"
        );
        assert_eq!(server.seen.lock().unwrap().len(), 1);
    }
}

fn try_scored(dir: &Path, name: &str, replies: std::path::PathBuf) -> bdhs::Result<Outcome> {
    let sources = Sources { predictions: Some(dir.join("answers.jsonl")), replies: vec![replies] };
    let settings = Settings { resamples: 0, ..Settings::default() };
    evaluate(metric(name)?, &folder(dir), &settings, &sources)
}

/// Replies that were used up by thoughts are counted as cut next to the score; where no reply has a grade there is no score.
#[test]
fn replies_without_a_grade_stand_next_to_the_score() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let cut = json!({"content": null, "reasoning_content": "rating: 5 perhaps"});
    let thinking = json!({"content": "<think>rating: 5 perhaps"});
    let server = serve(move |number, _| match number {
        0 | 1 => completion(&cut, "length"),
        2 => completion(&thinking, "length"),
        3 => Act::Reply("Good.".into()),
        4 => Act::Status(500, "", "oops".into()),
        _ => Act::Reply("Rating: 4".into()),
    });
    let mut judge = judge(&server.url);
    judge.threads = 1;
    let (replies, _) = ask(dir.path(), "mmhal", &judge).unwrap();
    let outcome = scored(dir.path(), "mmhal", replies.clone());
    let wanted = json!({"total": 8, "no_grade": 4, "cut": 3, "failed": 1, "no_temperature": 0});
    assert_eq!((outcome.score, &outcome.details["replies"]), (Some(2.0), &wanted));
    let line =
        "judge: 8 replies, 4 without a grade (3 cut by their limit of tokens), 1 failed requests";
    assert!(outcome.table().contains(line), "{}", outcome.table());
    let headline = outcome.headline().unwrap();
    assert_eq!(json!(headline.replies), wanted);
    // The same rows without any grade.
    let none: Vec<String> = lines(&replies)
        .into_iter()
        .map(|mut row| {
            if row["kind"] == "reply" && row["content"] == "Rating: 4" {
                row["content"] = "Good.".into();
            }
            row.to_string()
        })
        .collect();
    let path = write(dir.path(), "none.jsonl", &none.join("\n"));
    for name in ["mmhal", "mmhalv"] {
        let error = try_scored(dir.path(), name, path.clone()).unwrap_err().to_string();
        assert!(error.contains("no reply holds a grade") && error.contains("3 cut by"), "{error}");
        assert!(error.contains("--judge-max-tokens"), "{error}");
    }
}

/// A larger limit is sent, and replies of the smaller one are not mixed with it.
#[test]
fn the_limit_of_a_reply_can_be_raised() {
    let dir = tempfile::tempdir().unwrap();
    mmvet(dir.path());
    let server = serve(|_, body| {
        let short = body["max_tokens"].as_u64().unwrap() < 100;
        completion(
            &json!({"content": if short { "" } else { "0.5" }}),
            if short { "length" } else { "stop" },
        )
    });
    let mut judge = judge(&server.url);
    let (replies, _) = ask(dir.path(), "mmvet", &judge).unwrap();
    assert!(try_scored(dir.path(), "mmvet", replies).is_err());
    judge.max_tokens = Some(2000);
    let error = ask(dir.path(), "mmvet", &judge).unwrap_err().to_string();
    assert!(error.contains("was made with asks"), "{error}");
    std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    let (replies, _) = ask(dir.path(), "mmvet", &judge).unwrap();
    assert_eq!(scored(dir.path(), "mmvet", replies).score, Some(50.0));
}

/// Nothing is sent to where a service redirects.
#[test]
fn redirections_are_refused() {
    for status in [301, 302, 303, 307, 308] {
        let dir = tempfile::tempdir().unwrap();
        mmvet(dir.path());
        let other = serve(|_, _| Act::Reply("1".into()));
        let header: &'static str =
            Box::leak(format!("location: {}/x\r\n", other.url).into_boxed_str());
        let server = serve(move |_, _| Act::Status(status, header, String::new()));
        let mut judge = judge(&server.url);
        judge.threads = 1;
        let error = ask(dir.path(), "mmvet", &judge).unwrap_err().to_string();
        assert!(
            error.contains("redirects to http://127.0.0.1") && error.contains("OPENAI_BASE_URL"),
            "{error}"
        );
        assert_eq!((other.seen.lock().unwrap().len(), server.seen.lock().unwrap().len()), (0, 1));
    }
}

/// A service that repeats the key in JSON's escapes does not get it into a file or a message.
#[test]
fn keys_are_redacted_however_they_are_escaped() {
    let escaped: String = "sk-secret".bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let body = format!(
        r#"{{"model": "gpt-x", "choices": [{{"message": {{"content": "1 {escaped}"}}}}], "{escaped}": ["{escaped}"]}}"#
    );
    let dir = tempfile::tempdir().unwrap();
    mmvet(dir.path());
    let server = serve(move |_, _| Act::Status(200, "", body.clone()));
    let (replies, _) = ask(dir.path(), "mmvet", &judge(&server.url)).unwrap();
    let text = std::fs::read_to_string(&replies).unwrap();
    assert!(
        text.contains("1 [key]") && !text.contains("sk-secret") && !text.contains("\\u0073"),
        "{text}"
    );
    let error = format!(r#"{{"error": {{"message": "wrong key {escaped}"}}}}"#);
    let server = serve(move |_, _| Act::Status(401, "", error.clone()));
    std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    let error = ask(dir.path(), "mmvet", &judge(&server.url)).unwrap_err().to_string();
    assert!(error.contains("wrong key [key]") && !error.contains("\\u0073"), "{error}");
}

#[test]
fn settings_of_a_judge_have_bounds() {
    let dir = tempfile::tempdir().unwrap();
    mmvet(dir.path());
    let right = judge("http://127.0.0.1:9");
    for (change, wanted) in [
        (
            (|judge| judge.timeout = Duration::from_secs(u64::MAX))
                as fn(&mut bdhs::eval::judge::Judge),
            "at most 86400",
        ),
        (|judge| judge.timeout = Duration::ZERO, "more than 0"),
        (|judge| judge.backoff = Duration::MAX, "at most 86400"),
        (|judge| judge.runs = 0, "between 1 and 999"),
        (|judge| judge.threads = 1 << 20, "between 1 and 1024"),
        (|judge| judge.max_tokens = Some(0), "1 or more"),
        (|judge| judge.endpoint = Endpoint::new("host/v1", "m", None), "an address as"),
        (|judge| judge.endpoint = Endpoint::new("http://h", "m", Some("a\nb".into())), "one line"),
    ] {
        let mut judge = right.clone();
        change(&mut judge);
        let error = ask(dir.path(), "mmvet", &judge).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    assert!(!dir.path().join("out").exists(), "nothing is written before the settings hold");
}

/// The environment as clusters and other tools leave it: a proxy that cannot reach this machine, the address under its older
/// name and with its ending, a key with a line end.
#[test]
fn the_environment_of_other_tools_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    mmvet(dir.path());
    let server = serve(|_, _| Act::Reply("0.5".into()));
    let mut command = bdhs();
    command
        .args(["eval", "mmvet", "--judge", "gpt-x", "--judge-tries", "1", "--data"])
        .arg(dir.path());
    command.arg("--predictions").arg(dir.path().join("answers.jsonl"));
    command
        .arg("--out")
        .arg(dir.path().join("o"))
        .env_remove("OPENAI_BASE_URL")
        .env_remove("NO_PROXY");
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"] {
        command.env(name, "http://127.0.0.1:1");
    }
    command.env("OPENAI_API_BASE", format!("{}/chat/completions", server.url));
    command.env("OPENAI_API_KEY", "sk-secret\r\n");
    let output = succeed(&mut command);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains(&format!("judge gpt-x at {}, about: 2 requests", server.url)), "{told}");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("judge: 2 replies, 0 without a grade, 0 failed requests"), "{table}");
    assert!(server.seen.lock().unwrap().iter().all(|(key, _)| key == "Bearer sk-secret"));
}
