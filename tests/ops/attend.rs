//! `ops::attend` against a float64 softmax over gathered keys.

use crate::numbers::Random;
use bdhs::ops::attend::{AttendPlan, Block, RelativeBias, Segment, attend, write_rows};
use candle_core::{DType, Device, Tensor, Var};

/// A number below `n`.
fn below(random: &mut Random, n: usize) -> usize {
    (random.word() % n as u64) as usize
}

/// One of the choices.
fn pick<const N: usize>(random: &mut Random, choices: [usize; N]) -> usize {
    choices[below(random, N)]
}

fn values(t: &Tensor) -> Vec<f64> {
    let t = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    t.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn tensor(random: &mut Random, dims: &[usize], dtype: DType) -> Tensor {
    let n = dims.iter().product();
    Tensor::from_vec(random.values(n, 1.5), dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// `bias(head, key - query)` is added to the scaled score.
fn reference(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    plan: &AttendPlan,
    scale: f64,
    bias: impl Fn(usize, i64) -> f64,
) -> Vec<f64> {
    let (heads, dim, kv_heads) = (q.dims()[1], q.dims()[2], k.dims()[1]);
    let (q, k, v) = (values(q), values(k), values(v));
    let mut out = vec![0.0; q.len()];
    for block in &plan.blocks {
        let slots: Vec<usize> = block.keys.iter().flat_map(|s| s.start..s.start + s.len).collect();
        for (t, row) in block.rows.clone().enumerate() {
            let seen = match block.causal {
                true => (slots.len() + t + 1).saturating_sub(block.rows.len()),
                false => slots.len(),
            };
            for h in 0..heads {
                let g = h / (heads / kv_heads);
                let q = &q[(row * heads + h) * dim..][..dim];
                let at = |slot: usize| (slot * kv_heads + g) * dim;
                let score = |(j, &slot): (usize, &usize)| {
                    let dot: f64 = q.iter().zip(&k[at(slot)..]).map(|(a, b)| a * b).sum();
                    dot * scale + bias(h, j as i64 - t as i64)
                };
                let scores: Vec<f64> = slots[..seen].iter().enumerate().map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for (s, &slot) in scores.iter().zip(&slots) {
                    for d in 0..dim {
                        out[(row * heads + h) * dim + d] += (s - max).exp() / sum * v[at(slot) + d];
                    }
                }
            }
        }
    }
    out
}

fn close(y: &Tensor, exact: &[f64], bound: f64, what: &str) {
    for (i, (y, e)) in values(y).iter().zip(exact).enumerate() {
        assert!((y - e).abs() <= bound, "{what} {i}: {y}, expected {e}");
    }
}

/// Blocks over shuffled row ranges with up to four segments anywhere in the arena.
fn random_plan(random: &mut Random, rows: usize, slots: usize) -> AttendPlan {
    let mut blocks = Vec::new();
    let mut start = 0;
    while start < rows {
        // Some rows are left out of every block.
        start += usize::from(below(random, 5) == 0);
        let longest = pick(random, [1, 3, 9, 200]);
        let end = (start + 1 + below(random, longest)).min(rows);
        if start >= end {
            break;
        }
        let keys = (0..below(random, 4))
            .map(|_| {
                let longest = pick(random, [2, 20, slots]).min(slots);
                let len = below(random, longest);
                Segment { start: below(random, slots - len + 1), len }
            })
            .collect();
        blocks.push(Block { rows: start..end, keys, causal: below(random, 2) == 0 });
        start = end;
    }
    blocks.reverse();
    AttendPlan { blocks }
}

#[test]
fn generated_plans_match_float64() {
    let mut random = Random(11);
    for case in 0..60 {
        let (rows, slots) = (1 + below(&mut random, 300), 1 + below(&mut random, 400));
        let kv_heads = 1 + below(&mut random, 3);
        let heads = kv_heads * (1 + below(&mut random, 4));
        let dim = pick(&mut random, [1, 3, 8, 17, 32, 64, 80]);
        let plan = random_plan(&mut random, rows, slots);
        let (dtype, bound) =
            [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 1.2e-2)][case % 3];
        let q = tensor(&mut random, &[rows, heads, dim], dtype);
        let k = tensor(&mut random, &[slots, kv_heads, dim], dtype);
        let v = tensor(&mut random, &[slots, kv_heads, dim], dtype);
        let scale = 1.0 / (dim as f32).sqrt();
        let y = attend(&q, &k, &v, &plan, scale, None).unwrap();
        assert_eq!((y.dims(), y.dtype()), (q.dims(), dtype));
        let exact = reference(&q, &k, &v, &plan, scale.into(), |_, _| 0.0);
        close(&y, &exact, bound, &format!("case {case} {dtype:?}"));
    }
}

#[test]
fn relative_bias() {
    let mut random = Random(12);
    let (heads, dim, max) = (3, 16, 150);
    let table = tensor(&mut random, &[heads, 2 * max - 1], DType::F32);
    let bias_values = values(&table);
    let cu_seqlens = [0, 1, 1, 150, 167, 169];
    let rows = 169;
    let plan = AttendPlan::ragged(&cu_seqlens, false);
    for fused in [false, true] {
        let qkv = tensor(&mut random, &[rows, 3, heads, dim], DType::F32);
        // Slices of one product have a row pitch of 3 * heads * dim.
        let part = |i: usize| {
            let part = qkv.narrow(1, i, 1).unwrap().squeeze(1).unwrap();
            if fused { part } else { part.contiguous().unwrap() }
        };
        let (q, k, v) = (part(0), part(1), part(2));
        let bias = RelativeBias { table: table.clone(), max };
        let y = attend(&q, &k, &v, &plan, 0.25, Some(&bias)).unwrap();
        let exact = reference(&q, &k, &v, &plan, 0.25, |h, distance| {
            bias_values[h * (2 * max - 1) + (distance + max as i64 - 1) as usize]
        });
        close(&y, &exact, 1e-5, "relative bias");
    }
}

#[test]
fn rows_without_keys_give_zeros() {
    let mut random = Random(13);
    let q = tensor(&mut random, &[6, 2, 4], DType::F32);
    let k = tensor(&mut random, &[3, 2, 4], DType::F32);
    let plan = AttendPlan {
        blocks: vec![
            Block { rows: 0..1, keys: vec![], causal: false },
            Block { rows: 1..2, keys: vec![Segment { start: 3, len: 0 }], causal: true },
            // Two keys for three causal rows: the first sees none.
            Block { rows: 2..5, keys: vec![Segment { start: 0, len: 2 }], causal: true },
        ],
    };
    let y = attend(&q, &k, &k, &plan, 1.0, None).unwrap().to_vec3::<f32>().unwrap();
    for row in [0, 1, 2, 5] {
        assert!(y[row].iter().flatten().all(|&x| x == 0.0), "row {row}: {:?}", y[row]);
    }
    let k = k.to_vec3::<f32>().unwrap();
    assert_eq!(y[3], k[0], "one key: its value");
    assert_ne!(y[4], k[0]);
    let none = AttendPlan::default();
    let empty = Tensor::zeros((0, 2, 4), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(attend(&empty, &empty, &empty, &none, 1.0, None).unwrap().dims(), [0, 2, 4]);
}

#[test]
fn large_scores_and_nan() {
    let k = Tensor::new(&[[[100f32, 0.0]], [[-100.0, 1.0]], [[0.0, 2.0]]], &Device::Cpu).unwrap();
    let q = Tensor::new(&[[[1e3f32, 0.0]], [[f32::NAN, 0.0]]], &Device::Cpu).unwrap();
    let keys = vec![Segment { start: 0, len: 3 }];
    let plan = AttendPlan { blocks: vec![Block { rows: 0..2, keys, causal: false }] };
    let y = attend(&q, &k, &k, &plan, 1.0, None).unwrap().to_vec3::<f32>().unwrap();
    assert_eq!(y[0][0], [100.0, 0.0]);
    assert!(y[1][0].iter().all(|x| x.is_nan()));
}

#[test]
fn a_row_does_not_depend_on_other_blocks() {
    let mut random = Random(14);
    let (q, k) = (
        tensor(&mut random, &[40, 4, 32], DType::F32),
        tensor(&mut random, &[90, 2, 32], DType::F32),
    );
    let block = |row: usize| Block {
        rows: row..row + 1,
        keys: vec![Segment { start: 0, len: 50 }, Segment { start: 50 + row, len: 1 }],
        causal: true,
    };
    let all = AttendPlan { blocks: (0..40).map(block).collect() };
    let one = AttendPlan { blocks: vec![block(17)] };
    let run = |plan| attend(&q, &k, &k, plan, 0.2, None).unwrap().to_vec3::<f32>().unwrap();
    assert_eq!(run(&all)[17], run(&one)[17]);
}

#[test]
fn writes_rows_in_place() {
    let mut random = Random(15);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let arena = tensor(&mut random, &[7, 2, 3], dtype);
        let before = values(&arena);
        let rows = tensor(&mut random, &[2, 3, 3], dtype)
            .transpose(0, 1)
            .unwrap()
            .narrow(1, 0, 2)
            .unwrap();
        write_rows(&arena, &rows, &[6, 0, 2]).unwrap();
        let (after, new) = (values(&arena), values(&rows));
        for slot in 0..7 {
            let expected = match [6, 0, 2].iter().position(|&s| s == slot) {
                Some(i) => &new[i * 6..][..6],
                None => &before[slot * 6..][..6],
            };
            assert_eq!(&after[slot * 6..][..6], expected, "slot {slot}");
        }
        // Parts of longer rows, which lie apart.
        let longer = tensor(&mut random, &[2, 5, 3], dtype).narrow(1, 3, 2).unwrap();
        write_rows(&arena, &longer, &[5, 1]).unwrap();
        let (after, new) = (values(&arena), values(&longer));
        assert_eq!((&after[30..36], &after[6..12]), (&new[..6], &new[6..]));
    }
    let arena = Tensor::zeros((4, 2), DType::F32, &Device::Cpu).unwrap();
    let rows = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
    for (slots, part) in [
        (&[1u32, 4][..], "slots is 4, expected below 4"),
        (&[3, 3], "3 twice"),
        (&[1], "rows is [2, 2]"),
    ] {
        let message = write_rows(&arena, &rows, slots).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    assert!(
        write_rows(&arena.t().unwrap(), &rows, &[0, 1]).unwrap_err().to_string().contains("arena")
    );
    write_rows(&arena, &rows.narrow(0, 0, 0).unwrap(), &[]).unwrap();
    assert_eq!(values(&arena), [0.0; 8], "refused calls write nothing");
}

#[test]
fn misuse_is_named() {
    let q = Tensor::ones((4, 3, 8), DType::F32, &Device::Cpu).unwrap();
    let k = Tensor::ones((5, 3, 8), DType::F32, &Device::Cpu).unwrap();
    let block = |rows: std::ops::Range<usize>, start, len| Block {
        rows,
        keys: vec![Segment { start, len }],
        causal: false,
    };
    let refused = |blocks: Vec<Block>, part: &str| {
        let message =
            attend(&q, &k, &k, &AttendPlan { blocks }, 1.0, None).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(vec![block(0..5, 0, 1)], "rows is 0..5 in block 0, expected within 0..4");
    refused(vec![block(0..2, 0, 1), block(1..3, 0, 1)], "row 1 again in block 1");
    refused(vec![block(0..1, 4, 2)], "2 slots from 4 in block 0");
    refused(vec![block(0..1, usize::MAX, 2)], "segment");
    let plan = AttendPlan { blocks: vec![block(0..4, 0, 4)] };
    let two_heads = k.narrow(1, 0, 2).unwrap();
    assert!(
        attend(&q, &two_heads, &two_heads, &plan, 1.0, None)
            .unwrap_err()
            .to_string()
            .contains("Hq is 3")
    );
    assert!(
        attend(&q, &k, &two_heads, &plan, 1.0, None)
            .unwrap_err()
            .to_string()
            .contains("attend: v is")
    );
    let half = k.to_dtype(DType::F16).unwrap();
    assert!(attend(&q, &half, &half, &plan, 1.0, None).is_err());
    assert!(attend(&q, &k, &k, &plan, f32::NAN, None).is_err());
    let table = Tensor::zeros((3, 5), DType::F32, &Device::Cpu).unwrap();
    let bias = RelativeBias { table, max: 3 };
    let message = attend(&q, &k, &k, &plan, 1.0, Some(&bias)).unwrap_err().to_string();
    assert!(message.contains("at most 3"), "{message}");
}

/// One block by candle's own ops, in whatever dtype the tensors have.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, block: &Block, scale: f64) -> Tensor {
    let slots: Vec<u32> =
        block.keys.iter().flat_map(|s| s.start as u32..(s.start + s.len) as u32).collect();
    let (rows, keys) = (block.rows.len(), slots.len());
    let group = q.dims()[1] / k.dims()[1];
    let gather = |t: &Tensor| {
        let t = t.index_select(&Tensor::new(slots.as_slice(), &Device::Cpu).unwrap(), 0).unwrap();
        let heads: Vec<Tensor> =
            (0..q.dims()[1]).map(|h| t.narrow(1, h / group, 1).unwrap()).collect();
        Tensor::cat(&heads, 1).unwrap().transpose(0, 1).unwrap().contiguous().unwrap()
    };
    let q = q.narrow(0, block.rows.start, rows).unwrap();
    let q = q.transpose(0, 1).unwrap().contiguous().unwrap();
    let mut scores = (q.matmul(&gather(k).transpose(1, 2).unwrap()).unwrap() * scale).unwrap();
    if block.causal {
        let hidden = |t: usize, j: usize| j >= (keys + t + 1).saturating_sub(rows);
        let mask: Vec<f64> =
            (0..rows * keys).map(|i| if hidden(i / keys, i % keys) { -1e9 } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (1, rows, keys), &Device::Cpu).unwrap();
        scores = scores.broadcast_add(&mask).unwrap();
    }
    let max = scores.max_keepdim(2).unwrap().detach();
    let weights = scores.broadcast_sub(&max).unwrap().exp().unwrap();
    let weights = weights.broadcast_div(&weights.sum_keepdim(2).unwrap()).unwrap();
    weights.matmul(&gather(v)).unwrap().transpose(0, 1).unwrap()
}

#[test]
fn gradients_equal_those_of_composed_float64_ops() {
    let mut random = Random(21);
    for case in 0..12 {
        let (kv, group, dim) = (
            pick(&mut random, [1, 2, 3]),
            pick(&mut random, [1, 2]),
            pick(&mut random, [1, 5, 32]),
        );
        // A shared prefix of 9 slots that three blocks see, a fork of one row, and a block past a tile.
        let own = |start, len| Segment { start, len };
        let prefix = own(0, 9);
        let blocks = vec![
            Block { rows: 0..9, keys: vec![prefix], causal: true },
            Block { rows: 9..20, keys: vec![prefix, own(9, 11)], causal: true },
            Block { rows: 20..21, keys: vec![own(2, 5), own(20, 1)], causal: case % 2 == 0 },
            Block { rows: 22..160, keys: vec![own(0, 3), own(22, 138)], causal: case % 3 == 0 },
        ];
        let plan = AttendPlan { blocks };
        let mut var =
            |heads| Var::from_tensor(&tensor(&mut random, &[160, heads, dim], DType::F32)).unwrap();
        let vars = [var(kv * group), var(kv), var(kv), var(kv * group)];
        let [q, k, v, g] = &vars;
        let y = attend(q, k, v, &plan, 0.3, None).unwrap();
        let ours = (y * g.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let doubles =
            [q, k, v, g].map(|t| Var::from_tensor(&t.to_dtype(DType::F64).unwrap()).unwrap());
        let [dq, dk, dv, dg] = &doubles;
        let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu).unwrap();
        for block in &plan.blocks {
            let y = composed(dq, dk, dv, block, 0.3);
            let g = dg.narrow(0, block.rows.start, block.rows.len()).unwrap();
            loss = (loss + (y * g).unwrap().sum_all().unwrap()).unwrap();
        }
        let theirs = loss.backward().unwrap();
        for (i, (var, double)) in vars.iter().zip(&doubles).take(3).enumerate() {
            let ours = values(ours.get(var).expect("a gradient"));
            let theirs = theirs.get(double).unwrap().flatten_all().unwrap();
            let theirs = theirs.to_vec1::<f64>().unwrap();
            let scale = theirs.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
            for (j, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                assert!(
                    (a - b).abs() < 2e-5 * scale,
                    "case {case}, operand {i} at {j}: {a} for {b}"
                );
            }
        }
    }
}
