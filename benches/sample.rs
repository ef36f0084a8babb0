//! Passes of LLaVA-1.5 models as the engine takes them.
//!
//! On the CPU: decode steps of a model of SmolLM2-135M's shape, in f32, of 1 to 256 forks. With `BDHS_BENCH_RESULT` set to a path,
//! they are set beside what the same run measures of the machine (reading memory, large products), as a table and a JSON file.
//!
//! ```text
//! cargo bench --bench sample
//! BDHS_BENCH_RESULT=benches/results/sample-cpu.json cargo bench --bench sample
//! ```
//!
//! On a GPU: a LLaVA-1.5 of 7B, its weights random bf16 made there: prefill, decode steps of forks over shared prefixes as the
//! engine takes them (embedding, 32 layers, logits, one drawn token a row, read back), the vision tower, and whole attempts
//! by the engine, at references of four sentences of 40 tokens. `benches/peers/bdhs_transformers.py` takes the same attempts.
//!
//! Throughputs are set beside two floors of the same shape: operations of the products (prefill, vision), and bytes of weights and
//! of keys and values that a step must read (decode).

mod common;

fn main() {
    if let Some(path) = std::env::var_os("BDHS_BENCH_RESULT").filter(|path| !path.is_empty()) {
        return cpu::shares(path.as_ref());
    }
    #[cfg_attr(not(feature = "cuda"), expect(unused_mut, reason = "no cases of a GPU"))]
    let mut cases = cpu::cases();
    #[cfg(feature = "cuda")]
    match bdhs::ops::cuda::probe(0) {
        Ok(_) => cases.extend(model::cases()),
        Err(error) => eprintln!("no cases on a GPU: {error}"),
    }
    common::main(cases);
}

mod cpu {
    use std::cell::{OnceCell, RefCell};
    use std::path::Path;
    use std::rc::Rc;
    use std::time::Instant;

    use bdhs::models::llava::{KvCache, Llava};
    use candle_core::{DType, Device};
    use rayon::prelude::*;
    use serde_json::{Value, json};

    use crate::common::llava::{self, FORKS, OWN, PREFIX, Shape, Step};
    use crate::common::{Case, Output, Run, values};

    /// SmolLM2-135M; the tower is as small as one can be, since nothing here sees it.
    const SHAPE: Shape = Shape {
        hidden: 576,
        inner: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        vocab: 49_152,
        tied: true,
        vision: [64, 64, 1, 577],
    };
    const FORK_COUNTS: [usize; 5] = [1, 4, 16, 64, 256];

    type Model = Rc<OnceCell<Llava>>;

    fn get(model: &Model) -> &Llava {
        model.get_or_init(|| llava::load(&SHAPE, DType::F32, &Device::Cpu))
    }

    /// Bytes that a step must read, and operations of its products and attention.
    fn costs(forks: usize) -> (usize, usize) {
        let weights = SHAPE.layers * SHAPE.layer() + SHAPE.vocab * SHAPE.hidden;
        let slots = forks.div_ceil(FORKS) * PREFIX + forks * OWN;
        let seen = forks * (PREFIX + OWN);
        let bytes = 4 * (weights + SHAPE.layers * SHAPE.kv() * slots);
        (bytes, 2 * forks * weights + 4 * SHAPE.layers * SHAPE.hidden * seen)
    }

    fn step(model: &Model, forks: usize) -> Run {
        let step = Step::of_forks(forks);
        let cache: RefCell<KvCache> =
            RefCell::new(get(model).language.new_cache(step.arena).expect("memory"));
        let model = model.clone();
        Box::new(move || {
            step.draw(get(&model), &mut cache.borrow_mut());
            Output::Numbers(vec![])
        })
    }

    pub fn cases() -> Vec<Case> {
        let model = Model::default();
        let case = |forks: usize| {
            let (bytes, flops) = costs(forks);
            let model = model.clone();
            let name = format!("sample/cpu decode 135M/{forks} forks/f32");
            Case::new(name, bytes, flops, move || step(&model, forks))
        };
        FORK_COUNTS.into_iter().map(case).collect()
    }

    /// The best of some runs within two seconds: other work on the machine only adds.
    fn best(mut run: impl FnMut()) -> f64 {
        run();
        let (start, mut best) = (Instant::now(), f64::INFINITY);
        while start.elapsed().as_secs_f64() < 2.0 {
            let begun = Instant::now();
            run();
            best = best.min(begun.elapsed().as_secs_f64());
        }
        best
    }

    /// Bytes a second of reading memory, all threads.
    fn read_rate() -> f64 {
        let data = vec![1f32; 1 << 26];
        let seconds = best(|| {
            let sum = |chunk: &[f32]| {
                let mut lanes = [0f32; 64];
                for some in chunk.chunks_exact(64) {
                    lanes.iter_mut().zip(some).for_each(|(lane, x)| *lane += x);
                }
                lanes.iter().sum::<f32>()
            };
            std::hint::black_box(data.par_chunks(1 << 20).map(sum).sum::<f32>());
        });
        (data.len() * 4) as f64 / seconds
    }

    /// Operations a second of the gemm crate's product of matrices of 2,048.
    fn product_rate() -> f64 {
        const N: usize = 2048;
        let tensor = |seed| {
            candle_core::Tensor::from_vec(values(seed, N * N), (N, N), &Device::Cpu)
                .expect("memory")
        };
        let (a, b) = (tensor(1), tensor(2));
        let seconds = best(|| drop(std::hint::black_box(a.matmul(&b).expect("a product"))));
        (2 * N * N * N) as f64 / seconds
    }

    /// Measures every step and the machine, prints a table, and writes it to `path`.
    pub fn shares(path: &Path) {
        let (read, product) = (read_rate(), product_rate());
        let model = Model::default();
        println!("memory {:.1} GB/s, products {:.0} GFLOP/s", read / 1e9, product / 1e9);
        println!("forks   ms a step   tokens/s   GB/s   GFLOP/s   floor, ms   share of it");
        let row = |forks: usize| -> Value {
            let run = step(&model, forks);
            let seconds = best(|| drop(run()));
            let (bytes, flops) = costs(forks);
            let floor = (bytes as f64 / read).max(flops as f64 / product);
            println!(
                "{forks:5} {:11.2} {:10.0} {:6.1} {:9.1} {:11.2} {:11.0} %",
                seconds * 1e3,
                forks as f64 / seconds,
                bytes as f64 / seconds / 1e9,
                flops as f64 / seconds / 1e9,
                floor * 1e3,
                100.0 * floor / seconds,
            );
            json!({
                "forks": forks, "seconds": seconds, "bytes": bytes, "flops": flops,
                "floor_seconds": floor, "share": floor / seconds,
            })
        };
        let document = json!({
            "command": "cargo bench --bench sample",
            "shape": "SmolLM2-135M, f32",
            "threads": rayon::current_num_threads(),
            "read_bytes_per_second": read,
            "product_flops_per_second": product,
            "steps": FORK_COUNTS.map(row),
        });
        std::fs::write(path, format!("{document:#}\n")).expect("a writable file");
    }
}

#[cfg(feature = "cuda")]
mod model {
    use std::path::Path;
    use std::rc::Rc;
    use std::time::Instant;

    use bdhs::data::Sample;
    use bdhs::engine::{Engine, Images, Request};
    use bdhs::models::llava::{Llava, Role, Turn};
    use bdhs::sampling::SamplingConfig;
    use candle_core::{DType, Tensor};

    use crate::common::llava::{self, FORKS, OWN, PREFIX, Shape, Step};
    use crate::common::{Case, Output, Run};

    const DTYPE: DType = DType::BF16;
    const SHAPE: Shape = Shape {
        hidden: 4096,
        inner: 11_008,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        vocab: 32_064,
        tied: false,
        vision: [1024, 4096, 24, 577],
    };
    const HIDDEN: usize = SHAPE.hidden;
    const LAYERS: usize = SHAPE.layers;
    const VOCAB: usize = SHAPE.vocab;
    /// Tokens that a sentence of an attempt may take.
    const NEW: u32 = 40;
    const REFERENCE: &str = "A red bus stands at the corner. Two people wait beside it. The sky is grey \
                             and wide. A dog sleeps under a tree.";
    const LAYER: usize = SHAPE.layer();

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
        llava::load(&SHAPE, DTYPE, &device)
    }

    /// `rows` forks, four to a prefix, each in the middle of its sentence: one step.
    fn decode(model: &Model, rows: usize) -> Case {
        let prefixes = rows / FORKS;
        let kv = LAYERS * SHAPE.kv() * DTYPE.size_in_bytes() * (prefixes * PREFIX + rows * OWN);
        let bytes = (LAYERS * LAYER + VOCAB * HIDDEN) * DTYPE.size_in_bytes() + kv;
        let input = move |model: Rc<Llava>| {
            let step = Step::of_forks(rows);
            let cache = model.language.new_cache(step.arena).expect("memory");
            (model, std::cell::RefCell::new(cache), step)
        };
        let name = format!("sample/gpu decode 7B/{rows} forks of {} prefixes/bf16", prefixes);
        case(name, (bytes, 0), model, input, move |(model, cache, step)| {
            step.draw(model, &mut cache.borrow_mut());
        })
    }

    /// Whole attempts, teacher-forced.
    fn prefill(model: &Model, sequences: usize) -> Case {
        let rows = sequences * PREFIX;
        let pairs = sequences * PREFIX * (PREFIX + 1) / 2;
        let flops = LAYERS * (2 * rows * LAYER + 4 * pairs * HIDDEN);
        let input = move |model: Rc<Llava>| {
            let step = Step::of_sequences(sequences);
            let cache = model.language.new_cache(step.arena).expect("memory");
            (model, std::cell::RefCell::new(cache), step)
        };
        let name = format!("sample/gpu prefill 7B/{sequences} x {PREFIX}/bf16");
        case(name, (0, flops), model, input, |(model, cache, step)| {
            step.run(model, &mut cache.borrow_mut());
        })
    }

    fn vision(model: &Model, tiles: usize) -> Case {
        let [width, inner, layers, tokens] = SHAPE.vision;
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
}
