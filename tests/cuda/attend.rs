//! `attend` and `write_rows` on a GPU.

use bdhs::ops::attend::{AttendPlan, Block, RelativeBias, Segment, attend, write_rows};
use bdhs::ops::cuda;
use candle_core::{DType, Device, Tensor, Var};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::{
    FLOATS, Random, assert_close, both, candle_runs, gpu, roundoff, stream, stream_to_capture,
    values,
};

/// `bias(head, key - query)` is added to the scaled score.
pub(super) fn reference(
    [q, k, v]: [&Tensor; 3],
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
            let hidden = if block.causal { block.rows.len() - 1 - t } else { 0 };
            let seen = &slots[..slots.len().saturating_sub(hidden)];
            for h in 0..heads {
                let at = |slot: usize| (slot * kv_heads + h / (heads / kv_heads)) * dim;
                let own = (row * heads + h) * dim;
                let score = |(j, &slot): (usize, &usize)| {
                    let dot: f64 = (0..dim).map(|d| q[own + d] * k[at(slot) + d]).sum();
                    dot * scale + bias(h, j as i64 - t as i64)
                };
                let scores: Vec<f64> = seen.iter().enumerate().map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for (s, &slot) in scores.iter().zip(seen) {
                    for d in 0..dim {
                        out[own + d] += (s - max).exp() / sum * v[at(slot) + d];
                    }
                }
            }
        }
    }
    out
}

fn own(start: usize, len: usize) -> Segment {
    Segment { start, len }
}

/// A prefill past a tile, forks of it (short, of several chunks, of several rows), and rows without keys or block.
fn plan() -> AttendPlan {
    let block = |rows, keys, causal| Block { rows, keys, causal };
    AttendPlan {
        blocks: vec![
            block(75..76, vec![own(0, 40), own(590, 1)], true),
            block(0..70, vec![own(0, 70)], true),
            block(76..77, vec![own(3, 570), own(0, 0), own(591, 2)], true),
            block(77..80, vec![own(0, 300), own(593, 3)], true),
            block(80..81, vec![], false),
            // Two keys for three causal rows: the first sees none.
            block(82..85, vec![own(7, 2)], true),
            block(70..75, vec![own(100, 33)], false),
        ],
    }
}

const ROWS: usize = 86;
const SLOTS: usize = 600;

fn operands(
    device: &Device,
    random: &mut Random,
    (heads, kv_heads, dim): (usize, usize, usize),
    dtype: DType,
) -> [(Tensor, Tensor); 3] {
    let shapes = [[ROWS, heads, dim], [SLOTS, kv_heads, dim], [SLOTS, kv_heads, dim]];
    shapes.map(|shape| both(device, &random.vec(shape.iter().product()), &shape, dtype))
}

fn bound(dtype: DType, largest: f64) -> (f64, f64) {
    let absolute = if dtype == DType::F32 { 1e-5 } else { 4e-5 };
    (absolute * largest, roundoff(dtype))
}

#[test]
fn attention_is_that_of_float64_and_of_the_cpu() {
    let Some(device) = gpu() else { return };
    let mut random = Random(31);
    let plan = plan();
    for dtype in FLOATS {
        for (heads, kv_heads, dim) in [(2, 2, 64), (7, 1, 17), (4, 2, 80), (2, 1, 128), (1, 1, 200)]
        {
            let what = format!("{dtype:?}, {heads} and {kv_heads} heads of {dim}");
            let of = operands(&device, &mut random, (heads, kv_heads, dim), dtype);
            let [(q, gq), (k, gk), (v, gv)] = &of;
            let scale = 1.0 / (dim as f32).sqrt();
            let seen = attend(gq, gk, gv, &plan, scale, None).unwrap();
            assert_eq!((seen.dims(), seen.dtype()), (q.dims(), dtype), "{what}");
            let exact = reference([q, k, v], &plan, scale.into(), |_, _| 0.0);
            let (absolute, relative) = bound(dtype, 5.0);
            assert_close(&values(&seen), &exact, absolute, relative, &what);
            let twin = attend(q, k, v, &plan, scale, None).unwrap();
            assert_close(&values(&seen), &values(&twin), absolute, 2.0 * relative, &what);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_other_blocks() {
    let Some(device) = gpu() else { return };
    let mut random = Random(32);
    let all = plan();
    for dtype in FLOATS {
        let of = operands(&device, &mut random, (4, 2, 64), dtype);
        let [(_, q), (_, k), (_, v)] = &of;
        let run = |plan: &AttendPlan| values(&attend(q, k, v, plan, 0.125, None).unwrap());
        let (together, width) = (run(&all), 4 * 64);
        assert_eq!(run(&all), together, "another run");
        for block in &all.blocks {
            let alone = run(&AttendPlan { blocks: vec![block.clone()] });
            for row in 0..ROWS {
                let at = row * width..(row + 1) * width;
                match block.rows.contains(&row) {
                    true => assert_eq!(alone[at.clone()], together[at], "row {row}"),
                    false => assert!(alone[at].iter().all(|&x| x == 0.0), "row {row}"),
                }
            }
        }
    }
}

/// Twenty forks of one prefix and two of a part of it, which read chunks of it together; the last slot that any sees is NaN.
#[test]
fn a_fork_gives_the_same_alone_and_beside_others() {
    let Some(device) = gpu() else { return };
    let mut random = Random(38);
    let (rows, slots, dim) = (23, 400, 64);
    let block = |row: usize| {
        let cut = [350, 100 + 9 * row, 192, 65][row % 4];
        let own = Segment { start: 360 + row, len: 1 };
        Block { rows: row..row + 1, keys: vec![Segment { start: 2, len: cut }, own], causal: true }
    };
    let mut blocks: Vec<Block> = (0..20).map(block).collect();
    for (rows, end) in [(20..22, 130), (22..23, 256)] {
        let keys = vec![own(64, end - 64), own(340 + 2 * rows.start, 2)];
        blocks.push(Block { rows, keys, causal: true });
    }
    let all = AttendPlan { blocks: blocks.clone() };
    let shared = cuda::attend::Plan::new(&stream(&device), &all, rows, slots, 1).unwrap();
    // Chunks of the twenty: 2 + (1 + 6) + (1 + 2) + (1 + 7) + 1 + 5, shared ones first; of the others 1 + 1 + 3.
    assert_eq!(shared.reads(), 26 + 5);
    for dtype in FLOATS {
        for (heads, kv_heads) in [(2, 2), (6, 1), (20, 1)] {
            let what = format!("{dtype:?}, {heads} and {kv_heads} heads");
            let mut operand = |count, heads| {
                let mut values = random.vec(count * heads * dim);
                if count == slots {
                    values[351 * heads * dim..352 * heads * dim].fill(f32::NAN);
                }
                both(&device, &values, &[count, heads, dim], dtype)
            };
            let (q, k, v) =
                (operand(rows, heads), operand(slots, kv_heads), operand(slots, kv_heads));
            let run = |blocks: Vec<Block>| {
                values(&attend(&q.1, &k.1, &v.1, &AttendPlan { blocks }, 0.125, None).unwrap())
            };
            let together = run(blocks.clone());
            let exact = reference([&q.0, &k.0, &v.0], &all, 0.125, |_, _| 0.0);
            let width = heads * dim;
            let (absolute, relative) = bound(dtype, 5.0);
            for block in &blocks {
                let at = block.rows.start * width..block.rows.end * width;
                let alone = run(vec![block.clone()]);
                let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(
                    bits(&alone[at.clone()]),
                    bits(&together[at.clone()]),
                    "{what}: {block:?}"
                );
                if block.keys[0].start == 2 && block.keys[0].len == 350 {
                    assert!(together[at].iter().all(|x| x.is_nan()), "{what}: {block:?}");
                } else {
                    assert_close(&together[at.clone()], &exact[at], absolute, relative, &what);
                }
            }
        }
    }
}

#[test]
fn biases_and_slices_of_one_product() {
    let Some(device) = gpu() else { return };
    let mut random = Random(33);
    let (heads, dim, max, rows) = (3, 16, 90, 99);
    let plan = AttendPlan::ragged(&[0, 1, 1, 80, 97, 99], false);
    let (table, gpu_table) =
        both(&device, &random.vec(heads * (2 * max - 1)), &[heads, 2 * max - 1], DType::F32);
    let table = values(&table);
    let biases =
        |h: usize, distance: i64| table[h * (2 * max - 1) + (distance + max as i64 - 1) as usize];
    for dtype in FLOATS {
        let (qkv, gpu_qkv) =
            both(&device, &random.vec(rows * 3 * heads * dim), &[rows, 3, heads, dim], dtype);
        let part = |t: &Tensor, i| t.narrow(1, i, 1).unwrap().squeeze(1).unwrap();
        let [q, k, v] = [0, 1, 2].map(|i| part(&gpu_qkv, i));
        let bias = RelativeBias { table: gpu_table.clone(), max };
        let seen = attend(&q, &k, &v, &plan, 0.25, Some(&bias)).unwrap();
        let [q, k, v] = [0, 1, 2].map(|i| part(&qkv, i));
        let exact = reference([&q, &k, &v], &plan, 0.25, biases);
        let (absolute, relative) = bound(dtype, 5.0);
        assert_close(&values(&seen), &exact, absolute, relative, &format!("{dtype:?}"));
    }
}

#[test]
fn nan_stays_in_its_row_and_large_scores_win() {
    let Some(device) = gpu() else { return };
    for dtype in FLOATS {
        let (_, k) = both(&device, &[100.0, 0.0, -100.0, 1.0, 0.0, 2.0], &[3, 1, 2], dtype);
        let (_, q) = both(&device, &[1e3, 0.0, f32::NAN, 0.0], &[2, 1, 2], dtype);
        let block = Block { rows: 0..2, keys: vec![own(0, 3)], causal: false };
        let y =
            values(&attend(&q, &k, &k, &AttendPlan { blocks: vec![block] }, 1.0, None).unwrap());
        assert_eq!(y[..2], [100.0, 0.0], "{dtype:?}");
        assert!(y[2..].iter().all(|x| x.is_nan()), "{dtype:?}: {y:?}");
    }
}

#[test]
fn rows_are_written_in_place() {
    let Some(device) = gpu() else { return };
    let mut random = Random(34);
    for dtype in FLOATS {
        for width in [3, 8, 130] {
            let (arena, gpu_arena) = both(&device, &random.vec(14 * width), &[7, 2, width], dtype);
            let (rows, gpu_rows) = both(&device, &random.vec(8 * width), &[4, 2, width], dtype);
            for (t, rows) in [(&arena, &rows), (&gpu_arena, &gpu_rows)] {
                // The same slots twice: the second time they are on the device.
                write_rows(t, &rows.narrow(0, 1, 3).unwrap(), &[6, 0, 2]).unwrap();
                write_rows(t, &rows.narrow(0, 0, 3).unwrap(), &[6, 0, 2]).unwrap();
                write_rows(t, &rows.narrow(0, 0, 1).unwrap(), &[3]).unwrap();
            }
            assert_eq!(values(&gpu_arena), values(&arena), "{dtype:?}, {width} wide");
            // Parts of longer rows, which lie apart.
            let (longer, gpu_longer) =
                both(&device, &random.vec(4 * 5 * width), &[4, 5, width], dtype);
            for (t, rows) in [(&arena, &longer), (&gpu_arena, &gpu_longer)] {
                write_rows(t, &rows.narrow(1, 2, 2).unwrap(), &[1, 4, 5, 2]).unwrap();
            }
            assert_eq!(values(&gpu_arena), values(&arena), "{dtype:?}, {width} wide, apart");
            let refused = write_rows(&gpu_arena, &gpu_rows, &[0, 1, 2, 7]).unwrap_err().to_string();
            assert!(refused.contains("slots is 7"), "{refused}");
        }
    }
}

#[test]
fn a_plan_serves_many_calls() {
    let Some(device) = gpu() else { return };
    let (stream, mut random) = (stream(&device), Random(35));
    let (heads, kv_heads, dim) = (4, 2, 24);
    let shared = cuda::attend::Plan::new(&stream, &plan(), ROWS, SLOTS, heads / kv_heads).unwrap();
    for _ in 0..2 {
        let [q, k, v] =
            [ROWS * heads, SLOTS * kv_heads, SLOTS * kv_heads].map(|n| random.vec(n * dim));
        let [gq, gk, gv] = [&q, &k, &v].map(|x| stream.clone_htod(x).unwrap());
        let operands = cuda::attend::Operands {
            q: cuda::Rows::packed(&gq, ROWS, heads * dim).unwrap(),
            k: cuda::Rows::packed(&gk, SLOTS, kv_heads * dim).unwrap(),
            v: cuda::Rows::packed(&gv, SLOTS, kv_heads * dim).unwrap(),
            dim,
        };
        let mut out = stream.alloc_zeros::<f32>(ROWS * heads * dim).unwrap();
        cuda::attend::attend(&stream, &operands, &shared, 0.2, None, &mut out).unwrap();
        let host = |values: &[f32], rows, heads| {
            Tensor::from_slice(values, (rows, heads, dim), &Device::Cpu).unwrap()
        };
        let (q, k, v) =
            (host(&q, ROWS, heads), host(&k, SLOTS, kv_heads), host(&v, SLOTS, kv_heads));
        let exact = reference([&q, &k, &v], &plan(), f64::from(0.2f32), |_, _| 0.0);
        let seen: Vec<f64> =
            stream.clone_dtoh(&out).unwrap().iter().map(|&x| f64::from(x)).collect();
        assert_close(&seen, &exact, 5e-5, 0.0, "by a plan");

        let refused = |operands: &cuda::attend::Operands<'_>, plan, part: &str| {
            let mut out = stream.alloc_zeros::<f32>(ROWS * heads * dim).unwrap();
            let error = cuda::attend::attend(&stream, operands, plan, 0.2, None, &mut out);
            let message = error.unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        let other = cuda::attend::Plan::new(&stream, &plan(), ROWS, SLOTS, 1).unwrap();
        refused(&operands, &other, "1 times the width of k");
        let other = cuda::attend::Plan::new(&stream, &plan(), ROWS, SLOTS + 1, 2).unwrap();
        refused(&operands, &other, "for 86 rows and 601 slots");
        let wide = cuda::attend::Operands { dim: 300, ..operands };
        refused(&wide, &shared, "D is 300, expected in 1..=256");
    }
}

/// Workspace and tickets of chunks are the graph's own, so that it can run again and again.
#[test]
fn a_call_is_captured_into_a_graph() {
    let Some(stream) = stream_to_capture() else { return };
    let (mut random, dim) = (Random(37), 32);
    let shared = cuda::attend::Plan::new(&stream, &plan(), ROWS, SLOTS, 1).unwrap();
    let kv = random.vec(SLOTS * dim);
    let gpu_kv = stream.clone_htod(&kv).unwrap();
    let mut q = stream.clone_htod(&random.vec(ROWS * dim)).unwrap();
    let mut out = stream.alloc_zeros::<f32>(ROWS * dim).unwrap();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let rows = |values, count| cuda::Rows::packed(values, count, dim).unwrap();
    let operands = cuda::attend::Operands {
        q: rows(&q, ROWS),
        k: rows(&gpu_kv, SLOTS),
        v: rows(&gpu_kv, SLOTS),
        dim,
    };
    cuda::attend::attend(&stream, &operands, &shared, 0.2, None, &mut out).unwrap();
    let graph = stream
        .end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
        .unwrap()
        .unwrap();
    let kv = Tensor::from_vec(kv, (SLOTS, 1, dim), &Device::Cpu).unwrap();
    for _ in 0..3 {
        let input = random.vec(ROWS * dim);
        stream.memcpy_htod(&input, &mut q).unwrap();
        graph.launch().unwrap();
        stream.synchronize().unwrap();
        let host = Tensor::from_vec(input, (ROWS, 1, dim), &Device::Cpu).unwrap();
        let exact = reference([&host, &kv, &kv], &plan(), f64::from(0.2f32), |_, _| 0.0);
        let seen: Vec<f64> =
            stream.clone_dtoh(&out).unwrap().iter().map(|&x| f64::from(x)).collect();
        assert_close(&seen, &exact, 5e-5, 0.0, "in a graph");
    }
}

#[test]
fn what_a_gpu_does_not_do_is_said() {
    let Some(device) = gpu() else { return };
    let mut random = Random(36);
    let (_, wide) = both(&device, &random.vec(2 * 257), &[2, 1, 257], DType::F32);
    let plan = AttendPlan::ragged(&[0, 2], true);
    let message = attend(&wide, &wide, &wide, &plan, 1.0, None).unwrap_err().to_string();
    assert!(message.contains("D is 257, expected in 1..=256 on a GPU"), "{message}");
}

/// Gradients, made of candle's ops on a GPU, are the CPU's.
#[test]
fn gradients_are_the_cpus() {
    let Some(device) = gpu() else { return };
    if !candle_runs(&device) {
        return;
    }
    let mut random = Random(37);
    let plan = AttendPlan::ragged(&[0, 3, 8], true);
    let (cpu, gpu) = both(&device, &random.vec(8 * 4 * 8), &[8, 4, 8], DType::F32);
    let (keys, gpu_keys) = both(&device, &random.vec(8 * 2 * 8), &[8, 2, 8], DType::F32);
    let gradients = |q: &Tensor, k: &Tensor| {
        let [q, k] = [q, k].map(|t| Var::from_tensor(t).unwrap());
        let y = attend(&q, &k, &k, &plan, 0.4, None).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        [&q, &k].map(|var| values(grads.get(var).unwrap()))
    };
    let (seen, twin) = (gradients(&gpu, &gpu_keys), gradients(&cpu, &keys));
    for (seen, twin) in seen.iter().zip(&twin) {
        assert_close(seen, twin, 1e-4, 1e-4, "gradient");
    }
}
