//! Rotary position embedding: the queries of a Llama layer, 32 heads of 128.

mod common;

use bdhs::ops::rope::rotate as turn;
use candle_core::DType;
use common::{COLD_SETS, Case, FLOATS, Output, rotate, tensor};

const DIM: usize = 128;

/// Bytes of x, the result and both tables.
fn bytes(rows: usize, heads: usize, dtype: DType) -> usize {
    2 * rows * heads * DIM * dtype.size_in_bytes() + rows * DIM * 4
}

fn main() {
    let (rows, heads) = (512, 32);
    #[allow(unused_mut, reason = "cuda builds have more cases")]
    let mut cases: Vec<Case> = FLOATS
        .into_iter()
        .map(|(dtype, name)| {
            let name = format!("rope/rotate/{rows} x {heads} x {DIM}/{name}");
            Case::new(name, bytes(rows, heads, dtype), 0, move || {
                let [cos, sin] = [98, 99].map(|seed| tensor(seed, &[rows, DIM / 2], DType::F32));
                let set = |s| tensor(s, &[rows, heads, DIM], dtype);
                rotate((0..COLD_SETS as u64).map(set).collect(), move |x| {
                    Output::Tensor(turn(x, &cos, &sin).unwrap())
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
    use bdhs::ops::cuda::rope;
    use common::gpu::{Buffer, case, sets};
    use common::values;
    use half::bf16;
    use std::cell::RefCell;

    let of_shape = |(rows, heads, kept): (usize, usize, &'static str)| {
        let (width, bytes) = (heads * DIM, bytes(rows, heads, DType::BF16));
        let name = format!("rope/gpu rotate {kept}/{rows} x {heads} x {DIM}/bf16");
        let inputs = move |stream: &common::gpu::Stream| {
            let input = |set| {
                let x = Buffer::new(stream, 3 * set, rows * width, DType::BF16);
                let [cos, sin] = [1, 2]
                    .map(|i| stream.clone_htod(&values(3 * set + i, rows * DIM / 2)).unwrap());
                let out = RefCell::new(stream.alloc_zeros::<bf16>(rows * width).unwrap());
                (x, cos, sin, out)
            };
            (0..sets(kept, bytes) as u64).map(input).collect()
        };
        case(stream, name, (bytes, 0), inputs, move |stream, input| {
            let (x, cos, sin, out) = input;
            let mut out = out.borrow_mut();
            rope::rotate::<bf16>(stream, &x.rows(rows, width), heads, cos, sin, &mut *out).unwrap();
        })
    };
    [(8192, 32, "cold"), (8, 4, "hot")].map(of_shape).into()
}
