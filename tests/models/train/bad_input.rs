//! What is refused, and how it is said.

use bdhs::sampling::SamplingConfig;
use bdhs::train::{Options, run};
use serde_json::{Value, json};

use super::*;

/// The first golden pair with some fields changed, in a folder with its image.
fn file(fields: Value) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(golden("dpo/pairs.jsonl")).unwrap();
    let mut row: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let image = row["images"][0].as_str().unwrap().to_owned();
    let to = folder.path().join(&image);
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::copy(golden("dpo").join(&image), &to).unwrap();
    for (name, value) in fields.as_object().unwrap() {
        row[name] = value.clone();
    }
    let path = folder.path().join("pairs.jsonl");
    std::fs::write(&path, format!("\n{row}\n")).unwrap();
    (folder, path)
}

fn refused(fields: Value, expected: &[&str]) {
    let (folder, path) = file(fields);
    let settings = Settings { batch: 1, epochs: 1, ..settings() };
    let base = base();
    let out = folder.path().join("out");
    let options = Options {
        model: base,
        pixels: Default::default(),
        base: "the tiny LLaVA",
        device: &Device::Cpu,
        dtype: "f32",
        out: &out,
        file: &path,
        sampling: &SamplingConfig::default(),
        reference: None,
    };
    let done = read_pairs(&path, None).and_then(|pairs| run(&pairs, &settings, &options, &()));
    let message = done.map(|_| ()).unwrap_err().to_string();
    println!("{message}");
    for part in ["pairs.jsonl"].iter().chain(expected) {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

#[test]
fn rows_that_do_not_hold() {
    let answer =
        |text: &str| json!([{"role": "assistant", "content": [{"type": "text", "text": text}]}]);
    refused(json!({"images": []}), &["line 2", "no image"]);
    refused(json!({"images": ["gone.png"]}), &["line 2", "images", "gone.png"]);
    refused(json!({"images": ["../x.png"]}), &["line 2", "images", "inside"]);
    refused(
        json!({"chosen": answer("Same."), "rejected": answer("Same.")}),
        &["line 2", "rejected", "equals chosen"],
    );
    refused(json!({"chosen": answer(" ")}), &["line 2", "chosen", "blank"]);
    refused(json!({"rejected": 3}), &["line 2", "rejected", "3", "a string"]);
    refused(
        json!({"prompt": [{"role": "robot", "content": "x"}]}),
        &["line 2", "prompt[0].role", "robot"],
    );
    refused(
        json!({"prompt": [{"role": "assistant", "content": "x"}]}),
        &["line 2", "prompt", "user's turn"],
    );
    refused(
        json!({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}),
        &["line 2", "prompt[0].content", "video"],
    );
    let two = json!([{"role": "user", "content": "<image> and <image>?"}]);
    refused(json!({"prompt": two}), &["line 2", "1 paths", "2 <image>"]);
    refused(
        json!({"chosen": answer(&"long words ".repeat(4000))}),
        &["line 2", "positions", "the model has"],
    );
    for flag in ["identical", "empty"] {
        refused(json!({"flags": [flag]}), &["0 usable pairs of 1", "train.batch = 1"]);
    }
}

#[test]
fn an_identical_pair_with_its_flag_is_left_out_not_refused() {
    let same = json!([{"role": "assistant", "content": "Same."}]);
    let (_folder, path) = file(json!({"chosen": same, "rejected": same, "flags": ["identical"]}));
    assert!(read_pairs(&path, None).unwrap()[0].is_flagged());
}

#[test]
fn settings_outside_their_range() {
    type Change = fn(&mut Settings);
    let cases: [(Change, &str); 7] = [
        (|s| s.beta = 0.0, "train.beta"),
        (|s| s.label_smoothing = 0.5, "train.label_smoothing"),
        (|s| s.rank = 0, "train.rank"),
        (|s| s.dropout = 1.0, "train.dropout"),
        (|s| s.learning_rate = f64::NAN, "train.learning_rate"),
        (|s| s.targets = vec!["lm_head".into()], "train.targets"),
        (|s| (s.targets, s.projector) = (Vec::new(), false), "train.targets"),
    ];
    for (change, field) in cases {
        let mut settings = settings();
        change(&mut settings);
        let message = settings.validate().unwrap_err().to_string();
        assert!(message.contains(field), "{message}");
    }
}

#[test]
fn a_step_that_explodes_names_its_pair_and_changes_nothing() {
    // Every weight is finite, the states after them are not.
    let settings = settings();
    let mut trainer = trainer(&settings);
    let examples = examples(&trainer);
    let mut tensors = trainer.tensors().unwrap();
    let name = tensors.keys().find(|name| name.contains("linear_2.weight")).unwrap().clone();
    let huge = (tensors[&name].ones_like().unwrap() * 3e38).unwrap();
    tensors.insert(name, huge);
    let folder = tempfile::tempdir().unwrap();
    candle_core::safetensors::save(&tensors, folder.path().join("adapter_model.safetensors"))
        .unwrap();
    trainer.load_adapter(folder.path()).unwrap();
    let before = trainer.tensors().unwrap().into_iter().map(|(name, t)| (name, values(&t)));
    let before: HashMap<String, Vec<f32>> = before.collect();
    let message = trainer.step(&[&examples[2]], 1.0).unwrap_err().to_string();
    assert!(message.contains("line 3") && message.contains("finite"), "{message}");
    for (name, tensor) in trainer.tensors().unwrap() {
        assert_eq!(values(&tensor), before[&name], "{name}");
    }
}

#[test]
fn adapters_that_do_not_fit() {
    let trainer = trainer(&Settings { rank: 5, ..settings() });
    let message = trainer.load_adapter(&golden("dpo/adapter")).unwrap_err().to_string();
    assert!(message.contains("lora_A") && message.contains("expected [5"), "{message}");
    let adapter = golden("llava/adapter_llava15");
    let stacked = Trainer::new(&adapter, &Device::Cpu, DType::F32, &settings());
    let message = stacked.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("training on the adapter"), "{message}");
}
