//! What comes from strangers has limits: templates, pictures, tokenizers, pointers in the place of files.

use std::fs;
use std::path::{Path, PathBuf};

use bdhs::data::image;
use bdhs::engine::Engine;
use bdhs::models::tokenizer::Tokenizer;
use bdhs::models::{Model, Role, Turn};
use bdhs::sampling::SamplingConfig;
use candle_core::{DType, Device};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common;

fn copy(name: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join(name);
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(common::golden(&format!("llava/{name}"))).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    (dir, folder)
}

fn load(folder: &Path) -> bdhs::Result<Model> {
    Model::load(folder, &Device::Cpu, DType::F32)
}

fn prompt(folder: &Path) -> Result<String, String> {
    let turn = Turn { role: Role::User, text: "<image>\nWhat is it?".into() };
    let model = load(folder).map_err(|error| error.to_string())?;
    model.prompt(&[turn]).map(|prompt| prompt.text).map_err(|error| error.to_string())
}

/// Regression: these ran for ever, took all memory, or ended the process.
#[test]
fn templates_have_limits() {
    let (_dir, folder) = copy("llava15");
    let write = |source: &str| fs::write(folder.join("chat_template.jinja"), source).unwrap();
    let lasting = [
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{{ [1] * 10000000 }}",
        "{{ ('a' * 100000) * 1000 }}",
        "{{ 'a' * 100000000000 }}",
        "{{ 'x'|indent(18446744073709551615) }}",
        "{{ 'x'|indent(9223372036854775807) }}",
        "{{ 'x\ny'|indent(99999999999) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 10000000).split('a')|length }}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ 'a' * 5000000 }}",
    ];
    for source in lasting {
        write(source);
        let begun = std::time::Instant::now();
        let error = prompt(&folder).unwrap_err();
        assert!(error.contains("chat_template.jinja"), "{source}: {error}");
        assert!(begun.elapsed().as_secs() < 60, "{source}: {:?}", begun.elapsed());
    }
    // What published templates do stays far below the limits.
    write(
        "{% for m in messages %}{% for i in range(200) %}{{ m['role'].upper().lower().strip() }}{% endfor %}\
         {% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}",
    );
    assert!(prompt(&folder).unwrap().ends_with("What is it?"));
}

/// Regression: this tokenizer.json panics inside the library.
#[test]
fn a_panic_of_the_tokenizers_library_names_the_file() {
    let dir = TempDir::new().unwrap();
    let source = common::golden("encoders/bert/tokenizer.json");
    let mut rules: Value = serde_json::from_str(&fs::read_to_string(source).unwrap()).unwrap();
    rules["post_processor"]["special_tokens"] = json!({});
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, rules.to_string()).unwrap();
    let error = Tokenizer::load(&path).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("tokenizers"), "{error}");
}

#[test]
fn pointers_of_git_lfs_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4096\n";
    for file in ["model.safetensors", "tokenizer.json"] {
        let (_dir, folder) = copy("llava15");
        fs::write(folder.join(file), pointer).unwrap();
        let error = load(&folder).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("git lfs pull"), "{error}");
    }
}

/// Regression: a picture of 60,000 x 1 pixels was padded to a square of 10.8 GB.
#[test]
fn long_thin_pictures_are_padded_without_the_square() {
    let (_dir, folder) = copy("llava15");
    let path = folder.join("preprocessor_config.json");
    let mut settings: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    settings["do_pad"] = json!(true);
    settings["image_processor_type"] = json!("LlavaImageProcessor");
    fs::write(&path, settings.to_string()).unwrap();
    let model = load(&folder).unwrap();
    let picture = |width, height| model.preprocess(&::image::RgbImage::new(width, height));
    for (width, height) in [(60_000, 1), (1, 60_000), (200_000, 3), (3, 200_000)] {
        assert!(picture(width, height).is_ok(), "{width} x {height}");
    }
    // Sides that no picture has are refused before it is decoded.
    let dir = TempDir::new().unwrap();
    let long = dir.path().join("long.png");
    ::image::RgbImage::new(image::MAX_SIDE + 1, 1).save(&long).unwrap();
    let error = image::open(&long).unwrap_err().to_string();
    assert!(error.contains("long.png") && error.contains("sides"), "{error}");
}

/// Regression: an attempt without any token read the last state of another one.
#[test]
fn a_prompt_without_text_is_refused_whatever_is_hidden() {
    let (_dir, folder) = copy("llava15");
    // No template text, no BOS.
    fs::write(
        folder.join("chat_template.jinja"),
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )
    .unwrap();
    let path = folder.join("tokenizer.json");
    let mut rules: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    rules["post_processor"] = Value::Null;
    fs::write(&path, rules.to_string()).unwrap();
    let model = load(&folder).unwrap();
    let dir = TempDir::new().unwrap();
    let data = common::dataset(dir.path(), 1);
    let dataset = bdhs::data::Dataset::open(&data, &bdhs::data::DatasetOptions::default()).unwrap();
    for (rho, text, refused) in
        [(1.0, "<image>", true), (0.5, "<image>", true), (1.0, "<image>\nWhat?", false)]
    {
        let config = SamplingConfig { rho, ..SamplingConfig::default() };
        let engine = Engine::new(&model, config, 1).unwrap();
        let mut sample = dataset.read(0..1).unwrap().remove(0);
        sample.turns = vec![Turn { role: Role::User, text: text.into() }];
        for guided in [true, false] {
            let request = bdhs::engine::Request { sample: &sample, attempt: 1, guided };
            let prepared = engine.prepare(request);
            assert_eq!(prepared.is_err(), refused, "rho {rho}, {text:?}, guided {guided}");
            if let Err(error) = prepared {
                let error = error.to_string();
                assert!(error.contains("text token") && error.contains(&sample.id), "{error}");
            }
        }
    }
}
