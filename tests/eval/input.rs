//! What is refused, with what words, and what is scored in spite of its looks.

use std::path::Path;

use bdhs::eval::{Files, Settings};
use serde_json::json;

use super::{files, folder, predictions, protocol, replies, run, score, write};

/// A folder with three POPE questions, ids 1, 2, 3 with labels yes, no, yes.
fn pope(dir: &Path) -> Files {
    let row = |n: usize, label: &str| {
        json!({"question_id": n, "image": "a.jpg", "text": format!("Is there a thing {n} in the image?"), "label": label})
            .to_string()
    };
    write(
        dir,
        "coco_pope_adversarial.json",
        &[row(1, "yes"), row(2, "no"), row(3, "yes")].join("\n"),
    );
    folder(dir)
}

fn row(id: impl serde::Serialize, text: &str) -> String {
    json!({"question_id": id, "text": text}).to_string()
}

/// Prediction files that are refused: the file, and what the message says.
#[test]
fn predictions_that_are_refused() {
    let ok = [row(1, "Yes"), row(2, "No")];
    let lines = |rows: &[String]| rows.join("\n");
    let more = |last: String| lines(&[ok[0].clone(), ok[1].clone(), last]);
    let cases: &[(&str, String, &[&str])] = &[
        ("missing", lines(&ok), &["no answer for 1 of 3 questions (3)", "--allow-missing"]),
        ("duplicate", more(row(2, "Yes")), &["line 3", "answers \"2\" again, after line 2"]),
        ("extra", more(row(7, "Yes")), &["line 3", "answers \"7\"", "--allow-extra"]),
        ("no id", more("{\"text\": \"Yes\"}".into()), &["line 3: has no id"]),
        ("bad id", more(row([1], "Yes")), &["line 3: field question_id: is a list"]),
        ("fraction", more(row(1.5, "Yes")), &["line 3: field question_id: is 1.5"]),
        ("no text", more("{\"question_id\": 3}".into()), &["line 3: field text: is missing"]),
        ("null", more("{\"question_id\": 3, \"text\": null}".into()), &["line 3", "field text"]),
        (
            "a number",
            more("{\"question_id\": 3, \"text\": 5}".into()),
            &["line 3: field text: is 5"],
        ),
        ("half a row", more("{\"question_id\": 3, \"te".into()), &["line 3: is not valid JSON"]),
        ("no rows", String::new(), &["has no rows"]),
        ("html", "<html>busy</html>".into(), &["line 1: is not valid JSON"]),
        ("too few", "[{\"answer\": \"yes\"}]".into(), &["has 1 rows without ids, expected 3"]),
    ];
    for (name, text, wanted) in cases {
        let dir = tempfile::tempdir().unwrap();
        let files = pope(dir.path());
        let answers = write(dir.path(), "answers.jsonl", text);
        let error = run("pope", &files, &protocol("llava"), &predictions(&answers)).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("answers.jsonl"), "{name}: {message}");
        for part in *wanted {
            assert!(message.contains(part), "{name}: {message:?} lacks {part:?}");
        }
    }
}

/// Odd answers that have a documented score: empty, braces, line breaks, very long, other order.
#[test]
fn predictions_that_are_scored() {
    let long = format!("No{}", " very".repeat(20_000));
    assert!(long.len() > 100_000);
    let cases: &[(&str, [&str; 3], f64)] = &[
        ("empty answers are yes", ["", "", ""], 200.0 / 3.0),
        ("braces", ["{yes}", "{} no {0}", "Yes"], 100.0),
        ("line breaks", ["\nYes", "is\nthere no\n", "\n\n\n"], 200.0 / 3.0),
        ("100 kB", ["yes", &long, &long], 200.0 / 3.0),
    ];
    for (name, texts, expected) in cases {
        for order in [[0, 1, 2], [2, 0, 1]] {
            let dir = tempfile::tempdir().unwrap();
            let files = pope(dir.path());
            let text: String =
                order.iter().map(|&i| format!("{}\r\n", row(i + 1, texts[i]))).collect();
            let answers = write(dir.path(), "answers.jsonl", &format!("\u{feff}{text}\n\n"));
            let outcome = run("pope", &files, &protocol("llava"), &predictions(&answers)).unwrap();
            assert!((score(&outcome, "accuracy") - expected).abs() < 1e-9, "{name} {order:?}");
            assert_eq!(outcome.items[0].answer.as_deref(), Some(texts[0]));
        }
    }
}

#[test]
fn missing_and_extra_answers_can_be_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let files = pope(dir.path());
    let answers =
        write(dir.path(), "a.json", &format!("[{}, {}]", row("3", "no"), row("99", "no")));
    let settings =
        Settings { allow_missing: true, allow_extra: true, resamples: 0, ..Settings::default() };
    let outcome = run("pope", &files, &settings, &predictions(&answers)).unwrap();
    let counts = &outcome.details["counts"];
    assert_eq!((&counts["missing_answers"], &counts["extra_answers"]), (&json!(2), &json!(1)));
    // Absent answers are empty ones, and those are yes.
    assert!((score(&outcome, "accuracy") - 100.0 / 3.0).abs() < 1e-9);
    assert_eq!(outcome.items[0].answer, None);
}

/// POPE's own answer files have no ids: they go by order, and must ask what the labels ask.
#[test]
fn rows_without_ids_go_by_order() {
    let dir = tempfile::tempdir().unwrap();
    let files = pope(dir.path());
    let row = |n: usize, answer: &str| {
        json!({"question": format!("Is there a thing {n} in the image?"), "answer": answer})
            .to_string()
    };
    let good = [row(1, "yes"), row(2, "no"), row(3, "no")].join("\n");
    let answers = write(dir.path(), "good.json", &good);
    let outcome = run("pope", &files, &protocol("official"), &predictions(&answers)).unwrap();
    assert!((score(&outcome, "accuracy") - 200.0 / 3.0).abs() < 1e-9);
    let bad = [row(2, "no"), row(1, "yes"), row(3, "no")].join("\n");
    let answers = write(dir.path(), "bad.json", &bad);
    let error = run("pope", &files, &protocol("official"), &predictions(&answers)).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("line 1") && message.contains("go by order"), "{message}");
}

/// Ground truth that is not there, or does not fit.
#[test]
fn ground_truth_that_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let answers = predictions(&write(dir.path(), "answers.jsonl", &row(1, "Yes")));
    let empty = tempfile::tempdir().unwrap();
    for (metric, file) in [
        ("vqat", "TextVQA_0.5.1_val.json"),
        ("gqa", "testdev_balanced_questions.json"),
        ("mmvet", "mm-vet.json"),
        ("mmhal", "response_template.json"),
        ("llavaw", "questions.jsonl"),
        ("recall-coco", "synonyms.txt"),
    ] {
        let error = run(metric, &folder(empty.path()), &Settings::default(), &answers).unwrap_err();
        let message = error.to_string();
        for part in [file, "is missing", "from ", "--file "] {
            assert!(message.contains(part), "{metric}: {message}");
        }
    }
    let named = files(&[("labels", Path::new("/no/such/folder"))]);
    let error = run("pope", &named, &Settings::default(), &answers).unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error}");
    let error = run("pope", &files(&[("label", empty.path())]), &Settings::default(), &answers);
    assert!(error.unwrap_err().to_string().contains("expected labels, questions"));
    let error = run("pope", &folder(empty.path()), &Settings::default(), &answers).unwrap_err();
    assert!(error.to_string().contains("has no label file"), "{error}");
}

#[test]
fn questions_and_labels_must_fit() {
    let dir = tempfile::tempdir().unwrap();
    let files = pope(dir.path());
    let question = |n: usize, category: &str| {
        json!({"question_id": n, "image": "a.jpg", "category": category,
            "text": format!("Is there a thing {n} in the image?\nAnswer the question using a single word or phrase.")})
        .to_string()
    };
    let cases = [
        (
            [question(1, "adversarial"), question(2, "popular")].join("\n"),
            "no coco_pope_popular.json",
        ),
        (
            [question(2, "adversarial"), question(1, "adversarial")].join("\n"),
            "both files must have one order",
        ),
        (
            [question(1, "adversarial"), question(2, "adversarial")].join("\n"),
            "asks 2 questions of split adversarial",
        ),
    ];
    for (text, wanted) in cases {
        write(dir.path(), "llava_pope_test.jsonl", &text);
        let answers = predictions(&write(dir.path(), "answers.jsonl", &row(1, "Yes")));
        let error = run("pope", &files, &Settings::default(), &answers).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error:?} lacks {wanted:?}");
    }
}

#[test]
fn annotations_that_lack_answers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let answers = predictions(&write(dir.path(), "answers.jsonl", &row(1, "Yes")));
    let question =
        json!({"question_id": 1, "image_id": "i", "question": "What?", "answers": ["a"]});
    write(dir.path(), "TextVQA_0.5.1_val.json", &json!({"data": [question]}).to_string());
    let error = run("vqat", &folder(dir.path()), &Settings::default(), &answers).unwrap_err();
    assert!(error.to_string().contains("question 1: has 1 answers, expected 10"), "{error}");
    write(dir.path(), "testdev_balanced_questions.json", "{\"1\": {\"question\": \"What?\"}}");
    let error = run("gqa", &folder(dir.path()), &Settings::default(), &answers).unwrap_err();
    assert!(error.to_string().contains("question \"1\": has no field answer"), "{error}");
    let twice = "{\"1\": {\"question\": \"a\", \"answer\": \"b\"}, \"1\": {\"question\": \"a\", \"answer\": \"b\"}}";
    write(dir.path(), "testdev_balanced_questions.json", twice);
    let error = run("gqa", &folder(dir.path()), &Settings::default(), &answers).unwrap_err();
    assert!(error.to_string().contains("id \"1\" is there twice"), "{error}");
    write(dir.path(), "synonyms.txt", "dog\n");
    write(dir.path(), "gt_objects.json", "{\"1\": [\"unicorn\"]}");
    let error =
        run("recall-coco", &folder(dir.path()), &Settings::default(), &answers).unwrap_err();
    assert!(error.to_string().contains("image 1: holds \"unicorn\""), "{error}");
}

/// Judge replies that are refused, and those that have a documented score.
#[test]
fn judge_replies() {
    let dir = tempfile::tempdir().unwrap();
    let questions = [0, 1]
        .map(|id| {
            json!({"question_id": id, "image": "a.jpg", "text": "Why?", "category": "conv"})
                .to_string()
        })
        .join("\n");
    write(dir.path(), "questions.jsonl", &questions);
    let reply =
        |id: usize, content: &str| json!({"question_id": id, "content": content}).to_string();
    let cases: &[(&str, String, &str)] = &[
        ("missing", reply(0, "8 8"), "run 0 has no reply for 1 of 2 items (1)"),
        (
            "twice",
            [reply(0, "8 8"), reply(0, "8 8")].join("\n"),
            "a second reply about \"0\" in run 0",
        ),
        ("extra", reply(5, "8 8"), "a reply about \"5\", which the benchmark does not ask"),
        ("html", "<html><body>502</body></html>".into(), "line 1: is not valid JSON"),
        (
            "half a JSON",
            "{\"question_id\": 0, \"content\": \"8".into(),
            "line 1: is not valid JSON",
        ),
        ("no content", "{\"question_id\": 0}".into(), "field content: is missing"),
        ("a number", "{\"question_id\": 0, \"content\": 8}".into(), "field content: is 8"),
        ("NaN", "{\"question_id\": 0, \"content\": NaN}".into(), "line 1: is not valid JSON"),
        ("nan", [reply(0, "nan 8"), reply(1, "8 8")].join("\n"), "item 0"),
        ("run", "{\"id\": 0, \"run\": -1, \"content\": \"8 8\"}".into(), "field run: is -1"),
        (
            "completions",
            "[{\"choices\": [{\"message\": {\"content\": \"8 8\"}}]}]".into(),
            "has 1 chat completions, expected 2",
        ),
        ("empty", String::new(), "has no replies"),
    ];
    for (name, text, wanted) in cases {
        let path = write(dir.path(), "replies.jsonl", text);
        let error = run("llavaw", &folder(dir.path()), &protocol("llava"), &replies(&[path]));
        let message = error.unwrap_err().to_string();
        assert!(message.contains(wanted), "{name}: {message:?} lacks {wanted:?}");
    }
    // A refusal and an empty reply have no scores, -1 each under llava: with another one, 100 * 1.5 / 3.5.
    for none in ["I'm sorry, I cannot.", ""] {
        let text = [reply(0, none), reply(1, "8 4")].join("\n");
        let path = write(dir.path(), "replies.jsonl", &text);
        let outcome =
            run("llavaw", &folder(dir.path()), &protocol("llava"), &replies(&[path])).unwrap();
        assert_eq!((outcome.score, &outcome.details["unparsed"]), (Some(42.9), &json!(1)));
    }
    // Two of them would give 100, of which nothing follows.
    let text = [reply(0, "I'm sorry, I cannot."), reply(1, "")].join("\n");
    let path = write(dir.path(), "replies.jsonl", &text);
    for name in ["llava", "lmms-eval", "vlmevalkit", "strict"] {
        let replies = replies(std::slice::from_ref(&path));
        let error = run("llavaw", &folder(dir.path()), &protocol(name), &replies).unwrap_err();
        assert!(error.to_string().contains("no reply holds a grade"), "{name}: {error}");
    }
    let refusal = json!([
        {"model": "m", "choices": [{"message": {"content": null, "refusal": "no"}}]},
        {"model": "m", "choices": [{"message": {"content": "8 4"}}]},
    ]);
    let path = write(dir.path(), "replies.json", &refusal.to_string());
    let outcome =
        run("llavaw", &folder(dir.path()), &protocol("strict"), &replies(&[path])).unwrap();
    assert_eq!((outcome.score, &outcome.details["unparsed"]), (Some(50.0), &json!(1)));
}

#[test]
fn a_reply_that_strict_cannot_read_gives_its_item_no_score() {
    let dir = tempfile::tempdir().unwrap();
    super::judge::mmhal(dir.path());
    let reply = |i: usize| {
        let content = if i == 3 { "I cannot say." } else { "Rating: 4" };
        json!({"model": "m", "choices": [{"message": {"content": content}}]})
    };
    let all: Vec<_> = (0..8).map(reply).collect();
    let path = write(dir.path(), "replies.json", &json!(all).to_string());
    for (name, expected) in [("strict", None), ("official", Some(0.0))] {
        let outcome = run(
            "mmhal",
            &folder(dir.path()),
            &protocol(name),
            &replies(std::slice::from_ref(&path)),
        );
        let outcome = outcome.unwrap();
        assert_eq!(outcome.items[3].score, expected, "{name}");
        assert_eq!(outcome.items[4].score, Some(4.0));
    }
}

#[test]
fn what_is_not_given_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let files = pope(dir.path());
    let none = super::Sources::default();
    let error = run("pope", &files, &Settings::default(), &none).unwrap_err().to_string();
    assert!(error.contains("--predictions is not given"), "{error}");
    let error = run("pope", &files, &protocol("llava"), &replies(&[dir.path().join("x")]));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("--predictions is not given"), "{error}");
    let judged = tempfile::tempdir().unwrap();
    let answers = super::judge::mmhal(judged.path());
    let error =
        run("mmhal", &folder(judged.path()), &protocol("official"), &super::predictions(&answers));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("--judge-replies is not given"), "{error}");
    let error = bdhs::eval::metric("chair").map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("expected pope, mmhal, mmhalv, llavaw"), "{error}");
    let error = run("mmhal", &files, &protocol("llava"), &none).unwrap_err().to_string();
    assert!(error.contains("protocol is llava, expected official, strict"), "{error}");
}
