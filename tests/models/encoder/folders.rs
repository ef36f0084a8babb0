//! Folders of encoders as people have them, against sentence-transformers (scripts/golden_encoder_folders.py), and settings
//! that are refused by name.

use std::collections::HashMap;

use candle_core::Tensor;

use super::*;

#[derive(serde::Deserialize)]
struct Folders {
    texts: Vec<String>,
    variants: Vec<FolderVariant>,
}

/// A golden encoder with some edits.
#[derive(serde::Deserialize)]
struct FolderVariant {
    name: String,
    source: String,
    /// Files, by path; null removes one.
    #[serde(default)]
    write: HashMap<String, Value>,
    /// On tensors' names, one after another; null drops what fits.
    #[serde(default)]
    rename: Vec<(String, Option<String>)>,
    /// New files.
    #[serde(default)]
    tensors: HashMap<String, HashMap<String, Vec<f32>>>,
    /// `tokenizer.json` becomes `vocab.txt`.
    #[serde(default)]
    vocab: bool,
    vectors: Vec<Vec<f32>>,
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_all(&path, &target),
            false => _ = fs::copy(&path, &target).unwrap(),
        }
    }
}

impl FolderVariant {
    fn make(&self, target: &Path) {
        copy_all(&golden().join(&self.source), target);
        if self.vocab {
            let path = target.join("tokenizer.json");
            let rules: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            let words = rules["model"]["vocab"].as_object().unwrap();
            let mut words: Vec<(u64, &String)> =
                words.iter().map(|(word, id)| (id.as_u64().unwrap(), word)).collect();
            words.sort();
            let lines: String = words.iter().map(|(_, word)| format!("{word}\n")).collect();
            fs::write(target.join("vocab.txt"), lines).unwrap();
            fs::remove_file(path).unwrap();
        }
        for (path, value) in &self.write {
            let path = target.join(path);
            match value {
                Value::Null => fs::remove_file(path).unwrap(),
                value => {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, value.to_string()).unwrap();
                }
            }
        }
        if !self.rename.is_empty() {
            let path = target.join("model.safetensors");
            let stored = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
            let renamed = stored.into_iter().filter_map(|(name, tensor)| {
                let name = self.rename.iter().try_fold(name, |name, (pattern, to)| {
                    let pattern = regex::Regex::new(pattern).unwrap();
                    match to {
                        None => (!pattern.is_match(&name)).then_some(name),
                        Some(to) => {
                            Some(pattern.replace_all(&name, to.replace("$1", "${1}")).into_owned())
                        }
                    }
                });
                Some((name?, tensor))
            });
            let renamed: HashMap<String, Tensor> = renamed.collect();
            candle_core::safetensors::save(&renamed, path).unwrap();
        }
        for (path, tensors) in &self.tensors {
            let tensors: HashMap<String, Tensor> = tensors
                .iter()
                .map(|(name, values)| {
                    (name.clone(), Tensor::new(&values[..], &Device::Cpu).unwrap())
                })
                .collect();
            candle_core::safetensors::save(&tensors, target.join(path)).unwrap();
        }
    }
}

fn folders() -> Folders {
    serde_json::from_str(&fs::read_to_string(golden().join("folders.json")).unwrap()).unwrap()
}

#[test]
fn every_accepted_folder_gives_the_vectors_of_sentence_transformers() {
    let folders = folders();
    let mut fingerprints = HashMap::new();
    for variant in &folders.variants {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join(&variant.name);
        variant.make(&folder);
        let encoder = load(&folder, DType::F32).unwrap_or_else(|e| panic!("{}: {e}", variant.name));
        let found = encoder.embed(&folders.texts).unwrap();
        let (worst, text) = difference(&rows(&found), &variant.vectors);
        println!("{}: {worst:e}", variant.name);
        assert!(worst <= 2e-6, "{}, text {text}: {worst}", variant.name);
        assert_eq!(encoder.warnings().is_empty(), variant.name != "no_modules", "{}", variant.name);
        let other = fingerprints.insert(encoder.fingerprint().to_owned(), variant.name.clone());
        assert_eq!(other, None, "{} has the fingerprint of another", variant.name);
    }
}

/// The fingerprint of a folder covers every file that decides its vectors, whatever `modules.json` calls a module's folder.
/// Regression: only numbered folders were covered, so another pooling went on with the scores of the first.
#[test]
fn a_fingerprint_covers_what_is_read() {
    let mut folders = folders().variants;
    for (name, source, from, to) in
        [("unnumbered", "bert", "1_Pooling", "Pool"), ("dense", "roberta", "2_Dense", "head")]
    {
        let list = fs::read_to_string(golden().join(source).join("modules.json")).unwrap();
        let modules: Value = serde_json::from_str(&list.replace(from, to)).unwrap();
        let mut write = HashMap::from([("modules.json".to_owned(), modules)]);
        let config =
            fs::read_to_string(golden().join(source).join(from).join("config.json")).unwrap();
        write.insert(format!("{to}/config.json"), serde_json::from_str(&config).unwrap());
        folders.push(FolderVariant {
            name: name.into(),
            source: source.into(),
            write,
            rename: vec![],
            tensors: HashMap::new(),
            vocab: false,
            vectors: vec![],
        });
    }
    for variant in &folders {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("a folder");
        variant.make(&folder);
        let weights = golden().join(&variant.source).join("2_Dense/model.safetensors");
        if variant.name == "dense" {
            fs::copy(weights, folder.join("head/model.safetensors")).unwrap();
        }
        let print = bdhs::models::fingerprint::fingerprint;
        let before = print(&folder).unwrap();
        // Under another name it is the same.
        let moved = dir.path().join("another");
        fs::rename(&folder, &moved).unwrap();
        assert_eq!(print(&moved).unwrap(), before);
        let mut files = vec![moved.clone()];
        let mut covered = 0;
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            // A file that matters cannot be replaced by nonsense.
            fs::write(&path, b"\0").unwrap();
            let matters = load(&moved, DType::F32).is_err();
            let changes = print(&moved).map_or(true, |print| print != before);
            fs::write(&path, bytes).unwrap();
            assert!(
                changes || !matters,
                "{}: {} is read, but not covered",
                variant.name,
                path.display()
            );
            covered += u32::from(matters);
        }
        assert!(covered >= 4, "{}: {covered}", variant.name);
    }
}

/// Regression: fields that a reader did not know were read over.
#[test]
fn settings_that_would_change_vectors_are_refused_by_name() {
    let cases = [
        ("bert", "config.json", "embedding_size", json!(16)),
        ("bert", "config.json", "pruned_heads", json!({"0": [1]})),
        ("bert", "config.json", "alibi_starting_size", json!(512)),
        ("mpnet", "config.json", "relative_attention_num_buckets", json!(64)),
        ("mpnet", "config.json", "relative_attention_num_buckets", json!(16)),
        ("bert", "tokenizer_config.json", "do_basic_tokenize", json!("never")),
        ("bert", "tokenizer_config.json", "truncation_side", json!("middle")),
        ("bert", "tokenizer_config.json", "split_special_tokens", json!(true)),
        ("bert", "sentence_bert_config.json", "tokenizer_args", json!({"use_fast": true})),
        ("bert", "1_Pooling/config.json", "pooling_mode_attention", json!(true)),
        ("roberta", "2_Dense/config.json", "use_residual", json!(true)),
        ("roberta", "2_Dense/config.json", "scale", json!(2)),
        ("roberta", "config_sentence_transformers.json", "normalize", json!(true)),
    ];
    for (source, file, field, value) in cases {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join(source);
        copy_all(&golden().join(source), &folder);
        let path = folder.join(file);
        let mut settings: Value =
            serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        settings[field] = value;
        fs::write(&path, settings.to_string()).unwrap();
        let error = load(&folder, DType::F32).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(field), "{file} {field}: {error}");
    }
}

/// Regression: a table of positions was made before its size was checked, and ended the process.
#[test]
fn positions_without_a_table_are_refused() {
    for positions in [1u64 << 32, 1 << 62, 261] {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("mpnet");
        copy_all(&golden().join("mpnet"), &folder);
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config["max_position_embeddings"] = positions.into();
        fs::write(&path, config.to_string()).unwrap();
        let error = load(&folder, DType::F32).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("position_embeddings.weight"), "{error}");
    }
}

/// A text of megabytes is not tokenised whole, and has the vector that it would have.
#[test]
fn far_too_long_texts_have_the_vectors_of_their_beginning() {
    for name in ALL {
        let encoder = load(&golden().join(name), DType::F32).unwrap();
        let sentence = "A man in a red jacket stands beside a wooden table, and two dogs play.\n ";
        let long = sentence.repeat((3 << 20) / sentence.len());
        let whole = sentence.repeat(40);
        let begun = std::time::Instant::now();
        let found = encoder.embed(&[&long, &whole]).unwrap();
        let rows = rows(&found);
        let (worst, _) = difference(&rows[..1], &rows[1..]);
        assert!(worst <= 1e-6, "{name}: {worst}");
        assert!(found.truncated.iter().all(|&cut| cut));
        println!("{name}: {:?}, {} tokens read", begun.elapsed(), found.tokens[0]);
        assert!((found.tokens[0] as usize) < 200_000, "{name}");
    }
}
