//! Answers to questions about images: greedy decoding of the whole image. Questions about one image
//! share its prefill, in whatever order they come: what all their prompts begin with is one
//! sequence, and each question forks from it.

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use super::{Engine, Flow, Images, Progress, Ticket, Work, prepare::together, vision::layouts};
use crate::{
    Result,
    data::{Picture, Sample},
    models::{IMAGE, Model, Role, Turn, memory},
    sampling::{Part, SamplingConfig, Stop},
};

/// Bytes of image features that are remembered by [`answer`].
const IMAGE_CACHE: usize = 1 << 30;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Name, for messages.
    pub id: String,
    /// Image file; none for a question without an image.
    pub image: Option<PathBuf>,
    /// The user's turn; the image comes before it.
    pub text: String,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answering {
    /// Most tokens of an answer.
    pub max_new_tokens: u32,
    /// Most key-value slots at a time. There are never more than half of the free memory holds
    /// ([`memory::slots_beside`]), or than one question needs.
    pub token_budget: usize,
    /// Probability that an image token is hidden: 0 = the whole image, 1 = no image. The same tokens are hidden from all
    /// questions about an image.
    pub rho: f64,
    /// Key of the draws of hidden tokens.
    pub seed: u64,
}

impl Default for Answering {
    fn default() -> Self {
        Self { max_new_tokens: 128, token_budget: usize::MAX, rho: 0.0, seed: 0 }
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Which question: its place in the list.
    pub question: usize,
    /// The text, without white space around it.
    pub text: String,
    /// Why it ended.
    pub stop: Stop,
    /// Tokens drawn.
    pub tokens: u32,
}

/// Passes on requests to stop, but not tokens: questions are what is counted.
struct Stops<'a>(&'a dyn Progress);

impl Progress for Stops<'_> {
    fn stop_requested(&self) -> bool {
        self.0.stop_requested()
    }

    fn warn(&self, message: &str) {
        self.0.warn(message);
    }
}

/// Answers all questions greedily. `done` gets the answers of some questions about one image as
/// soon as they are there, in the order in which they end and not that of the list, and may fail.
///
/// # Errors
/// An invalid setting, an unreadable image, a question too long for the model, failing tensor
/// operations, a requested stop, and what `done` returns.
pub fn answer(
    model: &Model,
    questions: &[Question],
    answering: Answering,
    progress: &dyn Progress,
    done: impl FnMut(&[Answer]) -> Result<()>,
) -> Result<Work> {
    let mut images = Images::new(IMAGE_CACHE);
    let answerer = Answerer { model, answering, images: &mut images };
    answerer.answer(questions, &|_| true, progress, done)
}

/// Answers several lists of questions with the same memory of images.
pub struct Answerer<'a> {
    /// The model.
    pub model: &'a Model,
    /// How.
    pub answering: Answering,
    /// Features of images that were seen before; also of other models ([`Images`]).
    pub images: &'a mut Images,
}

impl Answerer<'_> {
    /// As [`answer`], those questions that are `open`. The others say what the open ones share: so
    /// a list whose answers are partly known from an earlier run is answered as it was then.
    /// Returns what was computed.
    ///
    /// # Errors
    /// As [`answer`].
    pub fn answer(
        self,
        questions: &[Question],
        open: &dyn Fn(usize) -> bool,
        progress: &dyn Progress,
        mut done: impl FnMut(&[Answer]) -> Result<()>,
    ) -> Result<Work> {
        let Answering { max_new_tokens, token_budget, rho, seed } = self.answering;
        let config = SamplingConfig {
            rho,
            guidance: false,
            attempts: 1,
            temperature: 0.0,
            max_response_tokens: max_new_tokens,
            ..SamplingConfig::default()
        };
        config.validate()?;
        let groups = groups(questions, open);
        let count = groups.iter().flat_map(|group| &group.askers).map(Vec::len).sum::<usize>();
        progress.begin("answering", Some(count as u64));
        let budget = token_budget.min(memory::slots_beside(self.model)?).max(1);
        let mut engine = Engine::new(self.model, config, seed)?.with_slots(budget);
        let mut flow = Questions {
            groups: &groups,
            next: 0,
            budget,
            ready: VecDeque::new(),
            issued: Vec::new(),
            progress,
            done: &mut done,
        };
        engine.run(&mut flow, (budget, 0), self.images, &Stops(progress))?;
        Ok(engine.work())
    }
}

/// Questions about one image, each text once.
struct Group {
    samples: Vec<Sample>,
    /// For each sample, the open questions that ask it.
    askers: Vec<Vec<usize>>,
}

/// Questions by image, in the order of each image's first; none of an image without an open one.
/// Hidden tokens are drawn by the image's number among all.
fn groups(questions: &[Question], open: &dyn Fn(usize) -> bool) -> Vec<Group> {
    let mut known: HashMap<Option<&PathBuf>, usize> = HashMap::new();
    let mut texts: HashMap<(usize, &str), usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (i, question) in questions.iter().enumerate() {
        let number = *known.entry(question.image.as_ref()).or_insert(groups.len());
        if number == groups.len() {
            groups.push(Group { samples: Vec::new(), askers: Vec::new() });
        }
        let group = &mut groups[number];
        let place = *texts.entry((number, &question.text)).or_insert(group.samples.len());
        if place == group.samples.len() {
            group.samples.push(sample(question, number as u32, i + 1));
            group.askers.push(Vec::new());
        }
        if open(i) {
            group.askers[place].push(i);
        }
    }
    groups.retain(|group| group.askers.iter().any(|askers| !askers.is_empty()));
    groups
}

/// A question as a sample without a reference.
fn sample(question: &Question, index: u32, line: usize) -> Sample {
    let text = match &question.image {
        Some(_) => format!("{IMAGE}\n{}", question.text),
        None => question.text.clone(),
    };
    Sample {
        index,
        id: question.id.clone(),
        images: question.image.iter().cloned().map(Picture::from).collect(),
        turns: vec![Turn { role: Role::User, text }],
        reference: String::new(),
        rejected: None,
        source_rejected: None,
        flags: Vec::new(),
        row: line,
        place: format!("line {line}"),
    }
}

/// Groups on their way through the engine.
struct Questions<'g, 'd> {
    groups: &'g [Group],
    /// The next group to be laid out.
    next: usize,
    budget: usize,
    /// Of the last one, what has not been asked for.
    ready: VecDeque<Ticket<'g>>,
    /// For each ticket, the questions of its forks; by number.
    issued: Vec<Vec<&'g [usize]>>,
    progress: &'d dyn Progress,
    done: &'d mut dyn FnMut(&[Answer]) -> Result<()>,
}

impl<'g> Questions<'g, '_> {
    /// Lays out a group: as one attempt, or as several that share nothing, where one would not fit
    /// into the budget.
    fn lay_out(&mut self, engine: &Engine, group: &'g Group) -> Result<()> {
        let layouts = layouts(engine.model, &group.samples[0])?;
        let whole = together(engine.model, &engine.config, engine.seed, &group.samples, &layouts)?;
        let mut some = (Vec::new(), Vec::new());
        let mut cost = whole.entries.len();
        let mut parts = Vec::new();
        for (fork, askers) in whole.forks.iter().zip(&group.askers) {
            if askers.is_empty() {
                continue;
            }
            if !some.0.is_empty() && cost + fork.slots() > self.budget {
                parts.push(std::mem::take(&mut some));
                cost = whole.entries.len();
            }
            cost += fork.slots();
            some.0.push(fork.clone());
            some.1.push(askers.as_slice());
        }
        parts.push(some);
        for (forks, askers) in parts {
            let prepared = Arc::new(whole.with_forks(forks));
            self.ready.push_back(Ticket { id: self.issued.len(), prepared });
            self.issued.push(askers);
        }
        Ok(())
    }
}

impl<'g> Flow<'g> for Questions<'g, '_> {
    fn next(&mut self, engine: &Engine) -> Result<Option<Ticket<'g>>> {
        if self.ready.is_empty()
            && let Some(group) = self.groups.get(self.next)
        {
            self.next += 1;
            self.lay_out(engine, group)?;
        }
        Ok(self.ready.pop_front())
    }

    fn ended(&mut self, ticket: Ticket<'g>, parts: Vec<Part>) -> Result<()> {
        let askers = std::mem::take(&mut self.issued[ticket.id]);
        let mut answers: Vec<Answer> = Vec::new();
        for (part, askers) in parts.into_iter().zip(askers) {
            answers.extend(askers.iter().map(|&question| Answer {
                question,
                text: part.completion.clone(),
                stop: part.stop,
                tokens: part.tokens,
            }));
        }
        answers.sort_by_key(|answer| answer.question);
        (self.done)(&answers)?;
        self.progress.advance(answers.len() as u64);
        Ok(())
    }
}
