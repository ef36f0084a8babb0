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
    if let Some(stream) = common::gpu::first() {
        cases.extend(gpu::cases(&stream));
        cases.extend(gpu::candle());
    }
    common::main(cases);
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

/// The same on a GPU: `pool/gpu MODE KEPT/BATCH SHAPE/DTYPE`.
#[cfg(feature = "cuda")]
mod gpu {
    use std::cell::RefCell;
    use std::rc::Rc;

    use bdhs::ops::cuda::pool::{Mask, Places, pool};
    use bdhs::ops::pool::{Mode, Options};
    use candle_core::{DType, Tensor};
    use cudarc::driver::CudaSlice;

    use super::common::gpu::{Buffer, Launches, Stream, device, sets, timer};
    use super::common::{Case, FLOATS, Output, digest, rotate, values};
    use super::{HIDDEN, composed, lengths, offsets};

    /// States, where their sequences are, room for the pooled vectors.
    struct Input {
        states: Buffer,
        tokens: usize,
        places: Where,
        mode: Mode,
        out: RefCell<CudaSlice<f32>>,
    }

    enum Where {
        Packed(Places),
        /// A mask `[B, T]`, from which a call finds the places itself.
        Padded(CudaSlice<u8>, usize),
    }

    /// Token counts of `batch` sequences.
    fn counts(ragged: bool, batch: usize) -> Vec<usize> {
        lengths(ragged).into_iter().cycle().take(batch).collect()
    }

    /// Sentences of 4 to 60 tokens and sequences of 128, mean and normalised; other modes; a padded batch with its mask.
    pub fn cases(stream: &Stream) -> Vec<Case> {
        let shapes = [(true, 256, "hot"), (true, 8192, "cold"), (false, 4096, "cold")];
        let mut cases = vec![];
        for (dtype, name) in FLOATS {
            for (ragged, batch, kept) in shapes {
                let launches = packed("mean", Mode::Mean, ragged, batch, kept, (dtype, name));
                match kept {
                    "hot" => cases.extend(launches.calls_and_replays(stream)),
                    _ => cases.push(launches.calls(stream)),
                }
            }
        }
        for (what, mode) in [("max", Mode::Max), ("last", Mode::Last)] {
            let launches = packed(what, mode, true, 8192, "cold", (DType::BF16, "bf16"));
            cases.push(launches.calls(stream));
        }
        for (batch, kept) in [(16, "hot"), (8192, "cold")] {
            cases.push(padded(batch, kept).calls(stream));
        }
        cases
    }

    fn packed(
        what: &str,
        mode: Mode,
        ragged: bool,
        batch: usize,
        kept: &str,
        (dtype, dtype_name): (DType, &str),
    ) -> Launches<Input> {
        let lengths = counts(ragged, batch);
        let (cu, tokens) = (offsets(&lengths), lengths.iter().sum::<usize>());
        let counted = if mode == Mode::Last { batch } else { tokens };
        let bytes = counted * HIDDEN * dtype.size_in_bytes() + batch * HIDDEN * 4;
        let shape = if ragged { "ragged" } else { "full" };
        Launches {
            name: format!("pool/gpu {what} {kept}/{batch} {shape}/{dtype_name}"),
            costs: (bytes, 0),
            // What "last" does not read need not be cold.
            sets: if mode == Mode::Last { 4 } else { sets(kept, bytes) },
            input: Box::new(move |stream, set| Input {
                states: Buffer::new(stream, set as u64, tokens * HIDDEN, dtype),
                tokens,
                places: Where::Packed(Places::packed(stream, &cu, tokens).unwrap()),
                mode,
                out: RefCell::new(stream.alloc_zeros(batch * HIDDEN).unwrap()),
            }),
            launch,
            read,
        }
    }

    /// `[B, 60, H]` in bf16, anything in the padding, and a mask of bytes.
    fn padded(batch: usize, kept: &str) -> Launches<Input> {
        let lengths = counts(true, batch);
        let (width, valid) = (60, lengths.iter().sum::<usize>());
        let marks: Vec<u8> =
            lengths.iter().flat_map(|&n| (0..width).map(move |i| u8::from(i < n))).collect();
        let bytes = valid * HIDDEN * 2 + marks.len() + batch * HIDDEN * 4;
        Launches {
            name: format!("pool/gpu mean, padded {kept}/{batch} ragged/bf16"),
            costs: (bytes, 0),
            sets: sets(kept, bytes),
            input: Box::new(move |stream, set| Input {
                states: Buffer::new(stream, set as u64, batch * width * HIDDEN, DType::BF16),
                tokens: batch * width,
                places: Where::Padded(stream.clone_htod(&marks).unwrap(), batch),
                mode: Mode::Mean,
                out: RefCell::new(stream.alloc_zeros(batch * HIDDEN).unwrap()),
            }),
            launch,
            read,
        }
    }

    fn launch(stream: &Stream, input: &Input) {
        let options = Options { normalize: true, ..Options::new(input.mode) };
        let rows = input.states.rows(input.tokens, HIDDEN);
        let found;
        let places = match &input.places {
            Where::Packed(places) => places,
            Where::Padded(mask, batch) => {
                let mask = Mask::U8(mask.as_view());
                found = Places::padded(stream, &mask, *batch, input.tokens / batch).unwrap();
                &found
            }
        };
        pool::<f32>(stream, &rows, places, &options, None, &mut *input.out.borrow_mut()).unwrap();
    }

    fn read(stream: &Stream, input: &Input) -> Vec<f64> {
        digest(&stream.clone_dtoh(&*input.out.borrow()).unwrap())
    }

    /// The same by candle's ops, on padded CUDA tensors: `pool/candle gpu ...`. Needs candle's kernels.
    pub fn candle() -> Vec<Case> {
        let Some(device) = device() else { return vec![] };
        let stream = device.as_cuda_device().unwrap().cuda_stream();
        let mut cases = vec![];
        for (dtype, name) in FLOATS {
            for (ragged, batch, kept) in
                [(true, 256, "hot"), (true, 8192, "cold"), (false, 4096, "cold")]
            {
                let lengths = Rc::new(counts(ragged, batch));
                let tokens: usize = lengths.iter().sum();
                let bytes = tokens * HIDDEN * dtype.size_in_bytes() + batch * HIDDEN * 4;
                let shape = if ragged { "ragged" } else { "full" };
                let case = format!("pool/candle gpu mean {kept}/{batch} {shape}/{name}");
                let make = {
                    let lengths = lengths.clone();
                    move || {
                        device.synchronize().unwrap();
                        let sets = 0..sets(kept, bytes);
                        let sets = sets.map(|set| on_device(set, &lengths, dtype)).collect();
                        rotate(sets, |set| {
                            composed(set);
                            Output::Numbers(vec![])
                        })
                    }
                };
                let check =
                    move || Output::Tensor(composed(&on_device(0, &lengths, dtype))).digest();
                cases.push(Case {
                    timer: Some(timer(&stream, 1)),
                    check: Some(Box::new(check)),
                    ..Case::new(case, bytes, 0, make)
                });
            }
        }
        cases
    }

    /// The values of a packed input as padded states and their mask, zeros in the padding.
    fn on_device(set: usize, lengths: &[usize], dtype: DType) -> (Tensor, Tensor) {
        let device = device().expect("a GPU");
        let (batch, width) = (lengths.len(), *lengths.iter().max().unwrap());
        let packed = values(set as u64, lengths.iter().sum::<usize>() * HIDDEN);
        let (mut states, mut mask) =
            (vec![0f32; batch * width * HIDDEN], vec![0f32; batch * width]);
        let mut from = 0;
        for (row, &n) in lengths.iter().enumerate() {
            let to = row * width;
            states[to * HIDDEN..][..n * HIDDEN].copy_from_slice(&packed[from..][..n * HIDDEN]);
            mask[to..][..n].fill(1.0);
            from += n * HIDDEN;
        }
        let states = Tensor::from_vec(states, (batch, width, HIDDEN), device).unwrap();
        let mask = Tensor::from_vec(mask, (batch, width, 1), device).unwrap();
        (states.to_dtype(dtype).unwrap(), mask)
    }
}
