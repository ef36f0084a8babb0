//! Objects in captions.

use bdhs::eval::{
    Outcome, Settings, Singular,
    recall_coco::{singular::pattern, tables, words::words},
};
use serde_json::json;

use crate::{files, folder, predictions, protocol, run, score, write};

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
