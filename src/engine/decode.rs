//! Prefill of attempts as room comes free, and lock-step decoding of all their sentences.

use std::{collections::VecDeque, sync::Arc};

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    Engine, Images, Progress, Work, checkpoint,
    prepare::{Entry, Fork, Prepared},
    room::Room,
    text::Detokenizer,
};
use crate::{
    Result,
    models::KvCache,
    ops::{
        attend::{AttendPlan, Block, Segment},
        mask::{self, Piece},
        philox::{Draws, WHOLE_RESPONSE},
        token,
    },
    sampling::{End, Part, SamplingConfig, Stop, cuts::own_completion},
};

/// New attempts begin once this part of the arena is free: one in so many slots.
const REFILL: usize = 4;

/// Rows of a prefill pass on a CPU: the states of more leave its caches, and are most of a run's
/// memory.
const PASS_ON_CPU: usize = 2048;
/// Rows of a prefill pass on a GPU: more do not make its products faster. (The shape of a pass
/// shows in the last bits there.)
const PASS_ON_GPU: usize = 65_536;

/// An attempt with the number that its flow knows it by.
pub(super) struct Ticket<'a> {
    pub(super) id: usize,
    pub(super) prepared: Arc<Prepared<'a>>,
}

/// Where attempts come from, and where their results go.
pub(super) trait Flow<'a> {
    /// The next attempt; none if there is none now. Asked for when there may be room for it.
    fn next(&mut self, engine: &Engine) -> Result<Option<Ticket<'a>>>;

    /// Takes the parts of an attempt, one a fork and in their order, as soon as the last of them
    /// has ended.
    fn ended(&mut self, ticket: Ticket<'a>, parts: Vec<Part>) -> Result<()>;
}

/// What a flow is computed with.
pub(super) struct Decoder<'e, 'm> {
    pub(super) engine: &'e Engine<'m>,
    pub(super) arena: &'e mut KvCache,
    pub(super) images: &'e mut Images,
    pub(super) progress: &'e dyn Progress,
    pub(super) work: &'e mut Work,
}

/// A sentence that is being completed.
struct Row<'a> {
    prepared: Arc<Prepared<'a>>,
    /// Which fork of the attempt.
    fork: usize,
    /// Which place.
    place: usize,
    draws: Draws,
    /// Sentence number in the draws.
    sentence: u32,
    prefix: Segment,
    /// Slots of its own: residual tokens, then drawn ones.
    own: Segment,
    drawn: Vec<u32>,
    logprob: f32,
    text: Detokenizer,
    done: Option<(String, Stop)>,
}

/// An attempt that has slots.
struct Place<'a> {
    ticket: Ticket<'a>,
    prefill: Segment,
    /// Of the sentences that have ended.
    parts: Vec<Option<Part>>,
    /// Sentences that have not.
    open: usize,
}

impl Row<'_> {
    fn fork(&self) -> &Fork {
        &self.prepared.forks[self.fork]
    }

    /// The slots that its next token sees, `own` of them its own.
    fn keys(&self, own: usize) -> Vec<Segment> {
        let own = Segment { start: self.own.start, len: own };
        [self.prefix, own].into_iter().filter(|segment| segment.len > 0).collect()
    }

    fn part(&mut self) -> Part {
        let (completion, stop) = self.done.take().unwrap_or((String::new(), Stop::TokenLimit));
        let fragment = self.fork().fragment.as_ref();
        Part {
            kept: fragment.map(|f| f.kept.clone()).unwrap_or_default(),
            completion,
            separator: String::new(),
            swapped: fragment.is_some_and(|f| f.swapped),
            stop,
            tokens: self.drawn.len() as u32,
            logprob: self.logprob,
        }
    }
}

/// The attempts that are under way.
struct Open<'a> {
    /// By number; none where an attempt has ended and its number is free.
    places: Vec<Option<Place<'a>>>,
    rows: Vec<Row<'a>>,
    room: Room,
}

/// Computes a flow: attempts are prefilled together as far as there is room, and their sentences
/// decoded side by side. The room of sentences that have ended goes to the next attempts, so that a
/// pass keeps many rows. At most `slots` of the arena are used. What has begun when an error comes
/// is put back at the front of `waiting`. Returns false if an attempt, then at the front of
/// `waiting`, needs more slots than there are, true once the flow has ended.
pub(super) fn run<'a>(
    decoder: &mut Decoder,
    flow: &mut dyn Flow<'a>,
    waiting: &mut VecDeque<Ticket<'a>>,
    slots: usize,
) -> Result<bool> {
    let mut open = Open { places: Vec::new(), rows: Vec::new(), room: Room::new(slots) };
    let outcome = decode(decoder, flow, waiting, slots, &mut open);
    if outcome.is_err() {
        let mut begun: Vec<Ticket> =
            open.places.into_iter().flatten().map(|place| place.ticket).collect();
        begun.sort_by_key(|ticket| std::cmp::Reverse(ticket.id));
        begun.into_iter().for_each(|ticket| waiting.push_front(ticket));
    }
    outcome
}

fn decode<'a>(
    decoder: &mut Decoder,
    flow: &mut dyn Flow<'a>,
    waiting: &mut VecDeque<Ticket<'a>>,
    slots: usize,
    open: &mut Open<'a>,
) -> Result<bool> {
    let engine = decoder.engine;
    loop {
        checkpoint(decoder.progress)?;
        let mut hidden = Vec::new();
        if !open.rows.is_empty() {
            decoder.work.step(open.rows.len());
            hidden.push(step(engine, &open.rows, decoder.arena)?);
            decoder.arena.not_captured().iter().for_each(|why| decoder.progress.warn(why));
        }
        // Few attempts at a time would make small passes.
        if open.rows.is_empty() || open.room.left() >= slots / REFILL {
            let first = open.rows.len();
            let begun = admit(engine, flow, waiting, open)?;
            if !begun.is_empty() {
                hidden.push(begin(decoder, open, &begun, first)?);
            }
        }
        if open.rows.is_empty() {
            return Ok(waiting.is_empty());
        }
        let logits = engine.logits(&Tensor::cat(&hidden, 0)?)?;
        draw(engine, &mut open.rows, &logits)?;
        decoder.progress.advance(open.rows.len() as u64);
        open.leave(flow)?;
    }
}

impl<'a> Open<'a> {
    /// Gives back the room of sentences that have ended, and hands over the attempts that have.
    fn leave(&mut self, flow: &mut dyn Flow<'a>) -> Result<()> {
        let mut ended = Vec::new();
        self.rows.retain_mut(|row| {
            if row.done.is_none() {
                return true;
            }
            self.room.give(row.own);
            if let Some(place) = &mut self.places[row.place] {
                place.parts[row.fork] = Some(row.part());
                place.open -= 1;
                if place.open == 0 {
                    self.room.give(place.prefill);
                    ended.push(row.place);
                }
            }
            false
        });
        for place in ended {
            if let Some(place) = self.places[place].take() {
                flow.ended(place.ticket, place.parts.into_iter().flatten().collect())?;
            }
        }
        Ok(())
    }

    /// The slots of an attempt: those of its prefill and of each fork; none if they are not free.
    fn take(&mut self, prepared: &Prepared) -> Option<Vec<Segment>> {
        let lens = prepared.forks.iter().map(Fork::slots);
        let mut taken = Vec::with_capacity(1 + prepared.forks.len());
        for len in std::iter::once(prepared.entries.len()).chain(lens) {
            match self.room.take(len) {
                Some(run) => taken.push(run),
                None => {
                    taken.into_iter().for_each(|run| self.room.give(run));
                    return None;
                }
            }
        }
        Some(taken)
    }
}

/// Finds room for the next attempts of the flow, in order. Returns their places.
fn admit<'a>(
    engine: &Engine,
    flow: &mut dyn Flow<'a>,
    waiting: &mut VecDeque<Ticket<'a>>,
    open: &mut Open<'a>,
) -> Result<Vec<usize>> {
    let mut begun = Vec::new();
    loop {
        if waiting.is_empty() {
            match flow.next(engine)? {
                Some(ticket) => waiting.push_back(ticket),
                None => break,
            }
        }
        let Some(ticket) = waiting.pop_front() else { break };
        let prepared = ticket.prepared.clone();
        if prepared.forks.is_empty() {
            flow.ended(ticket, Vec::new())?;
            continue;
        }
        let Some(taken) = open.take(&prepared) else {
            waiting.push_front(ticket);
            break;
        };
        let free = open.places.iter().position(Option::is_none);
        let number = free.unwrap_or(open.places.len());
        let (prefill, request) = (taken[0], &prepared.request);
        let draws =
            Draws { seed: engine.seed, sample: request.sample.index, attempt: request.attempt };
        for (j, (fork, &own)) in prepared.forks.iter().zip(&taken[1..]).enumerate() {
            open.rows.push(Row {
                prepared: prepared.clone(),
                fork: j,
                place: number,
                draws,
                sentence: if request.guided { j as u32 } else { WHOLE_RESPONSE },
                prefix: Segment { start: prefill.start, len: fork.at },
                own,
                drawn: Vec::new(),
                logprob: 0.0,
                text: Detokenizer::after(engine.model.format.tokenizer(), &fork.history)?,
                done: None,
            });
        }
        let forks = prepared.forks.len();
        let parts = (0..forks).map(|_| None).collect();
        let place = Some(Place { ticket, prefill, parts, open: forks });
        match free {
            Some(number) => open.places[number] = place,
            None => open.places.push(place),
        }
        begun.push(number);
    }
    Ok(begun)
}

/// Rows of a prefill pass.
fn pass_rows(engine: &Engine) -> usize {
    if engine.model.language.device().is_cpu() { PASS_ON_CPU } else { PASS_ON_GPU }
}

/// States that the rows from `first` on, of the attempts that begin, draw their first token from.
fn begin(decoder: &mut Decoder, open: &Open, begun: &[usize], first: usize) -> Result<Tensor> {
    let engine = decoder.engine;
    let places: Vec<&Place> = begun.iter().filter_map(|&i| open.places[i].as_ref()).collect();
    let wave: Vec<&Prepared> = places.iter().map(|place| &*place.ticket.prepared).collect();
    let features = decoder.images.of_wave(engine, &wave, decoder.progress)?;
    decoder.work.prefilled += wave.iter().map(|p| p.entries.len() as u64).sum::<u64>();
    let rows = &open.rows[first..];
    let mut states = Vec::new();
    let lens = places.iter().map(|place| place.prefill.len);
    for some in passes(lens, pass_rows(engine)) {
        states.push(prefill(engine, &places[some.clone()], &features[some], decoder.arena)?);
    }
    // Where the states of each row's last token are.
    let mut last: Vec<usize> = Vec::with_capacity(rows.len());
    let mut start = 0;
    for (place, of_place) in places.iter().zip(rows.chunk_by(|a, b| a.place == b.place)) {
        last.extend(of_place.iter().map(|row| (start + row.prefix.len).saturating_sub(1)));
        start += place.prefill.len;
    }
    let more: Vec<usize> =
        (0..rows.len()).filter(|&i| !rows[i].fork().residual.is_empty()).collect();
    let lens = more.iter().map(|&i| rows[i].fork().residual.len());
    for some in passes(lens, pass_rows(engine)) {
        let rows: Vec<&Row> = more[some.clone()].iter().map(|&i| &rows[i]).collect();
        states.push(residuals(engine, &rows, decoder.arena)?);
        for (&i, row) in more[some].iter().zip(rows) {
            start += row.fork().residual.len();
            decoder.work.prefilled += row.fork().residual.len() as u64;
            last[i] = start - 1;
        }
    }
    let last: Vec<u32> = last.into_iter().map(|at| at as u32).collect();
    let states = Tensor::cat(&states, 0)?;
    Ok(states.index_select(&Tensor::new(last, engine.model.language.device())?, 0)?)
}

/// Divides sequences of these lengths into passes of at most so many rows: whole sequences, at
/// least one a pass.
fn passes(lens: impl Iterator<Item = usize>, most: usize) -> Vec<std::ops::Range<usize>> {
    let mut passes: Vec<std::ops::Range<usize>> = Vec::new();
    let mut rows = 0;
    for (i, len) in lens.enumerate() {
        match passes.last_mut() {
            Some(pass) if rows + len <= most => {
                pass.end = i + 1;
                rows += len;
            }
            _ => {
                passes.push(i..i + 1);
                rows = len;
            }
        }
    }
    passes
}

/// One teacher-forced pass over all sequences of these attempts; the states of every entry.
fn prefill(
    engine: &Engine,
    places: &[&Place],
    features: &[Option<Tensor>],
    cache: &mut KvCache,
) -> Result<Tensor> {
    let language = &engine.model.language;
    let attempts = || places.iter().map(|place| &*place.ticket.prepared);
    let ids: Vec<u32> = attempts()
        .flat_map(|prepared| &prepared.entries)
        .filter_map(|entry| match entry {
            Entry::Token(id) => Some(*id),
            Entry::Image(_) => None,
        })
        .collect();
    let text = language.embed(&ids)?;
    let mut sources = vec![&text];
    let mut pieces = Vec::with_capacity(places.len());
    let mut token = 0;
    for (prepared, features) in attempts().zip(features) {
        let source = sources.len();
        sources.extend(features);
        pieces.push(runs(&prepared.entries, &mut token, source));
    }
    let sequences: Vec<&[Piece]> = pieces.iter().map(Vec::as_slice).collect();
    let packed = mask::pack(&sources, &sequences, mask::Positions::Compact)?;

    let positions: Vec<_> = attempts().flat_map(|p| &p.positions).copied().collect();
    let (mut slots, mut blocks) = (Vec::with_capacity(positions.len()), vec![]);
    for place in places {
        let prefill = place.prefill;
        let start = slots.len();
        slots.extend((prefill.start..prefill.start + prefill.len).map(|slot| slot as u32));
        blocks.push(Block { rows: start..slots.len(), keys: vec![prefill], causal: true });
    }
    language.forward(&packed.rows, &positions, cache, &slots, &AttendPlan { blocks })
}

/// A sequence as runs of text rows (from source 0, on from `token`) and of kept image rows.
fn runs(entries: &[Entry], token: &mut usize, source: usize) -> Vec<Piece<'static>> {
    let mut pieces = Vec::new();
    let mut image = 0;
    let is_text = |entry: &Entry| matches!(entry, Entry::Token(_));
    for run in entries.chunk_by(|a, b| is_text(a) == is_text(b)) {
        let len = run.len();
        if is_text(&run[0]) {
            pieces.push(Piece::Rows { source: 0, start: *token, len });
            *token += len;
        } else {
            pieces.push(Piece::Rows { source, start: image, len });
            image += len;
        }
    }
    pieces
}

/// One pass over the tokens of these rows that go beyond their forks; the states of all of them.
fn residuals(engine: &Engine, rows: &[&Row], cache: &mut KvCache) -> Result<Tensor> {
    let language = &engine.model.language;
    let (mut ids, mut positions, mut slots, mut blocks) = (vec![], vec![], vec![], vec![]);
    for row in rows {
        let fork = row.fork();
        let (start, n) = (ids.len(), fork.residual.len());
        ids.extend(&fork.residual);
        positions.extend((0..n).map(|t| fork.position + t as u32));
        slots.extend((0..n).map(|t| (row.own.start + t) as u32));
        blocks.push(Block { rows: start..ids.len(), keys: row.keys(n), causal: true });
    }
    let x = language.embed(&ids)?;
    language.forward(&x, &positions, cache, &slots, &AttendPlan { blocks })
}

/// One decode step: the last drawn token of every row.
fn step(engine: &Engine, rows: &[Row], cache: &mut KvCache) -> Result<Tensor> {
    let language = &engine.model.language;
    let (mut ids, mut positions, mut slots, mut blocks) = (vec![], vec![], vec![], vec![]);
    for (r, row) in rows.iter().enumerate() {
        let before = row.fork().residual.len() + row.drawn.len() - 1;
        ids.extend(row.drawn.last());
        positions.push(row.fork().position + before as u32);
        slots.push((row.own.start + before) as u32);
        blocks.push(Block { rows: r..r + 1, keys: row.keys(before + 1), causal: false });
    }
    let x = language.embed(&ids)?;
    language.step(&x, &positions, cache, &slots, &AttendPlan { blocks })
}

/// Draws one token for every row and ends the rows whose sentence is complete.
fn draw(engine: &Engine, rows: &mut [Row], logits: &Tensor) -> Result<()> {
    let config = &engine.config;
    let params = token_params(config);
    let histories: Vec<Vec<u32>> = rows
        .iter()
        .map(|row| {
            if config.repetition_penalty == 1.0 {
                return Vec::new();
            }
            row.fork().history.iter().chain(&row.drawn).copied().collect()
        })
        .collect();
    let requests: Vec<token::Row> = rows
        .iter()
        .zip(&histories)
        .map(|(row, history)| token::Row {
            params,
            draws: row.draws,
            sentence: row.sentence,
            step: row.drawn.len() as u64,
            history,
        })
        .collect();
    let drawn = token::sample(logits, &requests)?;
    rows.par_iter_mut().zip(drawn).try_for_each(|(row, drawn)| {
        row.drawn.push(drawn.token);
        row.logprob += drawn.log_prob;
        let ended = engine.model.format.eos_ids().contains(&drawn.token);
        if !ended {
            row.text.push(engine.model.format.tokenizer(), drawn.token)?;
        }
        row.done = verdict(config, row, ended);
        Ok(())
    })
}

/// Whether a row has ended, and with which completion.
fn verdict(config: &SamplingConfig, row: &Row, ended: bool) -> Option<(String, Stop)> {
    let finished = ended || row.drawn.len() >= row.fork().limit;
    let why = if ended { Stop::EndOfSequence } else { Stop::TokenLimit };
    let Some(fragment) = &row.fork().fragment else {
        // A free response keeps no blank that only joined it to the prompt.
        return finished.then(|| (row.text.whole().trim().to_owned(), why));
    };
    let text = if finished { row.text.whole() } else { row.text.settled() };
    let new = own_completion(fragment, text);
    let sentence = format!("{}{new}", fragment.kept);
    let kept = fragment.kept.len();
    let end_at = |finished| match config.sentences.first_end(&sentence, kept, finished) {
        End::At(end) => Ok(sentence[kept..end].to_owned()),
        other => Err(other),
    };
    match end_at(false) {
        Ok(completion) => Some((completion, Stop::FullStop)),
        Err(open) => finished.then(|| {
            let why = if open == End::Undecided { Stop::FullStop } else { why };
            (end_at(true).unwrap_or_default(), why)
        }),
    }
}

fn token_params(config: &SamplingConfig) -> token::Params {
    token::Params {
        temperature: config.temperature,
        top_k: config.top_k as usize,
        top_p: config.top_p,
        min_p: config.min_p,
        repetition_penalty: config.repetition_penalty,
    }
}
