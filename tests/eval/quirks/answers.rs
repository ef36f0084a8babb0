//! Answers that are right or wrong: POPE, TextVQA, GQA.

use std::path::Path;

use bdhs::eval::{Outcome, gqa, pope, vqat};
use serde_json::json;

use crate::golden::{document, golden};
use crate::{files, folder, predictions, protocol, run, score, write};

/// A POPE split with these labels and answers, scored.
fn pope_of(rows: &[(&str, &str)], name: &str) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let labels: String = (1..)
        .zip(rows)
        .map(|(n, (label, _))| {
            let text = format!("Is there a thing {n} in the image?");
            format!(
                "{}\n",
                json!({"question_id": n, "image": "a.jpg", "text": text, "label": label})
            )
        })
        .collect();
    let answers: String = (1..)
        .zip(rows)
        .map(|(n, (_, text))| format!("{}\n", json!({"question_id": n, "text": text})))
        .collect();
    let labels = write(dir.path(), "coco_pope_adversarial.json", &labels);
    let answers = write(dir.path(), "answers.jsonl", &answers);
    run("pope", &files(&[("labels", &labels)]), &protocol(name), &predictions(&answers)).unwrap()
}

#[test]
fn pope_answers_are_read_as_the_references_read_them() {
    let Some(path) = golden("pope/parser_cases.json") else { return };
    for case in document(&path).as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let yes_no = if pope::says_no(text) { "no" } else { "yes" };
        assert_eq!(yes_no, case["pope_reference"], "{text:?}");
        assert_eq!(pope::lmms(text), case["lmms_eval_pred"].as_str().unwrap(), "{text:?}");
        let word = match pope::word_decides(text) {
            Some(true) => "Yes",
            Some(false) => "No",
            None => "Unknown",
        };
        assert_eq!(word, case["vlmevalkit"], "{text:?}");
    }
}

#[test]
fn pope_looks_at_the_first_segment_only() {
    for text in ["Yes. No", "1. No", ". no", "The dog is there. It is not big"] {
        assert!(!pope::says_no(text), "{text:?}");
    }
    assert!(pope::says_no("no. yes"));
    assert_eq!(pope::strict("1. No"), Some(false));
}

#[test]
fn pope_splits_words_at_blanks_only_and_knows_three_of_them() {
    for text in ["NO", "No!", "No\nThe image", "(no)", "isn't", "No-one", "", "nope"] {
        assert!(!pope::says_no(text), "{text:?}");
    }
    for text in ["No", "not", "no", "No,", " No", "Yes, but not clearly", "I am not sure"] {
        assert!(pope::says_no(text), "{text:?}");
    }
    for (text, strict) in [
        ("NO", Some(false)),
        ("No!", Some(false)),
        ("No\nThe image", Some(false)),
        ("There isn't a dog", Some(false)),
        ("There isn\u{2019}t", Some(false)),
        ("Yes, but not clearly", Some(true)),
        ("yes/no", Some(true)),
        ("", None),
        ("maybe", None),
        ("know", None),
    ] {
        assert_eq!(pope::strict(text), strict, "{text:?}");
    }
}

#[test]
fn pope_labels_other_than_no_are_yes() {
    let outcome = pope_of(&[("No", "yes"), ("no", "no")], "llava");
    assert_eq!(score(&outcome, "accuracy"), 100.0);
    let dir = tempfile::tempdir().unwrap();
    let row = json!({"image": "a", "text": "Is it?", "label": "No"}).to_string();
    let labels = write(dir.path(), "coco_pope_random.json", &row);
    let answers = write(dir.path(), "a.jsonl", r#"{"question_id": 10000001, "text": "no"}"#);
    let files = files(&[("labels", &labels)]);
    let error = run("pope", &files, &protocol("strict"), &predictions(&answers)).unwrap_err();
    assert!(error.to_string().contains("field label: is \"No\", expected yes or no"), "{error}");
}

#[test]
fn pope_f1_is_zero_where_upstream_divides_by_zero() {
    let outcome = pope_of(&[("yes", "no"), ("no", "no")], "llava");
    assert_eq!(outcome.score, Some(0.0));
    assert_eq!(score(&outcome, "precision"), 0.0);
}

#[test]
fn pope_score_is_the_mean_of_splits_not_the_pooled_f1() {
    let dir = tempfile::tempdir().unwrap();
    let row =
        |text: &str, label: &str| json!({"image": "a", "text": text, "label": label}).to_string();
    let one = [row("q1", "yes"), row("q2", "no"), row("q3", "yes")].join("\n");
    write(dir.path(), "coco_pope_popular.json", &one);
    write(dir.path(), "coco_pope_adversarial.json", &row("q1", "yes"));
    let answers = [(1, "yes"), (20000001, "yes"), (20000002, "yes"), (20000003, "no")]
        .map(|(id, text)| json!({"question_id": id, "text": text}).to_string())
        .join("\n");
    let answers = predictions(&write(dir.path(), "answers.jsonl", &answers));
    let llava = run("pope", &folder(dir.path()), &protocol("llava"), &answers).unwrap();
    let lmms = run("pope", &folder(dir.path()), &protocol("lmms-eval"), &answers).unwrap();
    assert_eq!(llava.score, Some(75.0));
    assert!((lmms.score.unwrap() - 100.0 * 2.0 / 3.0).abs() < 1e-9);
}

#[test]
fn pope_lmms_eval_leaves_unparsable_answers_out_of_f1_but_not_of_accuracy() {
    let outcome = pope_of(&[("yes", "Yes"), ("yes", "Yes."), ("no", "no ")], "lmms-eval");
    assert_eq!(score(&outcome, "recall"), 100.0);
    assert!((score(&outcome, "accuracy") - 200.0 / 3.0).abs() < 1e-9);
    assert_eq!(outcome.details["unparsed"], 1);
}

#[test]
fn pope_lmms_eval_takes_the_yes_ratio_from_the_labels() {
    let rows = [("yes", "no"), ("no", "no"), ("no", "no"), ("yes", "no")];
    assert_eq!(score(&pope_of(&rows, "lmms-eval"), "yes_ratio"), 50.0);
    assert_eq!(score(&pope_of(&rows, "llava"), "yes_ratio"), 0.0);
}

#[test]
fn pope_vlmevalkit_counts_unknown_as_no_for_f1_and_as_wrong_for_accuracy() {
    let outcome = pope_of(&[("yes", "yes"), ("no", "maybe"), ("yes", "maybe")], "vlmevalkit");
    let split = &outcome.details["splits"]["adversarial"];
    assert_eq!((&split["tn"], &split["fn"], &split["right"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(score(&outcome, "precision"), 100.0);
    assert_eq!(score(&outcome, "recall"), 50.0);
}

#[test]
fn vqat_counts_leave_one_out() {
    // Ten answers, m equal to the prediction: the mean over i of min(1, matches among the others / 3).
    for m in 0..=10usize {
        let mean = (0..10)
            .map(|i| (if i < m { m.saturating_sub(1) } else { m }) as f64 / 3.0)
            .map(|x| x.min(1.0))
            .sum::<f64>()
            / 10.0;
        assert!((vqat::accuracy(m) - mean).abs() < 1e-12, "{m}");
    }
}

#[test]
fn vqat_evalai_normalises_as_upstream() {
    for (raw, expected) in [
        ("King's", "king 's"),
        ("$3.82", "$3.82"),
        ("U.S.A.", "usa"),
        ("10:10 a.m.", "10:10 am"),
        ("1,000", "1000"),
        ("x-y", "x y"),
        ("x - y", "x y"),
        ("The Two cats", "2 cats"),
        ("none", "0"),
        ("dont", "don't"),
    ] {
        assert_eq!(vqat::evalai(raw), expected, "{raw:?}");
    }
}

#[test]
fn vqat_deletes_32_full_stops_at_most() {
    let dots = |n: usize| "a.".repeat(n);
    assert_eq!(vqat::evalai(&dots(33)), format!("{}a.", "a".repeat(32)));
    assert_eq!(vqat::strict(&dots(33)), "a".repeat(33));
}

#[test]
fn vqat_deletes_a_full_stop_after_a_digit() {
    assert_eq!(vqat::evalai("3."), "3");
    assert_eq!(vqat::evalai("v2.x"), "v2x");
    assert_eq!(vqat::vlmevalkit("3."), "3.");
    assert_eq!(vqat::evalai(".5"), ".5");
}

#[test]
fn vqat_contractions_with_capitals_never_match() {
    assert_eq!(vqat::evalai("Im here"), "im here");
    assert_eq!(vqat::evalai("Ive"), "ive");
    assert_eq!(vqat::strict("Im here"), "i'm here");
    assert_eq!(vqat::evalai("youre"), "you're");
}

#[test]
fn vqat_commas_vanish_before_their_rule_could_apply() {
    assert_eq!(vqat::evalai("1,000-x"), "1000 x");
    // VLMEvalKit's rule fires, and then all punctuation goes without a blank.
    assert_eq!(vqat::vlmevalkit("1,000-x"), "1000x");
    assert_eq!(vqat::vlmevalkit("x-y"), "x y");
    assert_eq!(vqat::vlmevalkit("King's"), "king's");
}

#[test]
fn vqat_takes_the_question_out_of_llavas_prompt() {
    let suffix = "Answer the question using a single word or phrase.";
    for (prompt, expected) in [
        (format!("What is IT?\nReference OCR token: a, b\n{suffix}"), Some("what is it?")),
        (format!("Reference OCR token: a\nWhat is it?\n{suffix}"), Some("what is it?")),
        (format!("What is it?\n{suffix}"), Some("what is it?")),
        ("OCR tokens: a, b. Question: What is it? Short answer:".to_owned(), Some("what is it?")),
        ("What is it?".to_owned(), None),
        (format!("What\nis\nit?\n{suffix}"), None),
    ] {
        assert_eq!(vqat::question_of(&prompt).as_deref(), expected, "{prompt:?}");
    }
}

/// Items of a metric under a protocol, with their token limit.
fn prompts(name: &str, dir: &Path, protocol_name: &str) -> (Vec<String>, u32) {
    let (metric, settings) = (bdhs::eval::metric(name).unwrap(), protocol(protocol_name));
    let benchmark = metric.open(&folder(dir), &settings).unwrap();
    let texts = benchmark.items().iter().map(|item| item.prompt.clone()).collect();
    (texts, metric.max_new_tokens(settings.protocol.unwrap()))
}

#[test]
fn vqat_prompts_have_ocr_tokens_under_llava_and_capitals_under_lmms_eval() {
    let dir = tempfile::tempdir().unwrap();
    let suffix = "\nAnswer the question using a single word or phrase.";
    let question = json!({"question_id": 5, "image_id": "i1", "question": "what does NASA say?", "answers": vec!["a"; 10]});
    write(dir.path(), "TextVQA_0.5.1_val.json", &json!({"data": [question]}).to_string());
    let metric = bdhs::eval::metric("vqat").unwrap();
    let error = metric.can_ask(&folder(dir.path()), &protocol("llava")).unwrap_err().to_string();
    assert!(error.contains("file questions: is missing"), "{error}");
    assert!(metric.can_ask(&folder(dir.path()), &protocol("lmms-eval")).is_ok());
    let text = format!("what does NASA say?\nReference OCR token: a, b{suffix}");
    let row = json!({"question_id": "i1", "image": "i1.jpg", "text": text, "category": "default"});
    write(dir.path(), "llava_textvqa_val_v051_ocr.jsonl", &row.to_string());
    assert_eq!(prompts("vqat", dir.path(), "llava").0, [text]);
    let capital = format!("What does nasa say?{suffix}");
    assert_eq!(prompts("vqat", dir.path(), "lmms-eval").0, [capital]);
    let plain = format!("what does NASA say?{suffix}");
    assert_eq!(prompts("vqat", dir.path(), "vlmevalkit").0, [plain]);
    // LLaVA's answers name the image and repeat the prompt; they find their question.
    let answer = json!({"question_id": "i1", "prompt": row["text"], "text": "a"});
    let answers = predictions(&write(dir.path(), "answers.jsonl", &answer.to_string()));
    let outcome = run("vqat", &folder(dir.path()), &protocol("llava"), &answers).unwrap();
    assert_eq!(outcome.score, Some(100.0));
}

#[test]
fn prompts_and_limits_of_lmms_eval_differ() {
    let dir = tempfile::tempdir().unwrap();
    let suffix = "\nAnswer the question using a single word or phrase.";
    let questions = json!({"7": {"question": "What?", "answer": "x"}});
    write(dir.path(), "testdev_balanced_questions.json", &questions.to_string());
    assert_eq!(prompts("gqa", dir.path(), "llava"), (vec![format!("What?{suffix}")], 128));
    assert_eq!(prompts("gqa", dir.path(), "lmms-eval").1, 16);
    let items = json!({"v1_0": {"question": "Q?", "answer": "x", "capability": ["ocr"]}});
    write(dir.path(), "mm-vet.json", &items.to_string());
    assert_eq!(prompts("mmvet", dir.path(), "official"), (vec!["Q?".to_owned()], 1024));
    assert!(
        prompts("mmvet", dir.path(), "lmms-eval").0[0]
            .starts_with("First please perform reasoning")
    );
}

#[test]
fn gqa_protocols_differ_in_what_they_forgive() {
    for (answer, target, right) in [
        // llava, official, lmms-eval, vlmevalkit, strict
        ("yes", "yes", [true, true, true, true, true]),
        ("Yes.", "yes", [true, false, true, false, true]),
        ("yes...", "yes", [true, false, true, false, true]),
        (" yes", "yes", [false, false, false, true, true]),
        ("tshirt", "t-shirt", [false, false, true, false, false]),
        ("t-shirt", "t-shirt", [true, true, true, true, true]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let questions = json!({"7": {"question": "What?", "answer": target, "isBalanced": true}});
        let questions = write(dir.path(), "questions.json", &questions.to_string());
        let rows = json!([{"questionId": "7", "prediction": answer}]).to_string();
        let answers = predictions(&write(dir.path(), "answers.json", &rows));
        let files = files(&[("questions", &questions)]);
        for (name, right) in
            ["llava", "official", "lmms-eval", "vlmevalkit", "strict"].iter().zip(right)
        {
            let outcome = run("gqa", &files, &protocol(name), &answers).unwrap();
            assert_eq!(outcome.score, Some(if right { 100.0 } else { 0.0 }), "{name}: {answer:?}");
        }
    }
    assert_eq!(gqa::convert("A.b.."), "a.b");
    assert_eq!(gqa::exact_match("It's (a) T-shirt!"), "its a tshirt");
}

#[test]
fn gqa_counts_balanced_questions_and_tells_open_from_binary() {
    let dir = tempfile::tempdir().unwrap();
    let question = |answer: &str, kind: &str, balanced: bool| {
        json!({"question": "What?", "answer": answer, "imageId": "n1", "isBalanced": balanced,
            "types": {"structural": kind, "semantic": "obj", "detailed": "x"}})
    };
    let questions = json!({
        "1": question("red", "query", true), "2": question("yes", "verify", true), "3": question("no", "verify", false),
    });
    let questions = write(dir.path(), "q.json", &questions.to_string());
    let rows =
        json!([{"questionId": "1", "prediction": "red"}, {"questionId": "2", "prediction": "no"}]);
    let answers = predictions(&write(dir.path(), "a.json", &rows.to_string()));
    let outcome =
        run("gqa", &files(&[("questions", &questions)]), &protocol("llava"), &answers).unwrap();
    assert_eq!(outcome.score, Some(50.0));
    assert_eq!(score(&outcome, "accuracy/kind/open"), 100.0);
    assert_eq!(score(&outcome, "accuracy/kind/binary"), 0.0);
    assert_eq!(score(&outcome, "accuracy/structural/verify"), 0.0);
}
