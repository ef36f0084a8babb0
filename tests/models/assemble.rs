//! The example `assemble_llava`: a tiny GGUF in, a checkpoint folder out.

#[path = "../../examples/assemble_llava/assemble/mod.rs"]
mod example;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use example::{Options, Shape, assemble};
use minijinja::context;
use minijinja::syntax::SyntaxConfig;
use serde_json::json;
use tempfile::TempDir;
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const HIDDEN: usize = 32;
const INNER: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const LAYERS: usize = 2;

/// A GGUF file being put together.
struct TinyGguf {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor>,
}

impl TinyGguf {
    fn new(tokenizer: Vec<(&str, Value)>, tied: bool) -> Self {
        let mut metadata: BTreeMap<String, Value> =
            tokenizer.into_iter().map(|(k, v)| (format!("tokenizer.{k}"), v)).collect();
        let Some(Value::Array(tokens)) = metadata.get("tokenizer.ggml.tokens") else {
            panic!("the test's tokenizer has no tokens")
        };
        let rows = tokens.len();
        metadata.insert("general.architecture".into(), Value::String("llama".into()));
        for (name, n) in [
            ("embedding_length", HIDDEN),
            ("feed_forward_length", INNER),
            ("block_count", LAYERS),
            ("attention.head_count", HEADS),
            ("attention.head_count_kv", KV_HEADS),
            ("context_length", 128),
        ] {
            metadata.insert(format!("llama.{name}"), Value::U32(n as u32));
        }
        metadata.insert("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(1e-5));
        metadata.insert("llama.rope.freq_base".into(), Value::F32(100_000.0));

        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| {
            let tensor = Tensor::randn(0f32, 0.2, shape, &Device::Cpu).unwrap();
            tensors.insert(name, tensor);
        };
        add("token_embd.weight".into(), &[rows, HIDDEN]);
        add("output_norm.weight".into(), &[HIDDEN]);
        if !tied {
            add("output.weight".into(), &[rows, HIDDEN]);
        }
        let kv = KV_HEADS * HEAD_DIM;
        for i in 0..LAYERS {
            add(format!("blk.{i}.attn_norm.weight"), &[HIDDEN]);
            add(format!("blk.{i}.ffn_norm.weight"), &[HIDDEN]);
            add(format!("blk.{i}.attn_q.weight"), &[HIDDEN, HIDDEN]);
            add(format!("blk.{i}.attn_k.weight"), &[kv, HIDDEN]);
            add(format!("blk.{i}.attn_v.weight"), &[kv, HIDDEN]);
            add(format!("blk.{i}.attn_output.weight"), &[HIDDEN, HIDDEN]);
            add(format!("blk.{i}.ffn_gate.weight"), &[INNER, HIDDEN]);
            add(format!("blk.{i}.ffn_up.weight"), &[INNER, HIDDEN]);
            add(format!("blk.{i}.ffn_down.weight"), &[HIDDEN, INNER]);
        }
        Self { metadata, tensors }
    }

    fn with(mut self, field: &str, value: Value) -> Self {
        self.metadata.insert(field.into(), value);
        self
    }

    fn without(mut self, name: &str) -> Self {
        let found = self.metadata.remove(name).is_some() || self.tensors.remove(name).is_some();
        assert!(found, "{name} was not there");
        self
    }

    fn with_tensor(mut self, name: &str, shape: &[usize]) -> Self {
        let tensor = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        self.tensors.insert(name.into(), tensor);
        self
    }

    /// Writes to `dir`; the feed-forward output in Q8_0, all else in f32.
    fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("tiny.gguf");
        let quantized: Vec<(&str, QTensor)> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let dtype =
                    if name.contains("ffn_down") { GgmlDType::Q8_0 } else { GgmlDType::F32 };
                (name.as_str(), QTensor::quantize(tensor, dtype).unwrap())
            })
            .collect();
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = quantized.iter().map(|(k, v)| (*k, v)).collect();
        let mut file = fs::File::create(&path).unwrap();
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
        path
    }
}

fn strings<S: ToString>(items: impl IntoIterator<Item = S>) -> Value {
    Value::Array(items.into_iter().map(|s| Value::String(s.to_string())).collect())
}

/// GGUF token types: `special` control tokens, then normal ones.
fn kinds(special: usize, normal: usize) -> Value {
    let special = (0..special).map(|_| Value::I32(3));
    Value::Array(special.chain((0..normal).map(|_| Value::I32(1))).collect())
}

/// Three control tokens, the 256 bytes, and five merged pieces that spell "hello" and " w".
fn byte_level() -> Vec<(&'static str, Value)> {
    let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    let mut tokens: Vec<String> =
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).into();
    tokens.extend(bytes.iter().map(char::to_string));
    tokens.extend(["he", "ll", "hell", "hello", "Ġw"].map(String::from));
    let template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] \
                    + '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    vec![
        ("ggml.model", Value::String("gpt2".into())),
        ("ggml.pre", Value::String("smollm".into())),
        ("ggml.token_type", kinds(3, tokens.len() - 3)),
        ("ggml.tokens", strings(tokens)),
        ("ggml.merges", strings(["h e", "l l", "he ll", "hell o", "Ġ w"])),
        ("ggml.bos_token_id", Value::U32(1)),
        ("ggml.eos_token_id", Value::U32(2)),
        ("ggml.add_bos_token", Value::Bool(false)),
        ("chat_template", Value::String(template.into())),
    ]
}

/// `<unk> <s> </s>`, the 256 byte pieces, and a few pieces with scores.
fn sentence_piece() -> Vec<(&'static str, Value)> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(["▁a", "ab", "▁ab", "▁", "a", "b", "c", "bc"].map(String::from));
    let mut scores = vec![0.0; 259];
    // "bc" is better than "ab": "abc" is "a" + "bc".
    scores.extend([-3.0, -2.0, -4.0, -10.0, -11.0, -12.0, -13.0, -1.0]);
    vec![
        ("ggml.model", Value::String("llama".into())),
        ("ggml.token_type", kinds(3, tokens.len() - 3)),
        ("ggml.scores", Value::Array(scores.into_iter().map(Value::F32).collect())),
        ("ggml.tokens", strings(tokens)),
        ("ggml.bos_token_id", Value::U32(1)),
        ("ggml.eos_token_id", Value::U32(2)),
        ("ggml.unknown_token_id", Value::U32(0)),
    ]
}

fn options() -> Options {
    Options { seed: 7, dtype: DType::F32, shape: Shape::Llava }
}

/// An assembled checkpoint in a folder that goes when this goes.
struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new(gguf: &TinyGguf, options: &Options) -> Self {
        let dir = TempDir::new().unwrap();
        let path = gguf.write(dir.path());
        assemble(&path, &dir.path().join("out"), options).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("out").join(name)
    }

    fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn weights(&self) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.path("model.safetensors"), &Device::Cpu).unwrap()
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_file(self.path("tokenizer.json")).unwrap()
    }
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

#[test]
fn the_folder_has_every_file_and_the_right_settings() {
    let folder = Folder::new(&TinyGguf::new(byte_level(), true), &options());
    let config = folder.json("config.json");
    assert_eq!(config["model_type"], "llava");
    assert_eq!(config["image_token_index"], 264);
    assert_eq!(config["image_seq_length"], 576);
    assert_eq!(config["tie_word_embeddings"], true);
    let text = &config["text_config"];
    assert_eq!(text["vocab_size"], 265);
    assert_eq!(text["num_key_value_heads"], 2);
    assert_eq!(text["head_dim"], 8);
    assert_eq!(text["rope_theta"], 100_000.0);
    assert_eq!(text["rms_norm_eps"], 1e-5);
    assert_eq!(folder.json("generation_config.json")["eos_token_id"], 2);
    assert_eq!(folder.json("tokenizer_config.json")["eos_token"], "<|im_end|>");
    // The GGUF names no padding token.
    assert_eq!(folder.json("special_tokens_map.json")["pad_token"], "<|im_end|>");
    assert_eq!(folder.json("processor_config.json")["patch_size"], 14);
    let crop = &folder.json("preprocessor_config.json")["crop_size"];
    assert_eq!(crop, &json!({"height": 336, "width": 336}));
    let readme = fs::read_to_string(folder.path("README.md")).unwrap();
    assert!(readme.contains("random") && readme.contains("tiny.gguf"), "{readme}");
}

#[test]
fn weights_have_hugging_face_names_shapes_and_values() {
    let gguf = TinyGguf::new(byte_level(), true);
    let weights = Folder::new(&gguf, &options()).weights();
    // Language: embedding, norm, 9 a layer. Vision: 3 embeddings, 2 norms, 16 a layer. Projector: 4.
    assert_eq!(weights.len(), 2 + 9 * LAYERS + 3 + 2 * 2 + 16 * 4 + 4);
    let shape = |name: &str| weights[name].dims().to_vec();
    assert_eq!(shape("vision_tower.vision_model.embeddings.position_embedding.weight"), [577, 64]);
    assert_eq!(shape("vision_tower.vision_model.encoder.layers.3.mlp.fc2.weight"), [64, 256]);
    assert_eq!(shape("multi_modal_projector.linear_1.weight"), [HIDDEN, 64]);
    for (from, to) in [
        ("output_norm", "norm"),
        ("blk.1.attn_norm", "layers.1.input_layernorm"),
        ("blk.1.ffn_norm", "layers.1.post_attention_layernorm"),
    ] {
        let seen = &weights[&format!("language_model.model.{to}.weight")];
        let given = &gguf.tensors[&format!("{from}.weight")];
        assert_eq!(seen.to_vec1::<f32>().unwrap(), given.to_vec1::<f32>().unwrap(), "{to}");
    }
    for (from, to) in [
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
    ] {
        let seen = &weights[&format!("language_model.model.layers.0.{to}.weight")];
        assert_eq!(rows(seen), rows(&gguf.tensors[&format!("blk.0.{from}.weight")]), "{to}");
    }
    // Q8_0 keeps 8 bits of each block's largest value.
    let given = &gguf.tensors["blk.0.ffn_down.weight"];
    let seen = &weights["language_model.model.layers.0.mlp.down_proj.weight"];
    let error: f32 = (seen - given).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
    let largest: f32 = given.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
    assert!(error > 0.0 && error < largest / 127.0, "{error} of {largest}");
}

#[test]
fn the_image_token_gets_the_mean_row() {
    for tied in [true, false] {
        let gguf = TinyGguf::new(byte_level(), tied);
        let weights = Folder::new(&gguf, &options()).weights();
        assert_eq!(weights.contains_key("language_model.lm_head.weight"), !tied);
        let mut pairs = vec![("language_model.model.embed_tokens.weight", "token_embd.weight")];
        if !tied {
            pairs.push(("language_model.lm_head.weight", "output.weight"));
        }
        for (to, from) in pairs {
            let (seen, given) = (rows(&weights[to]), rows(&gguf.tensors[from]));
            assert_eq!(seen.len(), 265);
            assert_eq!(seen[..264], given);
            for column in 0..HIDDEN {
                let sum: f64 = given.iter().map(|row| f64::from(row[column])).sum();
                assert!((sum / 264.0 - f64::from(seen[264][column])).abs() < 1e-6, "{to}");
            }
        }
    }
}

#[test]
fn spare_embedding_rows_are_kept() {
    // Some GGUFs pad the embedding: three rows here that no token has.
    let mut gguf = TinyGguf::new(byte_level(), true);
    let spare = Tensor::ones((3, HIDDEN), DType::F32, &Device::Cpu).unwrap();
    let name = "token_embd.weight";
    let padded = Tensor::cat(&[&gguf.tensors[name], &spare], 0).unwrap();
    gguf.tensors.insert(name.into(), padded);
    let folder = Folder::new(&gguf, &options());
    assert_eq!(folder.json("config.json")["text_config"]["vocab_size"], 267);
    let seen = rows(&folder.weights()["language_model.model.embed_tokens.weight"]);
    assert_eq!(seen.len(), 267);
    assert_ne!(seen[264], [1.0; HIDDEN], "the first spare row is the image token's");
    assert_eq!(seen[265..], [[1.0; HIDDEN]; 2]);
}

/// Rotates one head at `position`; `members(pair)` says which two entries pair up.
fn rotate(head: &[f32], position: usize, members: fn(usize) -> (usize, usize)) -> Vec<f32> {
    let mut out = head.to_vec();
    for pair in 0..HEAD_DIM / 2 {
        let (a, b) = members(pair);
        let frequency = 100_000f32.powf(-2.0 * pair as f32 / HEAD_DIM as f32);
        let (sin, cos) = (position as f32 * frequency).sin_cos();
        out[a] = head[a] * cos - head[b] * sin;
        out[b] = head[b] * cos + head[a] * sin;
    }
    out
}

/// Attention scores of every query head, the query at position 11, the key at position 3.
fn scores(q: &Tensor, k: &Tensor, members: fn(usize) -> (usize, usize)) -> Vec<f32> {
    let input = |seed: usize| -> Vec<f32> {
        (0..HIDDEN).map(|i| ((i * 7 + seed * 13) % 11) as f32 / 5.0 - 1.0).collect()
    };
    let project = |w: &Tensor, x: &[f32]| -> Vec<f32> {
        rows(w).iter().map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    };
    let (q, k) = (project(q, &input(1)), project(k, &input(2)));
    (0..HEADS)
        .map(|head| {
            let group = head / (HEADS / KV_HEADS);
            let q = rotate(&q[head * HEAD_DIM..][..HEAD_DIM], 11, members);
            let k = rotate(&k[group * HEAD_DIM..][..HEAD_DIM], 3, members);
            q.iter().zip(&k).map(|(a, b)| a * b).sum()
        })
        .collect()
}

#[test]
fn attention_scores_survive_the_change_of_rotary_order() {
    let gguf = TinyGguf::new(byte_level(), true);
    let weights = Folder::new(&gguf, &options()).weights();
    let neighbours = |pair: usize| (2 * pair, 2 * pair + 1);
    let halves = |pair: usize| (pair, pair + HEAD_DIM / 2);
    for i in 0..LAYERS {
        let given = |name: &str| &gguf.tensors[&format!("blk.{i}.{name}.weight")];
        let layer = format!("language_model.model.layers.{i}.self_attn");
        let seen = |name: &str| &weights[&format!("{layer}.{name}.weight")];
        let (q, k) = (given("attn_q"), given("attn_k"));
        let expected = scores(q, k, neighbours);
        let assembled = scores(seen("q_proj"), seen("k_proj"), halves);
        let untouched = scores(q, k, halves);
        let distance = |a: &[f32]| -> f32 {
            a.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
        };
        assert!(distance(&assembled) < 1e-4, "{assembled:?} {expected:?}");
        assert!(distance(&untouched) > 1e-2, "the case does not tell the two orders apart");
    }
}

#[test]
fn byte_level_ids_by_hand() {
    let gguf = TinyGguf::new(byte_level(), true);
    let tokenizer = Folder::new(&gguf, &options()).tokenizer();
    let tokens = |text: &str| tokenizer.encode(text, true).unwrap().get_tokens().to_vec();
    // Digits stand alone, a blank goes with the word after it.
    assert_eq!(tokens("hello 42"), ["hello", "Ġ", "4", "2"]);
    assert_eq!(tokens("hello well"), ["hello", "Ġw", "e", "ll"]);
    assert_eq!(
        tokens("<|im_start|><image>\nhe<|im_end|>"),
        ["<|im_start|>", "<image>", "Ċ", "he", "<|im_end|>"]
    );
    assert_eq!(tokenizer.token_to_id("<image>"), Some(264));
    for text in ["hello  wörld\n\t42½", "北京 🦝", ""] {
        let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    // Special tokens can be left out of an answer.
    assert_eq!(tokenizer.decode(&[262, 2, 264], true).unwrap(), "hello");
}

#[test]
fn sentence_piece_ids_by_hand() {
    let gguf = TinyGguf::new(sentence_piece(), false);
    let folder = Folder::new(&gguf, &options());
    let tokenizer = folder.tokenizer();
    let tokens = |text: &str| tokenizer.encode(text, true).unwrap().get_tokens().to_vec();
    // "▁a" and "ab" both start to win over single letters; the better score decides.
    assert_eq!(tokens("ab"), ["<s>", "▁ab"]);
    assert_eq!(tokens("abc"), ["<s>", "▁a", "bc"]);
    assert_eq!(tokens("ac b"), ["<s>", "▁a", "c", "▁", "b"]);
    assert_eq!(tokens("cé"), ["<s>", "▁", "c", "<0xC3>", "<0xA9>"]);
    for text in ["ab  cé", "北\n🦝"] {
        let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    assert_eq!(folder.json("tokenizer_config.json")["unk_token"], "<unk>");
}

/// A message as the template sees it; `parts` are ("image", "") or ("text", words).
fn message(role: &str, parts: &[(&str, &str)]) -> minijinja::Value {
    let part = |(kind, text): &(&str, &str)| context! { type => *kind, text => *text };
    context! { role, content => parts.iter().map(part).collect::<minijinja::Value>() }
}

/// Renders with the settings of transformers.
fn render(template: &str, messages: Vec<minijinja::Value>, generation: bool) -> String {
    let mut env = minijinja::Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap());
    env.template_from_str(template)
        .unwrap()
        .render(context! { messages, add_generation_prompt => generation, eos_token => "</s>" })
        .unwrap()
}

#[test]
fn the_chat_template_takes_content_lists_and_plain_text() {
    let folder = Folder::new(&TinyGguf::new(byte_level(), true), &options());
    let config = folder.json("tokenizer_config.json");
    let template = config["chat_template"].as_str().unwrap();
    let question = || message("user", &[("text", "What is it?"), ("image", ""), ("image", "")]);
    let answer = || context! { role => "assistant", content => "A \"cat\" & <dog>." };
    assert_eq!(
        render(template, vec![question(), answer()], true),
        "<|im_start|>user\n<image>\n<image>\nWhat is it?<|im_end|>\n\
         <|im_start|>assistant\nA \"cat\" & <dog>.<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(fs::read_to_string(folder.path("chat_template.jinja")).unwrap(), template);

    // A GGUF without a template gets LLaVA's own form.
    let plain = Folder::new(&TinyGguf::new(sentence_piece(), true), &options());
    let config = plain.json("tokenizer_config.json");
    let template = config["chat_template"].as_str().unwrap();
    assert_eq!(
        render(template, vec![question(), answer()], false),
        "USER: <image>\n<image>\nWhat is it? ASSISTANT: A \"cat\" & <dog>.</s>"
    );
    assert_eq!(
        render(template, vec![question()], true),
        "USER: <image>\n<image>\nWhat is it? ASSISTANT:"
    );
}

#[test]
fn the_seed_decides_the_vision_part_and_nothing_else() {
    let gguf = TinyGguf::new(byte_level(), true);
    let folder = |seed: u64| Folder::new(&gguf, &Options { seed, ..options() });
    let bytes = |seed: u64| fs::read(folder(seed).path("model.safetensors")).unwrap();
    assert!(bytes(1) == bytes(1), "the same seed gave another file");
    let (one, two) = (folder(1).weights(), folder(2).weights());
    for (name, tensor) in &one {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let constant = name.contains("norm");
        let same = values(tensor) == values(&two[name]);
        assert_eq!(same, name.starts_with("language_model.") || constant, "{name}");
    }
}

#[test]
fn anyres_and_half_precision() {
    let gguf = TinyGguf::new(byte_level(), true);
    for dtype in [DType::BF16, DType::F16] {
        let folder = Folder::new(&gguf, &Options { seed: 1, dtype, shape: Shape::Next });
        let config = folder.json("config.json");
        assert_eq!(config["model_type"], "llava_next");
        assert_eq!(config["image_grid_pinpoints"][3], json!([1008, 336]));
        let preprocessor = folder.json("preprocessor_config.json");
        assert_eq!(preprocessor["image_processor_type"], "LlavaNextImageProcessor");
        let weights = folder.weights();
        assert_eq!(weights["image_newline"].dims(), [HIDDEN]);
        assert!(weights.values().all(|t| t.dtype() == dtype));
    }
}

/// The same GGUF as a Qwen2: its own fields, three biases a layer, rows of queries and keys as they are.
fn qwen2() -> TinyGguf {
    let mut gguf = TinyGguf::new(byte_level(), true);
    let of = |name: &str| name.strip_prefix("llama.").map(|rest| format!("qwen2.{rest}"));
    let metadata = std::mem::take(&mut gguf.metadata).into_iter();
    gguf.metadata = metadata.map(|(name, value)| (of(&name).unwrap_or(name), value)).collect();
    gguf = gguf.with("general.architecture", Value::String("qwen2".into()));
    gguf = gguf.with("tokenizer.ggml.pre", Value::String("qwen2".into()));
    for i in 0..LAYERS {
        for (name, width) in [("q", HIDDEN), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM)]
        {
            let bias = Tensor::randn(0f32, 0.2, &[width][..], &Device::Cpu).unwrap();
            gguf.tensors.insert(format!("blk.{i}.attn_{name}.bias"), bias);
        }
    }
    gguf
}

/// A real decoder of either architecture in a folder of LLaVA-OneVision's shape, which loads and runs.
#[test]
fn onevision_folders_hold_llama_and_qwen2() {
    for (gguf, model_type) in [(TinyGguf::new(byte_level(), true), "llama"), (qwen2(), "qwen2")] {
        let folder = Folder::new(&gguf, &Options { shape: Shape::OneVision, ..options() });
        let config = folder.json("config.json");
        assert_eq!(config["model_type"], "llava_onevision");
        assert_eq!(config["text_config"]["model_type"], model_type);
        let weights = folder.weights();
        let query = "language_model.model.layers.0.self_attn.q_proj";
        let kept = gguf.tensors["blk.0.attn_q.weight"].to_vec2::<f32>().unwrap();
        let found = weights[&format!("{query}.weight")].to_vec2::<f32>().unwrap();
        assert_eq!(kept == found, model_type == "qwen2");
        assert_eq!(weights.contains_key(&format!("{query}.bias")), model_type == "qwen2");
        let out = folder.dir.path().join("out");
        let model = bdhs::models::Model::load(&out, &Device::Cpu, DType::F32).unwrap();
        let layout = model.layout(800, 600).unwrap();
        let picture = image::RgbImage::from_pixel(800, 600, image::Rgb([90, 120, 10]));
        let features = model.image_features(&model.preprocess(&picture).unwrap()).unwrap();
        assert_eq!(features.dims(), [layout.tokens, HIDDEN]);
        assert!(layout.tokens > 4 * 729, "{}", layout.tokens);
        let ids = model.encode("hello w 12").unwrap();
        assert!(!ids.is_empty());
    }
}

#[test]
fn what_cannot_be_carried_over_is_refused_by_name() {
    let text = |s: &str| Value::String(s.into());
    let bpe = || TinyGguf::new(byte_level(), true);
    let cases: Vec<(TinyGguf, &[&str])> = vec![
        (bpe().with("general.architecture", text("gemma2")), &["gemma2", "qwen2"]),
        (bpe().with("tokenizer.ggml.pre", text("deepseek-llm")), &["deepseek-llm", "smollm"]),
        (bpe().without("tokenizer.ggml.pre"), &["none named"]),
        (bpe().with("tokenizer.ggml.model", text("bert")), &["bert"]),
        (bpe().with("llama.rope.scaling.type", text("yarn")), &["rope.scaling.type", "yarn"]),
        (bpe().with("llama.expert_count", Value::U32(8)), &["expert_count", "8"]),
        (bpe().with("llama.rope.dimension_count", Value::U32(4)), &["dimension_count", "4", "8"]),
        (bpe().with("llama.attention.head_count", Value::U32(5)), &["head_count", "5"]),
        (bpe().with("llama.block_count", text("two")), &["block_count", "String"]),
        (bpe().with("tokenizer.ggml.eos_token_id", Value::U32(999)), &["eos_token_id", "999"]),
        (bpe().without("llama.context_length"), &["context_length", "missing"]),
        (bpe().without("blk.1.attn_q.weight"), &["blk.1.attn_q.weight", "missing"]),
        (bpe().with_tensor("rope_freqs.weight", &[4]), &["rope_freqs.weight"]),
        (bpe().with_tensor("blk.0.ffn_up.weight", &[HIDDEN, HIDDEN]), &["ffn_up", "[64, 32]"]),
        (bpe().with("tokenizer.ggml.merges", strings(["he"])), &["merges", "\"he\""]),
        (bpe().with("tokenizer.ggml.merges", strings(["q zz"])), &["tokenizer.ggml", "zz"]),
        (bpe().with("tokenizer.ggml.token_type", kinds(1, 1)), &["token_type", "2", "264"]),
        (bpe().with("tokenizer.ggml.tokens", strings(["a", "a"])), &["tokens", "\"a\""]),
        (bpe().with("tokenizer.ggml.tokens", strings(["a", "<image>"])), &["tokens", "<image>"]),
    ];
    for (gguf, expected) in cases {
        let dir = TempDir::new().unwrap();
        let path = gguf.write(dir.path());
        let out = dir.path().join("out");
        let error = assemble(&path, &out, &options()).unwrap_err().to_string();
        for word in expected.iter().chain(&["tiny.gguf"]) {
            assert!(error.contains(word), "{error:?} does not name {word:?}");
        }
        assert!(!out.exists(), "a refused file left a folder behind");
    }
}

#[test]
fn a_file_that_is_no_gguf_is_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("note.txt");
    fs::write(&path, "hello").unwrap();
    let error = assemble(&path, &dir.path().join("out"), &options()).unwrap_err().to_string();
    assert!(error.contains("note.txt") && error.contains("GGUF"), "{error}");
}
