//! Other settings on the tiny checkpoints, and several images in a prompt, against transformers (scripts/golden_families.py).

use bdhs::data::{Dataset, DatasetOptions};
use bdhs::engine::{Engine, Images, Request};
use bdhs::sampling::SamplingConfig;

use super::*;

fn goldens() -> (Value, std::collections::HashMap<String, Tensor>) {
    let tensors = candle_core::safetensors::load(folder("families.safetensors"), &Device::Cpu);
    (json_file(folder("families.json")), tensors.unwrap())
}

fn merge(into: &mut Value, fields: &Value) {
    for (name, value) in fields.as_object().unwrap() {
        match (&mut into[name.as_str()], value) {
            (inner @ Value::Object(_), Value::Object(_)) => merge(inner, value),
            (place, _) => *place = value.clone(),
        }
    }
}

/// A copy of a checkpoint with other fields, without the tensors whose names end so.
fn changed(checkpoint: &str, fields: &Value, without: &Value) -> bdhs::Result<Model> {
    let dir = copy(checkpoint);
    let mut config = json_file(dir.path().join("config.json"));
    merge(&mut config, fields);
    write(dir.path(), "config.json", &config);
    let left_out: Vec<&str> =
        without.as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    if !left_out.is_empty() {
        edit_tensors(dir.path(), |name, tensor| {
            let keep = !left_out.iter().any(|end| name.ends_with(end));
            keep.then(|| (name.to_owned(), tensor))
        });
    }
    Model::load(dir.path(), &place::device(), DType::F32)
}

#[test]
fn other_settings_equal_transformers() {
    let (golden, tensors) = goldens();
    let mut different = Vec::new();
    for (i, variant) in golden["variants"].as_array().unwrap().iter().enumerate() {
        let checkpoint = variant["checkpoint"].as_str().unwrap();
        let what = format!("{checkpoint}, {}", variant["name"].as_str().unwrap());
        let model = changed(checkpoint, &variant["fields"], &variant["without"]);
        if let Some(named) = variant["refused"].as_str() {
            let error = model.err().unwrap_or_else(|| panic!("{what}: taken")).to_string();
            assert!(error.contains(named), "{what}: {error}");
            continue;
        }
        let model = model.unwrap_or_else(|e| panic!("{what}: {e}"));
        let results = Golden::of(checkpoint).results;
        let columns = Tensor::new(ids(&results["columns"]), &place::device()).unwrap();
        let text = model.language.embed(&ids(&results["text_ids"])).unwrap();
        let near: Vec<u32> = (0..text.dim(0).unwrap() as u32).collect();
        let far = ids(&results["far"]);
        for (key, positions) in [("logits", &near), ("far", &far)] {
            let Some(expected) = tensors.get(&format!("{i}.{key}")) else { continue };
            let states = prefill(&model.language, &text, positions);
            let logits = model.language.logits(&states).unwrap();
            let found = logits.index_select(&columns, 1).unwrap();
            different.extend(check(&format!("{what}, {key}"), &found, expected, 1e-4));
        }
        if let Some(expected) = tensors.get(&format!("{i}.features")) {
            let pixels = model.preprocess(&picture(61, 23)).unwrap();
            let found = model.image_features(&pixels).unwrap().narrow(1, 0, 12).unwrap();
            different.extend(check(&format!("{what}, features"), &found, expected, 2e-5));
        }
    }
    assert!(different.is_empty(), "{different:#?}");
}

fn check(what: &str, found: &Tensor, expected: &Tensor, bound: f32) -> Option<String> {
    if found.dims() != expected.dims() {
        return Some(format!("{what}: {:?}, expected {:?}", found.dims(), expected.dims()));
    }
    let difference = max_difference(found, expected);
    println!("{what}: {difference:e}");
    (difference > bound).then(|| format!("{what}: {difference}"))
}

/// LLaVA-1.6 34B (Yi), whose small likeness is next_yi.
#[test]
fn a_34b_configuration_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let text = json!({
        "model_type": "llama", "vocab_size": 64_064, "hidden_size": 7168, "intermediate_size": 20_480,
        "num_hidden_layers": 60, "num_attention_heads": 56, "num_key_value_heads": 8,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 5_000_000.0,
    });
    let config = json!({
        "model_type": "llava_next", "image_token_index": 64_000, "tie_word_embeddings": false,
        "text_config": text,
    });
    write(dir.path(), "config.json", &config);
    let config = Config::read(dir.path()).unwrap();
    let text = &config.text;
    assert_eq!((config.image_token, text.vocab, text.tied), (Some(64_000), 64_064, false));
    assert_eq!((text.heads, text.kv_heads, text.head_dim, text.layers), (56, 8, 128, 60));
    assert_eq!((text.rope.theta, text.sliding_window, text.qkv_bias), (5e6, None, false));
    let pictures = pictures(dir.path());
    assert_eq!((pictures.vision.layers, pictures.vision_layers), (24, vec![23]));
}

/// transformers' window of w hides position 0 from position w on: from there on we refuse, counting original positions
/// and not rows, however few of them are kept.
#[test]
fn a_window_is_refused_where_it_first_hides_something() {
    let (golden, _) = goldens();
    let case = &golden["window"];
    let window = case["window"].as_u64().unwrap();
    let first = case["first_hidden"].as_u64().unwrap() as u32;
    let fields = json!({"text_config": {"sliding_window": window}});
    let model = changed(case["checkpoint"].as_str().unwrap(), &fields, &json!([])).unwrap();
    let x = model.language.embed(&[4, 5]).unwrap();
    let plan = AttendPlan { blocks: vec![causal(0..2, 0, 2)] };
    assert!(model.language.forward_packed(&x, &[0, first - 1], &plan).is_ok());
    let error = model.language.forward_packed(&x, &[0, first], &plan).unwrap_err().to_string();
    assert!(error.contains(&format!("sliding window of {window}")), "{error}");
}

/// Turns and image sizes (width, height) of a case.
fn conversation(case: &Value) -> (Vec<Turn>, Vec<(usize, usize)>) {
    let turn = |t: &Value| Turn {
        role: if t[0] == "user" { Role::User } else { Role::Assistant },
        text: t[1].as_str().unwrap().to_owned(),
    };
    let size = |s: &Value| (ids(s)[0] as usize, ids(s)[1] as usize);
    let turns = case["turns"].as_array().unwrap().iter().map(turn).collect();
    (turns, case["sizes"].as_array().unwrap().iter().map(size).collect())
}

/// Regression: a LLaVA that takes one image puts the first one's rows in both places, or fails.
#[test]
fn several_images_equal_transformers() {
    let (golden, tensors) = goldens();
    for case in golden["several"].as_array().unwrap() {
        let name = case["checkpoint"].as_str().unwrap();
        let model = load(name);
        let (turns, sizes) = conversation(case);
        let features = |&(w, h): &(usize, usize)| {
            let pixels = model.preprocess(&picture(w, h)).unwrap();
            model.image_features(&pixels).unwrap()
        };
        let images: Vec<Tensor> = sizes.iter().map(features).collect();
        let pieces = model.encode(&model.prompt(&turns).unwrap().text).unwrap();
        let rows: Vec<Tensor> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Tokens(ids) => model.language.embed(ids).unwrap(),
                Piece::Image(i) => images[*i].clone(),
            })
            .collect();
        let x = Tensor::cat(&rows, 0).unwrap();
        let positions: Vec<u32> = (0..x.dim(0).unwrap() as u32).collect();
        let logits = model.language.logits(&prefill(&model.language, &x, &positions)).unwrap();
        let columns = ids(&Golden::of(name).results["columns"]);
        let columns = Tensor::new(columns, &place::device()).unwrap();
        let found = logits.index_select(&columns, 1).unwrap();
        let difference = max_difference(&found, &tensors[&format!("{name}.several")]);
        println!("{name}, {} images: {difference:e}", sizes.len());
        assert!(difference <= 1e-4, "{name}: {difference}");
    }
}

/// From a data file with several images a row to the engine's answer: transformers' greedy one. Under a mask, tokens of
/// every image are drawn.
#[test]
fn several_images_go_through_the_whole_engine() {
    let (golden, _) = goldens();
    for case in golden["several"].as_array().unwrap() {
        let name = case["checkpoint"].as_str().unwrap();
        let model = load(name);
        let (turns, sizes) = conversation(case);
        let dir = tempfile::tempdir().unwrap();
        let file = |i: usize| format!("{i}.png");
        for (i, &(w, h)) in sizes.iter().enumerate() {
            picture(w, h).save(dir.path().join(file(i))).unwrap();
        }
        let said = |turn: &Turn| {
            let from = if turn.role == Role::User { "human" } else { "gpt" };
            json!({"from": from, "value": turn.text})
        };
        let mut rows: Vec<Value> = turns.iter().map(said).collect();
        rows.push(json!({"from": "gpt", "value": "The first one. It stands near a tree."}));
        let images: Vec<String> = (0..sizes.len()).map(file).collect();
        let data = json!([{"id": name, "image": images, "conversations": rows}]);
        write(dir.path(), "data.json", &data);
        let data = Dataset::open(&dir.path().join("data.json"), &DatasetOptions::default());
        let sample = &data.unwrap().read(0..1).unwrap()[0];

        let run = |rho: f64, guided: bool| {
            let config = SamplingConfig {
                rho,
                temperature: 0.0,
                max_response_tokens: 30,
                ..SamplingConfig::default()
            };
            let mut engine = Engine::new(&model, config, 5).unwrap();
            let wave = [engine.prepare(Request { sample, attempt: 1, guided }).unwrap()];
            engine.generate(&wave, &mut Images::new(1 << 20), &()).unwrap().remove(0)
        };
        let answer = run(0.0, false);
        assert_eq!(answer.text.trim(), case["says"].as_str().unwrap().trim(), "{name}");
        let tokens: Vec<u32> =
            sizes.iter().map(|&(w, h)| model.layout(w, h).unwrap().tokens as u32).collect();
        let masked = run(0.5, true);
        assert_eq!(masked.image_tokens, tokens.iter().sum::<u32>(), "{name}");
        let mut start = 0;
        for count in tokens {
            let kept = masked.kept.iter().filter(|&&t| (start..start + count).contains(&t)).count();
            assert!(0 < kept && kept < count as usize, "{name}: {kept} of {count}");
            start += count;
        }
    }
}
