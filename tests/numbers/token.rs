//! Token sampling in float64, with full sorts: what the CPU path and the kernel are compared with.

use std::collections::HashSet;

use bdhs::ops::token::{Params, Sampled};

/// The distribution after every filter, in f64, with full sorts.
pub fn reference(logits: &[f64], p: &Params, history: &[u32]) -> Vec<f64> {
    let mut l = logits.to_vec();
    for t in history.iter().collect::<HashSet<_>>() {
        let x = &mut l[*t as usize];
        *x = if *x < 0.0 { *x * p.repetition_penalty } else { *x / p.repetition_penalty };
    }
    let t = if p.temperature == 0.0 { 1.0 } else { p.temperature };
    let mut ranked: Vec<usize> = (0..l.len()).collect();
    ranked.sort_by(|&a, &b| l[b].total_cmp(&l[a]).then(a.cmp(&b)));
    let max = l[ranked[0]];
    let mut w: Vec<f64> = l.iter().map(|x| ((x - max) / t).exp()).collect();
    if p.temperature > 0.0 {
        if p.top_k > 0 && p.top_k < l.len() {
            let kth = l[ranked[p.top_k - 1]];
            (0..l.len()).filter(|&i| l[i] < kth).for_each(|i| w[i] = 0.0);
        }
        let total: f64 = w.iter().sum();
        let mut before = 0.0;
        for (rank, &i) in ranked.iter().enumerate() {
            let mass = w[i];
            if p.top_p < 1.0 && rank > 0 && before >= p.top_p * total {
                w[i] = 0.0;
            }
            before += mass;
        }
        w.iter_mut().filter(|w| **w < p.min_p).for_each(|w| *w = 0.0);
    }
    let total: f64 = w.iter().sum();
    w.iter().map(|w| w / total).collect()
}

/// Whether `got` is the token of draw `u`, or beside it within 1e-6.
pub fn check(got: Sampled, probs: &[f64], u: f64) -> Result<(), String> {
    let token = got.token as usize;
    let below: f64 = probs[..token].iter().sum();
    let p = probs[token];
    if p <= 0.0 {
        return Err(format!("token {token} has probability 0"));
    }
    if !(below - 1e-6..=below + p + 1e-6).contains(&u) {
        return Err(format!("draw {u} is not in token {token}'s [{below}, {}]", below + p));
    }
    if (f64::from(got.log_prob) - p.ln()).abs() > 1e-5 * (1.0 + p.ln().abs()) {
        return Err(format!("log-probability {} of {}", got.log_prob, p.ln()));
    }
    Ok(())
}
