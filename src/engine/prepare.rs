//! From a sample to the tokens that are computed: what is prefilled, and where each sentence forks.

use crate::{
    Error, Result,
    data::Sample,
    models::{ImageLayout, Model, Piece, Place, Prompt},
    ops::philox::Draws,
    sampling::{
        Fragment, Positions, SamplingConfig,
        corruption::{MaskRequest, join_layouts, visible_tokens},
        cuts::cut,
    },
};

/// One attempt at one sample.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The sample.
    pub sample: &'a Sample,
    /// Attempt number, from 1.
    pub attempt: u32,
    /// Complete the reference's sentences, or write one free response.
    pub guided: bool,
}

/// An attempt, ready to be computed: everything that needs no network.
#[derive(Clone, Debug)]
pub struct Prepared<'a> {
    pub(super) request: Request<'a>,
    /// How the tokens of each image are laid out, before masking.
    pub(super) layouts: Vec<ImageLayout>,
    /// Image tokens that stay, ascending, counted over all images.
    pub(super) kept: Vec<u32>,
    /// The prefill: prompt, kept image tokens, reference up to the last fork.
    pub(super) entries: Vec<Entry>,
    /// Position of each entry.
    pub(super) positions: Vec<Place>,
    /// One row to decode for each sentence; one in all where unguided.
    pub(super) forks: Vec<Fork>,
}

/// One place of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A text token.
    Token(u32),
    /// An image token, counted over all images of the prompt.
    Image(u32),
}

/// A sentence to complete: a row that shares the prefill up to `at`.
#[derive(Clone, Debug)]
pub(super) struct Fork {
    /// Entries of the prefill that it sees.
    pub(super) at: usize,
    /// Position of its next token.
    pub(super) position: u32,
    /// Tokens of the kept text beyond the fork: a swapped yes/no, or a cut inside a token.
    pub(super) residual: Vec<u32>,
    /// Text tokens before the next one, for what reads them as context.
    pub(super) history: Vec<u32>,
    /// The sentence; none where unguided.
    pub(super) fragment: Option<Fragment>,
    /// Most tokens to draw.
    pub(super) limit: usize,
}

impl Fork {
    /// Key-value slots of its own.
    pub(super) fn slots(&self) -> usize {
        self.residual.len() + self.limit
    }
}

impl Prepared<'_> {
    /// The same with some of its forks.
    pub(super) fn with_forks(&self, forks: Vec<Fork>) -> Self {
        Self {
            request: self.request,
            layouts: self.layouts.clone(),
            kept: self.kept.clone(),
            entries: self.entries.clone(),
            positions: self.positions.clone(),
            forks,
        }
    }

    /// Image tokens before masking.
    pub fn image_tokens(&self) -> usize {
        self.layouts.iter().map(|layout| layout.tokens).sum()
    }

    /// Image tokens that stay, ascending, counted over all images.
    pub fn kept(&self) -> &[u32] {
        &self.kept
    }

    /// The positions of the image tokens that stay, in their order: along each of the model's axes.
    pub fn kept_positions(&self) -> Vec<Place> {
        let places = self.entries.iter().zip(&self.positions);
        let image = |(entry, &position): (&Entry, &Place)| {
            matches!(entry, Entry::Image(_)).then_some(position)
        };
        places.filter_map(image).collect()
    }

    /// Key-value slots that the attempt needs.
    pub fn cost(&self) -> usize {
        self.entries.len() + self.forks.iter().map(Fork::slots).sum::<usize>()
    }
}

/// Lays out an attempt. `layouts` are those of the sample's images, in order.
///
/// # Errors
/// A sample whose prompt, reference and new tokens exceed the model's positions; an unusable prompt.
pub(super) fn prepare<'a>(
    model: &Model,
    config: &SamplingConfig,
    seed: u64,
    request: Request<'a>,
    layouts: &[ImageLayout],
) -> Result<Prepared<'a>> {
    let Request { sample, attempt, guided } = request;
    let draws = Draws { seed, sample: sample.index, attempt };
    let image_tokens: Vec<usize> = layouts.iter().map(|layout| layout.tokens).collect();
    let kept = kept_tokens(config, draws, guided, layouts)?;

    let Written { forced, prefixes } = written(model, config, seed, request)?;
    let expand = |text: &str| expand(sample, &model.encode(text)?, &image_tokens);
    let unmasked = expand(&forced)?;
    let limit = match guided {
        true => config.max_sentence_tokens,
        false => config.max_response_tokens,
    };
    let drafts = prefixes.into_iter();
    let drafts = drafts.map(|(text, fragment)| Ok((expand(&text)?, fragment, limit as usize)));
    let drafts = drafts.collect::<Result<Vec<_>>>()?;
    fits(model, sample, &drafts, layouts)?;
    Ok(assemble(request, config, layouts, kept, &unmasked, drafts))
}

/// Lays out questions about the same images as one attempt with a fork a question: what all prompts
/// begin with, the images among it, is prefilled once. `samples` have the questions' turns, and the
/// images and the index of the first.
///
/// # Errors
/// As [`prepare`], naming the question.
pub(super) fn together<'a>(
    model: &Model,
    config: &SamplingConfig,
    seed: u64,
    samples: &'a [Sample],
    layouts: &[ImageLayout],
) -> Result<Prepared<'a>> {
    let request = Request { sample: &samples[0], attempt: 1, guided: false };
    let draws = Draws { seed, sample: request.sample.index, attempt: 1 };
    let image_tokens: Vec<usize> = layouts.iter().map(|layout| layout.tokens).collect();
    let kept = kept_tokens(config, draws, false, layouts)?;
    let mut drafts: Vec<Draft> = Vec::with_capacity(samples.len());
    for sample in samples {
        let text = model.prompt(&sample.turns)?.text;
        let whole = expand(sample, &model.encode(&text)?, &image_tokens)?;
        let draft = (whole, None, config.max_response_tokens as usize);
        fits(model, sample, std::slice::from_ref(&draft), layouts)?;
        drafts.push(draft);
    }
    let mut common = drafts[0].0.clone();
    for (sequence, ..) in &drafts[1..] {
        common.truncate(common.iter().zip(sequence).take_while(|(a, b)| a == b).count());
    }
    Ok(assemble(request, config, layouts, kept, &common, drafts))
}

/// An attempt as text, with the checkpoint's placeholder for each image.
#[derive(Clone, Debug)]
pub struct Written {
    /// What is teacher-forced: the prompt, and where guided the reference behind it.
    pub forced: String,
    /// What each completion continues, and its sentence; one without a sentence where unguided.
    pub prefixes: Vec<(String, Option<Fragment>)>,
}

/// An attempt as text: what the model is given, whatever runs it.
pub(super) fn written(
    model: &Model,
    config: &SamplingConfig,
    seed: u64,
    request: Request,
) -> Result<Written> {
    let Request { sample, attempt, guided } = request;
    let prompt = model.prompt(&sample.turns)?;
    sees_text(model, sample, &prompt)?;
    if !guided {
        return Ok(Written { forced: prompt.text.clone(), prefixes: vec![(prompt.text, None)] });
    }
    let draws = Draws { seed, sample: sample.index, attempt };
    let head = format!("{}{}", prompt.text, prompt.separator);
    let prefix = |fragment: Fragment| {
        let text = context(&head, prompt.text.len(), &sample.reference, &fragment);
        (text, Some(fragment))
    };
    let fragments = cut(&sample.reference, &draws, config)?;
    let prefixes = fragments.into_iter().map(prefix).collect();
    Ok(Written { forced: format!("{head}{}", sample.reference), prefixes })
}

/// A sentence to come: its whole unmasked context, the sentence and its token limit.
type Draft = (Vec<Entry>, Option<Fragment>, usize);

/// Masks the sequence, and finds each draft's fork: the longest run of entries that it shares with the
/// teacher-forced sequence. So a fork computes what a run of its own would, token for token.
fn assemble<'a>(
    request: Request<'a>,
    config: &SamplingConfig,
    layouts: &[ImageLayout],
    kept: Vec<u32>,
    unmasked: &[Entry],
    drafts: Vec<Draft>,
) -> Prepared<'a> {
    let visible = |entry: &Entry| match entry {
        Entry::Token(_) => true,
        Entry::Image(i) => kept.binary_search(i).is_ok(),
    };
    // visible_before[i]: how many of the first i entries stay.
    let mut visible_before = Vec::with_capacity(unmasked.len() + 1);
    visible_before.push(0u32);
    for entry in unmasked {
        visible_before.push(visible_before[visible_before.len() - 1] + u32::from(visible(entry)));
    }
    let places = places(unmasked, layouts);
    let mut forks = Vec::with_capacity(drafts.len());
    let mut longest = 0;
    for (sequence, fragment, limit) in drafts {
        let shared = sequence.iter().zip(unmasked).take_while(|(a, b)| a == b).count();
        let at = visible_before[shared] as usize;
        longest = longest.max(shared);
        let position = match config.positions {
            Positions::Original => places[shared].0[0],
            Positions::Compact => at as u32,
        };
        let tokens = |entry: &Entry| match entry {
            Entry::Token(id) => Some(*id),
            Entry::Image(_) => None,
        };
        forks.push(Fork {
            at,
            position,
            residual: sequence[shared..].iter().filter_map(tokens).collect(),
            history: sequence.iter().filter_map(tokens).collect(),
            fragment,
            limit,
        });
    }
    let mut entries = Vec::with_capacity(visible_before[longest] as usize);
    let mut positions = Vec::with_capacity(entries.capacity());
    for (i, entry) in unmasked[..longest].iter().enumerate() {
        if visible(entry) {
            positions.push(match config.positions {
                Positions::Original => places[i],
                Positions::Compact => Place::from(entries.len() as u32),
            });
            entries.push(*entry);
        }
    }
    let layouts = layouts.to_vec();
    Prepared { request, layouts, kept, entries, positions, forks }
}

/// The text that the model sees before it completes a sentence.
///
/// Where nothing of the sentence is kept, the white space before it is left for the model to write,
/// as at every other cut; white space of the prompt itself stays.
fn context(head: &str, prompt: usize, reference: &str, fragment: &Fragment) -> String {
    let mut text = format!("{head}{}", &reference[..fragment.sentence.start]);
    if fragment.kept.is_empty() {
        let end = prompt + text[prompt..].trim_end().len();
        text.truncate(end);
    }
    text.push_str(&fragment.kept);
    text
}

/// Pieces of a sample's encoded prompt as single places.
fn expand(sample: &Sample, pieces: &[Piece], image_tokens: &[usize]) -> Result<Vec<Entry>> {
    entries(pieces, image_tokens).map_err(|images| {
        let given = image_tokens.len();
        refuse(sample, format!("{images} image placeholders in its text, but {given} images"))
    })
}

/// Pieces of an encoded text as single places; an error is the number of images in it, where that is not the number given.
pub(crate) fn entries(pieces: &[Piece], image_tokens: &[usize]) -> Result<Vec<Entry>, usize> {
    let images = pieces.iter().filter(|piece| matches!(piece, Piece::Image(_))).count();
    if images != image_tokens.len() {
        return Err(images);
    }
    let mut entries = Vec::new();
    let mut next = 0;
    for piece in pieces {
        match piece {
            Piece::Tokens(ids) => entries.extend(ids.iter().map(|&id| Entry::Token(id))),
            Piece::Image(i) => {
                let end = next + image_tokens[*i] as u32;
                entries.extend((next..end).map(Entry::Image));
                next = end;
            }
        }
    }
    Ok(entries)
}

/// The position of every entry of a whole sequence, and that of the text that would follow it.
pub(crate) fn places(entries: &[Entry], layouts: &[ImageLayout]) -> Vec<Place> {
    let mut places = Vec::with_capacity(entries.len() + 1);
    let (mut next, mut layouts) = (0, layouts.iter());
    while let Some(entry) = entries.get(places.len()) {
        let layout = match entry {
            Entry::Token(_) => None,
            Entry::Image(_) => layouts.next(),
        };
        match layout {
            Some(layout) => {
                places.extend(layout.places(next));
                next += layout.span();
            }
            None => {
                places.push(Place::from(next));
                next += 1;
            }
        }
    }
    places.push(Place::from(next));
    places
}

/// What a sample that is too long needs too many of.
const POSITIONS: &str = "positions for images, prompt, reference and new tokens";

/// Whether an error of [`Engine::prepare`](super::Engine::prepare) says that the model has too few positions for a sample.
pub fn is_too_long(error: &Error) -> bool {
    matches!(error, Error::Invalid { message, .. } if message.contains(POSITIONS))
}

/// Refuses a sample whose prompt has no token but images: with these hidden there is no state that an answer begins from. Whether
/// they are hidden is drawn for each attempt, so the sample is refused whatever is drawn.
fn sees_text(model: &Model, sample: &Sample, prompt: &Prompt) -> Result<()> {
    // A longer text has tokens.
    const SHORT: usize = 128;
    if prompt.text.len() > SHORT * (prompt.images + 1) {
        return Ok(());
    }
    let pieces = model.encode(&prompt.text)?;
    let seen = pieces.iter().any(|piece| matches!(piece, Piece::Tokens(ids) if !ids.is_empty()));
    if seen {
        return Ok(());
    }
    let message = "a prompt without a text token (its turns are empty, and neither the chat template nor the tokenizer adds a \
                   token), so an attempt that sees no image would have nothing to continue; give it a question";
    Err(refuse(sample, message.to_owned()))
}

/// Refuses a sample that the model has no positions for.
fn fits(model: &Model, sample: &Sample, drafts: &[Draft], layouts: &[ImageLayout]) -> Result<()> {
    let last = |sequence: &[Entry]| {
        places(sequence, layouts).last().map_or(0, |place| place.0[0] as usize)
    };
    let needed = drafts.iter().map(|(sequence, _, limit)| last(sequence) + limit).max();
    let most = model.config().text.max_positions;
    match needed {
        Some(needed) if needed > most => {
            Err(refuse(sample, format!("{needed} {POSITIONS}, but the model has {most}")))
        }
        _ => Ok(()),
    }
}

fn refuse(sample: &Sample, message: String) -> Error {
    Error::invalid("", &sample.place, format!("sample {:?} has {message}", sample.id))
}

/// The image tokens that an attempt keeps, ascending, counted over all images.
pub(super) fn kept_tokens(
    config: &SamplingConfig,
    draws: Draws,
    guided: bool,
    layouts: &[ImageLayout],
) -> Result<Vec<u32>> {
    let parts = layouts.iter().map(|layout| (layout.tokens, layout.grids.as_slice()));
    let (tokens, grids) = join_layouts(parts);
    let request = MaskRequest { draws, guided, tokens, grids: &grids };
    Ok(visible_tokens(config, &[request])?.indices)
}
