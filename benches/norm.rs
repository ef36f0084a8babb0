//! Norms: RMS with the residual added and returned, as before each half of a Llama layer.

mod common;

use bdhs::ops::norm::{Add, rms_norm_sum};
use candle_core::DType;
use common::{COLD_SETS, Case, FLOATS, Output, rotate, tensor};

/// Bytes of x, the residual, the sum and the norm.
fn bytes(rows: usize, width: usize, dtype: DType) -> usize {
    (4 * rows + 1) * width * dtype.size_in_bytes()
}

fn main() {
    let (rows, width) = (512, 4096);
    #[allow(unused_mut, reason = "cuda builds have more cases")]
    let mut cases: Vec<Case> = FLOATS
        .into_iter()
        .map(|(dtype, name)| {
            let name = format!("norm/rms sum/{rows} x {width}/{name}");
            Case::new(name, bytes(rows, width, dtype), 0, move || {
                let weight = tensor(99, &[width], dtype);
                let set = |s| [2 * s, 2 * s + 1].map(|seed| tensor(seed, &[rows, width], dtype));
                rotate((0..COLD_SETS as u64).map(set).collect(), move |[x, residual]| {
                    let add = Add { residual, bias: None };
                    Output::Tensor(rms_norm_sum(x, add, &weight, 1e-5).unwrap().1)
                })
            })
        })
        .collect();
    #[cfg(feature = "cuda")]
    cases.extend(common::gpu::first().into_iter().flat_map(|stream| launches(&stream)));
    common::main(cases);
}

/// The same on a GPU.
#[cfg(feature = "cuda")]
fn launches(stream: &common::gpu::Stream) -> Vec<Case> {
    use bdhs::ops::cuda::norm::{Norm, norm};
    use bdhs::ops::norm::NormKind;
    use common::gpu::{Buffer, case, sets};
    use half::bf16;
    use std::cell::RefCell;

    let of_shape = |(rows, width, kept): (usize, usize, &'static str)| {
        let bytes = bytes(rows, width, DType::BF16);
        let name = format!("norm/gpu rms sum {kept}/{rows} x {width}/bf16");
        let inputs = move |stream: &common::gpu::Stream| {
            let input = |set| {
                let floats = |seed, n| Buffer::new(stream, seed, n, DType::BF16);
                let (x, residual) =
                    (floats(3 * set, rows * width), floats(3 * set + 1, rows * width));
                let [sum, out] =
                    [0; 2].map(|_| RefCell::new(stream.alloc_zeros::<bf16>(rows * width).unwrap()));
                (x, residual, floats(3 * set + 2, width), sum, out)
            };
            (0..sets(kept, bytes) as u64).map(input).collect()
        };
        case(stream, name, (bytes, 0), inputs, move |stream, input| {
            let (x, residual, weight, sum, out) = input;
            let rule = Norm {
                kind: NormKind::Rms,
                residual: Some(residual.rows(rows, width)),
                weight: weight.rows(1, width),
                bias: None,
                add_bias: None,
                eps: 1e-5,
            };
            let (mut sum, mut out) = (sum.borrow_mut(), out.borrow_mut());
            norm::<bf16, _>(stream, &x.rows(rows, width), &rule, Some(&mut *sum), &mut *out)
                .unwrap();
        })
    };
    [(8192, 4096, "cold"), (8, 384, "hot")].map(of_shape).into()
}
