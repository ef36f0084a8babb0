//! A LLaVA-1.5 with random weights: prefill, decode steps of forks over shared prefixes as the
//! engine takes them (embedding, layers, logits, one drawn token a row, read back), the vision
//! tower, and whole attempts by the engine, at references of four sentences of 40 tokens. On a GPU
//! of 7B in bf16, made there; on the CPU of 135M in f32.
//!
//! Throughputs are set beside two floors of the same shape: operations of the products (prefill,
//! vision), and bytes of weights and of keys and values that a step must read (decode);
//! `benches/peers/gpu.py` takes the larger of bytes and operations of each op of a step. Lengths
//! are scripted: nearly all of the vocabulary are words without a mark, so next to no sentence ends
//! before its limit; whole attempts check that. `benches/peers/bdhs_transformers.py` takes the same
//! attempts.

mod common;

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use bdhs::data::Sample;
use bdhs::engine::{Engine, Images, Request};
use bdhs::models::weights::Weights;
use bdhs::models::{self, KvCache, Role, Turn};
use bdhs::ops::attend::{AttendPlan, Block, Segment};
use bdhs::ops::philox::Draws;
use bdhs::ops::token::{Params, Row, sample};
use bdhs::sampling::SamplingConfig;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use common::{Case, Output, Run};

/// Prompt, about 6 kept image tokens of 576 at rho .99, reference: one attempt.
const PREFIX: usize = 160;
/// Sentences of an attempt, which fork from its prefix.
const FORKS: usize = 4;
/// Tokens that a fork has of its own.
const OWN: usize = 16;
/// Tokens that a sentence of an attempt takes.
const NEW: u32 = 40;
/// Of a hundred sentences, how many must take all of them.
const SCRIPTED: usize = 95;
const REFERENCE: &str = "A red bus stands at the corner. Two people wait beside it. The sky is grey \
                         and wide. A dog sleeps under a tree.";

/// A model and the passes that are timed.
struct Sizes {
    /// `gpu` or `cpu`, and what to open.
    place: &'static str,
    device: &'static str,
    name: &'static str,
    dtype: DType,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    /// Width, inner width, layers, heads; pictures of 336 pixels, patches of 14.
    vision: [usize; 4],
    /// Rows of decode steps, sequences of prefills, pictures, samples of attempts.
    decode: &'static [usize],
    decode_by_ops: &'static [usize],
    prefill: &'static [usize],
    pictures: usize,
    samples: usize,
}

#[cfg(feature = "cuda")]
const GPU: Sizes = Sizes {
    place: "gpu",
    device: "cuda",
    name: "7B",
    dtype: DType::BF16,
    hidden: 4096,
    inner: 11_008,
    layers: 32,
    heads: 32,
    kv_heads: 32,
    vocab: 32_064,
    vision: [1024, 4096, 24, 16],
    decode: &[16, 64, 256, 1024],
    decode_by_ops: &[64],
    prefill: &[16, 64],
    pictures: 16,
    samples: 64,
};

const CPU: Sizes = Sizes {
    place: "cpu",
    device: "cpu",
    name: "135M",
    dtype: DType::F32,
    hidden: 576,
    inner: 1536,
    layers: 30,
    heads: 9,
    kv_heads: 3,
    vocab: 49_152,
    vision: [192, 768, 4, 3],
    decode: &[1, 4, 16, 64, 256],
    decode_by_ops: &[],
    prefill: &[4],
    pictures: 2,
    samples: 4,
};

/// Tokens that an image has, with the class token.
const TILE: usize = 577;
/// Ids of the golden checkpoint's tokenizer.
const TEXTS: usize = 452;

impl Sizes {
    fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Width of keys, and of values.
    fn narrow(&self) -> usize {
        self.kv_heads * self.head_dim()
    }

    /// Weights of a layer that a row is multiplied by.
    fn layer(&self) -> usize {
        2 * self.hidden * (self.hidden + self.narrow()) + 3 * self.hidden * self.inner
    }
}

fn main() {
    let cases = of(&CPU);
    #[cfg(feature = "cuda")]
    let cases = match bdhs::ops::cuda::probe(0) {
        Ok(_) => cases.into_iter().chain(of(&GPU)).collect(),
        Err(error) => {
            eprintln!("no cases on a GPU: {error}");
            cases
        }
    };
    common::main(cases);
}

fn of(sizes: &'static Sizes) -> Vec<Case> {
    let model = Model { sizes, made: Rc::default() };
    let mut cases: Vec<Case> =
        sizes.decode.iter().map(|&rows| decode(&model, rows, Pass::Step)).collect();
    // The same, launched op by op.
    cases.extend(sizes.decode_by_ops.iter().map(|&rows| decode(&model, rows, Pass::Ops)));
    cases.extend(sizes.prefill.iter().map(|&sequences| prefill(&model, sequences)));
    cases.push(vision(&model));
    cases.push(attempts(&model));
    cases
}

/// Made when a case first needs it.
#[derive(Clone)]
struct Model {
    sizes: &'static Sizes,
    made: Rc<OnceCell<Rc<models::Model>>>,
}

impl Model {
    fn get(&self) -> Rc<models::Model> {
        self.made.get_or_init(|| Rc::new(load(self.sizes))).clone()
    }

    fn name(&self, what: &str, of: String) -> String {
        let Sizes { place, name, dtype, .. } = self.sizes;
        format!("sample/{place} {what} {name}/{of}/{}", dtype.as_str())
    }
}

/// On a GPU, a case whose runs are timed by the wall's clock, from an idle GPU to an idle GPU: their own host work counts.
fn case<S: 'static>(
    name: String,
    (bytes, flops): (usize, usize),
    model: &Model,
    input: impl Fn(Rc<models::Model>) -> S + 'static,
    work: impl Fn(&S) + Copy + 'static,
) -> Case {
    let (own, timed) = (model.clone(), model.clone());
    let make = move || {
        let input = input(own.get());
        Box::new(move || {
            work(&input);
            Output::Numbers(vec![])
        }) as Run
    };
    let case = Case::new(name, bytes, flops, make);
    if model.sizes.device == "cpu" {
        return case;
    }
    let timer = move |run: &Run, runs: u64| {
        let model = timed.get();
        let idle = || model.language.device().synchronize().expect("kernels that end");
        idle();
        let begin = Instant::now();
        (0..runs).for_each(|_| drop(run()));
        idle();
        begin.elapsed()
    };
    Case { timer: Some(Box::new(timer)), ..case }
}

fn load(sizes: &Sizes) -> models::Model {
    let device = bdhs::models::device::open(sizes.device).expect("a device that was probed");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let golden = root().join("tests/golden/llava/llava15");
    for entry in std::fs::read_dir(&golden).expect("the golden checkpoints") {
        let path = entry.expect("an entry").path();
        if path.is_file() && path.file_name().is_some_and(|name| name != "model.safetensors") {
            let to = folder.path().join(path.file_name().expect("a name"));
            std::fs::copy(&path, to).expect("a copied file");
        }
    }
    configure(folder.path(), sizes);
    let weights = Weights::from_tensors("random", tensors(sizes, &device), &device, sizes.dtype);
    models::Model::with_weights(folder.path(), &weights).expect("a model of these sizes")
}

/// Of the running checkout or bundle; see tests/common/place.rs.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

fn configure(folder: &Path, sizes: &Sizes) {
    let edit = |name: &str, edit: &dyn Fn(&mut Value)| {
        let path = folder.join(name);
        let text = std::fs::read_to_string(&path).expect("a file of the checkpoint");
        let mut value = serde_json::from_str(&text).expect("JSON");
        edit(&mut value);
        std::fs::write(path, value.to_string()).expect("a written file");
    };
    let [width, inner, layers, heads] = sizes.vision;
    edit("config.json", &|config| {
        config["text_config"] = json!({
            "model_type": "llama", "vocab_size": sizes.vocab, "hidden_size": sizes.hidden,
            "intermediate_size": sizes.inner, "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        });
        config["vision_config"] = json!({
            "model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": 336,
            "patch_size": 14, "projection_dim": 768,
        });
    });
    edit("tokenizer.json", &|tokenizer| {
        for id in TEXTS..sizes.vocab {
            tokenizer["model"]["vocab"][format!("\u{120}w{id}")] = json!(id);
        }
    });
    edit("preprocessor_config.json", &|config| {
        config["size"] = json!({"shortest_edge": 336});
        config["crop_size"] = json!({"height": 336, "width": 336});
    });
}

/// Every tensor of the model by its name: weights about as large as a trained model's, norms of one.
fn tensors(sizes: &Sizes, device: &Device) -> HashMap<String, Tensor> {
    let (hidden, inner, vocab, dtype) = (sizes.hidden, sizes.inner, sizes.vocab, sizes.dtype);
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
    add(format!("{text}.embed_tokens.weight"), &[vocab, hidden], false);
    add(format!("{text}.norm.weight"), &[hidden], true);
    add("lm_head.weight".into(), &[vocab, hidden], false);
    for i in 0..sizes.layers {
        let layer = format!("{text}.layers.{i}");
        for (name, outputs) in
            [("q", hidden), ("k", sizes.narrow()), ("v", sizes.narrow()), ("o", hidden)]
        {
            add(format!("{layer}.self_attn.{name}_proj.weight"), &[outputs, hidden], false);
        }
        for name in ["gate", "up"] {
            add(format!("{layer}.mlp.{name}_proj.weight"), &[inner, hidden], false);
        }
        add(format!("{layer}.mlp.down_proj.weight"), &[hidden, inner], false);
        for name in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("{layer}.{name}.weight"), &[hidden], true);
        }
    }
    let [width, inner, layers, _] = sizes.vision;
    let tower = "model.vision_tower";
    add(format!("{tower}.embeddings.class_embedding"), &[width], false);
    add(format!("{tower}.embeddings.patch_embedding.weight"), &[width, 3, 14, 14], false);
    add(format!("{tower}.embeddings.position_embedding.weight"), &[TILE, width], false);
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
    // Logits of 0 beside thousands around it.
    let head = all.get_mut("lm_head.weight").expect("the output layer");
    let none = Tensor::zeros((TEXTS, hidden), dtype, device).expect("memory");
    *head = head.slice_assign(&[0..TEXTS, 0..hidden], &none).expect("an output layer");
    all
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 5 + i * 7919 % 400).collect()
}

/// Bytes and operations of each op of a step of `rows` forks, as [`Case::ops`]: of every layer four
/// products, with the weights, and attention, with each key and value once; then the output layer.
/// Norms and activations are not counted.
fn step_ops(sizes: &Sizes, rows: usize, prefixes: usize) -> Vec<[usize; 2]> {
    let (hidden, inner, narrow) = (sizes.hidden, sizes.inner, sizes.narrow());
    let size = sizes.dtype.size_in_bytes();
    let product =
        |from: usize, to: usize| [size * (from * to + rows * (from + to)), 2 * rows * from * to];
    let stored = 2 * narrow * (prefixes * PREFIX + rows * OWN) + 2 * rows * hidden;
    let attention = [size * stored, 4 * rows * (PREFIX + OWN) * hidden];
    let layer = [
        product(hidden, hidden + 2 * narrow),
        attention,
        product(hidden, hidden),
        product(hidden, 2 * inner),
        product(inner, hidden),
    ];
    let head = [product(hidden, sizes.vocab)];
    (0..sizes.layers).flat_map(|_| layer).chain(head).collect()
}

/// `rows` forks, four to a prefix, each in the middle of its sentence: one step.
fn decode(model: &Model, rows: usize, pass: Pass) -> Case {
    let (prefixes, sizes) = (rows.div_ceil(FORKS), model.sizes);
    let kv = 2 * sizes.layers * sizes.narrow() * (prefixes * PREFIX + rows * OWN);
    let weights = sizes.layers * sizes.layer() + sizes.vocab * sizes.hidden;
    let bytes = (weights + kv) * sizes.dtype.size_in_bytes();
    let input = move |model: Rc<models::Model>| {
        let cache = model.language.new_cache(prefixes * PREFIX + rows * OWN).expect("memory");
        let own = |row: usize| prefixes * PREFIX + row * OWN;
        let step = Step {
            ids: ids(rows),
            positions: vec![(PREFIX + OWN - 1) as u32; rows],
            slots: (0..rows).map(|row| (own(row) + OWN - 1) as u32).collect(),
            plan: AttendPlan {
                blocks: (0..rows)
                    .map(|row| Block {
                        rows: row..row + 1,
                        keys: vec![
                            Segment { start: row / FORKS * PREFIX, len: PREFIX },
                            Segment { start: own(row), len: OWN },
                        ],
                        causal: false,
                    })
                    .collect(),
            },
        };
        (model, RefCell::new(cache), step)
    };
    let what = match pass {
        Pass::Step => "decode",
        Pass::Ops => "decode by ops",
    };
    let name = model.name(what, format!("{rows} forks of {prefixes} prefixes"));
    let case = case(name, (bytes, 0), model, input, move |(model, cache, step)| {
        let states = step.run(model, &mut cache.borrow_mut(), pass);
        let logits = model.language.logits(&states).expect("logits");
        let row = |sample| Row {
            params: Params { temperature: 0.7, ..Params::default() },
            draws: Draws { seed: 1, sample, attempt: 0 },
            sentence: 0,
            step: 0,
            history: &[],
        };
        let requests: Vec<Row> = (0..rows as u32).map(row).collect();
        sample(&logits, &requests).expect("tokens");
    });
    Case { ops: step_ops(sizes, rows, prefixes), ..case }
}

/// Whole attempts, teacher-forced.
fn prefill(model: &Model, sequences: usize) -> Case {
    let rows = sequences * PREFIX;
    let pairs = sequences * PREFIX * (PREFIX + 1) / 2;
    let sizes = model.sizes;
    let flops = sizes.layers * (2 * rows * sizes.layer() + 4 * pairs * sizes.hidden);
    let input = move |model: Rc<models::Model>| {
        let cache = model.language.new_cache(rows).expect("memory");
        let bounds: Vec<u32> = (0..=sequences).map(|i| (i * PREFIX) as u32).collect();
        let step = Step {
            ids: ids(rows),
            positions: (0..rows).map(|row| (row % PREFIX) as u32).collect(),
            slots: (0..rows as u32).collect(),
            plan: AttendPlan::ragged(&bounds, true),
        };
        (model, RefCell::new(cache), step)
    };
    let name = model.name("prefill", format!("{sequences} x {PREFIX}"));
    case(name, (0, flops), model, input, |(model, cache, step)| {
        step.run(model, &mut cache.borrow_mut(), Pass::Ops);
    })
}

fn vision(model: &Model) -> Case {
    let ([width, inner, layers, _], tiles) = (model.sizes.vision, model.sizes.pictures);
    let per_row = 4 * width * width + 2 * width * inner;
    // The last layer is not computed.
    let flops = (layers - 1) * tiles * (2 * TILE * per_row + 4 * TILE * TILE * width);
    let input = move |model: Rc<models::Model>| {
        let pixels = Tensor::randn(0f32, 1.0, (tiles, 3, 336, 336), model.language.device());
        (model, pixels.expect("memory"))
    };
    let Sizes { place, dtype, .. } = model.sizes;
    let name = format!("sample/{place} vision tower/{tiles} x {TILE}/{}", dtype.as_str());
    case(name, (0, flops), model, input, |(model, pixels)| {
        model.llava().expect("a LLaVA").tower(pixels).expect("features");
    })
}

/// First attempts at so many samples with a picture each, from files to texts. A sentence takes [`NEW`] tokens.
fn attempts(model: &Model) -> Case {
    let samples = model.sizes.samples;
    let config = SamplingConfig { max_sentence_tokens: NEW, ..SamplingConfig::default() };
    let input = move |model: Rc<models::Model>| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let samples: Vec<Sample> =
            (0..samples as u32).map(|index| sample_of(folder.path(), index)).collect();
        (model, config.clone(), samples, folder)
    };
    let name = model.name("attempts", format!("{samples} x {FORKS} x {NEW} tokens"));
    case(name, (0, 0), model, input, |(model, config, samples, _)| {
        let mut engine = Engine::new(model, config.clone(), 1).expect("an engine");
        let wave: Vec<_> = samples
            .iter()
            .map(|sample| Request { sample, attempt: 1, guided: true })
            .map(|request| engine.prepare(request).expect("a laid out attempt"))
            .collect();
        let mut images = Images::new(1 << 30);
        let candidates = engine.generate(&wave, &mut images, &()).expect("candidates");
        let sentences: Vec<u32> =
            candidates.iter().flat_map(|c| &c.parts).map(|part| part.tokens).collect();
        let whole = sentences.iter().filter(|&&tokens| tokens == NEW).count();
        assert!(100 * whole >= SCRIPTED * sentences.len(), "lengths: {sentences:?}");
    })
}

fn sample_of(folder: &Path, index: u32) -> Sample {
    let path = folder.join(format!("{index}.png"));
    let pixel = |x: u32, y: u32| image::Rgb([x, y, x * y + index].map(|v| (v % 256) as u8));
    image::RgbImage::from_fn(336, 336, pixel).save(&path).expect("a written picture");
    Sample {
        index,
        id: index.to_string(),
        images: vec![path],
        turns: vec![Turn { role: Role::User, text: "<image>\nDescribe the picture.".into() }],
        reference: REFERENCE.into(),
        line: 1,
    }
}

/// The arguments of a pass.
struct Step {
    ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    plan: AttendPlan,
}

/// How a pass is made: on a GPU [`Pass::Step`] is a captured graph.
#[derive(Clone, Copy)]
enum Pass {
    Step,
    Ops,
}

impl Step {
    fn run(&self, model: &models::Model, cache: &mut KvCache, pass: Pass) -> Tensor {
        let Self { ids, positions, slots, plan } = self;
        let language = &model.language;
        let x = language.embed(ids).expect("states");
        match pass {
            Pass::Step => language.step(&x, positions, cache, slots, plan),
            Pass::Ops => language.forward(&x, positions, cache, slots, plan),
        }
        .expect("a pass")
    }
}
