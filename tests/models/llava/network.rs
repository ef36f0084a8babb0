//! Logits, states and cached decoding.

use bdhs::models::language::{Rope, RopeScaling};

use super::*;

/// Of all positions, too: a model that gives those of the last one fails at the first comparison.
#[test]
fn logits_equal_transformers() {
    for name in MODELS {
        let (model, golden) = (load(name), Golden::of(name));
        let full = golden.results["full"].as_str().unwrap();
        let columns = Tensor::new(ids(&golden.results["columns"]), &place::device()).unwrap();
        for (case, width, height, _) in golden.cases() {
            let (x, positions) = sequence(&model, width, height, full);
            let logits = model.language.logits(&prefill(&model.language, &x, &positions)).unwrap();
            let some = logits.index_select(&columns, 1).unwrap();
            let difference = max_difference(&some, &golden.tensors[&format!("{case}.logits")]);
            let lse = logits.to_device(&Device::Cpu).unwrap().log_sum_exp(1).unwrap();
            let total = max_difference(&lse, &golden.tensors[&format!("{case}.logsumexp")]);
            println!(
                "{name} {case}: {} rows, logits {difference:e}, logsumexp {total:e}",
                positions.len()
            );
            assert!(difference <= 1e-4 && total <= 1e-4, "{name} {case}: {difference} {total}");
        }
        let text = model.language.embed(&ids(&golden.results["text_ids"])).unwrap();
        let positions: Vec<u32> = (0..text.dim(0).unwrap() as u32).collect();
        let logits = model.language.logits(&prefill(&model.language, &text, &positions)).unwrap();
        let difference = max_difference(&logits, &golden.tensors["text.logits"]);
        println!("{name} text alone: logits {difference:e}");
        assert!(difference <= 1e-4, "{name} text: {difference}");
        let far = prefill(&model.language, &text, &ids(&golden.results["far"]));
        let logits = model.language.logits(&far).unwrap();
        let difference = max_difference(&logits, &golden.tensors["far.logits"]);
        println!("{name} far positions: logits {difference:e}");
        assert!(difference <= 1e-4, "{name} far: {difference}");
    }
}

#[test]
fn vision_states_and_features_equal_transformers() {
    for name in MODELS {
        let (model, golden) = (load(name), Golden::of(name));
        for (case, width, height, _) in golden.cases() {
            let Some(expected) = golden.tensors.get(&format!("{case}.vision")) else { continue };
            let pixels = model.preprocess(&picture(width, height)).unwrap();
            let largest: f32 = expected.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            let states = max_difference(&model.vision_features(&pixels).unwrap(), expected);
            let features = model.image_features(&pixels).unwrap();
            let features = max_difference(&features, &golden.tensors[&format!("{case}.features")]);
            println!("{name} {case}: states {states:e} of {largest}, features {features:e}");
            let limit = 1e-5 * largest.max(1.0);
            assert!(states <= limit && features <= 2e-5, "{name} {case}: {states} {features}");
        }
    }
}

/// Regression: -2 of L layers is the state after L - 1 of them, and the last layer has no say.
#[test]
fn vision_layer_counts_like_hidden_states() {
    let config = pictures(&folder("llava15"));
    assert_eq!((config.vision.layers, config.vision_layers), (4, vec![3]));
    let odd = pictures(&folder("llava15_odd"));
    assert_eq!(odd.vision_layers, vec![3, 1]);

    let dir = copy("llava15");
    edit_tensors(dir.path(), |name, tensor| {
        (!name.contains("encoder.layers.3.") && !name.contains("post_layernorm"))
            .then_some((name.to_owned(), tensor))
    });
    let model = Model::load(dir.path(), &place::device(), DType::F32).unwrap();
    let pixels = model.preprocess(&picture(61, 23)).unwrap();
    let features = model.vision_features(&pixels).unwrap();
    assert!(max_difference(&features, &Golden::of("llava15").tensors["wide.vision"]) <= 1e-5);
}

/// Token by token over the cache, in scattered slots, against one pass.
#[test]
fn decoding_equals_prefill() {
    for name in MODELS {
        let model = load(name);
        let full = Golden::of(name).results["full"].as_str().unwrap().to_owned();
        let (x, positions) = sequence(&model, 61, 23, &full);
        let n = positions.len();
        let whole = prefill(&model.language, &x, &positions);
        let split = n - 12;
        let mut cache = model.language.new_cache(2 * n).unwrap();
        let mut states = Vec::new();
        // The prefix lies in slots n.., later tokens in every second slot below.
        let slots: Vec<u32> = (n as u32..(n + split) as u32).collect();
        let plan = AttendPlan { blocks: vec![causal(0..split, n, split)] };
        let first = x.narrow(0, 0, split).unwrap();
        states.push(
            model.language.forward(&first, &positions[..split], &mut cache, &slots, &plan).unwrap(),
        );
        for t in split..n {
            let mut keys = vec![Segment { start: n, len: split }];
            keys.extend((0..=t - split).map(|i| Segment { start: 2 * i, len: 1 }));
            let plan = AttendPlan { blocks: vec![Block { rows: 0..1, keys, causal: false }] };
            let row = x.narrow(0, t, 1).unwrap();
            let slot = [2 * (t - split) as u32];
            states.push(
                model.language.forward(&row, &positions[t..=t], &mut cache, &slot, &plan).unwrap(),
            );
        }
        let difference = max_difference(&Tensor::cat(&states, 0).unwrap(), &whole);
        println!("{name}: decode against prefill {difference:e}");
        assert!(difference <= 2e-5, "{name}: {difference}");
    }
}

/// Several sequences of different lengths in one pass, one of them with gaps in its positions. Regression: a model for
/// one sequence at a time, or whose positions are those of the rows, mixes them up.
#[test]
fn packed_rows_equal_single_rows() {
    for name in MODELS {
        let model = load(name);
        let full = Golden::of(name).results["full"].as_str().unwrap().to_owned();
        let mut sequences = vec![
            sequence(&model, 61, 23, &full),
            sequence(&model, 20, 47, &full),
            inputs(&model, &model.encode("The dog, near the tree.").unwrap(), None),
        ];
        let (x, positions) = sequences[0].clone();
        let kept: Vec<u32> = (0..positions.len() as u32).filter(|i| i % 3 != 1).collect();
        sequences.push((
            x.index_select(&Tensor::new(&kept[..], &place::device()).unwrap(), 0).unwrap(),
            kept,
        ));
        let single: Vec<Tensor> =
            sequences.iter().map(|(x, p)| prefill(&model.language, x, p)).collect();

        let xs: Vec<&Tensor> = sequences.iter().map(|(x, _)| x).collect();
        let positions: Vec<u32> = sequences.iter().flat_map(|(_, p)| p.clone()).collect();
        let n = positions.len();
        let mut start = 0;
        let mut plan = AttendPlan::default();
        for (_, p) in &sequences {
            plan.blocks.push(causal(start..start + p.len(), start, p.len()));
            start += p.len();
        }
        let slots: Vec<u32> = (0..n as u32).collect();
        let mut cache = model.language.new_cache(n).unwrap();
        let packed = model
            .language
            .forward(&Tensor::cat(&xs, 0).unwrap(), &positions, &mut cache, &slots, &plan)
            .unwrap();
        let difference = max_difference(&packed, &Tensor::cat(&single, 0).unwrap());
        println!("{name}: packed against single {difference:e}");
        assert!(difference <= 2e-5, "{name}: {difference}");
    }
}

/// Regression: with a cache of each sequence's own, the second continuation would have to prefill the prefix again; here
/// it reads the rows that the first one wrote, and neither sees the other.
#[test]
fn two_continuations_share_one_prefix() {
    for name in MODELS {
        let model = load(name);
        let language = &model.language;
        let full = Golden::of(name).results["full"].as_str().unwrap().to_owned();
        let (prefix, positions) = sequence(&model, 61, 23, &full);
        let n = positions.len();
        let mut cache = language.new_cache(n + 8).unwrap();
        let slots: Vec<u32> = (0..n as u32).collect();
        let plan = AttendPlan { blocks: vec![causal(0..n, 0, n)] };
        language.forward(&prefix, &positions, &mut cache, &slots, &plan).unwrap();
        let after: Vec<u32> = (n as u32..n as u32 + 4).collect();
        let mut found = Vec::new();
        for (i, tokens) in [[300u32, 301, 302, 303], [310, 300, 305, 330]].into_iter().enumerate() {
            let own = n + 4 * i;
            let keys = vec![Segment { start: 0, len: n }, Segment { start: own, len: 4 }];
            let plan = AttendPlan { blocks: vec![Block { rows: 0..4, keys, causal: true }] };
            let x = language.embed(&tokens).unwrap();
            let slots: Vec<u32> = (own as u32..own as u32 + 4).collect();
            let states = language.forward(&x, &after, &mut cache, &slots, &plan).unwrap();
            let whole = Tensor::cat(&[&prefix, &x], 0).unwrap();
            let all: Vec<u32> = (0..n as u32 + 4).collect();
            let alone = prefill(language, &whole, &all).narrow(0, n, 4).unwrap();
            let difference = max_difference(&states, &alone);
            assert!(difference <= 2e-5, "{name}, continuation {i}: {difference}");
            found.push(states);
        }
        assert!(max_difference(&found[0], &found[1]) > 0.1, "{name}: the same continuation twice");
    }
}

/// Regression: a tower for one image gives the first one's states for all, or refuses the batch.
#[test]
fn tiles_of_several_images_go_through_the_tower_at_once() {
    let model = load("next_vicuna");
    let tiles = |w, h| model.preprocess(&picture(w, h)).unwrap().tiles;
    let (a, b) = (tiles(61, 23), tiles(20, 47));
    let together = model.llava().unwrap().tower(&Tensor::cat(&[&a, &b], 0).unwrap()).unwrap();
    let alone = [&a, &b].map(|tiles| model.llava().unwrap().tower(tiles).unwrap());
    let difference = max_difference(&together, &Tensor::cat(&alone, 0).unwrap());
    assert!(difference <= 1e-5, "{difference}");
    let last = |t: &Tensor| t.narrow(0, t.dim(0).unwrap() - 1, 1).unwrap();
    assert!(max_difference(&last(&alone[0]), &last(&alone[1])) > 0.1);
}

/// Positions are integers to the end: through bf16, 2049 would become 2048 and 2063 would become 2064.
#[test]
fn positions_do_not_go_through_the_dtype() {
    let model = Model::load(folder("llava15"), &place::device(), DType::BF16).unwrap();
    let x = model.language.embed(&[300, 301, 302]).unwrap();
    let at = |positions: [u32; 3]| {
        prefill(&model.language, &x, &positions).to_dtype(DType::F32).unwrap()
    };
    // Only distances matter, so a shift changes nothing but bf16 roundings; the rounded positions change much more.
    let expected = at([0, 1, 15]);
    let shifted = max_difference(&at([2048, 2049, 2063]), &expected);
    let rounded = max_difference(&at([2048, 2048, 2064]), &expected);
    println!("shifted {shifted}, rounded {rounded}");
    assert!(shifted < 0.1 && rounded > 0.3, "{shifted} {rounded}");
}

/// Every folder under the other generation of tensor names gives the same logits.
#[test]
fn both_generations_of_names_load() {
    for name in MODELS {
        let dir = copy(name);
        edit_tensors(dir.path(), |tensor_name, tensor| Some((renamed(tensor_name), tensor)));
        let other = Model::load(dir.path(), &place::device(), DType::F32).unwrap();
        let full = Golden::of(name).results["full"].as_str().unwrap().to_owned();
        let states = |model: &Model| {
            let (x, positions) = sequence(model, 20, 47, &full);
            model.language.logits(&prefill(&model.language, &x, &positions)).unwrap()
        };
        assert_eq!(max_difference(&states(&other), &states(&load(name))), 0.0, "{name}");
    }
}

fn renamed(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("language_model.model.") {
        return format!("model.language_model.{rest}");
    }
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        return format!("language_model.model.{rest}");
    }
    match name {
        "lm_head.weight" => return "language_model.lm_head.weight".into(),
        "language_model.lm_head.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    match name.strip_prefix("model.") {
        Some(rest) => rest.to_owned(),
        None => format!("model.{name}"),
    }
}

#[test]
fn rotary_scaling() {
    let odd = Config::read(&folder("llava15_odd")).unwrap();
    let scaling = RopeScaling::Llama3 { factor: 4.0, low: 1.0, high: 4.0, original: 64.0 };
    assert_eq!(odd.text.rope, Rope { theta: 5000.0, scaling, sections: None });
    let linear = Config::read(&folder("next_vicuna")).unwrap().text.rope;
    assert_eq!(linear.scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(linear.frequencies(4), vec![0.5, 0.005]);
}
