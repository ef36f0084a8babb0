//! LLaVA-1.5 models of any shape, their weights random.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bdhs::models::llava::{KvCache, Llava};
use bdhs::models::weights::Weights;
use bdhs::ops::attend::{AttendPlan, Block, Segment};
use bdhs::ops::philox::Draws;
use bdhs::ops::token::{Params, Row, sample};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

/// The sizes of a model.
#[derive(Clone, Copy)]
pub struct Shape {
    pub hidden: usize,
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab: usize,
    /// Whether the output layer is the embedding.
    pub tied: bool,
    /// Width, inner width, layers and tokens of the tower.
    pub vision: [usize; 4],
}

impl Shape {
    /// Weights of a layer that a row is multiplied by.
    pub const fn layer(&self) -> usize {
        let wide = self.hidden / self.heads * (self.heads + self.kv_heads) * 2;
        self.hidden * wide + 3 * self.hidden * self.inner
    }

    /// Values of a layer's keys and values of one token.
    pub const fn kv(&self) -> usize {
        2 * self.hidden / self.heads * self.kv_heads
    }
}

/// A model of this shape with tokenizer and template of the golden one.
pub fn load(shape: &Shape, dtype: DType, device: &Device) -> Llava {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let golden = root().join("tests/golden/llava/llava15");
    for entry in std::fs::read_dir(&golden).expect("the golden checkpoints") {
        let path = entry.expect("an entry").path();
        if path.is_file() && path.file_name().is_some_and(|name| name != "model.safetensors") {
            let to = folder.path().join(path.file_name().expect("a name"));
            std::fs::copy(&path, to).expect("a copied file");
        }
    }
    configure(folder.path(), shape);
    let weights = Weights::from_tensors("random", tensors(shape, dtype, device), device, dtype);
    Llava::with_weights(folder.path(), &weights).expect("a model of these sizes")
}

/// Of the running checkout or bundle; see tests/common/place.rs.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

fn configure(folder: &Path, shape: &Shape) {
    let edit = |name: &str, edit: &dyn Fn(&mut Value)| {
        let path = folder.join(name);
        let text = std::fs::read_to_string(&path).expect("a file of the checkpoint");
        let mut value = serde_json::from_str(&text).expect("JSON");
        edit(&mut value);
        std::fs::write(path, value.to_string()).expect("a written file");
    };
    let [width, inner, layers, _] = shape.vision;
    edit("config.json", &|config| {
        config["tie_word_embeddings"] = json!(shape.tied);
        config["text_config"] = json!({
            "model_type": "llama", "vocab_size": shape.vocab, "hidden_size": shape.hidden,
            "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": shape.tied,
        });
        config["vision_config"] = json!({
            "model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": width / 64, "image_size": 336,
            "patch_size": 14, "projection_dim": 768,
        });
    });
    edit("preprocessor_config.json", &|config| {
        config["size"] = json!({"shortest_edge": 336});
        config["crop_size"] = json!({"height": 336, "width": 336});
    });
}

/// Every tensor of the model by its name: weights about as large as a trained model's, norms of one.
fn tensors(shape: &Shape, dtype: DType, device: &Device) -> HashMap<String, Tensor> {
    let mut all = HashMap::new();
    let mut add = |name: String, shape: &[usize], norm: bool| {
        let tensor = match (norm, name.ends_with("bias")) {
            (true, false) => Tensor::ones(shape, dtype, device),
            (_, true) => Tensor::zeros(shape, dtype, device),
            _ => Tensor::randn(0f32, 0.02, shape, device).and_then(|t| t.to_dtype(dtype)),
        };
        all.insert(name, tensor.expect("memory"));
    };
    let text = "model.language_model";
    let (hidden, inner) = (shape.hidden, shape.inner);
    let (wide, narrow) = (hidden, hidden / shape.heads * shape.kv_heads);
    add(format!("{text}.embed_tokens.weight"), &[shape.vocab, hidden], false);
    add(format!("{text}.norm.weight"), &[hidden], true);
    if !shape.tied {
        add("lm_head.weight".into(), &[shape.vocab, hidden], false);
    }
    for i in 0..shape.layers {
        let layer = format!("{text}.layers.{i}");
        for (name, input, output) in
            [("q", hidden, wide), ("k", hidden, narrow), ("v", hidden, narrow), ("o", wide, hidden)]
        {
            add(format!("{layer}.self_attn.{name}_proj.weight"), &[output, input], false);
        }
        for name in ["gate", "up"] {
            add(format!("{layer}.mlp.{name}_proj.weight"), &[inner, hidden], false);
        }
        add(format!("{layer}.mlp.down_proj.weight"), &[hidden, inner], false);
        for name in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("{layer}.{name}.weight"), &[hidden], true);
        }
    }
    let [width, inner, layers, tokens] = shape.vision;
    let tower = "model.vision_tower";
    add(format!("{tower}.embeddings.class_embedding"), &[width], false);
    add(format!("{tower}.embeddings.patch_embedding.weight"), &[width, 3, 14, 14], false);
    add(format!("{tower}.embeddings.position_embedding.weight"), &[tokens, width], false);
    let mut both = |name: String, shape: &[usize], norm: bool| {
        add(format!("{name}.weight"), shape, norm);
        add(format!("{name}.bias"), &shape[..1], norm);
    };
    both(format!("{tower}.pre_layrnorm"), &[width], true);
    for i in 0..layers {
        let layer = format!("{tower}.encoder.layers.{i}");
        for name in ["q", "k", "v", "out"] {
            both(format!("{layer}.self_attn.{name}_proj"), &[width, width], false);
        }
        both(format!("{layer}.mlp.fc1"), &[inner, width], false);
        both(format!("{layer}.mlp.fc2"), &[width, inner], false);
        for name in ["layer_norm1", "layer_norm2"] {
            both(format!("{layer}.{name}"), &[width], true);
        }
    }
    both("model.multi_modal_projector.linear_1".into(), &[hidden, width], false);
    both("model.multi_modal_projector.linear_2".into(), &[hidden, hidden], false);
    all
}

/// Prompt, about 6 kept image tokens of 576 at rho .99, reference: one attempt.
pub const PREFIX: usize = 160;
/// Sentences of an attempt, which fork from its prefix.
pub const FORKS: usize = 4;
/// Tokens that a fork has of its own.
pub const OWN: usize = 16;

/// The arguments of a pass.
pub struct Step {
    ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    plan: AttendPlan,
    /// Slots of the arena that it needs.
    pub arena: usize,
}

impl Step {
    /// `rows` forks, [`FORKS`] to a prefix, each in the middle of its sentence.
    pub fn of_forks(rows: usize) -> Self {
        let prefixes = rows.div_ceil(FORKS);
        let own = |row: usize| prefixes * PREFIX + row * OWN;
        let block = |row: usize| Block {
            rows: row..row + 1,
            keys: vec![
                Segment { start: row / FORKS * PREFIX, len: PREFIX },
                Segment { start: own(row), len: OWN },
            ],
            causal: false,
        };
        Self {
            ids: ids(rows),
            positions: vec![(PREFIX + OWN - 1) as u32; rows],
            slots: (0..rows).map(|row| (own(row) + OWN - 1) as u32).collect(),
            plan: AttendPlan { blocks: (0..rows).map(block).collect() },
            arena: own(rows),
        }
    }

    /// Whole attempts, teacher-forced.
    pub fn of_sequences(sequences: usize) -> Self {
        let rows = sequences * PREFIX;
        let bounds: Vec<u32> = (0..=sequences).map(|i| (i * PREFIX) as u32).collect();
        Self {
            ids: ids(rows),
            positions: (0..rows).map(|row| (row % PREFIX) as u32).collect(),
            slots: (0..rows as u32).collect(),
            plan: AttendPlan::ragged(&bounds, true),
            arena: rows,
        }
    }

    /// Embedding and layers.
    pub fn run(&self, model: &Llava, cache: &mut KvCache) -> Tensor {
        let x = model.language.embed(&self.ids).expect("states");
        let pass = model.language.forward(&x, &self.positions, cache, &self.slots, &self.plan);
        pass.expect("a pass")
    }

    /// The pass, logits, and one drawn token a row, read back.
    pub fn draw(&self, model: &Llava, cache: &mut KvCache) {
        let states = self.run(model, cache);
        let logits = model.language.logits(&states).expect("logits");
        let row = |sample| Row {
            params: Params { temperature: 0.7, ..Params::default() },
            draws: Draws { seed: 1, sample, attempt: 0 },
            sentence: 0,
            step: 0,
            history: &[],
        };
        let requests: Vec<Row> = (0..self.ids.len() as u32).map(row).collect();
        sample(&logits, &requests).expect("tokens");
    }
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 5 + i * 7919 % 400).collect()
}
