//! The layout of the original LLaVA code: the same tiny checkpoints, written that way here, give the same bits.

use std::collections::HashMap;

use bdhs::models::Source;
use bdhs::models::families::llava::image::ImageProcessor;
use bdhs::models::outline::Outline;

use super::*;

/// Name of the CLIP folder beside a checkpoint.
const TOWER: &str = "clip-tiny";

/// A checkpoint in the original layout, in a folder that may have others beside it.
pub struct Written {
    _parent: tempfile::TempDir,
    pub dir: PathBuf,
}

impl Written {
    /// That of a golden checkpoint; the tower lies inside, or beside it as LLaVA-1.5 has it.
    pub fn new(name: &str, inside: bool) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("checkpoint");
        std::fs::create_dir(&dir).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            if folder(name).join(file).is_file() {
                std::fs::copy(folder(name).join(file), dir.join(file)).unwrap();
            }
        }
        let config = json_file(folder(name).join("config.json"));
        write(&dir, "config.json", &original_config(&config));
        let this = Self { _parent: parent, dir };
        this.write_tower(name, &config["vision_config"]);
        this.write_weights(name, inside);
        this
    }

    fn write_tower(&self, name: &str, config: &Value) {
        let tower = self.tower();
        std::fs::create_dir(&tower).unwrap();
        write(&tower, "config.json", &json!({"model_type": "clip", "vision_config": config}));
        let mut settings = json_file(folder(name).join("preprocessor_config.json"));
        settings["image_processor_type"] = json!("CLIPImageProcessor");
        write(&tower, "preprocessor_config.json", &settings);
    }

    fn write_weights(&self, name: &str, inside: bool) {
        let path = folder(name).join("model.safetensors");
        let (mut own, mut tower) = (HashMap::new(), HashMap::new());
        for (name, tensor) in candle_core::safetensors::load(&path, &Device::Cpu).unwrap() {
            match name.split_once("vision_tower.") {
                Some((_, rest)) if !inside => {
                    let rest = rest.strip_prefix("vision_model.").unwrap_or(rest);
                    tower.insert(format!("vision_model.{rest}"), tensor);
                }
                _ => {
                    own.insert(original_name(&name), tensor);
                }
            }
        }
        candle_core::safetensors::save(&own, self.dir.join("model.safetensors")).unwrap();
        if !inside {
            // CLIP's folder has the other half of CLIP too.
            let other = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
            tower.insert("text_model.final_layer_norm.bias".into(), other);
            candle_core::safetensors::save(&tower, self.tower().join("model.safetensors")).unwrap();
        }
    }

    fn tower(&self) -> PathBuf {
        self.dir.parent().unwrap().join(TOWER)
    }

    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut config = json_file(self.dir.join("config.json"));
        edit(&mut config);
        write(&self.dir, "config.json", &config);
    }

    pub fn load(&self) -> Model {
        Model::load(&self.dir, &place::device(), DType::F32).unwrap()
    }

    fn refused(&self) -> String {
        Model::load(&self.dir, &Device::Cpu, DType::F32).err().expect("refused").to_string()
    }
}

/// `config.json` as the original code writes it, from that of a checkpoint in the Hugging Face layout.
fn original_config(config: &Value) -> Value {
    let mut flat = config["text_config"].clone();
    let mistral = flat["model_type"] == "mistral";
    let next = config["model_type"] == "llava_next";
    flat["model_type"] = json!(match (next, mistral) {
        (false, _) => "llava",
        (true, false) => "llava_llama",
        (true, true) => "llava_mistral",
    });
    let language = if mistral { "Mistral" } else { "Llama" };
    flat["architectures"] = json!([format!("Llava{language}ForCausalLM")]);
    flat["mm_projector_type"] = json!("mlp2x_gelu");
    flat["mm_vision_tower"] = json!(format!("somebody/{TOWER}"));
    flat["mm_vision_select_layer"] = config["vision_feature_layer"].clone();
    flat["mm_vision_select_feature"] = json!("patch");
    flat["mm_hidden_size"] = config["vision_config"]["hidden_size"].clone();
    flat["mm_use_im_start_end"] = json!(false);
    flat["tune_mm_mlp_adapter"] = json!(false);
    flat["image_aspect_ratio"] = json!(if next { "anyres" } else { "square" });
    if next {
        flat["mm_patch_merge_type"] = json!("spatial_unpad");
        flat["unfreeze_mm_vision_tower"] = json!(true);
        let swapped = config["image_grid_pinpoints"].as_array().unwrap();
        flat["image_grid_pinpoints"] = swapped.iter().map(|p| json!([p[1], p[0]])).collect();
    }
    flat
}

/// The original code's name of a tensor, from either of those in the Hugging Face layout.
pub fn original_name(name: &str) -> String {
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let bare = bare.strip_prefix("language_model.").unwrap_or(bare);
    let bare = bare.strip_prefix("model.").unwrap_or(bare);
    if let Some((_, rest)) = bare.split_once("vision_tower.") {
        let rest = rest.strip_prefix("vision_model.").unwrap_or(rest);
        return format!("model.vision_tower.vision_tower.vision_model.{rest}");
    }
    if let Some(rest) = bare.strip_prefix("multi_modal_projector.") {
        let rest = rest.replace("linear_1", "0").replace("linear_2", "2");
        return format!("model.mm_projector.{rest}");
    }
    if bare.starts_with("lm_head") { bare.to_owned() } else { format!("model.{bare}") }
}

fn logits(model: &Model, width: usize, height: usize, full: &str) -> Tensor {
    let (x, positions) = sequence(model, width, height, full);
    model.language.logits(&prefill(&model.language, &x, &positions)).unwrap()
}

#[test]
fn both_layouts_give_the_same_bits() {
    for (name, inside) in [("llava15", false), ("next_vicuna", true), ("next_mistral", true)] {
        let written = Written::new(name, inside);
        let (ours, theirs) = (written.load(), load(name));
        let golden = Golden::of(name);
        let full = golden.results["full"].as_str().unwrap();
        assert_eq!(ours.encode(full).unwrap(), theirs.encode(full).unwrap(), "{name}");
        for (case, width, height, _) in golden.cases() {
            let difference = max_difference(
                &logits(&ours, width, height, full),
                &logits(&theirs, width, height, full),
            );
            assert_eq!(difference, 0.0, "{name} {case}");
        }
        assert_ne!(ours.fingerprint().unwrap(), theirs.fingerprint().unwrap());
        let outline = |dir: &Path| {
            let read = Outline::read(&Source::new(dir, None).unwrap(), 100).unwrap();
            let layout = read.layout;
            (layout, Outline { layout: "", stored_bytes: Default::default(), ..read })
        };
        let ((layout, ours), (other, theirs)) = (outline(&written.dir), outline(&folder(name)));
        assert_eq!((layout, other), ("original LLaVA", "Hugging Face"));
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn shards_with_an_index_are_read() {
    let written = Written::new("next_mistral", true);
    let whole = written.dir.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&whole, &Device::Cpu).unwrap();
    let mut shards = [HashMap::new(), HashMap::new()];
    let mut index = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        index.insert(name.clone(), json!(format!("model-0000{}-of-00002.safetensors", i % 2 + 1)));
        shards[i % 2].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        let path = written.dir.join(format!("model-0000{}-of-00002.safetensors", i + 1));
        candle_core::safetensors::save(shard, path).unwrap();
    }
    std::fs::remove_file(whole).unwrap();
    write(&written.dir, "model.safetensors.index.json", &json!({"weight_map": index}));
    let full = Golden::of("next_mistral").results["full"].as_str().unwrap().to_owned();
    let difference = max_difference(
        &logits(&written.load(), 61, 23, &full),
        &logits(&load("next_mistral"), 61, 23, &full),
    );
    assert_eq!(difference, 0.0);
}

/// `pad` is what transformers' own LLaVA processor does if it is told to; its conversions of these checkpoints crop.
#[test]
fn pictures_are_padded_as_the_checkpoint_says() {
    let written = Written::new("llava15", false);
    written.edit(|config| config["image_aspect_ratio"] = json!("pad"));
    let ours = written.load();
    let padding = copy("llava15");
    let mut settings = json_file(padding.path().join("preprocessor_config.json"));
    settings["image_processor_type"] = json!("LlavaImageProcessor");
    settings["do_pad"] = json!(true);
    write(padding.path(), "preprocessor_config.json", &settings);
    let theirs = Model::load(padding.path(), &place::device(), DType::F32).unwrap();
    let cropping = load("llava15");
    for (width, height) in [(61, 23), (20, 47), (40, 40), (5, 4)] {
        let tiles = |model: &Model| model.preprocess(&picture(width, height)).unwrap().tiles;
        assert_eq!(max_difference(&tiles(&ours), &tiles(&theirs)), 0.0, "{width}x{height}");
        let cropped = max_difference(&tiles(&ours), &tiles(&cropping));
        assert_eq!(cropped == 0.0, width == height, "{width}x{height}");
    }
}

#[test]
fn other_projectors_and_features() {
    // The class token is kept by another name.
    let written = Written::new("llava15", false);
    written.edit(|config| config["mm_vision_select_feature"] = json!("cls_patch"));
    let keeping = copy("llava15");
    let mut config = json_file(keeping.path().join("config.json"));
    config["vision_feature_select_strategy"] = json!("full");
    write(keeping.path(), "config.json", &config);
    let theirs = Model::load(keeping.path(), &place::device(), DType::F32).unwrap();
    let features =
        |model: &Model| model.image_features(&model.preprocess(&picture(61, 23)).unwrap()).unwrap();
    assert_eq!(max_difference(&features(&written.load()), &features(&theirs)), 0.0);

    // One layer alone has no number.
    let written = Written::new("llava15", false);
    written.edit(|config| config["mm_projector_type"] = json!("linear"));
    edit_tensors(&written.dir, |name, tensor| match name.strip_prefix("model.mm_projector.") {
        Some(rest) => Some((format!("model.mm_projector.{}", rest.strip_prefix("0.")?), tensor)),
        None => Some((name.to_owned(), tensor)),
    });
    let model = written.load();
    let states = model.vision_features(&model.preprocess(&picture(61, 23)).unwrap()).unwrap();
    let tensors =
        candle_core::safetensors::load(written.dir.join("model.safetensors"), &place::device())
            .unwrap();
    let tensor =
        |part: &str| tensors[&format!("model.mm_projector.{part}")].to_dtype(DType::F32).unwrap();
    let expected = states.get(0).unwrap().matmul(&tensor("weight").t().unwrap()).unwrap();
    let expected = expected.broadcast_add(&tensor("bias")).unwrap();
    assert!(max_difference(&features(&model), &expected) < 1e-5);
}

/// The two layouts name the sides of a resolution in opposite order, which decides between equally good ones.
#[test]
fn resolutions_are_width_and_height() {
    let written = Written::new("next_vicuna", true);
    let chosen = |written: &Written| {
        let layout = written.load().layout(20, 20).unwrap().anyres.unwrap();
        (layout.height, layout.width)
    };
    written.edit(|config| config["image_grid_pinpoints"] = json!([[28, 56], [56, 28], [56, 56]]));
    assert_eq!(chosen(&written), (56, 28));
    written.edit(|config| config["image_grid_pinpoints"] = json!("[(56, 28), (28, 56), (56, 56)]"));
    assert_eq!(chosen(&written), (28, 56));
}

#[test]
fn the_tower_is_found_by_path_and_by_name() {
    let written = Written::new("llava15", false);
    let bits = |written: &Written| {
        let model = written.load();
        model.vision_features(&model.preprocess(&picture(61, 23)).unwrap()).unwrap()
    };
    let first = bits(&written);
    let absolute = written.tower();
    for place in [absolute.to_str().unwrap(), "../clip-tiny"] {
        written.edit(|config| config["mm_vision_tower"] = json!(place));
        assert_eq!(max_difference(&bits(&written), &first), 0.0, "{place}");
    }
    // As CLIPVisionModel saves it.
    let tower = written.tower();
    let mut config = json_file(tower.join("config.json"))["vision_config"].clone();
    config["model_type"] = json!("clip_vision_model");
    write(&tower, "config.json", &config);
    assert_eq!(max_difference(&bits(&written), &first), 0.0);

    let before = written.load().fingerprint().unwrap();
    edit_tensors(&tower, |name, tensor| Some((name.to_owned(), (tensor * 2.0).unwrap())));
    assert_ne!(written.load().fingerprint().unwrap(), before, "the tower is part of the model");

    std::fs::remove_file(tower.join("model.safetensors")).unwrap();
    std::fs::write(tower.join("pytorch_model.bin"), "").unwrap();
    let error = written.refused();
    let script = format!("pickle_to_safetensors.py {}", written.dir.join("../clip-tiny").display());
    assert!(error.contains("pytorch_model.bin") && error.contains(&script), "{error}");

    std::fs::remove_dir_all(&tower).unwrap();
    written.edit(|config| config["mm_vision_tower"] = json!("openai/clip-tiny"));
    let error = written.refused();
    for part in ["mm_vision_tower", "openai/clip-tiny", tower.to_str().unwrap(), "fetch"] {
        assert!(error.contains(part), "{error}");
    }
    // Of a tower that is known only its weights are missed.
    written.edit(|config| {
        config["mm_vision_tower"] = json!("openai/clip-vit-large-patch14-336");
        config["mm_hidden_size"] = json!(1024);
    });
    let error = written.refused();
    assert!(error.contains("no vision tower") && error.contains("fetch"), "{error}");
}

/// LLaVA-1.6 has its tower inside: what else belongs to it is known by its name.
#[test]
fn openais_towers_need_no_folder() {
    let written = Written::new("next_vicuna", true);
    std::fs::remove_dir_all(written.tower()).unwrap();
    for (name, side) in [("clip-vit-large-patch14-336", 336), ("clip-vit-large-patch14", 224)] {
        written.edit(|config| {
            config["mm_vision_tower"] = json!(format!("openai/{name}"));
            config["mm_hidden_size"] = json!(1024);
            config["image_grid_pinpoints"] = json!([[side, 2 * side], [2 * side, side]]);
        });
        let config = pictures(&written.dir);
        let vision = &config.vision;
        assert_eq!((vision.image_size, vision.patch_size, vision.layers), (side, 14, 24));
        assert_eq!((vision.hidden, vision.inner, vision.heads), (1024, 4096, 16));
        let pixels = ImageProcessor::read(&written.dir, &config).unwrap();
        let tiles = pixels.preprocess(&picture(100, 40)).unwrap().tiles;
        assert_eq!(tiles.dims(), [3, 3, side, side]);
    }
}

#[test]
fn what_is_not_built_in_is_named() {
    for (field, value, expected) in [
        ("mm_vision_tower", json!(null), "field mm_vision_tower: is missing"),
        ("mm_projector_type", json!("resampler"), "mm_projector_type \"resampler\""),
        ("mm_vision_select_feature", json!("cls"), "field mm_vision_select_feature: is \"cls\""),
        ("mm_vision_select_feature", json!("cls_patch"), "\"cls_patch\" with AnyRes tiles"),
        ("mm_vision_select_layer", json!(-9), "field mm_vision_select_layer: is -9"),
        ("mm_patch_merge_type", json!("flat"), "mm_patch_merge_type \"flat\" with AnyRes"),
        (
            "mm_hidden_size",
            json!(48),
            "field mm_hidden_size: is 48, expected the vision tower's width 24",
        ),
        ("image_aspect_ratio", json!("anyres_max_9"), "image_aspect_ratio \"anyres_max_9\""),
        ("image_grid_pinpoints", json!(null), "field image_grid_pinpoints: is missing"),
        (
            "image_grid_pinpoints",
            json!("(1x1),(2x2)"),
            "field image_grid_pinpoints: is \"(1x1),(2x2)\"",
        ),
        ("image_grid_pinpoints", json!([[30, 28]]), "multiples of the tile side 28"),
        ("mm_use_im_start_end", json!(true), "has no token <im_start>"),
        ("num_hidden_layers", json!(3), "tensor model.layers.2."),
        ("hidden_size", json!("wide"), "field hidden_size: is \"wide\""),
        ("model_type", json!("llava_mpt"), "model type \"llava_mpt\" is not supported"),
    ] {
        let written = Written::new("next_vicuna", true);
        written.edit(|config| config[field] = value);
        let error = written.refused();
        assert!(error.contains(expected), "{field}: {error}");
    }
    let written = Written::new("next_vicuna", true);
    edit_tensors(&written.dir, |name, tensor| {
        (name != "model.mm_projector.2.bias").then(|| (name.to_owned(), tensor))
    });
    assert!(written.refused().contains("tensor model.mm_projector.2.bias: absent"));
}

#[test]
fn conversations_are_those_of_the_code() {
    let written = Written::new("next_mistral", true);
    // The template of the language model that it began as is not the conversation that LLaVA trained with.
    assert!(json_file(written.dir.join("tokenizer_config.json"))["chat_template"].is_string());
    assert_eq!(written.load().format.template_name(), "mistral_instruct");
    assert_eq!(Written::new("next_vicuna", true).load().format.template_name(), "vicuna_v1");
    written.edit(|config| config["_name_or_path"] = json!("meta-llama/Llama-2-7b-chat"));
    let model = written.load();
    assert_eq!(model.format.template_name(), "llava_llama_2");
    let prompt = model.prompt(&turns()).unwrap();
    assert_eq!(
        prompt.with_answer("Two."),
        "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content \
         that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n\
         <image>\nIs the cat near the old house, or naïve? [/INST] Yes, the cat sits there. </s><s>[INST] How many? \
         [/INST] Two."
    );
    std::fs::write(
        written.dir.join("chat_template.jinja"),
        "{{ messages[0]['content'] }}{{ messages[-1]['content'] }}",
    )
    .unwrap();
    assert!(written.load().format.template_name().ends_with("chat_template.jinja"));
}

/// Marks around an image are tokens; the image itself is none, whatever the tokenizer makes of its placeholder.
#[test]
fn images_cut_the_text() {
    let written = Written::new("llava15", false);
    let mut tokenizer = json_file(written.dir.join("tokenizer.json"));
    let tokens = tokenizer["added_tokens"].as_array_mut().unwrap();
    for (id, mark) in [(1, "<im_start>"), (2, "<im_end>")] {
        // The names of </s> and <pad> are free for it here.
        tokens[id]["content"] = json!(mark);
    }
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    for (old, new) in [("</s>", "<im_start>"), ("<pad>", "<im_end>")] {
        let id = vocab.remove(old).unwrap();
        vocab.insert(new.into(), id);
    }
    write(&written.dir, "tokenizer.json", &tokenizer);
    written.edit(|config| config["mm_use_im_start_end"] = json!(true));
    let model = written.load();
    assert_eq!(model.format.image_token(), None);
    let prompt = model.prompt(&one_question()).unwrap();
    assert!(prompt.text.contains("USER: <im_start><image><im_end>\nIs the cat"), "{prompt:?}");
    let encoded = model.format.encode_with_offsets(&prompt.text).unwrap();
    let [Piece::Tokens(before), Piece::Image(0), Piece::Tokens(after)] = &encoded.pieces[..] else {
        panic!("{:?}", encoded.pieces)
    };
    assert_eq!((before.last(), after.first()), (Some(&1), Some(&2)));
    let image = encoded.offsets[before.len()];
    assert_eq!(&prompt.text[image.0..image.1], "<image>");
    assert_eq!(encoded.offsets.len(), before.len() + 1 + after.len());
    assert_eq!(encoded.offsets.last().unwrap().1, prompt.text.len());
}

#[test]
fn doctor_names_the_layout() {
    let written = Written::new("next_mistral", true);
    for (dir, layout) in
        [(written.dir.clone(), "original LLaVA"), (folder("next_mistral"), "Hugging Face")]
    {
        let mut doctor = std::process::Command::new(env!("CARGO_BIN_EXE_bdhs"));
        let output = doctor.arg("doctor").arg("--model").arg(dir).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("LLaVA-1.6 around mistral, {layout} layout")), "{text}");
    }
}

#[test]
fn pickles_are_refused_with_the_way_out() {
    let written = Written::new("llava15", false);
    let weights = written.dir.join("model.safetensors");
    std::fs::rename(&weights, written.dir.join("pytorch_model.bin")).unwrap();
    let error = written.refused();
    let script = format!("python scripts/pickle_to_safetensors.py {}", written.dir.display());
    assert!(error.contains("is a pickle") && error.contains(&script), "{error}");
}
