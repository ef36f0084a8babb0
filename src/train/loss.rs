//! The losses, on log-probabilities of whole answers, in float64.
//!
//! With c and r the log-probabilities of chosen and rejected under the policy, and c0, r0 those under the reference, the
//! margin is m = (c - c0) - (r - r0). A token's gradient is its answer's slope, so this is all that a loss has to say.

use super::settings::{Loss, Settings};

/// One pair's log-probabilities: `[chosen, rejected]` each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogProbs {
    /// Sum over the answer's tokens under the policy.
    pub policy: [f64; 2],
    /// The same under the reference model.
    pub reference: [f64; 2],
    /// Tokens of the answers, the end included.
    pub tokens: [usize; 2],
}

/// A pair's loss, and what of it each log-probability under the policy changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    /// The loss.
    pub loss: f64,
    /// Its derivative by `policy`.
    pub slopes: [f64; 2],
}

impl LogProbs {
    /// beta times policy minus reference: the implicit rewards.
    pub fn rewards(&self, beta: f64) -> [f64; 2] {
        [0, 1].map(|side| beta * (self.policy[side] - self.reference[side]))
    }

    /// The loss of the pair.
    pub fn loss(&self, settings: &Settings) -> Value {
        let beta = settings.beta;
        match settings.loss {
            Loss::Sigmoid => {
                let [chosen, rejected] = self.rewards(beta);
                let (z, s) = (chosen - rejected, settings.label_smoothing);
                let loss = (1.0 - s) * softplus(-z) + s * softplus(z);
                let slope = beta * (s * sigmoid(z) - (1.0 - s) * sigmoid(-z));
                Value { loss, slopes: [slope, -slope] }
            }
            Loss::Ipo => {
                let tokens = self.tokens.map(|n| n.max(1) as f64);
                let mean = |side: usize| (self.policy[side] - self.reference[side]) / tokens[side];
                let off = mean(0) - mean(1) - 0.5 / beta;
                Value { loss: off * off, slopes: [2.0 * off / tokens[0], -2.0 * off / tokens[1]] }
            }
            Loss::Sft => Value { loss: -self.policy[0], slopes: [-1.0, 0.0] },
        }
    }
}

/// log(1 + e^x), without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_derivatives() {
        let pair = LogProbs { policy: [-31.0, -40.5], reference: [-30.0, -41.0], tokens: [12, 17] };
        for loss in [Loss::Sigmoid, Loss::Ipo, Loss::Sft] {
            let settings = Settings { loss, label_smoothing: 0.1, ..Settings::default() };
            let value = pair.loss(&settings);
            for side in 0..2 {
                let at = |by: f64| {
                    let mut pair = pair;
                    pair.policy[side] += by;
                    pair.loss(&settings).loss
                };
                let slope = (at(1e-4) - at(-1e-4)) / 2e-4;
                assert!((slope - value.slopes[side]).abs() < 1e-7, "{loss:?} {side}: {slope}");
            }
        }
    }

    #[test]
    fn equal_models_start_at_log_two_and_far_margins_stay_finite() {
        let settings = Settings::default();
        let even = LogProbs { policy: [-3.0, -9.0], reference: [-3.0, -9.0], tokens: [1, 1] };
        assert_eq!(even.loss(&settings).loss, 2f64.ln());
        let far = LogProbs { policy: [-1e6, 0.0], ..even };
        assert!((far.loss(&settings).loss - 1e5).abs() < 1.0);
        assert!(far.loss(&settings).slopes.iter().all(|slope| slope.is_finite()));
    }
}
