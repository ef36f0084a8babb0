//! Intervals, comparisons, and the files a result is written to.

use std::path::Path;

use bdhs::eval::{
    ItemScore, Outcome, Settings, Unit,
    compare::compare,
    layout,
    tally::{Additions, Cells, Statistic, Tally, estimates},
};
use serde_json::{Value, json};

use super::{folder, predictions, run, score, write};

/// Items that are right or wrong, `per_unit` of them on each image.
fn items(right: impl Fn(usize) -> bool, n: usize, per_unit: usize) -> Vec<ItemScore> {
    (0..n)
        .map(|i| {
            let mut cells = Additions::default();
            cells.push("right", f64::from(u8::from(right(i))));
            cells.push("n", 1.0);
            ItemScore {
                id: i.to_string(),
                category: String::new(),
                unit: (i / per_unit).to_string(),
                image: None,
                question: String::new(),
                answer: None,
                parsed: Value::Null,
                target: Value::Null,
                score: None,
                cells,
            }
        })
        .collect()
}

fn accuracy(cells: &Cells) -> [Statistic; 1] {
    [Statistic::ratio("accuracy", cells, ("right", "n"), 1.0)]
}

/// Against the normal approximation, and against NumPy on the same Philox draws.
#[test]
fn intervals_are_those_of_a_proportion() {
    let tally = Tally::new(&items(|i| i % 10 < 3, 1000, 1));
    let found = estimates(&tally, &accuracy(&tally.cells), 4000, 7)[0];
    let (low, high) = (found.low.unwrap(), found.high.unwrap());
    let stderr = (0.3f64 * 0.7 / 1000.0).sqrt();
    assert_eq!(found.value, Some(0.3));
    assert!((found.stderr.unwrap() / stderr - 1.0).abs() < 0.05, "{found:?}");
    assert!((low - (0.3 - 1.96 * stderr)).abs() < 0.2 * stderr, "{found:?}");
    assert!((high - (0.3 + 1.96 * stderr)).abs() < 0.2 * stderr, "{found:?}");
    assert!((found.stderr.unwrap() - 0.014257328347306194).abs() < 1e-12, "{found:?}");
    assert!((low - 0.271).abs() < 1e-12 && (high - 0.326).abs() < 1e-12, "{found:?}");
}

/// Ten answers on each image that are all right or all wrong are worth one: the interval is sqrt(10) times as wide.
#[test]
fn answers_about_one_image_are_drawn_together() {
    let right = |i: usize| (i / 10).is_multiple_of(2);
    let width = |per_unit: usize| {
        let tally = Tally::new(&items(right, 1000, per_unit));
        estimates(&tally, &accuracy(&tally.cells), 2000, 1)[0].stderr.unwrap()
    };
    let ratio = width(10) / width(1);
    assert!((ratio / 10f64.sqrt() - 1.0).abs() < 0.1, "{ratio}");
}

#[test]
fn intervals_depend_on_the_seed_and_on_nothing_else() {
    let tally = Tally::new(&items(|i| i % 3 == 0, 200, 2));
    let with = |seed: u64, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| estimates(&tally, &accuracy(&tally.cells), 200, seed))
    };
    assert_eq!(with(3, 1), with(3, 4));
    assert_ne!(with(3, 1), with(4, 1));
    let none = estimates(&tally, &accuracy(&tally.cells), 0, 3)[0];
    assert_eq!((none.low, none.high, none.stderr), (None, None, None));
}

/// A POPE folder with `n` questions on `n / 4` images, and answers that are wrong where told.
fn pope(dir: &Path, n: usize, wrong: impl Fn(usize) -> bool) -> Outcome {
    let label = |i: usize| if i.is_multiple_of(2) { "yes" } else { "no" };
    let rows: Vec<String> = (0..n)
        .map(|i| {
            json!({"image": format!("{}.jpg", i / 4), "text": format!("q{i}?"), "label": label(i)})
                .to_string()
        })
        .collect();
    write(dir, "coco_pope_adversarial.json", &rows.join("\n"));
    let answers: Vec<String> = (0..n)
        .map(|i| {
            json!({"question_id": i + 1, "text": label(i + usize::from(wrong(i)))}).to_string()
        })
        .collect();
    let answers = predictions(&write(dir, "answers.jsonl", &answers.join("\n")));
    run("pope", &folder(dir), &Settings::default(), &answers).unwrap()
}

#[test]
fn results_are_resampled_by_image_or_by_item() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = pope(dir.path(), 40, |i| i % 5 == 0);
    assert_eq!(outcome.details["units"], 10);
    let estimate = &outcome.details["scores"]["f1"];
    let value = |name: &str| estimate[name].as_f64().unwrap();
    assert!(value("low") < value("value") && value("value") < value("high"));
    let settings = Settings { unit: Unit::Item, ..Settings::default() };
    let answers = predictions(&dir.path().join("answers.jsonl"));
    let by_item = run("pope", &folder(dir.path()), &settings, &answers).unwrap();
    assert_eq!(by_item.details["units"], 40);
    assert_eq!(by_item.score, outcome.score);
}

#[test]
fn a_result_is_read_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = pope(dir.path(), 40, |i| i % 7 == 0);
    layout::write(dir.path(), &outcome, "mine", 1.0).unwrap();
    let read = bdhs::eval::compare::read(&dir.path().join("result.json")).unwrap();
    assert_eq!((read.items, read.score), (outcome.items, outcome.score));
    let text = std::fs::read_to_string(dir.path().join("items.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 40);
}

#[test]
fn lmms_evals_layout_has_its_names_and_scales() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = pope(dir.path(), 40, |i| i % 7 == 0);
    let results = layout::lmms_results(&outcome, "mine", 1.0);
    let row = &results["results"]["pope"];
    let accuracy = score(&outcome, "accuracy") / 100.0;
    assert_eq!(row["pope_accuracy,none"].as_f64(), Some(accuracy));
    assert!(row["pope_accuracy_stderr,none"].as_f64().unwrap() > 0.0);
    assert_eq!(results["n-samples"]["pope"]["effective"], 40);
    assert_eq!(results["configs"]["pope"]["metadata"]["protocol"], "llava");
    layout::write(dir.path(), &outcome, "mine", 1.0).unwrap();
    let path = dir.path().join("lmms_eval_samples_pope.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&first["doc_id"], &first["filtered_resps"]), (&json!(0), &json!(["no"])));
}

#[test]
fn a_run_does_not_differ_from_itself() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = pope(dir.path(), 40, |i| i % 7 == 0);
    let names = [Path::new("a"), Path::new("b")];
    let found = compare(&outcome, outcome.clone(), names, 500, 0).unwrap();
    let f1 = &found.scores["f1"];
    // Ten images that are answered alike leave open what others would show.
    let open = 100.0 * 3.8415 / 13.8415;
    let bound = |name: &str| f1["difference"][name].as_f64().unwrap();
    assert!((bound("high") - open).abs() < 1e-2 && (bound("low") + open).abs() < 1e-2, "{f1}");
    assert_eq!((&f1["difference"]["value"], &f1["difference"]["units"]), (&json!(0.0), &json!(10)));
    assert_eq!(f1["p"], 1.0);
    assert!(found.differing.is_empty() && found.settings.is_empty());
}

/// The pairing pays: two runs that share their hard items differ clearly, though their own intervals overlap.
#[test]
fn runs_are_compared_on_the_same_resamples() {
    let dir = tempfile::tempdir().unwrap();
    let worse = pope(dir.path(), 800, |i| (i / 4) % 3 == 0 || i % 40 == 5);
    let mut better = pope(dir.path(), 800, |i| (i / 4) % 3 == 0);
    better.items.reverse();
    let names = [Path::new("a"), Path::new("b")];
    let found = compare(&worse, better.clone(), names, 1000, 0).unwrap();
    let change = &found.scores["accuracy"];
    let difference = |name: &str| change["difference"][name].as_f64().unwrap();
    let gain = score(&better, "accuracy") - score(&worse, "accuracy");
    assert!((difference("value") - gain).abs() < 1e-9);
    assert!(difference("low") > 0.0, "{change}");
    assert!(change["p"].as_f64().unwrap() < 0.01);
    let high = worse.details["scores"]["accuracy"]["high"].as_f64().unwrap();
    assert!(high > score(&better, "accuracy"));
    assert_eq!(found.differing.len(), (0..800).filter(|i| i % 40 == 5 && (i / 4) % 3 != 0).count());
    assert_eq!(found.differing[0].score_b, Some(1.0));
}

#[test]
fn results_that_do_not_fit_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = pope(dir.path(), 8, |_| false);
    let names = [Path::new("first.json"), Path::new("second.json")];
    let mut other = outcome.clone();
    other.protocol = "strict".parse().unwrap();
    let error = compare(&outcome, other, names, 10, 0).unwrap_err().to_string();
    assert!(
        error.contains("second.json: is pope under strict, but first.json is pope under llava")
    );
    let mut other = outcome.clone();
    other.items.pop();
    let error = compare(&outcome, other, names, 10, 0).unwrap_err().to_string();
    assert!(error.contains("has no item \"8\", but first.json has"), "{error}");
    let mut other = outcome.clone();
    other.items[0].id = "x".into();
    let error = compare(&outcome, other, names, 10, 0).unwrap_err().to_string();
    assert!(error.contains("has no item \"1\""), "{error}");
}

/// Results of other questions, images or truths are refused, though their ids are the same; those of other judges, prompts or units
/// are named, and drawn by image if one of them is.
#[test]
fn results_of_something_else_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = pope(dir.path(), 40, |i| i % 7 == 0);
    let names = [Path::new("first.json"), Path::new("second.json")];
    type Change = fn(&mut bdhs::eval::ItemScore);
    let changes: [(Change, &str); 3] = [
        (|item| item.question = "Is it night?".into(), "question \"Is it night?\""),
        (|item| item.image = Some("z.jpg".into()), "image \"z.jpg\""),
        (|item| item.target = json!("other"), "truth"),
    ];
    for (change, wanted) in changes {
        let mut other = outcome.clone();
        change(&mut other.items[3]);
        let error = compare(&outcome, other, names, 10, 0).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains("item \"4\""), "{error}");
    }
    for (name, value) in [
        ("judge_models", json!({"gpt-4o": 40})),
        ("official_prompt", json!(true)),
        ("data", json!("demo-benchmarks")),
    ] {
        let mut other = outcome.clone();
        other.details.insert(name.into(), value);
        let found = compare(&outcome, other, names, 10, 0).unwrap();
        assert_eq!(found.cautions.len(), 1, "{name}");
        assert!(found.table().contains("caution:"), "{}", found.table());
    }
    let answers = predictions(&dir.path().join("answers.jsonl"));
    let settings = Settings { unit: Unit::Item, suffix: Some("?".into()), ..Settings::default() };
    let by_item = run("pope", &folder(dir.path()), &settings, &answers).unwrap();
    for (a, b) in [(&outcome, &by_item), (&by_item, &outcome)] {
        let found = compare(a, b.clone(), names, 10, 0).unwrap();
        assert_eq!((found.units, found.unit), (10, Unit::Image));
        let names: Vec<&String> = found.cautions.keys().collect();
        assert_eq!(names, ["suffix", "unit"]);
    }
    let found = compare(&by_item, by_item.clone(), names, 10, 0).unwrap();
    assert!(
        found.table().contains("p-values are too small")
            && found.table().contains("tests side by side")
    );
}
