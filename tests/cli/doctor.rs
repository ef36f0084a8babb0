//! `bdhs doctor --model`: a checkpoint of 14 GB is checked without being read, and what does not fit is named.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{bdhs, golden, json, succeed};
use serde_json::{Map, Value, json};

/// A tensor's name and shape.
type Named = (String, Vec<usize>);

/// Names and shapes of LLaVA-1.6's tensors around a Llama of these sizes.
fn tensors(text: &Value, vision: &Value) -> Vec<Named> {
    let of = |config: &Value, name: &str| config[name].as_u64().unwrap() as usize;
    let (h, inner, vocab) =
        (of(text, "hidden_size"), of(text, "intermediate_size"), of(text, "vocab_size"));
    let (v, vision_inner) = (of(vision, "hidden_size"), of(vision, "intermediate_size"));
    let patch = of(vision, "patch_size");
    let patches = (of(vision, "image_size") / patch).pow(2);
    let mut all = vec![
        ("image_newline".to_owned(), vec![h]),
        ("language_model.model.embed_tokens.weight".to_owned(), vec![vocab, h]),
        ("language_model.model.norm.weight".to_owned(), vec![h]),
        ("language_model.lm_head.weight".to_owned(), vec![vocab, h]),
        ("multi_modal_projector.linear_1.weight".to_owned(), vec![h, v]),
        ("multi_modal_projector.linear_1.bias".to_owned(), vec![h]),
        ("multi_modal_projector.linear_2.weight".to_owned(), vec![h, h]),
        ("multi_modal_projector.linear_2.bias".to_owned(), vec![h]),
    ];
    for i in 0..of(text, "num_hidden_layers") {
        let name = |part: &str| format!("language_model.model.layers.{i}.{part}.weight");
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            all.push((name(&format!("self_attn.{part}")), vec![h, h]));
        }
        all.push((name("mlp.gate_proj"), vec![inner, h]));
        all.push((name("mlp.up_proj"), vec![inner, h]));
        all.push((name("mlp.down_proj"), vec![h, inner]));
        all.push((name("input_layernorm"), vec![h]));
        all.push((name("post_attention_layernorm"), vec![h]));
    }
    let tower = "vision_tower.vision_model";
    all.push((format!("{tower}.embeddings.class_embedding"), vec![v]));
    all.push((format!("{tower}.embeddings.patch_embedding.weight"), vec![v, 3, patch, patch]));
    all.push((format!("{tower}.embeddings.position_embedding.weight"), vec![patches + 1, v]));
    let mut dense = |name: String, shape: Vec<usize>| {
        all.push((format!("{name}.bias"), vec![shape[0]]));
        all.push((format!("{name}.weight"), shape));
    };
    for name in ["pre_layrnorm", "post_layernorm"] {
        dense(format!("{tower}.{name}"), vec![v]);
    }
    for i in 0..of(vision, "num_hidden_layers") {
        let layer = format!("{tower}.encoder.layers.{i}");
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            dense(format!("{layer}.self_attn.{part}"), vec![v, v]);
        }
        dense(format!("{layer}.mlp.fc1"), vec![vision_inner, v]);
        dense(format!("{layer}.mlp.fc2"), vec![v, vision_inner]);
        dense(format!("{layer}.layer_norm1"), vec![v]);
        dense(format!("{layer}.layer_norm2"), vec![v]);
    }
    all
}

/// Writes shards of at most 5 GB, as the hub has them. The tensors are holes in the files: they have a size and take no room.
fn write_shards(dir: &Path, tensors: &[Named]) -> u64 {
    let (mut shards, mut size): (Vec<Vec<&Named>>, u64) = (vec![vec![]], 0);
    let bytes = |shape: &[usize]| 2 * shape.iter().product::<usize>() as u64;
    for tensor in tensors {
        if size + bytes(&tensor.1) > 5_000_000_000 {
            shards.push(vec![]);
            size = 0;
        }
        size += bytes(&tensor.1);
        shards.last_mut().unwrap().push(tensor);
    }
    let (mut map, mut total) = (Map::new(), 0);
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let (mut header, mut at) = (Map::new(), 0);
        for (name, shape) in shard {
            let end = at + bytes(shape);
            header.insert(
                name.clone(),
                json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}),
            );
            map.insert(name.clone(), json!(file));
            at = end;
        }
        let header = json!(header).to_string();
        let mut out = File::create(dir.join(file)).unwrap();
        out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        out.write_all(header.as_bytes()).unwrap();
        out.set_len(8 + header.len() as u64 + at).unwrap();
        total += at;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    total
}

/// A folder of LLaVA-1.6 around a Llama of 7 billion parameters, in bf16, with a small vocabulary's tokenizer.
fn seven_billion(dir: &Path) -> Vec<Named> {
    let source = golden("llava/next_vicuna");
    for name in
        ["generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    {
        fs::copy(source.join(name), dir.join(name)).unwrap();
    }
    let read = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(source.join(name)).unwrap()).unwrap()
    };
    let mut config = read("config.json");
    config["text_config"] = json!({
        "model_type": "llama", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    });
    config["vision_config"] = json!({
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
        "projection_dim": 768,
    });
    let pinpoints = json!([[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]);
    config["image_grid_pinpoints"] = pinpoints.clone();
    let mut processor = read("preprocessor_config.json");
    processor["image_grid_pinpoints"] = pinpoints;
    processor["size"] = json!({"shortest_edge": 336});
    processor["crop_size"] = json!({"height": 336, "width": 336});
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("preprocessor_config.json"), processor.to_string()).unwrap();
    tensors(&config["text_config"], &config["vision_config"])
}

/// Peak resident memory of a process while it runs, in bytes, and its output.
fn watched(dir: &Path) -> (Value, u64, Duration) {
    let mut command = bdhs();
    command.args(["--json", "doctor", "--model"]).arg(dir).stdout(Stdio::piped());
    let begin = Instant::now();
    let child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let watcher = std::thread::spawn(move || {
        let mut peak = 0;
        while let Ok(text) = fs::read_to_string(&status) {
            let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:")) else {
                break;
            };
            peak = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
            std::thread::sleep(Duration::from_millis(2));
        }
        peak
    });
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    (json(&output), watcher.join().unwrap(), begin.elapsed())
}

#[test]
fn a_checkpoint_of_14_gb_is_outlined_without_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = seven_billion(dir.path());
    let total = write_shards(dir.path(), &tensors);
    assert!(total > 14_000_000_000, "{total}");
    let (report, peak, time) = watched(dir.path());
    let model = &report["model"];
    assert_eq!(model["family"], "LLaVA-1.6");
    let count = |name: &str| model[name].as_u64().unwrap();
    // Vicuna-7B with LLaVA's 64 more tokens; CLIP ViT-L/14-336 without its last layer and norm; the projector.
    assert_eq!(count("language_parameters"), 6_738_939_904);
    assert_eq!(count("projector_parameters"), 1024 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096);
    let layer = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 1024 + 4096 + 4 * 1024;
    let vision = 1024 + 1024 * 3 * 14 * 14 + 577 * 1024 + 2 * 1024 + 23 * layer;
    assert_eq!(count("vision_parameters"), vision);
    assert_eq!(model["stored_bytes"]["BF16"], total);
    let all = 6_738_939_904 + vision + count("projector_parameters");
    let bf16 = &model["memory"][1];
    assert_eq!(bf16["weight_bytes"], 2 * all);
    assert_eq!(bf16["cache_bytes_per_token"], 2 * 32 * 4096 * 2);
    // 336 x 336: a base view of 24 x 24 patches, the same again with a line end a row.
    let square = model["image_tokens"].as_array().unwrap();
    assert_eq!(square[0][2].as_u64().unwrap(), 576 + 24 * 25);
    println!("peak memory {:.0} MB, {time:.2?}", peak as f64 / 1e6);
    assert!(peak < 300_000_000, "peak memory {peak}");
}

/// Names and shapes of Qwen2.5-VL-7B's tensors, as its repository on the hub calls them.
fn qwen_tensors(text: &Value, vision: &Value) -> Vec<Named> {
    let of = |config: &Value, name: &str| config[name].as_u64().unwrap() as usize;
    let (h, inner, vocab) =
        (of(text, "hidden_size"), of(text, "intermediate_size"), of(text, "vocab_size"));
    let narrow = h / of(text, "num_attention_heads") * of(text, "num_key_value_heads");
    let (v, vision_inner) = (of(vision, "hidden_size"), of(vision, "intermediate_size"));
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, h]),
        ("model.norm.weight".to_owned(), vec![h]),
        ("lm_head.weight".to_owned(), vec![vocab, h]),
        ("visual.patch_embed.proj.weight".to_owned(), vec![v, 3, 2, 14, 14]),
        ("visual.merger.ln_q.weight".to_owned(), vec![v]),
    ];
    let mut add = |name: String, shape: &[usize], bias: bool| {
        if bias {
            all.push((format!("{name}.bias"), vec![shape[0]]));
        }
        all.push((format!("{name}.weight"), shape.to_vec()));
    };
    for i in 0..of(text, "num_hidden_layers") {
        let layer = format!("model.layers.{i}");
        for (part, rows) in [("q_proj", h), ("k_proj", narrow), ("v_proj", narrow)] {
            add(format!("{layer}.self_attn.{part}"), &[rows, h], true);
        }
        add(format!("{layer}.self_attn.o_proj"), &[h, h], false);
        add(format!("{layer}.mlp.gate_proj"), &[inner, h], false);
        add(format!("{layer}.mlp.up_proj"), &[inner, h], false);
        add(format!("{layer}.mlp.down_proj"), &[h, inner], false);
        add(format!("{layer}.input_layernorm"), &[h], false);
        add(format!("{layer}.post_attention_layernorm"), &[h], false);
    }
    for i in 0..of(vision, "depth") {
        let block = format!("visual.blocks.{i}");
        add(format!("{block}.attn.qkv"), &[3 * v, v], true);
        add(format!("{block}.attn.proj"), &[v, v], true);
        add(format!("{block}.mlp.gate_proj"), &[vision_inner, v], true);
        add(format!("{block}.mlp.up_proj"), &[vision_inner, v], true);
        add(format!("{block}.mlp.down_proj"), &[v, vision_inner], true);
        add(format!("{block}.norm1"), &[v], false);
        add(format!("{block}.norm2"), &[v], false);
    }
    add("visual.merger.mlp.0".to_owned(), &[4 * v, 4 * v], true);
    add("visual.merger.mlp.2".to_owned(), &[h, 4 * v], true);
    all
}

/// Qwen2.5-VL-7B by its published `config.json`: all parameters by their published number, tokens of pictures by hand.
#[test]
fn a_qwen2_5_vl_of_16_gb_is_outlined_without_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let source = golden("qwen_vl/qwen2_5");
    for name in
        ["generation_config.json", "chat_template.json", "tokenizer.json", "tokenizer_config.json"]
    {
        fs::copy(source.join(name), dir.path().join(name)).unwrap();
    }
    let config = fs::read_to_string(source.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    let sizes = json!({
        "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128_000,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1e6,
        "vision_config": {
            "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "in_chans": 3, "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2, "temporal_patch_size": 2,
        },
    });
    for (name, value) in sizes.as_object().unwrap() {
        config[name] = value.clone();
    }
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let processor = json!({
        "min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_processor_type": "Qwen2VLImageProcessor",
    });
    fs::write(dir.path().join("preprocessor_config.json"), processor.to_string()).unwrap();
    let total = write_shards(dir.path(), &qwen_tensors(&config, &config["vision_config"]));
    let (report, peak, time) = watched(dir.path());
    let model = &report["model"];
    assert_eq!(model["family"], "Qwen2.5-VL");
    let count = |name: &str| model[name].as_u64().unwrap();
    let merger = 5120 * 5120 + 5120 + 3584 * 5120 + 3584 + 1280;
    assert_eq!(count("projector_parameters"), merger);
    assert_eq!(count("language_parameters"), 7_615_616_512);
    let all: u64 = ["language_parameters", "vision_parameters", "projector_parameters"]
        .map(count)
        .iter()
        .sum();
    assert_eq!((all, total), (8_292_166_656, 2 * 8_292_166_656));
    assert_eq!(model["memory"][1]["cache_bytes_per_token"], 2 * 28 * 512 * 2);
    // 336 / 28 = 12 each way; 640 x 480: 22.9 and 17.1; 1024 x 768: 36.6 and 27.4; 672 x 1344: 24 and 48.
    let tokens: Vec<u64> =
        model["image_tokens"].as_array().unwrap().iter().map(|t| t[2].as_u64().unwrap()).collect();
    assert_eq!(tokens, [144, 23 * 17, 37 * 27, 24 * 48]);
    println!("peak memory {:.0} MB, {time:.2?}", peak as f64 / 1e6);
    assert!(peak < 300_000_000, "peak memory {peak}");
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = seven_billion(dir.path());
    let refused = |tensors: &[Named], expected: &[&str]| {
        write_shards(dir.path(), tensors);
        let output = bdhs().args(["doctor", "--model"]).arg(dir.path()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    let gate = "language_model.model.layers.7.mlp.gate_proj.weight";
    let without: Vec<_> = tensors.iter().filter(|(name, _)| name != gate).cloned().collect();
    refused(&without, &[gate, "absent", "[11008, 4096]"]);
    let mut other = tensors.clone();
    other.iter_mut().find(|(name, _)| name == gate).unwrap().1 = vec![4096, 11008];
    refused(&other, &[gate, "[4096, 11008]", "[11008, 4096]"]);
    write_shards(dir.path(), &tensors);
    fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    let output = bdhs().args(["doctor", "--model"]).arg(dir.path()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("model-00002-of-00003.safetensors"), "{error}");
}

/// The tiny checkpoints' own weights are the sum of what is used.
#[test]
fn an_outline_counts_what_a_model_uses() {
    for name in ["next_vicuna", "demo-llava"] {
        let mut command = bdhs();
        command.args(["--json", "doctor", "--model"]);
        let folder = golden("llava").join(name);
        command.arg(if folder.is_dir() { folder } else { name.into() });
        let report = json(&succeed(&mut command));
        let model = &report["model"];
        let count = |name: &str| model[name].as_u64().unwrap();
        let all = ["language_parameters", "vision_parameters", "projector_parameters"].map(count);
        let stored = model["stored_bytes"].as_object().unwrap();
        let stored: u64 = stored.values().map(|bytes| bytes.as_u64().unwrap()).sum();
        // f32 or f16, and a layer or norm of the tower that the model does not use.
        let used = all.iter().sum::<u64>();
        assert!(stored / 4 >= used * 9 / 10 || stored / 2 >= used, "{used} of {stored}");
        assert!(all.iter().all(|&part| part > 0), "{all:?}");
    }
}
