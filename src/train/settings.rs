//! Settings of a training; `docs/config.md` lists every field.

use serde::{Deserialize, Serialize};

use crate::sampling::acceptance::PAPER_THRESHOLD;
use crate::{Error, Result};

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// DPO: -log sigmoid(beta * margin) (Rafailov et al. 2023), with label smoothing.
    #[default]
    Sigmoid,
    /// IPO (Azar et al. 2023): (margin - 1 / (2 beta))^2, margins of mean log-probabilities a token, as TRL has it.
    Ipo,
    /// Next-token loss on the chosen answers alone: the control.
    Sft,
}

/// How a prompt and an answer become tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokens {
    /// As one text, after the special tokens that the tokenizer puts in front (BOS) unless the template writes them: as in
    /// sampling, so the model is trained on the sequences that it writes.
    #[default]
    Whole,
    /// Apart, and nothing is put in front of what the template writes, as TRL has it.
    Trl,
}

/// How a model is trained on pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What is minimised.
    pub loss: Loss,
    /// How a prompt and an answer become tokens.
    pub tokenisation: Tokens,
    /// Strength of the pull to the reference model.
    pub beta: f64,
    /// Assumed share of pairs that are the wrong way round, in [0, 0.5); of the sigmoid loss.
    pub label_smoothing: f64,
    /// Rank of the adapters.
    pub rank: usize,
    /// Adapters count alpha / rank.
    pub alpha: f64,
    /// Share of an adapter's inputs that is left out in training, in [0, 1).
    pub dropout: f64,
    /// Dense layers of the language model that get an adapter, by the last part of their name.
    pub targets: Vec<String>,
    /// Train the projector, whole.
    pub projector: bool,
    /// Highest learning rate of the adapters.
    pub learning_rate: f64,
    /// Highest learning rate of the projector.
    pub projector_learning_rate: f64,
    /// Passes over the pairs.
    pub epochs: u32,
    /// Pairs an optimiser step.
    pub batch: usize,
    /// Share of all steps over which the learning rate rises; then it falls as half a cosine.
    pub warmup: f64,
    /// Gradients longer than this are scaled down to it; 0 = never.
    pub max_gradient_norm: f64,
    /// AdamW's decay rates of the two moments.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub epsilon: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Token rows that are computed at once; gradients of a batch's parts are summed.
    pub tokens: usize,
    /// Compute each layer again when gradients come back, so that memory grows with one layer's activations, not with all.
    pub recompute: bool,
    /// Leave out pairs that are flagged as empty, identical, of the same words or cut by the token limit.
    pub exclude_flagged: bool,
    /// Steps between checkpoints.
    pub checkpoint: u32,
    /// Seed of the adapters' start, the order of pairs and dropout.
    pub seed: u64,
    /// Draw rejected answers from the model in training; by the run's `[sampling]`.
    pub online: Option<Online>,
    /// Weight of a pair's rejected answer beside the one that the data came with, which has the rest; none: the latter is not
    /// trained on. Pairs whose data had none count as a whole.
    pub gamma: Option<f64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            loss: Loss::Sigmoid,
            tokenisation: Tokens::Whole,
            beta: 0.1,
            label_smoothing: 0.0,
            rank: 128,
            alpha: 256.0,
            dropout: 0.0,
            targets: LAYERS.map(str::to_owned).to_vec(),
            projector: false,
            learning_rate: 1e-6,
            projector_learning_rate: 2e-6,
            epochs: 3,
            batch: 32,
            warmup: 0.03,
            max_gradient_norm: 1.0,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
            tokens: 4096,
            recompute: true,
            exclude_flagged: true,
            checkpoint: 50,
            seed: 0,
            online: None,
            gamma: None,
        }
    }
}

/// Passes over the pairs that are no slip of the keyboard.
const MOST_EPOCHS: u32 = 100_000;

/// Names of a language model's dense layers.
const LAYERS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl Settings {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range, with the value seen.
    pub fn validate(&self) -> Result<()> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let share = |x: f64| (0.0..1.0).contains(&x);
        let checks = [
            ("beta", positive(self.beta), self.beta, "a positive number"),
            (
                "label_smoothing",
                (0.0..0.5).contains(&self.label_smoothing),
                self.label_smoothing,
                "in [0, 0.5)",
            ),
            ("rank", self.rank > 0, self.rank as f64, "at least 1"),
            ("alpha", positive(self.alpha), self.alpha, "a positive number"),
            ("dropout", share(self.dropout), self.dropout, "in [0, 1)"),
            ("learning_rate", positive(self.learning_rate), self.learning_rate, "positive"),
            (
                "projector_learning_rate",
                positive(self.projector_learning_rate),
                self.projector_learning_rate,
                "positive",
            ),
            (
                "epochs",
                (1..=MOST_EPOCHS).contains(&self.epochs),
                f64::from(self.epochs),
                "between 1 and 100000",
            ),
            ("batch", self.batch > 0, self.batch as f64, "at least 1"),
            ("warmup", (0.0..=1.0).contains(&self.warmup), self.warmup, "in [0, 1]"),
            (
                "max_gradient_norm",
                self.max_gradient_norm >= 0.0,
                self.max_gradient_norm,
                "0 or more",
            ),
            ("betas[0]", share(self.betas[0]), self.betas[0], "in [0, 1)"),
            ("betas[1]", share(self.betas[1]), self.betas[1], "in [0, 1)"),
            ("epsilon", positive(self.epsilon), self.epsilon, "positive"),
            ("weight_decay", self.weight_decay >= 0.0, self.weight_decay, "0 or more"),
            ("tokens", self.tokens > 0, self.tokens as f64, "at least 1"),
            ("checkpoint", self.checkpoint > 0, f64::from(self.checkpoint), "at least 1"),
        ];
        let invalid = |field: &str, message: String| {
            Err(Error::invalid("configuration", format!("field train.{field}"), message))
        };
        for (field, holds, got, expected) in checks {
            if !holds {
                return invalid(field, format!("is {got}, expected {expected}"));
            }
        }
        if self.targets.is_empty() && !self.projector {
            return invalid(
                "targets",
                "is empty and the projector stays: nothing is trained".into(),
            );
        }
        if let Some(gamma) = self.gamma {
            if !(gamma > 0.0 && gamma <= 1.0) {
                return invalid("gamma", format!("is {gamma}, expected in (0, 1]"));
            }
            if self.online.is_some() || self.loss == Loss::Sft {
                let message =
                    "needs rejected answers that are given: neither online nor the loss sft";
                return invalid("gamma", message.into());
            }
        }
        if let Some(online) = &self.online {
            online.validate(self.projector)?;
            if self.loss == Loss::Sft {
                return invalid("online", "needs a loss that reads rejected answers".into());
            }
        }
        match self.targets.iter().find(|target| !LAYERS.contains(&target.as_str())) {
            Some(other) => {
                invalid("targets", format!("has {other:?}, expected some of {}", LAYERS.join(", ")))
            }
            None => Ok(()),
        }
    }

    /// Optimiser steps for so many pairs: the last batch of an epoch may be smaller.
    ///
    /// # Errors
    /// More than a billion of them.
    pub fn steps(&self, pairs: usize) -> Result<u32> {
        let steps = (pairs.div_ceil(self.batch) as u64).checked_mul(u64::from(self.epochs));
        match steps {
            Some(steps @ 0..=1_000_000_000) => Ok(steps as u32),
            _ => {
                let (epochs, each) = (self.epochs, pairs.div_ceil(self.batch));
                let message = format!(
                    "is {epochs}, and with {each} steps each there are more than 1000000000 steps; take fewer epochs"
                );
                Err(Error::invalid("configuration", "field train.epochs", message))
            }
        }
    }

    /// The share of the highest learning rate in step `step` of `steps`, from 0: a rise from 0 over the warm-up, then half a
    /// cosine down to 0; transformers' cosine schedule.
    pub fn schedule(&self, step: u32, steps: u32) -> f64 {
        let warmup = (self.warmup * f64::from(steps)).ceil();
        let step = f64::from(step);
        if step < warmup {
            return step / warmup;
        }
        let along = (step - warmup) / (f64::from(steps) - warmup).max(1.0);
        0.5 * (1.0 + (std::f64::consts::PI * along).cos())
    }
}

/// How rejected answers are drawn in training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Online {
    /// sentence-transformers folder, as [`SentenceEncoder::load`](crate::models::encoder::SentenceEncoder::load) takes it; in a configuration also a name.
    pub encoder: std::path::PathBuf,
    /// A candidate is accepted if its similarity to the chosen answer is below.
    #[serde(default = "threshold")]
    pub threshold: f64,
    /// Weight of the drawn answer; the pair's own rejected answer has the rest. 1 = drawn answers alone.
    #[serde(default = "gamma")]
    pub gamma: f64,
}

fn threshold() -> f64 {
    PAPER_THRESHOLD
}

fn gamma() -> f64 {
    1.0
}

impl Online {
    /// Checks every field.
    ///
    /// # Errors
    /// The first outside its range.
    fn validate(&self, projector: bool) -> Result<()> {
        let invalid = |field: &str, message: String| {
            Err(Error::invalid("configuration", format!("field train.online.{field}"), message))
        };
        if !(-1.0..=1.0).contains(&self.threshold) {
            return invalid(
                "threshold",
                format!("is {}, expected a cosine in [-1, 1]", self.threshold),
            );
        }
        if !(self.gamma > 0.0 && self.gamma <= 1.0) {
            return invalid("gamma", format!("is {}, expected in (0, 1]", self.gamma));
        }
        if projector {
            let message =
                "needs the base's projector for its reference: train.projector must be false";
            return invalid("encoder", message.to_owned());
        }
        Ok(())
    }
}
