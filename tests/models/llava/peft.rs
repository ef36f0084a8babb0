//! What PEFT 0.21 makes of adapters with one feature each (tests/golden/peft: the adapter, and the tensors of the base that
//! change, as PEFT merges them), and settings that are refused by name.

use bdhs::models::Source;
use bdhs::models::merge::merge;

use super::*;

const ADAPTERS: [&str; 7] =
    ["alpha_pattern", "bias_all", "default_names", "lora_bias", "olora", "pissa", "trained_tokens"];

fn adapter(name: &str) -> PathBuf {
    place::root().join("tests/golden/peft").join(name)
}

#[test]
fn every_accepted_adapter_changes_the_base_as_peft_does() {
    let base = folder("llava15");
    let plain = Source::new(&base, None).unwrap().weights(&Device::Cpu, DType::F32).unwrap();
    for name in ADAPTERS {
        let source = Source::new(&base, Some(&adapter(name))).unwrap();
        let found = source.weights(&Device::Cpu, DType::F32).unwrap();
        let path = adapter(name).join("merged.safetensors");
        let merged = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let mut worst = 0f32;
        for stored in plain.names() {
            let shape = plain.shape(stored).unwrap();
            let expected = merged.iter().find(|(of, _)| {
                bdhs::models::adapter::canonical(of) == bdhs::models::adapter::canonical(stored)
            });
            let expected = match expected {
                Some((_, tensor)) => tensor.clone(),
                None => plain.get(shape, stored).unwrap(),
            };
            let tensor = found.get(shape, stored).unwrap();
            let difference = max_difference(&tensor, &expected);
            worst = worst.max(difference);
            assert!(difference <= 1e-4, "{name}: {stored} differs by {difference}");
        }
        println!("{name}: {} tensors change, {worst:e} from PEFT's", merged.len());
    }
}

/// Regression: the pairs of PiSSA and OLoRA were added to the base as it is stored.
#[test]
fn merged_folders_hold_what_the_adapter_means() {
    for name in ["pissa", "trained_tokens"] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let merged = merge(&adapter(name), &out).unwrap();
        let path = adapter(name).join("merged.safetensors");
        let expected = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        assert_eq!(merged.changed, expected.len());
        let found = candle_core::safetensors::load(out.join("model.safetensors"), &Device::Cpu);
        let canonical = bdhs::models::adapter::canonical;
        let found: Vec<(String, Tensor)> =
            found.unwrap().into_iter().map(|(name, tensor)| (canonical(&name), tensor)).collect();
        for (tensor, expected) in &expected {
            let (_, found) = found.iter().find(|(of, _)| *of == canonical(tensor)).unwrap();
            let difference = max_difference(&found.to_dtype(DType::F32).unwrap(), expected);
            assert!(difference <= 1e-4, "{name}: {tensor} differs by {difference}");
        }
    }
}

/// Regression: a list of eight fields was read, and the rest read over.
#[test]
fn settings_that_would_be_left_out_are_refused_by_name() {
    let base = folder("llava15");
    let open = |name: &str, field: &str, value: Value| {
        let dir = tempfile::tempdir().unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(adapter(name).join(file), dir.path().join(file)).unwrap();
        }
        let path = dir.path().join("adapter_config.json");
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config[field] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let source = Source::new(&base, Some(dir.path())).unwrap();
        source.weights(&Device::Cpu, DType::F32).map(|_| ()).map_err(|error| error.to_string())
    };
    for (field, value) in [
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("lora_ga")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("mica")),
        ("layer_replication", json!([[0, 1], [0, 2]])),
        ("alora_invocation_tokens", json!([1, 2])),
        ("use_dora", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("use_qalora", json!(true)),
        ("kasa_config", json!({"beta": 0.1})),
        ("a_field_of_next_year", json!({"x": 1})),
        ("r", json!(8)),
    ] {
        let error = open("alpha_pattern", field, value.clone()).unwrap_err();
        assert!(error.contains(field) && error.contains("adapter_config.json"), "{field}: {error}");
        assert!(!error.contains("None") && !error.contains("Some("), "{error}");
    }
    for (field, value) in [
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!("eva")),
        ("task_type", json!("ANYTHING")),
        ("a_field_of_next_year", json!({"x": null, "y": []})),
        ("lora_dropout", json!(0.3)),
    ] {
        open("default_names", field, value).unwrap();
    }
    let error = open("trained_tokens", "trainable_token_indices", json!({"lm_head": [3, 7]}));
    assert!(error.unwrap_err().contains("trainable_token_indices"));
    let error =
        open("trained_tokens", "trainable_token_indices", json!({"embed_tokens": [3, 70000]}));
    assert!(error.unwrap_err().contains("trainable_token_indices"));
    open("trained_tokens", "trainable_token_indices", json!([3, 7])).unwrap();
}

/// An adapter of the original code on a Vicuna: the message says what the base must be.
#[test]
fn a_bare_language_model_is_no_base() {
    let dir = tempfile::tempdir().unwrap();
    let [vicuna, lora] = ["vicuna", "lora"].map(|name| dir.path().join(name));
    std::fs::create_dir(&vicuna).unwrap();
    std::fs::create_dir(&lora).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(adapter("default_names").join(file), lora.join(file)).unwrap();
    }
    let language = json!({"model_type": "llama", "hidden_size": 40, "vocab_size": 452});
    std::fs::write(vicuna.join("config.json"), language.to_string()).unwrap();
    let own = json!({"model_type": "llava", "mm_vision_tower": "somebody/clip", "hidden_size": 40,
        "mm_projector_type": "mlp2x_gelu", "architectures": ["LlavaLlamaForCausalLM"]});
    std::fs::write(lora.join("config.json"), own.to_string()).unwrap();
    let error = Source::new(&vicuna, Some(&lora)).unwrap_err().to_string();
    for part in ["bare language model", "\"llama\"", "merge_lora_weights", "whole LLaVA"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(Source::new(&folder("llava15"), Some(&lora)).is_ok());
}
