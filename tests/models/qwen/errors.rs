//! What is refused, and how.

use serde_json::json;

use super::*;

fn refusal(name: &str, file: &str, change: impl Fn(&mut Value)) -> String {
    let dir = copy(name);
    let path = dir.path().join(file);
    let mut value = json_file(&path);
    change(&mut value);
    std::fs::write(&path, value.to_string()).unwrap();
    match Model::load(dir.path(), &place::device(), DType::F32) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

/// Each names the file, the field and what was expected.
#[test]
fn settings_that_do_not_fit_are_refused() {
    type Change = fn(&mut Value);
    let cases: [(&str, &str, Change, &[&str]); 14] = [
        (
            "qwen2_5",
            "config.json",
            |c| c["vision_config"]["in_chans"] = json!(4),
            &["in_chans", "RGB"],
        ),
        (
            "qwen2_5",
            "config.json",
            |c| c["vision_config"]["num_heads"] = json!(5),
            &["num_heads", "multiple of 4"],
        ),
        (
            "qwen2_5",
            "config.json",
            |c| c["vision_config"]["window_size"] = json!(11),
            &["window_size", "12"],
        ),
        (
            "qwen2_5",
            "config.json",
            |c| c["vision_config"]["fullatt_block_indexes"] = json!(["a"]),
            &["fullatt_block_indexes"],
        ),
        (
            "qwen2_5",
            "config.json",
            |c| c["vision_config"]["hidden_act"] = json!("relu"),
            &["relu", "silu"],
        ),
        (
            "qwen2_5",
            "config.json",
            |c| c["vision_config"]["out_hidden_size"] = json!(64),
            &["out_hidden_size", "64", "32"],
        ),
        (
            "qwen2",
            "config.json",
            |c| c["vision_config"]["hidden_size"] = json!(64),
            &["vision_config.hidden_size", "64"],
        ),
        (
            "qwen2",
            "config.json",
            |c| c["vision_config"]["model_type"] = json!("siglip"),
            &["siglip", "qwen2_vl_vision"],
        ),
        (
            "qwen2",
            "config.json",
            |c| c["vision_config"]["rope_parameters"] = json!({"rope_type": "yarn"}),
            &["yarn", "axial"],
        ),
        (
            "qwen2_5",
            "preprocessor_config.json",
            |c| c["patch_size"] = json!(7),
            &["patch_size", "7", "6"],
        ),
        (
            "qwen2_5",
            "preprocessor_config.json",
            |c| c["min_pixels"] = json!(10_000),
            &["max_pixels", "10000"],
        ),
        (
            "qwen2",
            "preprocessor_config.json",
            |c| c["size"] = json!({"height": 5, "width": 5}),
            &["size", "shortest_edge"],
        ),
        (
            "qwen2",
            "preprocessor_config.json",
            |c| c["image_processor_type"] = json!("CLIPImageProcessor"),
            &["CLIPImageProcessor", "Qwen2VLImageProcessor"],
        ),
        ("qwen2", "preprocessor_config.json", |c| c["resample"] = json!(0), &["resample 0"]),
    ];
    for (name, file, change, expected) in cases {
        let error = refusal(name, file, change);
        for part in expected.iter().chain(&[file]) {
            assert!(error.contains(part), "{error}: no {part}");
        }
    }
}

#[test]
fn decoders_that_are_not_built_in_are_refused_by_name() {
    let rope = |kind: &str| {
        let kind = kind.to_owned();
        refusal("qwen2_5", "config.json", move |c| {
            c["rope_scaling"] = json!({"type": kind, "mrope_section": [1, 1, 2], "factor": 2.0});
        })
    };
    assert!(rope("yarn").contains("yarn"));
    let error = refusal("qwen2_5", "config.json", |c| {
        c["rope_scaling"]["mrope_section"] = json!([1, 1, 1]);
    });
    assert!(error.contains("mrope_section"), "{error}");
    let error = refusal("qwen2_5", "config.json", |c| c["model_type"] = json!("qwen3_vl_moe"));
    assert!(error.contains("qwen3_vl_moe") && error.contains("qwen2_5_vl"), "{error}");
    let error = refusal("qwen2_5", "config.json", |c| c["use_sliding_window"] = json!("yes"));
    assert!(error.contains("use_sliding_window"), "{error}");
}

/// A checkpoint of one generation under the name of the other: its tensors are missed by name.
#[test]
fn tensors_that_are_not_there_are_named() {
    let dir = copy("qwen2_5");
    let path = dir.path().join("model.safetensors");
    let mut all = tensors(&path);
    all.remove("visual.blocks.1.mlp.gate_proj.bias").unwrap();
    candle_core::safetensors::save(&all, &path).unwrap();
    let error = Model::load(dir.path(), &place::device(), DType::F32).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("visual.blocks.1.mlp.gate_proj.bias"), "{error}");
}
