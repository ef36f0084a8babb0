//! Attention by plan: causal prefill of packed prompts, and a decoding step of forks that share prefixes, 32 heads of 128.

mod common;

use std::rc::Rc;

use bdhs::ops::attend::{AttendPlan, Block, Segment, attend};
use candle_core::DType;
use common::{COLD_SETS, Case, FLOATS, Output, rotate, tensor};

/// Rows, slots, heads of q, k and v and their size, and who sees what.
#[derive(Clone)]
struct Shape {
    name: String,
    rows: usize,
    slots: usize,
    heads: usize,
    dim: usize,
    plan: Rc<AttendPlan>,
}

/// `batch` prompts of `len` tokens.
fn prefill(batch: usize, len: usize, heads: usize) -> Shape {
    let cu: Vec<u32> = (0..=batch).map(|i| (i * len) as u32).collect();
    let (rows, plan) = (batch * len, Rc::new(AttendPlan::ragged(&cu, true)));
    let name = format!("{batch} x {len}, {heads} heads");
    Shape { name, rows, slots: rows, heads, dim: 128, plan }
}

/// `batch` texts of `len` tokens, as an encoder of the size of all-distilroberta-v1 reads them.
#[cfg(feature = "flash-attn")]
fn texts(batch: usize, len: usize) -> Shape {
    let cu: Vec<u32> = (0..=batch).map(|i| (i * len) as u32).collect();
    let (rows, plan) = (batch * len, Rc::new(AttendPlan::ragged(&cu, false)));
    let name = format!("{batch} texts of {len}, 12 heads of 64");
    Shape { name, rows, slots: rows, heads: 12, dim: 64, plan }
}

/// One row each of `forks` forks a prefix, which see it and a slot of their own.
fn decode(prefixes: usize, len: usize, forks: usize, heads: usize) -> Shape {
    let (shared, rows) = (prefixes * len, prefixes * forks);
    let block = |row: usize| Block {
        rows: row..row + 1,
        keys: vec![
            Segment { start: row / forks * len, len },
            Segment { start: shared + row, len: 1 },
        ],
        causal: true,
    };
    let plan = Rc::new(AttendPlan { blocks: (0..rows).map(block).collect() });
    let name = format!("{rows} forks of {prefixes} x {len}, {heads} heads");
    Shape { name, rows, slots: shared + rows, heads, dim: 128, plan }
}

impl Shape {
    fn q(&self) -> usize {
        self.rows * self.heads * self.dim
    }

    fn kv(&self) -> usize {
        self.slots * self.heads * self.dim
    }

    /// Each value of q, k, v and out once, whoever shares it.
    fn bytes(&self, dtype: DType) -> usize {
        2 * (self.q() + self.kv()) * dtype.size_in_bytes()
    }

    /// Products of q and k and of weights and v, of the pairs that are not hidden.
    fn flops(&self) -> usize {
        let pairs = |block: &Block| {
            let (rows, keys) = (block.rows.len(), block.keys.iter().map(|s| s.len).sum::<usize>());
            rows * keys - if block.causal { rows * (rows - 1) / 2 } else { 0 }
        };
        4 * self.dim * self.heads * self.plan.blocks.iter().map(pairs).sum::<usize>()
    }

    /// Bytes and operations of a case: decoding is bound by bytes.
    fn size(&self, dtype: DType, decoding: bool) -> (usize, usize) {
        (self.bytes(dtype), if decoding { 0 } else { self.flops() })
    }
}

fn main() {
    let mut cases = vec![];
    for (decoding, shape) in [(false, prefill(2, 128, 8)), (true, decode(4, 300, 4, 8))] {
        for (dtype, name) in FLOATS {
            let (bytes, flops) = shape.size(dtype, decoding);
            let what = if decoding { "decode" } else { "prefill" };
            let own = shape.clone();
            let case = format!("attend/{what}/{}/{name}", shape.name);
            cases.push(Case::new(case, bytes, flops, move || {
                let own = own.clone();
                let input = |set: usize| {
                    let part = |i: usize, rows| {
                        tensor((3 * set + i) as u64, &[rows, own.heads, own.dim], dtype)
                    };
                    [part(0, own.rows), part(1, own.slots), part(2, own.slots)]
                };
                let sets = (0..COLD_SETS).map(input).collect();
                let plan = own.plan.clone();
                rotate(sets, move |[q, k, v]| {
                    Output::Tensor(attend(q, k, v, &plan, 0.088, None).unwrap())
                })
            }));
        }
    }
    #[cfg(feature = "cuda")]
    cases.extend(common::gpu::first().into_iter().flat_map(|stream| launches(&stream)));
    #[cfg(feature = "flash-attn")]
    cases.extend(common::gpu::first().into_iter().flat_map(|stream| beside_flash(&stream)));
    common::main(cases);
}

/// The same on a GPU, in bf16, at the sizes of a 7B model; small ones for a machine without.
#[cfg(feature = "cuda")]
fn launches(stream: &common::gpu::Stream) -> Vec<Case> {
    use bdhs::ops::cuda::attend::{Operands, Plan, attend};
    use common::gpu::{Buffer, case, sets};
    use half::bf16;
    use std::cell::RefCell;

    let shapes = [
        (false, "hot", prefill(2, 90, 2)),
        (false, "cold", prefill(16, 700, 32)),
        (true, "hot", decode(2, 300, 2, 2)),
        (true, "cold", decode(64, 700, 4, 32)),
    ];
    let mut cases = vec![];
    for (decoding, kept, shape) in shapes {
        let what = if decoding { "decode" } else { "prefill" };
        let name = format!("attend/gpu {what} {kept}/{}/bf16", shape.name);
        let size = shape.size(DType::BF16, decoding);
        let (rows, slots, dim, width) =
            (shape.rows, shape.slots, shape.dim, shape.heads * shape.dim);
        let inputs = move |stream: &common::gpu::Stream| {
            let input = |set| {
                let buffer = |i, n| Buffer::new(stream, (3 * set + i) as u64, n, DType::BF16);
                let operands = [buffer(0, shape.q()), buffer(1, shape.kv()), buffer(2, shape.kv())];
                let plan = Plan::new(stream, &shape.plan, shape.rows, shape.slots, 1).unwrap();
                let out = stream.alloc_zeros::<bf16>(shape.q()).unwrap();
                (operands, plan, RefCell::new(out))
            };
            (0..sets(kept, shape.bytes(DType::BF16))).map(input).collect()
        };
        cases.push(case(stream, name, size, inputs, move |stream, ([q, k, v], plan, out)| {
            let operands = Operands {
                q: q.rows(rows, width),
                k: k.rows(slots, width),
                v: v.rows(slots, width),
                dim,
            };
            let out = &mut *out.borrow_mut();
            attend::<bf16>(stream, &operands, plan, 0.088, None, out).unwrap();
        }));
    }
    cases
}

/// The op on candle tensors, by our kernels and by candle-flash-attn's: both make their output anew in each call.
#[cfg(feature = "flash-attn")]
fn beside_flash(stream: &common::gpu::Stream) -> Vec<Case> {
    use bdhs::ops::attend::flash;
    use candle_core::Tensor;
    use common::gpu::{case, device, sets};

    type Op = fn(&[Tensor; 3], &AttendPlan) -> Tensor;
    let own: Op = |[q, k, v], plan| attend(q, k, v, plan, 0.088, None).unwrap();
    let flash: Op = |[q, k, v], plan| flash::attend(q, k, v, plan, 0.088).unwrap();
    // `attend` is ours only as long as the environment does not ask for flash.
    assert_eq!(flash::Kernels::of_environment().unwrap(), flash::Kernels::Own);
    let shapes = [
        ("hot", prefill(2, 90, 2)),
        ("cold", prefill(16, 700, 32)),
        ("cold", prefill(128, 90, 32)),
        ("cold", texts(512, 40)),
    ];
    let mut cases = vec![];
    for (kept, shape) in shapes {
        for (whose, op) in [("ours", own), ("flash", flash)] {
            let name = format!("attend/gpu op {kept}, {whose}/{}/bf16", shape.name);
            let size = shape.size(DType::BF16, false);
            let shape = shape.clone();
            let inputs = move |_: &common::gpu::Stream| {
                let gpu = device().expect("a GPU");
                let input = |set: usize| {
                    let part = |i: usize, rows| {
                        let dims = [rows, shape.heads, shape.dim];
                        let host = tensor((3 * set + i) as u64, &dims, DType::BF16);
                        host.to_device(gpu).expect("memory")
                    };
                    let operands =
                        [part(0, shape.rows), part(1, shape.slots), part(2, shape.slots)];
                    (operands, shape.plan.clone())
                };
                (0..sets(kept, shape.bytes(DType::BF16))).map(input).collect()
            };
            cases.push(case(stream, name, size, inputs, move |_, (operands, plan)| {
                op(operands, plan);
            }));
        }
    }
    cases
}
