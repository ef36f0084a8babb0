//! AdamW (Loshchilov & Hutter 2019) with a state that can be saved, and the clipping before it.

use std::collections::HashMap;

use candle_core::{Tensor, Var};

use super::settings::Settings;
use crate::{Error, Result};

/// First and second moments of every parameter, in the order of the parameters.
pub(super) struct Adam {
    moments: Vec<(Tensor, Tensor)>,
    /// Updates made.
    pub step: u32,
}

impl Adam {
    pub fn new(vars: &[&Var]) -> Result<Self> {
        let zeros = |var: &&Var| Ok((var.zeros_like()?.detach(), var.zeros_like()?.detach()));
        Ok(Self { moments: vars.iter().map(zeros).collect::<Result<_>>()?, step: 0 })
    }

    /// One update. `vars` are parameters with the learning rate of each.
    pub fn update(
        &mut self,
        vars: &[(&Var, f64)],
        grads: &[Tensor],
        settings: &Settings,
    ) -> Result<()> {
        self.step += 1;
        let [beta1, beta2] = settings.betas;
        let corrections = settings.betas.map(|beta| 1.0 - beta.powi(self.step as i32));
        for (((var, rate), grad), (first, second)) in vars.iter().zip(grads).zip(&mut self.moments)
        {
            *first = ((&*first * beta1)? + (grad * (1.0 - beta1))?)?;
            *second = ((&*second * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?;
            let spread = ((&*second / corrections[1])?.sqrt()? + settings.epsilon)?;
            let change = ((&*first / corrections[0])? / spread)?;
            let kept = (var.as_tensor().detach() * (1.0 - rate * settings.weight_decay))?;
            var.set(&(kept - (change * *rate)?)?)?;
        }
        Ok(())
    }

    /// Both moments by parameter name.
    pub fn tensors<'a>(&self, names: impl Iterator<Item = &'a str>) -> HashMap<String, Tensor> {
        let named = names.zip(&self.moments);
        named
            .flat_map(|(name, (first, second))| {
                [
                    (format!("first.{name}"), first.clone()),
                    (format!("second.{name}"), second.clone()),
                ]
            })
            .collect()
    }

    /// Takes moments back; `None` if one is missing.
    pub fn set<'a>(
        &mut self,
        names: impl Iterator<Item = &'a str>,
        tensors: &HashMap<String, Tensor>,
    ) -> Option<()> {
        for (name, (first, second)) in names.zip(&mut self.moments) {
            first.clone_from(tensors.get(&format!("first.{name}"))?);
            second.clone_from(tensors.get(&format!("second.{name}"))?);
        }
        Some(())
    }
}

/// Length of all gradients as one vector.
pub(super) fn norm(grads: &[Tensor]) -> Result<f64> {
    let mut squares = 0.0;
    for grad in grads {
        squares += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(squares.sqrt())
}

/// Scales gradients of length `norm` down to the longest allowed, as PyTorch does.
pub(super) fn clip(grads: &mut [Tensor], norm: f64, settings: &Settings) -> Result<()> {
    if !norm.is_finite() {
        return Err(Error::argument("train", "gradient norm", norm, "a finite number"));
    }
    let factor = settings.max_gradient_norm / (norm + 1e-6);
    if settings.max_gradient_norm > 0.0 && factor < 1.0 {
        for grad in grads {
            *grad = (&*grad * factor)?;
        }
    }
    Ok(())
}
