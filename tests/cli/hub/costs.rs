//! What is fetched before something is known to be wrong, and what a check of a model costs.

use std::fs;

use serde_json::{Value, json};

use super::*;

fn weights(world: &World) -> Vec<String> {
    requests(&world.hub).into_iter().filter(|what| what.contains("safetensors")).collect()
}

#[test]
fn a_mistake_in_the_data_costs_no_request() {
    let world = World::new();
    for (data, say) in [("absent.json", "absent.json"), ("empty.jsonl", "has no rows")] {
        fs::write(world.dir.path().join("empty.jsonl"), "").unwrap();
        let mut command = world.bdhs();
        command.args(["sweep", "--model", "tiny/llava", "--encoder", "tiny/bert", "--data"]);
        command.arg(world.dir.path().join(data)).arg("--out").arg(world.dir.path().join("out"));
        let (_, message) = world.refused(&mut command);
        assert!(message.contains(say), "{message}");
    }
    // A picture that is not there.
    let mut command = world.sweep("tiny/llava", ["tiny/bert", "mpnet"], "out");
    fs::remove_file(world.dir.path().join("data/images/2.png")).unwrap();
    let (code, message) = world.refused(&mut command);
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("2.png") && message.contains("--skip-bad"), "{message}");
    // A threshold outside of its range.
    let mut command = world.sweep("tiny/llava", ["tiny/bert", "mpnet"], "out");
    command.args(["--threshold", "2"]);
    assert_eq!(world.refused(&mut command).0, 3);
    assert_eq!(requests(&world.hub), [""; 0]);
}

#[test]
fn a_family_that_is_not_supported_costs_its_settings_alone() {
    let world = World::new();
    let path = world.dir.path().join("hub/next_vicuna/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["model_type"] = json!("not_a_family");
    config["architectures"] = json!(["NotAFamilyForConditionalGeneration"]);
    fs::write(&path, config.to_string()).unwrap();
    let sweep = world.sweep("tiny/llava", ["tiny/bert", "mpnet"], "out");
    for mut command in [sweep, world.doctor("tiny/llava")] {
        let (code, message) = world.refused(&mut command);
        assert_eq!(code, 3, "{message}");
        assert!(message.contains("not_a_family"), "{message}");
    }
    assert_eq!(weights(&world), [""; 0]);
    assert_eq!(files(&world.snapshot("tiny/llava"), ""), ["config.json"]);
}

#[test]
fn a_check_of_a_model_reads_headers_alone() {
    let world = World::new();
    let size = fs::metadata(world.dir.path().join("hub/next_vicuna/model.safetensors")).unwrap();
    let by_name = json(&succeed(&mut world.doctor("tiny/llava")));
    assert_eq!(by_name["origin"], json!({"repo": "tiny/llava", "commit": COMMIT}));
    let seen = world.hub.seen();
    let bytes =
        seen.iter().filter(|one| one.what.starts_with("GET") && one.what.contains("safetensors"));
    assert!(bytes.clone().count() > 0 && bytes.clone().all(|one| one.range.is_some()), "{seen:?}");
    assert!(!world.snapshot("tiny/llava").join("model.safetensors").exists());
    let blobs = files(&world.repo("tiny/llava").join("blobs"), "");
    let largest = |name: &String| {
        fs::metadata(world.repo("tiny/llava").join("blobs").join(name)).unwrap().len()
    };
    assert!(blobs.iter().map(largest).all(|bytes| bytes < size.len()), "weights are in the cache");
    let mut command = world.bdhs();
    command.args(["--json", "doctor", "--model"]).arg(golden("llava/next_vicuna"));
    assert_eq!(json(&succeed(&mut command))["model"], by_name["model"]);
    // What was fetched for it is used later, and the rest with it.
    succeed(&mut world.fetch("tiny/llava"));
    assert!(world.snapshot("tiny/llava").join("model.safetensors").is_file());
}
