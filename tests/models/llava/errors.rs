//! What is wrong with a folder or an argument is named.

use super::*;

#[test]
fn bad_settings_are_named() {
    let cases: [(&str, Value, &str); 15] = [
        ("model_type", json!("mllama"), "model type \"mllama\" is not supported"),
        ("model_type", json!("llava_llama"), "field mm_vision_tower: is missing"),
        (
            "quantization_config",
            json!({"quant_method": "awq", "bits": 4}),
            "quantization_config (awq)",
        ),
        ("vision_feature_layer", json!(-7), "field vision_feature_layer: is -7"),
        ("vision_feature_layer", json!("last"), "field vision_feature_layer: is \"last\""),
        ("vision_feature_select_strategy", json!("cls"), "field vision_feature_select_strategy"),
        ("projector_hidden_act", json!("mish"), "activation \"mish\""),
        ("vision_config/model_type", json!("siglip_vision_model"), "vision tower \"siglip"),
        ("vision_config/hidden_size", json!(48), "shape [24], expected [48]"),
        ("text_config/model_type", json!("gemma"), "language model \"gemma\""),
        (
            "text_config/num_key_value_heads",
            json!(3),
            "field text_config.num_key_value_heads: is 3",
        ),
        ("text_config/hidden_size", json!("wide"), "field text_config.hidden_size: is \"wide\""),
        ("text_config/num_hidden_layers", json!(0), "is 0, expected a positive integer"),
        ("text_config/num_hidden_layers", json!(3), "layers.2"),
        ("text_config/rope_scaling", json!({"type": "yarn", "factor": 2.0}), "rope type \"yarn\""),
    ];
    for (field, value, expected) in cases {
        let dir = copy("llava15");
        let mut config = json_file(dir.path().join("config.json"));
        *config.pointer_mut(&format!("/{field}")).unwrap_or(&mut Value::Null) = value.clone();
        match field.split_once('/') {
            Some((outer, inner)) => config[outer][inner] = value,
            None => config[field] = value,
        }
        write(dir.path(), "config.json", &config);
        let error = Model::load(dir.path(), &Device::Cpu, DType::F32).err().unwrap().to_string();
        assert!(error.contains(expected), "{field}: {error}");
    }
}

#[test]
fn broken_folders_are_named() {
    for file in ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"] {
        let dir = copy("llava15");
        std::fs::remove_file(dir.path().join(file)).unwrap();
        let error = Model::load(dir.path(), &Device::Cpu, DType::F32).err().unwrap().to_string();
        assert!(error.contains(file) || error.contains("safetensors"), "{file}: {error}");
    }
    let projector = "multi_modal_projector.linear_2.bias";
    type Change = fn(Tensor) -> Option<Tensor>;
    let changes: [Change; 3] =
        [|_| None, |t| Some(t.narrow(0, 0, 8).unwrap()), |t| Some((t * f64::NAN).unwrap())];
    for change in changes {
        let dir = copy("llava15");
        edit_tensors(dir.path(), |name, tensor| {
            let tensor = if name == projector { change(tensor)? } else { tensor };
            Some((name.to_owned(), tensor))
        });
        let error = Model::load(dir.path(), &Device::Cpu, DType::F32).err().unwrap().to_string();
        assert!(error.contains(projector), "{error}");
    }
    let dir = copy("llava15");
    edit_tensors(dir.path(), |name, t| {
        (!name.contains("embed_tokens")).then_some((name.to_owned(), t))
    });
    let error = Model::load(dir.path(), &Device::Cpu, DType::F32).err().unwrap().to_string();
    assert!(error.contains("no language model in the weights"), "{error}");
}

#[test]
fn bad_arguments_are_named() {
    let model = load("next_vicuna");
    for (width, height) in [(0, 10), (10, 0), (1, 100_000)] {
        let error = model.layout(width, height).unwrap_err().to_string();
        assert!(error.contains(&format!("{width}x{height}")), "{error}");
    }
    assert!(model.preprocess(&RgbImage::new(0, 0)).is_err());
    let error = model.language.embed(&[100_000]).unwrap_err().to_string();
    assert!(error.contains("100000"), "{error}");

    let language = &model.language;
    let x = language.embed(&[4, 5]).unwrap();
    let mut cache = language.new_cache(4).unwrap();
    let plan = AttendPlan { blocks: vec![causal(0..2, 0, 2)] };
    for (positions, slots, expected) in [
        (vec![0, 1], vec![0, 4], "slot"),
        (vec![0, 1], vec![1, 1], "slot 1 twice"),
        (vec![0, 1], vec![0], "number of slots"),
        (vec![0], vec![0], "shape of x"),
    ] {
        let error = language.forward(&x, &positions, &mut cache, &slots, &plan).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let empty = language.embed(&[]).unwrap();
    let none =
        language.forward(&empty, &[0u32; 0], &mut cache, &[], &AttendPlan::default()).unwrap();
    assert_eq!(none.dims(), [0, language.config().hidden]);
}

#[test]
fn a_sliding_window_is_refused_only_past_it() {
    let dir = copy("next_mistral");
    let mut config = json_file(dir.path().join("config.json"));
    config["text_config"]["sliding_window"] = json!(10);
    write(dir.path(), "config.json", &config);
    let model = Model::load(dir.path(), &Device::Cpu, DType::F32).unwrap();
    let x = model.language.embed(&[4, 5]).unwrap();
    let mut cache = model.language.new_cache(2).unwrap();
    let plan = AttendPlan { blocks: vec![causal(0..2, 0, 2)] };
    assert!(model.language.forward(&x, &[8, 9], &mut cache, &[0, 1], &plan).is_ok());
    let error = model.language.forward(&x, &[9, 10], &mut cache, &[0, 1], &plan).unwrap_err();
    assert!(error.to_string().contains("sliding window of 10"), "{error}");

    let config = config.as_object_mut().unwrap();
    config["text_config"].as_object_mut().unwrap().remove("sliding_window");
    write(dir.path(), "config.json", &Value::Object(config.clone()));
    assert_eq!(Config::read(dir.path()).unwrap().text.sliding_window, Some(4096));
}

/// The engine shares one model between threads.
#[test]
fn a_model_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&load("llava15"));
}
