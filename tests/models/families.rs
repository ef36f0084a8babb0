//! Families against transformers, on the tiny checkpoints of scripts/golden_onevision.py.

use std::collections::HashMap;
use std::path::PathBuf;

use bdhs::models::families::llava;
use bdhs::models::families::llava::image::ImageProcessor;
use bdhs::models::{ImageLayout, Model, Piece, Place, Role, Turn};
use bdhs::ops::attend::{AttendPlan, Block, Segment};
use bdhs::train::{Pair, Settings, Trainer};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::common::place;
use crate::llava::{checksum, ids, json_file, picture, pictures};

/// Checkpoints of a folder, the first of which has the tokenizer of all.
const ONEVISION: [&str; 6] =
    ["onevision", "onevision_tied", "onevision_one", "interleave", "next_qwen2", "next_qwen3"];

struct Golden {
    results: Value,
    tensors: HashMap<String, Tensor>,
    folder: PathBuf,
    /// What was loaded: its own files and the tokenizer's.
    copy: tempfile::TempDir,
    model: Model,
}

impl Golden {
    fn of(group: &str, name: &str, complete: &str) -> Self {
        let group = place::root().join("tests/golden").join(group);
        let folder = group.join(name);
        let copy = tempfile::tempdir().unwrap();
        for from in [&group.join(complete), &folder] {
            for file in std::fs::read_dir(from).unwrap() {
                let file = file.unwrap();
                if file.path().is_file() {
                    std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
                }
            }
        }
        let tensors = folder.join("expected.safetensors");
        Self {
            results: json_file(folder.join("expected.json")),
            tensors: candle_core::safetensors::load(tensors, &Device::Cpu).unwrap(),
            model: Model::load(copy.path(), &place::device(), DType::F32).unwrap(),
            folder,
            copy,
        }
    }

    fn cases(&self) -> Vec<Case<'_>> {
        let cases = self.results["cases"].as_array().unwrap();
        cases.iter().map(|case| Case::new(&self.model, case)).collect()
    }

    fn columns(&self) -> Tensor {
        Tensor::new(ids(&self.results["columns"]), &place::device()).unwrap()
    }
}

/// A prompt with its images.
struct Case<'a> {
    model: &'a Model,
    results: &'a Value,
    layouts: Vec<ImageLayout>,
    features: Vec<Tensor>,
    /// Input rows and positions of the whole text, and which rows are images'.
    x: Tensor,
    places: Vec<Place>,
    is_image: Vec<bool>,
}

impl<'a> Case<'a> {
    fn new(model: &'a Model, results: &'a Value) -> Self {
        let side = |value: &Value| value.as_u64().unwrap() as u32;
        let sizes: Vec<(u32, u32)> = results["sizes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|size| (side(&size[0]), side(&size[1])))
            .collect();
        let layouts = model.layouts(&sizes).unwrap();
        let pixels: Vec<_> = sizes
            .iter()
            .zip(&layouts)
            .map(|(&(w, h), layout)| {
                model.preprocess_as(&picture(w as usize, h as usize), layout).unwrap()
            })
            .collect();
        let states = model.states(&pixels.iter().collect::<Vec<_>>()).unwrap();
        let features: Vec<Tensor> = states
            .iter()
            .zip(&layouts)
            .map(|(states, layout)| model.image_rows(states, layout).unwrap())
            .collect();
        let (mut rows, mut places, mut is_image, mut next) = (vec![], vec![], vec![], 0);
        for piece in model.encode(results["text"].as_str().unwrap()).unwrap() {
            match piece {
                Piece::Tokens(ids) => {
                    let end = next + ids.len() as u32;
                    places.extend((next..end).map(Place::from));
                    is_image.extend(ids.iter().map(|_| false));
                    next = end;
                    rows.push(model.language.embed(&ids).unwrap());
                }
                Piece::Image(i) => {
                    places.extend(layouts[i].places(next));
                    is_image.extend((0..layouts[i].tokens).map(|_| true));
                    next += layouts[i].span();
                    rows.push(features[i].clone());
                }
            }
        }
        Self {
            model,
            results,
            layouts,
            features,
            x: Tensor::cat(&rows, 0).unwrap(),
            places,
            is_image,
        }
    }

    fn name(&self) -> &str {
        self.results["name"].as_str().unwrap()
    }

    /// Rows that stay under a mask of the image tokens.
    fn kept(&self, hex: &str) -> Vec<u32> {
        let digits: Vec<u32> = hex.chars().rev().map(|c| c.to_digit(16).unwrap()).collect();
        let bit = |i: usize| digits.get(i / 4).is_some_and(|digit| digit >> (i % 4) & 1 == 1);
        let mut image = 0;
        let stays = |(row, &is_image): (usize, &bool)| {
            image += usize::from(is_image);
            (!is_image || bit(image - 1)).then_some(row as u32)
        };
        self.is_image.iter().enumerate().filter_map(stays).collect()
    }

    /// Logits of these rows alone, with their own positions.
    fn logits(&self, rows: &[u32]) -> Tensor {
        let x = self.x.index_select(&Tensor::new(rows, self.x.device()).unwrap(), 0).unwrap();
        let places: Vec<Place> = rows.iter().map(|&row| self.places[row as usize]).collect();
        let plan = AttendPlan::ragged(&[0, rows.len() as u32], true);
        let language = &self.model.language;
        language.logits(&language.forward_packed(&x, &places, &plan).unwrap()).unwrap()
    }

    /// A greedy answer to the prompt of which these rows stay, in the arena; and the first logits.
    fn greedy(&self, kept: &[u32], steps: usize) -> (Tensor, Vec<u32>) {
        let answer = self.model.format.tokenizer().encode(super::llava::ANSWER, false).unwrap();
        let end = self.is_image.len() - answer.ids.len();
        let rows: Vec<u32> = kept.iter().copied().filter(|&row| (row as usize) < end).collect();
        let language = &self.model.language;
        let mut cache = language.new_cache(rows.len() + steps).unwrap();
        let block = |rows: std::ops::Range<usize>, len: usize| AttendPlan {
            blocks: vec![Block { rows, keys: vec![Segment { start: 0, len }], causal: true }],
        };
        let x = self.x.index_select(&Tensor::new(&*rows, self.x.device()).unwrap(), 0).unwrap();
        let places: Vec<Place> = rows.iter().map(|&row| self.places[row as usize]).collect();
        let slots: Vec<u32> = (0..rows.len() as u32).collect();
        let plan = block(0..rows.len(), rows.len());
        let states = language.forward(&x, &places, &mut cache, &slots, &plan).unwrap();
        let mut logits = last(&language.logits(&states).unwrap());
        let first = logits.clone();
        let mut said = Vec::with_capacity(steps);
        let position = self.places[end].0[0];
        for step in 0..steps {
            said.push(logits.argmax(0).unwrap().to_scalar::<u32>().unwrap());
            let x = language.embed(&said[step..]).unwrap();
            let slot = (rows.len() + step) as u32;
            let plan = block(0..1, rows.len() + step + 1);
            let next = position + step as u32;
            let states = language.step(&x, &[next], &mut cache, &[slot], &plan).unwrap();
            logits = last(&language.logits(&states).unwrap());
        }
        (first, said)
    }
}

fn last(logits: &Tensor) -> Tensor {
    logits.get(logits.dim(0).unwrap() - 1).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    crate::llava::max_difference(&a.to_device(&Device::Cpu).unwrap(), b)
}

/// Calls `check` on every checkpoint; returns the largest of what it returns.
fn worst(mut check: impl FnMut(&Golden) -> f32) -> f32 {
    let all = ONEVISION.iter().map(|name| {
        let found = check(&Golden::of("onevision", name, ONEVISION[0]));
        println!("{name}: {found:e}");
        found
    });
    all.fold(0.0, |most, found| if found <= most { most } else { found })
}

#[test]
fn ids_counts_features_and_logits_equal_transformers() {
    let worst = worst(|golden| {
        let columns = golden.columns();
        let mut most = 0f32;
        for case in golden.cases() {
            let name = case.name();
            let expected = |what: &str| golden.tensors.get(&format!("{name}.{what}"));
            let counts: Vec<u32> = case.layouts.iter().map(|layout| layout.tokens as u32).collect();
            assert_eq!(counts, ids(&case.results["counts"]), "{name}");
            for (layout, features) in case.layouts.iter().zip(&case.features) {
                assert_eq!(layout.tokens, features.dim(0).unwrap(), "{name}");
            }
            let image = golden.model.format.image_token();
            let theirs: Vec<bool> =
                ids(&case.results["ids"]).iter().map(|&id| Some(id) == image).collect();
            assert_eq!(case.is_image, theirs, "{name}");
            let all: Vec<u32> = (0..case.is_image.len() as u32).collect();
            let logits = case.logits(&all);
            let found = logits.index_select(&columns, 1).unwrap();
            most = most.max(difference(&found, expected("logits").unwrap()));
            let sums = logits.log_sum_exp(1).unwrap();
            most = most.max(difference(&sums, expected("logsumexp").unwrap()));
            if let Some(features) = expected("features") {
                let own = Tensor::cat(&case.features, 0).unwrap();
                most = most.max(difference(&own, features));
            }
        }
        let text = ids(&golden.results["text_ids"]);
        let x = golden.model.language.embed(&text).unwrap();
        let positions: Vec<u32> = (0..text.len() as u32).collect();
        let plan = AttendPlan::ragged(&[0, text.len() as u32], true);
        let language = &golden.model.language;
        let states = language.forward_packed(&x, &positions, &plan).unwrap();
        let logits = language.logits(&states).unwrap().index_select(&columns, 1).unwrap();
        most.max(difference(&logits, &golden.tensors["text.logits"]))
    });
    assert!(worst <= 1e-4, "{worst}");
}

#[test]
fn dropped_image_tokens_equal_masked_ones() {
    let mut masks = 0;
    let worst = worst(|golden| {
        let columns = golden.columns();
        let mut most = 0f32;
        for case in golden.cases() {
            for mask in case.results["masks"].as_array().unwrap() {
                let kept = case.kept(mask["kept"].as_str().unwrap());
                let rate = mask["rate"].as_f64().unwrap();
                let logits = case.logits(&kept).index_select(&columns, 1).unwrap();
                let rows: Vec<u32> = (0..kept.len() as u32).rev().step_by(3).collect();
                let rows = Tensor::new(rows, logits.device()).unwrap();
                let name = format!("{}.masked{rate:?}.logits", case.name());
                let found = logits.index_select(&rows, 0).unwrap();
                most = most.max(difference(&found, &golden.tensors[&name]));
                masks += 1;
            }
        }
        most
    });
    assert!(masks >= 60 && worst <= 1e-4, "{masks} {worst}");
}

/// 200 masks each of two checkpoints, in the arena and by decode steps.
#[test]
fn two_hundred_masks_give_the_answers_of_transformers() {
    for name in ["onevision", "next_qwen3"] {
        let golden = Golden::of("onevision", name, ONEVISION[0]);
        let masks = json_file(golden.folder.join("masks.json"));
        let path = golden.folder.join("masks.safetensors");
        let first = &candle_core::safetensors::load(path, &Device::Cpu).unwrap()["first"];
        let columns = Tensor::new(ids(&masks["columns"]), &place::device()).unwrap();
        let cases = golden.cases();
        let case = cases.iter().find(|case| case.name() == "three").unwrap();
        let rows = masks["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 200);
        let mut worst = 0f32;
        for (i, row) in rows.iter().enumerate() {
            let (logits, said) = case.greedy(&case.kept(row[1].as_str().unwrap()), 20);
            let found = logits.index_select(&columns, 0).unwrap();
            worst = worst.max(difference(&found, &first.get(i).unwrap()));
            let expected = ids(&masks["answers"][row[2].as_u64().unwrap() as usize]);
            assert_eq!(said, expected, "{name}, mask {i} at {}", row[0]);
        }
        println!("{name}: {worst:e}");
        assert!(worst <= 1e-4, "{name}: {worst}");
    }
}

#[test]
fn prompts_and_answers_without_a_mask_equal_transformers() {
    for name in ["onevision", "next_qwen3"] {
        let golden = Golden::of("onevision", name, ONEVISION[0]);
        for case in golden.cases() {
            let images = "<image>".repeat(case.layouts.len());
            let text = format!("{images}\nIs the cat near the old house, or naïve?");
            let prompt = golden.model.prompt(&[Turn { role: Role::User, text }]).unwrap();
            assert_eq!(prompt.text, case.results["prompt"].as_str().unwrap());
            assert_eq!(prompt.separator, "");
            let all: Vec<u32> = (0..case.is_image.len() as u32).collect();
            let expected = ids(&case.results["greedy"]);
            assert_eq!(case.greedy(&all, expected.len()).1, expected, "{name} {}", case.name());
        }
    }
}

/// The checkpoints that scripts/golden_family_dpo.py trains.
const TRAINED: [(&str, &str, &str); 4] = [
    ("onevision", "onevision", "onevision"),
    ("onevision", "next_qwen3", "onevision"),
    ("qwen_vl", "qwen2_5", "qwen2_5"),
    ("qwen_vl", "qwen2", "qwen2"),
];

#[test]
fn log_probs_losses_and_gradients_equal_pefts() {
    for (group, name, complete) in TRAINED {
        let golden = Golden::of(group, name, complete);
        let dpo = golden.folder.join("dpo");
        let expected = json_file(dpo.join("expected.json"));
        let tensors = dpo.join("expected.safetensors");
        let tensors = candle_core::safetensors::load(tensors, &Device::Cpu).unwrap();
        let number = |value: &Value| value.as_f64().unwrap();
        let size = ids(&expected["sizes"][0]);
        let image = golden.copy.path().join("picture.png");
        picture(size[0] as usize, size[1] as usize).save(&image).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let pair = Pair {
            row: 1,
            place: "line 1".into(),
            id: "1".into(),
            images: vec![image.into()],
            turns: vec![Turn { role: Role::User, text: text(&expected["turn"]) }],
            chosen: text(&expected["answers"][0]),
            rejected: text(&expected["answers"][1]),
            source_rejected: None,
            flags: vec![],
        };
        let settings = Settings { rank: 2, alpha: 6.0, beta: 0.1, ..Settings::default() };
        let device = place::device();
        let mut trainer = Trainer::new(golden.copy.path(), &device, DType::F32, &settings).unwrap();
        let mut example = trainer.example(&pair).unwrap();
        example.reference = trainer.references(&[&example]).unwrap()[0];
        trainer.load_adapter(&dpo).unwrap();
        let (stats, grads) = trainer.gradients(&[&example]).unwrap();
        for side in 0..2 {
            let reference = example.reference[side] - number(&expected["reference"][side]);
            let policy = stats.log_probs[side] - number(&expected["policy"][side]);
            assert!(reference.abs() < 2e-4 && policy.abs() < 2e-4, "{name}: {reference} {policy}");
        }
        let off = (stats.loss - number(&expected["loss"])).abs();
        assert!(off <= 1e-5, "{name}: {} for {}", stats.loss, expected["loss"]);
        assert_eq!(grads.len(), tensors.len() - 1);
        let mut worst = 0f32;
        for (tensor, grad) in &grads {
            let wanted = &tensors[&format!("grad.{tensor}")];
            let largest = crate::llava::max_difference(wanted, &wanted.zeros_like().unwrap());
            worst = worst.max(difference(grad, wanted) / largest);
        }
        println!("{name}: loss off by {off:e}, gradients by {worst:e} of their largest value");
        assert!(worst <= 1e-4, "{name}: {worst}");
    }
}

/// An adapter of PEFT's, beside the base and merged into it.
#[test]
fn adapters_of_peft_give_its_logits_and_merge() {
    for (group, name, complete) in TRAINED {
        let golden = Golden::of(group, name, complete);
        let dpo = golden.folder.join("dpo");
        let expected = json_file(dpo.join("expected.json"));
        let tensors = dpo.join("expected.safetensors");
        let wanted = &candle_core::safetensors::load(tensors, &Device::Cpu).unwrap()["logits"];
        let adapter = golden.copy.path().join("adapter");
        std::fs::create_dir(&adapter).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(dpo.join(file), adapter.join(file)).unwrap();
        }
        let settings = adapter.join("adapter_config.json");
        let mut named = json_file(settings.clone());
        named["base_model_name_or_path"] = golden.copy.path().to_str().unwrap().into();
        std::fs::write(&settings, named.to_string()).unwrap();
        let merged = golden.copy.path().join("merged");
        bdhs::models::merge::merge(&adapter, &merged).unwrap();
        let turns = [Turn { role: Role::User, text: expected["turn"].as_str().unwrap().into() }];
        let prompt = golden.model.prompt(&turns).unwrap();
        let answer = expected["answers"][0].as_str().unwrap();
        for (folder, most) in [(&adapter, 1e-4), (&merged, 0.3)] {
            let model = Model::load(folder, &place::device(), DType::F32).unwrap();
            let end = model.format.eos_ids()[0];
            let end = model.format.tokenizer().token(end).unwrap();
            let text = format!("{}{end}", prompt.with_answer(answer));
            let case = serde_json::json!({
                "name": name, "sizes": expected["sizes"], "text": text,
            });
            let case = Case::new(&model, &case);
            let all: Vec<u32> = (0..case.is_image.len() as u32).collect();
            let columns = Tensor::new(ids(&expected["columns"]), &place::device()).unwrap();
            let logits = case.logits(&all).index_select(&columns, 1).unwrap();
            let last = logits.narrow(0, logits.dim(0).unwrap() - 8, 8).unwrap();
            let off = difference(&last.contiguous().unwrap(), wanted);
            println!("{name}: {} off by {off:e}", folder.display());
            // The merged weights are rounded to the checkpoint's bf16.
            assert!(off <= most, "{name}: {off}");
        }
    }
}

#[test]
fn counts_of_odd_sizes_equal_transformers() {
    let mut seen = 0;
    worst(|golden| {
        for size in golden.results["sizes"].as_array().into_iter().flatten() {
            let [width, height, tokens] =
                [0, 1, 2].map(|i| size[i].as_u64().expect("a number") as usize);
            assert_eq!(golden.model.layout(width, height).unwrap().tokens, tokens, "{size}");
            seen += 1;
        }
        0.0
    });
    assert!(seen >= 150, "{seen}");
}

#[test]
fn pixels_of_onevision_and_siglip_equal_pillows() {
    let rows = json_file(place::root().join("tests/golden/onevision/pixels.json"));
    for row in rows.as_array().unwrap() {
        let name = row["name"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let half = serde_json::json!([0.5, 0.5, 0.5]);
        let (kind, model_type) = match name {
            "siglip" => ("SiglipImageProcessor", "llava"),
            _ => ("LlavaOnevisionImageProcessor", "llava_onevision"),
        };
        let config = serde_json::json!({
            "model_type": model_type, "vision_feature_select_strategy": "full",
            "vision_config": {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14},
        });
        let settings = match name {
            "siglip" => serde_json::json!({"size": {"height": 384, "width": 384}}),
            _ => serde_json::json!({"image_mean": half, "image_std": half}),
        };
        let mut settings = settings;
        settings["image_processor_type"] = kind.into();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let path = dir.path().join("preprocessor_config.json");
        std::fs::write(path, settings.to_string()).unwrap();
        let config = pictures(dir.path());
        let processor = ImageProcessor::read(dir.path(), &config).unwrap();
        let side = |name: &str| row[name].as_u64().unwrap() as usize;
        let (width, height) = (side("width"), side("height"));
        let layout = llava::Tiling::of(&config).layout(width, height, name != "several").unwrap();
        let pixels = processor.preprocess_as(&picture(width, height), &layout).unwrap();
        let tiles = &pixels.tiles;
        assert_eq!(tiles.dim(0).unwrap(), side("views"), "{row}");
        let values: Vec<f32> = tiles.flatten_all().unwrap().to_vec1().unwrap();
        for spot in row["spots"].as_array().unwrap() {
            let found = values[spot[0].as_u64().unwrap() as usize];
            let expected = spot[1].as_f64().unwrap() as f32;
            assert!((found - expected).abs() <= 1e-6, "{row}: {found}");
        }
        let levels = values.iter().map(|value| ((value * 0.5 + 0.5) * 255.0).round() as u8);
        assert_eq!(checksum(levels).to_string(), row["checksum"].as_str().unwrap(), "{row}");
    }
}
