//! Real predictions and replies with known scores. They are third-party data and no part of this repository: tests read
//! them where `BDHS_GOLDEN` says (default: `../shared/golden` beside the repository) and say that they skip where they are not.

use std::path::{Path, PathBuf};

use bdhs::eval::{
    Settings, gqa,
    recall_coco::{singular, tables},
    vqat,
};
use serde_json::Value;

use crate::common::skip::skip;

use super::{files, folder, predictions, protocol, replies, run, score};

/// The folder of golden data; none, with a message, where it is absent.
pub fn golden(part: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
    let root = std::env::var_os("BDHS_GOLDEN").map_or(default, PathBuf::from);
    let path = root.join(part);
    if path.exists() {
        return Some(path);
    }
    skip("golden", format_args!("no golden data at {}", path.display()));
    None
}

pub fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a readable file");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON row")).collect()
}

pub fn document(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a readable file")).expect("JSON")
}

/// TP, FP, TN, FN of both splits, and their F1, as LLaVA prints them.
#[test]
fn pope_counts() {
    let Some(path) = golden("pope") else { return };
    let sources = predictions(&path.join("answers.llava-v1.5-13b.jsonl"));
    for name in ["llava", "official"] {
        let outcome = run("pope", &folder(&path), &protocol(name), &sources).unwrap();
        let counts = |split: &str| {
            ["tp", "fp", "tn", "fn"]
                .map(|cell| outcome.details["splits"][split][cell].as_u64().unwrap())
        };
        assert_eq!(counts("adversarial"), [1182, 117, 1383, 318]);
        assert_eq!(counts("popular"), [1182, 59, 1441, 318]);
        assert!((score(&outcome, "f1/adversarial") - 84.45874).abs() < 1e-5);
        assert!((score(&outcome, "f1/popular") - 86.24590).abs() < 1e-5);
        let mean = (score(&outcome, "f1/adversarial") + score(&outcome, "f1/popular")) / 2.0;
        assert!((outcome.score.unwrap() - mean).abs() < 1e-9);
    }
}

/// Without the question file the label files alone give the same items.
#[test]
fn pope_without_questions() {
    let Some(path) = golden("pope") else { return };
    let sources = predictions(&path.join("answers.llava-v1.5-13b.jsonl"));
    let labels = path.join("labels");
    let alone = run("pope", &files(&[("labels", &labels)]), &protocol("llava"), &sources).unwrap();
    let both = run("pope", &folder(&path), &protocol("llava"), &sources).unwrap();
    assert_eq!(alone.score, both.score);
    assert_eq!(alone.details["splits"]["popular"], both.details["splits"]["popular"]);
}

/// Ratios of the three judge runs and of run 1's categories.
#[test]
fn llavaw_ratios() {
    let Some(path) = golden("llavaw") else { return };
    let reviews: Vec<PathBuf> =
        (1..=3).map(|n| path.join(format!("reviews/llava-v1.5-7b-eval{n}.jsonl"))).collect();
    for (review, expected) in reviews.iter().zip([64.7, 65.3, 66.3]) {
        let sources = replies(std::slice::from_ref(review));
        let outcome = run("llavaw", &folder(&path), &protocol("llava"), &sources).unwrap();
        assert_eq!(outcome.score, Some(expected));
    }
    let mut sources = replies(&reviews);
    sources.predictions = Some(path.join("answers/llava-v1.5-7b.jsonl"));
    let outcome = run("llavaw", &folder(&path), &protocol("llava"), &sources).unwrap();
    assert_eq!(format!("{:.1}", outcome.score.unwrap()), "65.4");
    let first = &outcome.details["runs"][0];
    let ratios = ["complex", "conv", "detail"].map(|group| first[group][0].as_f64().unwrap());
    assert_eq!(ratios, [77.6, 59.3, 47.7]);
    assert_eq!(outcome.items[0].parsed, serde_json::json!([[7.0, 9.0], [7.0, 9.0], [8.0, 10.0]]));
}

/// The stored score pairs are those that the parser reads from the replies.
#[test]
fn llavaw_pairs() {
    let Some(path) = golden("llavaw") else { return };
    for n in 1..=3 {
        for row in lines(&path.join(format!("reviews/llava-v1.5-7b-eval{n}.jsonl"))) {
            let pair = bdhs::eval::llavaw::pair(row["content"].as_str().unwrap());
            assert_eq!(serde_json::json!(pair), row["tuple"]);
        }
    }
}

/// Totals, capabilities and integrations, as the csv files have them.
#[test]
fn mmvet_tables() {
    let Some(path) = golden("mmvet") else { return };
    for (runs, total) in [(1, 36.1), (3, 36.3)] {
        let stem = path.join(format!("results/llava-v1.5-13b_gpt-4-grade-{runs}runs.json"));
        let mut sources = replies(&[stem]);
        sources.predictions = Some(path.join("answers/llava-v1.5-13b.jsonl"));
        let outcome = run("mmvet", &folder(&path), &protocol("official"), &sources).unwrap();
        if runs == 1 {
            assert_eq!(format!("{:.4}", outcome.score.unwrap()), "36.1468");
        }
        let reported = &outcome.details["reported"];
        assert_eq!(reported["total"], total);
        for (axis, kind) in [("capability", "cap"), ("integration", "cap-int")] {
            let file = format!("results/llava-v1.5-13b_gpt-4-{kind}-score-{runs}runs.csv");
            let (columns, row) = csv(&path.join(file));
            let mut checked = 0;
            for (column, value) in columns.iter().zip(&row) {
                let ours = match column.as_str() {
                    "" => continue,
                    "total" | "std" => &reported[column.as_str()],
                    "runs" => {
                        let runs: Vec<f64> = serde_json::from_str(value).unwrap();
                        assert_eq!(reported["runs"], serde_json::json!(runs));
                        continue;
                    }
                    name => group(&reported[axis], name),
                };
                assert_eq!(ours.as_f64(), value.parse().ok(), "{axis} {column}");
                checked += 1;
            }
            assert_eq!(checked, columns.len() - 2);
        }
    }
}

/// A group by its parts: the csv orders the capabilities of an integration in its own way.
fn group<'a>(table: &'a Value, name: &str) -> &'a Value {
    let parts = |name: &str| {
        let mut parts: Vec<String> = name.split('_').map(str::to_owned).collect();
        parts.sort();
        parts
    };
    let table = table.as_object().expect("a table");
    let found = table.iter().find(|(key, _)| parts(key) == parts(name));
    found.unwrap_or_else(|| panic!("no group {name}")).1
}

/// Head and first row; the last column is a list in quotes.
fn csv(path: &Path) -> (Vec<String>, Vec<String>) {
    let text = std::fs::read_to_string(path).expect("a readable file");
    let mut lines = text.lines().map(|line| {
        let (cells, list) = match line.split_once('[') {
            Some((cells, list)) => (cells, Some(format!("[{}", list.trim_end_matches('"')))),
            None => (line, None),
        };
        let cells = cells.trim_end_matches('"').trim_end_matches(',');
        let mut cells: Vec<String> = cells.split(',').map(str::to_owned).collect();
        cells.extend(list);
        cells
    });
    (lines.next().unwrap(), lines.next().unwrap())
}

/// Mean, hallucination rate and types of 96 replies; item 24 has no rating.
#[test]
fn mmhal_ratings() {
    let Some(path) = golden("mmhal") else { return };
    let sources = replies(&[path.join("replies.blip2.gpt-4o-2024-08-06.json")]);
    let outcome = run("mmhal", &folder(&path), &protocol("official"), &sources).unwrap();
    assert_eq!(outcome.score, Some(1.3125));
    assert_eq!(score(&outcome, "hallucination_rate"), 62.0 / 96.0);
    let types: Vec<String> = bdhs::eval::mmhal::TYPES
        .iter()
        .map(|name| format!("{:.2}", score(&outcome, &format!("rating/{name}"))))
        .collect();
    assert_eq!(types.join(" "), "0.83 0.17 1.67 1.08 1.58 2.08 2.33 0.75");
    assert_eq!(outcome.items[24].parsed, serde_json::json!([null]));
    assert_eq!(outcome.items[24].score, Some(0.0));
    assert_eq!(outcome.details["judge_models"]["gpt-4o-2024-08-06"], 96);
}

/// All pairs of the EvalAI processor.
#[test]
fn vqat_normaliser() {
    let Some(path) = golden("vqat/normaliser_pairs.jsonl") else { return };
    let pairs = lines(&path);
    assert!(pairs.len() > 8000);
    for pair in pairs {
        let (raw, expected) = (pair["in"].as_str().unwrap(), pair["out"].as_str().unwrap());
        assert_eq!(vqat::evalai(raw), expected, "{raw:?}");
    }
}

/// 2,000 converted answers, and all of them right against themselves.
#[test]
fn gqa_conversion() {
    let Some(path) = golden("gqa") else { return };
    let answers = path.join("answers.llava-v1.5-13b.first2000.jsonl");
    let converted = document(&path.join("converted.first2000.json"));
    let mut questions = serde_json::Map::new();
    for (row, converted) in lines(&answers).iter().zip(converted.as_array().unwrap()) {
        assert_eq!(row["question_id"], converted["questionId"]);
        let prediction = converted["prediction"].as_str().unwrap();
        assert_eq!(gqa::convert(row["text"].as_str().unwrap()), prediction);
        let id = row["question_id"].as_str().unwrap().to_owned();
        let question = row["prompt"].as_str().unwrap().lines().next().unwrap();
        questions.insert(id, serde_json::json!({"question": question, "answer": prediction}));
    }
    let dir = tempfile::tempdir().unwrap();
    let text = serde_json::to_string(&questions).unwrap();
    let file = super::write(dir.path(), "testdev_balanced_questions.json", &text);
    let outcome =
        run("gqa", &files(&[("questions", &file)]), &protocol("llava"), &predictions(&answers));
    assert_eq!(outcome.unwrap().score, Some(100.0));
}

/// Every pair of pattern.en's singulariser.
#[test]
fn recall_coco_singular_forms() {
    let Some(path) = golden("recallcoco/dicts/singularize_pairs.tsv") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let mut wrong = Vec::new();
    for line in text.lines() {
        let (word, expected) = line.split_once('\t').unwrap();
        let got = singular::pattern(word);
        if got != expected {
            wrong.push(format!("{word} -> {got}, expected {expected}"));
        }
    }
    assert!(text.lines().count() >= 5700);
    assert!(wrong.is_empty(), "{} wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(20)]);
}

/// Double words and synonyms equal the reference's tables.
#[test]
fn recall_coco_tables() {
    let Some(path) = golden("recallcoco/dicts") else { return };
    let Some(prompts) = golden("prompts/chair_synonyms.txt") else { return };
    let doubles = document(&path.join("double_word_dict.json"));
    assert_eq!(serde_json::json!(tables::double_words()), doubles);
    let synonyms = tables::Synonyms::read(&prompts, false).unwrap();
    let expected = document(&path.join("inverse_synonym_dict.json"));
    for (word, class) in expected.as_object().unwrap() {
        if !word.is_empty() {
            assert_eq!(synonyms.class(word), class.as_str(), "{word}");
        }
    }
    assert_eq!(synonyms.classes().len(), 80);
}

/// Raw counts of four models' captions of 2,000 images.
#[test]
fn recall_coco_counts() {
    let Some(path) = golden("recallcoco") else { return };
    let Some(synonyms) = golden("prompts/chair_synonyms.txt") else { return };
    let objects = path.join("gt_objects.json");
    let files = files(&[("objects", &objects), ("synonyms", &synonyms)]);
    let expected = document(&path.join("expected.json"));
    for (name, expected) in expected.as_object().unwrap() {
        let captions = path.join(format!("pope/{name}.captions.jsonl"));
        let settings = Settings { resamples: 0, ..Settings::default() };
        let outcome = run("recall-coco", &files, &settings, &predictions(&captions)).unwrap();
        let (totals, pattern) = (&outcome.details["totals"], &expected["pattern"]);
        for (ours, theirs) in [
            ("captions", "n"),
            ("captions_made_up", "hall_caps"),
            ("made_up", "hall_words"),
            ("mentions", "coco_words"),
            ("recalled", "recalled"),
            ("objects", "gt"),
        ] {
            assert_eq!(totals[ours], pattern[theirs], "{name}: {ours}");
        }
        for (ours, theirs) in [("chair_s", "CHAIRs"), ("chair_i", "CHAIRi"), ("recall", "Recall")] {
            let theirs = 100.0 * pattern[theirs].as_f64().unwrap();
            assert!((score(&outcome, ours) - theirs).abs() < 1e-9, "{name}: {ours}");
        }
    }
}
