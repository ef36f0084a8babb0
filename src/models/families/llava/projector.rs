//! From vision features to states of the language model: dense layers, two as a rule, with an activation between.

use candle_core::Tensor;

use super::config::Config;
use crate::Result;
use crate::models::linear::Linear;
use crate::models::weights::Weights;
use crate::ops::act::Activation;

/// The multimodal projector.
pub struct Projector {
    /// All but the last, each followed by the activation.
    inner: Vec<Linear>,
    last: Linear,
    act: Activation,
}

impl Projector {
    /// Loads `linear_1`, `linear_2` and so on.
    pub(super) fn load(config: &Config, hidden: usize, weights: &Weights) -> Result<Self> {
        let layer = |number: usize| {
            let tower = config.vision.hidden * config.vision_layers.len();
            let input = if number == 1 { tower } else { hidden };
            let name = format!("linear_{number}");
            Linear::load(weights, &name, input, hidden, config.projector_bias)
        };
        Ok(Self {
            inner: (1..config.projector_layers).map(layer).collect::<Result<_>>()?,
            last: layer(config.projector_layers)?,
            act: config.projector_act,
        })
    }

    /// `[n, vision width * layers]` to `[n, H]`, in the dtype of `x`. A projector in training is f32 in a model of any dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = x.to_dtype(self.last.dtype())?;
        for layer in &self.inner {
            h = layer.activated(&h, self.act)?;
        }
        Ok(self.last.forward(&h)?.to_dtype(x.dtype())?)
    }
}
