//! Questions about one image share its prefill: what is computed, and that nobody can tell by the
//! answers.

use std::{
    cell::RefCell,
    collections::HashMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bdhs::{
    data::Sample,
    demo::{benchmarks, embedded::resolve, folder, scene::Split},
    engine::{Answer, Answerer, Answering, Engine, Images, Progress, Question, Request, Work},
    eval::{
        Files, Settings,
        answer::{Folders, answer_items},
        metric,
    },
    models::{Model, Role, Source, Turn},
    sampling::SamplingConfig,
};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::common;

fn load(folder: &Path) -> Model {
    Model::load(folder, &common::place::device(), DType::F32).expect("a checkpoint")
}

/// The tiny LLaVA-1.5 with as many image tokens as the real one has: 24 x 24 patches.
fn large(dir: &Path) -> Model {
    let golden = common::golden("llava/llava15");
    for entry in std::fs::read_dir(&golden).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
    }
    let side = 24 * 7;
    let change = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = dir.join(name);
        let mut value: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
    };
    change("config.json", &|config| {
        config["vision_config"]["image_size"] = side.into();
        config["image_seq_length"] = 576.into();
    });
    change("preprocessor_config.json", &|config| {
        for (field, sides) in
            [("size", ["shortest_edge"].as_slice()), ("crop_size", &["height", "width"])]
        {
            sides.iter().for_each(|name| config[field][name] = side.into());
        }
    });
    let file = dir.join("model.safetensors");
    let mut tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    for (name, tensor) in &mut tensors {
        if name.ends_with("position_embedding.weight") {
            let width = tensor.dim(1).unwrap();
            let values = (0..577 * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 400.0).collect();
            *tensor = Tensor::from_vec(values, (577, width), &Device::Cpu).unwrap();
        }
    }
    std::fs::remove_file(&file).unwrap();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    load(dir)
}

/// What is drawn on the pictures is not what matters here.
fn pictures(dir: &Path, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|i| {
            let path = dir.join(format!("{i}.png"));
            common::picture(40 + i as u32 % 9, 30, i as u32).save(&path).unwrap();
            path
        })
        .collect()
}

const NOUNS: [&str; 8] = ["bus", "dog", "cup", "boat", "cat", "train", "bench", "kettle"];

/// Questions whose prompts differ, in an order in which those about one image do not stand
/// together: question j of every image, then question j + 1. (The tiny tokenizer makes three times
/// as many tokens of a word as Vicuna's, so they are short.)
fn questions(pictures: &[PathBuf], each: usize) -> Vec<Question> {
    let of = |j: usize, image: &PathBuf| Question {
        id: format!("{}-{j}", image.display()),
        image: Some(image.clone()),
        text: format!("Is a {} {}?", NOUNS[j % 8], ["red", "there", "old", "wet"][j / 8]),
    };
    (0..each).flat_map(|j| pictures.iter().map(move |image| of(j, image))).collect()
}

fn ask(
    model: &Model,
    questions: &[Question],
    token_budget: usize,
    open: &dyn Fn(usize) -> bool,
) -> (Vec<Answer>, Work) {
    let answering = Answering { max_new_tokens: 6, token_budget, ..Answering::default() };
    let mut images = Images::new(1 << 28);
    let mut found = Vec::new();
    let answerer = Answerer { model, answering, images: &mut images };
    let work = answerer
        .answer(questions, open, &(), |answers| {
            found.extend_from_slice(answers);
            Ok(())
        })
        .unwrap();
    assert!(images.computed() > 0);
    found.sort_by_key(|answer: &Answer| answer.question);
    (found, work)
}

/// The rows of a prefill a question.
fn alone(model: &Model, questions: &[Question]) -> u64 {
    let engine =
        Engine::new(model, SamplingConfig { rho: 0.0, ..SamplingConfig::default() }, 0).unwrap();
    let limit = SamplingConfig::default().max_response_tokens as usize;
    questions
        .iter()
        .map(|question| {
            let turns =
                vec![Turn { role: Role::User, text: format!("<image>\n{}", question.text) }];
            let sample = Sample {
                index: 0,
                id: question.id.clone(),
                images: question.image.iter().cloned().map(Into::into).collect(),
                turns,
                reference: String::new(),
                rejected: None,
                source_rejected: None,
                flags: Vec::new(),
                row: 1,
                place: "line 1".into(),
            };
            let request = Request { sample: &sample, attempt: 1, guided: false };
            (engine.prepare(request).unwrap().cost() - limit) as u64
        })
        .sum()
}

/// Prefilled rows of a shape before and after.
fn shape(images: usize, each: usize) {
    let dir = tempfile::tempdir().unwrap();
    let model = large(dir.path());
    let questions = questions(&pictures(dir.path(), images), each);
    let (answers, work) = ask(&model, &questions, usize::MAX, &|_| true);
    assert_eq!(answers.len(), questions.len());
    let before = alone(&model, &questions);
    println!(
        "{images} images x {each} questions: {before} rows prefilled a question at a time, {} together ({:.1} %)",
        work.prefilled,
        100.0 * work.prefilled as f64 / before as f64
    );
    assert!(work.prefilled * 10 <= before, "{} of {before}", work.prefilled);
    // Each alone has its whole prompt prefilled in one sequence.
    for i in (0..questions.len()).step_by(questions.len().div_ceil(120)) {
        let (one, work) = ask(&model, std::slice::from_ref(&questions[i]), 1, &|_| true);
        assert!(work.prefilled > 576);
        let same = Answer { question: i, ..one[0].clone() };
        assert_eq!(same, answers[i], "{}", questions[i].id);
    }
}

#[test]
fn few_rows_are_prefilled_for_many_questions() {
    // The shapes of POPE and of GQA, with fewer images.
    shape(4, 18);
    shape(3, 31);
}

#[test]
#[ignore = "minutes: POPE's 500 images x 18 questions and GQA's 398 x 31"]
fn few_rows_are_prefilled_for_the_questions_of_pope_and_gqa() {
    shape(500, 18);
    shape(398, 31);
}

/// Whatever the budget, whatever the order, and whatever is known already.
#[test]
fn answers_are_those_of_any_budget_order_and_rest() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(&common::golden("llava/next_vicuna"));
    let mut questions = questions(&pictures(dir.path(), 5), 9);
    let text = |text: &str| Question { id: text.into(), image: None, text: text.into() };
    questions.extend(["Name a colour.", "Name a boat.", "Is it noon?"].map(text));
    // One that is asked twice is computed once.
    questions.push(Question { id: "again".into(), ..questions[3].clone() });
    let (whole, most) = ask(&model, &questions, usize::MAX, &|_| true);
    assert_eq!(whole[3].text, whole[questions.len() - 1].text);
    for budget in [1, 60, 150, 400, 1200] {
        let (answers, work) = ask(&model, &questions, budget, &|_| true);
        assert_eq!(answers, whole, "budget {budget}");
        assert!(work.prefilled >= most.prefilled);
    }
    for keep in [2, 3, 7] {
        let (rest, work) = ask(&model, &questions, 150, &|i| i % keep == 0);
        let expected: Vec<Answer> =
            whole.iter().filter(|answer| answer.question % keep == 0).cloned().collect();
        assert_eq!(rest, expected, "every {keep}th is open");
        assert!(work.decoded.iter().sum::<u64>() < most.decoded.iter().sum::<u64>());
    }
    let order: Vec<usize> = (0..questions.len()).map(|i| i * 17 % questions.len()).collect();
    let shuffled: Vec<Question> = order.iter().map(|&i| questions[i].clone()).collect();
    for (answer, &i) in ask(&model, &shuffled, 200, &|_| true).0.iter().zip(&order) {
        assert_eq!(Answer { question: i, ..answer.clone() }, whole[i]);
    }
    let (answers, work) = ask(&model, &questions, 200, &|_| true);
    assert_eq!(answers, whole);
    let drawn: u64 =
        answers[..answers.len() - 1].iter().map(|answer| u64::from(answer.tokens)).sum();
    // The first token of an answer comes from the prefill.
    assert_eq!(work.decoded.iter().sum::<u64>(), drawn - (answers.len() as u64 - 1));
    assert!(work.steps.iter().zip(work.decoded).all(|(&steps, rows)| steps <= rows));
}

/// Features are those of the folder that tower and projector are from.
#[test]
fn models_with_one_tower_share_features() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) =
        (common::golden("llava/llava15"), common::golden("llava/adapter_llava15"));
    let questions = questions(&pictures(dir.path(), 4), 3);
    let open = |source: &Source| Model::open(source, &common::place::device(), DType::F32).unwrap();
    let models = [
        open(&Source::new(&base, None).unwrap()),
        open(&Source::new(&base, Some(&adapter)).unwrap()),
    ];
    let mut images = Images::new(1 << 28);
    let mut seen = Vec::new();
    for model in [&models[0], &models[0], &models[1], &models[0]] {
        let answering = Answering { max_new_tokens: 3, ..Answering::default() };
        let answerer = Answerer { model, answering, images: &mut images };
        answerer.answer(&questions, &|_| true, &(), |_| Ok(())).unwrap();
        seen.push(images.computed());
    }
    let own = models[1].vision_of() == adapter;
    let expected = if own { [4, 4, 8, 12] } else { [4, 4, 4, 4] };
    assert_eq!(seen, expected, "the adapter changes what an image becomes: {own}");
}

/// Stops after so many answers.
struct Stop {
    after: u64,
    seen: AtomicU64,
}

impl Progress for Stop {
    fn advance(&self, steps: u64) {
        self.seen.fetch_add(steps, Ordering::Relaxed);
    }

    fn stop_requested(&self) -> bool {
        self.seen.load(Ordering::Relaxed) >= self.after
    }
}

/// A run that was stopped, and whose last row was cut, leaves the bytes of one that was not: rows
/// in the benchmark's order.
#[test]
fn predictions_of_a_stopped_run_are_those_of_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    benchmarks::write(dir.path(), Split::Eval).unwrap();
    let model = load(&resolve(Path::new(folder::LLAVA)).unwrap());
    let metric = metric("pope").unwrap();
    let files = Files { folder: Some(dir.path().join("pope")), ..Files::default() };
    let features = RefCell::new(Images::new(1 << 28));
    let images = dir.path().join("images");
    let run = |out: &Path, progress: &dyn Progress| {
        std::fs::create_dir_all(out).unwrap();
        let folders = Folders { images: &images, out, features: &features };
        let answering = Answering { token_budget: 900, ..Answering::default() };
        answer_items(metric, &files, &Settings::default(), &model, folders, answering, progress)
    };
    let whole = run(&dir.path().join("whole"), &()).unwrap();
    let whole = std::fs::read_to_string(whole).unwrap();
    let benchmark = metric.open(&files, &Settings::default()).unwrap();
    let ids: Vec<String> = whole
        .lines()
        .map(|row| {
            let row: Value = serde_json::from_str(row).unwrap();
            row["question_id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(ids, benchmark.items().iter().map(|item| item.id.clone()).collect::<Vec<_>>());
    let out = dir.path().join("stopped");
    let path = out.join("predictions.jsonl");
    for after in [1, 200, 400] {
        let stop = Stop { after, seen: AtomicU64::new(0) };
        assert!(run(&out, &stop).is_err());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() as u64 >= after && text.len() < whole.len());
        std::fs::write(&path, &text[..text.len() - 9]).unwrap();
    }
    assert_eq!(std::fs::read_to_string(run(&out, &()).unwrap()).unwrap(), whole);
}
