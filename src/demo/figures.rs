//! What a model sees and makes up in the scene world, with its image and without: `bdhs demo figures`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use comfy_table::{CellAlignment, Table, TableStyle};
use serde::{Deserialize, Serialize};

use super::draw::{picture, save};
use super::questions::{Negative, probes, questions};
use super::scene::{Dice, Scene, Shape, Split};
use super::words::mentions;
use super::{DESCRIBE, SHORT, folder};
use crate::Result;
use crate::engine::{Answering, Progress, Question, answer};
use crate::models::Model;

/// Figures at one rho.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Share of masked image tokens.
    pub rho: f64,
    /// Of the shapes that are there, the share that descriptions name.
    pub recall: f64,
    /// Of the shapes that descriptions name (once each), the share that is not there: CHAIR_i on this world's objects.
    pub hallucinated: f64,
    /// Accuracy on balanced yes/no questions, by how the absent shape was chosen.
    pub pope: BTreeMap<String, f64>,
    /// Accuracy of short answers.
    pub short: f64,
    /// The same by kind of question.
    pub short_by_kind: BTreeMap<String, f64>,
}

/// The document that `bdhs demo figures --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The model's folder name.
    pub model: String,
    /// Evaluation scenes.
    pub scenes: u32,
    /// One for each rho.
    pub rows: Vec<Row>,
}

/// A question to the model, and what counts it.
struct Item {
    scene: u32,
    question: String,
    count: Count,
}

enum Count {
    Description(Vec<Shape>),
    Probe(Negative, String),
    Short(&'static str, String),
}

/// Asks a model about `scenes` scenes of the evaluation split, greedily, at each rho. Pictures are kept in `work`.
///
/// # Errors
/// Those of the model and of the files.
pub fn figures(
    model: &Model,
    scenes: u32,
    rhos: &[f64],
    work: &Path,
    progress: &dyn Progress,
) -> Result<Figures> {
    const SEED: u64 = 2;
    folder::create(work)?;
    let (mut items, mut paths, mut worlds) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..scenes {
        let path = work.join(format!("{index:05}.png"));
        save(&picture(SEED, Split::Eval, index), &path)?;
        paths.push(path);
        let scene = Scene::sample(SEED, Split::Eval, index);
        items.extend(ask(index, &scene, SEED));
        worlds.push(scene);
    }
    for &negative in Negative::ALL {
        let mut dice = Dice::new(SEED, Split::Eval, 0).fork(0x401);
        for (scene, question) in probes(&worlds, negative, &mut dice) {
            let count = Count::Probe(negative, question.answer);
            items.push(Item { scene: scene as u32, question: short(&question.text), count });
        }
    }
    // Questions about one picture share its features.
    items.sort_by_key(|item| item.scene);
    let mut rows = Vec::new();
    for &rho in rhos {
        let answers = answers(model, &items, &paths, rho, progress)?;
        rows.push(count(rho, &items, &answers));
    }
    let name = model.dir().file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Figures { model: name, scenes, rows })
}

/// A question as short answers are asked for.
fn short(text: &str) -> String {
    format!("{text}\n{SHORT}")
}

fn ask(index: u32, scene: &Scene, seed: u64) -> Vec<Item> {
    let mut dice = Dice::new(seed, Split::Eval, index).fork(0x400);
    let item = |question: String, count| Item { scene: index, question, count };
    let shapes = scene.objects.iter().map(|object| object.shape).collect();
    let mut items = vec![item(DESCRIBE[0].to_owned(), Count::Description(shapes))];
    for question in questions(scene, &mut dice) {
        let count = Count::Short(question.kind.name(), question.answer);
        items.push(item(short(&question.text), count));
    }
    items
}

fn answers(
    model: &Model,
    items: &[Item],
    paths: &[PathBuf],
    rho: f64,
    progress: &dyn Progress,
) -> Result<Vec<String>> {
    let questions: Vec<Question> = items
        .iter()
        .enumerate()
        .map(|(i, item)| Question {
            id: i.to_string(),
            image: Some(paths[item.scene as usize].clone()),
            text: item.question.clone(),
        })
        .collect();
    let answering = Answering { max_new_tokens: 96, rho, ..Answering::default() };
    let mut texts = vec![String::new(); items.len()];
    answer(model, &questions, answering, progress, |answers| {
        for answer in answers {
            texts[answer.question].clone_from(&answer.text);
        }
        Ok(())
    })?;
    Ok(texts)
}

/// How many of how many.
#[derive(Default)]
struct Share(u32, u32);

impl Share {
    fn add(&mut self, right: bool) {
        self.0 += u32::from(right);
        self.1 += 1;
    }

    fn value(&self) -> f64 {
        f64::from(self.0) / f64::from(self.1.max(1))
    }
}

fn count(rho: f64, items: &[Item], answers: &[String]) -> Row {
    let (mut recall, mut hallucinated, mut short) =
        (Share::default(), Share::default(), Share::default());
    let mut by_negative: BTreeMap<String, Share> = BTreeMap::new();
    let mut by_kind: BTreeMap<String, Share> = BTreeMap::new();
    for (item, answer) in items.iter().zip(answers) {
        let given = answer.trim();
        match &item.count {
            Count::Description(shapes) => {
                let named = mentions(answer);
                shapes.iter().for_each(|shape| recall.add(named.contains(shape)));
                named.iter().for_each(|shape| hallucinated.add(!shapes.contains(shape)));
            }
            Count::Probe(negative, right) => {
                by_negative.entry(negative.name().to_owned()).or_default().add(given == right);
            }
            Count::Short(kind, right) => {
                short.add(given == right);
                by_kind.entry((*kind).to_owned()).or_default().add(given == right);
            }
        }
    }
    let values = |shares: BTreeMap<String, Share>| {
        shares.into_iter().map(|(name, share)| (name, share.value())).collect()
    };
    Row {
        rho,
        recall: recall.value(),
        hallucinated: hallucinated.value(),
        pope: values(by_negative),
        short: short.value(),
        short_by_kind: values(by_kind),
    }
}

impl Figures {
    /// A table, one column for each rho.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(TableStyle::new());
        let header = self.rows.iter().map(|row| format!("rho {}", row.rho));
        table.set_header(std::iter::once(String::new()).chain(header));
        let mut put = |name: &str, value: &dyn Fn(&Row) -> Option<f64>| {
            let values = self
                .rows
                .iter()
                .map(|row| value(row).map_or("-".to_owned(), |value| format!("{value:.3}")));
            table.add_row(std::iter::once(name.to_owned()).chain(values));
        };
        put("shapes recalled", &|row| Some(row.recall));
        put("shapes made up (CHAIR_i)", &|row| Some(row.hallucinated));
        for negative in Negative::ALL {
            let name = negative.name();
            put(&format!("yes/no, {name}"), &|row| row.pope.get(name).copied());
        }
        put("short answers", &|row| Some(row.short));
        let kinds: Vec<&String> =
            self.rows.first().map(|row| row.short_by_kind.keys().collect()).unwrap_or_default();
        for kind in kinds {
            put(&format!("  {kind}"), &|row| row.short_by_kind.get(kind).copied());
        }
        for column in 1..=self.rows.len() {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{}, {} scenes\n{table}\n", self.model, self.scenes)
    }
}
