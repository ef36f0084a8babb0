//! Log-probabilities of a packed batch, and gradients through the language model a layer at a time.
//!
//! The way up keeps what goes into each layer. The way down computes a layer again with its graph, takes the gradient of
//! `sum(output * gradient of output)`, and drops the graph before the next: at any time one layer's activations are alive.

use candle_core::backprop::GradStore;
use candle_core::{D, Tensor, Var};
use candle_nn::ops::log_softmax;

use super::parameters::Parameters;
use super::sequence::{Packed, Target};
use crate::Result;
use crate::models::Language;
use crate::models::lora::Mode;

/// Rows of logits that are alive at once.
const HEAD_ROWS: usize = 1024;

/// A pass over a batch, between its log-probabilities and their gradients.
pub(super) struct Pass<'a> {
    language: &'a Language,
    packed: &'a Packed,
    /// The input rows; with their graph if the projector is trained.
    input: Tensor,
    kept: Kept,
}

/// What is kept for the way down.
enum Kept {
    /// The input of every layer, and the last one's output.
    Inputs(Vec<Tensor>),
    /// Predicted log-probabilities, with the graph of everything.
    Graph(Tensor),
}

/// Gradients of all parameters, in their order; those that a pass does not reach are absent.
pub(super) type Grads = Vec<Option<Tensor>>;

/// Log-probability of each target token, without a graph.
pub(super) fn log_probs(language: &Language, packed: &Packed, input: &Tensor) -> Result<Vec<f64>> {
    let x = language.forward_packed(&input.detach(), &packed.positions, &packed.plan)?;
    let mut all = Vec::with_capacity(packed.targets.len());
    for targets in packed.targets.chunks(HEAD_ROWS) {
        all.extend(values(&log_probs_of(language, &rows(&x, targets)?, targets)?)?);
    }
    Ok(all)
}

impl<'a> Pass<'a> {
    /// The way up, with every pair in training mode. Returns each target's log-probability, too.
    pub fn up(
        language: &'a Language,
        packed: &'a Packed,
        input: Tensor,
        parameters: &Parameters,
        recompute: bool,
    ) -> Result<(Self, Vec<f64>)> {
        parameters.switch.set(Mode::Train);
        let (positions, plan) = (&packed.positions, &packed.plan);
        let rotary = language.rotary(&input, positions)?;
        let layers = language.config().layers;
        if !recompute {
            let mut x = input.clone();
            for i in 0..layers {
                x = language.layer(i, &x, &rotary, plan)?;
            }
            let states = language.finish(&rows(&x, &packed.targets)?)?;
            let graph = log_probs_of(language, &states, &packed.targets)?;
            let found = values(&graph)?;
            return Ok((Self { language, packed, input, kept: Kept::Graph(graph) }, found));
        }
        let mut states = vec![input.detach()];
        for i in 0..layers {
            let x = language.layer(i, &states[i], &rotary, plan)?.detach();
            states.push(x);
        }
        let mut found = Vec::with_capacity(packed.targets.len());
        for targets in packed.targets.chunks(HEAD_ROWS) {
            let x = language.finish(&rows(&states[layers], targets)?)?;
            found.extend(values(&log_probs_of(language, &x, targets)?)?);
        }
        Ok((Self { language, packed, input, kept: Kept::Inputs(states) }, found))
    }

    /// The way down: `slopes` is the loss's derivative by each target's log-probability. Adds to `grads`.
    pub fn down(self, slopes: &[f64], parameters: &Parameters, grads: &mut Grads) -> Result<()> {
        let (language, packed) = (self.language, self.packed);
        let mut states = match self.kept {
            Kept::Graph(graph) => {
                let store = (graph * weights(slopes, language)?)?.sum_all()?.backward()?;
                return collect(&store, parameters, grads);
            }
            Kept::Inputs(states) => states,
        };
        let Some(last) = states.pop() else { return Ok(()) };
        let mut gradient = head_gradient(language, packed, &last, slopes)?;
        drop(last);
        let rotary = language.rotary(&self.input, &packed.positions)?;
        for i in (0..states.len()).rev() {
            let Some(x) = states.pop() else { break };
            let x = Var::from_tensor(&x)?;
            let y = language.layer(i, x.as_tensor(), &rotary, &packed.plan)?;
            let store = (y * gradient.detach())?.sum_all()?.backward()?;
            collect(&store, parameters, grads)?;
            gradient = match store.get(&x) {
                Some(found) => found.detach(),
                None => return Ok(()),
            };
        }
        if self.input.track_op() {
            let store = (self.input * gradient)?.sum_all()?.backward()?;
            collect(&store, parameters, grads)?;
        }
        Ok(())
    }
}

/// The gradient of the last layer's output, some rows of logits at a time.
fn head_gradient(
    language: &Language,
    packed: &Packed,
    x: &Tensor,
    slopes: &[f64],
) -> Result<Tensor> {
    let mut gradient = x.zeros_like()?;
    for (targets, slopes) in packed.targets.chunks(HEAD_ROWS).zip(slopes.chunks(HEAD_ROWS)) {
        let states = Var::from_tensor(&rows(x, targets)?)?;
        let found = log_probs_of(language, &language.finish(states.as_tensor())?, targets)?;
        let store = (found * weights(slopes, language)?)?.sum_all()?.backward()?;
        if let Some(part) = store.get(&states) {
            gradient = gradient.index_add(&row_numbers(targets, x)?, &part.detach(), 0)?;
        }
    }
    Ok(gradient)
}

/// Log-probabilities of targets, from the normed states of their rows.
fn log_probs_of(language: &Language, states: &Tensor, targets: &[Target]) -> Result<Tensor> {
    let wanted: Vec<u32> = targets.iter().map(|target| target.token).collect();
    let wanted = Tensor::from_vec(wanted, (targets.len(), 1), states.device())?;
    let all = log_softmax(&language.logits(states)?, D::Minus1)?;
    Ok(all.gather(&wanted, 1)?.squeeze(1)?)
}

fn row_numbers(targets: &[Target], like: &Tensor) -> Result<Tensor> {
    let rows: Vec<u32> = targets.iter().map(|target| target.row).collect();
    Ok(Tensor::new(rows, like.device())?)
}

fn rows(x: &Tensor, targets: &[Target]) -> Result<Tensor> {
    Ok(x.index_select(&row_numbers(targets, x)?, 0)?)
}

fn values(found: &Tensor) -> Result<Vec<f64>> {
    Ok(found.detach().to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

fn weights(slopes: &[f64], language: &Language) -> Result<Tensor> {
    let slopes: Vec<f32> = slopes.iter().map(|&slope| slope as f32).collect();
    Ok(Tensor::new(slopes, language.device())?)
}

fn collect(store: &GradStore, parameters: &Parameters, grads: &mut Grads) -> Result<()> {
    grads.resize(parameters.all.len(), None);
    for (sum, parameter) in grads.iter_mut().zip(&parameters.all) {
        if let Some(grad) = store.get(&parameter.var) {
            let grad = grad.detach();
            *sum = Some(match sum.take() {
                None => grad,
                Some(before) => (before + grad)?,
            });
        }
    }
    Ok(())
}
