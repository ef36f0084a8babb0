//! From vision features to states of the language model: two dense layers with an activation between.

use candle_core::Tensor;

use super::config::Config;
use super::linear::Linear;
use crate::Result;
use crate::models::weights::Weights;
use crate::ops::act::{Activation, bias_act};

/// The multimodal projector.
pub struct Projector {
    first: Linear,
    second: Linear,
    act: Activation,
}

impl Projector {
    /// Loads `linear_1` and `linear_2`.
    pub(super) fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let input = config.vision.hidden * config.vision_layers.len();
        let hidden = config.text.hidden;
        let bias = config.projector_bias;
        Ok(Self {
            first: Linear::load(weights, "linear_1", input, hidden, bias)?,
            second: Linear::load(weights, "linear_2", hidden, hidden, bias)?,
            act: config.projector_act,
        })
    }

    /// `[n, vision width * layers]` to `[n, H]`, in the dtype of `x`. A projector in training is f32 in a model of any dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let own = x.to_dtype(self.first.dtype())?;
        let h = bias_act(&self.first.product(&own)?, self.first.bias(), self.act)?;
        Ok(self.second.forward(&h)?.to_dtype(x.dtype())?)
    }
}
