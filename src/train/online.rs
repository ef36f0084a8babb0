//! Online BDHS (Sec. 3.4): the rejected answers of a batch are drawn from the model as trained so far.
//!
//! Each pair's chosen answer is the reference. Attempts go on as in a sweep: guided ones under fresh masks and cuts until the
//! encoder finds one below the threshold, the last one free. Draws are addressed by epoch, pair and attempt, so a training that
//! is continued draws what an undisturbed one would.

use super::pairs::Pair;
use super::settings::Online;
use super::trainer::{Example, Trainer};
use crate::Result;
use crate::data::Sample;
use crate::engine::{Engine, Images, Prepared, Request, waves};
use crate::models::encoder::SentenceEncoder;
use crate::ops::cosine;
use crate::sampling::{Candidate, Flag, SamplingConfig, attempts::attempts};

/// Key-value slots of one wave.
const TOKEN_BUDGET: usize = 16_384;
/// Bytes of image features that a batch may hold.
const IMAGE_CACHE: usize = 1 << 30;

/// Draws rejected answers.
pub(super) struct Drawer {
    encoder: SentenceEncoder,
    sampling: SamplingConfig,
    settings: Online,
    seed: u64,
}

impl Drawer {
    /// # Errors
    /// An encoder that cannot be loaded.
    pub fn new(settings: &Online, sampling: &SamplingConfig, trainer: &Trainer) -> Result<Self> {
        sampling.validate()?;
        let device = trainer.model.language.device();
        Ok(Self {
            encoder: SentenceEncoder::load(&settings.encoder, device, candle_core::DType::F32)?,
            sampling: sampling.clone(),
            settings: settings.clone(),
            seed: trainer.settings.seed,
        })
    }

    /// What a step trains on: the pairs with rejected answers of the model as it is now and, with gamma below 1, the pairs
    /// themselves. `batch` are places in `examples`. Answers that teach nothing are left out.
    pub fn batch(
        &self,
        trainer: &Trainer,
        examples: &[Example],
        batch: &[usize],
        epoch: u32,
    ) -> Result<Vec<Example>> {
        let samples: Vec<Sample> = batch.iter().map(|&i| sample(&examples[i].pair, i)).collect();
        let drawn = self.draw(trainer, &samples, epoch)?;
        let mut all = Vec::new();
        for ((&i, sample), candidate) in batch.iter().zip(&samples).zip(drawn) {
            let flags = candidate.flags(&sample.reference, self.sampling.sentences);
            // An identical answer has no gradient, whatever is kept.
            let unusable = |flag: &Flag| match trainer.settings.exclude_flagged {
                true => Flag::UNUSABLE.contains(flag),
                false => *flag == Flag::Identical,
            };
            if !flags.iter().any(unusable) {
                let pair = Pair { rejected: candidate.text, ..examples[i].pair.clone() };
                all.push(Example { weight: self.settings.gamma, ..trainer.example(&pair)? });
            }
        }
        let references = trainer.references(&all.iter().collect::<Vec<_>>())?;
        for (example, reference) in all.iter_mut().zip(references) {
            example.reference = reference;
        }
        if self.settings.gamma < 1.0 {
            let weight = 1.0 - self.settings.gamma;
            all.extend(batch.iter().map(|&i| Example { weight, ..examples[i].clone() }));
        }
        Ok(all)
    }

    /// One accepted, or last, candidate a sample.
    fn draw(&self, trainer: &Trainer, samples: &[Sample], epoch: u32) -> Result<Vec<Candidate>> {
        let seed = self.seed ^ (u64::from(epoch) + 1) << 32;
        let mut engine = Engine::new(&trainer.model, self.sampling.clone(), seed)?;
        let texts: Vec<&str> = samples.iter().map(|sample| sample.reference.as_str()).collect();
        let references = self.encoder.embed(&texts)?.vectors;
        let mut images = Images::new(IMAGE_CACHE);
        let mut found: Vec<Option<Candidate>> = vec![None; samples.len()];
        let mut open: Vec<usize> = (0..samples.len()).collect();
        for attempt in attempts(&self.sampling) {
            let prepared = open
                .iter()
                .map(|&i| {
                    let (attempt, guided) = (attempt.number, attempt.guided);
                    engine.prepare(Request { sample: &samples[i], attempt, guided })
                })
                .collect::<Result<Vec<Prepared>>>()?;
            let costs: Vec<usize> = prepared.iter().map(Prepared::cost).collect();
            let mut candidates = Vec::new();
            for range in waves(&costs, TOKEN_BUDGET) {
                candidates.extend(engine.generate(&prepared[range], &mut images, &())?);
            }
            let texts: Vec<&str> =
                candidates.iter().map(|candidate| candidate.text.as_str()).collect();
            let rows: Vec<u32> = open.iter().map(|&i| i as u32).collect();
            let rows = candle_core::Tensor::new(rows, references.device())?;
            let phis = cosine::rows_f64(
                &self.encoder.embed(&texts)?.vectors,
                &references.index_select(&rows, 0)?,
            )?;
            let mut still = Vec::new();
            for ((i, candidate), phi) in open.into_iter().zip(candidates).zip(phis) {
                // As everywhere: a phi that is no number accepts nothing.
                let accepted = phi < self.settings.threshold;
                if !accepted {
                    still.push(i);
                }
                found[i] = Some(candidate);
            }
            open = still;
            if open.is_empty() {
                break;
            }
        }
        Ok(found.into_iter().flatten().collect())
    }
}

/// A pair as a sample of the method: its chosen answer is the reference.
fn sample(pair: &Pair, index: usize) -> Sample {
    Sample {
        index: index as u32,
        id: pair.id.clone(),
        images: pair.images.clone(),
        turns: pair.turns.clone(),
        reference: pair.chosen.clone(),
        rejected: Some(pair.rejected.clone()),
        source_rejected: pair.source_rejected.clone(),
        flags: pair.flags.clone(),
        row: pair.row,
        place: pair.place.clone(),
    }
}
