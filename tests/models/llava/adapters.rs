//! PEFT adapters against PEFT on transformers (scripts/golden_adapters.py), and what is refused.

use std::collections::HashMap;

use bdhs::models::Source;
use bdhs::models::merge::merge;

use super::*;

#[test]
fn merged_adapters_equal_peft() {
    for name in ["llava15", "next_vicuna"] {
        let (plain, model) = (load(name), load(&format!("adapter_{name}")));
        let (golden, of_base) = (tensors(name), Golden::of(name));
        let logits = |model: &Model| {
            let x = model.language.embed(&ids(&of_base.results["text_ids"])).unwrap();
            let positions: Vec<u32> = (0..x.dim(0).unwrap() as u32).collect();
            model.language.logits(&prefill(&model.language, &x, &positions)).unwrap()
        };
        let features = |model: &Model| {
            model.image_features(&model.preprocess(&picture(61, 23)).unwrap()).unwrap()
        };
        let found = [logits(&model), features(&model)];
        for (name, found) in ["text.logits", "wide.features"].iter().zip(&found) {
            let difference = max_difference(found, &golden[*name]);
            println!("{name}: {difference:e}");
            assert!(difference <= 1e-4, "{name}: {difference}");
        }
        // The adapter says something.
        assert!(max_difference(&logits(&plain), &golden["text.logits"]) > 0.05);
        assert!(max_difference(&features(&plain), &golden["wide.features"]) > 0.05);
        assert_eq!(model.dir(), folder(&format!("adapter_{name}")));
        let half = Model::load(model.dir(), &Device::Cpu, DType::BF16).unwrap();
        assert_eq!(half.language.dtype(), DType::BF16);
        // As one checkpoint: changed tensors rounded to the base's f16, all others byte for byte.
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("merged");
        let merged = merge(model.dir(), &out).unwrap();
        assert!(merged.changed > 0 && merged.changed < merged.tensors);
        let one = Model::load(&out, &Device::Cpu, DType::F32).unwrap();
        for (name, found) in
            ["text.logits", "wide.features"].iter().zip([logits(&one), features(&one)])
        {
            let difference = max_difference(&found, &golden[*name]);
            println!("{name}, merged: {difference:e}");
            assert!(difference <= 2e-2, "{name}: {difference}");
        }
        let [mut base, mut all] = [folder(name), out.clone()].map(|dir| {
            candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap()
        });
        assert_eq!(base.len(), merged.tensors);
        let same = base.drain().filter(|(name, tensor)| {
            let other = all.remove(name).unwrap();
            assert_eq!(other.dtype(), tensor.dtype());
            let [a, b] = [tensor, &other].map(|t| t.to_dtype(DType::F32).unwrap());
            max_difference(&a, &b) == 0.0
        });
        assert!(same.count() >= merged.tensors - merged.changed);
        let refused = |adapter: &Path, out: &Path| merge(adapter, out).unwrap_err().to_string();
        assert!(refused(model.dir(), &out).contains("does not exist yet"));
        assert!(refused(&folder(name), &dir.path().join("b")).contains("adapter_config.json"));
    }
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    let path = folder(&format!("adapter_{name}")).join("expected/results.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// A copy of an adapter's folder beside a copy of a base, with fields of its configuration changed.
fn changed(base: &str, fields: Value) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let adapter = dir.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    let source = folder("adapter_llava15");
    std::fs::copy(
        source.join("adapter_model.safetensors"),
        adapter.join("adapter_model.safetensors"),
    )
    .unwrap();
    let mut config = json_file(source.join("adapter_config.json"));
    config["base_model_name_or_path"] = json!(folder(base));
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    (dir, adapter)
}

#[test]
fn adapters_that_do_not_fit_are_named() {
    for (base, fields, expected) in [
        (
            "llava15",
            json!({"base_model_name_or_path": "llava-hf/none"}),
            ["base_model_name_or_path", "llava-hf/none"],
        ),
        (
            "llava15",
            json!({"base_model_name_or_path": null}),
            ["base_model_name_or_path", "expected the folder"],
        ),
        ("llava15", json!({"peft_type": "IA3"}), ["IA3", "expected LORA"]),
        ("llava15", json!({"use_dora": true}), ["DoRA", "expected LORA"]),
        ("llava15", json!({"fan_in_fan_out": true}), ["fan_in_fan_out", "not built in"]),
    ] {
        let (_dir, adapter) = changed(base, fields);
        let error =
            Model::load(&adapter, &Device::Cpu, DType::F32).err().expect("refused").to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let (_dir, adapter) = changed("llava15", json!({}));
    let path = adapter.join("adapter_model.safetensors");
    let whole = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let module = "base_model.model.model.language_model.layers.0.self_attn.q_proj";
    let b = format!("{module}.lora_B.weight");
    let refused = |tensors: &HashMap<String, Tensor>, expected: &[&str]| {
        candle_core::safetensors::save(tensors, &path).unwrap();
        let error =
            Model::load(&adapter, &Device::Cpu, DType::F32).err().expect("refused").to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    let mut other = whole.clone();
    other.insert(b.clone(), other[&b].narrow(0, 0, 8).unwrap());
    refused(&other, &["adapter_model.safetensors", module, "[8, 40]"]);
    let mut other = whole.clone();
    other.remove(&b);
    refused(&other, &[module, "lacks a lora_A or lora_B"]);
    let mut other = whole.clone();
    for side in ["A", "B"] {
        let tensor = other.remove(&format!("{module}.lora_{side}.weight")).unwrap();
        let name = format!("{module}.lora_{side}.weight").replace("layers.0", "layers.9");
        other.insert(name, tensor);
    }
    refused(&other, &["layers.9", "does not have"]);
    let mut other = whole;
    other.insert("base_model.model.lm_head.lora_embedding_A".into(), other[&b].clone());
    refused(&other, &["lora_embedding_A", "not built in"]);
}

#[test]
fn an_adapter_has_a_fingerprint_of_its_own_and_of_its_base() {
    let own = |base: &str| {
        let (_dir, adapter) = changed(base, json!({"base_model_name_or_path": "../base"}));
        let to = adapter.parent().unwrap().join("base");
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(folder(base)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
        Source::new(&adapter, None).unwrap().fingerprint().unwrap()
    };
    let first = own("llava15");
    assert_eq!(first, own("llava15"), "wherever it lies");
    assert_ne!(first, own("llava15_odd"), "another base");
    let base = folder("llava15");
    assert_ne!(first, Source::new(&base, None).unwrap().fingerprint().unwrap());
    let named = Source::new(&base, Some(&folder("adapter_llava15"))).unwrap();
    let itself = Source::new(&folder("adapter_llava15"), None).unwrap();
    assert_eq!(named.fingerprint().unwrap(), itself.fingerprint().unwrap(), "however it is given");
}

/// What a model with an adapter says of a text and of a picture.
fn results(source: &Source) -> [Tensor; 2] {
    let model = Model::open(source, &place::device(), DType::F32).unwrap();
    let x = model.language.embed(&[300, 301, 302, 303]).unwrap();
    let states = prefill(&model.language, &x, &[0, 1, 2, 3]);
    let pixels = model.preprocess(&picture(61, 23)).unwrap();
    [model.language.logits(&states).unwrap(), model.image_features(&pixels).unwrap()]
}

fn assert_equal(ours: &Source, theirs: &Source, what: &str) {
    for (ours, theirs) in results(ours).iter().zip(&results(theirs)) {
        assert_eq!(max_difference(ours, theirs), 0.0, "{what}");
    }
}

/// An adapter's folder with its tensors under the original code's names; of a trained projector's, as that code keeps them.
fn in_original_names(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut config = json_file(folder(name).join("adapter_config.json"));
    config["base_model_name_or_path"] = json!("liuhaotian/llava-v1.5-7b");
    write(dir.path(), "adapter_config.json", &config);
    let path = folder(name).join("adapter_model.safetensors");
    let (mut lora, mut whole) = (HashMap::new(), HashMap::new());
    for (name, tensor) in candle_core::safetensors::load(path, &Device::Cpu).unwrap() {
        let bare = name.strip_prefix("base_model.model.").unwrap();
        let name = format!("base_model.model.{}", original::original_name(bare));
        let part = if name.contains(".lora_") { &mut lora } else { &mut whole };
        part.insert(name, tensor);
    }
    let to = |file: &str| dir.path().join(file);
    candle_core::safetensors::save(&lora, to("adapter_model.safetensors")).unwrap();
    if !whole.is_empty() {
        candle_core::safetensors::save(&whole, to("non_lora_trainables.safetensors")).unwrap();
    }
    dir
}

#[test]
fn adapters_go_with_bases_of_either_layout() {
    for (base, inside) in [("llava15", false), ("next_vicuna", true)] {
        let adapter = folder(&format!("adapter_{base}"));
        let expected = Source::new(&adapter, None).unwrap();
        let written = original::Written::new(base, inside);
        let renamed = in_original_names(&format!("adapter_{base}"));
        for (base, adapter, what) in [
            (&folder(base), adapter.as_path(), "beside its base"),
            (&written.dir, adapter.as_path(), "beside an original base"),
            (&folder(base), renamed.path(), "in original names"),
            (&written.dir, renamed.path(), "all original"),
        ] {
            let source = Source::new(base, Some(adapter)).unwrap();
            assert_eq!(source.dir(), adapter);
            assert_equal(&source, &expected, what);
        }
    }
}

#[test]
fn two_adapters_pickles_and_other_files_are_refused() {
    let (base, adapter) = (folder("llava15"), folder("adapter_llava15"));
    let named = |model: &Path, adapter: Option<&Path>, expected: &[&str]| {
        let error = Source::new(model, adapter).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    named(&adapter, Some(&adapter), &["two adapters", "adapter_llava15"]);
    let (_dir, on_adapter) = changed("adapter_llava15", json!({}));
    named(&on_adapter, None, &["two adapters"]);
    named(&base, Some(&base), &["has no adapter_config.json"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("llava.gguf");
    std::fs::write(&file, "GGUF").unwrap();
    named(&file, None, &["GGUF", "assemble_llava", file.to_str().unwrap()]);
    named(&base.join("config.json"), None, &["is a file, expected the folder of a checkpoint"]);

    let renamed = in_original_names("adapter_next_vicuna");
    let source = Source::new(&folder("next_vicuna"), Some(renamed.path())).unwrap();
    for file in ["non_lora_trainables", "adapter_model"] {
        let path = renamed.path().join(file);
        let pickle = path.with_extension("bin");
        std::fs::rename(path.with_extension("safetensors"), &pickle).unwrap();
        let error =
            Model::open(&source, &Device::Cpu, DType::F32).err().expect("refused").to_string();
        let script = format!("pickle_to_safetensors.py {}", renamed.path().display());
        assert!(error.contains(pickle.to_str().unwrap()) && error.contains(&script), "{error}");
    }
}
