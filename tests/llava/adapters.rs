//! PEFT adapters against PEFT on transformers (scripts/golden_adapters.py), and what is refused.

use bdhs::models::{merge::merge, weights::fingerprint};

use super::*;

#[test]
fn merged_adapters_equal_peft() {
    for name in ["llava15", "next_vicuna"] {
        let (plain, model) = (load(name), load(&format!("adapter_{name}")));
        let (golden, of_base) = (tensors(name), Golden::of(name));
        let logits = |model: &Llava| {
            let x = model.language.embed(&ids(&of_base.results["text_ids"])).unwrap();
            let positions: Vec<u32> = (0..x.dim(0).unwrap() as u32).collect();
            model.language.logits(&prefill(&model.language, &x, &positions)).unwrap()
        };
        let features = |model: &Llava| {
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
        let half = Llava::load(model.dir(), &Device::Cpu, DType::BF16).unwrap();
        assert_eq!(half.language.dtype(), DType::BF16);
        // As one checkpoint: changed tensors rounded to the base's f16, all others byte for byte.
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("merged");
        let merged = merge(model.dir(), &out).unwrap();
        assert!(merged.changed > 0 && merged.changed < merged.tensors);
        let one = Llava::load(&out, &Device::Cpu, DType::F32).unwrap();
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

fn tensors(name: &str) -> std::collections::HashMap<String, Tensor> {
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
        ("llava15", json!({"alpha_pattern": {"q_proj": 2.0}}), ["alpha_pattern", "not built in"]),
    ] {
        let (_dir, adapter) = changed(base, fields);
        let error =
            Llava::load(&adapter, &Device::Cpu, DType::F32).err().expect("refused").to_string();
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
    let refused = |tensors: &std::collections::HashMap<String, Tensor>, expected: &[&str]| {
        candle_core::safetensors::save(tensors, &path).unwrap();
        let error =
            Llava::load(&adapter, &Device::Cpu, DType::F32).err().expect("refused").to_string();
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
        fingerprint(adapter).unwrap()
    };
    let first = own("llava15");
    assert_eq!(first, own("llava15"), "wherever it lies");
    assert_ne!(first, own("llava15_odd"), "another base");
    assert_ne!(first, fingerprint(folder("llava15")).unwrap());
}
