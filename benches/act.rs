//! Activations: the gated product of Llama's MLP and GELU with its bias.

mod common;

use bdhs::ops::act::{Activation, bias_act, silu_mul};
use common::{COLD_SETS, Case, FLOATS, Output, rotate, tensor};

fn main() {
    let mut cases = vec![];
    for (dtype, name) in FLOATS {
        let (rows, width) = (64, 11_008);
        let values = rows * width * dtype.size_in_bytes();
        let set = move |s| [2 * s, 2 * s + 1].map(|seed| tensor(seed, &[rows, width], dtype));
        let gated = format!("act/silu_mul/{rows} x {width}/{name}");
        cases.push(Case::new(gated, 3 * values, 0, move || {
            rotate((0..COLD_SETS as u64).map(set).collect(), |[gate, up]| {
                Output::Tensor(silu_mul(gate, up).unwrap())
            })
        }));
        let gelu = format!("act/gelu by erf/{rows} x {width}/{name}");
        cases.push(Case::new(gelu, 2 * values, 0, move || {
            let bias = tensor(99, &[width], dtype);
            rotate((0..COLD_SETS as u64).map(set).collect(), move |[x, _]| {
                Output::Tensor(bias_act(x, Some(&bias), Activation::GeluErf).unwrap())
            })
        }));
    }
    #[cfg(feature = "cuda")]
    cases.extend(common::gpu::first().into_iter().flat_map(|stream| launches(&stream)));
    common::main(cases);
}

/// The same on a GPU.
#[cfg(feature = "cuda")]
fn launches(stream: &common::gpu::Stream) -> Vec<Case> {
    use bdhs::ops::cuda::act;
    use candle_core::DType;
    use common::gpu::{Buffer, case, sets};
    use half::bf16;
    use std::cell::RefCell;

    let mut cases = vec![];
    for (rows, width, kept) in [(8192, 11_008, "cold"), (8, 384, "hot")] {
        let values = rows * width * 2;
        let inputs = move |stream: &common::gpu::Stream| {
            let input = |set| {
                let floats = |seed| Buffer::new(stream, seed, rows * width, DType::BF16);
                let out = RefCell::new(stream.alloc_zeros::<bf16>(rows * width).unwrap());
                (floats(2 * set), floats(2 * set + 1), out)
            };
            (0..sets(kept, 3 * values) as u64).map(input).collect()
        };
        let gated = format!("act/gpu silu_mul {kept}/{rows} x {width}/bf16");
        cases.push(case(stream, gated, (3 * values, 0), inputs, move |stream, input| {
            let (gate, up, out) = input;
            let (gate, up) = (gate.rows(rows, width), up.rows(rows, width));
            act::silu_mul::<bf16>(stream, &gate, &up, &mut *out.borrow_mut()).unwrap();
        }));
        let gelu = format!("act/gpu gelu by erf {kept}/{rows} x {width}/bf16");
        cases.push(case(stream, gelu, (2 * values, 0), inputs, move |stream, input| {
            let (x, other, out) = input;
            let (x, bias) = (x.rows(rows, width), other.rows(1, width));
            let f = Activation::GeluErf;
            act::bias_act::<bf16>(stream, &x, Some(&bias), f, &mut *out.borrow_mut()).unwrap();
        }));
    }
    cases
}
