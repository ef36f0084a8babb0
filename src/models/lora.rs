//! What is trained of a model whose weights stay as they are: low-rank pairs beside dense layers (LoRA, Hu et al. 2021),
//! and tensors that are trained whole.
//!
//! A pair adds `scale * (x A^T) B^T` to a layer's product, in f32 whatever the model's dtype, as PEFT does. All pairs of a
//! model share a [`Switch`]: the same network is the frozen base, the model as trained so far, or the model in training.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use candle_core::{DType, Tensor};

use crate::Result;
use crate::ops::philox::{Draws, Purpose, unit_interval};

/// What pairs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Nothing: the model is its base.
    Off,
    /// They are added; no gradient, no dropout.
    Apply,
    /// They are added, with dropout, and gradients reach them.
    Train,
}

/// The mode of all pairs of a model, and which draws dropout makes.
#[derive(Debug)]
pub struct Switch {
    mode: AtomicU8,
    batch: AtomicU64,
}

impl Switch {
    /// Starts off.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { mode: AtomicU8::new(Mode::Off as u8), batch: AtomicU64::new(0) })
    }

    /// Sets the mode of every pair.
    pub fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Names the batch at hand (32 bits of step, 32 of part): dropout is a function of it, so that a recomputed layer drops
    /// the same values.
    pub fn batch(&self, step: u32, part: u32) {
        self.batch.store(u64::from(step) << 32 | u64::from(part), Ordering::Relaxed);
    }

    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Off,
            1 => Mode::Apply,
            _ => Mode::Train,
        }
    }
}

/// A pair beside one dense layer.
#[derive(Clone, Debug)]
pub struct Lora {
    /// `[r, in]`, f32, tracked.
    pub a: Tensor,
    /// `[out, r]`, f32, tracked.
    pub b: Tensor,
    /// alpha / r.
    pub scale: f64,
    /// Probability that an input value is left out in training.
    pub dropout: f64,
    /// Seed of dropout's draws.
    pub seed: u64,
    /// Number of the layer among all with a pair.
    pub number: u32,
    /// Shared by all pairs of the model.
    pub switch: Arc<Switch>,
}

impl Lora {
    /// `y + scale (x A^T) B^T` for `x [n, in]`, `y [n, out]`.
    pub(super) fn add_to(&self, y: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (x, a, b) = match self.switch.mode() {
            Mode::Off => return Ok(y.clone()),
            Mode::Apply => (x.to_dtype(DType::F32)?, self.a.detach(), self.b.detach()),
            Mode::Train => (self.drop(&x.to_dtype(DType::F32)?)?, self.a.clone(), self.b.clone()),
        };
        let delta = (x.matmul(&a.t()?)?.matmul(&b.t()?)? * self.scale)?;
        Ok(if y.dtype() == DType::F32 {
            (y + delta)?
        } else {
            (y.to_dtype(DType::F32)? + delta)?.to_dtype(y.dtype())?
        })
    }

    fn drop(&self, x: &Tensor) -> Result<Tensor> {
        if self.dropout == 0.0 {
            return Ok(x.clone());
        }
        let batch = self.switch.batch.load(Ordering::Relaxed);
        let draws = Draws { seed: self.seed, sample: (batch >> 32) as u32, attempt: batch as u32 };
        let mut words = vec![0u32; x.elem_count()];
        draws.fill(Purpose::Dropout, self.number, &mut words);
        let stays = 1.0 / (1.0 - self.dropout);
        let factor =
            |word: u32| if unit_interval(word) < self.dropout { 0.0 } else { stays as f32 };
        let factors: Vec<f32> = words.into_iter().map(factor).collect();
        Ok((x * Tensor::from_vec(factors, x.shape(), x.device())?)?)
    }
}

/// What is trained of a model, by the full name of the base's tensor.
#[derive(Debug, Default)]
pub struct Trainable {
    /// Pairs, by the name of the dense layer's weight.
    pub pairs: HashMap<String, Lora>,
    /// Tensors that take the base's place: f32, tracked.
    pub whole: HashMap<String, Tensor>,
}
