//! Token sampling.

use std::path::Path;

use bdhs::ops::philox::{Draws, Purpose, WHOLE_RESPONSE};
use bdhs::ops::token::{self, Params, Sampled};
use candle_core::{DType, Tensor};

use super::{Cases, FLOATS, Results, below, code, draws, pick, tensor, unit, wide};
use crate::exact;
use crate::numbers::Random;
use crate::replay;

struct TokenRow {
    params: Params,
    draws: Draws,
    sentence: u32,
    step: u64,
    history: Vec<u32>,
}

fn token_row(random: &mut Random, vocab: usize) -> TokenRow {
    let (any, some) = (unit(random), 1 + below(random, vocab));
    let params = Params {
        temperature: pick(random, &[0.0, 1.0, 1.0, 0.7, 0.2, 2.5]),
        top_k: pick(random, &[0, 0, 1, vocab, vocab + 5, some]),
        top_p: pick(random, &[1.0, 1.0, 0.9, 0.5, 1e-9, any]),
        min_p: pick(random, &[0.0, 0.0, 0.05, 0.5, any]),
        repetition_penalty: pick(random, &[1.0, 1.0, 1.3, 0.8]),
    };
    let history = (0..below(random, 20)).map(|_| below(random, vocab) as u32).collect();
    let step = pick(random, &[0, 5, 77, (1 << 34) - 1]);
    TokenRow {
        params,
        draws: draws(random),
        sentence: pick(random, &[0, 2, WHOLE_RESPONSE]),
        step,
        history,
    }
}

impl TokenRow {
    fn row(&self) -> token::Row<'_> {
        token::Row {
            params: self.params,
            draws: self.draws,
            sentence: self.sentence,
            step: self.step,
            history: &self.history,
        }
    }

    fn write(&self, history_start: usize, to: &mut Cases) {
        let p = &self.params;
        let scale = if p.temperature == 0.0 { 0.0 } else { (1.0 / p.temperature) as f32 };
        to.values([self.draws.seed, self.step, history_start as u64]);
        to.float(p.top_p);
        to.float(p.min_p);
        to.words(&[scale.to_bits(), (p.repetition_penalty as f32).to_bits()]);
        to.words(&[self.draws.sample, self.draws.attempt, self.sentence, p.top_k as u32]);
        to.words(&[self.history.len() as u32, 0]);
    }

    /// Whether the draw lies in this token's part of the distribution, or within 1e-6 of it, with a filter moved
    /// by at most 1e-6.
    fn may_draw(&self, logits: &[f32], got: Sampled) -> bool {
        let logits: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
        let u = self.draws.uniform(Purpose::Token, self.sentence, self.step);
        let nudges = [0.0, -1e-6, 1e-6];
        nudges.iter().flat_map(|p| nudges.iter().map(move |m| (p, m))).any(|(p, m)| {
            let mut params = self.params;
            params.top_p = (params.top_p + p).min(1.0);
            params.min_p *= 1.0 + m;
            exact::check(got, &exact::reference(&logits, &params, &self.history), u).is_ok()
        })
    }
}

fn logits(random: &mut Random, rows: usize, vocab: usize, dtype: DType) -> Tensor {
    let mut values = Vec::with_capacity(rows * vocab);
    for _ in 0..rows {
        let (spread, grid) =
            (pick(random, &[0.0, 0.5, 3.0, 20.0]), pick(random, &[0.0, 0.25, 2.0]));
        for _ in 0..vocab {
            let value = random.signed() * spread;
            let tied = if grid > 0.0 { (value / grid).round() * grid } else { value };
            values.push(if random.word().is_multiple_of(50) { f32::NEG_INFINITY } else { tied });
        }
        let last = values.len() - 1 - below(random, vocab);
        values[last] = match random.word() % 40 {
            0 => f32::NAN,
            1 => f32::INFINITY,
            _ => values[last],
        };
    }
    tensor(values, &[rows, vocab], dtype)
}

/// Tokens, log-probabilities and refusals: equal, but for draws within 1e-6 of a boundary, which are counted.
pub fn token(program: &Path, calls: usize) -> Result<String, String> {
    let mut random = Random(2);
    let mut file = Cases::default();
    let mut cases = vec![];
    for c in 0..calls {
        let long = 4096 + below(&mut random, 900);
        let vocab = pick(&mut random, &[1, 2, 31, 33, 77, 300, 1025, long]);
        let dtype = FLOATS[c % 3];
        let rows: Vec<TokenRow> =
            (0..1 + below(&mut random, 3)).map(|_| token_row(&mut random, vocab)).collect();
        let logits = logits(&mut random, rows.len(), vocab, dtype);
        file.values([code(dtype), vocab as u64]);
        file.count(rows.len());
        let mut history: Vec<u32> = vec![];
        for row in &rows {
            row.write(history.len(), &mut file);
            history.extend(&row.history);
        }
        file.tensor(&logits);
        file.array(&history);
        cases.push((rows, logits));
    }
    let mut results = Results::new(replay(program, &file.0));
    let (mut compared, mut near, mut refused) = (0, 0, 0);
    for (c, (rows, logits)) in cases.iter().enumerate() {
        let (tokens, log_probs, status) =
            (results.array::<u32>(), results.array::<f32>(), results.array::<u32>());
        for (r, row) in rows.iter().enumerate() {
            compared += 1;
            let own = logits.narrow(0, r, 1).unwrap();
            let Ok(cpu) = token::sample(&own, &[row.row()]) else {
                refused += 1;
                match status[r] {
                    0 => return Err(format!("call {c}, row {r}: only the CPU refuses it")),
                    _ => continue,
                }
            };
            let kernel = Sampled { token: tokens[r], log_prob: log_probs[r] };
            let slack = 4e-5 + 2e-6 * f64::from(cpu[0].log_prob).abs();
            let close = (f64::from(kernel.log_prob) - f64::from(cpu[0].log_prob)).abs() <= slack;
            if status[r] == 0 && kernel.token == cpu[0].token && close {
                continue;
            }
            near += 1;
            let values = wide(&own);
            if status[r] != 0 || ![cpu[0], kernel].iter().all(|&got| row.may_draw(&values, got)) {
                return Err(format!(
                    "call {c}, row {r}: {:?} on the CPU, {kernel:?} by the kernel",
                    cpu[0]
                ));
            }
        }
    }
    if near * 100 > compared {
        return Err(format!("{near} of {compared} rows differ near a boundary"));
    }
    Ok(format!("{compared} rows, {refused} refused by both, {near} on a boundary"))
}
