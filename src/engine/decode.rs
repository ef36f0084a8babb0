//! Prefill and lock-step decoding of one wave.

use candle_core::Tensor;

use super::{
    Engine, Progress, checkpoint,
    prepare::{Entry, Fork, Prepared},
    text::Detokenizer,
};
use crate::{
    Result,
    models::llava::KvCache,
    ops::{
        attend::{AttendPlan, Block, Segment},
        mask::{self, Piece},
        philox::{Draws, WHOLE_RESPONSE},
        token,
    },
    sampling::{End, Part, SamplingConfig, Stop, cuts::own_completion},
};

/// A sentence that is being completed.
pub(super) struct Row<'a> {
    fork: &'a Fork,
    draws: Draws,
    /// Sentence number in the draws.
    sentence: u32,
    prefix: Segment,
    /// First slot of its own: residual tokens, then drawn ones.
    own: usize,
    drawn: Vec<u32>,
    logprob: f32,
    text: Detokenizer,
    done: Option<(String, Stop)>,
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

/// Runs a wave: one packed prefill, then all rows side by side until each one has ended.
/// Returns the parts of each attempt, in order.
pub(super) fn run(
    engine: &Engine,
    wave: &[Prepared],
    features: &[Option<Tensor>],
    progress: &dyn Progress,
) -> Result<Vec<Vec<Part>>> {
    let slots: usize = wave.iter().map(Prepared::cost).sum();
    let mut cache = engine.model.language.new_cache(slots)?;
    let hidden = prefill(engine, wave, features, &mut cache)?;
    let mut rows = rows(engine, wave);
    let mut hidden = begin(engine, wave, &rows, &hidden, &mut cache)?;
    let mut active: Vec<usize> = (0..rows.len()).collect();
    loop {
        checkpoint(progress)?;
        let logits = engine.logits(&hidden)?;
        draw(engine, &mut rows, &active, &logits)?;
        progress.advance(active.len() as u64);
        active.retain(|&i| rows[i].done.is_none());
        if active.is_empty() {
            break;
        }
        hidden = step(engine, &rows, &active, &mut cache)?;
    }
    let mut rows = rows.into_iter();
    Ok(wave.iter().map(|p| rows.by_ref().take(p.forks.len()).map(Row::part).collect()).collect())
}

/// One teacher-forced pass over all sequences of the wave; the states of every entry.
fn prefill(
    engine: &Engine,
    wave: &[Prepared],
    features: &[Option<Tensor>],
    cache: &mut KvCache,
) -> Result<Tensor> {
    let language = &engine.model.language;
    let ids: Vec<u32> = wave
        .iter()
        .flat_map(|prepared| &prepared.entries)
        .filter_map(|entry| match entry {
            Entry::Token(id) => Some(*id),
            Entry::Image(_) => None,
        })
        .collect();
    let text = language.embed(&ids)?;
    let mut sources = vec![&text];
    let mut pieces = Vec::with_capacity(wave.len());
    let mut token = 0;
    for (prepared, features) in wave.iter().zip(features) {
        let source = sources.len();
        sources.extend(features);
        pieces.push(runs(&prepared.entries, &mut token, source));
    }
    let sequences: Vec<&[Piece]> = pieces.iter().map(Vec::as_slice).collect();
    let packed = mask::pack(&sources, &sequences, mask::Positions::Compact)?;

    let positions: Vec<u32> = wave.iter().flat_map(|p| &p.positions).copied().collect();
    let slots: Vec<u32> = (0..positions.len() as u32).collect();
    let plan = AttendPlan::ragged(&packed.cu_seqlens, true);
    language.forward(&packed.rows, &positions, cache, &slots, &plan)
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

/// The rows of a wave, with their slots behind the prefill.
fn rows<'a>(engine: &Engine, wave: &'a [Prepared]) -> Vec<Row<'a>> {
    let mut own: usize = wave.iter().map(|p| p.entries.len()).sum();
    let mut start = 0;
    let mut rows = Vec::new();
    for prepared in wave {
        let request = &prepared.request;
        let draws =
            Draws { seed: engine.seed, sample: request.sample.index, attempt: request.attempt };
        for (j, fork) in prepared.forks.iter().enumerate() {
            rows.push(Row {
                fork,
                draws,
                sentence: if request.guided { j as u32 } else { WHOLE_RESPONSE },
                prefix: Segment { start, len: fork.at },
                own,
                drawn: Vec::new(),
                logprob: 0.0,
                text: Detokenizer::after(&fork.history),
                done: None,
            });
            own += fork.residual.len() + fork.limit;
        }
        start += prepared.entries.len();
    }
    rows
}

/// States that each row draws its first token from: the prefill's at the fork, or, where kept text
/// goes beyond the fork, those after one pass over it.
fn begin(
    engine: &Engine,
    wave: &[Prepared],
    rows: &[Row],
    prefilled: &Tensor,
    cache: &mut KvCache,
) -> Result<Tensor> {
    let language = &engine.model.language;
    let device = engine.model.language.device();
    let mut last: Vec<u32> =
        rows.iter().map(|row| (row.prefix.start + row.prefix.len) as u32 - 1).collect();
    let prefill_rows: usize = wave.iter().map(|p| p.entries.len()).sum();

    let (mut ids, mut positions, mut slots, mut blocks) = (vec![], vec![], vec![], vec![]);
    for (i, row) in rows.iter().enumerate() {
        let n = row.fork.residual.len();
        if n == 0 {
            continue;
        }
        let start = ids.len();
        ids.extend(&row.fork.residual);
        positions.extend((0..n).map(|t| row.fork.position + t as u32));
        slots.extend((0..n).map(|t| (row.own + t) as u32));
        blocks.push(Block {
            rows: start..ids.len(),
            keys: vec![row.prefix, Segment { start: row.own, len: n }],
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
        slots.push((row.own + before) as u32);
        blocks.push(Block {
            rows: r..r + 1,
            keys: vec![row.prefix, Segment { start: row.own, len: before + 1 }],
            causal: false,
        });
    }
    let x = language.embed(&ids)?;
    language.forward(&x, &positions, cache, &slots, &AttendPlan { blocks })
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
    for (&i, drawn) in active.iter().zip(drawn) {
        let row = &mut rows[i];
        row.drawn.push(drawn.token);
        row.logprob += drawn.log_prob;
        let ended = engine.model.format.eos_ids().contains(&drawn.token);
        if !ended {
            row.text.push(engine.model.format.tokenizer(), drawn.token)?;
        }
        row.done = verdict(config, row, ended);
    }
    Ok(())
}

/// Whether a row has ended, and with which completion.
fn verdict(config: &SamplingConfig, row: &Row, ended: bool) -> Option<(String, Stop)> {
    let finished = ended || row.drawn.len() >= row.fork.limit;
    let why = if ended { Stop::EndOfSequence } else { Stop::TokenLimit };
    let Some(fragment) = &row.fork.fragment else {
        // A free response keeps no blank that only joined it to the prompt.
        return finished.then(|| (row.text.text().trim().to_owned(), why));
    };
    let new = own_completion(fragment, row.text.text());
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
