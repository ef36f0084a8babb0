//! Parameters to be trained: named, seeded, saved as f16.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};

use crate::demo::scene::{Dice, Split};
use crate::models::weights::Weights;
use crate::{Error, Result};

/// What a parameter is before training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Init {
    /// Normal draws of this standard deviation.
    Normal(f64),
    One,
    Zero,
    /// Normal draws that stay as they are.
    Frozen(f64),
}

/// A parameter: name, shape, start.
pub(super) type Spec = (String, Vec<usize>, Init);

/// The parameters of a network, as they are listed.
#[derive(Default)]
pub(super) struct SpecList {
    pub specs: Vec<Spec>,
}

impl SpecList {
    pub fn put(&mut self, name: &str, shape: &[usize], init: Init) {
        self.specs.push((name.to_owned(), shape.to_vec(), init));
    }

    /// A norm's weight, and its bias if it has one.
    pub fn norm(&mut self, name: &str, width: usize, bias: bool) {
        self.put(&format!("{name}.weight"), &[width], Init::One);
        if bias {
            self.put(&format!("{name}.bias"), &[width], Init::Zero);
        }
    }

    /// A dense layer, started at 0.7 / sqrt(input).
    pub fn dense(&mut self, name: &str, input: usize, output: usize, bias: bool) {
        let sd = 0.7 / (input as f64).sqrt();
        self.put(&format!("{name}.weight"), &[output, input], Init::Normal(sd));
        if bias {
            self.put(&format!("{name}.bias"), &[output], Init::Zero);
        }
    }
}

/// Named parameters.
pub(super) struct Parameters {
    vars: BTreeMap<String, Var>,
    frozen: BTreeMap<String, Tensor>,
}

impl Parameters {
    /// Draws every parameter; each from dice of its own, so that a change of one leaves the others.
    pub fn new(specs: &[Spec], seed: u64) -> Result<Self> {
        let (mut vars, mut frozen) = (BTreeMap::new(), BTreeMap::new());
        for (i, (name, shape, init)) in specs.iter().enumerate() {
            let dice = Dice::new(seed, Split::Train, u32::MAX).fork(1 + i as u32);
            let n = shape.iter().product();
            let values = match init {
                Init::Normal(sd) | Init::Frozen(sd) => normal(dice, n, *sd),
                Init::One => vec![1.0; n],
                Init::Zero => vec![0.0; n],
            };
            let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?;
            match init {
                Init::Frozen(_) => frozen.insert(name.clone(), tensor),
                _ => {
                    vars.insert(name.clone(), Var::from_tensor(&tensor)?);
                    None
                }
            };
        }
        Ok(Self { vars, frozen })
    }

    /// The parameters as a checkpoint's weights; networks made from them follow the training.
    pub fn weights(&self, name: &str) -> Weights {
        let vars = self.vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone()));
        let frozen = self.frozen.iter().map(|(name, tensor)| (name.clone(), tensor.clone()));
        Weights::from_tensors(name, vars.chain(frozen).collect(), &Device::Cpu, DType::F32)
    }

    /// One parameter.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let missing = || Error::argument("demo::train", "parameter", name, "a known name");
        self.vars.get(name).map(Var::as_tensor).ok_or_else(missing)
    }

    /// An optimiser of all parameters whose names pass.
    pub fn optimiser(&self, wanted: impl Fn(&str) -> bool) -> Result<Optimiser> {
        let vars: Vec<Var> =
            self.vars.iter().filter(|(name, _)| wanted(name)).map(|(_, var)| var.clone()).collect();
        let params = ParamsAdamW { beta2: 0.98, weight_decay: 0.02, ..ParamsAdamW::default() };
        Ok(Optimiser { inner: AdamW::new(vars.clone(), params)?, vars })
    }

    /// Writes the parameters whose names pass as f16 safetensors.
    pub fn save(&self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let vars = self.vars.iter().map(|(name, var)| (name, var.as_tensor()));
        let mut tensors = HashMap::new();
        for (name, tensor) in vars.chain(&self.frozen).filter(|(name, _)| wanted(name)) {
            tensors.insert(name.clone(), tensor.to_dtype(DType::F16)?);
        }
        Ok(candle_core::safetensors::save(&tensors, path)?)
    }
}

/// AdamW with a clipped gradient norm.
pub(super) struct Optimiser {
    inner: AdamW,
    vars: Vec<Var>,
}

impl Optimiser {
    /// One step down the loss; returns its value. Gradients longer than 1 are scaled down to 1.
    pub fn step(&mut self, loss: &Tensor, rate: f64) -> Result<f32> {
        let mut grads = loss.backward()?;
        let length = self.length(&grads)?;
        if !length.is_finite() {
            return Err(Error::argument("demo::train", "gradient norm", length, "a finite number"));
        }
        if length > 1.0 {
            for var in &self.vars {
                if let Some(grad) = grads.get(var) {
                    let scaled = (grad / length)?;
                    grads.insert(var, scaled);
                }
            }
        }
        self.inner.set_learning_rate(rate);
        self.inner.step(&grads)?;
        Ok(loss.to_scalar::<f32>()?)
    }

    fn length(&self, grads: &GradStore) -> Result<f64> {
        let mut squares = 0.0;
        for grad in self.vars.iter().filter_map(|var| grads.get(var)) {
            squares += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        Ok(squares.sqrt())
    }
}

/// The learning rate of a step: a linear rise over the first 5 %, then a half cosine down to a twentieth.
pub(super) fn rate(peak: f64, step: usize, steps: usize) -> f64 {
    let warm = (steps / 20).max(1);
    if step < warm {
        return peak * (step + 1) as f64 / warm as f64;
    }
    let along = (step - warm) as f64 / (steps - warm).max(1) as f64;
    peak * (0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * along).cos()))
}

/// Normal draws, by Box and Muller.
fn normal(mut dice: Dice, n: usize, sd: f64) -> Vec<f32> {
    (0..n)
        .map(|_| {
            let (radius, angle) = (dice.unit(), dice.unit());
            let z = (-2.0 * radius.ln()).sqrt() * (2.0 * std::f64::consts::PI * angle).cos();
            (z * sd) as f32
        })
        .collect()
}
