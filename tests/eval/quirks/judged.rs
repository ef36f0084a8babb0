//! Answers that a judge grades: MMHal-Bench, LLaVA-Bench, MM-Vet.

use std::path::{Path, PathBuf};

use bdhs::eval::{Outcome, llavaw, mmhal, mmvet};
use serde_json::json;

use crate::golden::{document, golden};
use crate::{folder, protocol, replies, run, score, write};

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
fn mmhal_items(dir: &Path) -> PathBuf {
    let items: Vec<_> = mmhal::TYPES
        .iter()
        .map(|kind| {
            json!({"question_type": kind, "question_topic": "food", "image_id": kind, "image_src": format!("{kind}.jpg"),
                "image_content": ["Cup"], "question": format!("What {kind}?"), "gt_answer": "A cup.", "model_answer": ""})
        })
        .collect();
    write(dir, "items.json", &json!(items).to_string())
}

fn replies_of(dir: &Path, contents: &[&str]) -> PathBuf {
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
