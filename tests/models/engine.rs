//! The engine against the plain reading of the method: masks as attention masks, sentences one by one.

use crate::common::{self, skip::skip};
use bdhs::{
    data::{Dataset, DatasetOptions, Sample},
    demo::embedded,
    engine::{Answering, Engine, Images, Prepared, Question, Request, answer, waves},
    models::{Model, Piece, Place},
    ops::{
        attend::{AttendPlan, Block, Segment},
        dense::Dense,
        mask::{self, MaskScheme},
        philox::{Draws, WHOLE_RESPONSE},
        token,
    },
    sampling::{Candidate, Part, SamplingConfig, Stop, attempts::attempts, cuts},
};
use candle_core::{DType, Device, Tensor};

/// Tiny checkpoints of every family.
const FAMILIES: [&str; 6] = [
    "llava15",
    "next_vicuna",
    "onevision/onevision",
    "onevision/next_qwen3",
    "qwen_vl/qwen2_5",
    "qwen_vl/qwen2",
];

/// A tiny checkpoint: of a group, or a LLaVA.
fn model(name: &str) -> Model {
    let folder = match name.contains('/') {
        true => common::golden(name),
        false => common::golden(&format!("llava/{name}")),
    };
    Model::load(folder, &common::place::device(), DType::F32).expect("a tiny checkpoint")
}

fn samples(dir: &std::path::Path, n: usize) -> Vec<Sample> {
    let data = Dataset::open(&common::dataset(dir, n), &DatasetOptions::default());
    let data = data.expect("a dataset");
    data.read(0..data.len()).expect("samples")
}

/// Runs of visible places up to `end`, as segments.
fn visible(mask: &[bool], end: usize) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut start = 0;
    for run in mask[..end].chunk_by(|a, b| a == b) {
        if run[0] {
            segments.push(Segment { start, len: run.len() });
        }
        start += run.len();
    }
    segments
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let [a, b] = [a, b].map(|t| t.to_device(&Device::Cpu).expect("a copy"));
    let difference = a.sub(&b).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
    difference.expect("tensors of one shape")
}

/// `[S eq. 6]`: masking a token for every query equals leaving it out with the other positions kept. Regression: a model that
/// takes no mask, or counts positions anew where tokens are left out, fails at every rho above 0.
#[test]
fn kept_tokens_only_equals_attention_masking() {
    for name in ["llava15", "next_vicuna", "next_mistral"] {
        let model = model(name);
        let picture = common::picture(64, 24, 5);
        let features = model.image_features(&model.preprocess(&picture).unwrap()).unwrap();
        let image = features.dim(0).unwrap();
        let (before, after) = ("Look at this. ", " What is there? A red bus stands here.");
        let ids = |text: &str| -> Vec<u32> {
            let pieces = model.encode(text).unwrap();
            pieces
                .into_iter()
                .flat_map(|piece| match piece {
                    Piece::Tokens(ids) => ids,
                    Piece::Image(_) => panic!("no image in {text:?}"),
                })
                .collect()
        };
        let embed = |text: &str| model.language.embed(&ids(text)).unwrap();
        let rows = Tensor::cat(&[embed(before), features, embed(after)], 0).unwrap();
        let n = rows.dim(0).unwrap();
        let first = ids(before).len();
        let mut worst = 0f32;
        for trial in 0..70u32 {
            let rho = [0.0, 0.5, 0.9, 0.99, 1.0][trial as usize % 5];
            let draws = Draws { seed: 11, sample: trial, attempt: 1 };
            let row = mask::Row { draws, sentence: 0, tokens: image, grids: &[] };
            let kept = mask::draw(MaskScheme::Bernoulli { rho }, &[row], false).unwrap().indices;
            let mut seen = vec![true; n];
            for i in 0..image {
                seen[first + i] = kept.contains(&(i as u32));
            }
            worst = worst.max(masked_against_removed(&model, &rows, &seen));
        }
        assert!(worst <= 1e-4, "{name}: logits differ by {worst}");
        println!("{name}: largest logit difference over 70 masks {worst:e}");
    }
}

/// Largest difference of the logits of visible rows: all rows under an attention mask, against visible rows only.
fn masked_against_removed(model: &Model, rows: &Tensor, seen: &[bool]) -> f32 {
    let n = seen.len();
    let language = &model.language;
    let slots: Vec<u32> = (0..n as u32).collect();
    let blocks = (0..n)
        .map(|r| Block { rows: r..r + 1, keys: visible(seen, r + 1), causal: false })
        .collect();
    let mut cache = language.new_cache(n).unwrap();
    let masked =
        language.forward(rows, &slots, &mut cache, &slots, &AttendPlan { blocks }).unwrap();

    let kept: Vec<u32> = slots.iter().copied().filter(|&i| seen[i as usize]).collect();
    let pick = Tensor::new(kept.as_slice(), &common::place::device()).unwrap();
    let mut cache = language.new_cache(kept.len()).unwrap();
    let plan = AttendPlan::ragged(&[0, kept.len() as u32], true);
    let x = rows.index_select(&pick, 0).unwrap();
    let removed = language.forward(&x, &kept, &mut cache, &slots[..kept.len()], &plan).unwrap();
    let masked = language.logits(&masked.index_select(&pick, 0).unwrap()).unwrap();
    largest_difference(&masked, &language.logits(&removed).unwrap())
}

fn settings(rho: f64, temperature: f64) -> SamplingConfig {
    SamplingConfig {
        rho,
        temperature,
        max_sentence_tokens: 24,
        max_response_tokens: 40,
        ..SamplingConfig::default()
    }
}

fn generate(engine: &mut Engine, samples: &[Sample], guided: bool) -> Vec<Candidate> {
    let wave: Vec<Prepared> = samples
        .iter()
        .map(|sample| engine.prepare(Request { sample, attempt: 2, guided }).unwrap())
        .collect();
    engine.generate(&wave, &mut Images::new(1 << 20), &()).unwrap()
}

/// Forked rows of a packed wave against each sentence prefilled and decoded alone, by the same draws.
#[test]
fn forked_decoding_equals_decoding_each_sentence_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = samples(dir.path(), 8);
    let mut compared = 0;
    for name in FAMILIES {
        let model = model(name);
        for temperature in [0.0, 1.0] {
            let config = settings(0.5, temperature);
            let mut engine = Engine::new(&model, config.clone(), 3).unwrap();
            for guided in [true, false] {
                let candidates = generate(&mut engine, &dataset, guided);
                for (sample, candidate) in dataset.iter().zip(&candidates) {
                    compared += alone(&model, &engine, &config, sample, candidate);
                }
            }
        }
    }
    assert!(compared >= 100, "{compared} sentences compared");
}

/// Decodes every part of a candidate alone; returns how many there were.
fn alone(
    model: &Model,
    engine: &Engine,
    config: &SamplingConfig,
    sample: &Sample,
    candidate: &Candidate,
) -> usize {
    let draws = Draws { seed: 3, sample: sample.index, attempt: candidate.attempt };
    let prompt = model.prompt(&sample.turns).unwrap();
    let mut prefixes = vec![(prompt.text.clone(), None)];
    if candidate.guided {
        let fragments = cuts::cut(&sample.reference, &draws, config).unwrap();
        prefixes = fragments
            .into_iter()
            .map(|fragment| {
                let before = &sample.reference[..fragment.sentence.start];
                let mut answer = format!("{}{before}", prompt.separator);
                if fragment.kept.is_empty() {
                    answer.truncate(answer.trim_end().len());
                }
                (format!("{}{answer}{}", prompt.text, fragment.kept), Some(fragment))
            })
            .collect();
    }
    assert_eq!(prefixes.len(), candidate.parts.len());
    for (j, ((text, fragment), part)) in prefixes.iter().zip(&candidate.parts).enumerate() {
        let sentence = if candidate.guided { j as u32 } else { WHOLE_RESPONSE };
        let (drawn, logprob) =
            decode_alone(model, engine, config, sample, candidate, text, part, (draws, sentence));
        let what = format!("sample {}, part {j}: {part:?}, alone {drawn:?}", sample.index);
        assert!((logprob - part.logprob).abs() <= 1e-3, "{what} logprob {logprob}");
        let drawn = match fragment {
            Some(fragment) => cuts::own_completion(fragment, &drawn),
            None => drawn.trim(),
        };
        assert!(drawn.starts_with(&part.completion), "{what}");
        if part.stop != Stop::FullStop && candidate.guided {
            assert_eq!(drawn.trim_end(), part.completion.trim_end(), "{what}");
        }
    }
    candidate.parts.len()
}

/// Text and log-probability of as many tokens as a part drew, from a prefill of its own.
#[allow(clippy::too_many_arguments, reason = "a test helper that takes the whole setting")]
fn decode_alone(
    model: &Model,
    engine: &Engine,
    config: &SamplingConfig,
    sample: &Sample,
    candidate: &Candidate,
    text: &str,
    part: &Part,
    (draws, sentence): (Draws, u32),
) -> (String, f32) {
    let language = &model.language;
    let image = sample.images[0].open().unwrap();
    let pixels = model.preprocess(&image).unwrap();
    let features = model.image_features(&pixels).unwrap();
    let (mut rows, mut positions, mut ids, mut next) = (vec![], vec![], vec![], 0u32);
    for piece in model.encode(text).unwrap() {
        match piece {
            Piece::Tokens(tokens) => {
                rows.push(language.embed(&tokens).unwrap());
                positions.extend((next..next + tokens.len() as u32).map(Place::from));
                next += tokens.len() as u32;
                ids.extend(tokens);
            }
            Piece::Image(_) => {
                if !candidate.kept.is_empty() {
                    let pick =
                        Tensor::new(candidate.kept.as_slice(), &common::place::device()).unwrap();
                    rows.push(features.index_select(&pick, 0).unwrap());
                }
                assert_eq!(candidate.image_tokens as usize, pixels.layout.tokens);
                let places: Vec<Place> = pixels.layout.places(next).collect();
                positions.extend(candidate.kept.iter().map(|&i| places[i as usize]));
                next += pixels.layout.span();
            }
        }
    }
    let n = positions.len();
    let mut cache = language.new_cache(n + part.tokens as usize).unwrap();
    let slots: Vec<u32> = (0..n as u32 + part.tokens).collect();
    let plan = AttendPlan::ragged(&[0, n as u32], true);
    let x = Tensor::cat(&rows, 0).unwrap();
    let mut hidden = language
        .forward(&x, &positions, &mut cache, &slots[..n], &plan)
        .and_then(|h| Ok(h.narrow(0, n - 1, 1)?))
        .unwrap();
    let params = token::Params { temperature: config.temperature, ..token::Params::default() };
    let (mut drawn, mut logprob) = (Vec::new(), 0.0);
    for step in 0..part.tokens as usize {
        let logits = engine.logits(&hidden).unwrap();
        let row = token::Row { params, draws, sentence, step: step as u64, history: &[] };
        let sampled = token::sample(&logits, &[row]).unwrap()[0];
        drawn.push(sampled.token);
        logprob += sampled.log_prob;
        let used = n + step + 1;
        let plan = AttendPlan {
            blocks: vec![Block {
                rows: 0..1,
                keys: vec![Segment { start: 0, len: used }],
                causal: false,
            }],
        };
        let x = language.embed(&[sampled.token]).unwrap();
        let position = [next + step as u32];
        hidden =
            language.forward(&x, &position, &mut cache, &slots[used - 1..used], &plan).unwrap();
    }
    drawn.retain(|id| !model.format.eos_ids().contains(id));
    let tokenizer = model.format.tokenizer();
    let context = tokenizer.decode(&ids, true).unwrap();
    ids.extend(&drawn);
    let all = tokenizer.decode(&ids, true).unwrap();
    (all.strip_prefix(&context).expect("decoding appends").to_owned(), logprob)
}

/// A wave is a function of its samples: the same candidates again, and, up to rounding, in other groups.
#[test]
fn candidates_do_not_depend_on_the_order_of_work() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = samples(dir.path(), 6);
    let model = model("next_mistral");
    let mut engine = Engine::new(&model, settings(0.9, 0.0), 9).unwrap();
    let together = generate(&mut engine, &dataset, true);
    assert_eq!(together, generate(&mut engine, &dataset, true));
    for (sample, candidate) in dataset.iter().zip(&together) {
        let single = generate(&mut engine, std::slice::from_ref(sample), true);
        assert_eq!(single[0].text, candidate.text);
        assert_eq!(single[0].kept, candidate.kept);
    }
}

/// Whether a product's bits do not depend on the number of its rows: on the CPU, with our own products.
fn same_bits_in_any_batch() -> bool {
    if !common::place::device().is_cpu() {
        skip("cpu", "on a GPU the last bits of a product depend on its shape");
        return false;
    }
    if !Dense::available() {
        skip("dense", "without ops::dense the last bits of a product depend on its shape");
    }
    Dense::available()
}

/// A candidate is a function of its own attempt, to the bit: with all attempts side by side, with room for few, whose places the next
/// ones take, with room for one, and alone in its wave, guided or not, greedy or drawn.
#[test]
fn candidates_do_not_depend_on_room_or_company() {
    if !same_bits_in_any_batch() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dataset = samples(dir.path(), 8);
    for name in FAMILIES {
        let model = model(name);
        for (guided, temperature) in [(true, 0.0), (true, 1.0), (false, 1.0)] {
            let engine = |slots: usize| {
                Engine::new(&model, settings(0.5, temperature), 5).unwrap().with_slots(slots)
            };
            let together = generate(&mut engine(usize::MAX), &dataset, guided);
            for slots in [1, 300, 700] {
                assert_eq!(generate(&mut engine(slots), &dataset, guided), together, "{slots}");
            }
            for (sample, candidate) in dataset.iter().zip(&together) {
                let alone = generate(&mut engine(usize::MAX), std::slice::from_ref(sample), guided);
                assert_eq!(&alone[0], candidate);
            }
        }
    }
}

/// So many attempts that their prefill takes several passes are those of waves that one pass is enough for.
#[test]
fn candidates_do_not_depend_on_passes() {
    if !same_bits_in_any_batch() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dataset = samples(dir.path(), 72);
    let model = model("next_vicuna");
    let mut engine = Engine::new(&model, settings(0.0, 1.0), 5).unwrap();
    let together = generate(&mut engine, &dataset, true);
    let apart = dataset.chunks(4).flat_map(|some| generate(&mut engine, some, true));
    assert_eq!(apart.collect::<Vec<_>>(), together);
}

/// No image token and no id without a token is ever drawn, however likely the model finds it.
#[test]
fn placeholders_are_never_drawn() {
    let model = model("next_vicuna");
    let engine = Engine::new(&model, settings(1.0, 1.0), 0).unwrap();
    let vocab = model.config().text.vocab;
    let width = model.config().text.hidden;
    let hidden = Tensor::ones((1, width), DType::F32, &Device::Cpu).unwrap();
    let hidden = hidden.to_device(&common::place::device()).unwrap();
    let logits = engine.logits(&hidden).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(logits.len(), vocab);
    assert_eq!(logits[model.format.image_token().unwrap() as usize], f32::NEG_INFINITY);
    for (id, logit) in logits.iter().enumerate() {
        if model.format.tokenizer().token(id as u32).is_none() {
            assert_eq!(*logit, f32::NEG_INFINITY, "id {id}");
        }
    }
}

/// Four budgets bound every wave but those of a single attempt.
#[test]
fn waves_fit_the_token_budget() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = samples(dir.path(), 8);
    let model = model("llava15");
    let engine = Engine::new(&model, settings(0.5, 1.0), 0).unwrap();
    let costs: Vec<usize> = dataset
        .iter()
        .map(|sample| engine.prepare(Request { sample, attempt: 1, guided: true }).unwrap().cost())
        .collect();
    for range in waves(&costs, 100) {
        assert!(range.len() == 1 || costs[range.clone()].iter().sum::<usize>() <= 400);
    }
}

/// Questions answered many at a time are those answered one by one with the same engine, whatever the waves; questions about one
/// image share its features.
#[test]
fn answers_do_not_depend_on_the_waves() {
    let dir = tempfile::tempdir().unwrap();
    let data = samples(dir.path(), 3);
    let model = model("next_vicuna");
    let image = |i: usize| data[i].images.first().map(|image| image.name().to_owned());
    let question = |id: &str, image: Option<std::path::PathBuf>, text: &str| Question {
        id: id.into(),
        image,
        text: text.into(),
    };
    let questions = [
        question("a", image(0), "What is there?"),
        question("b", image(1), "Is there a bus?"),
        question("c", image(0), "What colour is it?"),
        question("d", None, "Name a colour."),
    ];
    let answers = |token_budget: usize, questions: &[Question]| {
        let answering = Answering { max_new_tokens: 12, token_budget, ..Answering::default() };
        let mut found = Vec::new();
        answer(&model, questions, answering, &(), |wave| {
            found.extend_from_slice(wave);
            Ok(())
        })
        .unwrap();
        found.sort_by_key(|answer: &bdhs::engine::Answer| answer.question);
        found
    };
    let together = answers(1 << 20, &questions);
    assert_eq!(together.iter().map(|a| a.question).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(answers(1, &questions), together);
    for (question, answer) in questions.iter().zip(&together) {
        let alone = &answers(1, std::slice::from_ref(question))[0];
        assert_eq!((&alone.text, alone.stop), (&answer.text, answer.stop), "{}", question.id);
        assert!(answer.tokens <= 12);
    }
    // The image matters: without it another answer comes out of the same question.
    let blind = answers(1, &[question("a", None, "What is there?")]);
    assert_ne!(blind[0].text, together[0].text);
}

/// The default sweep's first scenes, round by round as a run goes, each wave in the arena of the
/// last: on a GPU nearly all decode steps are launches of a captured graph.
#[test]
fn decode_steps_are_replayed() {
    let config = bdhs::config::demo();
    let options = DatasetOptions { limit: Some(12), ..DatasetOptions::default() };
    let file = embedded::resolve(&config.data.file.0[0]).unwrap();
    let samples = Dataset::open(&file, &options).unwrap().read(0..12).unwrap();
    let folder = embedded::resolve(&config.model.path).unwrap();
    let model = Model::load(folder, &common::place::device(), DType::F32).unwrap();
    let (mut arena, mut images) = (None, Images::new(1 << 28));
    let (mut steps, mut decoded, mut replays) = ([0; 4], [0; 4], 0);
    for attempt in attempts(&config.sampling) {
        let mut engine = Engine::new(&model, config.sampling.clone(), 0)
            .unwrap()
            .with_slots(600)
            .with_arena(arena.take());
        let request = |sample| Request { sample, attempt: attempt.number, guided: attempt.guided };
        let prepared: Vec<Prepared> =
            samples.iter().map(|sample| engine.prepare(request(sample)).unwrap()).collect();
        let costs: Vec<usize> = prepared.iter().map(Prepared::cost).collect();
        for range in waves(&costs, 600) {
            engine.generate(&prepared[range], &mut images, &()).unwrap();
        }
        let work = engine.work();
        assert!(work.prefilled > 0);
        replays += work.replays;
        (0..4).for_each(|class| {
            steps[class] += work.steps[class];
            decoded[class] += work.decoded[class];
        });
        arena = engine.into_arena();
    }
    let all: u64 = steps.iter().sum();
    println!(
        "steps of 1, 2-7, 8-31, 32+ rows: {steps:?}, rows {decoded:?}; {replays} of {all} steps replayed"
    );
    match model.language.device().is_cpu() {
        true => assert_eq!(replays, 0),
        false => assert!(100 * replays >= 85 * all, "{replays} of {all}"),
    }
}
