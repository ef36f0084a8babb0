//! Pooling: ragged sentences of 4 to 60 tokens and full sequences of 128, H = 768, mean and L2-normalised; the same by
//! candle's ops on padded states.

mod common;

use std::rc::Rc;

use bdhs::ops::pool::{FinalNorm, Mode, Options, Rows, pool, pool_i8};
use candle_core::{D, DType, Device, Tensor};
use common::{COLD_SETS, Case, FLOATS, Output, rotate, tensor};

const HIDDEN: usize = 768;

/// Token counts of a batch. `ops.py` has the same two.
fn lengths(ragged: bool) -> Vec<usize> {
    if ragged { (0..256).map(|i| 4 + i * 37 % 57).collect() } else { vec![128; 64] }
}

fn offsets(lengths: &[usize]) -> Vec<u32> {
    let mut cu = vec![0];
    lengths.iter().for_each(|&n| cu.push(cu[cu.len() - 1] + n as u32));
    cu
}

/// `[B, T, H]` and `[B, T, 1]` of packed states, zeros in the padding.
fn pad(states: &Tensor, lengths: &[usize]) -> (Tensor, Tensor) {
    let width = *lengths.iter().max().unwrap();
    let (mut parts, mut mask, mut row) = (vec![], vec![], 0);
    for &n in lengths {
        parts.push(states.narrow(0, row, n).unwrap().pad_with_zeros(0, 0, width - n).unwrap());
        mask.extend((0..width).map(|i| f32::from(u8::from(i < n))));
        row += n;
    }
    let mask = Tensor::from_vec(mask, (lengths.len(), width, 1), &Device::Cpu).unwrap();
    (Tensor::stack(&parts, 0).unwrap(), mask)
}

/// What an embedding model written with candle's ops does.
fn composed((padded, mask): &(Tensor, Tensor)) -> Tensor {
    let sum = padded.to_dtype(DType::F32).unwrap().broadcast_mul(mask).unwrap().sum(1).unwrap();
    let mean = sum.broadcast_div(&mask.sum(1).unwrap()).unwrap();
    let norm = mean.sqr().unwrap().sum_keepdim(D::Minus1).unwrap().sqrt().unwrap();
    mean.broadcast_div(&norm).unwrap()
}

fn main() {
    let mut cases = vec![];
    for (dtype, name) in FLOATS {
        for ragged in [true, false] {
            let lengths = Rc::new(lengths(ragged));
            let tokens: usize = lengths.iter().sum();
            let bytes = tokens * HIDDEN * dtype.size_in_bytes() + lengths.len() * HIDDEN * 4;
            let shape = if ragged { "ragged" } else { "full" };
            let states = move |set: usize| tensor(set as u64, &[tokens, HIDDEN], dtype);
            let cu = Rc::new(offsets(&lengths));
            let own = cu.clone();
            cases.push(Case::new(format!("pool/mean/{shape}/{name}"), bytes, 0, move || {
                let cu = own.clone();
                let options = Options { normalize: true, ..Options::new(Mode::Mean) };
                rotate((0..COLD_SETS).map(states).collect(), move |states| {
                    let rows = Rows::Packed { cu_seqlens: &cu };
                    Output::Tensor(pool(states, rows, &options, None).unwrap())
                })
            }));
            cases.push(Case::new(format!("pool/candle ops/{shape}/{name}"), bytes, 0, move || {
                let lengths = lengths.clone();
                let sets = (0..COLD_SETS).map(|s| pad(&states(s), &lengths)).collect();
                rotate(sets, |set| Output::Tensor(composed(set)))
            }));
            if !ragged {
                cases.extend(others(name, bytes, states, cu));
            }
        }
    }
    #[cfg(feature = "cuda")]
    cases.extend(common::gpu::first().into_iter().flat_map(|stream| launches(&stream)));
    common::main(cases);
}

/// Ragged sentences on a GPU, mean and normalised.
#[cfg(feature = "cuda")]
fn launches(stream: &common::gpu::Stream) -> Vec<Case> {
    use bdhs::ops::cuda::pool::{Places, pool};
    use common::gpu::{Buffer, case, sets};
    use std::cell::RefCell;

    let mut cases = vec![];
    for (dtype, dtype_name) in FLOATS {
        for (batch, kept) in [(256, "hot"), (8192, "cold")] {
            let lengths: Vec<usize> = lengths(true).into_iter().cycle().take(batch).collect();
            let cu = offsets(&lengths);
            let tokens: usize = lengths.iter().sum();
            let states = tokens * HIDDEN * dtype.size_in_bytes();
            let bytes = states + batch * HIDDEN * 4;
            let name = format!("pool/gpu mean {kept}/{batch} ragged/{dtype_name}");
            let inputs = move |stream: &common::gpu::Stream| {
                let input = |set| {
                    let places = Places::packed(stream, &cu, tokens).unwrap();
                    let out = stream.alloc_zeros::<f32>(batch * HIDDEN).unwrap();
                    let states = Buffer::new(stream, set as u64, tokens * HIDDEN, dtype);
                    (states, places, RefCell::new(out))
                };
                (0..sets(kept, states)).map(input).collect()
            };
            cases.push(case(stream, name, (bytes, 0), inputs, move |stream, input| {
                let (states, places, out) = input;
                let options = Options { normalize: true, ..Options::new(Mode::Mean) };
                let rows = states.rows(tokens, HIDDEN);
                pool::<f32>(stream, &rows, places, &options, None, &mut *out.borrow_mut()).unwrap();
            }));
        }
    }
    cases
}

/// Other modes, a fused LayerNorm, 8-bit codes.
fn others(
    name: &str,
    bytes: usize,
    states: impl Fn(usize) -> Tensor + Copy + 'static,
    cu: Rc<Vec<u32>>,
) -> Vec<Case> {
    let mut cases = vec![];
    for mode in [Mode::Max, Mode::WeightedMean] {
        let cu = cu.clone();
        cases.push(Case::new(format!("pool/{mode:?}/full/{name}"), bytes, 0, move || {
            let (cu, options) = (cu.clone(), Options { normalize: true, ..Options::new(mode) });
            rotate((0..COLD_SETS).map(states).collect(), move |states| {
                let rows = Rows::Packed { cu_seqlens: &cu };
                Output::Tensor(pool(states, rows, &options, None).unwrap())
            })
        }));
    }
    let options = Options { normalize: true, ..Options::new(Mode::Mean) };
    let own = cu.clone();
    cases.push(Case::new(format!("pool/LayerNorm + mean/full/{name}"), bytes, 0, move || {
        let cu = own.clone();
        let weight = tensor(7, &[HIDDEN], DType::F32);
        rotate((0..COLD_SETS).map(states).collect(), move |states| {
            let norm = FinalNorm { residual: None, weight: &weight, bias: None, eps: 1e-5 };
            let rows = Rows::Packed { cu_seqlens: &cu };
            Output::Tensor(pool(states, rows, &options, Some(&norm)).unwrap())
        })
    }));
    cases.push(Case::new(format!("pool/mean to i8/full/{name}"), bytes, 0, move || {
        let cu = cu.clone();
        rotate((0..COLD_SETS).map(states).collect(), move |states| {
            let rows = Rows::Packed { cu_seqlens: &cu };
            let codes = pool_i8(states, rows, &options, None).unwrap().codes;
            Output::Numbers(vec![f64::from(codes[0]), codes.len() as f64])
        })
    }));
    cases
}
