//! A LLaVA-1.5 of 7B on a GPU, its weights random bf16 made there: prefill, decode steps of forks over shared prefixes as the
//! engine takes them (embedding, 32 layers, logits, one drawn token a row, read back), the vision tower, and whole attempts
//! by the engine, at references of four sentences of 40 tokens. `benches/peers/bdhs_transformers.py` takes the same attempts.
//!
//! Throughputs are set beside two floors of the same shape: operations of the products (prefill, vision), and bytes of weights and
//! of keys and values that a step must read (decode).

mod common;

#[cfg(not(feature = "cuda"))]
fn main() {
    eprintln!("needs a GPU and a build with `cuda`: nothing is timed");
    common::main(vec![]);
}

#[cfg(feature = "cuda")]
fn main() {
    match bdhs::ops::cuda::probe(0) {
        Ok(_) => common::main(model::cases()),
        Err(error) => {
            eprintln!("no cases on a GPU: {error}");
            common::main(vec![]);
        }
    }
}

#[cfg(feature = "cuda")]
mod model {
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};
    use std::rc::Rc;
    use std::time::Instant;

    use bdhs::data::Sample;
    use bdhs::engine::{Engine, Images, Request};
    use bdhs::models::llava::{KvCache, Llava, Role, Turn};
    use bdhs::models::weights::Weights;
    use bdhs::ops::attend::{AttendPlan, Block, Segment};
    use bdhs::ops::philox::Draws;
    use bdhs::ops::token::{Params, Row, sample};
    use bdhs::sampling::SamplingConfig;
    use candle_core::{DType, Device, Tensor};
    use serde_json::{Value, json};

    use crate::common::{Case, Output, Run};

    const DTYPE: DType = DType::BF16;
    const HIDDEN: usize = 4096;
    const INNER: usize = 11_008;
    const LAYERS: usize = 32;
    const VOCAB: usize = 32_064;
    /// Prompt, about 6 kept image tokens of 576 at rho .99, reference: one attempt.
    const PREFIX: usize = 160;
    /// Sentences of an attempt, which fork from its prefix.
    const FORKS: usize = 4;
    /// Tokens that a fork has of its own.
    const OWN: usize = 16;
    /// Tokens that a sentence of an attempt may take.
    const NEW: u32 = 40;
    const REFERENCE: &str = "A red bus stands at the corner. Two people wait beside it. The sky is grey \
                             and wide. A dog sleeps under a tree.";
    const VISION: [usize; 4] = [1024, 4096, 24, 577];

    /// Weights of a layer that a row is multiplied by.
    const LAYER: usize = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER;

    pub fn cases() -> Vec<Case> {
        let model = Rc::new(std::cell::OnceCell::new());
        let mut cases = vec![];
        for rows in [16, 64, 256, 1024] {
            cases.push(decode(&model, rows));
        }
        for sequences in [16, 64] {
            cases.push(prefill(&model, sequences));
        }
        cases.push(vision(&model, 16));
        cases.push(attempts(&model, 64));
        cases
    }

    type Model = Rc<std::cell::OnceCell<Rc<Llava>>>;

    /// A case whose runs are timed by the wall's clock, from an idle GPU to an idle GPU: their own host work counts.
    fn case<S: 'static>(
        name: String,
        (bytes, flops): (usize, usize),
        model: &Model,
        input: impl Fn(Rc<Llava>) -> S + 'static,
        work: impl Fn(&S) + Copy + 'static,
    ) -> Case {
        let (own, timed) = (model.clone(), model.clone());
        let make = move || {
            let input = input(get(&own));
            Box::new(move || {
                work(&input);
                Output::Numbers(vec![])
            }) as Run
        };
        let timer = move |run: &Run, runs: u64| {
            let model = get(&timed);
            let idle = || model.language.device().synchronize().expect("kernels that end");
            idle();
            let begin = Instant::now();
            (0..runs).for_each(|_| drop(run()));
            idle();
            begin.elapsed()
        };
        Case { timer: Some(Box::new(timer)), ..Case::new(name, bytes, flops, make) }
    }

    fn get(model: &Model) -> Rc<Llava> {
        model.get_or_init(|| Rc::new(load())).clone()
    }

    fn load() -> Llava {
        let device = bdhs::models::device::open("cuda").expect("a GPU that was probed");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let golden = root().join("tests/golden/llava/llava15");
        for entry in std::fs::read_dir(&golden).expect("the golden checkpoints") {
            let path = entry.expect("an entry").path();
            if path.is_file() && path.file_name().is_some_and(|name| name != "model.safetensors") {
                let to = folder.path().join(path.file_name().expect("a name"));
                std::fs::copy(&path, to).expect("a copied file");
            }
        }
        configure(folder.path());
        let weights = Weights::from_tensors("random", tensors(&device), &device, DTYPE);
        Llava::with_weights(folder.path(), &weights).expect("a model of these sizes")
    }

    /// Of the running checkout or bundle; see tests/common/place.rs.
    fn root() -> PathBuf {
        std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
    }

    fn configure(folder: &Path) {
        let edit = |name: &str, edit: &dyn Fn(&mut Value)| {
            let path = folder.join(name);
            let text = std::fs::read_to_string(&path).expect("a file of the checkpoint");
            let mut value = serde_json::from_str(&text).expect("JSON");
            edit(&mut value);
            std::fs::write(path, value.to_string()).expect("a written file");
        };
        let [width, inner, layers, _] = VISION;
        edit("config.json", &|config| {
            config["text_config"] = json!({
                "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
                "intermediate_size": INNER, "num_hidden_layers": LAYERS,
                "num_attention_heads": 32, "num_key_value_heads": 32,
                "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            });
            config["vision_config"] = json!({
                "model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": inner,
                "num_hidden_layers": layers, "num_attention_heads": 16, "image_size": 336,
                "patch_size": 14, "projection_dim": 768,
            });
        });
        edit("preprocessor_config.json", &|config| {
            config["size"] = json!({"shortest_edge": 336});
            config["crop_size"] = json!({"height": 336, "width": 336});
        });
    }

    /// Every tensor of the model by its name: weights about as large as a trained model's, norms of one.
    fn tensors(device: &Device) -> HashMap<String, Tensor> {
        let mut all = HashMap::new();
        let mut add = |name: String, shape: &[usize], norm: bool| {
            let tensor = match (norm, name.ends_with("bias")) {
                (true, false) => Tensor::ones(shape, DTYPE, device),
                (_, true) => Tensor::zeros(shape, DTYPE, device),
                _ => Tensor::randn(0f32, 0.02, shape, device).and_then(|t| t.to_dtype(DTYPE)),
            };
            all.insert(name, tensor.expect("memory"));
        };
        let text = "model.language_model";
        add(format!("{text}.embed_tokens.weight"), &[VOCAB, HIDDEN], false);
        add(format!("{text}.norm.weight"), &[HIDDEN], true);
        add("lm_head.weight".into(), &[VOCAB, HIDDEN], false);
        for i in 0..LAYERS {
            let layer = format!("{text}.layers.{i}");
            for name in ["q", "k", "v", "o"] {
                add(format!("{layer}.self_attn.{name}_proj.weight"), &[HIDDEN, HIDDEN], false);
            }
            for name in ["gate", "up"] {
                add(format!("{layer}.mlp.{name}_proj.weight"), &[INNER, HIDDEN], false);
            }
            add(format!("{layer}.mlp.down_proj.weight"), &[HIDDEN, INNER], false);
            for name in ["input_layernorm", "post_attention_layernorm"] {
                add(format!("{layer}.{name}.weight"), &[HIDDEN], true);
            }
        }
        let [width, inner, layers, tokens] = VISION;
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
        both("model.multi_modal_projector.linear_1".into(), &[HIDDEN, width], false);
        both("model.multi_modal_projector.linear_2".into(), &[HIDDEN, HIDDEN], false);
        all
    }

    fn ids(n: usize) -> Vec<u32> {
        (0..n as u32).map(|i| 5 + i * 7919 % 400).collect()
    }

    /// `rows` forks, four to a prefix, each in the middle of its sentence: one step.
    fn decode(model: &Model, rows: usize) -> Case {
        let prefixes = rows / FORKS;
        let kv = 2 * LAYERS * HIDDEN * DTYPE.size_in_bytes() * (prefixes * PREFIX + rows * OWN);
        let bytes = (LAYERS * LAYER + VOCAB * HIDDEN) * DTYPE.size_in_bytes() + kv;
        let input = move |model: Rc<Llava>| {
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
            (model, std::cell::RefCell::new(cache), step)
        };
        let name = format!("sample/gpu decode 7B/{rows} forks of {} prefixes/bf16", prefixes);
        case(name, (bytes, 0), model, input, move |(model, cache, step)| {
            let states = step.run(model, &mut cache.borrow_mut());
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
        })
    }

    /// Whole attempts, teacher-forced.
    fn prefill(model: &Model, sequences: usize) -> Case {
        let rows = sequences * PREFIX;
        let pairs = sequences * PREFIX * (PREFIX + 1) / 2;
        let flops = LAYERS * (2 * rows * LAYER + 4 * pairs * HIDDEN);
        let input = move |model: Rc<Llava>| {
            let cache = model.language.new_cache(rows).expect("memory");
            let bounds: Vec<u32> = (0..=sequences).map(|i| (i * PREFIX) as u32).collect();
            let step = Step {
                ids: ids(rows),
                positions: (0..rows).map(|row| (row % PREFIX) as u32).collect(),
                slots: (0..rows as u32).collect(),
                plan: AttendPlan::ragged(&bounds, true),
            };
            (model, std::cell::RefCell::new(cache), step)
        };
        let name = format!("sample/gpu prefill 7B/{sequences} x {PREFIX}/bf16");
        case(name, (0, flops), model, input, |(model, cache, step)| {
            step.run(model, &mut cache.borrow_mut());
        })
    }

    fn vision(model: &Model, tiles: usize) -> Case {
        let [width, inner, layers, tokens] = VISION;
        let per_row = 4 * width * width + 2 * width * inner;
        // The last layer is not computed.
        let flops = (layers - 1) * tiles * (2 * tokens * per_row + 4 * tokens * tokens * width);
        let input = move |model: Rc<Llava>| {
            let pixels = Tensor::randn(0f32, 1.0, (tiles, 3, 336, 336), model.language.device());
            (model, pixels.expect("memory"))
        };
        let name = format!("sample/gpu vision tower/{tiles} x {tokens}/bf16");
        case(name, (0, flops), model, input, |(model, pixels)| {
            model.tower_features(pixels).expect("features");
        })
    }

    /// First attempts at so many samples with a picture each, from files to texts. A sentence takes at most [`NEW`] tokens; the tiny
    /// vocabulary of the tokenizer has ends among its few hundred tokens, so random weights end a part of the sentences sooner.
    fn attempts(model: &Model, samples: usize) -> Case {
        let config = SamplingConfig { max_sentence_tokens: NEW, ..SamplingConfig::default() };
        let input = move |model: Rc<Llava>| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let samples: Vec<Sample> =
                (0..samples as u32).map(|index| sample_of(folder.path(), index)).collect();
            (model, config.clone(), samples, folder)
        };
        let name = format!("sample/gpu attempts 7B/{samples} x {FORKS} sentences of {NEW}/bf16");
        case(name, (0, 0), model, input, |(model, config, samples, _)| {
            let engine = Engine::new(model, config.clone(), 1).expect("an engine");
            let wave: Vec<_> = samples
                .iter()
                .map(|sample| Request { sample, attempt: 1, guided: true })
                .map(|request| engine.prepare(request).expect("a laid out attempt"))
                .collect();
            let mut images = Images::new(1 << 30);
            engine.generate(&wave, &mut images, &()).expect("candidates");
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

    impl Step {
        fn run(&self, model: &Llava, cache: &mut KvCache) -> Tensor {
            let x = model.language.embed(&self.ids).expect("states");
            let pass = model.language.forward(&x, &self.positions, cache, &self.slots, &self.plan);
            pass.expect("a pass")
        }
    }
}
