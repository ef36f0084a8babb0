//! Each quirk of a reference scorer that changes a score, as a test of its own, beside the strict reading where it is a fault.

use std::path::Path;

use bdhs::eval::{
    Outcome, Settings, Singular, gqa, llavaw, mmhal, mmvet, pope,
    recall_coco::{singular::pattern, tables, words::words},
    vqat,
};
use serde_json::json;

use super::{
    files, folder,
    golden::{document, golden},
    predictions, protocol, replies, run, score, write,
};

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
fn mmhal_ratings_are_scanned_as_substrings() {
    let cases = [
        ("Rating: 6", Some(6)),
        ("- Rating: 0, not informative, with hallucination", Some(0)),
        ("**Rating: 4**", Some(4)),
        ("rating: 10", Some(1)),
        ("Rating: 3.5", Some(3)),
        ("RATING: 1", Some(1)),
        ("Rating: 5 ... I give Rating: 5", Some(5)),
        ("Rating:4", None),
        ("Rating : 3", None),
        ("Rating: six", None),
        ("Rating: 2\nRating: 5", None),
        ("", None),
    ];
    for (reply, expected) in cases {
        assert_eq!(mmhal::rating(reply), expected, "{reply:?}");
    }
    for (reply, expected) in [
        ("Rating:4", Some(4)),
        ("**Rating**: 4", Some(4)),
        ("Rating : 3", Some(3)),
        ("Rating: 2\nRating: 5", Some(5)),
        ("Rating: 3.", Some(3)),
        ("rating: 10", None),
        ("Rating: 3.5", None),
        ("Rating: six", None),
    ] {
        assert_eq!(mmhal::strict(reply), expected, "{reply:?}");
    }
    let Some(path) = golden("mmhal/parser_cases.json") else { return };
    for case in document(&path).as_array().unwrap() {
        let rating = mmhal::rating(case["reply"].as_str().unwrap());
        assert_eq!(json!(rating.unwrap_or(0)), case["expected"], "{case}");
    }
}

/// Eight MMHal items of the eight types.
fn mmhal_items(dir: &Path) -> std::path::PathBuf {
    let items: Vec<_> = mmhal::TYPES
        .iter()
        .map(|kind| {
            json!({"question_type": kind, "question_topic": "food", "image_id": kind, "image_src": format!("{kind}.jpg"),
                "image_content": ["Cup"], "question": format!("What {kind}?"), "gt_answer": "A cup.", "model_answer": ""})
        })
        .collect();
    write(dir, "items.json", &json!(items).to_string())
}

fn replies_of(dir: &Path, contents: &[&str]) -> std::path::PathBuf {
    let rows: String = contents
        .iter()
        .enumerate()
        .map(|(id, content)| format!("{}\n", json!({"id": id, "content": content, "model": "m"})))
        .collect();
    write(dir, "replies.jsonl", &rows)
}

#[test]
fn mmhal_without_a_rating_scores_zero_and_is_a_hallucination() {
    let dir = tempfile::tempdir().unwrap();
    mmhal_items(dir.path());
    let contents = ["Rating: 6", "none", "Rating: 3", "x", "Rating: 2", "x", "x", "Rating: 5"];
    let sources = replies(&[replies_of(dir.path(), &contents)]);
    let official = run("mmhal", &folder(dir.path()), &protocol("official"), &sources).unwrap();
    assert_eq!(official.score, Some(2.0));
    assert_eq!(score(&official, "hallucination_rate"), 5.0 / 8.0);
    // s - 3 if s >= 3 else s: 3, 0, 0, 0, 2, 0, 0, 2.
    assert_eq!(score(&official, "helpfulness"), 7.0 / 8.0);
    assert!((score(&official, "informativeness") - 700.0 / 24.0).abs() < 1e-9);
    let strict = run("mmhalv", &folder(dir.path()), &protocol("strict"), &sources).unwrap();
    assert_eq!(strict.score, Some(4.0));
    assert_eq!(strict.details["unparsed"], 4);
}

#[test]
fn mmhal_types_go_by_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = mmhal_items(dir.path());
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"attribute\"", "\"counting\"", 1)).unwrap();
    let sources = replies(&[replies_of(dir.path(), &["Rating: 1"; 8])]);
    let error = run("mmhal", &folder(dir.path()), &protocol("official"), &sources).unwrap_err();
    assert!(error.to_string().contains("element 0: question_type is \"counting\""), "{error}");
}

#[test]
fn llavaw_replies_are_parsed_as_the_references_parse_them() {
    let Some(path) = golden("llavaw/parser_cases.json") else { return };
    for case in document(&path).as_array().unwrap() {
        let reply = case["reply"].as_str().unwrap();
        let same = |pair: [f64; 2], field: &str| {
            let expected = case[field].as_array().unwrap();
            for (ours, theirs) in pair.iter().zip(expected) {
                let equal = theirs.as_f64().map_or(ours.is_nan(), |theirs| *ours == theirs);
                assert!(equal, "{reply:?}: {pair:?}, expected {expected:?}");
            }
        };
        same(llavaw::pair(reply), "llava_reference");
        same(llavaw::first_two(reply), "lmms_eval_head");
    }
}

#[test]
fn llavaw_needs_exactly_one_blank_or_comma() {
    for reply in ["8, 7", "8 7 \nx", "8  7", "\n8 7", "8\t7"] {
        assert_eq!(llavaw::pair(reply), [-1.0, -1.0], "{reply:?}");
        assert_eq!(llavaw::strict(reply), Some([8.0, 7.0]), "{reply:?}");
    }
    assert_eq!(llavaw::pair("8,7\nx"), [8.0, 7.0]);
    for reply in ["nan 3", "1e1 3 4", "-1 5", "8 eight", "Assistant 1: 8, Assistant 2: 7"] {
        assert_eq!(llavaw::strict(reply), None, "{reply:?}");
    }
    assert_eq!(llavaw::first_two("Assistant 1: 8, Assistant 2: 7"), [1.0, 8.0]);
}

/// LLaVA-Bench with these judge replies, all about one category.
fn llavaw_of(contents: &[&str], name: &str) -> bdhs::Result<Outcome> {
    let dir = tempfile::tempdir().unwrap();
    let questions: String = (0..contents.len())
        .map(|id| {
            let row = json!({"question_id": id, "image": format!("{id}.jpg"), "text": "Why?", "category": "conv"});
            format!("{row}\n")
        })
        .collect();
    write(dir.path(), "questions.jsonl", &questions);
    let sources = replies(&[replies_of(dir.path(), contents)]);
    run("llavaw", &folder(dir.path()), &protocol(name), &sources)
}

#[test]
fn llavaw_rounds_means_to_three_decimals_before_the_ratio() {
    // Means 25/3 and 19/3: 6.333 / 8.333 = 75.999 -> 76.0, and unrounded 76.0; three rows with 1/3 show the difference.
    let contents = ["3 1", "3 1", "3 2", "1 1", "1 1", "1 1", "1 1"];
    let outcome = llavaw_of(&contents, "llava").unwrap();
    let (reference, model) = (13.0f64 / 7.0, 8.0f64 / 7.0);
    let rounded = (1.143 / 1.857 * 1000.0f64).round() / 10.0;
    assert_eq!(outcome.score, Some(rounded));
    let strict = llavaw_of(&contents, "strict").unwrap();
    assert!((strict.score.unwrap() - 100.0 * model / reference).abs() < 1e-9);
    // 0.0004 becomes 0: the ratio of small means is lost to the rounding.
    let tiny = llavaw_of(&["10 0.0004", "10 0.0004"], "llava").unwrap();
    assert_eq!(tiny.score, Some(0.0));
    let kept = llavaw_of(&["0.8 0.0004", "0.8 0.0004"], "vlmevalkit").unwrap();
    assert_eq!(kept.score, Some(0.1));
}

#[test]
fn llavaw_failed_rows_enter_both_means() {
    let contents = ["8 4", "no scores"];
    assert_eq!(llavaw_of(&contents, "llava").unwrap().score, Some(42.9));
    let strict = llavaw_of(&contents, "strict").unwrap();
    assert_eq!((strict.score, &strict.details["unparsed"]), (Some(50.0), &json!(1)));
}

#[test]
fn llavaw_nan_is_an_error_or_left_out() {
    let error = llavaw_of(&["8 4", "nan 3"], "llava").unwrap_err().to_string();
    assert!(error.contains("item 1") && error.contains("nan 3"), "{error}");
    assert_eq!(llavaw_of(&["8 4", "nan 3"], "strict").unwrap().score, Some(50.0));
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

#[test]
fn mmvet_grades_are_the_text_before_the_first_blank() {
    for (reply, expected) in [
        ("0.5", Some(0.5)),
        ("0.7 because", Some(0.7)),
        ("0.5\n", Some(0.5)),
        ("1e-1", Some(0.1)),
        (" 0.5", None),
        ("1.1", None),
        ("-0.1", None),
        ("Score: 0.7", None),
        ("0.5|", None),
        ("", None),
    ] {
        assert_eq!(mmvet::grade(reply), expected, "{reply:?}");
    }
    assert!(mmvet::grade("nan").is_some_and(f64::is_nan));
    let Some(path) = golden("mmvet/parser_cases.json") else { return };
    for case in document(&path).as_array().unwrap() {
        let grade = mmvet::grade(case["reply"].as_str().unwrap());
        assert_eq!(json!(grade), case["accepted_score"], "{case}");
    }
}

/// MM-Vet with one run of these grades.
fn mmvet_of(contents: &[&str], name: &str) -> bdhs::Result<Outcome> {
    let dir = tempfile::tempdir().unwrap();
    let mut items = serde_json::Map::new();
    let mut grades = serde_json::Map::new();
    for (i, content) in contents.iter().enumerate() {
        let item = json!({"imagename": "v.png", "question": "?", "answer": "x", "capability": ["ocr", "math"]});
        items.insert(format!("v1_{i}"), item);
        grades.insert(
            format!("v1_{i}"),
            json!({"model": ["m"], "content": [content], "score": [0.0]}),
        );
    }
    write(dir.path(), "mm-vet.json", &json!(items).to_string());
    let grades = write(dir.path(), "grades.json", &json!(grades).to_string());
    run("mmvet", &folder(dir.path()), &protocol(name), &replies(&[grades]))
}

#[test]
fn mmvet_without_a_grade_scores_zero() {
    let contents = ["1.0", " 0.5", "0.8 or so", "Great"];
    for (name, expected) in [
        ("official", 45.0),
        ("lmms-eval", 57.5),
        ("vlmevalkit", 37.5),
        ("strict", 100.0 * 2.3 / 3.0),
    ] {
        let outcome = mmvet_of(&contents, name).unwrap();
        assert!((outcome.score.unwrap() - expected).abs() < 1e-9, "{name}: {:?}", outcome.score);
    }
}

#[test]
fn mmvet_nan_is_an_error_or_left_out() {
    let error = mmvet_of(&["nan", "1"], "official").unwrap_err().to_string();
    assert!(error.contains("item v1_0") && error.contains("\"nan\""), "{error}");
    assert_eq!(mmvet_of(&["nan", "1"], "strict").unwrap().score, Some(100.0));
}

#[test]
fn recall_coco_singular_forms_lose_the_bus() {
    for (word, expected) in [
        ("bus", "bu"),
        ("buses", "bus"),
        ("glass", "glas"),
        ("tennis", "tenni"),
        ("our", "my"),
        ("four", "fmy"),
        ("people", "person"),
        ("women", "woman"),
        ("knives", "knife"),
        ("sheep", "sheep"),
        ("skis", "ski"),
        ("mice", "mouse"),
        ("ties", "ty"),
        ("analyses", "analysis"),
        ("psychoanalyses", "psychoanalyasis"),
        ("mothers-in-law", "mother-in-law"),
        ("dogs'", "dog's"),
        ("s", "s"),
        ("", ""),
    ] {
        assert_eq!(pattern(word), expected, "{word:?}");
    }
}

/// Captions of one image with these objects, under a synonym table of a few classes.
fn recall_of(objects: &[&str], caption: &str, name: &str) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let table = "person, man, people\nmotorcycle, scooter,  motor bike\nbus\ncell phone, iPhone\ntoilet\nchair, seat\n\
        tie\ndog\nskis, ski\nwine glass\noven, stove\n";
    let synonyms = write(dir.path(), "synonyms.txt", table);
    let objects = write(dir.path(), "objects.json", &json!({"9": objects}).to_string());
    let row = json!({"image_id": 9, "caption": caption}).to_string();
    let captions = predictions(&write(dir.path(), "captions.jsonl", &row));
    let files = files(&[("synonyms", &synonyms), ("objects", &objects)]);
    run("recall-coco", &files, &protocol(name), &captions).unwrap()
}

fn mentions(caption: &str, name: &str) -> Vec<String> {
    let outcome = recall_of(&[], caption, name);
    serde_json::from_value(outcome.items[0].parsed["mentions"].clone()).unwrap()
}

#[test]
fn recall_coco_official_misses_a_single_bus_and_strict_does_not() {
    assert!(mentions("A bus.", "official").is_empty());
    assert_eq!(mentions("Two buses.", "official"), ["bus"]);
    assert_eq!(mentions("A bus and two buses.", "strict"), ["bus", "bus"]);
}

#[test]
fn recall_coco_unreachable_keys() {
    assert!(mentions("A motor bike and an iPhone.", "official").is_empty());
    assert_eq!(mentions("A motor bike and an iPhone.", "strict"), ["motorcycle", "cell phone"]);
}

#[test]
fn recall_coco_merges_pairs_from_the_left_only() {
    assert_eq!(mentions("A man with a bow tie.", "official"), ["person", "tie"]);
    assert_eq!(
        mentions("Wine glasses and a wine glass.", "official"),
        ["wine glass", "wine glass"]
    );
    // Three words can never match.
    assert_eq!(mentions("A stove top oven.", "official"), ["oven", "oven"]);
    assert!(tables::double_words().contains_key("stove top oven"));
    // A blank that is punctuation keeps words apart.
    assert_eq!(mentions("A baby, dog.", "official"), ["dog"]);
}

#[test]
fn recall_coco_drops_the_seat_beside_a_toilet() {
    assert_eq!(mentions("A toilet and its seat.", "official"), ["toilet"]);
    assert_eq!(mentions("A seat.", "official"), ["chair"]);
}

#[test]
fn recall_coco_chair_counts_mentions_with_repetition_and_recall_distinct_objects() {
    let caption = "A man and a man, a dog, people and a toilet.";
    let outcome = recall_of(&["person", "dog", "skis"], caption, "official");
    let totals = &outcome.details["totals"];
    assert_eq!(totals["mentions"], 5);
    assert_eq!((&totals["made_up"], &totals["recalled"]), (&json!(1), &json!(2)));
    assert!((outcome.score.unwrap() - 200.0 / 3.0).abs() < 1e-9);
    assert_eq!(score(&outcome, "chair_i"), 20.0);
    assert_eq!(score(&outcome, "chair_s"), 100.0);
}

#[test]
fn recall_coco_empty_ground_truth_adds_nothing() {
    let outcome = recall_of(&[], "A dog.", "official");
    assert_eq!(outcome.score, None);
    assert_eq!(outcome.items[0].score, None);
    assert_eq!(score(&outcome, "chair_s"), 100.0);
}

#[test]
fn recall_coco_words_are_those_of_nltk() {
    for (text, expected) in [
        ("A dog. A cat.", "a dog . a cat ."),
        ("The man's hat, it's 3.50!", "the man 's hat , it 's 3.50 !"),
        ("(a dog.) Yes", "( a dog . ) yes"),
        ("don't cannot gonna", "do n't can not gon na"),
        ("a 'red' dog--cat", "a ' red ' dog -- cat"),
        ("wait... 10:30 end.\nNew", "wait ... 10:30 end . new"),
        ("well-lit dog.cat", "well-lit dog.cat"),
        ("dogs' bowls", "dogs ' bowls"),
        ("1. dog\n2. cat", "1 . dog 2 . cat"),
        ("the dog\u{2019}s **bed**", "the dog \u{2019} s * * bed * *"),
    ] {
        assert_eq!(words(text).join(" "), expected, "{text:?}");
    }
}

#[test]
fn recall_coco_takes_words_as_wordnets_nouns() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("dict")).unwrap();
    let index = "  1 a licence line\nbus n 4\nmouse n 4\nlens n 5\nglass n 9\nman n 11\n";
    write(&dir.path().join("dict"), "index.noun", index);
    write(&dir.path().join("dict"), "noun.exc", "mice mouse\n");
    write(dir.path(), "synonyms.txt", "bus\nmouse\nlens\nwine glass\nperson, man\n");
    write(dir.path(), "gt_objects.json", "{\"1\": [\"bus\"]}");
    let row =
        json!({"image_id": 1, "caption": "A bus, buses, mice, a lens, wine glasses and men."});
    let answers = predictions(&write(dir.path(), "captions.jsonl", &row.to_string()));
    let settings = Settings { singular: Singular::Wordnet, resamples: 0, ..Settings::default() };
    let outcome = run("recall-coco", &folder(dir.path()), &settings, &answers).unwrap();
    let expected = json!(["bus", "bus", "mouse", "lens", "wine glass", "person"]);
    assert_eq!(outcome.items[0].parsed["mentions"], expected);
    std::fs::remove_dir_all(dir.path().join("dict")).unwrap();
    let error = run("recall-coco", &folder(dir.path()), &settings, &answers).unwrap_err();
    assert!(error.to_string().contains("file wordnet: is missing"), "{error}");
}

#[test]
fn recall_coco_reads_coco_annotations() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "synonyms.txt", "person, man\ndog, puppy\nbus\n");
    std::fs::create_dir(dir.path().join("annotations")).unwrap();
    let instances = json!({
        "images": [], "categories": [{"id": 1, "name": "person"}, {"id": 6, "name": "bus"}],
        "annotations": [
            {"image_id": 9, "category_id": 6, "segmentation": [[1.5, 2.0]], "id": 1},
            {"image_id": 8, "category_id": 1, "id": 2}],
    });
    write(&dir.path().join("annotations"), "instances_val2014.json", &instances.to_string());
    let captions =
        json!({"annotations": [{"image_id": 9, "id": 3, "caption": "A man with puppies."}]});
    write(&dir.path().join("annotations"), "captions_val2014.json", &captions.to_string());
    write(dir.path(), "images.jsonl", "{\"image_id\": 9}\n");
    let row = json!({"question_id": "COCO_val2014_000000000009.jpg", "text": "A dog."}).to_string();
    let answers = predictions(&write(dir.path(), "captions.jsonl", &row));
    let settings = Settings { resamples: 0, ..Settings::default() };
    let outcome = run("recall-coco", &folder(dir.path()), &settings, &answers).unwrap();
    assert_eq!(outcome.items[0].target, json!(["bus", "dog", "person"]));
    assert!((outcome.score.unwrap() - 100.0 / 3.0).abs() < 1e-9);
}
