//! Attention in f16 and bf16 by our kernels and, in a build with `flash-attn`, by candle-flash-attn's: neither is off float64 by
//! more than twice what the same attention is off if it is computed step by step in the type.

use bdhs::ops::attend::{AttendPlan, Block, Segment, attend};
use candle_core::{DType, Tensor};
use half::{bf16, f16};

use super::attend::reference;
use super::{Random, both, gpu, is_slow, values};

fn block(rows: std::ops::Range<usize>, start: usize, len: usize, causal: bool) -> Block {
    Block { rows, keys: vec![Segment { start, len }], causal }
}

/// An encoder's batch; a prefill; prefills into an arena with slots between them, one of them behind kept slots.
fn plans() -> Vec<(&'static str, usize, usize, AttendPlan)> {
    let cu = [0, 3, 4, 4, 68, 133, 333];
    let arena = vec![
        block(0..130, 7, 130, true),
        block(130..131, 150, 40, true),
        block(131..200, 200, 100, true),
    ];
    vec![
        ("texts", 333, 333, AttendPlan::ragged(&cu, false)),
        ("prefill", 333, 333, AttendPlan::ragged(&cu, true)),
        ("arena", 200, 310, AttendPlan { blocks: arena }),
    ]
}

fn rounded(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(x).to_f64(),
        _ => bf16::from_f64(x).to_f64(),
    }
}

/// Attention as ops of the type: scores, scaled scores, weights and their sums with v, each rounded to it.
fn unfused([q, k, v]: [&Tensor; 3], plan: &AttendPlan, scale: f64) -> Vec<f64> {
    let dtype = q.dtype();
    let (heads, dim, kv_heads) = (q.dims()[1], q.dims()[2], k.dims()[1]);
    let (q, k, v) = (values(q), values(k), values(v));
    let mut out = vec![0.0; q.len()];
    for block in &plan.blocks {
        let slots: Vec<usize> = block.keys.iter().flat_map(|s| s.start..s.start + s.len).collect();
        for (t, row) in block.rows.clone().enumerate() {
            let hidden = if block.causal { block.rows.len() - 1 - t } else { 0 };
            let seen = &slots[..slots.len() - hidden];
            for h in 0..heads {
                let at = |slot: usize| (slot * kv_heads + h / (heads / kv_heads)) * dim;
                let own = (row * heads + h) * dim;
                let score = |&slot: &usize| {
                    let dot: f64 = (0..dim).map(|d| q[own + d] * k[at(slot) + d]).sum();
                    rounded(rounded(dot, dtype) * scale, dtype)
                };
                let scores: Vec<f64> = seen.iter().map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                let weights = scores.iter().map(|s| rounded((s - max).exp() / sum, dtype));
                for (weight, &slot) in weights.zip(seen) {
                    for d in 0..dim {
                        out[own + d] += weight * v[at(slot) + d];
                    }
                }
                out[own..own + dim].iter_mut().for_each(|x| *x = rounded(*x, dtype));
            }
        }
    }
    out
}

fn error(seen: &[f64], exact: &[f64]) -> f64 {
    assert_eq!(seen.len(), exact.len());
    let off = seen.iter().zip(exact).map(|(s, e)| (s - e).abs());
    // A NaN is no small error.
    off.fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most })
}

#[test]
fn errors_are_at_most_twice_those_of_unfused_ops() {
    let Some(device) = gpu() else { return };
    let mut random = Random(41);
    let all = [(2, 1, 80), (2, 2, 32), (2, 2, 64), (4, 1, 128)];
    let shapes = if is_slow() { &all[..1] } else { &all[..] };
    for (name, rows, slots, plan) in plans() {
        for dtype in [DType::F16, DType::BF16] {
            for (heads, kv_heads, dim) in shapes.iter().copied() {
                let what = format!("{name}, {dtype:?}, {heads} and {kv_heads} heads of {dim}");
                let mut operand = |count, heads| {
                    both(&device, &random.vec(count * heads * dim), &[count, heads, dim], dtype)
                };
                let [q, k, v] =
                    [operand(rows, heads), operand(slots, kv_heads), operand(slots, kv_heads)];
                let scale = 1.0 / (dim as f32).sqrt();
                let host = [&q.0, &k.0, &v.0];
                let exact = reference(host, &plan, scale.into(), |_, _| 0.0);
                let bound = 2.0 * error(&unfused(host, &plan, scale.into()), &exact);
                let check = |whose: &str, seen: Tensor| {
                    assert_eq!((seen.dims(), seen.dtype()), (q.0.dims(), dtype), "{whose}, {what}");
                    let off = error(&values(&seen), &exact);
                    println!("{whose}, {what}: {off:.2e}, allowed {bound:.2e}");
                    assert!(off <= bound, "{whose}, {what}: {off:.2e}, allowed {bound:.2e}");
                };
                check("ours", attend(&q.1, &k.1, &v.1, &plan, scale, None).unwrap());
                #[cfg(feature = "flash-attn")]
                check(
                    "flash",
                    bdhs::ops::attend::flash::attend(&q.1, &k.1, &v.1, &plan, scale).unwrap(),
                );
            }
        }
    }
}

/// Slices of one product, which have rows far apart, and again with the places of a plan already there.
#[cfg(feature = "flash-attn")]
#[test]
fn flash_takes_slices_and_refuses_what_it_does_not_compute() {
    use bdhs::ops::attend::flash;
    let Some(device) = gpu() else { return };
    let mut random = Random(42);
    let (rows, heads, dim) = (99, 3, 16);
    let plan = AttendPlan::ragged(&[0, 1, 1, 80, 97, 99], false);
    let (_, qkv) =
        both(&device, &random.vec(rows * 3 * heads * dim), &[rows, 3, heads, dim], DType::F16);
    let [q, k, v] = [0, 1, 2].map(|i| qkv.narrow(1, i, 1).unwrap().squeeze(1).unwrap());
    let exact = reference([&q, &k, &v], &plan, 0.25, |_, _| 0.0);
    let bound = 2.0 * error(&unfused([&q, &k, &v], &plan, 0.25), &exact);
    for _ in 0..2 {
        let off = error(&values(&flash::attend(&q, &k, &v, &plan, 0.25).unwrap()), &exact);
        assert!(off <= bound, "{off:.2e}, allowed {bound:.2e}");
    }
    let refused = |plan: &AttendPlan, scale: f32, part: &str| {
        let message = flash::attend(&q, &k, &v, plan, scale).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(&plan, -1.0, "a scale that is not above 0");
    refused(&AttendPlan::ragged(&[0, 80], false), 0.25, "in no block");
    refused(&AttendPlan { blocks: vec![block(0..99, 0, 90, true)] }, 0.25, "sees no key");
}
