//! One block of a run: rounds of generating what some cell still needs, and of embedding it once per encoder.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::Tensor;
use rayon::prelude::*;

use super::runner::Runner;
use crate::{
    Error, Result,
    data::Sample,
    engine::{Engine, Images, Request, checkpoint, waves},
    models::encoder::Embeddings,
    ops::cosine,
    sampling::{Attempt, Candidate, acceptance::resolved, attempts::attempts},
    store::{Key, Score, WaveRecord},
};

/// Bytes of image features that a block may hold.
const IMAGE_CACHE: usize = 1 << 30;
/// Scores are committed at the end of a block, and before it once they took so long: what a kill may undo. Keys are hashes, so that a
/// transaction changes nearly as many pages for a few scores as for many.
const UNCOMMITTED: Duration = Duration::from_secs(1);

/// What is known of a block's samples. Blocks are done one after another, so it does not grow with a run.
struct Block {
    range: Range<usize>,
    samples: Arc<[Sample]>,
    /// N.
    attempts: usize,
    /// Candidates that the store has.
    generated: HashSet<Key>,
    /// For each encoder, phi of attempt a at sample s at `(s - range.start) * attempts + a - 1`; none where it is not scored.
    phis: Vec<Vec<Option<f64>>>,
    images: Images,
    /// The samples' references, once an encoder has embedded them.
    references: Vec<Option<Embeddings>>,
    /// Scores that are not stored yet, and the time that they took.
    scored: Vec<(usize, Vec<Score>)>,
    held: Duration,
}

/// One attempt at every open sample of a block.
struct Round {
    attempt: Attempt,
    /// Which samples; the lists after it are in this order.
    open: Vec<usize>,
    keys: Vec<Key>,
    /// Texts of the candidates, as far as they are in memory.
    texts: Vec<Option<String>>,
}

impl Block {
    fn sample(&self, sample: usize) -> &Sample {
        &self.samples[sample - self.range.start]
    }

    fn place(&self, sample: usize, attempt: Attempt) -> usize {
        (sample - self.range.start) * self.attempts + attempt.number as usize - 1
    }

    /// phi of attempts 1, 2, ... before `attempt`, up to the first that an encoder has not scored.
    fn before(&self, encoder: usize, sample: usize, attempt: Attempt) -> Vec<f64> {
        let first = (sample - self.range.start) * self.attempts;
        let earlier = &self.phis[encoder][first..self.place(sample, attempt)];
        earlier.iter().copied().map_while(|phi| phi).collect()
    }
}

impl Runner<'_> {
    /// All rounds of one block, as far as some cell still needs them.
    pub(super) fn block(&mut self, range: Range<usize>) -> Result<()> {
        let mut block = self.known(range)?;
        let outcome = self.rounds(&mut block);
        // What was embedded is kept, also where the next step is stopped or fails.
        self.commit(&mut block)?;
        outcome
    }

    fn rounds(&mut self, block: &mut Block) -> Result<()> {
        for attempt in attempts(&self.config.sampling) {
            let open: Vec<usize> =
                block.range.clone().filter(|&i| self.is_open(block, i, attempt)).collect();
            if open.is_empty() {
                break;
            }
            let keys = open.iter().map(|&i| self.key(block.sample(i), attempt)).collect();
            let texts = vec![None; open.len()];
            let mut round = Round { attempt, open, keys, texts };
            self.generate(block, &mut round)?;
            self.score(block, &mut round)?;
        }
        Ok(())
    }

    /// What the store has of a block.
    fn known(&self, range: Range<usize>) -> Result<Block> {
        let samples = range.start as u32..range.end as u32;
        let heads = self.store.candidate_refs_of(samples.clone())?;
        let count = self.config.sampling.attempts as usize;
        let mut block = Block {
            samples: self.dataset.read(range.clone())?.into(),
            attempts: count,
            generated: heads.iter().map(|head| head.key).collect(),
            phis: vec![vec![None; range.len() * count]; self.encoders.len()],
            images: Images::new(IMAGE_CACHE),
            references: self.encoders.iter().map(|_| None).collect(),
            scored: Vec::new(),
            held: Duration::ZERO,
            range,
        };
        if heads.is_empty() {
            return Ok(block);
        }
        let own: Vec<Attempt> = attempts(&self.config.sampling).collect();
        for (e, encoder) in self.encoders.iter().enumerate() {
            for row in self.store.score_rows_of(encoder.fingerprint(), samples.clone())? {
                let attempt = Attempt { number: row.attempt, guided: row.guided };
                // A store may have attempts of the other stream, of a run with another N.
                if own.contains(&attempt) {
                    let place = block.place(row.sample as usize, attempt);
                    block.phis[e][place] = Some(row.score.phi);
                }
            }
        }
        Ok(block)
    }

    /// Whether some cell still needs this attempt. Only earlier attempts count, so that a resumed round
    /// has the samples of an undisturbed one, whatever part of it is already scored.
    fn is_open(&self, block: &Block, sample: usize, attempt: Attempt) -> bool {
        let encoders = 0..self.encoders.len();
        let lists: Vec<Vec<f64>> = encoders.map(|e| block.before(e, sample, attempt)).collect();
        let lists: Vec<&[f64]> = lists.iter().map(Vec::as_slice).collect();
        !resolved(&lists, &self.config.grid.thresholds, self.config.sampling.attempts)
    }

    /// The candidates of a round, wave by wave, each wave one transaction.
    ///
    /// Waves are laid out over all open samples, also those that are already stored, so that a resumed
    /// round has the batch shapes of an undisturbed one.
    fn generate(&mut self, block: &mut Block, round: &mut Round) -> Result<()> {
        if round.keys.iter().all(|key| block.generated.contains(key)) {
            return Ok(());
        }
        if self.given.is_some() {
            return self.take(block, round);
        }
        self.load_model()?;
        let Some(model) = &self.model else { return Ok(()) };
        let begun = Instant::now();
        let number = round.attempt.number;
        let mut budget = self.store.token_budget()?;
        let mut engine = Engine::new(model, self.config.sampling.clone(), self.config.run.seed)?
            .with_slots(budget as usize)
            .with_arena(self.arena.take());
        let (samples, first) = (block.samples.clone(), block.range.start);
        let request = |sample: &usize| Request {
            sample: &samples[*sample - first],
            attempt: number,
            guided: round.attempt.guided,
        };
        let prepared = round
            .open
            .par_iter()
            .map(|sample| engine.prepare(request(sample)))
            .collect::<Result<Vec<_>>>()
            .map_err(|error| error.in_file(self.dataset.path()))?;
        let costs: Vec<usize> = prepared.iter().map(|prepared| prepared.cost()).collect();
        self.progress.begin(&format!("attempt {number}: tokens"), None);
        let mut stored = 0.0;
        for range in waves(&costs, budget as usize) {
            checkpoint(self.progress)?;
            let begun = Instant::now();
            let missing: Vec<usize> =
                range.filter(|&i| !block.generated.contains(&round.keys[i])).collect();
            let wave: Vec<_> = missing.iter().map(|&i| prepared[i].clone()).collect();
            let candidates = engine.generate(&wave, &mut block.images, self.progress)?;
            let rows: Vec<(Key, Candidate)> =
                missing.iter().map(|&i| round.keys[i]).zip(candidates).collect();
            if rows.is_empty() {
                continue;
            }
            let wave = self.store.next_wave(number)?;
            if engine.slots() < budget as usize {
                budget = engine.slots() as u32;
                self.store.lower_token_budget(number, wave, budget, "out of memory")?;
            }
            let record = WaveRecord {
                round: number,
                wave,
                token_budget: budget,
                seconds: BTreeMap::from([("generate".into(), begun.elapsed().as_secs_f64())]),
            };
            let committing = Instant::now();
            self.store.commit_wave(&record, &rows)?;
            stored += committing.elapsed().as_secs_f64();
            for (i, (key, candidate)) in missing.into_iter().zip(rows) {
                block.generated.insert(key);
                round.texts[i] = Some(candidate.text);
            }
        }
        self.arena = engine.into_arena();
        *self.seconds.entry("store".into()).or_default() += stored;
        *self.seconds.entry("generate".into()).or_default() +=
            begun.elapsed().as_secs_f64() - stored;
        Ok(())
    }

    /// The candidates of a round out of those that were made elsewhere, as one wave. Masks are those that a run would have had
    /// where the model is known.
    fn take(&mut self, block: &mut Block, round: &mut Round) -> Result<()> {
        if !self.config.model.path.as_os_str().is_empty() {
            self.load_model()?;
        }
        let Some(given) = &self.given else { return Ok(()) };
        let (sampling, seed) = (&self.config.sampling, self.config.run.seed);
        let engine = self.model.as_ref();
        let engine = engine.map(|model| Engine::new(model, sampling.clone(), seed)).transpose()?;
        let missing: Vec<usize> =
            (0..round.open.len()).filter(|&i| !block.generated.contains(&round.keys[i])).collect();
        let mut rows = Vec::with_capacity(missing.len());
        for &i in &missing {
            let sample = block.sample(round.open[i]);
            let Attempt { number: attempt, guided } = round.attempt;
            let mask = match &engine {
                Some(engine) => {
                    let prepared = engine.prepare(Request { sample, attempt, guided })?;
                    (prepared.image_tokens() as u32, prepared.kept().to_vec())
                }
                None => (0, Vec::new()),
            };
            let candidate = given.candidate(sample, round.attempt, sampling, seed, mask)?;
            rows.push((round.keys[i], candidate));
        }
        let number = round.attempt.number;
        let record = WaveRecord {
            round: number,
            wave: self.store.next_wave(number)?,
            token_budget: self.store.token_budget()?,
            seconds: BTreeMap::new(),
        };
        self.store.commit_wave(&record, &rows)?;
        for (i, (key, candidate)) in missing.into_iter().zip(rows) {
            block.generated.insert(key);
            round.texts[i] = Some(candidate.text);
        }
        Ok(())
    }

    /// Scores a round with every encoder.
    ///
    /// Batches are a function of the block and its open samples, so a resumed run embeds the same ones.
    fn score(&mut self, block: &mut Block, round: &mut Round) -> Result<()> {
        for e in 0..self.encoders.len() {
            let begun = Instant::now();
            let scores = self.score_with(e, block, round)?;
            block.scored.push((e, scores));
            block.held += begun.elapsed();
            if block.held >= UNCOMMITTED {
                self.commit(block)?;
            }
        }
        Ok(())
    }

    /// Stores the scores of a block that are not stored yet, in one transaction.
    fn commit(&mut self, block: &mut Block) -> Result<()> {
        let begun = Instant::now();
        let lists: Vec<(&str, &[Score])> = block
            .scored
            .iter()
            .filter(|(_, scores)| !scores.is_empty())
            .map(|(e, scores)| (self.encoders[*e].fingerprint(), scores.as_slice()))
            .collect();
        if !lists.is_empty() {
            self.store.commit_scores(&lists)?;
            *self.seconds.entry("store".into()).or_default() += begun.elapsed().as_secs_f64();
        }
        block.scored = Vec::new();
        block.held = Duration::ZERO;
        Ok(())
    }

    /// What one encoder says of those candidates of a round that it has not scored.
    fn score_with(&mut self, e: usize, block: &mut Block, round: &mut Round) -> Result<Vec<Score>> {
        checkpoint(self.progress)?;
        let unscored =
            |&i: &usize| block.phis[e][block.place(round.open[i], round.attempt)].is_none();
        let todo: Vec<usize> = (0..round.open.len()).filter(unscored).collect();
        if todo.is_empty() {
            return Ok(Vec::new());
        }
        let begun = Instant::now();
        let encoder = &self.encoders[e];
        self.progress.begin(&format!("attempt {}: {}", round.attempt.number, encoder.name()), None);
        let references = match &mut block.references[e] {
            Some(known) => known,
            none => {
                let texts: Vec<&str> = block.samples.iter().map(|s| s.reference.as_str()).collect();
                none.insert(encoder.embed(&texts)?)
            }
        };
        self.read_texts(round, &todo)?;
        let scores = self.phi(e, block.range.start, &todo, round, references)?;
        for (&i, score) in todo.iter().zip(&scores) {
            let place = block.place(round.open[i], round.attempt);
            block.phis[e][place] = Some(score.phi);
        }
        let stage = format!("embed {}", self.encoders[e].name());
        *self.seconds.entry(stage).or_default() += begun.elapsed().as_secs_f64();
        Ok(scores)
    }

    /// Reads those of the texts that an earlier process generated.
    fn read_texts(&self, round: &mut Round, todo: &[usize]) -> Result<()> {
        for &i in todo.iter() {
            if round.texts[i].is_some() {
                continue;
            }
            let key = &round.keys[i];
            let candidate = self.store.candidate(key)?.ok_or_else(|| Error::Store {
                path: self.store.path().into(),
                message: format!("candidate {key} of sample {} is missing", round.open[i]),
            })?;
            round.texts[i] = Some(candidate.text);
        }
        Ok(())
    }

    /// phi of some candidates of a round, whose texts are there, in a block whose references are embedded from sample `first` on.
    fn phi(
        &self,
        encoder: usize,
        first: usize,
        todo: &[usize],
        round: &Round,
        references: &Embeddings,
    ) -> Result<Vec<Score>> {
        let texts: Vec<&str> =
            todo.iter().map(|&i| round.texts[i].as_deref().unwrap_or_default()).collect();
        let embedded = self.encoders[encoder].embed(&texts)?;
        let rows: Vec<u32> = todo.iter().map(|&i| (round.open[i] - first) as u32).collect();
        let device = references.vectors.device();
        let paired = references.vectors.index_select(&Tensor::new(rows.as_slice(), device)?, 0)?;
        let phis = cosine::rows_f64(&embedded.vectors, &paired)?;
        let score = |(at, &i): (usize, &usize)| {
            let reference = rows[at] as usize;
            Score {
                candidate: round.keys[i],
                phi: phis[at],
                candidate_tokens: embedded.tokens[at],
                reference_tokens: references.tokens[reference],
                candidate_truncated: embedded.truncated[at],
                reference_truncated: references.truncated[reference],
            }
        };
        Ok(todo.iter().enumerate().map(score).collect())
    }
}
