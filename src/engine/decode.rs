//! Prefill of attempts as room comes free, and lock-step decoding of all their sentences.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    Engine, Progress, checkpoint,
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

/// Rows of a prefill pass on a CPU, where states of more leave its caches and are most of a run's memory. (On a GPU the shape of a
/// pass shows in the last bits; there it stays what room there is.)
const PASS_ON_CPU: usize = 2048;

/// A sentence that is being completed.
pub(super) struct Row<'a> {
    fork: &'a Fork,
    /// Which attempt of the wave.
    attempt: usize,
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
    prepared: &'a Prepared<'a>,
    prefill: Segment,
    /// Sentences that are not done.
    open: usize,
}

impl Row<'_> {
    fn part(self) -> Part {
        let (completion, stop) = self.done.unwrap_or((String::new(), Stop::TokenLimit));
        let fragment = self.fork.fragment.as_ref();
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

/// Runs a wave: attempts are prefilled together as far as there is room, and their sentences decoded side by side. The room of
/// sentences that have ended goes to the next attempts, so that a pass keeps many rows. `slots` are at least what the largest attempt
/// needs. Returns the parts of each attempt, in order.
pub(super) fn run(
    engine: &Engine,
    wave: &[Prepared],
    slots: usize,
    features: &[Option<Tensor>],
    progress: &dyn Progress,
) -> Result<Vec<Vec<Part>>> {
    let mut cache = engine.model.language.new_cache(slots)?;
    let mut room = Room::new(slots);
    let (mut rows, mut places) = (Vec::<Row>::new(), Vec::<Place>::new());
    let mut active = Vec::new();
    loop {
        checkpoint(progress)?;
        let mut hidden = Vec::new();
        if !active.is_empty() {
            hidden.push(step(engine, &rows, &active, &mut cache)?);
            cache.not_captured().iter().for_each(|why| progress.warn(why));
        }
        // Few attempts at a time would make small passes.
        if active.is_empty() || room.left() >= slots / REFILL {
            let first = rows.len();
            let begun = admit(engine, wave, &mut places, &mut rows, &mut room)?;
            if rows.len() > first {
                let states = passes(engine, &places, begun)
                    .into_iter()
                    .map(|some| prefill(engine, &places[some.clone()], &features[some], &mut cache))
                    .collect::<Result<Vec<_>>>()?;
                let states = Tensor::cat(&states, 0)?;
                hidden.push(begin(engine, &places, &rows[first..], &states, &mut cache)?);
                active.extend(first..rows.len());
            }
        }
        if active.is_empty() {
            break;
        }
        let logits = engine.logits(&Tensor::cat(&hidden, 0)?)?;
        draw(engine, &mut rows, &active, &logits)?;
        progress.advance(active.len() as u64);
        active.retain(|&i| {
            let open = rows[i].done.is_none();
            if !open {
                leave(&rows[i], &mut places, &mut room);
            }
            open
        });
    }
    let mut rows = rows.into_iter();
    Ok(wave.iter().map(|p| rows.by_ref().take(p.forks.len()).map(Row::part).collect()).collect())
}

/// Gives back the room of a sentence that has ended.
fn leave(row: &Row, places: &mut [Place], room: &mut Room) {
    room.give(row.own);
    let place = &mut places[row.attempt];
    place.open -= 1;
    if place.open == 0 {
        room.give(place.prefill);
    }
}

/// Finds room for the next attempts of the wave, in order. Returns which.
fn admit<'a>(
    engine: &Engine,
    wave: &'a [Prepared<'a>],
    places: &mut Vec<Place<'a>>,
    rows: &mut Vec<Row<'a>>,
    room: &mut Room,
) -> Result<Range<usize>> {
    let first = places.len();
    let tokenizer = engine.model.format.tokenizer();
    for (attempt, prepared) in wave.iter().enumerate().skip(first) {
        let lens = prepared.forks.iter().map(Fork::slots);
        let mut taken = Vec::with_capacity(1 + prepared.forks.len());
        for len in std::iter::once(prepared.entries.len()).chain(lens) {
            taken.extend(room.take(len));
        }
        if taken.len() <= prepared.forks.len() {
            taken.into_iter().for_each(|run| room.give(run));
            break;
        }
        let prefill = taken[0];
        let request = &prepared.request;
        let draws =
            Draws { seed: engine.seed, sample: request.sample.index, attempt: request.attempt };
        for (j, (fork, &own)) in prepared.forks.iter().zip(&taken[1..]).enumerate() {
            rows.push(Row {
                fork,
                attempt,
                draws,
                sentence: if request.guided { j as u32 } else { WHOLE_RESPONSE },
                prefix: Segment { start: prefill.start, len: fork.at },
                own,
                drawn: Vec::new(),
                logprob: 0.0,
                text: Detokenizer::after(tokenizer, &fork.history)?,
                done: None,
            });
        }
        places.push(Place { prepared, prefill, open: prepared.forks.len() });
    }
    Ok(first..places.len())
}

/// Divides the attempts that begin into the passes of their prefill: whole sequences, at least one a pass.
fn passes(engine: &Engine, places: &[Place], begun: Range<usize>) -> Vec<Range<usize>> {
    let most = match engine.model.language.device().is_cpu() {
        true => PASS_ON_CPU,
        false => usize::MAX,
    };
    let mut passes = Vec::new();
    let (mut start, mut rows) = (begun.start, 0);
    for i in begun.clone() {
        let len = places[i].prefill.len;
        if i > start && rows + len > most {
            passes.push(start..i);
            (start, rows) = (i, 0);
        }
        rows += len;
    }
    passes.push(start..begun.end);
    passes
}

/// One teacher-forced pass over all sequences of these attempts; the states of every entry.
fn prefill(
    engine: &Engine,
    places: &[Place],
    features: &[Option<Tensor>],
    cache: &mut KvCache,
) -> Result<Tensor> {
    let language = &engine.model.language;
    let attempts = || places.iter().map(|place| place.prepared);
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
    for &Place { prefill, .. } in places {
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

/// States that new rows draw their first token from: the prefill's at the fork, or, where kept text goes beyond the fork, those
/// after one pass over it.
fn begin(
    engine: &Engine,
    places: &[Place],
    rows: &[Row],
    prefilled: &Tensor,
    cache: &mut KvCache,
) -> Result<Tensor> {
    let language = &engine.model.language;
    let device = engine.model.language.device();
    let mut last: Vec<u32> = Vec::with_capacity(rows.len());
    // Where the states of each attempt begin.
    let mut start = 0;
    for of_attempt in rows.chunk_by(|a, b| a.attempt == b.attempt) {
        // A row that sees nothing of the prefill has text of its own, see below.
        let before = |row: &Row| (start + row.prefix.len).saturating_sub(1) as u32;
        last.extend(of_attempt.iter().map(before));
        start += places[of_attempt[0].attempt].prefill.len;
    }
    let prefill_rows = prefilled.dim(0)?;

    let (mut ids, mut positions, mut slots, mut blocks) = (vec![], vec![], vec![], vec![]);
    for (i, row) in rows.iter().enumerate() {
        let n = row.fork.residual.len();
        if n == 0 {
            continue;
        }
        let start = ids.len();
        ids.extend(&row.fork.residual);
        positions.extend((0..n).map(|t| row.fork.position + t as u32));
        slots.extend((0..n).map(|t| (row.own.start + t) as u32));
        blocks.push(Block {
            rows: start..ids.len(),
            keys: vec![row.prefix, Segment { start: row.own.start, len: n }],
            causal: true,
        });
        last[i] = (prefill_rows + ids.len()) as u32 - 1;
    }
    let states = if ids.is_empty() {
        prefilled.clone()
    } else {
        let x = language.embed(&ids)?;
        let extra = language.forward(&x, &positions, cache, &slots, &AttendPlan { blocks })?;
        Tensor::cat(&[prefilled, &extra], 0)?
    };
    Ok(states.index_select(&Tensor::new(last.as_slice(), device)?, 0)?)
}

/// One decode step: the last drawn token of every active row.
fn step(engine: &Engine, rows: &[Row], active: &[usize], cache: &mut KvCache) -> Result<Tensor> {
    let language = &engine.model.language;
    let (mut ids, mut positions, mut slots, mut blocks) = (vec![], vec![], vec![], vec![]);
    for (r, &i) in active.iter().enumerate() {
        let row = &rows[i];
        let before = row.fork.residual.len() + row.drawn.len() - 1;
        ids.extend(row.drawn.last());
        positions.push(row.fork.position + before as u32);
        slots.push((row.own.start + before) as u32);
        blocks.push(Block {
            rows: r..r + 1,
            keys: vec![row.prefix, Segment { start: row.own.start, len: before + 1 }],
            causal: false,
        });
    }
    let x = language.embed(&ids)?;
    language.step(&x, &positions, cache, &slots, &AttendPlan { blocks })
}

/// Draws one token for every active row and ends the rows whose sentence is complete.
fn draw(engine: &Engine, rows: &mut [Row], active: &[usize], logits: &Tensor) -> Result<()> {
    let config = &engine.config;
    let params = token_params(config);
    let histories: Vec<Vec<u32>> = active
        .iter()
        .map(|&i| {
            if config.repetition_penalty == 1.0 {
                return Vec::new();
            }
            rows[i].fork.history.iter().chain(&rows[i].drawn).copied().collect()
        })
        .collect();
    let requests: Vec<token::Row> = active
        .iter()
        .zip(&histories)
        .map(|(&i, history)| token::Row {
            params,
            draws: rows[i].draws,
            sentence: rows[i].sentence,
            step: rows[i].drawn.len() as u64,
            history,
        })
        .collect();
    let drawn = token::sample(logits, &requests)?;
    let open = rows.iter_mut().filter(|row| row.done.is_none());
    let open: Vec<(&mut Row, token::Sampled)> = open.zip(drawn).collect();
    open.into_par_iter().try_for_each(|(row, drawn)| {
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
    let finished = ended || row.drawn.len() >= row.fork.limit;
    let why = if ended { Stop::EndOfSequence } else { Stop::TokenLimit };
    let Some(fragment) = &row.fork.fragment else {
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
