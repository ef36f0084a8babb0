//! From a pair to token rows: what its answers share is computed once.
//!
//! ```text
//! shared   prompt, image tokens, and the answers' own tokens up to where they part
//! tails    what each answer adds, the end-of-sequence token last
//! ```

use candle_core::Tensor;

use super::pairs::Pair;
use super::settings::{Loss, Settings, Tokens};
use crate::engine::{Entry, entries, places};
use crate::models::{ImageLayout, Model, Place};
use crate::ops::attend::{AttendPlan, Block, Segment};
use crate::{Error, Result};

/// What a pair that is too long needs too many of.
pub(super) const POSITIONS: &str = "positions for images, prompt and answer";

/// A pair's token sequences. With the supervised loss, the chosen answer alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// Places that all answers share.
    pub(crate) shared: Vec<Entry>,
    /// What each answer adds: chosen, rejected.
    pub(crate) tails: Vec<Vec<u32>>,
    /// Place of each answer's first token, over shared places and tail.
    pub(crate) firsts: Vec<usize>,
    /// The positions of the shared places, and that of each tail's first token.
    pub(crate) positions: Vec<Place>,
}

impl Sequences {
    /// Encodes a pair, with the model's end-of-sequence token behind each answer. `layouts` are those of the pair's images.
    ///
    /// # Errors
    /// A prompt that the template refuses; more places than the model has positions.
    pub fn new(
        model: &Model,
        pair: &Pair,
        layouts: &[ImageLayout],
        settings: &Settings,
    ) -> Result<Self> {
        let image_tokens: Vec<usize> = layouts.iter().map(|layout| layout.tokens).collect();
        let image_tokens = image_tokens.as_slice();
        let refuse = |message: String| {
            Error::invalid("", &pair.place, format!("pair {:?} has {message}", pair.id))
        };
        let prompt = model.prompt(&pair.turns)?;
        let end = model.format.eos_ids().first().copied();
        let answers = match settings.loss {
            Loss::Sft => vec![&pair.chosen],
            Loss::Sigmoid | Loss::Ipo => vec![&pair.chosen, &pair.rejected],
        };
        let (mut all, mut firsts) = (Vec::new(), Vec::new());
        for answer in answers {
            let lacking = |images| {
                refuse(format!("{images} images in its prompt, but {} files", image_tokens.len()))
            };
            let mut places = match settings.tokenisation {
                Tokens::Whole => {
                    let text = prompt.with_answer(answer);
                    let encoded = model.format.encode_with_offsets(&text)?;
                    // One offset for each token and each image: places before the first that reaches into the answer's part.
                    let offsets = encoded.offsets.iter();
                    let before = offsets.take_while(|(_, end)| *end <= prompt.text.len()).count();
                    let extra: usize =
                        image_tokens.iter().map(|tokens| tokens.saturating_sub(1)).sum();
                    firsts.push(before + extra);
                    entries(&encoded.pieces, image_tokens).map_err(lacking)?
                }
                Tokens::Trl => {
                    let format = &model.format;
                    let pieces = format.encode_bare(&prompt.text)?.pieces;
                    let mut places = entries(&pieces, image_tokens).map_err(lacking)?;
                    firsts.push(places.len());
                    let answer = format!("{}{answer}", prompt.separator);
                    let pieces = format.encode_bare(&answer)?.pieces;
                    places.extend(entries(&pieces, &[]).map_err(lacking)?);
                    places
                }
            };
            places.extend(end.map(Entry::Token));
            all.push(places);
        }
        let this = Self::split(all, firsts, layouts);
        let (needed, most) = (this.longest(), model.config().text.max_positions);
        if needed > most {
            return Err(refuse(format!("{needed} {POSITIONS}, but the model has {most}")));
        }
        Ok(this)
    }

    /// From whole sequences and the places of their first answer tokens.
    pub(crate) fn split(all: Vec<Vec<Entry>>, firsts: Vec<usize>, layouts: &[ImageLayout]) -> Self {
        let alike = |i: usize| all.iter().all(|one| one.get(i).is_some_and(|e| *e == all[0][i]));
        let shortest = all.iter().map(Vec::len).min().unwrap_or(0);
        // A lone answer parts from nothing; its prompt is as good a place to split as any.
        let most = if all.len() == 1 { firsts[0].min(shortest) } else { shortest };
        let shared = (0..most).take_while(|&i| alike(i)).count();
        let token = |entry: &Entry| match entry {
            Entry::Token(id) => Some(*id),
            Entry::Image(_) => None,
        };
        let tails = all.iter().map(|one| one[shared..].iter().filter_map(token).collect());
        let positions = places(&all[0][..shared], layouts);
        Self { tails: tails.collect(), shared: all[0][..shared].to_vec(), firsts, positions }
    }

    /// Rows that are computed: an answer's last token predicts nothing.
    pub fn rows(&self) -> usize {
        self.shared.len()
            + self.tails.iter().map(|tail| tail.len().saturating_sub(1)).sum::<usize>()
    }

    /// Tokens of each answer, its end included.
    pub fn tokens(&self) -> Vec<usize> {
        let tails = self.tails.iter().zip(&self.firsts);
        tails.map(|(tail, first)| (self.shared.len() + tail.len()).saturating_sub(*first)).collect()
    }

    /// The position where the tails begin.
    fn next(&self) -> u32 {
        self.positions.last().map_or(0, |place| place.0[0])
    }

    fn longest(&self) -> usize {
        self.next() as usize + self.tails.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// How the tokens of a pair's images are laid out, from their headers.
pub(super) fn layouts(model: &Model, pair: &Pair) -> Result<Vec<ImageLayout>> {
    let turned = model.turns_pictures();
    let sizes = pair.images.iter().map(|picture| picture.dimensions_as(turned));
    model.layouts(&sizes.collect::<Result<Vec<_>>>()?)
}

/// A token that is predicted: by which row, and for which answer of the batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub row: u32,
    pub token: u32,
    /// Counted over all answers of all pairs.
    pub answer: usize,
}

/// The rows of some pairs in one pass.
#[derive(Default)]
pub(super) struct Packed {
    /// Where each row's input is: image rows of all pairs, then text rows.
    pub order: Vec<u32>,
    pub ids: Vec<u32>,
    pub positions: Vec<Place>,
    pub plan: AttendPlan,
    pub targets: Vec<Target>,
    pub answers: usize,
    images: usize,
}

impl Packed {
    /// Packs pairs whose images have so many tokens in all, one number a pair.
    pub fn new(pairs: &[(&Sequences, usize)]) -> Self {
        let mut this =
            Self { images: pairs.iter().map(|(_, tokens)| tokens).sum(), ..Self::default() };
        let mut first = 0;
        for (pair, tokens) in pairs {
            this.add(pair, first);
            first += tokens;
        }
        this
    }

    /// The input rows, of the pairs' image rows one after another and the text rows.
    pub fn input(&self, images: &[Tensor], text: &Tensor) -> Result<Tensor> {
        let mut parts: Vec<&Tensor> = images.iter().collect();
        parts.push(text);
        let order = Tensor::new(self.order.as_slice(), text.device())?;
        Ok(Tensor::cat(&parts, 0)?.index_select(&order, 0)?)
    }

    fn place(&mut self, entry: Entry, position: Place, first: usize) {
        match entry {
            Entry::Image(i) => self.order.push((first + i as usize) as u32),
            Entry::Token(id) => {
                self.order.push((self.images + self.ids.len()) as u32);
                self.ids.push(id);
            }
        }
        self.positions.push(position);
    }

    fn add(&mut self, pair: &Sequences, first: usize) {
        let start = self.order.len();
        for (&position, &entry) in pair.positions.iter().zip(&pair.shared) {
            self.place(entry, position, first);
        }
        let shared = Segment { start, len: pair.shared.len() };
        self.plan.blocks.push(Block {
            rows: start..self.order.len(),
            keys: vec![shared],
            causal: true,
        });
        for (tail, &begins) in pair.tails.iter().zip(&pair.firsts) {
            let own = self.order.len();
            let computed = &tail[..tail.len().saturating_sub(1)];
            for (i, &id) in computed.iter().enumerate() {
                self.place(Entry::Token(id), Place::from(pair.next() + i as u32), first);
            }
            let segment = Segment { start: own, len: computed.len() };
            let rows = own..self.order.len();
            self.plan.blocks.push(Block { rows, keys: vec![shared, segment], causal: true });
            let places = pair.shared.len() + tail.len();
            for place in begins.max(1)..places {
                let row_of = |place: usize| match place.checked_sub(pair.shared.len()) {
                    None => start + place,
                    Some(i) => own + i,
                };
                let token = match place.checked_sub(pair.shared.len()) {
                    Some(i) => tail[i],
                    None => match pair.shared[place] {
                        Entry::Token(id) => id,
                        Entry::Image(_) => continue,
                    },
                };
                let row = row_of(place - 1) as u32;
                self.targets.push(Target { row, token, answer: self.answers });
            }
            self.answers += 1;
        }
    }
}
