//! Scoring 100,000 POPE and TextVQA answers and 10,000 captions, from files to the result, with and without intervals.

use std::{fmt::Write, path::Path, time::Duration};

use bdhs::eval::{Files, Settings, Sources, evaluate, metric};
use criterion::{Criterion, criterion_group, criterion_main};

const ANSWERS: usize = 100_000;
const CAPTIONS: usize = 10_000;

/// Six questions an image, and answers that are right five times of six.
fn pope(dir: &Path) {
    let (mut labels, mut answers) = (String::new(), String::new());
    for i in 0..ANSWERS {
        let (label, text) =
            (["yes", "no"][i % 2], ["Yes", "No, there is not."][(i + usize::from(i % 6 == 0)) % 2]);
        let image = i / 6;
        let _ = writeln!(
            labels,
            r#"{{"question_id": {}, "image": "{image}.jpg", "text": "Is there a thing in the image?", "label": "{label}"}}"#,
            i + 1
        );
        let _ = writeln!(answers, r#"{{"question_id": {}, "text": "{text}"}}"#, i + 1);
    }
    write(dir, "coco_pope_adversarial.json", &labels);
    write(dir, "pope.jsonl", &answers);
}

/// Ten answers each, of the kinds that TextVQA has.
fn vqat(dir: &Path) {
    let words = [
        "nokia",
        "Coca-Cola",
        "10:10 a.m.",
        "$3.82",
        "unanswerable",
        "King's Cross",
        "the 5th avenue",
    ];
    let (mut questions, mut answers) = (Vec::new(), String::new());
    for i in 0..ANSWERS {
        let ten: Vec<&str> = (0..10).map(|k| words[(i + k / 4) % words.len()]).collect();
        questions.push(serde_json::json!({
            "question_id": i, "image_id": format!("{:x}", i / 2), "question": "What is written here?", "answers": ten,
        }));
        let _ =
            writeln!(answers, r#"{{"question_id": {i}, "answer": "{}."}}"#, words[i % words.len()]);
    }
    write(dir, "TextVQA_0.5.1_val.json", &serde_json::json!({"data": questions}).to_string());
    write(dir, "vqat.jsonl", &answers);
}

/// Captions of about 90 words, and the classes of a table of our own.
fn captions(dir: &Path) {
    let nouns = [
        "dogs",
        "bus",
        "people",
        "wine glasses",
        "traffic light",
        "chairs",
        "umbrella",
        "kites",
        "table",
        "trees",
    ];
    write(
        dir,
        "synonyms.txt",
        "person, man, people\ndog\nbus\nwine glass\ntraffic light\nchair\numbrella\nkite\ndining table, table\n",
    );
    let (mut objects, mut rows) = (serde_json::Map::new(), String::new());
    for i in 0..CAPTIONS {
        let mut caption = String::new();
        for k in 0..8 {
            let (a, b) = (nouns[(i + k) % nouns.len()], nouns[(i * 7 + k * 3) % nouns.len()]);
            let _ = write!(caption, "There are {a} near the {b}, and scene {i} isn't empty. ");
        }
        let _ = writeln!(rows, r#"{{"image_id": {i}, "caption": "{caption}"}}"#);
        objects.insert(i.to_string(), serde_json::json!(["person", "dog", "kite"]));
    }
    write(dir, "gt_objects.json", &serde_json::Value::from(objects).to_string());
    write(dir, "recall-coco.jsonl", &rows);
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

fn bench(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    pope(dir.path());
    vqat(dir.path());
    captions(dir.path());
    let mut group = c.benchmark_group("eval");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(5));
    let files = Files { folder: Some(dir.path().to_owned()), ..Files::default() };
    for (name, n) in [("pope", ANSWERS), ("vqat", ANSWERS), ("recall-coco", CAPTIONS)] {
        let sources = Sources {
            predictions: Some(dir.path().join(format!("{name}.jsonl"))),
            ..Sources::default()
        };
        for resamples in [0, 1000] {
            let settings = Settings { resamples, ..Settings::default() };
            group.bench_function(format!("{name}/{n}/{resamples} resamples"), |b| {
                b.iter(|| evaluate(metric(name).unwrap(), &files, &settings, &sources).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
