//! The eight benchmarks of the scene world, as files in the formats of the real ones: `bdhs demo benchmarks`.
//!
//! Scenes are of the evaluation split and of another seed than those of the sweep; the same can be had of the selection split, to
//! choose settings by. What is asked is what the demo LLaVA was
//! trained to answer, so the numbers say how the tool works and what hiding the image does, and nothing about real models.
//!
//! | folder | form | asks |
//! |---|---|---|
//! | `pope` | POPE's label files | is there a shape, with [`Negative`]s of all three kinds |
//! | `gqa` | GQA's question file | colours, places, shapes, counts, sizes in a word or two |
//! | `vqat` | TextVQA's annotations | the letter |
//! | `recall-coco` | object list and synonyms | descriptions |
//! | `mmhal` | MMHal-Bench's template | questions of its eight types, for text and vision judges |
//! | `llavaw` | LLaVA-Bench's files | conversation, detail, complex |
//! | `mmvet` | MM-Vet's file | answers with `<AND>` and `<OR>`, by capability |
//!
//! The judged sets are for [`super::judge`], which knows the scenes.

use std::path::Path;

use image::RgbImage;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::draw::{picture, save};
use super::questions::{Kind, Negative, Question, ask, exists, probes};
use super::scene::{Dice, Object, Scene, Shape, Split};
use super::words::{describe, noun, place};
use super::{DESCRIBE, folder};
use crate::{Result, files::write_file};

/// Seed of the scenes.
pub const SEED: u64 = 3;
/// Scenes, and captions of Recall_coco.
pub const SCENES: u32 = 160;
/// Items of MMHal-Bench, as in the real one.
const MMHAL: usize = 96;
/// Questions of LLaVA-Bench, as in the real one.
const LLAVAW: usize = 60;
/// Questions of MM-Vet.
const MMVET: usize = 60;

/// The scenes of a split's benchmarks, in order.
pub fn scenes(split: Split) -> Vec<Scene> {
    (0..SCENES).map(|index| Scene::sample(SEED, split, index)).collect()
}

/// The picture of one of them.
pub fn image(split: Split, scene: usize) -> RgbImage {
    picture(SEED, split, scene as u32)
}

/// Everything that can be known of a scene, one entry a thing: MMHal-Bench's `image_content`.
pub fn contents(scene: &Scene) -> Vec<String> {
    let object =
        |object: &Object| format!("{} {}", noun(object, Some(object.size)), place(object.cell));
    let mut all: Vec<String> = scene.objects.iter().map(object).collect();
    all.push(format!("a {} background", scene.background.name()));
    all.push(match scene.letter {
        Some(letter) => format!("the letter {} {}", letter.character, place(letter.cell)),
        None => "no letter".to_owned(),
    });
    all
}

/// The same in a sentence: LLaVA-Bench's context.
pub fn caption(scene: &Scene) -> String {
    format!("The picture shows {}.", contents(scene).join(", "))
}

/// Writes all benchmarks: a folder for each, and `images`.
///
/// # Errors
/// The folder cannot be written.
pub fn write(dir: &Path, split: Split) -> Result<()> {
    folder::create(&dir.join("images"))?;
    (0..SCENES as usize)
        .into_par_iter()
        .try_for_each(|i| save(&image(split, i), &dir.join("images").join(image_name(i))))?;
    for (name, text) in files(split) {
        let path = dir.join(name);
        folder::create(path.parent().unwrap_or(dir))?;
        write_file(&path, text.as_bytes())?;
    }
    Ok(())
}

/// Every file but the pictures: path in the folder, content.
pub fn files(split: Split) -> Vec<(String, String)> {
    let scenes = scenes(split);
    let mut files = Files(Vec::new());
    pope(&mut files, &scenes);
    gqa(&mut files, &scenes);
    vqat(&mut files, &scenes);
    recall_coco(&mut files, &scenes);
    mmhal(&mut files, &scenes);
    llavaw(&mut files, &scenes);
    mmvet(&mut files, &scenes);
    files.0
}

struct Files(Vec<(String, String)>);

impl Files {
    fn text(&mut self, name: &str, text: String) {
        self.0.push((name.to_owned(), text));
    }

    fn document(&mut self, name: &str, value: &Value) {
        self.text(name, format!("{value:#}\n"));
    }

    fn lines(&mut self, name: &str, rows: impl IntoIterator<Item = Value>) {
        self.text(name, rows.into_iter().map(|row| format!("{row}\n")).collect());
    }
}

fn image_name(scene: usize) -> String {
    format!("{scene:05}.png")
}

/// Dice of a scene for one benchmark.
fn dice(scene: usize, purpose: u32) -> Dice {
    Dice::new(SEED, Split::Eval, scene as u32).fork(purpose)
}

fn pope(files: &mut Files, scenes: &[Scene]) {
    for &negative in Negative::ALL {
        let probes = probes(scenes, negative, &mut dice(0, 0x410));
        let rows = probes.into_iter().zip(1..).map(|((scene, question), id)| {
            json!({
                "question_id": id,
                "image": image_name(scene),
                "text": question.text,
                "label": question.answer.to_lowercase(),
            })
        });
        files.lines(&format!("pope/coco_pope_{}.json", negative.name()), rows);
    }
}

/// GQA's structural and semantic type of a question.
fn types(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Colour => ("query", "attr"),
        Kind::Where => ("query", "rel"),
        Kind::WhatIsAt => ("query", "obj"),
        Kind::HowMany => ("query", "global"),
        Kind::Size => ("choose", "attr"),
        Kind::IsColour => ("verify", "attr"),
        Kind::Exists => ("verify", "obj"),
        Kind::Letter => ("query", "text"),
    }
}

fn gqa(files: &mut Files, scenes: &[Scene]) {
    const KINDS: [Kind; 6] =
        [Kind::Colour, Kind::Where, Kind::WhatIsAt, Kind::HowMany, Kind::Size, Kind::IsColour];
    let mut questions = Map::new();
    for (i, scene) in scenes.iter().enumerate() {
        let mut dice = dice(i, 0x420);
        for kind in KINDS {
            let Some(question) = ask(kind, scene, &mut dice) else { continue };
            let (structural, semantic) = types(kind);
            let entry = json!({
                "question": question.text,
                "answer": question.answer.to_lowercase(),
                "fullAnswer": question.long,
                "imageId": format!("{i:05}"),
                "isBalanced": true,
                "types": {"structural": structural, "semantic": semantic, "detailed": kind.name()},
            });
            questions.insert(format!("{:08}", questions.len()), entry);
        }
    }
    files.document("gqa/testdev_balanced_questions.json", &questions.into());
}

/// Ten people read the letter; two of them write it in another way.
fn vqat(files: &mut Files, scenes: &[Scene]) {
    let mut data: Vec<Value> = Vec::new();
    for (i, scene) in scenes.iter().enumerate() {
        let Some(question) = ask(Kind::Letter, scene, &mut dice(i, 0x430)) else { continue };
        let mut answers = vec![question.answer.clone(); 8];
        answers.push(question.answer.to_lowercase());
        answers.push(format!("the letter {}", question.answer));
        data.push(json!({
            "question_id": data.len(),
            "image_id": format!("{i:05}"),
            "question": question.text,
            "answers": answers,
        }));
    }
    let document = json!({"dataset_type": "val", "data": data});
    files.document("vqat/TextVQA_0.5.1_val.json", &document);
}

fn recall_coco(files: &mut Files, scenes: &[Scene]) {
    let mut objects = Map::new();
    for (i, scene) in scenes.iter().enumerate() {
        let shapes: Vec<&str> = scene.objects.iter().map(|object| object.shape.name()).collect();
        objects.insert(format!("{i:05}"), json!(shapes));
    }
    files.document("recall-coco/gt_objects.json", &objects.into());
    let rows = (0..scenes.len()).map(|i| {
        let question = *dice(i, 0x440).pick(&DESCRIBE);
        json!({"image_id": format!("{i:05}"), "question": question, "image": image_name(i)})
    });
    files.lines("recall-coco/questions.jsonl", rows);
    // `cros` is what the suffix rules leave of `cross`.
    let line = |shape: &Shape| match shape {
        Shape::Cross => "cross, cros\n".to_owned(),
        shape => format!("{}\n", shape.name()),
    };
    files.text("recall-coco/synonyms.txt", Shape::ALL.iter().map(line).collect());
}

/// A question of each of MMHal-Bench's types, and its long answer. `None` where the scene cannot be asked.
fn tempting(kind: usize, scene: &Scene, dice: &mut Dice) -> Option<Question> {
    match kind {
        0 => ask(Kind::Colour, scene, dice),
        1 => Some(exists(scene, Negative::Adversarial.choose(scene, dice))),
        2 => ask(Kind::Size, scene, dice),
        3 => ask(Kind::HowMany, scene, dice),
        4 => ask(Kind::Where, scene, dice),
        5 => ask(Kind::WhatIsAt, scene, dice),
        6 => Some(description(scene, dice)),
        _ => ask(Kind::Letter, scene, dice),
    }
}

/// The request for a description, as a question.
fn description(scene: &Scene, dice: &mut Dice) -> Question {
    let text = (*dice.pick(&DESCRIBE)).to_owned();
    let long = describe(scene, dice);
    Question { kind: Kind::WhatIsAt, text, answer: long.clone(), long, negative: None }
}

/// `count` questions from successive scenes; `make` is asked for the k-th until a scene fits.
fn from_scenes(
    scenes: &[Scene],
    count: usize,
    purpose: u32,
    make: impl Fn(usize, &Scene, &mut Dice) -> Option<Question>,
) -> Vec<(usize, Question)> {
    let mut found = Vec::new();
    for place in 0.. {
        let i = place % scenes.len();
        let mut dice = dice(i, purpose + (place / scenes.len()) as u32);
        found.extend(make(found.len(), &scenes[i], &mut dice).map(|question| (i, question)));
        if found.len() >= count || place > 100 * count {
            break;
        }
    }
    found
}

fn mmhal(files: &mut Files, scenes: &[Scene]) {
    use crate::eval::mmhal::TYPES;
    let asked =
        from_scenes(scenes, MMHAL, 0x450, |k, scene, dice| tempting(k % TYPES.len(), scene, dice));
    let items: Vec<Value> = asked
        .into_iter()
        .enumerate()
        .map(|(k, (i, question))| {
            json!({
                "question_type": TYPES[k % TYPES.len()],
                "question_topic": "scene",
                "image_id": format!("{i:05}"),
                "image_src": image_name(i),
                "image_content": contents(&scenes[i]),
                "question": question.text,
                "gt_answer": question.long,
                "model_answer": "",
            })
        })
        .collect();
    files.document("mmhal/response_template.json", &json!(items));
}

fn llavaw(files: &mut Files, scenes: &[Scene]) {
    const CONVERSATION: [Kind; 4] = [Kind::Colour, Kind::Where, Kind::WhatIsAt, Kind::Letter];
    const COMPLEX: [Kind; 3] = [Kind::HowMany, Kind::IsColour, Kind::Exists];
    const CATEGORIES: [&str; 3] = ["conv", "detail", "complex"];
    let asked = from_scenes(scenes, LLAVAW, 0x460, |k, scene, dice| match k % 3 {
        0 => ask(CONVERSATION[k / 3 % CONVERSATION.len()], scene, dice),
        1 => Some(description(scene, dice)),
        _ => ask(COMPLEX[k / 3 % COMPLEX.len()], scene, dice),
    });
    let mut context: Vec<usize> = asked.iter().map(|(i, _)| *i).collect();
    context.sort_unstable();
    context.dedup();
    let row = |(id, i): (usize, usize)| json!({"id": id, "image": image_name(i), "caption": caption(&scenes[i])});
    files.lines("llavaw/context.jsonl", context.into_iter().enumerate().map(row));
    let question = |(k, (i, question)): (usize, &(usize, Question))| {
        let category = CATEGORIES[k % CATEGORIES.len()];
        json!({"question_id": k, "image": image_name(*i), "text": question.text, "category": category})
    };
    files.lines("llavaw/questions.jsonl", asked.iter().enumerate().map(question));
    let reference = |(k, (_, question)): (usize, &(usize, Question))| {
        json!({
            "question_id": k, "prompt": question.text, "answer_id": k.to_string(),
            "model_id": "scene", "text": question.long,
        })
    };
    files.lines("llavaw/answers_gpt4.jsonl", asked.iter().enumerate().map(reference));
}

/// MM-Vet's capabilities of a question; a description needs several.
fn capabilities(kind: Option<Kind>) -> &'static [&'static str] {
    match kind {
        None => &["rec", "gen"],
        Some(Kind::Letter) => &["ocr"],
        Some(Kind::HowMany) => &["rec", "math"],
        Some(Kind::Where | Kind::WhatIsAt) => &["rec", "spat"],
        Some(_) => &["rec"],
    }
}

fn mmvet(files: &mut Files, scenes: &[Scene]) {
    const KINDS: [Option<Kind>; 6] = [
        Some(Kind::Colour),
        Some(Kind::Letter),
        None,
        Some(Kind::HowMany),
        Some(Kind::Where),
        Some(Kind::WhatIsAt),
    ];
    let asked = from_scenes(scenes, MMVET, 0x470, |k, scene, dice| match KINDS[k % KINDS.len()] {
        Some(kind) => ask(kind, scene, dice),
        None => {
            let mut question = description(scene, dice);
            let parts: Vec<String> = scene
                .objects
                .iter()
                .map(|object| format!("{} {}", object.colour.name(), object.shape.name()))
                .collect();
            question.answer = parts.join("<AND>");
            Some(question)
        }
    });
    let mut items = Map::new();
    for (k, (i, question)) in asked.into_iter().enumerate() {
        // A count may be given as a word or as a figure.
        let answer = match KINDS[k % KINDS.len()] {
            Some(Kind::HowMany) => {
                format!("{}<OR>{}", question.answer, scenes[i].objects.len())
            }
            _ => question.answer,
        };
        let entry = json!({
            "imagename": image_name(i),
            "question": question.text,
            "answer": answer,
            "capability": capabilities(KINDS[k % KINDS.len()]),
            "imagesource": "scene",
        });
        items.insert(format!("v1_{k}"), entry);
    }
    files.document("mmvet/mm-vet.json", &items.into());
}
